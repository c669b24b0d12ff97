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
    """Mean output of each decoder block over the real tokens of each row of a calibration set."""

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
    """Run the model once over a calibration set and keep each block's mean output for each row."""
    probes = {"pooled": pooled_probe(range(len(lm.blocks)))}
    values = row_features(lm, calibration, probes, batch_tokens=batch_tokens, progress=progress)["pooled"]
    return PooledActivations(values, lm.fingerprint, calibration.fingerprint, calibration.sample_ids)
