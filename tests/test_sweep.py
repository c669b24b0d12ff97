"""Sweeps: a file is checked before anything runs, and its cells are those that a notebook asks for."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cola_lib.cli import app
from cola_lib.curation import STRATEGIES
from cola_lib.errors import ClusterError, ColaError, NumericsError, SpecError, UnknownNameError
from cola_lib.experiments import (
    RANDOM_TOKENS,
    Experiment,
    ResultStore,
    Sweep,
    look_at_sweep,
    read_sweep,
    run_sweep,
    runner,
)
from cola_lib.experiments.engines import Worker
from cola_lib.experiments.sweep import SetTask
from cola_lib.models import tiny_model
from tests.tiny_models import tiny_language_model

EXAMPLES = sorted((Path(__file__).parents[1] / "notebooks" / "sweeps").glob("*.yml"))
EVIDENCE = sorted((Path(__file__).parents[1] / "notebooks" / "sweeps" / "evidence").glob("*.yml"))
SMALL = {"n_samples": 2, "seq_len": 32, "target_samples": 2, "target_texts": 4}
GOOD = {"sources": ["c4"], "methods": [{"method": "wanda"}]}


def save_tiny(folder: Path, tokenizer) -> str:
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # takes the examples' groups of 64
    lm = tiny_language_model("llama", tokenizer, vocab_size=len(tokenizer), max_position_embeddings=512, **wide)
    lm.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory, smollm2_tokenizer) -> str:
    """Folder of a tiny model with the embedded model's tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("model"), smollm2_tokenizer)


@pytest.fixture(scope="module")
def sweep(model, tmp_path_factory) -> Sweep:
    """Dense, rtn, and wanda under four sets."""
    given = {
        "models": [model],
        "sources": ["c4", RANDOM_TOKENS],
        "methods": [{"method": "wanda"}, {"method": "rtn", "bits": 3, "group_size": 16}],
        "draws": 2,
        "evaluate": {"capabilities": ["math"], "tokens_per_capability": 300},
        "targets": {"math": ["gsm8k"]},
        "store": str(tmp_path_factory.mktemp("sweep")),
        **SMALL,
    }
    return Sweep.model_validate_json(json.dumps(given))


def write(folder: Path, content: object) -> Path:
    path = folder / "sweep.yml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


# -------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sweeps(path):
    sweep = read_sweep(path)
    assert sweep.about and len(sweep.tasks()) == len(set(sweep.tasks()))


def test_the_paper_sweep_is_the_paper_profile():
    sweep = read_sweep(EXAMPLES[0].with_name("paper.yml"))
    profile = yaml.safe_load((EXAMPLES[0].parents[1] / "profiles" / "paper.yml").read_text())
    page = profile["notebooks"]["02_data_source"]
    variant = profile["variants"]["qwen2.5-7b-instruct"]["model"]
    assert sweep.models == (page["model"], variant)
    assert list(sweep.sources) == page["sources"]
    assert list(sweep.methods) == page["methods"] + page["controls"]
    assert (sweep.draws, sweep.n_samples, sweep.seq_len) == (page["n_draws"], (page["n_samples"],), (page["seq_len"],))
    assert list(sweep.evaluate.capabilities) == page["capabilities"]
    assert sweep.evaluate.tokens_per_capability == page["tokens_per_capability"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sorces": 3}, "unknown key 'sorces'; nearest: sources"),
        ({"zzz": 3}, "unknown key 'zzz'; allowed: about, models, methods"),
        ({"evaluate": {"capabilites": []}}, r"unknown key 'capabilites'; nearest: capabilities.*\(under evaluate\)"),
        (
            {"evaluate": {"capabilities": ["mth"]}},
            r"evaluate.capabilities\[0\]: unknown capability 'mth'; nearest: math",
        ),
        ({"draws": "3"}, "draws: input should be a valid integer, and is '3'"),
        ({"draws": True}, "draws: input should be a valid integer"),
        ({"draws": 0}, "draws: input should be greater than or equal to 1, and is 0"),
        ({"layout": "heap"}, "layout: input should be 'pack', 'truncate' or 'pad', and is 'heap'"),
        ({"sources": "c4"}, "sources: input should be a list, and is 'c4'"),
        ({"seq_len": [8, 1]}, r"seq_len\[1\]: input should be greater than or equal to 2, and is 1"),
        ({"seq_len": [8, 8]}, "seq_len: 8 is there twice"),
        ({"methods": []}, "methods: list should have at least 1 item"),
        ({"methods": [{"bits": 3}]}, r"methods\[0\]: a method is written as"),
        ({"methods": [{"method": "gtpq"}]}, r"methods\[0\]: unknown method 'gtpq'; nearest: gptq"),
        ({"methods": [{"method": "gptq", "bit": 3}]}, r"methods\[0\]: unknown option of gptq 'bit'; nearest: bits"),
        ({"methods": [{"method": "gptq", "bits": 9}]}, r"methods\[0\]: bits is a whole number from 2 to 8, not 9"),
        ({"methods": [{"method": "gptq", "bits": "3"}]}, r"methods\[0\]: gptq: bits: input should be a valid integer"),
        ({"methods": [{"method": "wanda", "sparsity": float("nan")}]}, "sparsity: input should be a finite number"),
        ({"sources": []}, "nothing to calibrate on"),
        ({"strategies": {"choose": ["colla"], "pool": ["c4"]}}, "unknown strategy 'colla'; nearest: cola"),
        ({"strategies": {"choose": [{"strategy": "cola", "width": "x"}], "pool": ["c4"]}}, "cola: width: input should"),
        ({"strategies": {"choose": ["cola"], "pool": ["c4"]}}, "'cola' chooses for targets: name some under targets"),
        (
            {"strategies": {"choose": ["cola"], "pool": ["c4"], "targets": ["mth"]}, "targets": ["math"]},
            "nearest: math",
        ),
        ({"targets": ["meth"]}, "unknown target 'meth'; nearest: math"),
        ({"device": "cuda"}, "needs resources: {gpus: 1}"),
        ({"resources": {"gpus": 2}}, "resources.gpus: input should be 0 or 1, and is 2"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(tmp_path, changes, message):
    path = write(tmp_path, GOOD | changes)
    with pytest.raises(SpecError, match=message) as caught:
        read_sweep(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "a sweep is a mapping"),
        ("", "a sweep is a mapping"),
        ("a: [", "not YAML"),
        ("draws: 1\ndraws: 2\n", "the key 'draws' is there twice"),
        ("about: 2001-99-99\n", "holds what a sweep cannot"),
        ("about: !!binary aGVsbG8=\n", "holds what a sweep cannot"),
        ("a: &a [*a]\n", "holds what a sweep cannot"),
        ("? [a, b]\n: 3\n", "not YAML"),
        ("methods: [{method: wanda}]\nsources: [c4]\nabout: " + "[" * 3000, "sweep"),
    ],
)
def test_files_that_hold_no_sweep(tmp_path, text, message):
    with pytest.raises(SpecError, match=message):
        read_sweep(write(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match="cannot be read"):
        read_sweep(tmp_path / "none.yml")
    with pytest.raises(SpecError, match="cannot be read"):
        read_sweep(tmp_path)
    (tmp_path / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"bytes\.yml"):
        read_sweep(tmp_path / "bytes.yml")


def test_every_strategy_can_be_asked_for(tmp_path):
    given = {"choose": list(STRATEGIES), "pool": ["c4"]}
    sweep = read_sweep(write(tmp_path, GOOD | {"strategies": given, "targets": ["math"]}))
    assert len(sweep.tasks()) == 1 + 3 * (1 + len(STRATEGIES))


def test_changes_replace_what_the_file_says(tmp_path):
    sweep = read_sweep(write(tmp_path, GOOD | {"store": "here"}), store="s3://there", draws=1)
    assert (sweep.store, sweep.draws) == ("s3://there", 1)


def test_a_sweep_is_cut_into_sets(tmp_path):
    given = {
        "models": ["a", "b"],
        "sources": ["c4", ["c4", "code"]],
        "strategies": {"choose": ["random", "cola"], "pool": ["c4"], "targets": ["math", "general"]},
        "targets": ["math"],
        "methods": [{"method": "wanda"}, {"method": "rtn"}, {"method": "gptq", "bits": 3}],
        "draws": 2,
        "n_samples": [4, 8],
    }
    sweep = read_sweep(write(tmp_path, given))
    tasks = sweep.tasks()
    # dense and rtn of each model; 2 sources, random, and cola for 2 targets, under 2 draws and 2 sizes
    assert len(tasks) == 2 * (1 + (2 + 1 + 2) * 2 * 2) == len(set(tasks))
    assert [sweep.n_cells(task) for task in tasks[:2]] == [2, 2]
    assert [task.model for task in tasks] == sorted(task.model for task in tasks), "a model is loaded once"
    none = read_sweep(write(tmp_path, GOOD | {"methods": [{"method": "rtn"}]}))
    assert len(none.tasks()) == 1


# ------------------------------------------------------------------------------------------ the engine


@pytest.fixture(scope="module")
def result(sweep):
    return run_sweep(sweep, progress=False)


def test_a_sweep_holds_the_cells_of_the_experiment(sweep, result):
    assert (result.n_read, result.n_computed, result.failures) == (0, 2 + 2 * 2, ())
    grid = sweep.experiment(sweep.models[0]).run(sweep.sources, sweep.methods, draws=2, progress=False)
    assert (grid.n_computed, grid.n_read) == (0, 6), "a notebook finds what a sweep computed"
    assert grid.cells == result.cells
    assert set(result.frame()["source"].dropna()) == {"c4", RANDOM_TOKENS}
    assert "error_on_math" in grid.layers
    again = run_sweep(sweep, progress=False)
    assert (again.n_read, again.n_computed) == (6, 0)


# Of the strategies both deployments choose the same two rows here, and a cell is named by what it holds.
@pytest.mark.parametrize(("name", "n_cells"), [("sources", 2 + 5 * 2), ("strategies", 1 + 2 * 2)])
def test_examples_run(name, n_cells, model, tmp_path):
    small = {
        "draws": 1,
        "n_samples": 3 if name == "sources" else 2,
        "evaluate": {"capabilities": ["code"], "tokens_per_capability": 300},
        "store": str(tmp_path),
    }
    path = EXAMPLES[0].with_name(f"{name}.yml")
    result = run_sweep(read_sweep(path, models=[model], **SMALL | small), progress=False)
    assert (result.failures, result.n_computed) == ((), n_cells)


def test_looking_computes_nothing(sweep, result, tmp_path):
    table = look_at_sweep(sweep, progress=False)
    assert list(table["cells"]) == [2, 1, 1, 1, 1] and table["missing"].sum() == 0
    empty = sweep.model_copy(update={"store": str(tmp_path / "none")})
    assert look_at_sweep(empty, progress=False)["missing"].sum() == 6
    assert not (tmp_path / "none").exists()
    shutil.copytree(sweep.store, tmp_path / "some")
    wanda = next(name for name, labels in result.cells.items() if labels["draw"] == 1)
    next((tmp_path / "some").rglob(f"{wanda}*")).unlink()
    some = sweep.model_copy(update={"store": str(tmp_path / "some")})
    assert look_at_sweep(some, progress=False)["missing"].sum() == 1
    assert run_sweep(some, progress=False).n_computed == 1


def test_a_set_is_walked_by_itself(sweep, tmp_path):
    # 2 rows begin 4 rows: added up, the statistics of 4 would differ in their last digits
    store = {"store": str(tmp_path / "both")}
    both = sweep.model_copy(update={"n_samples": (2, 4), "sources": ("c4",), "draws": 1, "targets": {}, **store})
    alone = both.model_copy(update={"n_samples": (4,), "store": str(tmp_path / "alone")})
    found, wanted = run_sweep(both, progress=False), run_sweep(alone, progress=False)
    (name,) = [name for name, labels in wanted.cells.items() if labels["n_samples"] == 4]
    one, other = (ResultStore(each.store).get(name) for each in (both, alone))
    assert one is not None and other is not None and name in found.cells
    assert one.layers.equals(other.layers) and one.scores.equals(other.scores)


def test_strategies_choose_once(sweep, tmp_path):
    given = sweep.model_dump(mode="json") | {
        "sources": [],
        "strategies": {"choose": ["random", {"strategy": "cola", "composition": False}], "pool": ["c4", "gsm8k"]},
        "draws": 1,
        "store": str(tmp_path / "store"),
    }
    given["strategies"] |= {"targets": ["math"], "limit": 6}
    chosen = Sweep.model_validate_json(json.dumps(given))
    assert list(look_at_sweep(chosen, progress=False)["missing"]) == [2, 1, 1]
    result = run_sweep(chosen, progress=False)
    assert result.n_computed == 4 and len(result.cells) == 4
    assert look_at_sweep(chosen, progress=False)["missing"].sum() == 0
    labels = {(each["source"], each.get("target")) for each in result.cells.values() if each["source"]}
    assert labels == {("random", None), ("cola(composition=False)", "math")}


def test_a_cell_that_fails_leaves_the_others(sweep, tmp_path, monkeypatch):
    compress = runner.compress

    def failing(lm, spec, *args, **kwargs):
        if spec.method == "gptq":
            raise NumericsError("model.layers.0.mlp.up_proj", "the Hessian is singular")
        return compress(lm, spec, *args, **kwargs)

    monkeypatch.setattr(runner, "compress", failing)
    methods = ({"method": "gptq", "bits": 3, "group_size": 16}, {"method": "wanda"})
    broken = sweep.model_copy(update={"methods": methods, "store": str(tmp_path), "draws": 1, "targets": {}})
    result = run_sweep(broken, progress=False)
    assert result.n_computed == 1 + 2  # dense, and wanda under both sets
    assert len(result.failures) == 2
    assert "c4 #0, gptq 3-bit: model.layers.0.mlp.up_proj: the Hessian is singular (in cell gptq" in result.failures[0]


def test_what_concerns_all_cells_stops_the_sweep(sweep, tmp_path):
    wrong = sweep.model_copy(update={"methods": ({"method": "rtn", "group_size": 7},), "store": str(tmp_path)})
    with pytest.raises(SpecError, match="group_size 7 does not divide"):
        run_sweep(wrong, progress=False)


def test_options_of_another_engine_are_refused(sweep):
    with pytest.raises(UnknownNameError, match="unknown engine 'rey'; nearest: ray"):
        run_sweep(sweep, engine="rey")
    with pytest.raises(SpecError, match="are for the engine ray"):
        run_sweep(sweep, address="auto")


def test_ray_that_is_not_installed_is_named(sweep, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpecError, match=r"pip install 'cola-lib\[ray\]'"):
        run_sweep(sweep, engine="ray")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_named(sweep, address):
    pytest.importorskip("ray")
    with pytest.raises(ClusterError, match=f"no Ray cluster at {address}: "):
        run_sweep(sweep, engine="ray", address=address, progress=False)


def test_the_local_engine_needs_no_ray(sweep, result, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_sweep(sweep, progress=False).n_read == 6


@pytest.mark.parametrize(
    "error",
    [
        NumericsError("model.layers.3", "singular"),
        UnknownNameError("source", "c5", ["c4"], "a hint"),
        SpecError("plain"),
    ],
)
def test_errors_survive_a_trip_between_processes(error):
    error.add_note("in cell x")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
    assert isinstance(again, ColaError) and again.__notes__ == ["in cell x"]


def test_tasks_are_plain(sweep):
    assert pickle.loads(pickle.dumps(sweep.tasks())) == sweep.tasks()
    assert pickle.loads(pickle.dumps(sweep)) == sweep
    assert Worker(sweep).look(SetTask(sweep.models[0], 2, 32)) == (2, 2)


def test_a_source_may_be_cut_in_a_way_of_its_own(tmp_path):
    made = {"source": "c4", "n_samples": 2, "seq_len": 64, "split_rows": 16}
    given = {"sources": ["c4", made], "methods": [{"method": "wanda"}], "draws": 1, "n_draws": 3, "n_samples": 4}
    sweep = read_sweep(write(tmp_path, given))
    _, plain, cut = sweep.tasks()
    experiment = Experiment(seq_len=32)
    vars(experiment)["lm"] = tiny_model()
    rows, labels = (getattr(sweep.labelled_set(cut, experiment), name) for name in ("build", "labels"))
    assert (rows().n_samples, rows().seq_len, labels["split_rows"], labels["n_draws"]) == (8, 16, 16, 3)
    same = experiment.calibration("c4", 0, 3, n_samples=2, seq_len=64, split_rows=16)
    assert rows().fingerprint == same.fingerprint
    assert sweep.labelled_set(plain, experiment).labels == {"source": "c4", "draw": 0, "n_draws": 3}


@pytest.mark.parametrize("path", EVIDENCE, ids=lambda path: path.stem)
def test_grids_of_the_evidence_share_one_partition_store_and_suite(path):
    sweep = read_sweep(path)
    assert (sweep.n_draws, sweep.store, sweep.evaluate.choices) == (12, "results/evidence", "gold")
    assert sweep.evaluate.balance == "bytes"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"draws": 3, "n_draws": 2}, "3 draws cannot be taken of 2"),
        ({"sources": [{"source": "c4", "rows": 3}]}, "rows"),
        ({"evaluate": {"balance": "tokens"}}, "balance"),
    ],
)
def test_a_partition_or_a_way_that_makes_no_sense_is_refused(tmp_path, change, said):
    with pytest.raises(SpecError, match=said):
        read_sweep(write(tmp_path, {"sources": ["c4"], "methods": [{"method": "wanda"}]} | change))


# ------------------------------------------------------------------------------------ the command line


def test_sweep_from_a_shell(sweep, result, tmp_path):
    given = sweep.model_dump(mode="json", exclude_defaults=True)
    path = write(tmp_path, given)
    shell = CliRunner()
    plan = shell.invoke(app, ["sweep", str(path), "--dry-run", "--json", "--no-progress"])
    assert plan.exit_code == 0, plan.output
    assert {name: json.loads(plan.stdout)[name] for name in ("cells", "stored", "missing")} == {
        "cells": 6,
        "stored": 6,
        "missing": 0,
    }
    done = shell.invoke(app, ["sweep", str(path), "--no-progress"])
    assert done.exit_code == 0, done.output
    assert "6 cells read from" in done.stdout and "0 computed" in done.stdout
    assert "wanda 50%" in done.stdout and "math" in done.stdout
    elsewhere = shell.invoke(
        app, ["sweep", str(path), "--dry-run", "--store", str(tmp_path / "other"), "--no-progress"]
    )
    assert "6 cells: 0 in" in elsewhere.stdout
    wrong = shell.invoke(app, ["sweep", str(write(tmp_path, given | {"sources": ["c44"]}))])
    assert wrong.exit_code == 2
    assert "sweep.yml: sources: unknown source 'c44'" in wrong.output
