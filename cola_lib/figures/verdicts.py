"""The scorecard as a picture, and what the rules behind it can see."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cola_lib.analysis import MARGIN, Decision, Verdict

LOOK = {
    str(Verdict.REPRODUCED): ("o", 2),
    str(Verdict.UNDECIDED): ("D", 7),
    str(Verdict.NOT_REPRODUCED): ("X", 3),
}
"""Marker and place in the colour-blind palette of each verdict."""

REACH = 1.25
"""The axis reaches this many times as far as the farthest estimate; intervals beyond it end in an arrow."""


def verdict_strip(table: pd.DataFrame, *, xlabel: str) -> Figure:
    """Draw every part of every claim: estimate, interval, verdict."""
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


DECIDED = {
    str(Decision.REPRODUCED): ("o", 2),
    str(Decision.NEGLIGIBLE): ("s", 0),
    str(Decision.UNDECIDED): ("D", 7),
    str(Decision.REVERSED): ("X", 3),
}
"""Marker and place in the colour-blind palette of each verdict on a primary number."""


def primary_strip(table: pd.DataFrame, *, xlabel: str = "primary number (%), signed as the paper says") -> Figure:
    """Draw the primary number of every claim: interval, verdict, and the range of its parts.

    Parameters
    ----------
    table : DataFrame
        From :func:`cola_lib.analysis.primary_table`. Stages of a claim are drawn below each other.
    xlabel : str
        What the horizontal axis shows.

    Returns
    -------
    Figure

    Examples
    --------
    >>> from cola_lib.analysis import Primary, judged, primary_table
    >>> from cola_lib.analysis.claims.decisions import Estimated
    >>> from cola_lib.analysis.inference import Interval
    >>> from cola_lib.figures import primary_strip
    >>> number = Estimated("x", Interval(0.05, 0.01, 20, 0.01, 0.0, 10, 40))
    >>> found = {one.claim: one for one in judged([Primary("C5", number, (number,), 0.005)])}
    >>> len(primary_strip(primary_table({"pilot": found})).axes)
    1
    """
    palette = sns.color_palette("colorblind")
    figure, axis = plt.subplots(figsize=(8.5, 0.3 * len(table) + 1.4), layout="constrained")
    several = table["stage"].nunique() > 1
    numbers = table[["lowest", "highest", "low", "high", "value"]].to_numpy(np.float64)
    for place, (verdict, (lowest, highest, low, high, value)) in enumerate(zip(table["verdict"], numbers, strict=True)):
        marker, color = DECIDED[verdict]
        axis.plot([lowest, highest], [place, place], color="0.8", linewidth=6, solid_capstyle="butt", zorder=1)
        axis.plot([low, high], [place, place], color=palette[color], linewidth=2, zorder=2)
        axis.plot(value, place, marker, color=palette[color], markersize=6, zorder=3)
    axis.axvline(0, color="0.35", linewidth=1, linestyle="--")
    names = table["claim"] + " " + table["title"] + ((" · " + table["stage"]) if several else "")
    axis.set_yticks(range(len(table)), names)
    axis.grid(axis="y", visible=False)
    axis.set(xlabel=xlabel, ylim=(len(table) - 0.4, -0.6))
    handles = [
        Line2D([], [], marker=marker, color=palette[color], linewidth=2, label=verdict)
        for verdict, (marker, color) in DECIDED.items()
    ]
    handles.append(Line2D([], [], color="0.8", linewidth=6, label="range of parts"))
    figure.legend(handles=handles, loc="outside upper center", ncols=5)
    return figure


def verdict_chances(table: pd.DataFrame) -> Figure:
    """Draw the chances of each verdict by the true effect."""
    panels = list(dict.fromkeys(table["panel"]))
    palette = sns.color_palette("colorblind")
    figure, axes = plt.subplots(1, len(panels), figsize=(8.5, 2.7), layout="constrained", sharey=True, squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        for verdict, (_, color) in DECIDED.items():
            own = table[(table["panel"] == panel) & (table["verdict"] == verdict)].sort_values("effect")
            axis.plot(100 * np.expm1(own["effect"]), 100 * own["share"], color=palette[color], label=verdict)
        axis.set_title(panel, fontsize="medium")
    axes[0, 0].set(ylabel="chance of the verdict (%)")
    figure.supxlabel("true number (%)", fontsize="medium")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(DECIDED))
    return figure
