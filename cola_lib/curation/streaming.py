"""COLA's third stage over pools that are larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cola_lib.activations import row_features
from cola_lib.calibration import CalibrationSet
from cola_lib.curation.base import nearest_to_centres
from cola_lib.curation.cola import WIDTH, projection
from cola_lib.curation.composition import Candidate
from cola_lib.curation.pool import Rows
from cola_lib.errors import DataError
from cola_lib.models import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Read = Callable[[], Iterable[Candidate]]
"""Gives candidates, the same ones in the same order each time it is called."""

WINDOW = 1024
"""Candidates held, and run through the model, at a time."""


class Placer:
    """Places windows of candidates in COLA's activation space."""

    def __init__(self, lm: LanguageModel, *, seq_len: int, seed: int = 0, width: int = WIDTH) -> None:
        lm.check_length(seq_len)
        self._lm, self._seq_len = lm, seq_len
        self._probes = projection(lm, seed, width, None)[1]

    def __call__(self, window: Sequence[Candidate]) -> NDArray[np.float32]:
        """Run a window through the model."""
        rows = Rows.of(window, self._lm.tokenizer, name="the pool", seq_len=self._seq_len)
        return row_features(self._lm, rows.tokens, self._probes, progress=False)["projection"].numpy()


def select_streaming(
    lm: LanguageModel,
    read: Read | Sequence[Read],
    *,
    n_samples: int,
    seq_len: int,
    seed: int = 0,
    width: int = WIDTH,
    window: int = WINDOW,
) -> CalibrationSet:
    """Choose from a pool that is larger than memory: COLA's third stage in two passes over its candidates.

    Notes
    -----
    What grows with the pool is one vector of ``width`` numbers for each candidate, 256 bytes. Clusters are found by
    mini-batch k-means above :data:`~cola_lib.curation.base.MANY` candidates.
    """
    shards = as_shards(read)
    place = Placer(lm, seq_len=seq_len, seed=seed, width=width)
    placed = (place(some) for shard in shards for some in windows(shard(), window))
    return choose_placed(placed, shards, lm.tokenizer, n_samples=n_samples, seq_len=seq_len, seed=seed)


def choose_placed(
    placed: Iterable[NDArray[np.float32]],
    shards: Sequence[Read],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_samples: int,
    seq_len: int,
    seed: int,
) -> CalibrationSet:
    """Cluster candidates that have been placed, and read those nearest to the centres."""
    vectors = np.empty((0, 0), dtype=np.float32)
    for part in placed:
        held = len(vectors)
        vectors.resize((held + len(part), part.shape[1]), refcheck=False)  # in place: joined later, they are twice
        vectors[held:] = part
    if not len(vectors):
        raise DataError("the pool has no candidates; add samples or ask for shorter rows")
    wanted = set(nearest_to_centres(vectors, n_samples, seed))
    everything = (candidate for shard in shards for candidate in shard())
    taken = [candidate for position, candidate in enumerate(everything) if position in wanted]
    if len(taken) != n_samples:
        raise DataError(
            f"{n_samples:,} rows were chosen and {len(taken):,} found again: the pool must give the same candidates "
            "when it is read a second time, so each call has to begin anew"
        )
    return replace(Rows.of(taken, tokenizer, name="cola", seq_len=seq_len).tokens, seed=seed)


def as_shards(read: Read | Sequence[Read]) -> tuple[Read, ...]:
    """List the shards of a pool."""
    return (read,) if callable(read) else tuple(read)


def windows(found: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
    """Cut candidates into lists of the same size, the last one shorter."""
    iterator = iter(found)
    while some := list(islice(iterator, size)):
        yield some
