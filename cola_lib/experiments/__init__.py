"""Experiments: grids of cells, each computed once, kept by its content, and found again."""

from cola_lib.data import TARGETS
from cola_lib.experiments.cells import CellKey, CellResult, cell_key, current_versions
from cola_lib.experiments.damping import run_damping
from cola_lib.experiments.engines import SweepResult, Worker, look_at_sweep, run_sweep
from cola_lib.experiments.experiment import RANDOM_TOKENS, Experiment, as_spec, as_strategy
from cola_lib.experiments.outside import OutsideRecipe, run_outside
from cola_lib.experiments.runner import TOLERANCE, GridResult, Tuning, device_name, run_grid
from cola_lib.experiments.selection import Selection, select
from cola_lib.experiments.store import ResultStore, read_scores
from cola_lib.experiments.sweep import Sweep, read_sweep
from cola_lib.experiments.workspace import Workspace

__all__ = [
    "RANDOM_TOKENS",
    "TARGETS",
    "TOLERANCE",
    "CellKey",
    "CellResult",
    "Experiment",
    "GridResult",
    "OutsideRecipe",
    "ResultStore",
    "Selection",
    "Sweep",
    "SweepResult",
    "Tuning",
    "Worker",
    "Workspace",
    "as_spec",
    "as_strategy",
    "cell_key",
    "current_versions",
    "device_name",
    "look_at_sweep",
    "read_scores",
    "read_sweep",
    "run_damping",
    "run_grid",
    "run_outside",
    "run_sweep",
    "select",
]
