"""Statistics for all methods, from one walk."""

from __future__ import annotations

from benchmarks.limits import forward, shape_of, share
from benchmarks.timing import FORWARD, Row, in_turns, ratio_row
from cola_lib.calibration import CalibrationSet
from cola_lib.models import LanguageModel
from cola_lib.statistics import walk


def visit(lm: LanguageModel, rows: CalibrationSet, *, gram: bool) -> None:
    """Walk, and let go of what was gathered: the statistics of a large model do not stay together."""
    for step in walk(lm, rows, propagate="original", gram=gram, progress=False):
        del step


def measure(lm: LanguageModel, rows: CalibrationSet, turns: int) -> list[Row]:
    """The walk in units of the forward pass."""
    every, channels = "walk, statistics for all methods", "walk, channel by channel (Wanda, RIA, SmoothQuant)"
    times = in_turns(
        {
            FORWARD: lambda: forward(lm, rows),
            every: lambda: visit(lm, rows, gram=True),
            channels: lambda: visit(lm, rows, gram=False),
        },
        turns,
        lm,
    )
    shape = shape_of(lm)
    passes = shape.forward_flops(rows.n_tokens, rows.seq_len)

    def reached(name: str, flops: float) -> float:
        return share(lm, flops, sorted(times[name])[turns // 2])

    target = 1.25 if lm.device.type == "cuda" else 1.7
    return [
        ratio_row(
            "walk",
            every,
            FORWARD,
            times,
            target=target,
            share=reached(every, passes + shape.gram_flops(rows.n_tokens)),
            limited_by="the pass, and half of each Gram matrix",
        ),
        ratio_row("walk", channels, FORWARD, times, share=reached(channels, passes)),
    ]
