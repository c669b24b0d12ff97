"""The engine ``ray``: tasks of a sweep on the workers of a cluster, whoever of them survives."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from cola_lib.errors import ClusterError, SpecError, StoreError
from cola_lib.experiments.engines import TaskResult, Worker
from cola_lib.experiments.store import ResultStore
from cola_lib.experiments.sweep import Resources, SetTask, Sweep

log = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a task is begun at most: one that takes its worker with it, for want of memory say, would never end."""

PATIENCE = 600.0
"""Seconds in which nothing may run because the cluster has no room, as while its nodes are being started."""

KNOCK = 10.0
"""Seconds in which a cluster must answer."""

OBJECT_STORE = 200_000_000
"""Bytes of Ray's object store on a cluster that is started here: results go to the sweep's store and not through it."""


def load_ray() -> ModuleType:
    """Import Ray, which is an optional extra, so that it tells nobody of it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise SpecError("the engine ray needs Ray, which is not installed: pip install 'cola-lib[ray]'") from error
    return ray


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[ModuleType]:
    """Have a connection to a Ray cluster; one that is there already is used, and left."""
    ray = load_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _check_reachable(address)
    here: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        ray.init(address=address, logging_level=logging.WARNING, **here)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise ClusterError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Knock at a cluster's door: Ray itself would wait for a quarter of an hour and more."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):  # "auto", or what only Ray understands
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster at {address}: {error}; see that it runs, and that it can be reached"
        ) from error


class RayWorker:
    """A :class:`Worker` inside a Ray actor."""

    def __init__(self, worker: type[Worker], sweep: Sweep, folder: str, mark: str) -> None:
        self._worker, self._sweep, self._folder, self._mark = worker(sweep), sweep, folder, mark

    def check(self) -> str:
        """Make sure that this node can do the work, and give its name."""
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        # Sources may be files with relative names. Where the folder is not, Ray was given another way to bring them.
        if Path(self._folder).is_dir():
            os.chdir(self._folder)
        node = os.uname().nodename
        if not ResultStore(self._sweep.store).has_mark(self._mark):
            raise StoreError(
                f"node {node} does not see the results in {self._sweep.store}: give a folder that all nodes share, or "
                "a store that they all reach, such as s3://bucket/folder"
            )
        return node

    def run(self, task: SetTask) -> TaskResult:
        """Compute a task."""
        return self._worker.run(task)


def run_on_ray(
    sweep: Sweep,
    tasks: Sequence[SetTask],
    *,
    address: str | None = None,
    workers: int | None = None,
    worker: type[Worker] = Worker,
    patience: float = PATIENCE,
) -> Iterator[TaskResult]:
    """Compute tasks on a Ray cluster."""
    with connected(address) as ray:
        shared = _absolute(sweep)
        store = ResultStore(shared.store)
        wanted = min(workers or room(ray, sweep.resources), len(tasks))
        if not wanted:
            raise ClusterError(
                f"no node of the cluster has room for a worker with {told(demands(sweep.resources))}; they have "
                f"{'; '.join(told(node) for node in _nodes(ray)) or 'nothing'}. Ask for less under resources, or give "
                "the number of workers to wait for nodes that are still to come"
            )
        with store.marked() as mark:
            crew = _Crew(ray, (worker, shared, os.getcwd(), mark), sweep.resources, wanted)
            try:
                yield from crew.work(tasks, patience)
            finally:
                crew.dismiss()


class _Crew:
    """The workers of a sweep, and what each of them does."""

    def __init__(self, ray: ModuleType, given: tuple[Any, ...], resources: Resources, size: int) -> None:
        self._ray, self._given, self._resources, self._size = ray, given, resources, size
        self._arriving: dict[Any, Any] = {}  # reference to an answer → worker
        self._busy: dict[Any, tuple[Any, SetTask]] = {}
        self._since: dict[Any, float] = {}  # reference to an answer → when its task was given out
        self._idle: list[tuple[Any, SetTask | None]] = []
        self._attempts: Counter[SetTask] = Counter()
        self._lost = 0

    def work(self, tasks: Sequence[SetTask], patience: float) -> Iterator[TaskResult]:
        """Give tasks out until all are done."""
        ray = self._ray
        queue = deque(tasks)
        quiet_since = time.monotonic()
        while queue or self._busy:
            self._hire(min(self._size, len(queue) + len(self._busy)))
            self._give_out(queue)
            done, _ = ray.wait([*self._arriving, *self._busy], num_returns=1, timeout=min(patience, 10.0))
            if done or self._busy:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > patience:
                raise ClusterError(
                    f"no worker with {told(demands(self._resources))} found room on the cluster for "
                    f"{patience:.0f} s; {len(queue)} of {len(tasks)} tasks are left. Add nodes, and run the sweep "
                    "again: what is in the store stays"
                )
            for reference in done:
                yield from self._ended(reference, queue)
            self._give_up()

    def _give_up(self) -> None:
        """Kill the workers whose task takes too long, as one that was stopped does; each is then a lost one."""
        for reference, (worker, task) in self._busy.items():
            if time.monotonic() - self._since[reference] > self._resources.task_seconds:
                log.warning("%s has taken more than %d s; its worker is given up", task, self._resources.task_seconds)
                self._ray.kill(worker)
                self._since[reference] = float("inf")  # not a second time, while Ray finds out

    def _hire(self, size: int) -> None:
        """Ask for workers where some are missing."""
        actor = self._ray.remote(RayWorker).options(**options(self._resources), max_restarts=0)
        while len(self._arriving) + len(self._busy) + len(self._idle) < size:
            hired = actor.remote(*self._given)
            self._arriving[hired.check.remote()] = hired

    def _give_out(self, queue: deque[SetTask]) -> None:
        """Give each idle worker the task that suits what it has in memory."""
        while queue and self._idle:
            worker, last = self._idle.pop(0)
            task = min(queue, key=partial(_steps_away, last))
            queue.remove(task)
            self._attempts[task] += 1
            reference = worker.run.remote(task)
            self._busy[reference] = (worker, task)
            self._since[reference] = time.monotonic()

    def _ended(self, reference: Any, queue: deque[SetTask]) -> Iterator[TaskResult]:
        """Take an answer, or put the task of a lost worker back."""
        worker, task = self._busy.pop(reference, None) or (self._arriving.pop(reference), None)
        self._since.pop(reference, None)
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
            self._is_lost(task, error)
            if task is not None:
                queue.appendleft(task)
            return
        self._idle.append((worker, task))
        if task is not None:
            self._lost = 0
            yield answer

    def _is_lost(self, task: SetTask | None, error: Exception) -> None:
        self._lost += 1
        reason = str(error).strip().splitlines()[-1]
        log.warning("a worker was lost (%s); %s", reason, f"{task} is begun again" if task else "it had no task yet")
        if task is not None and self._attempts[task] >= ATTEMPTS:
            raise ClusterError(
                f"{task} has lost {ATTEMPTS} workers, the last one so: {reason}. If they ran out of memory, give each "
                "more under resources, or have fewer"
            )
        if self._lost > ATTEMPTS * self._size:
            raise ClusterError(f"{self._lost} workers were lost and none came to an end, the last one so: {reason}")

    def dismiss(self) -> None:
        """End all workers, also those that compute."""
        workers = [*self._arriving.values(), *(worker for worker, _ in [*self._busy.values(), *self._idle])]
        for worker in workers:
            self._ray.kill(worker)


def _steps_away(last: SetTask | None, task: SetTask) -> tuple[bool, bool]:
    """Whether a worker would have to load another model for a task, and read other pools."""
    return (last is None or task.model != last.model, last is None or task.draw != last.draw)


def _absolute(sweep: Sweep) -> Sweep:
    """Name local folders in full, since workers start elsewhere."""

    def full(url: str) -> str:
        return url if "://" in url or "::" in url else str(Path(url).absolute())

    return sweep.model_copy(update={"store": full(sweep.store), "packed": tuple(map(full, sweep.packed))})


def demands(resources: Resources) -> dict[str, float]:
    """Say what Ray is to reserve for a worker, by Ray's names."""
    given = {"CPU": resources.cpus, "GPU": resources.gpus, "memory": resources.memory or 0}
    return {name: value for name, value in given.items() if value}


def options(resources: Resources) -> dict[str, Any]:
    """Say the same as :func:`demands`, as options of an actor."""
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    return {names[name]: value for name, value in demands(resources).items()}


def _nodes(ray: ModuleType) -> list[dict[str, float]]:
    """List what each living node has in all."""
    kinds = ("CPU", "GPU", "memory")
    return [
        {kind: node["Resources"][kind] for kind in kinds if kind in node["Resources"]}
        for node in ray.nodes()
        if node["Alive"]
    ]


def room(ray: ModuleType, resources: Resources) -> int:
    """Count the workers that the cluster has room for."""
    wanted = demands(resources)
    return sum(int(min(node.get(kind, 0) // value for kind, value in wanted.items())) for node in _nodes(ray))


def told(resources: dict[str, float]) -> str:
    """Write demands as a reader would."""
    return ", ".join(f"{value:g} {kind}" for kind, value in resources.items())
