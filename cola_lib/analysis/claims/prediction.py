"""Claims that a measure of the calibration data predicts the outcome: C11 and C17."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from cola_lib.analysis.bootstrap import rng_of
from cola_lib.analysis.claims.effects import DEFAULT, Options, cells_of
from cola_lib.analysis.claims.findings import Finding
from cola_lib.analysis.claims.table import CLAIMS, CORRELATION
from cola_lib.analysis.ranks import MIN_GROUPS, Correlation, held_out_correlation, spearman


def c11_mechanism(
    table: pd.DataFrame,
    predictors: Sequence[str],
    *,
    outcome: str = "loss",
    groups: str = "source",
    within: Sequence[str] = ("label", "capability"),
    by: Sequence[str] = (),
    domain: str | None = None,
    n_permutations: int = 199,
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether measures in activation space predict the loss on sources that were not fitted to.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per cell and capability, as of :func:`cola_lib.analysis.cell_table`, with the predictors joined.
    predictors : sequence of str
        Columns. Chosen before looking: the interval knows nothing of a search.
    outcome, groups, within, domain, n_permutations
        As in :func:`cola_lib.analysis.ranks.held_out_correlation`.
    by : sequence of str
        Columns that split the table into findings; by default there is one over all.
    options : Options
        Its seed and level.

    Returns
    -------
    list of Finding
        The notes have R², what labels alone reach, and the permutation p-value, which is one-sided and does not enter
        the verdict. With fewer sources than an interval takes, the interval is all of -1 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from cola_lib.analysis import c11_mechanism
    >>> chance = np.random.default_rng(0)
    >>> table = pd.DataFrame({"source": np.repeat(list("abcdef"), 3), "label": "wanda 50%", "capability": "math"})
    >>> table["distance"] = np.arange(18) / 18
    >>> table["loss"] = 0.1 + 0.2 * table["distance"] + chance.normal(0, 0.01, 18)
    >>> (finding,) = c11_mechanism(table, ["distance"], n_permutations=9)
    >>> finding.value > 0.9
    True
    """
    findings = []
    for part, rows in _split(table, by):
        if rows[groups].nunique() < MIN_GROUPS:
            findings.append(_unknown("C11", part, rows, groups))
            continue
        found = held_out_correlation(
            rows,
            predictors,
            outcome,
            groups=groups,
            within=[column for column in within if column not in by],
            domain=domain,
            n_permutations=n_permutations,
            rng=rng_of(options.seed, {"claim": "C11", "part": part}),
            level=options.level,
        )
        note = (
            f"R² {found.r2:.2f} on held-out sources, labels alone {found.baseline_r2:.2f}; "
            f"permutation p {found.p_permutation:.3f}"
        )
        findings.append(_finding("C11", part, found.correlation, rows, groups, note))
    return findings


def c17_proxy(
    table: pd.DataFrame,
    proxy: str,
    *,
    outcome: str = "loss",
    groups: str = "source",
    by: Sequence[str] = ("label", "capability"),
    higher_is_worse: bool = True,
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether a proxy ranks calibration sets as the full evaluation does.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per cell and capability, as of :func:`cola_lib.analysis.cell_table`, with the proxy joined.
    proxy, outcome : str
        Columns.
    groups : str
        Column that names the source.
    by : sequence of str
        Columns that split the table into findings.
    higher_is_worse : bool
        Whether a high proxy foretells a high outcome (an error), or a low one (a coverage).
    options : Options
        Its level.

    Returns
    -------
    list of Finding
        One for each part, positive where the proxy predicts. With fewer sources than an interval takes,
        the interval is all of -1 to 1.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from cola_lib.analysis import c17_proxy
    >>> chance = np.random.default_rng(0)
    >>> table = pd.DataFrame({"source": np.repeat(list("abcdef"), 3), "label": "wanda 50%", "capability": "math"})
    >>> table["distance"] = np.arange(18) / 18
    >>> table["loss"] = 0.1 + 0.2 * table["distance"] + chance.normal(0, 0.01, 18)
    >>> (finding,) = c17_proxy(table, "distance")
    >>> finding.part, finding.value > 0.9
    ('distance · wanda 50% · math', True)
    """
    sign = 1.0 if higher_is_worse else -1.0
    findings = []
    for part, rows in _split(table, by):
        name = " · ".join(filter(None, (proxy, part)))
        if rows[groups].nunique() < MIN_GROUPS:
            findings.append(_unknown("C17", name, rows, groups))
            continue
        found = spearman(sign * rows[proxy], rows[outcome], rows[groups], level=options.level)
        findings.append(_finding("C17", name, found, rows, groups))
    return findings


def _split(table: pd.DataFrame, by: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    if not by:
        return [("", table)]
    return [(" · ".join(map(str, name)), rows) for name, rows in table.groupby(list(by), sort=False)]


def _finding(claim: str, part: str, found: Correlation, rows: pd.DataFrame, groups: str, note: str = "") -> Finding:
    about = CLAIMS[claim]
    counts = f"{found.n_cells} cells of {found.n_groups} sources"
    return Finding(
        claim=claim,
        part=part or "all",
        value=found.value,
        low=found.low,
        high=found.high,
        unit=CORRELATION,
        p_value=found.p_value_at(about.null),
        n_draws=int(rows.groupby(groups)["draw"].nunique().min()) if "draw" in rows else 0,
        n_items=0,
        cells=cells_of(rows),
        note="; ".join(filter(None, (counts, note))),
        null=about.null,
        margin=about.margin,
        over="sources",
    )


def _unknown(claim: str, part: str, rows: pd.DataFrame, groups: str) -> Finding:
    """Say what is known from too few sources: nothing."""
    n = rows[groups].nunique()
    nothing = Correlation(float("nan"), -1.0, 1.0, float("inf"), 0.0, len(rows), n)
    found = _finding(claim, part, nothing, rows, groups, f"an interval takes {MIN_GROUPS} sources")
    return replace(found, p_value=1.0)
