"""Dots with their intervals: what is left, what is gained, and where it was meant to be gained."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cola_lib.figures.layout import panels
from cola_lib.figures.style import MARKERS, in_order

SPREAD = 0.7
"""Part of a row's height that its dots share."""

LEGEND_COLUMNS = 4
"""Entries beside one another in a legend."""


def interval_dots(
    table: pd.DataFrame,
    *,
    row: str,
    xlabel: str,
    facet: str | None = None,
    hue: str | None = None,
    matched: str | None = None,
    reference: float | None = 1.0,
    title: str | None = None,
) -> Figure:
    """Draw a dot with its interval for each row, or one for each hue within a row, in one panel per facet.

    Parameters
    ----------
    table : DataFrame
        Columns ``row``, ``facet``, ``value``, ``low`` and ``high``; values are shares, drawn in per cent.
    row : str
        Column whose values become the rows.
    xlabel : str
        What the horizontal axis shows.
    facet : str, optional
        Column whose values become the panels. Default: one panel.
    hue : str, optional
        Column of the dots within a row, told apart by colour and shape. Without it, every row has its own look.
    matched : str, optional
        Column of bool: whether a dot is where its data were made for. Those are filled and on a grey band, the others
        hollow.
    reference : float or None
        Where a vertical line is drawn: 1 is nothing lost, 0 nothing gained.
    title : str, optional
        The sentence that the figure shows.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import interval_dots
    >>> table = pd.DataFrame(
    ...     {
    ...         "source": ["c4", "code"] * 2,
    ...         "label": ["wanda 50%"] * 2 + ["gptq 3-bit"] * 2,
    ...         "capability": "math",
    ...         "value": [0.80, 0.75, 0.92, 0.90],
    ...     }
    ... )
    >>> table = table.assign(low=table["value"] - 0.03, high=table["value"] + 0.03)
    >>> figure = interval_dots(table, row="source", facet="label", xlabel="retained (%)")
    >>> len(figure.axes)
    2
    """
    facets = list(dict.fromkeys(table[facet])) if facet else [""]
    rows = in_order(table[row]) if row == "label" else list(dict.fromkeys(table[row]))
    looks = in_order(table[hue].unique()) if hue else rows
    colors = dict(zip(looks, sns.color_palette("colorblind", len(looks)), strict=True))
    per_row = max(0.3, 0.17 * len(looks) + 0.12) if hue else 0.3
    # Dots of several hues lie close together: wider panels keep their intervals apart.
    width = 2.3 if hue else 1.9
    if len(facets) == 1:
        width *= 2
    figure, axes = panels(len(facets), width=width, height=per_row * len(rows) + 0.5, margins=(1.7, 0.5))
    for axis, name in zip(axes, facets, strict=True):
        part = table[table[facet] == name] if facet else table
        if matched:
            for one in part.loc[part[matched], row].unique():
                axis.axhspan(rows.index(one) - 0.5, rows.index(one) + 0.5, color="0.92", zorder=0)
        for entry in part.to_dict("records"):
            look = entry[hue or row]
            n, color = looks.index(look), colors[look]
            shift = SPREAD * ((n + 0.5) / len(looks) - 0.5) if hue else 0.0
            y = rows.index(entry[row]) + shift
            fill = color if matched is None or entry[matched] else "white"
            axis.plot([100 * entry["low"], 100 * entry["high"]], [y, y], color=color, linewidth=1.5)
            marker = MARKERS[n % len(MARKERS)]
            axis.plot(100 * entry["value"], y, marker, color=color, markerfacecolor=fill, markersize=6)
        if reference is not None:
            axis.axvline(100 * reference, color="0.35", linewidth=1, linestyle="--")
        axis.set_title(name)
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    if hue:
        _legend(figure, looks, colors, matched=matched is not None)
    figure.supxlabel(xlabel, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    return figure


def _legend(figure: Figure, looks: Sequence[str], colors: dict[str, tuple], *, matched: bool) -> None:
    marks = [
        Line2D([], [], color=colors[name], marker=MARKERS[n % len(MARKERS)], label=name) for n, name in enumerate(looks)
    ]
    if matched:
        marks += [
            Line2D([], [], color="0.35", marker="o", linestyle="", markerfacecolor=fill, label=label)
            for fill, label in (("0.35", "on target (grey band)"), ("white", "off target"))
        ]
    figure.legend(handles=marks, loc="outside upper center", ncols=min(len(marks), LEGEND_COLUMNS), fontsize=9)
