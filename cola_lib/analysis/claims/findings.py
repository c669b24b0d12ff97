"""What was found on a claim, and how a family of findings is judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cola_lib.analysis.claims.rules import Verdict, verdict
from cola_lib.analysis.claims.table import CLAIMS, UNITS
from cola_lib.analysis.permutation import holm
from cola_lib.errors import DataError, UnknownNameError
from cola_lib.plain import misfit

Kind = Literal["above", "within"]


@dataclass(frozen=True)
class Finding:
    """One part of a claim, with the numbers that decide it."""

    claim: str
    part: str
    value: float
    low: float
    high: float
    unit: str
    p_value: float
    n_draws: int
    n_items: int
    cells: tuple[str, ...] = ()
    note: str = ""
    null: float = 0.0
    margin: float = 0.0
    kind: Kind = "above"
    over: str = "draws and items"
    p_holm: float | None = None
    verdict: Verdict | None = None

    def __post_init__(self) -> None:
        if self.claim not in CLAIMS:
            raise UnknownNameError("claim", self.claim, CLAIMS)
        if self.unit not in UNITS:
            raise UnknownNameError("unit", self.unit, UNITS)

    @property
    def text(self) -> str:
        """The value with its interval and unit, as a reader wants it; a value that is not known is a dash."""
        scale, fmt = UNITS[self.unit]
        numbers = (self.value, self.low, self.high)
        value, low, high = ("–" if math.isnan(number) else f"{scale * number:{fmt}}" for number in numbers)
        return f"{value} [{low}, {high}] {self.unit}"

    @property
    def says(self) -> str:
        """What the claim says of the value: above which number it is, or within what of none."""
        scale, _ = UNITS[self.unit]
        bound = scale * (self.null if self.kind == "above" else self.margin)
        per_cent = " %" if self.unit.startswith("% ") and bound else ""
        return f"{'> ' if self.kind == 'above' else 'within ±'}{bound:g}{per_cent}"

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, as JSON has them."""
        value = None if math.isnan(self.value) else self.value
        said = self.verdict and str(self.verdict)
        return {**asdict(self), "value": value, "cells": list(self.cells), "verdict": said}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Finding:
        """Read what :meth:`to_dict` gave."""
        said, value = values["verdict"], values["value"]
        numbers = {name: each for name, each in values.items() if name not in ("verdict", "value")}
        if wrong := misfit(cls, numbers | {"value": 0.0 if value is None else value}):
            raise DataError(f"of a finding, {wrong}")
        own = {
            "value": math.nan if value is None else value,
            "cells": tuple(values["cells"]),
            "verdict": Verdict(said) if said else None,
        }
        return cls(**{**values, **own})


def judge_family(findings: Sequence[Finding], level: float = 0.05) -> list[Finding]:
    """Give every finding its verdict, with Holm's correction over all of them.

    Parameters
    ----------
    findings : sequence of Finding
        All of one notebook, of whatever claims: they are one family.
    level : float
        Chance of calling anything reproduced that is not so.

    Returns
    -------
    list of Finding
        With ``p_holm`` and ``verdict``. *Reproduced* needs :func:`~cola_lib.analysis.claims.verdict` to say so, and the
        adjusted p-value to be below the level. *Not reproduced* is read from the interval alone. Where a single draw
        left nothing to resample, an interval over items is no evidence on draws: *undecided*.

    Raises
    ------
    DataError
        If there are no findings.

    Examples
    --------
    >>> from cola_lib.analysis import Finding, judge_family
    >>> finding = Finding("C1", "wanda · math", 0.03, 0.01, 0.05, "% of bits per byte", 0.004, n_draws=5, n_items=60)
    >>> (judged,) = judge_family([finding])
    >>> str(judged.verdict), judged.p_holm
    ('reproduced', 0.004)
    """
    if not findings:
        raise DataError("no findings to judge")
    adjusted = holm({str(i): finding.p_value for i, finding in enumerate(findings)})
    return [
        replace(finding, p_holm=float(p), verdict=_judge(finding, float(p), level))
        for finding, p in zip(findings, adjusted, strict=True)
    ]


def _judge(finding: Finding, p_holm: float, level: float) -> Verdict:
    if finding.over == "items":
        return Verdict.UNDECIDED
    if finding.kind == "above":
        said = verdict(finding.low - finding.null, finding.high - finding.null, margin=finding.margin)
    elif finding.low > finding.margin or finding.high < -finding.margin:
        said = Verdict.NOT_REPRODUCED
    else:
        inside = -finding.margin < finding.low and finding.high < finding.margin
        said = Verdict.REPRODUCED if inside else Verdict.UNDECIDED
    return Verdict.UNDECIDED if said is Verdict.REPRODUCED and p_holm >= level else said


def overall(findings: Sequence[Finding]) -> Verdict:
    """Verdict on a claim from the verdicts on its parts.

    Parameters
    ----------
    findings : sequence of Finding
        Judged, all of one claim.

    Returns
    -------
    Verdict
        The paper states a claim for all of its parts, so it is *reproduced* if every part is, *not reproduced* if one
        part is not, and otherwise *undecided*. That is an intersection-union test: calling the claim reproduced needs
        no correction for the number of parts (Berger, Technometrics 24, 1982), and Holm's makes it stricter still. A
        claim of many parts is easily refuted, by chance too (at most 2.5 % a part), which is why the parts are shown.

    Raises
    ------
    DataError
        If there are none, they are of several claims, or one has not been judged.

    Examples
    --------
    >>> from cola_lib.analysis import Finding, judge_family, overall
    >>> finding = Finding("C1", "wanda · math", 0.03, 0.01, 0.05, "% of bits per byte", 0.004, n_draws=5, n_items=60)
    >>> str(overall(judge_family([finding])))
    'reproduced'
    """
    if len({finding.claim for finding in findings}) != 1:
        raise DataError("an overall verdict is on the findings of one claim")
    verdicts = [finding.verdict for finding in findings]
    if None in verdicts:
        raise DataError("a finding has no verdict yet; pass all findings of the notebook through judge_family")
    if Verdict.NOT_REPRODUCED in verdicts:
        return Verdict.NOT_REPRODUCED
    return Verdict.UNDECIDED if Verdict.UNDECIDED in verdicts else Verdict.REPRODUCED
