"""GPTQ's error beside rounding's, against damping."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from cola_lib.figures.curves import interval_curves


def damping_curves(table: pd.DataFrame, title: str) -> Figure:
    """Draw the error against damping: a line for each amount of tokens, a panel for each kind of text.

    Parameters
    ----------
    table : DataFrame
        Columns ``damping`` (numbers), ``tokens``, ``where``, ``value``, ``low`` and ``high``: ratios to the error of
        rounding to nearest, which is a line at 100 %.
    title : str
        Of the figure.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import damping_curves
    >>> table = pd.DataFrame({"damping": [0.01, 0.1], "tokens": 2048, "where": "same source", "value": [1.2, 0.9]})
    >>> figure = damping_curves(table.assign(low=table["value"], high=table["value"]), "More damping helps")
    >>> len(figure.axes)
    1
    """
    shown = table.sort_values("tokens")
    figure = interval_curves(
        shown.assign(tokens=shown["tokens"].map("{:,} tokens".format)),
        x="damping",
        hue="tokens",
        column="where",
        xlabel="damping, as a share of the mean diagonal",
        ylabel="GPTQ's error, % of rounding's",
    )
    for axis in figure.axes:
        axis.axhline(100, color="black", linewidth=1)
    figure.suptitle(title)
    return figure
