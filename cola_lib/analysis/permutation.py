"""Does the source of the calibration data matter at all? A permutation test, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from cola_lib.analysis.scores import Condition, condition, same_items
from cola_lib.errors import DataError


@dataclass(frozen=True)
class PermutationTest:
    """Outcome of :func:`source_matters`."""

    statistic: float
    p_value: float
    smallest_p: float
    n_sources: int
    n_draws: int
    exact: bool


def source_matters(
    frame: pd.DataFrame,
    score: str = "bits_per_byte",
    *,
    rng: np.random.Generator,
    source: str = "source",
    draw: str = "draw",
    n_resamples: int = 9999,
) -> PermutationTest:
    """Test whether scores differ between sources by more than draws of one source do."""
    conditions = {str(name): condition(rows, score, draw=draw) for name, rows in frame.groupby(source, sort=True)}
    return permutation_test(_by_draw(conditions), rng=rng, n_resamples=n_resamples)


def _by_draw(conditions: Mapping[str, Condition]) -> dict[str, NDArray[np.float64]]:
    same_items(list(conditions.values()))
    return {name: one.by_draw() for name, one in conditions.items()}


def permutation_test(
    scores: Mapping[str, NDArray[np.float64]], *, rng: np.random.Generator, n_resamples: int = 9999
) -> PermutationTest:
    """Test whether groups of numbers differ in their means."""
    if len(scores) < 2:
        raise DataError(f"a test between sources needs 2 of them, and the frame has {len(scores)}")
    for name, values in scores.items():
        if len(values) < 2:
            raise DataError(f"source {name!r} has {len(values)} draw, and a test against draws needs 2 of each source")
    sizes = [len(values) for values in scores.values()]
    every = np.concatenate(list(scores.values()))
    spread = float(every.std()) or 1.0
    found = stats.permutation_test(
        [(values - every.mean()) / spread for values in scores.values()],
        _between,
        permutation_type="independent",
        alternative="greater",
        n_resamples=n_resamples,
        vectorized=True,
        rng=rng,
    )
    possible = _arrangements(sizes)
    exact = possible <= n_resamples
    return PermutationTest(
        statistic=float(found.statistic) * spread**2,
        p_value=float(found.pvalue),
        smallest_p=max(_ties(sizes) / possible, 0.0 if exact else 1 / (n_resamples + 1)),
        n_sources=len(sizes),
        n_draws=sum(sizes),
        exact=exact,
    )


def _between(*groups: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Variance of the group means, each weighted by its number of draws, of values with a variance of 1."""
    sizes = np.array([group.shape[axis] for group in groups], dtype=float)
    means = np.stack([group.mean(axis=axis) for group in groups], axis=-1)
    centre = (means * sizes).sum(axis=-1, keepdims=True) / sizes.sum()
    between = ((means - centre) ** 2 * sizes).sum(axis=-1) / sizes.sum()
    # Many arrangements are equal but for the order of a sum, and must count as ties whatever that order is.
    return np.round(between, 10)


def _arrangements(sizes: Sequence[int]) -> int:
    """Ways to deal the draws to the sources."""
    return math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes))


def _ties(sizes: Sequence[int]) -> int:
    """Arrangements that no statistic of this kind can tell apart: sources of equal size trade all their draws."""
    return math.prod(math.factorial(sizes.count(size)) for size in set(sizes))


def holm(p_values: Mapping[str, float] | pd.Series) -> pd.Series:
    """Adjust p-values for having made several tests (Holm, Scand. J. Statistics 6, 1979).

    Parameters
    ----------
    p_values : mapping of name to float
        Of all tests of one question.

    Returns
    -------
    pandas.Series
        Adjusted, under the same names: reject what is below the level, and the chance of any false rejection is at
        most that level.

    Raises
    ------
    DataError
        If there is none, or one is not between 0 and 1.

    Examples
    --------
    >>> from cola_lib.analysis import holm
    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03}).to_dict()
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    series = pd.Series(p_values, dtype=float)
    if series.empty or not series.between(0, 1).all():
        raise DataError(f"p-values lie between 0 and 1, and there is at least one: {series.to_dict()}")
    return pd.Series(multipletests(series.to_numpy(), method="holm")[1], index=series.index)
