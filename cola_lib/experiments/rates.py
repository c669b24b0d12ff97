"""How fast this machine does the steps of a sweep, in operations a second, beside a plain matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch

from cola_lib.calibration import CalibrationSet
from cola_lib.compress import Spec, settle
from cola_lib.compress.block import compress_block
from cola_lib.evaluate import Suite, evaluate, reference_of
from cola_lib.experiments.plan import ModelShape
from cola_lib.models import LanguageModel
from cola_lib.statistics import InputStatistics, collect_statistics

GEMM = "matrix product"
"""Step against which the others are held."""

_GEMM_SIZE = 1024


@torch.no_grad()
def measure_rates(
    lm: LanguageModel, calibration: CalibrationSet, specs: Sequence[Spec], suite: Suite, *, turns: int = 2
) -> pd.DataFrame:
    """Time each kind of step once it is warm, on one block where all blocks are alike.

    Parameters
    ----------
    lm : LanguageModel
        Left as it is.
    calibration : CalibrationSet
        Rows without padding, of the length of those that are planned for.
    specs : sequence of Spec
        Methods that read calibration data.
    suite : Suite
        That is evaluated.
    turns : int
        Times that each step is done; the shortest counts.

    Returns
    -------
    pandas.DataFrame
        One row per step: ``step``, ``flops`` by :class:`ModelShape`, ``seconds``, ``rate`` in operations a second, and
        ``share`` of the rate of a plain product of the same machine.
    """
    number = lm.model.dtype.itemsize
    shape = ModelShape.of(lm.model.config, bytes_per_parameter=number)
    middle, n_blocks = len(lm.blocks) // 2, len(lm.blocks)
    side = torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=lm.device)
    n_tokens = calibration.n_tokens
    inputs = {each.name: torch.randn(n_tokens, each.d_in, device=lm.device) for each in shape.inputs}
    ids = calibration.input_ids.to(lm.device)

    def grams() -> None:
        for X in inputs.values():
            InputStatistics.empty(X.shape[1], lm.device).update(X)

    statistics = {group: stats.to(lm.device) for group, stats in _of_one_block(lm, calibration, middle).items()}

    def solve(spec: Spec) -> None:
        for stats in statistics.values():
            stats.forget_factors()
        compress_block(
            lm.blocks[middle], lm.block_name(middle), statistics, settle(lm, spec), lm.architecture, lm.model.config
        )

    reference = reference_of(lm, suite)
    n_scored = suite.tokens_per_capability * len(suite.capabilities)
    steps: list[tuple[str, float, Callable[[], object]]] = [
        (GEMM, 2.0 * _GEMM_SIZE**3, lambda: side @ side),
        (
            "forward pass",
            shape.forward_flops(n_tokens, calibration.seq_len),
            lambda: lm.decoder(input_ids=ids, use_cache=False),
        ),
        ("Gram matrices", shape.gram_flops(n_tokens) / n_blocks, grams),
        *((spec.label, shape.solve_flops(spec) / n_blocks, lambda spec=spec: solve(spec)) for spec in specs),
        (
            "evaluation",
            shape.evaluation_flops(n_scored, calibration.seq_len),
            lambda: evaluate(lm, suite, reference=reference, progress=False),
        ),
    ]
    rows = [(name, flops, min(_seconds(lm, run) for _ in range(turns))) for name, flops, run in steps]
    table = pd.DataFrame(rows, columns=["step", "flops", "seconds"])
    table["rate"] = table["flops"] / table["seconds"]
    table["share"] = table["rate"] / table["rate"].iloc[0]
    return table


def _of_one_block(lm: LanguageModel, calibration: CalibrationSet, block: int) -> dict[str, InputStatistics]:
    return collect_statistics(lm, calibration, progress=False).block(block)


def _seconds(lm: LanguageModel, run: Callable[[], object]) -> float:
    """Time a step until the device is done with it."""
    began = time.perf_counter()
    run()
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return time.perf_counter() - began
