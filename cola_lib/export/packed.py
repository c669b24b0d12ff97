"""Quantized models in the formats of compressed-tensors, which transformers and vLLM read.

Beside an ordinary checkpoint's files: in ``config.json`` a ``quantization_config`` that says how to read them, and for
each quantized layer

- ``pack-quantized``, where activations stay as they are: ``weight_packed`` (codes of each row in 32-bit words),
  ``weight_scale`` (d_out, n_groups), ``weight_zero_point`` (packed down the rows; asymmetric layers only) and
  ``weight_shape``;
- ``int-quantized``, where they are rounded to 8 bits as the weights are: ``weight`` (signed bytes), ``weight_scale``
  (d_out, 1), and ``input_scale`` if their range is fixed.

References
----------
``PackedQuantizationCompressor`` and ``IntQuantizationCompressor`` of compressed-tensors;
``compressed_tensors_wNa16.py`` and ``compressed_tensors_w8a8_int8.py`` of vLLM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cola_lib.compress import GPTQ, CompressionReport, QuantizedWeight, QuantSpec, Spec, checkpoint_folder, write_report
from cola_lib.errors import NumericsError, SpecError
from cola_lib.export.packing import pack_rows
from cola_lib.models import InputRounding, LanguageModel, resolve_dtype

FORMAT = "pack-quantized"
INT_FORMAT = "int-quantized"
VLLM_GROUP_SIZES = (-1, 32, 64, 128)
VLLM_ZERO_POINT_BITS = (4, 8)


@dataclass(frozen=True)
class Export:
    """What was written.

    Parameters
    ----------
    folder : Path
        The checkpoint.
    dtype : str
        Of scales and of what is not quantized.
    bytes : int
        Of the weight files.
    dense_bytes : int
        What all parameters would take unpacked, in ``dtype``; tied ones once.
    layer_bytes : int
        Of the quantized layers: codes, scales and zero points.
    dense_layer_bytes : int
        What their weights would take unpacked, in ``dtype``.
    limits : tuple of str
        What vLLM does not read of it, or not in its fast kernels; a sentence each.
    format : str
        Name of the format.

    Examples
    --------
    >>> from cola_lib.compress import compress, method_spec
    >>> from cola_lib.export import export_quantized
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> spec = method_spec("rtn", bits=4, group_size=32, symmetric=True)
    >>> written = export_quantized(lm, compress(lm, spec, progress=False, keep_codes=True), "packed", dtype="float32")
    >>> written.format, written.layer_bytes < written.dense_layer_bytes
    ('pack-quantized', True)
    """

    folder: Path
    dtype: str
    bytes: int
    dense_bytes: int
    layer_bytes: int
    dense_layer_bytes: int
    limits: tuple[str, ...]
    format: str = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Everything but the folder, as plain data for JSON."""
        return {name: value for name, value in vars(self).items() if name != "folder"}


def check_exportable(spec: Spec) -> None:
    """Refuse a specification whose result the format cannot hold, before any work is done."""
    if not isinstance(spec, QuantSpec):
        raise SpecError(f"{spec.method} makes no integers to pack; save its result as an ordinary checkpoint")
    if isinstance(spec, GPTQ) and spec.act_order and not spec.static_groups and spec.group_size != -1:
        raise SpecError(
            "gptq with act_order scatters groups over the columns, and the format has had no group index since "
            "compressed-tensors 0.19; add static_groups, take group_size -1, or leave act_order out"
        )
    whole_bytes = spec.bits == 8 and spec.act_bits == 8 and spec.group_size == -1 and spec.symmetric
    if spec.act_bits is not None and not whole_bytes:
        raise SpecError(
            f"{spec.label} cannot be written: with rounded activations the format holds symmetric weights of 8 bits, a "
            "row to a scale, and activations of 8 bits; take bits 8, act_bits 8, group_size -1 and symmetric, or leave "
            "act_bits out to round the weights alone"
        )


def format_of(spec: QuantSpec) -> str:
    """Name the format that a quantized model is written in."""
    return FORMAT if spec.act_bits is None else INT_FORMAT


def vllm_limits(spec: QuantSpec) -> tuple[str, ...]:
    """Say what vLLM will not do with a model that transformers loads."""
    if spec.act_bits is not None:
        return ()
    limits = []
    if not spec.symmetric and spec.bits not in VLLM_ZERO_POINT_BITS:
        limits.append(f"vLLM reads zero points at 4 and 8 bits only, not at {spec.bits}: quantize symmetrically")
    if spec.bits not in (2, 4, 8):
        limits.append(f"{spec.bits}-bit codes need a reader with compressed-tensors 0.18 or newer")
    if spec.group_size not in VLLM_GROUP_SIZES:
        sizes = ", ".join(map(str, VLLM_GROUP_SIZES))
        limits.append(f"vLLM's Marlin kernels take groups of {sizes}, not of {spec.group_size}")
    return tuple(limits)


def quantization_config(spec: QuantSpec, ignore: Iterable[str]) -> dict[str, Any]:
    """Write the entry of ``config.json`` that says how the weights are packed."""
    whole_rows = spec.group_size == -1
    weights = {
        "num_bits": spec.bits,
        "type": "int",
        "symmetric": spec.symmetric,
        "strategy": "channel" if whole_rows else "group",
        "group_size": None if whole_rows else spec.group_size,
        "dynamic": False,
    }
    activations = None
    if spec.act_bits is not None:
        activations = {
            "num_bits": spec.act_bits,
            "type": "int",
            "symmetric": True,
            "strategy": spec.act_strategy,
            "dynamic": not spec.fixed_range,
        }
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations,
        "output_activations": None,
        "format": format_of(spec),
    }
    entry: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": format_of(spec),
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(ignore),
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    if not spec.symmetric:
        # transformers makes room for the zero points before it reads the file, and unpacked (compressed-tensors 0.15 to
        # 0.20), so that packed ones do not fit in. Where it unpacks while it reads, they do; vLLM passes this over.
        entry["dequantize"] = True
    return entry


def packed_tensors(weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
    """Lay out one layer as the format wants it."""
    if weight.group_index is not None:
        raise SpecError("groups that are scattered over the columns cannot be packed; quantize with static_groups")
    tensors = {
        "weight_packed": pack_rows(weight.codes, weight.bits),
        "weight_scale": weight.stored_scale().to(dtype),
        "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
    }
    if not weight.symmetric:
        # Zero points are packed down the rows: vLLM cuts a layer between outputs.
        tensors["weight_zero_point"] = pack_rows(weight.zero.T.contiguous(), weight.bits).T.contiguous()
    return tensors


def int_tensors(weight: QuantizedWeight, rounding: InputRounding, dtype: torch.dtype) -> dict[str, Tensor]:
    """Lay out one layer whose activations are rounded too."""
    tensors = {
        "weight": (weight.codes.to(torch.int16) - 2 ** (weight.bits - 1)).to(torch.int8),
        "weight_scale": weight.stored_scale().to(dtype),
    }
    if rounding.step is not None:
        tensors["input_scale"] = torch.tensor([rounding.step], dtype=dtype)
    return tensors


def export_quantized(
    lm: LanguageModel,
    report: CompressionReport,
    out: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "bfloat16",
    overwrite: bool = False,
) -> Export:
    """Write a quantized model with its integers packed."""
    check_exportable(report.spec)
    spec = report.spec
    if not isinstance(spec, QuantSpec):
        raise SpecError(f"{spec.label} does not quantize, so there is nothing to pack")
    if lm.streamed is not None:
        raise SpecError("a streamed model cannot be packed: its codes would all be in memory; load it whole to pack it")
    chosen = (lm.stored or lm.dtype) if dtype == "auto" else resolve_dtype(dtype, lm.device)
    _check_codes(lm, report)
    tensors = _state(lm, report, chosen)
    layers = {f"{name}.{part}" for name in report.quantized for part in _PARTS}
    linear = [name for name, module in lm.model.named_modules() if isinstance(module, nn.Linear)]
    needed = sum(_bytes(tensor) for tensor in tensors.values())
    width = torch.empty((), dtype=chosen).element_size()
    export = Export(
        folder=Path(out),
        dtype=str(chosen).removeprefix("torch."),
        bytes=0,
        dense_bytes=width * sum(parameter.numel() for parameter in lm.model.parameters()),
        layer_bytes=sum(_bytes(tensor) for name, tensor in tensors.items() if name in layers),
        dense_layer_bytes=width * sum(weight.codes.numel() for weight in report.quantized.values()),
        limits=vllm_limits(spec),
        format=format_of(spec),
    )
    with checkpoint_folder(out, needed=needed, overwrite=overwrite) as partial:
        # Names of tied and renamed weights are transformers' business.
        lm.model.save_pretrained(partial, state_dict=tensors)
        lm.tokenizer.save_pretrained(partial)
        config = json.loads((partial / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = export.dtype
        config["quantization_config"] = quantization_config(spec, set(linear) - set(report.quantized))
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        written = sum(path.stat().st_size for path in partial.glob("*.safetensors"))
        export = Export(**(vars(export) | {"bytes": written}))
        write_report(report, partial, export=export.to_dict())
    return export


_PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "input_scale")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _check_codes(lm: LanguageModel, report: CompressionReport) -> None:
    """See that the kept codes are the weights in memory."""
    if not report.quantized:
        raise SpecError("there are no codes to pack: compress with keep_codes=True")
    for name, codes in report.quantized.items():
        weight = lm.model.get_parameter(f"{name}.weight")
        if not torch.equal(codes.dequantize(weight.dtype), weight.cpu()):
            raise SpecError(
                f"{name} is no longer what its codes say: the model was changed after it was quantized; pack it before "
                "it is trained further or restored, or save it as an ordinary checkpoint"
            )
    rounds = isinstance(report.spec, QuantSpec) and report.spec.act_bits is not None
    rounded = report.quantized if rounds else {}
    if set(lm.input_rounding) != set(rounded):
        raise SpecError(
            f"{len(lm.input_rounding)} layers of the model round their inputs, and by its report {len(rounded)} do: it "
            "was changed after it was quantized, or had been quantized before; compress the untouched model"
        )


def _state(lm: LanguageModel, report: CompressionReport, dtype: torch.dtype) -> dict[str, Tensor]:
    """All tensors of the file by name; those that share memory still do, so that tied weights are seen to be tied."""
    cast: dict[int, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for name, tensor in lm.model.state_dict().items():
        layer = name.removesuffix(".weight")
        if layer in report.quantized and name != layer:
            weight, rounding = report.quantized[layer], lm.input_rounding.get(layer)
            parts = packed_tensors(weight, dtype) if rounding is None else int_tensors(weight, rounding, dtype)
            _check_scale(layer, weight, parts["weight_scale"])
            tensors |= {f"{layer}.{part}": value for part, value in parts.items()}
            continue
        if tensor.data_ptr() not in cast:
            cast[tensor.data_ptr()] = tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor.cpu()
        tensors[name] = cast[tensor.data_ptr()]
    return tensors


def _check_scale(layer: str, weight: QuantizedWeight, stored: Tensor) -> None:
    if not (torch.isfinite(stored) & (stored > 0)).all():
        scale, dtype = weight.stored_scale(), str(stored.dtype).removeprefix("torch.")
        raise NumericsError(
            layer,
            f"its scales reach from {float(scale.min()):.3g} to {float(scale.max()):.3g}, and {dtype} cannot hold "
            "them; export with dtype bfloat16 or float32",
        )
