"""``cola compress --save-as compressed-tensors``, and the report beside a pruned checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.test_cli import assert_refused, checkpoint, no_work, run  # noqa: F401 - fixtures

pytest.importorskip("compressed_tensors", reason="needs the extra 'export'")


@pytest.fixture
def compress(checkpoint, tmp_path):  # noqa: F811
    return lambda *options: run("compress", "--model", checkpoint, "--out", tmp_path / "out", "--no-progress", *options)


def test_a_packed_checkpoint_computes_what_the_dense_one_does(compress, checkpoint, tmp_path):  # noqa: F811
    options = ("--method", "rtn", "--group-size", 16, "--save-as", "compressed-tensors", "--save-dtype", "float32")
    result = compress(*options, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["export"]["dtype"] == "float32" and facts["export"]["limits"]
    run("compress", "--model", checkpoint, "--out", tmp_path / "dense", "--method", "rtn", "--group-size", 16)
    ids = torch.arange(20)[None]
    one, two = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(ids).logits for name in ("out", "dense"))
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    shown = compress(*options, "--overwrite")
    assert "% of theirs" in shown.stdout and "note: vLLM's Marlin kernels" in shown.stderr


def test_rounded_activations_are_in_the_file(compress, tmp_path):
    calibration = ("--source", "c4", "--n-samples", 4, "--seq-len", 32)
    result = compress("--method", "smoothquant", "--alpha", 0.6, *calibration, "--save-as", "compressed-tensors")
    assert result.exit_code == 0, result.output
    assert "smoothquant W8A8: 21 layers, 8 bits, activations 8, " in result.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    activations = config["config_groups"]["group_0"]["input_activations"]
    assert config["format"] == "int-quantized" and (activations["num_bits"], activations["dynamic"]) == (8, True)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["spec"]["alpha"] == 0.6


def test_a_pruned_checkpoint_has_a_report_of_its_zeros(compress, tmp_path):
    result = compress("--method", "magnitude", "--pattern", "2:4")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out" / "sparsity.json").read_text())["two_four"] is True


@pytest.mark.parametrize(
    "options,message",
    [
        (("--method", "wanda"), "wanda makes no integers to pack"),
        (("--method", "gptq", "--act-order"), "add static_groups"),
        (("--method", "smoothquant", "--bits", 4), "smoothquant W4A8 cannot be written"),
        (("--method", "rtn", "--static-groups"), "--static-groups has no effect with rtn"),
    ],
)
def test_what_cannot_be_packed_is_refused_before_any_work(compress, no_work, options, message):  # noqa: F811
    assert_refused(compress(*options, "--source", "c4", "--save-as", "compressed-tensors"), message)


def test_words_that_do_not_go_together_are_refused(compress, no_work):  # noqa: F811
    assert_refused(compress("--method", "rtn", "--save-as", "gguf"), "unknown save-as 'gguf'")
    assert_refused(compress("--method", "rtn", "--save-dtype", "float16"), "--save-dtype has no effect without")
