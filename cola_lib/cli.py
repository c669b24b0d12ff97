"""The command line: the library's functions, one command each.

Everything heavy is imported inside the command that needs it, so that ``cola --help`` answers at once, and
everything that can be refused is refused before any work is done. Results go to standard output, progress
and messages to standard error. Exit status: 0 done, 1 a notebook failed, 2 bad input.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from cola_lib.errors import ColaError, OutputError, SpecError, UnknownNameError

if TYPE_CHECKING:
    import pandas as pd

    from cola_lib.calibration import CalibrationSet
    from cola_lib.compress import CompressionReport, Spec
    from cola_lib.models import LanguageModel

BAD_INPUT = 2
NOTEBOOK_FAILED = 1

SUITES = ("capabilities",)
LAYOUTS = ("pack", "truncate", "pad")
FORMATS = ("text", "question", "question_answer", "question_reasoning", "chat", "few_shot")
PROPAGATE = ("compressed", "original")
FINDINGS = ("evidence", "results")
PRUNING = ("sparsity", "pattern")
QUANTIZING = ("bits", "group_size", "symmetric")
FACTORIZING = ("keep",)


class _Group(TyperGroup):
    """Commands whose errors are one line that begins with ``error:``."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run a command, and exit with its status."""
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **kwargs)
        try:
            status = super().main(*args, standalone_mode=False, **kwargs)
        except typer.TyperException as error:
            if not error.format_message():  # no command was given, and the help has been shown
                sys.exit(BAD_INPUT)
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "cola"
            _fail(f"{error.format_message()} (see {command} --help)", BAD_INPUT)
        except ColaError as error:
            _fail(str(error), BAD_INPUT)
        sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(status)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Choose calibration data for compressing a language model, and see what the choice costs.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cola-lib {importlib.metadata.version('cola-lib')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    # typer takes its --help from the Typer object; what stands here runs before every command
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cola_lib").setLevel(logging.INFO)


MODEL, CURATION, CALIBRATION, METHOD, ITEMS, OUTPUT = "Model", "Curation", "Calibration", "Method", "Items", "Output"

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.", rich_help_panel=OUTPUT)]
ProgressOption = Annotated[bool, typer.Option(help="Show progress bars on standard error.", rich_help_panel=OUTPUT)]
DeviceOption = Annotated[
    str,
    typer.Option(help="auto (CUDA when there is some), cpu, cuda or cuda:N.", metavar="NAME", rich_help_panel=MODEL),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        help="auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16.",
        metavar="NAME",
        rich_help_panel=MODEL,
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace --out if it exists.", rich_help_panel=OUTPUT)
]
ModelOption = Annotated[
    str,
    typer.Option(
        help="smollm2-135m, a folder with a checkpoint, or a Hugging Face name such as org/model.",
        metavar="NAME",
        rich_help_panel=MODEL,
    ),
]


# ------------------------------------------------------------------------------------- assets and sources


@app.command()
def assets(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Replace what is damaged, and convert the model anew.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the embedded model, texts and benchmark items into the cache.

    About 180 MB are downloaded and a 540 MB checkpoint is made of them, once. After that no command needs
    the network, and this one only checks that every file is whole. The cache is $COLA_CACHE, or cola-lib in
    your platform's folder for caches.
    """
    from cola_lib import assets as store

    store.fetch(refresh=refresh)
    store.model_dir(refresh=refresh)
    rows = [
        {
            "name": row.name,
            "version": row.version,
            "state": row.state,
            "bytes": row.size,
            "holds": row.holds,
            "licence": row.licence,
            "path": str(row.path),
        }
        for row in store.status()
    ]
    if as_json:
        _print_json(rows)
        return
    table = [[r["name"], r["version"], r["state"], f"{r['bytes'] / 1e6:,.0f} MB", r["holds"]] for r in rows]
    _print_table(["asset", "version", "state", "size", "holds"], table)
    typer.echo(f"\nin {store.cache_dir()}")


@app.command()
def sources(as_json: JsonOption = False) -> None:
    """List the named sources of calibration text.

    A source is split once, by a hash of each item: one part calibrates, the other evaluates. Filters are
    written after the name, as in math:level=5 or mbpp:language=rust. Besides these names, --source takes
    hf:NAME[:config][:split][:column] for a Hugging Face dataset, and paths of .jsonl, .parquet and .txt files.
    """
    from cola_lib.data import load_samples, source_info, source_names

    rows = []
    for name in source_names():
        info = source_info(name)
        items = {split: len(load_samples(name, split)) for split in info.splits}
        rows.append(
            {
                "name": name,
                "summary": info.summary,
                "domain": info.domain,
                "items": items,
                "licence": info.licence,
                "filters": {key: list(values) for key, values in info.filters.items()},
            }
        )
    if as_json:
        _print_json(rows)
        return
    _print_table(
        ["source", "domain", "calibrate", "evaluate", "licence", "filters", "what it is"],
        [
            [
                row["name"],
                row["domain"],
                f"{row['items'].get('calibration', 0):,}",
                f"{row['items'].get('evaluation', 0):,}",
                row["licence"],
                " ".join(row["filters"]) or "-",
                row["summary"],
            ]
            for row in rows
        ],
    )
    typer.echo("\nThe values that a filter takes are in the output of --json.")


# ------------------------------------------------------------------------------------------------ curate


@app.command()
def curate(
    *,
    model: ModelOption,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    strategy: Annotated[
        str,
        typer.Option(
            help="How to choose: cola, proxy, random, uniform_mix and so on; an unknown name lists all.",
            metavar="NAME",
            rich_help_panel=CURATION,
        ),
    ] = "cola",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="An option of the strategy, read as YAML; may be given several times.",
            metavar="NAME=VALUE",
            rich_help_panel=CURATION,
        ),
    ] = None,
    source: Annotated[
        list[str],
        typer.Option(
            help="What to choose from; see `cola sources`. May be given several times.",
            metavar="NAME",
            rich_help_panel=CURATION,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="What the model will be used for: general, a capability (commonsense, math, code ...), or a source "
            "such as a file of prompts like those it will get. Some strategies need it.",
            metavar="NAME",
            rich_help_panel=CURATION,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Look at no more than so many samples of each source.",
            show_default="all",
            metavar="N",
            rich_help_panel=CURATION,
        ),
    ] = None,
    n_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of the set.", show_default="128", metavar="N", rich_help_panel=CALIBRATION),
    ] = None,
    n_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Effective tokens of the set; instead of --n-samples.", metavar="N", rich_help_panel=CALIBRATION
        ),
    ] = None,
    seq_len: Annotated[
        int, typer.Option(min=2, help="Most tokens in a row.", metavar="N", rich_help_panel=CALIBRATION)
    ] = 2048,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of what is drawn.", metavar="N", rich_help_panel=CALIBRATION)
    ] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the dataset and its card.", metavar="DIR", rich_help_panel=OUTPUT)
    ],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    r"""Choose a calibration set, and write it as a Hugging Face dataset.

    The folder holds text, input_ids, attention_mask, source and id of each row, and a card: where the rows come from,
    how many tokens they have, how diverse they are and what of the target they represent. The same arguments give the
    same bytes. `cola compress --calibration DIR` takes it, and so do other tools.

    A set for a model that will do mathematics:

        cola curate --model smollm2-135m --strategy cola --source c4 --source math \
            --source gsm8k --target math --n-samples 32 --seq-len 512 --out math-set
    """
    from cola_lib import curation

    _known("strategy", strategy, curation.STRATEGIES)
    curation.check_folder(out, overwrite=overwrite)
    if n_samples is not None and n_tokens is not None:
        raise SpecError("--n-samples and --n-tokens are two ways to say how large the set is; give one")
    options = _strategy_options(option or [])
    curation.strategy(strategy, **options)
    if curation.STRATEGIES[strategy].needs_target and target is None:
        raise SpecError(f"{strategy} chooses for a target; give --target NAME, or --target general")
    _check_sources(source)
    lm = _load(model, device=device, dtype=dtype)
    began = time.perf_counter()
    made = curation.curate(
        lm,
        strategy,
        source,
        n_samples=128 if n_samples is None and n_tokens is None else n_samples,
        n_tokens=n_tokens,
        seq_len=seq_len,
        target=target,
        seed=seed,
        limit=limit,
        options=options,
    )
    curation.write_dataset(made, out, overwrite=overwrite)
    typer.echo(f"chosen and measured in {time.perf_counter() - began:.0f} s", err=True)
    if as_json:
        _print_json({"out": str(out), **made.facts})
        return
    _show_set(made.facts)
    typer.echo(f"wrote {out}")


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="What `cola curate` wrote.", metavar="DIR")],
    *,
    against: Annotated[Path | None, typer.Option(help="Another one, to compare with.", metavar="DIR")] = None,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw sources and lengths of rows to this file (.png, .svg or .pdf).", metavar="FILE"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --picture if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what a curated set holds, and how it differs from another.

    cola inspect math-set --against web-set --picture sets.png
    """
    from cola_lib import curation

    if picture is not None:
        _check_file(picture, overwrite=overwrite)
    found = {str(path): curation.read_dataset(path) for path in (folder, against) if path is not None}
    if against is not None and len(found) == 1:
        raise SpecError(f"{folder} is compared with itself; give another folder to --against")
    sets = [each.rows for each in found.values()]
    compared = curation.compare(*sets) if against is not None else None
    if picture is not None:
        short = [path.name for path in (folder, against) if path is not None]
        _draw_sets(sets, short if len(set(short)) == len(short) else list(found), picture)
    if as_json:
        _print_json({name: each.facts for name, each in found.items()} | ({"compared": compared} if compared else {}))
        return
    for name, each in found.items():
        typer.echo(f"{name}")
        _show_set(each.facts)
        typer.echo("")
    if compared:
        typer.echo(
            f"shared: {compared['shared_rows']:,} rows, {compared['shared_samples']:,} samples, "
            f"{compared['shared_token_types']:.0%} of all token types; likeness of token frequencies "
            f"{compared['token_similarity']:.2f} of 1"
        )
    if picture is not None:
        typer.echo(f"wrote {picture}")


def _strategy_options(given: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE pairs."""
    import yaml

    options = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise SpecError(f"--option is written NAME=VALUE, not {text!r}")
        try:
            options[name.strip().replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecError(f"--option {name}: {value!r} is no YAML value") from error
    return options


def _show_set(facts: dict[str, Any]) -> None:
    """Print what is known of a curated set."""
    about = facts["set"]
    options = "".join(f", {name} = {value}" for name, value in facts["options"].items())
    typer.echo(f"  {facts['strategy']}{options}; target {facts['target']}; seed {facts['seed']}")
    typer.echo(
        f"  {about['rows']:,} rows of at most {about['seq_len']:,} tokens, {about['effective_tokens']:,} effective "
        f"tokens, {about['token_types']:,} types; {about['repeated_4grams']:.1%} of 4-grams repeated"
    )
    _print_table(
        ("SOURCE", "ROWS", "TOKENS", "SHARE"),
        [
            (source, f"{own['rows']:,}", f"{own['tokens']:,}", f"{own['share']:.1%}")
            for source, own in about["sources"].items()
        ],
    )
    if "diversity" in facts:
        typer.echo(f"  Vendi score: {facts['diversity']['vendi_score']:g} effectively different rows")
    for capability, own in facts.get("representativeness", {}).items():
        typer.echo(f"  {capability}: coverage {own['coverage']:.3f}, MMD {own['mmd']:.3f}")


def _draw_sets(sets: Sequence[CalibrationSet], names: Sequence[str], picture: Path) -> None:
    import pandas as pd

    from cola_lib import figures

    rows = [
        {"set": name, "source": source, "tokens": tokens}
        for name, each in zip(names, sets, strict=True)
        for source, tokens in zip(each.sources, each.attention_mask.sum(1).tolist(), strict=True)
    ]
    figures.use_style()
    figure = figures.set_overview(pd.DataFrame(rows))
    try:
        figure.savefig(picture, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot draw {picture}: {error}") from error


# ------------------------------------------------------------------------------------------------ compress


@app.command()
def compress(
    *,
    model: ModelOption,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Where the text comes from; see `cola sources`. Give it several times for an even mixture. "
            "magnitude, rtn and joint_lowrank need none.",
            metavar="NAME",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="A set that `cola curate` wrote; instead of --source and what says how to draw from it.",
            metavar="DIR",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    n_samples: Annotated[
        int, typer.Option(min=1, help="Rows of the calibration set.", metavar="N", rich_help_panel=CALIBRATION)
    ] = 128,
    seq_len: Annotated[
        int, typer.Option(min=2, help="Tokens in a row.", metavar="N", rich_help_panel=CALIBRATION)
    ] = 2048,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of what is drawn.", metavar="N", rich_help_panel=CALIBRATION)
    ] = 0,
    layout: Annotated[
        str,
        typer.Option(
            help="How texts fill rows: pack (end to end), truncate or pad (one text a row).",
            metavar="NAME",
            rich_help_panel=CALIBRATION,
        ),
    ] = "pack",
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="How a question is worded: text (as its source does), question, question_answer, "
            "question_reasoning, chat (the model's chat template) or few_shot (three solved ones before it).",
            metavar="NAME",
            rich_help_panel=CALIBRATION,
        ),
    ] = "text",
    propagate: Annotated[
        str,
        typer.Option(
            help="Calibrate a block on what reaches it through the compressed blocks before it, or through "
            "the original ones.",
            metavar="NAME",
            rich_help_panel=CALIBRATION,
        ),
    ] = "compressed",
    method: Annotated[
        str,
        typer.Option(
            help="magnitude, wanda or sparsegpt prune; rtn, gptq or awq quantize; joint_lowrank factorizes.",
            metavar="NAME",
            rich_help_panel=METHOD,
        ),
    ],
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Pruning: share of weights to remove.",
            show_default="0.5",
            metavar="SHARE",
            rich_help_panel=METHOD,
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Pruning: keep N of each M neighbouring inputs, as in 2:4; instead of --sparsity.",
            metavar="N:M",
            rich_help_panel=METHOD,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            help="Quantization: bits of a weight, 2 to 8.",
            show_default="4",
            metavar="N",
            rich_help_panel=METHOD,
        ),
    ] = None,
    group_size: Annotated[
        str | None,
        typer.Option(
            help="Quantization: neighbouring inputs that share a scale. -1 takes whole rows, auto the largest "
            "number up to 128 that divides all widths of the model.",
            show_default="auto",
            metavar="N",
            rich_help_panel=METHOD,
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Quantization: fix the zero point in the middle, or fit it.",
            show_default="asymmetric",
            rich_help_panel=METHOD,
        ),
    ] = None,
    act_order: Annotated[
        bool,
        typer.Option("--act-order", help="gptq: begin with the inputs that matter most.", rich_help_panel=METHOD),
    ] = False,
    keep: Annotated[
        float | None,
        typer.Option(
            help="Low rank: share of the factorized layers' parameters to keep.",
            show_default="0.8",
            metavar="SHARE",
            rich_help_panel=METHOD,
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for the checkpoint and its report.json.", metavar="DIR", rich_help_panel=OUTPUT),
    ],
    overwrite: OverwriteOption = False,
    progress: ProgressOption = True,
    as_json: JsonOption = False,
) -> None:
    r"""Compress a model with calibration text, and write a checkpoint that transformers loads.

    Pruning sets weights to zero, quantization rounds them to a grid; the checkpoint holds ordinary weights
    either way, so it is as large as before and shows what compression does to the model's answers.

    Prune half of the weights, calibrated on web text:

        cola compress --model smollm2-135m --source c4 --n-samples 32 \
            --seq-len 512 --method wanda --sparsity 0.5 --out pruned

    Quantize to 3 bits, calibrated on a mixture:

        cola compress --model smollm2-135m --source math --source code \
            --n-samples 32 --seq-len 512 --method gptq --bits 3 --act-order --out quantized
    """
    _known("layout", layout, LAYOUTS)
    _known("format", format_, FORMATS)
    _known("propagate", propagate, PROPAGATE)
    given = {
        "sparsity": sparsity,
        "pattern": pattern,
        "bits": bits,
        "group_size": group_size,
        "symmetric": symmetric,
        "act_order": act_order or None,
        "keep": keep,
    }
    spec = _spec(method, {name: value for name, value in given.items() if value is not None})
    from cola_lib.compress import check_output

    check_output(out, overwrite=overwrite)
    if calibration is not None and source:
        raise SpecError("--calibration names a whole set, and --source what to draw one from; give one")
    read = _curated(spec, calibration)
    names = [] if read is not None else _checked_sources(spec, source or [])

    from cola_lib import compress as compression
    from cola_lib.calibration import calibration_set

    lm = _load(model, device=device, dtype=dtype)
    settled = compression.settle(lm, spec)
    if spec.calibrated:
        if read is None:
            read = calibration_set(
                names, lm.tokenizer, n_samples=n_samples, seq_len=seq_len, seed=seed, layout=layout, format=format_
            )
        typer.echo(read.summary(), err=True)
    report = compression.compress(lm, settled, read, propagate=propagate, progress=progress)
    compression.save_checkpoint(lm, report, out, overwrite=overwrite)
    _show_report(report, out, as_json)


def _spec(method: str, given: dict[str, Any]) -> Spec:
    """Turn the options that were given into a specification, refusing those that the method does not read."""
    from cola_lib.compress import FACTORIZERS, METHODS, PRUNERS, method_spec

    _known("method", method, METHODS)
    does, allowed = "quantizes", (*QUANTIZING, *(("act_order",) if method == "gptq" else ()))
    if method in PRUNERS:
        does, allowed = "prunes", PRUNING
    elif method in FACTORIZERS:
        does, allowed = "factorizes", FACTORIZING
    for name in given:
        if name not in allowed:
            options = ", ".join(f"--{option.replace('_', '-')}" for option in allowed)
            raise SpecError(f"--{name.replace('_', '-')} says nothing to {method}, which {does}; it takes {options}")
    if {"sparsity", "pattern"} <= set(given):
        raise SpecError("--sparsity and --pattern are two ways to say how much to prune; give one")
    if "group_size" in given:
        given["group_size"] = _group_size(given["group_size"])
    return method_spec(method, **given)


def _group_size(text: str) -> int | None:
    """Read ``auto`` or a whole number."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise SpecError(f"--group-size is auto, -1 or a whole number, not {text!r}") from error


def _curated(spec: Spec, folder: Path | None) -> CalibrationSet | None:
    """Read a curated set before the model is loaded."""
    if folder is None:
        return None
    if not spec.calibrated:
        typer.echo(f"note: {spec.method} reads no calibration text; --calibration is not used", err=True)
        return None
    from cola_lib.curation import read_dataset

    return read_dataset(folder).rows


def _checked_sources(spec: Spec, names: Sequence[str]) -> list[str]:
    """Look the sources up before the model is loaded."""
    if not spec.calibrated:
        if names:
            typer.echo(f"note: {spec.method} reads no calibration text; --source is not used", err=True)
        return []
    if not names:
        raise SpecError(f"{spec.method} reads calibration text; give --source NAME (`cola sources` lists them)")
    _check_sources(names)
    return list(names)


def _check_sources(names: Sequence[str]) -> None:
    """Load the sources that need no hub, so that a wrong name is found before the model is loaded."""
    from cola_lib.data import load_samples

    for name in names:
        if not name.startswith("hf:"):
            load_samples(name, "calibration")


def _show_report(report: CompressionReport, out: Path, as_json: bool) -> None:
    facts = report.to_dict()
    if as_json:
        _print_json({"out": str(out), **facts})
        return
    done = facts["spec"]
    amount = f"{done['bits']} bits" if "bits" in done else f"{report.sparsity:.1%} zeros"
    if "keep" in done:
        amount = f"{done['keep']:.1%} of the parameters of queries, keys, gates and ups"
    typer.echo(f"{report.spec.label}: {len(report.layers)} layers, {amount}, {report.seconds:.0f} s")
    if report.output_error is not None:
        typer.echo(f"relative error of the layers' outputs, on average: {report.output_error:.4g}")
    typer.echo(f"wrote {out}")


# ------------------------------------------------------------------------------------------------ evaluate


@app.command()
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
    _known("suite", suite, SUITES)
    _check_file(out, overwrite=overwrite)
    from cola_lib import evaluate as evaluation

    wanted = capability or evaluation.CAPABILITIES
    for name in wanted:
        _known("capability", name, evaluation.CAPABILITIES)
    lm = _load(model, device=device, dtype=dtype)
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
    _write_json(result | {"items": json.loads(scores.to_json(orient="records", double_precision=15))}, out)
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
        _print_json({"out": str(out), **result})
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
    _print_table(["capability", "bits per byte", "accuracy", "items"], table)
    typer.echo(f"\nwrote {out}")


# ----------------------------------------------------------------------------------------------- notebooks


@app.command()
def notebook(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Notebooks by name, such as 02_data_source; all of the profile's if none."),
    ] = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", help="A parameter, read as YAML; may be repeated.", metavar="NAME=VALUE"),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Take parameters from notebooks/profiles/NAME.yml.", metavar="NAME")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the executed notebooks.")] = Path("book/executed"),
    folder: Annotated[Path, typer.Option("--notebooks", help="Folder of the source notebooks.")] = Path("notebooks"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Read no packed results, whatever the profile names.")] = False,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time; they share the cores.", min=1)] = 1,
    progress: ProgressOption = False,
) -> None:
    """Execute notebooks of the book, with parameters of your choice.

    Parameters come from the notebook, then from the profile, then from -p. All are checked before anything
    runs. An executed notebook is written when all of its cells have run, and not before.

        cola notebook 02_data_source -p n_draws=5 -p "sources=[c4, math]" --out my-run
    """
    from cola_lib import book

    chosen = book.read_profile(profile, folder / "profiles") if profile else None
    runs = book.plan(
        names or [],
        folder=folder,
        out=out,
        profile=chosen,
        overrides=book.parse_overrides(parameter or []),
        fresh=fresh,
    )
    numbers = {run.name: f"[{number}/{len(runs)}] {run.name}" for number, run in enumerate(runs, start=1)}
    try:
        for run, seconds in book.run_notebooks(runs, jobs=jobs, progress=progress):
            typer.echo(f"{numbers[run.name]}{' ...' if seconds is None else f': {seconds:.0f} s, {run.out}'}", err=True)
    except book.ExecutionError as error:
        typer.echo(error.traceback, err=True)
        _fail(str(error), NOTEBOOK_FAILED)


@app.command()
def claims(
    store: Annotated[
        str | None,
        typer.Option(
            "--store",
            help="Folder or fsspec URL whose findings are read. Default: evidence, which a repository holds, or "
            "else results, which make book fills.",
            metavar="URL",
        ),
    ] = None,
    parts: Annotated[bool, typer.Option("--parts", help="One row for every part of a claim.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="Also write the scorecard into this Markdown page, where it marks the place.", metavar="FILE"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the scorecard: the paper's claims, its numbers, ours with 95 % intervals, and the verdicts.

    The findings are those that the book's notebooks computed; where they were read is said on standard error.
    """
    from cola_lib.analysis import scorecard, scorecard_parts
    from cola_lib.verdicts import has_findings, recorded, with_scorecard

    store = store or next(filter(has_findings, FINDINGS), FINDINGS[-1])
    findings = [finding for found in recorded(store).values() for finding in found]
    typer.echo(f"findings in {store}", err=True)
    if into is not None:
        try:
            page = with_scorecard(into.read_text(encoding="utf-8"), findings)
            into.write_text(page, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot write the scorecard into {into}: {error}") from error
    table = scorecard_parts(findings) if parts else scorecard(findings)
    if as_json:
        rows = [finding.to_dict() for finding in findings] if parts else table.to_dict("records")
        _print_json(rows)
        return
    columns = ["claim", "part", "ours", "verdict"] if parts else ["claim", "title", "paper", "ours", "verdict"]
    _print_table(columns, table[columns].astype(str).to_numpy().tolist())


@app.command()
def pack(
    out: Annotated[Path, typer.Option(help="Folder that gets cells.parquet and findings.", rich_help_panel=OUTPUT)],
    store: Annotated[
        str, typer.Option("--store", help="Folder or fsspec URL of the results.", metavar="URL")
    ] = "results",
) -> None:
    """Put stored results into one small file, with what the notebooks found beside it, added to what is there.

    What the file holds need not be computed again: give it to a notebook as its parameter packed.
    """
    from cola_lib.experiments import ResultStore
    from cola_lib.verdicts import record, recorded

    out.mkdir(parents=True, exist_ok=True)
    file = out / "cells.parquet"
    n_cells = ResultStore(store, packed=[file] if file.exists() else []).pack(file)
    findings = recorded(store)
    for notebook, found in findings.items():
        record(out, notebook, found)
    typer.echo(f"{n_cells} cells, {file.stat().st_size / 1e6:.1f} MB: {file}")
    typer.echo(f"findings of {len(findings)} notebooks: {out / 'findings'}")


# ------------------------------------------------------------------------------------------------- helpers


def _load(model: str, *, device: str, dtype: str) -> LanguageModel:
    from transformers.utils.logging import disable_progress_bar

    from cola_lib.models import load_model

    disable_progress_bar()  # a bar for each file that is read would stand between those that matter
    return load_model(model, device=device, dtype=dtype)


def _known(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise UnknownNameError(kind, name, known)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns; those of numbers are right-aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    number = [all(row[i][:1].isdigit() or row[i] == "-" for row in rows) for i in range(len(head))]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, number, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def _check_file(out: Path, *, overwrite: bool) -> None:
    """Refuse an output file that exists, before any work is done."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder; give the name of a file")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give --overwrite to replace it, or another --out")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file, so {out} cannot be below it")


def _write_json(value: Any, out: Path) -> None:
    """Write JSON, whole or not at all."""
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise OutputError(f"{out}: could not be written ({error}); nothing is left of it") from error
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    """Run the command line."""
    app(prog_name="cola")


if __name__ == "__main__":
    main()
