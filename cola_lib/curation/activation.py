"""Strategies that look at what a text does inside the model, other than COLA."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cola_lib.activations import moments_probe, peak_probe
from cola_lib.calibration import CalibrationSet
from cola_lib.curation.base import STRATEGIES, Brief, Strategy, by_source, shares
from cola_lib.curation.cola import WIDTH, activation_vectors
from cola_lib.curation.pool import Pool, Rows
from cola_lib.errors import DataError

log = logging.getLogger(__name__)

PEAKS = 6.0
"""A channel is an outlier if its peak is above so many times the median channel's of its layer."""

REACHED = 0.9
"""A row covers an outlier channel if it reaches this share of the pool's peak there."""


@STRATEGIES.register
@dataclass(frozen=True)
class CentroidDistance(Strategy):
    """Rows whose states have, in every block, means and deviations nearest to those of the target's texts.

    Notes
    -----
    Each coordinate is standardized over the pool. A row's distance to a capability is the mean over blocks of the
    Euclidean distance to the mean of the capability's texts. Capabilities have rows in proportion to their weights.
    What could be read of the paper leaves statistic, scaling and shares open; these are ours.

    References
    ----------
    "Understanding and Selecting Calibration Data for LLM Quantization: From Sensitivity Analysis to Activation-Based
    Curation" (ACDM), ACL-SELVA workshop 2026.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import CentroidDistance, Pool, deployment
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> target = deployment({"language": [Sample("t", "A stitch in time saves nine.", "target")]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = CentroidDistance().select(pool, tiny_model(), n_samples=2, seq_len=16, target=target, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'centroid_distance')
    """

    name: ClassVar[str] = "centroid_distance"
    needs_target: ClassVar[bool] = True

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows, wanted = brief.rows(), brief.target_rows()
        own = self._moments(brief, brief.pool, rows)
        asked = self._moments(brief, brief.deployment.pool, wanted)
        mean, deviation = own.mean(0), own.std(0).clamp(min=torch.finfo(own.dtype).tiny)
        own, asked = (own - mean) / deviation, (asked - mean) / deviation
        ranked = {}
        for capability, at in by_source(wanted).items():
            distance = (own - asked[at].mean(0)).norm(dim=-1).mean(-1)
            ranked[capability] = distance.argsort(stable=True).tolist()
        return brief.take(rows, in_shares(ranked, brief))

    @staticmethod
    def _moments(brief: Brief, pool: Pool, rows: Rows) -> Tensor:
        """Of shape (n_rows, n_blocks, 2 * d_model), float64."""
        probes = {"moments": moments_probe(range(len(brief.lm.blocks)))}
        return pool.features(brief.lm, rows, "moments", probes)["moments"].double()


def in_shares(ranked: dict[str, Sequence[int]], brief: Brief) -> list[int]:
    """Take from each capability's ranking as many rows as its weight says, no row twice."""
    left = shares(brief.deployment.weights, brief.n_samples)
    queues = {capability: iter(order) for capability, order in ranked.items()}
    taken: dict[int, None] = {}
    while any(left.values()):
        for capability in left:
            if left[capability]:
                new = next((i for i in queues[capability] if i not in taken), None)
                left[capability] = left[capability] - 1 if new is not None else 0
                taken |= {} if new is None else {new: None}
    return list(taken)


@STRATEGIES.register
@dataclass(frozen=True)
class OutlierCover(Strategy):
    """Rows that together reach the outlier channels of every layer's input, by greedy weighted set cover.

    Parameters
    ----------
    threshold : float
        A channel is an outlier if its peak over the pool is above so many times the median of its layer's.
    reached : float
        A row covers a channel if its own peak is at least this share of the pool's.

    Notes
    -----
    A channel weighs the square of its peak times the squared norm of the weights that read it, as a share of its
    layer's: the energy that is lost where it is clipped. When nothing is left to cover, the cover begins anew with the
    rows that are left. Thresholds, weights and the restart are ours: the published text does not give them.

    References
    ----------
    Shihab et al., "Coverage-Based Calibration for Post-Training Quantization via Weighted Set Cover over Outlier
    Channels" (COVERCAL), arXiv 2604.24008. Greedy cover: Nemhauser, Wolsey and Fisher, Mathematical Programming
    14, 1978.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import OutlierCover, Pool
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = OutlierCover(threshold=2).select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'outlier_cover(threshold=2)')
    """

    name: ClassVar[str] = "outlier_cover"

    threshold: float = PEAKS
    reached: float = REACHED

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        covers, weights = self._universe(brief, rows)
        if not len(weights):
            raise DataError(
                f"strategy {brief.name!r}: no channel's peak is above {self.threshold:g} times the median, so there "
                "is no outlier to cover; lower the threshold"
            )
        return brief.take(rows, greedy_cover(covers, weights, brief.n_samples))

    def _universe(self, brief: Brief, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Which row covers which outlier channel, (n_rows, n_outliers) bool, and what each weighs."""
        lm, blocks = brief.lm, range(len(brief.lm.blocks))
        groups = lm.architecture.groups
        probes = {group.name: peak_probe(group.name, blocks) for group in groups}
        peaks = brief.pool.features(lm, rows, "peaks", probes)
        covers, weights = [], []
        for group in groups:
            for position, block in enumerate(blocks):
                own = peaks[group.name][:, position].double()  # (n_rows, d_in)
                peak = own.amax(0)
                outlier = peak > self.threshold * peak.median()
                weights_of = [lm.blocks[block].get_parameter(f"{layer}.weight") for layer in group.layers]
                energy = reduce(torch.add, [W.double().square().sum(0).cpu() for W in weights_of])
                lost = peak.square() * energy
                covers.append((own >= self.reached * peak)[:, outlier].numpy())
                weights.append((lost / lost.sum())[outlier].numpy())
        return np.concatenate(covers, axis=1), np.concatenate(weights)


def greedy_cover(covers: np.ndarray, weights: np.ndarray, n: int) -> list[int]:
    """Order rows by what each adds to the weight that is covered, beginning anew when nothing is left to add."""
    value = covers * weights  # (n_rows, n_elements)
    left, open_ = np.ones(len(value), dtype=bool), np.ones(value.shape[1], dtype=bool)
    order: list[int] = []
    while len(order) < min(n, len(value)):
        gain = np.where(left, value @ open_, -1.0)
        best = int(gain.argmax())
        if gain[best] <= 0:
            if open_.all():
                rest = min(n, len(value)) - len(order)
                log.warning("the last %d of %d rows cover no outlier; they are the first that are left", rest, n)
                order += np.flatnonzero(left).tolist()[: n - len(order)]
                break
            open_[:] = True
            continue
        order.append(best)
        left[best] = False
        open_ &= ~covers[best]
    return order


@STRATEGIES.register
@dataclass(frozen=True)
class SpectralVolume(Strategy):
    """Rows whose activation vectors span the largest volume: greedy log det(I + XᵀX / λ).

    Parameters
    ----------
    ridge : float
        λ as a multiple of the vectors' mean square per dimension.

    Notes
    -----
    A construction of this library's: no published spectral selector of calibration data was found. It is the D-optimal
    design, in the space in which COLA clusters.

    References
    ----------
    Fedorov, "Theory of Optimal Experiments", 1972.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, SpectralVolume
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = SpectralVolume().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'spectral_volume')
    """

    name: ClassVar[str] = "spectral_volume"
    stochastic: ClassVar[bool] = True

    ridge: float = 1.0

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        vectors = activation_vectors(brief.pool, brief.lm, rows, seed=brief.seed(), width=WIDTH)
        return brief.take(rows, greedy_volume(vectors, brief.n_samples, self.ridge))


def greedy_volume(vectors: np.ndarray, n: int, ridge: float = 1.0) -> list[int]:
    """Order vectors by what each adds to log det(I + XᵀX / λ)."""
    scaled = vectors / np.sqrt(ridge * np.square(vectors).mean())
    # By the matrix determinant lemma a vector adds log(1 + xᵀA⁻¹x); A⁻¹ follows by Sherman and Morrison.
    reach = scaled.copy()  # rows A⁻¹x
    gain = np.einsum("ij,ij->i", scaled, reach)
    left = np.ones(len(scaled), dtype=bool)
    order: list[int] = []
    while len(order) < min(n, len(scaled)):
        best = int(np.where(left, gain, -1.0).argmax())
        order.append(best)
        left[best] = False
        along = scaled @ reach[best] / np.sqrt(1 + gain[best])  # xᵢᵀA⁻¹x / √(1 + xᵀA⁻¹x)
        reach = reach - np.outer(along, reach[best]) / np.sqrt(1 + gain[best])
        gain = gain - along**2
    return order
