"""``cola compress``: a model and calibration text make a smaller model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from cola_lib.cli.common import check_name, check_sources, load, print_json
from cola_lib.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    ProgressOption,
    SeedOption,
    calibration_option,
    method_option,
    model_option,
    output_option,
)
from cola_lib.errors import DataError, SpecError

if TYPE_CHECKING:
    from cola_lib.calibration import CalibrationSet, Format, Layout
    from cola_lib.compress import CompressionReport, Spec
    from cola_lib.curation import Curated
    from cola_lib.export import Export
    from cola_lib.models import LanguageModel
    from cola_lib.statistics import Propagate

LAYOUTS = ("pack", "truncate", "pad")
FORMATS = ("text", "question", "question_answer", "question_reasoning", "chat", "few_shot")
PROPAGATE = ("compressed", "original")
PRUNING = ("sparsity", "pattern")
SHOWN_LAYERS = 5
"""Layers that a note names before it counts the others."""
QUANTIZING = ("bits", "group_size", "symmetric", "act_bits", "act_strategy")
OWN = {"gptq": ("damp", "act_order", "static_groups"), "awq": ("duo_scaling",), "smoothquant": ("alpha", "smooth")}
"""Options of one quantizer only."""
FACTORIZING = ("keep",)
SECOND_ORDER = ("sparsegpt", "gptq")
SAVED = ("dense", "compressed-tensors")


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
    sparsity: Annotated[
        float | None, method_option(help="Pruning: share of weights to remove.", show_default="0.5", metavar="SHARE")
    ] = None,
    pattern: Annotated[
        str | None,
        method_option(
            help="Pruning: keep N of each M neighbouring inputs, as in 2:4; instead of --sparsity.", metavar="N:M"
        ),
    ] = None,
    bits: Annotated[
        int | None,
        method_option(
            help="Quantization: bits of a weight, 2 to 8.",
            show_default="4; smoothquant: 8",
            metavar="N",
        ),
    ] = None,
    group_size: Annotated[
        str | None,
        method_option(
            help="Quantization: neighbouring inputs that share a scale. -1 takes whole rows, auto the largest "
            "number up to 128 that divides all widths of the model.",
            show_default="auto; smoothquant: -1",
            metavar="N",
        ),
    ] = None,
    symmetric: Annotated[
        bool | None,
        method_option(
            "--symmetric/--asymmetric",
            help="Quantization: fix the zero point in the middle, or fit it.",
            show_default="asymmetric; smoothquant: symmetric",
        ),
    ] = None,
    act_bits: Annotated[
        int | None,
        method_option(
            help="Quantization: bits of an activation, 2 to 8; left out, activations stay as they are.",
            show_default="none; smoothquant: 8",
            metavar="N",
        ),
    ] = None,
    act_strategy: Annotated[
        str | None,
        method_option(
            help="With --act-bits: token (a range for each token, as it comes) or tensor (one for each layer, from the "
            "calibration text).",
            show_default="token",
            metavar="NAME",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        method_option(
            help="smoothquant: how much of the activations' outliers the weights take over, 0 to 1.",
            show_default="0.5",
            metavar="SHARE",
        ),
    ] = None,
    smooth: Annotated[
        str | None,
        method_option(
            help="smoothquant: smooth all inputs that can be, or those only that follow norms.",
            show_default="all",
            metavar="NAME",
        ),
    ] = None,
    damp: Annotated[
        str | None,
        method_option(
            help="gptq, sparsegpt: share of the Hessian's mean diagonal that is added to its diagonal. gptq: auto "
            "chooses it for each input, on a fifth of the calibration rows.",
            show_default="0.01",
            metavar="SHARE",
        ),
    ] = None,
    act_order: Annotated[
        bool, method_option("--act-order", help="gptq: begin with the inputs that matter most.")
    ] = False,
    static_groups: Annotated[
        bool,
        method_option(
            "--static-groups",
            help="gptq: fit scales before rounding begins, so that --act-order leaves groups together.",
        ),
    ] = False,
    duo_scaling: Annotated[
        bool,
        method_option(
            "--duo-scaling",
            help="awq: also try scales that fall with the size of a channel's weights. Twice the search.",
        ),
    ] = False,
    keep: Annotated[
        float | None,
        method_option(
            help="Low rank: share of the factorized layers' parameters to keep.", show_default="0.8", metavar="SHARE"
        ),
    ] = None,
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
    r"""Compress a model with calibration text, and write a checkpoint that transformers loads.

    Pruning sets weights to zero, quantization rounds them to a grid; the checkpoint holds ordinary weights
    either way, in the data type of the source whatever --dtype is. It is as large as before, and shows what
    compression does to the model's answers. With --save-as compressed-tensors a quantized model is stored as the
    integers that it consists of; one that rounds its activations too can be stored in no other way.

    Prune half of the weights, calibrated on web text:

        cola compress --model smollm2-135m --source c4 --n-samples 32 \
            --seq-len 512 --method wanda --sparsity 0.5 --out pruned

    Quantize to 3 bits, calibrated on a mixture:

        cola compress --model smollm2-135m --source math --source code \
            --n-samples 32 --seq-len 512 --method gptq --bits 3 --act-order --out quantized

    Quantize to 4 bits for vLLM:

        cola compress --model smollm2-135m --source c4 --n-samples 32 --seq-len 512 --method gptq \
            --group-size 64 --symmetric --save-as compressed-tensors --out packed

    Quantize weights and activations to 8 bits:

        cola compress --model smollm2-135m --source c4 --n-samples 32 --seq-len 512 --method smoothquant \
            --alpha 0.5 --save-as compressed-tensors --out w8a8

    Prune a model that is larger than memory:

        cola compress --model meta-llama/Meta-Llama-3-8B-Instruct --stream --source c4 --n-samples 64 \
            --method wanda --pattern 4:8 --out pruned
    """
    check_name("save-as", save_as, SAVED)
    check_name("layout", layout, LAYOUTS)
    check_name("format", format_, FORMATS)
    check_name("propagate", propagate, PROPAGATE)
    given = {
        "sparsity": sparsity,
        "pattern": pattern,
        "bits": bits,
        "group_size": group_size,
        "symmetric": symmetric,
        "act_bits": act_bits,
        "act_strategy": act_strategy,
        "alpha": alpha,
        "smooth": smooth,
        "damp": damp,
        "act_order": act_order or None,
        "static_groups": static_groups or None,
        "duo_scaling": duo_scaling or None,
        "keep": keep,
    }
    spec = _spec(method, {name: value for name, value in given.items() if value is not None})
    from cola_lib import export
    from cola_lib.compress import check_output

    packed = save_as == "compressed-tensors"
    if packed:
        export.check_exportable(spec)
        if stream:
            raise SpecError("--save-as compressed-tensors packs a model that is in memory; leave out --stream")
    elif getattr(spec, "act_bits", None) is not None:
        raise SpecError(
            f"{spec.label} rounds activations when the model runs, and a dense checkpoint cannot say so; give "
            "--save-as compressed-tensors, or round the weights alone"
        )
    elif save_dtype is not None:
        raise SpecError("--save-dtype says nothing without --save-as compressed-tensors; --dtype is that of the model")
    if dry_run:
        _show_memory(model, device, dtype, spec, n_samples, seq_len, layer_errors, stream, as_json)
        return
    check_output(out, overwrite=overwrite)
    if calibration is not None and source:
        raise SpecError("--calibration names a whole set, and --source what to draw one from; give one")
    made = _curated(spec, calibration, context)
    read = made.rows if made is not None else None
    names = [] if read is not None else _checked_sources(spec, source or [])

    from cola_lib import compress as compression
    from cola_lib.calibration import calibration_set

    # Changed blocks wait beside --out: on the disk where they are wanted, and hidden if the process is killed.
    lm = load(model, device=device, dtype=dtype, stream=stream, scratch=out.absolute().parent)
    settled = compression.settle(lm, spec)
    if made is not None:
        _check_tokenizer(lm, made.facts, calibration)
    if spec.calibrated:
        if read is None:
            lm.check_length(seq_len)
            as_layout, as_format = cast("Layout", layout), cast("Format", format_)  # refused there if they are none
            read = calibration_set(
                names, lm.tokenizer, n_samples=n_samples, seq_len=seq_len, seed=seed, layout=as_layout, format=as_format
            )
        typer.echo(read.summary(), err=True)
        _note_size(lm, spec, read)
    report = compression.compress(
        lm,
        settled,
        read,
        propagate=cast("Propagate", propagate),
        hold_out=layer_errors and read is not None and read.n_samples > 1,
        layer_errors=layer_errors,
        keep_codes=packed,
        keep_originals=False,  # after an error nobody reads the model
        progress=progress,
    )
    written = None
    if packed:
        written = export.export_quantized(lm, report, out, dtype=save_dtype or "bfloat16", overwrite=overwrite)
    elif isinstance(settled, compression.PruneSpec):
        export.export_sparse(lm, report, out, overwrite=overwrite)
    else:
        compression.save_checkpoint(lm, report, out, overwrite=overwrite)
    _note_overfitting(report)
    _show_report(report, written, out, as_json)


def _note_overfitting(report: CompressionReport) -> None:
    """Name the layers in which GPTQ loses to rounding on rows that it has not seen."""
    layers = report.overfitted
    if not layers:
        return
    worst = sorted(report.layers, key=lambda each: -(each.held_out_ratio or 0))[: min(SHOWN_LAYERS, len(layers))]
    named = ", ".join(f"{each.layer} ({each.held_out_ratio:.2f} times)" for each in worst)
    more = f" and {len(layers) - len(worst)} more" if len(layers) > len(worst) else ""
    cure = "more tokens, a larger --damp, or --damp auto"
    if getattr(report.spec, "damp", None) == "auto":
        cure = "more tokens, or --method rtn if there are none; no damping that was tried is better than rounding there"
    typer.echo(
        f"warning: on held-out rows gptq makes more error than rounding to nearest in {len(layers)} of "
        f"{len(report.layers)} layers: {named}{more}. It has fitted the calibration text; try {cure}",
        err=True,
    )


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
    """Turn the options that were given into a specification, refusing those that the method does not read."""
    from cola_lib.compress import METHODS, LowRankSpec, PruneSpec, method_spec

    check_name("method", method, METHODS)
    does, allowed = "quantizes", (*QUANTIZING, *OWN.get(method, ()))
    if issubclass(METHODS[method], PruneSpec):
        does, allowed = "prunes", (*PRUNING, *(["damp"] if method == "sparsegpt" else []))
    elif issubclass(METHODS[method], LowRankSpec):
        does, allowed = "factorizes", FACTORIZING
    for name in given:
        if name not in allowed:
            options = ", ".join(f"--{option.replace('_', '-')}" for option in allowed)
            raise SpecError(f"--{name.replace('_', '-')} says nothing to {method}, which {does}; it takes {options}")
    if {"sparsity", "pattern"} <= set(given):
        raise SpecError("--sparsity and --pattern are two ways to say how much to prune; give one")
    if "act_strategy" in given and "act_bits" not in given and method != "smoothquant":
        raise SpecError(f"--act-strategy says nothing to {method} without --act-bits")
    if "group_size" in given:
        given["group_size"] = _group_size(given["group_size"])
    if "damp" in given:
        given["damp"] = _damp(given["damp"], method)
    return method_spec(method, **given)


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


DRAWING = {
    "n_samples": "--n-samples",
    "seq_len": "--seq-len",
    "seed": "--seed",
    "layout": "--layout",
    "format_": "--format",
}
"""Options that say how to draw from a source."""


def _curated(spec: Spec, folder: Path | None, context: typer.Context) -> Curated | None:
    """Read a curated set before the model is loaded."""
    if folder is None:
        return None
    for name, option in DRAWING.items():
        given = context.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            raise SpecError(
                f"{option} says how to draw from a --source, and --calibration names a whole set: leave it out"
            )
    if not spec.calibrated:
        typer.echo(f"note: {spec.method} reads no calibration text; --calibration is not used", err=True)
        return None
    from cola_lib.curation import read_dataset

    return read_dataset(folder)


def _check_tokenizer(lm: LanguageModel, facts: Mapping[str, Any], folder: Path | None) -> None:
    """Refuse a set whose token ids mean something else to this model."""
    known = facts.get("tokenizer")
    if known is not None and known != lm.tokenizer_fingerprint:
        raise DataError(
            f"the set in {folder} was written with the tokenizer of {facts.get('model', 'another model')}, for which "
            f"its token ids mean something else than for {lm.name}: curate it again for this model"
        )


def _note_size(lm: LanguageModel, spec: Spec, rows: CalibrationSet) -> None:
    """Say so where a method that solves with the inputs' matrix is given fewer tokens than that has rows."""
    widest = max(lm.blocks[0].get_parameter(f"{name}.weight").shape[1] for name in lm.architecture.layers)
    if spec.method in SECOND_ORDER and rows.n_tokens < widest:
        typer.echo(
            f"note: {rows.n_tokens:,} tokens for layers of up to {widest:,} inputs; {spec.method} solves with a matrix "
            "of that many rows, and wants several times as many tokens",
            err=True,
        )


def _checked_sources(spec: Spec, names: Sequence[str]) -> list[str]:
    """Look the sources up before the model is loaded."""
    if not spec.calibrated:
        if names:
            typer.echo(f"note: {spec.method} reads no calibration text; --source is not used", err=True)
        return []
    if not names:
        raise SpecError(f"{spec.method} reads calibration text; give --source NAME (`cola sources` lists them)")
    check_sources(names)
    return list(names)


def _show_report(report: CompressionReport, written: Export | None, out: Path, as_json: bool) -> None:
    facts = report.to_dict()
    if as_json:
        print_json({"out": str(out), **facts} | ({"export": written.to_dict()} if written else {}))
        return
    done = facts["spec"]
    amount = f"{done['bits']} bits" if "bits" in done else f"{report.sparsity:.1%} zeros"
    if done.get("act_bits") is not None:
        amount += f", activations {done['act_bits']}"
    if "keep" in done:
        amount = f"{done['keep']:.1%} of the parameters of queries, keys, gates and ups"
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
    if done.get("damp") == "auto":
        counts = Counter(layer.damp for layer in report.layers if layer.damp is not None)
        typer.echo("damping: " + ", ".join(f"{damp:g} in {counts[damp]} layers" for damp in sorted(counts)))
    if written is not None:
        typer.echo(
            f"{written.bytes / 1e6:,.1f} MB, where {written.dtype} takes {written.dense_bytes / 1e6:,.1f}; the "
            f"quantized layers {written.layer_bytes / written.dense_layer_bytes:.1%} of theirs"
        )
        for limit in written.limits:
            typer.echo(f"note: {limit}", err=True)
    typer.echo(f"wrote {out}")
