"""Figures of measured speed: ratios with their targets, and growth with size."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from cola_lib.figures.curves import LINES
from cola_lib.figures.style import MARKERS


def ratio_dots(table: pd.DataFrame, *, xlabel: str) -> Figure:
    """Draw ratios on a logarithmic axis, each with its range and, where there is one, its target.

    Parameters
    ----------
    table : DataFrame
        Columns ``what``, ``ratio``, ``low``, ``high``; ``target``, missing where none is set; and ``at_most``, bool:
        whether the target is met below it, or above.
    xlabel : str
        What the horizontal axis shows.

    Returns
    -------
    Figure
        Filled dots met their target or have none, hollow ones missed it. An arrow points from the target to where the
        ratio should be.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import ratio_dots
    >>> walk = {"what": "walk", "ratio": 1.5, "low": 1.4, "high": 1.6, "target": 1.7, "at_most": True}
    >>> figure = ratio_dots(pd.DataFrame([walk]), xlabel="forward passes")
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['walk']
    """
    figure, axis = plt.subplots(figsize=(7.0, 0.36 * len(table) + 1.0), layout="constrained")
    ink, accent = "0.15", sns.color_palette("colorblind")[3]
    for y, entry in enumerate(table.to_dict("records")):
        target, wanted = entry["target"], -1 if entry["at_most"] else 1
        aimed = not pd.isna(target)
        met = not aimed or wanted * (entry["ratio"] - target) >= 0
        axis.plot([entry["low"], entry["high"]], [y, y], color=ink, linewidth=1.5)
        axis.plot(entry["ratio"], y, "o", color=ink, markerfacecolor=ink if met else "white", markersize=6, zorder=3)
        if aimed:
            axis.plot(target, y, "|", color=accent, markersize=16, markeredgewidth=2)
            axis.annotate("", (target * 1.12**wanted, y), (target, y), arrowprops={"arrowstyle": "->", "color": accent})
    axis.axvline(1.0, color="0.35", linewidth=1, linestyle="--", zorder=0)
    axis.set_xscale("log")
    ends = table[["low", "high", "target"]].to_numpy(dtype=float)
    axis.set_xlim(min(0.8, float(np.nanmin(ends)) / 1.25), max(1.25, float(np.nanmax(ends)) * 1.25))
    steps = [step for step in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)]
    axis.xaxis.set_major_locator(FixedLocator(steps))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.minorticks_off()
    axis.set_yticks(range(len(table)), table["what"])
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(xlabel)
    return figure


def growth_curves(series: pd.DataFrame, *, value: str, ylabel: str) -> Figure:
    """Draw how a quantity grows along several sizes, on logarithmic axes, in one panel for each kind of size.

    Parameters
    ----------
    series : DataFrame
        Columns ``axis`` (the panels), ``size``, ``step`` (the lines) and ``value``.
    value : str
        Column that is drawn; relative to the line's value at the least size of the panel.
    ylabel : str
        Of the vertical axis.

    Returns
    -------
    Figure
        With thin guides for growth as the size, its square and its cube.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import growth_curves
    >>> series = pd.DataFrame({"axis": "layers", "size": [4, 8], "step": "walk", "seconds": [1.0, 2.1]})
    >>> figure = growth_curves(series, value="seconds", ylabel="time, relative to the smallest")
    >>> figure.axes[0].get_title()
    'layers'
    """
    axes_of, steps = list(dict.fromkeys(series["axis"])), list(dict.fromkeys(series["step"]))
    figure, axes = plt.subplots(
        1, len(axes_of), figsize=(2.3 * len(axes_of) + 1.4, 2.9), sharey=True, squeeze=False, layout="constrained"
    )
    colors = sns.color_palette("colorblind", len(steps))
    for axis, name in zip(axes[0], axes_of, strict=True):
        part = series[series["axis"] == name]
        sizes = np.sort(part["size"].unique())
        for power in (1, 2, 3):
            axis.plot(sizes, (sizes / sizes[0]) ** power, color="0.8", linewidth=1, zorder=0)
            axis.annotate(f"$n^{power}$" if power > 1 else "$n$", (sizes[-1], (sizes[-1] / sizes[0]) ** power),
                          color="0.45", fontsize=8)  # fmt: skip
        for i, (step, color) in enumerate(zip(steps, colors, strict=True)):
            own = part[part["step"] == step].sort_values("size")
            axis.plot(
                own["size"], own[value] / own[value].iloc[0], color=color, marker=MARKERS[i % len(MARKERS)],
                linestyle=LINES[i % len(LINES)], linewidth=1.5, markersize=5, label=step,
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes], fontsize=8)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        axis.minorticks_off()
        axis.set_title(name.replace("n_samples", "samples").replace("seq_len", "length"), fontsize=10)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center")
    figure.supylabel(ylabel, fontsize=10)
    return figure
