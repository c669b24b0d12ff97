"""Scoring items, against a bare decoder pass over as many tokens, and against lm-eval's loop on the same requests."""

from __future__ import annotations

import itertools

import torch
from lm_eval.models.huggingface import HFLM

from benchmarks.limits import shape_of, share
from benchmarks.timing import Row, in_turns, ratio_row
from cola_lib.evaluate import capability_suite, evaluate, rows_of
from cola_lib.models import LanguageModel


def bare_pass(lm: LanguageModel, n_tokens: int, n_scored: int, rows: int, width: int = 128) -> None:
    """Run ``n_tokens`` in rectangles of ``rows`` x ``width``, and the head on ``n_scored`` hidden states.

    What the same arithmetic costs if nothing is organised around it: no padding, no mask.
    """
    decoder, head = lm.model.get_decoder(), lm.model.get_output_embeddings()
    ids = torch.randint(1000, 20000, (rows, width), device=lm.device) % lm.model.config.vocab_size
    with torch.inference_mode():
        done = scored = 0
        while done < n_tokens:
            part = ids[: max(1, min(rows, (n_tokens - done) // width))]
            hidden = decoder(input_ids=part, use_cache=False).last_hidden_state.flatten(0, 1)
            done += part.numel()
            wanted = min(len(hidden), round(n_scored * done / n_tokens) - scored)
            head(hidden[:wanted]).float().logsumexp(-1)
            scored += wanted


def measure(
    lm: LanguageModel, tokens_per_capability: int, turns: int, batch_sizes: tuple[int, ...] = (8,)
) -> list[Row]:
    """One suite, three ways; lm-eval's loop at each of some batch sizes, of which the fastest counts."""
    suite = capability_suite(lm.tokenizer, tokens_per_capability=tokens_per_capability)
    requests = [tuple(dict.fromkeys(item.requests(lm.tokenizer))) for item in suite.items]
    flat = list(itertools.chain.from_iterable(requests))
    n_run = sum(row.n_tokens for group in requests for row in rows_of(group))
    n_scored = sum(request.n_scored for request in flat)
    n_apart = sum(len(request.fed) for request in flat)
    in_harness = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1)
    encoded = [
        (("", ""), list(r.ids[: -r.n_scored]), list(r.ids[-r.n_scored :])) for r in flat if len(r.ids) > r.n_scored
    ]
    ours, bare = "evaluation of likelihoods", "bare decoder pass of as many tokens, with the head"
    runs = {
        ours: lambda: evaluate(lm, suite, progress=False),
        bare: lambda: bare_pass(lm, n_run, n_scored, 256 if lm.device.type == "cuda" else 4),
    }
    harness = {f"lm-eval's loop, batches of {size}": size for size in batch_sizes}
    for name, size in harness.items():
        runs[name] = lambda size=size: in_harness._loglikelihood_tokens(encoded, disable_tqdm=True, override_bs=size)
    times = in_turns(runs, turns, lm)
    fastest = min(harness, key=lambda name: sorted(times[name])[len(times[name]) // 2])
    limit = "rows of unlike length, whose padding is run, and the masks that this takes"
    shape = shape_of(lm)
    # Attention over rows of some hundred tokens is next to nothing of the arithmetic.
    flops = shape.forward_flops(n_run, n_run // len(flat)) + shape.head_flops(n_scored)
    reached = share(lm, flops, sorted(times[ours])[turns // 2])
    # A share of the bare pass and a speed-up: both are seconds of the other over ours.
    return [
        ratio_row(
            "evaluate",
            bare,
            ours,
            times,
            target=0.85,
            at_most=False,
            note=f"{n_run:,} tokens run; the share is of our evaluation",
            share=reached,
            limited_by=limit,
        ),
        ratio_row(
            "evaluate",
            fastest,
            ours,
            times,
            target=1.3,
            at_most=False,
            note=f"the same {len(encoded)} requests; lm-eval runs each by itself, {n_apart:,} tokens",
            limited_by="what the answers to one question share: its tokens are all that is saved",
        ),
    ]
