"""Likelihood evaluation against a naive reference: one sequence at a time, all logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from cola_lib.errors import DataError, NumericsError, SpecError
from cola_lib.evaluate import EvalItem, Suite, evaluate, reference_of, rows_of
from cola_lib.evaluate.likelihood import JS_STRIDE, N_BINS, Head, _check_head, plan_batches
from cola_lib.evaluate.requests import Request, encode_request
from cola_lib.models import LanguageModel, tiny_model
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_models import MODEL_TYPES, tiny_language_model

# Long rows do not share their context where attention slides, so both cases need a window of their own.
SHARING = {
    "llama": {"sliding_window": None},
    "qwen3": {"sliding_window": None},
    "gemma2": {"sliding_window": 16, "final_logit_softcapping": 5.0},
    "granite": {"sliding_window": None, "logits_scaling": 4.0},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def models_by_kind(tokenizer) -> dict[str, LanguageModel]:
    return {kind: tiny(kind, tokenizer) for kind in SHARING}


def tiny(kind: str, tokenizer, **options) -> LanguageModel:
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0}
    return tiny_language_model(kind, tokenizer, **shape, **SHARING.get(kind, {}), **options)


ITEMS = (
    EvalItem("rolling", "language", "c4", "", ("the band and the sand, and then the café — 東京",)),
    EvalItem("word", "language", "lambada", "the man and the", (" hand",)),
    EvalItem("cloze", "commonsense", "piqa", "Question: and then?\nAnswer:", (" the", " thé and", " sand")),
    EvalItem("partial", "commonsense", "wino", ("the an", "the thane"), (" and then the end.",) * 2, 1),
    EvalItem("apart", "commonsense", "wino", ("xyz", "abc"), (" and", " and"), 1),
    EvalItem("prompt", "code", "humaneval", "def f():\n    ", ("return 'and'\n",)),
    EvalItem("long", "math", "gsm8k", "Question: " + "the and " * 8 + "\nAnswer:", (" and the" * 12, " no")),
    EvalItem("again", "commonsense", "piqa", "Question: and then?\nAnswer:", (" sand", " the"), 1),
    EvalItem("twins", "commonsense", "piqa", "and", (" the", " the", " then")),
)
SUITE = Suite(ITEMS)


def naive(lm: LanguageModel, context: str, continuation: str) -> tuple[float, int]:
    """Score by the definition: the model's own logits on one unpadded sequence."""
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    ids = lm.tokenizer(kept + continuation, add_special_tokens=False)["input_ids"]
    n_context = len(lm.tokenizer(kept, add_special_tokens=False)["input_ids"])
    if not kept:
        ids, n_context = [lm.tokenizer.bos_token_id, *ids], 1
    logp = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    nll = -sum(float(logp[t - 1, ids[t]]) for t in range(n_context, len(ids)))
    return nll, len(ids) - n_context


def assert_agrees_with_the_definition(lm: LanguageModel, frame) -> None:
    assert list(frame["item"]) == [item.id for item in ITEMS]
    for row, item in zip(frame.itertuples(), ITEMS, strict=True):
        expected = [naive(lm, *pair) for pair in item.pairs]
        np.testing.assert_allclose(row.choice_nll, [nll for nll, _ in expected], rtol=1e-5, atol=1e-4)
        assert row.n_tokens == expected[item.gold][1]
        assert row.nll == row.choice_nll[item.gold]


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_agrees_with_the_definition_whatever_the_batch_size(models_by_kind, kind, batch_tokens):
    lm = models_by_kind[kind]
    assert_agrees_with_the_definition(lm, evaluate(lm, SUITE, batch_tokens=batch_tokens, progress=False))


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_agrees_with_the_definition_on_every_kind_of_model(tokenizer, kind):
    lm = tiny(kind, tokenizer)
    assert_agrees_with_the_definition(lm, evaluate(lm, SUITE, progress=False))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_agrees_with_the_definition_in_eager_attention(tokenizer, kind):
    lm = tiny(kind, tokenizer, attn_implementation="eager")
    assert lm.model.config._attn_implementation == "eager"
    assert_agrees_with_the_definition(lm, evaluate(lm, SUITE, progress=False))


def test_a_row_longer_than_the_sliding_window_is_not_branched(models_by_kind, monkeypatch):
    laid_out = []

    def spy(requests, *, share):
        laid_out.append((max(len(r.fed) for r in requests), len(requests), share))
        return rows_of(requests, share=share)

    monkeypatch.setattr("cola_lib.evaluate.likelihood.rows_of", spy)
    evaluate(models_by_kind["gemma2"], SUITE, progress=False)
    assert {share for length, n, share in laid_out if length > 16} == {False}
    assert {share for length, n, share in laid_out if length <= 16} == {True}


def test_bytes_are_utf8_and_include_moved_white_space(models_by_kind):
    frame = evaluate(models_by_kind["llama"], SUITE, progress=False).set_index("item")
    assert frame.loc["rolling", "n_bytes"] == len(ITEMS[0].continuations[0].encode()) > len(ITEMS[0].continuations[0])
    assert frame.loc["prompt", "n_bytes"] == len("\n    return 'and'\n")
    row = frame.loc["rolling"]
    assert row.bits_per_byte == pytest.approx(row.nll / math.log(2) / row.n_bytes, rel=1e-12)


def test_accuracy_is_by_likelihood_per_byte(models_by_kind):
    frame = evaluate(models_by_kind["llama"], SUITE, progress=False).set_index("item")
    assert frame["correct"].dtype == "boolean"
    assert frame["correct"].isna().equals(frame["choice_nll"].map(len).eq(1))
    for row in frame[frame["correct"].notna()].itertuples():
        assert row.correct == (np.argmin(np.divide(row.choice_nll, row.choice_bytes)) == row.gold)
    # "again" offers two of "cloze"'s choices in another order
    assert frame.loc["again", "choice_nll"] == tuple(frame.loc["cloze", "choice_nll"][i] for i in (2, 0))


def test_values_survive_float32(models_by_kind):
    nll = evaluate(models_by_kind["llama"], SUITE, progress=False)["nll"]
    assert (nll == nll.astype(np.float32).astype(np.float64)).all()


def test_identical_requests_and_shared_contexts_run_once(models_by_kind, monkeypatch):
    lm, fed = models_by_kind["llama"], []
    decoder = lm.model.get_decoder()
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda **kw: fed.append(kw["input_ids"].numel()) or forward(**kw))
    cloze, again = SUITE.items[2], SUITE.items[7]
    evaluate(lm, Suite((cloze, again)), batch_tokens=1, progress=False)
    requests = set(cloze.requests(lm.tokenizer)) | set(again.requests(lm.tokenizer))
    assert len(requests) == 3
    shared = len(lm.tokenizer(cloze.context)["input_ids"])
    own = sum(r.n_scored - 1 for r in requests)
    check = 2 * 8  # the comparison with the model's own logits
    assert sum(fed) == shared + own + check


def test_nan_and_infinity_name_where_to_look(tokenizer):
    lm = tiny("llama", tokenizer)
    lm.model.model.layers[0].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"lm_head: model tiny-llama .* item rolling.*report"):
        evaluate(lm, SUITE, progress=False)


def test_an_item_longer_than_the_context_gives_both_numbers(models_by_kind):
    item = EvalItem("x", "language", "c4", "", ("z" * 300,))
    with pytest.raises(DataError, match="item x has 300 tokens.* holds 256"):
        evaluate(models_by_kind["llama"], Suite((item,)), progress=False)


def test_an_empty_suite_is_refused(models_by_kind):
    with pytest.raises(DataError, match="no items"):
        evaluate(models_by_kind["llama"], Suite(()), progress=False)


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused(tokenizer):
    lm = tiny("llama", tokenizer)
    head = Head(lm.model, 2**20)
    head._divisor = 2.0
    with torch.inference_mode(), pytest.raises(SpecError, match="'llama' does something to its logits"):
        _check_head(lm.model, head, [1, 2, 3])


def test_logits_in_small_chunks_are_the_same(models_by_kind, monkeypatch):
    lm = models_by_kind["gemma2"]
    whole = evaluate(lm, SUITE, progress=False)
    monkeypatch.setitem(__import__("cola_lib.evaluate.likelihood", fromlist=["x"]).LOGIT_BYTES, "cpu", 3000)
    np.testing.assert_allclose(evaluate(lm, SUITE, progress=False)["nll"], whole["nll"], rtol=1e-6)


def test_the_boundary_is_that_of_lm_eval(tokenizer):
    """Same context and continuation tokens as lm-eval's own ``_encode_pair``, white space included."""
    from lm_eval.api.model import TemplateLM

    class Reference(TemplateLM):
        eot_token_id = 0
        loglikelihood_rolling = generate_until = _loglikelihood_tokens = None
        backend = "causal"

        def tok_encode(self, string, **_):
            return tokenizer(string, add_special_tokens=False)["input_ids"]

    Reference.__abstractmethods__ = frozenset()
    reference = Reference()
    for context, continuation in [
        ("the man", " and"),
        ("the man ", "and"),
        ("def f():\n    ", "return 1"),
        ("the s", "and"),  # "and" is one token, so the boundary cuts no merge here
        ("the a", "nd more"),  # here it does
        ("Answer:", " the"),
    ]:
        before, after = reference._encode_pair(context, continuation)
        request = encode_request(tokenizer, context, continuation)
        assert list(request.ids) == list(before) + list(after)
        assert request.n_scored == len(after)


def test_a_bos_that_the_tokenizer_adds_stays(tokenizer):
    from tokenizers.processors import TemplateProcessing

    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    raw.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    adds = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")
    assert encode_request(adds, "the", " and").ids == (0, *encode_request(tokenizer, "the", " and").ids)
    assert encode_request(adds, "", "the") == encode_request(tokenizer, "", "the")
    neither = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    assert encode_request(neither, "the", " and") == encode_request(tokenizer, "the", " and")
    with pytest.raises(SpecError, match="neither a BOS nor an EOS"):
        encode_request(neither, "", "the")


def test_a_continuation_without_a_token_is_refused(tokenizer):
    with pytest.raises(DataError, match="adds no token"):
        encode_request(tokenizer, "the", "")


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30).map(lambda x: sorted(x, reverse=True)),
    budget=st.integers(1, 120),
)
@settings(max_examples=200, deadline=None)
def test_batches_cover_every_row_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    assert [i for start, stop in batches for i in range(start, stop)] == list(range(len(lengths)))
    for start, stop in batches:
        assert stop - start == 1 or (stop - start) * lengths[start] <= budget


def test_batches_do_not_pad_much():
    lengths = sorted(np.random.default_rng(0).integers(20, 400, 300).tolist(), reverse=True)
    padded = sum((stop - start) * lengths[start] for start, stop in plan_batches(lengths, 1024))
    assert padded < 1.03 * sum(lengths)


@given(
    sequences=st.lists(
        st.lists(st.integers(0, 2), min_size=2, max_size=8).map(tuple), min_size=1, max_size=4, unique=True
    ),
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_a_row_predicts_exactly_the_scored_tokens_from_the_tokens_before(sequences, data):
    requests = [Request(ids, data.draw(st.integers(1, len(ids) - 1))) for ids in sequences]
    rows = rows_of(requests)
    assert sorted(r.ids for row in rows for r in row.requests) == sorted(sequences)
    for row in rows:
        tokens = (*row.shared, *(t for branch in row.branches for t in branch))
        assert row.n_tokens == len(tokens) <= sum(len(r.fed) for r in row.requests)
        assert row.n_positions == max(len(r.fed) for r in row.requests)
        for i, request in enumerate(row.requests):
            scored = row.scored(i)
            assert [token for _, token in scored] == list(request.ids[-request.n_scored :])
            assert [tokens[at] for at, _ in scored] == list(request.fed[-request.n_scored :])


# -------------------------------------------------------------------- distributions and calibration


def _full_logits(lm, request):
    """Logits of the plain model before every scored token, straight from transformers."""
    logits = lm.model(input_ids=torch.tensor([request.fed])).logits[0].double()
    return logits[-request.n_scored :]


@pytest.fixture
def pair(tokenizer):
    """An untouched model, and the same one with other weights in a block."""
    before, after = tiny("llama", tokenizer), tiny("llama", tokenizer)
    with torch.no_grad():
        for parameter in after.blocks[0].parameters():
            parameter.data = parameter * 0.5
    return before, after


def test_divergence_is_that_of_the_full_distributions(pair):
    before, after = pair
    scores = evaluate(after, SUITE, reference=reference_of(before, SUITE), progress=False).set_index("item")
    for item in SUITE.items:
        request = item.requests(after.tokenizer)[item.gold]
        with torch.inference_mode():
            p, q = (_full_logits(lm, request)[::JS_STRIDE].softmax(-1).numpy() for lm in (before, after))
        expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(p, q, strict=True)]
        row = scores.loc[item.id]
        assert row["js_divergence"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert row["js_tokens"] == len(expected) == -(-row["n_tokens"] // JS_STRIDE)
    assert (scores["js_divergence"] > 1e-4).any()


def test_a_model_does_not_diverge_from_itself(models_by_kind):
    lm = models_by_kind["llama"]
    scores = evaluate(lm, SUITE, reference=reference_of(lm, SUITE), progress=False)
    assert scores["js_divergence"].max() < 1e-6


def test_bins_count_the_gold_tokens_by_confidence(models_by_kind):
    lm = models_by_kind["llama"]
    scores = evaluate(lm, SUITE, progress=False).set_index("item")
    assert "js_divergence" not in scores
    for item in SUITE.items:
        request = item.requests(lm.tokenizer)[item.gold]
        with torch.inference_mode():
            p = _full_logits(lm, request).softmax(-1)
        sure, best = p.max(-1)
        hit = best == torch.tensor(request.ids[-request.n_scored :])
        row = scores.loc[item.id]
        assert len(row["bin_tokens"]) == N_BINS
        assert sum(row["bin_tokens"]) == row["n_tokens"]
        assert sum(row["bin_hits"]) == int(hit.sum())
        assert sum(row["bin_confidence"]) == pytest.approx(float(sure.sum()), rel=1e-4)
        expected = np.histogram(sure.numpy(), bins=np.linspace(0, 1, N_BINS + 1))[0]
        assert list(row["bin_tokens"]) == expected.tolist()


def test_a_reference_of_something_else_is_refused(pair, models_by_kind):
    before, after = pair
    half = Suite(SUITE.items[:1])
    with pytest.raises(SpecError, match="another suite"):
        evaluate(after, SUITE, reference=reference_of(before, half), progress=False)
    reference = reference_of(before, SUITE)
    with torch.no_grad():
        head = after.model.get_output_embeddings().weight
        head.data = head * 2
    with pytest.raises(SpecError, match="another head"):
        evaluate(after, SUITE, reference=reference, progress=False)


# ----------------------------------------------------------------------------------------------- another data type


def test_evaluating_in_bfloat16_moves_scores_a_little_and_the_model_not_at_all():
    lm = tiny_model()
    suite = Suite((EvalItem("1", "language", "proverbs", "Still waters", (" run deep.",)),))
    before, parameters = lm.fingerprint, [p.data_ptr() for p in lm.model.parameters()]
    exact = evaluate(lm, suite, progress=False)
    reference = reference_of(lm, suite, dtype=torch.bfloat16)
    coarse = evaluate(lm, suite, reference=reference, dtype=torch.bfloat16, progress=False)
    assert coarse["nll"].item() != exact["nll"].item()
    assert coarse["nll"].item() == pytest.approx(exact["nll"].item(), rel=0.02)
    assert coarse["js_divergence"].item() == pytest.approx(0, abs=1e-6)
    lm.weights_changed()
    assert lm.fingerprint == before and [p.data_ptr() for p in lm.model.parameters()] == parameters
    with pytest.raises(SpecError, match="dtype"):
        evaluate(lm, suite, reference=reference, progress=False)
