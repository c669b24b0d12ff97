"""Wanda: prune by weight magnitude times input norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cola_lib.compress.masks import prune_mask
from cola_lib.compress.specs import METHODS, Problem, PruneSpec, Solution
from cola_lib.statistics.inputs import ChannelSums


@METHODS.register
@dataclass(frozen=True)
class Wanda(PruneSpec):
    """Wanda: remove the weights with the smallest product of magnitude and input norm in each row.

    Parameters
    ----------
    sparsity : float
        Share of weights removed, in [0, 1]. An N:M pattern determines it.
    pattern : (int, int) or None
        (N, M): in each M consecutive inputs of a row, N weights stay and M − N go.

    References
    ----------
    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695.

    Examples
    --------
    >>> from cola_lib.compress import Wanda
    >>> Wanda(pattern=(2, 4)).label
    'wanda 2:4'
    """

    method: ClassVar[str] = "wanda"
    reads_gram: ClassVar[bool] = False

    def solve(self, problem: Problem) -> Solution:
        """Prune each layer by itself."""
        return Solution([wanda(W, problem.statistics, self) for W in problem.weights])


def wanda(W: Tensor, stats: ChannelSums, spec: PruneSpec) -> Tensor:
    """Prune by weight magnitude times input norm, within each output row.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics or ChannelStatistics
        Statistics of the layer's input; only the norms of its channels are read.
    spec : PruneSpec
        Sparsity of each row, or an N:M pattern.

    Returns
    -------
    Tensor of shape (d_out, d_in)
        ``W`` with the pruned entries at zero; kept entries are unchanged.

    Notes
    -----
    The number of weights removed from a row is rounded to the nearest whole number, where the reference rounds down.

    References
    ----------
    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv 2306.11695, eq. 1.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import method_spec, wanda
    >>> from cola_lib.statistics import InputStatistics
    >>> stats = InputStatistics.empty(3)
    >>> stats.update(torch.tensor([[1.0, 9.0, 1.0]]))
    >>> wanda(torch.tensor([[0.5, 0.1, -0.6]]), stats, method_spec("wanda", sparsity=0.34))
    tensor([[ 0.0000,  0.1000, -0.6000]])
    """
    score = W.abs() * stats.input_norm()  # (d_out, d_in) * (d_in,)
    return W.masked_fill(prune_mask(score, spec, per_row=True), 0)
