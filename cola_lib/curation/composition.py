"""From samples to candidate rows: what of a sample a row holds, in which words, and where it is cut.

This is COLA's second stage as its paper describes it: a least length, a cut at the end of a paragraph, and problems
worded as question, reasoning and answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cola_lib.calibration import FORMATS, formats_of
from cola_lib.calibration.tokenization import encode
from cola_lib.data import Sample
from cola_lib.errors import SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOUNDARIES = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"(?<=[.!?。！？])\s"))  # noqa: RUF001
"""Where a text may be cut, best first: after a paragraph, a line, a sentence."""

_BATCH = 64
"""Samples tokenized at a time."""


@dataclass(frozen=True)
class Composition:
    """How samples become candidate rows.

    Notes
    -----
    The released code of COLA looks for questions, reasoning and answers by regular expression in any text. Sources here
    have them as fields.
    """

    format: Literal["text", "reasoning"] = "text"
    min_share: float = 0.0
    boundaries: bool = False
    first_only: bool = False

    def __post_init__(self) -> None:
        if self.format not in ("text", "reasoning"):
            raise SpecError(f"the format of a composition is 'text' or 'reasoning', and is {self.format!r}")
        if not 0 <= self.min_share <= 1:
            raise SpecError(f"min_share must be from 0 to 1, and is {self.min_share:g}")


PLAIN = Composition()
"""Texts as they are, cut after ``seq_len`` tokens."""

COLA_COMPOSITION = Composition(format="reasoning", min_share=1 / 8, boundaries=True)
"""COLA's second stage."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row that a strategy may choose."""

    ids: list[int]
    text: str
    sample: Sample


def candidates(
    samples: Iterable[Sample], tokenizer: PreTrainedTokenizerBase, *, seq_len: int, composition: Composition = PLAIN
) -> Iterator[Candidate]:
    """Cut samples into candidate rows, a few samples at a time."""
    if seq_len < 2:
        raise SpecError(f"seq_len must be at least 2, and is {seq_len}")
    if not tokenizer.is_fast:
        raise SpecError(
            "candidates are cut by the places of tokens in the text, which only a fast tokenizer tells: load this one "
            "with use_fast=True"
        )
    least = composition.min_share * seq_len
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == _BATCH:
            yield from _cut(batch, tokenizer, seq_len, composition, least)
            batch = []
    yield from _cut(batch, tokenizer, seq_len, composition, least)


def worded(sample: Sample, composition: Composition, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """Word a sample as a composition asks."""
    wanted = "question_reasoning" if composition.format == "reasoning" else "text"
    return FORMATS[wanted if wanted in formats_of(sample) else "text"](sample, tokenizer)


def _cut(
    batch: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, seq_len: int, composition: Composition, least: float
) -> Iterator[Candidate]:
    if not batch:
        return
    texts = [worded(sample, composition, tokenizer) for sample in batch]
    # A chat has no reasoning of its own, so whatever the composition, its template words it.
    encoded = encode(texts, tokenizer, templated=[bool(sample.messages) for sample in batch], offsets=True)
    for sample, text, (ids, offsets) in zip(batch, texts, encoded, strict=True):
        start = 0
        while start < len(ids):
            stop = min(start + seq_len, len(ids))
            if composition.boundaries and stop < len(ids):
                stop = _boundary(text, offsets, start, stop)
            if stop - start >= max(least, 1):
                yield Candidate(ids[start:stop], text[offsets[start][0] : offsets[stop - 1][1]], sample)
            start = stop
            if composition.first_only:
                break


def _boundary(text: str, offsets: Sequence[tuple[int, int]], start: int, stop: int) -> int:
    """Position of the token after the last boundary in the second half of a row, or ``stop`` if there is none."""
    half = (start + stop) // 2
    low, high = offsets[half][0], offsets[stop - 1][1]
    for boundary in BOUNDARIES:
        ends = [match.end() for match in boundary.finditer(text, low, high)]
        if ends:
            return next((i for i in range(half, stop) if offsets[i][0] >= ends[-1]), stop)
    return stop
