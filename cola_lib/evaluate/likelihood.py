"""Negative log-likelihood of continuations: one decoder pass, logits only where they are scored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from cola_lib.arithmetic import fast_products
from cola_lib.errors import DataError, NumericsError, SpecError
from cola_lib.evaluate.requests import Request, Row, rows_of, split_spaces
from cola_lib.evaluate.scores import with_derived

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cola_lib.evaluate.suite import EvalItem, Suite
    from cola_lib.models import LanguageModel

BATCH_TOKENS = {"cpu": 512, "cuda": 32768}
"""Tokens per batch. On a CPU a few hundred already keep the cores busy, and more only costs cache."""

LOGIT_BYTES = {"cpu": 2**26, "cuda": 2**30}
"""Bound on the float32 logits that exist at one time, in bytes."""

JS_STRIDE = 8
"""Every so many predicted tokens of an item's gold continuation, its first included, the whole distribution is compared
with the dense model's: it takes both models' logits, and neighbouring tokens tell much the same."""

N_BINS = 10
"""Equal bins of the probability given to the most likely token, for the calibration error."""

LAUNCH_SHARE = 1 / 16
"""A batch's fixed cost, as a share of the tokens of a full batch; weighs padding against more batches."""


@dataclass(frozen=True)
class Batch:
    """Rows that run together."""

    input_ids: Tensor
    positions: Tensor
    branch: Tensor
    where: Tensor
    target: Tensor
    requests: tuple[Request, ...]
    branched: bool


@dataclass(frozen=True)
class Reference:
    """What the untouched model thinks before the tokens at which distributions are compared."""

    hidden: dict[Request, Tensor]
    head: Tensor


@contextmanager
def _computing_in(model: PreTrainedModel, dtype: torch.dtype | None) -> Iterator[None]:
    """Have a model's parameters in another data type while it is evaluated."""
    if dtype is None or dtype == model.dtype:
        yield
        return
    before = [(parameter, parameter.data) for parameter in model.parameters()]
    try:
        for parameter, data in before:
            parameter.data = data.to(dtype)
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


@fast_products()
def reference_of(
    lm: LanguageModel, suite: Suite, *, dtype: torch.dtype | None = None, batch_tokens: int | None = None
) -> Reference:
    """Keep what :func:`evaluate` needs to compare another model's distributions with this one's."""
    gold = [[item.requests(lm.tokenizer)[item.gold]] for item in suite.items]
    rows = list(_rows(gold, suite.items, lm.model))
    budget = batch_tokens or BATCH_TOKENS.get(lm.device.type, BATCH_TOKENS["cuda"])
    hidden: dict[Request, Tensor] = {}
    with _computing_in(lm.model, dtype), torch.inference_mode():
        for batch_rows in _batches(rows, budget):
            batch = _collate(batch_rows, lm.device)
            states = _decode(lm.model, batch)[batch.where].split([r.n_scored for r in batch.requests])
            hidden |= {r: own[::JS_STRIDE].clone() for r, own in zip(batch.requests, states, strict=True)}
        return Reference(hidden, lm.model.get_output_embeddings().weight.data)


@fast_products()
def evaluate(
    lm: LanguageModel,
    suite: Suite,
    *,
    reference: Reference | None = None,
    dtype: torch.dtype | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Score every item of a suite.

    Parameters
    ----------
    lm : LanguageModel
        The model; it is left as it is.
    suite : Suite
        The items.
    reference : Reference, optional
        Of the untouched model on this suite, from :func:`reference_of`.
    dtype : torch.dtype, optional
        Data type to compute in. Default: that of the model's parameters. ``torch.bfloat16`` is for screening and for
        large models: it is faster where the processor has bfloat16 products, and moves scores in the third digit.
    batch_tokens : int, optional
        Tokens that run together, padding included; default by device, :data:`BATCH_TOKENS`. It changes
        time and memory, and the numbers by rounding only (below 1e-4).
    progress : bool
        Show a bar, counted in tokens.

    Returns
    -------
    pandas.DataFrame
        One row per item, in the suite's order:

        - ``item``, ``capability``, ``task`` : str
        - ``nll`` : float, negative log-likelihood of the gold continuation in nats
        - ``n_bytes``, ``n_tokens`` : int, of the gold continuation (UTF-8), with the white space that was
          moved to it from the context's end
        - ``bits_per_byte`` : float, ``nll / log(2) / n_bytes``
        - ``correct`` : nullable boolean, whether the gold choice has the lowest nll per byte; missing
          where there is no choice
        - ``gold`` : int, index of the gold choice
        - ``choice_nll``, ``choice_bytes`` : tuple of float and of int, one entry per choice
        - ``bin_tokens``, ``bin_hits`` : tuple of int, and ``bin_confidence`` : tuple of float, of length
          :data:`N_BINS`: for the gold continuation's tokens, by the probability of the most likely token, how
          many there are, how many were that token, and the sum of those probabilities
        - ``js_divergence`` : float, and ``js_tokens`` : int, with a reference only: Jensen–Shannon divergence in bits
          (0 to 1) between this model's next-token distribution and the reference's, mean over every
          :data:`JS_STRIDE`-th token of the gold continuation, and how many these are

        Likelihoods are rounded to float32, so that what was computed and what is read back from any
        store are the same numbers.

    Raises
    ------
    NumericsError
        If a logit that matters is NaN or infinite.
    DataError
        If the suite is empty, or an item is longer than the model's context.
    SpecError
        If the model's logits are not its head's output on the decoder's hidden states, or the reference is of
        another suite or a model with another head.

    Notes
    -----
    The logits of the context are never computed, and a context that several choices share is run once.
    Both leave the numbers as they are.

    References
    ----------
    Divergence from the dense model shows damage that perplexity hides: arXiv 2409.11233. Calibration:
    Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.

    Examples
    --------
    >>> from cola_lib.evaluate import EvalItem, Suite, evaluate
    >>> from cola_lib.models import tiny_model
    >>> suite = Suite((EvalItem("1", "commonsense", "riddles", "Still waters run", (" deep.", " fast.")),))
    >>> scores = evaluate(tiny_model(), suite, progress=False)
    >>> scores[["item", "n_bytes", "gold"]].to_dict("records")
    [{'item': '1', 'n_bytes': 6, 'gold': 0}]
    """
    with _computing_in(lm.model, dtype):
        return _evaluate(lm, suite, reference, batch_tokens, progress)


def _evaluate(
    lm: LanguageModel, suite: Suite, reference: Reference | None, batch_tokens: int | None, progress: bool
) -> pd.DataFrame:
    """Score every item with the parameters as they are."""
    model, tokenizer = lm.model, lm.tokenizer
    kind = lm.device.type
    head = Head(model, LOGIT_BYTES.get(kind, LOGIT_BYTES["cuda"]))
    budget = batch_tokens or BATCH_TOKENS.get(kind, BATCH_TOKENS["cuda"])

    if not suite.items:
        raise DataError(f"suite {suite.name!r} has no items; build one with capability_suite")
    asked = [item.requests(tokenizer) for item in suite.items]
    gold = {requests[item.gold] for item, requests in zip(suite.items, asked, strict=True)}
    _check_reference(reference, gold, head)
    rows = list(_rows(asked, suite.items, model))
    total = sum(row.n_tokens for row in rows)
    measured: dict[Request, _Measured] = {}
    with torch.inference_mode(), tqdm(total=total, unit="tok", disable=not progress, leave=False) as bar:
        bar.set_description("evaluate")
        _check_head(model, head, rows[0].shared[:8])
        for batch_rows in _batches(rows, budget):
            batch = _collate(batch_rows, lm.device)
            measured |= _measure(head, _decode(model, batch), batch, gold, reference)
            bar.update(sum(row.n_tokens for row in batch_rows))
    scores = [_score(item, requests, measured, lm.name) for item, requests in zip(suite.items, asked, strict=True)]
    return with_derived(pd.DataFrame(scores))


def _check_reference(reference: Reference | None, gold: set[Request], head: Head) -> None:
    if reference is None:
        return
    if not gold <= reference.hidden.keys():
        raise SpecError("the reference is of another suite; make it with reference_of on this one")
    if not torch.equal(reference.head, head.weight):
        raise SpecError(
            "the reference is of a model with another head or dtype: distributions of the two do not compare"
        )


def _rows(asked: Sequence[Sequence[Request]], items: Sequence[EvalItem], model: PreTrainedModel) -> Iterator[Row]:
    """Lay out every distinct request once."""
    longest = getattr(model.config, "max_position_embeddings", None)
    # A branched row brings its own mask, which knows no sliding window, and which only these kernels take.
    own_mask = model.config._attn_implementation in ("sdpa", "eager")
    window = getattr(model.config, "sliding_window", None) or float("inf")
    seen: set[Request] = set()
    for item, requests in zip(items, asked, strict=True):
        new = [request for request in dict.fromkeys(requests) if request not in seen]
        seen.update(new)
        if not new:
            continue
        length = max(len(request.fed) for request in new)
        if longest is not None and length > longest:
            raise DataError(
                f"item {item.id} has {length} tokens, and the model's context holds {longest}; "
                "build the suite with a smaller max_length"
            )
        yield from rows_of(new, share=own_mask and length <= window)


def _batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Group rows of similar length; branched and plain rows stay apart because their masks differ."""
    for branched in (False, True):
        kind = sorted((r for r in rows if (len(r.branches) > 1) == branched), key=lambda r: -r.n_tokens)
        for start, stop in plan_batches([row.n_tokens for row in kind], batch_tokens):
            yield kind[start:stop]


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[tuple[int, int]]:
    """Cut a descending list of lengths into batches at the least cost.

    Notes
    -----
    The cost of a batch is its padded size plus a fixed share of a full one (:data:`LAUNCH_SHARE`), so a
    batch ends where one more row would cost more padding than a batch of its own. Exact, by dynamic
    programming.
    """
    length = np.asarray(lengths, dtype=np.int64)
    if (np.diff(length) > 0).any():
        raise ValueError("lengths must not increase")
    fixed = max(1.0, batch_tokens * LAUNCH_SHARE)
    best, cut = np.zeros(len(length) + 1), np.zeros(len(length) + 1, dtype=np.int64)
    first = 0  # first row that may share a batch with the rows up to `stop`
    for stop in range(1, len(length) + 1):
        while first < stop - 1 and (stop - first) * length[first] > batch_tokens:
            first += 1
        starts = np.arange(first, stop)
        padded = (stop - starts) * length[starts]
        cost = best[starts] + padded + fixed
        cost[(padded > batch_tokens) & (starts < stop - 1)] = np.inf
        choice = int(cost.argmin())
        best[stop], cut[stop] = cost[choice], starts[choice]
    batches, stop = [], len(length)
    while stop:
        batches.append((int(cut[stop]), stop))
        stop = int(cut[stop])
    return batches[::-1]


def _collate(rows: Sequence[Row], device: torch.device) -> Batch:
    """Right-pad rows to one width."""
    width = max(row.n_tokens for row in rows)
    ids = np.zeros((len(rows), width), dtype=np.int64)
    positions, branch = np.zeros_like(ids), np.full_like(ids, -2)
    where, target = [], []
    for i, row in enumerate(rows):
        n_shared = len(row.shared)
        parts = [(-1, row.shared, 0), *((b, tokens, n_shared) for b, tokens in enumerate(row.branches))]
        at = 0
        for b, tokens, first in parts:
            span = slice(at, at + len(tokens))
            ids[i, span], branch[i, span] = tokens, b
            positions[i, span] = np.arange(first, first + len(tokens))
            at += len(tokens)
        for r in range(len(row.requests)):
            for index, token in row.scored(r):
                where.append(i * width + index)
                target.append(token)

    def tensor(values: np.ndarray | list[int]) -> Tensor:
        return torch.as_tensor(values, dtype=torch.int64).to(device)

    return Batch(
        tensor(ids),
        tensor(positions),
        tensor(branch),
        tensor(where),
        tensor(target),
        requests=tuple(request for row in rows for request in row.requests),
        branched=any(len(row.branches) > 1 for row in rows),
    )


def _attention(batch: Batch, dtype: torch.dtype) -> Tensor:
    """Build the attention mask: which tokens a token may look at."""
    if not batch.branched:
        return (batch.branch != -2).long()
    key, query = batch.branch[:, None, :], batch.branch[:, :, None]
    width = batch.branch.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=batch.branch.device).tril()
    allowed = causal & ((key == -1) | (key == query))  # (n_rows, width, width)
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _decode(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Run the decoder; returns hidden states of shape (n_rows * width, hidden)."""
    hidden = model.get_decoder()(
        input_ids=batch.input_ids,
        position_ids=batch.positions,
        attention_mask=_attention(batch, model.dtype),
        use_cache=False,
    ).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])


class Head:
    """The language-model head, applied to chosen hidden states only."""

    def __init__(self, model: PreTrainedModel, logit_bytes: int) -> None:
        self._head: nn.Module = model.get_output_embeddings()
        self._cap: float | None = getattr(model.config, "final_logit_softcapping", None)  # Gemma 2
        self._divisor: float | None = getattr(model.config, "logits_scaling", None)  # Granite
        self._rows = max(1, logit_bytes // (4 * self._head.weight.shape[0]))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32, of shape (n, vocabulary)."""
        logits = self._head(hidden).float()
        if self._divisor:
            logits = logits / self._divisor
        return logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap

    @property
    def weight(self) -> Tensor:
        """Weight of shape (vocabulary, d_model)."""
        return self._head.get_parameter("weight")

    def predict(self, hidden: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict tokens from hidden states."""
        parts = []
        for states, tokens in zip(hidden.split(self._rows), target.split(self._rows), strict=True):
            logits = self.logits(states)
            total = logits.logsumexp(-1)
            best, token = logits.max(-1)
            nll = total - logits.gather(-1, tokens[:, None])[:, 0]
            parts.append((nll, (best - total).exp(), token == tokens))
        nll, confidence, hit = map(torch.cat, zip(*parts, strict=True))
        return nll, confidence, hit

    def js_divergence(self, hidden: Tensor, other: Tensor) -> Tensor:
        """Jensen–Shannon divergence between next-token distributions, in bits, of shape (n,)."""
        parts = []
        for one, two in zip(hidden.split(self._rows), other.split(self._rows), strict=True):
            log_p, log_q = self.logits(one).log_softmax(-1), self.logits(two).log_softmax(-1)
            p, q = log_p.exp(), log_q.exp()
            middle = (p + q).div_(2)
            # Entropies of the middle and of both; a probability that underflows to 0 adds nothing to any of them.
            mixed = torch.linalg.vecdot(middle, middle.clamp(min=torch.finfo(torch.float32).tiny).log())
            own = torch.linalg.vecdot(p, log_p) + torch.linalg.vecdot(q, log_q)
            parts.append((own / 2 - mixed).clamp(min=0) / math.log(2))
        return torch.cat(parts)


def _check_head(model: PreTrainedModel, head: Head, ids: Sequence[int]) -> None:
    """Compare with the model's own logits on a few tokens: model types treat logits in ways of their own."""
    input_ids = torch.tensor([ids], device=model.device)
    own = model(input_ids=input_ids, use_cache=False).logits[0].float()
    ours = head.logits(model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state[0])
    if not own.isfinite().all():
        return  # reported where it is known which item it hits
    difference, scale = float((own - ours).abs().max()), float(own.abs().max())
    if difference > max(1e-4, 4 * torch.finfo(model.dtype).eps) * scale:
        raise SpecError(
            f"model type {model.config.model_type!r} does something to its logits after the head: they differ "
            f"by up to {difference:.3g}, with logits up to {scale:.3g}; teach it to Head in likelihood.py"
        )


@dataclass(frozen=True)
class _Measured:
    """What a model makes of one request: the log-likelihood, and for gold continuations the rest."""

    nll: float
    calibration: dict[str, tuple[float, ...]] | None = None
    divergence: dict[str, float] | None = None


def _measure(
    head: Head, hidden: Tensor, batch: Batch, gold: set[Request], reference: Reference | None
) -> dict[Request, _Measured]:
    """Measure every request of a batch."""
    states = hidden[batch.where]
    sizes = [request.n_scored for request in batch.requests]
    nll, confidence, hit = (t.cpu().split(sizes) for t in head.predict(states, batch.target))
    divergence = _divergence(head, states.split(sizes), batch.requests, gold, reference) if reference else {}
    measured = {}
    for request, own, sure, right in zip(batch.requests, nll, confidence, hit, strict=True):
        # In double precision, so that the order of summation does not show.
        total = float(own.double().sum())
        bins = _binned(sure, right) if request in gold else None
        measured[request] = _Measured(total, bins, divergence.get(request))
    return measured


def _divergence(
    head: Head, states: Sequence[Tensor], requests: Sequence[Request], gold: set[Request], reference: Reference
) -> dict[Request, dict[str, float]]:
    """Compare distributions at some tokens of the gold continuations."""
    compared = [(request, own[::JS_STRIDE]) for request, own in zip(requests, states, strict=True) if request in gold]
    if not compared:
        return {}
    before = torch.cat([reference.hidden[request] for request, _ in compared]).to(states[0].device)
    found = head.js_divergence(torch.cat([own for _, own in compared]), before).double().cpu()
    parts = zip(compared, found.split([len(own) for _, own in compared]), strict=True)
    return {
        request: {"js_divergence": float(np.float32(part.mean())), "js_tokens": len(part)}
        for (request, _), part in parts
    }


def _binned(confidence: Tensor, hit: Tensor) -> dict[str, tuple[float, ...]]:
    """Count tokens, sum confidences and count hits by confidence."""
    index = (confidence.double() * N_BINS).long().clamp(0, N_BINS - 1)
    sums = [torch.bincount(index, weights=w.double(), minlength=N_BINS) for w in (hit * 0 + 1, confidence, hit)]
    tokens, sure, right = (part.tolist() for part in sums)
    return {
        "bin_tokens": tuple(map(int, tokens)),
        "bin_confidence": tuple(float(np.float32(value)) for value in sure),
        "bin_hits": tuple(map(int, right)),
    }


def _score(item: EvalItem, requests: Sequence[Request], measured: dict[Request, _Measured], model: str) -> dict:
    """Make an item's row."""
    choice_nll = tuple(float(np.float32(measured[request].nll)) for request in requests)
    if not np.isfinite(choice_nll).all():
        raise NumericsError(
            "lm_head",
            f"model {model} gives NaN or infinite logits on item {item.id}. Look in the compression report "
            "for the first layer with a large error, and for weights that are not finite",
        )
    gold = measured[requests[item.gold]]
    return {
        "item": item.id,
        "capability": item.capability,
        "task": item.task,
        "n_tokens": requests[item.gold].n_scored,
        "gold": item.gold,
        "choice_nll": choice_nll,
        "choice_bytes": tuple(_moved_bytes(*pair) for pair in item.pairs),
        **(gold.calibration or {}),
        **(gold.divergence or {}),
    }


def _moved_bytes(context: str, continuation: str) -> int:
    """UTF-8 bytes of what is scored."""
    return len(split_spaces(context, continuation)[1].encode())
