"""The rule for verdicts says what it was written down to say, on intervals and on simulated truths."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cola_lib.analysis.claims import MARGIN, Verdict, matters, verdict


@pytest.mark.parametrize(
    "low,high,expected",
    [
        (0.01, 0.05, Verdict.REPRODUCED),
        (0.001, 0.02, Verdict.REPRODUCED),
        (0.001, 0.004, Verdict.NOT_REPRODUCED),  # there, and too small to matter
        (-0.05, -0.01, Verdict.NOT_REPRODUCED),  # reversed
        (-0.004, 0.004, Verdict.NOT_REPRODUCED),  # shown to be negligible
        (-0.01, 0.01, Verdict.UNDECIDED),
        (0.0, 0.01, Verdict.UNDECIDED),
    ],
)
def test_the_rule(low, high, expected):
    assert verdict(low, high) is expected


def test_an_interval_that_is_none_is_refused():
    for low, high in [(1, 0), (float("nan"), 1), (0, float("nan"))]:
        with pytest.raises(ValueError, match="is none"):
            verdict(low, high)


def test_no_finding_is_not_a_finding_of_nothing():
    assert matters(0.01, 0.001) is Verdict.REPRODUCED
    assert matters(0.3, 0.001) is Verdict.UNDECIDED
    assert matters(0.01, 0.1) is Verdict.UNDECIDED  # too few draws for any result to count


@pytest.mark.parametrize(
    "truth,spread,wanted,at_least",
    [
        (0.03, 0.01, Verdict.REPRODUCED, 0.9),  # a true effect is found
        (-0.03, 0.01, Verdict.NOT_REPRODUCED, 0.95),  # a reversed one is rejected
        (0.0, 0.0015, Verdict.NOT_REPRODUCED, 0.9),  # a precise null is rejected
        (0.0, 0.02, Verdict.UNDECIDED, 0.9),  # an imprecise one is left open
    ],
)
def test_simulated_truths_get_the_verdict_they_deserve(truth, spread, wanted, at_least):
    rng = np.random.default_rng(0)
    n, trials = 10, 2000
    samples = rng.normal(truth, spread * np.sqrt(n) / 2, size=(trials, n))
    half = stats.t.ppf(0.975, n - 1) * samples.std(1, ddof=1) / np.sqrt(n)
    verdicts = [verdict(m - h, m + h) for m, h in zip(samples.mean(1), half, strict=True)]
    assert np.mean([v is wanted for v in verdicts]) >= at_least
    if truth <= 0:  # at most half of the test's 5 % lies above 0
        assert np.mean([v is Verdict.REPRODUCED for v in verdicts]) < 0.04
    assert MARGIN == 0.005
