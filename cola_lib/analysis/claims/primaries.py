"""The primary number of each claim, its verdict, and how general it is.

A claim is a list of *parts*, each a contrast of log bits per byte: a method, a capability, a pair of sets. Its primary
number is their mean. The rules are in ``book/rules.md``, and were written down before the draws that they judge.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import optimize, stats

from cola_lib.analysis.claims.effects import PRUNING, QUANTIZATION
from cola_lib.analysis.claims.table import CLAIMS
from cola_lib.analysis.inference import (
    LEAST_DRAWS,
    Interval,
    LogScore,
    Part,
    WeightedSet,
    decisive,
    weighted_sum,
)
from cola_lib.analysis.permutation import holm
from cola_lib.analysis.scores import condition
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

MATCHED = 0.2
"""Damage under web text at which pruning and quantization are compared."""

NEAR = 1.5
"""A strength is matched if its damage is within this factor of :data:`MATCHED`."""

TRAINED = " training"
"""What the label of a method ends in if the model was trained further."""

LEAST_RECOVERED = 0.4
"""Share of the damage that training has to recover, for a gain after it to be about training."""


class Decision(StrEnum):
    """What the evidence says of a claim's primary number.

    Examples
    --------
    >>> from cola_lib.analysis.claims.primaries import Decision
    >>> [str(decision) for decision in Decision]
    ['reproduced', 'reversed', 'negligible', 'undecided']
    """

    REPRODUCED = "reproduced"
    REVERSED = "reversed"
    NEGLIGIBLE = "negligible"
    UNDECIDED = "undecided"


Weights = dict[str, dict[Part, float]]
"""For each set, the weights of methods and capabilities in a sum of log scores."""


@dataclass(frozen=True)
class Estimated:
    """A number with its interval, signed so that the paper says "above 0".

    Parameters
    ----------
    name : str
        Of the part, or of the claim.
    interval : Interval
        In logarithms, or as a share of the damage.
    share : bool
        Whether it is a share of the damage.

    Examples
    --------
    >>> from cola_lib.analysis import Estimated, Interval
    >>> Estimated("C4 over Wikipedia", Interval(0.05, 0.01, 20, 0.01, 0.0, 10, 40)).text
    '+5.1 [+3.0, +7.3] %'
    """

    name: str
    interval: Interval
    share: bool = False

    def shown(self, value: float) -> float:
        """Give a value of the interval in per cent.

        Parameters
        ----------
        value : float
            As ``interval`` has it.
        """
        return float(100 * (value if self.share else np.expm1(value)))

    @property
    def text(self) -> str:
        """Value and 95 % interval in per cent."""
        low, high = self.interval.ends()
        numbers = (self.shown(value) for value in (self.interval.value, low, high))
        return "{:+.1f} [{:+.1f}, {:+.1f}] %".format(*numbers) + (" of the damage" if self.share else "")


@dataclass(frozen=True)
class Primary:
    """The primary number of a claim, and what it comes to.

    Parameters
    ----------
    claim : str
        Key of :data:`RULES`.
    number : Estimated
        Mean over the parts.
    parts : tuple of Estimated
        Each by itself; they are exploratory.
    margin : float
        Effects up to here are negligible, on the scale of the number.
    within : bool
        Whether the claim says that the number lies within the margin, and not that it is above 0.
    cells : tuple of str
        Fingerprints of the cells behind it.
    p_holm : float, optional
        Two-sided p-value, corrected for all primary numbers of the book.
    decision : Decision, optional
        Once judged.
    recovered : Estimated, optional
        Share of the damage that the better sets recover, where the claim compares sets. It is reported, not judged.

    Examples
    --------
    >>> from cola_lib.analysis import Estimated, Interval, Primary, judged
    >>> number = Estimated("C4 over Wikipedia", Interval(0.05, 0.01, 20, 0.01, 0.0, 10, 40))
    >>> [str(one.decision) for one in judged([Primary("C5", number, (), margin=0.005)])]
    ['reproduced']
    """

    claim: str
    number: Estimated
    parts: tuple[Estimated, ...]
    margin: float
    within: bool = False
    cells: tuple[str, ...] = ()
    p_holm: float | None = None
    decision: Decision | None = None
    recovered: Estimated | None = None

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

    Parameters
    ----------
    number : Estimated
        Mean of the parts.
    parts : sequence of Estimated
        By themselves.

    Returns
    -------
    str
        ``"uniform"`` if the upper end of the 95 % interval of the spread between parts is below half of the mean;
        ``"mixed"`` if the parts differ by Cochran's Q at 5 %; otherwise ``"unknown"``, as with fewer than three parts.

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
    """The calibration sets of a frame of scores.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of one model, from a store. A score that occurs in several cells counts once.

    Examples
    --------
    >>> from cola_lib.analysis import simulated_grid
    >>> from cola_lib.analysis.claims.primaries import Sets
    >>> sets = Sets(simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}]))
    >>> sets.find(source="c4")
    'source=c4'
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        dense = decisive(frame[frame["method"] == "dense"])
        self._dense = {str(name): own.drop_duplicates("item") for name, own in dense.groupby("capability")}
        rows = decisive(frame[frame["source"].notna()])
        rows = rows.assign(set=self._names(rows, [name for name in IDENTITY if name in rows]))
        rows = rows.drop_duplicates(["set", "label", "draw", "item"])
        self._method = dict(zip(rows["label"], rows["method"], strict=True))
        first = rows.drop_duplicates("set")
        self._labels: dict[str, dict[Hashable, Any]] = dict(zip(first["set"], first.to_dict("records"), strict=True))
        self._rows: dict[str, dict[Part, pd.DataFrame]] = {name: {} for name in self._labels}
        self._drawn: dict[tuple[str, Part], frozenset[Any]] = {}
        columns = [name for name in ("cell", "capability", "task", "item", "draw", "nll", "n_bytes") if name in rows]
        for (name, label, capability), own in rows.groupby(["set", "label", "capability"], sort=False):
            part = str(label), str(capability)
            self._rows[str(name)][part] = own[columns]
            self._drawn[str(name), part] = frozenset(own["draw"])
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
        """Name the one set that has these labels.

        Parameters
        ----------
        **labels
            Values; ``None`` for a label that the set has not. Of several that fit, the one with the most cells counts.

        Raises
        ------
        DataError
            If there is none.
        """
        fitting = [name for name, own in self._labels.items() if all(self._is(own, k, v) for k, v in labels.items())]
        if not fitting:
            told = ", ".join(f"{name} {value}" for name, value in labels.items())
            raise DataError(f"no calibration set with {told} has been evaluated")
        return max(fitting, key=lambda name: sum(map(len, self._rows[name].values())))

    @staticmethod
    def _is(own: Mapping[Hashable, Any], name: str, value: Any) -> bool:
        found = own.get(name)
        return bool(pd.isna(found)) if value is None else bool(found == value)

    def parts(
        self,
        names: Sequence[str],
        methods: Sequence[str] | None,
        capabilities: Sequence[str],
        *,
        trained: bool = False,
    ) -> list[Part]:
        """Methods and capabilities under which all of some sets have scores.

        Parameters
        ----------
        names : sequence of str
            Sets.
        methods : sequence of str, optional
            Default: all.
        capabilities : sequence of str
            Wanted.
        trained : bool
            Whether the models that were trained further are asked for, and not the others.

        Raises
        ------
        DataError
            If there is none.
        """
        first, *others = (self._rows[name] for name in names)
        shared = [
            (label, capability)
            for label, capability in first
            if capability in capabilities
            and (methods is None or self._method[label] in methods)
            and (label.endswith(TRAINED) if trained else TRAINED not in label)
            and all((label, capability) in other for other in others)
        ]
        if not shared:
            raise DataError(
                f"no method has been evaluated on {' or '.join(capabilities)} under all of {', '.join(names)}"
            )
        return shared

    def estimate(self, name: str, weights: Weights, nested: bool) -> Estimated:
        """Estimate a weighted sum of log scores.

        Parameters
        ----------
        name : str
            Of the number.
        weights : dict
            Of sets, methods and capabilities.
        nested : bool
            Whether the sets have their draws in common.
        """
        return Estimated(name, weighted_sum(self._weighted(weights, nested)))

    def share(self, name: str, groups: Sequence[tuple[float, Sequence[_Part]]], nested: bool) -> Estimated:
        """Estimate the share of the damage that the better sets of some contrasts recover.

        (b_ref − b_set) / (b_ref − b_dense), numerator and denominator each summed over contrasts

        Parameters
        ----------
        name : str
            Of the number.
        groups : sequence of (float, sequence of _Part)
            Contrasts with one share, and what that is multiplied by before the shares are added.
        nested : bool
            Whether the sets have their draws in common.

        Raises
        ------
        DataError
            If there is no damage, or the dense model has not been evaluated on the same items.

        Notes
        -----
        The variance is by the delta method: a share is linear in small changes of log scores.
        """
        value, slopes, dense = 0.0, Weights(), dict[Part, float]()
        for sign, parts in groups:
            terms = [(key, part, w, self._level(key, part)) for one in parts for key, part, w in one.terms()]
            untouched = [(part[1], w * self._dense_level(part[1], key, part)) for key, part, w, _ in terms if w > 0]
            damage = sum(w * b for _, _, w, b in terms if w > 0) - sum(b for _, b in untouched)
            if damage <= 0:
                raise DataError(f"{name}: compression costs nothing here, so there is no share of it to recover")
            share = sum(w * b for _, _, w, b in terms) / damage
            value += sign * share
            for key, part, w, b in terms:
                own = slopes.setdefault(key, {})
                own[part] = own.get(part, 0.0) + sign * b * (w - share * max(w, 0.0)) / damage
            for capability, b in untouched:
                place = ("dense", capability)
                dense[place] = dense.get(place, 0.0) + sign * share * b / damage
        interval = weighted_sum([*self._weighted(slopes, nested), self._untouched(dense, slopes)])
        return Estimated(name, replace(interval, value=value), share=True)

    def damage(self, name: str, label: str, capabilities: Sequence[str]) -> float:
        """Mean over capabilities of the logarithm of what a set costs under a method.

        Parameters
        ----------
        name : str
            Set.
        label : str
            Of the method.
        capabilities : sequence of str
            That have been evaluated.
        """
        pairs = [(self._level(name, (label, c)), self._dense_level(c, name, (label, c))) for c in capabilities]
        return float(np.mean([np.log(b / dense) for b, dense in pairs]))

    def method(self, label: str) -> str:
        """Name of the method that has a label.

        Parameters
        ----------
        label : str
            With its strength.
        """
        return str(self._method[label])

    def _weighted(self, weights: Weights, nested: bool) -> list[WeightedSet]:
        draws = frozenset.intersection(*(self._draws(key, own) for key, own in weights.items())) if nested else None
        sets = []
        for key, own in weights.items():
            pool = [] if nested else [self._of(other, own) for other in self._like(key, own)]
            sets.append(WeightedSet(self._of(key, own, draws), own, "all" if nested else None, pool))
        return sets

    def _level(self, name: str, part: Part) -> float:
        """Bits per byte of a set, as the geometric mean over draws."""
        return float(np.exp(self._of(name, [part])[part].value.mean()))

    def _dense_level(self, capability: str, name: str, part: Part) -> float:
        return float(np.exp(self._dense_score(capability, self._rows[name][part]["item"]).value.mean()))

    def _dense_score(self, capability: str, items: pd.Series) -> LogScore:
        """Scores of the dense model on some items."""
        rows = self._dense.get(capability)
        rows = None if rows is None else rows[rows["item"].isin(items)]
        if rows is None or len(rows) < items.nunique():
            raise DataError(f"the dense model has not been evaluated on every item of {capability}")
        return LogScore(condition(rows))

    def _untouched(self, weights: Mapping[Part, float], like: Weights) -> WeightedSet:
        """Weigh the dense model's scores, on the items of the sets that it is compared with."""
        items = {part[1]: self._rows[key][part]["item"] for key, own in like.items() for part in own}
        return WeightedSet({part: self._dense_score(part[1], items[part[1]]) for part in weights}, weights)

    def cells(self, weights: Weights) -> tuple[str, ...]:
        """Fingerprints of the cells behind a weighted sum.

        Parameters
        ----------
        weights : dict
            As in :meth:`estimate`.
        """
        rows = [self._rows[key][part] for key, own in weights.items() for part in own]
        return tuple(dict.fromkeys(cell for each in rows if "cell" in each for cell in each["cell"]))

    def _draws(self, name: str, parts: Iterable[Part]) -> frozenset[Any]:
        """Draws that all of some parts have."""
        return frozenset.intersection(*(self._drawn[name, part] for part in parts))

    def _of(self, name: str, parts: Iterable[Part], draws: frozenset[Any] | None = None) -> dict[Part, LogScore]:
        """Arrange a set's scores over some draws, by default those that all parts have."""
        parts = tuple(parts)
        kept = self._draws(name, parts) if draws is None else draws
        if not kept:
            raise DataError(f"the methods and capabilities asked for have no draw of set {name} in common")
        for part in parts:
            if (name, part, kept) not in self._scores:
                rows = self._rows[name][part]
                self._scores[name, part, kept] = LogScore(condition(rows[rows["draw"].isin(kept)]))
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

    def terms(self) -> Iterator[tuple[str, Part, float]]:
        """Iterate over sets with methods and capabilities, and their weights."""
        return ((key, part, weight) for key, own in self.weights.items() for part, weight in own.items())


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
    trained: bool = False,
) -> list[_Part]:
    """Contrast two sets under every method and on every capability."""
    found = sets.parts([better, worse], methods, capabilities, trained=trained)
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


def _c14(sets: Sets) -> list[_Part]:
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


def _c18_unseen(sets: Sets) -> list[_Part]:
    return _pairs(sets, _chosen(sets, "cola"), _chosen(sets, "random(source=c4)"), ["knowledge"], methods=CHOSEN_FOR)


def _c18_trained(sets: Sets) -> list[_Part]:
    cola, web = _chosen(sets, "cola"), _chosen(sets, "random(source=c4)")
    parts = _pairs(sets, cola, web, AWAY, methods=CHOSEN_FOR, trained=True)
    training = []
    for label, capability in sets.parts([web], CHOSEN_FOR, AWAY, trained=True):
        before, after = (label.removesuffix(TRAINED), capability), (label, capability)
        training.append(_Part("training", {web: {before: 1.0, after: -1.0}}))
    recovered = sets.share("training", [(1.0, training)], nested=False).interval.value
    if recovered < LEAST_RECOVERED:
        raise DataError(
            f"training recovers {100 * recovered:.0f} % of the damage, and the rule needs {100 * LEAST_RECOVERED:.0f} %"
        )
    return parts


@dataclass(frozen=True)
class Rule:
    """How a claim's primary number is made, and what it is judged by.

    Parameters
    ----------
    parts : callable
        From the sets of a store to the contrasts whose mean is the number.
    margin : float
        Effects up to here are negligible.
    nested : bool
        Whether the sets of a contrast are cut from the same texts.
    within : bool
        Whether the claim says that the number lies within the margin.
    draws : int
        Of each set, in the confirmation. Nobody looks at a number that has fewer.
    recovers : {"reported", "judged", "no"}
        Whether the share of the damage that is recovered is shown beside the number, is the number (that of pruning
        minus that of quantization), or makes no sense.
    about : str
        What tells the claim's primary numbers apart, if it has several.

    Examples
    --------
    >>> from cola_lib.analysis import RULES
    >>> RULES["C15"].margin, RULES["C15"].draws
    (0.02, 12)
    """

    parts: Callable[[Sets], list[_Part]]
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
    """Name a primary number as a reader knows it.

    Parameters
    ----------
    claim : str
        Key of :data:`RULES`.
    """
    text = CLAIMS[claim.rstrip("ab")].title
    return f"{text}, {RULES[claim].about}" if claim in RULES and RULES[claim].about else text


def primary(claim: str, sets: Sets) -> Primary:
    """Compute the primary number of a claim.

    Parameters
    ----------
    claim : str
        Key of :data:`RULES`.
    sets : Sets
        Scores.

    Raises
    ------
    DataError
        If sets that the claim needs have not been evaluated.
    """
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
        by_capability: dict[str, list[_Part]] = {}
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


def _families(sets: Sets, name: str, parts: Sequence[_Part]) -> Estimated:
    """Share of the damage recovered under pruning, minus that under quantization."""
    pruned = [part for part in parts if sets.method(part.name.split(" · ")[0]) in PRUNING]
    quantized = [part for part in parts if part not in pruned]
    return sets.share(name, [(1.0, pruned), (-1.0, quantized)], nested=False)


def _recovered(sets: Sets, parts: Sequence[_Part], nested: bool) -> Estimated | None:
    """Share of the damage that is recovered; a number without one has no dense model or no damage beside it."""
    try:
        return sets.share("recovered", [(1.0, parts)], nested)
    except DataError:
        return None


def primaries(frame: pd.DataFrame, *, complete: bool = False) -> tuple[dict[str, Primary], dict[str, str]]:
    """Compute and judge the primary number of every claim that a frame of scores can judge.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of one model, from a store.
    complete : bool
        Whether numbers with fewer draws than their rule names stay hidden, as those of a confirmation do.

    Returns
    -------
    primaries : dict of str to Primary
        By claim, judged together.
    missing : dict of str to str
        For each other claim of :data:`RULES`, what its number lacks.

    Examples
    --------
    >>> from cola_lib.analysis import primaries, simulated_grid
    >>> shape = {"seq_len": 256, "layout": "pack", "format": "text", "capability": "code"}
    >>> losses = {"c4": 0.05, "wikipedia": 0.15}
    >>> frame = simulated_grid([{"source": source, "loss": loss} | shape for source, loss in losses.items()])
    >>> found, missing = primaries(frame)
    >>> {claim: str(number.decision) for claim, number in found.items()}
    {'C5': 'reproduced'}
    """
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


def judged(numbers: Sequence[Primary]) -> Iterator[Primary]:
    """Judge primary numbers together, with Holm's correction over all of them.

    Parameters
    ----------
    numbers : sequence of Primary
        All of the book.

    Yields
    ------
    Primary
        With ``p_holm`` and ``decision``.

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
        yield replace(each, p_holm=float(p), decision=decide(each, float(p)))


def decide(number: Primary, p_holm: float) -> Decision:
    """Decide on one primary number.

    Parameters
    ----------
    number : Primary
        Not judged yet.
    p_holm : float
        Its p-value, corrected for all primary numbers of the book.
    """
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
    """Tabulate primary numbers for a reader.

    Parameters
    ----------
    numbers : mapping of str to Primary
        By claim.

    Returns
    -------
    pandas.DataFrame
        One row per claim: ``claim``, ``number``, ``range of parts``, ``verdict``, ``generality``, ``draws``, ``items``.
    """
    rows = []
    for claim, each in numbers.items():
        values = [part.shown(part.interval.value) for part in each.parts]
        rows.append(
            {
                "claim": f"P{claim[1:]} {title(claim)}",
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
    """Tabulate the parts behind primary numbers: they are exploratory, and are not judged.

    Parameters
    ----------
    numbers : mapping of str to Primary
        By claim.

    Returns
    -------
    pandas.DataFrame
        One row per part: ``claim``, ``part``, ``number``, ``differs from the mean``.
    """
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
