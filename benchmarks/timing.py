"""Runs that take turns, ratios between them, and the file that keeps them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cola_lib.experiments import device_name
from cola_lib.models import LanguageModel

FORWARD = "forward pass of the same tokens"


@dataclass(frozen=True)
class Row:
    """One ratio.

    Parameters
    ----------
    part : str
        Section of the benchmark.
    what : str
        What was timed.
    against : str
        What it was timed against, in the same turns.
    ratio, low, high : float
        Median, least and greatest of the turns' ratios of seconds, ``what`` over ``against``.
    seconds : float
        Median of ``what``.
    turns : int
        How many.
    target : float, optional
        The ratio wanted, at most or at least.
    at_most : bool
        Which of the two.
    note : str
        What one has to know.
    share : float, optional
        Share of the best product of any backend, in the model's type, at which ``what`` did its arithmetic.
    limited_by : str
        What keeps it from being better: asked for wherever there is a target, told where that is missed.
    """

    part: str
    what: str
    against: str
    ratio: float
    low: float
    high: float
    seconds: float
    turns: int
    target: float | None = None
    at_most: bool = True
    note: str = ""
    share: float | None = None
    limited_by: str = ""

    def __post_init__(self) -> None:
        if self.target is not None and not self.limited_by:
            raise ValueError(f"{self.what}: a row with a target says what limits it")

    @property
    def met(self) -> bool | None:
        """Whether the target is met; ``None`` without one."""
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


@dataclass
class Report:
    """What a run of the benchmark found, kept in a file that each part is written to when it is done.

    Parameters
    ----------
    path : Path or None
        JSON file. Parts that it holds from an earlier run stay until they are measured again.
    about : dict
        The machine and the versions, by part: an earlier part may be from another day.
    rows : list of Row
        Ratios.
    series : list of dict
        Points of the scaling curves.
    """

    path: Path | None = None
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    series: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | None) -> Report:
        """Read what is in the file, if there is one."""
        if path is None or not path.exists():
            return cls(path)
        kept = json.loads(path.read_text())
        return cls(path, kept["about"], [Row(**row) for row in kept["rows"]], kept["series"])

    def put(
        self,
        part: str,
        about: dict[str, Any],
        rows: Iterable[Row],
        series: Iterable[dict[str, Any]] = (),
        *,
        add: bool = False,
    ) -> None:
        """Replace a part, or with ``add`` only those of its rows that were measured again, and write the file."""
        rows = list(rows)
        again = {(row.what, row.against) for row in rows}
        stay = [row for row in self.rows if row.part != part or (add and (row.what, row.against) not in again)]
        self.about[part] = about
        self.rows = stay + rows
        self.series = [point for point in self.series if point["part"] != part] + list(series)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            plain = {"about": self.about, "rows": [asdict(row) for row in self.rows], "series": self.series}
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(plain, indent=1) + "\n")
            partial.replace(self.path)


def cpu_time() -> bool:
    """Whether processor time counts in place of wall time: for a machine that others use, with one thread."""
    chosen = os.environ.get("BENCH_CLOCK", "wall")
    if chosen not in ("wall", "cpu"):
        raise ValueError(f"BENCH_CLOCK is wall or cpu, not {chosen!r}")
    if chosen == "cpu" and torch.get_num_threads() > 1:
        raise ValueError("BENCH_CLOCK=cpu counts what threads wait for each other; set OMP_NUM_THREADS=1 with it")
    return chosen == "cpu"


def clock(where: LanguageModel | torch.device | None = None) -> float:
    """Seconds, once the device, of a model or by itself, has done what it was asked."""
    device = where.device if isinstance(where, LanguageModel) else where
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if cpu_time() else time.perf_counter()


def in_turns(
    runs: Mapping[str, Callable[[], object]], turns: int, lm: LanguageModel | None = None, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each run, turn by turn, so that a busy moment of the machine hits all of them.

    Parameters
    ----------
    runs : mapping of str to callable
        What is timed. A callable that returns a number is believed: it timed itself.
    turns : int
        How often each runs.
    lm : LanguageModel, optional
        Whose device is waited for.
    warm_up : bool
        Run each once before.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + warm_up):
        for name, run in runs.items():
            began = clock(lm)
            said = run()
            took = said if isinstance(said, float) else clock(lm) - began
            if turn or not warm_up:
                times[name].append(took)
    return times


def ratio_row(part: str, what: str, against: str, times: Mapping[str, Sequence[float]], **more: Any) -> Row:
    """Compare two of the runs that took turns.

    Parameters
    ----------
    part, what, against : str
        See :class:`Row`; ``what`` and ``against`` are names in ``times``.
    times : mapping of str to sequence of float
        Of :func:`in_turns`.
    **more
        Other fields of the row.
    """
    ratios = [a / b for a, b in zip(times[what], times[against], strict=True)]
    return Row(
        part,
        what,
        against,
        ratio=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
        seconds=statistics.median(times[what]),
        turns=len(ratios),
        **more,
    )


def facts(lm: LanguageModel) -> dict[str, Any]:
    """The machine, the versions and the moment."""
    return {
        "device": device_name(lm.device),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "processor" if cpu_time() else "wall",
        "load_before": round(os.getloadavg()[0], 2),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "model": lm.name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "revision": _revision(),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu() -> str:
    told = Path("/proc/cpuinfo")
    if told.exists():
        for line in told.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    """Commit that is measured, if this is a clone."""
    asked = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return asked.stdout.strip() if asked.returncode == 0 else None
