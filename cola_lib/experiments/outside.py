"""The same set given to another tool: what llm-compressor makes of it, scored on the same items as our own models."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from cola_lib.calibration import CalibrationSet
from cola_lib.curation import write_dataset
from cola_lib.curation.dataset import curated
from cola_lib.errors import ColaError, SpecError
from cola_lib.evaluate import Suite, evaluate
from cola_lib.experiments.cells import CellKey, CellResult, Label, cell_key, current_versions
from cola_lib.experiments.runner import GridResult, LazySet, device_name, each_set, set_labels, stack
from cola_lib.experiments.store import ResultStore
from cola_lib.experiments.workspace import Workspace
from cola_lib.models import LanguageModel, load_model

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("outside_script.py")

TOOL = "llm-compressor"


@dataclass(frozen=True)
class OutsideRecipe:
    """GPTQ as llm-compressor is asked to do it.

    Parameters
    ----------
    bits : int
        Of each weight.
    group_size : int
        Consecutive inputs of a row that share a scale; must divide every layer's width.
    symmetric : bool
        Zero point fixed in the middle.
    act_order : bool
        Columns by falling Hessian diagonal, groups of neighbours (``actorder="weight"``, the only order that the tool
        has left; ``static_groups`` of our own).
    damp : float
        Share of the mean diagonal that is added to the Hessian's diagonal.
    version : str
        Of the tool, which is part of what a result is named by.

    Examples
    --------
    >>> from cola_lib.experiments import OutsideRecipe
    >>> OutsideRecipe(bits=3, act_order=True).label
    'llm-compressor gptq 3-bit act-order'
    """

    bits: int = 4
    group_size: int = 64
    symmetric: bool = True
    act_order: bool = False
    damp: float = 0.01
    version: str = "0.14.0.1"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8 or self.group_size < 1 or self.damp <= 0:
            raise SpecError(
                f"bits must be from 2 to 8, group_size and damp above 0, and they are {self.bits}, {self.group_size} "
                f"and {self.damp:g}"
            )

    @property
    def label(self) -> str:
        """Short name for tables and figures."""
        return f"{TOOL} gptq {self.bits}-bit" + (" act-order" if self.act_order else "")


def run_outside(
    lm: LanguageModel,
    calibration_sets: Sequence[LazySet],
    recipe: OutsideRecipe,
    suite: Suite,
    store: ResultStore,
    *,
    python: str | os.PathLike[str],
    labels: Sequence[Mapping[str, Label]],
    workspace: Workspace | None = None,
    progress: bool = True,
) -> GridResult:
    """Let llm-compressor compress the model on calibration sets, and evaluate what comes out."""
    began, shared = time.perf_counter(), workspace or Workspace()

    def named(rows: CalibrationSet, own: Mapping[str, Label]) -> dict[str, Label]:
        kind: dict[str, Label] = {"model": lm.name, "method": TOOL, "label": recipe.label}
        kind |= {"calibrated": True, "propagate": "compressed"}
        return {**kind, **set_labels(rows), **own}

    found = list(
        each_set(
            calibration_sets,
            labels,
            store,
            lambda rows: outside_key(lm, rows, recipe, suite),
            lambda rows, key, own: _compute(lm, rows, recipe, suite, Path(python), shared, key, named(rows, own)),
            desc=TOOL,
            progress=progress,
        )
    )
    n_read = sum(stored for *_, stored in found)
    return GridResult(
        frame=stack(result.frame(named(rows, own)) for rows, own, result, _ in found),
        layers=pd.DataFrame(),
        n_read=n_read,
        n_computed=len(found) - n_read,
        device=device_name(lm.device),
        seconds=time.perf_counter() - began,
    )


def outside_key(lm: LanguageModel, rows: CalibrationSet, recipe: OutsideRecipe, suite: Suite) -> CellKey:
    """Name a result by everything that decides it."""
    return cell_key(
        model=lm.fingerprint,
        suite=suite.fingerprint,
        spec={"method": TOOL, **asdict(recipe)},
        calibrated=True,
        calibration=rows.fingerprint,
        propagate="compressed",
    )


def _compute(
    lm: LanguageModel,
    rows: CalibrationSet,
    recipe: OutsideRecipe,
    suite: Suite,
    python: Path,
    workspace: Workspace,
    key: CellKey,
    labels: Mapping[str, Label],
) -> CellResult:
    if not python.is_file():
        raise ColaError(
            f"{python}: no such interpreter. {TOOL} needs an environment of its own, since its requirements contradict "
            "ours: `make interop` makes .venv-interop/llmcompressor"
        )
    reference = workspace.reference(lm, suite)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        lm.model.save_pretrained(base / "model")
        lm.tokenizer.save_pretrained(base / "model")
        write_dataset(curated(rows, lm.tokenizer, {"strategy": rows.name, "options": {}}), base / "set")
        run_llmcompressor(python, base, recipe)
        theirs = load_model(base / "out", device=str(lm.device), dtype=lm.dtype)
        scores = evaluate(theirs, suite, reference=reference, progress=False)
    return CellResult(
        key=key,
        scores=scores,
        labels=dict(labels),
        device=device_name(lm.device),
        seconds=time.perf_counter() - began,
        versions={**current_versions(), TOOL: recipe.version},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def run_llmcompressor(python: Path, base: Path, recipe: OutsideRecipe) -> None:
    """Compress the checkpoint in ``model`` on the dataset in ``set``, and write the result to ``out``."""
    folders = [str(base / name) for name in ("model", "set", "out")]
    command = [str(python.absolute()), str(SCRIPT), *folders, json.dumps(asdict(recipe))]
    # What this process imports from must not come first in the other environment.
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "HF_DATASETS_CACHE": str(base / "cache"),
    }
    log.info("%s: %s", TOOL, recipe.label)
    done = subprocess.run(command, cwd=base, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ColaError(f"{TOOL} failed with exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
