"""When GPTQ loses to rounding: held-out ratios, their intervals, and the rules that decide.

The rules were written before the grid was computed. A pilot on other draws (two blocks, one set of 512 and one of 2,048
tokens of web text) chose the dampings of the grid.

1. The score of a draw is the mean, over all measured layers, of log J(GPTQ)/J(RTN) on held-out rows. Its interval is a
   95 % t interval over draws. GPTQ loses where it lies above 0, and wins where it lies below.
2. The damping to use is judged on text (not on random tokens), at the largest amount that all draws have: the mean of
   the score over all pairs of calibration source and held-out source. The book keeps its present damping, 0.1, unless
   another fixed one has at least 1 % less error, with an interval of the paired difference that excludes 0.
3. ``"auto"`` is judged against the best fixed damping in the same way, on the held-out text of the calibration's own
   source, and on that of other sources.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from cola_lib.experiments import RANDOM_TOKENS
from cola_lib.experiments.damping import SEEN

AUTO = "auto"

SAME, OTHER, CONTROL = "same source", "other source", RANDOM_TOKENS
"""Where GPTQ is judged, beside :data:`SEEN`: on held-out text of the calibration's source, on that of another, and on
text after calibration on random tokens."""


def draw_scores(layers: pd.DataFrame) -> pd.DataFrame:
    """Average log ratios over layers.

    Parameters
    ----------
    layers : pandas.DataFrame
        Of :func:`~cola_lib.experiments.run_damping`.

    Returns
    -------
    pandas.DataFrame
        Columns ``source``, ``amount``, ``damp`` (a text; :data:`AUTO` for the chosen one of each input), ``target``,
        ``draw``, ``score`` (mean log ratio) and ``losing`` (share of layers with a ratio above 1).

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import draw_scores
    >>> same = {"source": "c4", "target": "c4", "draw": 0, "amount": 8}
    >>> rows = [{**same, "damp": 0.1, "ratio": r, "chosen": r < 1, "layer": str(r)} for r in (0.5, 2.0)]
    >>> draw_scores(pd.DataFrame(rows))[["damp", "score", "losing"]].round(2).to_dict("records")
    [{'damp': '0.1', 'score': 0.0, 'losing': 0.5}, {'damp': 'auto', 'score': -0.69, 'losing': 0.0}]
    """
    fixed = layers.assign(damp=layers["damp"].map("{:g}".format))
    every = pd.concat([fixed, fixed[fixed["chosen"]].assign(damp=AUTO)], ignore_index=True)
    every = every.assign(score=np.log(every["ratio"]), losing=(every["ratio"] > 1).astype(float))
    by = ["source", "amount", "damp", "target", "draw"]
    return every.groupby(by, sort=False)[["score", "losing"]].mean().reset_index()


def with_t_interval(values: pd.Series) -> pd.Series:
    """Mean of the draws' values with its 95 % t interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return pd.Series({"value": values.mean(), "low": values.mean() - half, "high": values.mean() + half})


def by_relation(scores: pd.DataFrame) -> pd.DataFrame:
    """Average each draw's scores over the pairs of calibration source and held-out source."""
    source, target = scores["source"], scores["target"]
    where = pd.Series(OTHER, scores.index).mask(source == target, SAME).mask(target == SEEN, SEEN)
    where = where.mask(source == RANDOM_TOKENS, CONTROL)
    text = scores.assign(where=where)[(target != RANDOM_TOKENS) & ~((source == RANDOM_TOKENS) & (target == SEEN))]
    by = ["amount", "damp", "where", "draw"]
    return text.groupby(by, sort=False)[["score", "losing"]].mean().reset_index()


def damping_table(layers: pd.DataFrame) -> pd.DataFrame:
    """Error of GPTQ as a share of rounding's, with intervals over draws.

    Parameters
    ----------
    layers : pandas.DataFrame
        Of :func:`~cola_lib.experiments.run_damping`, with two draws or more.

    Returns
    -------
    pandas.DataFrame
        Columns ``amount``, ``damp``, ``where``, ``value``, ``low``, ``high`` (ratios: geometric means over layers and
        sources) and ``losing`` (share of layers).

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import damping_table
    >>> same = {"source": "c4", "target": "c4", "amount": 8, "damp": 0.1, "chosen": False, "layer": "q"}
    >>> layers = pd.DataFrame([{**same, "draw": draw, "ratio": ratio} for draw, ratio in ((0, 0.5), (1, 0.5))])
    >>> damping_table(layers)[["where", "damp", "value", "high"]].round(2).to_dict("records")
    [{'where': 'same source', 'damp': '0.1', 'value': 0.5, 'high': 0.5}]
    """
    scores = by_relation(draw_scores(layers))
    by = ["amount", "damp", "where"]
    logs = scores.groupby(by, sort=False)["score"].apply(with_t_interval).unstack()
    return logs.apply(np.exp).join(scores.groupby(by, sort=False)["losing"].mean()).reset_index()


def against(layers: pd.DataFrame, reference: str, amount: int) -> pd.DataFrame:
    """Change of the held-out error on text when another damping is taken, paired by draw.

    Parameters
    ----------
    layers : pandas.DataFrame
        Of :func:`~cola_lib.experiments.run_damping`.
    reference : str
        The damping that the others are compared with, as :func:`draw_scores` writes it.
    amount : int
        Rows of the calibration set.

    Returns
    -------
    pandas.DataFrame
        Columns ``where`` (:data:`SAME`, :data:`OTHER`, or ``"all text"``: all pairs), ``damp``, ``value``, ``low`` and
        ``high``: the relative change, negative where the damping makes less error than the reference.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import against
    >>> same = {"source": "c4", "target": "c4", "amount": 8, "chosen": False, "layer": "q"}
    >>> cases = [(draw, *pair) for draw in (0, 1) for pair in ((0.1, 0.5), (1.0, 0.4))]
    >>> layers = pd.DataFrame([{**same, "draw": d, "damp": damp, "ratio": ratio} for d, damp, ratio in cases])
    >>> against(layers, "0.1", 8).query("where == 'same source'")[["damp", "value"]].round(2).to_dict("records")
    [{'damp': '0.1', 'value': 0.0}, {'damp': '1', 'value': -0.2}]
    """
    scores = draw_scores(layers)
    text = scores[
        (scores["amount"] == amount)
        & ~scores["source"].eq(RANDOM_TOKENS)
        & ~scores["target"].isin([RANDOM_TOKENS, SEEN])
    ]
    same = text["source"] == text["target"]
    parts = {SAME: text[same], OTHER: text[~same], "all text": text}
    found = []
    for where, part in parts.items():
        if part.empty:
            continue
        by_draw = part.groupby(["draw", "damp"])["score"].mean().unstack("damp")
        change = by_draw.sub(by_draw[reference], axis=0).apply(with_t_interval).T
        found.append(change.apply(np.expm1).rename_axis("damp").reset_index().assign(where=where))
    return pd.concat(found, ignore_index=True)[["where", "damp", "value", "low", "high"]]


def losing_layers(layers: pd.DataFrame) -> pd.Series:
    """Share of cases in which GPTQ loses to rounding on text of another source, for each kind of layer.

    Parameters
    ----------
    layers : pandas.DataFrame
        Of :func:`~cola_lib.experiments.run_damping`.

    Returns
    -------
    pandas.Series
        Over draws, blocks and pairs of sources; indexed by ``kind`` (such as ``"down_proj"``), ``amount`` and ``damp``
        (a text).

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import losing_layers
    >>> one = {"source": "c4", "target": "code", "amount": 8, "damp": 0.1, "layer": "blocks.0.mlp.down_proj"}
    >>> losing_layers(pd.DataFrame([{**one, "ratio": 0.5}, {**one, "ratio": 2.0}])).to_dict()
    {('down_proj', 8, '0.1'): 0.5}
    """
    source, target = layers["source"], layers["target"]
    other = layers[source.ne(RANDOM_TOKENS) & ~target.isin([RANDOM_TOKENS, SEEN]) & source.ne(target)]
    kind = other["layer"].str.rsplit(".", n=1).str[-1].rename("kind")
    damp = other["damp"].map("{:g}".format)  # packed results hold float32
    return other["ratio"].gt(1).groupby([kind, other["amount"], damp]).mean()


MARGIN = 0.01
"""Least change of the error for which the book would change its damping."""


def damping_to_use(layers: pd.DataFrame, present: str, amount: int) -> str:
    """Apply rule 2: keep the present fixed damping unless another is better by :data:`MARGIN`, for certain.

    Parameters
    ----------
    layers, amount
        As for :func:`against`.
    present : str
        The damping in use.

    Returns
    -------
    str
        The damping.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import damping_to_use
    >>> same = {"source": "c4", "target": "c4", "amount": 8, "chosen": False, "layer": "q"}
    >>> cases = [(draw, *pair) for draw in (0, 1) for pair in ((0.1, 0.5), (1.0, 0.4 + 0.001 * draw))]
    >>> layers = pd.DataFrame([{**same, "draw": d, "damp": damp, "ratio": ratio} for d, damp, ratio in cases])
    >>> damping_to_use(layers, "0.1", 8)
    '1'
    """
    changes = against(layers, present, amount)
    fixed = changes[(changes["where"] == "all text") & ~changes["damp"].isin([AUTO, present])]
    better = fixed[(fixed["high"] < 0) & (fixed["value"] <= -MARGIN)]
    return present if better.empty else str(better.sort_values("value")["damp"].iloc[0])
