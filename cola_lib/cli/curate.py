"""``cola curate`` and ``cola inspect``: choose a calibration set, and look at one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cola_lib.cli.common import check_file, check_name, check_sources, load, print_json, print_table, read_pairs
from cola_lib.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OverwriteOption,
    SeedOption,
    calibration_option,
    curation_option,
    output_option,
)
from cola_lib.errors import OutputError, SpecError

if TYPE_CHECKING:
    from cola_lib.calibration import CalibrationSet


def curate(
    *,
    model: ModelOption,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    strategy: Annotated[
        str,
        curation_option(
            help="How to choose: cola (the paper's), proxy (for texts like the model's use), random, uniform_mix and "
            "so on; an unknown name lists all.",
            metavar="NAME",
        ),
    ] = "cola",
    option: Annotated[
        list[str] | None,
        curation_option(
            help="An option of the strategy, read as YAML; may be given several times.", metavar="NAME=VALUE"
        ),
    ] = None,
    source: Annotated[
        list[str],
        curation_option(help="What to choose from; see `cola sources`. May be given several times.", metavar="NAME"),
    ],
    target: Annotated[
        str | None,
        curation_option(
            help="What the model will be used for: general, a capability (commonsense, math, code ...), or a source "
            "such as a file of prompts like those it will get. Some strategies need it.",
            metavar="NAME",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        curation_option(
            min=1, help="Look at no more than so many samples of each source.", show_default="all", metavar="N"
        ),
    ] = None,
    n_samples: Annotated[
        int | None, calibration_option(min=1, help="Rows of the set.", show_default="128", metavar="N")
    ] = None,
    n_tokens: Annotated[
        int | None, calibration_option(min=1, help="Effective tokens of the set; instead of --n-samples.", metavar="N")
    ] = None,
    seq_len: Annotated[int, calibration_option(min=2, help="Most tokens in a row.", metavar="N")] = 2048,
    seed: SeedOption = 0,
    out: Annotated[Path, output_option(help="Folder for the dataset and its card.", metavar="DIR")],
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Choose a calibration set, and write it as a Hugging Face dataset."""
    from cola_lib import api, curation

    check_name("strategy", strategy, curation.STRATEGIES)
    curation.check_folder(out, overwrite=overwrite)
    if n_samples is not None and n_tokens is not None:
        raise SpecError("--n-samples and --n-tokens are two ways to say how large the set is; give one")
    options = read_pairs(option or [])
    if curation.strategy(strategy, **options).needs_target and target is None:
        raise SpecError(f"{strategy} chooses for a target; give --target NAME, or --target general")
    check_sources(source)
    lm = load(model, device=device, dtype=dtype)
    began = time.perf_counter()
    typer.echo(f"{strategy} chooses from {', '.join(source)} ...", err=True)
    size: dict[str, Any] = {"n_samples": n_samples, "n_tokens": n_tokens, "seq_len": seq_len, "limit": limit}
    made = api.curate(lm, strategy, source, target=target, seed=seed, options=options, **size)
    made.save(out, overwrite=overwrite)
    typer.echo(f"chosen and measured in {time.perf_counter() - began:.0f} s", err=True)
    if as_json:
        print_json({"out": str(out), **made.facts})
        return
    _show_set(made.facts)
    typer.echo(f"wrote {out}")


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
    """Show what a curated set holds, and how it differs from another."""
    from cola_lib import curation

    if picture is not None:
        check_file(picture, overwrite=overwrite)
    found = {str(path): curation.read_dataset(path) for path in (folder, against) if path is not None}
    if against is not None and len(found) == 1:
        raise SpecError(f"{folder} is compared with itself; give another folder to --against")
    sets = [each.rows for each in found.values()]
    compared = curation.compare(*sets) if against is not None else None
    if picture is not None:
        short = [path.name for path in (folder, against) if path is not None]
        _draw_sets(sets, short if len(set(short)) == len(short) else list(found), picture)
    if as_json:
        print_json({name: each.facts for name, each in found.items()} | ({"compared": compared} if compared else {}))
        return
    for name, each in found.items():
        typer.echo(f"{name}")
        _show_set(each.facts)
        typer.echo("")
    if compared:
        typer.echo(
            f"shared: {compared['shared_rows']:,} rows, {compared['shared_samples']:,} samples, "
            f"{compared['shared_token_types']:.0%} of all token types, {compared['token_overlap']:.0%} of the tokens"
        )
    if picture is not None:
        typer.echo(f"wrote {picture}")


def _show_set(facts: Mapping[str, Any]) -> None:
    """Print what is known of a curated set."""
    about = facts["set"]
    options = "".join(f", {name} = {value}" for name, value in facts.get("options", {}).items())
    how = facts.get("strategy", "by hand")
    typer.echo(f"  {how}{options}; target {facts.get('target')}; seed {facts.get('seed')}")
    typer.echo(
        f"  {about['rows']:,} rows of at most {about['seq_len']:,} tokens, {about['effective_tokens']:,} effective "
        f"tokens, {about['token_types']:,} types; {about['repeated_4grams']:.1%} of 4-grams repeated"
    )
    print_table(
        ("SOURCE", "ROWS", "TOKENS", "SHARE"),
        [
            (source, f"{own['rows']:,}", f"{own['tokens']:,}", f"{own['share']:.1%}")
            for source, own in about["sources"].items()
        ],
    )
    if "diversity" in facts:
        typer.echo(
            f"  Vendi score: {facts['diversity']['vendi_score']:g} effectively different rows (near 1 for any texts)"
        )
    for capability, own in facts.get("representativeness", {}).items():
        nearer = "higher is nearer), MMD", "lower is nearer)"
        typer.echo(f"  {capability}: coverage {own['coverage']:.3f} ({nearer[0]} {own['mmd']:.3f} ({nearer[1]}")


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
