"""Results of the analysis do not depend on the BLAS kernel or on the number of threads."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import same_findings
from benchmarks.same_numbers import ROOT, compared, differing
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


def test_other_kernels_print_the_same_findings(frame, tmp_path):
    calls = tmp_path / "02.pickle"
    calls.write_bytes(pickle.dumps([("c4_source_as_method", (frame,), {})]))
    environments = {"own": {"OMP_NUM_THREADS": "1"}, "other": {"OPENBLAS_CORETYPE": "Haswell"}}
    for name, wrong, total in same_findings.compared({"02": calls}, environments):
        assert total and not wrong, (name, wrong)
    assert same_findings.moved({"a": "+1.0", "b": "x"}, {"a": "+1.1", "b": "x"}) == ["a: +1.0 and +1.1"]


def test_what_a_chapter_gives_its_claims_is_kept(tmp_path):
    import nbformat

    cells = [
        nbformat.v4.new_code_cell("n_draws = 2", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("from cola_lib.analysis import c19_cheap"),
        nbformat.v4.new_code_cell(
            "import pandas as pd\n"
            "rows = [{'label': 'wanda', 'draw': i, 'selection': 1.0 + i, 'compression': 9.0} for i in range(n_draws)]\n"
            "findings = c19_cheap(pd.DataFrame(rows))"
        ),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "chapter.ipynb")
    run = (
        "import sys; from pathlib import Path; from benchmarks.same_findings import calls_of, printed; "
        "calls = calls_of(Path(sys.argv[1]), {'n_draws': 3}); print(len(calls), len(printed(calls)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, str(tmp_path / "chapter.ipynb")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["1", "1"], done.stderr


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
