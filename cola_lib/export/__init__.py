"""Compressed models as files that other tools run: packed integers, and sparse weights with a report."""

from cola_lib.export.packed import Export, check_exportable, export_quantized, quantization_config
from cola_lib.export.save import FORMATS, SaveFormat, save
from cola_lib.export.sparse import SparsityReport, export_sparse, sparsity_of

__all__ = [
    "FORMATS",
    "Export",
    "SaveFormat",
    "SparsityReport",
    "check_exportable",
    "export_quantized",
    "export_sparse",
    "quantization_config",
    "save",
    "sparsity_of",
]
