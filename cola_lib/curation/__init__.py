"""Ways of choosing a calibration set: COLA, its rivals, and one that asks the compression itself."""

from cola_lib.curation.activation import CentroidDistance, OutlierCover, SpectralVolume
from cola_lib.curation.base import STRATEGIES, Brief, Strategy, at_tokens, strategy
from cola_lib.curation.baselines import Random, RandomTokens, ShuffledWords, UniformMix
from cola_lib.curation.cola import Cola, Coverage, activation_vectors, cover
from cola_lib.curation.composition import COLA_COMPOSITION, PLAIN, Candidate, Composition, candidates
from cola_lib.curation.dataset import Curated, check_folder, compare, describe, measure, read_dataset, write_dataset
from cola_lib.curation.generation import SelfCalibrated, SelfGenerated
from cola_lib.curation.handover import for_gptqmodel, for_llmcompressor, row_texts
from cola_lib.curation.lexical import InformationMix, LengthMixture, TfidfClusters, ZipCal
from cola_lib.curation.making import curate
from cola_lib.curation.pool import Pool, Rows
from cola_lib.curation.proxy import OBJECTIVES, Proxy
from cola_lib.curation.streaming import select_streaming
from cola_lib.curation.surprise import Perplexity
from cola_lib.curation.target import GENERAL, TARGET_SAMPLES, Target, deployment, load_target

__all__ = [
    "COLA_COMPOSITION",
    "GENERAL",
    "OBJECTIVES",
    "PLAIN",
    "STRATEGIES",
    "TARGET_SAMPLES",
    "Brief",
    "Candidate",
    "CentroidDistance",
    "Cola",
    "Composition",
    "Coverage",
    "Curated",
    "InformationMix",
    "LengthMixture",
    "OutlierCover",
    "Perplexity",
    "Pool",
    "Proxy",
    "Random",
    "RandomTokens",
    "Rows",
    "SelfCalibrated",
    "SelfGenerated",
    "ShuffledWords",
    "SpectralVolume",
    "Strategy",
    "Target",
    "TfidfClusters",
    "UniformMix",
    "ZipCal",
    "activation_vectors",
    "at_tokens",
    "candidates",
    "check_folder",
    "compare",
    "cover",
    "curate",
    "deployment",
    "describe",
    "for_gptqmodel",
    "for_llmcompressor",
    "load_target",
    "measure",
    "read_dataset",
    "row_texts",
    "select_streaming",
    "strategy",
    "write_dataset",
]
