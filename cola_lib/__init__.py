"""Choose calibration data for compressing a language model, and see what the choice costs.

The front door is five verbs::

    import cola_lib as cola

    lm = cola.load_model("smollm2-135m")
    rows = cola.calibration_set(["c4", "math"], lm, n_samples=32, seq_len=512)
    model = cola.compress(lm, cola.GPTQ(bits=3, act_order=True), rows)
    model.save("gptq-3bit")
    print(cola.evaluate(model).summary())

``cola.curate`` chooses the rows instead of drawing them. Everything is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cola_lib.api import Compressed, Evaluation, calibration_set, compress, curate, evaluate, load_model
    from cola_lib.compress import AWQ, GPTQ, RIA, RTN, JointLowRank, Magnitude, SmoothQuant, SparseGPT, Wanda
    from cola_lib.curation import Cola, Proxy, Random, Strategy, UniformMix
    from cola_lib.experiments import Experiment

_HOMES = {
    "cola_lib.api": ("Compressed", "Evaluation", "calibration_set", "compress", "curate", "evaluate", "load_model"),
    "cola_lib.compress": (
        "AWQ",
        "GPTQ",
        "RIA",
        "RTN",
        "JointLowRank",
        "Magnitude",
        "SmoothQuant",
        "SparseGPT",
        "Wanda",
    ),
    "cola_lib.curation": ("Cola", "Proxy", "Random", "Strategy", "UniformMix"),
    "cola_lib.experiments": ("Experiment",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AWQ",
    "GPTQ",
    "RIA",
    "RTN",
    "Cola",
    "Compressed",
    "Evaluation",
    "Experiment",
    "JointLowRank",
    "Magnitude",
    "Proxy",
    "Random",
    "SmoothQuant",
    "SparseGPT",
    "Strategy",
    "UniformMix",
    "Wanda",
    "calibration_set",
    "compress",
    "curate",
    "evaluate",
    "load_model",
]


_PACKAGES = ("compress", "evaluate")
"""Verbs that share their name with a package: there the package is what is called, as a module may be."""


class _Verb(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        verb = getattr(importlib.import_module("cola_lib.api"), self.__name__.rpartition(".")[2])
        return verb(*args, **options)


class _FrontDoor(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Make a package callable when the import system binds it to its verb's name."""
        if name in _PACKAGES and type(value) is ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _FrontDoor


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
