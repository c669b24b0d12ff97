"""Throughput of likelihood evaluation against a bare decoder pass over as many tokens.

    python benchmarks/evaluate_speed.py [--model smollm2-135m] [--tokens 2048] [--device auto]

The bare pass runs the decoder on rectangles of 128 tokens without padding, mask or head, plus the head on as many
rows as are scored: what the same arithmetic costs if nothing is organised around it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable

import torch

from cola_lib.evaluate import capability_suite, evaluate, rows_of
from cola_lib.experiments import device_name
from cola_lib.models import LanguageModel, load_model


def synchronised(lm: LanguageModel) -> float:
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(lm: LanguageModel, runs: list[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall seconds of each; they take turns, so that a busy moment of the machine hits both."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, its in zip(runs, times, strict=True):
            began = synchronised(lm)
            run()
            if repeat:  # the first is the warm-up
                its.append(synchronised(lm) - began)
    return [statistics.median(its) for its in times]


def bare_pass(lm: LanguageModel, n_tokens: int, n_scored: int, rows: int, width: int = 128) -> None:
    """Run ``n_tokens`` in rectangles of ``rows`` x ``width``, and the head on ``n_scored`` hidden states."""
    decoder, head = lm.model.get_decoder(), lm.model.get_output_embeddings()
    ids = torch.randint(1000, 20000, (rows, width), device=lm.device)
    with torch.inference_mode():
        done = scored = 0
        while done < n_tokens:
            part = ids[: max(1, min(rows, (n_tokens - done) // width))]
            hidden = decoder(input_ids=part, use_cache=False).last_hidden_state.flatten(0, 1)
            done += part.numel()
            wanted = min(len(hidden), round(n_scored * done / n_tokens) - scored)
            head(hidden[:wanted]).float().logsumexp(-1)
            scored += wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=2048, help="per capability")
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=[None])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    lm = load_model(args.model, device=args.device)
    suite = capability_suite(lm.tokenizer, tokens_per_capability=args.tokens)
    requests = [tuple(dict.fromkeys(item.requests(lm.tokenizer))) for item in suite.items]
    flat = list(itertools.chain.from_iterable(requests))
    n_run = sum(row.n_tokens for group in requests for row in rows_of(group))
    n_apart = sum(len(request.fed) for request in flat)
    n_scored = sum(request.n_scored for request in flat)
    for batch_tokens in args.batch_tokens:
        rows = 256 if lm.device.type == "cuda" else 4
        runs = [
            lambda b=batch_tokens: evaluate(lm, suite, batch_tokens=b, progress=False),
            lambda r=rows: bare_pass(lm, n_run, n_scored, r),
        ]
        ours, bare = seconds(lm, runs, args.repeats)
        report = {
            "device": device_name(lm.device),
            "dtype": str(lm.dtype),
            "threads": torch.get_num_threads(),
            "items": len(suite.items),
            "batch_tokens": batch_tokens,
            "tokens_run": n_run,
            "tokens_run_without_sharing": n_apart,
            "tokens_scored": n_scored,
            "evaluate_s": round(ours, 3),
            "bare_pass_s": round(bare, 3),
            "run_tokens_per_s": round(n_run / ours, 1),
            "scored_tokens_per_s": round(n_scored / ours, 1),
            "share_of_bare_pass": round(bare / ours, 3),
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
