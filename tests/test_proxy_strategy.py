"""The strategy that asks the compression itself, against statistics and prunings that are computed in full."""

from __future__ import annotations

import pytest
import torch

from cola_lib.compress import compress, method_spec, restored
from cola_lib.curation import OBJECTIVES, Pool, Proxy, Target, deployment, strategy
from cola_lib.curation.proxy import EnergyObjective, GramObjective, WandaObjective
from cola_lib.errors import SpecError
from cola_lib.statistics import collect_statistics
from tests.test_curation import SEQ_LEN, WORDS, aim, lm, pool, select, texts  # noqa: F401 - lm and pool are fixtures


def chosen(pool, lm, target, n=8, seed=0, **options):  # noqa: F811
    generator = torch.Generator().manual_seed(seed)
    return Proxy(**options).select(pool, lm, n_samples=n, seq_len=SEQ_LEN, target=target, generator=generator)


def only(capability):
    return Target(capability, {capability: texts(capability, 8, seed=5)}, {capability: 1.0})


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_finds_the_rows_of_the_targets_kind(pool, lm, objective):  # noqa: F811
    for capability in ("math", "code"):
        found = chosen(pool, lm, only(capability), objective=objective, stride=1)
        assert found.sources.count(capability) >= 5, (objective, capability, found.sources)


def test_the_energy_loss_is_a_divergence_and_zero_at_the_target():
    g = torch.Generator().manual_seed(0)
    own, columns = [torch.rand(5, 7, generator=g)], [torch.rand(7, generator=g)]
    targets = [own[0][[2, 4]] * 3.0]
    found = EnergyObjective(own, targets, columns).losses(range(5))
    assert found.shape == (5, 2) and (found > -1e-6).all()
    assert found[2, 0].abs() < 1e-6 and found[4, 1].abs() < 1e-6 and found[0].min() > 1e-3
    p, q = (v / v.sum() for v in (targets[0][0] * columns[0], own[0][1] * columns[0]))
    torch.testing.assert_close(found[1, 0], (p * (p / q).log()).sum(), rtol=1e-4, atol=1e-6)


def test_the_wanda_loss_is_what_pruning_costs():
    g = torch.Generator().manual_seed(0)
    W = torch.randn(6, 8, generator=g)
    own, targets = [torch.rand(3, 8, generator=g)], [torch.rand(2, 8, generator=g)]
    found = WandaObjective(own, targets, [W.square()]).losses([0, 2])
    for i, row in enumerate((0, 2)):
        score = W.abs() * own[0][row].sqrt()
        pruned = score <= score.sort(dim=1).values[:, 3:4]
        for t in range(2):
            energy = W.square() * targets[0][t]
            torch.testing.assert_close(found[i, t], (energy * pruned).sum() / energy.sum(), rtol=1e-4, atol=1e-6)


def test_sums_grow_with_the_set():
    own = [torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])]
    objective = GramObjective(own, [torch.tensor([[1.0, 1.0]])])
    torch.testing.assert_close(objective.losses([0, 1, 2])[:, 0], torch.tensor([1 - 0.5**0.5, 1 - 0.5**0.5, 0.0]))
    objective.add(0)
    torch.testing.assert_close(objective.losses([1])[0, 0], torch.tensor(0.0), atol=1e-6, rtol=0)


def target_error(lm, calibration, target):  # noqa: F811
    """Mean relative error on the target's inputs of the model pruned with a set, from whole Gram matrices."""
    rows = target.pool.rows(lm.tokenizer, SEQ_LEN).tokens
    of_target = collect_statistics(lm, rows, progress=False)
    statistics = collect_statistics(lm, calibration, progress=False)
    with restored(lm):
        spec = method_spec("wanda", sparsity=0.5)
        report = compress(lm, spec, statistics=statistics, targets={"t": of_target}, progress=False)
    errors = [layer.target_error["t"] for layer in report.layers]
    return sum(errors) / len(errors)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_compression_errs_less_on_the_target_than_with_random_rows(pool, lm, objective):  # noqa: F811
    target = only("code")
    ours = target_error(lm, chosen(pool, lm, target, objective=objective, stride=1), target)
    draws = [target_error(lm, select("random", pool, lm, n=8, seed=seed), target) for seed in range(4)]
    assert ours < sum(draws) / 4


def test_sources_are_mixed_in_proportion(pool, lm):  # noqa: F811
    found = chosen(pool, lm, only("code"), n=10, unit="sources", stride=1)
    assert found.sources.count("code") >= 6
    even = chosen(pool, lm, aim(), n=10, unit="sources", stride=1)
    assert even.sources.count("web") <= 3


def test_weights_bring_the_set_nearer_and_stay_positive(pool, lm):  # noqa: F811
    target = only("math")
    plain = chosen(pool, lm, target, stride=1)
    weighted = chosen(pool, lm, target, reweigh=True, stride=1)
    assert weighted.sample_ids == plain.sample_ids and min(weighted.weights) > 0
    assert sum(weighted.weights) == pytest.approx(8, rel=1e-4)
    assert max(weighted.weights) > 1.05
    objective, weights = Proxy(stride=1)._objective(brief(pool, lm, target), pool.rows(lm.tokenizer, SEQ_LEN))
    ids = [i for (i,) in pool.rows(lm.tokenizer, SEQ_LEN).tokens.sample_ids]
    rows = {tuple(t.tolist()): i for i, t in enumerate(pool.rows(lm.tokenizer, SEQ_LEN).tokens.input_ids)}
    at = [rows[tuple(t.tolist())] for t in plain.input_ids]
    assert [ids[i] for i in at] == [i for (i,) in plain.sample_ids]

    def loss(w):
        places = range(len(objective.own))
        return sum(float(objective.loss(p, (w @ objective.own[p][at])[None]) @ weights) for p in places)

    assert loss(torch.tensor(weighted.weights)) < loss(torch.ones(8))


def brief(pool, lm, target):  # noqa: F811
    from cola_lib.curation import Brief

    return Brief(pool, lm, 8, SEQ_LEN, target, torch.Generator().manual_seed(0), "proxy")


def test_the_worst_capability_is_served_better_than_by_the_mean(lm):  # noqa: F811
    pool = Pool({source: texts(source, 12) for source in WORDS})  # noqa: F811
    parts = {name: texts(name, 5, seed=9) for name in ("math", "code", "web")}
    target = deployment(parts, "math", off_target=0.3)
    found = {}
    for across in ("mean", "worst"):
        picked = chosen(pool, lm, target, across=across, stride=1)
        objective, weights = Proxy(stride=1)._objective(brief(pool, lm, target), pool.rows(lm.tokenizer, SEQ_LEN))
        rows = {tuple(t.tolist()): i for i, t in enumerate(pool.rows(lm.tokenizer, SEQ_LEN).tokens.input_ids)}
        at = [rows[tuple(t.tolist())] for t in picked.input_ids]
        for i in at[:-1]:
            objective.add(i)
        found[across] = (objective.losses(at[-1:]) * weights).amax()
    assert found["worst"] <= found["mean"] + 1e-6


def test_a_prior_holds_the_set_near_to_the_pool(pool, lm):  # noqa: F811
    free, held = (chosen(pool, lm, only("code"), prior=p, n=9, stride=1) for p in (0.0, 0.9))
    assert held.sources.count("code") < free.sources.count("code")


def test_options_that_do_not_fit_are_refused(pool, lm):  # noqa: F811
    for options, message in (
        ({"objective": "hessian"}, "objective is 'hessian'"),
        ({"across": "best"}, "across is 'best'"),
        ({"prior": 1.0}, "prior must be from 0 to below 1"),
        ({"stride": 0}, "stride must be at least 1"),
    ):
        with pytest.raises(SpecError, match=message):
            strategy("proxy", **options)
    with pytest.raises(SpecError, match="found by gradients"):
        chosen(pool, lm, aim(), objective="wanda", reweigh=True)
