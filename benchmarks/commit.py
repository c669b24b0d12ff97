"""The same work with this tree and with another commit, in turns, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.timing import Row, cpu_time, in_turns, ratio_row

ROOT = Path(__file__).parents[1]

TARGETS = {
    "evaluate": 0.6,
    "walk": 0.6,
    "solve all four methods": 0.75,
    "a cell: choose, compress, evaluate": 0.5,
}
LIMITS = {
    "evaluate": "products, which both do, and the head's logits",
    "walk": "products, which both do",
    "solve all four methods": "Cholesky factors, triangular solves and sweeps, which no faster product serves",
    "a cell: choose, compress, evaluate": "its evaluation",
}


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Have another commit's tree beside this one."""
    with TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


class Worker:
    """A process that works with the library of one tree."""

    def __init__(self, tree: Path, told: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "benchmarks" / "same_work.py", json.dumps(told)],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.names: list[str] = json.loads(self._answer())

    def _answer(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError("the worker ended; its error stands above")
        return line

    def seconds(self, work: str) -> float:
        """Do one piece of work."""
        assert self.process.stdin is not None
        print(work, file=self.process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure(
    revision: str, model: str, device: str, tokens: int, n_samples: int, seq_len: int, turns: int
) -> Iterator[list[Row]]:
    """Compare piece by piece."""
    told = {"model": model, "device": device, "tokens": tokens, "n_samples": n_samples, "seq_len": seq_len}
    told["cpu_time"] = cpu_time()
    with ExitStack() as undo:
        other = undo.enter_context(checked_out(revision))
        here, there = Worker(ROOT, dict(told)), Worker(other, dict(told))
        undo.callback(here.close)
        undo.callback(there.close)
        for work in here.names:
            runs: dict[str, Callable[[], object]] = {
                work: lambda work=work: here.seconds(work),
                f"at {revision}": lambda work=work: there.seconds(work),
            }
            times = in_turns(runs, turns)
            limit = LIMITS[work]
            yield [ratio_row("commit", work, f"at {revision}", times, target=TARGETS[work], limited_by=limit)]
