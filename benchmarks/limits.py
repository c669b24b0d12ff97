"""What the machine can do at best: a plain matrix product, and the model's own forward pass."""

from __future__ import annotations

import torch

from benchmarks.timing import FORWARD, Row, in_turns
from cola_lib.calibration import CalibrationSet
from cola_lib.models import LanguageModel


@torch.no_grad()
def forward(lm: LanguageModel, rows: CalibrationSet, batch_size: int = 8) -> None:
    """The decoder alone over rectangular rows: what every step is measured in."""
    for ids in rows.input_ids.split(batch_size):
        lm.decoder(input_ids=ids.to(lm.device), use_cache=False)


def linear_flops(lm: LanguageModel) -> int:
    """Multiplications and additions of a token in the linear layers of all blocks."""
    return sum(2 * block.get_submodule(name).weight.numel() for block in lm.blocks for name in lm.architecture.layers)


def measure(lm: LanguageModel, rows: CalibrationSet, turns: int, size: int = 2048) -> list[Row]:
    """How much of a large matrix product's speed the forward pass reaches."""
    left = torch.randn(size, size, device=lm.device, dtype=lm.dtype)
    times = in_turns({"gemm": lambda: left @ left, FORWARD: lambda: forward(lm, rows)}, turns, lm)
    flops = linear_flops(lm) * rows.n_tokens
    as_gemm = [flops / (2 * size**3) * seconds for seconds in times["gemm"]]  # the same arithmetic at GEMM speed
    ratios = [a / b for a, b in zip(times[FORWARD], as_gemm, strict=True)]
    middle = sorted(times[FORWARD])[len(ratios) // 2]
    peak = 2 * size**3 / sorted(times["gemm"])[len(ratios) // 2] / 1e9
    return [
        Row(
            "limits",
            "forward pass",
            "one large matrix product of as many operations",
            ratio=sorted(ratios)[len(ratios) // 2],
            low=min(ratios),
            high=max(ratios),
            seconds=middle,
            turns=turns,
            note=f"{peak:,.0f} GFLOP/s in a product of {size} x {size}; {rows.n_tokens / middle:,.0f} tokens/s forward",
        )
    ]
