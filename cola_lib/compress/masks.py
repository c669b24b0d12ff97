"""Choose exactly k of the lowest scores."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cola_lib.compress.specs import PruneSpec
from cola_lib.errors import SpecError


def lowest_overall(score: Tensor, k: int) -> Tensor:
    """Mark the k lowest entries of a whole tensor.

    Notes
    -----
    On a CPU, a selection of the k-th value is several times faster than a sort, and NumPy's twice as fast as torch's.
    On a GPU torch selects from one long row with few of the card's threads. A sort is much faster there, and nothing
    has to be read back. The reference codes prune all entries at or below the k-th value, which is more than k when
    scores tie.
    """
    if k == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    flat = score.reshape(-1)
    if flat.device.type != "cpu":
        lowest = flat.argsort(stable=True)[:k]
        return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, lowest, True).reshape(score.shape)
    if flat.dtype == torch.float32:
        threshold = torch.from_numpy(np.partition(flat.numpy(), k - 1)[k - 1 : k])
    else:
        threshold = flat.kthvalue(k).values
    mask = flat < threshold
    ties = (flat == threshold).nonzero()[: k - int(mask.sum()), 0]
    mask[ties] = True
    return mask.reshape(score.shape)


def lowest_per_row(score: Tensor, k: int) -> Tensor:
    """Mark the k lowest entries of each row.

    Notes
    -----
    On a CPU, NumPy selects a row's k-th value up to three times faster than torch's ``topk`` finds the k lowest. Where
    scores tie with it and more than k are as low, ``topk`` decides.
    """
    if k == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    if score.device.type != "cpu" or score.dtype != torch.float32:
        return _lowest_by_topk(score, k)
    threshold = torch.from_numpy(np.partition(score.numpy(), k - 1, axis=-1)[..., k - 1 : k])
    mask = score <= threshold
    tied = mask.sum(-1) > k
    if tied.any():
        mask[tied] = _lowest_by_topk(score[tied], k)
    return mask


def _lowest_by_topk(score: Tensor, k: int) -> Tensor:
    mask = torch.zeros_like(score, dtype=torch.bool)
    return mask.scatter_(-1, score.topk(k, dim=-1, largest=False, sorted=False).indices, True)


def lowest_of_pattern(score: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Mark, in each M consecutive entries of a row, the M − N lowest."""
    n, m = pattern
    if score.shape[-1] % m:
        raise SpecError(f"pattern {n}:{m} needs a layer width that {m} divides, and it is {score.shape[-1]}")
    groups = score.unflatten(-1, (-1, m))
    # Counting, for each entry, those that go before it is many times faster than sorting groups this short.
    rank = torch.zeros_like(groups, dtype=torch.int16)
    for i in range(m):
        rank += groups[..., i : i + 1] < groups
        rank[..., i + 1 :] += groups[..., i : i + 1] == groups[..., i + 1 :]
    return (rank < m - n).flatten(-2)


def count(n: int, sparsity: float) -> int:
    """Nearest whole number of n entries that makes the wanted sparsity."""
    return round(n * sparsity)


def prune_mask(score: Tensor, spec: PruneSpec, *, per_row: bool) -> Tensor:
    """Mark what to prune.

    Parameters
    ----------
    score : Tensor of shape (d_out, d_in)
        Saliency; the lowest go first.
    spec : PruneSpec
        Sparsity, or an N:M pattern.
    per_row : bool
        Compare weights within each output row, instead of over the whole layer.

    Returns
    -------
    Tensor of bool, of shape (d_out, d_in)
        True = removed.
    """
    if spec.pattern is not None:
        return lowest_of_pattern(score, spec.pattern)
    if per_row:
        return lowest_per_row(score, count(score.shape[1], spec.sparsity))
    return lowest_overall(score, count(score.numel(), spec.sparsity))
