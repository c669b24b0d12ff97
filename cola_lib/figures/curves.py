"""Figures of scores along a quantity: amounts, lengths."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cola_lib.figures.style import MARKERS

LINES = ("-", "--", ":", "-.")

DODGE = 0.04
"""Shift between the lines, as a share of the axis, so that their intervals do not cover one another."""


def interval_curves(
    table: pd.DataFrame,
    *,
    x: str,
    hue: str,
    column: str,
    xlabel: str,
    ylabel: str,
    row: str | None = None,
    order: Sequence[str] | None = None,
) -> Figure:
    """Draw one line per hue with its intervals, told apart by colour, marker and dash.

    Parameters
    ----------
    table : DataFrame
        Columns ``x`` (positive numbers), ``hue``, ``column``, ``value``, ``low`` and ``high``; values are shares,
        drawn in per cent.
    x, hue, column : str
        Columns: the quantity, on a logarithmic axis with a tick at each of its values; the lines; the panels from
        left to right.
    xlabel, ylabel : str
        Of the axes.
    row : str, optional
        Column of the panels from top to bottom.
    order : sequence of str, optional
        Of the hues.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import interval_curves
    >>> table = pd.DataFrame({"n": [8, 32] * 2, "label": ["wanda"] * 2 + ["gptq"] * 2, "capability": "math"})
    >>> table["value"] = [0.7, 0.8, 0.85, 0.9]
    >>> table = table.assign(low=table["value"] - 0.03, high=table["value"] + 0.03)
    >>> figure = interval_curves(
    ...     table, x="n", hue="label", column="capability", xlabel="samples", ylabel="retained (%)"
    ... )
    >>> len(figure.axes)
    1
    """
    columns = list(dict.fromkeys(table[column]))
    rows = list(dict.fromkeys(table[row])) if row else [None]
    hues = list(order or dict.fromkeys(table[hue]))
    points = sorted(table[x].unique())
    span = np.log(points[-1] / points[0]) if len(points) > 1 else 1.0
    figure, grid = plt.subplots(
        len(rows),
        len(columns),
        figsize=(2.5 * len(columns) + 1.6, 2.5 * len(rows) + 0.6),
        sharex=True,
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    for axes, below in zip(grid, rows, strict=True):
        for axis, name in zip(axes, columns, strict=True):
            part = table[(table[column] == name) & (True if row is None else table[row] == below)]
            for i, (one, color) in enumerate(zip(hues, sns.color_palette("colorblind", len(hues)), strict=True)):
                own = part[part[hue] == one].sort_values(x)
                shifted = own[x] * np.exp(span * DODGE * (i - (len(hues) - 1) / 2))
                value, low, high = (100 * own[end].to_numpy() for end in ("value", "low", "high"))
                axis.errorbar(
                    shifted,
                    value,
                    yerr=[value - low, high - value],
                    color=color,
                    marker=MARKERS[i % len(MARKERS)],
                    linestyle=LINES[i % len(LINES)],
                    linewidth=1.5,
                    elinewidth=1,
                    label=one,
                )
            axis.set_xscale("log")
            axis.set_xticks(points, [f"{point:g}" for point in points], fontsize=8)
            axis.minorticks_off()
            axis.set_title(name if below is None else f"{name}\n{below}", fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    return figure
