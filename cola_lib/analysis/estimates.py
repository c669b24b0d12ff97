"""A number with its interval, and the p-values that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

Scale = Literal["difference", "ratio"]

_SMALLEST_TAIL = 1e-60
"""Of what lies further out, the p-value is 0; scipy's quantiles of t fail below 1e-200 or so."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval."""

    value: float
    low: float
    high: float
    se_draws: float
    se_items: float
    n_draws: int
    n_items: int
    level: float = 0.95
    over: str = "draws and items"
    dof_draws: float = 1.0
    dof_items: float = 1.0
    scale: Scale = "difference"

    @property
    def se(self) -> float:
        """Standard error over draws and items."""
        return float(np.hypot(self.se_draws, self.se_items))

    @property
    def p_value(self) -> float:
        """Two-sided p-value of no effect: 1 minus the coverage at which the interval would end there."""
        return self.p_value_at(1.0 if self.scale == "ratio" else 0.0)

    def p_value_at(self, null: float) -> float:
        """Two-sided p-value of the hypothesis that the truth is ``null``."""
        if self.scale == "ratio" and null <= 0:
            raise ValueError(f"a ratio is above 0, and the hypothesis is {null}")
        distance = np.log(self.value / null) if self.scale == "ratio" else self.value - null
        return _p_value(distance, [(self.se_draws**2, self.dof_draws), (self.se_items**2, self.dof_items)])


def half_width(parts: Sequence[tuple[float, float]], level: float) -> float:
    """Compute half the width of the interval from variances with their degrees of freedom.

    Parameters
    ----------
    parts : sequence of (float, float)
        Variance of each part, and its degrees of freedom.
    level : float
        Coverage.

    Notes
    -----
    The multiplier is the mean of the parts' own t quantiles, weighted by variance (Cochran and Cox, *Experimental
    Designs*, 1950): pooled degrees of freedom take three draws for more whenever these three happen to agree.
    """
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0
    weighted = sum(variance * stats.t.ppf((1 + level) / 2, dof) for variance, dof in parts)
    return float(weighted / total * np.sqrt(total))


def _p_value(distance: float, parts: Sequence[tuple[float, float]]) -> float:
    """Find the level at which :func:`half_width` is the distance, and return 1 minus that."""
    total = sum(variance for variance, _ in parts)
    if distance == 0 or total == 0:
        return float(distance == 0)
    if total == np.inf:  # nothing is known
        return 1.0

    def excess(log_tail: float) -> float:
        return sum(v * stats.t.isf(np.exp(log_tail), dof) for v, dof in parts) / np.sqrt(total) - abs(distance)

    smallest = float(np.log(_SMALLEST_TAIL))
    if excess(smallest) < 0:
        return 0.0
    return float(2 * np.exp(optimize.brentq(excess, smallest, np.log(0.5), xtol=1e-12)))
