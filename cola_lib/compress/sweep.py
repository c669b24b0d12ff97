"""The column sweep that SparseGPT and GPTQ share.

Both walk over the inputs of a layer in order. Each column of the weight is replaced by what the method
allows (zeros, or values on a grid), and the error this makes in the layer's output is moved onto the columns
still to come, as optimal brain surgery does. The methods differ in the rule alone.

Speed comes from two things. The weight is held transposed, so that a column is contiguous. And the update is
deferred at three levels: within a panel, column by column; within a sub-block, panel by panel, by one small
matrix product that catches up on everything since the sub-block began; and for all that lies to the right,
by large matrix products at the end of each sub-block and block. The arithmetic is that of the naive sweep.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

SUB_BLOCK = 32
"""Columns caught up panel by panel: few enough that their errors stay in the cache."""


class Rule(Protocol):
    """What a method allows a column to become."""

    def begin_block(self, start: int, stop: int, V: Tensor) -> None:
        """Look at columns ``start`` to ``stop`` of ``V`` (d_in, d_out), up to date, before any of them is settled."""

    def begin_panel(self, start: int, stop: int, V: Tensor) -> None:
        """Look at a panel, up to date; at the start of a sub-block, the rest of its block is up to date too."""

    def column(self, j: int, w: Tensor) -> Tensor:
        """Give the value of column ``j``, from its up-to-date weights ``w`` of shape (d_out,)."""


def sweep(V: Tensor, U: Tensor, rule: Rule, *, block: int, sub_block: int = SUB_BLOCK, panel: int = 1) -> Tensor:
    """Settle the columns of a weight in order, moving each one's error onto those to come.

    Parameters
    ----------
    V : Tensor of shape (d_in, d_out), float32
        The transposed weight, contiguous. Overwritten with the result.
    U : Tensor of shape (d_in, d_in), float32
        Upper Cholesky factor of the inverse of the damped Hessian.
    rule : Rule
        What a column may become.
    block : int
        Columns after which everything to the right is brought up to date.
    sub_block : int
        Columns after which the rest of the block is brought up to date.
    panel : int
        Columns that the rule wants to see up to date together; divides ``sub_block``.

    Returns
    -------
    Tensor of shape (d_in, d_out)
        ``V``.

    References
    ----------
    Frantar and Alistarh, "SparseGPT", arXiv 2301.00774, algorithm 1; Frantar et al., "GPTQ", arXiv 2210.17323,
    algorithm 1.
    """
    d_in, d_out = V.shape
    pivots = U.diagonal().tolist()
    errors = torch.empty(min(block, d_in), d_out, dtype=V.dtype, device=V.device)
    for start in range(0, d_in, block):
        stop = min(start + block, d_in)
        E = errors[: stop - start]  # (columns of the block, d_out)
        rule.begin_block(start, stop, V)
        for first in range(start, stop, sub_block):
            last = min(first + sub_block, stop)
            for left in range(first, last, panel):
                right = min(left + panel, last)
                if left > first:
                    V[left:right].addmm_(U[first:left, left:right].T, E[first - start : left - start], alpha=-1)
                rule.begin_panel(left, right, V)
                for j in range(left, right):
                    w, e = V[j], E[j - start]
                    value = rule.column(j, w)
                    torch.sub(w, value, out=e).div_(pivots[j])
                    w.copy_(value)
                    if j + 1 < right:
                        V[j + 1 : right].addr_(U[j, j + 1 : right], e, alpha=-1)
            if last < stop:
                V[last:stop].addmm_(U[first:last, last:stop].T, E[first - start : last - start], alpha=-1)
        if stop < d_in:
            V[stop:].addmm_(U[start:stop, stop:].T, E, alpha=-1)
    return V
