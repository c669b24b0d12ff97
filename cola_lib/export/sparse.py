"""Pruned models as ordinary checkpoints, with a report of where their zeros are.

No reader of today takes a packed sparse file: compressed-tensors has dropped its sparse formats (since 0.15; naming
one in ``config.json`` is an error), and with them vLLM. So zeros are stored as zeros, which any tool reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cola_lib.compress import CompressionReport, PruneSpec, check_dense, checkpoint_folder, write_report
from cola_lib.errors import SpecError
from cola_lib.models import LanguageModel

SPARSITY = "sparsity.json"


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros of one weight."""

    layer: str
    d_out: int
    d_in: int
    zeros: int
    two_four: float

    @property
    def sparsity(self) -> float:
        """Share of zeros."""
        return self.zeros / (self.d_out * self.d_in)


@dataclass(frozen=True)
class SparsityReport:
    """Zeros of a model."""

    layers: tuple[LayerSparsity, ...]
    parameters: int

    @property
    def sparsity(self) -> float:
        """Share of zeros over the linear layers."""
        return sum(layer.zeros for layer in self.layers) / sum(layer.d_out * layer.d_in for layer in self.layers)

    @property
    def of_all(self) -> float:
        """Zeros of the linear layers as a share of all parameters."""
        return sum(layer.zeros for layer in self.layers) / self.parameters

    @property
    def is_two_four(self) -> bool:
        """Whether every layer is 2:4 sparse."""
        return all(layer.two_four == 1 for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain data for JSON."""
        return {
            "sparsity": self.sparsity,
            "of_all_parameters": self.of_all,
            "parameters": self.parameters,
            "two_four": self.is_two_four,
            "layers": [asdict(layer) | {"sparsity": layer.sparsity} for layer in self.layers],
        }

    def table(self) -> str:
        """Lay the report out for people: a line for each layer, and the total."""
        total = sum(layer.d_out * layer.d_in for layer in self.layers)
        zeros = sum(layer.zeros for layer in self.layers)
        whole = "yes" if self.is_two_four else "no"
        rows = [
            ("LAYER", "WEIGHTS", "ZEROS", "SPARSITY", "2:4"),
            *(
                (each.layer, f"{each.d_out * each.d_in:,}", f"{each.zeros:,}", f"{each.sparsity:.2%}", _two_four(each))
                for each in self.layers
            ),
            ("linear layers", f"{total:,}", f"{zeros:,}", f"{self.sparsity:.2%}", whole),
            ("all parameters", f"{self.parameters:,}", f"{zeros:,}", f"{self.of_all:.2%}", ""),
        ]
        return _aligned(rows)


def _two_four(layer: LayerSparsity) -> str:
    return "yes" if layer.two_four == 1 else f"{layer.two_four:.1%}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns under each other, names to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    )
    return "\n".join(line.rstrip() for line in lines)


def _layer_sparsity(layer: str, weight: Tensor) -> LayerSparsity:
    zero = weight == 0
    # Inputs beyond the last whole group of four belong to none.
    groups = zero[:, : weight.shape[1] // 4 * 4].unflatten(1, (-1, 4)).sum(-1)
    d_out, d_in = weight.shape
    return LayerSparsity(layer, d_out, d_in, int(zero.sum()), float((groups >= 2).to(torch.float64).mean()))


def sparsity_of(lm: LanguageModel) -> SparsityReport:
    """Count the zeros of a model."""
    layers = []
    for index in range(len(lm.blocks)):
        with lm.resident(index) as block:
            for name in lm.architecture.layers:
                layer = f"{lm.block_name(index)}.{name}"
                layers.append(_layer_sparsity(layer, block.get_parameter(f"{name}.weight")))
    return SparsityReport(tuple(layers), sum(parameter.numel() for parameter in lm.model.parameters()))


def export_sparse(
    lm: LanguageModel, report: CompressionReport, out: str | os.PathLike[str], *, overwrite: bool = False
) -> SparsityReport:
    """Write a pruned model as an ordinary checkpoint, with ``sparsity.json`` beside it."""
    check_dense(lm)
    if not isinstance(report.spec, PruneSpec):
        raise SpecError(f"{report.spec.label} prunes nothing; save it with save_checkpoint or export_quantized")
    found = sparsity_of(lm)
    needed = sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())
    with checkpoint_folder(out, needed=needed, overwrite=overwrite) as partial:
        lm.save(partial)
        (Path(partial) / SPARSITY).write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
        write_report(report, partial)
    return found
