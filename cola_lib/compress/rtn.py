"""Round to nearest: the control that reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cola_lib.compress.grid import Grid, grid_of, in_groups
from cola_lib.compress.quantized import OnGrid
from cola_lib.compress.specs import METHODS, Problem, QuantSpec, Solution


@METHODS.register
@dataclass(frozen=True)
class RTN(QuantSpec):
    """Round to nearest: quantize each weight by itself, without calibration data.

    Parameters
    ----------
    bits : int
        Bits of each weight, 2 to 8.
    group_size : int or None
        Consecutive inputs of a row that share a scale; -1 for whole rows, ``None`` for the largest that fits up to 128.
    symmetric : bool
        Zero point fixed at the middle of the range, instead of fitted.
    act_bits : int or None
        Bits, 2 to 8, of each activation; ``None`` leaves activations as they are.
    act_strategy : {"token", "tensor"}
        What shares a range of activations. With ``"tensor"`` the method reads calibration data.

    Examples
    --------
    >>> from cola_lib.compress import RTN
    >>> RTN(bits=8, act_bits=8).label
    'rtn W8A8'
    """

    method: ClassVar[str] = "rtn"
    reads_gram: ClassVar[bool] = False

    @property
    def calibrated(self) -> bool:
        """Whether the method reads calibration data: only for a fixed range of activations."""
        return self.fixed_range

    def solve(self, problem: Problem) -> Solution:
        """Round each layer by itself."""
        return Solution.on_grid([rtn_on_grid(W, self) for W in problem.weights])


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
