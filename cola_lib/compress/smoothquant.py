"""SmoothQuant: divide loud input channels by a scale and multiply their weights, so that both round well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cola_lib.compress.awq import units
from cola_lib.compress.quantized import OnGrid
from cola_lib.compress.rtn import rtn_on_grid
from cola_lib.compress.specs import METHODS, Problem, QuantSpec, Solution
from cola_lib.errors import DataError, NumericsError, SpecError, UnknownNameError
from cola_lib.models import InputRounding
from cola_lib.statistics.inputs import ChannelSums

LEAST = 1e-5
"""Bound of the reference on weights' maxima and on scales, from below; on scales, here, relative to the typical one."""


AFTER_NORM = ("attn_in", "mlp_in")
"""Inputs whose producer, where there is one, is a norm."""

SMOOTHED = ("all", "norms")


@METHODS.register
@dataclass(frozen=True)
class SmoothQuant(QuantSpec):
    """SmoothQuant: move outliers from activations into weights, then round both.

    Parameters
    ----------
    bits : int
        Bits of each weight, 2 to 8.
    group_size : int or None
        Consecutive inputs of a row that share a scale; -1, the default, for whole rows.
    symmetric : bool
        Zero point fixed at the middle of the range, instead of fitted.
    act_bits : int
        Bits of each activation, 2 to 8.
    act_strategy : {"token", "tensor"}
        What shares a range of activations.
    alpha : float
        Migration strength, in [0, 1]: how much of the activations' outliers the weights take over.
    smooth : {"all", "norms"}
        Which inputs are smoothed: all whose scale the module before them can take up, or of these only those that
        follow a norm, as in the reference.

    References
    ----------
    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    arXiv 2211.10438.

    Examples
    --------
    >>> from cola_lib.compress import SmoothQuant
    >>> spec = SmoothQuant(alpha=0.8)
    >>> spec.label, spec.act_bits
    ('smoothquant W8A8', 8)
    """

    method: ClassVar[str] = "smoothquant"
    reads_gram: ClassVar[bool] = False

    bits: int = 8
    group_size: int | None = -1
    symmetric: bool = True
    act_bits: int | None = 8
    alpha: float = 0.5
    smooth: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.act_bits is None:
            raise SpecError("smoothquant is for rounding activations: give act_bits, or take rtn for the weights alone")
        if not 0 <= self.alpha <= 1:
            raise SpecError(f"alpha is a number between 0 and 1, not {self.alpha:g}")
        if self.smooth not in SMOOTHED:
            raise UnknownNameError("smooth", self.smooth, SMOOTHED)

    def solve(self, problem: Problem) -> Solution:
        """Smooth and round the layers together; what produces their input takes up the inverse scale."""
        producer = problem.group.producer
        rounded, scale = smoothquant_on_grid(
            problem.weights,
            problem.statistics,
            self,
            layer=problem.layers[0],
            scalable=producer is not None and (self.smooth == "all" or problem.group.name in AFTER_NORM),
            rows=producer.rows(problem.config) if producer and producer.rows else None,
        )
        return Solution.on_grid(rounded, scale)


def smoothquant_scale(W: Tensor, abs_max: Tensor, alpha: float, rows: Tensor | None = None) -> Tensor:
    """Balance the ranges of activations and weights, channel by channel.

    Notes
    -----
    The reference gives a channel that is 0 on all calibration tokens the least scale, 1e-5, so that any later input is
    made 100,000 times larger. Here such a channel has the geometric mean of the other scales, and the bound is relative
    to that mean: the unit of the inputs changes no result. The weights' grid is the one that all quantizers here share:
    its step is max|W| / 127.5 at 8 bits, where the reference's is max|W| / 127. Channels that share a producer's row,
    as under grouped-query attention, share the scale of their largest maxima; the reference smooths no such input.

    References
    ----------
    Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
    arXiv 2211.10438, eq. 4; ``smooth.py`` of mit-han-lab/smoothquant.
    """
    unit, n_units = units(rows, abs_max)
    least = torch.zeros(n_units, device=unit.device)
    activations, weights = (least.scatter_reduce(0, unit, most, "amax") for most in (abs_max, W.abs().amax(0)))
    scale = activations.pow(alpha) / weights.clamp(min=LEAST).pow(1 - alpha)
    live = activations > 0
    typical = (torch.where(live, scale.log(), 0.0).sum() / live.sum().clamp(min=1)).exp()
    return torch.where(live, scale.clamp(min=LEAST * typical), typical)[unit]


def smoothquant(
    weights: list[Tensor],
    stats: ChannelSums,
    spec: SmoothQuant,
    *,
    layer: str,
    scalable: bool = True,
    rows: Tensor | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Smooth an input and quantize the layers that read it; their input is then to be rounded by :func:`rounding_of`.

    Notes
    -----
    The reference smooths inputs that follow a norm, which takes up the scale. Here, unless ``spec.smooth`` is
    ``"norms"``, the inputs of the output and down projections are smoothed too, and the value and up projections take
    up their scales, as AWQ's do: the loudest channels of a gated MLP are what its down projection reads. Scales are
    found from the weights as they were, and divide the rows of a producer after it was rounded, which moves no code.
    As in the reference by default, what attention multiplies with each other is not rounded.

    References
    ----------
    Xiao et al., arXiv 2211.10438; ``smooth.py`` and ``fake_quant.py`` of mit-han-lab/smoothquant.
    """
    rounded, scale = smoothquant_on_grid(weights, stats, spec, layer=layer, scalable=scalable, rows=rows)
    return [each.values for each in rounded], scale


def smoothquant_on_grid(
    weights: list[Tensor],
    stats: ChannelSums,
    spec: SmoothQuant,
    *,
    layer: str,
    scalable: bool = True,
    rows: Tensor | None = None,
) -> tuple[list[OnGrid], Tensor | None]:
    """Like :func:`smoothquant`, with the grids.

    Notes
    -----
    The grid is the one that all quantizers here share: its step is max|W| / 127.5 at 8 bits, where the reference's is
    max|W| / 127.
    """
    if not scalable:
        return [rtn_on_grid(W, spec) for W in weights], None
    scale = smoothquant_scale(torch.cat(weights), stats.channel_max(layer), spec.alpha, rows)
    return [rtn_on_grid(W * scale, spec) for W in weights], scale


def rounding_of(stats: ChannelSums | None, spec: QuantSpec, layer: str, scale: Tensor | None = None) -> InputRounding:
    """Say how the input of quantized layers is to be rounded when the model runs."""
    if spec.act_bits is None:
        raise SpecError(f"{spec.label} leaves activations as they are: give act_bits")
    rounding = InputRounding(spec.act_bits)
    if not spec.fixed_range:
        return rounding
    if stats is None:
        raise DataError(f"{layer}: a fixed range is that of calibration data, and there are none")
    abs_max = stats.channel_max(layer)
    most = float((abs_max if scale is None else abs_max / scale).max())
    if not most > 0:
        raise NumericsError(
            layer, 'its input was 0 on all calibration tokens, so it has no range; take act_strategy "token"'
        )
    return InputRounding(spec.act_bits, most / rounding.most)
