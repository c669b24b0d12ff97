"""Tidy frames of grids whose truth is known: the library's own."""

from cola_lib.analysis.simulation import simulated_grid

__all__ = ["simulated_grid"]
