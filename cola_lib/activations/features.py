"""What a calibration set is in the model's eyes, and what it is for a target, as tidy tables."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from cola_lib.activations.measures import (
    OUTLIER_SHARE,
    Spectrum,
    channel_kurtosis,
    coverage,
    effective_rank,
    frechet_distance,
    mmd,
    outlier_overlap,
    subspace_share,
    vendi_score,
)
from cola_lib.activations.pooled import PooledActivations, pooled_activations
from cola_lib.calibration import CalibrationSet
from cola_lib.errors import DataError, UnknownNameError
from cola_lib.models import LanguageModel
from cola_lib.statistics import LayerStatistics, collect_statistics

ALL_BLOCKS = -1
"""Block number of a value that is of all blocks together."""

OUTPUT = "output"
"""Group name of a value that is of pooled block outputs, and so of no input group."""

GROUPS = ("attn_in", "mlp_in")
"""Input groups described unless others are asked for: those that read the residual stream, of one width."""


@dataclass(frozen=True, eq=False)
class Activations:
    """What one set of texts does inside a model."""

    pooled: PooledActivations
    statistics: LayerStatistics

    def __post_init__(self) -> None:
        if self.pooled.model != self.statistics.model:
            raise DataError(
                f"pooled activations of model {self.pooled.model} and statistics of model {self.statistics.model}; "
                "collect both on one model"
            )
        read = [name.rpartition("*")[2] for name in self.statistics.calibration]  # a weight stands before the *
        if len(read) == 1 and read[0] != self.pooled.calibration:
            raise DataError(
                f"pooled activations of calibration set {self.pooled.calibration} and statistics of {read[0]}; "
                "collect both on one set"
            )

    @functools.cached_property
    def _spectra(self) -> dict[tuple[int, str], Spectrum]:
        return {}

    def spectrum(self, block: int, group: str) -> Spectrum:
        """Decompose the Gram matrix of one input, once."""
        key = (block, group)
        if key not in self._spectra:
            self._spectra[key] = Spectrum.of(self.statistics[key].gram, name=f"block {block}, {group}")
        return self._spectra[key]

    def inputs(self, groups: Iterable[str]) -> list[tuple[int, str]]:
        """Keys of the statistics that belong to some groups, block by block."""
        known = {group for _, group in self.statistics}
        chosen = list(dict.fromkeys(groups))
        for group in chosen:
            if group not in known:
                raise UnknownNameError("input group", group, known)
        blocks = sorted({block for block, _ in self.statistics})
        return [(block, group) for block in blocks for group in chosen if (block, group) in self.statistics]


def collect_activations(
    lm: LanguageModel,
    calibration: CalibrationSet,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> Activations:
    """Gather pooled activations and layer statistics of a calibration set, in one pass each."""
    pooled = pooled_activations(lm, calibration, progress=progress)
    statistics = collect_statistics(lm, calibration, batch_size=batch_size, progress=progress)
    return Activations(pooled, statistics)


def _vectors(pooled: PooledActivations) -> dict[int, Tensor]:
    """Vectors of each block alone, and of all together."""
    vectors = {block: pooled.vectors([block]) for block in range(pooled.n_layers)}
    return {ALL_BLOCKS: pooled.vectors(), **vectors}


def _table(rows: Sequence[tuple], columns: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype({"block": "int64", "value": "float64"})


def set_features(calibration: Activations, *, groups: Sequence[str] = GROUPS) -> pd.DataFrame:
    """Measures of a set of texts that need no target."""
    rows: list[tuple[str, int, str, float]] = []
    for block, group in calibration.inputs(groups):
        rank = effective_rank(calibration.spectrum(block, group))
        rows.append(("effective_rank", block, group, rank))
        kurtosis = channel_kurtosis(calibration.statistics[block, group].gram)
        rows.append(("channel_kurtosis", block, group, kurtosis))
    for block, vectors in _vectors(calibration.pooled).items():
        rows.append(("vendi_score", block, OUTPUT, vendi_score(vectors)))
    return _table(rows, ["feature", "block", "group", "value"])


def target_features(
    calibration: Activations, targets: Mapping[str, Activations], *, groups: Sequence[str] = GROUPS
) -> pd.DataFrame:
    """Measures of how well a set of texts stands for other texts."""
    inputs = calibration.inputs(groups)
    if not targets:
        raise DataError("no target to compare the calibration set with")
    for name, target in targets.items():
        if target.pooled.model != calibration.pooled.model:
            raise DataError(
                f"target {name!r} was read by model {target.pooled.model} and the calibration set by "
                f"{calibration.pooled.model}; collect both on one model"
            )
        missing = [f"block {block}, {group}" for block, group in inputs if (block, group) not in target.statistics]
        if missing:
            raise DataError(f"target {name!r} has no statistics of {len(missing)} inputs, the first: {missing[0]}")
    own = _vectors(calibration.pooled)
    rows: list[tuple[str, str, int, str, float]] = []
    for name, target in targets.items():
        theirs = _vectors(target.pooled)
        for block, vectors in theirs.items():
            rows.append((name, "coverage", block, OUTPUT, coverage(vectors, own[block])))
        for measure in (frechet_distance, mmd):
            value = measure(own[ALL_BLOCKS], theirs[ALL_BLOCKS])
            rows.append((name, measure.__name__, ALL_BLOCKS, OUTPUT, value))
        for block, group in inputs:
            gram, target_gram = calibration.statistics[block, group].gram, target.statistics[block, group].gram
            where = f"target {name!r}, block {block}, {group}"
            held = subspace_share(calibration.spectrum(block, group), target_gram, name=where)
            rows.append((name, "subspace_share", block, group, held))
            overlap = outlier_overlap(gram, target_gram, OUTLIER_SHARE)
            rows.append((name, "outlier_overlap", block, group, overlap))
    return _table(rows, ["target", "feature", "block", "group", "value"])
