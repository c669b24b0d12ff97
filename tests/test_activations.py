"""What texts do inside a model: pooled outputs against the model's own, measures against closed forms and oracles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity

from cola_lib.activations import (
    Activations,
    coverage,
    mmd,
    pooled_activations,
    set_features,
    target_features,
    vendi_score,
)
from cola_lib.activations.features import collect_activations
from cola_lib.activations.measures import (
    Spectrum,
    channel_kurtosis,
    effective_rank,
    eigen_spectrum,
    frechet_distance,
    outlier_channels,
    outlier_overlap,
    subspace_share,
)
from cola_lib.activations.pooled import PooledActivations
from cola_lib.calibration import CalibrationSet
from cola_lib.errors import DataError, NumericsError, SpecError, UnknownNameError
from cola_lib.statistics import InputStatistics, LayerStatistics
from tests.tiny_models import MODEL_TYPES, tiny_language_model

LENGTHS = (12, 7, 1, 9, 12)


def rows(lengths=LENGTHS, seq_len=12, seed=0, vocabulary=97):
    """Random tokens, with the right part of each row masked."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (len(lengths), seq_len), generator=g)
    mask = torch.arange(seq_len) < torch.tensor(lengths)[:, None]
    names = tuple((f"s{seed}-{i}",) for i in range(len(lengths)))
    return CalibrationSet(ids.masked_fill(~mask, 0), mask, names, ("test",) * len(lengths), "test", seed, "pad")


def normal(n, d, seed=0, scale=None):
    """Vectors or tokens in float64, with channels of different size where a scale is given."""
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return X if scale is None else X * scale


def uneven_gram(d=24, seed=0):
    """Gram matrix with a falling spectrum and some large channels."""
    X = normal(200, d, seed, torch.logspace(0, -1.5, d, dtype=torch.float64))
    return X.T @ X


# Pooled activations


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_pooled_outputs_are_means_of_the_hidden_states_that_the_model_itself_returns(model_type):
    lm, calibration = tiny_language_model(model_type), rows()
    pooled = pooled_activations(lm, calibration, batch_tokens=24, progress=False)
    assert pooled.values.shape == (5, 3, 32) and pooled.values.dtype == torch.float32
    for row, (ids, mask) in enumerate(zip(calibration.input_ids, calibration.attention_mask, strict=True)):
        hidden = lm.model(input_ids=ids[mask][None], output_hidden_states=True, use_cache=False).hidden_states
        expected = torch.stack([state[0].double().mean(0) for state in hidden[1:-1]])  # the last is normed
        torch.testing.assert_close(pooled.values[row, :-1].double(), expected, rtol=1e-4, atol=1e-5)


def test_the_last_block_is_taken_before_the_final_norm():
    lm, calibration = tiny_language_model(), rows((12, 12))
    pooled = pooled_activations(lm, calibration, progress=False)
    seen = []
    handle = lm.decoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    final = lm.model(input_ids=calibration.input_ids, output_hidden_states=True).hidden_states[-1]
    handle.remove()
    torch.testing.assert_close(pooled.values[:, -1], seen[0].mean(1), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(pooled.values[:, -1], final.mean(1), rtol=0.1)


def test_what_padding_holds_and_how_much_there_is_changes_nothing():
    lm, calibration = tiny_language_model(), rows()
    clean = pooled_activations(lm, calibration, progress=False)
    other = torch.where(calibration.attention_mask, calibration.input_ids, torch.tensor(55))
    noisy = pooled_activations(lm, replace(calibration, input_ids=other), progress=False)
    torch.testing.assert_close(noisy.values, clean.values)
    longer = replace(
        calibration,
        input_ids=torch.nn.functional.pad(calibration.input_ids, (0, 6), value=9),
        attention_mask=torch.nn.functional.pad(calibration.attention_mask, (0, 6), value=False),
    )
    torch.testing.assert_close(
        pooled_activations(lm, longer, progress=False).values, clean.values, rtol=1e-4, atol=1e-5
    )


def test_a_nan_that_only_padding_sees_is_nobodys_concern():
    lm, calibration = tiny_language_model(), rows((12, 7))
    clean = pooled_activations(lm, calibration, progress=False)
    handle = lm.blocks[2].register_forward_hook(
        lambda _, __, output: output.masked_fill(~calibration.attention_mask[..., None], float("nan"))
    )
    broken = pooled_activations(lm, calibration, progress=False)
    handle.remove()
    assert torch.equal(broken.values, clean.values)


def test_blocks_that_return_tuples_are_read_alike(monkeypatch):
    lm, calibration = tiny_language_model(), rows()
    plain = pooled_activations(lm, calibration, progress=False)
    # Unpacked again on the way to the next block, as the models of older transformers did.
    for block in lm.blocks:
        forward = block.forward
        monkeypatch.setattr(
            block, "forward", lambda h, *a, _f=forward, **k: (_f(h[0] if isinstance(h, tuple) else h, *a, **k), None)
        )
    monkeypatch.setattr(lm.decoder.norm, "forward", lambda h: h[0])
    assert torch.equal(pooled_activations(lm, calibration, progress=False).values, plain.values)


def test_batch_size_is_of_no_consequence_and_the_same_run_gives_the_same_numbers():
    lm, calibration = tiny_language_model("gemma2"), rows()
    one, again, all_ = (pooled_activations(lm, calibration, batch_tokens=b, progress=False) for b in (1, 1, 60))
    torch.testing.assert_close(one.values, all_.values, rtol=1e-4, atol=1e-5)
    assert torch.equal(one.values, again.values)


def test_pooling_is_in_float32_for_a_bfloat16_model():
    lm, calibration = tiny_language_model(), rows((12,) * 4)
    exact = pooled_activations(lm, calibration, progress=False).values
    lm.model.to(torch.bfloat16)
    pooled = pooled_activations(lm, calibration, progress=False)
    hidden = lm.model(input_ids=calibration.input_ids, output_hidden_states=True, use_cache=False).hidden_states
    assert pooled.values.dtype == torch.float32
    torch.testing.assert_close(pooled.values[:, 0], hidden[1].float().mean(1))
    assert not torch.equal(pooled.values[:, 0], hidden[1].mean(1).float())  # a mean taken in bfloat16 is coarser
    assert (pooled.values - exact).norm() < 0.05 * exact.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_pooled_activations_and_features():
    lm, calibration = tiny_language_model(), rows()
    here = collect_activations(lm, calibration, progress=False)
    lm.model.to("cuda")
    there = collect_activations(lm, calibration, progress=False)
    assert there.pooled.values.device.type == "cpu" and there.statistics[0, "attn_in"].gram.is_cuda
    torch.testing.assert_close(there.pooled.values, here.pooled.values, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(set_features(there)["value"], set_features(here)["value"], rtol=1e-3)
    compared = target_features(here, {"gpu": there}).set_index("feature")["value"]
    assert compared["coverage"].min() > 1 - 1e-6 and compared["frechet_distance"] < 1e-6


def test_pooled_activations_know_where_they_come_from_and_leave_no_hook():
    lm, calibration = tiny_language_model(), rows()
    pooled = pooled_activations(lm, calibration, progress=False)
    assert (pooled.model, pooled.calibration) == (lm.fingerprint, calibration.fingerprint)
    assert pooled.sample_ids == calibration.sample_ids
    assert (pooled.n_samples, pooled.n_layers, pooled.d_model) == (5, 3, 32)
    assert not any(block._forward_hooks for block in lm.blocks)


def test_a_nan_is_reported_with_the_block_it_first_reached_and_no_hook_stays():
    lm = tiny_language_model()
    lm.blocks[1].mlp.down_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"model\.layers\.1: NaN or infinity in its output for row 0"):
        pooled_activations(lm, rows(), progress=False)
    assert not any(block._forward_hooks for block in lm.blocks)


def test_a_nan_names_the_row_of_the_whole_set_that_it_is_in():
    lm, calibration = tiny_language_model(), rows()
    token = int(calibration.input_ids[3, 0])
    calibration.input_ids[calibration.input_ids == token] = 3
    calibration.input_ids[3, 0] = token
    lm.decoder.embed_tokens.weight.data[token] = float("inf")
    with pytest.raises(NumericsError, match=r"model\.layers\.0: .* row 3;"):
        pooled_activations(lm, calibration, batch_tokens=24, progress=False)


def test_an_empty_row_and_an_impossible_batch_are_refused():
    calibration = rows()
    with pytest.raises(SpecError, match="batch_tokens must be at least 1, and is 0"):
        pooled_activations(tiny_language_model(), calibration, batch_tokens=0, progress=False)
    calibration.attention_mask[3] = False  # after the set's own check
    with pytest.raises(DataError, match="'test': row 3 has no token"):
        pooled_activations(tiny_language_model(), calibration, progress=False)


def pooled_of(values):
    return PooledActivations(values.float(), "model", "set", (("x",),) * len(values))


def test_vectors_give_each_layer_the_same_weight_and_each_row_unit_norm():
    values = normal(4, 15).reshape(4, 3, 5)
    pooled = pooled_of(values)
    vectors = pooled.vectors().double()
    assert vectors.shape == (4, 15)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4, dtype=torch.float64))
    by_layer = [torch.from_numpy(cosine_similarity(values[:, layer])) for layer in range(3)]
    torch.testing.assert_close(vectors @ vectors.T, sum(by_layer) / 3, rtol=1e-5, atol=1e-6)
    grown = pooled_of(values * torch.tensor([1.0, 10.0, 1000.0])[:, None])
    torch.testing.assert_close(grown.vectors().double(), vectors)
    some = pooled.vectors([2, 0]).double()
    torch.testing.assert_close(some @ some.T, (by_layer[0] + by_layer[2]) / 2, rtol=1e-5, atol=1e-6)


def test_layers_that_do_not_exist_and_vectors_without_direction_are_refused():
    values = normal(4, 15).reshape(4, 3, 5)
    for layers in ([3], [-1], [1, 1], []):
        with pytest.raises(SpecError, match="from 0 to 2"):
            pooled_of(values).vectors(layers)
    values[2, 1] = 0
    with pytest.raises(NumericsError, match="block 1: .* row 2 is zero"):
        pooled_of(values).vectors([0, 1])
    with pytest.raises(DataError, match="shape"):
        pooled_of(values[:, 0])
    with pytest.raises(DataError, match="4 rows have 3 lists"):
        PooledActivations(values.float(), "model", "set", (("x",),) * 3)


# Measures of vectors


def test_coverage_is_the_mean_cosine_to_the_nearest():
    target, calibration = normal(7, 5, 0), normal(9, 5, 1)
    expected = cosine_similarity(target, calibration).max(axis=1).mean()
    assert coverage(target, calibration) == pytest.approx(expected, rel=1e-12)
    assert coverage(target * 7, calibration * 0.1) == pytest.approx(expected, rel=1e-12)
    assert coverage(target, calibration) != pytest.approx(coverage(calibration, target), rel=1e-3)


def test_coverage_of_a_set_by_itself_is_one_and_by_what_is_orthogonal_zero():
    X = normal(6, 8)
    assert coverage(X, X.flip(0)) == pytest.approx(1, abs=1e-12)
    eye = torch.eye(6)
    assert coverage(eye[:2], eye[2:]) == 0
    assert coverage(eye[:4], eye[2:]) == 0.5
    assert coverage(X, torch.cat([normal(4, 8, 1), normal(4, 8, 2)])) >= coverage(X, normal(4, 8, 1))


def frechet_by_hand(a, b, n_components):
    """The formula as printed, by a matrix square root, in coordinates from another library."""
    pca = PCA(n_components).fit(np.concatenate([a, b]))
    a, b = pca.transform(a), pca.transform(b)
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)


@pytest.mark.parametrize("d", [12, 200])  # fewer and more dimensions than vectors
def test_the_frechet_distance_equals_that_of_a_matrix_square_root(d):
    a, b = normal(40, d, 0), normal(30, d, 1) * 1.5 + 0.2
    expected = frechet_by_hand(a.numpy(), b.numpy(), 6)
    assert frechet_distance(a, b, 6) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(b, a, 6) == pytest.approx(expected, rel=1e-8)


def test_the_frechet_distance_has_its_closed_forms():
    a = normal(50, 6)
    shift = torch.tensor([3.0, -1, 0, 2, 0, 0.5], dtype=torch.float64)
    assert frechet_distance(a, a) < 1e-12
    assert frechet_distance(a, a + shift) == pytest.approx(float(shift.square().sum()), rel=1e-10)
    centred = a - a.mean(0)
    scaled = (1 - 3) ** 2 * float(torch.cov(a.T).trace())  # commuting covariances: Σ(σ_a − σ_b)²
    assert frechet_distance(centred, 3 * centred) == pytest.approx(scaled, rel=1e-10)
    rotation = torch.linalg.qr(normal(6, 6, 1)).Q
    b = normal(30, 6, 2) + 1
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(2 * a, 2 * b) == pytest.approx(4 * frechet_distance(a, b), rel=1e-9)


def test_components_beyond_those_that_exist_change_nothing():
    a, b = normal(4, 50, 0), normal(3, 50, 1) + 0.3
    assert frechet_distance(a, b, 6) == pytest.approx(frechet_distance(a, b, 1000), rel=1e-9)
    assert frechet_distance(a, b, 2) < frechet_distance(a, b, 6)


def mmd_by_hand(a, b):
    pooled = np.concatenate([a, b])
    sigma = np.median(scipy.spatial.distance.pdist(pooled))

    def k(x, y):
        return math.exp(-((x - y) ** 2).sum() / (2 * sigma**2))

    def within(X):
        pairs = [(i, j) for i in range(len(X)) for j in range(len(X)) if i != j]
        return sum(k(X[i], X[j]) for i, j in pairs) / len(pairs)

    return within(a) + within(b) - 2 * np.mean([k(x, y) for x in a for y in b])


def test_mmd_equals_its_double_sums():
    a, b = normal(9, 5, 0), normal(6, 5, 1) + 0.5
    expected = mmd_by_hand(a.numpy(), b.numpy())
    assert mmd(a, b) == pytest.approx(expected, rel=1e-10) and mmd(b, a) == pytest.approx(expected, rel=1e-10)
    assert mmd(3 * a, 3 * b) == pytest.approx(expected, rel=1e-10)  # the bandwidth follows


def test_mmd_is_zero_on_average_for_one_distribution_and_larger_for_two():
    same = [mmd(normal(60, 8, 2 * s), normal(60, 8, 2 * s + 1)) for s in range(30)]
    other = [mmd(normal(60, 8, 2 * s), normal(60, 8, 2 * s + 1) + 0.5) for s in range(30)]
    error = np.std(same, ddof=1) / math.sqrt(30)
    assert abs(np.mean(same)) < 3 * error and min(same) < 0 < max(same)  # unbiased: either sign
    assert min(other) > max(same)


def test_mmd_without_a_bandwidth_is_refused():
    x = normal(1, 300)
    with pytest.raises(DataError, match="more than half of the pairs"):
        mmd(x.repeat(5, 1), torch.cat([x.repeat(4, 1), normal(1, 300, 1)]))
    nearly = x * (1 + 1e-8 * torch.arange(10, dtype=torch.float64))[:, None]  # equal but for float32's rounding
    with pytest.raises(DataError, match="more than half of the pairs"):
        mmd(nearly[:5], nearly[5:])
    a, b = x.repeat(5, 1), normal(5, 300, 1)  # a fifth of the pairs coincide, up to rounding
    assert mmd(a, b) == pytest.approx(mmd_by_hand(a.numpy(), b.numpy()), rel=1e-9)


def test_the_vendi_score_counts_different_texts():
    x = normal(1, 30)
    assert vendi_score(x.repeat(7, 1)) == pytest.approx(1, abs=1e-9)
    assert vendi_score(torch.eye(7)) == pytest.approx(7, rel=1e-12)
    assert vendi_score(torch.eye(7, 40) * torch.arange(1, 8)[:, None]) == pytest.approx(7, rel=1e-12)
    groups = torch.eye(3)[[0, 0, 0, 1, 1, 2]]
    p = np.array([3, 2, 1]) / 6
    assert vendi_score(groups) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)


@pytest.mark.parametrize("shape", [(9, 20), (20, 9)])
def test_the_vendi_score_is_that_of_the_whole_cosine_kernel(shape):
    X = normal(*shape) + 0.3
    eigenvalues = np.linalg.eigvalsh(cosine_similarity(X) / shape[0])
    positive = eigenvalues[eigenvalues > 1e-14]
    assert vendi_score(X) == pytest.approx(np.exp(-(positive * np.log(positive)).sum()), rel=1e-9)


def test_vectors_that_cannot_be_measured_are_refused():
    good = normal(4, 5)
    bad = good.clone()
    bad[1, 1] = float("nan")
    zero = good.clone()
    zero[3] = 0
    for measure in (coverage, frechet_distance, mmd):
        with pytest.raises(DataError, match="width 5 .* width 6"):
            measure(good, normal(4, 6))
        with pytest.raises(DataError, match="NaN"):
            measure(good, bad)
        with pytest.raises(DataError, match="needed"):
            measure(good[:0], good)
    for measure in (frechet_distance, mmd):
        with pytest.raises(DataError, match="at least 2 vectors"):
            measure(good, good[:1])
    with pytest.raises(DataError, match="target: vector 3 is zero"):
        coverage(zero, good)
    with pytest.raises(DataError, match="vector 3 is zero"):
        vendi_score(zero)
    with pytest.raises(SpecError, match="n_components must be at least 1"):
        frechet_distance(good, good, 0)


# Measures of Gram matrices


def test_the_effective_rank_has_its_closed_forms():
    assert effective_rank(torch.eye(9)) == pytest.approx(9, rel=1e-12)
    x = normal(1, 9)
    assert effective_rank(x.T @ x) == pytest.approx(1, abs=1e-9)
    assert effective_rank(torch.diag(torch.tensor([2.0, 2, 2, 0, 0]))) == pytest.approx(3, rel=1e-12)


def test_the_effective_rank_comes_from_the_squared_singular_values_of_the_inputs():
    X = normal(30, 12, 0, torch.logspace(0, -2, 12, dtype=torch.float64)) + 0.1
    p = scipy.linalg.svdvals(X.numpy()) ** 2
    p = p / p.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    assert effective_rank(X.T @ X) == pytest.approx(expected, rel=1e-9)
    assert effective_rank((X.T @ X).float()) == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(eigen_spectrum(X.T @ X, 5), p[:5], rtol=1e-9)


def test_the_eigen_spectrum_is_descending_and_sums_to_one():
    spectrum = eigen_spectrum(uneven_gram(24), 64)
    assert spectrum.shape == (24,) and spectrum.dtype == torch.float64
    assert (spectrum.diff() <= 0).all() and float(spectrum.sum()) == pytest.approx(1, rel=1e-12)
    expected = torch.tensor([3, 2, 1], dtype=torch.float64) / 6
    torch.testing.assert_close(eigen_spectrum(torch.diag(torch.tensor([1.0, 3, 2]))), expected)


def test_the_subspace_share_of_a_set_in_itself_is_its_leading_eigenvalue_share():
    gram = uneven_gram()
    for k in (1, 5, 24):
        expected = float(eigen_spectrum(gram, k).sum())
        assert subspace_share(gram, gram, k=k) == pytest.approx(expected, rel=1e-9)
    assert subspace_share(gram, gram, 1.0) == pytest.approx(1, rel=1e-12)
    assert subspace_share(gram, uneven_gram(seed=1), k=5) < float(eigen_spectrum(uneven_gram(seed=1), 5).sum())


def test_the_subspace_share_is_the_energy_of_projected_inputs():
    X, Y = normal(50, 10, 0), normal(40, 10, 1, torch.linspace(1, 3, 10, dtype=torch.float64))
    V = scipy.linalg.svd(X.numpy())[2][:3].T
    expected = ((Y.numpy() @ V) ** 2).sum() / (Y.numpy() ** 2).sum()
    assert subspace_share(X.T @ X, Y.T @ Y, k=3) == pytest.approx(expected, rel=1e-9)
    assert subspace_share(X.T @ X, Y.T @ Y, 0.21) == pytest.approx(expected, rel=1e-9)  # rounded up
    e = torch.eye(4)
    assert subspace_share(torch.diag(torch.tensor([4.0, 3, 0, 0])), torch.outer(e[2], e[2]), k=2) == 0


def test_a_share_counts_as_it_is_written():
    """0.07 * 100 is above 7 in binary, and must not become 8."""
    assert len(outlier_channels(torch.eye(100), 0.07)) == 7
    assert len(outlier_channels(torch.eye(100), 0.071)) == 8
    assert len(outlier_channels(torch.eye(576))) == 6


def test_a_spectrum_stands_for_its_gram_matrix_and_keeps_only_what_was_asked():
    gram, target = uneven_gram(), uneven_gram(seed=1)
    spectrum = Spectrum.of(gram, 4)
    assert effective_rank(spectrum) == effective_rank(gram)
    assert torch.equal(eigen_spectrum(spectrum, 3), eigen_spectrum(gram, 3))
    assert subspace_share(spectrum, target, k=3) == pytest.approx(subspace_share(gram, target, k=3), rel=1e-12)
    assert spectrum.basis.shape == (24, 4) and spectrum.basis.untyped_storage().nbytes() == 24 * 4 * 8
    assert Spectrum.of(gram).basis.shape == (24, 2)
    with pytest.raises(SpecError, match="k is 5, and the spectrum holds 4 of 24"):
        subspace_share(spectrum, target, k=5)
    for k in (0, 25):
        with pytest.raises(SpecError, match="24 x 24"):
            Spectrum.of(gram, k)


def test_outlier_channels_are_found_where_they_were_put():
    X = normal(100, 50)
    X[:, [31, 7]] *= torch.tensor([9.0, 20.0], dtype=torch.float64)
    gram = X.T @ X
    assert outlier_channels(gram, 0.04).tolist() == [7, 31]
    Y = normal(100, 50, 1)
    Y[:, [7, 12]] *= 15
    assert outlier_overlap(gram, Y.T @ Y, 0.04) == pytest.approx(1 / 3)
    assert outlier_overlap(gram, gram, 0.04) == 1
    assert outlier_overlap(torch.diag(torch.tensor([1.0, 2])), torch.diag(torch.tensor([2.0, 1])), 0.5) == 0


def test_channel_kurtosis_runs_from_equal_channels_to_one_alone():
    assert channel_kurtosis(torch.eye(20) + 1) == pytest.approx(1, rel=1e-12)
    alone = torch.zeros(20, 20)
    alone[4, 4] = 3
    assert channel_kurtosis(alone) == pytest.approx(20, rel=1e-12)
    X = normal(60, 20, 0, torch.logspace(1, 0, 20, dtype=torch.float64))
    s = X.square().mean(0).sqrt()
    expected = float((s**4).mean() / (s**2).mean() ** 2)
    assert channel_kurtosis(X.T @ X) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-6, 1e9])
def test_the_scale_of_a_gram_matrix_is_of_no_consequence(factor):
    gram, target = uneven_gram(), uneven_gram(seed=1)
    for measure in (effective_rank, channel_kurtosis):
        assert measure(gram * factor) == pytest.approx(measure(gram), rel=1e-9)
    for measure in (subspace_share, outlier_overlap):
        expected = pytest.approx(measure(gram, target), rel=1e-9)
        assert measure(gram * factor, target) == expected and measure(gram, target * factor) == expected
    torch.testing.assert_close(eigen_spectrum(gram * factor), eigen_spectrum(gram))
    assert torch.equal(outlier_channels(gram * factor, 0.3), outlier_channels(gram, 0.3))


def test_matrices_that_are_no_gram_matrices_are_refused():
    gram = uneven_gram(6)
    nan, off_diagonal = gram.clone(), gram.clone()
    nan[2, 2] = off_diagonal[2, 3] = float("nan")
    indefinite = gram.clone()
    indefinite[0, 1] = indefinite[1, 0] = 1e4
    for measure in (effective_rank, channel_kurtosis, outlier_channels, eigen_spectrum):
        with pytest.raises(NumericsError, match="NaN or infinity"):
            measure(nan)
        with pytest.raises(NumericsError, match="none above zero"):
            measure(torch.zeros(3, 3))
        with pytest.raises(DataError, match=r"shape \(d, d\), not \(6, 5\)"):
            measure(gram[:, :5])
    for measure in (effective_rank, eigen_spectrum):
        with pytest.raises(NumericsError, match="NaN or infinity"):
            measure(off_diagonal)
    with pytest.raises(NumericsError, match="target_gram: .* NaN or infinity"):
        subspace_share(gram, off_diagonal)
    with pytest.raises(NumericsError, match="block 3, attn_in: .* negative eigenvalue"):
        Spectrum.of(indefinite, name="block 3, attn_in")
    with pytest.raises(DataError, match="of width 6 and the target's of width 5"):
        subspace_share(gram, gram[:5, :5])
    with pytest.raises(DataError, match=r"\(6, 6\) and the target's of shape \(5, 5\)"):
        outlier_overlap(gram, gram[:5, :5])
    for share in (0, 1.5):
        with pytest.raises(SpecError, match="share must be above 0"):
            subspace_share(gram, gram, share)
    for k in (0, 7):
        with pytest.raises(SpecError, match=rf"k is {k}, .* 6 eigenvectors|: {k} eigenvectors of a 6 x 6 matrix"):
            subspace_share(gram, gram, k=k)
    with pytest.raises(SpecError, match="n must be at least 1"):
        eigen_spectrum(gram, 0)


# Features


@pytest.fixture(scope="module")
def sets():
    """A calibration set and two targets of one tiny model."""
    lm = tiny_language_model()
    texts = {"a": rows((12,) * 8, seed=1), "b": rows((12, 6) * 3, seed=2), "c": rows((12,) * 5, seed=3, vocabulary=9)}
    return {name: collect_activations(lm, text, progress=False) for name, text in texts.items()}


def value(frame, **at):
    """The one value of a table at some feature, block and group."""
    for column, what in at.items():
        frame = frame[frame[column] == what]
    assert len(frame) == 1
    return frame["value"].item()


def test_set_features_are_the_measures_of_each_block_and_group(sets):
    a = sets["a"]
    frame = set_features(a)
    assert list(frame.columns) == ["feature", "block", "group", "value"]
    assert frame["block"].dtype == "int64" and frame["value"].dtype == "float64"
    assert frame.groupby("feature").size().to_dict() == {
        "effective_rank": 3 * 2,
        "channel_kurtosis": 3 * 2,
        "vendi_score": 3 + 1,
    }
    for block in range(3):
        for group in ("attn_in", "mlp_in"):
            gram = a.statistics[block, group].gram
            assert value(frame, feature="effective_rank", block=block, group=group) == effective_rank(gram)
            assert value(frame, feature="channel_kurtosis", block=block, group=group) == channel_kurtosis(gram)
        expected = vendi_score(a.pooled.values[:, block])
        assert value(frame, feature="vendi_score", block=block, group="output") == pytest.approx(expected, rel=1e-5)
    whole = vendi_score(a.pooled.vectors())
    assert value(frame, feature="vendi_score", block=-1, group="output") == whole
    assert frame.equals(set_features(a))


def test_target_features_are_the_measures_of_each_pair(sets):
    a = sets["a"]
    targets = {name: sets[name] for name in ("b", "c")}
    frame = target_features(a, targets)
    assert list(frame.columns) == ["target", "feature", "block", "group", "value"]
    assert frame.groupby(["target", "feature"]).size().to_dict() == {
        (target, feature): n
        for target in targets
        for feature, n in {
            "coverage": 4,
            "frechet_distance": 1,
            "mmd": 1,
            "subspace_share": 6,
            "outlier_overlap": 6,
        }.items()
    }
    for name, target in targets.items():
        own, theirs = a.pooled.vectors(), target.pooled.vectors()
        assert value(frame, target=name, feature="coverage", block=-1) == coverage(theirs, own)
        assert value(frame, target=name, feature="frechet_distance") == frechet_distance(own, theirs)
        assert value(frame, target=name, feature="mmd") == mmd(own, theirs)
        expected = coverage(target.pooled.values[:, 1], a.pooled.values[:, 1])
        assert value(frame, target=name, feature="coverage", block=1) == pytest.approx(expected, rel=1e-5)
        grams = a.statistics[2, "mlp_in"].gram, target.statistics[2, "mlp_in"].gram
        at = {"target": name, "block": 2, "group": "mlp_in"}
        assert value(frame, feature="subspace_share", **at) == pytest.approx(subspace_share(*grams), rel=1e-9)
        assert value(frame, feature="outlier_overlap", **at) == outlier_overlap(*grams)
    assert frame.equals(target_features(a, targets))


def test_a_set_stands_for_itself_better_than_for_others(sets):
    frame = target_features(sets["a"], sets)
    itself = frame[frame["target"] == "a"]
    assert (itself[itself["feature"] == "coverage"]["value"] > 1 - 1e-6).all()
    assert value(itself, feature="frechet_distance") < 1e-9
    assert (itself[itself["feature"] == "outlier_overlap"]["value"] == 1).all()
    gram = sets["a"].statistics[1, "attn_in"].gram
    expected = float(eigen_spectrum(gram, 2).sum())  # 5 % of 32 channels, rounded up
    assert value(itself, feature="subspace_share", block=1, group="attn_in") == pytest.approx(expected, rel=1e-9)
    for other in ("b", "c"):
        assert value(frame, target=other, feature="coverage", block=-1) < 0.999
        assert value(frame, target=other, feature="frechet_distance") > 1e-3


def test_each_gram_matrix_of_the_calibration_set_is_decomposed_once_and_those_of_targets_never(sets, monkeypatch):
    fresh = Activations(sets["a"].pooled, sets["a"].statistics)
    decomposed = []
    of = Spectrum.of
    monkeypatch.setattr(Spectrum, "of", lambda gram, *a, **k: decomposed.append(id(gram)) or of(gram, *a, **k))
    set_features(fresh)
    target_features(fresh, {"b": sets["b"], "c": sets["c"]})
    target_features(fresh, {"b": sets["b"]})
    expected = [id(fresh.statistics[block, group].gram) for block in range(3) for group in ("attn_in", "mlp_in")]
    assert decomposed == expected


def test_groups_come_from_the_statistics_and_unknown_ones_are_refused(sets):
    frame = set_features(sets["a"], groups=["mlp_down"])
    assert set(frame["group"]) == {"mlp_down", "output"}
    for features in (
        lambda groups: set_features(sets["a"], groups=groups),
        lambda groups: target_features(sets["a"], {"b": sets["b"]}, groups=groups),
    ):
        with pytest.raises(UnknownNameError, match="unknown input group 'atn_in'; nearest: attn_in"):
            features(["mlp_in", "atn_in"])


def test_a_block_without_a_group_is_passed_over_for_it(sets):
    a = sets["a"]
    inputs = {key: stats for key, stats in a.statistics.items() if key != (1, "attn_in")}
    hybrid = Activations(a.pooled, LayerStatistics(inputs, a.statistics.model, a.statistics.calibration))
    assert (1, "attn_in") not in hybrid.inputs(["attn_in", "mlp_in"])
    assert len(hybrid.inputs(["attn_in", "mlp_in"])) == 5
    with pytest.raises(DataError, match="'hybrid' has no statistics of 1 inputs, the first: block 1, attn_in"):
        target_features(a, {"hybrid": hybrid})


def test_what_does_not_belong_together_is_refused(sets):
    a, b = sets["a"], sets["b"]
    with pytest.raises(DataError, match="calibration set .* collect both on one set"):
        Activations(a.pooled, b.statistics)
    other = collect_activations(tiny_language_model(seed=1), rows((12,) * 8, seed=1), progress=False)
    with pytest.raises(DataError, match="model .* collect both on one model"):
        Activations(a.pooled, other.statistics)
    with pytest.raises(DataError, match="target 'other' was read by model"):
        target_features(a, {"b": b, "other": other})
    with pytest.raises(DataError, match="no target"):
        target_features(a, {})
    # Weighted or summed statistics of the same texts are the same texts.
    Activations(a.pooled, a.statistics * 0.5)
    Activations(a.pooled, a.statistics + a.statistics)


def test_a_broken_gram_matrix_is_reported_with_block_and_group(sets):
    a = sets["a"]
    gram = a.statistics[1, "mlp_in"].gram.clone()
    gram[0, 1] = gram[1, 0] = float("inf")
    inputs = {**a.statistics, (1, "mlp_in"): InputStatistics(gram, a.statistics[1, "mlp_in"].abs_sum, 96.0)}
    broken = Activations(a.pooled, LayerStatistics(inputs, a.statistics.model, a.statistics.calibration))
    with pytest.raises(NumericsError, match="block 1, mlp_in: its Gram matrix holds NaN or infinity"):
        set_features(broken)
    with pytest.raises(NumericsError, match="target 'x', block 1, mlp_in: its Gram matrix holds NaN or infinity"):
        target_features(a, {"x": broken})
