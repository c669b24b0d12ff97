"""Figures of shares: what a whole is made of."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LABELLED = 0.05
"""A part below this share of the whole has no room for its number."""

HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
"""Besides colours, so that parts can be told apart without them."""


def stacked_shares(table: pd.DataFrame, *, row: str, part: str, value: str, xlabel: str) -> Figure:
    """Draw one stacked bar per row, each part told apart by colour and hatching.

    Parameters
    ----------
    table : DataFrame
        Tidy: one row per bar and part; values are shares of the bar, drawn in per cent.
    row, part, value : str
        Columns: the bars, their parts, the shares.
    xlabel : str
        What the horizontal axis shows.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import stacked_shares
    >>> table = pd.DataFrame({"task": "math", "component": ["source", "method", "item"], "share": [0.2, 0.5, 0.3]})
    >>> figure = stacked_shares(table, row="task", part="component", value="share", xlabel="variance (%)")
    >>> len(figure.axes)
    1
    """
    wide = 100 * table.pivot(index=row, columns=part, values=value)
    figure, axis = _stacked(table, wide, row, part, xlabel)
    axis.set_xlim(0, 100)
    return figure


def stacked_bars(
    table: pd.DataFrame, *, row: str, part: str, value: str, xlabel: str, limit: float | None = None
) -> Figure:
    """Draw one stacked bar per row in the unit of the values, with a line at what must not be exceeded.

    Parameters
    ----------
    table : DataFrame
        Tidy: one row per bar and part.
    row, part, value : str
        Columns: the bars, their parts, how long each is.
    xlabel : str
        What the horizontal axis shows.
    limit : float, optional
        Where the line stands.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import stacked_bars
    >>> table = pd.DataFrame({"step": "walk", "part": ["states", "statistics"], "gigabytes": [2.0, 1.5]})
    >>> figure = stacked_bars(table, row="step", part="part", value="gigabytes", xlabel="memory (GB)", limit=4.0)
    >>> figure.axes[0].get_xlabel()
    'memory (GB)'
    """
    wide = table.pivot(index=row, columns=part, values=value).fillna(0.0)
    figure, axis = _stacked(table, wide, row, part, xlabel)
    longest = max(float(wide.sum(axis=1).max()), limit or 0.0)
    axis.set_xlim(0, 1.04 * longest)
    if limit is not None:
        axis.axvline(limit, color="0.15", linestyle="--", linewidth=1.5)
    return figure


def _stacked(table: pd.DataFrame, wide: pd.DataFrame, row: str, part: str, xlabel: str) -> tuple[Figure, Axes]:
    """Stack the columns of a table, with the length of each part where it has room."""
    wide = wide.reindex(index=list(dict.fromkeys(table[row])), columns=list(dict.fromkeys(table[part])))
    longest = float(wide.sum(axis=1).max())
    figure, axis = plt.subplots(figsize=(8, 0.5 * len(wide) + 1.4), layout="constrained")
    left = pd.Series(0.0, index=wide.index)
    colors = sns.color_palette("colorblind", wide.shape[1])
    for (name, widths), color, hatch in zip(wide.items(), colors, HATCHES, strict=False):
        bars = axis.barh(wide.index, widths, left=left, color=color, hatch=hatch, edgecolor="white", label=name)
        text = [f"{width:.0f}" if width >= longest * LABELLED else "" for width in widths]
        axis.bar_label(
            bars, text, label_type="center", fontsize=9, bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"}
        )
        left += widths
    axis.invert_yaxis()
    axis.set(xlabel=xlabel, ylabel="")
    axis.grid(axis="y", visible=False)
    axis.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), title="")
    return figure, axis
