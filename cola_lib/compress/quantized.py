"""Quantized weights as the integers that they are, and what turns them back into numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cola_lib.compress.grid import Grid
from cola_lib.compress.specs import QuantSpec


class OnGrid(NamedTuple):
    """A weight that a quantizer has rounded, with the grid that its values lie on.

    Attributes
    ----------
    values : Tensor of shape (d_out, d_in), float32
        The rounded weight.
    grid : Grid
        Of tensors of shape (d_out, n_groups).
    group_index : Tensor of shape (d_in,), int64, or None
        Group of each column; ``None`` where groups are neighbouring columns.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress.quantized import OnGrid
    >>> from cola_lib.compress.grid import Grid
    >>> grid = Grid(scale=torch.tensor([[0.5]]), low=torch.tensor([[-1.0]]), high=torch.tensor([[2.0]]))
    >>> rounded = OnGrid(torch.tensor([[-0.5, 1.0]]), grid)
    >>> (rounded.values / rounded.grid.scale).tolist()
    [[-1.0, 2.0]]
    """

    values: Tensor
    grid: Grid
    group_index: Tensor | None = None

    def split(self, rows: list[int]) -> list[OnGrid]:
        """Take a stack of layers apart.

        Parameters
        ----------
        rows : list of int
            Outputs of each layer.
        """
        grids = (Grid(*parts) for parts in zip(*(tensor.split(rows) for tensor in self.grid), strict=True))
        return [
            OnGrid(values, grid, self.group_index) for values, grid in zip(self.values.split(rows), grids, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes of a weight, and scales and zero points of its groups.

    Parameters
    ----------
    codes : Tensor of shape (d_out, d_in), uint8
        From 0 to ``2**bits - 1``.
    scale : Tensor of shape (d_out, n_groups), float32
        Step between neighbouring codes.
    zero : Tensor of shape (d_out, n_groups), uint8
        The code that stands for 0; ``2**(bits - 1)`` throughout if ``symmetric``.
    bits : int
        Bits of a code.
    symmetric : bool
        Whether zero points are fixed.
    group_index : Tensor of shape (d_in,), int64, or None
        Group of each column, for groups that are scattered over the layer. ``None``: a group is
        ``d_in / n_groups`` neighbouring columns.
    divisor : Tensor of shape (d_out,), float32, or None
        What AWQ divided the rows by after rounding, because it multiplied the inputs of the next layer.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import QuantizedWeight
    >>> weight = QuantizedWeight(
    ...     codes=torch.tensor([[0, 1, 3]], dtype=torch.uint8),
    ...     scale=torch.tensor([[0.5]]),
    ...     zero=torch.tensor([[1]], dtype=torch.uint8),
    ...     bits=2,
    ...     symmetric=False,
    ... )
    >>> weight.dequantize(torch.float32).tolist()
    [[-0.5, 0.0, 1.0]]
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    symmetric: bool
    group_index: Tensor | None = None
    divisor: Tensor | None = None

    @classmethod
    def of(cls, rounded: OnGrid, spec: QuantSpec) -> QuantizedWeight:
        """Read the codes off a rounded weight.

        Parameters
        ----------
        rounded : OnGrid
            From a quantizer. A value is the float32 product of an integer below 2⁸ and the scale, so the quotient is
            that integer to within 2⁻¹⁵, and rounding finds it.
        spec : QuantSpec
            What the quantizer was asked for.

        Returns
        -------
        QuantizedWeight
            In main memory, wherever the weight is.
        """
        n_groups, (d_out, d_in) = rounded.grid.scale.shape[1], rounded.values.shape
        if rounded.group_index is None:
            grouped = rounded.values.view(d_out, n_groups, d_in // n_groups)
            codes = (grouped / rounded.grid.scale[:, :, None]).round_().sub_(rounded.grid.low[:, :, None]).flatten(1)
        else:
            scale, low = (tensor[:, rounded.group_index] for tensor in (rounded.grid.scale, rounded.grid.low))
            codes = (rounded.values / scale).round_().sub_(low)
        return cls(
            codes.to(torch.uint8).cpu(),
            rounded.grid.scale.contiguous().cpu(),
            rounded.grid.low.neg().to(torch.uint8).contiguous().cpu(),
            spec.bits,
            spec.symmetric,
            rounded.group_index.cpu() if rounded.group_index is not None else None,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        d_out, d_in = self.codes.shape
        return d_out, d_in

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    def divided(self, divisor: Tensor) -> QuantizedWeight:
        """Divide the rows, which moves their grids and no code.

        Parameters
        ----------
        divisor : Tensor of shape (d_out,)
            Positive.
        """
        return replace(self, divisor=divisor.float().cpu())

    def stored_scale(self) -> Tensor:
        """Scales with the divisor in them, as a file that knows of no divisor holds them.

        Returns
        -------
        Tensor of shape (d_out, n_groups), float32
        """
        return self.scale if self.divisor is None else self.scale / self.divisor[:, None]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Turn the codes back into the weight, step by step as the quantizer and the folding did.

        Parameters
        ----------
        dtype : torch.dtype
            Of the model.

        Returns
        -------
        Tensor of shape (d_out, d_in)
            Equal to the weight in the compressed model in every element, as long as that is not changed further.
        """
        index = self.group_index
        if index is None:
            index = torch.arange(self.codes.shape[1]) // self.group_size
        values = (self.codes.float() - self.zero.float()[:, index]).mul_(self.scale[:, index])
        if self.divisor is not None:
            values /= self.divisor[:, None]
        return values.to(dtype)
