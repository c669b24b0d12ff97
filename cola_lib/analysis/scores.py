"""From a tidy frame of item scores to arrays over draws and items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cola_lib.errors import DataError, UnknownNameError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How items add up to the score of a task: sum of numerators over sum of weights.

    Parameters
    ----------
    name : str
        What tables and figures call it.
    numerator, weight : callable
        From a frame of items to one number per item.
    lower_is_better : bool
        Whether a loss of capability raises it.
    """

    name: str
    numerator: Callable[[pd.DataFrame], pd.Series]
    weight: Callable[[pd.DataFrame], pd.Series]
    lower_is_better: bool


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("bits_per_byte", lambda f: f["nll"] / np.log(2), lambda f: f["n_bytes"], True),
        Score("item_bits_per_byte", lambda f: f["bits_per_byte"], lambda f: f["n_bytes"] * 0 + 1, True),
        Score("accuracy", lambda f: f["correct"], lambda f: f["n_bytes"] * 0 + 1, False),
    )
}
"""Scores by name.

``bits_per_byte`` pools the bits and the bytes of a task's items: it is the size of the task's text, compressed by
the model. ``item_bits_per_byte`` is the mean of the items' own ratios, in which an answer of three bytes counts as much
as a solution of three hundred. Pooling is the default: the embedded model's retention has intervals of about the same
width either way, except for knowledge, whose answers are short: there pooling makes them about 30 % narrower.
"""


def score_named(name: str) -> Score:
    """Look a score up.

    Parameters
    ----------
    name : str
        One of :data:`SCORES`.

    Raises
    ------
    UnknownNameError
        If there is none of that name.
    """
    if name not in SCORES:
        raise UnknownNameError("score", name, SCORES)
    return SCORES[name]


@dataclass(frozen=True, eq=False)
class Condition:
    """Scores of one condition: one method, under several draws of one kind of calibration set.

    Parameters
    ----------
    numerator : ndarray of shape (n_draws, n_items)
        Of each draw and item. One row if the condition has no draws.
    weight : ndarray of shape (n_items,)
        Of each item.
    task : ndarray of shape (n_items,), int64
        Index into ``tasks``.
    items, tasks : tuple of str
        Names, sorted.
    draws : tuple
        Names of the draws; empty for a condition without calibration data.
    """

    numerator: Array
    weight: Array
    task: NDArray[np.int64]
    items: tuple[str, ...]
    tasks: tuple[str, ...]
    draws: tuple[object, ...]

    @property
    def n_draws(self) -> int:
        """Draws; 0 for a condition without calibration data."""
        return len(self.draws)

    def value(self, draws: Array | None = None, items: Array | None = None) -> Array:
        """Score of the capability: the mean over draws and tasks.

        Parameters
        ----------
        draws : ndarray of shape (n_replicates, n_draws), optional
            Weight of each draw in each replicate; default 1.
        items : ndarray of shape (n_replicates, n_items), optional
            Weight of each item in each replicate; default 1.

        Returns
        -------
        ndarray of shape (n_replicates,)
            Tasks count equally, whatever their number of items; so do draws.
        """
        rows = np.ones((1, self.numerator.shape[0])) if draws is None else draws
        columns = np.ones((1, len(self.items))) if items is None else items
        mean = rows @ self.numerator / rows.sum(axis=1, keepdims=True)  # (n_replicates, n_items)
        member = np.eye(len(self.tasks))[self.task]  # (n_items, n_tasks)
        return ((columns * mean) @ member / ((columns * self.weight) @ member)).mean(axis=1)

    def by_draw(self) -> Array:
        """Score of each draw, of shape (n_draws,)."""
        return self.value(draws=np.eye(self.numerator.shape[0]))


def condition(frame: pd.DataFrame, score: str = "bits_per_byte", *, draw: str = "draw") -> Condition:
    """Arrange the scores of one condition.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of one condition and one capability, one per draw and item.
    score : str
        One of :data:`SCORES`. Items for which it is missing are left out (accuracy exists for choices only).
    draw : str
        Column that names the draw. All missing means that the condition has no draws.

    Raises
    ------
    DataError
        If a draw has an item twice, or lacks one that another draw has, or nothing is left.
    """
    kind = score_named(score)
    if frame.empty:
        raise DataError("no scores: the frame has no rows; check the filter that made it")
    if frame["capability"].nunique() > 1:
        names = ", ".join(sorted(frame["capability"].unique()))
        raise DataError(f"one capability at a time, and the frame has {names}")
    frame = frame.assign(numerator=kind.numerator(frame).astype("Float64"), weight=kind.weight(frame))
    frame = frame[frame["numerator"].notna()]
    if frame.empty:
        raise DataError(f"no item has a score {score!r}; accuracy exists for multiple choice only")
    has_draws = frame[draw].notna()
    if has_draws.any() and not has_draws.all():
        raise DataError(f"column {draw!r} is missing in {(~has_draws).sum()} of {len(frame)} rows of one condition")
    keys = frame[draw] if has_draws.all() else pd.Series(0, index=frame.index)
    repeated = pd.DataFrame({"draw": keys, "item": frame["item"]}).duplicated()
    if repeated.any():
        first = frame[repeated.to_numpy()].iloc[0]
        raise DataError(
            f"item {first['item']} occurs twice in draw {first[draw]}: the frame holds more than one condition; "
            f"filter it first, or give each calibration set a {draw!r} of its own"
        )
    table = frame.assign(_draw=keys).pivot(index="_draw", columns="item", values="numerator").sort_index(axis=1)
    if table.isna().any(axis=None):
        missing = int(table.isna().sum(axis=None))
        raise DataError(f"draws differ in their items: {missing} of {table.size} scores are missing")
    about = frame.drop_duplicates("item").set_index("item").loc[table.columns]
    tasks, task = np.unique(about["task"].to_numpy(dtype=str), return_inverse=True)
    return Condition(
        numerator=table.to_numpy(dtype=np.float64),
        weight=about["weight"].to_numpy(dtype=np.float64),
        task=task.astype(np.int64),
        items=tuple(table.columns),
        tasks=tuple(map(str, tasks)),
        draws=tuple(table.index) if has_draws.all() else (),
    )


def same_items(conditions: Sequence[Condition]) -> None:
    """Refuse a comparison that is not over the same items.

    Parameters
    ----------
    conditions : sequence of Condition
        To be compared.

    Raises
    ------
    DataError
        If their items or weights differ, with how many are in one only.
    """
    first = conditions[0]
    for other in conditions[1:]:
        if first.items != other.items:
            apart = len(set(first.items) ^ set(other.items))
            raise DataError(
                f"a comparison is paired over items, and {apart} items are in one condition only "
                f"({len(first.items)} and {len(other.items)} items); evaluate both on one suite"
            )
        if not np.array_equal(first.weight, other.weight):
            raise DataError("the same items have different lengths in bytes; evaluate both on one suite")
