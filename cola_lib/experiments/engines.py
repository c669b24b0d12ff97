"""Run a sweep: one task after the other here, or many at once on a cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from cola_lib.calibration import CalibrationSet
from cola_lib.errors import DataError, NumericsError, SpecError, UnknownNameError
from cola_lib.experiments.cells import Label
from cola_lib.experiments.experiment import Experiment, LabelledSet, as_spec
from cola_lib.experiments.runner import GridResult, device_name
from cola_lib.experiments.store import ResultStore
from cola_lib.experiments.sweep import SetTask, Sweep

log = logging.getLogger(__name__)

ENGINES = ("local", "ray")
"""Where a sweep can run."""


@dataclass(frozen=True)
class TaskResult:
    """What became of a task."""

    task: SetTask
    cells: Mapping[str, Mapping[str, Label]] = field(default_factory=dict)
    n_read: int = 0
    n_computed: int = 0
    failures: tuple[str, ...] = ()
    seconds: float = 0.0
    device: str = ""


@dataclass(frozen=True)
class SweepResult:
    """What became of a sweep."""

    store: ResultStore
    tasks: tuple[TaskResult, ...]
    seconds: float

    @property
    def cells(self) -> dict[str, Mapping[str, Label]]:
        """Labels of all cells, by the name of each in the store."""
        return {name: labels for task in self.tasks for name, labels in task.cells.items()}

    @property
    def n_read(self) -> int:
        """Cells that were in the store."""
        return sum(task.n_read for task in self.tasks)

    @property
    def n_computed(self) -> int:
        """Cells that were computed now."""
        return sum(task.n_computed for task in self.tasks)

    @property
    def failures(self) -> tuple[str, ...]:
        """Cells that cannot be computed, and why."""
        return tuple(failure for task in self.tasks for failure in task.failures)

    def frame(self) -> pd.DataFrame:
        """Read all scores: one row per cell and item, as :attr:`cola_lib.experiments.GridResult.frame`."""
        found = ((self.store.get(name), labels) for name, labels in self.cells.items())
        return pd.concat([result.frame(labels) for result, labels in found if result is not None], ignore_index=True)


class Worker:
    """Computes tasks of a sweep, and keeps the last task's model."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._kept: Experiment | None = None

    def run(self, task: SetTask) -> TaskResult:
        """Read the cells of a task, and compute those that are missing."""
        began = time.perf_counter()
        experiment = self._experiment(task)
        experiment.workspace.forget_set()
        sets, methods = self._asked(task, experiment)
        found: list[GridResult] = []
        failures = []
        for number, method in enumerate(methods):
            first = number == 0 and not task.calibrated
            try:
                found.append(
                    experiment.run_sets(
                        sets,
                        [method] if method else [],
                        n_draws=self._sweep.divided,
                        propagate=self._sweep.propagate,
                        dense=first,
                        progress=False,
                    )
                )
            except (NumericsError, DataError) as error:
                notes = "; ".join(getattr(error, "__notes__", ()))
                failures.append(f"{_name(self._sweep, task)}, {_label(method)}: {error}{notes and f' ({notes})'}")
        return TaskResult(
            task,
            cells={name: labels for grid in found for name, labels in grid.cells.items()},
            n_read=sum(grid.n_read for grid in found),
            n_computed=sum(grid.n_computed for grid in found),
            failures=tuple(failures),
            seconds=time.perf_counter() - began,
            device=device_name(experiment.lm.device),
        )

    def look(self, task: SetTask) -> tuple[int, int]:
        """Count the cells of a task and those of them that are stored, and compute none."""
        experiment = self._experiment(task)
        if task.strategy is not None:
            chooser, options = self._sweep.choice(task)
            if not experiment.has_chosen(chooser, **options):
                return self._sweep.n_cells(task), 0
        sets, methods = self._asked(task, experiment)
        there = experiment.list_sets(
            sets,
            [method for method in methods if method],
            n_draws=self._sweep.divided,
            propagate=self._sweep.propagate,
            dense=not task.calibrated,
        )
        return len(there), sum(there.values())

    def _experiment(self, task: SetTask) -> Experiment:
        if self._kept is None or self._kept.model != task.model:
            self._kept = None  # two models at a time may be too many
            self._kept = self._sweep.experiment(task.model)
        return self._kept.resized(task.n_samples, task.seq_len)

    def _asked(self, task: SetTask, experiment: Experiment) -> tuple[list[LabelledSet], list[dict[str, Any] | None]]:
        """List a task's set, built at most once, and its methods; ``None`` stands for the dense model alone."""
        if not task.calibrated:
            return [], [None, *self._sweep.uncalibrated]
        lazy = self._sweep.labelled_set(task, experiment)

        @cache
        def build() -> CalibrationSet:
            return lazy.build()

        return [LabelledSet(build, lazy.labels)], list(self._sweep.calibrated)


def run_sweep(
    sweep: Sweep,
    *,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> SweepResult:
    """Compute the cells of a sweep that are not in its store."""
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine == "local" and not (address is None and workers is None):
        raise SpecError("an address and a number of workers are for the engine ray; leave them out, or take that one")
    began = time.perf_counter()
    tasks = sweep.tasks()
    found: dict[SetTask, TaskResult] = {}
    with tqdm(total=sum(map(sweep.n_cells, tasks)), unit="cell", desc="sweep", disable=not progress) as bar:
        for result in _results(sweep, tasks, engine, address, workers):
            found[result.task] = result
            bar.set_postfix_str(_name(sweep, result.task), refresh=False)
            bar.update(sweep.n_cells(result.task))
    store = ResultStore(sweep.store, packed=sweep.packed)
    return SweepResult(store, tuple(found[task] for task in tasks), time.perf_counter() - began)


def _results(
    sweep: Sweep, tasks: list[SetTask], engine: str, address: str | None, workers: int | None
) -> Iterator[TaskResult]:
    if engine == "local":
        yield from map(Worker(sweep).run, tasks)
        return
    from cola_lib.experiments.ray_engine import run_on_ray

    yield from run_on_ray(sweep, tasks, address=address, workers=workers)


def look_at_sweep(sweep: Sweep, *, progress: bool = True) -> pd.DataFrame:
    """Count the cells of a sweep that exist, and compute none."""
    worker, rows = Worker(sweep), []
    for task in tqdm(sweep.tasks(), unit="set", desc="sweep", disable=not progress):
        n_cells, n_stored = worker.look(task)
        size = {
            name: value if task.calibrated else pd.NA
            for name, value in (("draw", task.draw), ("n_samples", task.n_samples), ("seq_len", task.seq_len))
        }
        counts = {"cells": n_cells, "stored": n_stored, "missing": n_cells - n_stored}
        rows.append({"model": task.model, "set": _set_name(sweep, task), **size, **counts})
    return pd.DataFrame(rows)


def _set_name(sweep: Sweep, task: SetTask) -> str:
    if not task.calibrated:
        return "no data"
    if task.source is not None:
        made = "".join(f", {name} {value}" for name, value in task.options)
        return (task.source if isinstance(task.source, str) else "+".join(task.source)) + made
    chooser, options = sweep.choice(task)
    return chooser.label if options["target"] is None else f"{chooser.label} for {options['target']}"


def _name(sweep: Sweep, task: SetTask) -> str:
    draw = f" #{task.draw}" if task.calibrated else ""
    return f"{task.model} · {_set_name(sweep, task)}{draw}"


def _label(method: Mapping[str, Any] | None) -> str:
    return as_spec(method).label if method else "dense"
