"""What the machine can do at best, in the fastest product of any of torch's backends, and in the forward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from benchmarks.timing import FORWARD, Row, clock, in_turns, ratio_row
from cola_lib.arithmetic import onednn_permission
from cola_lib.calibration import CalibrationSet
from cola_lib.experiments.plan import ModelShape
from cola_lib.models import LanguageModel

SIZES = {"cpu": (256, 2048), "cuda": (1024, 8192)}
"""Rows and columns of the product: the larger is large enough that more would not be faster."""

PATIENCE = 5.0
"""Seconds that a large product may take: where a processor lacks a type, the smaller product says enough."""


@torch.no_grad()
def forward(lm: LanguageModel, rows: CalibrationSet, batch_size: int = 8) -> None:
    """The decoder alone over rectangular rows, as transformers runs it: what every step is measured in."""
    for ids in rows.input_ids.split(batch_size):
        lm.decoder(input_ids=ids.to(lm.device), use_cache=False)


def shape_of(lm: LanguageModel) -> ModelShape:
    """What the model's arithmetic is counted from."""
    return ModelShape.of(lm.model.config, bytes_per_parameter=lm.dtype.itemsize)


def products(device: torch.device, size: int) -> dict[str, Callable[[], object]]:
    """A product of square matrices on each backend, by data type and backend."""
    left = torch.randn(size, size, device=device)
    half = left.to(torch.bfloat16)
    runs: dict[str, Callable[[], object]] = {
        "float32, default": lambda: left @ left,
        "bfloat16, default": lambda: half @ half,
    }
    if device.type == "cpu" and onednn_permission():

        def onednn() -> None:
            matmul = torch.backends.mkldnn.matmul
            before = matmul.fp32_precision
            matmul.fp32_precision = "bf16"
            try:
                torch.mm(left, left)
            finally:
                matmul.fp32_precision = before

        runs["float32, oneDNN"] = onednn
    return runs


def rate(device: torch.device, size: int, run: Callable[[], object], turns: int) -> float:
    """Operations a second, the best of some turns after a first."""
    times = []
    for _ in range(turns + 1):
        began = clock(device)
        run()
        times.append(clock(device) - began)
    return 2.0 * size**3 / min(times[1:])


@cache
def peaks(device: torch.device, turns: int = 3) -> dict[str, float]:
    """Operations a second of the fastest product, by backend, measured once in a run of the benchmark."""
    small, large = SIZES[device.type]
    found = {name: rate(device, small, run, turns) for name, run in products(device, small).items()}
    for name, run in products(device, large).items():
        if 2.0 * large**3 / found[name] < PATIENCE:
            found[name] = max(found[name], rate(device, large, run, turns))
    return found


def peak(lm: LanguageModel, dtype: torch.dtype | None = None) -> float:
    """Operations a second of the best product that any backend reaches, in the model's type or another."""
    name = str(dtype or lm.dtype).removeprefix("torch.")
    return max(rate for backend, rate in peaks(lm.device).items() if backend.startswith(name))


def share(lm: LanguageModel, flops: float, seconds: float) -> float:
    """Share of the best product's speed at which a step does its arithmetic."""
    return flops / seconds / peak(lm)


def measure(lm: LanguageModel, rows: CalibrationSet, turns: int) -> list[Row]:
    """Each backend's product against the best of its type, and the forward pass with its share."""
    rates, work = peaks(lm.device), 2.0 * SIZES[lm.device.type][1] ** 3
    found = []
    for name, reached in rates.items():
        dtype = name.split(",")[0]
        ratio = max(each for other, each in rates.items() if other.startswith(dtype)) / reached
        note, against = f"{reached / 1e9:,.1f} GFLOP/s", f"the best product in {dtype}"
        found.append(Row("limits", f"product in {name}", against, ratio, ratio, ratio, work / reached, 3, note=note))
    best_product = "the best product of as many operations"
    flops = shape_of(lm).forward_flops(rows.n_tokens, rows.seq_len)
    times = in_turns({FORWARD: lambda: forward(lm, rows)}, turns, lm)
    times[best_product] = [flops / peak(lm)] * turns
    middle = sorted(times[FORWARD])[turns // 2]
    note = f"{peak(lm) / 1e9:,.0f} GFLOP/s in a product; {rows.n_tokens / middle:,.0f} tokens/s forward"
    found.append(ratio_row("limits", FORWARD, best_product, times, share=share(lm, flops, middle), note=note))
    return found
