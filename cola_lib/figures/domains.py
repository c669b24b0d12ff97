"""Figures of matching calibration to use: calibrated-on × evaluated-on matrices."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cola_lib.figures.layout import INCHES_OF_LETTER, panels
from cola_lib.figures.style import in_order

LEAST_LIMIT = 2.0
"""End of a diverging scale in per cent, or further out: a matrix of trifles stays pale."""

PAGE = 6.0
"""Width in inches that two panels side by side may take."""


def matched_heatmap(
    table: pd.DataFrame, *, row: str, column: str, facet: str, xlabel: str, ylabel: str, label: str
) -> Figure:
    """Draw a matrix per facet on one diverging scale around zero, with the matched fields outlined.

    Parameters
    ----------
    table : DataFrame
        Columns ``row``, ``column``, ``facet`` and ``value``; values are shares, drawn in per cent.
    row, column, facet : str
        Columns whose values become the rows, the columns and the panels.
    xlabel, ylabel, label : str
        Of the axes and of the colour bar.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import matched_heatmap
    >>> table = pd.DataFrame({"source": ["de", "de", "fr", "fr"], "target": ["de", "fr"] * 2, "label": "wanda 50%"})
    >>> table["value"] = [0.05, -0.01, -0.02, 0.04]
    >>> figure = matched_heatmap(
    ...     table, row="source", column="target", facet="label", xlabel="scored", ylabel="calibrated", label="gain (%)"
    ... )
    >>> len(figure.axes)
    2
    """
    facets = in_order(table[facet].unique())
    rows, columns = (list(dict.fromkeys(table[name])) for name in (row, column))
    width = max(0.62, INCHES_OF_LETTER * max(len(name) for name in columns)) * len(columns)
    size = {"width": max(width, 1.8), "height": max(0.42 * len(rows) + 0.5, 1.6)}
    figure, axes = panels(len(facets), across=2 if 2 * width < PAGE else 1, margins=(2.0, 0.5), **size)
    limit = max(100 * table["value"].abs().max(), LEAST_LIMIT)
    for axis, name in zip(axes, facets, strict=True):
        values = table[table[facet] == name].pivot(index=row, columns=column, values="value")
        sns.heatmap(
            100 * values.reindex(index=rows, columns=columns),
            annot=True,
            fmt="+.1f",
            vmin=-limit,
            vmax=limit,
            cmap="RdBu",  # red against blue: told apart with any colour vision
            cbar=False,
            linewidths=0.5,
            annot_kws={"fontsize": 9},
            ax=axis,
        )
        _outline_matches(axis, rows, columns)
        axis.set(title=name, xlabel="", ylabel="")
        axis.tick_params(axis="y", rotation=0)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    figure.colorbar(axes[0].collections[0], ax=axes, label=label, shrink=0.9)
    return figure


def _outline_matches(axis: Axes, rows: list[str], columns: list[str]) -> None:
    """Frame the fields whose row and column have one name."""
    for y, name in enumerate(rows):
        if name in columns:
            field = Rectangle((columns.index(name), y), 1, 1, fill=False, edgecolor="black", linewidth=2, clip_on=False)
            axis.add_patch(field)
