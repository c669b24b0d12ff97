"""The worked examples of CONTRIBUTING.md, run as they stand, in a folder outside the repository."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 40

BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.M | re.S)
NAMED = re.compile(r"# (\w+\.py)\n")


def sections() -> dict[str, str]:
    """Text of each worked example by its heading."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("\n## Add something of your own\n")[1]
    parts = re.split(r"^### (.+)\n", text.split("\n## ")[0], flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = sections()
EXPECTED = {
    "A method": "cubed 50% 0.50",
    "A strategy": "(('2',),)",
    "A claim": "X1 Code is the best teacher of code",
}


def blocks(heading: str, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(SECTIONS[heading]) if found == language]


def lay_out(heading: str, folder: Path) -> Path:
    """Write the section's file; give its path."""
    named = blocks(heading, "python")[0]
    path = folder / NAMED.match(named)[1]
    path.write_text(named, encoding="utf-8")
    return path


def run(folder: Path, *command: str, **environment: str) -> str:
    """Run a command in a folder, with this repository's code and the commands of this environment."""
    paths = os.pathsep.join([str(folder), str(ROOT)])
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "PATH": found} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shell_lines(heading: str) -> list[list[str]]:
    return [shlex.split(line) for line in blocks(heading, "bash")[0].replace("\\\n", " ").splitlines()]


def test_there_is_an_example_of_each():
    assert list(SECTIONS) == ["A source", "A method", "A strategy", "A claim", "A notebook"]
    for heading, text in SECTIONS.items():
        code = [line for _, block in BLOCK.findall(text) for line in block.splitlines()]
        assert 10 <= len(code) < MOST_LINES, f"{heading}: {len(code)} lines of code"


@pytest.mark.parametrize("heading", EXPECTED)
def test_the_example_runs(heading, tmp_path):
    (tmp_path / "evidence").symlink_to(ROOT / "evidence")
    path = lay_out(heading, tmp_path)
    (tmp_path / "use.py").write_text(blocks(heading, "python")[1], encoding="utf-8")
    shown = run(tmp_path, sys.executable, "-c", f"import {path.stem}, use")
    assert EXPECTED[heading] in shown


def test_a_source_calibrates_by_hand_and_from_the_shell(tmp_path, assets_dir):
    from cola_lib.models import tiny_model

    path = lay_out("A source", tmp_path)
    (tmp_path / "use.py").write_text(blocks("A source", "python")[1], encoding="utf-8")
    shown = run(tmp_path, sys.executable, "-c", f"import {path.stem}, use")
    assert shown.startswith("proverbs:language=de: 2 rows of 16"), shown

    ((cola, *arguments),) = shell_lines("A source")
    assert cola == "cola" and "smollm2-135m" in arguments
    tiny_model().save(tmp_path / "tiny")  # in the place of the embedded model, which takes its time
    arguments = ["tiny" if word == "smollm2-135m" else word for word in arguments]
    run(tmp_path, sys.executable, "-m", "cola_lib.cli", *arguments)
    assert (tmp_path / "pruned" / "report.json").is_file()


def test_a_notebook_runs_with_other_parameters(tmp_path):
    (tmp_path / "notebooks").mkdir()
    path = lay_out("A notebook", tmp_path)
    run(tmp_path, sys.executable, path.name)
    ((cola, *arguments),) = shell_lines("A notebook")
    assert cola == "cola"
    run(tmp_path, sys.executable, "-m", "cola_lib.cli", *arguments)
    text = (tmp_path / "my-run" / "20_sentences.ipynb").read_text()
    assert "[4, 3]" in text and "longest = 9" in text


def test_a_notebook_knows_the_sources_of_a_plugin(tmp_path):
    """``cola --plugin`` reaches the kernel: an unchanged notebook, which makes an Experiment, can name the source."""
    import nbformat

    path = lay_out("A source", tmp_path)
    cells = [
        nbformat.v4.new_code_cell("source = 'c4'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("from cola_lib.data import source_info\nfrom cola_lib.experiments import Experiment"),
        nbformat.v4.new_code_cell("Experiment()\nprint(source_info(source).licence)"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks" / "licence.ipynb")
    command = [sys.executable, "-m", "cola_lib.cli", "--plugin", path.name]
    run(tmp_path, *command, "notebook", "licence", "-p", "source=proverbs", "--out", "run")
    assert "public domain" in (tmp_path / "run" / "licence.ipynb").read_text()
