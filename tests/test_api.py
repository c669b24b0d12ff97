"""What a reader of the reference relies on: all that is taught is described, and its examples stand alone."""

from __future__ import annotations

import ast
import builtins
import doctest
import functools
import inspect
import re
from typing import Any

import pytest
from public_api import taught

import cola_lib

SHARED = {"lm", "rows"}
"""What every example finds: see ``conftest.py``."""

PUBLIC = taught()
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
    return [name for name in inspect.signature(found).parameters if not name.startswith("_") and name != "self"]


def test_the_front_door_and_what_it_takes_are_taught():
    assert 100 < len(PUBLIC) < 250
    assert len(cola_lib.__all__) < 30
    names = {name.rpartition(".")[2] for name in PUBLIC}
    assert {*cola_lib.__all__, "Registry", "Spec", "Problem", "SourceInfo", "LanguageModel", "CalibrationSet"} <= names


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_stand_alone(name):
    """Each can be typed in as it is: it imports what it uses. That it gives what it says is tested as a doctest."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(PUBLIC[name]) or "")
    unknown = set(undefined("".join(example.source for example in examples))) - SHARED
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


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_described(name):
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
        plain = (None, "None", "bool", "float", "int", "str")  # which the summary describes
        assert says or returned in plain, f"{name} does not say what it returns"
