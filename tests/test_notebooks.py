"""The notebook executor, on notebooks made here; and the source notebooks themselves."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cola_lib import book
from cola_lib.errors import ColaError, SpecError, UnknownNameError

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
TOOLS = {
    "00_choose",
    "13_explore",
    "14_performance",
    "15_scaling",
}  # pages to look something up with, and no chapters of the course
PROFILES = sorted((ROOT / "notebooks" / "profiles").glob("*.yml"))
PARAMETERS = 'n_draws = 3  # draws\nsources = [\n    "c4",\n    "math",\n]\nratio: float = 0.5\nlimit = None'


def write(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """Write a notebook with a parameters cell and then ``cells``."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = new_notebook(cells=[new_markdown_cell("# Title"), tagged, *map(new_code_cell, cells)], metadata=kernel)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def run_of(source: Path, out: Path, *, cell_timeout: int | None = None, **parameters) -> book.NotebookRun:
    profile = book.Profile("p", "", "", {source.stem: parameters}, cell_timeout)
    (run,) = book.plan([], folder=source.parent, out=out, profile=profile)
    return run


def text_of(notebook: nbformat.NotebookNode) -> str:
    return "".join(o.text for c in notebook.cells if c.cell_type == "code" for o in c.outputs if "text" in o)


# ------------------------------------------------------------------------------------------ parameters


def test_declared_parameters_are_read_without_running(tmp_path):
    path = write(tmp_path, "nb", "1 / 0")
    assert book.declared_parameters(path) == {
        "n_draws": 3,
        "sources": ["c4", "math"],
        "ratio": 0.5,
        "limit": None,
    }


@pytest.mark.parametrize("line", ["import os", "a = b", "a, b = 1, 2", "n: int", "a = (", "a += 1"])
def test_parameters_must_be_literals(tmp_path, line):
    path = write(tmp_path, "nb", parameters=f"good = 1\n{line}")
    with pytest.raises(book.NotebookError, match="name = literal"):
        book.declared_parameters(path)


def test_two_parameter_cells_are_refused(tmp_path):
    path = write(tmp_path, "nb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(new_code_cell("other = 1", metadata={"tags": ["parameters"]}))
    nbformat.write(notebook, path)
    with pytest.raises(book.NotebookError, match="2 cells"):
        book.declared_parameters(path)


def test_file_that_is_no_notebook(tmp_path):
    path = tmp_path / "nb.ipynb"
    path.write_text("not json")
    with pytest.raises(book.NotebookError, match="not a Jupyter notebook"):
        book.declared_parameters(path)
    path.write_text('{"a": 1}')
    with pytest.raises(book.NotebookError, match="not a Jupyter notebook"):
        book.declared_parameters(path)


def test_overrides_are_typed_by_yaml():
    given = ["n=3", "x=0.5", "s=three", 'q="3"', "l=[c4, math]", "b=true", "z=null", "d={a: 1}", "e=a=b"]
    assert book.parse_overrides(given) == {
        "n": 3,
        "x": 0.5,
        "s": "three",
        "q": "3",
        "l": ["c4", "math"],
        "b": True,
        "z": None,
        "d": {"a": 1},
        "e": "a=b",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [(["n"], "name=value"), (["=3"], "name=value"), (["n=1", "n=2"], "twice"), (["n=[1"], "not YAML")],
)
def test_bad_overrides(given, message):
    with pytest.raises(book.ParameterError, match=message):
        book.parse_overrides(given)


def test_unknown_parameter_is_an_error_with_the_nearest_name(tmp_path):
    path = write(tmp_path, "nb")
    with pytest.raises(UnknownNameError, match=r"'n_draw'; nearest: n_draws.*nb\.ipynb"):
        run_of(path, tmp_path / "out", n_draw=2)


@pytest.mark.parametrize(
    "parameters", [{"n_draws": "3"}, {"n_draws": True}, {"n_draws": 2.5}, {"sources": "c4"}, {"ratio": "high"}]
)
def test_value_of_another_kind_is_an_error(tmp_path, parameters):
    path = write(tmp_path, "nb")
    with pytest.raises(book.ParameterError, match=next(iter(parameters))):
        run_of(path, tmp_path / "out", **parameters)


def test_values_of_the_same_kind_pass(tmp_path):
    path = write(tmp_path, "nb")
    given = {"n_draws": 7, "sources": ["code"], "ratio": 1, "limit": 12}
    assert run_of(path, tmp_path / "out", **given).parameters == given


# ---------------------------------------------------------------------------------------------- the plan


def test_plan_checks_every_notebook_before_any_runs(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b", parameters="other = 1")
    profile = book.Profile("p", "", "", {"a": {"n_draws": 1}, "b": {"other": 2}})
    runs = book.plan([], folder=tmp_path, out=tmp_path / "out", profile=profile)
    assert [(run.source.stem, run.parameters) for run in runs] == [("a", {"n_draws": 1}), ("b", {"other": 2})]
    with pytest.raises(UnknownNameError, match="n_draws"):
        book.plan([], folder=tmp_path, out=tmp_path / "out", profile=profile, overrides={"n_draws": 5})
    (only,) = book.plan(["a"], folder=tmp_path, out=tmp_path / "out", profile=profile, overrides={"n_draws": 5})
    assert only.parameters == {"n_draws": 5}, "an override wins over the profile"


def test_a_fresh_plan_reads_no_packed_results(tmp_path):
    write(tmp_path, "a", parameters="packed = []")
    write(tmp_path, "b", parameters="other = 1")
    profile = book.Profile("p", "", "", {"a": {"packed": ["evidence.parquet"]}, "b": {"other": 2}})
    runs = book.plan([], folder=tmp_path, out=tmp_path / "out", profile=profile, fresh=True)
    assert [run.parameters for run in runs] == [{"packed": []}, {"other": 2}]


def test_plan_refuses_unknown_notebooks_and_overwriting_sources(tmp_path):
    write(tmp_path, "01_layer")
    with pytest.raises(UnknownNameError, match="nearest: 01_layer"):
        book.plan(["01_layers"], folder=tmp_path, out=tmp_path / "out")
    with pytest.raises(book.NotebookError, match="replace the source"):
        book.plan(["01_layer"], folder=tmp_path, out=tmp_path)
    with pytest.raises(ColaError, match="nothing to run"):
        book.plan([], folder=tmp_path, out=tmp_path / "out")


def test_profile(tmp_path):
    (tmp_path / "quick.yml").write_text(
        "about: small\ntakes: 1 minute\ncell_timeout: 5\nnotebooks:\n  00_start:\n  01_layer: {n: 2}\n"
    )
    profile = book.read_profile("quick", tmp_path)
    assert profile == book.Profile("quick", "small", "1 minute", {"00_start": {}, "01_layer": {"n": 2}}, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: a\ntakes: b\nnotebook: {}\n", "nearest: notebooks"),
        ("about: a\nnotebooks: {}\n", "'takes' is missing"),
        ("- a\n", "expected a mapping, found list"),
        ("about: a\ntakes: b\nnotebooks: [x]\n", "expected a mapping, found list"),
        ("about: a\ntakes: b\nnotebooks: {x: 3}\n", "notebook x: expected a mapping, found int"),
        ("about: [\n", "not YAML"),
        ("about: a\ntakes: b\nnotebooks: {x: {}, y: {}}\nafter: {y: [xx]}\n", "nearest: x"),
        (
            "about: a\ntakes: b\nnotebooks: {x: {}, y: {}}\nafter: {x: [y]}\n",
            "x waits for y, and so must stand below it",
        ),
    ],
)
def test_bad_profile(tmp_path, text, message):
    (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(ColaError, match=message):
        book.read_profile("bad", tmp_path)


def test_unknown_profile(tmp_path):
    (tmp_path / "quick.yml").write_text("")
    with pytest.raises(UnknownNameError, match="nearest: quick"):
        book.read_profile("quik", tmp_path)


# ------------------------------------------------------------------------------------------- execution


def test_success_writes_a_clean_notebook(tmp_path):
    bars = """
import sys
from tqdm import tqdm
from tqdm.auto import tqdm as auto
for _ in tqdm(range(3), desc="bar"): pass
for _ in auto(range(3)): pass
print("kept", file=sys.stderr)
"""
    source = write(tmp_path, "nb{0}", "print(n_draws, sources, limit)", "", bars)
    before = source.read_bytes()
    run = run_of(source, tmp_path / "out", n_draws=8)
    assert book.run_notebook(run) > 0
    executed = nbformat.read(run.out, as_version=4)
    nbformat.validate(executed)
    assert text_of(executed) == "8 ['c4', 'math'] None\nkept\n"
    injected = executed.cells[2]
    assert injected.metadata.tags == ["injected-parameters", "hide-input"]
    assert "n_draws = 8" in injected.source
    assert set(executed.metadata) <= {"kernelspec", "language_info"}
    assert not any({"papermill", "execution"} & set(cell.metadata) for cell in executed.cells)
    assert str(tmp_path) not in run.out.read_text()
    assert source.read_bytes() == before
    assert [p.name for p in run.out.parent.iterdir()] == [run.out.name]


def without_rerun(notebook: bytes) -> dict:
    """What an executed notebook holds above the cell that says when it ran, and how long."""
    content = json.loads(notebook)
    assert content["cells"].pop()["id"] == book.RERUN
    return content


def test_same_run_gives_the_same_file(tmp_path):
    source = write(tmp_path, "nb", "print(n_draws)")
    run = run_of(source, tmp_path / "out", n_draws=8)
    book.run_notebook(run)
    first = run.out.read_bytes()
    book.run_notebook(run)
    assert without_rerun(run.out.read_bytes()) == without_rerun(first)


def test_the_command_at_the_end_makes_the_page_again(tmp_path):
    (tmp_path / "notebooks").mkdir()
    source = write(tmp_path / "notebooks", "07_nb", "print(n_draws, sources, ratio, limit)")
    given = {"n_draws": 8, "sources": ["c4", "mbpp:language=all", "it's", "Züri"], "limit": "3"}
    run = run_of(source, tmp_path / "out", **given)
    book.run_notebook(run)
    cell = nbformat.read(run.out, as_version=4).cells[-1]
    (command,) = re.findall(r"```bash\n(.*?)\n```", cell.source, re.S)
    for fact in ("make notebook N=07", f"torch {version('torch')}", " CPU cores", f"on {datetime.now(UTC):%Y-%m}"):
        assert fact in cell.source
    assert command.startswith("papermill notebooks/07_nb.ipynb out.ipynb")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    assert text_of(nbformat.read(tmp_path / "out.ipynb", 4)) == text_of(nbformat.read(run.out, 4))
    assert "it's" in text_of(nbformat.read(run.out, 4))


@pytest.mark.parametrize(
    ("cell", "timeout", "message", "in_traceback"),
    [
        ('raise ValueError("no such\\nlayer")', None, "cell 4 raised ValueError: no such layer.", "ValueError"),
        ("import os; os._exit(3)", None, r"the kernel python3 .* died in cell 4 \(import os; os._exit\(3\)\)", ""),
        ("import time; time.sleep(60)", 2, "cell 4 .* took longer than 2 s", ""),
        ("import sys; sys.exit(0)", None, "cell 5 .* did not run", ""),
    ],
    ids=["raises", "dies", "hangs", "exits"],
)
def test_failure_leaves_the_output_as_it_was(tmp_path, cell, timeout, message, in_traceback):
    source = write(tmp_path, "nb", 'print("first")', cell, 'print("last")')
    run = run_of(source, tmp_path / "out", cell_timeout=timeout)
    run.out.parent.mkdir()
    run.out.write_text("earlier")
    with pytest.raises(book.ExecutionError, match=message) as caught:
        book.run_notebook(run)
    assert in_traceback in caught.value.traceback and "\x1b" not in caught.value.traceback
    assert "\n" not in str(caught.value)
    assert run.out.read_text() == "earlier"
    assert sorted(p.name for p in run.out.parent.iterdir()) == ["nb.failed.ipynb", "nb.ipynb"]
    assert "first" in text_of(nbformat.read(run.out.parent / "nb.failed.ipynb", as_version=4))

    book.run_notebook(run_of(write(tmp_path, "nb", "print(1)"), tmp_path / "out"))
    assert [p.name for p in run.out.parent.iterdir()] == ["nb.ipynb"], "success clears the failed copy"


def together(tmp_path, runs_after: dict[str, list[str]], **cells: str) -> list[book.NotebookRun]:
    for name, cell in cells.items():
        write(tmp_path, name, cell)
    profile = book.Profile("p", "", "", dict.fromkeys(cells, {}), 300, runs_after)
    return book.plan([], folder=tmp_path, out=tmp_path / "out", profile=profile)


def test_several_at_a_time_wait_for_what_they_read(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = """
from pathlib import Path
import os, time
Path({mine!r}).touch()
while not Path({other!r}).exists():
    time.sleep(0.05)
print("threads", os.environ["OMP_NUM_THREADS"])
"""
    a, b = (str(tmp_path / name) for name in "ab")
    runs = together(
        tmp_path,
        {"last": ["one", "two"]},
        one=meet.format(mine=a, other=b),  # neither ends unless both run
        two=meet.format(mine=b, other=a),
        last="print('after both')",
    )
    events = [(run.name, seconds is not None) for run, seconds in book.run_notebooks(runs, jobs=2)]
    assert set(events[:4]) == {(name, ended) for name in ("one", "two") for ended in (False, True)}
    assert events[4:] == [("last", False), ("last", True)]
    share = max(1, (os.cpu_count() or 1) // 2)
    assert f"threads {share}" in text_of(nbformat.read(tmp_path / "out" / "one.ipynb", 4))
    assert "OMP_NUM_THREADS" not in os.environ


def test_after_a_failure_nothing_else_starts(tmp_path):
    runs = together(tmp_path, {"last": ["bad"]}, bad="1 / 0", last="print('never')")
    events = []
    with pytest.raises(book.ExecutionError, match="division by zero") as raised:
        events.extend((run.name, seconds) for run, seconds in book.run_notebooks(runs, jobs=2))
    assert "ZeroDivisionError" in raised.value.traceback
    assert not (tmp_path / "out" / "last.ipynb").exists()


def test_what_cannot_run_together_is_refused(tmp_path):
    with pytest.raises(SpecError, match="at least 1, not 0"):
        list(book.run_notebooks([], jobs=0))
    runs = together(tmp_path, {"one": ["two"], "two": ["one"]}, one="1", two="2")
    with pytest.raises(SpecError, match="one, two: each waits for another"):
        list(book.run_notebooks(runs, jobs=2))


def test_links_stay_right_in_the_folder_of_executed_notebooks(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "rules.md").write_text("# Rules")
    (tmp_path / "notebooks").mkdir()
    source = write(tmp_path / "notebooks", "nb", "1")
    notebook = nbformat.read(source, as_version=4)
    notebook.cells[0].source = "[a](../notes/rules.md#two) [b](other.ipynb) [c](https://example.org/x) [d](#here)"
    said = new_code_cell('from IPython.display import Markdown\n\nMarkdown("[a](../notes/rules.md)")')
    notebook.cells.append(said)
    nbformat.write(notebook, source)
    book.run_notebook(run_of(source, tmp_path / "book" / "executed"))
    cells = nbformat.read(tmp_path / "book" / "executed" / "nb.ipynb", as_version=4).cells
    assert cells[0].source == "[a](../../notes/rules.md#two) [b](other.ipynb) [c](https://example.org/x) [d](#here)"
    assert cells[-2].outputs[0].data["text/markdown"] == "[a](../../notes/rules.md)"


def test_unknown_kernel(tmp_path):
    source = write(tmp_path, "nb", "1")
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata.kernelspec.name = "cobol"
    nbformat.write(notebook, source)
    with pytest.raises(book.NotebookError, match="cobol"):
        book.run_notebook(run_of(source, tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


# --------------------------------------------------------------------------------- the source notebooks


def test_papermill_alone_runs_a_chapter(tmp_path):
    """Somebody who knows papermill, and nothing of our commands, changes a parameter and runs a notebook elsewhere."""
    source, store = ROOT / "notebooks" / "12_scorecard.ipynb", ROOT / "evidence"
    command = [sys.executable, "-m", "papermill", str(source), "out.ipynb"]
    command += [word for name in ("store", "evidence") for word in ("-p", name, str(store))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code" and cell.source)
    assert f"of {len(list((store / 'findings').iterdir()))} notebooks" in str(executed.cells[-1].outputs)


def test_a_clean_clone_finds_scores_to_explore():
    asked = book.read_profile("standard", ROOT / "notebooks" / "profiles").notebooks["13_explore"]["results"]
    assert all(any(str(place).endswith(".parquet") for place in places) for places in asked.values())


def test_there_are_notebooks_and_a_quick_profile():
    assert SOURCES and "quick" in [p.stem for p in PROFILES]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_source_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.nbformat_minor >= 5, "cells need ids"
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"cell {number} carries output"
            ast.parse(cell.source)
    assert book.declared_parameters(path), "no cell is tagged 'parameters'"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.stem not in TOOLS], ids=lambda p: p.stem)
def test_a_chapter_opens_and_closes_as_a_chapter_does(path):
    cells = nbformat.read(path, as_version=4).cells
    for promise in ("**You will learn**", "**You need**", "**It takes**"):
        assert promise in cells[0].source, f"the first cell does not say: {promise}"

    def first(kind: str, text: str) -> int:
        found = [i for i, cell in enumerate(cells) if cell.cell_type == kind and re.search(text, cell.source, re.M)]
        assert found, f"no {kind} cell has {text!r}"
        return found[0]

    assert any("> **Take-away.**" in cell.source for cell in cells), "a chapter says what to take away"
    exercise, solution = first("markdown", "^## Exercise$"), first("code", r"\A# Solution\b")
    reading, last = first("markdown", "^## Further reading$"), len(cells) - 1
    assert exercise < solution < reading < last, "exercise, solution, further reading, provenance: in this order"
    assert "hide-cell" in cells[solution].metadata.tags, "the solution is to be hidden"
    assert cells[last].cell_type == "code" and "hide-input" in cells[last].metadata.tags, "provenance comes last"
    items = re.findall(r"^- \[.+?\]\(\S+\): \S.*$", cells[reading].source, re.M)
    lines = cells[reading].source.split("## Further reading")[1].strip().splitlines()
    assert items == lines and 2 <= len(items) <= 4, "two to four papers, each with a line on why to read it"


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_profile_fits_the_notebooks(path, tmp_path):
    profile = book.read_profile(path.stem, path.parent)
    book.plan([], folder=ROOT / "notebooks", out=tmp_path, profile=profile)
    if path.stem == "quick":
        assert list(profile.notebooks) == [p.stem for p in SOURCES], "the quick book has all notebooks"


MARKUP = re.compile(r"\{(?:doc|cite|glue|ref|numref|term)[:\w]*\}`|^:::|^```\{", re.M)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_reads_as_well_in_jupyter(path):
    cells = nbformat.read(path, as_version=4).cells
    assert not [found for cell in cells for found in MARKUP.findall(cell.source)], "markup that only Sphinx reads"
    folded = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
    for cell in cells:
        if folded & set(cell.metadata.get("tags", [])):
            assert cell.metadata.get("jupyter", {}).get("source_hidden"), "what the page folds is folded in Jupyter too"
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    links = [link for text in texts for link in re.findall(r"\]\((?!http)([^)#]+)", text)]
    assert not [link for link in links if not (path.parent / link).is_file()]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_what_a_sentence_says_is_computed_above_it(path):
    """A page that is rendered once may be read in any order; a notebook runs from its first cell to its last."""
    names: set[str] = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            names |= set(re.findall(r"^\s*phrase\[f?\"(.+?)\"\] =", cell.source, re.M))
            patterns = [re.sub(r"\\{.+?\\}", ".+", re.escape(name)) for name in names]
            used = re.findall(r"\{phrase\[\"(.+?)\"\]", cell.source)
            assert not [name for name in used if not any(re.fullmatch(pattern, name) for pattern in patterns)]
