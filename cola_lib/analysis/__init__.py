"""Analysis: from stored scores to differences with intervals."""

from cola_lib.analysis.bootstrap import Estimate, difference, estimate, ratio, score_interval
from cola_lib.analysis.claims import MARGIN, Verdict, matters, verdict
from cola_lib.analysis.permutation import PermutationTest, holm, permutation_test, source_matters
from cola_lib.analysis.retention import BY, difference_table, retention_table, score_table, source_table
from cola_lib.analysis.scores import SCORES, Condition, Score, condition, score_named
from cola_lib.analysis.text import with_interval
from cola_lib.analysis.variance import source_share

__all__ = [
    "BY",
    "MARGIN",
    "SCORES",
    "Condition",
    "Estimate",
    "PermutationTest",
    "Score",
    "Verdict",
    "condition",
    "difference",
    "difference_table",
    "estimate",
    "holm",
    "matters",
    "permutation_test",
    "ratio",
    "retention_table",
    "score_interval",
    "score_named",
    "score_table",
    "source_matters",
    "source_share",
    "source_table",
    "verdict",
    "with_interval",
]
