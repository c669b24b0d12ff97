"""Joint low-rank approximation: a control that reads no data."""

from __future__ import annotations

import torch
from torch import Tensor

from cola_lib.compress.specs import LowRankSpec


def joint_lowrank(weights: list[Tensor], spec: LowRankSpec) -> list[Tensor]:
    """Approximate weights that read the same input by one low-rank factorization.

    Parameters
    ----------
    weights : list of Tensor of shape (d_out_i, d_in)
        Of queries and keys, or of gate and up projection.
    spec : LowRankSpec
        Share of the parameters to keep.

    Returns
    -------
    list of Tensor of shape (d_out_i, d_in)
        The approximations, multiplied out: row blocks of U_k S_k V_kᵀ, the best rank-k approximation of the stacked
        weights in squared error (Eckart and Young).

    Notes
    -----
    The stacking, and a rank for each pair from the share of parameters to keep, are our reading of the paper's text,
    whose details could not be had.

    References
    ----------
    Peng et al., "Data-free Weight Compress and Denoise for Large Language Models", arXiv 2402.16319.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import LowRankSpec, joint_lowrank
    >>> queries, keys = torch.randn(8, 6), torch.randn(4, 6)
    >>> low = joint_lowrank([queries, keys], LowRankSpec(keep=0.5))
    >>> torch.linalg.matrix_rank(torch.cat(low)).item()
    2
    """
    stacked = torch.cat(weights)
    U, S, Vh = torch.linalg.svd(stacked.double(), full_matrices=False)
    rank = spec.rank(*stacked.shape)
    low = ((U[:, :rank] * S[:rank]) @ Vh[:rank]).float()
    return list(low.split([len(W) for W in weights]))
