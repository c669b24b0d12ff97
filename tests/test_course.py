"""The book as a course: its commands, run times, citations and terms are those of the project."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from cola_lib import book, figures
from cola_lib.compress import METHODS
from cola_lib.curation import STRATEGIES
from cola_lib.data import SOURCES
from cola_lib.data.registry import parse_filters, source_info
from cola_lib.experiments import as_spec, as_strategy

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = ROOT / "notebooks"
PAGES = {path.stem: path.read_text() for path in sorted(BOOK.glob("*.md"))}
CHAPTERS = {
    path.stem: "\n\n".join(
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown" or cell.source.startswith("Markdown(")  # a sentence with numbers
    )
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
}
TEXTS = PAGES | CHAPTERS
BIBLIOGRAPHY = (BOOK / "references.bib").read_text()
ENTRIES = {
    entry.partition(",")[0].partition("{")[2]: entry for entry in re.findall(r"^@.*?^}", BIBLIOGRAPHY, re.M | re.S)
}
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)


def shell_lines(start: str) -> list[tuple[str, str]]:
    """Page and command, for every command of the written pages and the README that begins so."""
    pages = {**PAGES, "README": (ROOT / "README.md").read_text()}
    return [
        (page, line)
        for page, text in pages.items()
        for block in BLOCK.findall(text)
        for line in re.split(r"\n(?=\S)", block.replace("\\\n", " ").strip())  # what is indented goes on
        if line.startswith(start)
    ]


def check_names(value: Any, name: str = "") -> None:
    """Refuse methods, strategies and sources that do not exist, wherever they stand in a parameter's value."""
    if isinstance(value, dict):
        if "method" in value:
            as_spec(value)
        elif "strategy" in value:
            as_strategy(value)
        for key, inner in value.items():
            check_names(inner, key)
    elif isinstance(value, list):
        for inner in value:
            check_names(inner, name)
    elif isinstance(value, str) and name in {"source", "sources", "pool"} and not value.endswith(".jsonl"):
        parse_filters(value, source_info(value))
    elif isinstance(value, str) and name in {"strategy", "strategies"}:
        as_strategy(value)


@pytest.mark.parametrize(("page", "line"), shell_lines("cola notebook"))
def test_commands_that_run_a_notebook(page, line, tmp_path):
    names, assignments, out, profile = [], [], tmp_path / "out", None
    words = iter(shlex.split(line)[2:])
    for word in words:
        if word == "-p":
            assignments.append(next(words))
        elif word == "--out":
            out = tmp_path / next(words)
        elif word == "--profile":
            profile = book.read_profile(next(words), NOTEBOOKS / "profiles")
        else:
            names.append(word)
    overrides = book.parse_overrides(assignments)
    assert book.plan(names, folder=NOTEBOOKS, out=out, profile=profile, overrides=overrides)
    for name, value in overrides.items():
        check_names(value, name)


@pytest.mark.parametrize(("page", "line"), shell_lines("papermill"))
def test_commands_for_papermill(page, line):
    source, _, *rest = shlex.split(line)[1:]
    declared = book.declared_parameters(ROOT / source)
    assert {name for flag, name, _ in zip(rest[::3], rest[1::3], rest[2::3], strict=True) if flag == "-p"} <= set(
        declared
    )


def test_there_are_assignments():
    given = [line for page, line in shell_lines("cola notebook") if page == "instructors"]
    assert len(given) == len(re.findall(r"^\*Pitfall:\*", PAGES["instructors"], re.M)) >= 8
    numbers = re.findall(r"^\*\*(\d+)\. ", PAGES["instructors"], re.M)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]


def test_targets_of_make_that_pages_name():
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for _, line in shell_lines("make") for word in line.split("#")[0].split()[1:] if "=" not in word}
    assert {"book", "setup", "assets"} <= named <= targets


# ---------------------------------------------------------------------------------------------- run times


def test_the_instructors_run_times_are_the_chapters_own():
    rows = dict(re.findall(r"^\| \{doc\}`executed/(\w+)` \| (.+?) \|$", PAGES["instructors"], re.M))
    assert len(rows) > 10 and set(rows) <= set(CHAPTERS)
    for chapter, said in rows.items():
        (takes,) = re.findall(r"\*\*It takes\*\* (.+)", CHAPTERS[chapter].split("\n\n")[2].replace("\n", " "))
        for phrase in re.findall(r"about \w+ minutes|about \w+ more|a few minutes|seconds", said):
            assert phrase in takes, f"{chapter}: {takes}"


def test_profiles_take_what_their_files_say():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.+?) \|$", PAGES["reading"], re.M))
    assert {"quick", "standard"} <= set(rows)
    for name, said in rows.items():
        assert book.read_profile(name, NOTEBOOKS / "profiles").takes == said
    assert rows["quick"] in PAGES["instructors"]


# ------------------------------------------------------------------------------- citations, names and terms


def test_how_to_cite_is_what_the_citation_file_says():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    authors = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    page = PAGES["reading"]
    for said in (citation["title"], citation["authors"][0]["name"], citation["version"], citation["license"]):
        assert f"{{{said}}}" in page, said
    for said in (paper["title"], authors, str(paper["year"]), paper["conference"]["name"]):
        assert f"{{{said}}}" in page, said
    assert paper["identifiers"][0]["value"] in page
    assert f"author = {{{authors}}}" in BIBLIOGRAPHY


def cited(text: str) -> set[str]:
    """Keys of the papers that a page names: by Sphinx's role, or, in a notebook, by a link or by author and year."""
    named = {key for keys in re.findall(r"\{cite:[a-z]+\}`([^`]+)`", text) for key in keys.split(",")}
    for link in re.findall(r"\]\((https://\S+?)\)", text):
        short = re.sub(r"^https://(arxiv\.org/abs|doi\.org)/", "", link)
        named |= {key for key, entry in ENTRIES.items() if short in entry}
    for author, year in re.findall(r"\[([\w-]+)[^\]]*?(\d{4})\)?\]\(\.\./book/references\.md\)", text):
        named |= {key for key, entry in ENTRIES.items() if author in entry and f"{{{year}}}" in entry}
    return named


def test_every_citation_has_an_entry():
    entries = re.findall(r"^@\w+\{(\w+),", BIBLIOGRAPHY, re.M)
    assert len(entries) == len(set(entries)) > 50
    for page, text in TEXTS.items():
        assert cited(text) <= set(entries), page
    unused = set(entries) - set().union(*map(cited, TEXTS.values()))
    assert not unused, f"nobody says what these are for: {sorted(unused)}"


def test_every_paper_that_the_library_names_is_in_the_bibliography():
    numbers = {
        number: path.name
        for path in (ROOT / "cola_lib").rglob("*.py")
        for number in re.findall(r"arXiv[\s:]+(\d{4}\.\d{5})", path.read_text())
    }
    assert len(numbers) > 30
    known = set(re.findall(r"\d{4}\.\d{5}", BIBLIOGRAPHY))
    assert not {number: name for number, name in numbers.items() if number not in known}


def test_every_method_strategy_and_source_is_cited_for():
    (tables,) = re.findall(r"## What is cited for what(.*?)^## ", PAGES["references"], re.M | re.S)
    named = set(re.findall(r"`(\w+)`", re.sub(r"\{cite:t\}`\w+`", "", tables)))
    assert {*METHODS, *STRATEGIES, *SOURCES} <= named


def test_what_was_done_differently_is_said_of_whatever_has_notes():
    noted = {name for name, strategy in STRATEGIES.items() if "Notes\n" in (strategy.__doc__ or "")}
    for method in METHODS:
        module = ROOT / "cola_lib" / "compress" / f"{method.removeprefix('joint_')}.py"
        if "Notes\n" in module.read_text():
            noted.add(method)
    assert {"gptq", "zipcal"} <= noted
    missing = {name for name in noted - {"cola"} if f"`{name}`" not in PAGES["differences"]}
    assert not missing and "## COLA" in PAGES["differences"]


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_figure_has_a_caption_and_says_in_words_what_it_shows(name):
    drawing = {name for name in figures.__all__ if signature_of(name) == "Figure"}
    assert {"interval_dots", "ratio_dots", "lines"} <= drawing
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    for cell, below in itertools.pairwise(cells):
        if cell.cell_type == "code" and drawing & set(re.findall(r"^(?:\w+ = )?figures\.(\w+)\(", cell.source, re.M)):
            assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), cell.source
            assert below.source.startswith("*"), f"no caption below: {cell.source}"


def signature_of(name: str) -> Any:
    """What a name of ``cola_lib.figures`` returns, as it is annotated."""
    return getattr(getattr(figures, name), "__annotations__", {}).get("return")


def test_glossary_is_in_order():
    terms = re.findall(r"^(\S.*)\n  \S", PAGES["glossary"].split(":::{glossary}\n")[1], re.M)
    plain = [term.replace("é", "e").lower() for term in terms]
    assert len(terms) > 60 and plain == sorted(set(plain))
