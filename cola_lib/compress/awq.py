"""AWQ: scale up the channels that matter before rounding, and scale their inputs down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from cola_lib.compress.grid import grid_of, in_groups
from cola_lib.compress.quantized import OnGrid
from cola_lib.compress.rtn import rtn, rtn_on_grid
from cola_lib.compress.specs import METHODS, SINCE, Problem, QuantSpec, Solution, positive
from cola_lib.statistics import InputStatistics, gram_matrix

CLIP_STEPS, CLIP_LEAST = 20, 0.5
"""A group's range is shrunk in steps of 1/20, down to more than half: ``auto_clip.py`` of the reference."""


LEAST = 1e-4
"""Bound of the reference on a scale, from below; here it is relative to the typical input."""

ROWS = {"cpu": 512}
"""Rows judged at a time: on a CPU few enough that the dozen passes over them stay in the cache, elsewhere all."""


@METHODS.register
@dataclass(frozen=True)
class AWQ(QuantSpec):
    """AWQ: scale up the channels that matter before rounding, and scale their inputs down.

    Parameters
    ----------
    bits : int
        Bits of each weight, 2 to 8.
    group_size : int or None
        Consecutive inputs of a row that share a scale; -1 for whole rows, ``None`` for the largest that fits up to 128.
    symmetric : bool
        Zero point fixed at the middle of the range, instead of fitted.
    act_bits : int or None
        Bits, 2 to 8, of each activation; ``None`` leaves activations as they are.
    act_strategy : {"token", "tensor"}
        What shares a range of activations.
    n_grid : int
        Exponents tried between 0 and 1.
    duo_scaling : bool
        Also try scales that fall with the size of a channel's weights. The search takes twice as long.
    clip : bool
        Also search for a smaller range of each group.

    References
    ----------
    Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv 2306.00978.

    Examples
    --------
    >>> from cola_lib.compress import AWQ
    >>> AWQ(bits=3, n_grid=10).label
    'awq 3-bit'
    """

    method: ClassVar[str] = "awq"

    n_grid: int = 20
    duo_scaling: bool = field(default=False, metadata=SINCE)
    clip: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("n_grid", self.n_grid)

    def solve(self, problem: Problem) -> Solution:
        """Scale and round the layers together; what produces their input takes up the inverse scale."""
        producer = problem.group.producer
        rounded, scale = awq_on_grid(
            problem.weights,
            problem.statistics,
            self,
            scalable=producer is not None,
            rows=producer.rows(problem.config) if producer and producer.rows else None,
            clipped=[name not in problem.group.unclipped for name in problem.group.layers],
        )
        return Solution.on_grid(rounded, scale)


def units(rows: Tensor | None, like: Tensor) -> tuple[Tensor, int]:
    """Give each channel the number of its unit, and how many units there are: channels of one row share a scale."""
    if rows is None:
        return torch.arange(len(like), device=like.device), len(like)
    numbers, unit = rows.cpu().unique(return_inverse=True)
    return unit.to(like.device), len(numbers)


def _unit_means(x: Tensor, unit: Tensor, n_units: int) -> Tensor:
    """Average ``x`` over the channels of each unit."""
    sums, shared = x.new_zeros(2, n_units)
    return sums.index_add_(0, unit, x) / shared.index_add_(0, unit, torch.ones_like(x))


def awq_scale(W: Tensor, stats: InputStatistics, spec: AWQ, rows: Tensor | None = None) -> Tensor:
    """Search the per-channel scale that makes rounding hurt the output least.

    Notes
    -----
    The candidates are those of the reference: mean |x| to a power r from 0 to below 1. With ``duo_scaling`` each is
    tried divided by w̄ to the power 1 − r too, as AutoAWQ and llm-compressor do, where w̄ is the mean of |w| over a
    channel's column, each weight relative to the largest of its group. The reference judges them by the squared error
    of the block's output on a sample of tokens. Here it is that of the layers' outputs on all tokens, tr(ΔW·XᵀX·ΔWᵀ),
    which the Gram matrix gives without running the block. Where several heads share a value head, the reference leaves
    the output projection unscaled; here their scales are tied. The reference bounds scales at 1e-4 from below; here the
    bound is relative to the mean of live channels, so that the unit of the inputs changes no result.

    References
    ----------
    Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
    arXiv 2306.00978, eq. 4 and 5; ``auto_scale.py`` of mit-han-lab/llm-awq.
    """
    unit, n_units = units(rows, stats.abs_sum)
    importance = _unit_means(stats.abs_mean(), unit, n_units)
    heaviness = _unit_means(_weight_means(W, spec), unit, n_units) if spec.duo_scaling else None
    best, least = torch.ones_like(stats.abs_sum), W.new_full((), float("inf"), dtype=torch.float64)
    n_live = (importance > 0).sum()
    typical = torch.where(n_live > 0, importance.sum() / n_live, 1.0)
    for candidate in _candidates(importance, typical, heaviness, spec.n_grid):
        # Expanded last: a vectorized power may differ from place to place, and a unit has one scale.
        scale = (candidate / (candidate.max() * candidate.min()).sqrt())[unit]
        error = torch.zeros_like(least)
        for part in W.split(ROWS.get(W.device.type, len(W))):
            error += stats.energy_under(gram_matrix(rtn(part * scale, spec).div_(scale).sub_(part)))
        # Compared on the device: nothing waits for a trial to end.
        best, least = torch.where(error < least, scale, best), torch.fmin(error, least)
    return best


def _weight_means(W: Tensor, spec: AWQ) -> Tensor:
    """Mean over each column of |w|, each relative to the largest of its group; shape (d_in,)."""
    groups = in_groups(W, spec.settled_group_size).abs()
    relative = groups / groups.amax(-1, keepdim=True).clamp_(min=torch.finfo(W.dtype).tiny)
    return relative.flatten(1).mean(0)


def _candidates(importance: Tensor, typical: Tensor, weight_means: Tensor | None, n_grid: int) -> Iterator[Tensor]:
    """Scales to try, before they are normalized: those from inputs alone come first, and win a tie."""
    powers = [importance.pow(step / n_grid) for step in range(n_grid)]
    least = [LEAST * typical.pow(step / n_grid) for step in range(n_grid)]
    yield from (power.clamp(min=bound) for power, bound in zip(powers, least, strict=True))
    if weight_means is not None:
        for step, (power, bound) in enumerate(zip(powers, least, strict=True)):
            yield (power / (weight_means.pow(1 - step / n_grid) + 1e-4)).clamp_(min=bound)


def awq_clip(W: Tensor, gram: Tensor, spec: AWQ) -> Tensor:
    """Shrink the range of each group of weights as far as that lowers its output error.

    References
    ----------
    ``auto_clip.py`` of mit-han-lab/llm-awq.
    """
    groups = in_groups(W, spec.settled_group_size)  # (d_out, n_groups, g)
    n_groups, size = groups.shape[1:]
    blocks = gram.unflatten(0, (n_groups, size)).unflatten(2, (n_groups, size))
    blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (n_groups, g, g)
    reach = groups.abs().amax(-1, keepdim=True)  # (d_out, n_groups, 1)
    best, least = groups, torch.full_like(reach, float("inf"))
    for step in range(int(CLIP_STEPS * CLIP_LEAST)):
        limit = reach * (1 - step / CLIP_STEPS)
        clipped = groups.clamp(-limit, limit)
        delta = grid_of(clipped, spec.bits, spec.symmetric).round(clipped) - groups
        moved = torch.bmm(delta.transpose(0, 1), blocks).transpose(0, 1)  # (d_out, n_groups, g)
        error = (moved * delta).sum(-1, keepdim=True)
        best = torch.where(error < least, clipped, best)
        least = torch.minimum(error, least)
    return best.flatten(1)


def awq(
    weights: list[Tensor],
    stats: InputStatistics,
    spec: AWQ,
    *,
    scalable: bool = True,
    rows: Tensor | None = None,
    clipped: list[bool] | None = None,
) -> tuple[list[Tensor], Tensor | None]:
    """Quantize the layers that read one input.

    Parameters
    ----------
    weights : list of Tensor of shape (d_out_i, d_in)
        Weights of the layers.
    stats : InputStatistics
        Statistics of their common input.
    spec : AWQ
        Bits, group size, symmetry, ``n_grid``, ``duo_scaling`` and ``clip``.
    scalable : bool
        Whether something before the layers can take up the inverse scale.
    rows : Tensor of shape (d_in,), int64, optional
        Channels with the same number must share a scale.
    clipped : list of bool, optional
        Which layers to clip; all by default.

    Returns
    -------
    weights : list of Tensor of shape (d_out_i, d_in)
        Values on the grid, for the scaled input.
    scale : Tensor of shape (d_in,), or None
        What the input must be divided by; ``None`` if not ``scalable``.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import awq, method_spec
    >>> from cola_lib.statistics import InputStatistics, gram_matrix
    >>> X = torch.tensor([[1.0, 0.0, 2.0, 1.0], [0.0, 3.0, 1.0, -1.0], [2.0, 1.0, 0.0, 1.0], [1.0, -1.0, 1.0, 3.0]])
    >>> stats = InputStatistics.empty(4)
    >>> stats.update(X)
    >>> W = torch.tensor([[0.9, -0.1, 0.5, 0.2], [0.3, 0.8, -0.6, 0.1]])
    >>> rounded, scale = awq([W], stats, method_spec("awq", bits=3, group_size=4))
    >>> rounded[0].shape, scale.shape
    (torch.Size([2, 4]), torch.Size([4]))
    """
    rounded, scale = awq_on_grid(weights, stats, spec, scalable=scalable, rows=rows, clipped=clipped)
    return [each.values for each in rounded], scale


def awq_on_grid(
    weights: list[Tensor],
    stats: InputStatistics,
    spec: AWQ,
    *,
    scalable: bool = True,
    rows: Tensor | None = None,
    clipped: list[bool] | None = None,
) -> tuple[list[OnGrid], Tensor | None]:
    """Like :func:`awq`, with the grids."""
    scale = awq_scale(torch.cat(weights), stats, spec, rows) if scalable else None
    s = torch.ones(stats.d_in, device=stats.gram.device) if scale is None else scale
    gram = stats.gram / s / s[:, None]
    quantized = []
    for W, may_clip in zip(weights, clipped or [True] * len(weights), strict=True):
        scaled = W * s
        if spec.clip and may_clip:
            scaled = awq_clip(scaled, gram, spec)
        quantized.append(rtn_on_grid(scaled, spec))
    return quantized, scale
