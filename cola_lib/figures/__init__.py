"""Figures from tidy records. None computes a result; each returns a matplotlib figure."""

from cola_lib.figures.comparisons import interval_dots, lines, matrix_heatmap, retention_heatmap
from cola_lib.figures.style import METHOD_ORDER, in_order, use_style

__all__ = [
    "METHOD_ORDER",
    "in_order",
    "interval_dots",
    "lines",
    "matrix_heatmap",
    "retention_heatmap",
    "use_style",
]
