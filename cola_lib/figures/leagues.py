"""Many competitors in one picture."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NAME_SIZE = 8.0
"""Of names in a plot, in points."""

WIDTH_OF_A_LETTER = 0.62
"""Of the size, on average, rounded up."""


def critical_difference(table: pd.DataFrame, critical: float, *, row: str = "source") -> Figure:
    """Draw mean ranks with their intervals, and bars that join what is not told apart.

    Parameters
    ----------
    table : pandas.DataFrame
        Best first: column ``row``, ``rank``, ``low`` and ``high``.
    critical : float
        Ranks that differ by less are joined.
    row : str
        Column with the competitors' names.

    Returns
    -------
    Figure
        Rank 1, the best, on the left. A grey bar spans competitors of which no two are told apart.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import critical_difference
    >>> table = pd.DataFrame({"source": ["cola", "zipcal", "random"], "rank": [1.2, 2.0, 2.8]})
    >>> table = table.assign(low=table["rank"] - 0.3, high=table["rank"] + 0.3)
    >>> figure = critical_difference(table, critical=0.9)
    >>> len(figure.axes)
    1
    """
    names, ranks = table[row].tolist(), table["rank"].to_numpy()
    height = 0.3 * len(names)
    groups = _groups(ranks, critical)
    figure, axis = plt.subplots(figsize=(7.2, height + 0.25 * len(groups) + 1.0), layout="constrained")
    y = np.arange(len(names))
    error = np.abs(table[["low", "high"]].to_numpy() - ranks[:, None]).T
    axis.errorbar(ranks, y, xerr=error, fmt="o", color=sns.color_palette("colorblind")[0], capsize=2, linewidth=1.2)
    for i, (first, last) in enumerate(groups):
        place = len(names) + 0.5 + 0.6 * i
        axis.plot(ranks[[first, last]], [place, place], color="0.45", linewidth=4, solid_capstyle="butt")
    axis.plot([1, 1 + critical], [-1.2, -1.2], color="black", linewidth=1.5, marker="|", markersize=8)
    axis.text(1 + critical / 2, -1.4, "critical difference", ha="center", va="bottom", fontsize=9)
    axis.set_yticks(y, names)
    axis.set(
        xlabel="mean rank over methods and capabilities (1 is best)", ylim=(len(names) + 0.6 * len(groups) + 0.5, -2.2)
    )
    axis.set_xlim(0.7, len(names) + 0.3)
    return figure


def _groups(ranks: np.ndarray, critical: float) -> list[tuple[int, int]]:
    """Find the longest runs of ascending ranks that span less than the critical difference."""
    groups: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = int(np.searchsorted(ranks, ranks[first] + critical, side="left")) - 1
        if last > first and (not groups or last > groups[-1][1]):
            groups.append((first, last))
    return groups


def cost_benefit(table: pd.DataFrame, *, xlabel: str, ylabel: str, row: str = "source") -> Figure:
    """Draw what each way of choosing costs against what it keeps.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``row``, ``seconds``, ``value``, ``low`` and ``high``.
    xlabel, ylabel : str
        Labels.
    row : str
        Column with the names.

    Returns
    -------
    Figure
        Seconds on a logarithmic axis.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import cost_benefit
    >>> table = pd.DataFrame({"source": ["random", "cola"], "seconds": [0.1, 20.0], "value": [0.0, 0.02]})
    >>> table = table.assign(low=table["value"] - 0.01, high=table["value"] + 0.01)
    >>> figure = cost_benefit(table, xlabel="seconds", ylabel="gain over random (%)")
    >>> len(figure.axes)
    1
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    color = sns.color_palette("colorblind")[0]
    error = np.abs(table[["low", "high"]].to_numpy() - table["value"].to_numpy()[:, None]).T
    axis.errorbar(table["seconds"], table["value"], yerr=error, fmt="o", color=color, elinewidth=0.8, alpha=0.8)
    axis.axhline(0, color="0.6", linewidth=1)
    axis.set_xscale("log")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    low, high = axis.get_xlim()
    share = NAME_SIZE * WIDTH_OF_A_LETTER * table[row].astype(str).str.len().max() / (72 * figure.get_figwidth() - 60)
    axis.set_xlim(low, high * (high / low) ** (share / (1 - share)))  # room for the longest name beside the slowest
    _name_points(axis, table, row)
    return figure


def _name_points(axis: Axes, table: pd.DataFrame, row: str) -> None:
    """Write each name beside its point; where two would meet, the lower one moves down and gets a line to its point."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.canvas.draw()  # places in points are known only then
    scale = 72 / figure.dpi
    places = axis.transData.transform(table[["seconds", "value"]].to_numpy(dtype=float)) * scale
    taken: list[tuple[float, float, float]] = []  # left, right and baseline of the names that are written
    for i in np.argsort(-places[:, 1], kind="stable"):
        name = str(table[row].iloc[i])
        left, at = places[i, 0] + 6, places[i, 1] + 4
        right = left + NAME_SIZE * WIDTH_OF_A_LETTER * len(name)
        while clash := [y for a, b, y in taken if a < right and left < b and abs(y - at) < NAME_SIZE + 1]:
            at = min(clash) - NAME_SIZE - 1.5
        taken.append((left, right, at))
        moved = at < places[i, 1] - NAME_SIZE
        label = axis.annotate(
            name,
            tuple(table[["seconds", "value"]].iloc[i]),
            xytext=(6, at - places[i, 1]),
            textcoords="offset points",
            fontsize=NAME_SIZE,
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
            if moved
            else None,
        )
        label.set_in_layout(False)  # or the axes would shrink, and the points move
