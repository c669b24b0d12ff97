"""COLA's third stage over a large pool on a Ray cluster: models in actors, candidates streaming through them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cola_lib.calibration import CalibrationSet
from cola_lib.curation import Candidate
from cola_lib.curation.cola import WIDTH
from cola_lib.curation.streaming import WINDOW, Placer, Read, as_shards, choose_placed, windows
from cola_lib.data import Sample
from cola_lib.errors import ClusterError
from cola_lib.experiments.ray_engine import connected, demands, options, room, told
from cola_lib.experiments.sweep import Resources
from cola_lib.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOBODY = Sample("", "", "the pool")
"""Stands for a candidate's sample where only its tokens are read."""


def select_on_ray(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    read: Read | Sequence[Read],
    *,
    n_samples: int,
    seq_len: int,
    seed: int = 0,
    width: int = WIDTH,
    window: int = WINDOW,
    device: str = "auto",
    resources: Resources | None = None,
    address: str | None = None,
    workers: int | None = None,
) -> CalibrationSet:
    """Choose from a large pool with many models at a time: the set that ``select_streaming`` chooses."""
    shards, resources = as_shards(read), resources or Resources()
    size = {"n_samples": n_samples, "seq_len": seq_len, "seed": seed}
    with connected(address) as ray:
        n_workers = workers or room(ray, resources)
        if not n_workers:
            raise ClusterError(f"no node of the cluster has room for a worker with {told(demands(resources))}")
        given = {"model": model, "device": device, "seq_len": seq_len, "seed": seed, "width": width}
        placed = _placed(ray, shards, window, given, options(resources), n_workers)
        return choose_placed(placed, shards, tokenizer, **size)


def _placed(
    ray: ModuleType,
    shards: Sequence[Read],
    window: int,
    given: Mapping[str, Any],
    reserved: Mapping[str, Any],
    n_workers: int,
) -> Iterator[NDArray[np.float32]]:
    """Stream the vectors of all windows, in the order of the pool."""
    import ray.data

    with _ordered(ray.data.DataContext.get_current()):
        pool = ray.data.from_items([{"shard": n} for n in range(len(shards))], override_num_blocks=len(shards))
        # Readers reserve no core: with all of them reserved by models, nothing would be read.
        read = pool.map_batches(
            _Reader(shards, window),
            batch_size=1,
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=n_workers),
        )
        vectors = read.map_batches(
            _PlacingActor,
            fn_constructor_kwargs=dict(given),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=n_workers),
            **reserved,
        )
        for row in vectors.iter_rows():
            yield np.frombuffer(row["vectors"], dtype=np.float32).reshape(-1, given["width"])


@contextlib.contextmanager
def _ordered(context: Any) -> Iterator[None]:
    """Have Ray Data keep the order of the pool, and hand every window on by itself."""
    execution = context.execution_options
    before = context.target_max_block_size, execution.preserve_order, context.enable_progress_bars
    context.target_max_block_size, execution.preserve_order, context.enable_progress_bars = 1, True, False
    try:
        yield
    finally:
        context.target_max_block_size, execution.preserve_order, context.enable_progress_bars = before


class _Reader:
    """Reads a shard into rows of one window each: the token ids, one after the other, and how many each has."""

    def __init__(self, shards: Sequence[Read], window: int) -> None:
        self._shards, self._window = shards, window

    def __call__(self, batch: Mapping[str, NDArray[np.int64]]) -> Iterator[dict[str, list[bytes]]]:
        for shard in batch["shard"]:
            for some in windows(self._shards[shard](), self._window):
                ids = np.concatenate([np.asarray(candidate.ids, dtype=np.int32) for candidate in some])
                lengths = np.array([len(candidate.ids) for candidate in some], dtype=np.int32)
                yield {"ids": [ids.tobytes()], "lengths": [lengths.tobytes()]}


class _PlacingActor:
    """Holds a model, and places the windows that come by."""

    def __init__(self, model: str, device: str, **options: Any) -> None:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self._place = Placer(load_model(model, device=device), **options)

    def __call__(self, batch: Mapping[str, Sequence[bytes]]) -> dict[str, list[bytes]]:
        found = []
        for ids, lengths in zip(batch["ids"], batch["lengths"], strict=True):
            ends = np.frombuffer(lengths, dtype=np.int32).cumsum()
            rows = np.split(np.frombuffer(ids, dtype=np.int32), ends[:-1])
            found.append(self._place([Candidate(row.tolist(), "", _NOBODY) for row in rows]).tobytes())
        return {"vectors": found}
