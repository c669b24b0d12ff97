"""Figures to choose in, to point at and to read with a keyboard, which need no network and no Python.

They are data in a page; ``interactive.js`` draws them there with Plotly. The book holds one copy of both scripts for
all of its pages (:mod:`cola_lib.pages`), and :meth:`InteractiveFigure.save` writes a page that stands alone.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from cola_lib.errors import DataError, OutputError, SpecError
from cola_lib.figures.style import in_order

CLASS = "cola-figure"
"""Class of the element that holds a figure: a page with it needs the scripts."""

SCRIPTS, STYLES = ("plotly.min.js", "interactive.js"), ("interactive.css",)
"""Files that a page with such a figure loads, in this order."""

MISSING = "<p class='cola-without-script'>This figure needs the scripts of the book.</p>"


def read_asset(name: str) -> str:
    """Text of one of :data:`SCRIPTS` and :data:`STYLES`."""
    package = "plotly" if name.startswith("plotly") else "cola_lib"
    try:
        folder = files(package)
    except ModuleNotFoundError as error:
        raise DataError("interactive figures need plotly's script: pip install plotly") from error
    return folder.joinpath("package_data" if package == "plotly" else "figures", name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Column:
    """A column of an interactive figure's table."""

    name: str
    label: str = ""
    hover: bool = False
    digits: int | None = None


@dataclass(frozen=True)
class InteractiveFigure:
    """A figure as data, which a notebook shows as HTML."""

    content: Mapping[str, Any]

    def _repr_html_(self) -> str:
        # "</" would end the script element early
        data = json.dumps(self.content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
            "</", "<\\/"
        )
        label = html.escape(self.content["label"], quote=True)
        return (
            f'<section class="{CLASS}" id="{self.content["name"]}" aria-label="{label}">'
            f'<script type="application/json">{data}</script>{MISSING}</section>'
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.content['label']!r}, {len(self.content['rows'])} marks)"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a page that holds the figure and everything it needs, 5 MB of script included."""
        styles = "".join(f"<style>{read_asset(name)}</style>" for name in STYLES)
        scripts = "".join(f"<script>{read_asset(name)}</script>" for name in SCRIPTS)
        title = html.escape(self.content["label"])
        page = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
            f'content="width=device-width, initial-scale=1"><title>{title}</title>{styles}</head>'
            f'<body style="font-family:sans-serif;max-width:60rem;margin:auto;padding:1rem"><main><h1>{title}</h1>'
            f"{self._repr_html_()}</main>{scripts}</body></html>"
        )
        try:
            Path(path).write_text(page, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path}: the figure could not be written ({error})") from error


def interval_explorer(
    table: pd.DataFrame,
    *,
    name: str,
    label: str,
    choose: Mapping[str, str],
    single: Sequence[str],
    by: Sequence[str],
    hue: str,
    reference: Mapping[str, float] | None = None,
    cells: str | None = None,
) -> InteractiveFigure:
    """Show estimates with their intervals, and let the reader choose which.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per estimate: ``value``, ``low`` and ``high`` in the unit of the picture, ``measure`` with that unit
        (the title of the axis), and the columns named below. The order of rows is that of the picture.
    name : str
        Name of the figure in its page, and of the file it is saved as: lower-case letters, digits and dashes.
    label : str
        What it shows, in a sentence.
    choose : mapping of str to str
        Columns to choose by and what each choice is called. A choice offers what those before it leave.
    single : sequence of str
        Those of them of which one value is shown at a time; the others can show all.
    by : sequence of str
        Columns that name a row of the picture. One that does not vary among what is shown is left out of the name.
    hue : str
        Column of methods' labels, which colour and shape tell apart.
    reference : mapping of str to float, optional
        For each measure, where a dashed line stands.
    cells : str, optional
        Column with the cells behind an estimate: a list of (draw, fingerprint, value alone).

    Returns
    -------
    InteractiveFigure

    Raises
    ------
    DataError
        If a column is missing, or there is nothing to show.
    SpecError
        If the name is none, or a single choice is none of the choices.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import interval_explorer
    >>> row = {"measure": "kept (%)", "label": "wanda 50%", "source": "c4", "value": 80.0, "low": 75.0, "high": 85.0}
    >>> interval_explorer(
    ...     pd.DataFrame([row]), name="kept", label="What is kept", choose={"measure": "Measure"}, single=["measure"],
    ...     by=["source"], hue="label",
    ... )
    InteractiveFigure('What is kept', 1 marks)
    """
    ends = [Column("value", "value", True, 1), Column("low", "95 % from", True, 1), Column("high", "95 % to", True, 1)]
    labels = {column: str(text).lower() for column, text in choose.items()}
    named = [Column(column, labels.get(column, column), True) for column in dict.fromkeys([*choose, *by, hue])]
    counts = [Column(column, text, True) for column, text in COUNTS.items() if column in table]
    columns = [*named, *ends, *counts, *([Column(cells, "cells")] if cells else [])]
    unknown = [column for column in single if column not in choose]
    if unknown:
        raise SpecError(f"single choice {unknown[0]!r} is not one of the choices {', '.join(choose)}")
    return _figure(
        table,
        columns,
        kind="intervals",
        name=name,
        label=label,
        choose=[{"column": column, "label": text, "all": column not in single} for column, text in choose.items()],
        by=list(by),
        hue=hue,
        hues=in_order(table[hue].tolist()) if hue in table else [],
        reference=dict(reference or {}),
        cells=cells,
    )


COUNTS = {"n_draws": "draws", "n_items": "items"}
"""What an estimate rests on, and how it is called."""


def interactive_map(points: pd.DataFrame, *, name: str, label: str) -> InteractiveFigure:
    """Show candidates in a plane: which were picked, and the text of each.

    Parameters
    ----------
    points : pandas.DataFrame
        As for :func:`~cola_lib.figures.activation_map`, and ``text``.
    name, label : str
        As in :func:`interval_explorer`.

    Returns
    -------
    InteractiveFigure

    Raises
    ------
    DataError
        If a column is missing, or there is nothing to show.
    SpecError
        If the name is none.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import interactive_map
    >>> points = pd.DataFrame({"source": ["c4"], "picked": [True], "x": [0.1], "y": [0.2], "text": ["A text."]})
    >>> interactive_map(points, name="pool", label="The pool")
    InteractiveFigure('The pool', 1 marks)
    """
    if "picked" in points:
        points = points.assign(picked=points["picked"].map({True: "yes", False: "no"}))
    return _figure(
        points,
        [
            Column("source", "source", True),
            Column("picked", "picked", True),
            Column("x", "first component", digits=3),
            Column("y", "second component", digits=3),
            Column("text", "text", True),
        ],
        kind="map",
        name=name,
        label=label,
        choose=[
            {"column": "source", "label": "Source", "all": True},
            {"column": "picked", "label": "Picked", "all": True},
        ],
        hue="source",
        picked="picked",
        xlabel="first principal component",
        ylabel="second principal component",
        cells=None,
    )


def _figure(table: pd.DataFrame, columns: Sequence[Column], *, name: str, **content: Any) -> InteractiveFigure:
    """Write a table as plain data."""
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise SpecError(f"figure name {name!r}: it becomes part of a page; use lower-case letters, digits and dashes")
    wanted = [column.name for column in columns]
    if content["kind"] == "intervals":
        wanted = list(dict.fromkeys([*wanted, "measure"]))
    missing = [column for column in wanted if column not in table]
    if missing:
        raise DataError(f"figure {name}: the table has no column {missing[0]!r}; it has {', '.join(map(str, table))}")
    if table.empty:
        raise DataError(f"figure {name}: the table is empty, so there is nothing to show")
    rows = [[_plain(value) for value in row] for row in table[wanted].itertuples(index=False, name=None)]
    described = {column.name: column for column in columns}
    return InteractiveFigure(
        {
            "name": name,
            **content,
            "columns": [_column(described.get(column, Column(column))) for column in wanted],
            "rows": rows,
        }
    )


def _column(column: Column) -> dict[str, Any]:
    shown = {"name": column.name, "label": column.label, "hover": column.hover}
    return shown if column.digits is None else {**shown, "digits": column.digits}


def _plain(value: Any) -> Any:
    """Reduce a value to what JSON can hold."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return float(f"{value:.6g}") if isinstance(value, float) else value
