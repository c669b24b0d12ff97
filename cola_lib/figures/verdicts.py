"""The scorecard as a picture: every part of every claim with its interval and verdict."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cola_lib.analysis import MARGIN, Verdict

LOOK = {
    str(Verdict.REPRODUCED): ("o", 2),
    str(Verdict.UNDECIDED): ("D", 7),
    str(Verdict.NOT_REPRODUCED): ("X", 3),
}
"""Marker and place in the colour-blind palette of each verdict."""

REACH = 1.25
"""The axis reaches this many times as far as the farthest estimate; intervals beyond it end in an arrow."""


def verdict_strip(table: pd.DataFrame, *, xlabel: str) -> Figure:
    """Draw every part of every claim: estimate, interval, verdict.

    Parameters
    ----------
    table : DataFrame
        Columns ``claim``, ``value``, ``low``, ``high`` and ``verdict``; values are shares, drawn in per cent. Parts of
        a claim are drawn from its largest value down.
    xlabel : str
        What the horizontal axis shows.

    Returns
    -------
    Figure

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import verdict_strip
    >>> table = pd.DataFrame({"claim": ["C1", "C8"], "value": [0.03, -0.01]})
    >>> table["verdict"] = ["reproduced", "not reproduced"]
    >>> table = table.assign(low=table["value"] - 0.01, high=table["value"] + 0.01)
    >>> figure = verdict_strip(table, xlabel="gain (%)")
    >>> len(figure.axes)
    1
    """
    claims = list(dict.fromkeys(table["claim"]))
    reach = REACH * 100 * max(float(table["value"].abs().max()), MARGIN)
    figure, axis = plt.subplots(figsize=(8.5, 0.11 * len(table) + 0.35 * len(claims) + 1.2), layout="constrained")
    palette = sns.color_palette("colorblind")
    y, ticks = 0.0, []
    for claim in claims:
        own = table[table["claim"] == claim].sort_values("value", ascending=False)
        places = y + np.arange(len(own))
        for place, part in zip(places, own.itertuples(), strict=True):
            marker, color = LOOK[part.verdict]
            low, high = 100 * part.low, 100 * part.high
            axis.plot(np.clip([low, high], -reach, reach), [place, place], color=palette[color], linewidth=1.2)
            for end, arrow in ((low, "<"), (high, ">")):
                if abs(end) > reach:
                    axis.plot(np.clip(end, -reach, reach), place, arrow, color=palette[color], markersize=4)
            axis.plot(100 * part.value, place, marker, color=palette[color], markersize=5)
        ticks.append((places.mean(), claim))
        y = places[-1] + 4
        axis.axhline(y - 2, color="0.85", linewidth=0.8)
    axis.axvspan(-100 * MARGIN, 100 * MARGIN, color="0.85", zorder=0)
    axis.axvline(0, color="0.35", linewidth=1, linestyle="--")
    axis.set_yticks([place for place, _ in ticks], [claim for _, claim in ticks])
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=xlabel, ylim=(y - 2, -2), xlim=(-1.03 * reach, 1.03 * reach))
    handles = [
        Line2D([], [], marker=marker, color=palette[color], linewidth=1.2, label=verdict)
        for verdict, (marker, color) in LOOK.items()
    ]
    axis.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure
