"""The words of a sample: what each format holds, and that formats can be compared on the same items."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from transformers import AutoTokenizer

from cola_lib.calibration import FORMATS, Format, build_calibration_set, calibration_set, draw_samples, formats_of
from cola_lib.calibration.formats import Wording, _solved
from cola_lib.calibration.tokenization import tokenize
from cola_lib.cli.compress import FORMATS as FORMAT_NAMES
from cola_lib.curation import candidates
from cola_lib.data import Sample, load_samples
from cola_lib.errors import ColaError, DataError, SpecError, UnknownNameError
from tests.byte_tokenizer import byte_tokenizer
from tests.test_cli import assert_refused, run

STRUCTURED = [name for name in FORMATS if name != "text"]
WEB = Sample("w1", "Some page of the web.", "c4")
WORKED = Sample("q1", "as it came", "mine.jsonl", question="1 + 2?", reasoning="One and two make three.", answer="3")
BARE = replace(WORKED, id="q2", reasoning=None)
BOXED = replace(WORKED, id="q3", reasoning=r"Add them: $\boxed{3}$.")
CHOICE = Sample("q4", "as it came", "mine.jsonl", question="Sky?", answer="B", choices=("red", "blue"), gold=1)


def templated(template: str, *, bos: bool = False):
    """Byte tokenizer with a chat template, that adds ``<s>`` to every text by itself if asked to."""
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return tokenizer


TURNS = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


# ---------------------------------------------------------------------------------------------
# words


@pytest.mark.parametrize(
    ("name", "sample", "words"),
    [
        ("text", WORKED, "as it came"),
        ("question", WORKED, "1 + 2?"),
        ("question_answer", WORKED, "Question: 1 + 2?\nAnswer: 3"),
        (
            "question_reasoning",
            WORKED,
            "Question: 1 + 2?\nAnswer: One and two make three.\nThe answer is 3.",
        ),
        ("question_reasoning", BOXED, "Question: 1 + 2?\nAnswer: Add them: $\\boxed{3}$."),
        ("question_answer", BOXED, "Question: 1 + 2?\nAnswer: 3"),
        ("question_answer", CHOICE, "Question: Sky?\nAnswer: blue"),
        ("chat", WORKED, "<s>[user] 1 + 2?\n[assistant] One and two make three.\nThe answer is 3.\n"),
        ("chat", BOXED, "<s>[user] 1 + 2?\n[assistant] Add them: $\\boxed{3}$.\n"),
        ("chat", BARE, "<s>[user] 1 + 2?\n[assistant] 3\n"),
        ("chat", CHOICE, "<s>[user] Sky?\n[assistant] blue\n"),
    ],
)
def test_words(name, sample, words):
    assert FORMATS[name](sample, templated(TURNS), ()) == words


def test_few_shot_words():
    expected = (
        "Question: Sky?\nAnswer: blue\n\n"
        "Question: 1 + 2?\nAnswer: 3\n\n"
        "Question: 1 + 2?\nAnswer: One and two make three.\nThe answer is 3."
    )
    assert FORMATS["few_shot"](WORKED, None, (CHOICE, BARE)) == expected


@pytest.mark.parametrize(
    "source",
    ["gsm8k", "gsm8k:rationale=no", "math", "math:rationale=no", "mbpp:language=all", "humaneval", "lambada", "mmlu"]
    + ["arc", "boolq", "csqa", "hellaswag", "openbookqa", "piqa", "siqa", "winogrande"],
)
def test_all_that_an_item_has_is_its_own_text(source, assets_dir):
    """Reasoning where there is some, and the answer: the words of the source and those here cannot drift apart."""
    samples = load_samples(source, "all")
    assert [sample.id for sample in samples if _solved(sample) != sample.text] == []
    reasons = source in ("gsm8k", "math")
    assert {"question_reasoning" in formats_of(sample) for sample in samples} == {reasons}


def test_answers_of_choices_are_never_letters(assets_dir):
    for sample in load_samples("commonsense"):
        worded = FORMATS["question_answer"](sample)
        assert sample.choices[sample.gold] in worded
        assert FORMATS["question"](sample) == sample.question


def test_names_agree():
    assert tuple(FORMATS) == get_args(Format) == FORMAT_NAMES


# ---------------------------------------------------------------------------------------------
# what a sample lacks


@pytest.mark.parametrize("name", STRUCTURED)
def test_plain_text_has_one_format(name):
    assert formats_of(WEB) == ("text",)
    with pytest.raises(DataError, match=rf"source 'c4': sample w1 has no question.*'{name}' needs.*can take: text$"):
        FORMATS[name](WEB, templated(TURNS), ())


def test_missing_part_is_named_with_what_works():
    with pytest.raises(DataError, match="q2 has no reasoning.*text, question, question_answer, chat, few_shot$"):
        FORMATS["question_reasoning"](BARE)
    with pytest.raises(DataError, match="q1 has no answer.*can take: text, question$"):
        FORMATS["question_answer"](replace(WORKED, answer=""))
    with pytest.raises(DataError, match="sample w1 has no question and no answer"):
        FORMATS["few_shot"](WORKED, None, (WEB,))


def test_answer_key_outside_the_choices():
    for gold in (2, -1):
        with pytest.raises(DataError, match=rf"q4 has gold {gold}, and 2 choices"):
            FORMATS["question_answer"](replace(CHOICE, gold=gold))


def test_web_text_cannot_be_a_question(smollm2_tokenizer):
    with pytest.raises(DataError, match="c4.*can take: text"):
        calibration_set(["gsm8k", "c4"], smollm2_tokenizer, n_samples=2, seq_len=16, layout="pad", format="question")


def test_unknown_format_and_shots():
    options = {"n_samples": 1, "seq_len": 8, "layout": "pad"}
    with pytest.raises(UnknownNameError, match="unknown format 'questions'; nearest: question"):
        build_calibration_set([WORKED], byte_tokenizer(), format="questions", **options)
    with pytest.raises(SpecError, match="shots must be at least 1"):
        build_calibration_set([WORKED], byte_tokenizer(), format="few_shot", shots=0, **options)
    with pytest.raises(DataError, match="3 exemplars.*its draw has 0 other"):
        build_calibration_set([WORKED], byte_tokenizer(), format="few_shot", **options)


def test_command_line_refuses_an_unknown_format(tmp_path):
    result = run("compress", "--model", "m", "--method", "wanda", "--format", "caht", "--out", tmp_path / "out")
    assert_refused(result, "unknown format 'caht'; nearest: chat")


def test_command_line_passes_the_format_on(tmp_path, monkeypatch, smollm2_tokenizer):
    seen = {}

    def stop(names, tokenizer, **options):
        seen.update(options)
        raise SpecError("far enough")

    stand_in = SimpleNamespace(tokenizer=smollm2_tokenizer, check_length=lambda n_tokens: None)
    monkeypatch.setattr("cola_lib.cli.compress.load", lambda *a, **k: stand_in)
    monkeypatch.setattr("cola_lib.compress.settle", lambda lm, spec: spec)
    monkeypatch.setattr("cola_lib.calibration.calibration_set", stop)
    call = ("compress", "--model", "m", "--method", "wanda", "--source", "gsm8k", "--out", tmp_path / "out")
    assert_refused(run(*call, "--format", "chat"), "far enough")
    assert seen["format"] == "chat"
    assert_refused(run(*call), "far enough")
    assert seen["format"] == "text"


# ---------------------------------------------------------------------------------------------
# sets


# Of the commit before there were formats.
@pytest.mark.parametrize(
    ("options", "known"),
    [
        (dict(sources=["c4"], n_samples=4, seq_len=64), "bbb4317b14c2ebe72416"),
        (dict(sources=["gsm8k"], n_samples=4, seq_len=64), "551fc14bee93e546cdfc"),
        (
            dict(sources=["gsm8k", "commonsense", "math", "mbpp"], n_samples=8, seq_len=256, layout="pad"),
            "49a6e4ac4e91eec5a6fd",
        ),
        (
            dict(sources=["c4"], n_samples=3, seq_len=64, layout="truncate", seed=2, draw=1, n_draws=3),
            "4a57a4a837b1d97c21ec",
        ),
    ],
)
def test_sets_of_text_are_what_they_were(options, known, smollm2_tokenizer):
    assert calibration_set(tokenizer=smollm2_tokenizer, **options).fingerprint == known


@pytest.mark.parametrize("source", ["gsm8k", "math", "commonsense", "mbpp"])
def test_padded_rows_are_the_same_items_in_every_format(source, smollm2_tokenizer):
    names = [name for name in FORMATS if source in ("gsm8k", "math") or name != "question_reasoning"]
    options = dict(n_samples=6, seq_len=512, seed=3, draw=1, n_draws=2, layout="pad")
    sets = {name: calibration_set([source], smollm2_tokenizer, format=name, **options) for name in names}
    drawn = [s.id for s in draw_samples(load_samples(source), seed=3, draw=1, n_draws=2)[:6]]
    for name, found in sets.items():
        assert [ids[0] for ids in found.sample_ids] == drawn
        assert {len(ids) for ids in found.sample_ids} == {4 if name == "few_shot" else 1}
        assert found.format == name and found.sources == (source,) * 6
        assert (f"; {name}; " in found.summary()) == (name != "text")
    # Without reasoning, and the other way round, the words are those of the source itself.
    same = "question_reasoning" if source in ("gsm8k", "math") else "question_answer"
    assert [n for n, found in sets.items() if found.fingerprint == sets["text"].fingerprint] == ["text", same]


def test_rows_hold_the_words_of_their_format(smollm2_tokenizer):
    by_id = {sample.id: sample for sample in load_samples("gsm8k")}
    for name in FORMATS:
        found = calibration_set(["gsm8k"], smollm2_tokenizer, n_samples=3, seq_len=2048, layout="pad", format=name)
        for ids, mask, (own, *shots) in zip(found.input_ids, found.attention_mask, found.sample_ids, strict=True):
            words = FORMATS[name](by_id[own], smollm2_tokenizer, [by_id[i] for i in shots])
            assert smollm2_tokenizer.decode(ids[mask]) == words


def test_longer_than_a_row_is_cut_and_said(smollm2_tokenizer, caplog):
    options = dict(n_samples=4, layout="pad", format="question_answer")
    long = calibration_set(["gsm8k"], smollm2_tokenizer, seq_len=512, **options)
    assert "lose their end" not in caplog.text
    short = calibration_set(["gsm8k"], smollm2_tokenizer, seq_len=16, **options)
    assert torch.equal(short.input_ids, long.input_ids[:, :16]) and short.attention_mask.all()
    longest = int(long.attention_mask.sum(1).max())
    assert "4 of 4 samples are cut and lose their end: they have more than the 16 tokens of seq_len" in caplog.text
    assert f"the longest {longest}" in caplog.text


@pytest.mark.parametrize("layout", ["pack", "truncate"])
def test_other_layouts_take_formats_too(layout, smollm2_tokenizer):
    options = dict(n_samples=3, seq_len=40, layout=layout)
    sets = [calibration_set(["gsm8k"], smollm2_tokenizer, format=name, **options) for name in FORMATS]
    assert all(found.attention_mask.all() for found in sets)
    # gsm8k's own text is question, reasoning and answer
    assert len({found.fingerprint for found in sets}) == len(FORMATS) - 1


def test_formats_are_joined_in_a_mixture(smollm2_tokenizer, tmp_path):
    from cola_lib.calibration import interleave

    options = dict(n_samples=2, seq_len=32, layout="pad")
    parts = [
        calibration_set(["c4"], smollm2_tokenizer, **options),
        calibration_set(["gsm8k"], smollm2_tokenizer, format="chat", **options),
    ]
    mixed = interleave([interleave(parts), parts[1]])
    assert mixed.format == "text+chat"


# ---------------------------------------------------------------------------------------------
# chat


def test_chat_is_what_the_tokenizer_itself_makes(smollm2_tokenizer):
    sample = draw_samples(load_samples("gsm8k"), seed=0)[0]
    found = calibration_set(["gsm8k"], smollm2_tokenizer, n_samples=1, seq_len=1024, layout="pad", format="chat")
    turns = [
        {"role": "user", "content": sample.question},
        {"role": "assistant", "content": f"{sample.reasoning}\nThe answer is {sample.answer}."},
    ]
    expected = smollm2_tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    ids = found.input_ids[found.attention_mask].tolist()
    assert ids == expected
    start, end = smollm2_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert ids.count(start) == ids.count(end) == 3  # system, user, assistant: tokens, not the letters of their names


@pytest.mark.parametrize("bos", [False, True])
def test_chat_begins_with_one_bos(bos):
    tokenizer = templated(TURNS, bos=bos)
    options = dict(n_samples=1, seq_len=200, layout="pad")
    found = build_calibration_set([WORKED], tokenizer, format="chat", **options)
    assert (found.input_ids[found.attention_mask] == 0).sum() == 1 and found.input_ids[0, 0] == 0
    plain = build_calibration_set([WORKED], tokenizer, format="question", **options)
    assert (plain.input_ids[plain.attention_mask] == 0).sum() == bos  # other formats: as the tokenizer does


SYSTEM = {"role": "system", "content": "Be kind."}
DIALOGUE = (SYSTEM, *({"role": role, "content": f"{role} {i}"} for i in (1, 2) for role in ("user", "assistant")))
CHATTED = Sample("c1", "the words", "chats.jsonl", messages=DIALOGUE, question="user 2", answer="assistant 2")
WRITTEN = "<s>[system] Be kind.\n[user] user 1\n[assistant] assistant 1\n[user] user 2\n[assistant] assistant 2\n"


@pytest.mark.parametrize("name", ["text", "chat"])
def test_a_chat_keeps_all_of_its_turns(name):
    assert FORMATS[name](CHATTED, templated(TURNS)) == WRITTEN
    assert formats_of(CHATTED) == ("text", "question", "question_answer", "chat", "few_shot")
    assert formats_of(replace(CHATTED, question=None)) == ("text", "chat")


@pytest.mark.parametrize("layout", ["pack", "truncate", "pad"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("sample", [CHATTED, replace(WORKED, text=WRITTEN)])
def test_one_bos_whatever_the_route(sample, form, bos, layout):
    """The template writes it and the tokenizer adds it; or it was written into the text before."""
    tokenizer = templated(TURNS, bos=bos)
    found = build_calibration_set([sample], tokenizer, n_samples=1, seq_len=32, layout=layout, format=form)
    ids = found.input_ids[found.attention_mask].tolist()
    assert layout == "truncate" or (ids[0] == 0 and ids[1] != 0)
    (whole,) = tokenize([sample], tokenizer, Wording(form, [sample], tokenizer))
    assert whole[1].count(0) == 1 and whole[1][0] == 0
    (cut, *_) = candidates([sample], tokenizer, seq_len=200)
    assert cut.ids.count(0) == 1 and cut.text == WRITTEN


def test_chats_and_texts_are_mixed_in_their_order():
    samples = [WEB, CHATTED, replace(WEB, id="w2"), replace(CHATTED, id="c2")]
    tokenizer = templated(TURNS, bos=True)
    for (sample, ids), given in zip(tokenize(samples, tokenizer), samples, strict=True):
        assert sample is given
        assert tokenizer.decode(ids) == (WRITTEN if given.messages else f"<s>{given.text}")


def test_a_chat_is_what_the_tokenizer_itself_makes(smollm2_tokenizer):
    (_, ids), *_ = tokenize([CHATTED], smollm2_tokenizer)
    assert ids == smollm2_tokenizer.apply_chat_template(list(DIALOGUE), tokenize=True, return_dict=False)


def test_a_chat_without_a_template_is_refused_with_its_choices():
    with pytest.raises(SpecError, match="'question_answer'.*--format"):
        build_calibration_set([CHATTED], byte_tokenizer(), n_samples=1, seq_len=8, layout="pad")
    with pytest.raises(SpecError, match="chat template"):
        list(candidates([CHATTED], byte_tokenizer(), seq_len=8))
    assert build_calibration_set(
        [CHATTED], byte_tokenizer(), n_samples=1, seq_len=8, layout="pad", format="question_answer"
    )


def test_tools_reach_the_template_or_are_refused():
    tool = {"type": "function", "function": {"name": "weather"}}
    called = replace(CHATTED, tools=(tool,))
    listed = templated("{% for t in tools %}{{ t.function.name }} {% endfor %}" + TURNS)
    assert FORMATS["text"](called, listed) == "weather " + WRITTEN
    with pytest.raises(SpecError, match="c1 comes with tools"):
        FORMATS["text"](called, templated(TURNS))


def test_a_template_that_refuses_a_chat_names_it():
    with pytest.raises(ColaError, match="sample c1.*no system role"):
        FORMATS["text"](CHATTED, templated("{{ raise_exception('no system role') }}"))


def test_a_chat_that_is_cut_is_counted(caplog):
    build_calibration_set([CHATTED, WEB], templated(TURNS), n_samples=2, seq_len=8, layout="pad")
    assert "1 of 2 samples are cut" in caplog.text


def test_samples_without_chats_keep_their_fingerprint():
    from cola_lib.fingerprint import fingerprint

    assert WORKED.fingerprint == fingerprint(["q1", "as it came", "1 + 2?", "One and two make three.", "3", ()])
    assert len({CHATTED.fingerprint, replace(CHATTED, messages=()).fingerprint, hash(CHATTED)}) == 3


def test_no_template_is_refused():
    assert byte_tokenizer().chat_template is None and templated(TURNS).chat_template
    with pytest.raises(SpecError, match="needs the tokenizer's chat template.*set tokenizer.chat_template"):
        build_calibration_set([WORKED], byte_tokenizer(), n_samples=1, seq_len=8, layout="pad", format="chat")


def test_a_template_with_the_date_gives_the_same_bytes_every_day():
    dated = templated("{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}")
    asked = dated.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert asked != "26 Jul 2024: hello"  # left to itself it gives the day's own date
    assert FORMATS["chat"](WORKED, dated) == "26 Jul 2024: 1 + 2?"


# ---------------------------------------------------------------------------------------------
# exemplars


def pool(n: int, source: str = "mine.jsonl") -> list[Sample]:
    return [replace(WORKED, id=f"{source}{i:03}", question=f"{i} + 2?", source=source) for i in range(n)]


@pytest.mark.parametrize("shots", [1, 3, 5])
@pytest.mark.parametrize("n", [6, 7, 40])
def test_exemplars_are_others_of_the_draw(n, shots):
    drawn = draw_samples(pool(n), seed=1)
    wording = Wording("few_shot", drawn, None, shots=shots)
    for sample in drawn:
        chosen = [shot.id for shot in wording.exemplars(sample.id)]
        assert len(set(chosen)) == shots and sample.id not in chosen
        assert wording.text(sample).endswith(_solved(sample))
        assert wording.text(sample).count("\n\n") == shots


def test_no_text_comes_twice_while_the_draw_suffices():
    drawn = draw_samples(pool(40), seed=1)
    wording = Wording("few_shot", drawn, None, shots=3)
    used = [sample_id for sample in drawn[:10] for sample_id in wording.provenance([sample.id])]
    assert len(used) == len(set(used)) == 40


def test_exemplars_stay_in_the_draw_and_do_not_depend_on_rows():
    def build(**options):
        return build_calibration_set(
            pool(30), byte_tokenizer(), **{"seq_len": 64, "layout": "pad", "format": "few_shot", "n_draws": 3} | options
        )

    draws = [build(n_samples=4, draw=d) for d in range(3)]
    ids = [{i for row in found.sample_ids for i in row} for found in draws]
    assert not (ids[0] & ids[1] or ids[1] & ids[2] or ids[0] & ids[2])
    assert build(n_samples=9).rows(0, 4).sample_ids == draws[0].sample_ids
    assert build(n_samples=9).rows(0, 4).fingerprint == draws[0].fingerprint
    assert {len(row) for row in build(n_samples=4, shots=2).sample_ids} == {3}


def test_exemplars_are_of_the_same_source():
    both = [*pool(8, "a.jsonl"), *pool(8, "b.jsonl")]
    wording = Wording("few_shot", draw_samples(both, seed=0), None, shots=3)
    for sample in both:
        assert {shot.source for shot in wording.exemplars(sample.id)} == {sample.source}


def test_text_is_the_tokenizers_own_call(smollm2_tokenizer):
    """Loaded anew: no option is left behind on the tokenizer by a set in another format."""
    from cola_lib import assets

    options = dict(n_samples=2, seq_len=32, layout="pad")
    calibration_set(["gsm8k"], smollm2_tokenizer, format="chat", **options)
    fresh = AutoTokenizer.from_pretrained(assets.model_dir())
    found = [calibration_set(["gsm8k"], tokenizer, **options) for tokenizer in (smollm2_tokenizer, fresh)]
    assert found[0].fingerprint == found[1].fingerprint
