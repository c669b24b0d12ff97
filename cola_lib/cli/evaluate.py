"""``cola evaluate``: what a model can do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_lib.cli.common import check_file, check_name, load, print_json, print_table
from cola_lib.cli.options import (
    DeviceOption,
    DtypeOption,
    HarnessOptions,
    JsonOption,
    LikelihoodOptions,
    ModelOption,
    OverwriteOption,
    ProgressOption,
    expanded,
    flag,
    items_option,
    output_option,
)
from cola_lib.errors import SpecError

if TYPE_CHECKING:
    from cola_lib.evaluate.harness import HarnessResult, HarnessSuite

SUITES = ("capabilities",)
BACKENDS = ("likelihood", "lm-eval")


@expanded(options=LikelihoodOptions, harness=HarnessOptions)
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
    options: dict[str, Any],
    harness: dict[str, Any],
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
    """Measure what a model can do, capability by capability."""
    check_name("backend", backend, BACKENDS)
    check_file(out, overwrite=overwrite)
    for name in harness if backend == "likelihood" else options:
        raise SpecError(f"{flag(name)} has no effect with --backend {backend}; leave it out, or take the other backend")
    if backend == "lm-eval":
        running = {name: harness.pop(name) for name in ("batch_size", "allow_code_execution") if name in harness}
        choice = _harness_suite(suite, **harness)
        _check_code(choice, running.get("allow_code_execution", False))
        lm = load(model, device=device, dtype=dtype)
        from cola_lib import api
        from cola_lib.folders import write_json

        report = api.evaluate(lm, choice, **running, progress=progress)
        write_json(report.to_dict(), out)
        _show_report(report, out, as_json)
        return
    if suite not in SUITES and _is_of_lm_eval(suite):
        raise SpecError(f"suite {suite!r} is for --backend lm-eval; the backend likelihood has {', '.join(SUITES)}")
    check_name("suite", suite, SUITES)
    from cola_lib import api
    from cola_lib.evaluate import CAPABILITIES, LINES

    given = {_VERB.get(name, name): value for name, value in options.items()}
    for name in given.get("capabilities", ()):
        check_name("capability", name, (*CAPABILITIES, *LINES))
    lm = load(model, device=device, dtype=dtype)
    found = api.evaluate(lm, **given, progress=progress)
    found.save(out)
    _show_scores(found.to_dict(), out, as_json)


_VERB = {"capability": "capabilities", "eval_dtype": "dtype"}
"""Options that :func:`cola_lib.api.evaluate` calls otherwise."""


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
