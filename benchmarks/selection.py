"""COLA's third stage against the pure forward pass of the same tokens, and against the usual recipe; and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.timing import FORWARD, Row, in_turns, ratio_row
from cola_lib.activations import length_batches
from cola_lib.activations.rows import BATCH_TOKENS
from cola_lib.curation import Candidate, Pool, Rows, activation_vectors, candidates, select_streaming
from cola_lib.data import Sample
from cola_lib.models import LanguageModel, architecture_of

STAGE, RECIPE = "COLA's stage 3", "usual recipe: pad to the longest, keep every layer"


@torch.no_grad()
def forward(lm: LanguageModel, rows: Rows) -> None:
    """The decoder alone, in the same batches."""
    lengths = rows.tokens.attention_mask.sum(1)
    for batch in length_batches(lengths, BATCH_TOKENS[lm.device.type]):
        width = int(lengths[batch[0]])
        lm.decoder(input_ids=rows.tokens.input_ids[batch, :width].to(lm.device), use_cache=False)


@torch.no_grad()
def recipe(lm: LanguageModel, rows: Rows, batch_size: int = 4) -> torch.Tensor:
    """Pad to the longest, keep every layer, pool, project."""
    mask = rows.tokens.attention_mask
    pooled = []
    for ids, real in zip(rows.tokens.input_ids.split(batch_size), mask.split(batch_size), strict=True):
        ids, real = ids.to(lm.device), real.to(lm.device)
        states = lm.decoder(input_ids=ids, attention_mask=real.long(), output_hidden_states=True, use_cache=False)
        stacked = torch.stack(states.hidden_states[1:], dim=1).float()  # (n, layers, seq_len, d)
        mean = (stacked * real[:, None, :, None]).sum(2) / real.sum(1)[:, None, None]
        pooled.append(torch.nn.functional.normalize(mean, dim=-1).flatten(1))
    pooled = torch.cat(pooled)
    return pooled @ torch.randn(pooled.shape[1], 64, device=pooled.device)


def speed(lm: LanguageModel, n_rows: int, seq_len: int, turns: int) -> list[Row]:
    """Pooled and projected activations of rows, three ways."""
    pool = Pool.load(["c4", "gsm8k", "mbpp"], limit=n_rows)
    rows = pool.rows(lm.tokenizer, seq_len, most=n_rows // 3)
    seeds = iter(range(1000))  # a new seed each time: nothing is remembered
    times = in_turns(
        {
            FORWARD: lambda: forward(lm, rows),
            STAGE: lambda: activation_vectors(pool, lm, rows, seed=next(seeds)),
            RECIPE: lambda: recipe(lm, rows),
        },
        turns,
        lm,
    )
    note = f"{len(rows)} rows, {rows.tokens.n_tokens:,} tokens"
    limit = "pooling: the states behind every block are read once more"
    return [
        ratio_row("select", STAGE, FORWARD, times, target=1.15, note=note, limited_by=limit),
        ratio_row("select", STAGE, RECIPE, times, note=note),
    ]


def streamed(n: int) -> dict[str, float]:
    """Choose from ``n`` synthetic rows with a tiny random model, in this process; seconds and megabytes."""
    from benchmarks.scaling import growth
    from cola_lib.models import load_model

    tokenizer = load_model("smollm2-135m").tokenizer
    config = AutoConfig.for_model(
        "llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    lm = LanguageModel(model, tokenizer, "tiny", architecture_of(config))
    words = "the quick brown fox jumps over a lazy dog while seven wizards box".split()

    def read() -> Iterator[Candidate]:
        samples = (
            Sample(str(i), " ".join(words[(i * k) % 13] for k in range(1, 12)) + f" {i}", "synthetic") for i in range(n)
        )
        return candidates(samples, tokenizer, seq_len=32)

    return growth(lambda: select_streaming(lm, read, n_samples=64, seq_len=32))


def large_pool(n: int) -> list[Row]:
    """Memory of choosing from a pool, and from a tenth of it: a process each."""
    few, many = (_measured(count) for count in (n // 10, n))
    ratio = many["bytes"] / few["bytes"]
    note = f"{many['bytes'] / 1e6:,.0f} MB, {n / many['seconds']:,.0f} rows/s of a tiny model"
    return [
        Row(
            "select",
            f"peak memory of choosing from {n:,} rows",
            f"the same from {n // 10:,}",
            ratio=ratio,
            low=ratio,
            high=ratio,
            seconds=many["seconds"],
            turns=1,
            target=1.5,
            note=note,
            limited_by=f"the vector of 64 numbers that each candidate keeps, {256 * n / 1e6:,.0f} MB of {n:,}",
        )
    ]


def _measured(n: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.selection", str(n)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(lm: LanguageModel, n_rows: int, seq_len: int, pool: int, turns: int) -> list[Row]:
    """Both of the above."""
    return [*speed(lm, n_rows, seq_len, turns), *large_pool(pool)]


if __name__ == "__main__":
    print(json.dumps(streamed(int(sys.argv[1]))))
