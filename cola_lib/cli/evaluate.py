"""``cola evaluate``: what a model can do."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_lib.cli.common import check_file, check_name, load, print_json, print_table, write_json
from cola_lib.cli.options import (
    ITEMS,
    OUTPUT,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    ProgressOption,
)

if TYPE_CHECKING:
    import pandas as pd

SUITES = ("capabilities",)


def evaluate(
    *,
    model: ModelOption,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    suite: Annotated[
        str,
        typer.Option(
            help="capabilities is the one there is: language, commonsense, math, code and knowledge.",
            metavar="NAME",
            rich_help_panel=ITEMS,
        ),
    ] = "capabilities",
    capability: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this capability; may be given several times.",
            show_default="all",
            metavar="NAME",
            rich_help_panel=ITEMS,
        ),
    ] = None,
    tokens_per_capability: Annotated[
        int,
        typer.Option(
            min=1, help="Tokens to run for each capability, contexts included.", metavar="N", rich_help_panel=ITEMS
        ),
    ] = 4096,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the choice of items.", metavar="N", rich_help_panel=ITEMS)
    ] = 0,
    out: Annotated[
        Path,
        typer.Option(
            help="JSON file: a summary by capability, and each item's score.",
            metavar="FILE",
            rich_help_panel=OUTPUT,
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
    """
    check_name("suite", suite, SUITES)
    check_file(out, overwrite=overwrite)
    from cola_lib import evaluate as evaluation

    wanted = capability or evaluation.CAPABILITIES
    for name in wanted:
        check_name("capability", name, evaluation.CAPABILITIES)
    lm = load(model, device=device, dtype=dtype)
    items = evaluation.capability_suite(
        lm.tokenizer, tokens_per_capability=tokens_per_capability, seed=seed, capabilities=wanted
    )
    began = time.perf_counter()
    scores = evaluation.evaluate(lm, items, progress=progress)
    result = {
        "model": lm.name,
        "model_fingerprint": lm.fingerprint,
        "suite": {
            "name": suite,
            "seed": seed,
            "tokens_per_capability": tokens_per_capability,
            "fingerprint": items.fingerprint,
        },
        "capabilities": _by_capability(scores),
        "seconds": round(time.perf_counter() - began, 3),
        "device": str(lm.device),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "versions": {name: importlib.metadata.version(name) for name in ("cola-lib", "torch", "transformers")}
        | {"python": platform.python_version()},
    }
    write_json(result | {"items": json.loads(scores.to_json(orient="records", double_precision=15))}, out)
    _show_scores(result, out, as_json)


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
