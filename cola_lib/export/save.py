"""One way to write a compressed model: the format follows the method."""

from __future__ import annotations

import os
from typing import Literal, get_args

from cola_lib.compress import CompressionReport, PruneSpec, QuantSpec, save_checkpoint
from cola_lib.errors import UnknownNameError
from cola_lib.export.packed import Export, export_quantized
from cola_lib.export.sparse import export_sparse
from cola_lib.models import LanguageModel

SaveFormat = Literal["dense", "compressed-tensors"]
FORMATS: tuple[SaveFormat, ...] = get_args(SaveFormat)


def save(
    lm: LanguageModel,
    report: CompressionReport,
    out: str | os.PathLike[str],
    *,
    format: SaveFormat | None = None,
    dtype: str = "bfloat16",
    overwrite: bool = False,
) -> Export | None:
    """Write model, tokenizer and report; see :meth:`cola_lib.api.Compressed.save`."""
    if format is None:
        rounds = isinstance(report.spec, QuantSpec) and report.spec.act_bits is not None
        format = "compressed-tensors" if rounds else "dense"
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    if format == "compressed-tensors":
        return export_quantized(lm, report, out, dtype=dtype, overwrite=overwrite)
    if isinstance(report.spec, PruneSpec):
        export_sparse(lm, report, out, overwrite=overwrite)
    else:
        save_checkpoint(lm, report, out, overwrite=overwrite)
    return None
