"""What the rules for claims can see: simulated coverage of the intervals, and chances of the verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
import pandas as pd

from cola_lib.analysis.claims.decisions import Decision, Primary, decide
from cola_lib.analysis.claims.primaries import RULES
from cola_lib.analysis.inference import Array, Estimated, Interval, LogScore, Part, WeightedSet, weighted_sum
from cola_lib.analysis.scores import Condition


@dataclass(frozen=True)
class World:
    """An evaluation whose truth is known: two sets that do not differ, and others that lend their variances."""

    n_draws: int = 10
    n_sets: int = 6
    n_methods: int = 2
    n_capabilities: int = 3
    n_items: int = 40
    draw_sd: float = 0.02
    item_sd: float = 0.04
    interaction_sd: float = 0.04
    tails: Literal["normal", "t4"] = "normal"
    spread: Literal["equal", "chi2"] = "equal"

    def contrast(self, chance: np.random.Generator) -> Interval:
        """Simulate the evaluation once, and estimate the primary number, whose truth is 0."""
        sets = [self._set(chance) for _ in range(self.n_sets)]
        weights = dict.fromkeys(sets[0], 1 / len(sets[0]))
        first, second, *others = sets
        return weighted_sum(
            [
                WeightedSet(first, weights, pool=[*others, second]),
                WeightedSet(second, {part: -weight for part, weight in weights.items()}, pool=[*others, first]),
            ]
        )

    def _set(self, chance: np.random.Generator) -> dict[Part, LogScore]:
        """Scores of one set under every method, on every capability."""
        sd = self.draw_sd * (np.sqrt(4 / chance.chisquare(4)) if self.spread == "chi2" else 1.0)
        draws = self._shared(self._tailed(chance, (self.n_methods + 1, self.n_capabilities, self.n_draws)))
        items = self._shared(chance.normal(size=(self.n_methods + 1, self.n_capabilities, self.n_items)))
        both = self._shared(chance.normal(size=(self.n_methods + 1, self.n_capabilities, self.n_draws, self.n_items)))
        by_item = 1 + self.item_sd * items[:, :, None] + self.interaction_sd * both
        bits = 100 * np.exp(sd * draws)[..., None] * by_item
        about: dict[str, Any] = {
            "weight": np.full(self.n_items, 100.0),
            "task": np.arange(self.n_items) % 2,
            "items": tuple(f"{i:04d}" for i in range(self.n_items)),
            "tasks": ("0", "1"),
            "draws": tuple(range(self.n_draws)),
        }
        pairs = product(range(self.n_methods), range(self.n_capabilities))
        return {(str(m), str(c)): LogScore(Condition(numerator=bits[m, c], **about)) for m, c in pairs}

    def _tailed(self, chance: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Draw from a distribution with variance 1."""
        return chance.standard_t(4, shape) / np.sqrt(2) if self.tails == "t4" else chance.normal(size=shape)

    @staticmethod
    def _shared(values: Array) -> Array:
        """Add what is common to all methods, which comes first, to what is each one's own."""
        return np.asarray((values[:1] + values[1:]) / np.sqrt(2))


def simulated_intervals(world: World, n: int, chance: np.random.Generator) -> list[Interval]:
    """Estimate a primary number whose truth is 0, again and again."""
    return [world.contrast(chance) for _ in range(n)]


def coverage(intervals: Sequence[Interval], level: float = 0.95) -> float:
    """Share of intervals that hold 0."""
    return float(np.mean([low <= 0 <= high for low, high in (one.ends(level) for one in intervals)]))


def verdict_chances(
    intervals: Sequence[Interval], effects: Iterable[float], *, margin: float = 0.005, family: int = len(RULES)
) -> pd.DataFrame:
    """Chances of each verdict by the true effect."""
    rows = []
    for effect in effects:
        verdicts = []
        for interval in intervals:
            one = Primary("", Estimated("", replace(interval, value=interval.value + effect)), (), margin)
            verdicts.append(decide(one, min(1.0, family * one.p_value)))
        rows += [{"effect": effect, "verdict": str(v), "share": verdicts.count(v) / len(verdicts)} for v in Decision]
    return pd.DataFrame(rows)
