"""What the tests of claims have in common: choosing rows, and turning a comparison into a finding."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cola_lib.analysis.bootstrap import Draws, Statistic, estimate, rng_of
from cola_lib.analysis.claims.findings import Finding, Kind
from cola_lib.analysis.claims.table import CLAIMS, POINTS, SHARE, SHARE_OF_OTHER
from cola_lib.analysis.estimates import Estimate
from cola_lib.analysis.scores import condition, score_named
from cola_lib.errors import DataError

Array = NDArray[np.float64]

PRUNING = ("magnitude", "wanda", "ria", "sparsegpt")
QUANTIZATION = ("rtn", "gptq", "awq", "smoothquant")


@dataclass(frozen=True)
class Options:
    """How claims are tested.

    Parameters
    ----------
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES`.
    seed : int
        Of the resamples; every finding has random numbers of its own.
    n_boot : int
        Resamples for each factor.
    level : float
        Coverage of the intervals.

    Examples
    --------
    >>> from cola_lib.analysis import Options
    >>> Options(seed=1, n_boot=500)
    Options(score='bits_per_byte', seed=1, n_boot=500, level=0.95)
    """

    score: str = "bits_per_byte"
    seed: int = 0
    n_boot: int = 2000
    level: float = 0.95


DEFAULT = Options()


def calibrated(frame: pd.DataFrame, capability: str | None = None) -> pd.DataFrame:
    """Keep the rows of cells that read calibration data."""
    rows = frame[frame["source"].notna()]
    if rows.empty:
        raise DataError("no cell of the frame was calibrated on a source, so there is nothing to test")
    return rows if capability is None else at(rows, "capability", capability)


def at(frame: pd.DataFrame, column: str, value: Hashable | Sequence[Hashable]) -> pd.DataFrame:
    """Keep the rows with a value in a column, or with one of several."""
    present = values_of(frame, column)
    wanted = value if isinstance(value, list | tuple) else [value]
    missing = [one for one in wanted if one not in present]
    if missing:
        raise DataError(f"no row has {column} {missing[0]!r}; there are {', '.join(map(str, present)) or 'none'}")
    return frame[frame[column].isin(wanted)]


def values_of(frame: pd.DataFrame, column: str) -> list[Hashable]:
    """List the values of a column, in order of appearance and without missing ones."""
    if column not in frame:
        raise DataError(f"the frame has no column {column!r}, which this claim needs; give it as a label of the grid")
    return list(frame[column].dropna().unique())


def among(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Keep the rows of some methods, whatever their strength."""
    rows = frame[frame["method"].isin(list(methods))]
    if rows.empty:
        present = ", ".join(map(str, frame["method"].unique()))
        raise DataError(f"this claim is about {' or '.join(methods)}, and the frame has {present}")
    return rows


def parts(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Split into the parts of a claim, and name each."""
    named = [column != "source" or frame["source"].nunique() > 1 for column in columns]
    for values, rows in frame.groupby(list(columns), sort=False):
        yield " · ".join(str(value) for value, keep in zip(values, named, strict=True) if keep), rows


def gain_of(score: str) -> Statistic:
    """Make the statistic that says how much better the first of two conditions is than the second."""
    kind = score_named(score)
    sign = 1.0 if kind.lower_is_better else -1.0

    def gain(better: Array, worse: Array) -> Array:
        return sign * (worse - better) / (worse if kind.relative else 1.0)

    return gain


def unit_of(score: str) -> str:
    """Name the unit of :func:`gain_of`."""
    if not score_named(score).relative:
        return POINTS
    return SHARE if score.endswith("bits_per_byte") else SHARE_OF_OTHER


def compare(
    claim: str,
    part: str,
    better: pd.DataFrame,
    worse: pd.DataFrame,
    options: Options,
    *,
    draws: Draws,
    kind: Kind = "above",
    margin: float | None = None,
    note: str = "",
) -> Finding:
    """Test how much better one condition is than another.

    Parameters
    ----------
    claim, part : str
        What is tested.
    better, worse : pandas.DataFrame
        Rows of one condition and capability each; the claim says that the first is better.
    options : Options
        How.
    draws : {"independent", "paired"}
        As in :func:`cola_lib.analysis.bootstrap.difference`.
    kind : {"above", "within"}
        See :class:`~cola_lib.analysis.claims.Finding`.
    margin : float, optional
        Default is the claim's.
    note : str
        For the reader.

    Returns
    -------
    Finding
        With the relative gain of the first over the second.

    Examples
    --------
    >>> from cola_lib.analysis import Options, compare, simulated_grid
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> cells = {source: frame[frame["source"] == source] for source in ("c4", "code")}
    >>> compare("C8", "wanda", cells["code"], cells["c4"], Options(), draws="independent").text
    '+5.15 [+3.91, +6.39] % of bits per byte'
    """
    return combine(
        claim,
        part,
        [better, worse],
        gain_of(options.score),
        options,
        draws=draws,
        kind=kind,
        margin=margin,
        note=note,
    )


def combine(
    claim: str,
    part: str,
    frames: Sequence[pd.DataFrame],
    statistic: Statistic,
    options: Options,
    *,
    draws: Draws | Sequence[Hashable],
    by_task: bool = False,
    unbiased: bool = False,
    unit: str | None = None,
    kind: Kind = "above",
    margin: float | None = None,
    note: str = "",
) -> Finding:
    """Test a function of the scores of several conditions."""
    found = estimate(
        [condition(rows, options.score) for rows in frames],
        statistic,
        rng=rng_of(options.seed, {"claim": claim, "part": part}),
        draws=draws,
        by_task=by_task,
        unbiased=unbiased,
        n_boot=options.n_boot,
        level=options.level,
    )
    unit = unit or unit_of(options.score)
    return finding_of(claim, part, found, frames, unit=unit, kind=kind, margin=margin, note=note)


def finding_of(
    claim: str,
    part: str,
    found: Estimate,
    frames: Sequence[pd.DataFrame],
    *,
    unit: str,
    kind: Kind = "above",
    margin: float | None = None,
    note: str = "",
) -> Finding:
    """Turn an estimate into a finding."""
    about = CLAIMS[claim]
    margin = about.margin if margin is None else margin
    single = "a single draw: the interval is over items only" if found.over == "items" else ""
    return Finding(
        claim=claim,
        part=part,
        value=found.value,
        low=found.low,
        high=found.high,
        unit=unit,
        p_value=_equivalence(found, margin) if kind == "within" else found.p_value_at(about.null),
        n_draws=found.n_draws,
        n_items=found.n_items,
        cells=cells_of(*frames),
        note="; ".join(filter(None, (note, single))),
        null=about.null,
        margin=margin,
        kind=kind,
        over=found.over,
    )


def _equivalence(found: Estimate, margin: float) -> float:
    """P-value of lying outside the margin: the larger of two one-sided ones, doubled to match the 95 % interval."""
    if abs(found.value) >= margin:
        return 1.0
    return max(found.p_value_at(margin), found.p_value_at(-margin))


def cells_of(*frames: pd.DataFrame) -> tuple[str, ...]:
    """List the fingerprints of the cells that rows come from."""
    return tuple(dict.fromkeys(cell for rows in frames if "cell" in rows for cell in rows["cell"].unique()))
