"""From a tidy frame of item scores to arrays over draws and items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cola_lib.errors import DataError, UnknownNameError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """How items add up to the score of a task: sum of numerators over sum of weights."""

    name: str
    numerator: Callable[[pd.DataFrame], pd.Series]
    weight: Callable[[pd.DataFrame], pd.Series]
    lower_is_better: bool
    columns: tuple[str, ...] = ("nll", "n_bytes")
    relative: bool = True
    binned: bool = False
    where: str = "check the filter that made the frame"

    def of(self, frame: pd.DataFrame) -> pd.Series:
        """Numerator of each item."""
        missing = [column for column in self.columns if column not in frame]
        if missing:
            raise DataError(
                f"score {self.name!r} needs column {missing[0]!r}, which the frame lacks: its cells were "
                "evaluated before that was measured; compute them again"
            )
        return self.numerator(frame)


def _bin_gaps(frame: pd.DataFrame) -> pd.Series:
    """Subtract the number of hits from the summed confidence, in each bin."""
    pairs = zip(frame["bin_confidence"], frame["bin_hits"], strict=True)
    gaps = [None if _absent(c) else np.subtract(c, h, dtype=np.float64) for c, h in pairs]
    return pd.Series(gaps, index=frame.index, dtype=object)


def _bin_total(frame: pd.DataFrame) -> pd.Series:
    """Count predicted tokens over all bins."""
    return frame["bin_tokens"].map(lambda counts: np.nan if _absent(counts) else float(np.sum(counts)))


def _absent(value: Any) -> bool:
    return value is None or (np.ndim(value) == 0 and bool(pd.isna(value)))


SCORES: dict[str, Score] = {
    score.name: score
    for score in (
        Score("bits_per_byte", lambda f: f["nll"] / np.log(2), lambda f: f["n_bytes"], True),
        Score(
            "item_bits_per_byte",
            lambda f: f["bits_per_byte"],
            lambda f: f["n_bytes"] * 0 + 1,
            True,
            columns=("bits_per_byte", "n_bytes"),
        ),
        Score(
            "accuracy",
            lambda f: f["correct"],
            lambda f: f["n_bytes"] * 0 + 1,
            False,
            columns=("correct", "n_bytes"),
            relative=False,
            where="accuracy exists for multiple choice only",
        ),
        Score(
            "js_divergence",
            lambda f: f["js_divergence"] * f["js_tokens"],
            lambda f: f["js_tokens"],
            True,
            columns=("js_divergence", "js_tokens"),
            where="it is measured against the dense model, for cells evaluated with that as a reference",
        ),
        Score(
            "calibration_error",
            _bin_gaps,
            _bin_total,
            True,
            columns=("bin_tokens", "bin_confidence", "bin_hits"),
            relative=False,
            binned=True,
            where="it exists where confidence was recorded",
        ),
    )
}
"""Scores by name.

``bits_per_byte`` pools the bits and the bytes of a task's items: it is the size of the task's text, compressed by
the model. ``item_bits_per_byte`` is the mean of the items' own ratios, in which an answer of three bytes counts as much
as a solution of three hundred. Pooling is the default: the embedded model's retention has intervals of about the same
width either way, except for knowledge, whose answers are short: there pooling makes them about 30 % narrower.

``js_divergence`` is the mean Jensen-Shannon divergence from the dense model's next-token distribution, in bits per
predicted token. ``calibration_error`` is the expected calibration error of the most likely next token, see
:class:`BinnedCondition`.
"""


def score_named(name: str) -> Score:
    """Look a score up."""
    if name not in SCORES:
        raise UnknownNameError("score", name, SCORES)
    return SCORES[name]


@dataclass(frozen=True, eq=False)
class Condition:
    """Scores of one condition: one method, under several draws of one kind of calibration set."""

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
        """Score of the capability: the mean over draws and tasks."""
        return self.by_task(draws, items).mean(axis=1)

    def by_task(self, draws: Array | None = None, items: Array | None = None) -> Array:
        """Score of each task: the mean over draws."""
        rows = np.ones((1, max(self.n_draws, 1))) if draws is None else draws
        columns = np.ones((1, len(self.items))) if items is None else items
        mean = rows @ self.numerator / rows.sum(axis=1, keepdims=True)  # (n_replicates, n_items)
        member = np.eye(len(self.tasks))[self.task]  # (n_items, n_tasks)
        # scaling the small factor saves two products of the size of all replicates
        total = columns @ (mean.T * member) if len(mean) == 1 else (columns * mean) @ member
        return total / (columns @ (self.weight[:, None] * member))

    def by_draw(self) -> Array:
        """Score of each draw, of shape (n_draws,)."""
        return self.value(draws=np.eye(max(self.n_draws, 1)))


@dataclass(frozen=True, eq=False)
class BinnedCondition(Condition):
    """Expected calibration error of one condition: the gap between confidence and accuracy, bin by bin.

    Notes
    -----
    Of each draw's model and each task it is Σ_b |Σ_items gap_b| / Σ_items tokens; then the mean over draws and tasks is
    taken. Averaging the gaps over draws first would let one model's overconfidence cancel another's lack of it.

    Chance does not cancel in an absolute value, so the error comes out too high, by about the sum over bins of
    √(2 n_b acc (1 - acc) / π) / n_tokens where the model is calibrated, and by less where it is not. A difference
    between two models over the same tokens loses most of that bias if their errors are alike; where one is well
    calibrated and the other is not, the better one's bias is the larger, so the difference comes out too *small*. Never
    compare errors over different numbers of tokens.

    References
    ----------
    Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599, eq. 3. Roelofs et al., "Mitigating Bias in
    Calibration Error Estimation", arXiv 2012.08668, on the bias.
    """

    def by_task(self, draws: Array | None = None, items: Array | None = None) -> Array:
        """Calibration error of each task: the mean over draws."""
        rows = np.ones((1, max(self.n_draws, 1))) if draws is None else draws
        columns = np.ones((1, len(self.items))) if items is None else items
        per_task = []
        for index in range(len(self.tasks)):
            members = np.flatnonzero(self.task == index)
            gaps = np.einsum("ri,bdi->rbd", columns[:, members], self.numerator[:, :, members], optimize=True)
            tokens = columns[:, members] @ self.weight[members]  # (n_replicates,)
            error = np.abs(gaps).sum(axis=1) / tokens[:, None]  # (n_replicates, n_draws)
            per_task.append((rows * error).sum(axis=1) / rows.sum(axis=1))
        return np.stack(per_task, axis=1)


def condition(frame: pd.DataFrame, score: str = "bits_per_byte", *, draw: str = "draw") -> Condition:
    """Arrange the scores of one condition."""
    kind = score_named(score)
    if frame.empty:
        raise DataError("no scores: the frame has no rows; check the filter that made it")
    if len(names := frame["capability"].unique()) > 1:
        raise DataError(f"one capability at a time, and the frame has {', '.join(sorted(names))}")
    scores = kind.of(frame)
    there = scores.notna().to_numpy()
    if not there.any():
        raise DataError(f"no item has a score {score!r}; {kind.where}")
    if not there.all():
        frame, scores = frame[there], scores[there]
    keys, names, weight = frame[draw], frame["item"].to_numpy(), kind.weight(frame)  # columns: frames are wide
    has_draws = keys.notna().to_numpy()
    if has_draws.any() and not has_draws.all():
        raise DataError(f"column {draw!r} is missing in {(~has_draws).sum()} of {len(frame)} rows of one condition")
    row, draws = pd.factorize(keys, sort=True) if has_draws.all() else (np.zeros(len(frame), int), (None,))
    column, items = pd.factorize(names, sort=True)
    shape = len(draws), len(items)
    place = np.ravel_multi_index((row, column), shape)
    _once_each(keys, names, draw, place, shape)
    order = np.argsort(place)  # draw by draw, and item by item
    first = order[: len(items)]
    tasks, task = np.unique(frame["task"].to_numpy(dtype=str)[first], return_inverse=True)
    about: dict[str, Any] = {
        "weight": weight.to_numpy(dtype=np.float64)[first],
        "task": task.astype(np.int64),
        "items": tuple(items),
        "tasks": tuple(map(str, tasks)),
        "draws": tuple(draws) if has_draws.all() else (),
    }
    if not kind.binned:
        return Condition(numerator=scores.to_numpy(np.float64)[order].reshape(shape), **about)
    bins = np.stack(list(scores.iloc[order])).reshape(*shape, -1)  # (n_draws, n_items, n_bins)
    return BinnedCondition(numerator=np.ascontiguousarray(np.moveaxis(bins, -1, 0)), **about)


def _once_each(
    keys: pd.Series, names: NDArray[Any], draw: str, place: NDArray[np.int64], shape: tuple[int, int]
) -> None:
    """Refuse draws that have an item twice, or lack one that another draw has."""
    if len(np.unique(place)) < len(place):
        again = int(pd.Series(place).duplicated().to_numpy().argmax())
        raise DataError(
            f"item {names[again]} occurs twice in draw {keys.iloc[again]}: the frame holds more than one condition; "
            f"filter it first, or give each calibration set a {draw!r} of its own"
        )
    missing = int(np.prod(shape)) - len(place)
    if missing:
        raise DataError(f"draws differ in their items: {missing} of {np.prod(shape)} scores are missing")


def same_items(conditions: Sequence[Condition]) -> None:
    """Refuse a comparison that is not over the same items."""
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


def less_is_better(score: str) -> None:
    """Refuse a score whose ratio to a baseline's is no loss: of accuracy, more is better."""
    if not score_named(score).lower_is_better:
        raise DataError(f"a gain is a share of a loss, and of {score} more is better: take difference_table")
