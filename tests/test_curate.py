"""Curated sets as datasets on disk, and the commands that make, show and take them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cola_lib import cli
from cola_lib.curation import (
    STRATEGIES,
    Pool,
    compare,
    curate,
    describe,
    load_target,
    read_dataset,
    strategy,
    write_dataset,
)
from cola_lib.curation.dataset import curated
from cola_lib.errors import DataError, OutputError, SpecError, UnknownNameError
from cola_lib.evaluate import row_nll
from cola_lib.models import load_model
from tests.test_cli import assert_refused, checkpoint, no_work, run  # noqa: F401 - fixtures

SMALL = {"sources": ["gsm8k", "stories"], "seq_len": 32, "limit": 12}


@pytest.fixture(scope="module")
def lm(checkpoint):  # noqa: F811
    return load_model(checkpoint)


@pytest.fixture(scope="module")
def made(lm):
    return curate(lm, "cola", SMALL["sources"], n_samples=6, seq_len=32, target="math", limit=12)


def test_a_set_comes_back_bit_for_bit_and_the_same_bytes_are_written_twice(made, lm, tmp_path):
    one = write_dataset(made, tmp_path / "one")
    again = curate(lm, "cola", SMALL["sources"], n_samples=6, seq_len=32, target="math", limit=12)
    two = write_dataset(again, tmp_path / "two")
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(map(Path, ["README.md", "curation.json", "data/train-00000-of-00001.parquet"]))
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    back = read_dataset(one)
    assert back.rows.fingerprint == made.rows.fingerprint and back.texts == made.texts and back.facts == made.facts
    for name in ("sample_ids", "sources", "name", "seed", "layout", "weights"):
        assert getattr(back.rows, name) == getattr(made.rows, name)


def test_weights_are_kept(made, tmp_path, lm):
    weighted = replace(made.rows, weights=(1.0, 0.1, 2.0, 1.0, 0.7, 1.2))
    folder = write_dataset(curated(weighted, lm.tokenizer, {"strategy": "x", "options": {}}), tmp_path / "weighted")
    assert read_dataset(folder).rows.weights == weighted.weights
    assert read_dataset(folder).rows.fingerprint == weighted.fingerprint


def test_datasets_reads_it_as_it_is(made, tmp_path):
    folder = write_dataset(made, tmp_path / "set")
    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.column_names == ["text", "input_ids", "attention_mask", "source", "id"]
    assert found.num_rows == 6
    for row, ids, mask in zip(found, made.rows.input_ids, made.rows.attention_mask, strict=True):
        assert row["input_ids"] == ids[mask].tolist() and row["attention_mask"] == [1] * int(mask.sum())


def test_the_card_tells_where_the_rows_come_from(made, tmp_path):
    text = (write_dataset(made, tmp_path / "set") / "README.md").read_text()
    about = made.facts["set"]
    assert f"{about['effective_tokens']:,} effective tokens" in text and about["fingerprint"] in text
    assert "- **target**: math" in text and "| gsm8k |" in text and "Vendi score" in text and "| math |" in text
    assert sum(own["tokens"] for own in about["sources"].values()) == about["effective_tokens"] == made.rows.n_tokens


def test_what_was_altered_or_is_not_there_is_refused(made, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write_dataset(made, tmp_path / "set")
    with pytest.raises(OutputError, match="exists"):
        write_dataset(made, folder)
    write_dataset(made, folder, overwrite=True)
    table = folder / "data" / "train-00000-of-00001.parquet"
    content = pq.read_table(table)
    ids = content["input_ids"].to_pylist()
    ids[0][0] += 1
    changed = content.set_column(1, content.schema.field(1), pa.array(ids, pa.list_(pa.int32())))
    pq.write_table(changed, table)
    with pytest.raises(DataError, match="was altered"):
        read_dataset(folder)
    table.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read"):
        read_dataset(folder)
    with pytest.raises(DataError, match="is missing; `cola curate` makes one"):
        (tmp_path / "nothing").mkdir()
        read_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="it is not there"):
        read_dataset(tmp_path / "nowhere")
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious.txt").write_text("x")
    with pytest.raises(OutputError, match="not a curated set"):
        write_dataset(made, other, overwrite=True)
    assert (other / "precious.txt").exists()


def test_no_text_of_the_target_is_in_the_pool(lm):
    target = load_target("math", capabilities=("math", "code"))
    pool = Pool.load(["gsm8k", "math", "mbpp"], without=target.sample_ids)
    ids = {sample.id for some in pool.samples.values() for sample in some}
    assert target.sample_ids and not ids & target.sample_ids
    assert target.weights["math"] > target.weights["code"]
    with pytest.raises(UnknownNameError, match="unknown source 'maths'; nearest: math"):
        load_target("maths")


def test_a_file_of_prompts_can_be_the_target(lm, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"text": f"Tell a story about {x}."}) + "\n" for x in ("cats", "a dog", "rain"))
    )
    found = curate(lm, "centroid_distance", ["stories"], n_samples=3, seq_len=32, target=str(prompts), limit=8)
    assert list(found.facts["representativeness"]) == [str(prompts)]


def test_a_target_can_be_made_beforehand(lm):
    aim = load_target("math", capabilities=("math", "code"), limit=4)
    found = curate(lm, "centroid_distance", ["gsm8k"], n_samples=3, seq_len=32, target=aim, limit=8)
    assert set(found.facts["representativeness"]) == {"math", "code"} and found.facts["target"] == "math"
    assert not aim.sample_ids & {name for row in found.rows.sample_ids for name in row}


def test_sets_are_compared(made, lm):
    same = compare(made.rows, made.rows)
    assert same == {
        "shared_rows": 6,
        "shared_samples": same["shared_samples"],
        "shared_token_types": 1,
        "token_overlap": 1,
    }
    other = curate(lm, "random_tokens", ["stories"], n_samples=6, seq_len=32, measured=False)
    apart = compare(made.rows, other.rows)
    assert apart["shared_rows"] == apart["shared_samples"] == 0 and apart["token_overlap"] < 0.1
    part = made.rows.take([0, 1])
    n_types = int(made.rows.input_ids.max()) + 1
    counts = [np.bincount(each.input_ids[each.attention_mask], minlength=n_types) for each in (made.rows, part)]
    expected = sum(min(a / counts[0].sum(), b / counts[1].sum()) for a, b in zip(*counts, strict=True))
    assert compare(made.rows, part)["token_overlap"] == pytest.approx(expected, abs=1e-4) and 0.1 < expected < 1


def test_repeats_are_counted():
    rows = Pool({"x": [sample for sample in load_target("code").texts["code"][:3]]})
    assert rows.fingerprint != Pool({"y": rows.samples["x"]}).fingerprint
    facts = describe_ids([[5, 6, 7, 8] * 4, list(range(16))])
    assert facts["repeated_4grams"] == pytest.approx((1 - 4 / 13) / 2, abs=1e-3) and facts["padding"] == 0


def describe_ids(ids):
    from cola_lib.calibration import CalibrationSet

    n = len(ids)
    tensor = torch.tensor(ids)
    return describe(
        CalibrationSet(tensor, torch.ones_like(tensor, dtype=torch.bool), (("a",),) * n, ("s",) * n, "t", 0, "pad")
    )


def test_the_size_is_rows_or_tokens(lm):
    with pytest.raises(SpecError, match="give one of n_samples and n_tokens"):
        curate(lm, "random", ["stories"], seq_len=32)
    found = curate(lm, "random", ["stories"], n_tokens=100, seq_len=32, measured=False)
    assert found.rows.n_tokens == 100 == found.facts["n_tokens"]
    assert torch.isfinite(row_nll(lm, found.rows, progress=False)).all()


# ---------------------------------------------------------------------------------------------
# commands

CURATE = ["--source", "gsm8k", "--source", "stories", "--limit", 12, "--n-samples", 5, "--seq-len", 32]


def test_a_set_is_curated_inspected_and_compressed_with(checkpoint, tmp_path):  # noqa: F811
    one, two = tmp_path / "one", tmp_path / "two"
    first = run("curate", "--model", checkpoint, *CURATE, "--strategy", "cola", "--target", "math", "--out", one)
    assert first.exit_code == 0, first.output
    assert "target math" in first.stdout and "effective tokens" in first.stdout and f"wrote {one}" in first.stdout
    options = ["--option", "objective=gram", "--option", "stride=2"]
    second = run(
        "curate", "--model", checkpoint, *CURATE, "--strategy", "proxy", *options, "--target", "general", "--out", two,
        "--json",
    )  # fmt: skip
    facts = json.loads(second.stdout)
    assert facts["options"] == {"objective": "gram", "stride": 2} and facts["set"]["rows"] == 5
    picture = tmp_path / "sets.png"
    shown = run("inspect", one, "--against", two, "--picture", picture)
    assert shown.exit_code == 0, shown.output
    assert "shared:" in shown.stdout and picture.read_bytes()[:4] == b"\x89PNG"
    as_json = json.loads(run("inspect", one, "--against", two, "--json").stdout)
    assert set(as_json) == {str(one), str(two), "compared"}
    out = tmp_path / "pruned"
    command = [
        "compress",
        "--model",
        checkpoint,
        "--calibration",
        one,
        "--method",
        "wanda",
        "--out",
        out,
        "--no-progress",
    ]
    pruned = run(*command)
    assert pruned.exit_code == 0, pruned.output
    report = json.loads((out / "report.json").read_text())
    assert report["calibration"] == [read_dataset(one).rows.fingerprint]
    assert report["calibration_set"]["name"] == "cola"
    assert "note:" not in pruned.stderr
    small = ["--source", "stories", "--n-samples", 1, "--seq-len", 32, "--method", "gptq", "--out", tmp_path / "few"]
    few = run("compress", "--model", checkpoint, *small, "--no-progress")
    assert few.exit_code == 0 and "gptq solves with a matrix of that many rows" in few.stderr
    # The ids of the set are words to one tokenizer only.
    tokenizer = checkpoint / "tokenizer.json"
    kept, content = tokenizer.read_text(), json.loads(tokenizer.read_text())
    words = content["model"]["vocab"]
    words["the"], words["and"] = words["and"], words["the"]
    tokenizer.write_text(json.dumps(content))
    try:
        assert_refused(run(*command, "--overwrite"), "curate it again for this model")
    finally:
        tokenizer.write_text(kept)


def test_what_curate_cannot_do_is_refused_before_a_model_is_loaded(no_work, tmp_path):  # noqa: F811
    def refused(*more, message):
        assert_refused(run("curate", "--model", "smollm2-135m", "--out", tmp_path / "o", *more), message)

    refused("--source", "c4", "--strategy", "colla", message="unknown strategy 'colla'; nearest: cola")
    refused("--source", "c4", message="cola chooses for a target; give --target NAME")
    refused("--source", "c5", "--strategy", "random", message="unknown source 'c5'")
    refused("--source", "c4", "--strategy", "random", "--option", "sauce=c4", message="unknown option of random")
    refused("--source", "c4", "--strategy", "random", "--option", "source", message="--option is written NAME=VALUE")
    refused("--source", "c4", "--n-samples", 3, "--n-tokens", 9, message="two ways to say how large the set is")
    (tmp_path / "o").mkdir()
    refused("--source", "c4", "--strategy", "random", message="exists")


def test_what_compress_cannot_take_is_refused(no_work, tmp_path):  # noqa: F811
    base = ["compress", "--model", "smollm2-135m", "--method", "wanda", "--out", tmp_path / "o"]
    assert_refused(run(*base, "--calibration", tmp_path, "--source", "c4"), "--calibration names a whole set")
    assert_refused(run(*base, "--calibration", tmp_path / "none"), "it is not there")
    assert_refused(run("inspect", tmp_path / "none"), "it is not there")
    assert_refused(run("inspect", tmp_path), "data/train-00000-of-00001.parquet is missing")
    (tmp_path / "mine.jsonl").write_text("{}")
    assert_refused(run("inspect", tmp_path / "mine.jsonl"), "it is a file, and a curated set is a folder")
    for option, value in (
        ("--n-samples", 9),
        ("--seq-len", 8),
        ("--seed", 5),
        ("--layout", "pad"),
        ("--format", "chat"),
    ):
        refusal = run(*base, "--calibration", tmp_path, option, value)
        assert_refused(refusal, f"{option} says how to draw from a --source")


def test_help_lists_what_there_is():
    text = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["curate", "--help"]).stdout
    for option in (
        "--strategy",
        "--option",
        "--source",
        "--target",
        "--limit",
        "--n-samples",
        "--n-tokens",
        "--seq-len",
    ):
        assert option in text
    assert all(strategy(name).label == name for name in STRATEGIES)
