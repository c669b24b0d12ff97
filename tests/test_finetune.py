"""Adapters are trained, folded in, and leave pruned weights at zero."""

from __future__ import annotations

import pytest
import torch

from cola_lib.compress import compress, method_spec, restored
from cola_lib.errors import SpecError
from cola_lib.evaluate import row_nll
from cola_lib.finetune import IGNORED, TuneSpec, finetune, labels_of
from tests.test_walk import rows
from tests.tiny_models import MODEL_TYPES, tiny_language_model

QUICK = TuneSpec(steps=6, batch_rows=2, rank=4, learning_rate=5e-3)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_training_lowers_the_loss_and_keeps_the_sparsity(model_type):
    lm, texts = tiny_language_model(model_type), rows((12, 12, 9, 12))
    with restored(lm):
        compress(lm, method_spec("wanda", sparsity=0.5), texts, progress=False)
        zeros = {n: p == 0 for n, p in lm.model.named_parameters() if p.dim() == 2 and (p == 0).float().mean() > 0.3}
        before = row_nll(lm, texts, progress=False).mean()
        known, layers = lm.fingerprint, dict(lm.model.named_modules()).keys()
        report = finetune(lm, texts, TuneSpec(steps=12, batch_rows=4, rank=4, learning_rate=1e-2), progress=False)
        assert report.losses[-1] < report.losses[0] and report.counted == 1.0 and report.trained > 0
        assert row_nll(lm, texts, progress=False).mean() < before
        assert zeros and all(torch.equal(lm.model.get_parameter(n) == 0, z) for n, z in zeros.items())
        assert lm.fingerprint != known and dict(lm.model.named_modules()).keys() == layers
        assert not any(p.requires_grad for p in lm.model.parameters())


def test_the_model_computes_what_was_trained():
    """After one step, at the same rate in both runs, the folded model has the loss that a second step starts from."""
    lm, texts = tiny_language_model(), rows((12, 12))
    with restored(lm):
        finetune(lm, texts, TuneSpec(steps=1, batch_rows=2, learning_rate=5e-2), progress=False)
        folded = row_nll(lm, texts, progress=False).mean()
    with restored(lm):
        report = finetune(lm, texts, TuneSpec(steps=2, batch_rows=2, learning_rate=5e-2), progress=False)
    assert report.losses[1] != pytest.approx(report.losses[0], rel=1e-3)
    assert float(folded) == pytest.approx(report.losses[1], rel=1e-4)


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_zeros_of_a_quantized_model_may_be_trained(keep_zeros):
    """A grid has a zero like any other value: nothing was pruned there."""
    lm, texts = tiny_language_model(), rows((12, 12))
    with restored(lm):
        compress(lm, method_spec("rtn", bits=2), progress=False)
        weight = lm.blocks[0].mlp.down_proj.weight
        zero = weight == 0
        finetune(lm, texts, QUICK, keep_zeros=keep_zeros, progress=False)
        assert zero.any() and bool((lm.blocks[0].mlp.down_proj.weight[zero] == 0).all()) == keep_zeros


def test_both_ways_are_the_same_where_nothing_is_zero():
    lm, texts = tiny_language_model(), rows((12, 12))
    assert not any((lm.blocks[0].get_parameter(f"{n}.weight") == 0).any() for n in lm.architecture.layers)
    with restored(lm):
        masked = finetune(lm, texts, QUICK, keep_zeros=True, progress=False)
    with restored(lm):
        plain = finetune(lm, texts, QUICK, keep_zeros=False, progress=False)
    assert masked.losses == pytest.approx(plain.losses, rel=1e-4) and masked.losses[0] != masked.losses[-1]


def test_the_same_seed_gives_the_same_weights_and_the_global_generator_is_left_alone():
    lm, texts = tiny_language_model(), rows()
    state = torch.random.get_rng_state()
    prints = []
    for seed in (0, 0, 1):
        with restored(lm):
            finetune(lm, texts, TuneSpec(steps=2, rank=2, seed=seed), progress=False)
            prints.append(lm.fingerprint)
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_original_comes_back():
    lm, texts = tiny_language_model(), rows()
    before = {n: p.clone() for n, p in lm.model.named_parameters()}
    with restored(lm):
        finetune(lm, texts, QUICK, progress=False)
    assert all(torch.equal(p, before[n]) for n, p in lm.model.named_parameters())


def test_surprising_tokens_do_not_count():
    lm, texts = tiny_language_model(), rows((12, 9))
    labels = labels_of(lm, texts, 97.0)
    logits = lm.model(input_ids=texts.input_ids).logits.log_softmax(-1)
    nll = -logits[:, :-1].gather(-1, texts.input_ids[:, 1:, None])[..., 0]
    expected = texts.attention_mask[:, 1:] & (nll <= torch.log(torch.tensor(97.0)))
    assert torch.equal(labels[:, 1:] != IGNORED, expected) and (labels[:, 0] == IGNORED).all()
    assert 0 < expected.float().mean() < 1
    report = finetune(lm, texts, TuneSpec(steps=2, max_perplexity=97.0), progress=False)
    assert report.counted == pytest.approx(float(expected.sum() / 19))
    with pytest.raises(SpecError, match="no token counts"):
        finetune(lm, texts, TuneSpec(steps=2, max_perplexity=1.0001), progress=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "they are 0, "),
        ({"rank": 0}, "they are .*, 0, "),
        ({"learning_rate": 0.0}, "they are .* and 0$"),
        ({"max_perplexity": 1.0}, "max_perplexity must be above 1"),
    ],
)
def test_what_cannot_be_trained_is_refused(wrong, message):
    with pytest.raises(SpecError, match=message):
        TuneSpec(**wrong)
