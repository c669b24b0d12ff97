"""A GPU without a GPU: no mix of devices, few synchronizations, and no more memory than is stated."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cola_lib.activations import (
    Probe,
    energy_probe,
    moments_probe,
    peak_probe,
    pooled_probe,
    projection_probe,
    row_features,
    sketch_probe,
)
from cola_lib.activations.rows import OUTPUT, token_mean
from cola_lib.compress import METHODS, compress, gptq, method_spec, sparsegpt, sweep
from cola_lib.compress.captured import Captured
from cola_lib.evaluate import EvalItem, Suite, evaluate, likelihood
from cola_lib.experiments.plan import ModelShape, compression_memory
from cola_lib.models import LanguageModel, architecture_of, load_model, loading
from cola_lib.statistics import InputStatistics, walk
from tests.byte_tokenizer import byte_tokenizer
from tests.test_compress_model import STRENGTH
from tests.test_walk import rows
from tests.tiny_models import MODEL_TYPES, SHAPE, WINDOW, tiny_language_model

fake_cuda = pytest.importorskip(
    "tests.fake_cuda", reason="this torch has no FakeTensorMode where others have it", exc_type=ImportError
)

LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
BLOCKS = 2


@pytest.fixture
def cuda():
    with fake_cuda.FakeCuda() as device:
        yield device


def on_device(model_type, shape, dtype=torch.float32, tokenizer=None):
    config = AutoConfig.for_model(model_type, **shape)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    return LanguageModel(model, tokenizer, "fake", architecture_of(config))


def tiny(model_type="llama", tokenizer=None):
    more = {"num_hidden_layers": BLOCKS} | ({} if tokenizer is None else {"vocab_size": len(tokenizer)})
    return on_device(model_type, SHAPE | WINDOW | more, tokenizer=tokenizer)


SMALL = {"sparsegpt": {"block_size": 8}, "gptq": {"block_size": 8}, "awq": {"n_grid": 2}}
"""Blocks and trials, of which nothing depends on how many there are."""


def waits(cuda):
    """Synchronizations, without those of hashing the model, and of checking token ids before the first block."""
    apart = ("fingerprint_tensors", "_check_ids")
    return Counter({place: n for place, n in cuda.synchronizations.items() if place not in apart})


def test_the_fake_device_sees_what_it_is_for(cuda):
    """Mixed devices, numbers that the host waits for, memory that comes and goes."""
    x = torch.ones(1000, device="cuda")
    with pytest.raises(RuntimeError, match="device"):
        x + torch.ones(1000)
    with pytest.raises(RuntimeError, match="device"):
        x.add_(torch.ones(1000))
    with pytest.raises(NotImplementedError, match="host waits"):
        x[x > 0]
    cuda.reset()
    assert bool((x > 0).all()) and x.cpu().device.type == "cpu" and x[:2].tolist() == [1.0, 1.0]
    assert cuda.synchronizations.total() == 3
    held = cuda.bytes
    y = x * 2
    assert cuda.bytes == held + 4000 == cuda.peak
    del y
    assert cuda.bytes == held


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_walk_waits_once_for_an_input(cuda, model_type):
    """Whatever the batches, the padding and the mode: no input of a batch is read back, only sums of a block."""
    lm = tiny(model_type)
    cuda.reset()
    mode = "compressed" if MODEL_TYPES.index(model_type) % 2 else "original"
    for step in walk(lm, rows((12, 7, 12, 3)), propagate=mode, batch_size=2, progress=False):
        assert step.statistics["attn_in"].gram.is_cuda
    assert waits(cuda) == {"check": len(lm.architecture.groups) * BLOCKS}


def test_sixteen_bit_inputs_are_summed_in_float32(cuda):
    stats = InputStatistics.empty(128, "cuda")
    cuda.reset()
    stats.update(torch.ones(4096, 128, dtype=torch.bfloat16, device="cuda"))
    assert stats.gram.dtype == stats.abs_sum.dtype == stats.abs_max.dtype == torch.float32
    assert cuda.peak - cuda.bytes < 3 * 2 * 4096 * 128, "there was a copy of the inputs in float32"


def test_statistics_on_their_device_stay_with_what_they_keep(cuda):
    stats = InputStatistics.empty(8, "cuda")
    assert stats.to(torch.device("cuda")) is stats, 'for torch, "cuda" is not "cuda:0"'


@pytest.mark.parametrize("method", METHODS)
def test_a_method_waits_a_few_times_for_a_block(cuda, method):
    """Per input: for the weights' soundness, for the report, and for whether the Hessian could be factored.

    None of it grows with columns, groups or trials.
    """
    lm = tiny()
    options = STRENGTH[method] | (SMALL.get(method, {}))
    cuda.reset()
    compress(lm, method_spec(method, **options), rows((12,) * 4), progress=False)
    inputs = len(lm.architecture.groups) * BLOCKS
    expected = {"compress_block": 2 * inputs}
    if method_spec(method, **options).calibrated:
        expected["check"] = 2 * inputs  # by the walk, and by the block, whose statistics may come from elsewhere
    if method in ("sparsegpt", "gptq"):
        expected["inverse_factor"] = 2 * inputs
    if method == "gptq":
        expected["zeros_to_keep"] = inputs
    assert waits(cuda) == expected


@pytest.mark.parametrize(
    "method,options",
    [
        ("sparsegpt", {"pattern": "2:4", "block_size": 16}),
        ("gptq", {"bits": 4, "group_size": 16, "act_order": True, "block_size": 8}),
        ("gptq", {"bits": 4, "group_size": 8, "static_groups": True, "act_order": True, "block_size": 16}),
    ],
)
def test_columns_are_replayed(cuda, method, options):
    """Blocks that are alike cost one launch each, and what is copied in and out, however many columns they have."""
    solve = {"sparsegpt": sparsegpt, "gptq": gptq}[method]
    W, stats = torch.ones(8, 192, device="cuda"), InputStatistics.empty(192, "cuda")
    stats.n_tokens = 1.0
    solve(W, stats, method_spec(method, **options))
    cuda.reset()
    solve(W, stats, method_spec(method, **options))
    n_blocks = 192 // options["block_size"]
    assert cuda.launches < 24 * n_blocks + 32
    assert set(cuda.synchronizations) <= {"zeros_to_keep"}


def test_a_captured_function_is_the_function(monkeypatch):
    """On the CPU, with a replay that runs the function again on the memory it was recorded with."""
    monkeypatch.setattr("cola_lib.compress.captured.capture", lambda run: run)

    def add(x, y):
        x += y
        y.mul_(2)

    replayed = Captured(add)
    for value in (1.0, 2.0, 3.0):
        x, y = torch.full((3,), value), torch.full((3,), 10.0)
        replayed(x, y)
        assert x.tolist() == [value + 10] * 3 and y.tolist() == [20.0] * 3


def test_probes_wait_once_for_a_batch(cuda):
    lm = tiny()

    def loudness(states, mask, _):
        return token_mean(states.square().mean(-1, keepdim=True), mask)

    probes = {
        "mean": pooled_probe([0, 1]),
        "moments": moments_probe([1]),
        "energy": energy_probe("mlp_down", [0, 1]),
        "peak": peak_probe("attn_in", [0, 1]),
        "projected": projection_probe([0, 1], torch.randn(2, 32, 5)),
        "sketch": sketch_probe("attn_in", [0, 1], torch.randn(2, 32, 3)),
        "own": Probe(OUTPUT, (0,), loudness),
    }
    cuda.reset()
    row_features(lm, rows((12, 7, 12, 3, 12, 12)), probes, batch_tokens=24, progress=False)
    batches = 3
    assert waits(cuda) == {"row_features": len(probes) * batches}
    assert cuda.uploads["measure"] == 2, "projections are copied once, and not for every block and batch"


def test_evaluation_waits_for_a_batch_and_not_for_a_token(cuda, monkeypatch):
    lm = tiny(tokenizer=byte_tokenizer())
    monkeypatch.setattr(likelihood, "_check_head", lambda *_: None)  # compares numbers, and there are none
    items = [EvalItem(str(i), "commonsense", "t", "Still waters run", (" deep.", " fast.")) for i in range(6)]
    cuda.reset()
    scores = evaluate(lm, Suite(tuple(items)), progress=False)
    assert len(scores) == 6
    assert waits(cuda).total() <= 4, waits(cuda)


def test_streamed_blocks_come_to_the_device_and_states_wait_in_main_memory(cuda, tmp_path, monkeypatch):
    tiny_language_model("llama").model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(loading, "resolve_device", torch.device)
    with fake_cuda.unset_fake_temporarily():
        lm = load_model(tmp_path / "model", device="cuda", dtype="float32", stream=True, scratch=tmp_path)
    assert lm.device.type == "cuda" and lm.home.type == "cpu"
    cuda.reset()
    for step in walk(lm, rows((12, 7, 12, 3)), propagate="compressed", progress=False):
        assert step.block.mlp.up_proj.weight.is_cuda and step.statistics["attn_in"].gram.is_cuda
    assert waits(cuda) == {"check": 4 * 3}


@pytest.mark.parametrize(
    "method,options",
    [
        ("wanda", {}),
        ("sparsegpt", {"block_size": 512}),
        ("gptq", {"bits": 4, "group_size": 128, "block_size": 512}),
        ("awq", {"bits": 4, "group_size": 128, "n_grid": 1}),  # of how many trials, memory does not depend
        ("magnitude", {}),
        ("joint_lowrank", {}),
    ],
)
def test_memory_is_what_is_stated(cuda, monkeypatch, method, options):
    """One block of LLaMA-3-8B's shape, with what a batch of 8 rows of 2048 tokens takes."""
    monkeypatch.setattr(sweep, "settle", lambda *_, **__: None)  # 40,000 launches, none of which keeps anything
    lm = on_device("llama", LLAMA_3_8B | {"num_hidden_layers": 1}, torch.bfloat16)
    lm._fingerprint = "fake"  # nothing of it is read
    calibration = rows((2048,) * 8, 2048)
    spec = method_spec(method, **options)
    errors = method == "wanda"
    cuda.reset()
    compress(lm, spec, calibration, layer_errors=errors, keep_originals=False, progress=False)
    stated = sum(compression_memory(ModelShape.of(lm.model.config), spec, 8, 2048, layer_errors=errors).values())
    assert cuda.peak <= stated <= 1.2 * cuda.peak


def test_originals_are_let_go_of_where_nobody_asks_for_them_back(cuda):
    peaks = {}
    for kept in (True, False):
        lm = tiny()
        cuda.reset()
        before = cuda.bytes
        compress(lm, method_spec("magnitude"), keep_originals=kept, progress=False)
        peaks[kept] = cuda.peak - before
        del lm
    block = 4 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48)
    assert peaks[True] - peaks[False] >= (BLOCKS - 1) * block
