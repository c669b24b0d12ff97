"""Verdicts on primary numbers: one number with one interval for each claim, and how general it is.

The rules are in ``book/rules.md``. They were written down before the draws that they judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from scipy import optimize, stats

from cola_lib.analysis.inference import LEAST_DRAWS, Estimated
from cola_lib.analysis.permutation import holm

LEVEL = 0.05
"""Of every test; both directions of a claim have the same."""


class Decision(StrEnum):
    """What the evidence says of a claim's primary number."""

    REPRODUCED = "reproduced"
    REVERSED = "reversed"
    NEGLIGIBLE = "negligible"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Primary:
    """The primary number of a claim, and what it comes to."""

    claim: str
    number: Estimated
    parts: tuple[Estimated, ...]
    margin: float
    within: bool = False
    cells: tuple[str, ...] = ()
    p_holm: float | None = None
    decision: Decision | None = None
    recovered: Estimated | None = None

    @property
    def p_value(self) -> float:
        """P-value of the claim's own test, before correction."""
        interval = self.number.interval
        return interval.p_equivalence(self.margin) if self.within else interval.p_value()

    @property
    def generality(self) -> str:
        """Whether the parts tell the same: ``uniform``, ``mixed`` or ``unknown``."""
        return generality(self.number, self.parts)

    @property
    def apart(self) -> tuple[Estimated, ...]:
        """Parts that differ from the mean, at 5 % with Bonferroni's correction over the parts."""
        level, mean = LEVEL / len(self.parts), self.number.interval.value
        return tuple(part for part in self.parts if part.interval.p_value(mean) < level)


def generality(number: Estimated, parts: Sequence[Estimated]) -> str:
    """Say whether an effect is the same in all parts.

    Notes
    -----
    The interval of the spread is the Q profile (Viechtbauer, Statistics in Medicine 26, 2007). Parts share items and
    draws, so their errors are correlated: Q then falls short of its distribution, and *mixed* is said too rarely.
    """
    if len(parts) < 3:
        return "unknown"
    value = np.array([part.interval.value for part in parts])
    variance = np.array([part.interval.se for part in parts]) ** 2

    def q(tau2: float) -> float:
        weight = 1 / (variance + tau2)
        return float((weight * (value - (weight * value).sum() / weight.sum()) ** 2).sum())

    dof = len(parts) - 1
    if stats.chi2.sf(q(0.0), dof) < LEVEL:
        return "mixed"
    least, most = stats.chi2.ppf(LEVEL / 2, dof), float(np.ptp(value)) ** 2 * 100 + 1e-12
    upper = optimize.brentq(lambda tau2: q(tau2) - least, 0.0, most) if q(most) < least < q(0.0) else 0.0
    return "uniform" if np.sqrt(upper) < abs(number.interval.value) / 2 else "unknown"


def judged(numbers: Sequence[Primary]) -> Iterator[Primary]:
    """Judge primary numbers together, with Holm's correction over all of them.

    Parameters
    ----------
    numbers : sequence of Primary
        All of the book.

    Yields
    ------
    Primary
        With ``p_holm`` and ``decision``.

    Notes
    -----
    *Negligible*: the 90 % interval lies inside the margin, so that neither direction matters. *Reproduced* and
    *reversed*: the number is on that side of 0 after Holm's correction. A claim that says "within the margin" is
    reproduced by equivalence, and reversed if its interval lies outside. Below three draws nothing is decided.

    Examples
    --------
    >>> from cola_lib.analysis import Primary, judged
    >>> from cola_lib.analysis.inference import Estimated
    >>> from cola_lib.analysis.inference import Interval
    >>> numbers = [Estimated("x", Interval(value, 0.01, 20, 0.01, 0.0, 10, 40)) for value in (0.05, 0.01)]
    >>> [str(one.decision) for one in judged([Primary("C5", number, (), 0.005) for number in numbers])]
    ['reproduced', 'undecided']
    """
    if not numbers:
        return
    adjusted = holm({str(i): each.p_value for i, each in enumerate(numbers)})
    for each, p in zip(numbers, adjusted, strict=True):
        yield replace(each, p_holm=float(p), decision=decide(each, float(p)))


def decide(number: Primary, p_holm: float) -> Decision:
    """Decide on one primary number."""
    interval, (low, high) = number.number.interval, number.number.interval.ends()
    if interval.n_draws < LEAST_DRAWS:
        return Decision.UNDECIDED
    if number.within:
        if p_holm < LEVEL:
            return Decision.REPRODUCED
        return Decision.REVERSED if low > number.margin or high < -number.margin else Decision.UNDECIDED
    if interval.p_equivalence(number.margin) < LEVEL:
        return Decision.NEGLIGIBLE
    if p_holm >= LEVEL:
        return Decision.UNDECIDED
    return Decision.REPRODUCED if interval.value > 0 else Decision.REVERSED
