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

AUTO = "auto"


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
    """Mean of the draws' values with its 95 % t interval.

    Parameters
    ----------
    values : pandas.Series
        One number a draw, two or more.

    Returns
    -------
    pandas.Series
        ``value``, ``low`` and ``high``.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import with_t_interval
    >>> with_t_interval(pd.Series([1.0, 2.0, 3.0])).round(2).to_dict()
    {'value': 2.0, 'low': -0.48, 'high': 4.48}
    """
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return pd.Series({"value": values.mean(), "low": values.mean() - half, "high": values.mean() + half})
