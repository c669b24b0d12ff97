"""The integer grid that quantized weights lie on, shared by all quantizers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cola_lib.errors import SpecError

UNTIE = 1e-6
"""Some ten float32 roundings: enough to decide a tie, too little to move a weight."""


class Grid(NamedTuple):
    """Scales and integer ranges of some groups of weights."""

    scale: Tensor
    low: Tensor
    high: Tensor

    def round(self, W: Tensor) -> Tensor:
        """Nearest values on the grid."""
        return torch.div(W, self.scale).round_().clamp_(self.low, self.high).mul_(self.scale)


def fit_grid(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Grid:
    """Fit the grid to a range.

    Notes
    -----
    The ends of a range that is as wide below zero as above lie half way between two integers, and so does its
    zero point: rounding noise would decide, and differently on each device. :data:`UNTIE` moves them off the tie.

    References
    ----------
    Frantar et al., "GPTQ", arXiv 2210.17323; ``quant.py`` of IST-DASLab/gptq, without its search over ranges.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    levels = 2**bits - 1
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    empty = high == low
    scale = torch.where(empty, 1.0, (high - low) * ((1 - UNTIE) / levels))
    zero = torch.full_like(scale, (levels + 1) // 2) if symmetric else torch.round(-low / scale + UNTIE)
    return Grid(scale, -zero, levels - zero)


def grid_of(groups: Tensor, bits: int, symmetric: bool) -> Grid:
    """Fit the grid to the weights of each group."""
    low, high = groups.aminmax(dim=-1, keepdim=True)
    return fit_grid(low, high, bits, symmetric)


def in_groups(W: Tensor, group_size: int) -> Tensor:
    """View the inputs of each row in groups."""
    d_in = W.shape[1]
    if group_size != -1 and d_in % group_size:
        raise SpecError(
            f"group_size {group_size} does not divide the layer's width {d_in}; take a divisor, or -1 for whole rows"
        )
    return W.unflatten(1, (-1, d_in if group_size == -1 else group_size))
