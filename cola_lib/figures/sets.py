"""What calibration sets are made of."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cola_lib.figures.style import in_order


def set_overview(rows: pd.DataFrame) -> Figure:
    """Draw the share of each source in the tokens of some sets, and how long their rows are."""
    names, sources = list(dict.fromkeys(rows["set"])), in_order(rows["source"].unique())
    share = rows.pivot_table(index="set", columns="source", values="tokens", aggfunc="sum", fill_value=0)
    share = 100 * share.div(share.sum(axis=1), axis=0).loc[names, sources]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8.4, 1.6 + 0.45 * len(names) + 0.22 * (len(sources) // 4)), layout="constrained"
    )
    colors = sns.color_palette("colorblind", len(sources))
    hatches = ("", "//", "..", "xx", "\\\\", "++")
    before = pd.Series(0.0, index=share.index)
    for i, source in enumerate(sources):
        hatch = hatches[(i // len(sns.color_palette("colorblind"))) % len(hatches)]
        left.barh(
            share.index,
            share[source],
            left=before,
            color=colors[i],
            hatch=hatch,
            edgecolor="white",
            label=source,
            height=0.6,
        )
        before += share[source]
    left.invert_yaxis()
    left.set(xlabel="share of tokens (%)", xlim=(0, 100))
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=8, frameon=False)
    for name, color, style in zip(names, sns.color_palette("colorblind"), ("-", "--", ":", "-."), strict=False):
        lengths = rows.loc[rows["set"] == name, "tokens"]
        sns.ecdfplot(lengths, ax=right, color=color, linestyle=style, label=name, stat="percent")
    right.set(xlabel="tokens of a row", ylabel="rows at most so long (%)")
    right.legend(fontsize=8, frameon=False)
    return figure
