"""The scorecard: every claim, the paper's number, ours, the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pandas as pd

from cola_lib.analysis.claims.findings import Finding, overall
from cola_lib.analysis.claims.rules import Verdict
from cola_lib.analysis.claims.table import CLAIMS
from cola_lib.errors import DataError


def scorecard(findings: Sequence[Finding]) -> pd.DataFrame:
    """Make a table with one row per claim.

    Parameters
    ----------
    findings : sequence of Finding
        Judged, of all notebooks.

    Returns
    -------
    pandas.DataFrame
        Columns ``claim``, ``title``, ``paper``, ``says`` and ``ours`` (of the part that decides, see Notes: what the
        claim says of the value, and the value), ``part`` (its name),
        ``verdict``, ``parts`` (how many got which verdict) and ``cells`` (how many are behind it).

    Raises
    ------
    DataError
        If there is nothing, or a finding has not been judged.

    Notes
    -----
    A claim is as strong as its weakest part. That is shown: of the parts with the claim's verdict the one with the
    largest p-value, and where a claim is refuted, the one whose interval ends lowest among its unit.

    Examples
    --------
    >>> from cola_lib.analysis import Finding, judge_family, scorecard
    >>> finding = Finding("C1", "wanda · math", 0.03, 0.01, 0.05, "% of bits per byte", 0.004, n_draws=5, n_items=60)
    >>> scorecard(judge_family([finding]))[["claim", "ours", "verdict"]].to_dict("records")
    [{'claim': 'C1', 'ours': '+3.00 [+1.00, +5.00] % of bits per byte', 'verdict': 'reproduced'}]
    """
    rows = []
    for claim, own in _by_claim(findings).items():
        verdict, weakest = overall(own), _deciding(own)
        counts = Counter(str(finding.verdict) for finding in own)
        rows.append(
            {
                "claim": claim,
                "title": CLAIMS[claim].title,
                "paper": CLAIMS[claim].paper,
                "says": weakest.says,
                "ours": weakest.text,
                "part": weakest.part,
                "verdict": str(verdict),
                "parts": ", ".join(f"{counts[str(v)]} {v}" for v in Verdict if counts[str(v)]),
                "cells": len({cell for finding in own for cell in finding.cells}),
            }
        )
    return pd.DataFrame(rows)


def scorecard_parts(findings: Sequence[Finding]) -> pd.DataFrame:
    """Make a table with one row per part of a claim.

    Parameters
    ----------
    findings : sequence of Finding
        Judged, of all notebooks.

    Returns
    -------
    pandas.DataFrame
        Columns ``claim``, ``title``, ``part``, ``paper``, ``says``, ``ours``, ``p_holm``, ``verdict``, ``n_draws``,
        ``n_items``, ``note`` and ``cells`` (fingerprints).

    Examples
    --------
    >>> from cola_lib.analysis import Finding, judge_family, scorecard_parts
    >>> finding = Finding("C1", "wanda · math", 0.03, 0.01, 0.05, "% of bits per byte", 0.004, n_draws=5, n_items=60)
    >>> scorecard_parts(judge_family([finding]))[["claim", "part", "verdict"]].to_dict("records")
    [{'claim': 'C1', 'part': 'wanda · math', 'verdict': 'reproduced'}]
    """
    return pd.DataFrame(
        {
            "claim": claim,
            "title": CLAIMS[claim].title,
            "part": finding.part,
            "paper": CLAIMS[claim].paper,
            "says": finding.says,
            "ours": finding.text,
            "p_holm": finding.p_holm,
            "verdict": str(finding.verdict),
            "n_draws": finding.n_draws,
            "n_items": finding.n_items,
            "note": finding.note,
            "cells": finding.cells,
        }
        for claim, own in _by_claim(findings).items()
        for finding in own
    )


def _by_claim(findings: Sequence[Finding]) -> dict[str, list[Finding]]:
    """Sort findings into the order of the claims."""
    if not findings:
        raise DataError("no findings to show")
    return {claim: own for claim in CLAIMS if (own := [finding for finding in findings if finding.claim == claim])}


def _deciding(findings: Sequence[Finding]) -> Finding:
    """Weakest of the parts that have the claim's verdict."""
    verdict = overall(findings)
    ones = [finding for finding in findings if finding.verdict is verdict]
    if verdict is Verdict.NOT_REPRODUCED:
        alike = [finding for finding in ones if finding.unit == ones[0].unit and finding.kind == ones[0].kind]
        return min(alike, key=lambda finding: finding.high)
    return max(ones, key=lambda finding: finding.p_value)
