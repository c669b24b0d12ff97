"""What grids on one model share, so that nothing is computed twice: walks, targets, the dense predictions."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from cola_lib.activations import Activations, pooled_activations
from cola_lib.calibration import CalibrationSet
from cola_lib.curation import Pool
from cola_lib.evaluate import Reference, Suite, reference_of
from cola_lib.models import LanguageModel
from cola_lib.statistics import LayerStatistics, collect_statistics

T = TypeVar("T")


class Workspace:
    """Statistics and predictions of an untouched model, kept between grids.

    Notes
    -----
    Of calibration sets only the last one's statistics are kept (0.4 GB for the embedded model). Statistics add up, so
    a set whose first rows are the last set's is walked over its other rows only: that is what makes a study of
    sample amounts as cheap as its largest set. The order of summation then differs from that of one long walk, and
    with it the last digits.
    """

    def __init__(self) -> None:
        self.checked = False  # whether a stored cell of these grids was computed again
        self._last: tuple[CalibrationSet, LayerStatistics] | None = None
        self._kept: dict[str, LayerStatistics] = {}
        self._activations: dict[str, Activations] = {}
        self._references: dict[tuple[str, str, str], Reference] = {}
        self._pool: tuple[Hashable, Pool] | None = None
        self._remembered: dict[Hashable, Any] = {}

    def pool(self, key: Hashable, load: Callable[[], Pool]) -> Pool:
        """Keep the last pool with all that was measured on it, which may be hundreds of megabytes."""
        if self._pool is None or self._pool[0] != key:
            self._pool = (key, load())
        return self._pool[1]

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Keep something small for good."""
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]

    def statistics(self, lm: LanguageModel, calibration: CalibrationSet) -> LayerStatistics:
        """Statistics of a calibration set."""
        known, n_rows = self._beginning(lm, calibration)
        if known is None:
            found = collect_statistics(lm, calibration, progress=False)
        elif n_rows == calibration.n_samples:
            return known
        else:
            rest = calibration.rows(n_rows, calibration.n_samples)
            found = known + collect_statistics(lm, rest, progress=False)
        found = LayerStatistics(found.inputs, found.model, (calibration.fingerprint,))
        self._last = (calibration, found)
        return found

    def forget_set(self) -> None:
        """Drop the last calibration set's statistics, so that the next set is walked by itself."""
        self._last = None

    def _beginning(self, lm: LanguageModel, calibration: CalibrationSet) -> tuple[LayerStatistics | None, int]:
        """Statistics of the set's first rows, if they are known, and how many rows these are."""
        if self._last is None:
            return None, 0
        last, statistics = self._last
        n = last.n_samples
        same = (
            statistics.model == lm.fingerprint
            and last.seq_len == calibration.seq_len
            and n <= calibration.n_samples
            and torch.equal(last.input_ids, calibration.input_ids[:n])
            and torch.equal(last.attention_mask, calibration.attention_mask[:n])
            and last.weights == calibration.rows(0, n).weights
        )
        return (statistics, n) if same else (None, 0)

    def target(self, lm: LanguageModel, calibration: CalibrationSet) -> LayerStatistics:
        """Statistics of a target's inputs, kept for good."""
        name = f"{lm.fingerprint}/{calibration.fingerprint}"
        if name not in self._kept:
            self._kept[name] = collect_statistics(lm, calibration, progress=False)
        return self._kept[name]

    def target_activations(self, lm: LanguageModel, calibration: CalibrationSet) -> Activations:
        """Measure what a target's texts do inside the model, and keep it for good."""
        name = f"{lm.fingerprint}/{calibration.fingerprint}"
        if name not in self._activations:
            pooled = pooled_activations(lm, calibration, progress=False)
            self._activations[name] = Activations(pooled, self.target(lm, calibration))
        return self._activations[name]

    def reference(self, lm: LanguageModel, suite: Suite, dtype: torch.dtype | None = None) -> Reference:
        """Predict a suite with the untouched model, and keep that for good."""
        name = (lm.fingerprint, suite.fingerprint, str(dtype))
        if name not in self._references:
            self._references[name] = reference_of(lm, suite, dtype=dtype)
        return self._references[name]
