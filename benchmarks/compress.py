"""Each method from calibration set to compressed model: against llm-compressor, against one walk for all, by itself."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.limits import forward, shape_of, share
from benchmarks.timing import FORWARD, Row, clock, cpu_time, in_turns, ratio_row
from cola_lib.calibration import CalibrationSet, calibration_set
from cola_lib.compress import compress, method_spec, restored, sparsegpt
from cola_lib.evaluate import row_nll
from cola_lib.models import LanguageModel, load_model
from cola_lib.statistics import InputStatistics, LayerStatistics, collect_statistics

TOOL = Path(".venv-interop/llmcompressor/bin/python")

GROUP = 64

JOBS = {
    "wanda": {"sparsity": 0.5},
    "sparsegpt": {"sparsity": 0.5, "damp": 0.01},
    "gptq": {"bits": 4, "group_size": GROUP, "symmetric": True, "damp": 0.01},
    "awq": {
        "bits": 4,
        "group_size": GROUP,
        "symmetric": True,
        "n_grid": 20,
        "duo_scaling": True,
    },  # as theirs by default
}

TARGETS = {"wanda": 0.45, "sparsegpt": 0.45, "gptq": 0.45, "awq": 0.15}
"""Of llm-compressor's time, both propagating compressed inputs."""

PASSES = "two passes over the set, but for the last layers of each block in the first"
LIMITS = {
    "wanda": PASSES,
    "sparsegpt": f"{PASSES}; then the Gram matrices, and a sweep that takes columns one after the other",
    "gptq": f"{PASSES}; then the Gram matrices, and a sweep that takes columns one after the other",
    "awq": "its trials: a product of the weight's size with the Gram matrix for each",
}
"""Of each method's time."""

STRENGTHS = {
    "wanda": [{"sparsity": s} for s in (0.4, 0.5, 0.6)],
    "sparsegpt": [{"sparsity": s} for s in (0.4, 0.5, 0.6)],
    "gptq": [{"bits": b, "group_size": GROUP} for b in (2, 3, 4)],
    "awq": [{"bits": b, "group_size": GROUP} for b in (2, 3, 4)],
}


def perplexity(lm: LanguageModel, rows: CalibrationSet) -> float:
    """Of held-out text."""
    return float(row_nll(lm, rows, progress=False).mean().exp())


def ours(lm: LanguageModel, rows: CalibrationSet, method: str) -> float:
    """Compress as llm-compressor does: compressed inputs, and no report of errors."""
    began = clock(lm)
    spec = method_spec(method, **JOBS[method])
    compress(lm, spec, rows, propagate="compressed", layer_errors=False, progress=False)
    return clock(lm) - began


def flops(lm: LanguageModel, rows: CalibrationSet, method: str) -> float:
    """Operations of :func:`ours`."""
    shape, spec = shape_of(lm), method_spec(method, **JOBS[method])
    total = shape.two_pass_flops(rows.n_tokens, rows.seq_len) + shape.solve_flops(spec, judged=False)
    return total + (shape.gram_flops(rows.n_tokens) if spec.reads_gram else 0.0)


def against_tool(
    lm: LanguageModel, rows: CalibrationSet, held_out: CalibrationSet, turns: int, methods: Sequence[str] = tuple(JOBS)
) -> Iterator[list[Row]]:
    """Both tools on the same rows, in turns, each in its own process; and what comes out of both. Method by method."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        lm.save(folder / "dense")
        save_file({"input_ids": rows.input_ids}, folder / "tokens.safetensors")
        for method in methods:
            job = {
                "method": method,
                "batch_size": 8,
                "threads": torch.get_num_threads(),
                "cpu_time": cpu_time(),
                **JOBS[method],
            }
            name, theirs = f"{method}, compressed inputs", f"llm-compressor's {method}"
            kept: dict[str, float] = {}

            def run_ours(method: str = method, kept: dict[str, float] = kept) -> float:
                with restored(lm):
                    seconds = ours(lm, rows, method)
                    kept.setdefault("ours", perplexity(lm, held_out))
                return seconds

            def run_theirs(job: dict = job, kept: dict[str, float] = kept) -> float:
                seconds = _run_tool(folder, job)
                if "theirs" not in kept:
                    kept["theirs"] = perplexity(load_model(str(folder / "out"), dtype="float32"), held_out)
                return seconds

            times = in_turns(
                {FORWARD: lambda: forward(lm, rows), name: run_ours, theirs: run_theirs}, turns, lm, warm_up=False
            )
            worse = kept["ours"] / kept["theirs"] - 1
            note = f"held-out perplexity {kept['ours']:.2f}, theirs {kept['theirs']:.2f} ({worse:+.1%})"
            limit = _limit(method, name, theirs, times)
            reached = share(lm, flops(lm, rows, method), sorted(times[name])[turns // 2])
            yield [
                ratio_row(
                    "compress", name, theirs, times, target=TARGETS[method], note=note, share=reached, limited_by=limit
                ),
                ratio_row("compress", name, FORWARD, times, share=reached),
                ratio_row("compress", theirs, FORWARD, times),
            ]


def _limit(method: str, name: str, theirs: str, times: Mapping[str, Sequence[float]]) -> str:
    """What limits a method, and how much of it there is."""
    here, there = (ratio_row("compress", what, FORWARD, times).ratio for what in (name, theirs))
    return f"{LIMITS[method]} ({here:.1f} forward passes, theirs {there:.1f})"


def _run_tool(folder: Path, job: dict) -> float:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": str(job["threads"]),
        "MKL_NUM_THREADS": str(job["threads"]),
    }
    script = Path(__file__).parents[1] / "interop" / "time_llmcompressor.py"
    done = subprocess.run(
        [TOOL.absolute(), script.absolute(), "dense", "tokens.safetensors", "out", json.dumps(job)],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"llm-compressor's {job['method']} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def from_one_walk(lm: LanguageModel, rows: CalibrationSet) -> dict[str, float]:
    """Four methods at three strengths from one walk's statistics; seconds of all, and of the walk alone."""
    began = clock(lm)
    statistics = collect_statistics(lm, rows, progress=False)
    walked = clock(lm) - began
    for method, strengths in STRENGTHS.items():
        for options in strengths:
            with restored(lm):
                compress(lm, method_spec(method, **options), statistics=statistics, layer_errors=False, progress=False)
    return {"all": clock(lm) - began, "walk": walked}


def grid(lm: LanguageModel, rows: CalibrationSet, turns: int, tool_rows: list[Row]) -> list[Row]:
    """Twelve compressions of one set from one walk, against the forward pass and against twelve runs of the tool."""
    one = "four methods x three strengths, one walk"
    times = in_turns(
        {
            FORWARD: lambda: forward(lm, rows),
            one: lambda: from_one_walk(lm, rows)["all"],
        },
        turns,
        lm,
        warm_up=False,
    )
    found = [ratio_row("compress", one, FORWARD, times)]
    theirs = [row for row in tool_rows if row.against == FORWARD and row.what.startswith("llm-compressor")]
    if theirs:  # both in forward passes: twelve of their runs would take an hour
        whole = 3 * sum(row.ratio for row in theirs)
        ratios = [a / b / whole for a, b in zip(times[one], times[FORWARD], strict=True)]
        found.append(
            Row(
                "compress",
                one,
                "twelve runs of llm-compressor",
                ratio=sorted(ratios)[len(ratios) // 2],
                low=min(ratios),
                high=max(ratios),
                seconds=sorted(times[one])[len(ratios) // 2],
                turns=turns,
                target=0.05,
                note="theirs is three times the sum of their four runs above, each in units of the forward pass",
                limited_by="the column sweeps and trials: one for each strength, where the walk is shared",
            )
        )
    return found


def textbook(W: Tensor, stats: InputStatistics, sparsity: float, damp: float = 0.01, block: int = 128) -> Tensor:
    """SparseGPT as its algorithm is usually written: one column of a row-major weight at a time."""
    W = W.clone()
    H = stats.hessian()
    H.diagonal().add_(damp * H.diagonal().mean())
    U = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(H)), upper=True)
    for start in range(0, W.shape[1], block):
        stop = min(start + block, W.shape[1])
        part, inverse = W[:, start:stop].clone(), U[start:stop, start:stop]
        errors = torch.zeros_like(part)
        score = part**2 / inverse.diagonal() ** 2
        mask = score <= score.flatten().sort().values[int(score.numel() * sparsity)]
        for j in range(stop - start):
            w = part[:, j]
            kept = w.masked_fill(mask[:, j], 0)
            error = (w - kept) / inverse[j, j]
            part[:, j:] -= error[:, None] * inverse[j, j:]
            errors[:, j] = error
            W[:, start + j] = kept
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return W


def solver(lm: LanguageModel, statistics: LayerStatistics, turns: int) -> list[Row]:
    """Our column sweep against the textbook loop, on the widest layer of the middle block."""
    index = len(lm.blocks) // 2
    W, stats = lm.blocks[index].mlp.down_proj.weight.float(), statistics[index, "mlp_down"]

    def run(solve: Callable[[], Tensor]) -> Callable[[], None]:
        def once() -> None:
            stats.forget_factors()
            solve()

        return once

    ours_, theirs = "SparseGPT's column sweep, one layer", "the textbook loop"
    times = in_turns(
        {
            ours_: run(lambda: sparsegpt(W, stats, method_spec("sparsegpt"))),
            theirs: run(lambda: textbook(W, stats, 0.5)),
        },
        turns,
        lm,
    )
    return [ratio_row("compress", ours_, theirs, times)]


def by_itself(
    lm: LanguageModel, rows: CalibrationSet, turns: int, methods: Sequence[str] = tuple(JOBS)
) -> Iterator[list[Row]]:
    """Each method against the forward pass alone, where there is no other tool."""
    for method in methods:
        name = f"{method}, compressed inputs"

        def run_ours(method: str = method) -> float:
            with restored(lm):
                return ours(lm, rows, method)

        times = in_turns({FORWARD: lambda: forward(lm, rows), name: run_ours}, turns, lm, warm_up=False)
        reached = share(lm, flops(lm, rows, method), sorted(times[name])[turns // 2])
        yield [ratio_row("compress", name, FORWARD, times, share=reached)]


def measure(
    lm: LanguageModel,
    rows: CalibrationSet,
    turns: int,
    held_out_rows: int = 16,
    methods: Sequence[str] | None = None,
) -> Iterator[list[Row]]:
    """All of the above, bit by bit; llm-compressor's rows only where its environment is there.

    Some methods by name are measured alone, without what needs all of them.
    """
    named = methods or tuple(JOBS)
    held_out = calibration_set(["wikipedia"], lm.tokenizer, n_samples=held_out_rows, seq_len=256, seed=1)
    if not TOOL.exists():
        print(f"  {TOOL} is missing, so nothing is compared to llm-compressor: `make interop` makes it")
    compared: list[Row] = []
    tool = TOOL.exists()
    for some in against_tool(lm, rows, held_out, turns, named) if tool else by_itself(lm, rows, turns, named):
        compared += some
        yield some
    if methods:
        return
    yield grid(lm, rows, turns, compared)
    yield solver(lm, collect_statistics(lm, rows.rows(0, 4), progress=False), max(turns, 3))
