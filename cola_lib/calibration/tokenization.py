"""From samples to rows of tokens: which samples a draw takes, and three ways to lay them out.

``pack``
    Documents end to end, cut into rows of exactly ``seq_len``: every position holds a real token. So
    that one long article does not fill a small set, a document gives one segment of ``segment_len``
    tokens (by default ``seq_len``), then the next document does, and only when all have given one
    do they give their second. The end-of-sequence token closes each segment.
``truncate``
    One document a row: a window of ``seq_len`` tokens at a random place in a document that has at
    least as many. This is what the code of GPTQ (IST-DASLab/gptq, ``datautils.py``, ``get_c4``),
    SparseGPT and Wanda does for C4.
``pad``
    One document a row, cut after ``seq_len`` tokens or padded on the right.

All three go through the samples in an order that depends on their ids and the seed alone, so the rows of a
smaller set are the first rows of a larger one. Row i of ``pad`` is therefore the same sample in every format of
:mod:`cola_lib.calibration.formats`; ``pack`` and ``truncate`` depend on lengths, and so on the format.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch

from cola_lib.calibration.formats import Wording
from cola_lib.data import Sample
from cola_lib.errors import DataError, SpecError, UnknownNameError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Layout = Literal["pack", "truncate", "pad"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_BATCH = 32
"""Samples tokenized at a time: enough to be fast, few enough that little is done in vain."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a calibration set."""

    ids: list[int]
    sample_ids: tuple[str, ...]
    sources: tuple[str, ...]


def generator(*parts: int | str) -> torch.Generator:
    """Make a random generator from a seed and what it is for, independent of any other use."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def draw_samples(samples: Sequence[Sample], *, seed: int, draw: int = 0, n_draws: int = 1) -> list[Sample]:
    """Take one of several disjoint draws from a pool, in random order."""
    if not 0 <= draw < n_draws:
        raise SpecError(f"draw {draw} is not one of 0 to {n_draws - 1}: n_draws is {n_draws}")
    pool = sorted(samples, key=lambda sample: sample.id)
    order = torch.randperm(len(pool), generator=generator("draw", seed)).tolist()
    return [pool[i] for i in order[draw::n_draws]]


def encode(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, templated: Sequence[bool], offsets: bool = False
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Tokenize texts, each with one beginning-of-sequence token if the model has texts begin with it."""
    bos = tokenizer.bos_token_id
    found: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
    for by_template in dict.fromkeys(templated):
        at = [i for i, each in enumerate(templated) if each == by_template]
        options = {"add_special_tokens": False} if by_template else {}
        # verbose=False: a document longer than the model's context is cut later, so no warning.
        batch = tokenizer(
            [texts[i] for i in at],
            return_attention_mask=False,
            verbose=False,
            **options,
            **({"return_offsets_mapping": True} if offsets else {}),
        )
        places = batch["offset_mapping"] if offsets else [[]] * len(at)
        for i, ids, where in zip(at, batch["input_ids"], places, strict=True):
            twice = bos is not None and ids[:2] == [bos, bos]
            found[i] = list(ids[twice:]), list(where[twice:])
    return [found[i] for i in range(len(texts))]


def tokenize(
    samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, wording: Wording | None = None
) -> Iterator[tuple[Sample, list[int]]]:
    """Tokenize samples a few at a time, as far as they are asked for."""
    wording = wording or Wording("text", samples, tokenizer)
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        texts = [wording.text(sample) for sample in batch]
        encoded = encode(texts, tokenizer, templated=[wording.templated(sample) for sample in batch])
        for sample, (ids, _) in zip(batch, encoded, strict=True):
            if not ids:
                raise DataError(f"source {sample.source!r}: sample {sample.id} has no tokens; remove it")
            yield sample, ids


def segments(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    segment_len: int,
    wording: Wording | None = None,
) -> Iterator[tuple[Sample, list[int]]]:
    """Yield the first segment of every document, then the second of those that have one, and so on."""
    eos = tokenizer.eos_token_id
    body = max(segment_len - 1, 1)
    current: Iterable[tuple[Sample, list[int]]] = tokenize(samples, tokenizer, wording)
    while True:
        longer = []
        for sample, ids in current:
            segment, rest = ids[:body], ids[body:]
            yield sample, segment if segment[-1] == eos else [*segment, eos]
            if rest and rest != [eos]:
                longer.append((sample, rest))
        if not longer:
            return
        current = longer


def pack(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_samples: int,
    seq_len: int,
    segment_len: int,
    rng: torch.Generator,
    wording: Wording | None = None,
) -> list[Row]:
    """Lay segments of documents end to end and cut rows of ``seq_len`` tokens."""
    if tokenizer.eos_token_id is None:
        raise SpecError(
            "layout 'pack' puts the end-of-sequence token between documents, and this tokenizer has none: set "
            "tokenizer.eos_token, or take layout 'truncate' or 'pad'"
        )
    ids: list[int] = []
    owners: list[Sample] = []
    for sample, segment in segments(samples, tokenizer, segment_len=segment_len, wording=wording):
        ids += segment
        owners += [sample] * len(segment)
        if len(ids) >= n_samples * seq_len:
            break
    else:
        raise DataError(
            f"{len(samples):,} samples have {len(ids):,} tokens, and {n_samples:,} rows of {seq_len:,} need "
            f"{n_samples * seq_len:,}: ask for at most {len(ids) // seq_len:,} rows, for shorter ones, or add a source"
        )
    cuts = range(0, n_samples * seq_len, seq_len)
    return [_row(ids[i : i + seq_len], owners[i : i + seq_len]) for i in cuts]


def truncate(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_samples: int,
    seq_len: int,
    segment_len: int,
    rng: torch.Generator,
    wording: Wording | None = None,
) -> list[Row]:
    """Cut one window of ``seq_len`` tokens out of each long enough document."""
    rows: list[Row] = []
    longest = n_seen = 0
    for sample, tokens in tokenize(samples, tokenizer, wording):
        if len(rows) == n_samples:
            break
        n_seen += 1
        longest = max(longest, len(tokens))
        if len(tokens) >= seq_len:
            start = int(torch.randint(len(tokens) - seq_len + 1, (1,), generator=rng))
            rows.append(_row(tokens[start : start + seq_len], [sample]))
    if len(rows) < n_samples:
        raise DataError(
            f"{len(rows):,} of {n_seen:,} samples have the {seq_len:,} tokens of seq_len, and {n_samples:,} were asked "
            f"for; the longest has {longest:,}. Ask for fewer or shorter rows, or take layout 'pack'"
        )
    return rows


def pad(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_samples: int,
    seq_len: int,
    segment_len: int,
    rng: torch.Generator,
    wording: Wording | None = None,
) -> list[Row]:
    """Put the first ``seq_len`` tokens of each document into a row of its own."""
    if len(samples) < n_samples:
        raise DataError(f"{len(samples):,} samples are there, and {n_samples:,} were asked for: ask for fewer")
    tokenized = list(tokenize(samples[:n_samples], tokenizer, wording))
    form = "text" if wording is None else wording.format
    # A solved item loses its answer, and a chat its last turns; web text no part.
    cut = [len(tokens) for one, tokens in tokenized if len(tokens) > seq_len and (form != "text" or one.messages)]
    if cut:
        log.warning(
            "format %r: %d of %d samples are cut and lose their end: they have more than the %d tokens of seq_len, the "
            "longest %d",
            form,
            len(cut),
            n_samples,
            seq_len,
            max(cut),
        )
    return [_row(tokens[:seq_len], [sample]) for sample, tokens in tokenized]


def _row(ids: list[int], owners: Sequence[Sample]) -> Row:
    return Row(ids, tuple(dict.fromkeys(s.id for s in owners)), tuple(dict.fromkeys(s.source for s in owners)))


_LAYOUTS: dict[str, Callable[..., list[Row]]] = {"pack": pack, "truncate": truncate, "pad": pad}


def lay_out(
    layout: Layout,
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_samples: int,
    seq_len: int,
    rng: torch.Generator,
    segment_len: int | None = None,
    wording: Wording | None = None,
) -> list[Row]:
    """Turn samples into rows."""
    if layout not in _LAYOUTS:
        raise UnknownNameError("layout", layout, LAYOUTS)
    if n_samples < 1 or seq_len < 1:
        raise SpecError(f"n_samples and seq_len must be at least 1, and are {n_samples} and {seq_len}")
    segment_len = seq_len if segment_len is None else segment_len
    if segment_len < 2 and layout == "pack" and seq_len > 1:
        raise SpecError(f"segment_len must be at least 2, a token and the end of its segment, and is {segment_len}")
    return _LAYOUTS[layout](
        samples,
        tokenizer,
        n_samples=n_samples,
        seq_len=seq_len,
        segment_len=segment_len,
        rng=rng,
        wording=wording,
    )
