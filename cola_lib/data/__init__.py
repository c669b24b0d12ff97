"""Named sources of text and benchmark items, split once and for all into two halves.

``load_samples("math:level=5", "calibration")`` is the whole interface: see
:func:`cola_lib.data.registry.load_samples` for the grammar of names.
"""

from cola_lib.data.overlap import EvaluationIndex, check_no_overlap, find_overlaps
from cola_lib.data.registry import (
    SOURCES,
    TARGETS,
    SourceInfo,
    domain_of,
    evaluation_index,
    is_packaged,
    load_samples,
    source_info,
    source_names,
)
from cola_lib.data.sample import Sample, content_hash
from cola_lib.data.split import Split

__all__ = [
    "SOURCES",
    "TARGETS",
    "EvaluationIndex",
    "Sample",
    "SourceInfo",
    "Split",
    "check_no_overlap",
    "content_hash",
    "domain_of",
    "evaluation_index",
    "find_overlaps",
    "is_packaged",
    "load_samples",
    "source_info",
    "source_names",
]
