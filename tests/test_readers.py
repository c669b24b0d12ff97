"""The user's own data as people have them: kinds of files, shapes of rows, faults and bombs."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import os
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cola_lib.data import files, load_samples
from cola_lib.data.layouts import SHAPES, recognized
from cola_lib.errors import ColaError, DataError, UnknownNameError

TEXTS = [f"text number {i}, with ü and \u2028 in it" for i in range(30)]
LINES = "".join(json.dumps({"text": text, "id": i}, ensure_ascii=False) + "\n" for i, text in enumerate(TEXTS)).encode()


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


def table(rows, delimiter=","):
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


WRITTEN = {
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": json.dumps([{"text": text, "id": i} for i, text in enumerate(TEXTS)], indent=1).encode(),
    ".csv": table([["id", "text"], *enumerate(TEXTS)]),
    ".tsv": table([["id", "text"], *enumerate(TEXTS)], "\t"),
    ".txt": "\n\n".join(TEXTS).encode(),
}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("suffix", WRITTEN)
@pytest.mark.parametrize("bom", [False, True])
def test_kinds_of_files(tmp_path, suffix, packed, bom):
    path = tmp_path / f"mine{suffix}{packed}"
    path.write_bytes(PACK[packed](b"\xef\xbb\xbf" * bom + WRITTEN[suffix]))
    assert [sample.text for sample in load_samples(str(path))] == TEXTS
    assert [sample.text for sample in load_samples(f"{path}:rows=3")] == TEXTS[:3]
    assert [sample.text for sample in load_samples(f"hf:{path}::train[:4]")] == TEXTS[:4]


@pytest.mark.parametrize("packed", [".gz", ".zst", ".bz2", ".xz"])
def test_several_frames_are_one_file(tmp_path, packed):
    path = tmp_path / f"two.jsonl{packed}"
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    path.write_bytes(PACK[packed](LINES[:half]) + PACK[packed](LINES[half:]))
    assert len(load_samples(str(path))) == len(TEXTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(str(path))


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(TEXTS),
        json.dumps([{"text": text} for text in TEXTS]),
        json.dumps({"version": 1, "data": [{"text": text} for text in TEXTS]}),
        json.dumps({"version": 1, "data": [{"text": text} for text in TEXTS]}, indent=2),
        "\n\n" + "\n".join(json.dumps({"text": text}) for text in TEXTS),
        "[\n" + ",\n".join(json.dumps({"text": text}) for text in TEXTS) + "\n]\n",
    ],
)
@pytest.mark.parametrize("piece", [7, 2**20])
def test_json_in_any_arrangement(tmp_path, monkeypatch, content, piece):
    if not content.startswith(("[", "{")) or "version" in content:
        piece = 2**20  # what the file is, is seen from its first piece
    monkeypatch.setattr(files, "_PIECE", piece)
    path = tmp_path / "any.json"
    path.write_text(content)
    assert [sample.text for sample in load_samples(str(path))] == TEXTS


def test_one_of_several_lists(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}]}))
    with pytest.raises(DataError, match=":split=train"):
        load_samples(str(path))
    assert load_samples(f"{path}:split=test")[0].text == "b"
    with pytest.raises(DataError, match="train, test"):
        load_samples(f"{path}:split=dev")


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_tables_with_quotes_lines_and_other_delimiters(tmp_path, delimiter):
    path = tmp_path / "mine.csv"
    rows = [["id", "text"], ["1", 'said "no", and;left|so\t'], ["2", "two\nlines\n\nand more"], ["3", "x" * 200_000]]
    path.write_bytes(table(rows, delimiter))
    assert [sample.text for sample in load_samples(str(path))] == [row[1] for row in rows[1:]]


def test_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "notes" / "deep"
    home.mkdir(parents=True)
    (home / "b.txt").write_text("two\n\nparagraphs")
    (home.parent / "a.md").write_text("# Title\n\ntext\n")
    (home.parent / "picture.png").write_bytes(b"\x89PNG")
    texts = ["# Title\n\ntext\n", "two\n\nparagraphs"]
    for name in ("notes", "notes/", "./notes", "notes/**/*", str(home.parent)):
        assert [sample.text for sample in load_samples(name)] == texts, name
    assert [sample.text for sample in load_samples("notes/*.md")] == texts[:1]
    assert load_samples("notes/deep/b.txt")[0].text == "two", "one file of texts, separated by blank lines"
    (tmp_path / "c4").mkdir()
    (tmp_path / "c4" / "a.md").write_text("mine")
    assert load_samples("./c4")[0].text == "mine"


def test_a_folder_does_not_hide_a_source(assets_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openbookqa").mkdir()
    (tmp_path / "openbookqa" / "a.md").write_text("mine")
    assert load_samples("openbookqa")[0].domain == "commonsense"


def test_saved_datasets(tmp_path):
    import datasets

    rows = [{"messages": [{"role": "user", "content": text}], "text": None} for text in TEXTS]
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved.select(range(3)), "test": saved.select([5])}).save_to_disk(tmp_path / "both")
    assert [sample.text for sample in load_samples(f"{tmp_path}/one")] == TEXTS
    assert len(load_samples(f"{tmp_path}/both")) == 3
    assert load_samples(f"{tmp_path}/both:split=test")[0].text == TEXTS[5]
    assert len(load_samples(f"hf:{tmp_path}/both::test")) == 1
    with pytest.raises(UnknownNameError):
        load_samples(f"{tmp_path}/both:split=dev")
    state = tmp_path / "one" / "state.json"
    state.write_text(state.read_text().replace("data-00000-of-00001.arrow", "../both/test/data-00000-of-00001.arrow"))
    with pytest.raises(DataError, match="outside the folder"):
        load_samples(f"{tmp_path}/one")


@pytest.mark.parametrize(
    "pattern",
    ["../secret.jsonl", "../*", "sub/../../secret.jsonl", "/etc/passwd", "link.jsonl", "https://x.test/a.jsonl"],
)
def test_a_dataset_that_reaches_outside_its_folder_is_refused(tmp_path, pattern):
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    home = tmp_path / "set"
    (home / "sub").mkdir(parents=True)
    (home / "train.jsonl").write_text('{"text": "mine"}\n')
    (home / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (home / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {pattern!r}\n---\n")
    for name in (f"hf:{home}", str(home)):
        with pytest.raises(DataError):
            load_samples(name)
    (home / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n")
    (home / "link.jsonl").unlink()
    assert [sample.text for sample in load_samples(f"hf:{home}")] == ["mine"]


def test_only_regular_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "device.txt", "*.jsonl"):
        with pytest.raises(DataError, match=r"regular file|outside"):
            load_samples(f"{tmp_path}/{name}")
    with pytest.raises(DataError, match="regular file"):
        load_samples(f"hf:{tmp_path}/pipe.jsonl")
    (tmp_path / "pipe.jsonl").unlink()
    with pytest.raises(DataError, match="outside the folder"):
        load_samples(str(tmp_path))


# ---------------------------------------------------------------------------------------------
# bombs

GROWTH = """
import resource, sys
from cola_lib.data import load_samples
from cola_lib.errors import DataError
for name in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        n = len(load_samples(name))
    except DataError as error:
        n = "refused"
    print(n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.fault
def test_kilobytes_do_not_become_gigabytes(tmp_path):
    """Each of these expands to 3 GB."""
    million = b"a" * 10**6
    wrapped = {
        "a.jsonl": (b'{"text": "', b'"}'),
        "a.json": (b'["', b'"]'),
        "a.csv": (b'text\n"', b'"'),
        "a.txt": (b"", b""),
    }
    for name, (before, after) in wrapped.items():
        with pa.output_stream(str(tmp_path / f"{name}.zst"), compression="zstd") as file:
            file.write(before)
            for _ in range(3000):
                file.write(million)
            file.write(after)
    texts = pa.array([million.decode()]).dictionary_encode()
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int8()), texts.dictionary)
    pq.write_table(pa.table({"id": range(3000), "text": repeated}), tmp_path / "a.parquet")
    with pa.output_stream(str(tmp_path / "many.jsonl.zst"), compression="zstd") as file:
        for _ in range(3000):
            file.write(b'{"text": "%s"}\n' % million)
    rows = ["a.parquet", "many.jsonl.zst"]
    names = [*(f"{name}.zst" for name in wrapped), *rows]
    assert all((tmp_path / name).stat().st_size < 2**20 for name in names)
    named = [f"{tmp_path}/{name}" for name in (*names, *(f"{name}:rows=1" for name in rows))]
    done = subprocess.run([sys.executable, "-c", GROWTH, *named], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["refused"] * len(names) + ["1"] * len(rows), done.stderr
    assert max(int(line[1]) for line in lines) < 1200, done.stdout


# ---------------------------------------------------------------------------------------------
# shapes of rows

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
PAIR = [USER, ASSISTANT]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("record", "turns"),
    [
        ({"messages": PAIR}, PAIR),
        ({"prompt": "Hi", "prompt_id": "00", "messages": PAIR}, PAIR),
        ({"messages": [SYSTEM, *PAIR, *PAIR]}, [SYSTEM, *PAIR, *PAIR]),
        ({"messages": json.dumps(PAIR)}, PAIR),
        ({"messages": [{**USER, "name": None}, {**ASSISTANT, "tool_calls": None}]}, PAIR),
        ({"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in PAIR]}, PAIR),
        ({"messages": [{"role": "developer", "content": "Be kind."}, *PAIR]}, [SYSTEM, *PAIR]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": "c"}, PAIR),
        ({"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
         [SYSTEM, *PAIR]),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, PAIR),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"},
         [{"role": "user", "content": "Add.\n\n1, 2"}, {"role": "assistant", "content": "3"}]),
        ({"instruction": "Hi", "context": None, "response": "Hello", "category": "x"}, PAIR),
        ({"system_prompt": "Be kind.", "question": "Hi", "response": "Hello"}, [SYSTEM, *PAIR]),
        ({"prompt": "Hi", "response": "Hello"}, PAIR),
        ({"problem": "Hi", "solution": "Hello"}, PAIR),
        ({"prompt": [USER], "completion": [ASSISTANT]}, PAIR),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}, PAIR),
        ({"prompt": "Hi", "chosen": PAIR, "rejected": [USER]}, PAIR),
        ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}, PAIR),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, PAIR),
    ],
)  # fmt: skip
def test_chats(tmp_path, record, turns):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(record))
    (sample,) = load_samples(str(path))
    assert list(sample.messages) == turns
    assert all(turn["content"] in sample.text for turn in turns)
    assert sample.answer == turns[-1]["content"] and turns[-2]["content"] in sample.question
    path = tmp_path / "chats.parquet"
    pq.write_table(pa.Table.from_pylist([record]), path)
    assert list(load_samples(str(path))[0].messages) == turns


@pytest.mark.parametrize("as_text", [False, True])
def test_tools_and_their_calls_are_kept(tmp_path, as_text):
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    answering = {"role": "tool", "content": "2", "tool_call_id": "1"}
    path = tmp_path / "tools.jsonl"
    tools = json.dumps([TOOL]) if as_text else [TOOL]
    path.write_text(json.dumps({"messages": [USER, calling, answering, ASSISTANT], "tools": tools}))
    (sample,) = load_samples(str(path))
    assert list(sample.tools) == [TOOL]
    assert sample.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert sample.messages[1]["content"] == "" and sample.messages[2]["tool_call_id"] == "1"


CHOICES = ["the light", "the gate", "the river"]
ASKED = {"question": "What?", "choices": CHOICES}


@pytest.mark.parametrize(
    "record",
    [
        ASKED | {"answer": 1},
        ASKED | {"answer": 1.0},
        ASKED | {"answer": "B"},
        ASKED | {"answer": "(b)"},
        ASKED | {"answer": "B. the gate"},
        ASKED | {"answer": "1"},
        ASKED | {"answer": " The gate"},
        ASKED | {"answer": "B", "gold": 1},
        ASKED | {"answerKey": "B"},
        ASKED | {"choices": json.dumps(CHOICES), "answer": "1"},
        {"question": "What?", "options": dict(zip("ABC", CHOICES, strict=True)), "answer_idx": "B"},
        ASKED | {"choices": [{"label": k, "text": t} for k, t in zip("ABC", CHOICES, strict=True)], "answerKey": "B"},
    ],
)  # fmt: skip
def test_the_answer_of_a_choice_is_its_words(tmp_path, record):
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps(record | {"subject": "rivers"}))
    (sample,) = load_samples(str(path))
    assert sample.text == "Question: What?\nAnswer: the gate"
    assert (sample.answer, sample.gold, sample.choices, sample.subject) == ("the gate", 1, tuple(CHOICES), "rivers")


@pytest.mark.parametrize("answer", [3, -2, "D", "7", 0.5, ["B"]])
def test_an_answer_that_no_choice_is_is_refused(tmp_path, answer):
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps(ASKED | {"answer": answer}))
    with pytest.raises(DataError, match=r"line 1.*3 choices|line 1.*Answer") as caught:
        if load_samples(str(path))[0].text == "Question: What?\nAnswer: 7":
            pytest.fail("an index was taken for the answer")
    assert "choices.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"question": "Is it?", "answer": True}, "Question: Is it?\nAnswer: yes"),
        ({"question": "Is it?", "answer": False, "passage": "It is not."}, "Question: It is not.\nIs it?\nAnswer: no"),
        ({"question": "Who?", "answer": {"value": "I", "aliases": ["me"]}}, "Question: Who?\nAnswer: I"),
        ({"question": "Who?", "answer": ["I", "me"]}, "Question: Who?\nAnswer: I"),
        ({"question": "Who?", "context": "Me.", "answers": {"text": ["I"], "answer_start": [0]}},
         "Question: Me.\nWho?\nAnswer: I"),
        ({"question": "Q", "answer": 4, "reasoning": "2 and 2"}, "Question: Q\nAnswer: 2 and 2\nThe answer is 4."),
        ({"prompt": "Once upon", "completion": " a time"}, "Once upon a time"),
        ({"prompt": "1 + 1 =", "completion": "2"}, "1 + 1 =\n2"),
        ({"text": "plain", "messages": PAIR, "answer": {"x": 1}}, "plain"),
        ({"text": None, "messages": PAIR}, "Hi\n\nHello"),
        ({"content": "plain", "meta": [1]}, "plain"),
    ],
)  # fmt: skip
def test_items_and_texts(tmp_path, record, text):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(record))
    assert load_samples(str(path))[0].text == text


def test_a_named_column_wins(tmp_path):
    path = tmp_path / "items.jsonl"
    record = {"question": "Q", "answer": True, "choices": 3, "messages": PAIR, "passage": "P"}
    path.write_text(json.dumps(record | {"meta": {"body": {"en": "deep"}}}))
    for column, text in {"passage": "P", "meta.body.en": "deep", "question": "Q", "messages": "Hi\n\nHello"}.items():
        (sample,) = load_samples(f"{path}:column={column}")
        assert sample.text == text and (column == "messages") == bool(sample.messages)
    for column in ("answer", "meta", "meta.body"):
        with pytest.raises(DataError, match="should be a text"):
            load_samples(f"{path}:column={column}")
    with pytest.raises(UnknownNameError, match="nearest: passage"):
        load_samples(f"{path}:column=pasage")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"role": "user", "content": "Hi"}, "one message of a chat"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
        ({"prompt": "half of a sample", "id": "7"}, ":column=prompt"),
        ({"chosen": 3}, "'chosen' should be"),
        ({"question": "Q", "choices": "A) x B) y", "answer": "B"}, "choices should be a list"),
    ],
)
def test_no_half_of_a_sample_is_taken(tmp_path, record, reason):
    path = tmp_path / "half.jsonl"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=reason):
        load_samples(str(path))


def test_what_was_recognized_is_logged(tmp_path, caplog):
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"messages": PAIR}, {"text": "x"}, {"text": "y"}])))
    with caplog.at_level(logging.INFO, "cola_lib"):
        load_samples(str(path))
    assert "read as text (2), chats (1)" in caplog.text


def test_chats_of_the_same_words_stay_apart(tmp_path):
    path = tmp_path / "chats.jsonl"
    turned = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Hello"}]
    path.write_text("\n".join(json.dumps({"messages": turns}) for turns in (PAIR, turned, PAIR)))
    first, second = load_samples(str(path))
    assert first.text == second.text and first.id != second.id and first.fingerprint != second.fingerprint


def test_every_shape_is_tried_on_anything():
    rng = random.Random(0)
    values = [None, True, 3, 2.5, "", "text", "[1]", '[{"role": 1}]', [], [1], {}, {"text": 1}, PAIR, [{"role": None}]]
    names = (
        "text content messages chosen prompt question choices answer completion instruction output tools system "
        "options answerKey passage input answers gold"
    ).split()
    for _ in range(20_000):
        record = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, 5))}
        try:
            found = recognized(record)
        except (ValueError, ColaError):
            continue
        assert found is None or found[0] in {shape.name for shape in SHAPES}, record


# ---------------------------------------------------------------------------------------------
# faulty rows


@pytest.mark.parametrize(
    "fault", ['{"text": ', '{"text": ["a"]}', "[1]", '{"words": "a"}', '{"text": "\\ud83d"}', "\udcff"]
)
def test_few_faulty_rows_are_counted(tmp_path, caplog, fault):
    path = tmp_path / "mine.jsonl"
    lines = [json.dumps({"text": f"text {i}"}) for i in range(200)]
    lines[6] = fault
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    assert len(load_samples(str(path))) == 199
    assert "1 faulty" in caplog.text and "line 7" in caplog.text
    lines[8] = lines[9] = fault
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"line 7.*3 of 200 rows are faulty"):
        load_samples(str(path))


def test_what_is_faulty_throughout_is_not_read_to_its_end():
    from cola_lib.data.external import _collect

    with pytest.raises(DataError, match="row 0.*101 of 101"):
        _collect("endless", ((f"row {i}", {"n": i}) for i in iter(int, 1)), None)


@pytest.mark.parametrize("options", ["rows=x", "rows=", "rows=1:rows=2", "column=", "split=a", "rows=" + "9" * 40])
def test_options_of_a_path(tmp_path, options):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(LINES)
    with pytest.raises(DataError):
        load_samples(f"{path}:{options}")
