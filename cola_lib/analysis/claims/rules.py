"""Verdicts on claims, by a rule that is fixed before the numbers are seen."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What our evidence says of a claim.

    Examples
    --------
    >>> from cola_lib.analysis import Verdict
    >>> [str(verdict) for verdict in Verdict]
    ['reproduced', 'not reproduced', 'undecided at this power']
    """

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    UNDECIDED = "undecided at this power"


MARGIN = 0.005
"""Differences up to 0.5 % in bits per byte, or 0.5 percentage points in accuracy, count as none."""


def verdict(low: float, high: float, *, margin: float = MARGIN) -> Verdict:
    """Judge the claim that an effect is positive.

    Parameters
    ----------
    low, high : float
        Ends of the effect's 95 % interval, as a share of the baseline (bits per byte) or as a difference of
        accuracies; signed so that the claim says "above 0".
    margin : float
        Effects up to here count as none.

    Returns
    -------
    Verdict
        *Reproduced* if the whole interval is above 0; *not reproduced* if the whole interval is below the margin, so
        that the effect is negligible or reversed; otherwise *undecided*. An interval above 0 and below
        the margin is a real effect too small to matter, and counts as not reproduced.

    Raises
    ------
    ValueError
        If ``low`` is above ``high``, or one of them is not a number.

    Examples
    --------
    >>> from cola_lib.analysis import verdict
    >>> str(verdict(0.01, 0.03)), str(verdict(-0.03, -0.01)), str(verdict(-0.01, 0.02))
    ('reproduced', 'not reproduced', 'undecided at this power')
    """
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
