"""Run a grid: read the cells that exist, compute the others, keep each as soon as it is there."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from cola_lib.calibration import CalibrationSet
from cola_lib.compress import CompressionReport, PruneSpec, QuantSpec, Spec, compress, restored, settle
from cola_lib.errors import EvidenceError, SpecError, UnknownNameError
from cola_lib.evaluate import Suite, evaluate
from cola_lib.experiments.cells import CellKey, CellResult, Label, cell_key, current_versions
from cola_lib.experiments.store import ResultStore
from cola_lib.experiments.workspace import Workspace
from cola_lib.finetune import TuneSpec, finetune
from cola_lib.models import LanguageModel, resolve_dtype
from cola_lib.registry import revisions
from cola_lib.statistics import PROPAGATE, LayerStatistics, Propagate, collect_statistics

log = logging.getLogger(__name__)

DENSE = "dense"
"""Method and label of the untouched model."""

NO_SUITE = "none"
"""Suite of a cell whose layers' errors are all that is measured."""

LazySet = CalibrationSet | Callable[[], CalibrationSet]
"""A calibration set, or what builds it when its turn comes."""

CELL_COLUMNS = ("model", "method", "label", "calibrated", "propagate")
"""Labels that every cell has, besides those of its calibration set."""

SET_COLUMNS = (
    "source",
    "draw",
    "seed",
    "n_samples",
    "seq_len",
    "layout",
    "format",
    "calibration_tokens",
    "calibration",
)
"""Labels of a calibration set; missing for cells that read none."""


TOLERANCE = 0.02
"""How far a capability's bits per byte may lie from the stored ones when a cell is computed again, as a share of them.

The same machine gives the same numbers. Another one sums in another order, and a rounding that falls the other way
early in a sweep moves what comes after it."""

CHECKED_SHARE = 1 / 3
"""Share of each capability's items on which a stored cell is computed again."""


@dataclass(frozen=True)
class SpotCheck:
    """A stored cell that was computed again."""

    cell: str
    description: str
    largest: float


@dataclass(frozen=True)
class GridResult:
    """The cells of a grid."""

    frame: pd.DataFrame
    layers: pd.DataFrame
    n_read: int
    n_computed: int
    device: str
    seconds: float
    checks: tuple[SpotCheck, ...] = ()
    cells: Mapping[str, Mapping[str, Label]] = field(default_factory=dict)
    earlier: tuple[str, ...] = ()

    @property
    def provenance(self) -> str:
        """One line for the end of a notebook."""
        computed = f"{self.n_computed} computed now on {self.device} in {self.seconds:.0f} s"
        line = f"{self.n_read} cells read from the store, {computed if self.n_computed else 'none computed now'}"
        again = "; ".join(f"{c.description} (cell {c.cell}), off by {c.largest:.1e}" for c in self.checks)
        if self.earlier:
            line += f"; sets of {', '.join(self.earlier)} are on record as an earlier revision chose them"
        return f"{line}; drawn at random and computed again: {again}" if again else line

    def __add__(self, other: GridResult) -> GridResult:
        """Put two grids' cells together; what both hold is kept once."""
        return GridResult(
            frame=_union(self.frame, other.frame),
            layers=_union(self.layers, other.layers),
            n_read=self.n_read + other.n_read,
            n_computed=self.n_computed + other.n_computed,
            device=self.device,
            seconds=self.seconds + other.seconds,
            checks=self.checks + other.checks,
            earlier=tuple(dict.fromkeys(self.earlier + other.earlier)),
            cells={**other.cells, **self.cells},
        )


@dataclass(frozen=True)
class Tuning:
    """Further training of a compressed model.

    Parameters
    ----------
    spec : TuneSpec
        How.
    rows : CalibrationSet
        On what.
    name : str
        What it is called behind a method's label.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.experiments import Tuning
    >>> from cola_lib.finetune import TuneSpec
    >>> from cola_lib.models import byte_tokenizer
    >>> Tuning(TuneSpec(steps=2), random_tokens_set(byte_tokenizer(), 4, 16)).name
    'tuned'
    """

    spec: TuneSpec
    rows: CalibrationSet
    name: str = "tuned"


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
    suite: Suite | None,
    store: ResultStore,
    *,
    propagate: Propagate = "original",
    labels: Sequence[Mapping[str, Label]] | None = None,
    dense: bool = True,
    targets: Mapping[str, CalibrationSet] | None = None,
    workspace: Workspace | None = None,
    spot_check: bool = False,
    tune: Tuning | None = None,
    eval_dtype: str | None = None,
    progress: bool = True,
) -> GridResult:
    """Evaluate every method under every calibration set."""
    began = time.perf_counter()
    if propagate not in PROPAGATE:
        raise UnknownNameError("propagate", str(propagate), PROPAGATE)
    if suite is None and (dense or spot_check or tune is not None):
        raise SpecError("without a suite there is nothing to measure on a dense, a tuned or a checked model")
    sets = _labelled(calibration_sets, labels)
    specs = [settle(lm, spec) for spec in specs]
    grid = _Grid(lm, suite, store, propagate, targets or {}, workspace or Workspace(), tune, eval_dtype)
    n_tuned = sum(spec.calibrated for spec in specs)
    total = dense + len(specs) - n_tuned + n_tuned * len(sets)
    found: list[tuple[_Cell, CellResult]] = []
    stored: list[_Stored] = []
    with tqdm(total=total, unit="cell", desc="grid", disable=not progress) as bar:
        for cells, calibration, build in _asked(grid, sets, specs, dense):
            for cell, result, read in grid.run(cells, calibration):
                found.append((cell, result))
                stored += [(cell, result, build)] * read
                bar.set_postfix_str(grid.describe(cell), refresh=False)
                bar.update()
    checks = (grid.check(*random.SystemRandom().choice(_cheap(stored))),) if spot_check and stored else ()
    return GridResult(
        frame=stack(result.frame(cell.labels) for cell, result in found),
        layers=stack(result.layer_frame(cell.labels) for cell, result in found),
        n_read=len(found) - grid.n_computed,
        n_computed=grid.n_computed,
        device=device_name(lm.device),
        seconds=time.perf_counter() - began,
        checks=checks,
        cells={cell.key.fingerprint: cell.labels for cell, _ in found},
    )


_Stored = tuple[_Cell, CellResult, LazySet | None]


def _cheap(stored: list[_Stored]) -> list[_Stored]:
    """Keep cells that are cheap to compute: no more tokens than the median, and of these no more seconds.

    A check must not cost more than the page around it.
    """

    def n_tokens(each: _Stored) -> float:
        return float(each[0].labels["calibration_tokens"] or 0)

    def seconds(each: _Stored) -> float:
        return each[1].seconds  # without the walk

    for cost in (n_tokens, seconds):
        most = sorted(map(cost, stored))[(len(stored) - 1) // 2]
        stored = [each for each in stored if cost(each) <= most]
    return stored


def _asked(
    grid: _Grid, sets: Sequence[tuple[LazySet, Mapping[str, Label]]], specs: Sequence[Spec], dense: bool
) -> Iterator[tuple[list[_Cell], CalibrationSet | None, LazySet | None]]:
    """Name the cells of a grid: first those that read no data, then set by set, each built when its turn comes."""
    alone = [spec for spec in specs if not spec.calibrated]
    tuned = [spec for spec in specs if spec.calibrated]
    yield [grid.cell(spec) for spec in [*([None] if dense else []), *alone]], None, None
    for build, own in sets if tuned else ():
        calibration = build() if callable(build) else build
        yield [grid.cell(spec, calibration, own) for spec in tuned], calibration, build


def list_cells(
    lm: LanguageModel,
    calibration_sets: Sequence[LazySet],
    specs: Sequence[Spec],
    suite: Suite,
    store: ResultStore,
    *,
    propagate: Propagate = "original",
    labels: Sequence[Mapping[str, Label]] | None = None,
    dense: bool = True,
    targets: Mapping[str, CalibrationSet] | None = None,
    eval_dtype: str | None = None,
) -> dict[str, bool]:
    """Name the cells that :func:`run_grid` would read or compute, and compute none."""
    grid = _Grid(lm, suite, store, propagate, targets or {}, Workspace(), None, eval_dtype)
    asked = _asked(grid, _labelled(calibration_sets, labels), [settle(lm, spec) for spec in specs], dense)
    return {cell.key.fingerprint: cell.key in store for cells, *_ in asked for cell in cells}


class _Grid:
    """What all cells of a grid have in common."""

    def __init__(
        self,
        lm: LanguageModel,
        suite: Suite | None,
        store: ResultStore,
        propagate: Propagate,
        targets: Mapping[str, CalibrationSet],
        workspace: Workspace,
        tune: Tuning | None,
        eval_dtype: str | None,
    ) -> None:
        self._tune = tune
        own = str(lm.dtype).removeprefix("torch.")
        self._eval_dtype = None if eval_dtype == own else eval_dtype
        self._dtype = None if self._eval_dtype is None else resolve_dtype(self._eval_dtype, lm.device)
        self._lm, self._suite, self._store, self._propagate = lm, suite, store, propagate
        self._targets, self._workspace = targets, workspace
        self._target_names = {name: target.fingerprint for name, target in targets.items()}
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
            suite=self._suite.fingerprint if self._suite else NO_SUITE,
            spec=self._spec_key(spec),
            calibrated=calibrated,
            calibration=calibration.fingerprint if calibration else None,
            propagate=self._propagate,
            targets=self._target_names,
            eval_dtype=self._eval_dtype,
        )
        labels = {
            "model": self._lm.name,
            "method": spec.method if spec else DENSE,
            "label": self._label(spec),
            "calibrated": calibrated,
            "propagate": key.propagate,
            **(set_labels(calibration) if calibration else dict.fromkeys(SET_COLUMNS)),
            **(own or {}),
        }
        return _Cell(key, spec, labels)

    def _spec_key(self, spec: Spec | None) -> dict[str, Any] | None:
        if spec is None or self._tune is None:
            return spec.key() if spec else None
        tuned = {"spec": asdict(self._tune.spec), "rows": self._tune.rows.fingerprint, **revisions("finetune")}
        return {**spec.key(), "tuned": tuned}

    def _label(self, spec: Spec | None) -> str:
        if spec is None:
            return DENSE
        return f"{spec.label} {self._tune.name}" if self._tune else spec.label

    def run(
        self, cells: Sequence[_Cell], calibration: CalibrationSet | None
    ) -> Iterator[tuple[_Cell, CellResult, bool]]:
        """Yield the cells of one calibration set, and whether each was stored; walk only if one is missing."""
        for cell in cells:
            result, stored = self._store.cached(cell.key, partial(self._compute, cell, calibration))
            self.n_computed += not stored
            yield cell, result, stored

    def check(self, cell: _Cell, result: CellResult, build: LazySet | None) -> SpotCheck:
        """Compress as for a stored cell, score some of its items again, and compare."""
        if self._suite is None:
            raise SpecError("a cell without scores cannot be checked")
        some = _some_items(self._suite)
        calibration = build() if callable(build) else build
        with self._compressed(cell, calibration, *self._statistics(cell, calibration), {}):
            again = evaluate(self._lm, some, dtype=self._dtype, progress=False)
        before = result.scores[result.scores["item"].isin(again["item"])]
        pooled = [_bits_per_byte(each) for each in (before, again)]
        largest = float(((pooled[1] - pooled[0]) / pooled[0]).abs().max())
        what = self.describe(cell)
        if not largest <= TOLERANCE:
            raise EvidenceError(
                f"{what}: computed again, cell {cell.key.fingerprint} differs from what is stored by {largest:.1%} "
                f"in a capability's bits per byte, more than {TOLERANCE:.0%}: stored "
                f"{pooled[0].round(4).to_dict()}, now {pooled[1].round(4).to_dict()}. If an algorithm was changed on "
                "purpose, raise its number in cola_lib/registry.py; otherwise look for what broke"
            )
        return SpotCheck(cell.key.fingerprint, what, largest)

    def _compute(self, cell: _Cell, calibration: CalibrationSet | None) -> CellResult:
        """Compress, evaluate, restore."""
        log.info("computing cell %s: %s", cell.key.fingerprint, self.describe(cell))
        # All of these read the untouched model, so they come before anything is compressed.
        reference = self._workspace.reference(self._lm, self._suite, self._dtype) if self._suite else None
        targets = {}
        if cell.spec is not None:
            targets = {name: self._workspace.target(self._lm, each) for name, each in self._targets.items()}
        statistics, held_out = self._statistics(cell, calibration)
        began = time.perf_counter()
        with self._compressed(cell, calibration, statistics, held_out, targets) as report:
            scores = pd.DataFrame()
            if self._suite is not None:
                scores = evaluate(self._lm, self._suite, reference=reference, dtype=self._dtype, progress=False)
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

    def _statistics(
        self, cell: _Cell, calibration: CalibrationSet | None
    ) -> tuple[LayerStatistics | None, LayerStatistics | None]:
        """Walk the untouched model, unless each block is to read what the compressed ones before it give."""
        if calibration is None or self._propagate != "original":
            return None, None
        if not (isinstance(cell.spec, QuantSpec) and cell.spec.chooses_damp):
            return self._workspace.statistics(self._lm, calibration), None
        rows, apart = calibration.hold_out()
        held_out = collect_statistics(self._lm, apart, progress=False)
        return self._workspace.statistics(self._lm, rows), held_out

    @contextlib.contextmanager
    def _compressed(
        self,
        cell: _Cell,
        calibration: CalibrationSet | None,
        statistics: LayerStatistics | None,
        held_out: LayerStatistics | None,
        targets: Mapping[str, LayerStatistics],
    ) -> Iterator[CompressionReport | None]:
        """Hold the model compressed, and trained further if asked for, as the cell says."""
        report: CompressionReport | None = None
        with restored(self._lm):
            try:
                if cell.spec is not None:
                    report = compress(
                        self._lm,
                        cell.spec,
                        calibration if statistics is None else None,
                        statistics=statistics,
                        held_out=held_out,
                        propagate=self._propagate,
                        targets=targets,
                        progress=False,
                    )
                    if self._tune is not None:
                        pruned = isinstance(cell.spec, PruneSpec)
                        finetune(self._lm, self._tune.rows, self._tune.spec, keep_zeros=pruned, progress=False)
                yield report
            except Exception as error:
                error.add_note(f"in cell {self.describe(cell)}")
                raise

    @staticmethod
    def describe(cell: _Cell) -> str:
        """Say in a few words which cell it is."""
        source, draw = cell.labels["source"], cell.labels["draw"]
        where = "" if source is None else f" · {source}" + ("" if draw is None else f" #{draw}")
        return f"{cell.labels['label']}{where}"


def each_set(
    calibration_sets: Sequence[LazySet],
    labels: Sequence[Mapping[str, Label]],
    store: ResultStore,
    key: Callable[[CalibrationSet], CellKey],
    compute: Callable[[CalibrationSet, CellKey, Mapping[str, Label]], CellResult],
    *,
    desc: str,
    progress: bool = True,
) -> Iterator[tuple[CalibrationSet, Mapping[str, Label], CellResult, bool]]:
    """Read one result for each calibration set, or compute it and put it in the store at once."""
    pairs = _labelled(calibration_sets, labels)
    for build, own in tqdm(pairs, unit="set", desc=desc, disable=not progress):
        calibration = build() if callable(build) else build
        name = key(calibration)
        result, stored = store.cached(name, partial(compute, calibration, name, own))
        yield calibration, own, result, stored


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


def set_labels(calibration: CalibrationSet) -> dict[str, Label]:
    """Labels that a calibration set has by itself: :data:`SET_COLUMNS`."""
    return {
        "source": calibration.name,
        "draw": calibration.draw,
        "seed": calibration.seed,
        "n_samples": calibration.n_samples,
        "seq_len": calibration.seq_len,
        "layout": calibration.layout,
        "format": calibration.format,
        "calibration_tokens": calibration.n_tokens,
        "calibration": calibration.fingerprint,
    }


def _layer_table(report: CompressionReport) -> pd.DataFrame:
    rows = [
        {
            "layer": r.layer,
            "output_error": r.output_error,
            "weight_error": r.weight_error,
            "sparsity": r.sparsity,
            **{f"error_on_{target}": error for target, error in r.target_error.items()},
        }
        for r in report.layers
    ]
    return pd.DataFrame(rows).astype({"output_error": float})


def _some_items(suite: Suite) -> Suite:
    """Draw a third of each capability's items, and one at least."""
    chosen: set[str] = set()
    for capability in suite.capabilities:
        names = [item.id for item in suite.items if item.capability == capability]
        chosen.update(random.SystemRandom().sample(names, math.ceil(CHECKED_SHARE * len(names))))
    return Suite(tuple(item for item in suite.items if item.id in chosen))


def _bits_per_byte(scores: pd.DataFrame) -> pd.Series:
    """Bits per byte of each capability, its tasks pooled."""
    sums = scores.groupby("capability")[["nll", "n_bytes"]].sum()
    return sums["nll"] / np.log(2) / sums["n_bytes"]


def _union(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Stack two tables, without the second's rows of cells that the first has."""
    if one.empty or other.empty:
        return one if other.empty else other
    return pd.concat([one, other[~other["cell"].isin(one["cell"].unique())]], ignore_index=True)


def stack(frames: Iterator[pd.DataFrame]) -> pd.DataFrame:
    """Stack the tables that have rows."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()


def device_name(device: torch.device) -> str:
    """Name a device as a reader knows it.

    Parameters
    ----------
    device : torch.device
        A GPU gets its product name.

    Returns
    -------
    str
        ``"cpu"`` or the GPU's product name.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.experiments import device_name
    >>> isinstance(device_name(torch.device("cpu")), str)
    True
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
