"""Compressed models as files that other tools run: packed integers, and sparse weights with a report."""

from cola_lib.export.packed import (
    Export,
    check_exportable,
    export_quantized,
    format_of,
    int_tensors,
    packed_tensors,
    quantization_config,
    vllm_limits,
)
from cola_lib.export.packing import pack_rows
from cola_lib.export.save import FORMATS, SaveFormat, save
from cola_lib.export.sparse import LayerSparsity, SparsityReport, export_sparse, sparsity_of

__all__ = [
    "FORMATS",
    "Export",
    "LayerSparsity",
    "SaveFormat",
    "SparsityReport",
    "check_exportable",
    "export_quantized",
    "export_sparse",
    "format_of",
    "int_tensors",
    "pack_rows",
    "packed_tensors",
    "quantization_config",
    "save",
    "sparsity_of",
    "vllm_limits",
]
