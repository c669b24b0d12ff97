"""Each method agrees with its naive oracle: masks exactly, weights to 1e-4 relative."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_lib.compress import awq, gptq, magnitude, method_spec, ria, rtn, sparsegpt, wanda
from cola_lib.compress.masks import lowest_per_row
from cola_lib.compress.sparsegpt import sparsegpt_stacked
from cola_lib.statistics import InputStatistics
from tests import oracles

PATTERNS = [None, (2, 4), (4, 8), (1, 4)]


def problem(d_out=12, d_in=48, n_tokens=200, seed=0, dead=()):
    """A weight, correlated inputs of very unequal channels, and their statistics."""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(d_out, d_in, generator=g)
    mix = torch.randn(d_in, d_in, generator=g) * 0.4 + torch.eye(d_in)
    X = torch.randn(n_tokens, d_in, generator=g) @ mix * torch.rand(d_in, generator=g).mul(2).exp()
    X[:, list(dead)] = 0
    stats = InputStatistics.empty(d_in)
    for chunk in X.split(64):
        stats.update(chunk)
    return W, X, stats


def close(ours, theirs, tolerance=1e-4):
    error = (ours.double() - theirs).norm() / theirs.norm()
    assert error < tolerance, f"relative error {error:.2e}"


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_magnitude_matches_its_oracle(sparsity):
    W, _, _ = problem()
    assert torch.equal(magnitude(W, method_spec("magnitude", sparsity=sparsity)), oracles.magnitude(W, sparsity))


@pytest.mark.parametrize("pattern", PATTERNS[1:])
def test_patterned_magnitude_and_wanda_match_their_oracles(pattern):
    W, X, stats = problem()
    assert torch.equal(magnitude(W, method_spec("magnitude", pattern=pattern)), oracles.magnitude(W, 0, pattern))
    assert torch.equal(wanda(W, stats, method_spec("wanda", pattern=pattern)), oracles.wanda(W, X, 0, pattern))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.77, 1.0])
def test_wanda_matches_its_oracle(sparsity):
    W, X, stats = problem()
    assert torch.equal(wanda(W, stats, method_spec("wanda", sparsity=sparsity)), oracles.wanda(W, X, sparsity))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("sparsity", "pattern"), [(0.0, None), (0.3, None), (0.77, None), (1.0, None), (0.5, (2, 4))])
def test_ria_matches_its_oracle(sparsity, pattern, exponent):
    W, X, stats = problem()
    W[:, 3] = 0  # a column without a weight has no shares
    spec = method_spec("ria", sparsity=sparsity, pattern=pattern, exponent=exponent)
    assert torch.equal(ria(W, stats, spec), oracles.ria(W, X, sparsity, pattern, exponent))


def test_ria_spares_rows_and_columns_that_have_little():
    """A weight also counts by its share, so that no row is emptied because others have larger weights."""
    W, _, stats = problem(d_out=16, d_in=32)
    W[:4] *= 0.01
    kept = (ria(W, stats, method_spec("ria")) != 0).float().mean(dim=1)
    by_size = (magnitude(W, method_spec("magnitude")) != 0).float().mean(dim=1)
    assert by_size[:4].max() == 0 < kept[:4].min()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("d_in,block_size", [(48, 16), (48, 128), (96, 64), (200, 128)])
def test_sparsegpt_matches_its_oracle(pattern, d_in, block_size):
    W, X, stats = problem(d_in=d_in, n_tokens=2 * d_in, seed=d_in)
    spec = method_spec("sparsegpt", sparsity=0.5, pattern=pattern, block_size=block_size)
    ours = sparsegpt(W, stats, spec)
    theirs = oracles.sparsegpt(W, X, 0.5, pattern, spec.damp, block_size)
    assert torch.equal(ours == 0, theirs == 0)
    close(ours, theirs)


@pytest.mark.parametrize("act_order,static_groups", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("group_size,block_size", [(16, 32), (48, 128), (-1, 32), (24, 16), (96, 40)])
def test_gptq_matches_its_oracle(group_size, block_size, act_order, static_groups):
    d_in = 96
    W, X, stats = problem(d_in=d_in, n_tokens=300, seed=3)
    spec = method_spec(
        "gptq",
        bits=4,
        group_size=group_size,
        act_order=act_order,
        static_groups=static_groups,
        block_size=block_size,
    )
    ours = gptq(W, stats, spec)
    theirs = oracles.gptq(W, X, 4, group_size, False, spec.damp, act_order, static_groups)
    close(ours, theirs)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_quantizers_match_their_oracles_at_each_width(bits, symmetric):
    W, X, stats = problem(seed=bits)
    options = {"bits": bits, "group_size": 16, "symmetric": symmetric}
    close(rtn(W, method_spec("rtn", **options)), oracles.rtn(W, bits, 16, symmetric), 1e-6)
    close(gptq(W, stats, method_spec("gptq", **options)), oracles.gptq(W, X, bits, 16, symmetric, 0.01))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("rows", [None, [0, 1, 2, 3] * 6])
@pytest.mark.parametrize("duo_scaling", [False, True])
def test_awq_matches_its_oracle(symmetric, clip, rows, duo_scaling):
    W, X, stats = problem(d_out=10, d_in=24, seed=5)
    options = {"clip": clip, "n_grid": 10, "duo_scaling": duo_scaling}
    spec = method_spec("awq", bits=3, group_size=8, symmetric=symmetric, **options)
    weights = [W[:6], W[6:]]
    tied = None if rows is None else torch.tensor(rows)
    ours, scale = awq(weights, stats, spec, rows=tied, clipped=[True, False])
    theirs, expected = oracles.awq(weights, X, 3, 8, symmetric, 10, clip, rows, [True, False], duo_scaling)
    close(scale, expected)
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
    if rows is not None:
        assert torch.equal(scale[:4].repeat(6), scale)


def test_awq_never_errs_more_where_it_tries_more_scales():
    """Duo scaling adds candidates, and is of use where weights differ in size from channel to channel."""

    def error(W, stats, duo):
        spec = method_spec("awq", bits=3, group_size=8, clip=False, duo_scaling=duo)
        (rounded,), scale = awq([W], stats, spec)
        return stats.output_energy(rounded / scale - W)

    gains = []
    for seed in range(8):
        W, _, stats = problem(d_out=10, d_in=24, seed=seed)
        W = W * torch.tensor([1.0, 0.3, 0.6]).repeat(8)
        gains.append(error(W, stats, False) - error(W, stats, True))
    assert min(gains) >= 0 and max(gains) > 0


def test_awq_without_duo_scaling_keeps_its_key():
    assert "duo_scaling" not in method_spec("awq").key()
    assert method_spec("awq", duo_scaling=True).key() != method_spec("awq").key()


@pytest.mark.parametrize("options", [{"sparsity": 0.3}, {"pattern": "2:4"}])
def test_layers_in_one_sweep_are_pruned_as_alone(options):
    """Each keeps its own share, although their weights differ in size."""
    W, _, stats = problem(d_out=12, seed=8)
    weights = [W[:3], 10 * W[3:4], W[4:] / 10]
    spec = method_spec("sparsegpt", block_size=16, **options)
    for together, W in zip(sparsegpt_stacked(weights, stats, spec), weights, strict=True):
        alone = sparsegpt(W, stats, spec)
        assert torch.equal(together == 0, alone == 0)
        close(together, alone)


@pytest.mark.parametrize("method", ["sparsegpt", "gptq"])
def test_dead_channels_are_zeroed_and_harm_nothing(method):
    W, X, stats = problem(dead=(0, 7, 47))
    if method == "sparsegpt":
        ours = sparsegpt(W, stats, method_spec(method))
        theirs = oracles.sparsegpt(W, X, 0.5, None, 0.01, 128)
        assert torch.equal(ours == 0, theirs == 0)
    else:
        ours = gptq(W, stats, method_spec(method, group_size=16))
        theirs = oracles.gptq(W, X, 4, 16, False, 0.01)
    assert not ours[:, [0, 7, 47]].any()
    close(ours, theirs)


@settings(max_examples=40, deadline=None)
@given(
    sparsity=st.floats(0, 1),
    d_out=st.integers(1, 9),
    quads=st.integers(1, 20),
    block_size=st.sampled_from([4, 16, 128]),
)
def test_every_pruner_removes_exactly_the_number_asked_for(sparsity, d_out, quads, block_size):
    d_in = 4 * quads
    W, _, stats = problem(d_out, d_in, 2 * d_in + 5, seed=quads)
    assert (magnitude(W, method_spec("magnitude", sparsity=sparsity)) == 0).sum() == round(W.numel() * sparsity)
    pruned = wanda(W, stats, method_spec("wanda", sparsity=sparsity))
    assert ((pruned == 0).sum(1) == round(d_in * sparsity)).all()
    pruned = sparsegpt(W, stats, method_spec("sparsegpt", sparsity=sparsity, block_size=block_size))
    for columns in pruned.split(block_size, dim=1):
        assert (columns == 0).sum() == round(columns.numel() * sparsity)
    assert (ria(W, stats, method_spec("ria", sparsity=sparsity)) == 0).sum() == round(W.numel() * sparsity)
    for method in (wanda, ria, sparsegpt):
        pruned = method(W, stats, method_spec(method.__name__, pattern="2:4"))
        assert ((pruned.unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()


def test_ties_do_not_prune_too_much():
    W = torch.ones(8, 16)
    _, _, stats = problem(8, 16)
    stats.gram = torch.eye(16)
    for pruned in (magnitude(W, method_spec("magnitude")), wanda(W, stats, method_spec("wanda"))):
        assert (pruned == 0).sum() == 64


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_scaling_the_statistics_changes_nothing(scale):
    """H → cH is the same problem: the number of tokens is no hidden strength."""
    W, _, stats = problem()
    scaled = stats * scale
    for method, options in [("wanda", {}), ("ria", {}), ("sparsegpt", {}), ("gptq", {"group_size": 16})]:
        solve = {"wanda": wanda, "ria": ria, "sparsegpt": sparsegpt, "gptq": gptq}[method]
        spec = method_spec(method, **options)
        torch.testing.assert_close(solve(W, scaled, spec), solve(W, stats, spec), rtol=1e-4, atol=1e-5)


def test_data_helps_on_the_data_it_saw():
    """Each calibrated method loses less output energy than its control; otherwise reading data is pointless."""
    W, _, stats = problem(d_out=64, d_in=96, n_tokens=1000)
    lost = {name: stats.output_energy(new - W) for name, new in {
        "magnitude": magnitude(W, method_spec("magnitude")),
        "wanda": wanda(W, stats, method_spec("wanda")),
        "ria": ria(W, stats, method_spec("ria")),
        "sparsegpt": sparsegpt(W, stats, method_spec("sparsegpt")),
        "rtn": rtn(W, method_spec("rtn", bits=3, group_size=32)),
        "gptq": gptq(W, stats, method_spec("gptq", bits=3, group_size=32)),
    }.items()}  # fmt: skip
    (new,), scale = awq([W], stats, method_spec("awq", bits=3, group_size=32))
    lost["awq"] = stats.output_energy(new / scale - W)
    assert lost["sparsegpt"] < lost["wanda"] < lost["magnitude"]
    assert lost["sparsegpt"] < lost["ria"] < lost["magnitude"]
    assert lost["gptq"] < lost["rtn"]
    assert lost["awq"] < lost["rtn"]


@given(
    rows=st.integers(1, 6),
    n=st.integers(1, 9),
    levels=st.integers(1, 4),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_exactly_k_of_each_row_are_lowest_though_scores_tie(rows, n, levels, seed, data):
    k = data.draw(st.integers(0, n))
    score = torch.randint(levels, (rows, n), generator=torch.Generator().manual_seed(seed)).float()
    mask = lowest_per_row(score, k)
    assert mask.dtype == torch.bool and mask.sum(1).tolist() == [k] * rows
    for row, marked in zip(score, mask, strict=True):
        assert row[marked].sort().values.tolist() == row.sort().values[:k].tolist()
