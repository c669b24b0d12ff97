"""Verdicts on claims, by a rule that is fixed before the numbers are seen."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What our evidence says of a claim."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "undecided at this power"


MARGIN = 0.005
"""Differences up to 0.5 % in bits per byte, or 0.5 percentage points in accuracy, count as none."""


def verdict(low: float, high: float, *, margin: float = MARGIN) -> Verdict:
    """Judge the claim that an effect is positive."""
    if not low <= high:
        raise ValueError(f"an interval from {low} to {high} is none")
    if high < margin:
        return Verdict.NOT_REPRODUCED
    return Verdict.REPRODUCED if low > 0 else Verdict.UNDECIDED


def matters(p_value: float, smallest_p: float, *, level: float = 0.05) -> Verdict:
    """Judge the claim that a factor makes a difference, from a permutation test.

    Parameters
    ----------
    p_value : float
        Adjusted for all tests of the family.
    smallest_p : float
        The smallest value it could have taken; with too few draws none is small enough.
    level : float
        Of the test.

    Returns
    -------
    Verdict
        *Reproduced* below the level, otherwise *undecided*: a test that finds nothing does not show that there
        is nothing.

    Examples
    --------
    >>> from cola_lib.analysis import matters
    >>> str(matters(0.01, smallest_p=0.001)), str(matters(0.2, smallest_p=0.1))
    ('reproduced', 'undecided at this power')
    """
    return Verdict.REPRODUCED if max(p_value, smallest_p) < level else Verdict.UNDECIDED
