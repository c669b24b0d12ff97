"""What texts do inside a model: pooled block outputs, and measures of one set and of one set for another."""

from cola_lib.activations.features import Activations, set_features, target_features
from cola_lib.activations.measures import coverage, mmd, vendi_score
from cola_lib.activations.pooled import pooled_activations
from cola_lib.activations.rows import (
    Probe,
    energy_probe,
    length_batches,
    moments_probe,
    peak_probe,
    pooled_probe,
    projection_probe,
    row_features,
    sketch_probe,
)

__all__ = [
    "Activations",
    "Probe",
    "coverage",
    "energy_probe",
    "length_batches",
    "mmd",
    "moments_probe",
    "peak_probe",
    "pooled_activations",
    "pooled_probe",
    "projection_probe",
    "row_features",
    "set_features",
    "sketch_probe",
    "target_features",
    "vendi_score",
]
