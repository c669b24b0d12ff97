"""Experiments: grids of cells, each computed once, kept by its content, and found again."""
