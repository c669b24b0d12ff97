"""Claims of the paper: a test for each, the rule for verdicts, the scorecard."""

from cola_lib.analysis.claims.characteristics import World, coverage, simulated_intervals, verdict_chances
from cola_lib.analysis.claims.comparisons import (
    DOMAINS,
    c1_length,
    c2_amount,
    c3_code_not_monotone,
    c5_source_ranks,
    c6_reasoning,
    c8_domain_gain,
    c9_domain_cost,
)
from cola_lib.analysis.claims.contrasts import c4_source_as_method, c7_language, c10_difficulty
from cola_lib.analysis.claims.decisions import Decision, Primary, judged
from cola_lib.analysis.claims.effects import PRUNING, QUANTIZATION, Options, compare
from cola_lib.analysis.claims.findings import (
    Finding,
    findings_from_json,
    findings_to_json,
    judge_family,
    overall,
)
from cola_lib.analysis.claims.prediction import c11_mechanism, c17_proxy
from cola_lib.analysis.claims.primaries import RULES, Rule, part_table, primaries, primary_markdown, primary_table
from cola_lib.analysis.claims.rules import MARGIN, Verdict, matters, verdict
from cola_lib.analysis.claims.scorecard import scorecard, scorecard_parts
from cola_lib.analysis.claims.selection import (
    c12_over_random,
    c13_over_self_generated,
    c14_larger_for_pruning,
    c15_over_text_only,
    c16_stages,
    c18_robust,
    c19_cheap,
)
from cola_lib.analysis.claims.table import CLAIMS, UNITS, Claim, register_claim

__all__ = [
    "RULES",
    "Decision",
    "Primary",
    "Rule",
    "World",
    "coverage",
    "judged",
    "part_table",
    "primaries",
    "primary_markdown",
    "primary_table",
    "simulated_intervals",
    "verdict_chances",
    "CLAIMS",
    "DOMAINS",
    "MARGIN",
    "PRUNING",
    "QUANTIZATION",
    "UNITS",
    "Claim",
    "Finding",
    "Options",
    "Verdict",
    "c1_length",
    "c2_amount",
    "c3_code_not_monotone",
    "c4_source_as_method",
    "c5_source_ranks",
    "c6_reasoning",
    "c7_language",
    "c8_domain_gain",
    "c9_domain_cost",
    "c10_difficulty",
    "c11_mechanism",
    "c12_over_random",
    "c13_over_self_generated",
    "c14_larger_for_pruning",
    "c15_over_text_only",
    "c16_stages",
    "c17_proxy",
    "c18_robust",
    "c19_cheap",
    "compare",
    "findings_from_json",
    "findings_to_json",
    "judge_family",
    "matters",
    "overall",
    "register_claim",
    "scorecard",
    "scorecard_parts",
    "verdict",
]
