"""Panels of a size that a page can show."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INCHES_OF_LETTER = 0.08
"""Width of a letter below a column."""

ACROSS = 3
"""Panels beside one another; a page shows the text of no more."""


def panels(
    n: int, *, width: float, height: float, margins: tuple[float, float], across: int = ACROSS
) -> tuple[Figure, list[Axes]]:
    """Lay out panels on common axes."""
    across = min(n, 2 if n == 4 and across > 2 else across)
    down = -(-n // across)
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(width * across + margins[0], height * down + margins[1]),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in grid.flat[n:]:
        axis.set_visible(False)
    for axis in grid.flat[max(0, n - across) : n]:  # the lowest panel of each column carries the labels
        axis.tick_params(axis="x", labelbottom=True)
    return figure, list(grid.flat[:n])
