"""Magnitude pruning: the control that reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cola_lib.compress.masks import prune_mask
from cola_lib.compress.specs import METHODS, Problem, PruneSpec, Solution


@METHODS.register
@dataclass(frozen=True)
class Magnitude(PruneSpec):
    """Magnitude pruning: remove the smallest weights of each layer, without calibration data.

    Parameters
    ----------
    sparsity : float
        Share of weights removed, in [0, 1]. An N:M pattern determines it.
    pattern : (int, int) or None
        (N, M): in each M consecutive inputs of a row, N weights stay and M − N go.

    Examples
    --------
    >>> from cola_lib.compress import Magnitude
    >>> Magnitude(sparsity=0.5).label
    'magnitude 50%'
    """

    method: ClassVar[str] = "magnitude"
    reads_gram: ClassVar[bool] = False

    @property
    def calibrated(self) -> bool:
        """Whether the method reads calibration data: it does not."""
        return False

    def solve(self, problem: Problem) -> Solution:
        """Prune each layer by itself."""
        return Solution([magnitude(W, self) for W in problem.weights])


def magnitude(W: Tensor, spec: PruneSpec) -> Tensor:
    """Prune the weights of smallest magnitude in the layer.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    spec : PruneSpec
        Sparsity of the layer, or an N:M pattern.

    Returns
    -------
    Tensor of shape (d_out, d_in)
        ``W`` with the pruned entries at zero; kept entries are unchanged.

    References
    ----------
    Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv 1506.02626.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import magnitude, method_spec
    >>> magnitude(torch.tensor([[0.5, -2.0], [1.0, 0.25]]), method_spec("magnitude", sparsity=0.5)).tolist()
    [[0.0, -2.0], [1.0, 0.0]]
    """
    return W.masked_fill(prune_mask(W.abs(), spec, per_row=False), 0)
