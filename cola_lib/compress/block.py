"""Apply a method to one decoder block: new weights out, nothing changed in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from cola_lib.arithmetic import fast_products
from cola_lib.compress.awq import awq_on_grid
from cola_lib.compress.gptq import choose_damp, gptq_on_grid, zeros_to_keep
from cola_lib.compress.lowrank import joint_lowrank
from cola_lib.compress.magnitude import magnitude
from cola_lib.compress.quantized import OnGrid, QuantizedWeight
from cola_lib.compress.ria import ria
from cola_lib.compress.rtn import rtn_on_grid
from cola_lib.compress.smoothquant import rounding_of, smoothquant_on_grid
from cola_lib.compress.sparsegpt import sparsegpt_stacked
from cola_lib.compress.specs import LowRankSpec, PruneSpec, QuantSpec, SmoothQuantSpec, Spec, enter
from cola_lib.compress.wanda import wanda
from cola_lib.errors import DataError, NumericsError
from cola_lib.models import Architecture, InputGroup, InputRounding, Producer
from cola_lib.revisions import REVISIONS
from cola_lib.statistics import InputStatistics, gram_matrix


@dataclass(frozen=True)
class LayerReport:
    """What was done to one linear layer.

    Parameters
    ----------
    layer : str
        Qualified name.
    d_out, d_in : int
        Shape of the weight.
    output_error : float or None
        tr(ΔW·XᵀX·ΔWᵀ) / tr(W·XᵀX·Wᵀ): the share of the output's energy on the calibration tokens that is
        lost. ``None`` without statistics. It is that of the weights alone: what rounding of activations adds is not in
        it.
    weight_error : float
        ‖ΔW‖² / ‖W‖².
    sparsity : float
        Share of zeros in the new weight.
    bits : int or None
        Bits of each weight, for quantizers.
    seconds : float
        Time spent on the layer, its errors' measurement included; layers solved together share it evenly.
    target_error : mapping of str to float
        The same share as ``output_error``, on the inputs of each target.
    damp : float or None
        GPTQ: the damping that it solved with.
    held_out_ratio : float or None
        GPTQ, where rows were held out: its output error on them over that of rounding to nearest, both found without
        them. Above 1, rounding is better. See :func:`held_out_ratio`.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.compress import compress, method_spec
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> calibration = random_tokens_set(lm.tokenizer, n_samples=4, seq_len=32)
    >>> report = compress(lm, method_spec("wanda", sparsity=0.5), calibration, progress=False).layers[0]
    >>> report.layer, report.sparsity, 0 < report.output_error < 1
    ('model.layers.0.self_attn.q_proj', 0.5, True)
    """

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
    """New values for some of a block's parameters.

    Parameters
    ----------
    values : dict of str to Tensor
        By parameter name relative to the block, in the parameter's dtype.
    reports : list of LayerReport
        One per linear layer.
    quantized : dict of str to QuantizedWeight
        By the layer's name relative to the block, where the codes were to be kept.
    rounding : dict of str to InputRounding
        By the layer's name relative to the block: how it rounds its input from now on. Empty where activations stay
        as they are.

    Examples
    --------
    >>> from cola_lib.compress import compress_block, method_spec
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> spec = method_spec("magnitude", sparsity=0.5)
    >>> update = compress_block(lm.blocks[0], "model.layers.0", None, spec, lm.architecture, lm.model.config)
    >>> len(update.values), update.reports[0].layer
    (7, 'model.layers.0.self_attn.q_proj')
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    reports: list[LayerReport] = field(default_factory=list)
    quantized: dict[str, QuantizedWeight] = field(default_factory=dict)
    rounding: dict[str, InputRounding] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """The layers that read one input, ready to be solved together.

    Parameters
    ----------
    weights : list of Tensor of shape (d_out_i, d_in), float32
        Their weights.
    layers : list of str
        Their qualified names.
    stats : InputStatistics, ChannelStatistics or None
        Of their input: channel by channel where the method reads no more, and nobody asked for errors.
    group : InputGroup
        Their row in the architecture table.
    config : PretrainedConfig
        The model's.
    parts : (InputStatistics, InputStatistics), optional
        The two parts of ``stats``: of the rows to solve with, and of those held out to judge the solution.

    Examples
    --------
    >>> from cola_lib.compress import Problem
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> group = lm.architecture.groups[0]
    >>> weights = [lm.blocks[0].get_submodule(layer).weight.float() for layer in group.layers]
    >>> problem = Problem(weights, list(group.layers), None, group, lm.model.config)
    >>> [tuple(W.shape) for W in problem.weights]
    [(32, 32), (16, 32), (16, 32)]
    """

    weights: list[Tensor]
    layers: list[str]
    stats: InputStatistics | None
    group: InputGroup
    config: PretrainedConfig
    parts: tuple[InputStatistics, InputStatistics] | None = None

    @property
    def statistics(self) -> InputStatistics:
        """Statistics of the input, for methods that read them."""
        if self.stats is None:
            raise DataError(f"{self.layers[0]}: the method reads calibration data, and no statistics were given")
        return self.stats


class Solution(NamedTuple):
    """What a method found for the layers that read one input.

    Attributes
    ----------
    weights : list of Tensor of shape (d_out_i, d_in), float32
        New weights.
    scale : Tensor of shape (d_in,), or None
        What the input has to be divided by.
    rounded : list of OnGrid, or None
        The new weights with their grids, from quantizers.
    damp : float or None
        Damping that was used.
    held_out_ratios : list of float, or None
        Of each layer: see :class:`LayerReport`.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import Solution
    >>> solution = Solution([torch.zeros(2, 4)])
    >>> solution.scale is None, solution.rounded is None
    (True, True)
    """

    weights: list[Tensor]
    scale: Tensor | None = None
    rounded: list[OnGrid] | None = None
    damp: float | None = None
    held_out_ratios: list[float] | None = None


def _on_grid(rounded: list[OnGrid], scale: Tensor | None = None) -> Solution:
    return Solution([each.values for each in rounded], scale, rounded)


def _magnitude(problem: Problem, spec: PruneSpec) -> Solution:
    return Solution([magnitude(W, spec) for W in problem.weights])


def _rtn(problem: Problem, spec: QuantSpec) -> Solution:
    return _on_grid([rtn_on_grid(W, spec) for W in problem.weights])


def _wanda(problem: Problem, spec: PruneSpec) -> Solution:
    return Solution([wanda(W, problem.statistics, spec) for W in problem.weights])


def _ria(problem: Problem, spec: PruneSpec) -> Solution:
    return Solution([ria(W, problem.statistics, spec) for W in problem.weights])


def _sparsegpt(problem: Problem, spec: PruneSpec) -> Solution:
    return Solution(sparsegpt_stacked(problem.weights, problem.statistics, spec, problem.layers[0]))


def _gptq(problem: Problem, spec: QuantSpec) -> Solution:
    # Rows do not depend on each other, so layers that read one input share one sweep over its columns.
    damp, ratios = None if isinstance(spec.damp, str) else spec.damp, None
    if problem.parts is not None:
        damp, ratios = choose_damp(problem.weights, *problem.parts, spec, problem.layers[0])
        spec = replace(spec, damp=damp)
    zeros = zeros_to_keep(problem.weights, spec)
    stacked = gptq_on_grid(torch.cat(problem.weights), problem.statistics, spec, problem.layers[0], zeros)
    solution = _on_grid(stacked.split([W.shape[0] for W in problem.weights]))
    return solution._replace(damp=damp, held_out_ratios=ratios)


def _awq(problem: Problem, spec: QuantSpec) -> Solution:
    producer = problem.group.producer
    rounded, scale = awq_on_grid(
        problem.weights,
        problem.statistics,
        spec,
        scalable=producer is not None,
        rows=producer.rows(problem.config) if producer and producer.rows else None,
        clipped=[name not in problem.group.unclipped for name in problem.group.layers],
    )
    return _on_grid(rounded, scale)


AFTER_NORM = ("attn_in", "mlp_in")
"""Inputs whose producer, where there is one, is a norm."""


def _smoothquant(problem: Problem, spec: SmoothQuantSpec) -> Solution:
    producer = problem.group.producer
    rounded, scale = smoothquant_on_grid(
        problem.weights,
        problem.statistics,
        spec,
        layer=problem.layers[0],
        scalable=producer is not None and (spec.smooth == "all" or problem.group.name in AFTER_NORM),
        rows=producer.rows(problem.config) if producer and producer.rows else None,
    )
    return _on_grid(rounded, scale)


def _joint_lowrank(problem: Problem, spec: LowRankSpec) -> Solution:
    weights = list(problem.weights)
    joined = [i for i, layer in enumerate(problem.group.layers) if layer in problem.group.joined]
    if joined:
        for i, low in zip(joined, joint_lowrank([weights[i] for i in joined], spec), strict=True):
            weights[i] = low
    return Solution(weights)


Solver = Callable[[Problem, Any], Solution]
"""What a method is: it solves a :class:`Problem` as a specification of its own class says."""

SOLVERS: dict[str, Solver] = {
    "magnitude": _magnitude,
    "rtn": _rtn,
    "wanda": _wanda,
    "ria": _ria,
    "sparsegpt": _sparsegpt,
    "gptq": _gptq,
    "awq": _awq,
    "smoothquant": _smoothquant,
    "joint_lowrank": _joint_lowrank,
}


def register_method(name: str, kind: type[Spec] = PruneSpec, *, revision: int = 1) -> Callable[[Solver], Solver]:
    """Enter a method of your own; a decorator of the function that solves one :class:`Problem`.

    Parameters
    ----------
    name : str
        As :func:`method_spec` and the command line take it.
    kind : type
        Class of its specifications: :class:`PruneSpec`, :class:`QuantSpec`, or a subclass with options of its own.
        Pruners and quantizers are told apart by it. Results are kept apart by all of its fields, and Gram matrices are
        gathered, since only the method knows what it reads.
    revision : int
        Raise it when the method's numbers change: stored results that used it are then computed again.

    Returns
    -------
    callable
        The decorator, which returns the function as it is.

    Raises
    ------
    SpecError
        If there is a method of that name.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.compress import Solution, compress, method_spec, register_method
    >>> from cola_lib.compress.masks import prune_mask
    >>> from cola_lib.models import tiny_model
    >>> @register_method("quiet")
    ... def quiet(problem, spec):
    ...     norm = problem.statistics.input_norm()  # of inputs alone, whatever their weights
    ...     masks = [prune_mask(norm.expand_as(W), spec, per_row=True) for W in problem.weights]
    ...     return Solution([W.masked_fill(mask, 0) for W, mask in zip(problem.weights, masks)])
    >>> lm = tiny_model()
    >>> calibration = random_tokens_set(lm.tokenizer, 2, 16)
    >>> compress(lm, method_spec("quiet", sparsity=0.25), calibration, progress=False).sparsity
    0.25
    """

    def entered(solve: Solver) -> Solver:
        enter(name, kind)
        REVISIONS[name] = revision
        SOLVERS[name] = solve
        return solve

    return entered


def row_divisor(block: nn.Module, producer: Producer, scale: Tensor, config: PretrainedConfig) -> Tensor:
    """Spread a scale over the outputs of its producer.

    Parameters
    ----------
    block : nn.Module
        The decoder block.
    producer : Producer
        The module whose outputs become the channels.
    scale : Tensor of shape (d_in,)
        Of the channels that the producer feeds.
    config : PretrainedConfig
        The model's.

    Returns
    -------
    Tensor of shape (d_out,)
        What to divide each output of the producer by; 1 where it feeds no channel.
    """
    if producer.rows is None:
        return scale
    divisor = torch.ones(block.get_parameter(f"{producer.module}.weight").shape[0], device=scale.device)
    divisor[producer.rows(config).to(scale.device)] = scale
    return divisor


def fold(
    values: dict[str, Tensor], block: nn.Module, producer: Producer, scale: Tensor, config: PretrainedConfig
) -> None:
    """Divide a producer's output channels by a scale.

    Parameters
    ----------
    values : dict of str to Tensor
        New values of the block's parameters, float32, by name; the producer's are put in, or divided if there:
        a linear producer is itself compressed, and dividing its rows passes through rounding and pruning.
    block : nn.Module
        The decoder block.
    producer : Producer
        The module whose parameters change.
    scale : Tensor of shape (d_in,)
        Of the channels that the producer feeds.
    config : PretrainedConfig
        The model's.
    """
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
    """Find new weights for the linear layers of a block.

    Parameters
    ----------
    block : nn.Module
        Not changed.
    name : str
        Its qualified name, for reports and errors.
    statistics : mapping of str to InputStatistics, or None
        By input group. :class:`~cola_lib.statistics.ChannelStatistics` are enough for a method that reads no Gram
        matrix, without ``layer_errors``, and ``None`` is enough for methods that read no data.
    spec : PruneSpec or QuantSpec
        With its group size settled.
    architecture : Architecture
        The model type's row.
    config : PretrainedConfig
        The model's.
    targets : mapping of str to mapping, optional
        For each target, statistics by input group: what the new weights are judged by besides the calibration data.
        They decide nothing.
    held_out : mapping of str to InputStatistics, optional
        Of more calibration rows, on which GPTQ is judged, and on which it chooses its damping, before it solves with
        all rows.
    layer_errors : bool
        Report the output errors on the statistics themselves, which then have to hold Gram matrices.
    keep_codes : bool
        Also return the integers that a quantizer rounded to.

    Returns
    -------
    BlockUpdate
        New values for the linear layers, and for what a scale was folded into; and how activations are rounded.

    Raises
    ------
    DataError
        If the method reads the largest magnitudes of channels, and the statistics do not hold them.
    NumericsError
        If a weight or the statistics are not finite, or a Hessian is singular; the message names the layer.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.compress import compress_block, method_spec
    >>> from cola_lib.models import tiny_model
    >>> from cola_lib.statistics import walk
    >>> lm, spec = tiny_model(), method_spec("wanda", pattern="2:4")
    >>> step = next(walk(lm, random_tokens_set(lm.tokenizer, 4, 32), progress=False))
    >>> update = compress_block(step.block, step.name, step.statistics, spec, lm.architecture, lm.model.config)
    >>> update.values["mlp.up_proj.weight"].eq(0).float().mean().item()
    0.5
    """
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
        solved, scale, rounded, damp, ratios = SOLVERS[spec.method](problem, spec)
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
