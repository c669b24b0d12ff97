"""A process that does named pieces of work with whatever ``cola_lib`` its path holds, and says how long each took.

It reads names from standard input and writes seconds to standard output, a line each. Only what both commits have may
be used here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from cola_lib.calibration import calibration_set
from cola_lib.compress import compress, method_spec, restored
from cola_lib.curation import Pool, at_tokens, strategy
from cola_lib.evaluate import capability_suite, evaluate
from cola_lib.models import load_model
from cola_lib.statistics import collect_statistics, walk

METHODS = {
    "wanda": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "gptq": {"bits": 4, "group_size": 64},
    "awq": {"bits": 4, "group_size": 64},
}


def works(model: str, device: str, tokens: int, n_samples: int, seq_len: int) -> dict[str, Callable[[], object]]:
    """Name the pieces of work."""
    lm = load_model(model, device=device)
    rows = calibration_set(["c4"], lm.tokenizer, n_samples=n_samples, seq_len=seq_len, seed=0)
    suite = capability_suite(lm.tokenizer, tokens_per_capability=tokens)
    statistics = collect_statistics(lm, rows, progress=False)
    pool = Pool.load(["c4", "gsm8k", "mbpp"], limit=3 * n_samples)

    def visit() -> None:
        for step in walk(lm, rows, progress=False):
            del step

    def solve() -> None:
        for method, options in METHODS.items():
            for stats in statistics.values():
                stats.forget_factors()
            with restored(lm):
                compress(lm, method_spec(method, **options), statistics=statistics, layer_errors=False, progress=False)

    def cell() -> None:
        chosen = at_tokens(strategy("cola", n_sources=2), pool, lm, n_tokens=n_samples * seq_len // 2, seq_len=seq_len)
        with restored(lm):
            compress(lm, method_spec("gptq", bits=3), chosen, propagate="original", progress=False)
            evaluate(lm, suite, progress=False)

    return {
        "evaluate": lambda: evaluate(lm, suite, progress=False),
        "walk": visit,
        "solve all four methods": solve,
        "a cell: choose, compress, evaluate": cell,
    }


def main() -> None:
    """Answer until standard input ends."""
    told = json.loads(sys.argv[1])
    clock = time.process_time if told.pop("cpu_time") else time.perf_counter
    named = works(**told)
    print(json.dumps(list(named)), flush=True)
    for line in sys.stdin:
        began = clock()
        named[line.strip()]()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(clock() - began, flush=True)


if __name__ == "__main__":
    main()
