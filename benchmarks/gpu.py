"""LLaMA-3-8B's shape with random weights on a GPU: 128 x 2048 tokens in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.limits import peak, shape_of, share
from benchmarks.scaling import random_rows
from benchmarks.timing import Row, clock
from cola_lib.calibration import CalibrationSet
from cola_lib.compress import METHODS, compress, method_spec, restored
from cola_lib.compress.block import compress_block
from cola_lib.models import LanguageModel, architecture_of
from cola_lib.statistics import walk

SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
JOBS = {
    "wanda": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "gptq": {"bits": 4, "group_size": 128},
    "awq": {"bits": 4, "group_size": 128},
}
assert set(JOBS) <= set(METHODS)

SECONDS_EACH, SECONDS_ALL, BYTES = 180.0, 300.0, 40e9

LIMITS = {
    "wanda": "two passes over the set",
    "sparsegpt": "two passes over the set, and a sweep that takes columns one after the other",
    "gptq": "two passes over the set, and a sweep that takes columns one after the other",
    "awq": "its trials: a product of the weight's size with the Gram matrix for each",
}


def random_llama(layers: int) -> LanguageModel:
    """LLaMA-3-8B's shape, random, in bfloat16 on the GPU."""
    config = AutoConfig.for_model("llama", **SHAPE | {"num_hidden_layers": layers})
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval().requires_grad_(False)
    return LanguageModel(model, None, "random-llama-3-8b", architecture_of(config))


def limit_row(
    what: str, value: float, target: float, unit: str, limited_by: str, note: str = "", of_best: float | None = None
) -> Row:
    """Compare an absolute number to its limit."""
    ratio = value / target
    told = f"{value:,.1f} {unit}" + (f"; {note}" if note else "")
    seconds = value if unit == "s" else 0.0
    return Row(
        "gpu", what, f"{target:g} {unit}", ratio, ratio, ratio, seconds, 1,
        target=1.0, note=told, share=of_best, limited_by=limited_by,
    )  # fmt: skip


def all_from_one_walk(lm: LanguageModel, rows: CalibrationSet) -> None:
    """Every method on each block's statistics, which are let go of before the next block."""
    specs = [method_spec(name, **options) for name, options in JOBS.items()]
    for step in walk(lm, rows, propagate="original", progress=False):
        for spec in specs:
            compress_block(
                step.block, step.name, step.statistics, spec, lm.architecture, lm.model.config, layer_errors=False
            )


def measure(layers: int = 32, n_samples: int = 128, seq_len: int = 2048) -> tuple[list[Row], dict[str, Any]]:
    """Walk and each method in seconds, the arithmetic's share of the card's own GEMM, and peak memory."""
    lm, rows = random_llama(layers), random_rows(n_samples, seq_len, SHAPE["vocab_size"])
    shape, found = shape_of(lm), []
    torch.cuda.reset_peak_memory_stats()
    began = clock(lm)
    for step in walk(lm, rows, progress=False):
        del step
    seconds = clock(lm) - began
    flops = shape.forward_flops(rows.n_tokens, rows.seq_len) + shape.gram_flops(rows.n_tokens)
    reached = f"{flops / seconds / 1e12:,.0f} TFLOP/s of {peak(lm) / 1e12:,.0f} in a product"
    found.append(
        limit_row(
            "walk",
            seconds,
            SECONDS_EACH,
            "s",
            "the pass, and half of each Gram matrix",
            reached,
            share(lm, flops, seconds),
        )
    )
    for method, options in JOBS.items():
        spec = method_spec(method, **options)
        flops = shape.two_pass_flops(rows.n_tokens, rows.seq_len) + shape.solve_flops(spec, judged=False)
        flops += shape.gram_flops(rows.n_tokens) if spec.reads_gram else 0.0
        with restored(lm):
            began = clock(lm)
            compress(lm, spec, rows, propagate="compressed", layer_errors=False, progress=False)
            seconds = clock(lm) - began
        found.append(
            limit_row(
                f"{method}, end to end", seconds, SECONDS_EACH, "s", LIMITS[method], of_best=share(lm, flops, seconds)
            )
        )
    began = clock(lm)
    all_from_one_walk(lm, rows)
    found.append(
        limit_row("four methods, one walk", clock(lm) - began, SECONDS_ALL, "s", "the solutions, not the walk")
    )
    peak_memory = torch.cuda.max_memory_allocated() / 1e9
    limit = "the model, the states of all tokens, and one block's Gram matrices, beside each other"
    found.append(limit_row("peak memory", peak_memory, BYTES / 1e9, "GB", limit))
    return found, {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "layers": layers}
