"""Experiments: grids of cells, each computed once, kept by its content, and found again."""

from cola_lib.data import TARGETS
from cola_lib.experiments.cells import CellKey, CellResult, Label, cell_key, current_versions
from cola_lib.experiments.damping import run_damping
from cola_lib.experiments.engines import ENGINES, SweepResult, TaskResult, Worker, look_at_sweep, run_sweep
from cola_lib.experiments.experiment import RANDOM_TOKENS, Experiment, LabelledSet, as_spec, as_strategy
from cola_lib.experiments.harness import harness_cell, harness_key
from cola_lib.experiments.outside import OutsideRecipe, outside_key, run_outside
from cola_lib.experiments.runner import (
    CELL_COLUMNS,
    DENSE,
    SET_COLUMNS,
    TOLERANCE,
    GridResult,
    SpotCheck,
    Tuning,
    device_name,
    run_grid,
)
from cola_lib.experiments.selection import Selection, select, selection_key
from cola_lib.experiments.store import ResultStore, read_scores
from cola_lib.experiments.sweep import SetTask, Sweep, read_sweep
from cola_lib.experiments.workspace import Workspace

__all__ = [
    "CELL_COLUMNS",
    "DENSE",
    "ENGINES",
    "RANDOM_TOKENS",
    "SET_COLUMNS",
    "TARGETS",
    "TOLERANCE",
    "CellKey",
    "CellResult",
    "Experiment",
    "GridResult",
    "Label",
    "LabelledSet",
    "OutsideRecipe",
    "ResultStore",
    "Selection",
    "SetTask",
    "SpotCheck",
    "Sweep",
    "SweepResult",
    "TaskResult",
    "Tuning",
    "Worker",
    "Workspace",
    "as_spec",
    "as_strategy",
    "cell_key",
    "current_versions",
    "device_name",
    "harness_cell",
    "harness_key",
    "look_at_sweep",
    "outside_key",
    "read_scores",
    "read_sweep",
    "run_damping",
    "run_grid",
    "run_outside",
    "run_sweep",
    "select",
    "selection_key",
]
