"""Apply a method to one decoder block: new weights out, nothing changed in place."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from cola_lib.arithmetic import fast_products
from cola_lib.compress.quantized import QuantizedWeight
from cola_lib.compress.smoothquant import rounding_of
from cola_lib.compress.specs import Problem, QuantSpec, Spec
from cola_lib.errors import NumericsError
from cola_lib.models import Architecture, InputRounding, Producer
from cola_lib.statistics import InputStatistics, gram_matrix


@dataclass(frozen=True)
class LayerReport:
    """What was done to one linear layer."""

    layer: str
    d_out: int
    d_in: int
    output_error: float | None
    weight_error: float
    sparsity: float
    bits: int | None
    seconds: float
    target_error: Mapping[str, float] = field(default_factory=dict)
    damp: float | None = None
    held_out_ratio: float | None = None


@dataclass
class BlockUpdate:
    """New values for some of a block's parameters."""

    values: dict[str, Tensor] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    rounding: dict[str, InputRounding] = field(default_factory=dict)


def row_divisor(block: nn.Module, producer: Producer, scale: Tensor, config: PretrainedConfig) -> Tensor:
    """Spread a scale over the outputs of its producer."""
    if producer.rows is None:
        return scale
    divisor = torch.ones(block.get_parameter(f"{producer.module}.weight").shape[0], device=scale.device)
    divisor[producer.rows(config).to(scale.device)] = scale
    return divisor


def fold(
    values: dict[str, Tensor], block: nn.Module, producer: Producer, scale: Tensor, config: PretrainedConfig
) -> None:
    """Divide a producer's output channels by a scale."""
    module = block.get_submodule(producer.module)
    divisor = row_divisor(block, producer, scale, config)
    for name, parameter in module.named_parameters():
        full = f"{producer.module}.{name}"
        value = values.get(full, parameter.float())
        if value.dim() == 2:
            values[full] = value / divisor[:, None]
        else:
            offset = producer.offset if name == "weight" else 0.0
            values[full] = (value + offset) / divisor - offset


def _measures(
    layer: str,
    W: Tensor,
    new: Tensor,
    scale: Tensor | None,
    stats: InputStatistics | None,
    targets: Mapping[str, InputStatistics],
) -> dict[str, Tensor]:
    """Measure a new weight: numbers on the device, to be read together."""
    delta = (new if scale is None else new / scale) - W
    found = {
        "weight_error": delta.square().sum() / W.square().sum().clamp(min=torch.finfo(W.dtype).tiny),
        "sparsity": (new == 0).float().mean(),
    }
    judged_on = {"": stats} | dict(targets) if stats is not None else dict(targets)
    delta_gram = gram_matrix(delta) if judged_on else delta
    for name, of_inputs in judged_on.items():
        found[f"lost {name}"], found[f"energy {name}"] = (
            of_inputs.energy_under(delta_gram),
            of_inputs.energy_of(layer, W),
        )
    return found


def _report(
    layer: str,
    shape: torch.Size,
    found: Mapping[str, float],
    targets: Iterable[str],
    spec: Spec,
    seconds: float,
    damp: float | None,
    held_out_ratio: float | None,
) -> LayerReport:
    def error(name: str) -> float | None:
        energy = found.get(f"energy {name}", 0.0)
        return found[f"lost {name}"] / energy if energy > 0 else None

    on_targets = {name: error(name) for name in targets}
    return LayerReport(
        layer=layer,
        d_out=shape[0],
        d_in=shape[1],
        output_error=error(""),
        weight_error=found["weight_error"],
        sparsity=found["sparsity"],
        bits=spec.bits if isinstance(spec, QuantSpec) else None,
        seconds=seconds,
        target_error={name: value for name, value in on_targets.items() if value is not None},
        damp=damp,
        held_out_ratio=held_out_ratio,
    )


@torch.no_grad()
@fast_products()
def compress_block(
    block: nn.Module,
    name: str,
    statistics: Mapping[str, InputStatistics] | None,
    spec: Spec,
    architecture: Architecture,
    config: PretrainedConfig,
    targets: Mapping[str, Mapping[str, InputStatistics]] | None = None,
    *,
    held_out: Mapping[str, InputStatistics] | None = None,
    layer_errors: bool = True,
    keep_codes: bool = False,
) -> BlockUpdate:
    """Find new weights for the linear layers of a block."""
    update = BlockUpdate()
    folds: list[tuple[Producer, Tensor]] = []
    dtypes = {key: parameter.dtype for key, parameter in block.named_parameters()}
    for group in architecture.groups:
        stats = statistics[group.name] if statistics is not None else None
        on_targets = {target: each[group.name] for target, each in (targets or {}).items()}
        layers = [f"{name}.{layer}" for layer in group.layers]
        parts = None
        if stats is not None and held_out is not None:
            parts = (stats, held_out[group.name])
            stats = parts[0] + parts[1]
        for given in (stats, *on_targets.values()):
            if given is not None:
                given.check(layers[0])
        weights = [block.get_parameter(f"{layer}.weight").float() for layer in group.layers]
        finite = torch.stack([torch.isfinite(W).all() for W in weights]).tolist()
        for layer, sound in zip(layers, finite, strict=True):
            if not sound:
                raise NumericsError(layer, "its weight holds NaN or infinity; the checkpoint is damaged")
        began = time.perf_counter()
        problem = Problem(weights, layers, stats, group, config, parts)
        solved, scale, rounded, damp, ratios = spec.solve(problem)
        own = stats if layer_errors else None
        measures = [
            _measures(layer, W, new, scale, own, on_targets)
            for layer, W, new in zip(layers, weights, solved, strict=True)
        ]
        # Here the host waits for the solution and its measures, so only now is it known how long they took.
        numbers = torch.stack([torch.stack([t.double() for t in measured.values()]) for measured in measures]).tolist()
        seconds = (time.perf_counter() - began) / len(layers)
        judged: Sequence[float | None] = ratios or [None] * len(layers)
        for layer, W, measured, values, ratio in zip(layers, weights, measures, numbers, judged, strict=True):
            found = dict(zip(measured, values, strict=True))
            update.reports.append(_report(layer, W.shape, found, on_targets, spec, seconds, damp, ratio))
        for short, W, new in zip(group.layers, weights, solved, strict=True):
            if new is not W:
                update.values[f"{short}.weight"] = new
        if keep_codes and rounded is not None and isinstance(spec, QuantSpec):
            for short, each in zip(group.layers, rounded, strict=True):
                update.quantized[short] = QuantizedWeight.of(each, spec)
        if isinstance(spec, QuantSpec) and spec.act_bits is not None:
            update.rounding |= dict.fromkeys(group.layers, rounding_of(stats, spec, layers[0], scale))
        if scale is not None and group.producer is not None:
            folds.append((group.producer, scale))
    for producer, scale in folds:
        fold(update.values, block, producer, scale, config)
        if producer.module in update.quantized:
            divisor = row_divisor(block, producer, scale, config)
            update.quantized[producer.module] = update.quantized[producer.module].divided(divisor)
    for key in update.values:  # one by one, so that a block in float32 and one in bfloat16 are not there together
        update.values[key] = update.values[key].to(dtypes[key])
    return update
