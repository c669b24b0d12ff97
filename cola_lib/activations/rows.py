"""Numbers of each row of a calibration set, reduced inside the model while it runs.

A :class:`Probe` names a place in some decoder blocks and how the states that pass there become a vector for each row.
:func:`row_features` runs the rows once, in batches of like length, and stops behind the deepest block that a probe
watches. What is kept is only what the probes return, so memory grows with rows and not with tokens or layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cola_lib.arithmetic import fast_products
from cola_lib.calibration import CalibrationSet
from cola_lib.errors import DataError, NumericsError, SpecError, UnknownNameError
from cola_lib.models import LanguageModel

OUTPUT = "output"
"""Place of a probe: what a block puts out. Any other place is the name of an input group of the architecture."""

BATCH_TOKENS = {"cpu": 512, "cuda": 32768}
"""Positions run at a time, padding included. More only costs cache on a CPU."""

Measure = Callable[[Tensor, Tensor, int], Tensor]
"""States (n_rows, seq_len, d), mask (n_rows, seq_len) and position in ``Probe.blocks`` → (n_rows, k)."""


@dataclass(frozen=True)
class Probe:
    """What to measure where."""

    where: str
    blocks: tuple[int, ...]
    measure: Measure
    add: bool = False


class _DeepEnough(Exception):  # noqa: N818 - no error: it ends a forward pass whose rest nobody reads
    """No probe watches the blocks that would come."""


def token_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of each row."""
    weights = (mask.float() / mask.sum(1, keepdim=True))[:, None]  # (n_rows, 1, seq_len)
    if states.is_cuda:  # a copy is cheap there, and waiting for the answer is not
        return torch.bmm(weights, _without_padding(states, mask))[:, 0]
    mean = torch.bmm(weights, states.float())[:, 0]  # reads the states once and writes no copy of them
    if torch.isfinite(mean).all():
        return mean
    return torch.bmm(weights, _without_padding(states, mask))[:, 0]  # 0 times NaN is NaN


def _without_padding(states: Tensor, mask: Tensor) -> Tensor:
    """Set what stands at padding to zero, in float32."""
    return states.float().masked_fill(~mask[..., None], 0.0)


def pooled_probe(blocks: Sequence[int]) -> Probe:
    """Mean output of each block over a row's tokens: (n_rows, n_blocks, d_model)."""
    return Probe(OUTPUT, tuple(blocks), lambda states, mask, _: token_mean(states, mask))


def projection_probe(blocks: Sequence[int], matrices: Tensor) -> Probe:
    """Pooled outputs, scaled to unit length in each block, put side by side and projected: (n_rows, k).

    Notes
    -----
    Projecting block by block and adding up is the projection of what stands side by side, which is never made.
    """
    if len(matrices) != len(blocks):
        raise SpecError(f"{len(blocks)} blocks need as many projection matrices, and there are {len(matrices)}")
    placed = functools.cache(matrices.to)  # once, and not for every block and batch

    def measure(states: Tensor, mask: Tensor, position: int) -> Tensor:
        mean = token_mean(states, mask)
        return nn.functional.normalize(mean, dim=-1) @ placed(mean.device)[position]

    return Probe(OUTPUT, tuple(blocks), measure, add=True)


def moments_probe(blocks: Sequence[int]) -> Probe:
    """Mean and standard deviation of each channel over a row's tokens: (n_rows, n_blocks, 2 * d_model)."""

    def measure(states: Tensor, mask: Tensor, _: int) -> Tensor:
        mean = token_mean(states, mask)
        variance = token_mean((states.float() - mean[:, None]).square_(), mask)
        return torch.cat([mean, variance.sqrt()], dim=-1)

    return Probe(OUTPUT, tuple(blocks), measure)


def energy_probe(where: str, blocks: Sequence[int]) -> Probe:
    """Sum of squares of each channel over a row's tokens, the diagonal of its Gram matrix: (n_rows, n_blocks, d)."""

    def measure(states: Tensor, mask: Tensor, _: int) -> Tensor:
        return token_mean(states.float().square(), mask) * mask.sum(1, keepdim=True)

    return Probe(where, tuple(blocks), measure)


def peak_probe(where: str, blocks: Sequence[int]) -> Probe:
    """Largest magnitude of each channel over a row's tokens: (n_rows, n_blocks, d)."""

    def measure(states: Tensor, mask: Tensor, _: int) -> Tensor:
        return _without_padding(states.abs(), mask).amax(1)

    return Probe(where, tuple(blocks), measure)


def sketch_probe(where: str, blocks: Sequence[int], matrices: Tensor) -> Probe:
    """Gram matrix of each row's inputs after a projection, its lower triangle: (n_rows, n_blocks, m * (m + 1) / 2)."""
    m = matrices.shape[-1]
    placed = functools.cache(matrices.to)  # once, and not for every block and batch

    @functools.cache
    def triangle(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        row, column = torch.tril_indices(m, m, device=device)
        return row, column, torch.where(row == column, 1.0, 2.0**0.5)

    def measure(states: Tensor, mask: Tensor, position: int) -> Tensor:
        short = _without_padding(states.float() @ placed(states.device)[position], mask)  # (n_rows, seq_len, m)
        gram = torch.bmm(short.transpose(1, 2), short)
        row, column, weight = triangle(gram.device)
        return gram[:, row, column] * weight

    return Probe(where, tuple(blocks), measure)


def _watched(lm: LanguageModel, probe: Probe, block: int) -> nn.Module:
    """Find the module of a block at which a probe is placed."""
    if probe.where == OUTPUT:
        return lm.blocks[block]
    groups = {group.name: group for group in lm.architecture.groups}
    if probe.where not in groups:
        raise UnknownNameError("place of a probe", probe.where, [OUTPUT, *groups])
    return lm.blocks[block].get_submodule(groups[probe.where].layers[0])  # they are called with the same tensor


@contextmanager
def _placed(
    lm: LanguageModel, probes: Mapping[str, Probe], seen: dict[str, list[Tensor]], mask: list[Tensor]
) -> Iterator[None]:
    """Append what each probe measures to ``seen`` as it appears; ``mask`` holds the running batch's."""

    def hook(name: str, position: int, states: Tensor) -> None:
        seen[name].append(probes[name].measure(states, mask[0], position))

    def output_hook(name: str, position: int, _: nn.Module, __: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
        hook(name, position, output[0] if isinstance(output, tuple) else output)

    def input_hook(name: str, position: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        hook(name, position, inputs[0])

    def stop(*_: object) -> None:
        raise _DeepEnough

    with ExitStack() as undo:
        for name, probe in probes.items():
            for position, block in enumerate(probe.blocks):
                module = _watched(lm, probe, block)
                if probe.where == OUTPUT:
                    handle = module.register_forward_hook(functools.partial(output_hook, name, position))
                else:
                    handle = module.register_forward_pre_hook(functools.partial(input_hook, name, position))
                undo.callback(handle.remove)
        deepest = max(block for probe in probes.values() for block in probe.blocks)
        undo.callback(lm.blocks[deepest].register_forward_hook(stop).remove)  # after the probes' own hooks there
        yield


def length_batches(lengths: Tensor, batch_tokens: int) -> list[Tensor]:
    """Group rows of like length, longest first, so that little of a batch is padding."""
    order = torch.argsort(lengths, descending=True, stable=True)
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // int(lengths[order[start]]))
        batches.append(order[start : start + size])
        start += size
    return batches


@torch.no_grad()
def row_features(
    lm: LanguageModel,
    rows: CalibrationSet,
    probes: Mapping[str, Probe],
    *,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Run the model once over rows and reduce what passes each probe to a vector for each row.

    Notes
    -----
    No attention mask is passed: padding is on the right, and under causal attention what stands on the right of a
    token never reaches it. Attention kernels are faster without one.
    """
    if not probes or not all(probe.blocks for probe in probes.values()):
        raise SpecError("there is no probe, or one that watches no block: nothing would be measured")
    for name, probe in probes.items():
        if not set(probe.blocks) <= set(range(len(lm.blocks))) or len(set(probe.blocks)) < len(probe.blocks):
            raise SpecError(
                f"probe {name!r}: blocks must be different numbers from 0 to {len(lm.blocks) - 1}, and are: "
                f"{', '.join(map(str, probe.blocks))}"
            )
    budget = BATCH_TOKENS.get(lm.device.type, BATCH_TOKENS["cuda"]) if batch_tokens is None else batch_tokens
    if budget < 1:
        raise SpecError(f"batch_tokens must be at least 1, and is {budget}")
    lengths = rows.attention_mask.sum(1)
    if not lengths.all():
        empty = int((lengths == 0).nonzero()[0])
        raise DataError(f"calibration set {rows.name!r}: row {empty} has no token that is not padding")
    found: dict[str, Tensor] = {}
    seen: dict[str, list[Tensor]] = {name: [] for name in probes}
    current: list[Tensor] = []
    bar = tqdm(total=int(lengths.sum()), desc="activations", unit="tok", disable=not progress, leave=False)
    with bar, _placed(lm, probes, seen, current):
        for batch in length_batches(lengths, budget):
            width = int(lengths[batch[0]])
            current[:] = [rows.attention_mask[batch, :width].to(lm.device)]
            _run(lm, rows.input_ids[batch, :width].to(lm.device))
            for name, probe in probes.items():
                values = torch.stack(seen[name], dim=1).cpu()  # (n_batch, n_blocks, k)
                seen[name].clear()
                _check(values, lm, probe, batch)
                values = values.sum(1) if probe.add else values
                if name not in found:
                    found[name] = torch.empty(rows.n_samples, *values.shape[1:])
                found[name][batch] = values
            bar.update(int(lengths[batch].sum()))
    return found


@fast_products()
def _run(lm: LanguageModel, input_ids: Tensor) -> None:
    """Run the decoder until the last probe has seen what it needs."""
    try:
        lm.decoder(input_ids=input_ids, use_cache=False)
    except _DeepEnough:
        return


def _check(values: Tensor, lm: LanguageModel, probe: Probe, batch: Tensor) -> None:
    """Refuse values that are not finite, naming the first block at fault, for there it began."""
    finite = torch.isfinite(values).all(-1)  # (n_batch, n_blocks)
    if not finite.all():
        position = int((~finite).any(0).nonzero()[0])
        row = int(batch[~finite[:, position]].min())
        where = OUTPUT if probe.where == OUTPUT else f"input {probe.where!r}"
        raise NumericsError(
            lm.block_name(probe.blocks[position]),
            f"NaN or infinity in its {where} for row {row}; the model, or its dtype's range, fails on this set",
        )
