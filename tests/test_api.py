"""What a reader of the API reference relies on: all public names are described in full, with examples."""

from __future__ import annotations

import ast
import builtins
import doctest
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from public_api import MODULES, public_names

WITHOUT_EXAMPLE = {
    "run_harness": "importing lm-eval takes 15 to 30 s; tests/test_harness.py runs it",
    "harness_cell": "as run_harness",
    "evaluation_index": "reads every packaged source, 20 s; tests/test_data.py does so once",
    "explore_table": "of whole stores; tests/test_explore.py makes one",
    "run_outside": "needs llm-compressor in an environment of its own; tests/test_outside.py runs it",
}


def public() -> Iterator[tuple[str, Any]]:
    """Every public function and class, once, by the module that defines it."""
    seen = set()
    for module in MODULES:
        for name in public_names(module):
            found = inspect.unwrap(getattr(importlib.import_module(module), name))
            if (inspect.isfunction(found) or inspect.isclass(found)) and id(found) not in seen:
                seen.add(id(found))
                yield f"{module}.{name}", found


PUBLIC = dict(public())
HEADING = re.compile(r"\n\n([A-Z]\w+)\n-{3,}\n")


@functools.cache
def sections(name: str) -> dict[str, str]:
    parts = HEADING.split("\n\n" + (inspect.getdoc(PUBLIC[name]) or ""))
    return {"summary": parts[0].strip()} | dict(zip(parts[1::2], parts[2::2], strict=True))


def described(text: str) -> dict[str, tuple[str, str]]:
    """Type and description of each name in a numpydoc section."""
    found: dict[str, tuple[str, str]] = {}
    for entry in re.split(r"\n(?=\S)", text):
        head, _, description = entry.partition("\n")
        names, _, kind = head.partition(" : ")
        found |= {name.strip().lstrip("*"): (kind, description.strip()) for name in names.split(",")}
    return found


def own_parameters(found: Any) -> list[str]:
    """Parameters that a caller gives; none for an error or an enumeration that is made as its base is."""
    made_here = "__init__" in vars(found) or hasattr(found, "__dataclass_fields__") or hasattr(found, "_fields")
    if inspect.isclass(found) and not made_here:
        return []
    return [name for name in inspect.signature(found).parameters if not name.startswith("_")]


def test_there_is_an_api():
    assert len(PUBLIC) > 300
    assert set(WITHOUT_EXAMPLE) <= {name.rpartition(".")[2] for name in PUBLIC}


def of_module(module: str) -> list[str]:
    return [name for name in PUBLIC if name.rpartition(".")[0] == module]


@pytest.mark.parametrize("module", MODULES)
def test_examples_stand_alone(module):
    """Each can be typed in as it is: it imports what it uses. That it gives what it says is tested as a doctest."""
    for name in of_module(module):
        if name.rpartition(".")[2] not in WITHOUT_EXAMPLE:
            examples = doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[name]) or "")
            assert examples and "Examples" in sections(name), f"{name} has no example"
            unknown = undefined("".join(example.source for example in examples))
            assert not unknown, f"the example of {name} does not say where {unknown} come from"


def undefined(source: str) -> list[str]:
    """Names that a program uses and does not make."""
    tree = ast.parse(source)
    known = set(dir(builtins))
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                known |= {(alias.asname or alias.name).split(".")[0] for alias in names}
            case ast.Name(id=word, ctx=ast.Store()) | ast.arg(arg=word) | ast.ExceptHandler(name=str(word)):
                known.add(word)
            case ast.FunctionDef(name=word) | ast.ClassDef(name=word):
                known.add(word)
    return sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - known)


@pytest.mark.parametrize("module", MODULES)
def test_all_is_described(module):
    for name in of_module(module):
        text = sections(name)
        assert text["summary"], f"{name} has no summary"
        entries = described(text.get("Parameters", "")) | described(text.get("Attributes", ""))
        for each in own_parameters(PUBLIC[name]):
            assert each in entries, f"{name} does not describe {each}"
            kind, description = entries[each]
            # what is passed on has no one type, and what is described elsewhere has it there
            elsewhere = re.match(r"(As|Of|See|Which|Not read|Other|Its)\b", description)
            assert kind or elsewhere or f"**{each}" in text["Parameters"], f"{name}: parameter {each} has no type"
        if inspect.isfunction(PUBLIC[name]):
            returned = inspect.signature(PUBLIC[name]).return_annotation
            says = {"Returns", "Yields"} & text.keys()
            assert says or returned in (None, "None"), f"{name} does not say what it returns"
