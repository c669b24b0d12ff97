"""The primary number of each claim of the paper: which sets, methods and capabilities it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd

from cola_lib.analysis.claims.decisions import Primary, judged
from cola_lib.analysis.claims.effects import PRUNING, QUANTIZATION
from cola_lib.analysis.claims.table import CLAIMS
from cola_lib.analysis.inference import Estimated, Part
from cola_lib.analysis.sets import TRAINED, Contrast, Sets, Weights
from cola_lib.errors import DataError

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

MATCHED = 0.2
"""Damage under web text at which pruning and quantization are compared."""

NEAR = 1.5
"""A strength is matched if its damage is within this factor of :data:`MATCHED`."""

LEAST_RECOVERED = 0.4
"""Share of the damage that training has to recover, for a gain after it to be about training."""


def _contrast(name: str, part: Part, worse: Mapping[str, float], better: Mapping[str, float]) -> Contrast:
    weights: Weights = {}
    for sets, sign in ((worse, 1.0), (better, -1.0)):
        for key, weight in sets.items():
            own = weights.setdefault(key, {})
            own[part] = own.get(part, 0.0) + sign * weight
    label, capability = part
    return Contrast(" · ".join(filter(None, (label, capability, name))), weights)


def _pairs(
    sets: Sets,
    better: str,
    worse: str,
    capabilities: Sequence[str],
    *,
    methods: Sequence[str] | None = None,
    name: str = "",
    trained: bool = False,
) -> list[Contrast]:
    """Contrast two sets under every method and on every capability."""
    found = sets.parts([better, worse], methods, capabilities, trained=trained)
    return [_contrast(name, part, {worse: 1.0}, {better: 1.0}) for part in found]


def _c1(sets: Sets) -> list[Contrast]:
    long, short = (sets.find(source="c4", split_rows=length) for length in (2048, 128))
    return _pairs(sets, long, short, ["math"], methods=["sparsegpt"])


def _c2(sets: Sets) -> list[Contrast]:
    parts = []
    for source in ("c4", "math"):
        amounts = [sets.find(source=source, n_samples=n, seq_len=128, layout="pack", repeat=None) for n in CONCAVITY]
        first, second, third, fourth = amounts
        early, late = (1 / np.log2(b / a) for a, b in (CONCAVITY[:2], CONCAVITY[2:]))
        for part in sets.parts(amounts, None, ["language", "math", "code"]):
            # Gain of a doubling early, log(first) - log(second), minus gain of a doubling late.
            parts.append(_contrast(source, part, {first: early, fourth: late}, {second: early, third: late}))
    return parts


def _c3(sets: Sets) -> list[Contrast]:
    few, many = (sets.find(source="c4", n_samples=n, seq_len=128, layout="pack", repeat=None) for n in (16, 128))
    return _pairs(sets, few, many, ["code"], methods=["awq", "gptq"])


def _plain(sets: Sets, source: str) -> str:
    return sets.find(source=source, seq_len=256, layout="pack", format="text", split_rows=None)


def _c5(sets: Sets) -> list[Contrast]:
    return _pairs(sets, _plain(sets, "c4"), _plain(sets, "wikipedia"), ["code", "math"])


def _c6(sets: Sets) -> list[Contrast]:
    reasoned = sets.find(source="gsm8k", format="question_reasoning")
    n_items = sets.labels(reasoned)["n_samples"]
    return _pairs(sets, reasoned, sets.find(source="gsm8k", format="question_answer", n_samples=n_items), ["math"])


def _c7(sets: Sets) -> list[Contrast]:
    parts = []
    for source, names in AXES.items():
        keys = {name: sets.find(source=source.format(name), seq_len=128) for name in names}
        for name, key in keys.items():
            others = {other: 1 / (len(keys) - 1) for own, other in keys.items() if own != name}
            for part in sets.parts(list(keys.values()), None, [name]):
                parts.append(_contrast("", part, others, {key: 1.0}))
    return parts


def _c8(sets: Sets) -> list[Contrast]:
    general = _plain(sets, "c4")
    return [
        part
        for capability, source in DOMAINS.items()
        for part in _pairs(sets, _plain(sets, source), general, [capability])
    ]


def _c9(sets: Sets) -> list[Contrast]:
    general, every = _plain(sets, "c4"), ("language", "commonsense", "math", "code", "knowledge")
    return [
        part
        for target, source in DOMAINS.items()
        for part in _pairs(
            sets, general, _plain(sets, source), [name for name in every if name != target], name=f"under {source}"
        )
    ]


def _c10(sets: Sets) -> list[Contrast]:
    return _pairs(sets, _plain(sets, "math:level=5"), _plain(sets, "math"), ["math"])


def _chosen(sets: Sets, strategy: str, target: str | None = "general") -> str:
    try:
        return sets.find(source=strategy, target=target)
    except DataError:
        return sets.find(source=strategy, target=None)  # it reads no target, and chooses once for all


def _over(rivals: Sequence[str]) -> Callable[[Sets], list[Contrast]]:
    """COLA against some rivals, on the capabilities at which no rival is at home."""

    def parts(sets: Sets) -> list[Contrast]:
        cola = _chosen(sets, "cola")
        found = []
        for rival in rivals:
            name = f"over {rival}" if len(rivals) > 1 else ""
            found += _pairs(sets, cola, _chosen(sets, rival), AWAY, methods=CHOSEN_FOR, name=name)
        return found

    return parts


def _c16(sets: Sets) -> list[Contrast]:
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


def _c14(sets: Sets) -> list[Contrast]:
    """Gain of COLA over web text where each of two methods a family does about the same damage."""
    web, cola = _chosen(sets, "random(source=c4)"), _chosen(sets, "cola")
    labels = dict.fromkeys(label for label, _ in sets.parts([web, cola], None, AWAY))
    damage = {label: sets.damage(web, label, AWAY) for label in labels}
    matched = {}
    for method in (*PRUNING, *QUANTIZATION):
        own = [label for label in labels if sets.method(label) == method]
        best = min(own, key=lambda label: abs(damage[label] - np.log1p(MATCHED)), default=None)
        if best is not None and 1 / NEAR <= np.expm1(damage[best]) / MATCHED <= NEAR:
            matched[best] = method
    for family in (PRUNING, QUANTIZATION):
        if sum(method in family for method in matched.values()) < 2:
            told = ", ".join(f"{label} {100 * np.expm1(one):.0f} %" for label, one in damage.items())
            raise DataError(
                f"two of {', '.join(family)} need a strength that costs about {100 * MATCHED:.0f} % under web text, "
                f"and there are {told}"
            )
    return [one for one in _pairs(sets, cola, web, AWAY) if one.name.split(" · ")[0] in matched]


def _c18_unseen(sets: Sets) -> list[Contrast]:
    return _pairs(sets, _chosen(sets, "cola"), _chosen(sets, "random(source=c4)"), ["knowledge"], methods=CHOSEN_FOR)


def _c18_trained(sets: Sets) -> list[Contrast]:
    cola, web = _chosen(sets, "cola"), _chosen(sets, "random(source=c4)")
    parts = _pairs(sets, cola, web, AWAY, methods=CHOSEN_FOR, trained=True)
    training = []
    for label, capability in sets.parts([web], CHOSEN_FOR, AWAY, trained=True):
        before, after = (label.removesuffix(TRAINED), capability), (label, capability)
        training.append(Contrast("training", {web: {before: 1.0, after: -1.0}}))
    recovered = sets.share("training", [(1.0, training)], nested=False).interval.value
    if recovered < LEAST_RECOVERED:
        raise DataError(
            f"training recovers {100 * recovered:.0f} % of the damage, and the rule needs {100 * LEAST_RECOVERED:.0f} %"
        )
    return parts


@dataclass(frozen=True)
class Rule:
    """How a claim's primary number is made, and what it is judged by."""

    parts: Callable[[Sets], list[Contrast]]
    margin: float = 0.005
    nested: bool = False
    within: bool = False
    draws: int = 10
    recovers: Literal["reported", "judged", "no"] = "reported"
    about: str = ""


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "C1": Rule(_c1, nested=True),
        "C2": Rule(_c2, nested=True, draws=6, recovers="no"),
        "C3": Rule(_c3, nested=True),
        "C5": Rule(_c5),
        "C6": Rule(_c6, nested=True),
        "C7": Rule(_c7),
        "C8": Rule(_c8),
        "C9": Rule(_c9),
        "C10": Rule(_c10, margin=0.015, within=True),
        "C12": Rule(_over(["random(source=c4)", "random(source=wikipedia)"]), draws=12),
        "C13": Rule(_over(["self_generated"]), margin=0.02, draws=12),
        "C14": Rule(_c14, margin=0.05, draws=12, recovers="judged"),
        "C15": Rule(_over(["tfidf_clusters", "zipcal"]), margin=0.02, draws=12),
        "C16": Rule(_c16, margin=0.01, draws=12),
        "C18a": Rule(_c18_unseen, about="on capabilities that nobody chose for"),
        "C18b": Rule(_c18_trained, draws=6, about="after training"),
    }
)
"""Claims whose primary number is made of stored scores; those of the others need other experiments."""


def title(claim: str) -> str:
    """Name a primary number as a reader knows it."""
    text = CLAIMS[claim.rstrip("ab")].title
    return f"{text}, {RULES[claim].about}" if claim in RULES and RULES[claim].about else text


def primary(claim: str, sets: Sets) -> Primary:
    """Compute the primary number of a claim."""
    rule = RULES[claim]
    parts = rule.parts(sets)
    mean: Weights = {}
    for part in parts:
        for key, each, weight in part.terms():
            own = mean.setdefault(key, {})
            own[each] = own.get(each, 0.0) + weight / len(parts)
    cells = sets.cells(mean)
    if rule.recovers == "judged":
        number = _families(sets, title(claim), parts)
        by_capability: dict[str, list[Contrast]] = {}
        for part in parts:
            by_capability.setdefault(part.name.split(" · ")[1], []).append(part)
        each_of = tuple(_families(sets, capability, own) for capability, own in by_capability.items())
        return Primary(claim, number, each_of, rule.margin, rule.within, cells)
    found = Primary(
        claim,
        sets.estimate(title(claim), mean, rule.nested),
        tuple(sets.estimate(part.name, part.weights, rule.nested) for part in parts),
        rule.margin,
        rule.within,
        cells,
    )
    if rule.recovers == "reported":
        return replace(found, recovered=_recovered(sets, parts, rule.nested))
    return found


def _families(sets: Sets, name: str, parts: Sequence[Contrast]) -> Estimated:
    """Share of the damage recovered under pruning, minus that under quantization."""
    pruned = [part for part in parts if sets.method(part.name.split(" · ")[0]) in PRUNING]
    quantized = [part for part in parts if part not in pruned]
    return sets.share(name, [(1.0, pruned), (-1.0, quantized)], nested=False)


def _recovered(sets: Sets, parts: Sequence[Contrast], nested: bool) -> Estimated | None:
    """Share of the damage that is recovered; a number without one has no dense model or no damage beside it."""
    try:
        return sets.share("recovered", [(1.0, parts)], nested)
    except DataError:
        return None


def primaries(frame: pd.DataFrame, *, complete: bool = False) -> tuple[dict[str, Primary], dict[str, str]]:
    """Compute and judge the primary number of every claim that a frame of scores can judge."""
    sets = Sets(frame)
    found: dict[str, Primary] = {}
    missing: dict[str, str] = {}
    for claim in RULES:
        try:
            number = primary(claim, sets)
            draws, wanted = number.number.interval.n_draws, RULES[claim].draws
            if complete and draws < wanted:
                raise DataError(f"{draws} of {wanted} draws have been computed")
            found[claim] = number
        except DataError as error:
            missing[claim] = str(error)
    return {each.claim: each for each in judged(list(found.values()))}, missing


def primary_table(stages: Mapping[str, Mapping[str, Primary]]) -> pd.DataFrame:
    """Tabulate primary numbers for a reader.

    Parameters
    ----------
    stages : mapping of str to mapping of str to Primary
        For each stage of the evidence, such as the pilot, its primary numbers by claim.

    Returns
    -------
    pandas.DataFrame
        One row per claim and stage: ``claim``, ``title``, ``paper``, ``stage``, ``number``, ``recovered`` (share of the
        damage), ``parts`` (their range and how many there are), ``verdict``, ``generality``, ``apart`` (parts that
        differ from the mean), ``draws``, ``items`` and ``cells``; in per cent ``value``, ``low`` and ``high``, and
        ``lowest`` and ``highest`` of the parts.

    Examples
    --------
    >>> from cola_lib.analysis import Primary, judged, primary_table
    >>> from cola_lib.analysis.claims.decisions import Estimated
    >>> from cola_lib.analysis.inference import Interval
    >>> number = Estimated("x", Interval(0.05, 0.01, 20, 0.01, 0.0, 10, 40))
    >>> stages = {"pilot": {one.claim: one for one in judged([Primary("C5", number, (number,), 0.005)])}}
    >>> primary_table(stages)[["claim", "number", "verdict"]].to_dict("records")
    [{'claim': 'P5', 'number': '+4.9 [+2.9, +6.8] %', 'verdict': 'reproduced'}]
    """
    rows = []
    for stage, claim, each in _rows(stages):
        low, high = each.number.interval.ends()
        values = [part.shown(part.interval.value) for part in each.parts]
        rows.append(
            {
                "claim": f"P{claim[1:]}",
                "title": title(claim),
                "paper": CLAIMS[claim.rstrip("ab")].paper,
                "stage": stage,
                "number": each.number.text,
                "recovered": each.recovered.text.removesuffix(" of the damage") if each.recovered else "",
                "parts": _range(each.parts),
                "verdict": str(each.decision),
                "generality": each.generality,
                "apart": len(each.apart),
                "draws": each.number.interval.n_draws,
                "items": each.number.interval.n_items,
                "cells": len(each.cells),
                "value": each.number.shown(each.number.interval.value),
                "low": each.number.shown(low),
                "high": each.number.shown(high),
                "lowest": min(values),
                "highest": max(values),
            }
        )
    return pd.DataFrame(rows)


def part_table(stages: Mapping[str, Mapping[str, Primary]]) -> pd.DataFrame:
    """Tabulate the parts behind primary numbers: they are exploratory, and are not judged.

    Parameters
    ----------
    stages : mapping of str to mapping of str to Primary
        As in :func:`primary_table`.

    Returns
    -------
    pandas.DataFrame
        One row per part: ``claim``, ``stage``, ``part``, ``number``, ``differs`` (from the mean).

    Examples
    --------
    >>> from cola_lib.analysis import Primary, part_table
    >>> from cola_lib.analysis.claims.decisions import Estimated
    >>> from cola_lib.analysis.inference import Interval
    >>> number = Estimated("wanda · code", Interval(0.05, 0.01, 20, 0.01, 0.0, 10, 40))
    >>> part_table({"pilot": {"C5": Primary("C5", number, (number,), 0.005)}})["part"].tolist()
    ['wanda · code']
    """
    rows = [
        {
            "claim": f"P{claim[1:]}",
            "stage": stage,
            "part": part.name,
            "number": part.text,
            "differs": "yes" if part in each.apart else "",
        }
        for stage, claim, each in _rows(stages)
        for part in each.parts
    ]
    return pd.DataFrame(rows, columns=["claim", "stage", "part", "number", "differs"])


def primary_markdown(stages: Mapping[str, Mapping[str, Primary]]) -> str:
    """Write primary numbers as a table for a README, one row per claim."""
    heads = "".join(f" {stage} | verdict |" for stage in stages)
    lines = [f"| claim | paper |{heads}", "|---|---|" + "---|---|" * len(stages)]
    for claim in RULES:
        about = [f"P{claim[1:]} {title(claim)}", CLAIMS[claim.rstrip("ab")].paper]
        for numbers in stages.values():
            each = numbers.get(claim)
            parts = f"; parts {_range(each.parts)}" if each and len(each.parts) > 1 else ""
            about += [f"{each.number.text}{parts}", f"{each.decision}, {each.generality}"] if each else ["–", "–"]
        lines.append("| " + " | ".join(about) + " |")
    return "\n".join(lines) + "\n"


def _rows(stages: Mapping[str, Mapping[str, Primary]]) -> Iterator[tuple[str, str, Primary]]:
    """Go through the claims, and through the stages of each."""
    for claim in dict.fromkeys(name for numbers in stages.values() for name in numbers):
        for stage, numbers in stages.items():
            if claim in numbers:
                yield stage, claim, numbers[claim]


def _range(parts: Sequence[Estimated]) -> str:
    values = [part.shown(part.interval.value) for part in parts]
    return f"{min(values):+.1f} to {max(values):+.1f} ({len(values)})" if len(values) > 1 else "1"
