"""Results of the analysis do not depend on the BLAS kernel or on the number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.same_numbers import compared, differing
from cola_lib.analysis import held_out_correlation, simulated_grid
from cola_lib.analysis.permutation import permutation_test

SOURCES = {"c4": 0.0, "code": 0.02, "math": 0.04, "web": 0.01, "books": 0.03}


@pytest.fixture(scope="module")
def frame():
    return simulated_grid(
        [
            {"source": source, "method": method, "capability": capability, "loss": 0.1 + by_source + by_method}
            for capability in ("math", "code")
            for method, by_method in {"wanda": 0.0, "gptq": 0.02, "awq": 0.03}.items()
            for source, by_source in SOURCES.items()
        ],
        n_draws=3,
    )


def test_other_kernels_and_threads_give_the_same_numbers(frame):
    environments = {
        "own": {"OPENBLAS_CORETYPE": "", "OMP_NUM_THREADS": "1"},
        "other": {"OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "2"},
    }
    for name, wrong, total in compared(frame, environments):
        assert total > 100 and not wrong, (name, wrong)


def test_a_number_that_moved_or_is_missing_is_named():
    one = {"a": 1.0, "b": float("nan"), "c": 0.0}
    assert differing(one, {"a": 1.0 + 1e-9, "b": float("nan"), "c": 1e-15}) == []
    assert differing(one, {"a": 1.001, "b": 2.0, "d": 0.0}) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("level", [0.0, 1.0, 5.0, 100.0])
def test_arrangements_tie_whatever_the_order_of_a_sum(level):
    """Adding a level moves the rounding of every mean, and nothing else: it must move no p-value."""
    for seed in range(15):
        chance = np.random.default_rng(seed)
        scores = {name: chance.normal(0, 0.01, 3) for name in "abc"}
        moved = {name: values + level for name, values in scores.items()}
        plain, other = (permutation_test(each, rng=np.random.default_rng(0)) for each in (scores, moved))
        assert other.p_value == plain.p_value
        assert other.statistic == pytest.approx(plain.statistic, rel=1e-6)


def test_equal_inputs_tie_in_a_prediction(monkeypatch):
    """A matrix product may round equal rows differently; their predictions are equal all the same."""
    import pandas as pd

    from cola_lib.analysis import ranks

    table = pd.DataFrame({"source": np.repeat(list("abcdef"), 2), "x": np.repeat(np.arange(6.0), 2)})
    table["y"] = table["x"] + np.tile([0.0, 0.1], 6)
    plain = held_out_correlation(table, ["x"], "y", within=[])

    class Noisy(ranks.Ridge):
        def predict(self, X):
            return super().predict(X) + 1e-14 * np.arange(len(X))

    monkeypatch.setattr(ranks, "Ridge", Noisy)
    assert held_out_correlation(table, ["x"], "y", within=[]).correlation.value == plain.correlation.value
