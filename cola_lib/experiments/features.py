"""What calibration sets do inside the model, by themselves and beside targets: read from the store, or computed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pandas as pd

from cola_lib.activations import Activations, pooled_activations, set_features, target_features
from cola_lib.calibration import CalibrationSet
from cola_lib.experiments.cells import CellKey, CellResult, Label, current_versions
from cola_lib.experiments.runner import GridResult, LazySet, device_name, each_set
from cola_lib.experiments.store import ResultStore
from cola_lib.experiments.workspace import Workspace
from cola_lib.models import LanguageModel
from cola_lib.registry import revisions

SPECTRUM_GROUP = "attn_in"
"""Input group whose leading eigenvalues are kept, in every block: the residual stream as attention reads it."""

N_EIGENVALUES = 48
"""Leading eigenvalues kept of each Gram matrix, as shares of its trace."""

NO_TARGET = ""
"""Target of a measure that needs none."""


def activation_key(lm: LanguageModel, calibration: CalibrationSet, targets: Mapping[str, CalibrationSet]) -> CellKey:
    """Name the activation measures of a calibration set."""
    return CellKey(
        model=lm.fingerprint,
        suite="activations",
        spec=None,
        calibration=calibration.fingerprint,
        propagate=None,
        revisions=revisions("activations", "walk"),
        targets={name: each.fingerprint for name, each in sorted(targets.items())},
    )


def run_activations(
    lm: LanguageModel,
    calibration_sets: Sequence[LazySet],
    targets: Mapping[str, CalibrationSet],
    store: ResultStore,
    *,
    labels: Sequence[Mapping[str, Label]],
    workspace: Workspace | None = None,
    progress: bool = True,
) -> GridResult:
    """Measure calibration sets in activation space."""
    began, shared = time.perf_counter(), workspace or Workspace()
    measured = list(
        each_set(
            calibration_sets,
            labels,
            store,
            lambda rows: activation_key(lm, rows, targets),
            lambda rows, key, own: _measure(lm, rows, targets, shared, key, own),
            desc="activations",
            progress=progress,
        )
    )
    found = [result.frame({**own, "calibration": rows.fingerprint}) for rows, own, result, _ in measured]
    n_read = sum(stored for *_, stored in measured)
    return GridResult(
        frame=pd.concat(found, ignore_index=True),
        layers=pd.DataFrame(),
        n_read=n_read,
        n_computed=len(found) - n_read,
        device=device_name(lm.device),
        seconds=time.perf_counter() - began,
    )


def _measure(
    lm: LanguageModel,
    calibration: CalibrationSet,
    targets: Mapping[str, CalibrationSet],
    workspace: Workspace,
    key: CellKey,
    labels: Mapping[str, Label],
) -> CellResult:
    began = time.perf_counter()
    own = Activations(pooled_activations(lm, calibration, progress=False), workspace.statistics(lm, calibration))
    theirs = {name: workspace.target_activations(lm, each) for name, each in targets.items()}
    tables = [
        set_features(own).assign(target=NO_TARGET, rank=0),
        target_features(own, theirs).assign(rank=0),
        _eigenvalues(own),
    ]
    table = pd.concat(tables, ignore_index=True)[["target", "feature", "block", "group", "rank", "value"]]
    return CellResult(
        key=key,
        scores=table,
        labels=dict(labels),
        device=device_name(lm.device),
        seconds=time.perf_counter() - began,
        versions=current_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _eigenvalues(activations: Activations) -> pd.DataFrame:
    """Leading eigenvalues of each block's Gram matrix, as shares of its trace."""
    parts = []
    for block, group in activations.inputs([SPECTRUM_GROUP]):
        share = activations.spectrum(block, group).values[:N_EIGENVALUES].tolist()
        parts.append(pd.DataFrame({"block": block, "rank": range(1, len(share) + 1), "value": share}))
    return pd.concat(parts, ignore_index=True).assign(target=NO_TARGET, feature="eigenvalue", group=SPECTRUM_GROUP)
