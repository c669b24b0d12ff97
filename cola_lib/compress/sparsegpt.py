"""SparseGPT: prune, and let the remaining weights make up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cola_lib.compress.masks import count, lowest_of_pattern, lowest_overall
from cola_lib.compress.specs import METHODS, Problem, PruneSpec, Solution, positive
from cola_lib.compress.sweep import SUB_BLOCK, sweep
from cola_lib.errors import SpecError
from cola_lib.statistics import InputStatistics


@METHODS.register
@dataclass(frozen=True)
class SparseGPT(PruneSpec):
    """SparseGPT: remove the weights of least predicted loss, and update the others to make up for it.

    Parameters
    ----------
    sparsity : float
        Share of weights removed, in [0, 1]. An N:M pattern determines it.
    pattern : (int, int) or None
        (N, M): in each M consecutive inputs of a row, N weights stay and M − N go.
    damp : float
        Share of the mean diagonal that is added to the Hessian's diagonal.
    block_size : int
        Columns whose mask is chosen together.

    References
    ----------
    Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", arXiv 2301.00774.

    Examples
    --------
    >>> from cola_lib.compress import SparseGPT
    >>> SparseGPT(pattern=(2, 4), damp=0.1).label
    'sparsegpt 2:4'
    """

    method: ClassVar[str] = "sparsegpt"

    damp: float = 0.01
    block_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("damp", self.damp)
        positive("block_size", self.block_size)
        if self.pattern is not None and self.block_size % self.pattern[1]:
            raise SpecError(f"block_size {self.block_size} is no multiple of the pattern's {self.pattern[1]}")

    def solve(self, problem: Problem) -> Solution:
        """Prune the layers in one sweep over their common input; each keeps its own share of weights."""
        return Solution(sparsegpt_stacked(problem.weights, problem.statistics, self, problem.layers[0]))


@dataclass(frozen=True)
class _Prune:
    """Zero the columns' least salient weights: w² / U_jj², the loss that optimal brain surgery predicts."""

    pattern: tuple[int, int] | None

    def panel(self, left: int, right: int, V: Tensor, U: Tensor, *given: Tensor) -> None:
        if self.pattern is not None:
            (mask,) = given
            score = _score(V[left:right], U.diagonal()[left:right]).T  # (d_out, M)
            mask[left:right] = lowest_of_pattern(score, self.pattern).T

    def column(self, j: int, w: Tensor, *given: Tensor) -> Tensor:
        (mask,) = given
        return w.masked_fill(mask[j], 0)


def _score(V: Tensor, pivots: Tensor) -> Tensor:
    return (V / pivots[:, None]).square_()


def sparsegpt(W: Tensor, stats: InputStatistics, spec: SparseGPT, layer: str = "layer") -> Tensor:
    """Prune by predicted loss, and update the kept weights to make up for it.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics
        Statistics of the layer's input; all of ``gram`` is read.
    spec : SparseGPT
        Sparsity or an N:M pattern, ``damp``, and ``block_size``: the columns whose mask is chosen together.
    layer : str
        Name for error messages.

    Returns
    -------
    Tensor of shape (d_out, d_in)
        Pruned entries are zero; kept entries differ from ``W``.

    Raises
    ------
    NumericsError
        If the Hessian is singular after damping.
    SpecError
        If M does not divide d_in.

    Notes
    -----
    Exactly the asked share of each block goes. The reference compares scores with the k-th lowest, counted from 0, and
    prunes one weight more. A Hessian that stays singular is an error.

    References
    ----------
    Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
    arXiv 2301.00774, algorithm 1; ``sparsegpt.py`` of IST-DASLab/sparsegpt.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import method_spec, sparsegpt
    >>> from cola_lib.statistics import InputStatistics
    >>> X = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 3.0, 1.0, -1.0], [2.0, 1.0, 0.0, 1.0], [1.0, -1.0, 1.0, 3.0]])
    >>> stats = InputStatistics.empty(4)
    >>> stats.update(X)
    >>> W = torch.tensor([[0.9, -0.1, 0.5, 0.2], [0.3, 0.8, -0.6, 0.1]])
    >>> pruned = sparsegpt(W, stats, method_spec("sparsegpt", sparsity=0.5))
    >>> int((pruned == 0).sum()), bool(((pruned != 0) & (pruned != W)).any())
    (4, True)
    """
    return sparsegpt_stacked([W], stats, spec, layer)[0]


def sparsegpt_stacked(
    weights: Sequence[Tensor], stats: InputStatistics, spec: SparseGPT, layer: str = "layers"
) -> list[Tensor]:
    """Prune layers that read one input in one sweep over its columns; each keeps its own share of weights."""
    d_in = weights[0].shape[1]
    if spec.pattern is not None and d_in % spec.pattern[1]:
        raise SpecError(f"{layer}: {spec.pattern[1]} does not divide the layer's width {d_in}")
    U, _ = stats.inverse_factor(spec.damp, layer)
    V = torch.cat([W.T for W in weights], dim=1)  # (d_in, d_out), contiguous
    V[stats.gram.diagonal() == 0] = 0
    panel = spec.pattern[1] if spec.pattern else 1
    sub_block = panel * max(1, SUB_BLOCK // panel)
    d_outs = [len(W) for W in weights]

    def masks(start: int, stop: int, V: Tensor) -> tuple[Tensor]:
        mask = torch.zeros(stop - start, sum(d_outs), dtype=torch.bool, device=V.device)
        if spec.pattern is None:
            scores = _score(V[start:stop], U.diagonal()[start:stop]).split(d_outs, dim=1)
            for part, score in zip(mask.split(d_outs, dim=1), scores, strict=True):
                part.copy_(lowest_overall(score, count(score.numel(), spec.sparsity)))  # a layer keeps its share
        return (mask,)

    sweep(V, U, _Prune(spec.pattern), masks, block=spec.block_size, sub_block=sub_block, panel=panel)
    return [part.T.contiguous() for part in V.split(d_outs, dim=1)]
