"""Strategies, on pools small enough to see through."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from cola_lib.activations import row_features
from cola_lib.activations.rows import pooled_probe
from cola_lib.curation import (
    COLA_COMPOSITION,
    STRATEGIES,
    Composition,
    Pool,
    Strategy,
    Target,
    activation_vectors,
    at_tokens,
    candidates,
    cover,
    deployment,
    load_target,
    select_streaming,
    strategy,
)
from cola_lib.curation.activation import greedy_cover, greedy_volume
from cola_lib.curation.base import alternating, nearest_to_centres, shares
from cola_lib.curation.cola import token_similarity
from cola_lib.curation.embeddings import embed
from cola_lib.curation.lexical import k_centres, repeated_ngrams
from cola_lib.data import Sample
from cola_lib.errors import DataError, SpecError, UnknownNameError
from cola_lib.evaluate import row_nll
from tests.byte_tokenizer import byte_tokenizer
from tests.tiny_models import tiny_language_model

SEQ_LEN = 24
WORDS = {
    "math": "sum add seven plus two equals nine half of ten is five".split(),
    "code": "def return x = y ( ) : for i in range print import".split(),
    "web": "the cat sat on a mat and saw the sun over a hill".split(),
}


def sample(source, i, text, **fields):
    return Sample(id=f"{source}-{i}", text=text, source=source, domain=source, **fields)


def texts(source, n, seed=0, length=12):
    rng = np.random.default_rng([seed, len(source)])
    return [sample(source, i, " ".join(rng.choice(WORDS[source], length))) for i in range(n)]


@pytest.fixture(scope="module")
def lm():
    return tiny_language_model(vocab_size=264, tokenizer=byte_tokenizer(), eos_token_id=0, bos_token_id=0)


@pytest.fixture
def pool():
    return Pool({source: texts(source, 12) for source in WORDS})


def aim(capability=None):
    return deployment({name: texts(name, 5, seed=9) for name in ("math", "code")}, capability)


SMALL = {"outlier_cover": {"threshold": 2.0}}
"""Options with which a strategy works on a model of random weights: that has no outliers of six times the median."""


def select(name, pool, lm, n=6, seed=0, target=True, **options):
    chooser = strategy(name, **SMALL.get(name, {}) | options)
    generator = torch.Generator().manual_seed(seed)
    return chooser.select(pool, lm, n_samples=n, seq_len=SEQ_LEN, target=aim() if target else None, generator=generator)


# ---------------------------------------------------------------------------------------------
# what all strategies promise


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_keeps_its_promises(name, pool, lm):
    before = lm.fingerprint
    one, again = select(name, pool, lm), select(name, Pool(pool.samples), lm)
    assert one.n_samples == 6 and one.seq_len <= SEQ_LEN and one.name.startswith(name) and one.seed == 0
    assert one.fingerprint == again.fingerprint and one.sample_ids == again.sample_ids
    rows = [tuple(ids[mask].tolist()) for ids, mask in zip(one.input_ids, one.attention_mask, strict=True)]
    assert len(set(rows)) == 6, "a row came twice"
    assert lm.fingerprint == before and not any(m._forward_hooks for m in lm.model.modules())
    if STRATEGIES[name].stochastic:
        once = {"n_init": 1} if name == "tfidf_clusters" else {}  # many starts end in the same clusters here
        assert len({select(name, pool, lm, seed=seed, **once).fingerprint for seed in range(4)}) > 1
    else:
        assert select(name, pool, lm, seed=1).fingerprint == one.fingerprint


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"random_tokens", "self_calibrated"}))
def test_a_pool_that_is_too_small_is_refused_with_what_there_is(name, pool, lm):
    with pytest.raises(DataError, match="add a source"):
        select(name, pool, lm, n=10_000)


@pytest.mark.parametrize("name", [name for name, cls in STRATEGIES.items() if cls.needs_target])
def test_who_needs_a_target_says_so(name, pool, lm):
    with pytest.raises(SpecError, match=f"strategy '{name}.*chooses for a target"):
        select(name, pool, lm, target=False)


def test_what_cannot_be_asked_for_is_refused(pool, lm):
    with pytest.raises(UnknownNameError, match="unknown strategy 'colla'; nearest: cola"):
        strategy("colla")
    with pytest.raises(UnknownNameError, match="unknown option of cola 'widht'; nearest: width"):
        strategy("cola", widht=3)
    with pytest.raises(SpecError, match="n_samples must be at least 1, and is 0"):
        select("random", pool, lm, n=0)
    with pytest.raises(SpecError, match="seq_len must be at least 2"):
        strategy("random").select(pool, lm, n_samples=1, seq_len=1, generator=torch.Generator())
    with pytest.raises(DataError, match="none of: web"):
        Pool({"math": texts("math", 2), "web": []})


def test_a_label_names_the_options_that_are_not_the_default():
    assert strategy("cola").label == "cola"
    assert strategy("cola", domain=False, width=8).label == "cola(domain=False, width=8)"


def test_a_budget_of_tokens_is_met_exactly(pool, lm):
    for n_tokens in (100, 101, 24):
        found = at_tokens(strategy("uniform_mix"), pool, lm, n_tokens=n_tokens, seq_len=SEQ_LEN, seed=3)
        assert found.n_tokens == n_tokens
        whole = select("uniform_mix", pool, lm, n=found.n_samples, seed=3)
        assert whole.input_ids[:-1].equal(found.input_ids[:-1])
    with pytest.raises(DataError, match="add a source"):
        at_tokens(strategy("random"), pool, lm, n_tokens=10**6, seq_len=SEQ_LEN)


def test_a_budget_is_met_though_the_first_rows_are_short(lm):
    """What the first rows have would take more rows than there are; the others are long."""
    pool = Pool({"web": [sample("web", i, "a b" if i < 10 else "a b c d e f g h") for i in range(20)]})

    @dataclass(frozen=True)
    class Shortest(Strategy):
        name: ClassVar[str] = "shortest"

        def choose(self, brief):
            rows = brief.rows()
            return brief.take(rows, rows.lengths.argsort(stable=True).tolist())

    total = int(pool.rows(lm.tokenizer, 16).lengths.sum())
    assert total < 20 * 16
    for n_tokens in (total - 30, total - 1, total):
        assert at_tokens(Shortest(), pool, lm, n_tokens=n_tokens, seq_len=16).n_tokens == n_tokens
    with pytest.raises(DataError, match=f"20 (candidates|rows of the pool have {total})"):
        at_tokens(Shortest(), pool, lm, n_tokens=total + 1, seq_len=16)


# ---------------------------------------------------------------------------------------------
# pools, compositions, targets


def test_a_document_is_cut_into_rows_that_give_it_back():
    tokenizer = byte_tokenizer()
    text = " ".join(WORDS["web"] * 5)
    found = list(candidates([sample("web", 0, text)], tokenizer, seq_len=10))
    assert [i for c in found for i in c.ids] == tokenizer(text)["input_ids"]
    assert "".join(c.text for c in found) == text
    first = list(candidates([sample("web", 0, text)], tokenizer, seq_len=10, composition=Composition(first_only=True)))
    assert len(first) == 1 and first[0].ids == found[0].ids


def test_boundaries_are_where_a_paragraph_a_line_or_a_sentence_ends():
    tokenizer = byte_tokenizer()

    def cuts(text):
        composition = Composition(boundaries=True)
        return [c.text for c in candidates([sample("web", 0, text)], tokenizer, seq_len=20, composition=composition)]

    assert cuts("xxxxxxxxxx.\n\nyyyy yy yyyyyyyyyyyy")[0] == "xxxxxxxxxx.\n\n"
    assert cuts("xxxxxxxxxx. zzzz\nyyyy yy yyyyyyyyyyyy")[0] == "xxxxxxxxxx. zzzz\n"
    assert cuts("xxxxxxxxxx. zzzz yyyy yy yyyyyyyyyyyy")[0] == "xxxxxxxxxx. "
    assert len(cuts("x" * 50)[0]) == 20  # no boundary: cut where the row ends
    assert cuts("x.\n\n" + "y" * 46)[0] == "x.\n\n" + "y" * 16  # one in the first half would waste most of the row


def test_short_rows_are_left_out_and_problems_are_worded_with_their_reasoning():
    tokenizer = byte_tokenizer()
    problem = sample("math", 0, "own words", question="1+1?", reasoning="One more than 1.", answer="2")
    found = list(candidates([problem], tokenizer, seq_len=200, composition=Composition(format="reasoning")))
    assert "One more than 1." in found[0].text and "1+1?" in found[0].text and "own words" not in found[0].text
    plain = sample("web", 1, "own words")
    assert (
        next(candidates([plain], tokenizer, seq_len=200, composition=Composition(format="reasoning"))).text
        == "own words"
    )
    assert not list(candidates([plain], tokenizer, seq_len=200, composition=Composition(min_share=0.5)))
    with pytest.raises(SpecError, match="min_share"):
        Composition(min_share=1.5)
    with pytest.raises(SpecError, match="'text' or 'reasoning'"):
        Composition(format="chat")


def test_a_pool_measures_once(pool, lm, monkeypatch):
    rows = pool.rows(lm.tokenizer, SEQ_LEN)
    assert pool.rows(lm.tokenizer, SEQ_LEN) is rows
    assert pool.rows(lm.tokenizer, SEQ_LEN, COLA_COMPOSITION) is not rows
    one = activation_vectors(pool, lm, rows, seed=0)
    monkeypatch.setattr("cola_lib.curation.pool.row_features", lambda *a, **k: pytest.fail("ran again"))
    np.testing.assert_array_equal(activation_vectors(pool, lm, rows, seed=0), one)


def test_weights_of_a_deployment():
    assert aim().weights == {"math": 0.5, "code": 0.5}
    assert aim("math").weights == pytest.approx({"math": 1 / 1.2, "code": 0.2 / 1.2})
    with pytest.raises(UnknownNameError, match="capability 'mth'; nearest: math"):
        aim("mth")
    with pytest.raises(SpecError, match="weights must be positive"):
        Target("t", {"a": texts("web", 1)}, {"a": -1.0})
    with pytest.raises(DataError, match="'a' has no texts"):
        Target("t", {"a": []}, {"a": 1.0})


# ---------------------------------------------------------------------------------------------
# baselines and texts


def test_an_even_mixture_is_even(pool, lm):
    found = select("uniform_mix", pool, lm, n=7)
    counts = [found.sources.count(source) for source in WORDS]
    assert sorted(counts) == [2, 2, 3]


def test_random_rows_of_one_source(pool, lm):
    assert set(select("random", pool, lm, source="code").sources) == {"code"}
    with pytest.raises(DataError, match="source 'c5' is not among the pool's sources, which are: math, code, web"):
        select("random", pool, lm, source="c5")


def test_a_source_that_is_all_target_is_refused_as_such(tmp_path):
    path = tmp_path / "users.jsonl"
    path.write_text("".join(json.dumps({"text": f"Tell me about {x}."}) + "\n" for x in ("cats", "rain", "tea")))
    target = load_target(str(path))
    with pytest.raises(DataError, match=r"all 3 texts of .*users\.jsonl stand for the target already; give .* split"):
        Pool.load([str(path)], without=target.sample_ids)
    some = set(sorted(target.sample_ids)[:2])
    assert len(Pool.load([str(path)], without=some).samples[str(path)]) == 1


def test_shuffled_words_are_the_same_words(pool, lm):
    order = select("uniform_mix", pool, lm)
    found = select("shuffled_words", pool, lm)
    assert found.sample_ids == order.sample_ids
    for row in range(6):
        was, is_ = (
            sorted(lm.tokenizer.decode(s.input_ids[row][s.attention_mask[row]]).split()) for s in (order, found)
        )
        assert len(set(is_) - set(was)) <= 1  # the last word may be cut
    assert not found.input_ids.equal(order.input_ids)


def test_zipcal_takes_the_row_with_the_most_new_types(lm):
    rows = ["a b c d", "a b c", "e f", "a e", "x y z w v"]
    pool = Pool({"web": [sample("web", i, text) for i, text in enumerate(rows)]})
    found = select("zipcal", pool, lm, n=3)
    assert [ids for (ids,) in found.sample_ids] == ["web-4", "web-0", "web-2"]


def test_k_centres_are_far_apart():
    points = np.array([[0.0], [0.1], [10.0], [5.2], [4.9]])
    assert k_centres(points, 3) == [0, 2, 4]
    assert k_centres(points, 99) == [0, 2, 4, 3, 1]


def test_repeated_ngrams():
    assert repeated_ngrams([1, 2, 3, 4] * 3) == pytest.approx(1 - 4 / 9)
    assert repeated_ngrams([1, 2, 3]) == 0 and repeated_ngrams(range(50)) == 0


def test_a_length_mixture_gives_every_row_the_same_mass(pool, lm):
    found = select("length_mixture", pool, lm, n=8)
    lengths = found.attention_mask.sum(1)
    assert len(set(lengths.tolist())) > 2 and lengths.max() == SEQ_LEN
    mass = lengths * torch.tensor(found.weights)
    torch.testing.assert_close(mass, mass.mean().expand(8))
    assert float(mass.sum()) == pytest.approx(found.n_tokens, rel=1e-5)


@pytest.mark.parametrize("n_sources", [2, 4, 8])
def test_no_source_of_a_length_mixture_gets_one_length_only(lm, n_sources):
    pool = Pool({f"s{i}": [sample(f"s{i}", j, "a b c d e f g h i j k l") for j in range(8)] for i in range(n_sources)})
    found = select("length_mixture", pool, lm, n=4 * n_sources)
    lengths = found.attention_mask.sum(1).tolist()
    of_source = {name: {n for n, s in zip(lengths, found.sources, strict=True) if s == name} for name in pool.sources}
    assert all(of_source[name] == set(lengths) for name in pool.sources) and len(set(lengths)) == 4


def test_perplexity_ranks_rows(pool, lm):
    rows = pool.rows(lm.tokenizer, SEQ_LEN)
    nll = row_nll(lm, rows.tokens, progress=False)
    ids = [i for (i,) in rows.tokens.sample_ids]
    ranked = [ids[i] for i in nll.argsort(stable=True)]
    for order, expected in (("lowest", ranked), ("highest", ranked[::-1])):
        found = select("perplexity", pool, lm, order=order)
        assert [i for (i,) in found.sample_ids] == expected[:6]
    middle = {i for (i,) in select("perplexity", pool, lm, order="middle").sample_ids}
    assert middle == set(ranked[len(ranked) // 2 - 3 : len(ranked) // 2 + 3])
    with pytest.raises(SpecError, match="order is 'best'"):
        strategy("perplexity", order="best")


def test_nll_of_rows_is_that_of_each_alone(pool, lm):
    rows = pool.rows(lm.tokenizer, SEQ_LEN).tokens.take(range(5))
    found = row_nll(lm, rows, batch_tokens=50, progress=False)
    for row in range(5):
        ids = rows.input_ids[row][rows.attention_mask[row]][None]
        expected = torch.nn.functional.cross_entropy(lm.model(input_ids=ids).logits[0, :-1], ids[0, 1:])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_an_information_mix_leaves_out_what_repeats_itself(lm):
    calm = texts("web", 6, length=5)
    loud = [sample("web", 10 + i, "spam " * 4) for i in range(6)]
    pool = Pool({"web": calm + loud, "code": texts("code", 8, length=5)})
    found = select("information_mix", pool, lm, n=6)
    assert not {f"web-{10 + i}" for i in range(6)} & {i for (i,) in found.sample_ids}
    assert found.sources.count("web") == 3


@pytest.mark.parametrize("kind", ["model", "tfidf"])
def test_embeddings_find_texts_of_a_kind_alike(pool, lm, kind):
    rows = pool.rows(lm.tokenizer, SEQ_LEN)
    vectors = embed(kind, lm, (pool, rows))[0]
    lengths = np.linalg.norm(vectors, axis=1)
    assert ((np.abs(lengths - 1) < 1e-9) | (lengths == 0)).all() and lengths.mean() > 0.9
    sources = np.array(rows.sources)
    same = sources[:, None] == sources
    cosines = vectors @ vectors.T
    off = ~np.eye(len(same), dtype=bool)
    assert cosines[same & off].mean() > cosines[~same].mean() + 0.1


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory):
    """A sentence-transformers model as one lies on a disk: a tiny BERT of random weights that averages its tokens."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("sentences")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({*"abcdefghijklmnopqrstuvwxyz0123456789.,:()=+-/*"})]
    words += [f"##{word}" for word in words[5:]]
    (folder / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder / "bert")
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    layers = [modules.Transformer(str(folder / "bert")), modules.Pooling(32)]
    SentenceTransformer(modules=layers).save(str(folder / "model"))
    return folder / "model"


def test_a_sentence_embedding_model_reads_the_texts(pool, lm, sentence_model):
    from sentence_transformers import SentenceTransformer

    rows = pool.rows(lm.tokenizer, SEQ_LEN)
    vectors = embed(f"sentence-transformers:{sentence_model}", lm, (pool, rows))[0]
    expected = SentenceTransformer(str(sentence_model)).encode(list(rows.texts), normalize_embeddings=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    found = cover(pool, lm, aim(), seq_len=SEQ_LEN, embedding=f"sentence-transformers:{sentence_model}")
    assert set(found.chosen) <= set(pool.samples)


def test_embeddings_that_are_not_there_are_named(pool, lm, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    rows = pool.rows(lm.tokenizer, SEQ_LEN)
    with pytest.raises(UnknownNameError, match="unknown embedding 'modle'; nearest: model"):
        embed("modle", lm, (pool, rows))
    with pytest.raises(SpecError, match="needs the package sentence-transformers"):
        embed("sentence-transformers:all-MiniLM-L6-v2", lm, (pool, rows))


# ---------------------------------------------------------------------------------------------
# COLA


def test_the_projected_space_is_that_of_unit_vectors_side_by_side(pool, lm):
    rows = pool.rows(lm.tokenizer, SEQ_LEN)
    found = activation_vectors(pool, lm, rows, seed=5, width=7)
    pooled = row_features(lm, rows.tokens, {"p": pooled_probe(range(3))}, progress=False)["p"]
    unit = torch.nn.functional.normalize(pooled, dim=-1).flatten(1).double()
    matrix = torch.randn(3, 32, 7, generator=torch.Generator().manual_seed(5)).flatten(0, 1).double() / math.sqrt(7)
    np.testing.assert_allclose(found, (unit @ matrix).numpy(), rtol=1e-3, atol=1e-5)
    # A Gaussian projection divided by √width keeps squared lengths in expectation.
    wide = activation_vectors(pool, lm, rows, seed=5, width=2000)
    np.testing.assert_allclose(np.square(wide).sum(1), 3, rtol=0.15)


def test_streaming_chooses_what_clustering_the_whole_pool_does(pool, lm):
    samples = [sample for some in pool.samples.values() for sample in some]
    calls = []

    def read():
        calls.append(1)
        return candidates(iter(samples), lm.tokenizer, seq_len=SEQ_LEN)

    found = select_streaming(lm, read, n_samples=5, seq_len=SEQ_LEN, seed=3, window=7)
    rows = pool.rows(lm.tokenizer, SEQ_LEN)
    nearest = nearest_to_centres(activation_vectors(pool, lm, rows, seed=3), 5, 3)
    assert found.sample_ids == tuple(rows.tokens.sample_ids[i] for i in sorted(nearest))
    assert len(calls) == 2 and found.seed == 3
    with pytest.raises(DataError, match="no candidates"):
        select_streaming(lm, lambda: [], n_samples=5, seq_len=SEQ_LEN)
    once = candidates(iter(samples), lm.tokenizer, seq_len=SEQ_LEN)
    with pytest.raises(DataError, match="5 rows were chosen and 0 found again"):
        select_streaming(lm, lambda: once, n_samples=5, seq_len=SEQ_LEN)


def test_token_similarity_by_hand():
    p, q = {1: 0.5, 2: 0.5}, {1: 0.25, 2: 0.75}
    kl = 0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)
    lk = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert token_similarity(p, q) == pytest.approx(1 - (kl + lk) / 2 / math.log(2), rel=1e-6)
    assert token_similarity(p, p) == pytest.approx(1)
    assert token_similarity({1: 1.0}, {2: 1.0}) == 0


@pytest.mark.parametrize("capability", ["math", "code"])
def test_stage_one_finds_the_source_of_the_target(pool, lm, capability):
    target = Target(capability, {capability: texts(capability, 8, seed=5)}, {capability: 1.0})
    found = cover(pool, lm, target, seq_len=SEQ_LEN, embedding="tfidf")
    assert found.chosen[0] == capability and all(gain > 0 for gain in found.gains)
    table = found.table.set_index("source")["coverage"]
    assert table.idxmax() == capability
    only = strategy("cola", n_sources=1, embedding="tfidf")
    chosen = only.select(
        pool, lm, n_samples=4, seq_len=SEQ_LEN, target=target, generator=torch.Generator().manual_seed(0)
    )
    assert set(chosen.sources) == {capability}


def test_stage_one_draws_whole_texts_and_not_the_first_rows(lm):
    """A source that begins with one long document is more than that document."""
    digits, words = Sample("long", "0110 1001 " * 400, "mixed"), texts("code", 30, seed=1)
    pool = Pool({"mixed": [digits, *words], "digits": [Sample("d", "0110 1001 " * 40, "digits")]})
    rows = pool.whole_texts(lm.tokenizer, SEQ_LEN, most=20, seed=0)
    assert rows.sources.count("mixed") == 20 and len(set(rows.tokens.sample_ids)) == 21
    assert max(rows.lengths) == SEQ_LEN and max(map(len, rows.texts)) > 2 * SEQ_LEN, "texts are whole, rows are not"
    others = [pool.whole_texts(lm.tokenizer, SEQ_LEN, most=20, seed=seed).tokens.sample_ids for seed in (0, 1)]
    assert others[0] == rows.tokens.sample_ids != others[1], "a seed decides"
    alone = pool.only(["mixed"]).whole_texts(lm.tokenizer, SEQ_LEN, most=20, seed=0)
    assert alone.tokens.sample_ids == rows.tokens.sample_ids[:20], "other sources do not"
    target = Target("code", {"code": texts("code", 8, seed=5)}, {"code": 1.0})
    assert cover(pool, lm, target, seq_len=SEQ_LEN, embedding="tfidf", n_sources=1).chosen == ("mixed",)


def test_a_set_of_sources_covers_what_no_source_covers_alone(pool, lm):
    found = cover(pool, lm, aim(), seq_len=SEQ_LEN, embedding="tfidf")
    assert set(found.chosen[:2]) == {"math", "code"}


def test_the_rows_nearest_to_the_centres_are_of_different_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 4)) * 20
    sizes = (40, 30, 20, 10, 5)
    vectors = np.concatenate([c + rng.normal(size=(n, 4)) for c, n in zip(centres, sizes, strict=True)])
    owner = np.repeat(range(5), sizes)
    found = nearest_to_centres(vectors, 5, seed=0)
    assert owner[found].tolist() == [0, 1, 2, 3, 4]  # large clusters first
    for i, position in enumerate(found):
        own = vectors[owner == i]
        distance = np.square(own - own.mean(0)).sum(1)
        assert np.allclose(vectors[position], own[distance.argmin()])
    with pytest.raises(DataError, match="1 of them different"):
        nearest_to_centres(np.ones((9, 2)), 2, seed=0)


def test_stages_can_be_switched_off_one_by_one(pool, lm):
    fingerprints = set()
    for domain, composition, activation in itertools.product((True, False), repeat=3):
        options = {"domain": domain, "composition": composition, "activation": activation, "n_sources": 2}
        found = select("cola", pool, lm, embedding="tfidf", **options)
        fingerprints.add(found.fingerprint)
        if domain:
            assert set(found.sources) <= {"math", "code"}
    assert len(fingerprints) == 8


# ---------------------------------------------------------------------------------------------
# activation space


def test_rows_like_the_targets_are_nearest_to_its_centroid(pool, lm):
    target = Target("code", {"code": texts("code", 8, seed=5)}, {"code": 1.0})
    chooser = strategy("centroid_distance")
    found = chooser.select(pool, lm, n_samples=5, seq_len=SEQ_LEN, target=target, generator=torch.Generator())
    assert found.sources.count("code") >= 4
    mixed = select("centroid_distance", pool, lm, n=6)
    assert mixed.sources.count("code") >= 2 and mixed.sources.count("math") >= 2


def test_a_greedy_cover_takes_what_adds_most_and_begins_anew(caplog):
    covers = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=bool)
    weights = np.array([1.0, 1.0, 3.0, 0.5])
    assert greedy_cover(covers, weights, 4) == [1, 0, 2, 3]
    assert greedy_cover(np.zeros((3, 2), dtype=bool), np.ones(2), 3) == [0, 1, 2]
    assert "the last 3 of 3 rows cover no outlier" in caplog.text


def test_without_an_outlier_there_is_nothing_to_cover(pool, lm):
    with pytest.raises(DataError, match="no channel's peak is above 1e\\+09 times the median"):
        select("outlier_cover", pool, lm, threshold=1e9)


def test_a_source_without_rows_takes_no_place_in_stage_one(lm, caplog):
    """Math is what the target is like, and all of it is too short for stage two."""
    pool = Pool({"math": [sample("math", i, "7") for i in range(9)], "web": texts("web", 12)})
    chosen = select("cola", pool, lm, n=3, n_sources=1, embedding="tfidf")
    assert set(chosen.sources) == {"web"}
    assert "9 of 9 texts of math are too short for rows of 24 tokens" in caplog.text


def test_greedy_volume_equals_the_determinant_step_by_step():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(14, 5)) * rng.gamma(1, 1, size=(14, 1))
    scaled = X / np.sqrt(np.square(X).mean())
    order, chosen = greedy_volume(X, 6), []
    for best in order:
        volume = {
            i: np.linalg.slogdet(np.eye(5) + scaled[[*chosen, i]].T @ scaled[[*chosen, i]])[1]
            for i in range(14)
            if i not in chosen
        }
        assert best == max(volume, key=volume.get)
        chosen.append(best)


# ---------------------------------------------------------------------------------------------
# generation


def test_generated_rows_begin_with_texts_and_end_where_the_model_ends(pool, lm):
    found = select("self_generated", pool, lm, n=5, n_given=3)
    rows = pool.rows(lm.tokenizer, SEQ_LEN).tokens
    begins = {tuple(row[:3].tolist()) for row in rows.input_ids}
    assert {tuple(row[:3].tolist()) for row in found.input_ids} <= begins
    assert set(found.sources) == {"self-generated"} and found.layout == "generated"
    for ids, mask in zip(found.input_ids, found.attention_mask, strict=True):
        written = ids[mask].tolist()[3:]
        assert 0 not in written[:-1]  # the end-of-sequence token comes last or never
    free = select("self_calibrated", pool, lm, n=4)
    assert (free.input_ids[:, 0] == 0).all() and free.attention_mask[:, 1].all()


def test_dropping_the_most_surprising_lowers_the_perplexity(pool, lm):
    kept, all_ = (select("self_generated", pool, lm, n=n, drop=d) for n, d in ((4, 0.5), (8, 0.0)))
    assert row_nll(lm, kept, progress=False).max() < row_nll(lm, all_, progress=False).max()


@pytest.mark.parametrize("name", ["self_calibrated", "self_generated"])
def test_the_checkpoints_own_sampling_settings_do_not_count(pool, name):
    lm = tiny_language_model(vocab_size=264, tokenizer=byte_tokenizer(), eos_token_id=0, bos_token_id=0)
    expected = select(name, pool, lm, n=4)
    own = GenerationConfig(do_sample=True, temperature=0.1, repetition_penalty=1.5, top_k=3, min_p=0.5)
    lm.model.generation_config = own
    assert select(name, pool, lm, n=4).input_ids.equal(expected.input_ids)
    assert lm.model.generation_config is own


def test_generation_leaves_the_global_generator_alone(pool, lm):
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    select("self_calibrated", pool, lm, n=2)
    assert torch.equal(torch.random.get_rng_state(), before)


# ---------------------------------------------------------------------------------------------
# small parts


def test_rows_are_shared_out_by_largest_remainder():
    assert shares({"a": 1.0, "b": 1.0, "c": 1.0}, 7) == {"a": 3, "b": 2, "c": 2}
    assert shares({"a": 0.7, "b": 0.2, "c": 0.1}, 4) == {"a": 3, "b": 1, "c": 0}
    assert sum(shares({"a": 0.31, "b": 0.33, "c": 0.36}, 100).values()) == 100


def test_alternating_takes_turns_and_nothing_twice():
    assert alternating([[1, 2, 3], [4], [5, 2]]) == [1, 4, 5, 2, 3]
