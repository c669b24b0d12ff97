"""Figures from tidy records. None computes a result; each returns a matplotlib figure, or one that a page draws."""

from cola_lib.figures.comparisons import lines, matrix_heatmap, retention_heatmap
from cola_lib.figures.curves import interval_curves
from cola_lib.figures.damping import damping_curves
from cola_lib.figures.domains import matched_heatmap
from cola_lib.figures.dots import interval_dots
from cola_lib.figures.interactive import interactive_map, interval_explorer
from cola_lib.figures.leagues import cost_benefit, critical_difference
from cola_lib.figures.maps import activation_map
from cola_lib.figures.names import readable
from cola_lib.figures.performance import growth_curves, ratio_dots
from cola_lib.figures.predictions import agreement_scatter, correlation_forest, depth_profiles, scaled_heatmaps
from cola_lib.figures.sets import set_overview
from cola_lib.figures.shares import stacked_bars, stacked_shares
from cola_lib.figures.style import in_order, use_style
from cola_lib.figures.verdicts import primary_strip, verdict_chances

__all__ = [
    "activation_map",
    "agreement_scatter",
    "correlation_forest",
    "cost_benefit",
    "critical_difference",
    "damping_curves",
    "depth_profiles",
    "growth_curves",
    "in_order",
    "interactive_map",
    "interval_curves",
    "interval_dots",
    "interval_explorer",
    "lines",
    "matched_heatmap",
    "matrix_heatmap",
    "primary_strip",
    "ratio_dots",
    "readable",
    "retention_heatmap",
    "scaled_heatmaps",
    "set_overview",
    "stacked_bars",
    "stacked_shares",
    "use_style",
    "verdict_chances",
]
