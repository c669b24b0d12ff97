"""One number with one interval: weighted sums of log scores over sets, methods, capabilities, draws and items.

A *set* is one way of making calibration data, with several draws. Every method and capability under draw *k* of a set
reads the same texts, and all sets are evaluated on the same items. A claim's number is a weighted sum of log bits per
byte over sets, methods and capabilities. It is linear in the logarithms, so its variance has a closed form in which all
that is shared is counted together, and nothing has to be resampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, special, stats

from cola_lib.analysis.scores import Condition, condition, same_items
from cola_lib.errors import DataError

Array = NDArray[np.float64]

UNDECISIVE = ("lambada", "boolq")
"""Tasks whose answers are so short that a handful of tokens would decide a capability: they never count in one."""

LEAST_DRAWS = 3
"""Draws below which a set's variance is not known well enough for a verdict."""

PRIOR_CAP = 10.0
"""Most degrees of freedom that a pool of variances may lend to one: more would be pooling, not shrinkage."""

LEAST_POOL = 4
"""Sets below which a pool's own spread is not known, and every variance stands alone."""

Part = tuple[str, str]
"""Label of a method, and a capability."""


@dataclass(frozen=True)
class Interval:
    """An estimate, its standard error, and how well that is known."""

    value: float
    se: float
    dof: float
    se_draws: float
    se_items: float
    n_draws: int
    n_items: int

    def ends(self, level: float = 0.95) -> tuple[float, float]:
        """Give the ends of a t interval."""
        half = float(stats.t.ppf((1 + level) / 2, self.dof)) * self.se
        return self.value - half, self.value + half

    def p_value(self, bound: float = 0.0) -> float:
        """Two-sided p-value of the value being ``bound``."""
        if self.se == 0:
            return float(self.value == bound)
        return float(2 * stats.t.sf(abs(self.value - bound) / self.se, self.dof))

    def p_equivalence(self, margin: float) -> float:
        """P-value of the value lying outside ±``margin``: the larger of two one-sided tests.

        References
        ----------
        Schuirmann, J. Pharmacokinetics and Biopharmaceutics 15, 1987.
        """
        if self.se == 0:
            return float(abs(self.value) >= margin)
        return float(stats.t.sf((margin - abs(self.value)) / self.se, self.dof))


def saved(gain: float) -> float:
    """Share of the reference's bits per byte that a gain in logarithms saves."""
    return float(-np.expm1(-gain))


@dataclass(frozen=True)
class Estimated:
    """A number with its interval, signed so that the paper says "above 0"."""

    name: str
    interval: Interval
    share: bool = False

    def shown(self, value: float) -> float:
        """Give a value of the interval in per cent."""
        return float(100 * (value if self.share else saved(value)))

    @property
    def text(self) -> str:
        """Value and 95 % interval in per cent."""
        low, high = self.interval.ends()
        numbers = (self.shown(value) for value in (self.interval.value, low, high))
        return "{:+.1f} [{:+.1f}, {:+.1f}] %".format(*numbers) + (" of the damage" if self.share else "")


@dataclass(frozen=True)
class WeightedSet:
    """A set in a weighted sum of log scores."""

    scores: Mapping[Part, LogScore]
    weights: Mapping[Part, float]
    draws: str | None = None
    pool: Sequence[Mapping[Part, LogScore]] = ()

    def __post_init__(self) -> None:
        draws = {self.scores[part].scores.draws for part in self.weights}
        if len(draws) > 1:
            told = " and ".join(", ".join(map(str, each)) or "none" for each in sorted(draws, key=str))
            raise DataError(f"every method and capability needs the same draws of a set, and these differ: {told}")

    @property
    def draw_names(self) -> tuple[object, ...]:
        """Names of the set's draws."""
        return self.scores[next(iter(self.weights))].scores.draws

    def by_draw(self) -> Array:
        """Weighted sum of log scores in each draw, of shape (n_draws,)."""
        return _by_draw(self.scores, self.weights)


@dataclass(frozen=True)
class LogScore:
    """Log bits per byte of a set under one method on one capability, by draw, and what each item does to it."""

    scores: Condition

    @cached_property
    def value(self) -> Array:
        """Of shape (n_draws,): bytes are pooled over tasks."""
        return np.asarray(np.log(self.scores.numerator.sum(axis=1) / self.scores.weight.sum()))

    @cached_property
    def influence(self) -> Array:
        """Derivative by each item's weight, of shape (n_draws, n_items); sums to 0 over items."""
        numerator, weight = self.scores.numerator, self.scores.weight
        return np.asarray(numerator / numerator.sum(axis=1, keepdims=True) - weight / weight.sum())


def decisive(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out the tasks that decide no capability, unless they are reported under their own name."""
    return rows[~rows["task"].isin(UNDECISIVE) | (rows["task"] == rows["capability"])]


def log_scores(rows: pd.DataFrame, wanted: Iterable[Part]) -> dict[Part, LogScore]:
    """Log score of one set under some methods, on some capabilities."""
    rows = decisive(rows)
    groups = dict(iter(rows.groupby(["label", "capability"], sort=False)))
    found = {}
    for part in wanted:
        if part not in groups:
            raise DataError(f"the set has no scores of {' on '.join(part)}; it has {len(groups)} other pairs")
        found[part] = LogScore(condition(groups[part]))
    return found


def _by_draw(parts: Mapping[Part, LogScore], weights: Mapping[Part, float]) -> Array:
    return np.asarray(sum(weight * parts[part].value for part, weight in weights.items()))


def weighted_sum(sets: Sequence[WeightedSet]) -> Interval:
    """Estimate a weighted sum of log scores.

    Notes
    -----
    With draws and items crossed, the variance of the sum is that over draws plus that over items minus that of their
    interaction, which is in both of the first two (Owen, Annals of Applied Statistics 1, 2007). Items are drawn within
    tasks, and are the same for all sets and methods: their contributions are added before they are squared. Draws of
    different sets are independent. A set's variance over draws is moderated by those of its pool, see
    :func:`moderated`. Degrees of freedom follow Satterthwaite (Biometrics 2, 1946).
    """
    same = _same_items(sets)
    draws = [_group_draws(group) for group in _groups(sets)]
    by_items = _item_variance(sets, same)
    by_draws = sum(one.variance for one in draws)
    shared = sum(one.interaction for one in draws)
    # The interaction is estimated, and must not take away more than the smaller of the two can hold.
    total = max(by_draws + by_items.variance - shared, by_draws, by_items.variance)
    return Interval(
        value=float(sum(one.by_draw().mean() for one in sets)),
        se=float(np.sqrt(total)),
        dof=_satterthwaite([(one.variance, one.dof) for one in (*draws, by_items)]),
        se_draws=float(np.sqrt(by_draws)),
        se_items=float(np.sqrt(by_items.variance)),
        n_draws=min(len(one.draw_names) for one in sets if one.draw_names),
        n_items=sum(len(scores.items) for scores in same.values()),
    )


@dataclass(frozen=True)
class _Spread:
    variance: float
    dof: float
    interaction: float = 0.0


def _satterthwaite(spread: Sequence[tuple[float, float]]) -> float:
    variance, dof = np.array(spread).T
    return float(variance.sum() ** 2 / (variance**2 / dof).sum()) if variance.any() else 1.0


def _same_items(sets: Sequence[WeightedSet]) -> dict[str, Condition]:
    """Items of each capability, which must be those of every set and method."""
    found: dict[str, list[Condition]] = {}
    for one in sets:
        for part in one.weights:
            found.setdefault(part[1], []).append(one.scores[part].scores)
    for conditions in found.values():
        same_items(conditions)
    return {capability: conditions[0] for capability, conditions in found.items()}


def _groups(sets: Sequence[WeightedSet]) -> list[list[WeightedSet]]:
    """Put sets whose draws are in common together."""
    groups: dict[object, list[WeightedSet]] = {}
    for position, one in enumerate(sets):
        groups.setdefault(position if one.draws is None else one.draws, []).append(one)
    return list(groups.values())


def _group_draws(group: Sequence[WeightedSet]) -> _Spread:
    """Variance over the draws that some sets have in common, and its interaction with items."""
    if len({one.draw_names for one in group}) > 1:
        raise DataError("sets whose draws are in common need the same draws; name them apart otherwise")
    along = np.sum([one.by_draw() for one in group], axis=0)  # (n_draws,)
    n = len(along)
    if n < 2:
        return _Spread(0.0, 1.0)
    own, pool = float(np.var(along, ddof=1)), []
    if len(group) == 1:
        others = [_by_draw(scores, group[0].weights) for scores in group[0].pool]
        pool = [(float(np.var(each, ddof=1)), len(each) - 1) for each in others if len(each) > 1]
    variance, dof = moderated(own, n - 1, pool)
    return _Spread(variance / n, dof, _interaction(group, n))


def _influences(sets: Sequence[WeightedSet]) -> dict[str, Array]:
    """Sum what each item does, for each capability: arrays of shape (n_draws, n_items)."""
    total: dict[str, Array] = {}
    for one in sets:
        for part, weight in one.weights.items():
            share = weight * one.scores[part].influence
            total[part[1]] = total[part[1]] + share if part[1] in total else share
    return total


def _interaction(group: Sequence[WeightedSet], n_draws: int) -> float:
    """Variance of draws and items together, over the sets of one group."""
    found = 0.0
    items = {part[1]: one.scores[part].scores for one in group for part in one.weights}
    for capability, influence in _influences(group).items():
        residual = influence - influence.mean(axis=0)
        for members in _strata(items[capability]):
            own = residual[:, members] - residual[:, members].mean(axis=1, keepdims=True)
            n = len(members)
            found += n / (n - 1) * float((own**2).sum()) / (n_draws * (n_draws - 1))
    return found


def _item_variance(sets: Sequence[WeightedSet], items: Mapping[str, Condition]) -> _Spread:
    """Variance over items, which are drawn within each task."""
    influence: dict[str, Array] = {}
    for one in sets:
        for capability, each in _influences([one]).items():
            mean = each.mean(axis=0)
            influence[capability] = influence[capability] + mean if capability in influence else mean
    spread = []
    for capability, total in influence.items():
        for members in _strata(items[capability]):
            n = len(members)
            spread.append((n * float(np.var(total[members], ddof=1)), n - 1.0))
    return _Spread(sum(variance for variance, _ in spread), _satterthwaite(spread))


def _strata(scores: Condition) -> list[NDArray[np.int64]]:
    members = [np.flatnonzero(scores.task == task) for task in range(len(scores.tasks))]
    for task, own in zip(scores.tasks, members, strict=True):
        if len(own) < 2:
            raise DataError(f"task {task} has 1 item, and an interval needs 2; raise the suite's token budget")
    return members


def moderated(own: float, dof: float, pool: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Shrink a variance towards those of a pool, by as much as the pool's own spread allows.

    Notes
    -----
    True variances are taken to be scaled inverse chi-square, and its two parameters follow from mean and variance
    of the log variances. The degrees of freedom lent are at most :data:`PRIOR_CAP`.

    References
    ----------
    Smyth, Statistical Applications in Genetics and Molecular Biology 3, 2004, section 6.2.
    """
    pairs = [(variance, n) for variance, n in [(own, dof), *pool] if variance > 0]
    if len(pairs) - 1 < LEAST_POOL:
        return own, dof
    variances, n = np.array(pairs).T
    logs = np.log(variances) - special.digamma(n / 2) + np.log(n / 2)
    spread = float(logs.var(ddof=1) - special.polygamma(1, n / 2).mean())
    prior = min(_inverse_trigamma(spread) * 2, PRIOR_CAP) if spread > 0 else PRIOR_CAP
    typical = float(np.exp(logs.mean() + special.digamma(prior / 2) - np.log(prior / 2)))
    return (prior * typical + dof * own) / (prior + dof), prior + dof


def _inverse_trigamma(value: float) -> float:
    """Solve trigamma(x) = value."""
    return float(optimize.brentq(lambda x: special.polygamma(1, x) - value, 1e-6, 1e6))
