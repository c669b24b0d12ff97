"""Time the library against the machine's limits and its peers: ``python -m benchmarks --help``, or ``make bench``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import commit, compress, evaluate, limits, scaling, selection, walk
from benchmarks.timing import Report, Row, facts
from cola_lib.calibration import calibration_set
from cola_lib.models import load_model

PARTS = ("limits", "walk", "compress", "evaluate", "select", "scaling", "gpu", "commit")


def show(rows: list[Row]) -> None:
    """Print a table: target met, ratio and range, target, share of the machine's best product, what against what."""
    for row in rows:
        of_best = "     " if row.share is None else f"{row.share:5.0%}"
        said = {None: "      ", True: "met   ", False: "MISSED"}[row.met]
        aim = "" if row.target is None else f"{'<=' if row.at_most else '>='} {row.target:g}"
        print(
            f"  {said} {row.ratio:7.2f} [{row.low:.2f}, {row.high:.2f}] {aim:8} {of_best} {row.what} : {row.against}"
            + (f"  ({row.note})" if row.note else "")
            + (f"\n{'':9}limited by {row.limited_by}" if row.met is False else "")
        )


def main(
    only: Annotated[list[str] | None, typer.Option(help="Parts to measure; all by default.", metavar="PART")] = None,
    model: Annotated[str, typer.Option(help="Embedded name, or folder.")] = "smollm2-135m",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="JSON file; parts that it holds already stay.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="Times that everything runs.")] = 3,
    n_samples: Annotated[int, typer.Option(help="Rows of the calibration set.")] = 32,
    seq_len: Annotated[int, typer.Option(help="Tokens of a row, for the walk; compression reads half as many.")] = 512,
    tokens: Annotated[int, typer.Option(help="Tokens evaluated of each capability.")] = 2048,
    method: Annotated[
        list[str] | None, typer.Option(help="Methods of part compress; all by default.", metavar="NAME")
    ] = None,
    pool: Annotated[int, typer.Option(help="Rows of the streamed pool.")] = 100_000,
    against: Annotated[
        str | None, typer.Option(help="Commit for part commit, which runs the same work with both.", metavar="REV")
    ] = None,
) -> None:
    """Measure, print, and keep."""
    there = {"gpu": torch.cuda.is_available(), "commit": against is not None}
    wanted = only or [part for part in PARTS if there.get(part, True)]
    for part in wanted:
        if part not in PARTS:
            raise typer.BadParameter(f"no part {part!r}; there are: {', '.join(PARTS)}")
    if unknown := set(method or ()) - set(compress.JOBS):
        raise typer.BadParameter(f"no method {unknown.pop()!r}; there are: {', '.join(compress.JOBS)}")
    if "commit" in wanted and against is None:
        raise typer.BadParameter("part 'commit' needs --against REV")
    report = Report.open(out)
    lm = load_model(model, device=device)

    def rows_of(length: int):
        return calibration_set(["c4"], lm.tokenizer, n_samples=n_samples, seq_len=length, seed=0)

    runs: dict[str, Callable[[], Any]] = {
        "limits": lambda: limits.measure(lm, rows_of(seq_len // 2), turns),
        "walk": lambda: walk.measure(lm, rows_of(seq_len), turns),
        "compress": lambda: compress.measure(lm, rows_of(seq_len // 2), turns, methods=method),
        "evaluate": lambda: evaluate.measure(lm, tokens, turns),
        "select": lambda: selection.measure(lm, 3 * n_samples // 2, seq_len // 2, pool, turns),
        "scaling": lambda: scaling.measure(min(turns, 2)),
        "gpu": _gpu,
        "commit": lambda: commit.measure(against or "", model, device, tokens, n_samples // 2, seq_len // 2, turns),
    }
    for part in wanted:
        about = facts(lm)
        print(f"{part}:", flush=True)
        found: list[Row] = []
        for rows, series in pieces(runs[part]()):
            found += rows
            report.put(part, about, found, series, add=part == "compress" and bool(method))
            show(rows)
    missed = [row for row in report.rows if row.met is False]
    aimed = [row for row in report.rows if row.met is not None]
    print(f"{len(aimed) - len(missed)} of {len(aimed)} targets met" + (f"; kept in {out}" if out else ""))


def pieces(found: Any) -> Iterator[tuple[list[Row], list[dict[str, Any]]]]:
    """What a part gives: its rows at once, with the points of its curves, or bit by bit."""
    if isinstance(found, tuple):
        yield found
    elif isinstance(found, list):
        yield found, []
    else:
        for rows in found:
            yield rows, []


def _gpu() -> list[Row]:
    from benchmarks import gpu

    if not torch.cuda.is_available():
        raise typer.BadParameter("part 'gpu' needs an NVIDIA GPU, and torch sees none")
    rows, _ = gpu.measure()
    return rows


if __name__ == "__main__":
    typer.run(main)
