"""One vector per text and block: the mean over real tokens of what each decoder block puts out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cola_lib.activations.rows import pooled_probe, row_features
from cola_lib.calibration import CalibrationSet
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

    Examples
    --------
    >>> from cola_lib.activations import pooled_activations
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> pooled = pooled_activations(lm, random_tokens_set(lm.tokenizer, 4, 16), progress=False)
    >>> pooled.n_samples, pooled.n_layers, pooled.d_model
    (4, 2, 32)
    >>> pooled.vectors().norm(dim=1).round(decimals=3).tolist()
    [1.0, 1.0, 1.0, 1.0]
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


def pooled_activations(
    lm: LanguageModel,
    calibration: CalibrationSet,
    *,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> PooledActivations:
    """Run the model once over a calibration set and keep each block's mean output for each row.

    Parameters
    ----------
    lm, calibration, batch_tokens, progress
        As in :func:`~cola_lib.activations.row_features`.

    Returns
    -------
    PooledActivations
        On the CPU, in float32 whatever the model's dtype: 4 * n_samples * n_layers * d_model bytes, 69 kB a row for
        the embedded model. Full activations are never kept.

    Raises
    ------
    DataError, SpecError, NumericsError
        As in :func:`~cola_lib.activations.row_features`.

    Examples
    --------
    >>> from cola_lib.activations import pooled_activations
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> pooled_activations(lm, random_tokens_set(lm.tokenizer, 4, 16), progress=False).values.shape
    torch.Size([4, 2, 32])
    """
    probes = {"pooled": pooled_probe(range(len(lm.blocks)))}
    values = row_features(lm, calibration, probes, batch_tokens=batch_tokens, progress=progress)["pooled"]
    return PooledActivations(values, lm.fingerprint, calibration.fingerprint, calibration.sample_ids)
