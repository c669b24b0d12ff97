"""Run a grid: read the cells that exist, compute the others, keep each as soon as it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd
import torch
from tqdm.auto import tqdm

from cola_lib.compress import CompressionReport, Spec, compress, restored, settle
from cola_lib.curation import CalibrationSet
from cola_lib.errors import SpecError, UnknownNameError
from cola_lib.evaluate import Suite, evaluate
from cola_lib.experiments.cells import CellKey, CellResult, Label, cell_key, current_versions
from cola_lib.experiments.store import ResultStore
from cola_lib.models import LanguageModel
from cola_lib.statistics import PROPAGATE, LayerStatistics, Propagate, collect_statistics

log = logging.getLogger(__name__)

DENSE = "dense"
"""Method and label of the untouched model."""

LazySet = CalibrationSet | Callable[[], CalibrationSet]
"""A calibration set, or what builds it when its turn comes."""

CELL_COLUMNS = ("model", "method", "label", "calibrated", "propagate")
"""Labels that every cell has, besides those of its calibration set."""

SET_COLUMNS = ("source", "draw", "seed", "n_samples", "seq_len", "layout", "calibration_tokens", "calibration")
"""Labels of a calibration set; missing for cells that read none."""


@dataclass(frozen=True)
class GridResult:
    """The cells of a grid.

    Parameters
    ----------
    frame : pandas.DataFrame
        One row per cell and item: ``cell``, :data:`CELL_COLUMNS`, :data:`SET_COLUMNS`, own labels, and the
        columns of :func:`cola_lib.evaluate.evaluate`. A cell that reads no calibration data occurs once, with its
        set's labels missing.
    layers : pandas.DataFrame
        One row per cell and compressed layer, with the same labels.
    n_read, n_computed : int
        Cells that were in the store, and cells computed now.
    device : str
        Where the computed ones were computed.
    seconds : float
        Wall time of the whole call.
    """

    frame: pd.DataFrame
    layers: pd.DataFrame
    n_read: int
    n_computed: int
    device: str
    seconds: float

    @property
    def provenance(self) -> str:
        """One line for the end of a notebook."""
        computed = f"{self.n_computed} computed now on {self.device} in {self.seconds:.0f} s"
        return f"{self.n_read} cells read from the store, {computed if self.n_computed else 'none computed now'}"


@dataclass(frozen=True)
class _Cell:
    """A cell that is asked for."""

    key: CellKey
    spec: Spec | None
    labels: dict[str, Label]


def run_grid(
    lm: LanguageModel,
    calibration_sets: Sequence[LazySet],
    specs: Sequence[Spec],
    suite: Suite,
    store: ResultStore,
    *,
    propagate: Propagate = "original",
    labels: Sequence[Mapping[str, Label]] | None = None,
    dense: bool = True,
    progress: bool = True,
) -> GridResult:
    """Evaluate every method under every calibration set.

    Parameters
    ----------
    lm : LanguageModel
        Compressed and restored once per cell; at the end, and after an error, it is as it was.
    calibration_sets : sequence of CalibrationSet or callable
        A callable builds its set when its turn comes, so that a long grid holds one set at a time. Every set
        is built, also where all its cells are stored: its fingerprint is that of its tokens.
    specs : sequence of PruneSpec or QuantSpec
        Methods. One that reads no calibration data is one cell, whatever the number of sets.
    suite : Suite
        What is measured.
    store : ResultStore
        Read first; every computed cell is put there at once.
    propagate : {"original", "compressed"}
        ``"original"``: one walk per calibration set serves all methods. ``"compressed"``: one walk per cell.
    labels : sequence of mapping, optional
        For each calibration set, its own labels, for example ``{"source": "c4", "draw": 2}``; they come before those
        that the set has by itself (:data:`SET_COLUMNS`).
    dense : bool
        Whether the untouched model is a cell too.
    progress : bool
        Show a bar over cells, in a notebook or a terminal.

    Returns
    -------
    GridResult

    Raises
    ------
    SpecError
        If a method does not fit the model, or the labels do not fit the sets.
    NumericsError
        If a method fails on a set; the cells before it are kept. The note on the error names the cell.
    StoreError
        If the store cannot be read or written; found out before anything is computed.
    """
    began = time.perf_counter()
    if propagate not in PROPAGATE:
        raise UnknownNameError("propagate", str(propagate), PROPAGATE)
    sets = _labelled(calibration_sets, labels)
    specs = [settle(lm, spec) for spec in specs]
    grid = _Grid(lm, suite, store, propagate)
    alone = [spec for spec in specs if not spec.calibrated]
    tuned = [spec for spec in specs if spec.calibrated]
    total = dense + len(alone) + len(tuned) * len(sets)
    found: list[tuple[_Cell, CellResult]] = []
    with tqdm(total=total, unit="cell", desc="grid", disable=not progress) as bar:
        cells = [grid.cell(spec) for spec in ([None] if dense else []) + alone]
        for cell, result in grid.run(cells, None):
            found.append((cell, result))
            bar.set_postfix_str(grid.describe(cell), refresh=False)
            bar.update()
        for build, own in sets if tuned else ():
            calibration = build() if callable(build) else build
            cells = [grid.cell(spec, calibration, own) for spec in tuned]
            for cell, result in grid.run(cells, calibration):
                found.append((cell, result))
                bar.set_postfix_str(grid.describe(cell), refresh=False)
                bar.update()
    return GridResult(
        frame=_stack(result.frame(cell.labels) for cell, result in found),
        layers=_stack(result.layer_frame(cell.labels) for cell, result in found),
        n_read=len(found) - grid.n_computed,
        n_computed=grid.n_computed,
        device=device_name(lm.device),
        seconds=time.perf_counter() - began,
    )


class _Grid:
    """What all cells of a grid have in common."""

    def __init__(self, lm: LanguageModel, suite: Suite, store: ResultStore, propagate: Propagate) -> None:
        self._lm, self._suite, self._store, self._propagate = lm, suite, store, propagate
        self._model = lm.fingerprint  # of the original weights: inside a cell they are others
        self.n_computed = 0

    def cell(
        self,
        spec: Spec | None,
        calibration: CalibrationSet | None = None,
        own: Mapping[str, Label] | None = None,
    ) -> _Cell:
        """Name a cell and label it."""
        calibrated = calibration is not None
        key = cell_key(
            model=self._model,
            suite=self._suite.fingerprint,
            spec=spec.key() if spec else None,
            calibrated=calibrated,
            calibration=calibration.fingerprint if calibration else None,
            propagate=self._propagate,
        )
        labels = {
            "model": self._lm.name,
            "method": spec.method if spec else DENSE,
            "label": spec.label if spec else DENSE,
            "calibrated": calibrated,
            "propagate": key.propagate,
            **(_set_labels(calibration) if calibration else dict.fromkeys(SET_COLUMNS)),
            **(own or {}),
        }
        return _Cell(key, spec, labels)

    def run(self, cells: Sequence[_Cell], calibration: CalibrationSet | None) -> Iterator[tuple[_Cell, CellResult]]:
        """Yield the cells of one calibration set, walking the model only if one of them is missing."""
        statistics: LayerStatistics | None = None
        for cell in cells:
            result = self._store.get(cell.key)
            if result is None:
                if not self.n_computed:
                    self._store.check_writable()
                if calibration is not None and self._propagate == "original" and statistics is None:
                    statistics = collect_statistics(self._lm, calibration, progress=False)
                result = self._compute(cell, calibration, statistics)
                self._store.put(result)
                self.n_computed += 1
            yield cell, result

    def _compute(
        self, cell: _Cell, calibration: CalibrationSet | None, statistics: LayerStatistics | None
    ) -> CellResult:
        """Compress, evaluate, restore."""
        began = time.perf_counter()
        log.info("computing cell %s: %s", cell.key.fingerprint, self.describe(cell))
        report: CompressionReport | None = None
        with restored(self._lm):
            try:
                if cell.spec is not None:
                    report = compress(
                        self._lm,
                        cell.spec,
                        calibration if statistics is None else None,
                        statistics=statistics,
                        propagate=self._propagate,
                        progress=False,
                    )
                scores = evaluate(self._lm, self._suite, progress=False)
            except Exception as error:
                error.add_note(f"in cell {self.describe(cell)}")
                raise
        return CellResult(
            key=cell.key,
            scores=scores,
            labels=cell.labels,
            layers=_layer_table(report) if report else pd.DataFrame(),
            device=device_name(self._lm.device),
            seconds=time.perf_counter() - began,
            versions=current_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @staticmethod
    def describe(cell: _Cell) -> str:
        """Say in a few words which cell it is."""
        source, draw = cell.labels["source"], cell.labels["draw"]
        where = "" if source is None else f" · {source}" + ("" if draw is None else f" #{draw}")
        return f"{cell.labels['label']}{where}"


def _labelled(
    sets: Sequence[LazySet], labels: Sequence[Mapping[str, Label]] | None
) -> list[tuple[LazySet, Mapping[str, Label]]]:
    """Pair each set with its labels."""
    if labels is None:
        return [(each, {}) for each in sets]
    if len(labels) != len(sets):
        raise SpecError(f"{len(labels)} labels for {len(sets)} calibration sets; give one mapping for each")
    taken = {name for own in labels for name in own} & {"cell", *CELL_COLUMNS}
    if taken:
        raise SpecError(f"label {sorted(taken)[0]!r} is the grid's own; choose another name")
    return list(zip(sets, labels, strict=True))


def _set_labels(calibration: CalibrationSet) -> dict[str, Label]:
    return {
        "source": calibration.name,
        "draw": calibration.draw,
        "seed": calibration.seed,
        "n_samples": calibration.n_samples,
        "seq_len": calibration.seq_len,
        "layout": calibration.layout,
        "calibration_tokens": calibration.n_tokens,
        "calibration": calibration.fingerprint,
    }


def _layer_table(report: CompressionReport) -> pd.DataFrame:
    rows = [(r.layer, r.output_error, r.weight_error, r.sparsity) for r in report.layers]
    table = pd.DataFrame(rows, columns=["layer", "output_error", "weight_error", "sparsity"])
    return table.astype({"output_error": float})


def _stack(frames: Iterator[pd.DataFrame]) -> pd.DataFrame:
    """Stack the tables that have rows."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def device_name(device: torch.device) -> str:
    """Name a device as a reader knows it.

    Parameters
    ----------
    device : torch.device
        A GPU gets its product name.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
