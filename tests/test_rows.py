"""Numbers of rows, reduced inside the model, against the states that the model itself returns."""

from __future__ import annotations

import pytest
import torch

from cola_lib.activations import (
    Probe,
    energy_probe,
    length_batches,
    moments_probe,
    peak_probe,
    pooled_probe,
    projection_probe,
    row_features,
    sketch_probe,
)
from cola_lib.activations.rows import OUTPUT
from cola_lib.errors import SpecError, UnknownNameError
from cola_lib.statistics import collect_statistics
from tests.test_walk import rows
from tests.tiny_models import MODEL_TYPES, tiny_language_model

BLOCKS = (0, 2)


def features(lm, calibration, **probes):
    return row_features(lm, calibration, probes, progress=False)


def states(lm, calibration):
    """What each block puts out for each row alone: for each row, (n_layers, n_tokens, d)."""
    found = []
    for ids, mask in zip(calibration.input_ids, calibration.attention_mask, strict=True):
        seen = []
        handles = [b.register_forward_hook(lambda *a, seen=seen: seen.append(a[2])) for b in lm.blocks]
        lm.decoder(input_ids=ids[mask][None], use_cache=False)
        for handle in handles:
            handle.remove()
        found.append(torch.stack([s[0] for s in seen]))
    return found


def test_moments_are_those_of_each_row_alone():
    lm, calibration = tiny_language_model(), rows()
    found = features(lm, calibration, moments=moments_probe(BLOCKS))["moments"]
    assert found.shape == (5, 2, 64)
    for row, own in enumerate(states(lm, calibration)):
        for position, block in enumerate(BLOCKS):
            torch.testing.assert_close(found[row, position, :32], own[block].mean(0), rtol=1e-4, atol=1e-5)
            deviation = own[block].std(0, correction=0)
            torch.testing.assert_close(found[row, position, 32:], deviation, rtol=1e-3, atol=1e-4)


def test_peaks_are_the_largest_magnitudes():
    lm, calibration = tiny_language_model(), rows()
    found = features(lm, calibration, peak=peak_probe(OUTPUT, BLOCKS))["peak"]
    for row, own in enumerate(states(lm, calibration)):
        torch.testing.assert_close(found[row], own[list(BLOCKS)].abs().amax(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_energies_of_rows_add_up_to_the_diagonals_of_the_walk(model_type):
    lm, calibration = tiny_language_model(model_type), rows()
    statistics = collect_statistics(lm, calibration, progress=False)
    for group in lm.architecture.groups:
        energy = features(lm, calibration, energy=energy_probe(group.name, (0, 1, 2)))["energy"]
        for block in range(3):
            expected = statistics[block, group.name].gram.diagonal()
            torch.testing.assert_close(energy[:, block].sum(0), expected, rtol=1e-3, atol=1e-4)


def test_the_projection_is_that_of_unit_vectors_side_by_side():
    lm, calibration = tiny_language_model(), rows()
    matrices = torch.randn(2, 32, 7, generator=torch.Generator().manual_seed(0))
    both = {"pooled": pooled_probe(BLOCKS), "short": projection_probe(BLOCKS, matrices)}
    found = features(lm, calibration, **both)
    unit = torch.nn.functional.normalize(found["pooled"], dim=-1)
    torch.testing.assert_close(found["short"], unit.flatten(1) @ matrices.flatten(0, 1), rtol=1e-4, atol=1e-5)
    with pytest.raises(SpecError, match="2 blocks need as many"):
        projection_probe(BLOCKS, matrices[:1])


def test_inner_products_of_sketches_are_those_of_projected_gram_matrices():
    lm, calibration = tiny_language_model(), rows()
    matrices = torch.randn(1, 32, 6, generator=torch.Generator().manual_seed(0))
    sketch = features(lm, calibration, sketch=sketch_probe("attn_in", (1,), matrices))["sketch"][:, 0]
    assert sketch.shape == (5, 21)
    grams = []
    for i in range(5):
        gram = collect_statistics(lm, calibration.rows(i, i + 1), progress=False)[1, "attn_in"].gram
        grams.append(matrices[0].T @ gram @ matrices[0])
    expected = torch.tensor([[float((a * b).sum()) for b in grams] for a in grams])
    torch.testing.assert_close(sketch @ sketch.T, expected, rtol=1e-3, atol=1e-3)


def test_batches_hold_rows_of_like_length_and_every_row_once():
    lengths = torch.tensor([3, 12, 7, 12, 1, 40])
    batches = length_batches(lengths, 24)
    assert sorted(torch.cat(batches).tolist()) == list(range(6))
    assert [lengths[b].tolist() for b in batches] == [[40], [12, 12], [7, 3, 1]]


def test_batches_and_padding_change_values_by_rounding_only():
    lm, calibration = tiny_language_model("gemma2"), rows()
    probes = {"m": moments_probe(BLOCKS), "e": energy_probe("mlp_in", BLOCKS), "p": peak_probe("attn_in", BLOCKS)}
    one, all_ = (row_features(lm, calibration, probes, batch_tokens=b, progress=False) for b in (1, 1000))
    for name in probes:
        torch.testing.assert_close(one[name], all_[name], rtol=1e-3, atol=1e-4)


def test_padding_may_hold_nan():
    lm, calibration = tiny_language_model(), rows((12, 7))
    probes = {"m": moments_probe((2,)), "e": energy_probe(OUTPUT, (2,)), "p": peak_probe(OUTPUT, (2,))}
    matrices = torch.ones(1, 32, 2)
    probes["s"] = sketch_probe(OUTPUT, (2,), matrices)
    clean = row_features(lm, calibration, probes, progress=False)
    handle = lm.blocks[2].register_forward_hook(
        lambda _, __, output: output.masked_fill(~calibration.attention_mask[..., None], float("nan"))
    )
    broken = row_features(lm, calibration, probes, progress=False)
    handle.remove()
    for name in probes:
        torch.testing.assert_close(broken[name], clean[name])


def test_blocks_below_the_deepest_probe_never_run_and_no_hook_stays():
    lm, calibration = tiny_language_model(), rows()
    ran = []
    handle = lm.blocks[1].register_forward_pre_hook(lambda *_: ran.append(1))
    features(lm, calibration, pooled=pooled_probe((0,)), energy=energy_probe("mlp_in", (0,)))
    handle.remove()
    assert not ran
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.blocks.modules())
    lm.decoder(input_ids=calibration.input_ids[:1], use_cache=False)  # runs to its end


def test_what_cannot_be_measured_is_refused():
    lm, calibration = tiny_language_model(), rows()
    with pytest.raises(SpecError, match="no probe"):
        row_features(lm, calibration, {})
    with pytest.raises(SpecError, match="from 0 to 2, and are: 3"):
        features(lm, calibration, deep=pooled_probe((3,)))
    with pytest.raises(UnknownNameError, match="unknown place of a probe 'attn'; nearest: attn_in"):
        features(lm, calibration, place=energy_probe("attn", (0,)))
    with pytest.raises(SpecError, match="at least 1, and is 0"):
        row_features(lm, calibration, {"p": Probe(OUTPUT, (0,), lambda *_: None)}, batch_tokens=0)
