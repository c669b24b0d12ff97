"""The public interface as the reference lists it: modules in the order in which data flow through them."""

from __future__ import annotations

import importlib
import inspect
from types import MappingProxyType, ModuleType

PAGES = MappingProxyType(
    {
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
