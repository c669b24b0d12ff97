"""Figures of scores: what is left of each capability, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cola_lib.figures.layout import INCHES_OF_LETTER, panels
from cola_lib.figures.style import in_order

FEW = 8
"""Points on an axis that are each worth a label."""


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"


def retention_heatmap(
    table: pd.DataFrame, *, row: str, column: str, facet: str, label: str = "capability retained (%)"
) -> Figure:
    """Draw a heat map per facet, each field with its value and its interval.

    Parameters
    ----------
    table : DataFrame
        Columns ``row``, ``column``, ``facet``, ``value``, ``low`` and ``high``; values are shares, drawn in per cent.
    row, column, facet : str
        Columns whose values become the rows, the columns and the panels.
    label : str
        Of the colour bar.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import retention_heatmap
    >>> table = pd.DataFrame(
    ...     {
    ...         "source": ["c4", "code"] * 2,
    ...         "label": ["wanda 50%"] * 2 + ["gptq 3-bit"] * 2,
    ...         "capability": "math",
    ...         "value": [0.80, 0.75, 0.92, 0.90],
    ...     }
    ... )
    >>> table = table.assign(low=table["value"] - 0.03, high=table["value"] + 0.03)
    >>> figure = retention_heatmap(table, row="source", column="capability", facet="label")
    >>> len(figure.axes)
    3
    """
    facets = in_order(table[facet].unique())
    rows, columns = (list(dict.fromkeys(table[name])) for name in (row, column))
    # Up to two panels stand one below the other at full size; more of them make two columns of smaller fields.
    across, field, font = (1, (0.95, 0.48), 9) if len(facets) <= 2 else (2, (0.74, 0.42), 8)
    size = {"width": field[0] * len(columns), "height": field[1] * len(rows) + 0.4}
    figure, axes = panels(len(facets), across=across, margins=(1.8, 0.7), **size)
    low, high = 100 * table["value"].min(), 100 * table["value"].max()
    for axis, name in zip(axes, facets, strict=True):
        part = table[table[facet] == name].set_index([row, column])
        values = part["value"].unstack().reindex(index=rows, columns=columns)
        said = part.apply(lambda e: f"{_percent(e['value'])}\n[{_percent(e['low'])}, {_percent(e['high'])}]", axis=1)
        text = said.unstack().reindex(index=rows, columns=columns).fillna("")
        sns.heatmap(
            100 * values,
            annot=text,
            fmt="",
            vmin=low,
            vmax=high,
            cmap="viridis",
            cbar=False,
            linewidths=0.5,
            annot_kws={"fontsize": font},
            ax=axis,
        )
        axis.set(title=name, xlabel="", ylabel="")
        axis.tick_params(axis="y", rotation=0)
        crowded = max(len(column) for column in columns) * INCHES_OF_LETTER > field[0]
        plt.setp(axis.get_xticklabels(), rotation=30 if crowded else 0, ha="right" if crowded else "center")
    figure.colorbar(axes[0].collections[0], ax=axes, label=label, shrink=0.8)
    return figure


def matrix_heatmap(
    tables: dict[str, pd.DataFrame], *, xlabel: str, ylabel: str, label: str, fmt: str = ".3f"
) -> Figure:
    """Draw one annotated matrix per panel, on a common scale.

    Parameters
    ----------
    tables : dict of str to DataFrame
        Title → matrix, all with the same rows and columns.
    xlabel, ylabel, label : str
        Of the axes and of the colour bar.
    fmt : str
        Format of the numbers in the fields.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import matrix_heatmap
    >>> table = pd.DataFrame([[1.0, 0.5], [0.5, 1.0]], index=["c4", "code"], columns=["c4", "code"])
    >>> figure = matrix_heatmap({"overlap": table}, xlabel="source", ylabel="source", label="share")
    >>> len(figure.axes)
    2
    """
    n_rows, n_columns = next(iter(tables.values())).shape
    size = {"width": max(0.75 * n_columns, 1.8), "height": max(0.45 * n_rows + 0.4, 1.8)}
    figure, axes = panels(len(tables), across=2, margins=(2.0, 0.5), **size)
    low, high = (f(t.to_numpy().min() if f is min else t.to_numpy().max() for t in tables.values()) for f in (min, max))
    for axis, (title, table) in zip(axes, tables.items(), strict=True):
        sns.heatmap(
            table,
            annot=True,
            fmt=fmt,
            cmap="viridis",
            vmin=low,
            vmax=high,
            cbar=False,
            linewidths=0.5,
            ax=axis,
            annot_kws={"fontsize": 9},
        )
        axis.set(title=title, xlabel="", ylabel="")
        axis.tick_params(axis="y", rotation=0)
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    figure.colorbar(axes[0].collections[0], ax=axes, label=label, shrink=0.9)
    return figure


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    hue: str,
    xlabel: str,
    ylabel: str,
    facet: str | None = None,
    logx: bool = False,
    logy: bool = False,
    markers: bool = True,
    joined: bool = True,
    order: Sequence[str] | None = None,
) -> Figure:
    """Draw one line per hue, told apart by colour, marker and dash.

    Parameters
    ----------
    table : DataFrame
        Tidy: one row per point.
    x, y, hue : str
        Columns.
    xlabel, ylabel : str
        Of the axes.
    facet : str, optional
        Column whose values become panels.
    logx, logy : bool
        Logarithmic axes.
    markers : bool
        Whether to mark the points; off for dense curves.
    joined : bool
        Whether to join the points; off where neighbours on the axis have nothing to do with each other.
    order : sequence of str, optional
        Of the hues.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import lines
    >>> table = pd.DataFrame({"n": [1, 2] * 2, "error": [0.4, 0.3, 0.2, 0.1], "label": ["wanda"] * 2 + ["gptq"] * 2})
    >>> figure = lines(table, x="n", y="error", hue="label", xlabel="samples", ylabel="error")
    >>> len(figure.axes)
    1
    """
    facets = list(dict.fromkeys(table[facet])) if facet else [None]
    figure, axes = plt.subplots(
        1,
        len(facets),
        figsize=(min(3.6 * len(facets) + 2.2, 11), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes.flat, facets, strict=True):
        part = table if name is None else table[table[facet] == name]
        last = axis is axes.flat[-1]
        sns.lineplot(
            part,
            x=x,
            y=y,
            hue=hue,
            style=hue,
            hue_order=order,
            style_order=order,
            markers=markers,
            errorbar=None,
            **({} if joined else {"linestyle": "", "dashes": False}),
            ax=axis,
            legend=last,
        )
        axis.set(xlabel=xlabel, ylabel=ylabel, title=name or "")
        if logx:
            axis.set_xscale("log")
        points = sorted(part[x].unique())
        if len(points) <= FEW:  # the axis' own choice would miss them
            axis.set_xticks(points, [f"{value:g}" for value in points])
            axis.minorticks_off()
        if logy:
            axis.set_yscale("log")
        if last:
            sns.move_legend(axis, "center left", bbox_to_anchor=(1.02, 0.5), title="")
    return figure
