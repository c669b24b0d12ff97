"""GPTQ: round, and let the weights still to be rounded make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from cola_lib.compress.grid import Grid, fit_grid, grid_of, in_groups
from cola_lib.compress.quantized import OnGrid
from cola_lib.compress.rtn import rtn_on_grid
from cola_lib.compress.specs import METHODS, SILENT, SINCE, Problem, QuantSpec, Solution, positive
from cola_lib.compress.sweep import SUB_BLOCK, sweep
from cola_lib.errors import SpecError
from cola_lib.registry import revisions
from cola_lib.statistics import InputStatistics, gram_matrix


@METHODS.register
@dataclass(frozen=True)
class GPTQ(QuantSpec):
    """GPTQ: round column by column, and let the weights still to be rounded make up for the error.

    Parameters
    ----------
    bits : int
        Bits of each weight, 2 to 8.
    group_size : int or None
        Consecutive inputs of a row that share a scale; -1 for whole rows, ``None`` for the largest that fits up to 128.
    symmetric : bool
        Zero point fixed at the middle of the range, instead of fitted.
    act_bits : int or None
        Bits, 2 to 8, of each activation; ``None`` leaves activations as they are.
    act_strategy : {"token", "tensor"}
        What shares a range of activations.
    damp : float or "auto"
        Share of the mean diagonal that is added to the Hessian's diagonal. ``"auto"`` chooses it for each input, on
        held-out rows: see :func:`choose_damp`.
    act_order : bool
        Quantize columns by falling Hessian diagonal.
    static_groups : bool
        Fit every group's scale to the untouched weights, over neighbouring columns, before the sweep. With
        ``act_order`` this keeps groups contiguous, which fast kernels need.
    block_size : int
        Columns after which the update of the rest is applied. It changes speed, not results.
    keep_zeros : bool or None
        Keep weights at zero that are zero, and with them an N:M pattern. ``None`` does so in layers where at
        least 5 % of the weights are zero, as they are after pruning.

    References
    ----------
    Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
    arXiv 2210.17323.

    Examples
    --------
    >>> from cola_lib.compress import GPTQ
    >>> GPTQ(bits=3, act_order=True).label
    'gptq 3-bit act-order'
    """

    method: ClassVar[str] = "gptq"

    damp: float | Literal["auto"] = 0.01
    act_order: bool = False
    static_groups: bool = False
    block_size: int = field(default=128, metadata=SILENT)
    keep_zeros: bool | None = field(default=None, metadata=SINCE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.damp, str):
            positive("damp", self.damp)
        positive("block_size", self.block_size)

    @property
    def label(self) -> str:
        """Short name for tables and figures, for example ``"gptq 3-bit act-order"``."""
        return super().label + " act-order" * self.act_order + " auto-damp" * self.chooses_damp

    @property
    def chooses_damp(self) -> bool:
        """Whether the damping is chosen on held-out rows."""
        return self.damp == "auto"

    def key(self) -> dict[str, Any]:
        """Everything that decides the numbers, for a fingerprint."""
        key = super().key()
        return key | {"revisions": key["revisions"] | revisions("auto_damp")} if self.chooses_damp else key

    def solve(self, problem: Problem) -> Solution:
        """Round the layers in one sweep over the columns of their common input: rows do not depend on each other."""
        spec, ratios = self, None
        if problem.parts is not None:
            damp, ratios = choose_damp(problem.weights, *problem.parts, self, problem.layers[0])
            spec = replace(self, damp=damp)
        zeros = zeros_to_keep(problem.weights, spec)
        stacked = gptq_on_grid(torch.cat(problem.weights), problem.statistics, spec, problem.layers[0], zeros)
        solution = Solution.on_grid(stacked.split([W.shape[0] for W in problem.weights]))
        used = None if isinstance(spec.damp, str) else spec.damp  # a text has been refused above
        return solution._replace(damp=used, held_out_ratios=ratios)


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


DAMPS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Dampings that ``damp="auto"`` tries: shares of the mean diagonal, closest where the least error tends to lie."""

SPARSE = 0.05
"""Share of zeros from which a layer counts as pruned, as in llm-compressor's GPTQ."""


def zeros_to_keep(weights: Sequence[Tensor], spec: GPTQ) -> Tensor | None:
    """Mark the zeros that stay zero, in layers that read one input."""
    if spec.keep_zeros is False:
        return None
    zeros = [W == 0 for W in weights]
    if spec.keep_zeros is None:
        pruned = torch.stack([of_layer.float().mean() for of_layer in zeros]) >= SPARSE
        if not pruned.any():
            return None
        zeros = [of_layer & keeps for of_layer, keeps in zip(zeros, pruned, strict=True)]
    return torch.cat(zeros)


@dataclass(frozen=True)
class _Round:
    """Round columns to their group's grid."""

    bits: int
    symmetric: bool
    group_size: int
    fitted: bool  # beforehand; otherwise when the sweep arrives at a group inside the block

    def panel(self, left: int, right: int, V: Tensor, U: Tensor, *given: Tensor) -> None:
        if not self.fitted and left % self.group_size == 0:
            group = slice(left, left + self.group_size)
            grid = _fit(V[group], [zeros[group] for zeros in given[3:]], self.bits, self.symmetric)
            for held, fitted in zip(given[:3], grid, strict=True):
                held[left // self.group_size] = fitted

    def column(self, j: int, w: Tensor, *given: Tensor) -> Tensor:
        value = Grid(*(held[j // self.group_size] for held in given[:3])).round(w)
        for zeros in given[3:]:
            value.masked_fill_(zeros[j], 0)
        return value


def _fit(group: Tensor, zeros: Sequence[Tensor], bits: int, symmetric: bool) -> Grid:
    """Fit the grid to a group of columns, without what stays zero in them."""
    for kept in zeros:
        group = group.masked_fill(kept, 0)
    return fit_grid(*group.aminmax(dim=0), bits, symmetric)


def gptq(W: Tensor, stats: InputStatistics, spec: GPTQ, layer: str = "layer") -> Tensor:
    """Quantize column by column, moving each column's rounding error onto those to come.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics
        Statistics of the layer's input; all of ``gram`` is read.
    spec : GPTQ
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
    :class:`~cola_lib.compress.GPTQ`. They are treated as SparseGPT treats what it prunes: the compensation
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
    W: Tensor, stats: InputStatistics, spec: GPTQ, layer: str = "layer", zeros: Tensor | None = None
) -> OnGrid:
    """Like :func:`gptq`, with the grid."""
    if isinstance(spec.damp, str):
        raise SpecError(f"{layer}: damp={spec.damp!r} is settled on held-out rows; call choose_damp, or give a number")
    d_in, group_size = W.shape[1], in_groups(W, spec.settled_group_size).shape[2]
    U, order = stats.inverse_factor(spec.damp, layer, act_order=spec.act_order)
    W = W.masked_fill(stats.gram.diagonal() == 0, 0)
    V = W.T[order]  # (d_in, d_out), contiguous
    block, sub_block = _blocks(group_size, d_in, spec.block_size)
    kept = () if zeros is None else (zeros.T[order],)
    inside = not spec.static_groups and group_size <= block
    rule = _Round(spec.bits, spec.symmetric, 1 if spec.static_groups else group_size, fitted=not inside)
    grids: list[Grid] = []  # each of shape (n_groups, d_out), in the order of the sweep
    if spec.static_groups:
        grids.append(Grid(*(t.squeeze(-1).T for t in grid_of(in_groups(W, group_size), spec.bits, spec.symmetric))))

    def given(start: int, stop: int, V: Tensor) -> tuple[Tensor, ...]:
        if spec.static_groups:  # a row for each column
            of_block = Grid(*(t[order[start:stop] // group_size] for t in grids[0]))
        elif inside:
            of_block = Grid(*V.new_empty(3, (stop - start) // group_size, V.shape[1]))
            grids.append(of_block)
        else:
            if start % group_size == 0:
                group = slice(start, start + group_size)
                grid = _fit(V[group], [zeros[group] for zeros in kept], spec.bits, spec.symmetric)
                grids.append(Grid(*(t[None] for t in grid)))
            of_block = grids[-1]
        return (*of_block, *(zeros[start:stop] for zeros in kept))

    sweep(V, U, rule, given, block=block, sub_block=sub_block)
    place = torch.argsort(order)  # of each column in the sweep
    grid = Grid(*(torch.cat(parts).T.contiguous() for parts in zip(*grids, strict=True)))  # (d_out, n_groups)
    scattered = spec.act_order and not spec.static_groups and group_size < d_in
    return OnGrid(V[place].T.contiguous(), grid, place // group_size if scattered else None)


def held_out_ratio(
    W: Tensor, stats: InputStatistics, held_out: InputStatistics, spec: GPTQ, layer: str = "layer"
) -> float:
    """Compare GPTQ with rounding to nearest, by the output error on inputs that GPTQ has not seen.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics
        Statistics that GPTQ solves with.
    held_out : InputStatistics
        Statistics of other inputs.
    spec : GPTQ
        As for :func:`gptq`, with a number for ``damp``.
    layer : str
        Name for error messages.

    Returns
    -------
    float
        J(GPTQ) / J(RTN), where J = tr(ΔW·G·ΔWᵀ) and G is the held-out Gram matrix. Above 1, GPTQ has fitted its
        rounding to the calibration text and loses to rounding without any. 1 where neither makes an error.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import held_out_ratio, method_spec
    >>> from cola_lib.statistics import InputStatistics
    >>> parts = InputStatistics.empty(8), InputStatistics.empty(8)
    >>> inputs = torch.randn(132, 8, generator=torch.Generator().manual_seed(0))
    >>> parts[0].update(inputs[:3])  # fewer tokens than channels
    >>> parts[1].update(inputs[3:])
    >>> W = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    >>> weak, strong = (method_spec("gptq", bits=3, group_size=8, damp=damp) for damp in (0.001, 1.0))
    >>> held_out_ratio(W, *parts, weak) > 2 * held_out_ratio(W, *parts, strong)
    True
    """
    return held_out_ratios([W], stats, [held_out], spec, layer)[0][0]


def held_out_ratios(
    weights: Sequence[Tensor],
    stats: InputStatistics,
    held_out: Sequence[InputStatistics],
    spec: GPTQ,
    layer: str = "layers",
) -> list[list[float]]:
    """Held-out ratio of layers that read one input, on several held-out sets, from one sweep."""
    W, sizes = torch.cat(list(weights)), [len(each) for each in weights]
    rounded = gptq_on_grid(W, stats, spec, layer, zeros_to_keep(weights, spec)).values, rtn_on_grid(W, spec).values
    deltas = [[gram_matrix(delta) for delta in (new - W).split(sizes)] for new in rounded]
    found = []
    for each in held_out:
        lost, plain = (torch.stack([each.energy_under(delta) for delta in of_method]) for of_method in deltas)
        found.append(torch.where(lost == plain, 1.0, lost / plain).tolist())
    return found


class DampChoice(NamedTuple):
    """A damping, and how GPTQ fares with it on held-out rows."""

    damp: float
    ratios: list[float]


def choose_damp(
    weights: Sequence[Tensor],
    stats: InputStatistics,
    held_out: InputStatistics,
    spec: GPTQ,
    layer: str = "layers",
    damps: Sequence[float] = DAMPS,
) -> DampChoice:
    """Choose the damping with which GPTQ makes the least error on held-out inputs.

    Parameters
    ----------
    weights : sequence of Tensor of shape (d_out_i, d_in)
        Weights of layers that read one input. They share the Hessian, and so the damping.
    stats : InputStatistics
        Statistics that GPTQ solves with.
    held_out : InputStatistics
        Statistics of other inputs, which decide.
    spec : GPTQ
        As for :func:`gptq`. Its own ``damp``, if it is a number, is the only one tried.
    layer : str
        Name for error messages.
    damps : sequence of float
        Dampings to try when ``damp`` is ``"auto"``.

    Returns
    -------
    DampChoice
        With the least mean ratio over the layers.
    """
    tried = []
    for damp in damps if isinstance(spec.damp, str) else [spec.damp]:
        (ratios,) = held_out_ratios(weights, stats, [held_out], replace(spec, damp=damp), layer)
        stats.forget_factors()  # of a wide layer, each is most of a gigabyte
        tried.append(DampChoice(damp, ratios))
    return min(tried, key=lambda choice: sum(choice.ratios))
