"""The public interface as the reference lists it, and what of it is taught, that is, described in full."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]

PAGES = MappingProxyType(
    {
        "front": ("cola_lib.api",),
        "data": ("cola_lib.assets", "cola_lib.data", "cola_lib.calibration"),
        "models": ("cola_lib.models",),
        "curation": ("cola_lib.curation",),
        "activations": ("cola_lib.activations",),
        "statistics": ("cola_lib.statistics",),
        "compress": ("cola_lib.compress", "cola_lib.finetune"),
        "evaluate": ("cola_lib.evaluate", "cola_lib.evaluate.harness"),
        "experiments": ("cola_lib.experiments",),
        "analysis": ("cola_lib.analysis", "cola_lib.verdicts"),
        "figures": ("cola_lib.figures",),
        "export": ("cola_lib.export",),
        "running": ("cola_lib.book", "cola_lib.registry", "cola_lib.errors"),
    }
)
"""For each page ``book/api/NAME.md``, the modules that it describes."""

MODULES = tuple(module for modules in PAGES.values() for module in modules)

ARGUMENTS = (
    "calibration.CalibrationSet",
    "compress.CompressionReport",
    "compress.Problem",
    "compress.QuantSpec",
    "compress.Spec",
    "curation.Curated",
    "curation.Pool",
    "curation.Target",
    "data.load_samples",
    "evaluate.Suite",
    "evaluate.harness.HarnessResult",
    "evaluate.harness.HarnessSuite",
    "evaluate.harness.harness_suite",
    "errors.ColaError",
    "export.Export",
    "models.LanguageModel",
    "registry.PluginError",
    "registry.Registry",
    "registry.load_plugin",
    "registry.load_plugins",
)
"""What the front door takes or returns, and plugins are given."""

CODE = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def public_names(module: str) -> list[str]:
    """List what a module offers: its ``__all__``, or else the functions and classes that it defines."""
    found = importlib.import_module(module)
    return list(found.__all__) if hasattr(found, "__all__") else _defined(found)


def _defined(module: ModuleType) -> list[str]:
    """Public functions and classes of a module, in the order in which it defines them."""
    return [
        name
        for name, each in vars(module).items()
        if not name.startswith("_")
        and callable(each)
        and (inspect.isclass(each) or inspect.isfunction(inspect.unwrap(each)))
        and each.__module__ == module.__name__
    ]


@functools.cache
def taught() -> dict[str, Any]:
    """Functions and classes that users call, extend or read in a notebook, by their full names."""
    from cola_lib.compress import METHODS
    from cola_lib.curation import STRATEGIES

    found = [getattr(importlib.import_module("cola_lib"), name) for name in public_names("cola_lib")]
    found += [_named(f"cola_lib.api.{name}") for name in public_names("cola_lib.api")]
    found += [*METHODS.values(), *STRATEGIES.values()]
    found += [_named(f"cola_lib.{name}") for name in ARGUMENTS]
    found += [_named(name) for source in _programs() for name in _imported(source)]
    objects = {id(each): inspect.unwrap(each) for each in found if callable(each)}.values()
    ours = [each for each in objects if getattr(each, "__module__", "").startswith("cola_lib")]
    return {f"{each.__module__}.{each.__qualname__}": each for each in ours if hasattr(each, "__qualname__")}


def _named(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    parent = importlib.import_module(module)
    return getattr(parent, attribute) if hasattr(parent, attribute) else importlib.import_module(name)


def _programs() -> Iterator[str]:
    """Code of the notebooks, and of the examples for people who extend the library."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for name in ("README.md", "CONTRIBUTING.md"):
        yield from CODE.findall((ROOT / name).read_text(encoding="utf-8"))


def _imported(source: str) -> Iterator[str]:
    """Full names of what a program takes from the library: by import, or from a module that it imports."""
    tree = ast.parse(re.sub(r"^[%!].*", "", source, flags=re.M))
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cola_lib"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if inspect.ismodule(_named(full)):
                    modules[alias.asname or alias.name] = full
                else:
                    yield full
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield f"{modules[node.value.id]}.{node.attr}"


def taught_sources() -> set[tuple[str, str]]:
    """For each taught object, the file that defines it and its name there."""
    return {
        (str(Path(inspect.getsourcefile(each) or "").relative_to(ROOT)), each.__qualname__)
        for each in taught().values()
    }
