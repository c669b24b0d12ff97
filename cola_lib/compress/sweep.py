"""The column sweep that SparseGPT and GPTQ share.

Both walk over the inputs of a layer in order. Each column of the weight is replaced by what the method
allows (zeros, or values on a grid), and the error this makes in the layer's output is moved onto the columns
still to come, as optimal brain surgery does. The methods differ in the rule alone.

Speed comes from two things. The weight is held transposed, so that a column is contiguous. And the update is
deferred at three levels: within a panel, column by column; within a sub-block, panel by panel, by one small
matrix product that catches up on everything since the sub-block began; and for all that lies to the right,
by large matrix products at the end of each sub-block and block. The arithmetic is that of the naive sweep.

On a GPU a block of columns is thousands of launches that each take longer than their work. There all blocks of one
shape replay one CUDA graph; what it holds, some 100 MB for an 8 B model, stays for the next layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from cola_lib.compress.captured import Captured

SUB_BLOCK = 32
"""Columns caught up panel by panel: few enough that their errors stay in the cache."""

Given = Callable[[int, int, Tensor], tuple[Tensor, ...]]
"""Takes the ends of a block and all of ``V``, up to date; returns the tensors that the block's rule reads or fills."""


class Rule(Protocol):
    """What a method allows the columns of a block to become."""

    def __hash__(self) -> int:
        """Rules that are equal share a graph."""

    def panel(self, left: int, right: int, V: Tensor, U: Tensor, *given: Tensor) -> None:
        """Look at a panel, up to date; at the start of a sub-block, the rest of its block is up to date too."""

    def column(self, j: int, w: Tensor, *given: Tensor) -> Tensor:
        """Give the value of column ``j``, from its up-to-date weights ``w`` of shape (d_out,)."""


def settle(
    V: Tensor, U: Tensor, E: Tensor, *given: Tensor, rule: Rule, sub_block: int = SUB_BLOCK, panel: int = 1
) -> None:
    """Settle the columns of one block, in place."""
    pivots = U.diagonal().unbind()
    stop = len(V)
    for first in range(0, stop, sub_block):
        last = min(first + sub_block, stop)
        for left in range(first, last, panel):
            right = min(left + panel, last)
            if left > first:
                V[left:right].addmm_(U[first:left, left:right].T, E[first:left], alpha=-1)
            rule.panel(left, right, V, U, *given)
            for j in range(left, right):
                w, e = V[j], E[j]
                value = rule.column(j, w, *given)
                torch.sub(w, value, out=e).div_(pivots[j])
                w.copy_(value)
                if j + 1 < right:
                    V[j + 1 : right].addr_(U[j, j + 1 : right], e, alpha=-1)
        if last < stop:
            V[last:stop].addmm_(U[first:last, last:stop].T, E[first:last], alpha=-1)


@lru_cache(maxsize=4)  # the shapes of a model's layers, for the method at hand
def _replayed(rule: Rule, sub_block: int, panel: int, shape: tuple[int, ...], device: torch.device) -> Captured:
    """Make one graph for all blocks that are alike."""
    return Captured(lambda *tensors: settle(*tensors, rule=rule, sub_block=sub_block, panel=panel))


def sweep(
    V: Tensor, U: Tensor, rule: Rule, given: Given, *, block: int, sub_block: int = SUB_BLOCK, panel: int = 1
) -> Tensor:
    """Settle the columns of a weight in order, moving each one's error onto those to come.

    References
    ----------
    Frantar and Alistarh, "SparseGPT", arXiv 2301.00774, algorithm 1; Frantar et al., "GPTQ", arXiv 2210.17323,
    algorithm 1.
    """
    d_in, d_out = V.shape
    errors = torch.empty(min(block, d_in), d_out, dtype=V.dtype, device=V.device)
    for start in range(0, d_in, block):
        stop = min(start + block, d_in)
        E = errors[: stop - start]
        tensors = (V[start:stop], U[start:stop, start:stop], E, *given(start, stop, V))
        if V.is_cuda and stop - start == block:
            _replayed(rule, sub_block, panel, tuple(E.shape), V.device)(*tensors)
        else:
            settle(*tensors, rule=rule, sub_block=sub_block, panel=panel)
        if stop < d_in:
            V[stop:].addmm_(U[start:stop, stop:].T, E, alpha=-1)
    return V
