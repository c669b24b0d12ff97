"""The one walk over a model's blocks: the only code that touches blocks, hooks, devices and masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cola_lib.arithmetic import fast_products
from cola_lib.errors import UnknownNameError
from cola_lib.models import LanguageModel
from cola_lib.statistics.inputs import ChannelStatistics, ChannelSums, InputStatistics, LayerStatistics

if TYPE_CHECKING:
    from cola_lib.calibration import CalibrationSet

Propagate = Literal["compressed", "original"]
PROPAGATE: tuple[Propagate, ...] = ("compressed", "original")

Seen = TypeVar("Seen", bound=ChannelSums, covariant=True)
"""What a walk gathers of each input."""


@dataclass
class Batch:
    """Some rows of the calibration set on their way through the model."""

    hidden: Tensor
    arguments: list[dict[str, Any]]
    real: Tensor | None
    weights: Tensor | None = None
    total: float | None = None


@dataclass(frozen=True)
class BlockStep(Generic[Seen]):
    """A block that the walk has arrived at."""

    index: int
    name: str
    block: nn.Module
    statistics: Mapping[str, Seen]
    held_out: Mapping[str, Seen] | None = None


@contextmanager
def _recorded(blocks: nn.ModuleList, calls: list[tuple[Tensor, dict[str, Any]]]) -> Iterator[None]:
    """Make each block note how it is called and pass its input on, instead of computing."""

    def recorder(hidden_states: Tensor, **arguments: Any) -> Tensor:
        calls.append((hidden_states, arguments))
        return hidden_states

    with ExitStack() as undo:
        for block in blocks:
            block.forward = recorder
            undo.callback(block.__dict__.pop, "forward")
        yield


@fast_products()
def _embed(lm: LanguageModel, rows: CalibrationSet) -> Batch:
    """Run everything before the first block, and learn what the model hands to each block."""
    calls: list[tuple[Tensor, dict[str, Any]]] = []
    mask = rows.attention_mask.bool()
    full = bool(mask.all())
    # Without a mask, attention kernels take their faster causal path.
    attention_mask = None if full else mask.to(lm.home, torch.long)
    with _recorded(lm.blocks, calls):
        lm.decoder(input_ids=rows.input_ids.to(lm.home), attention_mask=attention_mask, use_cache=False)
    arguments = [kwargs for _, kwargs in calls]
    hidden = calls[0][0]
    if hidden.device.type == "cpu" and lm.device.type == "cuda":
        hidden = hidden.pin_memory()
    batch = Batch(hidden, arguments, None if full else mask.flatten().nonzero()[:, 0].to(lm.device))
    if rows.weights is not None:
        weights = torch.tensor(rows.weights)[:, None].expand(mask.shape)[mask]
        batch.weights, batch.total = weights.to(lm.device), float(weights.sum(dtype=torch.float64))
    return batch


def _on(device: torch.device, value: Any) -> Any:
    """Move the tensors in a block's arguments; what is on the device already stays as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_on(device, part) for part in value)
    if isinstance(value, dict):
        return {key: _on(device, part) for key, part in value.items()}
    return value


@fast_products()
def _run(block: nn.Module, index: int, batch: Batch, device: torch.device) -> Tensor:
    """Run one block over one batch, on the block's device, and bring the output back to where the batch waits."""
    output = block(batch.hidden.to(device, non_blocking=True), **_on(device, batch.arguments[index]))
    output = output[0] if isinstance(output, tuple) else output
    if output.device == batch.hidden.device:
        return output
    # Into the pinned memory of the input, whose copy to the device comes before in the stream. The host reads neither.
    return batch.hidden.copy_(output, non_blocking=True)


class _AllSeen(Exception):  # noqa: N818 - it is no error
    """Every input of a block has been seen, and nobody will read its output."""


def _stop(*_: object) -> None:
    raise _AllSeen


@contextmanager
def _watched(
    lm: LanguageModel, name: str, block: nn.Module, current: list[Batch], *, gram: bool, whole: bool
) -> Iterator[dict[str, InputStatistics] | dict[str, ChannelStatistics]]:
    """Sum the statistics of each input group while the block runs; ``current`` holds the running batch."""
    statistics: dict[str, Any] = {}

    def real(tensor: Tensor) -> Tensor:
        """Take the tokens that are no padding: (n_rows, seq_len, d) → (n_tokens, d)."""
        tokens = tensor.flatten(0, 1)
        return tokens if current[0].real is None else tokens[current[0].real]

    def watch_input(layer: nn.Module, stats: InputStatistics | ChannelStatistics) -> Callable[[], None]:
        def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            stats.update(real(inputs[0]), current[0].weights, current[0].total)

        return layer.register_forward_pre_hook(watch).remove

    def watch_output(layer: str, stats: InputStatistics) -> Callable[[], None]:
        def watch(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
            bias = getattr(module, "bias", None)
            outputs = real(output if bias is None else output - bias)
            stats.watch_outputs(f"{name}.{layer}", outputs, current[0].weights)

        return block.get_submodule(layer).register_forward_hook(watch).remove

    kind = InputStatistics if gram else ChannelStatistics
    with ExitStack() as undo:
        for group in lm.architecture.groups:
            # One layer stands for its group: they are called with the same tensor.
            first, weight = block.get_submodule(group.layers[0]), block.get_parameter(f"{group.layers[0]}.weight")
            stats = statistics[group.name] = kind.empty(weight.shape[1], weight.device)
            undo.callback(watch_input(first, stats))
            if not whole and group is lm.architecture.groups[-1]:
                undo.callback(first.register_forward_pre_hook(_stop).remove)
            elif isinstance(stats, InputStatistics):
                for layer in group.layers:
                    undo.callback(watch_output(layer, stats))
        yield statistics


@overload
def walk(
    lm: LanguageModel,
    calibration: CalibrationSet,
    *,
    propagate: Propagate = ...,
    gram: Literal[True] = ...,
    held_out: CalibrationSet | None = ...,
    blocks: Collection[int] | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
) -> Iterator[BlockStep[InputStatistics]]: ...


@overload
def walk(
    lm: LanguageModel,
    calibration: CalibrationSet,
    *,
    propagate: Propagate = ...,
    gram: bool,
    held_out: CalibrationSet | None = ...,
    blocks: Collection[int] | None = ...,
    batch_size: int = ...,
    progress: bool = ...,
) -> Iterator[BlockStep[ChannelSums]]: ...


@torch.no_grad()
def walk(
    lm: LanguageModel,
    calibration: CalibrationSet,
    *,
    propagate: Propagate = "original",
    gram: bool = True,
    held_out: CalibrationSet | None = None,
    blocks: Collection[int] | None = None,
    batch_size: int = 8,
    progress: bool = True,
) -> Iterator[BlockStep[ChannelSums]]:
    """Visit the blocks in order with the statistics of their inputs.

    Parameters
    ----------
    lm : LanguageModel
        The walk changes no weight of it; whoever consumes the walk may, block by block, and says so by
        :meth:`~cola_lib.models.LanguageModel.weights_changed`. A streamed model has the block at hand in memory only.
    calibration : CalibrationSet
        Padding never enters a statistic. If the set has weights, each token counts as much as its row's.
    propagate : {"original", "compressed"}
        What the next block reads. ``"original"``: this block's output as it was when the walk arrived, so one
        walk serves every method. ``"compressed"``: its output after the consumer's changes, at the cost of
        a second pass, as in the papers' own code; the first then ends at the input of each block's last layers.
    gram : bool
        Gather the Gram matrix of each input. Without it there are :class:`ChannelStatistics` only, which cost next to
        nothing beside the pass, and are enough for some methods: see ``reads_gram`` of their specifications.
    held_out : CalibrationSet, optional
        Rows that take the same way, and whose statistics are kept apart.
    blocks : collection of int, optional
        Visit these blocks only. The walk passes through those before them, and ends after the last.
    batch_size : int
        Rows run at a time. Sums differ between batch sizes by float32 rounding only.
    progress : bool
        Show a progress bar over blocks.

    Yields
    ------
    BlockStep
        One per block.

    Raises
    ------
    DataError
        If a token is beyond the model's embedding.
    NumericsError
        If a layer's input holds NaN or infinity; the message names the layer.
    SpecError
        If rows are longer than the model's context.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.models import tiny_model
    >>> from cola_lib.statistics import walk
    >>> lm = tiny_model()
    >>> for step in walk(lm, random_tokens_set(lm.tokenizer, 2, 16), progress=False):
    ...     print(step.name, step.statistics["attn_in"].n_tokens)
    model.layers.0 32.0
    model.layers.1 32.0
    """
    if propagate not in PROPAGATE:
        raise UnknownNameError("propagate", str(propagate), PROPAGATE)
    lm.check_length(calibration.seq_len)
    parts = [
        [_embed(lm, rows.rows(start, start + batch_size)) for start in range(0, rows.n_samples, batch_size)]
        for rows in (calibration, held_out)
        if rows is not None
    ]
    n_blocks = len(lm.blocks) if blocks is None else max(blocks) + 1
    for index in tqdm(range(n_blocks), desc="walk", unit="block", disable=not progress, leave=False):
        name = lm.block_name(index)
        with lm.resident(index) as block:
            if blocks is not None and index not in blocks:
                for batch in chain(*parts):
                    batch.hidden = _run(block, index, batch, lm.device)
                continue
            seen = []
            for batches in parts:
                current: list[Batch] = [batches[0]]
                with _watched(lm, name, block, current, gram=gram, whole=propagate == "original") as statistics:
                    for batch in batches:
                        current[0] = batch
                        with suppress(_AllSeen):
                            batch.hidden = _run(block, index, batch, lm.device)
                for group in lm.architecture.groups:
                    statistics[group.name].check(f"{name}.{group.layers[0]}")
                seen.append(statistics)
            yield BlockStep(index, name, block, *seen)
            del statistics, seen  # their Gram matrices would stay while the next block makes its own
            if propagate == "compressed" and index + 1 < n_blocks:
                for batch in chain(*parts):
                    batch.hidden = _run(block, index, batch, lm.device)


def collect_statistics(
    lm: LanguageModel,
    calibration: CalibrationSet,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> LayerStatistics:
    """Gather the statistics of every input of the untouched model in one walk.

    Parameters
    ----------
    lm : LanguageModel
        Left as it is.
    calibration : CalibrationSet
        What it reads.
    batch_size : int
        Rows run at a time.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    LayerStatistics
        About 13 MB a block for the embedded model, 1 GB a block for an 8 B model: for large models take the
        blocks from :func:`walk` one at a time instead. Those of a streamed model are in main memory.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.models import tiny_model
    >>> from cola_lib.statistics import collect_statistics
    >>> lm = tiny_model()
    >>> statistics = collect_statistics(lm, random_tokens_set(lm.tokenizer, 4, 16), progress=False)
    >>> statistics.n_tokens, statistics.block(1)["mlp_down"].gram.shape
    (64.0, torch.Size([64, 64]))
    """
    inputs = {
        (step.index, group): stats.to(lm.home)
        for step in walk(lm, calibration, propagate="original", batch_size=batch_size, progress=progress)
        for group, stats in step.statistics.items()
    }
    return LayerStatistics(inputs, lm.fingerprint, (calibration.fingerprint,))
