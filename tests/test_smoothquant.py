"""SmoothQuant, and activations that are rounded while a model runs."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_lib.compress import compress, method_spec, restored, rtn, save_checkpoint, smoothquant
from cola_lib.compress.block import fold
from cola_lib.compress.smoothquant import AFTER_NORM, rounding_of, smoothquant_scale
from cola_lib.errors import DataError, NumericsError, SpecError, UnknownNameError
from cola_lib.export import check_exportable, export_quantized, export_sparse
from cola_lib.finetune import TuneSpec, finetune
from cola_lib.fingerprint import fingerprint
from cola_lib.models import InputRounding
from cola_lib.statistics import InputStatistics, collect_statistics, walk
from tests import oracles
from tests.byte_tokenizer import byte_tokenizer
from tests.test_compress_model import linear_weights, logits
from tests.test_walk import rows
from tests.tiny_models import tiny_language_model

W8A8 = method_spec("smoothquant")
EIGHT_BITS = {"bits": 8, "group_size": -1, "symmetric": True, "act_bits": 8}
"""Plain rounding to the same grids, without smoothing."""


def problem(d_out=12, d_in=16, n_tokens=50, seed=0, outliers=(), factor=60.0):
    g = torch.Generator().manual_seed(seed)
    W, X = torch.randn(d_out, d_in, generator=g), torch.randn(n_tokens, d_in, generator=g)
    X[:, list(outliers)] *= factor
    stats = InputStatistics.empty(d_in)
    for chunk in X.split(20):
        stats.update(chunk)
    return W, X, stats


def rounds(lm):
    return [name for name, module in lm.model.named_modules() if module._forward_pre_hooks and "embed" not in name]


# ---------------------------------------------------------------------------------------------------- the scale


@settings(max_examples=25, deadline=None)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 99), tied=st.booleans(), dead=st.sets(st.integers(0, 5)))
def test_the_scale_is_the_oracle_s(alpha, seed, tied, dead):
    W, X, _ = problem(4, 6, 7, seed)
    X[:, sorted(dead)] = 0
    W[:, 1] = 0
    index = torch.tensor([2, 5, 2, 0, 5, 5]) if tied else None
    stats = InputStatistics.empty(6)
    stats.update(X)
    ours = smoothquant_scale(W, stats.abs_max, alpha, index)
    theirs = oracles.smoothquant_scale([W[:3], W[3:]], X, alpha, index.tolist() if tied else None)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=0)
    if tied:
        assert all(
            torch.equal(ours[index == row], ours[index == row][:1].expand((index == row).sum())) for row in index
        )


def test_half_way_the_ranges_of_activations_and_weights_are_equal():
    W, X, stats = problem(outliers=(3, 8))
    s = smoothquant_scale(W, stats.abs_max, 0.5)
    torch.testing.assert_close((X / s).abs().amax(0), (W * s).abs().amax(0))
    extremes = [smoothquant_scale(W, stats.abs_max, alpha) for alpha in (0.0, 1.0)]
    torch.testing.assert_close((W * extremes[0]).abs().amax(0), torch.ones(16))
    torch.testing.assert_close((X / extremes[1]).abs().amax(0), torch.ones(16))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "phi3"])
def test_a_smoothed_model_that_is_not_rounded_computes_the_same(model_type):
    """All scales moved where they belong, tied ones under grouped-query attention too."""
    lm = tiny_language_model(model_type)
    expected = logits(lm)
    for step in walk(lm, rows(), progress=False):
        values = {}
        for group in lm.architecture.groups:
            index = group.producer.rows(lm.model.config) if group.producer.rows else None
            layers = [step.block.get_submodule(name) for name in group.layers]
            W = torch.cat([layer.weight for layer in layers])
            s = smoothquant_scale(W, step.statistics[group.name].abs_max, 0.7, index)
            assert not torch.allclose(s, torch.ones_like(s), rtol=0.1)
            for name, layer in zip(group.layers, layers, strict=True):
                values[f"{name}.weight"] = values.get(f"{name}.weight", layer.weight) * s
            fold(values, step.block, group.producer, s, lm.model.config)
        for name, value in values.items():
            step.block.get_parameter(name).data = value
    torch.testing.assert_close(logits(lm), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("act_strategy", ["token", "tensor"])
def test_with_loud_channels_smoothing_is_better_than_rounding_alone(seed, act_strategy):
    W, X, stats = problem(32, 64, 200, seed, outliers=(5, 40))
    spec = method_spec("smoothquant", act_strategy=act_strategy)
    (new,), s = smoothquant([W], stats, spec, layer="layer")
    plain = rtn(W, method_spec("rtn", **EIGHT_BITS))
    smoothed = rounding_of(stats, spec, "layer", s)(X / s) @ new.T
    alone = rounding_of(stats, spec, "layer")(X) @ plain.T
    wrong = [(found - X @ W.T).norm() / (X @ W.T).norm() for found in (smoothed, alone)]
    assert wrong[0] < wrong[1] / 2


def test_inputs_that_nothing_can_scale_are_only_rounded():
    W, _, stats = problem(outliers=(2,))
    (new,), s = smoothquant([W], stats, W8A8, layer="layer", scalable=False)
    assert s is None and torch.equal(new, rtn(W, method_spec("rtn", **EIGHT_BITS)))


# --------------------------------------------------------------------------------------- rounding of activations


@settings(max_examples=40, deadline=None)
@given(
    bits=st.integers(2, 8),
    seed=st.integers(0, 99),
    step=st.one_of(st.none(), st.floats(0.001, 1)),
    size=st.sampled_from([1e-6, 1.0, 300.0]),
)
def test_activations_are_rounded_as_the_oracle_rounds_them(bits, seed, step, size):
    X = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * size
    X[2] = 0  # a token of zeros stays one
    ours = InputRounding(bits, step)(X)
    theirs = oracles.round_tokens(X, bits, step)
    grid = X.abs().amax(-1, keepdim=True).double() / (2 ** (bits - 1) - 1) if step is None else step
    # A value half way between two integers may go either way in float32 and float64; hardly any does.
    near = ((X.double() / grid).frac().abs() - 0.5).abs() < 1e-3
    torch.testing.assert_close(ours.double()[~near], theirs[~near], rtol=1e-5, atol=0)
    assert ours.shape == X.shape and len(ours.unique()) <= (2**bits if step else 5 * 2**bits)


def test_a_token_is_rounded_whatever_its_batch_and_dtype():
    X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    rounding = InputRounding(8)
    assert torch.equal(rounding(X)[1, 2], rounding(X[1, 2]))
    assert torch.equal(rounding(rounding(X)), rounding(X))
    half = rounding(X.bfloat16())
    assert half.dtype == torch.bfloat16 and torch.equal(half, rounding(X.bfloat16().float()).bfloat16())


def test_a_fixed_range_is_that_of_the_smoothed_calibration_tokens():
    W, X, stats = problem(outliers=(1,))
    s = smoothquant_scale(W, stats.abs_max, 0.5)
    spec = method_spec("smoothquant", act_strategy="tensor")
    found = rounding_of(stats, spec, "layer", s)
    assert found.step == pytest.approx(float((X / s).abs().max()) / 127)
    assert rounding_of(stats, spec, "layer").step == pytest.approx(float(X.abs().max()) / 127)
    assert float(found(torch.tensor([1e6]))) == pytest.approx(127 * found.step)
    silent = InputStatistics.empty(16)
    silent.update(torch.zeros(3, 16))
    with pytest.raises(NumericsError, match=r"model\.x: its input was 0 on all"):
        rounding_of(silent, spec, "model.x")


def test_a_compressed_model_multiplies_rounded_inputs():
    """What every layer hands to its weight, seen behind the rounding, is what the oracle makes of what comes in."""
    lm = tiny_language_model()
    compress(lm, W8A8, rows((12,) * 8), progress=False)
    name = "model.layers.1.mlp.gate_proj"
    layer, seen = lm.model.get_submodule(name), {}
    norm = lm.blocks[1].post_attention_layernorm
    handles = [
        norm.register_forward_hook(lambda _, __, out: seen.update(before=out)),
        layer.register_forward_hook(lambda _, args, out: seen.update(read=args[0], out=out)),
    ]
    logits(lm)
    for handle in handles:
        handle.remove()
    expected = oracles.round_tokens(seen["before"].flatten(0, 1), 8).view_as(seen["read"])
    off = (seen["read"].double() - expected).abs() > 1e-5  # ties, at most
    assert off.float().mean() < 0.01 and not torch.equal(seen["read"], seen["before"])
    torch.testing.assert_close(seen["out"], seen["read"] @ layer.weight.T)
    # Whoever watches the layers sees what they multiply.
    stats = collect_statistics(lm, rows((12,) * 8), progress=False)[1, "mlp_in"]
    unrounded = tiny_language_model()
    unrounded.model.load_state_dict(lm.model.state_dict())
    assert not torch.equal(stats.gram, collect_statistics(unrounded, rows((12,) * 8), progress=False)[1, "mlp_in"].gram)


@pytest.mark.parametrize("propagate", ["compressed", "original"])
def test_later_blocks_are_calibrated_on_what_propagate_says(propagate):
    """Coarse activations change what the second block is compressed for, unless the original ones are read."""
    fine, coarse = tiny_language_model(), tiny_language_model()
    for lm, bits in ((fine, 8), (coarse, 2)):
        compress(lm, method_spec("smoothquant", act_bits=bits), rows((12,) * 8), propagate=propagate, progress=False)
    ours, theirs = linear_weights(fine), linear_weights(coarse)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("0."))
    later = all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("0."))
    assert later == (propagate == "original")


def test_norms_only_leaves_the_other_inputs_alone():
    lm, both = tiny_language_model(), {}
    statistics = collect_statistics(lm, rows(), progress=False)
    untouched = linear_weights(lm)
    plain = method_spec("rtn", **EIGHT_BITS)
    for smooth in ("norms", "all"):
        with restored(lm):
            spec = method_spec("smoothquant", smooth=smooth)
            both[smooth] = compress(lm, spec, statistics=statistics, keep_codes=True, progress=False).quantized
    for group in lm.architecture.groups:
        for layer in group.layers:
            weight = rtn(untouched[f"1.{layer}"], plain)
            left_alone = {
                smooth: torch.allclose(codes[f"model.layers.1.{layer}"].dequantize(), weight)
                for smooth, codes in both.items()
                if codes[f"model.layers.1.{layer}"].divisor is None
            }
            if "norms" in left_alone:
                assert left_alone["norms"] == (group.name not in AFTER_NORM)
            assert not left_alone.get("all", False)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("act_strategy", ["token", "tensor"])
def test_other_quantizers_round_activations_too_when_asked(method, act_strategy):
    plain, rounded = tiny_language_model(), tiny_language_model()
    options = {"bits": 4, "group_size": 16}
    compress(plain, method_spec(method, **options), rows((12,) * 8), propagate="original", progress=False)
    spec = method_spec(method, **options, act_bits=8, act_strategy=act_strategy)
    compress(rounded, spec, rows((12,) * 8), propagate="original", progress=False)
    before, after = linear_weights(plain), linear_weights(rounded)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert 0 < (logits(plain) - logits(rounded)).norm() / logits(plain).norm() < 0.1
    assert plain.fingerprint != rounded.fingerprint and not plain.input_rounding


def test_the_same_data_give_the_same_model():
    a, b = tiny_language_model(), tiny_language_model()
    reports = [compress(lm, W8A8, rows((12,) * 8), progress=False) for lm in (a, b)]
    assert reports[0].model_after == reports[1].model_after and torch.equal(logits(a), logits(b))
    facts = json.loads(json.dumps(reports[0].to_dict()))
    assert facts["label"] == "smoothquant W8A8" and facts["spec"]["alpha"] == 0.5
    assert facts["revisions"].keys() == {"walk", "tokenize", "smoothquant", "input_rounding"}


def test_statistics_without_maxima_are_refused():
    lm = tiny_language_model()
    statistics = collect_statistics(lm, rows(), progress=False)
    for stats in statistics.values():
        stats.abs_max = None
    known = lm.fingerprint
    with pytest.raises(DataError, match=r"model\.layers\.0\.self_attn\.q_proj: .* collect them again"):
        compress(lm, W8A8, statistics=statistics, progress=False)
    assert lm.fingerprint == known


# ------------------------------------------------------------------------------------------ the model and its name


def test_restoring_ends_the_rounding():
    lm = tiny_language_model()
    expected, known = logits(lm), lm.fingerprint
    with restored(lm):
        compress(lm, W8A8, rows((12,) * 8), progress=False)
        assert len(rounds(lm)) == len(lm.input_rounding) == 3 * 7
    assert rounds(lm) == [] and lm.input_rounding == {}
    assert torch.equal(logits(lm), expected) and lm.fingerprint == known


def test_an_error_half_way_ends_the_rounding_or_leaves_what_was_there():
    lm = tiny_language_model()
    lm.blocks[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    known = {}
    for before in ({}, {"model.layers.0.mlp.up_proj": InputRounding(4)}):
        lm.round_inputs(before)
        known[len(before)] = lm.fingerprint
        with pytest.raises(NumericsError, match=r"layers\.2\.mlp\.down_proj"):
            compress(lm, method_spec("rtn", **EIGHT_BITS), progress=False)
        assert lm.input_rounding == before and rounds(lm) == list(before) and lm.fingerprint == known[len(before)]
    assert known[0] != known[1]


def test_the_name_of_a_model_tells_how_it_rounds():
    lm = tiny_language_model()
    plain = lm.fingerprint
    name = "model.layers.1.self_attn.q_proj"
    found = set()
    for rounding in ({name: InputRounding(8)}, {name: InputRounding(7)}, {name: InputRounding(8, 0.1)}):
        lm.round_inputs(rounding)
        found.add(lm.fingerprint)
        assert rounds(lm) == [name]
    assert len(found) == 3 and plain not in found
    lm.round_inputs({})
    assert lm.fingerprint == plain and rounds(lm) == []


def test_what_cannot_say_that_activations_are_rounded_is_refused(tmp_path):
    lm = tiny_language_model("llama", byte_tokenizer())
    with restored(lm):
        report = compress(lm, W8A8, rows((12,) * 8), progress=False)
        with pytest.raises(SpecError, match=r"21 layers of this model round .* compressed-tensors"):
            save_checkpoint(lm, report, tmp_path / "out")
        pruned = compress(lm, method_spec("magnitude"), progress=False)
        with pytest.raises(SpecError, match="21 layers of this model round"):
            export_sparse(lm, pruned, tmp_path / "out")
        packed = compress(lm, method_spec("rtn", group_size=16), keep_codes=True, progress=False)
        with pytest.raises(SpecError, match="21 layers of the model round their inputs, and by its report 0 do"):
            export_quantized(lm, packed, tmp_path / "out")
        with pytest.raises(SpecError, match="21 layers of tiny-llama round their inputs, which has no gradient"):
            finetune(lm, rows(), TuneSpec(steps=1), progress=False)
    with restored(lm):
        report = compress(lm, W8A8, rows((12,) * 8), keep_codes=True, progress=False)
        lm.round_inputs({})
        with pytest.raises(SpecError, match="0 layers of the model round their inputs, and by its report 21 do"):
            export_quantized(lm, report, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("act_strategy", ["token", "tensor"])
def test_what_is_loaded_rounds_its_activations(act_strategy, tmp_path):
    pytest.importorskip("compressed_tensors", reason="needs the extra 'export'")
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    lm = tiny_language_model("llama", byte_tokenizer())
    spec = method_spec("smoothquant", act_strategy=act_strategy)
    report = compress(lm, spec, rows((12,) * 8), keep_codes=True, progress=False)
    export = export_quantized(lm, report, tmp_path / "out", dtype="float32")
    assert export.format == json.loads((tmp_path / "out" / "report.json").read_text())["export"]["format"]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for name in report.quantized:
        weight, scale = tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"]
        assert weight.dtype == torch.int8 and scale.shape == (len(weight), 1)
        torch.testing.assert_close(weight.float() * scale, lm.model.get_submodule(name).weight, rtol=1e-6, atol=0)
        assert (f"{name}.input_scale" in tensors) == (act_strategy == "tensor")
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(input_ids=rows(seed=9).input_ids).logits
    expected = logits(lm)
    lm.round_inputs({})
    rounding = (expected - logits(lm)).norm()
    off = (found - expected).norm()
    # A fixed step is in the file. A token's own is the reader's, and transformers takes one of 127.5 in place of 127.
    assert off < (0.2 * rounding if act_strategy == "tensor" else 1.5 * rounding)
    assert (found - logits(lm)).norm() > 0.3 * rounding


@pytest.mark.parametrize(
    "options",
    [{"bits": 4}, {"act_bits": 6}, {"group_size": 16}, {"symmetric": False}],
    ids=lambda options: str(options),
)
def test_other_widths_than_eight_cannot_be_written(options):
    with pytest.raises(SpecError, match=r"smoothquant W\dA\d cannot be written: .* take bits 8"):
        check_exportable(method_spec("smoothquant", **options))


# --------------------------------------------------------------------------------------------- the specification


@pytest.mark.parametrize(
    "method,options,message",
    [
        ("smoothquant", {"alpha": 1.2}, r"alpha is a number between 0 and 1, not 1\.2"),
        ("smoothquant", {"alpha": -0.1}, r"between 0 and 1, not -0\.1"),
        ("smoothquant", {"act_bits": None}, "take rtn for the weights alone"),
        ("smoothquant", {"act_bits": 9}, "act_bits is a whole number from 2 to 8, or left out, not 9"),
        ("smoothquant", {"bits": 1}, "from 2 to 8, not 1"),
        ("rtn", {"act_bits": 1}, "from 2 to 8, or left out, not 1"),
    ],
)
def test_values_out_of_range_are_refused(method, options, message):
    with pytest.raises(SpecError, match=message):
        method_spec(method, **options)


def test_unknown_words_come_with_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown act_strategy 'tokens'; nearest: token"):
        method_spec("smoothquant", act_strategy="tokens")
    with pytest.raises(UnknownNameError, match="unknown smooth 'norm'; nearest: norms"):
        method_spec("smoothquant", smooth="norm")
    with pytest.raises(UnknownNameError, match="unknown option of gptq 'alpha'"):
        method_spec("gptq", alpha=0.5)


def test_data_are_read_where_a_scale_or_a_range_depends_on_them():
    assert W8A8.calibrated
    assert not method_spec("rtn", **EIGHT_BITS).calibrated
    assert method_spec("rtn", **EIGHT_BITS, act_strategy="tensor").calibrated
    assert not method_spec("rtn", act_strategy="tensor").calibrated  # which says nothing without act_bits
    labels = [method_spec("rtn", **EIGHT_BITS).label, method_spec("smoothquant", act_strategy="tensor", bits=4).label]
    assert labels == ["rtn W8A8", "smoothquant W4A8 static"]


def test_the_key_holds_what_smoothquant_reads_and_nothing_else():
    keys = [W8A8.key()]
    for options in ({"alpha": 0.6}, {"smooth": "norms"}, {"act_bits": 7}, {"act_strategy": "tensor"}, {"bits": 4}):
        keys.append(method_spec("smoothquant", **options).key())
    assert len({fingerprint(key) for key in keys}) == len(keys)
    assert method_spec("gptq", act_bits=8).key() != method_spec("gptq").key()
