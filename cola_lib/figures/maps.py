"""Points in a plane, and which of them were picked."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from cola_lib.figures.style import MARKERS, in_order


def activation_map(points: pd.DataFrame) -> Figure:
    """Draw candidates in a plane, a colour and a marker for each source, and ring those that were picked.

    Parameters
    ----------
    points : pandas.DataFrame
        Columns ``x``, ``y``, ``source`` and ``picked`` (bool).

    Returns
    -------
    Figure
        Axes have no unit: they are directions of largest variance.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.figures import activation_map
    >>> points = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 2.0], "source": ["c4", "code"], "picked": [True, False]})
    >>> figure = activation_map(points)
    >>> len(figure.axes)
    1
    """
    figure, axis = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    sources = in_order(points["source"].unique())
    colors = sns.color_palette("colorblind", len(sources))
    for i, source in enumerate(sources):
        own = points[points["source"] == source]
        axis.scatter(
            own["x"], own["y"], s=26, color=colors[i], marker=MARKERS[i % len(MARKERS)], alpha=0.75, label=source
        )
    picked = points[points["picked"]]
    axis.scatter(picked["x"], picked["y"], s=110, facecolors="none", edgecolors="black", linewidths=1.3, label="picked")
    axis.set(xlabel="first principal component", ylabel="second principal component")
    axis.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
