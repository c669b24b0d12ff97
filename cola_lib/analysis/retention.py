"""Tidy tables: scores, retention and differences per capability, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd

from cola_lib.analysis.bootstrap import Draws, Interval, difference, ratio, rng_of, score_interval
from cola_lib.analysis.estimates import Estimate
from cola_lib.analysis.permutation import holm, source_matters
from cola_lib.analysis.scores import Score, condition, less_is_better, score_named
from cola_lib.errors import DataError

BY = ("source", "label", "capability")
"""What the book's tables are split by."""


def score_table(
    frame: pd.DataFrame,
    *,
    by: Sequence[str] = BY,
    score: str = "bits_per_byte",
    seed: int = 0,
    n_boot: int = 2000,
    level: float = 0.95,
    interval: Interval = "t",
) -> pd.DataFrame:
    """Score of each condition.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`cola_lib.experiments.run_grid` or a store.
    by : sequence of str
        Columns that tell the conditions apart; must include ``"capability"``.
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES`. Capabilities without it are left out.
    seed : int
        Of the resamples. A condition's interval does not depend on which others are in the table.
    n_boot, level, interval
        As in :func:`cola_lib.analysis.bootstrap.difference`.

    Returns
    -------
    pandas.DataFrame
        One row per condition: ``by``, and the fields of :class:`~cola_lib.analysis.bootstrap.Estimate`.

    Examples
    --------
    >>> from cola_lib.analysis import score_table, simulated_grid
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> score_table(frame)[["label", "source", "n_draws", "n_items"]]
       label source  n_draws  n_items
    0  dense    NaN        0       20
    1  wanda     c4        5       20
    2  wanda   code        5       20
    """
    rows = []
    for name, rows_of_one in _groups(_scored(frame, score), by):
        rng = rng_of(seed, name)
        found = score_interval(rows_of_one, score, rng=rng, n_boot=n_boot, level=level, interval=interval)
        rows.append({**name, **_fields(found)})
    return pd.DataFrame(rows)


def retention_table(
    frame: pd.DataFrame,
    *,
    by: Sequence[str] = BY,
    score: str = "bits_per_byte",
    dense: str = "dense",
    seed: int = 0,
    n_boot: int = 2000,
    level: float = 0.95,
    interval: Interval = "t",
) -> pd.DataFrame:
    """Share of each capability that compression leaves: 1 is all of it.

    Retention is dense / compressed for a score that a loss raises (bits per byte), and compressed / dense for one
    that a loss lowers (accuracy), over the same items.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`cola_lib.experiments.run_grid`, the dense model's cell included.
    by : sequence of str
        Columns that tell the conditions apart; must include ``"capability"``.
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES`. Capabilities without it are left out.
    dense : str
        Value of column ``method`` for the untouched model.
    seed, n_boot, level, interval
        As in :func:`score_table`.

    Returns
    -------
    pandas.DataFrame
        One row per condition, the dense one left out: ``by``, and the fields of
        :class:`~cola_lib.analysis.bootstrap.Estimate`.

    Raises
    ------
    DataError
        If the dense model's cell is not in the frame.

    Examples
    --------
    >>> from cola_lib.analysis import retention_table, simulated_grid
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> retention_table(frame)[["source", "label", "value"]].round(2).to_dict("records")
    [{'source': 'c4', 'label': 'wanda', 'value': 0.91}, {'source': 'code', 'label': 'wanda', 'value': 0.96}]
    """
    frame = _scored(frame, score)
    untouched = {name: rows for name, rows in frame[frame["method"] == dense].groupby("capability")}
    if not untouched:
        raise DataError(f"no row has method {dense!r}: retention needs the dense model's cell in the frame")
    rows = []
    for name, compressed in _groups(frame[frame["method"] != dense], by):
        pair = (untouched[name["capability"]], compressed)
        pair = pair if score_named(score).lower_is_better else pair[::-1]
        found = ratio(*pair, score, rng=rng_of(seed, name), n_boot=n_boot, level=level, interval=interval)
        rows.append({**name, **_fields(found)})
    return pd.DataFrame(rows)


def difference_table(
    frame: pd.DataFrame,
    baseline: Mapping[str, Any],
    *,
    by: Sequence[str] = BY,
    score: str = "bits_per_byte",
    draws: Draws = "independent",
    seed: int = 0,
    n_boot: int = 2000,
    level: float = 0.95,
    interval: Interval = "t",
) -> pd.DataFrame:
    """Difference of each condition from a baseline that shares its other labels.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`cola_lib.experiments.run_grid` or a store.
    baseline : mapping
        Columns of ``by`` and their values in the baseline, for example ``{"source": "c4"}``: then every source is
        compared with C4 under the same method and capability.
    by, score, seed, n_boot, level, interval
        As in :func:`score_table`.
    draws : {"independent", "paired"}
        As in :func:`cola_lib.analysis.bootstrap.difference`.

    Returns
    -------
    pandas.DataFrame
        One row per condition that is not a baseline: ``by``, and the fields of
        :class:`~cola_lib.analysis.bootstrap.Estimate`. Conditions whose baseline is not in the frame (the dense model
        has no source) are left out.

    Raises
    ------
    DataError
        If no condition has a baseline, or ``baseline`` names a column that is not in ``by``.

    Examples
    --------
    >>> from cola_lib.analysis import difference_table, simulated_grid
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> difference_table(frame, {"source": "c4"})[["source", "label", "capability", "value"]].round(2)
      source  label capability  value
    0   code  wanda       math  -0.04
    """
    options = {"draws": draws, "n_boot": n_boot, "level": level, "interval": interval}
    return _compared(difference, frame, baseline, by, score, seed, **options)


def gain_table(
    frame: pd.DataFrame,
    baseline: Mapping[str, Any],
    *,
    by: Sequence[str] = BY,
    score: str = "bits_per_byte",
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    r"""Gain of each condition over a baseline that shares its other labels, as a share of the baseline's score.

    Parameters
    ----------
    frame, baseline, by, seed
        As in :func:`difference_table`.
    score : str
        A score of which less is better.
    **options
        ``draws``, ``n_boot``, ``level`` and ``interval`` of :func:`difference_table`.

    Returns
    -------
    pandas.DataFrame
        As from :func:`difference_table`; ``value``, ``low`` and ``high`` are 1 - score / the baseline's, positive
        where the condition is better. The interval is that of the ratio: the baseline is measured too.

    Raises
    ------
    DataError
        As in :func:`difference_table`, and as in :func:`cola_lib.analysis.bootstrap.ratio`; or if more of the score is
        better.

    Examples
    --------
    >>> from cola_lib.analysis import gain_table, simulated_grid, with_interval
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> gains = gain_table(frame, {"source": "c4"})
    >>> with_interval(gains, ".0f", scale=100)[0].replace("\u00a0", " ")  # per cent of bits per byte
    '5 [4, 6]'
    """
    less_is_better(score)
    table = _compared(ratio, frame, baseline, by, score, seed, **options)
    return table.assign(value=1 - table["value"], low=1 - table["high"], high=1 - table["low"])


def _compared(
    measure: Callable[..., Estimate],
    frame: pd.DataFrame,
    baseline: Mapping[str, Any],
    by: Sequence[str],
    score: str,
    seed: int,
    **options: Any,
) -> pd.DataFrame:
    """Measure each condition against its baseline."""
    rows = [
        {**name, **_fields(measure(one, other, score, rng=rng_of(seed, name), **options))}
        for name, one, other in _against(frame, baseline, by, score)
    ]
    return pd.DataFrame(rows)


def _against(
    frame: pd.DataFrame, baseline: Mapping[str, Any], by: Sequence[str], score: str
) -> list[tuple[dict[str, Any], pd.DataFrame, pd.DataFrame]]:
    """Find the baseline of every condition that has one and is none."""
    unknown = sorted(set(baseline) - set(by))
    if unknown:
        raise DataError(f"baseline column {unknown[0]!r} is not one of by={', '.join(by)}")
    groups = list(_groups(_scored(frame, score), by))
    base = {_key(name, by): rows for name, rows in groups if baseline.items() <= name.items()}
    same = dict(baseline)
    pairs = [
        (name, one, base[_key(name | same, by)])
        for name, one in groups
        if _key(name | same, by) in base and not baseline.items() <= name.items()
    ]
    if not pairs:
        raise DataError(f"no condition can be compared with the baseline {dict(baseline)}: is it in the frame?")
    return pairs


def source_table(
    frame: pd.DataFrame,
    *,
    by: Sequence[str] = ("label", "capability"),
    score: str = "bits_per_byte",
    seed: int = 0,
    n_resamples: int = 9999,
) -> pd.DataFrame:
    """Whether the source matters, for each method and capability.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`cola_lib.experiments.run_grid` or a store; cells without calibration data are left out.
    by : sequence of str
        Columns that tell the tests apart; must include ``"capability"``.
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES`. Capabilities without it are left out.
    seed, n_resamples
        See :func:`cola_lib.analysis.permutation.source_matters`.

    Returns
    -------
    pandas.DataFrame
        One row per test: ``by``, the fields of :class:`~cola_lib.analysis.permutation.PermutationTest`, and
        ``p_holm``, adjusted for all tests in the table.

    Examples
    --------
    >>> from cola_lib.analysis import simulated_grid, source_table
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> source_table(frame)[["label", "capability", "n_sources", "n_draws"]].to_dict("records")
    [{'label': 'wanda', 'capability': 'math', 'n_sources': 2, 'n_draws': 10}]
    """
    rows = [
        {**name, **asdict(source_matters(one, score, rng=rng_of(seed, name), n_resamples=n_resamples))}
        for name, one in _groups(_scored(frame[frame["source"].notna()], score), by)
    ]
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p_value"]).to_numpy())


def cell_table(
    frame: pd.DataFrame,
    score: str = "bits_per_byte",
    *,
    by: Sequence[str] = ("source", "draw", "label", "capability"),
    dense: str = "dense",
) -> pd.DataFrame:
    """Score and loss of each single cell, for what is measured per calibration set.

    Parameters
    ----------
    frame : pandas.DataFrame
        From :func:`cola_lib.experiments.run_grid`, the dense model's cell included.
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES`. Capabilities without it are left out.
    by : sequence of str
        Columns to keep; must include ``"capability"``, and tell the cells apart.
    dense : str
        Value of column ``method`` for the untouched model.

    Returns
    -------
    pandas.DataFrame
        One row per calibrated cell and capability: ``by``, ``cell``, ``value``, and ``loss``: how much worse than the
        dense model, as a share of its score where the score is told in shares (bits per byte), else as a difference.
        Divergence from the dense model is its own loss.

    Raises
    ------
    DataError
        If the dense model's cell is not in the frame, or two cells have the same labels.

    Examples
    --------
    >>> from cola_lib.analysis import cell_table, simulated_grid
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> table = cell_table(frame)
    >>> len(table), table.groupby("source")["loss"].mean().round(2).to_dict()
    (10, {'c4': 0.1, 'code': 0.05})
    """
    frame = _scored(frame, score)
    kind = score_named(score)
    untouched = {
        name: condition(rows, score).value()[0] for name, rows in frame[frame["method"] == dense].groupby("capability")
    }
    rows = []
    for name, one in _groups(frame[frame["source"].notna()], by):
        if one["cell"].nunique() > 1:
            raise DataError(f"{one['cell'].nunique()} cells have the labels {name}; name what tells them apart in by")
        if name["capability"] not in untouched and score != "js_divergence":
            raise DataError(f"a loss needs the dense model's cell, and {name['capability']!r} has none in the frame")
        value = float(condition(one, score).value()[0])
        rows.append(
            {
                **name,
                "cell": one["cell"].iloc[0],
                "value": value,
                "loss": _loss(value, untouched.get(name["capability"], 0.0), kind),
            }
        )
    return pd.DataFrame(rows)


def _loss(value: float, dense: float, kind: Score) -> float:
    """How much worse than the dense model."""
    worse = value - dense if kind.lower_is_better else dense - value
    return worse / dense if kind.relative and dense else worse


def _scored(frame: pd.DataFrame, score: str) -> pd.DataFrame:
    """Keep the capabilities in which the score exists."""
    exists = score_named(score).of(frame).notna()
    kept = frame[exists]
    if kept.empty:
        raise DataError(f"no row of the frame has a score {score!r}")
    return kept


def _groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Split into conditions; a label that is missing (no source) is a label too."""
    taken = sorted({field.name for field in fields(Estimate)} & set(by))
    if taken:
        raise DataError(f"column {taken[0]!r} of by= has the name of a column of the result; rename it in the frame")
    if "capability" not in by:
        raise DataError("capabilities are reported one by one: by must include 'capability'")
    for values, rows in frame.groupby(list(by), sort=False, dropna=False):
        labels: tuple[Any, ...] = values
        yield dict(zip(by, (None if pd.isna(v) else v for v in labels), strict=True)), rows


def _key(name: Mapping[str, Any], by: Sequence[str]) -> tuple[Any, ...]:
    return tuple(name[column] for column in by)


def _fields(found: Estimate) -> dict[str, Any]:
    return {**asdict(found), "se": found.se, "p_value": found.p_value}
