"""The unit of the inputs changes no result, with dead channels too, and no method takes damaged statistics."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from cola_lib.calibration import random_tokens_set
from cola_lib.compress import METHODS, Problem, compress, gptq, method_spec, rtn
from cola_lib.errors import NumericsError, SpecError
from cola_lib.models import tiny_model
from cola_lib.statistics import InputStatistics, collect_statistics

DEAD = [3, 40, 41]
READERS = {
    "wanda": {"sparsity": 0.5},
    "ria": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "sparsegpt 2:4": {"pattern": (2, 4)},
    "gptq": {"bits": 3, "group_size": 16},
    "gptq act_order": {"bits": 3, "group_size": 16, "act_order": True},
    "gptq static_groups": {"bits": 3, "group_size": 16, "act_order": True, "static_groups": True},
    "awq": {"bits": 3, "group_size": 16},
    "awq duo_scaling": {"bits": 3, "group_size": 16, "duo_scaling": True},
    "smoothquant": {"alpha": 0.5},
    "rtn": {"bits": 4, "group_size": 16, "act_bits": 8, "act_strategy": "tensor"},
}


def spec_of(case):
    return method_spec(case.split()[0], **READERS[case])


def statistics(X):
    stats = InputStatistics.empty(X.shape[1])
    stats.update(X)
    return stats


def solved(case, W, X):
    """New weight, for the input as it was."""
    lm = tiny_model()
    group = dataclasses.replace(lm.architecture.groups[0], layers=("only",), unclipped=())
    solution = spec_of(case).solve(Problem([W], ["only"], statistics(X), group, lm.model.config))
    return solution.weights[0] if solution.scale is None else solution.weights[0] / solution.scale


@pytest.mark.parametrize("unit", [2.0**-10, 2.0**10])  # powers of 2: the scaled inputs hold the same digits
@pytest.mark.parametrize("case", READERS)
def test_the_unit_of_the_inputs_changes_no_result(case, unit):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(24, 64, generator=generator)
    X = torch.randn(80, 64, generator=generator) @ torch.randn(64, 64, generator=generator) * 0.05
    X[:, DEAD] = 0
    live = [j for j in range(64) if j not in DEAD]
    plain, scaled = solved(case, W, X), solved(case, W, X * unit)
    error = ((scaled - plain) @ X.T).square().sum() / (W @ X.T).square().sum()
    assert error < 1e-9
    torch.testing.assert_close(scaled[:, live], plain[:, live], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damp", [0.01, 1.0])
def test_dead_channels_add_nothing_to_the_damping(damp):
    X = torch.randn(80, 32, generator=torch.Generator().manual_seed(0)) * 1e-3
    padded = torch.cat([X, torch.zeros(80, 16)], dim=1)
    alone, _ = statistics(X).inverse_factor(damp, "alone")
    among, _ = statistics(padded).inverse_factor(damp, "among")
    torch.testing.assert_close(among[:32, :32], alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))
    _, order = statistics(padded.flip(1)).inverse_factor(damp, "ordered", act_order=True)
    assert order[32:].tolist() == list(range(16)), "dead channels come last, whatever the unit"


def test_an_input_that_is_always_zero_is_solved():
    U, _ = InputStatistics(torch.zeros(4, 4), torch.zeros(4), 8.0, torch.zeros(4)).inverse_factor(0.01, "silent")
    assert torch.isfinite(U).all()


def damaged(statistics, part, value):
    """The same statistics with one bad number in the input of the second block's MLP."""
    bad = statistics[1, "mlp_in"]
    tensors = {name: getattr(bad, name).clone() for name in ("gram", "abs_sum", "abs_max")}
    tensors[part].view(-1)[0] = value
    inputs = dict(statistics.inputs) | {(1, "mlp_in"): dataclasses.replace(bad, **tensors)}
    return dataclasses.replace(statistics, inputs=inputs)


@pytest.fixture(scope="module")
def watched():
    lm = tiny_model()
    return lm, collect_statistics(lm, random_tokens_set(lm.tokenizer, 4, 32), progress=False)


@pytest.mark.parametrize("case", READERS)
@pytest.mark.parametrize("part,value", [("gram", float("nan")), ("abs_sum", float("inf")), ("gram", -1.0)])
def test_every_method_refuses_damaged_statistics(watched, case, part, value):
    lm, good = watched
    before = lm.fingerprint
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.(gate|up)_proj"):
        compress(lm, spec_of(case), statistics=damaged(good, part, value), progress=False)
    assert lm.fingerprint == before


def test_damaged_statistics_of_a_target_are_refused(watched):
    lm, good = watched
    bad = damaged(good, "abs_max", float("nan"))
    with pytest.raises(NumericsError, match=r"layers\.1\.mlp"):
        compress(lm, method_spec("magnitude"), targets={"math": bad}, progress=False)


def test_a_solver_names_nan_for_what_it_is():
    stats = statistics(torch.randn(20, 8))
    stats.gram[0, 1] = float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        gptq(torch.randn(4, 8), stats, method_spec("gptq", group_size=8), "model.layers.0")


def test_the_cases_cover_every_method_that_reads_data():
    reading = {name for name, kind in METHODS.items() if kind().calibrated}
    assert reading <= {case.split()[0] for case in READERS}


@pytest.mark.parametrize("options", [{}, {"act_order": True}, {"static_groups": True}, {"symmetric": True}])
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "smoothquant"])
def test_a_group_size_that_does_not_fit_is_a_spec_error_in_direct_calls_too(method, options):
    W, X = torch.randn(8, 200), torch.randn(20, 200)
    if method != "gptq":
        options = {name: value for name, value in options.items() if name == "symmetric"}
    spec = method_spec(method, group_size=64, **options)
    lm = tiny_model()
    with pytest.raises(SpecError, match=r"group_size 64 .* 200"):
        spec.solve(Problem([W], ["only"], statistics(X), lm.architecture.groups[0], lm.model.config))
    with pytest.raises(SpecError, match=r"group_size 64 .* 200"):
        gptq(W, statistics(X), spec) if method == "gptq" else rtn(W, spec)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_statistics_on_their_device_are_the_same_object_however_the_device_is_named(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    stats = InputStatistics.empty(4, device)  # on cuda:0, which does not compare equal to cuda
    assert stats.to(torch.device(device)) is stats


# -- zeros of a pruned model


def test_gptq_keeps_the_pattern_of_a_pruned_model(watched):
    _, good = watched
    for options in ({}, {"act_order": True}, {"act_order": True, "static_groups": True}, {"symmetric": True}):
        lm = tiny_model()
        compress(lm, method_spec("wanda", pattern="2:4"), statistics=good, progress=False)
        pruned = {name: W.detach() == 0 for name, W in lm.model.named_parameters() if name.endswith("proj.weight")}
        pruned_statistics = collect_statistics(lm, random_tokens_set(lm.tokenizer, 4, 32), progress=False)
        spec = method_spec("gptq", bits=4, group_size=16, **options)
        report = compress(lm, spec, statistics=pruned_statistics, progress=False)
        assert report.sparsity >= 0.5
        for name, zero in pruned.items():
            assert not lm.model.get_parameter(name)[zero].any(), (name, options)


@pytest.mark.parametrize("method", ["rtn", "awq", "smoothquant"])
def test_the_other_quantizers_keep_zeros_as_they_are(watched, method):
    _, good = watched
    lm = tiny_model()
    compress(lm, method_spec("magnitude", sparsity=0.5), progress=False)
    zero = lm.blocks[0].mlp.up_proj.weight == 0
    again = collect_statistics(lm, random_tokens_set(lm.tokenizer, 4, 32), progress=False)
    compress(lm, method_spec(method, bits=4, group_size=16), statistics=again, progress=False)
    assert zero.any() and not lm.blocks[0].mlp.up_proj.weight[zero].any()


def sparse_problem(share, seed=0):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(32, 64, generator=generator)
    W[torch.rand(32, 64, generator=generator) < share] = 0
    return W, torch.randn(200, 64, generator=generator) @ torch.randn(64, 64, generator=generator)


def test_a_few_zeros_of_a_dense_layer_are_weights_like_others():
    W, X = sparse_problem(0.02)
    spec = method_spec("gptq", bits=4, group_size=16)
    free = method_spec("gptq", bits=4, group_size=16, keep_zeros=False)
    assert spec.key() == {k: v for k, v in free.key().items() if k != "keep_zeros"}
    ours = gptq(W, statistics(X), spec)
    assert torch.equal(ours, gptq(W, statistics(X), free)) and ours[W == 0].any()
    kept = gptq(W, statistics(X), method_spec("gptq", bits=4, group_size=16, keep_zeros=True))
    assert not kept[W == 0].any()


def test_compensation_that_zeros_cannot_take_goes_to_other_weights():
    W, X = sparse_problem(0.5)
    spec = method_spec("gptq", bits=3, group_size=16)
    error = {
        "kept": ((gptq(W, statistics(X), spec) - W) @ X.T).square().sum(),
        "masked afterwards": (
            (gptq(W, statistics(X), method_spec("gptq", bits=3, group_size=16, keep_zeros=False)) * (W != 0) - W) @ X.T
        )
        .square()
        .sum(),
        "rounded": ((rtn(W, spec) - W) @ X.T).square().sum(),
    }
    assert min(error, key=error.__getitem__) == "kept", error
