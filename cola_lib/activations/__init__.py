"""What texts do inside a model: pooled block outputs, and measures of one set and of one set for another."""

from cola_lib.activations.features import Activations, collect_activations, set_features, target_features
from cola_lib.activations.measures import (
    Spectrum,
    channel_kurtosis,
    coverage,
    effective_rank,
    eigen_spectrum,
    frechet_distance,
    mmd,
    outlier_channels,
    outlier_overlap,
    subspace_share,
    vendi_score,
)
from cola_lib.activations.pooled import PooledActivations, pooled_activations

__all__ = [
    "Activations",
    "PooledActivations",
    "Spectrum",
    "channel_kurtosis",
    "collect_activations",
    "coverage",
    "effective_rank",
    "eigen_spectrum",
    "frechet_distance",
    "mmd",
    "outlier_channels",
    "outlier_overlap",
    "pooled_activations",
    "set_features",
    "subspace_share",
    "target_features",
    "vendi_score",
]
