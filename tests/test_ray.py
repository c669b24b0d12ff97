"""Sweeps and selection on a real Ray cluster of several nodes, which lie on this machine."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray")
from ray.cluster_utils import Cluster  # noqa: E402

from cola_lib.curation import base, candidates, select_streaming  # noqa: E402
from cola_lib.curation.streaming import Placer, windows  # noqa: E402
from cola_lib.data import Sample  # noqa: E402
from cola_lib.errors import ClusterError, NumericsError, StoreError  # noqa: E402
from cola_lib.experiments import ResultStore, Sweep, ray_engine, ray_pool, run_sweep  # noqa: E402
from cola_lib.experiments.engines import TaskResult, Worker  # noqa: E402
from cola_lib.experiments.ray_engine import run_on_ray  # noqa: E402
from cola_lib.experiments.sweep import Resources, SetTask  # noqa: E402
from cola_lib.models import load_model  # noqa: E402
from tests.test_sweep import save_tiny  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
pytestmark = pytest.mark.xdist_group("ray")  # all of it in one process: one cluster is enough
CONFIG = {
    # a node that is killed is missed after 2 s
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "worker_niceness": 0,  # workers, nice by default, would starve beside other tests
}


@pytest.fixture(scope="module")
def cluster():
    """A head and a second node, one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": CONFIG})
    ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
    made.add_node(**NODE)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, smollm2_tokenizer) -> Sweep:
    given = {
        "models": [save_tiny(tmp_path_factory.mktemp("model"), smollm2_tokenizer)],
        "sources": ["c4", "gsm8k"],
        "strategies": {"choose": [{"strategy": "cola", "domain": False}], "pool": ["c4", "gsm8k"], "limit": 6},
        "targets": {"math": ["gsm8k"]},
        "methods": [{"method": "wanda"}, {"method": "gptq", "bits": 3}, {"method": "rtn", "bits": 3}],
        "draws": 1,
        "n_samples": 2,
        "seq_len": 32,
        "target_samples": 2,
        "target_texts": 4,
        "evaluate": {"capabilities": ["math"], "tokens_per_capability": 300},
        "store": str(tmp_path_factory.mktemp("ray")),
    }
    return Sweep.model_validate_json(json.dumps(given))


class Shard:
    """Candidates of some texts."""

    def __init__(self, tokenizer, start: int, stop: int) -> None:
        self.tokenizer, self.numbers = tokenizer, range(start, stop)

    def __call__(self):
        time.sleep(2 * (self.numbers[0] == 0))  # the first shard is the last to be read, unless order is kept
        texts = (f"the {i * 7919 % 1009} bands and sand of {i} " * (1 + i % 5) for i in self.numbers)
        samples = (Sample(f"s/{i}", text, "s") for i, text in zip(self.numbers, texts, strict=True))
        return candidates(samples, self.tokenizer, seq_len=32)


def test_a_pool_is_chosen_from_as_on_one_machine(cluster, sweep, smollm2_tokenizer, monkeypatch):
    monkeypatch.setattr(base, "MANY", 50)  # mini-batch k-means, as for large pools
    shards = [Shard(smollm2_tokenizer, *ends) for ends in ((0, 40), (40, 45), (45, 90))]
    model, size = sweep.models[0], {"n_samples": 6, "seq_len": 32, "seed": 3, "window": 16}
    calls = []
    monkeypatch.setattr(
        ray_pool, "_placed", lambda *args, f=ray_pool._placed: (calls.append(p.copy()) or p for p in f(*args))
    )
    chosen = ray_pool.select_on_ray(model, smollm2_tokenizer, shards, **size)
    lm = load_model(model)
    wanted = select_streaming(lm, shards, **size)
    assert chosen.sample_ids == wanted.sample_ids and chosen.fingerprint == wanted.fingerprint
    place = Placer(lm, seq_len=32, seed=3)
    own = [place(some) for shard in shards for some in windows(shard(), 16)]
    assert [len(part) for part in calls] == [len(part) for part in own], "windows end where shards do"
    assert len(own) > len(shards)
    np.testing.assert_array_equal(np.concatenate(calls), np.concatenate(own))


class Falling(Worker):
    """Takes its process with it, or raises, as its sweep says."""

    def run(self, task: SetTask) -> TaskResult:
        if self._sweep.about == "fall":
            os._exit(1)
        raise NumericsError("model.layers.0", "a test")


def test_what_a_worker_raises_is_raised_here(cluster, sweep):
    with pytest.raises(NumericsError, match=r"model\.layers\.0: a test"):
        list(run_on_ray(sweep, sweep.tasks(), worker=Falling, workers=1))


def test_a_task_that_takes_its_workers_with_it_ends_the_sweep(cluster, sweep, monkeypatch):
    monkeypatch.setattr(ray_engine, "ATTEMPTS", 2)
    falling = sweep.model_copy(update={"about": "fall"})
    with pytest.raises(ClusterError, match=r"SetTask\(.* has lost 2 workers"):
        list(run_on_ray(falling, sweep.tasks()[:1], worker=Falling))


def test_nodes_must_see_the_same_store(cluster, sweep, monkeypatch):
    monkeypatch.setattr(ray_engine, "ResultStore", lambda url: ResultStore(f"{url}/elsewhere"))
    with pytest.raises(StoreError, match="does not see the results in"):
        list(run_on_ray(sweep, sweep.tasks()[:1]))


def test_demands_that_no_node_can_meet_are_refused(cluster, sweep):
    greedy = sweep.model_copy(update={"resources": Resources(cpus=64, gpus=1)})
    with pytest.raises(ClusterError, match="room for a worker with 64 CPU, 1 GPU; they have 1 CPU"):
        run_sweep(greedy, engine="ray", progress=False)


class Dying(Worker):
    """Stops for good on one node, in the middle of a task, and says so; workers elsewhere wait for that."""

    def run(self, task: SetTask) -> TaskResult:
        folder = Path(self._sweep.store)
        doomed = ray.get_runtime_context().get_node_id() == (folder / "doomed").read_text()
        if doomed and task.source is not None:
            put = ResultStore.put

            def once(store: ResultStore, result: object) -> None:
                if (folder / "stopped").exists():
                    time.sleep(600)
                put(store, result)
                (folder / "stopped").write_text(task.source)

            ResultStore.put = once
        elif task.calibrated and not doomed:  # or they might have done everything before that node is ready
            _wait_for(folder / "stopped")
        return super().run(task)


def _wait_for(file: Path) -> None:
    deadline = time.monotonic() + 200
    while not file.exists():
        assert time.monotonic() < deadline, f"{file.name} never came"
        time.sleep(0.1)


# The last one: what is killed stays dead.
def test_a_killed_node_loses_nothing(cluster, sweep, tmp_path):
    (second,) = cluster.worker_nodes
    folder = Path(sweep.store)
    (folder / "doomed").write_text(second.node_id)
    tasks = sweep.tasks()

    def kill() -> None:
        _wait_for(folder / "stopped")
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    found = list(run_on_ray(sweep, tasks, worker=Dying))
    killer.join()
    assert sorted(map(repr, (each.task for each in found))) == sorted(map(repr, tasks))
    resumed = next(each for each in found if each.n_read)
    assert (resumed.n_read, resumed.n_computed) == (1, 1), "what the lost worker had stored was read, the rest computed"
    assert resumed.task.source == (folder / "stopped").read_text()

    local = sweep.model_copy(update={"store": str(tmp_path)})
    wanted = run_sweep(local, progress=False)
    stores = ResultStore(sweep.store), ResultStore(str(tmp_path))
    assert stores[0].keys() == stores[1].keys() and len(wanted.cells) == 2 + 3 * 2
    for name in stores[1].keys():
        one, other = (store.get(name) for store in stores)
        assert one.scores.equals(other.scores) and one.layers.equals(other.layers), name
        assert one.labels == other.labels or one.key.suite == "selection"
