"""Everything that a store holds as one table of estimates, for a reader to choose from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cola_lib.analysis.retention import cell_table, gain_table, retention_table
from cola_lib.errors import DataError
from cola_lib.fingerprint import fingerprint

KEPT = "capability kept (%)"
"""Measure: share of a capability that compression leaves."""

NO_DATA = "no data"
"""Source of a method that reads none."""

# What says which set of a source it was: labels of the runner, and options of Experiment.calibration.
_SIZE = ("n_samples", "seq_len", "layout", "format", "split_rows", "repeat", "propagate")
_LABELS = ("model", "target", *_SIZE)


def gain_over(source: str) -> str:
    """Name the measure: gain over a baseline, as a share of its bits per byte.

    Parameters
    ----------
    source : str
        The baseline.

    Returns
    -------
    str
        As in the column ``measure`` of :func:`explore_table`.

    Examples
    --------
    >>> from cola_lib.analysis import gain_over
    >>> gain_over("c4")
    'gain over c4 (% of bits per byte)'
    """
    return f"gain over {source} (% of bits per byte)"


def explore_table(
    frame: pd.DataFrame,
    *,
    baselines: Sequence[str] = ("c4", "random(source=c4)"),
    score: str = "bits_per_byte",
    n_boot: int = 1000,
) -> pd.DataFrame:
    """Estimate what every condition keeps, and gains over a baseline of its study.

    Parameters
    ----------
    frame : pandas.DataFrame
        All scores of a store, from :meth:`cola_lib.experiments.ResultStore.to_frame`.
    baselines : sequence of str
        Sources or strategies. What is compared with the same set of one of them and on the same items is compared.
    score : str
        A score of which less is better.
    n_boot : int
        Resamples for each factor, as in :func:`cola_lib.analysis.bootstrap.difference`.

    Returns
    -------
    pandas.DataFrame
        One row per measure and condition, in per cent: ``study`` (model and capabilities: one for each set of items),
        ``measure``, ``capability``, ``method``, ``strength``, ``label``, ``source``, ``target``, ``set``, ``value``,
        ``low``, ``high``, ``n_draws``, ``n_items``, and ``cells``: draw, fingerprint and share kept alone of each cell.

    Raises
    ------
    DataError
        If no study has the dense model's cell, without which nothing can be said to be kept.

    Notes
    -----
    Cells that say the same of themselves (those of other pools, or of another number of draws) cannot be told apart by
    their labels: of each draw the first is taken. A capability with a task of a single item has no interval, and
    is left out.
    """
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *_LABELS])))
    items = frame.groupby("cell")["item"].agg(lambda of_cell: fingerprint(sorted(of_cell)))
    frame = _with_intervals(frame.assign(items=frame["cell"].map(items)))
    options = {"score": score, "n_boot": n_boot}
    tables = [
        _study(cells, baselines, options)
        for _, cells in frame.groupby(["model", "items"], sort=False)
        if (cells["method"] == "dense").any() and (cells["method"] != "dense").any()
    ]
    if not tables:
        raise DataError("nothing to explore: no cell was measured on the items of a dense model's cell")
    seen = Counter(str(table["study"].iloc[0]) for table in tables)
    named = [
        # as many items of the same capabilities, and others
        table.assign(study=table["study"] + f", set {number}") if seen[str(table["study"].iloc[0])] > 1 else table
        for number, table in enumerate(tables, start=1)
    ]
    named.sort(key=len, reverse=True)  # the largest study first
    return pd.concat(named, ignore_index=True)


def _with_intervals(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out capabilities of which a task has a single item."""
    study = ["items", "capability"]
    sizes = frame.groupby([*study, "task"])["item"].nunique().groupby(study).min()
    return frame[pd.MultiIndex.from_frame(frame[study]).isin(sizes.index[sizes > 1])]


def _study(frame: pd.DataFrame, baselines: Sequence[str], options: dict[str, Any]) -> pd.DataFrame:
    """Estimates of one set of items."""
    by = ["source", *_LABELS, "method", "label", "capability"]
    frame = _one_cell_per_draw(frame, [name for name in by if name != "capability"])
    kept = retention_table(frame, by=by, **options).assign(measure=KEPT)
    compressed = frame[frame["source"].notna()]
    gains = [
        gain_table(compressed, {"source": base, "target": None}, by=by, **options).assign(measure=gain_over(base))
        for base in baselines
        if _comparable(compressed, base, by)
    ]
    table = pd.concat([kept, *gains], ignore_index=True)
    numbers = ["value", "low", "high"]
    capabilities = ", ".join(frame["capability"].unique())
    table = table.assign(
        study=f"{frame['model'].iloc[0]}: {capabilities} ({frame['item'].nunique()} items)",
        strength=[
            label.removeprefix(method).strip() for label, method in zip(table["label"], table["method"], strict=True)
        ],
        set=pd.Series([_size(row) for row in table[list(_SIZE)].to_dict("records")], index=table.index, dtype=object),
        cells=pd.Series(_cells(frame, by, options["score"], table), index=table.index, dtype=object),
        source=table["source"].fillna(NO_DATA),
    )
    table[numbers] *= 100
    columns = ["study", "measure", "capability", "method", "strength", "label", "source", "target", "set"]
    return table[[*columns, *numbers, "n_draws", "n_items", "cells"]]


def _one_cell_per_draw(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    cells = frame.drop_duplicates("cell")
    return frame[frame["cell"].isin(cells[~cells.duplicated([*by, "draw"])]["cell"])]


def _comparable(frame: pd.DataFrame, base: str, by: Sequence[str]) -> bool:
    """Whether anything shares all labels but the source with the baseline."""
    others = [name for name in by if name not in ("source", "target")]
    both = frame.drop_duplicates(["source", *by]).groupby(others, dropna=False)["source"].agg(set)
    return any(base in sources and len(sources) > 1 for sources in both)


def _cells(frame: pd.DataFrame, by: Sequence[str], score: str, table: pd.DataFrame) -> list[list[list[Any]]]:
    """List the cells behind each row: draw, fingerprint, and the share kept alone where it was calibrated."""
    names = ["draw", *by]
    found: dict[tuple[Any, ...], list[list[Any]]] = {}
    alone = {}
    if frame["source"].notna().any():
        single = cell_table(frame, score, by=names)
        alone = dict(
            zip(zip(single["cell"], single["capability"], strict=True), 100 / (1 + single["loss"]), strict=True)
        )
    for row in frame.drop_duplicates(["cell", "capability"]).sort_values("draw").to_dict("records"):
        cell = [_label(row["draw"]), row["cell"], alone.get((row["cell"], row["capability"]))]
        found.setdefault(tuple(_label(row[name]) for name in by), []).append(cell)
    return [found[tuple(_label(row[name]) for name in by)] for row in table[list(by)].to_dict("records")]


def _label(value: Any) -> Any:
    """Give a label that is missing one face, and whole numbers theirs."""
    if pd.isna(value):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _size(row: Mapping[Any, Any]) -> str | None:
    """Say which set of its source a condition had; None without calibration data."""
    of = {name: _label(value) for name, value in row.items()}
    if of["n_samples"] is None:
        return None
    parts = [f"{of['n_samples']} × {of['seq_len']} tokens"]
    if of["split_rows"] is not None:
        parts = [f"{of['n_samples']} long rows cut into {of['split_rows']} tokens each"]
    if of["repeat"] is not None:
        parts.append(f"each {of['repeat']} times")
    if of["layout"] in ("truncate", "pad"):
        parts.append("a text a row")
    if of["format"] not in (None, "text"):
        parts.append(str(of["format"]).replace("_", ", "))
    if of["propagate"] == "compressed":
        parts.append("blocks see compressed inputs")
    return ", ".join(parts)
