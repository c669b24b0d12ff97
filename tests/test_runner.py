"""Grids: what exists is read, and what does not is computed once."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch

from cola_lib.calibration import CalibrationSet, build_calibration_set
from cola_lib.compress import compress, method_spec, restored
from cola_lib.data import Sample
from cola_lib.errors import EvidenceError, NumericsError, SpecError, StoreError, UnknownNameError
from cola_lib.evaluate import EvalItem, Suite, evaluate
from cola_lib.experiments import ResultStore, Workspace, run_grid, runner, workspace
from cola_lib.models import LanguageModel
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_models import tiny_language_model

SUITE = Suite(
    (
        EvalItem("rolling", "language", "c4", "", ("the band and the sand",)),
        EvalItem("choice", "commonsense", "piqa", "Question: and then?\nAnswer:", (" the", " and", " sand"), 1),
    )
)
SPECS = (method_spec("wanda"), method_spec("gptq", bits=3, group_size=16), method_spec("rtn", bits=2, group_size=16))


def tiny_lm() -> LanguageModel:
    return tiny_language_model("llama", byte_tokenizer(), vocab_size=264, max_position_embeddings=256)


def tiny_set(word: str, seed: int = 0, n_samples: int = 4) -> CalibrationSet:
    texts = [f"{word} {i} and the {word} of {i * 7919 % 1009} " * 3 for i in range(30)]
    samples = [Sample(f"{word}/{i}", text, word) for i, text in enumerate(texts)]
    return build_calibration_set(samples, byte_tokenizer(), n_samples=n_samples, seq_len=32, seed=seed)


@pytest.fixture
def lm() -> LanguageModel:
    return tiny_lm()


@pytest.fixture(scope="module")
def sets() -> list[CalibrationSet]:
    return [tiny_set("band"), tiny_set("sand")]


@pytest.fixture
def store(tmp_path) -> ResultStore:
    return ResultStore(tmp_path / "results")


@pytest.fixture
def calls(monkeypatch) -> dict[str, int]:
    """How often the expensive steps ran."""
    counts = {"collect_statistics": 0, "compress": 0, "evaluate": 0}
    for name in counts:
        module = workspace if name == "collect_statistics" else runner
        original = getattr(module, name)

        def counted(*args, _name=name, _original=original, **kwargs):
            counts[_name] += 1
            return _original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    return counts


def grid(lm, sets, store, specs=SPECS, **options):
    return run_grid(lm, sets, specs, SUITE, store, progress=False, **options)


def test_each_cell_is_computed_once_and_read_after_that(lm, sets, store, calls):
    first = grid(lm, sets, store)
    # dense and rtn once, wanda and gptq for each set; one walk a set
    assert (first.n_read, first.n_computed) == (0, 6)
    assert calls == {"collect_statistics": 2, "compress": 5, "evaluate": 6}
    second = grid(lm, sets, store)
    assert (second.n_read, second.n_computed) == (6, 0)
    assert calls == {"collect_statistics": 2, "compress": 5, "evaluate": 6}
    pd.testing.assert_frame_equal(first.frame, second.frame)
    pd.testing.assert_frame_equal(first.layers, second.layers)
    assert first.provenance.startswith("0 cells read from the store, 6 computed now on cpu in ")
    assert second.provenance == "6 cells read from the store, none computed now"


def test_only_what_is_missing_is_computed(lm, sets, store, calls):
    grid(lm, sets[:1], store, specs=SPECS[:1])
    more = grid(lm, sets, store)
    assert (more.n_read, more.n_computed) == (2, 4)
    assert calls["evaluate"] == 6


def test_numbers_are_those_of_doing_it_by_hand(lm, sets, store):
    frame = grid(lm, sets, store).frame
    for spec in SPECS:
        with restored(lm):
            compress(lm, spec, sets[1] if spec.calibrated else None, propagate="original", progress=False)
            by_hand = evaluate(lm, SUITE, progress=False)
        cell = frame[(frame["label"] == spec.label) & (frame["source"].eq("sand") | ~frame["calibrated"])]
        assert list(cell["nll"]) == list(by_hand["nll"])
    dense = frame[frame["label"] == "dense"]
    assert list(dense["nll"]) == list(evaluate(lm, SUITE, progress=False)["nll"])
    assert frame.groupby("label")["nll"].mean().nunique() == 4, "the methods do something"


def test_frame_is_labelled(lm, sets, store):
    own = [{"source": "first", "draw": 3, "format": "plain"}, {"source": "second", "draw": 4, "format": "chat"}]
    result = grid(lm, sets, store, labels=own)
    wanda = result.frame[result.frame["method"] == "wanda"]
    assert set(zip(wanda["source"], wanda["draw"], wanda["format"], strict=True)) == {
        ("first", 3, "plain"),
        ("second", 4, "chat"),
    }
    assert set(wanda["calibration"]) == {each.fingerprint for each in sets}
    assert set(wanda["n_samples"]) == {4} and set(wanda["calibration_tokens"]) == {128}
    rtn = result.frame[result.frame["method"] == "rtn"]
    assert len(rtn) == 2 and rtn["source"].isna().all() and not rtn["calibrated"].any()
    assert set(result.layers["layer"]) and result.layers["weight_error"].between(0, 2).all()
    assert set(result.layers["label"]) == {spec.label for spec in SPECS}
    renamed = grid(lm, sets, store, labels=[{"source": "a"}, {"source": "b"}])
    assert renamed.n_computed == 0 and set(renamed.frame["source"].dropna()) == {"a", "b"}


def test_propagation_is_part_of_the_name_and_of_the_number(lm, sets, store):
    original = grid(lm, sets[:1], store, specs=SPECS[:1])
    compressed = grid(lm, sets[:1], store, specs=SPECS[:1], propagate="compressed")
    assert (compressed.n_read, compressed.n_computed) == (1, 1)  # dense is the same cell
    with restored(lm):
        compress(lm, SPECS[0], sets[0], propagate="compressed", progress=False)
        by_hand = evaluate(lm, SUITE, progress=False)["nll"]
    found = compressed.frame[compressed.frame["method"] == "wanda"]["nll"]
    assert list(found) == list(by_hand)
    assert list(found) != list(original.frame[original.frame["method"] == "wanda"]["nll"])
    with pytest.raises(UnknownNameError, match="unknown propagate 'compresed'; nearest: compressed"):
        grid(lm, sets, store, propagate="compresed")


def test_the_model_is_left_as_it_was(lm, sets, store):
    before = lm.fingerprint
    grid(lm, sets, store)
    lm.weights_changed()
    assert lm.fingerprint == before


def test_a_failing_cell_is_named_and_what_came_before_is_kept(lm, sets, store, monkeypatch):
    before, compute = lm.fingerprint, runner.compress

    def fails_on_gptq(lm, spec, *args, **kwargs):
        report = compute(lm, spec, *args, **kwargs)
        if spec.method == "gptq":
            raise NumericsError("model.layers.0.mlp.up_proj", "singular")
        return report

    monkeypatch.setattr(runner, "compress", fails_on_gptq)
    with pytest.raises(NumericsError, match="up_proj: singular") as caught:
        grid(lm, sets, store)
    assert caught.value.__notes__ == ["in cell gptq 3-bit · band #0"]
    assert len(store) == 3  # dense, rtn, wanda
    lm.weights_changed()
    assert lm.fingerprint == before
    monkeypatch.undo()
    assert grid(lm, sets, store).n_read == 3


def test_sets_may_be_built_when_their_turn_comes(lm, sets, store):
    log = []

    def lazily(which):
        return lambda: log.append((which, len(store))) or sets[which]

    assert grid(lm, [lazily(0), lazily(1)], store).n_computed == 6
    assert log == [(0, 2), (1, 4)]
    assert grid(lm, sets, store).n_computed == 0


def test_without_a_calibrated_method_no_set_is_built(lm, store):
    def never():
        raise AssertionError

    assert grid(lm, [never], store, specs=SPECS[2:]).n_computed == 2
    assert grid(lm, [], store, specs=SPECS[2:], dense=False).n_read == 1


def test_wrong_labels_are_refused(lm, sets, store):
    with pytest.raises(SpecError, match="1 labels for 2 calibration sets"):
        grid(lm, sets, store, labels=[{}])
    with pytest.raises(SpecError, match="label 'method' is the grid's own"):
        grid(lm, sets, store, labels=[{"method": "x"}, {}])


def test_an_unwritable_store_is_found_out_before_anything_is_computed(lm, sets, tmp_path, calls):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be read|cannot be written"):
        grid(lm, sets, ResultStore(tmp_path / "file"))
    assert not any(calls.values())


def test_a_stored_grid_needs_no_writable_store(lm, sets, store, tmp_path):
    grid(lm, sets, store)
    store.pack(tmp_path / "packed.parquet")
    layered = ResultStore(tmp_path / "nowhere", packed=[tmp_path / "packed.parquet"])
    assert grid(lm, sets, layered).n_read == 6 and not (tmp_path / "nowhere").exists()


def test_another_model_or_suite_is_another_cell(lm, sets, store):
    grid(lm, sets, store)
    other_suite = Suite(SUITE.items[:1])
    assert run_grid(lm, sets, SPECS, other_suite, store, progress=False).n_read == 0
    lm.model.model.norm.weight.data = lm.model.model.norm.weight.data * 1.5
    lm.weights_changed()
    assert grid(lm, sets, store).n_read == 0


# ----------------------------------------------------------------------- targets, sharing, spot checks


def test_layer_errors_on_a_target_are_those_of_its_own_statistics(lm, sets, store):
    """On a target that is the calibration set itself, the error is the calibration error; on another it is not."""
    spec = method_spec("gptq", bits=3, group_size=16)
    targets = {"same": sets[0], "other": sets[1]}
    grid = run_grid(lm, sets[:1], [spec], SUITE, store, targets=targets, progress=False)
    layers = grid.layers
    assert layers["error_on_same"].to_numpy() == pytest.approx(layers["output_error"].to_numpy(), rel=1e-5)
    assert (layers["error_on_other"] > layers["output_error"]).mean() > 0.9  # solved for one, judged on the other


def test_the_dtype_of_an_evaluation_is_part_of_a_cell_s_name(lm, sets, store):
    specs = [method_spec("magnitude", sparsity=0.5)]
    exact, coarse = (
        run_grid(lm, [], specs, SUITE, store, eval_dtype=dtype, progress=False) for dtype in (None, "bfloat16")
    )
    assert coarse.n_computed == len(coarse.cells) and not set(exact.cells) & set(coarse.cells)
    own = run_grid(lm, [], specs, SUITE, store, eval_dtype="float32", progress=False)
    assert own.n_computed == 0 and set(own.cells) == set(exact.cells)


def test_targets_are_part_of_a_cell_s_name(lm, sets, store):
    run_grid(lm, sets[:1], SPECS[:1], SUITE, store, progress=False)
    again = run_grid(lm, sets[:1], SPECS[:1], SUITE, store, targets={"t": sets[1]}, progress=False)
    assert (again.n_read, again.n_computed) == (1, 1)  # the dense model makes no errors, so it is read


def test_a_set_that_begins_with_the_last_one_is_walked_over_the_rest(lm, sets, monkeypatch):
    walked = []
    real = workspace.collect_statistics

    def counted(lm, calibration, **options):
        walked.append(calibration.n_samples)
        return real(lm, calibration, **options)

    monkeypatch.setattr(workspace, "collect_statistics", counted)
    bench, whole = Workspace(), sets[0]
    first = bench.statistics(lm, whole.rows(0, 1))
    bench.statistics(lm, whole.rows(0, 1))
    found = bench.statistics(lm, whole)
    assert walked == [1, whole.n_samples - 1]
    assert first.n_tokens == 32  # what was handed out is not added to
    direct = real(lm, whole, progress=False)
    for key, stats in direct.items():
        torch.testing.assert_close(found[key].gram, stats.gram, rtol=1e-4, atol=1e-4)
        assert found[key].n_tokens == stats.n_tokens
    assert found.calibration == direct.calibration
    bench.statistics(lm, sets[1])
    assert walked[-1] == sets[1].n_samples


def test_a_stored_cell_is_computed_again_and_agrees(lm, sets, store, calls):
    run_grid(lm, sets, SPECS, SUITE, store, progress=False)
    before = dict(calls)
    grid = run_grid(lm, sets, SPECS, SUITE, store, spot_check=True, progress=False)
    assert grid.n_computed == 0
    assert calls["evaluate"] == before["evaluate"] + 1
    (check,) = grid.checks
    assert check.cell in set(grid.frame["cell"])
    assert check.largest < 1e-5
    assert check.cell in grid.provenance


def test_a_check_reads_no_target_and_few_tokens(lm, sets, store, monkeypatch):
    long = tiny_set("long", n_samples=16)
    run_grid(lm, [*sets, long], SPECS, SUITE, store, targets={"t": sets[1]}, progress=False)
    monkeypatch.setattr(workspace.Workspace, "target", lambda *a: pytest.fail("a check compares scores alone"))
    monkeypatch.setattr(workspace.Workspace, "reference", lambda *a: pytest.fail("a check compares scores alone"))
    scored = []
    real = runner.evaluate
    monkeypatch.setattr(
        runner, "evaluate", lambda lm, suite, **o: scored.append(len(suite.items)) or real(lm, suite, **o)
    )
    for _ in range(4):
        grid = run_grid(lm, [*sets, long], SPECS, SUITE, store, targets={"t": sets[1]}, spot_check=True, progress=False)
        assert grid.cells[grid.checks[0].cell]["n_samples"] != long.n_samples
    assert set(scored) == {sum(math.ceil(n / 3) for n in Counter(i.capability for i in SUITE.items).values())}


def test_a_stored_cell_that_does_not_come_out_again_fails(lm, sets, store):
    run_grid(lm, sets[:1], SPECS[:1], SUITE, store, dense=False, progress=False)
    (result,) = store
    scores = result.scores.assign(choice_nll=[tuple(1.1 * x for x in nll) for nll in result.scores["choice_nll"]])
    store.put(replace(result, scores=scores))
    with pytest.raises(EvidenceError, match=r"wanda 50% · band.*differs from what is stored by 9\.\d%"):
        run_grid(lm, sets[:1], SPECS[:1], SUITE, store, dense=False, spot_check=True, progress=False)


def test_grids_add_up_without_repeats(lm, sets, store):
    one = run_grid(lm, sets[:1], SPECS, SUITE, store, progress=False)
    two = run_grid(lm, sets, SPECS, SUITE, store, progress=False)
    both = one + two
    assert both.frame["cell"].nunique() == two.frame["cell"].nunique()
    assert len(both.frame) == len(two.frame)
    assert (both.n_read, both.n_computed) == (one.n_read + two.n_read, one.n_computed + two.n_computed)
