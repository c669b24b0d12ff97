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
    """A number with its interval.

    Parameters
    ----------
    value : float
        On all draws and items.
    low, high : float
        Ends of the interval.
    se_draws, se_items : float
        Standard errors from the draws and from the items; on the scale of the logarithm for a ratio.
    n_draws, n_items : int
        What it rests on; ``n_draws`` is the smaller of the two where conditions differ, 0 without draws.
    level : float
        Coverage that was asked for.
    over : {"draws and items", "draws", "items"}
        What the interval covers. With one draw nothing is known of other draws.
    dof_draws, dof_items : float
        Degrees of freedom of the two standard errors.
    scale : {"difference", "ratio"}
        Whether no effect is 0, or 1 with an interval for the logarithm.

    Examples
    --------
    >>> from cola_lib.analysis import Estimate
    >>> gain = Estimate(0.05, 0.02, 0.08, se_draws=0.01, se_items=0.01, n_draws=5, n_items=60, dof_draws=4)
    >>> round(gain.se, 3), gain.p_value < 0.05
    (0.014, False)
    """

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
        """Two-sided p-value of the hypothesis that the truth is ``null``.

        Parameters
        ----------
        null : float
            On the scale of ``value``.

        Returns
        -------
        float
            1 minus the coverage at which the ``"t"`` interval would end at ``null``: below 1 - ``level`` exactly if
            that interval leaves ``null`` out. Where nothing varies it is 1 at the value itself and 0 elsewhere.

        Raises
        ------
        ValueError
            If a ratio is compared with what is no ratio.
        """
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
