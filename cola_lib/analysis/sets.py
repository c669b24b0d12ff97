"""Calibration sets of a store, found by their labels, and contrasts of them with intervals."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from cola_lib.analysis.inference import Estimated, Interval, LogScore, Part, WeightedSet, decisive, weighted_sum
from cola_lib.analysis.scores import condition
from cola_lib.errors import DataError

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

NO_DATA = "no data"
"""Source of the methods that read none, such as rounding to nearest."""

TRAINED = " training"
"""What the label of a method ends in if the model was trained further."""

Weights = dict[str, dict[Part, float]]
"""For each set, the weights of methods and capabilities in a sum of log scores."""


@dataclass(frozen=True)
class Contrast:
    """A contrast, positive where the paper is right: sets with their weights, for one method and capability."""

    name: str
    weights: Weights

    def terms(self) -> Iterator[tuple[str, Part, float]]:
        """Iterate over sets with methods and capabilities, and their weights."""
        return ((key, part, weight) for key, own in self.weights.items() for part, weight in own.items())


class Sets:
    """The calibration sets of a frame of scores."""

    def __init__(self, frame: pd.DataFrame) -> None:
        dense = decisive(frame[frame["method"] == "dense"])
        self._dense = {str(name): own.drop_duplicates("item") for name, own in dense.groupby("capability")}
        rows = decisive(frame[frame["method"] != "dense"])
        rows = rows.assign(source=rows["source"].fillna(NO_DATA), draw=rows["draw"].fillna(0))
        if {"format", "layout"} <= set(rows):
            # GSM8K's own wording is question and reasoning: one set, whichever name its cells were computed under.
            same = (rows["source"] == "gsm8k") & (rows["layout"] == "pad") & (rows["format"] == "text")
            rows = rows.assign(format=rows["format"].mask(same, "question_reasoning"))
        rows = rows.assign(set=self._names(rows, [name for name in IDENTITY if name in rows]))
        rows = rows.drop_duplicates(["set", "label", "draw", "item"])
        names = ["item", "task", "capability", "label", "set"]
        rows[names] = rows[names].astype(object)  # thousands of small tables follow, in which Arrow's strings are slow
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
        self._dense_scores: dict[tuple[str, tuple[str, ...]], LogScore] = {}

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

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all sets, in the order of the frame."""
        return tuple(self._labels)

    def labels(self, name: str) -> dict[str, Any]:
        """Labels that tell a set from others."""
        own = self._labels[name]
        return {label: own[label] for label in IDENTITY if pd.notna(own.get(label))}

    def shared(self, names: Sequence[str]) -> list[Part]:
        """Methods and capabilities under which all of some sets have scores."""
        first, *others = (self._rows[name] for name in names)
        return [part for part in first if all(part in other for other in others)]

    def parts(
        self,
        names: Sequence[str],
        methods: Sequence[str] | None,
        capabilities: Sequence[str],
        *,
        trained: bool = False,
    ) -> list[Part]:
        """Methods and capabilities that a claim asks for, under which all of some sets have scores."""
        shared = [
            (label, capability)
            for label, capability in self.shared(names)
            if capability in capabilities
            and (methods is None or self._method[label] in methods)
            and (label.endswith(TRAINED) if trained else TRAINED not in label)
        ]
        if not shared:
            raise DataError(
                f"no method has been evaluated on {' or '.join(capabilities)} under all of {', '.join(names)}"
            )
        return shared

    def estimate(self, name: str, weights: Weights, nested: bool) -> Estimated:
        """Estimate a weighted sum of log scores."""
        return Estimated(name, weighted_sum(self._weighted(weights, nested)))

    def damage_of(self, name: str, parts: Sequence[Part]) -> Interval:
        """Estimate the mean logarithm of what a set costs, in bits per byte against the dense model."""
        share = 1 / len(parts)
        own: Weights = {name: dict.fromkeys(parts, share)}
        dense: dict[Part, float] = {}
        for _, capability in parts:
            dense["dense", capability] = dense.get(("dense", capability), 0.0) - share
        return weighted_sum([*self._weighted(own, nested=False), self._untouched(dense, own)])

    def share(self, name: str, groups: Sequence[tuple[float, Sequence[Contrast]]], nested: bool) -> Estimated:
        """Estimate the share of the damage that the better sets of some contrasts recover.

        Notes
        -----
        The variance is by the delta method: a share is linear in small changes of log scores.
        """
        value, slopes, dense = 0.0, Weights(), dict[Part, float]()
        for sign, parts in groups:
            terms = [(key, part, w, self._level(key, part)) for one in parts for key, part, w in one.terms()]
            untouched = [(part[1], w * self._dense_level(key, part)) for key, part, w, _ in terms if w > 0]
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
        """Mean over capabilities of the logarithm of what a set costs under a method."""
        pairs = [(self._level(name, (label, c)), self._dense_level(name, (label, c))) for c in capabilities]
        return float(np.mean([np.log(b / dense) for b, dense in pairs]))

    def method(self, label: str) -> str:
        """Name of the method that has a label."""
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

    def _dense_level(self, name: str, part: Part) -> float:
        return float(np.exp(self._dense_like(name, part).value.mean()))

    def _dense_like(self, name: str, part: Part) -> LogScore:
        """Scores of the dense model on the items of a set."""
        capability, items = part[1], self._of(name, [part])[part].scores.items
        if (capability, items) not in self._dense_scores:
            rows = self._dense.get(capability)
            rows = None if rows is None else rows[rows["item"].isin(items)]
            if rows is None or len(rows) < len(items):
                raise DataError(f"the dense model has not been evaluated on every item of {capability}")
            self._dense_scores[capability, items] = LogScore(condition(rows))
        return self._dense_scores[capability, items]

    def _untouched(self, weights: Mapping[Part, float], like: Weights) -> WeightedSet:
        """Weigh the dense model's scores, on the items of the sets that it is compared with."""
        places = {part[1]: (key, part) for key, own in like.items() for part in own}
        return WeightedSet({part: self._dense_like(*places[part[1]]) for part in weights}, weights)

    def cells(self, weights: Weights) -> tuple[str, ...]:
        """Fingerprints of the cells behind a weighted sum."""
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
