"""RIA: prune by relative importance of weights, and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cola_lib.compress.masks import prune_mask
from cola_lib.compress.specs import METHODS, Problem, PruneSpec, Solution
from cola_lib.errors import SpecError
from cola_lib.statistics.inputs import ChannelSums


@METHODS.register
@dataclass(frozen=True)
class RIA(PruneSpec):
    """RIA: remove the weights that are small relative to their row and column, and to their input.

    Parameters
    ----------
    sparsity : float
        Share of weights removed, in [0, 1]. An N:M pattern determines it.
    pattern : (int, int) or None
        (N, M): in each M consecutive inputs of a row, N weights stay and M − N go.
    exponent : float
        Power of the input norm; 0 ignores the inputs.

    References
    ----------
    Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024.

    Examples
    --------
    >>> from cola_lib.compress import RIA
    >>> RIA(sparsity=0.5, exponent=1.0).label
    'ria 50%'
    """

    method: ClassVar[str] = "ria"
    reads_gram: ClassVar[bool] = False

    exponent: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exponent < 0:
            raise SpecError(f"exponent must not be below 0, and is {self.exponent:g}")

    def solve(self, problem: Problem) -> Solution:
        """Prune each layer by itself."""
        return Solution([ria(W, problem.statistics, self) for W in problem.weights])


def ria(W: Tensor, stats: ChannelSums, spec: RIA) -> Tensor:
    """Prune by a weight's share of its row and of its column, times a power of the input norm.

    Notes
    -----
    Weights are compared over the whole layer, as in the reference code: shares are made to be compared between rows. A
    row or column of zeros gives its weights a share of zero. Exactly the asked number of weights goes; the reference
    compares with a threshold and removes one more, or several where scores tie. The permutation of channels that the
    paper adds for N:M patterns is not done.

    References
    ----------
    Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models", ICLR 2024;
    ``prune.py`` of biomedical-cybernetics/Relative-importance-and-activation-pruning.
    """
    magnitude = W.abs()
    score = _shares(magnitude, dim=0) + _shares(magnitude, dim=1)  # of its column (an input) and of its row (an output)
    score *= stats.input_norm() ** spec.exponent  # (d_out, d_in) * (d_in,)
    return W.masked_fill(prune_mask(score, spec, per_row=False), 0)


def _shares(magnitude: Tensor, dim: int) -> Tensor:
    total = magnitude.sum(dim, keepdim=True)
    return magnitude / torch.where(total == 0, 1.0, total)
