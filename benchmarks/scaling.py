"""How time and memory grow with samples, length, layers and width, on random models; a process for each point.

python -m benchmarks.scaling '{"n_samples": 8, "seq_len": 128, "layers": 4, "width": 256}'
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.limits import forward
from benchmarks.timing import Row, clock
from benchmarks.walk import visit
from cola_lib.calibration import CalibrationSet
from cola_lib.compress import compress, method_spec, restored
from cola_lib.models import LanguageModel, architecture_of
from cola_lib.statistics import collect_statistics

BASE = {"n_samples": 8, "seq_len": 128, "layers": 4, "width": 256}

AXES = {
    "n_samples": (8, 16, 32, 64),
    "seq_len": (128, 256, 512, 1024),
    "layers": (4, 8, 16, 32),
    "width": (256, 384, 512, 768),
}

METHODS = {"wanda": {}, "sparsegpt": {}, "gptq": {"bits": 4, "group_size": 64}, "awq": {"bits": 4, "group_size": 64}}

DEMANDED = {
    "forward": {"n_samples": 1, "seq_len": 2, "layers": 1, "width": 2},
    "walk": {"n_samples": 1, "seq_len": 2, "layers": 1, "width": 2},
    **{method: {"n_samples": 0, "seq_len": 0, "layers": 1, "width": 3} for method in METHODS},
}
"""Exponents of time that the mathematics allows: products of d × d matrices for each token, and d³ to factor, solve or
try scales; attention grows with the square of the length."""

DEMANDED_MEMORY = {"walk": {"n_samples": 1, "seq_len": 1, "layers": 0, "width": 2}}
"""The walk keeps the states of all tokens, and the statistics of one block."""

SLACK = 0.25
"""How much a fitted exponent may exceed what is demanded before it counts: caches make small problems cheap."""


def random_model(layers: int, width: int, vocabulary: int = 512) -> LanguageModel:
    """A LLaMA of random weights."""
    config = AutoConfig.for_model(
        "llama", vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, head_dim=64, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return LanguageModel(model, None, "random", architecture_of(config))


def random_rows(n_samples: int, seq_len: int, vocabulary: int = 512) -> CalibrationSet:
    """Random tokens, without padding."""
    ids = torch.randint(3, vocabulary, (n_samples, seq_len), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return CalibrationSet(ids, mask, ((),) * n_samples, ("random",) * n_samples, "random", 0, "pack")


def growth(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and by how many bytes the process's memory grew at most while it ran (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is held now
    before = _status("VmHWM")
    began = clock()
    run()
    return {"seconds": clock() - began, "bytes": max(_status("VmHWM") - before, 1)}


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def point(n_samples: int, seq_len: int, layers: int, width: int) -> dict[str, dict[str, float]]:
    """Measure one size, in this process."""
    lm, rows = random_model(layers, width), random_rows(n_samples, seq_len)
    forward(lm, rows.rows(0, 1))  # warm
    found = {"walk": growth(lambda: visit(lm, rows, gram=True)), "forward": growth(lambda: forward(lm, rows))}
    statistics = collect_statistics(lm, rows, progress=False)
    for method, options in METHODS.items():
        for stats in statistics.values():
            stats.forget_factors()
        with restored(lm):
            spec = method_spec(method, **options)
            found[method] = growth(
                lambda spec=spec: compress(lm, spec, statistics=statistics, layer_errors=False, progress=False)
            )
    return found


def slope(sizes: list[float], values: list[float]) -> float:
    """Exponent between the two largest sizes: smaller ones are all overhead."""
    return math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])


def measure(repeats: int = 2) -> tuple[list[Row], list[dict[str, Any]]]:
    """Points along each axis, the best of some repeats, and the exponents as rows."""
    series: list[dict[str, Any]] = []
    for axis, sizes in AXES.items():
        for size in sizes:
            runs = [_in_process(BASE | {axis: size}) for _ in range(repeats)]
            for step in runs[0]:
                best = {key: min(run[step][key] for run in runs) for key in ("seconds", "bytes")}
                series.append({"part": "scaling", "axis": axis, "size": size, "step": step, **best})
            print(f"  {axis} = {size}", flush=True)
    rows = []
    for kind, demanded in (("seconds", DEMANDED), ("bytes", DEMANDED_MEMORY)):
        for step, exponents in demanded.items():
            for axis, most in exponents.items():
                points = [p for p in series if p["axis"] == axis and p["step"] == step]
                found = slope([p["size"] for p in points], [p[kind] for p in points])
                what = "time" if kind == "seconds" else "memory"
                rows.append(
                    Row(
                        "scaling",
                        f"exponent of {what}: {step}, with {axis}",
                        f"what the mathematics demands: {most}",
                        ratio=found,
                        low=found,
                        high=found,
                        seconds=points[-1]["seconds"],
                        turns=repeats,
                        target=most + SLACK,
                        limited_by=(
                            f"caches, and what else the machine did in {points[-1]['seconds']:.1f} s"
                            if kind == "seconds"
                            else f"the allocator, at a peak of {points[-1]['bytes'] / 1e6:,.0f} MB"
                        ),
                    )
                )
    return rows, series


def _in_process(size: dict[str, int]) -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", json.dumps(size)], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(point(**json.loads(sys.argv[1]))))
