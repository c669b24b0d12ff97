"""``cola compress``: a model and calibration text make a smaller model."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_lib.cli.common import check_name, check_sources, load, print_json, read_pairs
from cola_lib.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MethodOptions,
    ModelOption,
    OverwriteOption,
    ProgressOption,
    SeedOption,
    calibration_option,
    expanded,
    flag,
    method_option,
    model_option,
    output_option,
)
from cola_lib.errors import SpecError

if TYPE_CHECKING:
    from cola_lib.api import Compressed
    from cola_lib.compress import Spec
    from cola_lib.curation import Curated
    from cola_lib.export import Export

LAYOUTS = ("pack", "truncate", "pad")
FORMATS = ("text", "question", "question_answer", "question_reasoning", "chat", "few_shot")
PROPAGATE = ("compressed", "original")
SAVED = ("dense", "compressed-tensors")
DRAWING = ("n_samples", "seq_len", "seed", "layout", "format_")
"""Options that say how to draw from a source."""


@expanded(options=MethodOptions)
def compress(
    context: typer.Context,
    *,
    model: ModelOption,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    stream: Annotated[
        bool,
        model_option(
            "--stream",
            help="For models larger than memory: read one block at a time from the checkpoint's safetensors files. "
            "The disk that holds --out needs room for the model.",
        ),
    ] = False,
    source: Annotated[
        list[str] | None,
        calibration_option(
            help="Where the text comes from; see `cola sources`. Give it several times for an even mixture. "
            "magnitude, rtn and joint_lowrank need none.",
            metavar="NAME",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        calibration_option(
            help="A set that `cola curate` wrote; instead of --source and what says how to draw from it.", metavar="DIR"
        ),
    ] = None,
    n_samples: Annotated[int, calibration_option(min=1, help="Rows of the calibration set.", metavar="N")] = 128,
    seq_len: Annotated[int, calibration_option(min=2, help="Tokens in a row.", metavar="N")] = 2048,
    seed: SeedOption = 0,
    layout: Annotated[
        str,
        calibration_option(
            help="How texts fill rows: pack (end to end), truncate or pad (one text a row).", metavar="NAME"
        ),
    ] = "pack",
    format_: Annotated[
        str,
        calibration_option(
            "--format",
            help="How a question is worded: text (as its source does), question, question_answer, "
            "question_reasoning, chat (the model's chat template) or few_shot (three solved ones before it).",
            metavar="NAME",
        ),
    ] = "text",
    propagate: Annotated[
        str,
        calibration_option(
            help="Calibrate a block on what reaches it through the compressed blocks before it, or through "
            "the original ones.",
            metavar="NAME",
        ),
    ] = "compressed",
    layer_errors: Annotated[
        bool,
        calibration_option(
            "--layer-errors/--no-layer-errors",
            help="Report what each layer's output loses, and for gptq, whether it beats rounding on held-out rows. "
            "Without it compression is faster, the weights are the same.",
        ),
    ] = True,
    method: Annotated[
        str,
        method_option(
            help="magnitude, wanda, ria or sparsegpt prune; rtn, gptq or awq quantize weights, and smoothquant "
            "activations too; joint_lowrank factorizes.",
            metavar="NAME",
        ),
    ],
    options: dict[str, Any],
    out: Annotated[Path, output_option(help="Folder for the checkpoint and its report.json.", metavar="DIR")],
    save_as: Annotated[
        str,
        output_option(
            help="dense: ordinary weights. compressed-tensors: packed integers, for vLLM and transformers.",
            metavar="NAME",
        ),
    ] = "dense",
    save_dtype: Annotated[
        str | None,
        output_option(
            help="compressed-tensors: of scales, embeddings and norms; auto takes that of the source.",
            show_default="bfloat16",
            metavar="NAME",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[
        bool,
        output_option("--dry-run", help="Print how much memory it takes; load no weights and write nothing."),
    ] = False,
    progress: ProgressOption = True,
    as_json: JsonOption = False,
) -> None:
    """Compress a model with calibration text, and write a checkpoint that transformers loads."""
    for kind, name, known in (
        ("save-as", save_as, SAVED),
        ("layout", layout, LAYOUTS),
        ("format", format_, FORMATS),
        ("propagate", propagate, PROPAGATE),
    ):
        check_name(kind, name, known)
    spec = _spec(method, options)
    packed = save_as == "compressed-tensors"
    _check_saving(spec, packed, save_dtype, stream)
    if dry_run:
        _show_memory(model, device, dtype, spec, n_samples, seq_len, layer_errors, stream, as_json)
        return
    from cola_lib import api
    from cola_lib.compress import check_output, settle

    check_output(out, overwrite=overwrite)
    made = _curated(spec, calibration, source, context)
    names = [] if made is not None else _checked_sources(spec, source or [])
    # Changed blocks wait beside --out: on the disk where they are wanted, and hidden if the process is killed.
    lm = load(model, device=device, dtype=dtype, stream=stream, scratch=out.absolute().parent)
    settle(lm, spec)  # refuses what does not fit the model before a set is drawn
    rows: Any = made
    if made is None and spec.calibrated:
        drawn: dict[str, Any] = {"layout": layout, "format": format_}
        rows = api.calibration_set(names, lm, n_samples=n_samples, seq_len=seq_len, seed=seed, **drawn)
    if rows is not None:
        typer.echo((made.rows if made is not None else rows).summary(), err=True)
    how: dict[str, Any] = {"propagate": propagate, "layer_errors": layer_errors}
    # After an error nobody reads the model, so its original weights are not kept.
    done = api.compress(lm, spec, rows, **how, keep_codes=packed, keep_originals=False, progress=progress)
    how = {"format": save_as, "dtype": save_dtype or "bfloat16"}
    written = done.save(out, **how, overwrite=overwrite)
    _show_report(done, written, out, as_json)


def _show_memory(
    model: str,
    device: str,
    dtype: str,
    spec: Spec,
    n_samples: int,
    seq_len: int,
    layer_errors: bool,
    stream: bool,
    as_json: bool,
) -> None:
    """Print the peak memory of a compression, from the model's configuration alone."""
    from cola_lib.experiments.plan import ModelShape, compression_memory
    from cola_lib.models.loading import config_of, resolve_device, resolve_dtype

    target = resolve_device(device)
    number = resolve_dtype(dtype, target)
    shape = ModelShape.of(config_of(model), bytes_per_parameter=number.itemsize)
    parts = compression_memory(
        shape, spec, n_samples, seq_len, layer_errors=layer_errors, hold_out=layer_errors, streamed=stream
    )
    total, type_ = sum(parts.values()), str(number).removeprefix("torch.")
    if as_json:
        print_json({"model": model, "device": str(target), "dtype": type_, "bytes": parts, "total_bytes": total})
        return
    typer.echo(f"{spec.label} of {model} in {type_} takes {total / 1e9:,.1f} GB of memory on {target} at its peak:")
    for part, size in parts.items():
        typer.echo(f"{size / 1e9:10,.2f} GB  {part}")


def _spec(method: str, given: dict[str, Any]) -> Spec:
    """Turn the options that were given into a specification, refusing those that have no effect."""
    from cola_lib.compress import METHODS, method_spec

    check_name("method", method, METHODS)
    kind: Any = METHODS[method]
    known = [field.name for field in fields(kind)]
    given = dict(given)
    others = read_pairs(given.pop("option", []))
    for name in given:
        if name not in known:
            takes = ", ".join(flag(option) for option in MethodOptions.__annotations__ if option in known)
            raise SpecError(f"{flag(name)} has no effect with {method}, a {kind.kind} method; it takes {takes}")
    if {"sparsity", "pattern"} <= set(given):
        raise SpecError("--sparsity and --pattern are two ways to say how much to prune; give one")
    if "act_strategy" in given and "act_bits" not in given and kind().act_bits is None:
        raise SpecError(f"--act-strategy has no effect with {method} without --act-bits")
    if "group_size" in given:
        given["group_size"] = _group_size(given["group_size"])
    if "damp" in given:
        given["damp"] = _damp(given["damp"], method)
    return method_spec(method, **given, **others)


def _group_size(text: str) -> int | None:
    """Read ``auto`` or a whole number."""
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise SpecError(f"--group-size is auto, -1 or a whole number, not {text!r}") from error


def _damp(text: str, method: str) -> float | str:
    """Read a number, or ``auto``."""
    if text == "auto" and method == "gptq":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise SpecError(f"--damp is a number{' or auto' * (method == 'gptq')}, not {text!r}") from error


def _check_saving(spec: Spec, packed: bool, save_dtype: str | None, stream: bool) -> None:
    """Refuse a result that could not be written."""
    from cola_lib.export import check_exportable

    if packed:
        check_exportable(spec)
        if stream:
            raise SpecError("--save-as compressed-tensors packs a model that is in memory; leave out --stream")
    elif getattr(spec, "act_bits", None) is not None:
        raise SpecError(
            f"{spec.label} rounds activations when the model runs, and a dense checkpoint cannot say so; give "
            "--save-as compressed-tensors, or round the weights alone"
        )
    elif save_dtype is not None:
        raise SpecError("--save-dtype has no effect without --save-as compressed-tensors; --dtype is the model's")


def _curated(spec: Spec, folder: Path | None, sources: list[str] | None, context: typer.Context) -> Curated | None:
    """Read a curated set before the model is loaded."""
    if folder is None:
        return None
    if sources:
        raise SpecError("--calibration names a whole set, and --source what to draw one from; give one")
    for name in DRAWING:
        given = context.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            raise SpecError(
                f"{flag(name.rstrip('_'))} says how to draw from a --source, and --calibration names a whole set: "
                "leave it out"
            )
    if not spec.calibrated:
        typer.echo(f"note: {spec.method} reads no calibration text; --calibration is not used", err=True)
        return None
    from cola_lib.curation import read_dataset

    return read_dataset(folder)


def _checked_sources(spec: Spec, names: list[str]) -> list[str]:
    """Look the sources up before the model is loaded."""
    if not spec.calibrated:
        if names:
            typer.echo(f"note: {spec.method} reads no calibration text; --source is not used", err=True)
        return []
    if not names:
        raise SpecError(f"{spec.method} reads calibration text; give --source NAME (`cola sources` lists them)")
    check_sources(names)
    return names


def _show_report(done: Compressed, written: Export | None, out: Path, as_json: bool) -> None:
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    report = done.report
    facts = report.to_dict()
    if as_json:
        print_json({"out": str(out), **facts} | ({"export": written.to_dict()} if written else {}))
        return
    spec = facts["spec"]
    amount = f"{spec['bits']} bits" if "bits" in spec else f"{report.sparsity:.1%} zeros"
    if spec.get("act_bits") is not None:
        amount += f", activations {spec['act_bits']}"
    if "keep" in spec:
        amount = f"{spec['keep']:.1%} of the parameters of queries, keys, gates and ups"
    typer.echo(f"{report.spec.label}: {len(report.layers)} layers, {amount}, {report.seconds:.0f} s")
    if report.output_error is not None:
        typer.echo(
            "relative error of the layers' outputs, on average, on the calibration set itself: "
            f"{report.output_error:.4g} (of fewer tokens it is lower; it does not tell which set is better)"
        )
    judged = [layer for layer in report.layers if layer.held_out_ratio is not None]
    if judged:
        typer.echo(
            f"on held-out rows, less error than rounding to nearest in {len(judged) - len(report.overfitted)} of "
            f"{len(judged)} layers"
        )
    if spec.get("damp") == "auto":
        counts = Counter(layer.damp for layer in report.layers)
        typer.echo("damping: " + ", ".join(f"{damp:g} in {counts[damp]} layers" for damp in sorted(counts, key=float)))
    if written is not None:
        typer.echo(
            f"{written.bytes / 1e6:,.1f} MB, where {written.dtype} takes {written.dense_bytes / 1e6:,.1f}; the "
            f"quantized layers {written.layer_bytes / written.dense_layer_bytes:.1%} of theirs"
        )
        for limit in written.limits:
            typer.echo(f"note: {limit}", err=True)
    typer.echo(f"wrote {out}")
