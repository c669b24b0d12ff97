"""Judge the claims of all chapters under several BLAS kernels and thread counts: ``make same-findings``.

Every chapter runs once on the evidence, and what its claims were given is kept. Each environment then computes the
findings again, in a process of its own, because kernels are chosen when a process starts. All must print the same:
estimates, intervals, p-values and verdicts to the digit that the book shows.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import typer

from benchmarks.same_numbers import ROOT, process_environment
from cola_lib import analysis
from cola_lib.analysis import judge_family, scorecard_parts
from cola_lib.book import read_profile

PROFILE = "standard"
CLAIM = re.compile(r"c\d+_\w+")
"""Functions of :mod:`cola_lib.analysis` that return the findings of a claim."""

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A claim's function, and what a chapter gave it."""


def environments() -> dict[str, dict[str, str]]:
    """Environments to compare, by name; the first is what the others are compared with."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    # OpenBLAS does not check that a kernel it is told to take runs here
    kernels = ["", "Haswell", "Prescott", *(["SkylakeX"] if "avx512f" in flags else [])]
    return {
        f"{kernel or 'own kernel'}, threads: {n}": {"OPENBLAS_CORETYPE": kernel, "OMP_NUM_THREADS": str(n)}
        for kernel in kernels
        for n in (1, 2)
    }


def calls_of(chapter: Path, parameters: Mapping[str, Any]) -> list[Call]:
    """Run a chapter's cells in this process, and keep what its claims are given."""
    import matplotlib
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    matplotlib.use("agg")
    calls: list[Call] = []
    logged = {name: _logged(name, getattr(analysis, name), calls) for name in filter(CLAIM.fullmatch, analysis.__all__)}
    shell = InteractiveShell.instance()
    with mock.patch.multiple(analysis, **logged):
        for cell in nbformat.read(chapter, as_version=4).cells:
            if cell.cell_type == "code":
                with capture_output():
                    shell.run_cell(cell.source).raise_error()
                if "parameters" in cell.metadata.get("tags", ()):
                    shell.user_ns.update(parameters)
    return calls


def _logged(name: str, claim: Callable[..., Any], calls: list[Call]) -> Callable[..., Any]:
    @wraps(claim)
    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append((name, args, kwargs))
        return claim(*args, **kwargs)

    return call


def printed(calls: Sequence[Call]) -> dict[str, str]:
    """Compute findings, and write each as the book does: estimate, interval, p-value, verdict."""
    rows = {}
    for number, (name, args, kwargs) in enumerate(calls):
        table = scorecard_parts(judge_family(getattr(analysis, name)(*args, **kwargs)))
        for row in table.itertuples():
            rows[f"{number} {row.claim} {row.part}"] = f"{row.ours}, p {row.p_holm:.3f}, {row.verdict}"
    return rows


def moved(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Say which findings print otherwise."""
    names = dict.fromkeys([*one, *other])
    return [f"{name}: {one.get(name)} and {other.get(name)}" for name in names if one.get(name) != other.get(name)]


def compared(
    calls: Mapping[str, Path], environments: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, list[str], int]]:
    """Compare every environment with the first: its name, the findings that print otherwise, and how many there are.

    Parameters
    ----------
    calls : mapping of str to Path
        For each chapter, a file of what its claims are given.
    environments : mapping of str to mapping
        Variables of each.
    """
    first: dict[str, str] | None = None
    for name, variables in environments.items():
        found = {}
        for chapter, path in calls.items():
            done = _run(["--calls", str(path)], variables)
            found |= {f"{chapter} {part}": text for part, text in json.loads(done).items()}
        first = found if first is None else first
        yield name, moved(first, found), len(found)


def _run(arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "benchmarks.same_findings", *arguments]
    environment = process_environment(variables)
    return subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(
    chapter: Annotated[list[str] | None, typer.Option(help="Chapters by name; all with claims by default.")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for what the claims are given; read if it is there.")
    ] = None,
    calls: Annotated[Path | None, typer.Option(help="Print the findings of this file instead.", hidden=True)] = None,
    out: Annotated[Path | None, typer.Option(help="Write one chapter's calls here instead.", hidden=True)] = None,
) -> None:
    """Judge all claims in every environment, and fail if one prints otherwise."""
    if calls is not None:
        print(json.dumps(printed(pickle.loads(calls.read_bytes()))))
        return
    os.chdir(ROOT)
    profile = read_profile(PROFILE, ROOT / "notebooks" / "profiles")
    judged = [
        name for name in profile.notebooks if "record(store" in (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    ]
    with tempfile.TemporaryDirectory() as scratch:
        if out is not None:
            (name,) = chapter or ()
            own = {**profile.notebooks[name], "store": scratch, "spot_check": False}
            out.write_bytes(pickle.dumps(calls_of(ROOT / "notebooks" / f"{name}.ipynb", own)))
            return
        folder = (keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: folder / f"{name}.pickle" for name in chapter or judged}
        for name, path in files.items():
            if not path.exists():
                _run(["--chapter", name, "--out", str(path)], {"OMP_NUM_THREADS": "1"})
        failed = False
        for name, wrong, total in compared(files, environments()):
            print(f"{name}: {total} findings, {len(wrong)} print otherwise", flush=True)
            print("".join(f"  {line}\n" for line in wrong), end="")
            failed |= bool(wrong)
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
