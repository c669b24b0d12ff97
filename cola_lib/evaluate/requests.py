"""From a context and its continuations to token rows that a decoder runs once.

Choices of one item share most of their tokens. A row therefore holds the shared tokens once and each
choice's own tokens after them as a *branch*: a branch sees the shared tokens and itself, never another
branch, and takes up positions right after the shared ones. The decoder computes the same numbers
as for one sequence per choice, on a half to a third of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cola_lib.errors import DataError, SpecError


@dataclass(frozen=True, slots=True)
class Request:
    """A token sequence whose last tokens are scored given all before them."""

    ids: tuple[int, ...]
    n_scored: int

    @property
    def fed(self) -> tuple[int, ...]:
        """Tokens that must be run: the last one is only ever predicted."""
        return self.ids[:-1]


@dataclass(frozen=True, slots=True)
class Row:
    """Requests that share their first tokens, laid out as one sequence."""

    shared: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    requests: tuple[Request, ...]

    @property
    def n_tokens(self) -> int:
        """Tokens that the decoder runs for this row."""
        return len(self.shared) + sum(map(len, self.branches))

    @property
    def n_positions(self) -> int:
        """Length of the longest request as the decoder sees it."""
        return len(self.shared) + max(map(len, self.branches))

    def scored(self, request: int) -> list[tuple[int, int]]:
        """Where a request's continuation is predicted."""
        ids, n_scored = self.requests[request].ids, self.requests[request].n_scored
        offset = sum(map(len, self.branches[:request]))  # tokens of other branches in between

        def index(position: int) -> int:
            return position if position < len(self.shared) else position + offset

        return [(index(p), ids[p + 1]) for p in range(len(ids) - 1 - n_scored, len(ids) - 1)]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _start(tokenizer: PreTrainedTokenizerBase, *, empty_context: bool) -> list[int]:
    """Tokens before the text: what the tokenizer itself begins with, and never nothing before nothing."""
    usual = tokenizer("a", verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is not None and usual[:1] == [bos]:
        return [bos]
    if not empty_context:
        return []
    first = bos if bos is not None else tokenizer.eos_token_id
    if first is None:
        raise SpecError(
            f"{type(tokenizer).__name__} has neither a BOS nor an EOS token, so the first token of a text "
            "cannot be scored; set tokenizer.bos_token"
        )
    return [first]


def split_spaces(context: str, continuation: str) -> tuple[str, str]:
    """Move white space at the end of the context to the front of the continuation."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def encode_request(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Request:
    """Tokenize a context with its continuation as one text."""
    context, continuation = split_spaces(context, continuation)
    start = _start(tokenizer, empty_context=not context)
    before = _encode(tokenizer, context) if context else []
    after = _encode(tokenizer, context + continuation)[len(before) :]
    if not after:
        raise DataError(
            f"continuation {continuation!r} adds no token to the {len(before)} tokens of its context "
            f"(which ends {context[-40:]!r}); give it text of its own"
        )
    return Request((*start, *before, *after), len(after))


def rows_of(requests: Sequence[Request], *, share: bool = True) -> list[Row]:
    """Lay requests out as rows, each shared token once."""
    if not share or len(requests) == 1:
        return [Row(r.fed, ((),), (r,)) for r in requests]
    fed = [request.fed for request in requests]
    n = _common(fed)
    if n == 0:
        return rows_of(requests, share=False)
    return [Row(fed[0][:n], tuple(ids[n:] for ids in fed), tuple(requests))]


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens at the start that all sequences have in common."""
    for n, tokens in enumerate(zip(*sequences, strict=False)):
        if len(set(tokens)) > 1:
            return n
    return min(map(len, sequences))
