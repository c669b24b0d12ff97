"""How much of the variation between compressed models comes from source, method, draw and item."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

from cola_lib.analysis.bootstrap import estimate
from cola_lib.analysis.estimates import Estimate
from cola_lib.analysis.scores import Condition, condition, same_items, score_named
from cola_lib.errors import DataError

Array = NDArray[np.float64]
Grid = dict[tuple[str, str], Condition]

CELL_COMPONENTS = ("source", "method", "source x method", "draw", "residual")
"""Components of the variance between cells."""

TINY = 1e-9
"""Least variance of a component that is not 0, as a share of the variance of all cells."""


def source_share(
    frame: pd.DataFrame, score: str = "bits_per_byte", *, source: str = "source", draw: str = "draw"
) -> float:
    """Share of the variance of scores that lies between sources, and not between draws of one source.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of one capability and one method, several sources, equally many draws of each.
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES`.
    source, draw : str
        Columns.

    Returns
    -------
    float
        Between 0 and 1: the intraclass correlation of a draw's score within its source, from the one-way analysis of
        variance without bias; a negative estimate counts as 0.

    Raises
    ------
    DataError
        If there are fewer than 2 sources or 2 draws, or sources differ in their number of draws.

    References
    ----------
    Shrout and Fleiss, "Intraclass correlations: uses in assessing rater reliability", Psychological Bulletin 86,
    1979, case 1.

    Examples
    --------
    >>> from cola_lib.analysis import simulated_grid, source_share
    >>> frame = simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}])
    >>> round(source_share(frame[frame["method"] == "wanda"]), 1)
    1.0
    """
    conditions = [condition(rows, score, draw=draw) for _, rows in frame.groupby(source, sort=True)]
    counts = {one.n_draws for one in conditions}
    if len(conditions) < 2 or len(counts) > 1 or min(counts) < 2:
        raise DataError(f"a share of variance needs 2 sources with equally many draws, at least 2; draws: {counts}")
    same_items(conditions)
    scores = np.stack([one.by_draw() for one in conditions])  # (n_sources, n_draws)
    within = scores.var(axis=1, ddof=1).mean()
    between = max(scores.mean(axis=1).var(ddof=1) - within / scores.shape[1], 0.0)
    return float(between / (between + within)) if between + within > 0 else 0.0


def variance_components(
    frame: pd.DataFrame,
    score: str = "item_bits_per_byte",
    *,
    source: str = "source",
    method: str = "label",
    draw: str = "draw",
    dense: str = "dense",
) -> pd.DataFrame:
    """Variance of one item's loss in one cell, taken apart.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of one capability: the dense model, and several methods on the same draws of several sources.
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES` that is a sum over items.
    source, method, draw : str
        Columns.
    dense : str
        Value of column ``method`` (the grid's own, whatever ``method`` names here) for the untouched model.

    Returns
    -------
    pandas.DataFrame
        Columns ``component``, ``variance`` and ``share``; rows source, method, source x method, draw (of a source, in
        common to all methods), residual (draw x method), item, item x cell. Variances are squares of shares of the
        dense model's score.

    Raises
    ------
    DataError
        If there are fewer than 2 sources, methods or draws, a cell is missing, or the search does not converge.

    Notes
    -----
    The response is an item's loss as a share of the dense model's score on the *capability*. Its mean over items is
    then the relative loss that the book reports, and an item that the dense model finds easy does not blow up, as
    it does in its own ratio or logarithm.

    Source, method and their interaction are random effects, and so is the draw within a source. They are estimated by
    restricted maximum likelihood from the means over items. With equally many draws of each source the estimates are
    those of the analysis of variance, in closed form, as long as none of these is negative. Otherwise the likelihood is
    maximized with each set of components held at 0 in turn, and the solution must pass a check of its gradient. The
    likelihood needs no matrices: it factors into the mean over methods and contrasts between methods, each within and
    between sources. The two item components come from the two-way analysis of variance of cells and items without
    replication, and the residual gives up what item x cell puts into a mean over items. What items add to the other
    components through interactions of their own (an item that suits a source) is not taken off;
    :func:`source_versus_method` does.

    With few sources and methods these components describe *these* sources and methods: for all that there could be they
    are as uncertain as any variance on so few degrees of freedom.

    References
    ----------
    Searle, Casella and McCulloch, *Variance Components*, 1992, chapters 4 and 6.

    Examples
    --------
    >>> from cola_lib.analysis import simulated_grid, variance_components
    >>> conditions = [
    ...     {"source": source, "method": method, "loss": 0.05 + of_source + of_method}
    ...     for source, of_source in {"c4": 0.0, "code": 0.04, "math": 0.08}.items()
    ...     for method, of_method in {"wanda": 0.0, "gptq": 0.02, "rtn": 0.03}.items()
    ... ]
    >>> table = variance_components(simulated_grid(conditions))
    >>> table["component"].tolist()
    ['source', 'method', 'source x method', 'draw', 'residual', 'item', 'item x cell']
    """
    cells = _cells(frame, score, source, method, draw)
    losses = _losses(cells, condition(frame[frame["method"] == dense], score, draw=draw))
    first = next(iter(cells.values()))
    share = 1 / np.bincount(first.task)[first.task] / len(first.tasks)  # tasks count equally, and so do their items
    sources, methods = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    found = _restricted([np.stack([(losses[s, m] * share).sum(axis=1) for m in methods]) for s in sources])
    item, both = _item_components(np.concatenate(list(losses.values())))
    found["residual"] = max(found["residual"] - both * float(np.square(share).sum()), 0.0)
    found |= {"item": item, "item x cell": both}
    table = pd.DataFrame({"component": list(found), "variance": list(found.values())})
    return table.assign(share=table["variance"] / table["variance"].sum())


def _cells(frame: pd.DataFrame, score: str, source: str, method: str, draw: str) -> Grid:
    """One condition for each source and method, all with the same draws and items."""
    if score_named(score).binned:
        raise DataError(f"score {score!r} is no sum over items, so its variance has no item component")
    calibrated = frame[frame[source].notna()]
    keys = calibrated.groupby([source, method], sort=True)
    cells = {(str(s), str(m)): condition(rows, score, draw=draw) for (s, m), rows in keys}
    sources, methods = ({key[axis] for key in cells} for axis in (0, 1))
    if min(len(sources), len(methods)) < 2:
        raise DataError(f"components need 2 sources and 2 methods; there are {len(sources)} and {len(methods)}")
    missing = [f"{m} on {s}" for s in sorted(sources) for m in sorted(methods) if (s, m) not in cells]
    if missing:
        raise DataError(f"every method is needed on every source, and {missing[0]} is missing")
    for s in sources:
        named = {cells[s, m].draws for m in methods}
        if len(named) > 1 or len(next(iter(named))) < 2:
            raise DataError(f"methods need the same draws, at least 2, and on source {s!r} they have {sorted(named)}")
    same_items(list(cells.values()))
    return cells


def _losses(cells: Grid, dense: Condition) -> dict[tuple[str, str], Array]:
    """Loss of each item as a share of the dense score; each of shape (n_draws, n_items)."""
    first = next(iter(cells.values()))
    same_items([first, dense])
    mean_weight = np.bincount(first.task, first.weight) / np.bincount(first.task)  # (n_tasks,)
    scale = mean_weight[first.task] * dense.value()[0]
    return {key: (one.numerator - dense.numerator) / scale for key, one in cells.items()}


class _Strata(NamedTuple):
    """A grid reduced to what the restricted likelihood reads: the mean over methods, and contrasts between methods."""

    n_methods: int
    n_draws: Array  # (n_sources,)
    average: Array  # (n_sources,), sqrt(n_methods) times the mean of each source
    contrast: Array  # (n_sources, n_methods), deviation of each method's mean over draws from the source's mean
    within_average: float  # sums of squares
    within_contrast: float

    @classmethod
    def of(cls, grid: Sequence[Array]) -> _Strata:
        """Reduce losses, one array of shape (n_methods, n_draws) for each source."""
        n_methods = len(grid[0])
        means = np.stack([cells.mean(axis=1) for cells in grid])
        average = means.mean(axis=1)
        of_draws = [cells.mean(axis=0) - cells.mean() for cells in grid]
        rest = [cells - cells.mean(axis=1, keepdims=True) - draws for cells, draws in zip(grid, of_draws, strict=True)]
        return cls(
            n_methods,
            np.array([cells.shape[1] for cells in grid], dtype=np.float64),
            n_methods**0.5 * average,
            means - average[:, None],
            n_methods * float(sum(np.square(draws).sum() for draws in of_draws)),
            float(sum(np.square(one).sum() for one in rest)),
        )

    def by_mean_squares(self) -> Array:
        """Estimates of the analysis of variance, as :data:`CELL_COMPONENTS`; unbiased if draws are balanced."""
        n_sources, m, d = len(self.n_draws), self.n_methods, len(self.n_draws) / (1 / self.n_draws).sum()
        df = self.n_draws.sum() - n_sources
        residual = self.within_contrast / (df * (m - 1))
        draw = (self.within_average / df - residual) / m
        of_method = self.contrast.mean(axis=0)
        both = d * np.square(self.contrast - of_method).sum() / ((n_sources - 1) * (m - 1))
        method = d * n_sources * np.square(of_method).sum() / (m - 1)
        source = d * self.average.var(ddof=1)
        return np.array(
            [
                (source - both - m * draw) / (m * d),
                (method - both) / (n_sources * d),
                (both - residual) / d,
                draw,
                residual,
            ]
        )

    def deviance(self, components: Array) -> tuple[float, Array]:
        """Minus twice the restricted log-likelihood, up to a constant, and its gradient."""
        source, method, both, draw, residual = components
        m, d = self.n_methods, self.n_draws
        df = d.sum() - len(d)
        cell = residual + m * draw
        value = df * np.log(cell) + self.within_average / cell
        value += (m - 1) * df * np.log(residual) + self.within_contrast / residual
        by_cell = df / cell - self.within_average / cell**2
        by_residual = (m - 1) * df / residual - self.within_contrast / residual**2

        w = m * source + both + cell / d  # variance of each source's average; its mean is the fixed effect
        total = (1 / w).sum()
        centred = self.average - (self.average / w).sum() / total
        value += np.log(w).sum() + np.log(total) + (centred**2 / w).sum()
        by_w = 1 / w - 1 / (w**2 * total) - (centred / w) ** 2

        v = both + residual / d  # variance of each source's contrasts, beside what a method has in common to all
        precision = (1 / v).sum()
        spread = 1 + method * precision
        sums = (self.contrast / v[:, None]).sum(axis=0)
        value += (m - 1) * (np.log(v).sum() + np.log(spread))
        value += (self.contrast**2 / v[:, None]).sum() - method * (sums**2).sum() / spread
        by_method = (m - 1) * precision / spread - (sums**2).sum() / spread**2
        by_v = (m - 1) * (1 / v - method / (v**2 * spread))
        by_v -= (np.square(self.contrast - method * sums / spread)).sum(axis=1) / v**2

        by_cell += (by_w / d).sum()
        by_both = by_w.sum() + by_v.sum()
        gradient = [m * by_w.sum(), by_method, by_both, m * by_cell, by_cell + by_residual + (by_v / d).sum()]
        return float(value), np.array(gradient)


def _restricted(grid: Sequence[Array]) -> dict[str, float]:
    """Components with the greatest restricted likelihood; one array of shape (n_methods, n_draws) for each source."""
    spread = float(np.concatenate([cells.ravel() for cells in grid]).std(ddof=1))
    if spread == 0:
        raise DataError("all cells have the same loss; there is no variance to take apart")
    strata = _Strata.of([cells / spread for cells in grid])
    exact = strata.by_mean_squares()
    balanced = len(set(strata.n_draws)) == 1
    found = exact if balanced and (exact >= 0).all() else _most_likely(strata, exact)
    return dict(zip(CELL_COMPONENTS, (found * spread**2).tolist(), strict=True))


def _most_likely(strata: _Strata, near: Array) -> Array:
    """Maximize the restricted likelihood with each set of components held at 0, in logarithms of the others."""
    start = np.maximum(near, 0.01)  # the losses are scaled to a variance of 1
    best, least = start, np.inf
    for free in product([False, True], repeat=len(start) - 1):
        at = np.array([*free, True])

        def objective(logarithms: Array, at: NDArray[np.bool_] = at) -> tuple[float, Array]:
            components = np.zeros(len(at))
            components[at] = np.exp(logarithms)
            value, gradient = strata.deviance(components)
            return value, (gradient * components)[at]

        bounds = [(math.log(TINY), -math.log(TINY))] * int(at.sum())
        options = {"maxiter": 1000, "ftol": 0.0, "gtol": 1e-9}
        found = minimize(objective, np.log(start[at]), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        if found.fun < least - 1e-9:  # a component leaves 0 only if that makes the grid more likely
            best, least = np.zeros(len(at)), found.fun
            best[at] = np.exp(found.x)
    _, gradient = strata.deviance(best)
    slope = np.where(best > 0, np.abs(gradient * best), np.maximum(-gradient * best[-1], 0))
    if not (slope < 1e-4).all():
        worst = CELL_COMPONENTS[int(slope.argmax())]
        raise DataError(
            f"the components of variance did not converge: the likelihood still rises with that of {worst}; "
            "compare more sources or more draws"
        )
    return best


def _item_components(losses: Array) -> tuple[float, float]:
    """Variance between items, and between cells for one item; losses of shape (n_cells, n_items)."""
    n_cells, n_items = losses.shape
    by_item, by_cell = losses.mean(axis=0), losses.mean(axis=1)
    rest = losses - by_item - by_cell[:, None] + losses.mean()
    both = float((rest**2).sum() / ((n_cells - 1) * (n_items - 1)))
    return max(float(by_item.var(ddof=1)) - both / n_cells, 0.0), both


def source_versus_method(
    frame: pd.DataFrame,
    score: str = "bits_per_byte",
    *,
    rng: np.random.Generator,
    source: str = "source",
    method: str = "label",
    draw: str = "draw",
    n_boot: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Share of the source in the variance of source and method together.

    Notes
    -----
    Each component is the variance of marginal means less what the interaction puts there, less what the chance of draws
    and items puts there (``unbiased`` in :func:`cola_lib.analysis.bootstrap.estimate`). The interval is over draws
    of each source, in common to all methods, and over items: sources and methods are those in the frame. Had
    others been chosen, the ratio of variances on so few degrees of freedom could have been almost anything.

    Where the interaction is so large that it leaves nothing of a component, the share is no smooth function of the
    scores: the interval is then from 0 to 1, which says nothing.
    """
    cells = _cells(frame, score, source, method, draw)
    sources, methods = (sorted({key[axis] for key in cells}) for axis in (0, 1))

    def share(*values: Array) -> Array:
        grid = np.stack(np.broadcast_arrays(*values)).reshape(len(sources), len(methods), -1)
        by_source, by_method = _main_effects(grid)
        return by_source / (by_source + by_method)

    def component(axis: int) -> float:
        """Variance of sources, or of methods, alone."""

        def variance(*values: Array) -> Array:
            grid = np.stack(np.broadcast_arrays(*values)).reshape(len(sources), len(methods), -1)
            return _main_effects(grid)[axis]

        return estimate(of_all, variance, rng=np.random.default_rng(0), **options).value

    of_all = [cells[s, m] for s in sources for m in methods]
    options: dict[str, Any] = {"draws": [s for s in sources for _ in methods], "unbiased": True}
    options |= {"n_boot": n_boot, "level": level}
    found = estimate(of_all, share, rng=rng, **options)
    components = np.array([component(0), component(1)])
    if (components > 0).all():
        return found
    known = components.clip(min=0)
    value = known[0] / known.sum() if known.any() else 0.5
    return replace(found, value=float(value), low=0.0, high=1.0, se_draws=float("inf"))


def _main_effects(grid: Array) -> tuple[Array, Array]:
    """Components of rows and columns; grid of shape (n_sources, n_methods, n_replicates)."""
    n_rows, n_columns, _ = grid.shape
    rows, columns = grid.mean(axis=1), grid.mean(axis=0)
    rest = grid - rows[:, None] - columns[None] + grid.mean(axis=(0, 1))
    both = (rest**2).sum(axis=(0, 1)) / ((n_rows - 1) * (n_columns - 1))
    return rows.var(axis=0, ddof=1) - both / n_columns, columns.var(axis=0, ddof=1) - both / n_rows
