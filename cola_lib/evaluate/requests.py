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
    """A token sequence whose last tokens are scored given all before them.

    Parameters
    ----------
    ids : tuple of int
        Context and continuation. The decoder is fed all but the last.
    n_scored : int
        How many tokens at the end are the continuation.

    Examples
    --------
    >>> from cola_lib.evaluate.requests import Request
    >>> Request(ids=(5, 6, 7, 8), n_scored=2).fed
    (5, 6, 7)
    """

    ids: tuple[int, ...]
    n_scored: int

    @property
    def fed(self) -> tuple[int, ...]:
        """Tokens that must be run: the last one is only ever predicted."""
        return self.ids[:-1]


@dataclass(frozen=True, slots=True)
class Row:
    """Requests that share their first tokens, laid out as one sequence.

    Parameters
    ----------
    shared : tuple of int
        Tokens that every request of the row begins with.
    branches : tuple of tuple of int
        For each request, the fed tokens that follow the shared ones; may be empty.
    requests : tuple of Request
        Aligned with ``branches``.

    Examples
    --------
    >>> from cola_lib.evaluate import rows_of
    >>> from cola_lib.evaluate.requests import Request
    >>> (row,) = rows_of([Request((1, 2, 3, 4), 1), Request((1, 2, 3, 5, 6), 2)])
    >>> row.shared, row.n_tokens
    ((1, 2, 3), 4)
    """

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
        """Where a request's continuation is predicted.

        Parameters
        ----------
        request : int
            Index into ``requests``.

        Returns
        -------
        list of (int, int)
            Index into the row of the token whose hidden state predicts, and the token id predicted.
        """
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
    """Move white space at the end of the context to the front of the continuation.

    Tokenizers attach a blank to the word after it, so a context that ends in one would be cut inside
    a token. This is the rule of lm-eval's ``_encode_pair``.

    Parameters
    ----------
    context, continuation : str
        The text as the task words it.

    Returns
    -------
    context, continuation : str
        Same text, cut before the white space.
    """
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def encode_request(tokenizer: PreTrainedTokenizerBase, context: str, continuation: str) -> Request:
    """Tokenize a context with its continuation as one text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Any; a BOS token is put in front if the tokenizer does so by itself.
    context : str
        May be empty: then the first token is scored given BOS (or EOS, if there is no BOS).
    continuation : str
        Must not be empty.

    Returns
    -------
    Request
        The context's tokens, then what remains of the whole text's after as many as those: lm-eval's rule.

    Raises
    ------
    DataError
        If no token is left to be scored.
    SpecError
        If the context is empty and the tokenizer has neither BOS nor EOS.

    Examples
    --------
    >>> from cola_lib.evaluate.requests import encode_request
    >>> from cola_lib.models import byte_tokenizer
    >>> request = encode_request(byte_tokenizer(), "Still waters", " run")
    >>> len(request.ids), request.n_scored
    (16, 4)
    """
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
    """Lay requests out as rows, each shared token once.

    Parameters
    ----------
    requests : sequence of Request
        Those of one item, without duplicates.
    share : bool
        False gives one row per request.

    Returns
    -------
    list of Row
        One row when they are shared. Requests that have no first token in common stay apart.

    Examples
    --------
    >>> from cola_lib.evaluate import rows_of
    >>> from cola_lib.evaluate.requests import Request
    >>> two = [Request((1, 2, 3, 4), 1), Request((1, 2, 3, 5), 1)]
    >>> len(rows_of(two)), len(rows_of(two, share=False))
    (1, 2)
    """
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
