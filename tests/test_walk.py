"""The walk sees what each block reads: no padding, no other block, for every kind of model."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_lib.calibration import CalibrationSet
from cola_lib.errors import DataError, NumericsError, UnknownNameError
from cola_lib.models import ARCHITECTURES, architecture_of
from cola_lib.statistics import InputStatistics, LayerStatistics, collect_statistics, walk
from tests.tiny_models import MODEL_TYPES, tiny_language_model


def rows(lengths=(12, 12, 12, 12, 12), seq_len=12, seed=0, vocabulary=97):
    """Random tokens, with the right part of each row masked."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (len(lengths), seq_len), generator=g)
    mask = torch.arange(seq_len) < torch.tensor(lengths)[:, None]
    n = len(lengths)
    return CalibrationSet(ids.masked_fill(~mask, 0), mask, ((),) * n, ("test",) * n, "test", seed, "pad")


def with_padding(calibration, token):
    """Write something else where nobody should look."""
    return replace(
        calibration, input_ids=torch.where(calibration.attention_mask, calibration.input_ids, torch.tensor(token))
    )


def by_hand(lm, calibration):
    """Statistics from plain hooks on whole forward passes, one row at a time, without padding, in float64."""
    inputs = {}

    def hook(key):
        return lambda module, args: inputs.setdefault(key, []).append(args[0].flatten(0, 1).double())

    handles = [
        block.get_submodule(layer).register_forward_pre_hook(hook((index, group.name, layer)))
        for index, block in enumerate(lm.blocks)
        for group in lm.architecture.groups
        for layer in group.layers
    ]
    for ids, mask in zip(calibration.input_ids, calibration.attention_mask, strict=True):
        lm.model(input_ids=ids[mask][None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {key: torch.cat(parts) for key, parts in inputs.items()}


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("lengths", [(12,) * 5, (12, 7, 1, 9, 3)])
def test_statistics_equal_those_of_plain_forward_passes(model_type, lengths):
    lm = tiny_language_model(model_type)
    calibration = rows(lengths)
    statistics = collect_statistics(lm, calibration, batch_size=2, progress=False)
    expected = by_hand(lm, calibration)
    assert len(statistics) == 3 * len(lm.architecture.groups)
    for (block, group, _), X in expected.items():  # every layer of a group, so sharing is justified
        stats = statistics[block, group]
        assert stats.n_tokens == sum(lengths) == X.shape[0]
        torch.testing.assert_close(stats.gram.double(), X.T @ X, rtol=2e-4, atol=2e-4)
        torch.testing.assert_close(stats.abs_sum.double(), X.abs().sum(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stats.abs_max.double(), X.abs().amax(0), rtol=1e-4, atol=1e-4)


def test_every_linear_layer_of_a_block_is_in_the_table():
    for model_type in MODEL_TYPES:
        lm = tiny_language_model(model_type)
        linear = {n for n, m in lm.blocks[0].named_modules() if isinstance(m, torch.nn.Linear)}
        assert linear == set(lm.architecture.layers), model_type


def test_what_padding_holds_changes_nothing():
    lm = tiny_language_model()
    calibration = rows((12, 7, 5))
    clean = collect_statistics(lm, calibration, progress=False)
    noisy = collect_statistics(lm, with_padding(calibration, 55), progress=False)
    for key in clean:
        torch.testing.assert_close(noisy[key].gram, clean[key].gram)
        torch.testing.assert_close(noisy[key].abs_max, clean[key].abs_max)


@pytest.mark.parametrize("propagate", ["original", "compressed"])
def test_the_next_block_reads_what_propagate_says(propagate):
    """Zero the first block as the walk stands on it: its residual stream then is the embedding alone."""
    calibration = rows()
    untouched = collect_statistics(tiny_language_model(), calibration, progress=False)
    lm = tiny_language_model()
    seen = {}
    for step in walk(lm, calibration, propagate=propagate, progress=False):
        if step.index == 0:
            for layer in lm.architecture.layers:
                step.block.get_submodule(layer).weight.data.zero_()
        seen[step.index] = step.statistics["attn_in"].gram
    same = torch.allclose(seen[1], untouched[1, "attn_in"].gram, rtol=1e-4)
    assert same == (propagate == "original")
    torch.testing.assert_close(seen[0], untouched[0, "attn_in"].gram)
    if propagate == "compressed":
        expected = by_hand(lm, calibration)[1, "attn_in", "self_attn.q_proj"]
        torch.testing.assert_close(seen[1].double(), expected.T @ expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_pass_whose_outputs_nobody_reads_stops_at_the_last_input_and_has_seen_all(model_type):
    lm, calibration = tiny_language_model(model_type), rows((12, 7, 1, 9, 3))
    expected = collect_statistics(lm, calibration, batch_size=2, progress=False)
    last = lm.architecture.groups[-1].layers[-1]
    ran = []
    for block in lm.blocks:
        block.get_submodule(last).register_forward_hook(lambda *_: ran.append(1))
    for step in walk(lm, calibration, propagate="compressed", batch_size=2, progress=False):
        for group, stats in step.statistics.items():
            of_all = expected[step.index, group]
            torch.testing.assert_close(stats.gram, of_all.gram, rtol=1e-5, atol=1e-5)
            assert stats.n_tokens == of_all.n_tokens == calibration.n_tokens
            for layer in next(g for g in lm.architecture.groups if g.name == group).layers:
                W, name = step.block.get_submodule(layer).weight, f"{step.name}.{layer}"
                assert float(stats.energy_of(name, W)) == pytest.approx(float(of_all.energy_of(name, W)), rel=1e-4)
    # Three batches: once in each block but the last, for the next one to read.
    assert len(ran) == 3 * (len(lm.blocks) - 1)


def test_batch_size_is_of_no_consequence():
    lm = tiny_language_model("gemma2")
    one = collect_statistics(lm, rows((12, 3, 8, 12, 12)), batch_size=1, progress=False)
    all_ = collect_statistics(lm, rows((12, 3, 8, 12, 12)), batch_size=5, progress=False)
    for key in one:
        torch.testing.assert_close(one[key].gram, all_[key].gram, rtol=1e-4, atol=1e-4)


def test_statistics_of_parts_add_up_to_those_of_the_whole():
    lm = tiny_language_model()
    whole = rows((12,) * 6)
    parts = [whole.rows(i, i + 2) for i in (0, 2, 4)]
    a, b, c = (collect_statistics(lm, part, progress=False) for part in parts)
    total = a + b + c
    expected = collect_statistics(lm, whole, progress=False)
    doubled = total * 2
    assert total.calibration == tuple(part.fingerprint for part in parts) and total.model == lm.fingerprint
    for key in expected:
        torch.testing.assert_close(total[key].gram, expected[key].gram, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(doubled[key].gram, 2 * total[key].gram)
        assert total[key].n_tokens == expected[key].n_tokens == 72 and doubled[key].n_tokens == 144
        torch.testing.assert_close(total[key].abs_max, expected[key].abs_max, rtol=1e-4, atol=1e-5)
        assert torch.equal(doubled[key].abs_max, total[key].abs_max)


def test_statistics_of_two_models_do_not_add():
    a = collect_statistics(tiny_language_model(), rows(), progress=False)
    b = collect_statistics(tiny_language_model(seed=1), rows(), progress=False)
    with pytest.raises(DataError, match="two models"):
        _ = a + b


def test_a_nan_is_reported_with_the_layer_it_first_reached():
    lm = tiny_language_model()
    lm.blocks[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.down_proj: NaN or infinity in 1 of 48"):
        collect_statistics(lm, rows(), progress=False)


def test_statistics_of_no_token_are_refused():
    with pytest.raises(DataError, match=r"model\.x: the calibration set has 0 tokens"):
        InputStatistics.empty(8).check("model.x")


def test_the_walk_leaves_no_trace():
    lm = tiny_language_model()
    before = lm.model(input_ids=rows().input_ids).logits
    for step in walk(lm, rows(), progress=False):
        if step.index == 1:
            break
    assert not any("forward" in block.__dict__ for block in lm.blocks)
    assert not any(m._forward_pre_hooks for m in lm.blocks.modules())
    torch.testing.assert_close(lm.model(input_ids=rows().input_ids).logits, before)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UnknownNameError, match="nearest: compressed"):
        next(walk(tiny_language_model(), rows(), propagate="compresed", progress=False))
    with pytest.raises(UnknownNameError, match=r"unknown model type 'lama'; nearest: .*llama.*architectures\.py"):
        architecture_of(SimpleNamespace(model_type="lama"))
    assert set(ARCHITECTURES) >= {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"}


def test_the_inverse_factor_is_the_cholesky_factor_of_the_inverse():
    X = torch.randn(80, 24, generator=torch.Generator().manual_seed(0))
    stats = InputStatistics.empty(24)
    stats.update(X)
    H = (2 * X.double().T @ X.double()) / 80
    for act_order in (False, True):
        U, order = stats.inverse_factor(0.05, "layer", act_order=act_order)
        damped = H[order][:, order] + 0.05 * H.diagonal().mean() * torch.eye(24)
        expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
        torch.testing.assert_close(U.double(), expected, rtol=1e-4, atol=1e-5)
        assert act_order == (not torch.equal(order, torch.arange(24)))


@pytest.mark.parametrize("d_in", [1, 63, 64, 65, 385, 400])
@pytest.mark.parametrize("weighted", [False, True])
def test_gram_matrices_are_whole_though_half_is_computed(d_in, weighted):
    generator = torch.Generator().manual_seed(d_in)
    chunks = [torch.randn(n, d_in, generator=generator) for n in (7, 1, 30)]
    weights = [torch.rand(len(X), generator=generator) if weighted else None for X in chunks]
    stats = InputStatistics.empty(d_in)
    for X, w in zip(chunks, weights, strict=True):
        stats.update(X, w)
    expected = sum(
        X.double().T @ (X.double() if w is None else X.double() * w.double()[:, None])
        for X, w in zip(chunks, weights, strict=True)
    )
    if not weighted:  # weights stand on one side of the product, so that its two halves are rounded differently
        assert torch.equal(stats.gram, stats.gram.T)
    torch.testing.assert_close(stats.gram, expected.float(), rtol=1e-5, atol=1e-5)


def test_the_factor_follows_the_tokens_added_since():
    X = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    grown, whole = InputStatistics.empty(8), InputStatistics.empty(8)
    grown.update(X[:30])
    early, _ = grown.inverse_factor(0.01, "layer")
    grown.update(X[30:])
    whole.update(X)
    late, _ = grown.inverse_factor(0.01, "layer")
    assert not torch.allclose(early, late)
    torch.testing.assert_close(late, whole.inverse_factor(0.01, "layer")[0])


def test_a_singular_hessian_is_an_error_and_not_the_identity():
    stats = InputStatistics.empty(8)
    stats.update(torch.ones(4, 8))
    stats.gram[0, 1] = stats.gram[1, 0] = 100.0  # no Gram matrix at all: not positive definite
    with pytest.raises(NumericsError, match=r"model\.x: its 8 x 8 Gram matrix of 4 tokens is singular"):
        stats.inverse_factor(0.01, "model.x")


def test_energy_from_the_weight_s_gram_matrix_is_the_output_energy():
    generator = torch.Generator().manual_seed(0)
    # Small where the inputs are large, as an error that a solver has minimised is: the hard case for rounding.
    spread = torch.logspace(-2, 1.5, 48)
    X = torch.randn(200, 48, generator=generator) * spread
    W = torch.randn(32, 48, generator=generator) / spread
    stats = InputStatistics.empty(48)
    stats.update(X)
    exact = float((X.double() @ W.double().T).square().sum())
    assert stats.energy_under(W.T @ W) == pytest.approx(exact, rel=1e-5)
    assert stats.output_energy(W) == pytest.approx(exact, rel=1e-5)


def test_a_layer_s_energy_is_kept_until_more_tokens_come():
    stats = InputStatistics.empty(4)
    stats.update(torch.eye(4))
    assert stats.energy_of("a", torch.eye(4)) == pytest.approx(4)
    assert stats.energy_of("a", 2 * torch.eye(4)) == pytest.approx(4)  # kept by name
    assert stats.energy_of("b", 2 * torch.eye(4)) == pytest.approx(16)
    stats.update(torch.eye(4))
    assert stats.energy_of("a", torch.eye(4)) == pytest.approx(8)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_energies_that_the_walk_saw_are_those_of_the_gram_matrices(model_type):
    lm, calibration = tiny_language_model(model_type), rows((12, 3, 8, 12, 12))
    weighted = replace(calibration, weights=(0.5, 2.0, 1.0, 3.0, 0.25))
    found = collect_statistics(lm, weighted, batch_size=2, progress=False)
    both = found + 0.5 * collect_statistics(lm, calibration, batch_size=2, progress=False)
    for index in range(len(lm.blocks)):
        for group in lm.architecture.groups:
            for layer in group.layers:
                W, name = lm.blocks[index].get_submodule(layer).weight, f"{lm.block_name(index)}.{layer}"
                for stats in (found[index, group.name], both[index, group.name]):
                    exact = stats.output_energy(W)
                    # Another weight would be taken if the energy were not known.
                    assert stats.energy_of(name, torch.zeros_like(W)) == pytest.approx(exact, rel=1e-4), name


def test_energies_that_are_not_of_all_tokens_are_not_taken():
    stats = InputStatistics.empty(4)
    stats.update(torch.eye(4))
    stats.watch_outputs("a", 3 * torch.eye(4))
    assert stats.energy_of("a", torch.eye(4)) == pytest.approx(36)
    assert (stats + stats).energy_of("a", torch.eye(4)) == pytest.approx(72)
    stats.update(torch.eye(4))
    assert stats.energy_of("a", torch.eye(4)) == pytest.approx(8)
    unwatched = InputStatistics.empty(4)
    unwatched.update(torch.eye(4))
    assert (unwatched + unwatched).energy_of("a", torch.eye(4)) == pytest.approx(8)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0, 3.0, 0.25)])
def test_a_walk_without_gram_matrices_knows_the_same_of_each_channel(weights):
    lm, calibration = tiny_language_model(), replace(rows((12, 3, 8, 12, 12)), weights=weights)
    whole = collect_statistics(lm, calibration, batch_size=2, progress=False)
    for step in walk(lm, calibration, gram=False, batch_size=2, progress=False):
        for group, stats in step.statistics.items():
            assert not hasattr(stats, "gram")
            of_all = whole[step.index, group]
            torch.testing.assert_close(stats.input_norm(), of_all.input_norm())
            torch.testing.assert_close(stats.abs_mean(), of_all.abs_mean())
            torch.testing.assert_close(stats.channel_max("a"), of_all.channel_max("a"))
            assert (stats.n_tokens, stats.d_in) == (of_all.n_tokens, of_all.d_in)


def test_weights_of_rows_weigh_their_statistics():
    lm, calibration = tiny_language_model(), rows((12, 3, 8, 12, 12))
    weights = (0.5, 2.0, 1.0, 3.0, 0.25)
    weighted = collect_statistics(lm, replace(calibration, weights=weights), batch_size=2, progress=False)
    parts = [collect_statistics(lm, calibration.rows(i, i + 1), progress=False) * w for i, w in enumerate(weights)]
    expected = sum(parts[1:], parts[0])
    for key, stats in weighted.items():
        torch.testing.assert_close(stats.gram, expected[key].gram, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stats.abs_sum, expected[key].abs_sum, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(stats.abs_max, expected[key].abs_max, rtol=1e-4, atol=1e-4)
        assert stats.n_tokens == pytest.approx(expected[key].n_tokens)
    assert weighted.n_tokens == pytest.approx(0.5 * 12 + 2 * 3 + 8 + 3 * 12 + 0.25 * 12)


# ---------------------------------------------------------------------------------------- the largest magnitudes


@settings(max_examples=30, deadline=None)
@given(
    n_tokens=st.integers(1, 20),
    cut=st.integers(0, 20),
    seed=st.integers(0, 99),
    factors=st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)),
)
def test_maxima_add_as_maxima_whatever_the_weights_and_the_parts(n_tokens, cut, seed, factors):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n_tokens, 5, generator=g)
    weights = torch.rand(n_tokens, generator=g) * (torch.rand(n_tokens, generator=g) < 0.7)
    parts = []
    for start, stop in ((0, min(cut, n_tokens)), (min(cut, n_tokens), n_tokens)):  # one of them may be empty
        stats = InputStatistics.empty(5)
        stats.update(X[start:stop], weights[start:stop])
        parts.append(stats)
    counted = X[weights > 0]
    expected = counted.abs().amax(0) if len(counted) else torch.zeros(5)
    assert torch.equal((factors[0] * parts[0] + parts[1] * factors[1]).abs_max, expected)
    assert torch.equal((parts[0] + parts[1]).channel_max("layer"), expected)
    nothing = parts[0] * 0
    assert torch.equal(nothing.abs_max, torch.zeros(5)) and nothing.n_tokens == 0


def test_statistics_without_maxima_say_so():
    lm = tiny_language_model()
    statistics = collect_statistics(lm, rows(), progress=False)
    old = LayerStatistics(
        {key: InputStatistics(each.gram, each.abs_sum, each.n_tokens) for key, each in statistics.items()},
        statistics.model,
        statistics.calibration,
    )
    for unknown in (old, old + statistics, statistics + old, 2 * old, statistics * -1.0):
        assert all(each.abs_max is None for each in unknown.values())
    with pytest.raises(DataError, match=r"model\.x: these statistics do not hold .* collect them again"):
        old[0, "attn_in"].channel_max("model.x")
    old[0, "attn_in"].update(torch.ones(1, 32))
    assert old[0, "attn_in"].abs_max is None  # what came before is still not known
