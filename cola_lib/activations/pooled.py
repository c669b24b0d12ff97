"""One vector per text and block: the mean over real tokens of what each decoder block puts out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cola_lib.curation import CalibrationSet
from cola_lib.errors import DataError, NumericsError, SpecError
from cola_lib.models import LanguageModel


@dataclass(frozen=True, eq=False)
class PooledActivations:
    """Mean output of each decoder block over the real tokens of each row of a calibration set.

    Parameters
    ----------
    values : Tensor of shape (n_samples, n_layers, d_model), float32
        Layer ``i`` is the output of block ``i``: the residual stream after it. The last block's is taken before
        the model's final norm, so that all layers are of one kind.
    model : str
        Fingerprint of the model that was run.
    calibration : str
        Fingerprint of the calibration set that it read.
    sample_ids : tuple of tuple of str
        For each row, the ids of the samples in it.

    Raises
    ------
    DataError
        If ``values`` has another shape or dtype, or does not have one row per entry of ``sample_ids``.
    """

    values: Tensor
    model: str
    calibration: str
    sample_ids: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 3 or 0 in shape or self.values.dtype != torch.float32:
            raise DataError(
                f"pooled activations must be float32 of shape (n_samples, n_layers, d_model), all at least 1, "
                f"and are {self.values.dtype} of shape {shape}"
            )
        if len(self.sample_ids) != shape[0]:
            raise DataError(f"pooled activations of {shape[0]} rows have {len(self.sample_ids)} lists of sample ids")

    @property
    def n_samples(self) -> int:
        """Rows."""
        return self.values.shape[0]

    @property
    def n_layers(self) -> int:
        """Decoder blocks."""
        return self.values.shape[1]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.values.shape[2]

    def vectors(self, layers: Sequence[int] | None = None) -> Tensor:
        """One vector of unit length per row, in which each layer has the same weight.

        Each layer's vector is scaled to unit length, the layers are put side by side, and the whole is scaled to
        unit length again.

        Parameters
        ----------
        layers : sequence of int, optional
            Positions of the blocks to take, each at most once. Default: all.

        Returns
        -------
        Tensor of shape (n_samples, n_layers * d_model), float32
            Rows have unit norm, so an inner product of two is the mean over layers of their cosines.

        Raises
        ------
        SpecError
            If a layer does not exist or comes twice, or none is given.
        NumericsError
            If a row's vector at some block is zero: it has no direction.

        Notes
        -----
        Without the scaling of each layer, the last blocks would decide alone: the residual stream grows with depth.

        References
        ----------
        He et al., "Preserving LLM Capabilities through Calibration Data Curation: From Analysis to Optimization",
        arXiv 2510.10618: the representation that stage 3 of COLA clusters.
        """
        chosen = list(range(self.n_layers)) if layers is None else list(layers)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(self.n_layers)):
            raise SpecError(f"layers must be different numbers from 0 to {self.n_layers - 1}, and are: {chosen}")
        taken = self.values[:, chosen]  # (n_samples, n_chosen, d_model)
        norms = taken.norm(dim=-1, keepdim=True)
        if (norms == 0).any():
            row, place = (norms[..., 0] == 0).nonzero()[0].tolist()
            raise NumericsError(f"block {chosen[place]}", f"the pooled activation of row {row} is zero: no direction")
        return (taken / norms).flatten(1) / len(chosen) ** 0.5


def _pool(output: Tensor, mask: Tensor) -> Tensor:
    """Mean over the real tokens of each row: (n_rows, seq_len, d), (n_rows, seq_len) → (n_rows, d), float32."""
    mask = mask.to(output.device)
    # Padding is set to zero and not multiplied by it: a NaN there, which is nobody's concern, would stay a NaN.
    total = output.float().masked_fill(~mask[..., None], 0.0).sum(1)
    return total / mask.sum(1, keepdim=True)


@contextmanager
def _pooling(lm: LanguageModel, pooled: list[Tensor], current: list[Tensor]) -> Iterator[None]:
    """Append each block's pooled output to ``pooled`` as it appears; ``current`` holds the running batch's mask."""

    def hook(_: nn.Module, __: Any, output: Tensor | tuple[Tensor, ...]) -> None:
        pooled.append(_pool(output[0] if isinstance(output, tuple) else output, current[0]))

    with ExitStack() as undo:
        for block in lm.blocks:
            undo.callback(block.register_forward_hook(hook).remove)
        yield


def _check(values: Tensor, lm: LanguageModel, start: int) -> None:
    """Refuse a batch that is not finite, naming the first block at fault, for there it began."""
    finite = torch.isfinite(values).all(-1)  # (n_rows, n_layers)
    if not finite.all():
        layer = int((~finite).any(0).nonzero()[0])
        row = start + int((~finite[:, layer]).nonzero()[0])
        raise NumericsError(
            lm.block_name(layer),
            f"NaN or infinity in its output for row {row}; the model, or its dtype's range, fails on this set",
        )


@torch.no_grad()
def pooled_activations(
    lm: LanguageModel,
    calibration: CalibrationSet,
    *,
    batch_size: int = 8,
    progress: bool = True,
) -> PooledActivations:
    """Run the model once over a calibration set and keep each block's mean output for each row.

    Parameters
    ----------
    lm : LanguageModel
        Left as it is. Only its decoder runs: no logits are computed.
    calibration : CalibrationSet
        Padding never enters a mean.
    batch_size : int
        Rows run at a time. Means differ between batch sizes by rounding only.
    progress : bool
        Show a progress bar over batches.

    Returns
    -------
    PooledActivations
        On the CPU, in float32 whatever the model's dtype: 4 * n_samples * n_layers * d_model bytes, 69 kB a row for
        the embedded model. Full activations are never kept.

    Raises
    ------
    DataError
        If a row has no token that is not padding.
    SpecError
        If ``batch_size`` is below 1.
    NumericsError
        If a block's output at a real token holds NaN or infinity; the message names the first such block.
    """
    if batch_size < 1:
        raise SpecError(f"batch_size must be at least 1, and is {batch_size}")
    empty = (~calibration.attention_mask.any(1)).nonzero()
    if len(empty):
        raise DataError(f"calibration set {calibration.name!r}: row {int(empty[0])} has no token that is not padding")
    parts: list[Tensor] = []
    pooled: list[Tensor] = []
    current: list[Tensor] = []
    starts = range(0, calibration.n_samples, batch_size)
    with _pooling(lm, pooled, current):
        for start in tqdm(starts, desc="activations", unit="batch", disable=not progress, leave=False):
            input_ids = calibration.input_ids[start : start + batch_size]
            mask = calibration.attention_mask[start : start + batch_size]
            current[:] = [mask.to(lm.device)]
            # Without a mask, attention kernels take their faster causal path.
            attention_mask = None if bool(mask.all()) else mask.to(lm.device, torch.long)
            lm.decoder(input_ids=input_ids.to(lm.device), attention_mask=attention_mask, use_cache=False)
            values = torch.stack([layer.cpu() for layer in pooled], dim=1)  # (n_rows, n_layers, d_model)
            pooled.clear()
            _check(values, lm, start)
            parts.append(values)
    return PooledActivations(torch.cat(parts), lm.fingerprint, calibration.fingerprint, calibration.sample_ids)
