"""Text that two samples share: how the halves are kept apart, and a guard for sets the user brings.

Two texts overlap if they have 13 consecutive words in common, as in the contamination study of GPT-3
(Brown et al., arXiv 2005.14165, appendix C). As there, 13 words that more than ten documents share
do not count: they are licences, templates and exam boilerplate. In program code 13 words are two
nested loops, so there it takes 40.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cola_lib.data.sample import Sample
from cola_lib.errors import DataError

WORDS = 13
"""Consecutive words of prose that make an overlap."""

CODE_WORDS = 40
"""Consecutive words of program code that make an overlap."""

COMMON = 10
"""Sequences in more documents than this are boilerplate."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two samples that share text."""

    calibration_id: str
    evaluation_id: str
    evaluation_source: str
    text: str


def words(text: str) -> list[str]:
    """Split a text into lower-case words, without punctuation."""
    return _WORD.findall(text.lower())


@functools.lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


@functools.cache
def _weights(n: int) -> np.ndarray:
    """Odd 64-bit multipliers, other ones for each ``n``: runs of two lengths never match by chance."""
    seeds = (f"{n}/{i}".encode() for i in range(n))
    return np.array([int.from_bytes(hashlib.sha256(s).digest()[:8], "big") | 1 for s in seeds], np.uint64)


def run_hashes(text: str, n: int) -> np.ndarray:
    """Hash every run of ``n`` words of a text."""
    found = words(text)
    if not found:
        return np.empty(0, np.uint64)
    hashes = np.fromiter(map(_word_hash, found), np.uint64, len(found))
    weights = _weights(min(n, len(found)))
    return np.lib.stride_tricks.sliding_window_view(hashes, len(weights)) @ weights


def parts(sample: Sample) -> tuple[tuple[str, int], ...]:
    """List every text that a sample can put before a model, in any format."""
    code = CODE_WORDS if sample.domain == "code" else WORDS
    if sample.question is None:
        return ((sample.text, code),)
    if sample.domain == "code":
        return (sample.question, WORDS), (sample.answer or "", code)
    whole = (sample.question, sample.reasoning, sample.answer, *sample.choices)
    return (("\n".join(part for part in whole if part), WORDS),)


def _hashes(sample: Sample) -> np.ndarray:
    """Hash the runs of all parts of a sample, each once, in sorted order."""
    return np.unique(np.concatenate([run_hashes(text, n) for text, n in parts(sample)]))


def _short_wordings(sample: Sample) -> Iterator[str]:
    """List the short texts as which a sample may come back: as it is, its parts, and its question with the answer."""
    solved = "\n".join(part for part in (sample.question, sample.answer) if part)
    for text in dict.fromkeys((sample.text, solved, *(text for text, _ in parts(sample)))):
        if 0 < len(words(text)) < 2 * CODE_WORDS:
            yield text


def _whole(text: str) -> np.ndarray:
    """Hash all of a text."""
    return run_hashes(text, len(words(text)))


def overlap_groups(samples: Sequence[Sample]) -> list[list[str]]:
    """Group the split keys whose samples overlap, directly or through others."""
    names = sorted({sample.split_key for sample in samples})
    index = {key: i for i, key in enumerate(names)}
    hashes = [_hashes(sample) for sample in samples]
    owner = np.repeat([index[sample.split_key] for sample in samples], [len(h) for h in hashes])
    flat = np.concatenate(hashes)
    pairs = np.stack([flat, owner.astype(np.uint64)], axis=1)[np.lexsort((owner, flat))]
    pairs = pairs[np.r_[True, (pairs[1:] != pairs[:-1]).any(axis=1)]]
    parent = list(range(len(names)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    starts = np.flatnonzero(np.r_[True, pairs[1:, 0] != pairs[:-1, 0]])
    sizes = np.diff(np.r_[starts, len(pairs)])
    shared = (sizes > 1) & (sizes <= COMMON)
    for start, size in zip(starts[shared].tolist(), sizes[shared].tolist(), strict=True):
        first, *others = pairs[start : start + size, 1].tolist()
        for other in others:
            parent[root(other)] = root(first)
    groups: dict[int, list[str]] = {}
    for i, name in enumerate(names):
        groups.setdefault(root(i), []).append(name)
    return sorted(group for group in groups.values() if len(group) > 1)


class EvaluationIndex:
    """Evaluation items, indexed by their runs of 13 words."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = tuple(samples)
        hashes = [
            np.unique(np.concatenate([_hashes(each), *map(_whole, _short_wordings(each))])) for each in self.samples
        ]
        owner = np.repeat(np.arange(len(hashes)), [len(h) for h in hashes])
        flat = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        order = np.argsort(flat, kind="stable")
        unique, first, counts = np.unique(flat[order], return_index=True, return_counts=True)
        rare = counts <= COMMON
        self._hashes, self._owner = unique[rare], owner[order][first][rare]

    def find(self, samples: Iterable[Sample]) -> list[Overlap]:
        """Find the samples that share 13 words with an evaluation item, or repeat a shorter one from end to end."""
        return [overlap for sample in samples if (overlap := self._first(sample))]

    def _first(self, sample: Sample) -> Overlap | None:
        """Find the first run of words that a sample shares with an item, or an item that it repeats."""
        # All that the sample holds, whatever its domain: nobody says whether a user's text is code.
        text = "\n".join({sample.text: None} | {text: None for text, _ in parts(sample)})
        for n in (WORDS, CODE_WORDS):
            if overlap := self._match(sample, text, run_hashes(text, n), n):
                return overlap
        for wording in _short_wordings(sample):
            if overlap := self._match(sample, wording, _whole(wording), 2 * CODE_WORDS):
                return overlap
        return None

    def _match(self, sample: Sample, text: str, hashes: np.ndarray, n: int) -> Overlap | None:
        """Look up the hashes of a text's runs of ``n`` words."""
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        hits = np.flatnonzero(self._hashes[at] == hashes) if len(self._hashes) else at
        if not len(hits):
            return None
        start = int(hits[0])
        item = self.samples[self._owner[at[start]]]
        return Overlap(sample.id, item.id, item.source, " ".join(words(text)[start : start + n]))


def find_overlaps(calibration: Iterable[Sample], evaluation: Sequence[Sample]) -> list[Overlap]:
    """Find the calibration samples that share 13 consecutive words with an evaluation item."""
    return EvaluationIndex(evaluation).find(calibration)


def check_no_overlap(
    calibration: Sequence[Sample], evaluation: Sequence[Sample] | EvaluationIndex, *, what: str
) -> None:
    """Raise if calibration samples repeat evaluation items."""
    index = evaluation if isinstance(evaluation, EvaluationIndex) else EvaluationIndex(evaluation)
    if found := index.find(calibration):
        first = found[0]
        raise DataError(
            f"{what}: {len(found):,} of {len(calibration):,} samples share {WORDS} words in a row, or all of a shorter "
            f"text, with evaluation items; the first is {first.calibration_id} with {first.evaluation_source} item "
            f"{first.evaluation_id}: {first.text!r}. Calibrating on test data flatters the scores: remove "
            "these samples, or allow it on purpose with overlap='drop' or overlap='allow'"
        )
