"""``cola sweep``: a grid that is written down in a file, here or on a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_lib.cli.common import print_json, print_table
from cola_lib.cli.options import JsonOption, ProgressOption, output_option
from cola_lib.errors import ColaError, SpecError

if TYPE_CHECKING:
    import pandas as pd

    from cola_lib.experiments import Sweep, SweepResult

CELLS_FAILED = 1


def sweep(
    file: Annotated[Path, typer.Argument(help="The grid: examples are in notebooks/sweeps.", metavar="FILE")],
    *,
    engine: Annotated[
        str, typer.Option(help="local (this process) or ray (a cluster; needs the extra ray).", metavar="NAME")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="Of the Ray cluster, such as auto or ray://HOST:10001.",
            show_default="RAY_ADDRESS, or a cluster that is started here",
            metavar="ADDRESS",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many work at a time on the cluster.",
            show_default="as many as it has room for",
            metavar="N",
        ),
    ] = None,
    store: Annotated[
        str | None,
        output_option(
            help="Folder or fsspec URL of the results; the nodes of a cluster must all reach it.",
            show_default="the file's",
            metavar="URL",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the cells that there are and that are missing; compute none.")
    ] = False,
    progress: ProgressOption = True,
    as_json: JsonOption = False,
) -> None:
    """Evaluate models under calibration sets and methods: every cell of a grid, once."""
    from cola_lib.experiments.sweep import read_sweep

    asked = read_sweep(file, **({"store": store} if store is not None else {}))
    _check_sources(file, asked)
    from transformers.utils.logging import disable_progress_bar

    from cola_lib.experiments import look_at_sweep, run_sweep

    disable_progress_bar()
    if dry_run:
        _show_plan(asked, look_at_sweep(asked, progress=progress), as_json)
        return
    result = run_sweep(asked, engine=engine, address=address, workers=workers, progress=progress)
    _show_result(asked, result, as_json)
    for failure in result.failures:
        typer.echo(f"error: {failure}", err=True)
    if result.failures:
        raise typer.Exit(CELLS_FAILED)


def _sources(asked: Sweep) -> Iterator[tuple[str, str]]:
    """Every source that the sweep names, and under which key."""
    for each in asked.sources:
        source = each if isinstance(each, str | tuple) else each.source
        yield from ((name, "sources") for name in ([source] if isinstance(source, str) else source))
    yield from ((name, "strategies.pool") for name in (asked.strategies.pool if asked.strategies else ()))
    yield from ((name, f"targets.{target}") for target, names in asked.targets.items() for name in names)
    yield from ((name, f"evaluate.sources.{key}") for key, name in (asked.evaluate.sources or {}).items())


def _check_sources(file: Path, asked: Sweep) -> None:
    """Load the sources that need no hub, so that a wrong name is found before a model is loaded."""
    from cola_lib.data import load_samples
    from cola_lib.experiments import RANDOM_TOKENS

    for name, key in dict.fromkeys(_sources(asked)):
        if name == RANDOM_TOKENS:
            continue
        try:
            if not name.startswith("hf:"):
                load_samples(name, "evaluation" if key.startswith("evaluate.") else "calibration")
        except ColaError as error:
            raise SpecError(f"{file}: {key}: {error}") from error


def _show_plan(asked: Sweep, table: pd.DataFrame, as_json: bool) -> None:
    counts = {name: int(table[name].sum()) for name in ("cells", "stored", "missing")}
    if as_json:
        print_json({"store": asked.store, **counts, "sets": table.astype(object).to_dict("records")})
        return
    shown = table.astype(object).where(table.notna(), "-").astype(str)
    print_table(list(shown.columns), shown.to_numpy().tolist())
    typer.echo(
        f"\n{counts['cells']} cells: {counts['stored']} in {asked.store}, {counts['missing']} missing. What a strategy "
        "has not chosen yet counts as missing."
        if asked.strategies
        else f"\n{counts['cells']} cells: {counts['stored']} in {asked.store}, {counts['missing']} missing"
    )


def _show_result(asked: Sweep, result: SweepResult, as_json: bool) -> None:
    rows = _summary(result)
    counts = {"read": result.n_read, "computed": result.n_computed, "failed": len(result.failures)}
    if as_json:
        tasks = [dataclasses.asdict(each.task) | {"seconds": each.seconds} for each in result.tasks]
        told = {"store": asked.store, **counts, "seconds": round(result.seconds, 3), "failures": result.failures}
        print_json({**told, "bits_per_byte": rows, "tasks": tasks})
        return
    if rows:
        text = [[f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
        print_table(list(rows[0]), text)
        typer.echo("\nbits per byte of each capability, means over draws: lower is better")
    typer.echo(
        f"{counts['read']} cells read from {asked.store}, {counts['computed']} computed in {result.seconds:.0f} s"
        + (f", {counts['failed']} failed" if counts["failed"] else "")
    )


def _summary(result: SweepResult) -> list[dict[str, Any]]:
    """Bits per byte of every model, method and set, averaged over draws."""
    import numpy as np

    if not result.cells:
        return []
    frame = result.frame()
    frame["target"] = frame["target"] if "target" in frame else None
    names = ["model", "label", "source", "target", "n_samples", "seq_len"]
    frame[names] = frame[names].astype(object).where(frame[names].notna(), "-")
    sums = frame.groupby([*names, "draw", "capability"], sort=False, dropna=False)[["nll", "n_bytes"]].sum()
    bits = (sums["nll"] / np.log(2) / sums["n_bytes"]).groupby([*names, "capability"], sort=False).mean()
    table = bits.unstack("capability").reset_index().rename_axis(columns=None)
    own = {name: set(table[name]) - {"-"} for name in ("model", "target", "n_samples", "seq_len")}
    constant = [name for name, values in own.items() if len(values) < 2]
    return table.drop(columns=constant).to_dict("records")
