"""What several commands do."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cola_lib.errors import OutputError, SpecError, UnknownNameError

if TYPE_CHECKING:
    from cola_lib.models import LanguageModel


def load(model: str, *, device: str, dtype: str, stream: bool = False, scratch: Path | None = None) -> LanguageModel:
    """Load a model without a bar for each of its files."""
    from transformers.utils.logging import disable_progress_bar

    from cola_lib.models import load_model

    disable_progress_bar()  # a bar for each file that is read would stand between those that matter
    return load_model(model, device=device, dtype=dtype, stream=stream, scratch=scratch)


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that is not ``known``."""
    if name not in known:
        raise UnknownNameError(kind, name, known)


def print_json(value: Any) -> None:
    """Print to standard output."""
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns; those of numbers are right-aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    number = [all(row[i][:1].isdigit() or row[i] == "-" for row in rows) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, number, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def check_file(out: Path, *, overwrite: bool) -> None:
    """Refuse an output file that exists, before any work is done."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder; give the name of a file")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give --overwrite to replace it, or another --out")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file, so {out} cannot be below it")


def check_sources(names: Sequence[str]) -> None:
    """Load the sources that need no hub, so that a wrong name is found before the model is loaded."""
    from cola_lib.data import load_samples

    for name in names:
        if not name.startswith("hf:"):
            load_samples(name, "calibration")


def read_pairs(given: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs."""
    from cola_lib.plain import read_yaml

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(f"--option is written NAME=VALUE, not {text!r}")
        try:
            options[name.strip().replace("-", "_")] = read_yaml(value)
        except ValueError as error:
            raise SpecError(f"--option {name}: {error}") from error
    return options
