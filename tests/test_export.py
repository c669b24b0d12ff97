"""Exported models: plain transformers loads them, and they compute what the model in memory computes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cola_lib.calibration import calibration_set
from cola_lib.compress import compress, method_spec, save_checkpoint
from cola_lib.errors import ColaError, NumericsError, OutputError, SpecError
from cola_lib.evaluate import row_nll
from cola_lib.export import check_exportable, export_quantized, export_sparse, quantization_config, sparsity_of
from cola_lib.export.packed import vllm_limits
from cola_lib.export.packing import pack_rows
from cola_lib.models import load_model
from tests.byte_tokenizer import byte_tokenizer
from tests.test_walk import rows
from tests.tiny_models import MODEL_TYPES, tiny_language_model

pytest.importorskip("compressed_tensors", reason="needs the extra 'export'")

IDS = rows(seed=9).input_ids


def quantized(method="rtn", model_type="llama", **options):
    overrides = options.pop("overrides", {})
    lm = tiny_language_model(model_type, byte_tokenizer(), **overrides)
    options |= {"n_grid": 4} if method == "awq" else {}
    report = compress(lm, method_spec(method, **options), rows((12,) * 8), keep_codes=True, progress=False)
    return lm, report


def loaded_logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def logits(lm):
    return lm.model(input_ids=IDS, use_cache=False).logits


# ------------------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("n", [1, 7, 32, 45])
def test_packing_is_that_of_compressed_tensors(bits, n):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

    codes = torch.randint(2**bits, (5, n), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    signed = (codes.int() - 2 ** (bits - 1)).to(torch.int8)
    packed = pack_rows(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (5, -(-n * bits // 32))
    assert torch.equal(packed, pack_to_int32(signed, bits))
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), signed)


def test_packing_by_hand():
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 15]], dtype=torch.uint8)
    assert [hex(word & 0xFFFFFFFF) for word in pack_rows(codes, 4)[0].tolist()] == ["0x87654321", "0xf"]


# ---------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("group_size", [8, 16, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_what_is_loaded_is_the_model_in_memory(bits, group_size, symmetric, tmp_path):
    lm, report = quantized(bits=bits, group_size=group_size, symmetric=symmetric)
    export = export_quantized(lm, report, tmp_path / "out", dtype="float32")
    torch.testing.assert_close(loaded_logits(export.folder), logits(lm), rtol=0, atol=0)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_kind_of_model(model_type, tmp_path):
    lm, report = quantized("awq", model_type, bits=4, group_size=16)
    export = export_quantized(lm, report, tmp_path / "out", dtype="float32")
    torch.testing.assert_close(loaded_logits(export.folder), logits(lm), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"group_size": 16},
        {"group_size": 16, "act_order": True, "static_groups": True},
        {"group_size": -1, "act_order": True},
        {"group_size": 16, "symmetric": True, "bits": 8},
    ],
    ids=str,
)
def test_gptq_with_columns_in_any_order(options, tmp_path):
    lm, report = quantized("gptq", **options)
    export = export_quantized(lm, report, tmp_path / "out", dtype="float32")
    torch.testing.assert_close(loaded_logits(export.folder), logits(lm), rtol=0, atol=0)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_widths_that_words_do_not_divide(bits, symmetric, tmp_path):
    shape = {"hidden_size": 36, "intermediate_size": 44, "num_attention_heads": 3, "num_key_value_heads": 1}
    shape |= {"head_dim": 12}
    lm, report = quantized(bits=bits, group_size=4, symmetric=symmetric, overrides=shape)
    export = export_quantized(lm, report, tmp_path / "out", dtype="float32")
    tensors = load_file(export.folder / "model.safetensors")
    down = "model.layers.0.mlp.down_proj"
    assert tensors[f"{down}.weight_packed"].shape == (36, -(-44 * bits // 32))
    assert tensors[f"{down}.weight_shape"].tolist() == [36, 44]
    if not symmetric:
        assert tensors[f"{down}.weight_zero_point"].shape == (-(-36 * bits // 32), 11)
    torch.testing.assert_close(loaded_logits(export.folder), logits(lm), rtol=0, atol=0)


@pytest.mark.parametrize("dtype,worst", [("float16", 0.003), ("bfloat16", 0.02)])
def test_half_precision_moves_the_outputs_little(dtype, worst, tmp_path):
    lm, report = quantized(bits=4, group_size=16)
    export = export_quantized(lm, report, tmp_path / "out", dtype=dtype)
    found, expected = loaded_logits(export.folder).float(), logits(lm)
    assert found.dtype == torch.float32 and export.dtype == dtype
    assert 0 < (found - expected).norm() / expected.norm() < worst


def test_a_bfloat16_model_is_stored_as_it_is(tmp_path):
    lm = tiny_language_model("llama", byte_tokenizer())
    lm.model.to(torch.bfloat16)
    report = compress(lm, method_spec("rtn", group_size=16), keep_codes=True, progress=False)
    export = export_quantized(lm, report, tmp_path / "out", dtype="auto")
    assert export.dtype == "bfloat16"
    drift = (loaded_logits(export.folder) - logits(lm)).float().norm() / logits(lm).float().norm()
    assert drift < 0.02


def test_tied_embeddings_are_stored_once(tmp_path):
    lm = tiny_language_model("llama", byte_tokenizer())
    lm.model.config.tie_word_embeddings = True
    lm.model.lm_head.weight = lm.model.model.embed_tokens.weight
    report = compress(lm, method_spec("rtn", group_size=16), keep_codes=True, progress=False)
    export = export_quantized(lm, report, tmp_path / "out", dtype="float32")
    names = load_file(export.folder / "model.safetensors").keys()
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names
    torch.testing.assert_close(loaded_logits(export.folder), logits(lm), rtol=0, atol=0)


def test_smollm2_in_four_bits_is_small_and_scores_the_same(assets_dir, tmp_path):
    """The embedded model, saved in half precision; transformers scores held-out text as the model in memory does."""
    lm = load_model("smollm2-135m")
    text = calibration_set(["wikipedia"], lm.tokenizer, n_samples=2, seq_len=256, seed=1)
    report = compress(lm, method_spec("rtn", bits=4, group_size=64), keep_codes=True, progress=False)
    in_memory = row_nll(lm, text, progress=False).mean()
    export = export_quantized(lm, report, tmp_path / "out")
    assert export.layer_bytes <= 0.4 * export.dense_layer_bytes
    assert export.bytes <= 0.4 * export.dense_layer_bytes + (export.dense_bytes - export.dense_layer_bytes) + 100_000
    model = AutoModelForCausalLM.from_pretrained(export.folder, dtype="auto").eval()
    with torch.no_grad():
        reloaded = torch.stack([model(input_ids=row[None], labels=row[None]).loss for row in text.input_ids]).mean()
    assert abs(float(reloaded) / float(in_memory) - 1) < 0.005


# ------------------------------------------------------------------------------------------------ the files


def test_the_folder_is_a_whole_checkpoint_and_much_smaller(tmp_path):
    big = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    lm, report = quantized(bits=4, group_size=64, symmetric=True, overrides=big)
    export = export_quantized(lm, report, tmp_path / "deep" / "out")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert AutoTokenizer.from_pretrained(export.folder)("def f").input_ids == lm.tokenizer("def f").input_ids
    assert GenerationConfig.from_pretrained(export.folder).eos_token_id == 2
    # 4 bits and a 16-bit scale for 64 weights, of 16 bits each; three numbers of 8 bytes tell each layer's shape
    layers = len(report.layers)
    assert export.layer_bytes == export.dense_layer_bytes * (4 + 16 / 64) / 16 + layers * 16
    on_disk = (export.folder / "model.safetensors").stat().st_size
    assert export.bytes == on_disk < export.dense_bytes - 0.7 * export.dense_layer_bytes + 20_000
    written = json.loads((export.folder / "report.json").read_text())
    assert written["export"] == export.to_dict() | {"limits": list(export.limits)}
    assert written["label"] == "rtn 4-bit" and "quantized" not in written


def test_the_configuration_is_what_compressed_tensors_expects(tmp_path):
    from compressed_tensors.quantization import QuantizationConfig

    lm, report = quantized(bits=4, group_size=16)
    export = export_quantized(lm, report, tmp_path / "out")
    config = json.loads((export.folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"]
    entry = config["quantization_config"]
    assert entry == quantization_config(report.spec, ["lm_head"]) and entry["ignore"] == ["lm_head"]
    (group,) = QuantizationConfig.model_validate(entry).config_groups.values()
    assert (group.weights.num_bits, group.weights.group_size, group.weights.symmetric) == (4, 16, False)
    whole = quantization_config(method_spec("rtn", group_size=-1, symmetric=True), [])
    (group,) = QuantizationConfig.model_validate(whole).config_groups.values()
    assert group.weights.strategy == "channel" and group.weights.group_size is None


def test_names_and_shapes_are_those_that_vllm_creates(tmp_path):
    lm, report = quantized(bits=4, group_size=16)
    tensors = load_file(export_quantized(lm, report, tmp_path / "out").folder / "model.safetensors")
    layer = {name.rsplit(".", 1)[1]: t for name, t in tensors.items() if ".0.mlp.down_proj." in name}
    assert {name: (tuple(t.shape), t.dtype) for name, t in layer.items()} == {
        "weight_packed": ((32, 48 * 4 // 32), torch.int32),
        "weight_scale": ((32, 48 // 16), torch.bfloat16),
        "weight_zero_point": ((32 * 4 // 32, 48 // 16), torch.int32),
        "weight_shape": ((2,), torch.int64),
    }
    assert {t.dtype for name, t in tensors.items() if "norm" in name or "embed" in name} == {torch.bfloat16}


def test_what_vllm_does_not_read_is_said():
    def limits(**options):
        return vllm_limits(method_spec("rtn", **options))

    assert limits(bits=4, group_size=128) == limits(bits=8, group_size=-1, symmetric=True) == ()
    assert "zero points at 4 and 8 bits only, not at 3" in limits(bits=3, group_size=64)[0]
    assert "groups of -1, 32, 64, 128, not of 96" in limits(bits=4, group_size=96)[0]
    assert "compressed-tensors 0.18" in limits(bits=3, group_size=64, symmetric=True)[0]


def test_a_packed_model_is_not_compressed_again(tmp_path):
    lm, report = quantized(group_size=16)
    export = export_quantized(lm, report, tmp_path / "out")
    with pytest.raises(ColaError, match="quantized already"):
        load_model(export.folder)


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "spec,message",
    [
        (method_spec("wanda"), "wanda makes no integers"),
        (method_spec("joint_lowrank"), "joint_lowrank makes no integers"),
        (method_spec("gptq", act_order=True), "add static_groups, take group_size -1"),
    ],
)
def test_what_cannot_be_packed_is_said_beforehand(spec, message):
    with pytest.raises(SpecError, match=message):
        check_exportable(spec)


def test_scattered_groups_are_refused(tmp_path):
    lm, report = quantized("gptq", group_size=16, act_order=True)
    with pytest.raises(SpecError, match="no group index since"):
        export_quantized(lm, report, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_codes_must_have_been_kept_and_still_be_the_model(tmp_path):
    lm = tiny_language_model("llama", byte_tokenizer())
    report = compress(lm, method_spec("rtn", group_size=16), progress=False)
    with pytest.raises(SpecError, match="keep_codes=True"):
        export_quantized(lm, report, tmp_path / "out")
    lm, report = quantized(group_size=16)
    lm.blocks[1].mlp.up_proj.weight.data += 1e-3
    with pytest.raises(SpecError, match=r"layers\.1\.mlp\.up_proj is no longer what its codes say"):
        export_quantized(lm, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_group_size_that_does_not_divide_is_refused():
    with pytest.raises(SpecError, match="group_size 20 does not divide"):
        quantized(group_size=20)


def test_scales_that_half_precision_cannot_hold_are_refused(tmp_path):
    lm = tiny_language_model("llama", byte_tokenizer())
    lm.blocks[1].mlp.up_proj.weight.data *= 1e7
    report = compress(lm, method_spec("rtn", group_size=16), keep_codes=True, progress=False)
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.up_proj: its scales reach .* float16 cannot hold them"):
        export_quantized(lm, report, tmp_path / "out", dtype="float16")
    export_quantized(lm, report, tmp_path / "out", dtype="bfloat16")


def test_an_existing_folder_is_refused_or_replaced(tmp_path):
    lm, report = quantized(group_size=16)
    save_checkpoint(lm, report, tmp_path / "out")
    with pytest.raises(OutputError, match="exists; give --overwrite"):
        export_quantized(lm, report, tmp_path / "out")
    export_quantized(lm, report, tmp_path / "out", overwrite=True)
    assert "quantization_config" in json.loads((tmp_path / "out" / "config.json").read_text())


# ---------------------------------------------------------------------------------------------- sparse models


def test_a_sparse_model_is_an_ordinary_checkpoint_with_a_report(tmp_path):
    lm = tiny_language_model("llama", byte_tokenizer())
    report = compress(lm, method_spec("wanda", pattern="2:4"), rows(), progress=False)
    found = export_sparse(lm, report, tmp_path / "out")
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), logits(lm), rtol=0, atol=0)
    assert found.is_two_four and found.sparsity == 0.5 and found == sparsity_of(load_model(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "sparsity.json").read_text())
    assert written["two_four"] is True and len(written["layers"]) == 21
    assert written["layers"][0] == {
        "layer": "model.layers.0.self_attn.q_proj",
        "d_out": 32,
        "d_in": 32,
        "zeros": 512,
        "two_four": 1.0,
        "sparsity": 0.5,
    }
    assert json.loads((tmp_path / "out" / "report.json").read_text())["label"] == "wanda 2:4"


def test_the_report_counts_zeros():
    lm = tiny_language_model()
    compress(lm, method_spec("magnitude", sparsity=0.25), progress=False)
    found = sparsity_of(lm)
    assert not found.is_two_four and found.sparsity == pytest.approx(0.25, abs=1e-3)
    weights = sum(layer.d_out * layer.d_in for layer in found.layers)
    zeros = sum(int((p == 0).sum()) for name, p in lm.model.named_parameters() if "_proj" in name)
    assert found.of_all == zeros / found.parameters < zeros / weights == found.sparsity
    lines = found.table().splitlines()
    assert lines[0].split() == ["LAYER", "WEIGHTS", "ZEROS", "SPARSITY", "2:4"] and len(lines) == 24
    assert lines[1].split()[:4] == ["model.layers.0.self_attn.q_proj", "1,024", "256", "25.00%"]
    assert lines[-1].split()[:4] == ["all", "parameters", f"{found.parameters:,}", f"{zeros:,}"]


def test_what_was_not_pruned_has_no_sparse_export(tmp_path):
    lm, report = quantized(group_size=16)
    with pytest.raises(SpecError, match="rtn 4-bit prunes nothing"):
        export_sparse(lm, report, tmp_path / "out")
