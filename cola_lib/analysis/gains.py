"""Tables of what a model keeps and what a calibration set gains, with the same intervals as the claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from cola_lib.analysis.inference import Interval, Part, saved
from cola_lib.analysis.sets import TRAINED, Sets, Weights
from cola_lib.errors import DataError, SpecError

PARTS = ("label", "capability")
"""Columns that tell the parts of a set apart: the method with its strength, and what was evaluated."""


def study(frame: pd.DataFrame, **labels: Any) -> Sets:
    """Select the calibration sets of one experiment.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of one model, from a store.
    **labels
        Values that a set's labels have: one, a list of several, or ``None`` for a label that it has not.

    Returns
    -------
    Sets
        With the scores of the dense model and of methods that read no data.

    Raises
    ------
    DataError
        If there is no such set.

    Examples
    --------
    >>> from cola_lib.analysis import simulated_grid, study
    >>> study(simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}]), source="c4").names
    ('source=c4',)
    """
    chosen = frame["source"].notna()
    for name, wanted in labels.items():
        values = wanted if isinstance(wanted, list | tuple) else [wanted]
        column = frame.get(name, pd.Series(None, index=frame.index, dtype=object))
        chosen &= column.isna() if wanted is None else column.isin(values)
    if not chosen.any():
        told = ", ".join(f"{name} {value}" for name, value in labels.items())
        raise DataError(f"no calibration set with {told} has been evaluated")
    return Sets(frame[chosen | frame["source"].isna()])


def gains(
    sets: Sets,
    reference: str,
    others: Iterable[str] | None = None,
    *,
    by: Sequence[str] = PARTS,
    capabilities: Sequence[str] | None = None,
    nested: bool = False,
) -> pd.DataFrame:
    """Gain of calibration sets over a reference set.

    Parameters
    ----------
    sets : Sets
        Scores.
    reference : str
        Name of the set that the others are compared with.
    others : iterable of str, optional
        Names of the others. Default: all.
    by : sequence of str
        ``"label"``, ``"capability"``, both or neither: what gets a row of its own. Gains are averaged over the rest.
    capabilities : sequence of str, optional
        What counts. Default: all.
    nested : bool
        Whether all sets are cut from the same texts.

    Returns
    -------
    pandas.DataFrame
        One row per set and part: ``set``, its labels, ``by``; ``value``, ``low`` and ``high`` of the 95 % interval, as
        shares of the reference's bits per byte, positive where the set needs fewer; ``p_value`` of no gain;
        ``n_draws``, ``n_items``.

    Examples
    --------
    >>> from cola_lib.analysis import gains, simulated_grid
    >>> from cola_lib.analysis.sets import Sets
    >>> sets = Sets(simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}]))
    >>> table = gains(sets, sets.find(source="c4"))
    >>> table[["source", "label", "capability"]].to_dict("records")
    [{'source': 'code', 'label': 'wanda', 'capability': 'math'}]
    """
    rows: list[dict[str, Any]] = []
    for name in sets.names if others is None else others:
        if name == reference:
            continue
        for values, parts in _grouped(sets.shared([reference, name]), by, capabilities):
            share = 1 / len(parts)
            weights: Weights = {reference: dict.fromkeys(parts, share), name: dict.fromkeys(parts, -share)}
            rows.append(_row(sets, name, values, sets.estimate("gain", weights, nested).interval, saved))
    return pd.DataFrame(rows)


def kept(
    sets: Sets,
    names: Iterable[str] | None = None,
    *,
    by: Sequence[str] = PARTS,
    capabilities: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Share of the dense model's capability that compression keeps.

    The share is bits per byte of the dense model over those of the compressed one: 1 is all of it, 0.5 means that the
    compressed model needs twice the bits.

    Parameters
    ----------
    sets : Sets
        Scores, with those of the dense model.
    names : iterable of str, optional
        Names of sets. Default: all.
    by, capabilities : sequence of str
        As in :func:`gains`.

    Returns
    -------
    pandas.DataFrame
        As from :func:`gains`.

    Raises
    ------
    DataError
        If the dense model has not been evaluated on the same items.

    Examples
    --------
    >>> from cola_lib.analysis import kept, simulated_grid
    >>> from cola_lib.analysis.sets import Sets
    >>> sets = Sets(simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}]))
    >>> kept(sets)[["source", "value"]].round(2).to_dict("records")
    [{'source': 'c4', 'value': 0.91}, {'source': 'code', 'value': 0.95}]
    """
    rows: list[dict[str, Any]] = []
    for name in sets.names if names is None else names:
        for values, parts in _grouped(sets.shared([name]), by, capabilities):
            rows.append(_row(sets, name, values, sets.damage_of(name, parts), lambda damage: 1 - saved(damage)))
    return pd.DataFrame(rows)


def _grouped(
    parts: Sequence[Part], by: Sequence[str], capabilities: Sequence[str] | None
) -> Iterator[tuple[dict[str, str], list[Part]]]:
    """Put parts with the same values of ``by`` together."""
    if not set(by) <= set(PARTS):
        raise SpecError(f"by is {', '.join(by)}; it can name {' and '.join(PARTS)}")
    groups: dict[tuple[tuple[str, str], ...], list[Part]] = {}
    for part in parts:
        if TRAINED not in part[0] and (capabilities is None or part[1] in capabilities):
            key = tuple((name, value) for name, value in zip(PARTS, part, strict=True) if name in by)
            groups.setdefault(key, []).append(part)
    for key, own in groups.items():
        yield dict(key), own


def _row(
    sets: Sets, name: str, values: dict[str, str], interval: Interval, share: Callable[[float], float]
) -> dict[str, Any]:
    """Turn an interval of logarithms into a row of shares."""
    low, high = sorted(map(share, interval.ends()))
    numbers = {"value": share(interval.value), "low": low, "high": high, "p_value": interval.p_value()}
    counts = {"n_draws": interval.n_draws, "n_items": interval.n_items}
    return {"set": name, **sets.labels(name), **values, **numbers, **counts}
