"""The Sphinx extension, on a book of two pages."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cola_lib.errors import ColaError
from cola_lib.pages import find_browser, print_book

ROOT = Path(__file__).parents[1]
FIGURE = '<section class="cola-figure" id="one"><script type="application/json">{"a": "b"}</script></section>'


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Build the book's configuration with two small pages in place of its chapters."""

    def built(environment: dict[str, str]) -> Path:
        folder = tmp_path_factory.mktemp("book")
        executed = folder / "book" / "executed"
        executed.mkdir(parents=True)
        for name in ("_ext", "_static", "vendor"):
            shutil.copytree(ROOT / "book" / name, folder / "book" / name)
        shutil.copy(ROOT / "_config.yml", folder)
        (folder / "book" / "references.bib").write_text("")
        (folder / "book" / "intro.md").write_text("# Book\n")
        output = new_output("display_data", {"text/html": FIGURE, "text/plain": "figure"})
        cells = [new_markdown_cell("# Chapter"), new_code_cell("1", outputs=[output], execution_count=1)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}, "language_info": {"name": "python"}}
        nbformat.write(new_notebook(cells=cells, metadata=kernel), executed / "03_chapter.ipynb")
        contents = {"format": "jb-book", "root": "book/intro", "chapters": [{"file": "book/executed/03_chapter"}]}
        (folder / "_toc.yml").write_text(yaml.safe_dump(contents))
        command = [Path(sys.executable).with_name("jupyter-book"), "build", folder, "--quiet", "--warningiserror"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
        done = subprocess.run(command, env=clean | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder / "_build" / "html"

    return built


@pytest.fixture(scope="module")
def published(build) -> Path:
    return build({"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "somebody/a-fork"})


def links(page: Path) -> list[str]:
    return re.findall(r'href="(https://(?:mybinder|colab)[^"]*)"', page.read_text())


def test_scripts_lie_beside_the_pages_and_are_loaded_where_there_is_a_figure(published):
    chapter, intro = published / "book/executed/03_chapter.html", published / "book/intro.html"
    for name in ("plotly.min.js", "interactive.js", "interactive.css"):
        assert (published / "_static" / name).stat().st_size > 1000
        assert f"../../_static/{name}" in chapter.read_text()
        assert name not in intro.read_text()
    assert FIGURE in chapter.read_text()


def test_launch_buttons_open_the_source_notebook_where_github_builds(published):
    found = links(published / "book/executed/03_chapter.html")
    assert found == [
        "https://mybinder.org/v2/gh/somebody/a-fork/main?urlpath=lab/tree/notebooks/03_chapter.ipynb",
        "https://colab.research.google.com/github/somebody/a-fork/blob/main/notebooks/03_chapter.ipynb",
    ]


def test_a_book_without_a_repository_has_no_launch_buttons(build):
    assert not links(build({}) / "book/executed/03_chapter.html")


def test_print_says_what_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ColaError, match="make pdf builds it first"):
        print_book(tmp_path / "none.html", tmp_path / "book.pdf")

    playwright = SimpleNamespace(chromium=SimpleNamespace(executable_path=str(tmp_path / "none")))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ColaError, match="playwright install chromium"):
        find_browser(playwright)
    (tmp_path / "chromium").touch(mode=0o755)
    assert find_browser(playwright) == str(tmp_path / "chromium")
