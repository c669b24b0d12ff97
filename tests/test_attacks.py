"""What has gone wrong at the edges, in small: files that are not what they say, kills, programs that fight back."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from cola_lib import book, folders
from cola_lib.book import NotebookError, ParameterError
from cola_lib.cli import app
from cola_lib.errors import SandboxError, SpecError, StoreError
from cola_lib.evaluate.harness.official import CodeScorer
from cola_lib.evaluate.sandbox import Limits, check_sandbox
from cola_lib.experiments import ResultStore, cell_key, read_sweep
from cola_lib.experiments.store import LARGEST_CELL
from cola_lib.plain import read_yaml

# ---------------------------------------------------------------------------------------------- YAML


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_aliases_of_aliases_are_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="aliases"):
        read_yaml(BOMB)
    path = tmp_path / "sweep.yml"
    path.write_text(BOMB)
    with pytest.raises(SpecError, match="aliases"):
        read_sweep(path)
    assert read_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}


# --------------------------------------------------------------------------------------------- stores


@pytest.fixture
def key():
    return cell_key(model="m", suite="s")


def cell_path(folder: Path, key) -> Path:
    path = folder / "cells" / f"{key.fingerprint}.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.timeout(30)
def test_a_pipe_in_place_of_a_cell_is_moved_aside_unopened(tmp_path, key):
    os.mkfifo(cell_path(tmp_path, key))
    store = ResultStore(tmp_path)
    assert store.get(key) is None and len(store.quarantined) == 1


def test_a_cell_that_unpacks_to_more_than_memory_is_moved_aside(tmp_path, key):
    path = cell_path(tmp_path, key)
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(LARGEST_CELL // 2**24 + 1):
            file.write(bytes(2**24))
    store = ResultStore(tmp_path)
    assert store.get(key) is None and len(store.quarantined) == 1


def test_evidence_of_more_rows_than_there_are_cells_is_not_read(tmp_path, key):
    path = tmp_path / "cells.parquet"
    pq.write_table(pa.table({"about": pa.array(["x"] * 200_000)}), path, compression="zstd")
    with pytest.raises(StoreError, match="200,000 rows"):
        ResultStore(tmp_path, packed=[path]).get(key)


def gone() -> int:
    """Number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    cells = tmp_path / "cells"
    cells.mkdir()
    dead, alive, foreign = (cells / f".x.{name}.tmp" for name in (f"{gone()}-ab", f"{os.getpid()}-ab", "abc"))
    for path in (dead, alive, foreign):
        path.write_text("")
    ResultStore(tmp_path).check_writable()
    assert not dead.exists() and alive.exists() and foreign.exists()
    assert list(cells.glob(".probe*")) == []


# --------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(folders, "_exchanged", lambda one, other: False)
    target = tmp_path / "out"
    for text in ("old", "new"):
        with folders.written_whole(target) as folder:
            (folder / "file").write_text(text)
    assert (target / "file").read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    """Where names cannot be exchanged, both versions lie in hidden folders: the next run begins by restoring one."""
    target = tmp_path / "out"
    owner = f"{gone()}-ab"
    for kind in ("old", "partial"):
        folder = tmp_path / f".out.{owner}.{kind}"
        folder.mkdir()
        (folder / "file").write_text(kind)
    with pytest.raises(RuntimeError), folders.written_whole(target):
        raise RuntimeError("the next run fails, too")
    assert (target / "file").read_text() == "old" and list(tmp_path.iterdir()) == [target]


# --------------------------------------------------------------------------------------------- programs


@pytest.fixture(scope="module")
def sandbox() -> None:
    try:
        check_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGSTOP"])
def test_a_program_that_signals_its_group_reaches_nobody_else(sandbox, signal):
    scorer = CodeScorer(Limits(wall_seconds=3))
    program = f"import os, signal\nos.killpg(0, signal.{signal})"
    scorer.share("pass", [program])
    assert scorer.share("pass", ["x = 1"]) == 1, "the evaluation goes on"


def test_a_program_that_breaks_its_sandbox_has_failed_and_a_machine_without_one_is_an_error(monkeypatch):
    from cola_lib.evaluate.harness import official

    def broken(*args, **options):
        raise SandboxError("broke")

    monkeypatch.setattr(official, "run_code", broken)
    monkeypatch.setattr(official, "check_sandbox", lambda: None)
    scorer = CodeScorer(Limits())
    assert scorer.share("pass", ["x = 1"]) == 0 and scorer.runs[0].outcome == "failed"
    monkeypatch.setattr(official, "check_sandbox", broken)
    with pytest.raises(SandboxError):
        scorer.share("pass", ["x = 1"])


# ------------------------------------------------------------------------------------------ the command line


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("too deep"), OSError(30, "Read-only file system")])
def test_whatever_a_library_raises_is_one_line(monkeypatch, error):
    broken = typer.Typer(cls=app.info.cls)

    @broken.command()
    def breaks() -> None:
        raise error

    broken.command("other")(lambda: None)  # one command alone would be no group
    found = CliRunner().invoke(broken, ["breaks"])
    assert found.exit_code == 2
    assert found.output.startswith("error: ") and found.output.count("\n") == 1
    if not isinstance(error, MemoryError):
        monkeypatch.setenv("COLA_DEBUG", "1")
        assert CliRunner().invoke(broken, ["breaks"]).exception is error


def test_a_plugin_whose_path_no_file_can_have_is_one_line():
    found = CliRunner().invoke(app, ["--plugin", "a\0b.py", "sources"])
    assert found.exit_code == 2 and found.output.startswith("error: ")


# --------------------------------------------------------------------------------------------- notebooks


def write_notebook(folder: Path, code: str, parameters: str = "text = 'c4'\nshare = 0.5") -> None:
    import nbformat.v4 as nb
    from nbformat import write

    folder.mkdir(exist_ok=True)
    cells = [nb.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nb.new_code_cell(code)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    write(nb.new_notebook(cells=cells, metadata=kernel), folder / "small.ipynb")


@pytest.mark.parametrize("name", ["../secret", "a/small", "/etc/small"])
def test_a_notebook_is_a_name_and_not_a_path(tmp_path, name):
    write_notebook(tmp_path / "notebooks", "pass")
    with pytest.raises(NotebookError, match="path"):
        book.plan([name], folder=tmp_path / "notebooks", out=tmp_path / "out")


def test_words_that_yaml_reads_otherwise_arrive_or_are_told_how_to_be_written(tmp_path):
    write_notebook(tmp_path / "notebooks", "pass")

    def planned(*given: str) -> dict:
        overrides = book.parse_overrides(given)
        (run,) = book.plan(["small"], folder=tmp_path / "notebooks", out=tmp_path / "out", overrides=overrides)
        return dict(run.parameters)

    assert planned("text=a=b", "share=1e-3") == {"text": "a=b", "share": 0.001}
    assert planned("text==")["text"] == "="
    assert planned("text='no'")["text"] == "no"
    for word in ("no", "on", "3"):
        with pytest.raises(ParameterError, match="quoted"):
            planned(f"text={word}")


def test_notebooks_run_with_this_interpreter_whatever_kernels_there_are(tmp_path, monkeypatch):
    foreign = tmp_path / "data" / "kernels" / "python3"
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text(
        json.dumps({"argv": ["/nonexistent/python", "{connection_file}"], "display_name": "x", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    write_notebook(tmp_path / "notebooks", f"import sys\nassert sys.executable == {sys.executable!r}")
    (run,) = book.plan(["small"], folder=tmp_path / "notebooks", out=tmp_path / "out")
    book.run_notebook(run)
    assert run.out.is_file() and "cola-kernel" not in os.environ.get("JUPYTER_PATH", "")
