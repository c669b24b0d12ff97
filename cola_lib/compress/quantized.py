"""Quantized weights as the integers that they are, and what turns them back into numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cola_lib.compress.grid import Grid
from cola_lib.compress.specs import QuantSpec


class OnGrid(NamedTuple):
    """A weight that a quantizer has rounded, with the grid that its values lie on."""

    values: Tensor
    grid: Grid
    group_index: Tensor | None = None

    def split(self, rows: list[int]) -> list[OnGrid]:
        """Take a stack of layers apart."""
        grids = (Grid(*parts) for parts in zip(*(tensor.split(rows) for tensor in self.grid), strict=True))
        return [
            OnGrid(values, grid, self.group_index) for values, grid in zip(self.values.split(rows), grids, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """Codes of a weight, and scales and zero points of its groups."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    symmetric: bool
    group_index: Tensor | None = None
    divisor: Tensor | None = None

    @classmethod
    def of(cls, rounded: OnGrid, spec: QuantSpec) -> QuantizedWeight:
        """Read the codes off a rounded weight."""
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
        """Divide the rows, which moves their grids and no code."""
        return replace(self, divisor=divisor.float().cpu())

    def stored_scale(self) -> Tensor:
        """Scales with the divisor in them, as a file that knows of no divisor holds them."""
        return self.scale if self.divisor is None else self.scale / self.divisor[:, None]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Turn the codes back into the weight, step by step as the quantizer and the folding did."""
        index = self.group_index
        if index is None:
            index = torch.arange(self.codes.shape[1]) // self.group_size
        values = (self.codes.float() - self.zero.float()[:, index]).mul_(self.scale[:, index])
        if self.divisor is not None:
            values /= self.divisor[:, None]
        return values.to(dtype)
