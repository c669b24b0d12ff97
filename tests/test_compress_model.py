"""Compressing whole models: what must hold whatever the method."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cola_lib.compress import (
    METHODS,
    PRUNERS,
    QUANTIZERS,
    check_output,
    compress,
    method_spec,
    restored,
    save_checkpoint,
)
from cola_lib.compress.block import compress_block, fold
from cola_lib.errors import NumericsError, OutputError, SpecError, UnknownNameError
from cola_lib.models import load_model
from cola_lib.statistics import collect_statistics
from tests.test_walk import rows, with_padding
from tests.tiny_models import MODEL_TYPES, tiny_language_model

STRENGTH = {
    "magnitude": {"sparsity": 0.5},
    "wanda": {"sparsity": 0.5},
    "ria": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "rtn": {"bits": 4, "group_size": 16},
    "gptq": {"bits": 4, "group_size": 16},
    "awq": {"bits": 4, "group_size": 16, "n_grid": 5},
    "smoothquant": {"bits": 4, "group_size": 16},
    "joint_lowrank": {"keep": 0.5},
}


def linear_weights(lm):
    return {
        f"{i}.{name}": block.get_submodule(name).weight.clone()
        for i, block in enumerate(lm.blocks)
        for name in lm.architecture.layers
    }


def logits(lm):
    return lm.model(input_ids=rows(seed=9).input_ids, use_cache=False).logits


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("method", [*PRUNERS, *QUANTIZERS])  # what factorizes has tests of its own
def test_every_method_works_on_every_kind_of_model(model_type, method):
    lm = tiny_language_model(model_type)
    before, outputs, known = linear_weights(lm), logits(lm), lm.fingerprint
    report = compress(lm, method_spec(method, **STRENGTH[method]), rows((12,) * 8), progress=False)
    after = linear_weights(lm)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert len(report.layers) == len(before)
    assert report.model_before == known != report.model_after == lm.fingerprint
    assert torch.isfinite(logits(lm)).all()
    drift = (logits(lm) - outputs).norm() / outputs.norm()
    assert 0 < drift < 1.5
    if "sparsity" in STRENGTH[method]:
        assert report.sparsity == pytest.approx(0.5, abs=0.01)
    else:
        assert all(layer.bits == 4 for layer in report.layers)
        assert drift < 0.5


@pytest.mark.parametrize("model_type,setting", [*((name, {}) for name in MODEL_TYPES), ("olmo", {"clip_qkv": 0.2})])
def test_folding_a_scale_keeps_the_output(model_type, setting):
    """Multiply an input's consumers by s and divide its producer by s: the model computes the same.

    Clipping does not commute with scales, so where OLMo clips values nothing is folded into the projection of values.
    """
    lm = tiny_language_model(model_type, **setting)
    expected = logits(lm)
    g = torch.Generator().manual_seed(1)
    folded = 0
    for block in lm.blocks:
        for group in lm.architecture.groups:
            if group.producer is None:
                continue
            d_in = block.get_submodule(group.layers[0]).in_features
            rows_ = group.producer.rows(lm.model.config) if group.producer.rows else torch.arange(d_in)
            s = (torch.rand(int(rows_.max()) + 1, generator=g) * 3 + 0.2)[rows_]  # tied where a row is shared
            for name in group.layers:
                layer = block.get_submodule(name)
                layer.weight.data = layer.weight.data * s
            values = {}
            fold(values, block, group.producer, s, lm.model.config)
            for name, value in values.items():
                block.get_parameter(name).data = value
            folded += 1
    assert folded >= (1 if setting else 2) * len(lm.blocks)
    torch.testing.assert_close(logits(lm), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3", "olmo2"])
def test_awq_scales_are_folded_where_they_belong(model_type):
    """At 8 bits nothing but the folding could move the output far."""
    lm = tiny_language_model(model_type)
    expected = logits(lm)
    compress(lm, method_spec("awq", bits=8, group_size=16, n_grid=5, clip=False), rows(), progress=False)
    assert (logits(lm) - expected).norm() / expected.norm() < 0.03


@pytest.mark.parametrize("method", ["magnitude", "wanda", "ria", "sparsegpt"])
def test_sparsity_zero_is_the_identity(method):
    lm = tiny_language_model()
    before = linear_weights(lm)
    compress(lm, method_spec(method, sparsity=0.0), rows(), progress=False)
    for name, weight in linear_weights(lm).items():
        torch.testing.assert_close(weight, before[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["wanda", "ria", "sparsegpt", "gptq", "awq", "smoothquant"])
def test_original_propagation_is_compression_from_statistics(method):
    spec = method_spec(method, **STRENGTH[method])
    a, b, c = (tiny_language_model() for _ in range(3))
    from_walk = compress(a, spec, rows(), propagate="original", progress=False)
    from_statistics = compress(b, spec, statistics=collect_statistics(b, rows(), progress=False), progress=False)
    assert from_walk.model_after == from_statistics.model_after
    assert from_statistics.propagate == "original"
    compressed = compress(c, spec, rows(), propagate="compressed", progress=False)
    first, last = from_walk.layers[0], from_walk.layers[-1]
    assert compressed.layers[0].output_error == first.output_error
    assert compressed.layers[-1].output_error != last.output_error


@pytest.mark.parametrize("propagate", ["original", "compressed"])
@pytest.mark.parametrize("method", METHODS)
def test_nobody_needs_layer_errors_to_decide(method, propagate, monkeypatch):
    spec = method_spec(method, **STRENGTH[method])
    a, b = tiny_language_model(), tiny_language_model()
    told = compress(a, spec, rows((12, 6, 12)), propagate=propagate, progress=False)
    if not spec.reads_gram:  # then none is computed
        monkeypatch.setattr("cola_lib.statistics.inputs._add_product", None)
        monkeypatch.setattr("cola_lib.compress.block.gram_matrix", None)
    untold = compress(b, spec, rows((12, 6, 12)), propagate=propagate, layer_errors=False, progress=False)
    assert untold.output_error is None and (told.output_error is not None) == spec.calibrated
    for name, weight in linear_weights(a).items():
        torch.testing.assert_close(weight, linear_weights(b)[name])


@pytest.mark.parametrize("method", ["wanda", "ria", "sparsegpt", "gptq", "awq", "smoothquant"])
def test_padding_changes_no_weight(method):
    spec = method_spec(method, **STRENGTH[method])
    a, b = tiny_language_model(), tiny_language_model()
    padded = rows((12, 6, 4))
    compress(a, spec, padded, progress=False)
    compress(b, spec, with_padding(padded, 31), progress=False)
    for name, weight in linear_weights(a).items():
        torch.testing.assert_close(weight, linear_weights(b)[name])


def test_restored_puts_everything_back():
    lm = tiny_language_model("qwen2")
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    known = lm.fingerprint
    with pytest.raises(RuntimeError, match="mine"), restored(lm):
        compress(lm, method_spec("awq", **STRENGTH["awq"]), rows(), progress=False)
        assert lm.fingerprint != known
        raise RuntimeError("mine")
    assert all(torch.equal(p, before[name]) for name, p in lm.model.named_parameters())
    assert lm.fingerprint == known


@pytest.mark.parametrize("damage", ["weight", "activation"])
def test_after_an_error_the_model_is_as_it_was(damage):
    lm = tiny_language_model()
    weight = lm.blocks[2].mlp.down_proj.weight if damage == "weight" else lm.blocks[1].input_layernorm.weight
    weight.data.view(-1)[0] = float("nan")
    before = linear_weights(lm)
    where = r"layers\.2\.mlp\.down_proj: its weight" if damage == "weight" else r"layers\.1\.self_attn\.q_proj: NaN"
    with pytest.raises(NumericsError, match=where):
        compress(lm, method_spec("wanda"), rows(), progress=False)
    for name, value in linear_weights(lm).items():
        assert torch.equal(value.nan_to_num(0), before[name].nan_to_num(0))


def test_bfloat16_weights_stay_bfloat16():
    lm = tiny_language_model()
    lm.model.to(torch.bfloat16)
    for method in METHODS:
        with restored(lm):
            compress(lm, method_spec(method, **STRENGTH[method]), rows(), progress=False)
            assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}


def test_nothing_is_written_into_the_tensors_of_the_model():
    lm = tiny_language_model()
    block = lm.blocks[0]
    before = {name: p.clone() for name, p in block.named_parameters()}
    statistics = collect_statistics(lm, rows(), progress=False).block(0)
    for method in METHODS:
        spec = method_spec(method, **STRENGTH[method])
        update = compress_block(block, "b", statistics, spec, lm.architecture, lm.model.config)
        assert all(torch.equal(p, before[name]) for name, p in block.named_parameters())
        assert all(value.data_ptr() != block.get_parameter(name).data_ptr() for name, value in update.values.items())


@pytest.mark.parametrize(
    "method,options,message",
    [
        ("gptq", {"group_size": 20}, r"group_size 20 does not divide the model's layer widths 32, 48; these do: 8, 16"),
        ("wanda", {"pattern": "3:5"}, r"pattern 3:5 does not fit layers of width 32, 48"),
        ("wanda", {"sparsity": 1.2}, r"between 0 and 1, not 1\.2"),
        ("wanda", {"pattern": "2-4"}, r"'2-4' is not N:M"),
        ("wanda", {"pattern": "5:4"}, r"5:4 keeps 5 of 4"),
        ("gptq", {"bits": 1}, r"from 2 to 8, not 1"),
        ("sparsegpt", {"damp": 0}, r"damp must be above 0"),
        ("sparsegpt", {"pattern": "2:4", "block_size": 126}, r"block_size 126 is no multiple"),
    ],
)
def test_what_cannot_be_done_is_said_before_it_is_tried(method, options, message):
    lm = tiny_language_model()
    known = lm.fingerprint
    with pytest.raises(SpecError, match=message):
        compress(lm, method_spec(method, **options), rows(), progress=False)
    assert lm.fingerprint == known


def test_unknown_methods_and_options_come_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown method 'sparsgpt'; nearest: sparsegpt"):
        method_spec("sparsgpt")
    with pytest.raises(UnknownNameError, match="unknown option of gptq 'groupsize'; nearest: group_size"):
        method_spec("gptq", groupsize=3)
    with pytest.raises(UnknownNameError, match="unknown option of wanda 'damp'"):
        method_spec("wanda", damp=0.1)  # it would have no effect


def test_calibrated_methods_need_data_of_this_model():
    lm = tiny_language_model()
    with pytest.raises(SpecError, match="wanda reads calibration data"):
        compress(lm, method_spec("wanda"), progress=False)
    other = collect_statistics(tiny_language_model(seed=4), rows(), progress=False)
    with pytest.raises(SpecError, match="collect them on this one"):
        compress(lm, method_spec("wanda"), statistics=other, progress=False)


def test_the_default_group_size_divides_every_layer():
    spec = method_spec("gptq").for_widths({576, 1536})
    assert spec.group_size == 96
    assert method_spec("gptq").for_widths({4096, 14336}).group_size == 128


def test_the_key_of_a_method_holds_what_it_reads_and_nothing_else():
    assert method_spec("sparsegpt", damp=0.01).key() != method_spec("sparsegpt", damp=0.1).key()
    assert method_spec("awq", n_grid=3).key() != method_spec("awq", n_grid=4).key()
    assert method_spec("gptq", block_size=64).key() == method_spec("gptq", block_size=128).key()


def test_a_checkpoint_loads_with_plain_transformers(tmp_path, smollm2_tokenizer):
    lm = tiny_language_model("qwen3", smollm2_tokenizer)
    report = compress(lm, method_spec("awq", **STRENGTH["awq"]), rows(), progress=False)
    out = save_checkpoint(lm, report, tmp_path / "deep" / "out")
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    torch.testing.assert_close(loaded(input_ids=rows(seed=9).input_ids).logits, logits(lm))
    assert AutoTokenizer.from_pretrained(out)("def f(x):").input_ids == smollm2_tokenizer("def f(x):").input_ids
    assert load_model(out).fingerprint == report.model_after
    written = json.loads((out / "report.json").read_text())
    assert written["calibration_set"]["sources"] == ["test"] and written["calibration_set"]["seq_len"] == 12
    assert written["model_after"] == report.model_after and written["label"] == "awq 4-bit"
    assert len(written["layers"]) == len(report.layers) and written["n_tokens"] == 60
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_existing_output_is_refused_or_replaced_whole(tmp_path, smollm2_tokenizer):
    lm = tiny_language_model("llama", smollm2_tokenizer)
    report = compress(lm, method_spec("magnitude"), progress=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="exists; give --overwrite"):
        save_checkpoint(lm, report, tmp_path / "out")
    with pytest.raises(OutputError, match=r"no compressed checkpoint \(it has no report\.json\)"):
        save_checkpoint(lm, report, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "precious"
    save_checkpoint(lm, report, tmp_path / "ours")
    (tmp_path / "ours" / "old.txt").write_text("")
    save_checkpoint(lm, report, tmp_path / "ours", overwrite=True)
    assert not (tmp_path / "ours" / "old.txt").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        check_output(tmp_path / "file" / "out", overwrite=False)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, smollm2_tokenizer, monkeypatch):
    lm = tiny_language_model("llama", smollm2_tokenizer)
    report = compress(lm, method_spec("magnitude"), progress=False)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 0, 10))
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes and the disk has 10"):
        save_checkpoint(lm, report, tmp_path / "out")
    monkeypatch.undo()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2_tokenizer.__class__, "save_pretrained", full)  # after the weights are down
    with pytest.raises(OutputError, match="No space left on device"):
        save_checkpoint(lm, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_reports_are_plain_data():
    lm = tiny_language_model()
    report = compress(lm, method_spec("sparsegpt", pattern="2:4"), rows(), progress=False)
    text = json.dumps(report.to_dict())
    assert json.loads(text)["spec"]["pattern"] == [2, 4]
    assert 0 < report.output_error < 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.seconds = 0.0
