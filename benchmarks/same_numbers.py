"""Recompute the analysis of the evidence under several BLAS kernels and thread counts: ``make same-numbers``.

Each combination runs in a process of its own, because kernels are chosen when a process starts. All must agree to more
digits than the book prints.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from cola_lib.analysis import (
    cell_table,
    held_out_correlation,
    mean_ranks,
    retention_table,
    source_matters,
    source_share,
    source_versus_method,
    variance_components,
)
from cola_lib.experiments import ResultStore

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "evidence" / "cells.parquet"
DIGITS = 1e-6
"""Relative difference that is allowed; the book prints three digits at most."""

COLUMNS = (
    "cell method label calibrated source draw item capability task nll n_bytes n_tokens bits_per_byte correct".split()
)


def numbers(frame: pd.DataFrame) -> dict[str, float]:
    """Analyse a crossed grid: several methods on the same draws of several sources, and the untouched model."""
    return dict(_numbers(frame))


def _numbers(frame: pd.DataFrame) -> Iterator[tuple[str, float]]:
    calibrated = frame[frame["source"].notna()]
    kept = retention_table(frame)
    for row in kept.itertuples():
        for end in ("value", "low", "high"):
            yield f"retention {row.source} {row.label} {row.capability} {end}", getattr(row, end)
    for capability, rows in frame.groupby("capability"):
        parts = variance_components(rows)
        yield from zip(f"component of {capability}: " + parts["component"], parts["share"], strict=True)
        found = source_versus_method(rows[rows["source"].notna()], rng=np.random.default_rng(0))
        yield from ((f"source or method, {capability}: {end}", getattr(found, end)) for end in ("value", "low", "high"))
    for (capability, label), rows in calibrated.groupby(["capability", "label"]):
        yield f"share of {label}, {capability}", source_share(rows)
        yield f"p of {label}, {capability}", source_matters(rows, rng=np.random.default_rng(0), n_resamples=999).p_value
    for capability, table in kept.groupby("capability"):
        ranks = mean_ranks(table, competitor="source", block="label", within=[], value="value").table
        yield from zip(f"rank on {capability}: " + ranks["source"], ranks["rank"], strict=True)
    losses = cell_table(frame).pivot_table(index=["source", "label", "draw"], columns="capability", values="loss")
    first, *others = losses.columns
    if others:
        ridge = held_out_correlation(
            losses.reset_index(),
            others,
            first,
            within=["label"],
            n_permutations=99,
            rng=np.random.default_rng(0),
        )
        yield "held out", ridge.correlation.value
        yield "held out, explained", ridge.r2
        yield "held out, p", ridge.p_permutation


def machines() -> dict[str, dict[str, str]]:
    """Environments to compare, by name. OpenBLAS does not check that a kernel it is told to take runs here."""
    kernels = ["", "Nehalem", "Haswell"]
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    if "avx512f" in flags:
        kernels.append("SkylakeX")
    tried = [(kernels[0], 1), *((kernel, 2) for kernel in kernels)]
    return {
        f"{kernel or 'own kernel'}, threads: {threads}": {
            "OPENBLAS_CORETYPE": kernel,
            "OMP_NUM_THREADS": str(threads),
        }
        for kernel, threads in tried
    }


def recomputed(frame: pd.DataFrame, environment: Mapping[str, str]) -> dict[str, float]:
    """Run :func:`numbers` in a process that starts with these variables; an empty one is unset."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.parquet"
        frame[[name for name in COLUMNS if name in frame]].to_parquet(path)
        run = [sys.executable, "-m", "benchmarks.same_numbers", "--frame", str(path)]
        done = subprocess.run(
            run, env=process_environment(environment), cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def process_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with some variables set, and those that are empty unset."""
    every = {**os.environ, **variables}
    return {name: value for name, value in every.items() if value or name not in variables}


def differing(one: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    """Names of the numbers that are not the same."""
    names = dict.fromkeys([*one, *other])
    same = {name for name in names if name in one and name in other and _close(one[name], other[name])}
    return [name for name in names if name not in same]


def _close(x: float, y: float) -> bool:
    return (math.isnan(x) and math.isnan(y)) or math.isclose(x, y, rel_tol=DIGITS, abs_tol=1e-9)


def compared(
    frame: pd.DataFrame, environments: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, list[str], int]]:
    """Compare every environment with the first: its name, the numbers that differ, and how many there are."""
    first: dict[str, float] | None = None
    for name, environment in environments.items():
        found = recomputed(frame, environment)
        first = found if first is None else first
        yield name, [f"{each}: {first.get(each)} and {found.get(each)}" for each in differing(first, found)], len(found)


def main(
    frame: Annotated[Path | None, typer.Option(help="Print the numbers of this table instead.", hidden=True)] = None,
) -> None:
    """Recompute the numbers in every environment, and fail if one differs."""
    if frame is not None:
        print(json.dumps(numbers(pd.read_parquet(frame))))
        return
    with tempfile.TemporaryDirectory() as folder:
        stored = ResultStore(folder, packed=[EVIDENCE]).to_frame()
    grid = runpy.run_path(str(ROOT / "book" / "headline.py"))["grid"](stored)
    grid = grid[grid["source"].isna() | (grid["source"] != "random tokens")]
    failed = False
    for name, wrong, total in compared(grid, machines()):
        print(f"{name}: {total} numbers, {len(wrong)} differ")
        print("".join(f"  {line}\n" for line in wrong), end="")
        failed |= bool(wrong)
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
