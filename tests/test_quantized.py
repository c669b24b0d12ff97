"""The codes of a quantized model are the model: kept on request, and the same weights when they are turned back."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from cola_lib.compress import QUANTIZERS, QuantizedWeight, compress, method_spec
from cola_lib.errors import SpecError
from tests.test_walk import rows
from tests.tiny_models import tiny_language_model

# Plain and symmetric; groups, whole rows, groups scattered and kept in place by act-order.
SETTINGS = [
    {"bits": 4, "group_size": 16},
    {"bits": 4, "group_size": 16, "symmetric": True},
    {"bits": 8, "group_size": -1},
    {"bits": 8, "group_size": 8, "symmetric": True},
    {"bits": 3, "group_size": 16},
    {"bits": 2, "group_size": 8},
]
ORDERED = [{"act_order": True}, {"act_order": True, "static_groups": True}, {"static_groups": True}]


def quantized_model(method, model_type="llama", dtype=torch.float32, **options):
    lm = tiny_language_model(model_type)
    lm.model.to(dtype)
    options |= {"n_grid": 4} if method == "awq" else {}
    report = compress(lm, method_spec(method, **options), rows((12,) * 8), keep_codes=True, progress=False)
    return lm, report


def assert_codes_are_the_model(lm, report):
    assert list(report.quantized) == [layer.layer for layer in report.layers]
    for name, codes in report.quantized.items():
        weight = lm.model.get_submodule(name).weight
        assert torch.equal(codes.dequantize(weight.dtype), weight), name
        assert codes.codes.dtype == codes.zero.dtype == torch.uint8
        assert codes.codes.max() <= 2**codes.bits - 1 and codes.zero.max() <= 2**codes.bits - 1
        if codes.symmetric:
            assert (codes.zero == 2 ** (codes.bits - 1)).all()


@pytest.mark.parametrize("method", QUANTIZERS)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_the_codes_are_the_weights_in_memory(method, options):
    lm, report = quantized_model(method, **options)
    assert_codes_are_the_model(lm, report)
    width = {16: 2, -1: 1, 8: 4}[options["group_size"]]
    assert report.quantized["model.layers.0.self_attn.q_proj"].scale.shape == (32, width)


@pytest.mark.parametrize("order", ORDERED, ids=str)
@pytest.mark.parametrize("group_size", [16, -1])
def test_activation_order_scatters_groups_unless_they_are_static(order, group_size):
    lm, report = quantized_model("gptq", bits=4, group_size=group_size, **order)
    assert_codes_are_the_model(lm, report)
    scattered = order == {"act_order": True} and group_size == 16
    for codes in report.quantized.values():
        assert (codes.group_index is not None) == scattered
        if scattered:
            assert codes.group_index.bincount().tolist() == [16] * (codes.shape[1] // 16)
    if scattered:
        assert any((codes.group_index.diff() < 0).any() for codes in report.quantized.values())


@pytest.mark.parametrize("model_type", ["gemma2", "phi3", "olmo2", "qwen2"])
@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_the_codes_are_the_weights_of_other_kinds_of_models(model_type, method):
    assert_codes_are_the_model(*quantized_model(method, model_type, bits=4, group_size=16))


@pytest.mark.parametrize("method", QUANTIZERS)
def test_the_codes_are_the_weights_in_half_precision(method):
    lm, report = quantized_model(method, dtype=torch.bfloat16, bits=8, group_size=16)
    assert lm.dtype == torch.bfloat16
    assert_codes_are_the_model(lm, report)


def test_awq_divides_rows_where_it_folded_a_scale_into_a_linear_layer():
    _, report = quantized_model("awq", bits=4, group_size=16)
    divided = {name.rsplit(".", 1)[1] for name, codes in report.quantized.items() if codes.divisor is not None}
    assert divided == {"v_proj", "up_proj"}
    codes = report.quantized["model.layers.0.mlp.up_proj"]
    plain = dataclasses.replace(codes, divisor=None)
    assert not torch.allclose(codes.dequantize(), plain.dequantize())
    stored = dataclasses.replace(plain, scale=codes.stored_scale())
    torch.testing.assert_close(stored.dequantize(), codes.dequantize(), rtol=3e-7, atol=0)


def test_codes_are_kept_only_when_asked_and_change_no_number():
    lm, kept = quantized_model("gptq", bits=4, group_size=16)
    other = tiny_language_model()
    report = compress(other, method_spec("gptq", bits=4, group_size=16), rows((12,) * 8), progress=False)
    assert report.quantized == {} and report.model_after == kept.model_after
    plain, with_codes = report.to_dict(), kept.to_dict()
    assert "quantized" not in plain and plain.keys() == with_codes.keys()
    json.dumps(with_codes)


def test_a_method_without_codes_says_so():
    with pytest.raises(SpecError, match="wanda rounds to no codes"):
        compress(tiny_language_model(), method_spec("wanda"), rows(), keep_codes=True, progress=False)


def test_a_layer_by_hand():
    weight = QuantizedWeight(
        torch.tensor([[0, 3, 1, 2]], dtype=torch.uint8),
        torch.tensor([[0.5, 2.0]]),
        torch.tensor([[1, 2]], dtype=torch.uint8),
        bits=2,
        symmetric=False,
    )
    assert weight.group_size == 2 and weight.shape == (1, 4)
    assert weight.dequantize().tolist() == [[-0.5, 1.0, -2.0, 0.0]]
    scattered = dataclasses.replace(weight, group_index=torch.tensor([0, 1, 1, 0]))
    assert scattered.dequantize().tolist() == [[-0.5, 2.0, -2.0, 0.5]]
