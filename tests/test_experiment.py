"""What a notebook asks for: the same request gives the same cells, and draws share nothing."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from cola_lib.compress import method_spec
from cola_lib.curation import load_target
from cola_lib.errors import SpecError, UnknownNameError
from cola_lib.experiments import RANDOM_TOKENS, Experiment, ResultStore, as_spec
from cola_lib.experiments.selection import target_names
from tests.tiny_models import tiny_language_model

METHODS = [{"method": "wanda", "sparsity": 0.5}, {"method": "rtn", "bits": 3, "group_size": 16}]


@pytest.fixture(scope="module")
def small(tmp_path_factory, smollm2_tokenizer):
    """A tiny model with the embedded model's tokenizer, on real sources and real items."""
    lm = tiny_language_model("llama", smollm2_tokenizer, vocab_size=len(smollm2_tokenizer), max_position_embeddings=512)
    folder = tmp_path_factory.mktemp("model")
    lm.model.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    store = tmp_path_factory.mktemp("store")
    return Experiment(
        str(folder), n_samples=2, seq_len=32, tokens_per_capability=400, store=store, capabilities=("math", "code")
    )


def test_a_grid_is_computed_once_and_found_again(small):
    first = small.run(["c4", ["c4", "code"], RANDOM_TOKENS], METHODS, draws=2, progress=False)
    assert (first.n_computed, first.n_read) == (2 + 3 * 2, 0)  # dense, rtn; wanda for 3 sources and 2 draws
    assert set(first.frame["source"].dropna()) == {"c4", "c4+code", RANDOM_TOKENS}
    again = small.run(["c4", ["c4", "code"], RANDOM_TOKENS], METHODS, draws=2, progress=False)
    assert (again.n_computed, again.n_read) == (0, 8)
    part = small.run(["c4"], METHODS, draws=[1], n_draws=2, progress=False)
    assert part.n_computed == 0  # draw 1 of 2 is the same set however it is asked for


def test_what_a_figure_needs_is_computed_once_and_packed_with_the_cells(small, tmp_path):
    calls = []

    def make():
        calls.append(1)
        return pd.DataFrame({"name": ["a", "b"], "vector": [(0.5, 0.25), (1.0, 2.0)]})

    own = replace(small, store=tmp_path / "own")
    first = own.table("vectors", make, rests_on=["walk"], width=2, rows=["x"])
    ResultStore(tmp_path / "own").pack(tmp_path / "cells.parquet")
    clone = replace(small, store=tmp_path / "empty", packed=[tmp_path / "cells.parquet"])
    pd.testing.assert_frame_equal(clone.table("vectors", make, rests_on=["walk"], width=2, rows=["x"]), first)
    assert len(calls) == 1
    clone.table("vectors", make, rests_on=["walk"], width=3, rows=["x"])
    assert len(calls) == 2


def test_coverage_is_read_as_it_was_computed(small, tmp_path, monkeypatch):
    asked = {"n_draws": 2, "limit": 3, "n_sources": 2}
    targets = {"math": ("gsm8k",), "code": ("mbpp",)}
    first = replace(small, store=tmp_path, targets=targets, target_texts=3).coverage(["c4", "gsm8k"], **asked)
    monkeypatch.setattr("cola_lib.experiments.experiment.cover", lambda *a, **k: pytest.fail("computed again"))
    again = replace(small, store=tmp_path, targets=targets, target_texts=3).coverage(["c4", "gsm8k"], **asked)
    assert again.chosen == first.chosen and again.gains == first.gains
    pd.testing.assert_frame_equal(again.table, first.table)


def test_targets_with_the_same_texts_share_what_is_measured_on_them(small):
    sources = {"math": ("gsm8k",), "code": ("mbpp",)}
    experiment = replace(small, targets=sources, target_texts=3)
    targeted, general = (experiment.target(name, 2) for name in ("math", "general"))
    assert targeted.pool is general.pool
    options = {"capabilities": tuple(sources), "draw": 2, "n_draws": 3, "limit": 3}
    assert target_names(targeted) == target_names(load_target("math", sources=sources, **options))


def test_an_experiment_checks_one_stored_cell(small):
    small.run(["c4", "code"], METHODS, draws=1, progress=False)
    checked = replace(small, spot_check=True)
    grids = [checked.run([source], METHODS, draws=1, progress=False) for source in ("c4", "code")]
    assert [len(grid.checks) for grid in grids] == [1, 0]


def test_draws_of_a_source_share_no_sample(small):
    sets = [small.calibration("wikipedia", draw, 3) for draw in range(3)]
    ids = [{i for row in one.sample_ids for i in row} for one in sets]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    assert len({one.fingerprint for one in sets}) == 3


def test_a_draw_beyond_their_number_is_refused(small):
    with pytest.raises(SpecError, match="draw 3 was asked for, of 3 draws"):
        small.run(["c4"], METHODS, draws=[3], n_draws=3, progress=False)


def test_methods_are_written_as_mappings():
    assert as_spec({"method": "gptq", "bits": 3}) == method_spec("gptq", bits=3)
    assert as_spec(method_spec("wanda")) == method_spec("wanda")
    with pytest.raises(SpecError, match="has no 'method'"):
        as_spec({"bits": 3})
    with pytest.raises(UnknownNameError, match="nearest: sparsity"):
        as_spec({"method": "wanda", "sparcity": 0.5})


def test_conditions_vary_more_than_source_and_draw(small):
    conditions = [
        {"source": "gsm8k", "draw": 1, "format": fmt, "layout": "pad"} for fmt in ("question", "question_reasoning")
    ]
    grid = small.run_conditions(conditions, METHODS[:1], n_draws=2, progress=False)
    calibrated = grid.frame[grid.frame["source"].notna()]
    assert set(calibrated["format"]) == {"question", "question_reasoning"}
    assert set(calibrated["layout"]) == {"pad"}
    assert set(calibrated["draw"]) == {1}
    assert calibrated["calibration"].nunique() == 2


def test_rows_can_be_cut_and_repeated(small):
    whole = small.calibration("c4")
    cut = small.calibration("c4", split_rows=8)
    assert (cut.n_samples, cut.seq_len) == (4 * whole.n_samples, 8)
    assert cut.input_ids.flatten().tolist() == whole.input_ids.flatten().tolist()
    assert small.calibration("c4", repeat=3).n_samples == 3 * whole.n_samples


def test_targets_share_no_sample_with_any_draw(small):
    experiment = replace(small, targets={"math": ("gsm8k",)}, target_samples=2)
    sets = [experiment.calibration("gsm8k", draw, 2) for draw in range(2)]
    target = experiment.target_sets(2)["math"]
    ids = [{i for row in one.sample_ids for i in row} for one in (*sets, target)]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])


def test_activations_are_measured_once(small):
    experiment = replace(small, n_samples=4, targets={"math": ("gsm8k",), "code": ("mbpp",)}, target_samples=4)
    first = experiment.activations(["c4", "code"], draws=1)
    assert (first.n_computed, first.n_read) == (2, 0)
    assert set(first.frame["target"]) == {"", "math", "code"}
    assert {"coverage", "effective_rank", "eigenvalue"} <= set(first.frame["feature"])
    again = experiment.activations(["c4", "code"], draws=1)
    assert (again.n_computed, again.n_read) == (0, 2)
    pd.testing.assert_frame_equal(first.frame, again.frame)


def test_other_sources_can_be_scored_than_capabilities(small):
    experiment = replace(small, evaluate_on={"rust": "mbpp:language=rust", "go": "mbpp:language=go"})
    assert experiment.suite.capabilities == ("rust", "go")
