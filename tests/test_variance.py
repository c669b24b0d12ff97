"""The share of variance between sources is the one that the data were made with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cola_lib.analysis import source_share
from cola_lib.errors import DataError


def frame(between, within, n_sources=40, n_draws=5, n_items=4, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n_sources):
        level = rng.normal(0, between)
        for d in range(n_draws):
            shift = level + rng.normal(0, within)
            rows += [
                {"source": f"s{s:02d}", "draw": d, "item": i, "task": "t", "capability": "math",
                 "bits_per_byte": 5 + shift, "nll": (5 + shift) * np.log(2) * 10, "n_bytes": 10}
                for i in range(n_items)
            ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("between,within,share", [(1.0, 0.5, 0.8), (0.5, 0.5, 0.5), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0)])
def test_the_share_is_found(between, within, share):
    assert source_share(frame(between, within)) == pytest.approx(share, abs=0.12)


def test_it_is_without_bias_where_there_are_few_draws():
    shares = [source_share(frame(0.5, 0.5, n_sources=30, n_draws=2, seed=seed)) for seed in range(40)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)


def test_one_source_or_unequal_draws_are_refused():
    with pytest.raises(DataError, match="needs 2 sources"):
        source_share(frame(1, 1, n_sources=1))
    unequal = frame(1, 1, n_sources=2)
    with pytest.raises(DataError, match="equally many draws"):
        source_share(unequal[~((unequal["source"] == "s00") & (unequal["draw"] == 4))])
