"""``cola notebook``, ``cola claims`` and ``cola pack``: the book and its evidence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cola_lib.cli.app import NOTEBOOK_FAILED, fail
from cola_lib.cli.common import print_json, print_table
from cola_lib.cli.options import JsonOption, ProgressOption, output_option
from cola_lib.errors import OutputError

FINDINGS = ("evidence", "results")


def notebook(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Notebooks by name, such as 02_data_source; all of the profile's if none."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="A parameter, read as YAML; may be repeated.", metavar="NAME=VALUE"),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Take parameters from notebooks/profiles/NAME.yml.", metavar="NAME")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the executed notebooks.")] = Path("book/executed"),
    folder: Annotated[Path, typer.Option("--notebooks", help="Folder of the source notebooks.")] = Path("notebooks"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Read no packed results, whatever the profile names.")] = False,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time; they share the cores.", min=1)] = 1,
    progress: ProgressOption = False,
) -> None:
    """Execute notebooks of the book, with parameters of your choice."""
    from cola_lib import book

    chosen = book.read_profile(profile, folder / "profiles") if profile else None
    runs = book.plan(
        names or [],
        folder=folder,
        out=out,
        profile=chosen,
        overrides=book.parse_overrides(parameter or []),
        fresh=fresh,
    )
    numbers = {run.name: f"[{number}/{len(runs)}] {run.name}" for number, run in enumerate(runs, start=1)}
    try:
        for run, seconds in book.run_notebooks(runs, jobs=jobs, progress=progress):
            typer.echo(f"{numbers[run.name]}{' ...' if seconds is None else f': {seconds:.0f} s, {run.out}'}", err=True)
    except book.ExecutionError as error:
        typer.echo(error.traceback, err=True)
        fail(str(error), NOTEBOOK_FAILED)


def claims(
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Folder, or for --chapters an fsspec URL. Default: evidence, which a repository holds, or "
            "else results, which make book fills.",
            metavar="URL",
        ),
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="One row for every part of a claim.")] = False,
    chapters: Annotated[
        bool, typer.Option("--chapters", help="The findings of the chapters instead, which are exploratory.")
    ] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="Also write the scorecard into this Markdown page, where it marks the place.", metavar="FILE"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the scorecard: for each claim of the paper one number with a 95 % interval, verdict and generality."""
    from cola_lib.analysis import part_table, primary_markdown, primary_table, scorecard, scorecard_parts
    from cola_lib.verdicts import has_cells, has_findings, recorded, stages, with_scorecard

    if chapters:
        store = store or next(filter(has_findings, FINDINGS), FINDINGS[-1])
        findings = [finding for found in recorded(store).values() for finding in found]
        typer.echo(f"findings in {store}", err=True)
        table = scorecard_parts(findings) if parts else scorecard(findings)
        records = [finding.to_dict() for finding in findings] if parts else table.to_dict("records")
        columns = ["claim", *(["part"] if parts else ["title", "paper"]), "says", "ours", "verdict"]
    else:
        store = store or next(filter(has_cells, FINDINGS), FINDINGS[-1])
        numbers, missing = stages(store)
        for stage, reasons in missing.items():
            if reasons and not parts:
                names = ", ".join(f"P{claim[1:]}" for claim in reasons)
                typer.echo(f"{stage}: no number yet for {names}; --parts says what they lack", err=True)
            for claim, reason in reasons.items() if parts else ():
                typer.echo(f"{stage}: P{claim[1:]} has no number: {reason}", err=True)
        if into is not None:
            _write_into(into, lambda page: with_scorecard(page, primary_markdown(numbers)))
        table = part_table(numbers) if parts else primary_table(numbers)
        records = table.to_dict("records")
        about = (
            ["part", "number", "differs"]
            if parts
            else ["number", "parts", "recovered", "verdict", "generality", "draws"]
        )
        columns = ["claim", *([] if parts else ["title"]), "stage", *about]
    if as_json:
        print_json(records)
        return
    print_table(columns, table[columns].astype(str).to_numpy().tolist())


def _write_into(path: Path, change: Callable[[str], str]) -> None:
    """Change a page in its place."""
    try:
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"cannot write the scorecard into {path}: {error}") from error


def pack(
    out: Annotated[Path, output_option(help="Folder that gets cells.parquet and findings.")],
    store: Annotated[
        str, typer.Option("--store", help="Folder or fsspec URL of the results.", metavar="URL")
    ] = "results",
) -> None:
    """Put stored results into one small file, with what the notebooks found beside it, added to what is there."""
    from cola_lib.experiments import ResultStore
    from cola_lib.verdicts import has_findings, record, recorded

    out.mkdir(parents=True, exist_ok=True)
    file = out / "cells.parquet"
    cells = ResultStore(store, packed=[file] if file.exists() else [])
    current = [cell.key for cell in cells if not cell.key.outdated]
    n_outdated = len(cells) - len(current)
    n_cells = cells.pack(file, current)
    findings = recorded(store) if has_findings(store) else {}  # a sweep computes cells alone
    for notebook, found in findings.items():
        record(out, notebook, found)
    left_out = f"; {n_outdated} left out, whose algorithms have changed since" if n_outdated else ""
    typer.echo(f"{n_cells} cells, {file.stat().st_size / 1e6:.1f} MB: {file}{left_out}")
    typer.echo(f"findings of {len(findings)} notebooks: {out / 'findings'}")
