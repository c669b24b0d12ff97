"""Whatever a user gives: a result, or an error of this library that says what was wrong; no traceback and no hang.

``pytest -m fault tests/test_fuzz.py --hypothesis-profile thorough --timeout 7200`` tries twenty times as many inputs.
"""

from __future__ import annotations

import gzip
import json
import lzma
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cola_lib import book, cli
from cola_lib.analysis import Finding, judge_family, scorecard, scorecard_parts
from cola_lib.calibration import CalibrationSet, build_calibration_set
from cola_lib.compress import METHODS
from cola_lib.curation import STRATEGIES, read_dataset, write_dataset
from cola_lib.curation.dataset import FACTS, TABLE, curated
from cola_lib.data import load_samples, source_info, source_names
from cola_lib.data.external import parse_hub_name
from cola_lib.data.layouts import LAYOUTS
from cola_lib.errors import ColaError
from cola_lib.experiments import ResultStore, as_spec, as_strategy
from cola_lib.experiments.cells import plain_text, result_to_plain, text_digest
from cola_lib.experiments.packed import write_packed
from cola_lib.fingerprint import fingerprint
from cola_lib.verdicts import BEGIN, END, record, recorded
from tests.byte_tokenizer import byte_tokenizer
from tests.test_notebooks import write
from tests.test_store import assert_same, result

pytestmark = pytest.mark.fault

TOKENIZER = byte_tokenizer()

# The number of examples is the profile's. An input that takes this long hangs, as far as its user can tell.
fuzz = settings(
    deadline=timedelta(seconds=20),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


def tried(call: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What a call gives, or None if it ends in an error of this library, which must say something."""
    try:
        return call(*args, **options)
    except ColaError as error:
        assert len(str(error)) > 10
        return None


# -------------------------------------------------------------------------------------------- what is fed

any_text = st.text(st.characters())  # lone surrogates too, which JSON can write and UTF-8 cannot
scalars = st.none() | st.booleans() | st.integers() | st.floats() | any_text
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes that begin as good ones: cut, flipped, spliced, or others altogether."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        other = draw(st.binary(max_size=20))
        data = draw(
            st.sampled_from(
                [
                    data[:at],
                    data[at:],
                    data[:at] + other + data[at:],
                    data[:at] + other + data[at + len(other) :],
                    data[:at] + bytes(len(data) - at),
                    data[:at] + bytes(b ^ 1 << draw(st.integers(0, 7)) for b in data[at : at + 1]) + data[at + 1 :],
                    data + data,
                    other,
                ]
            )
        )
    return data


@st.composite
def altered(draw: st.DrawFn, tree: Any, values: st.SearchStrategy = json_values) -> Any:
    """A tree of plain data in which one place, wherever it is, holds something else, or nothing."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(list(tree)))
        what = draw(st.integers(0, 5))
        if what == 0:
            return {name: value for name, value in tree.items() if name != key}
        if what == 1:
            return {**tree, draw(any_text): draw(values)}
        return {**tree, key: draw(altered(tree[key], values))}
    if isinstance(tree, list) and tree and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(tree) - 1))
        return [*tree[:at], draw(altered(tree[at], values)), *tree[at + 1 :]]
    return draw(values)


# ------------------------------------------------------------------------------------------------ sources

COLUMNS = sorted(
    {"text", "content", "question", "answer", "reasoning", "choices", "gold", "domain", "difficulty", "split_key", "id"}
    | {column for columns in LAYOUTS for column in columns}
    | {
        "messages",
        "conversations",
        "tools",
        "chosen",
        "prompt",
        "completion",
        "instruction",
        "output",
        "passage",
        "system",
    }
)
records = st.dictionaries(st.sampled_from(COLUMNS), json_values, max_size=6)
layout_records = st.one_of(
    [st.fixed_dictionaries({column: json_values | any_text for column in sorted(columns)}) for columns in LAYOUTS]
)
ITEMS = (
    {"question": "why?", "choices": {"label": ["A", "B"], "text": ["so", "not"]}, "answerKey": "B", "id": "x"},
    {"Problem": "1+1", "Rationale": '"two"', "options": "a ) 2 , b ) 3", "correct": "a"},
    {"question": "what", "answer": "it adds", "code": "def f(): pass"},
    {"text": "plain", "id": 7, "language": "de"},
    {"question": "q", "answer": "a", "reasoning": "r", "choices": ["a", "b"], "gold": 0},
    {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]}],
        "tools": [{"function": {"name": "f"}}],
    },
    {
        "conversations": [{"from": "human", "value": "v"}, {"from": "gpt", "value": "w", "tool_calls": [{}]}],
        "system": "s",
    },
    {"prompt": "p", "chosen": [{"role": "assistant", "content": "c"}], "rejected": "r"},
    {"instruction": "i", "input": "j", "output": "o"},
    {"question": "q", "answer": {"value": "v", "aliases": ["w"]}, "passage": "p"},
)
known_records = st.sampled_from(ITEMS).flatmap(altered)


def read_and_use(name: str) -> None:
    """Read a source of one's own, and make a calibration set of it."""
    samples = tried(load_samples, name)
    if samples is None:
        return
    assert samples and all(sample.text.strip() for sample in samples)
    assert len({sample.id for sample in samples}) == len(samples)
    rows = tried(build_calibration_set, samples, TOKENIZER, n_samples=1, seq_len=4, layout="pad", format="text")
    assert rows is None or fingerprint(list(rows.sample_ids))


@fuzz
@example([{"text": "half a character: \ud83d"}], True)
@example([{"question": "q", "choices": ["a", "b"], "answerKey": "A"}], True)
@example([{"Problem": "p", "Rationale": None, "options": None, "correct": "a"}], True)
@given(st.lists(records | layout_records | known_records | json_values, max_size=4), st.booleans())
def test_json_lines_of_any_content(tmp_path, lines, as_ascii):
    path = tmp_path / "mine.jsonl"
    text = "\n".join(json.dumps(line, ensure_ascii=as_ascii) for line in lines)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read_and_use(str(path))
    read_and_use(f"{path}:column=answer")


@fuzz
@given(st.binary(max_size=200) | damaged("\n".join(json.dumps(item) for item in ITEMS).encode()), st.data())
def test_files_of_any_bytes(tmp_path, content, data):
    suffix = data.draw(st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".md", ".txt", ".parquet"]))
    suffix += data.draw(st.sampled_from(["", ".gz", ".zst", ".bz2", ".xz"]))
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    read_and_use(str(path))
    for packed, pack in ((".json", bytes), (".json.gz", gzip.compress), (".csv.xz", lzma.compress)):
        path = tmp_path / f"mine{packed}"
        path.write_bytes(pack(content) if data.draw(st.booleans()) else content)
        read_and_use(f"hf:{path}")


def _array(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None


def _raw_strings(values: list[bytes]) -> pa.Array:
    """Strings that need not be UTF-8, as a careless writer leaves them."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    n = draw(st.integers(0, 3))
    plain = st.text()
    cells = {
        pa.string(): plain,
        pa.large_string(): plain,
        pa.binary(): st.binary(),
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.float64(): st.floats(),
        pa.bool_(): st.booleans(),
        pa.timestamp("us"): st.integers(-(2**63), 2**63 - 1),
        pa.date64(): st.integers(-(2**62), 2**62),
        pa.duration("s"): st.integers(-(2**63), 2**63 - 1),
        pa.list_(pa.string()): st.lists(plain, max_size=3),
        pa.struct({"label": pa.list_(pa.string()), "text": pa.list_(pa.string())}): st.fixed_dictionaries(
            {"label": st.lists(plain, max_size=3), "text": st.lists(plain, max_size=3)}
        ),
        pa.map_(pa.string(), pa.string()): st.lists(st.tuples(plain, plain), max_size=2),
        pa.dictionary(pa.int8(), pa.string()): plain,
    }
    names, arrays = [], []
    for name in draw(st.lists(st.sampled_from(COLUMNS) | plain, min_size=1, max_size=5)):
        kind = draw(st.sampled_from(list(cells)))
        array = _array(draw(st.lists(st.none() | cells[kind], min_size=n, max_size=n)), kind)
        if draw(st.integers(0, 5)) == 0:
            array = _raw_strings(draw(st.lists(st.binary(max_size=4), min_size=n, max_size=n)))
        if array is not None:
            names.append(name)
            arrays.append(array)
    return pa.Table.from_arrays(arrays, names)


@fuzz
@given(tables(), st.data())
def test_parquet_of_any_columns(tmp_path, table, data):
    path = tmp_path / "mine.parquet"
    try:
        pq.write_table(table, path)
    except (pa.ArrowException, ValueError):
        return
    read_and_use(str(path))
    read_and_use(f"{path}:column=question")
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    read_and_use(str(path))


NAMES = (
    *source_names(),
    "commonsense",
    "nonsense",
    "",
    "hf",
    "notes.jsonl",
    "notes.txt:column=a",
    "~nobody/x.txt",
    "~x.jsonl",
)
FILTERS = ("level", "subject", "rationale", "language", "group", "column", "colour")
VALUES = ("1", "5", "yes", "no", "de", "rust", "python", "stem", "algebra", "all", "", "a,b", "1,2,3")
pieces = st.sampled_from([*NAMES, *FILTERS, *VALUES]) | any_text
grammar = st.builds(
    lambda name, filters: ":".join([name, *(f"{key}{sign}{value}" for key, sign, value in filters)]),
    pieces,
    st.lists(st.tuples(st.sampled_from(FILTERS) | pieces, st.sampled_from(["=", "", "=="]), pieces), max_size=3),
)


@fuzz
@example("notes.jsonl" * 300, "calibration")
@example("~nobody/x.txt", "all")
@given(grammar | pieces.map(lambda text: text * 300), st.sampled_from(["calibration", "evaluation", "all", "both"]))
def test_source_names_of_any_spelling(assets_dir, tmp_path, monkeypatch, name, split):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.jsonl").write_text('{"text": "mine"}')
    if not name.startswith("hf:"):
        samples = tried(load_samples, name, split)
        assert samples is None or samples
        tried(source_info, name)


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "train.jsonl").write_text("\n".join(f'{{"text": "text {i}", "n": {i}}}' for i in range(5)))
    return folder


slices = st.sampled_from(
    ["train", "test", "train[:3]", "train[:99999999999999999999]", "train[", "train[:-1]", "train[50%:]", "[:]"]
)


@fuzz
@given(st.lists(slices | st.sampled_from(["", "default", "text", "n"]) | any_text, max_size=5))
def test_hub_names_of_any_spelling(dataset_folder, parts):
    named = ":".join(part for part in parts if "/" not in part)
    read_and_use(f"hf:{dataset_folder / 'train.jsonl'}:{named}")
    parsed = tried(parse_hub_name, f"hf:{named}")  # which looks nothing up
    if parsed is not None:
        dataset, config, split, column = parsed
        assert dataset and split and config != "" and column != ""


# ----------------------------------------------------------------------------------------- configurations

OPTIONS = sorted({name for cls in STRATEGIES.values() for name in cls.__dataclass_fields__})
SPEC_OPTIONS = (
    "sparsity pattern damp block_size exponent bits group_size symmetric act_order static_groups n_grid duo_scaling "
    "clip act_bits act_strategy alpha smooth keep".split()
)
near_values = (
    st.sampled_from([0, 1, 2, 4, 8, -1, 0.5, 1.5, True, "2:4", "4:2", "0:0", [2, 4], [1, 2, 3], "token", "all", None])
    | st.sampled_from([math.nan, math.inf, -math.inf, 10**400, "3", "energy", "model", "lowest", {}])
    | json_values
)


@fuzz
@example({"bits": "3"}, "gptq", True)
@example({"pattern": [1, 2, 3]}, "wanda", True)
@example({"damp": 10**400}, "sparsegpt", True)
@example({"method": 3}, [], True)
@example({}, "wanda", False)
@given(
    st.dictionaries(st.sampled_from(SPEC_OPTIONS) | any_text, near_values, max_size=4),
    st.sampled_from(sorted(METHODS)) | near_values,
    st.booleans(),
)
def test_methods_of_any_options(options, method, named):
    spec = tried(as_spec, {**options, "method": method} if named else method)
    if spec is not None:
        assert spec.label and fingerprint(spec.key())
        assert plain_text(spec.key())


@fuzz
@example({"name": 1}, "cola", True)
@example({"temperature": math.nan}, "self_generated", True)
@example({}, 3, False)
@given(
    st.dictionaries(st.sampled_from(OPTIONS) | any_text, near_values, max_size=3),
    st.sampled_from(sorted(STRATEGIES)) | near_values,
    st.booleans(),
)
def test_strategies_of_any_options(options, name, named):
    chooser = tried(as_strategy, {**options, "strategy": name} if named else name)
    if chooser is not None:
        assert chooser.label.startswith(chooser.name)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("notebooks")
    for name in ("one", "two"):
        write(folder, name, parameters="n_draws = 3\nsources = ['c4']\nratio = 0.5\npacked = []")
    (folder / "profiles").mkdir()
    return folder


PROFILE = {
    "about": "a test",
    "takes": "a moment",
    "cell_timeout": 60,
    "notebooks": {"one": {"n_draws": 1, "sources": ["c4", "math"]}, "two": {"ratio": 0.25}},
    "after": {"two": ["one"]},
    "variants": {"other": {"n_draws": 2}},
}
yaml_texts = (
    altered(PROFILE).map(lambda tree: yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))
    | damaged(yaml.safe_dump(PROFILE).encode())
    | st.sampled_from(
        [b"a: !!timestamp x", b"!!int ''", b"2001-99-99", b"&a [*a]", b"!!bool x", b"[" * 5000, b"!!float x"]
    )
    | st.text("{}[]:-!&*|>'\"# \n\tab01.,?@%=<~", max_size=40).map(str.encode)
)


@fuzz
@given(yaml_texts, st.just("mine") | any_text)
def test_profiles_of_any_content(notebooks, tmp_path, content, name):
    (notebooks / "profiles" / "mine.yml").write_bytes(content)
    profile = tried(book.read_profile, name, notebooks / "profiles")
    if profile is not None:
        runs = tried(book.plan, [], folder=notebooks, out=tmp_path / "out", profile=profile)
        assert runs is None or runs


@fuzz
@given(st.lists(st.builds("{}={}".format, st.sampled_from(["n", "sources", "1"]), any_text) | any_text, max_size=3))
def test_parameters_of_any_spelling(assignments):
    tried(book.parse_overrides, assignments)


@fuzz
@given(st.data())
def test_notebooks_of_any_content(notebooks, tmp_path, data):
    path = tmp_path / "mine.ipynb"
    good = (notebooks / "one.ipynb").read_bytes()
    literals = near_values.map(repr) | st.text("{}[](),:=+-*'\"\\ \nab01.#\0", max_size=30)
    cell = data.draw(st.lists(st.builds("{} = {}".format, st.sampled_from("abc"), literals), max_size=3).map("\n".join))
    changed = json.loads(good)
    changed["cells"][1]["source"] = cell
    trees = altered(json.loads(good)) | st.just(changed)
    content = data.draw(trees.map(lambda tree: json.dumps(tree).encode()) | damaged(good))
    path.write_bytes(content)
    tried(book.declared_parameters, path)
    tried(book.plan, ["mine"], folder=tmp_path, out=tmp_path / "out", overrides={"n_draws": 2})


FINDING = judge_family(
    [Finding("C1", "wanda · math", 0.02, 0.01, 0.03, "% of baseline", 0.01, 3, 40, ("aa",), margin=0.01)]
)[0].to_dict()


@fuzz
@given(
    altered([FINDING, {**FINDING, "claim": "C2", "value": None}]).map(lambda tree: json.dumps(tree).encode())
    | damaged(json.dumps([FINDING]).encode())
)
def test_findings_of_any_content(tmp_path, content):
    folder = tmp_path / "findings"
    folder.mkdir(exist_ok=True)
    (folder / "01_mine.json").write_bytes(content)
    found = tried(recorded, tmp_path)
    for use in (
        scorecard,
        scorecard_parts,
        lambda f: record(tmp_path / "again", "x", f),
    ):
        if found is not None:
            tried(use, found["01_mine"])


# ----------------------------------------------------------------------------------- what was written before


@fuzz
@given(st.data())
def test_stored_cells_of_any_bytes(tmp_path, data):
    store, cell = ResultStore(tmp_path / "store"), result()
    store.put(cell)
    path = Path(store._path(cell.key.fingerprint))
    good = path.read_bytes()
    plain = json.loads(plain_text(result_to_plain(cell)))

    def sealed(tree: Any) -> bytes:
        """As somebody else's program would write it, checksum and all."""
        text = plain_text(tree)
        return gzip.compress(f'{{"format":"cola-cell/1","sha256":"{text_digest(text)}","cell":{text}}}'.encode())

    outer = altered(json.loads(gzip.decompress(good))).map(lambda tree: gzip.compress(json.dumps(tree).encode()))
    content = data.draw(
        damaged(good) | damaged(gzip.decompress(good)).map(gzip.compress) | outer | altered(plain).map(sealed)
    )
    path.write_bytes(content)
    found = tried(store.get, cell.key)
    if found is None:
        assert not path.exists() or b"cola-cell/" in gzip.decompress(content)
    else:
        assert found.key.fingerprint == cell.key.fingerprint
        assert isinstance(tried(found.frame), pd.DataFrame) and isinstance(tried(found.layer_frame), pd.DataFrame)
        again = ResultStore(tmp_path / "again")
        tried(again.put, found)
        tried(again.pack, tmp_path / "again.parquet")


PACKED = write_packed([result(calibration=f"c{i}", seed=i) for i in range(2)])


@fuzz
@given(damaged(PACKED))
def test_packed_cells_of_any_bytes(tmp_path, content):
    path = tmp_path / "cells.parquet"
    path.write_bytes(content)
    for i in range(2):
        cell = result(calibration=f"c{i}", seed=i)
        found = tried(ResultStore(tmp_path / "none", packed=[path]).get, cell.key)
        if found is not None:
            assert_same(found, cell)
    tried(ResultStore(tmp_path / "none", packed=[path]).keys)


URLS = (
    "memory://fuzz",
    "nonsense://x",
    "file://",
    "file://x",
    "simplecache::memory://x",
    "zip://a::memory://b",
    "::",
    "s3:",
    "http:",
    "",
)


@fuzz
@example("\0")
@example("\ud83d")
@given(st.sampled_from(URLS) | st.text(st.characters(exclude_characters="/")))
def test_stores_of_any_name(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    store = tried(ResultStore, url)
    if store is not None:
        tried(store.keys)
    tried(recorded, url)


@pytest.fixture(scope="module")
def curated_set(tmp_path_factory) -> Path:
    """A small set as ``cola curate`` writes it."""
    ids = torch.arange(12).reshape(3, 4) + 5
    rows = CalibrationSet(
        ids,
        torch.ones(3, 4, dtype=torch.bool),
        sample_ids=(("a",), ("b",), ("c", "d")),
        sources=("c4", "c4", "math"),
        name="random",
        seed=0,
        layout="pad",
    )
    facts = {"strategy": "random", "options": {}, "target": None, "seed": 0, "model": "tiny"}
    return write_dataset(curated(rows, TOKENIZER, facts), tmp_path_factory.mktemp("sets") / "good")


@fuzz
@given(st.data())
def test_curated_sets_of_any_content(curated_set, tmp_path, data):
    folder = tmp_path / "set"
    (folder / TABLE).parent.mkdir(parents=True, exist_ok=True)
    table, facts = (curated_set / TABLE).read_bytes(), (curated_set / FACTS).read_bytes()
    which = data.draw(st.integers(0, 2))
    if which == 0:
        table = data.draw(damaged(table))
    elif which == 1:
        tree = data.draw(altered(json.loads(facts)))
        facts = data.draw(st.just(json.dumps(tree).encode()) | damaged(facts))
    (folder / TABLE).write_bytes(table)
    if which == 2:
        good = pq.read_table(curated_set / TABLE)
        stored = data.draw(altered(json.loads(good.schema.metadata[b"cola_lib"])))
        pq.write_table(good.replace_schema_metadata({"cola_lib": json.dumps(stored)}), folder / TABLE)
    (folder / FACTS).write_bytes(facts)
    tried(read_dataset, folder)
    assert_refused_or_done(CliRunner().invoke(cli.app, ["inspect", str(folder)]))


# --------------------------------------------------------------------------------------------- command line

FLAGS = """
    --model --device --dtype --source --calibration --n-samples --seq-len --seed --layout --format
    --propagate --method --sparsity --pattern --bits --group-size --symmetric --act-bits --act-strategy
    --alpha --smooth --act-order --static-groups --duo-scaling --keep --out --save-as --save-dtype --overwrite
    --no-progress --json --backend --suite --capability --tokens-per-capability --limit --items
    --dataset --num-fewshot --chat-template --max-length --batch-size --strategy --option --target --n-tokens --against
    --picture --store --parts --into -p --profile --notebooks --fresh --jobs --stream --help --version
    --
""".split()
WORDS = """
    c4 math:level=5 math:level=9 code notes.jsonl missing.jsonl wanda gptq rtn awq smoothquant
    joint_lowrank magnitude 2:4 0.5 -1 0 1 3 8 99999999999999999999 nan inf 1e400 auto cpu cuda:7 cuda:x
    float32 pack pad text chat compressed original dense compressed-tensors cola random proxy general
    capabilities commonsense lm-eval math,code evaluation packaged token tensor all norms good set.png
    page.md folder file nonsense://x memory://none one two mine quick n_draws=2 sources=[c4] n_draws=[
    x=!!bool domain=false n_sources=x energy:b
""".split()
safe_text = st.text(st.characters(exclude_characters="/~"), max_size=8)
values = st.sampled_from(WORDS) | safe_text
COMMANDS = {
    "compress": ["--model", "tiny", "--method", "gptq", "--source", "notes.jsonl", "--out", "made"],
    "curate": ["--model", "tiny", "--strategy", "random", "--source", "notes.jsonl", "--out", "made"],
    "inspect": ["good"],
    "evaluate": ["--model", "tiny", "--out", "made.json"],
    "notebook": ["one", "--notebooks", "nb", "--out", "made"],
    "claims": ["--store", "found"],
    "pack": ["--store", "found", "--out", "made"],
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A command line that would do something, with some of its words left out, replaced or added."""
    command = draw(st.sampled_from(sorted(COMMANDS)))
    words = list(COMMANDS[command])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(words)))
        what = draw(st.integers(0, 4))
        if what == 0:
            words[at : at + 1] = []
        elif what == 1:
            words[at : at + 1] = [draw(values)]
        else:
            flag = draw(st.sampled_from(FLAGS))
            words += [flag, draw(values)] if draw(st.booleans()) else [flag]
    return draw(st.just([command, *words]) | st.lists(values | st.sampled_from([command, *FLAGS]), max_size=4))


def assert_refused_or_done(found: Any) -> None:
    assert found.exception is None or isinstance(found.exception, SystemExit), repr(found.exception)
    assert found.exit_code in (0, 2)
    assert "Traceback" not in found.output
    if found.exit_code == 2:
        assert "error: " in found.stderr or "Usage: " in found.output


@pytest.fixture(scope="module")
def place(tmp_path_factory, notebooks, curated_set) -> Path:
    """A folder with something of everything that a command may be given."""
    place = tmp_path_factory.mktemp("a") / "b" / "c"
    place.mkdir(parents=True)
    (place / "notes.jsonl").write_text('{"text": "a text that is mine"}')
    (place / "page.md").write_text(f"{BEGIN}\n{END}\n")
    (place / "file").write_bytes(b"\xff\x00 no text")
    (place / "folder").mkdir()
    (place / "nb").symlink_to(notebooks)
    (place / "good").symlink_to(curated_set)
    ResultStore(place / "found").put(result())
    record(place / "found", "01_mine", [Finding.from_dict(FINDING)])
    (notebooks / "profiles" / "quick.yml").write_text(yaml.safe_dump(PROFILE))
    return place


@fuzz
@given(command_lines())
def test_command_lines_of_any_kind(assets_dir, place, monkeypatch, words):
    import cola_lib.models

    def stop(*args: object, **options: object) -> None:
        raise ColaError("the command line was taken, and this is where its work would begin")

    monkeypatch.chdir(place)
    monkeypatch.setattr(cola_lib.models, "load_model", stop)
    monkeypatch.setattr(book, "run_notebooks", lambda runs, **options: iter(()))
    assert_refused_or_done(CliRunner().invoke(cli.app, words))


def test_every_command_is_fuzzed():
    """A new command gets a line in ``COMMANDS``; those left out list what there is, and read no words of a user."""
    assert set(COMMANDS) | {"assets", "sources", "sweep"} >= {
        command.callback.__name__ for command in cli.app.registered_commands
    }
