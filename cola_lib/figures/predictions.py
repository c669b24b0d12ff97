"""Figures of what calibration sets look like inside the model, and of how well that foretells the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cola_lib.figures.layout import ACROSS, panels
from cola_lib.figures.style import MARKERS

MARKED = 6
"""Markers on a line with many points: enough to tell it from its neighbours."""


def _looks(names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Colour and marker of each name."""
    colors = sns.color_palette("colorblind", max(len(names), 1))
    return {name: (colors[i], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def _legend(figure: Figure, looks: Mapping[str, tuple[Any, str]], linestyle: Any) -> None:
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle=linestyle, label=name, markersize=6)
        for name, (color, marker) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)), fontsize=9)


def depth_profiles(
    table: pd.DataFrame, *, y: str, hue: str, facet: str, ylabel: str, x: str = "block", xlabel: str = "block"
) -> Figure:
    """Draw a line over the model's depth for each hue, one panel per facet, with a band over draws.

    Parameters
    ----------
    table : DataFrame
        Tidy: one row per ``x``, ``hue``, ``facet`` and draw.
    y, hue, facet, x : str
        Columns.
    ylabel, xlabel : str
        Of the axes.

    Returns
    -------
    Figure
        Lines are means over draws, bands reach from the lowest draw to the highest.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import depth_profiles
    >>> table = pd.DataFrame({"block": [0, 1] * 2, "source": ["c4"] * 2 + ["code"] * 2, "draw": 0, "group": "mlp_in"})
    >>> table["value"] = [1.0, 2.0, 1.5, 2.5]
    >>> figure = depth_profiles(table, y="value", hue="source", facet="group", ylabel="effective rank")
    >>> len(figure.axes)
    1
    """
    facets, looks = list(dict.fromkeys(table[facet])), _looks(list(dict.fromkeys(table[hue])))
    figure, axes = panels(len(facets), width=2.5, height=2.2, margins=(0.8, 0.8))
    for axis, name in zip(axes, facets, strict=True):
        for i, (source, (color, marker)) in enumerate(looks.items()):
            part = table[(table[facet] == name) & (table[hue] == source)].groupby(x)[y].agg(["mean", "min", "max"])
            every = max(1, len(part) // MARKED)
            axis.plot(
                part.index,
                part["mean"],
                color=color,
                marker=marker,
                markevery=(i % every, every),  # no two lines are marked at the same places
                markersize=5,
                linewidth=1.5,
            )
            axis.fill_between(part.index, part["min"], part["max"], color=color, alpha=0.2, linewidth=0)
        axis.set_title(str(name))
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    _legend(figure, looks, "-")
    return figure


def scaled_heatmaps(
    tables: Mapping[str, pd.DataFrame], *, lower_is_better: Sequence[str] = (), fmt: str = ".3g", across: int = 2
) -> Figure:
    """Draw one annotated matrix per panel, each coloured on its own scale, light where it is best.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Title → matrix, all with the same rows and columns.
    lower_is_better : sequence of str
        Titles whose colours run the other way.
    fmt : str
        Format of the numbers in the fields.
    across : int
        Panels beside one another.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import scaled_heatmaps
    >>> matrix = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], index=["c4", "code"], columns=["math", "code"])
    >>> figure = scaled_heatmaps({"coverage": matrix, "mmd": 1 - matrix}, lower_is_better=["mmd"])
    >>> len(figure.axes)
    2
    """
    n_rows, n_columns = next(iter(tables.values())).shape
    size = {"width": 0.7 * n_columns + 0.2, "height": 0.32 * n_rows + 0.5}
    figure, axes = panels(len(tables), across=across, margins=(1.6, 0.4), **size)
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        sns.heatmap(
            table,
            annot=True,
            fmt=fmt,
            cmap="viridis_r" if title in lower_is_better else "viridis",
            cbar=False,
            linewidths=0.5,
            ax=axis,
            annot_kws={"fontsize": 9},
        )
        axis.set(title=title, xlabel="", ylabel="")
        axis.tick_params(axis="y", rotation=0)
        axis.tick_params(axis="x", rotation=0, labelsize=8)
    return figure


def correlation_forest(
    table: pd.DataFrame,
    *,
    row: str,
    facet: str,
    xlabel: str,
    hue: str | None = None,
    reference: float = 0.0,
) -> Figure:
    """Draw correlations with their intervals, one panel per facet.

    Parameters
    ----------
    table : DataFrame
        Columns ``row``, ``facet``, ``value``, ``low`` and ``high``. A missing value is drawn as its interval alone.
    row, facet : str
        Columns whose values become the rows and the panels.
    xlabel : str
        What the horizontal axis shows.
    hue : str, optional
        Column, with one value per row, whose values get a colour and a marker. Default: the facet.
    reference : float
        Where a dashed line marks what an interval has to be above; no correlation is always marked.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import correlation_forest
    >>> table = pd.DataFrame({"predictor": ["coverage", "mmd"], "capability": "math", "value": [0.6, 0.3]})
    >>> table = table.assign(low=table["value"] - 0.2, high=table["value"] + 0.2)
    >>> figure = correlation_forest(table, row="predictor", facet="capability", xlabel="rank correlation")
    >>> len(figure.axes)
    1
    """
    rows, facets = (list(dict.fromkeys(table[name])) for name in (row, facet))
    hue = hue or facet
    looks = _looks(list(dict.fromkeys(table[hue])))
    figure, axes = panels(len(facets), width=2.2, height=0.27 * len(rows) + 0.6, margins=(1.8, 0.6))
    for axis, name in zip(axes, facets, strict=True):
        axis.axvline(0.0, color="0.6", linewidth=1)
        if reference:
            axis.axvline(reference, color="0.35", linewidth=1, linestyle="--")
        for entry in table[table[facet] == name].to_dict("records"):
            color, marker = looks[entry[hue]]
            y = rows.index(entry[row])
            axis.plot([entry["low"], entry["high"]], [y, y], color=color, linewidth=2)
            if np.isfinite(entry["value"]):
                axis.plot(entry["value"], y, marker, color=color, markersize=7)
        axis.set_title(str(name))
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[0].set_xlim(-1.05, 1.05)
    figure.supxlabel(xlabel, fontsize=10)
    if hue != facet:
        _legend(figure, looks, "-")
    return figure


def agreement_scatter(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str,
    column: str,
    xlabel: str,
    ylabel: str,
    row: str | None = None,
    share: bool = False,
) -> Figure:
    """Draw one point per cell, told apart by colour and marker, in a grid of panels.

    Parameters
    ----------
    table : DataFrame
        Tidy.
    x, y, hue, column : str
        Columns.
    xlabel, ylabel : str
        Of the axes.
    row : str, optional
        Column whose values become rows of panels.
    share : bool
        Whether all panels have the same axes.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import agreement_scatter
    >>> table = pd.DataFrame({"proxy": [0.1, 0.2], "loss": [0.05, 0.08], "source": ["c4", "code"], "task": "math"})
    >>> figure = agreement_scatter(
    ...     table, x="proxy", y="loss", hue="source", column="task", xlabel="proxy", ylabel="loss"
    ... )
    >>> len(figure.axes)
    1
    """
    columns = list(dict.fromkeys(table[column]))
    rows = list(dict.fromkeys(table[row])) if row else [None]
    looks = _looks(list(dict.fromkeys(table[hue])))
    figure, grid = plt.subplots(
        len(rows),
        len(columns),
        figsize=((1.9 if len(columns) <= ACROSS else 1.6) * len(columns) + 1.2, 1.75 * len(rows) + 1.0),
        sharex=share,
        sharey=share,
        squeeze=False,
        layout="constrained",
    )
    for i, row_name in enumerate(rows):
        for j, name in enumerate(columns):
            axis = grid[i, j]
            part = table[table[column] == name]
            part = part if row is None else part[part[row] == row_name]
            for source, (color, marker) in looks.items():
                one = part[part[hue] == source]
                axis.plot(one[x], one[y], marker, color=color, markersize=6, alpha=0.85)
            axis.tick_params(labelsize=8)
            axis.locator_params(nbins=4)
            if i == 0:
                axis.set_title(str(name))
            if j == len(columns) - 1 and row_name is not None:
                axis.annotate(
                    str(row_name), (1.04, 0.5), xycoords="axes fraction", rotation=270, va="center", fontsize=10
                )
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    _legend(figure, looks, "")
    return figure
