"""RIA: prune by relative importance of weights, and activations."""

from __future__ import annotations

import torch
from torch import Tensor

from cola_lib.compress.masks import prune_mask
from cola_lib.compress.specs import PruneSpec
from cola_lib.statistics.inputs import ChannelSums


def ria(W: Tensor, stats: ChannelSums, spec: PruneSpec) -> Tensor:
    """Prune by a weight's share of its row and of its column, times a power of the input norm.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    stats : InputStatistics or ChannelStatistics
        Statistics of the layer's input; only the diagonal of ``gram`` is read.
    spec : PruneSpec
        Sparsity of the layer, or an N:M pattern, and the ``exponent`` of the input norm.

    Returns
    -------
    Tensor of shape (d_out, d_in)
        ``W`` with the pruned entries at zero; kept entries are unchanged.

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

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import method_spec, ria
    >>> from cola_lib.statistics import InputStatistics
    >>> X = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 3.0, 1.0, -1.0], [2.0, 1.0, 0.0, 1.0], [1.0, -1.0, 1.0, 3.0]])
    >>> stats = InputStatistics.empty(4)
    >>> stats.update(X)
    >>> W = torch.tensor([[0.9, -0.1, 0.5, 0.2], [0.3, 0.8, -0.6, 0.1]])
    >>> pruned = ria(W, stats, method_spec("ria", sparsity=0.5))
    >>> int((pruned == 0).sum())
    4
    """
    magnitude = W.abs()
    score = _shares(magnitude, dim=0) + _shares(magnitude, dim=1)  # of its column (an input) and of its row (an output)
    score *= stats.input_norm() ** spec.exponent  # (d_out, d_in) * (d_in,)
    return W.masked_fill(prune_mask(score, spec, per_row=False), 0)


def _shares(magnitude: Tensor, dim: int) -> Tensor:
    total = magnitude.sum(dim, keepdim=True)
    return magnitude / torch.where(total == 0, 1.0, total)
