"""Evaluation: what a model can still do, item by item and capability by capability."""

from cola_lib.evaluate.likelihood import Reference, evaluate, reference_of
from cola_lib.evaluate.perplexity import row_nll
from cola_lib.evaluate.requests import Row, rows_of
from cola_lib.evaluate.scores import DERIVED, with_derived
from cola_lib.evaluate.suite import (
    CAPABILITIES,
    LINES,
    Balance,
    Choices,
    EvalItem,
    Suite,
    Task,
    TaskCount,
    capability_suite,
    source_suite,
)

__all__ = [
    "CAPABILITIES",
    "DERIVED",
    "LINES",
    "Balance",
    "Choices",
    "EvalItem",
    "Reference",
    "Row",
    "Suite",
    "Task",
    "TaskCount",
    "capability_suite",
    "evaluate",
    "reference_of",
    "row_nll",
    "rows_of",
    "source_suite",
    "with_derived",
]
