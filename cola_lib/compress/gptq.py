"""GPTQ: round, and let the weights still to be rounded make up for it."""

from __future__ import annotations

import torch
from torch import Tensor

from cola_lib.compress.grid import Grid, fit_grid, grid_of, in_groups
from cola_lib.compress.quantized import OnGrid
from cola_lib.compress.specs import QuantSpec
from cola_lib.compress.sweep import SUB_BLOCK, sweep
from cola_lib.statistics import InputStatistics


def _largest_divisor(n: int, at_most: int) -> int:
    return max(d for d in range(1, at_most + 1) if n % d == 0)


def _blocks(group_size: int, d_in: int, block_size: int) -> tuple[int, int]:
    """Size blocks and sub-blocks such that a group begins where all its columns are up to date."""
    if group_size == d_in:
        return block_size, SUB_BLOCK
    if group_size <= block_size:
        block = block_size // group_size * group_size
    else:
        block = _largest_divisor(group_size, block_size)
    return block, _largest_divisor(group_size, min(SUB_BLOCK, block))


class _Round:
    """Round columns to their group's grid, which is fitted when the sweep arrives at the group."""

    def __init__(self, group_size: int, spec: QuantSpec) -> None:
        self.group_size, self.spec = group_size, spec
        self.grids: list[Grid] = []  # each (d_out,), in the order of the sweep

    def begin_block(self, start: int, stop: int, V: Tensor) -> None:
        pass

    def begin_panel(self, start: int, stop: int, V: Tensor) -> None:
        if start % self.group_size == 0:
            low, high = V[start : start + self.group_size].aminmax(dim=0)  # (d_out,)
            self.grids.append(fit_grid(low, high, self.spec.bits, self.spec.symmetric))

    def column(self, j: int, w: Tensor) -> Tensor:
        return self.grids[-1].round(w)


class _RoundStatic:
    """Round columns to grids that were fitted before the sweep."""

    def __init__(self, W: Tensor, order: Tensor, group_size: int, spec: QuantSpec) -> None:
        grid = grid_of(in_groups(W, group_size), spec.bits, spec.symmetric)
        by_group = (t.squeeze(-1).T.contiguous() for t in grid)  # each (n_groups, d_out)
        self.grids = [Grid(*parts) for parts in zip(*by_group, strict=True)]
        self.group = (order // group_size).tolist()

    def begin_block(self, start: int, stop: int, V: Tensor) -> None:
        pass

    def begin_panel(self, start: int, stop: int, V: Tensor) -> None:
        pass

    def column(self, j: int, w: Tensor) -> Tensor:
        return self.grids[self.group[j]].round(w)


def gptq(W: Tensor, stats: InputStatistics, spec: QuantSpec, layer: str = "layer") -> Tensor:
    """Quantize column by column, moving each column's rounding error onto those to come.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics
        Statistics of the layer's input; all of ``gram`` is read.
    spec : QuantSpec
        Bits, group size, symmetry, ``damp``, ``act_order``, ``static_groups``, ``block_size``.
    layer : str
        Name for error messages.

    Returns
    -------
    Tensor of shape (d_out, d_in)
        Values on the grid.

    Raises
    ------
    NumericsError
        If the Hessian is singular after damping.

    Notes
    -----
    A group's grid is fitted to its weights as they are when the sweep arrives there. The reference fits it
    to weights that lack the updates from inside the running block, which differs when a block holds several
    groups. With ``act_order`` and without ``static_groups`` a group is ``group_size`` columns that follow one
    another in the order of the sweep, as in the reference, and so scattered over the layer.

    References
    ----------
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    arXiv 2210.17323, algorithm 1; ``gptq.py`` of IST-DASLab/gptq.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import gptq, method_spec
    >>> from cola_lib.statistics import InputStatistics
    >>> X = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 3.0, 1.0, -1.0], [2.0, 1.0, 0.0, 1.0], [1.0, -1.0, 1.0, 3.0]])
    >>> stats = InputStatistics.empty(4)
    >>> stats.update(X)
    >>> W = torch.tensor([[0.9, -0.1, 0.5, 0.2], [0.3, 0.8, -0.6, 0.1]])
    >>> rounded = gptq(W, stats, method_spec("gptq", bits=2, group_size=4))
    >>> [row.unique().numel() <= 4 for row in rounded]
    [True, True]
    """
    return gptq_on_grid(W, stats, spec, layer).values


def gptq_on_grid(W: Tensor, stats: InputStatistics, spec: QuantSpec, layer: str = "layer") -> OnGrid:
    """Like :func:`gptq`, with the grid.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics
        Statistics of the layer's input.
    spec : QuantSpec
        As for :func:`gptq`.
    layer : str
        Name for error messages.
    """
    d_in = W.shape[1]
    group_size = d_in if spec.settled_group_size == -1 else spec.settled_group_size
    U, order = stats.inverse_factor(spec.damp, layer, act_order=spec.act_order)
    W = W.masked_fill(stats.gram.diagonal() == 0, 0)
    V = W.T[order]  # (d_in, d_out), contiguous
    block, sub_block = _blocks(group_size, d_in, spec.block_size)
    rule = _RoundStatic(W, order, group_size, spec) if spec.static_groups else _Round(group_size, spec)
    sweep(V, U, rule, block=block, sub_block=sub_block)
    place = torch.argsort(order)  # of each column in the sweep
    grid = Grid(*(torch.stack(parts, dim=1) for parts in zip(*rule.grids, strict=True)))  # (d_out, n_groups)
    scattered = spec.act_order and not spec.static_groups and group_size < d_in
    return OnGrid(V[place].T.contiguous(), grid, place // group_size if scattered else None)
