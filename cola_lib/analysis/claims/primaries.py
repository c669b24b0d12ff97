"""The primary number of each claim, its verdict, and how general it is.

A claim is a list of *parts*, each a contrast of log bits per byte: a method, a capability, a pair of sets. Its primary
number is their mean. The rules are in ``book/rules.md``, and were written down before the draws that they judge.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from cola_lib.analysis.claims.table import CLAIMS
from cola_lib.analysis.inference import (
    LEAST_DRAWS,
    Interval,
    LogScore,
    Part,
    WeightedSet,
    decisive,
    log_scores,
    weighted_sum,
)
from cola_lib.analysis.permutation import holm
from cola_lib.errors import DataError

LEVEL = 0.05
"""Of every test; both directions of a claim have the same."""

IDENTITY = (
    "source",
    "n_samples",
    "seq_len",
    "layout",
    "format",
    "split_rows",
    "segment_len",
    "repeat",
    "target",
    "n_draws",
)
"""Labels that tell one way of making calibration data from another."""

LIKE = 1.5
"""Sets whose numbers of tokens differ by no more than this factor vary alike from draw to draw."""

DOMAINS: Mapping[str, str] = MappingProxyType(
    {"commonsense": "commonsense", "math": "math", "code": "mbpp:language=all"}
)
"""For each capability, the source of its domain."""

AXES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "multilingual:language={}": ("zh", "ja", "ru", "de", "fr", "es"),
        "mbpp:language={}": ("python", "javascript", "java", "cpp", "rust", "bash"),
        "mmlu:group={}": ("stem", "humanities", "social_sciences", "other"),
    }
)
"""Languages, natural and of programming, and groups of subjects: source and what is scored under its name."""

AWAY = ("commonsense", "math", "code")
"""Capabilities at which neither web text nor an encyclopedia is at home."""

CHOSEN_FOR = ("wanda", "gptq")
"""Methods under which strategies are compared: one that prunes and one that quantizes."""

CONCAVITY = (4, 64, 128, 512)
"""Amounts between which the early and the late gain are taken, in samples."""


class Decision(StrEnum):
    """What the evidence says of a claim's primary number."""

    REPRODUCED = "reproduced"
    REVERSED = "reversed"
    NEGLIGIBLE = "negligible"
    UNDECIDED = "undecided"


Weights = dict[str, dict[Part, float]]
"""For each set, the weights of methods and capabilities in a sum of log scores."""


@dataclass(frozen=True)
class Estimated:
    """A number with its interval, signed so that the paper says "above 0"."""

    name: str
    interval: Interval

    @property
    def text(self) -> str:
        """Value and 95 % interval in per cent, as a reader wants them."""
        value, (low, high) = self.interval.value, self.interval.ends()
        return "{:+.1f} [{:+.1f}, {:+.1f}] %".format(*(100 * np.expm1(x) for x in (value, low, high)))


@dataclass(frozen=True)
class Primary:
    """The primary number of a claim, and what it comes to."""

    claim: str
    number: Estimated
    parts: tuple[Estimated, ...]
    margin: float
    within: bool = False
    cells: tuple[str, ...] = ()
    p_holm: float | None = None
    decision: Decision | None = None

    @property
    def p_value(self) -> float:
        """P-value of the claim's own test, before correction."""
        interval = self.number.interval
        return interval.p_equivalence(self.margin) if self.within else interval.p_value()

    @property
    def generality(self) -> str:
        """Whether the parts tell the same: ``uniform``, ``mixed`` or ``unknown``."""
        return generality(self.number, self.parts)

    @property
    def apart(self) -> tuple[Estimated, ...]:
        """Parts that differ from the mean, at 5 % with Bonferroni's correction over the parts."""
        level, mean = LEVEL / len(self.parts), self.number.interval.value
        return tuple(part for part in self.parts if part.interval.p_value(mean) < level)


def generality(number: Estimated, parts: Sequence[Estimated]) -> str:
    """Say whether an effect is the same in all parts.

    Notes
    -----
    The interval of the spread is the Q profile (Viechtbauer, Statistics in Medicine 26, 2007). Parts share items and
    draws, so their errors are correlated: Q then falls short of its distribution, and *mixed* is said too rarely.
    """
    if len(parts) < 3:
        return "unknown"
    value = np.array([part.interval.value for part in parts])
    variance = np.array([part.interval.se for part in parts]) ** 2

    def q(tau2: float) -> float:
        weight = 1 / (variance + tau2)
        return float((weight * (value - (weight * value).sum() / weight.sum()) ** 2).sum())

    dof = len(parts) - 1
    if stats.chi2.sf(q(0.0), dof) < LEVEL:
        return "mixed"
    least, most = stats.chi2.ppf(LEVEL / 2, dof), float(np.ptp(value)) ** 2 * 100 + 1e-12
    upper = optimize.brentq(lambda tau2: q(tau2) - least, 0.0, most) if q(most) < least < q(0.0) else 0.0
    return "uniform" if np.sqrt(upper) < abs(number.interval.value) / 2 else "unknown"


class Sets:
    """The calibration sets of a frame of scores."""

    def __init__(self, frame: pd.DataFrame) -> None:
        rows = decisive(frame[frame["source"].notna() & ~frame["label"].str.contains("training")])
        rows = rows.assign(set=self._names(rows, [name for name in IDENTITY if name in rows]))
        rows = rows.drop_duplicates(["set", "label", "draw", "item"])
        self._method = dict(zip(rows["label"], rows["method"], strict=True))
        first = rows.drop_duplicates("set")
        self._labels: dict[str, dict[Hashable, Any]] = dict(zip(first["set"], first.to_dict("records"), strict=True))
        self._rows: dict[str, dict[Part, pd.DataFrame]] = {name: {} for name in self._labels}
        for (name, label, capability), own in rows.groupby(["set", "label", "capability"], sort=False):
            self._rows[str(name)][str(label), str(capability)] = own
        self._scores: dict[tuple[str, Part, frozenset[Any]], LogScore] = {}

    @staticmethod
    def _names(rows: pd.DataFrame, known: Sequence[str]) -> pd.Series:
        """Name each row's set by the labels that it has."""
        number = rows.groupby(list(known), dropna=False, sort=False).ngroup()
        first = rows.loc[~number.duplicated(), list(known)]
        names = [
            ", ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in own)
            for own in ([(k, v) for k, v in each.items() if pd.notna(v)] for each in first.to_dict("records"))
        ]
        return number.map(dict(zip(number[~number.duplicated()], names, strict=True)))

    def find(self, **labels: Any) -> str:
        """Name the one set that has these labels."""
        fitting = [name for name, own in self._labels.items() if all(self._is(own, k, v) for k, v in labels.items())]
        if not fitting:
            told = ", ".join(f"{name} {value}" for name, value in labels.items())
            raise DataError(f"no calibration set with {told} has been evaluated")
        return max(fitting, key=lambda name: sum(map(len, self._rows[name].values())))

    @staticmethod
    def _is(own: Mapping[Hashable, Any], name: str, value: Any) -> bool:
        found = own.get(name)
        return bool(pd.isna(found)) if value is None else bool(found == value)

    def parts(self, names: Sequence[str], methods: Sequence[str] | None, capabilities: Sequence[str]) -> list[Part]:
        """Methods and capabilities under which all of some sets have scores."""
        first, *others = (self._rows[name] for name in names)
        shared = [
            (label, capability)
            for label, capability in first
            if capability in capabilities
            and (methods is None or self._method[label] in methods)
            and all((label, capability) in other for other in others)
        ]
        if not shared:
            raise DataError(
                f"no method has been evaluated on {' or '.join(capabilities)} under all of {', '.join(names)}"
            )
        return shared

    def estimate(self, name: str, weights: Weights, nested: bool) -> Estimated:
        """Estimate a weighted sum of log scores."""
        draws = frozenset.intersection(*(self._draws(key, own) for key, own in weights.items())) if nested else None
        sets = []
        for key, own in weights.items():
            pool = [] if nested else [self._of(other, own) for other in self._like(key, own)]
            sets.append(WeightedSet(self._of(key, own, draws), own, "all" if nested else None, pool))
        return Estimated(name, weighted_sum(sets))

    def cells(self, weights: Weights) -> tuple[str, ...]:
        """Fingerprints of the cells behind a weighted sum."""
        rows = [self._rows[key][part] for key, own in weights.items() for part in own]
        return tuple(dict.fromkeys(cell for each in rows if "cell" in each for cell in each["cell"]))

    def _draws(self, name: str, parts: Iterable[Part]) -> frozenset[Any]:
        """Draws that all of some parts have."""
        return frozenset.intersection(*(frozenset(self._rows[name][part]["draw"]) for part in parts))

    def _of(self, name: str, parts: Iterable[Part], draws: frozenset[Any] | None = None) -> dict[Part, LogScore]:
        """Arrange a set's scores over some draws, by default those that all parts have."""
        parts = tuple(parts)
        kept = self._draws(name, parts) if draws is None else draws
        if not kept:
            raise DataError(f"the methods and capabilities asked for have no draw of set {name} in common")
        for part in parts:
            if (name, part, kept) not in self._scores:
                rows = self._rows[name][part]
                self._scores[name, part, kept] = log_scores(rows[rows["draw"].isin(kept)], [part])[part]
        return {part: self._scores[name, part, kept] for part in parts}

    def _like(self, name: str, weights: Mapping[Part, float]) -> Iterator[str]:
        """Other sets of about as many tokens with scores under the same methods, on the same capabilities."""
        tokens = self._labels[name].get("calibration_tokens")
        for other, own in self._labels.items():
            theirs = own.get("calibration_tokens")
            alike = not (tokens and theirs) or 1 / LIKE <= theirs / tokens <= LIKE
            if other != name and alike and self._rows[other].keys() >= weights.keys() and self._draws(other, weights):
                yield other


@dataclass(frozen=True)
class _Part:
    """A contrast, positive where the paper is right: sets with their weights, for one method and capability."""

    name: str
    weights: Weights


def _contrast(name: str, part: Part, worse: Mapping[str, float], better: Mapping[str, float]) -> _Part:
    weights: Weights = {}
    for sets, sign in ((worse, 1.0), (better, -1.0)):
        for key, weight in sets.items():
            own = weights.setdefault(key, {})
            own[part] = own.get(part, 0.0) + sign * weight
    label, capability = part
    return _Part(" · ".join(filter(None, (label, capability, name))), weights)


def _pairs(
    sets: Sets,
    better: str,
    worse: str,
    capabilities: Sequence[str],
    *,
    methods: Sequence[str] | None = None,
    name: str = "",
) -> list[_Part]:
    """Contrast two sets under every method and on every capability."""
    found = sets.parts([better, worse], methods, capabilities)
    return [_contrast(name, part, {worse: 1.0}, {better: 1.0}) for part in found]


def _c1(sets: Sets) -> list[_Part]:
    long, short = (sets.find(source="c4", split_rows=length) for length in (2048, 128))
    return _pairs(sets, long, short, ["math"], methods=["sparsegpt"])


def _c2(sets: Sets) -> list[_Part]:
    parts = []
    for source in ("c4", "math"):
        amounts = [sets.find(source=source, n_samples=n, seq_len=128, layout="pack", repeat=None) for n in CONCAVITY]
        first, second, third, fourth = amounts
        early, late = (1 / np.log2(b / a) for a, b in (CONCAVITY[:2], CONCAVITY[2:]))
        for part in sets.parts(amounts, None, ["language", "math", "code"]):
            # Gain of a doubling early, log(first) - log(second), minus gain of a doubling late.
            parts.append(_contrast(source, part, {first: early, fourth: late}, {second: early, third: late}))
    return parts


def _c3(sets: Sets) -> list[_Part]:
    few, many = (sets.find(source="c4", n_samples=n, seq_len=128, layout="pack", repeat=None) for n in (16, 128))
    return _pairs(sets, few, many, ["code"], methods=["awq", "gptq"])


def _plain(sets: Sets, source: str) -> str:
    return sets.find(source=source, seq_len=256, layout="pack", format="text", split_rows=None)


def _c5(sets: Sets) -> list[_Part]:
    return _pairs(sets, _plain(sets, "c4"), _plain(sets, "wikipedia"), ["code", "math"])


def _c6(sets: Sets) -> list[_Part]:
    reasoned = sets.find(source="gsm8k", format="question_reasoning")
    n_items = sets._labels[reasoned]["n_samples"]
    return _pairs(sets, reasoned, sets.find(source="gsm8k", format="question_answer", n_samples=n_items), ["math"])


def _c7(sets: Sets) -> list[_Part]:
    parts = []
    for source, names in AXES.items():
        keys = {name: sets.find(source=source.format(name), seq_len=128) for name in names}
        for name, key in keys.items():
            others = {other: 1 / (len(keys) - 1) for own, other in keys.items() if own != name}
            for part in sets.parts(list(keys.values()), None, [name]):
                parts.append(_contrast("", part, others, {key: 1.0}))
    return parts


def _c8(sets: Sets) -> list[_Part]:
    general = _plain(sets, "c4")
    return [
        part
        for capability, source in DOMAINS.items()
        for part in _pairs(sets, _plain(sets, source), general, [capability])
    ]


def _c9(sets: Sets) -> list[_Part]:
    general, every = _plain(sets, "c4"), ("language", "commonsense", "math", "code", "knowledge")
    return [
        part
        for target, source in DOMAINS.items()
        for part in _pairs(
            sets, general, _plain(sets, source), [name for name in every if name != target], name=f"under {source}"
        )
    ]


def _c10(sets: Sets) -> list[_Part]:
    return _pairs(sets, _plain(sets, "math:level=5"), _plain(sets, "math"), ["math"])


def _chosen(sets: Sets, strategy: str, target: str | None = "general") -> str:
    try:
        return sets.find(source=strategy, target=target)
    except DataError:
        return sets.find(source=strategy, target=None)  # it reads no target, and chooses once for all


def _over(rivals: Sequence[str]) -> Callable[[Sets], list[_Part]]:
    """COLA against some rivals, on the capabilities at which no rival is at home."""

    def parts(sets: Sets) -> list[_Part]:
        cola = _chosen(sets, "cola")
        found = []
        for rival in rivals:
            name = f"over {rival}" if len(rivals) > 1 else ""
            found += _pairs(sets, cola, _chosen(sets, rival), AWAY, methods=CHOSEN_FOR, name=name)
        return found

    return parts


def _c16(sets: Sets) -> list[_Part]:
    stages = ("domain", "composition", "activation")

    def key(on: tuple[bool, ...]) -> str:
        off = ", ".join(f"{stage}=False" for stage, one in zip(stages, on, strict=True) if not one)
        return _chosen(sets, f"cola({off})" if off else "cola")

    factorial = {on: key(on) for on in np.ndindex(2, 2, 2)}
    parts = []
    for position, stage in enumerate(stages):
        with_it, without = (
            {key: 1 / 4 for on, key in factorial.items() if bool(on[position]) is wanted} for wanted in (True, False)
        )
        for part in sets.parts(list(factorial.values()), CHOSEN_FOR, ("language", *AWAY)):
            parts.append(_contrast(stage, part, without, with_it))
    return parts


@dataclass(frozen=True)
class _Rule:
    """How a claim's primary number is made, and what it is judged by."""

    parts: Callable[[Sets], list[_Part]]
    margin: float = 0.005
    nested: bool = False
    within: bool = False


RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "C1": _Rule(_c1, nested=True),
        "C2": _Rule(_c2, nested=True),
        "C3": _Rule(_c3, nested=True),
        "C5": _Rule(_c5),
        "C6": _Rule(_c6, nested=True),
        "C7": _Rule(_c7),
        "C8": _Rule(_c8),
        "C9": _Rule(_c9),
        "C10": _Rule(_c10, margin=0.015, within=True),
        "C12": _Rule(_over(["random(source=c4)", "random(source=wikipedia)"])),
        "C13": _Rule(_over(["self_generated"]), margin=0.02),
        "C15": _Rule(_over(["tfidf_clusters", "zipcal"]), margin=0.02),
        "C16": _Rule(_c16, margin=0.01),
    }
)
"""Claims whose primary number is a contrast of stored scores; those of the others need other experiments."""


def primary(claim: str, sets: Sets) -> Primary:
    """Compute the primary number of a claim."""
    rule = RULES[claim]
    parts = rule.parts(sets)
    mean: Weights = {}
    for part in parts:
        for key, own in part.weights.items():
            total = mean.setdefault(key, {})
            for each, weight in own.items():
                total[each] = total.get(each, 0.0) + weight / len(parts)
    return Primary(
        claim,
        sets.estimate(CLAIMS[claim].title, mean, rule.nested),
        tuple(sets.estimate(part.name, part.weights, rule.nested) for part in parts),
        rule.margin,
        rule.within,
        sets.cells(mean),
    )


def primaries(frame: pd.DataFrame) -> tuple[dict[str, Primary], dict[str, str]]:
    """Compute and judge the primary number of every claim that a frame of scores can judge."""
    sets = Sets(frame)
    found: dict[str, Primary] = {}
    missing: dict[str, str] = {}
    for claim in RULES:
        try:
            found[claim] = primary(claim, sets)
        except DataError as error:
            missing[claim] = str(error)
    return {each.claim: each for each in judged(list(found.values()))}, missing


def judged(numbers: Sequence[Primary]) -> Iterator[Primary]:
    """Judge primary numbers together, with Holm's correction over all of them.

    Notes
    -----
    *Negligible*: the 90 % interval lies inside the margin, so that neither direction matters. *Reproduced* and
    *reversed*: the number is on that side of 0 after Holm's correction. A claim that says "within the margin" is
    reproduced by equivalence, and reversed if its interval lies outside. Below three draws nothing is decided.
    """
    if not numbers:
        return
    adjusted = holm({str(i): each.p_value for i, each in enumerate(numbers)})
    for each, p in zip(numbers, adjusted, strict=True):
        yield replace(each, p_holm=float(p), decision=_decide(each, float(p)))


def _decide(number: Primary, p_holm: float) -> Decision:
    interval, (low, high) = number.number.interval, number.number.interval.ends()
    if interval.n_draws < LEAST_DRAWS:
        return Decision.UNDECIDED
    if number.within:
        if p_holm < LEVEL:
            return Decision.REPRODUCED
        return Decision.REVERSED if low > number.margin or high < -number.margin else Decision.UNDECIDED
    if interval.p_equivalence(number.margin) < LEVEL:
        return Decision.NEGLIGIBLE
    if p_holm >= LEVEL:
        return Decision.UNDECIDED
    return Decision.REPRODUCED if interval.value > 0 else Decision.REVERSED


def primary_table(numbers: Mapping[str, Primary]) -> pd.DataFrame:
    """Tabulate primary numbers for a reader."""
    rows = []
    for claim, each in numbers.items():
        values = [100 * np.expm1(part.interval.value) for part in each.parts]
        rows.append(
            {
                "claim": f"P{claim[1:]} {CLAIMS[claim].title}",
                "number": each.number.text,
                "range of parts": f"{min(values):+.1f} to {max(values):+.1f} ({len(values)})",
                "verdict": str(each.decision),
                "generality": each.generality
                + (f", {len(each.apart)} parts apart" if each.generality == "mixed" else ""),
                "draws": each.number.interval.n_draws,
                "items": each.number.interval.n_items,
            }
        )
    return pd.DataFrame(rows)


def part_table(numbers: Mapping[str, Primary]) -> pd.DataFrame:
    """Tabulate the parts behind primary numbers: they are exploratory, and are not judged."""
    return pd.DataFrame(
        [
            {
                "claim": f"P{claim[1:]}",
                "part": part.name,
                "number": part.text,
                "differs from the mean": "yes" if part in each.apart else "",
            }
            for claim, each in numbers.items()
            for part in each.parts
        ]
    )
