"""Round to nearest: the control that reads no data."""

from __future__ import annotations

from torch import Tensor

from cola_lib.compress.grid import Grid, grid_of, in_groups
from cola_lib.compress.quantized import OnGrid
from cola_lib.compress.specs import QuantSpec


def rtn(W: Tensor, spec: QuantSpec) -> Tensor:
    """Round each weight to the nearest value on its group's grid.

    Parameters
    ----------
    W : Tensor of shape (d_out, d_in)
        Weight of a linear layer.
    spec : QuantSpec
        Bits, group size and symmetry.

    Returns
    -------
    Tensor of shape (d_out, d_in)
        Values on the grid.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import method_spec, rtn
    >>> spec = method_spec("rtn", bits=2, group_size=4)
    >>> rtn(torch.tensor([[-1.0, 0.1, 0.9, 2.0]]), spec)
    tensor([[-1.0000,  0.0000,  1.0000,  2.0000]])
    """
    return rtn_on_grid(W, spec).values


def rtn_on_grid(W: Tensor, spec: QuantSpec) -> OnGrid:
    """Like :func:`rtn`, with the grid."""
    groups = in_groups(W, spec.settled_group_size)  # (d_out, n_groups, group_size)
    grid = grid_of(groups, spec.bits, spec.symmetric)
    return OnGrid(grid.round(groups).flatten(1), Grid(*(tensor.squeeze(-1) for tensor in grid)))
