"""Magnitude pruning: the control that reads no data."""

from __future__ import annotations

from torch import Tensor

from cola_lib.compress.masks import prune_mask
from cola_lib.compress.specs import PruneSpec


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
