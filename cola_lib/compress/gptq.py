"""GPTQ: round, and let the weights still to be rounded make up for it."""

from __future__ import annotations

from collections.abc import Sequence

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


SPARSE = 0.05
"""Share of zeros from which a layer counts as pruned, as in llm-compressor's GPTQ."""


def zeros_to_keep(weights: Sequence[Tensor], spec: QuantSpec) -> Tensor | None:
    """Mark the zeros that stay zero, in layers that read one input.

    Parameters
    ----------
    weights : sequence of Tensor of shape (d_out_i, d_in)
        Weights of the layers.
    spec : QuantSpec
        ``keep_zeros`` decides.

    Returns
    -------
    Tensor of shape (d_out, d_in), bool, or None
        Of the stacked weights; ``None`` if no layer keeps its zeros.
    """
    if spec.keep_zeros is False:
        return None
    zeros = [W == 0 for W in weights]
    if spec.keep_zeros is None:
        pruned = torch.stack([of_layer.float().mean() for of_layer in zeros]) >= SPARSE
        if not pruned.any():
            return None
        zeros = [of_layer & keeps for of_layer, keeps in zip(zeros, pruned, strict=True)]
    return torch.cat(zeros)


def _without(zeros: Tensor | None, j: int, column: Tensor) -> Tensor:
    """Zero what has to stay zero in a column; zeros of shape (d_in, d_out), in the order of the sweep."""
    return column if zeros is None else column.masked_fill_(zeros[j], 0)


class _Round:
    """Round columns to their group's grid, which is fitted when the sweep arrives at the group."""

    def __init__(self, zeros: Tensor | None, group_size: int, spec: QuantSpec) -> None:
        self.zeros, self.group_size, self.spec = zeros, group_size, spec
        self.grids: list[Grid] = []  # each (d_out,), in the order of the sweep

    def begin_block(self, start: int, stop: int, V: Tensor) -> None:
        pass

    def begin_panel(self, start: int, stop: int, V: Tensor) -> None:
        if start % self.group_size == 0:
            group = slice(start, start + self.group_size)
            kept = V[group] if self.zeros is None else V[group].masked_fill(self.zeros[group], 0)
            low, high = kept.aminmax(dim=0)  # (d_out,)
            self.grids.append(fit_grid(low, high, self.spec.bits, self.spec.symmetric))

    def column(self, j: int, w: Tensor) -> Tensor:
        return _without(self.zeros, j, self.grids[-1].round(w))


class _RoundStatic:
    """Round columns to grids that were fitted before the sweep."""

    def __init__(self, W: Tensor, zeros: Tensor | None, order: Tensor, group_size: int, spec: QuantSpec) -> None:
        self.zeros = zeros
        grid = grid_of(in_groups(W, group_size), spec.bits, spec.symmetric)
        by_group = (t.squeeze(-1).T.contiguous() for t in grid)  # each (n_groups, d_out)
        self.grids = [Grid(*parts) for parts in zip(*by_group, strict=True)]
        self.group = (order // group_size).tolist()

    def begin_block(self, start: int, stop: int, V: Tensor) -> None:
        pass

    def begin_panel(self, start: int, stop: int, V: Tensor) -> None:
        pass

    def column(self, j: int, w: Tensor) -> Tensor:
        return _without(self.zeros, j, self.grids[self.group[j]].round(w))


def gptq(W: Tensor, stats: InputStatistics, spec: QuantSpec, layer: str = "layer") -> Tensor:
    """Quantize column by column, moving each column's rounding error onto those to come.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics
        Statistics of the layer's input; all of ``gram`` is read.
    spec : QuantSpec
        Bits, group size, symmetry, ``damp``, ``act_order``, ``static_groups``, ``block_size`` and ``keep_zeros``.
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
    SpecError
        If the group size does not divide d_in.

    Notes
    -----
    A group's grid is fitted to its weights as they are when the sweep arrives there, as in the paper. The reference
    fits it to weights that lack the updates from inside the running block, which differs when a block holds several
    groups: at 2 bits, the paper's order has up to 3 % more layer error than the released one.

    The zeros of a pruned layer stay zero, as in llm-compressor: see ``keep_zeros`` of
    :class:`~cola_lib.compress.QuantSpec`. They are treated as SparseGPT treats what it prunes: the compensation
    that would fall on them moves on to later columns.

    With ``act_order`` and without ``static_groups`` a group is ``group_size`` columns that follow one
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
    return gptq_on_grid(W, stats, spec, layer, zeros_to_keep([W], spec)).values


def gptq_on_grid(
    W: Tensor, stats: InputStatistics, spec: QuantSpec, layer: str = "layer", zeros: Tensor | None = None
) -> OnGrid:
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
    zeros : Tensor of shape (d_out, d_in), bool, optional
        Weights that stay zero, of :func:`zeros_to_keep`.
    """
    d_in, group_size = W.shape[1], in_groups(W, spec.settled_group_size).shape[2]
    U, order = stats.inverse_factor(spec.damp, layer, act_order=spec.act_order)
    W = W.masked_fill(stats.gram.diagonal() == 0, 0)
    V = W.T[order]  # (d_in, d_out), contiguous
    block, sub_block = _blocks(group_size, d_in, spec.block_size)
    held = None if zeros is None else zeros.T[order]
    rule = _RoundStatic(W, held, order, group_size, spec) if spec.static_groups else _Round(held, group_size, spec)
    sweep(V, U, rule, block=block, sub_block=sub_block)
    place = torch.argsort(order)  # of each column in the sweep
    grid = Grid(*(torch.stack(parts, dim=1) for parts in zip(*rule.grids, strict=True)))  # (d_out, n_groups)
    scattered = spec.act_order and not spec.static_groups and group_size < d_in
    return OnGrid(V[place].T.contiguous(), grid, place // group_size if scattered else None)
