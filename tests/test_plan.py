"""The planning arithmetic against what is counted while the thing itself runs."""

from __future__ import annotations

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from typer.testing import CliRunner

from cola_lib.calibration import CalibrationSet
from cola_lib.cli.app import app
from cola_lib.compress import compress, method_spec
from cola_lib.errors import SpecError
from cola_lib.experiments import Sweep
from cola_lib.experiments.plan import (
    ModelShape,
    Rates,
    bytes_moved,
    compression_memory,
    plan_sweep,
    wall_hours,
    worker_hours,
    worker_memory,
)
from cola_lib.models import ARCHITECTURES
from cola_lib.statistics import collect_statistics, walk
from tests.tiny_models import SHAPE, tiny_language_model

WIDE = {"hidden_size": 256, "intermediate_size": 384, "num_attention_heads": 4, "head_dim": 64}
RATES = Rates(forward=1e12, gram=1e11, solve=2e11, evaluate=1e12, load=1e9)


@pytest.fixture(scope="module")
def lm():
    return tiny_language_model("llama", **WIDE)


@pytest.fixture(scope="module")
def shape(lm) -> ModelShape:
    return ModelShape.of(lm.model.config, bytes_per_parameter=4)


@pytest.fixture(scope="module")
def rows() -> CalibrationSet:
    ids = torch.randint(3, 97, (12, 32), generator=torch.Generator().manual_seed(0))
    names = tuple((f"s/{i}",) for i in range(12))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return CalibrationSet(ids, mask, sample_ids=names, sources=("s",) * 12, name="s", seed=0, layout="pack")


def product_flop(total, left, right, out_shape=None, **_) -> int:
    return 2 * left[0] * left[1] * right[1]


def outer_flop(matrix, left, right, out_shape=None, **_) -> int:
    return 2 * left[0] * right[0]


def counted(run) -> float:
    in_place = {torch.ops.aten.addmm_: product_flop, torch.ops.aten.addr_: outer_flop}  # which it does not know
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def statistics(lm, rows):
    return collect_statistics(lm, rows, progress=False)


def sweep(**changes) -> Sweep:
    given = {
        "models": ["a", "b"],
        "sources": ["c4", "code"],
        "methods": [{"method": "sparsegpt"}, {"method": "wanda"}, {"method": "rtn"}],
        "draws": 3,
        "n_samples": 16,
        "seq_len": 64,
        "evaluate": {"capabilities": ["math", "code"], "tokens_per_capability": 1000},
    }
    return Sweep.model_validate_json(json.dumps(given | changes))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_kind_of_model_has_a_shape(model_type):
    shape = ModelShape.of(AutoConfig.for_model(model_type, **SHAPE))
    assert shape.n_blocks == 3 and shape.attention_width == 32 and shape.vocab_size == 97
    assert 3 * shape.n_block_weights // 3 <= shape.n_parameters


def test_a_known_model():
    llama = AutoConfig.for_model(
        "llama",
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    shape = ModelShape.of(llama)
    assert shape.n_parameters == 8_030_261_248  # as its model card says
    assert shape.statistics_bytes == pytest.approx(32.7e9, rel=0.01)


def test_forward_and_head(lm, shape, rows):
    run = counted(lambda: lm.model(input_ids=rows.input_ids, use_cache=False))
    assert run == pytest.approx(shape.forward_flops(12 * 32, 32) + shape.head_flops(12 * 32), rel=1e-6)


def test_walk(lm, shape, rows):
    n = rows.n_tokens
    run = counted(lambda: collect_statistics(lm, rows, progress=False)) - shape.forward_flops(n, 32)
    # what is symmetric is computed in strips, of which a little is computed twice
    assert shape.gram_flops(n) <= run <= 1.5 * shape.gram_flops(n)


def test_statistics_and_weights_have_as_many_bytes(lm, shape, statistics):
    held = [each for stats in statistics.inputs.values() for each in (stats.gram, stats.abs_sum, stats.abs_max)]
    assert shape.statistics_bytes == sum(tensor.nbytes for tensor in held)
    assert shape.weight_bytes == sum(parameter.nbytes for parameter in lm.model.parameters())
    layers = [lm.model.get_submodule(name) for name in _layers(lm)]
    assert shape.n_block_weights == sum(layer.weight.numel() for layer in layers)


def _layers(lm) -> list[str]:
    return [f"{lm.block_name(i)}.{name}" for i in range(len(lm.blocks)) for name in lm.architecture.layers]


def test_a_walk_that_reads_compressed_blocks(lm, shape, rows):
    def visit():
        for step in walk(lm, rows, propagate="compressed", gram=False, progress=False):
            del step

    assert counted(visit) == pytest.approx(shape.two_pass_flops(12 * 32, 32), rel=1e-6)


@pytest.mark.parametrize(
    ("method", "options"),
    [("wanda", {}), ("sparsegpt", {}), ("gptq", {"group_size": 64}), ("awq", {"group_size": 64, "n_grid": 4})],
)
def test_solvers(shape, statistics, method, options):
    lm = tiny_language_model("llama", **WIDE)
    spec = method_spec(method, **options)
    products = counted(lambda: compress(lm, spec, statistics=statistics, progress=False))
    factors = 0.0
    if method in ("sparsegpt", "gptq"):  # the counter knows no factorizations
        factors = shape.n_blocks * sum(4 / 3 * each.d_in**3 for each in shape.inputs)
    expected = shape.solve_flops(spec) - factors
    assert 0.8 * expected <= products <= 1.5 * expected  # strips and blocks do a little twice


def test_what_is_not_judged_costs_nothing(shape):
    assert shape.solve_flops(method_spec("magnitude"), judged=False) == 0
    assert shape.solve_flops(method_spec("wanda")) == shape.solve_flops(method_spec("magnitude"))


def test_steps_of_a_sweep(shape):
    asked = sweep()
    plan = plan_sweep(asked, {"a": shape, "b": shape}, RATES).set_index(["model", "step"])
    one = plan.loc["a"]
    assert one.loc["walk: forward", "times"] == 2 * 3 and one.loc["evaluate", "times"] == 2 + 2 * 2 * 3
    assert one.loc["walk: forward", "flops"] == shape.forward_flops(16 * 64, 64)
    assert one.loc["walk: Gram", "seconds"] == shape.gram_flops(16 * 64) / 1e11
    both = [shape.solve_flops(method_spec(name)) for name in ("sparsegpt", "wanda")]
    assert one.loc["compress", "flops"] == sum(both)
    assert one.loc["compress", "seconds"] == sum(both) / 2e11
    assert one.loc["evaluate", "flops"] == shape.forward_flops(2000, 256) + 2 * shape.head_flops(2000)
    assert plan.loc["b"].equals(one)
    assert "targets: Gram" not in one.index


def test_a_walk_for_each_method_that_propagates(shape):
    shapes = {"a": shape, "b": shape}
    one, each = (
        plan_sweep(sweep(propagate=mode), shapes, RATES).set_index(["model", "step"])["flops"]["a"]
        for mode in ("original", "compressed")
    )
    twice = shape.two_pass_flops(16 * 64, 64)
    assert each["walk: forward"] == 2 * twice and 1.3 < twice / one["walk: forward"] < 2  # two methods, two passes
    assert each["walk: Gram"] == 2 * one["walk: Gram"]
    assert each["compress"] == one["compress"]


def test_hours(shape):
    shapes = {"a": shape, "b": shape}
    plan = plan_sweep(sweep(targets=["math"]), shapes, RATES)
    once = float((plan["times"] * plan["seconds"]).sum()) / 3600
    assert worker_hours(plan, 1) == pytest.approx(once)
    assert wall_hours(plan, 1) == pytest.approx(once)
    again = plan.loc[plan["per"] == "worker", "seconds"].sum() / 3600
    assert worker_hours(plan, 3) == pytest.approx(once + 2 * again)
    assert once / 4 < wall_hours(plan, 4) < once
    assert wall_hours(plan, 6) == pytest.approx(wall_hours(plan, 100)), "six sets keep six workers busy"
    assert "targets: Gram" in set(plan["step"])


def test_memory_and_bytes(shape):
    asked = sweep(targets=["math", "code"], seq_len=[32, 64])
    memory = worker_memory(asked, shape)
    assert memory["statistics of targets"] == 2 * 2 * shape.statistics_bytes
    assert "states between blocks" not in memory, "they are gone when blocks are compressed, which takes more"
    long = worker_memory(sweep(n_samples=100_000), shape)
    assert long["states between blocks"] == 100_000 * 64 * 256 * 4 and "solving" not in long
    compressed = worker_memory(sweep(propagate="compressed"), shape)
    assert {"states between blocks", "solving"} <= compressed.keys()
    assert compressed["statistics of a set"] * 3 == memory["statistics of a set"]
    moved = bytes_moved(sweep(), {"a": shape, "b": shape}, 4, 1000.0)
    assert moved == {"weights to workers": 8.0 * shape.weight_bytes, "results to the store": 2 * 14 * 1000.0}


def test_rates_are_positive():
    with pytest.raises(SpecError, match="rates must be above 0"):
        Rates(1e12, 0, 1e12, 1e12)


def test_a_dry_run_states_memory_and_loads_no_weights(tmp_path, monkeypatch):
    lm = tiny_language_model("llama", **WIDE)
    lm.model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("cola_lib.models.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    command = ["compress", "--model", str(tmp_path / "model"), "--device", "cpu", "--source", "c4", "--n-samples", "4"]
    command += ["--seq-len", "32", "--method", "sparsegpt", "--out", str(tmp_path / "out"), "--dry-run", "--json"]
    said = CliRunner().invoke(app, command, catch_exceptions=False)
    assert said.exit_code == 0 and not (tmp_path / "out").exists()
    stated = json.loads(said.stdout)
    shape = ModelShape.of(lm.model.config, bytes_per_parameter=4)
    assert stated["bytes"] == compression_memory(shape, method_spec("sparsegpt"), 4, 32)
    assert stated["bytes"]["weights"] == shape.weight_bytes and stated["total_bytes"] == sum(stated["bytes"].values())


def test_a_streamed_model_takes_the_memory_of_a_block(shape):
    whole, streamed = (compression_memory(shape, method_spec("wanda"), 4, 32, streamed=s) for s in (False, True))
    assert streamed["weights"] * shape.n_blocks < whole["weights"] and "states between blocks" not in streamed


def test_torch_has_the_fake_tensors_that_test_fake_cuda_needs():
    """Private, so it may go: then those tests are skipped, and this one tells."""
    from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

    with FakeTensorMode():
        assert torch.ones(2, device="cuda").device.type == "cuda"
    assert unset_fake_temporarily is not None
