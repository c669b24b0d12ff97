"""Sweeps and selection on a real Ray cluster of several nodes, which lie on this machine."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray")
from ray.cluster_utils import Cluster  # noqa: E402

from cola_lib.errors import ClusterError, NumericsError, StoreError  # noqa: E402
from cola_lib.experiments import ResultStore, SetTask, Sweep, TaskResult, Worker, run_sweep  # noqa: E402
from cola_lib.experiments.ray_engine import run_on_ray  # noqa: E402
from tests.test_sweep import save_tiny  # noqa: E402

NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
CONFIG = {
    # a node that is killed is missed after 2 s
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 4,
    "worker_niceness": 0,  # workers, nice by default, would starve beside other tests
}


@pytest.fixture(scope="module")
def cluster():
    """A head with one core; tests add nodes to it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": CONFIG})
    ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
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


class Dying(Worker):
    """Stops for good on one node, in the middle of a task, and says so: that node is then killed."""

    def run(self, task: SetTask) -> TaskResult:
        folder = Path(self._sweep.store)
        doomed = (folder / "doomed").read_text()
        if task.calibrated and ray.get_runtime_context().get_node_id() == doomed:
            put = ResultStore.put

            def once(store: ResultStore, result: object) -> None:
                if (folder / "stopped").exists():
                    time.sleep(600)
                put(store, result)
                (folder / "stopped").write_text(task.source or "")

            ResultStore.put = once
        return super().run(task)


def test_a_killed_node_loses_nothing(cluster, sweep, tmp_path):
    second = cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    folder = Path(sweep.store)
    (folder / "doomed").write_text(second.node_id)
    tasks = sweep.tasks()
    results = run_on_ray(sweep, tasks, worker=Dying)
    found, killed = [], False
    for result in results:
        found.append(result)
        while not killed and not (folder / "stopped").exists():
            time.sleep(0.1)
        if not killed:
            cluster.remove_node(second, allow_graceful=False)
            killed = True
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
