"""``cola assets`` and ``cola sources``: what there is to calibrate on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cola_lib.cli.common import print_json, print_table
from cola_lib.cli.options import JsonOption


def assets(
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Replace what is damaged, and convert the model anew.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Fetch the embedded model, texts and benchmark items into the cache."""
    from cola_lib import assets as store

    store.fetch(refresh=refresh)
    store.model_dir(refresh=refresh)
    rows: list[dict[str, Any]] = [
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
        print_json(rows)
        return
    table = [[r["name"], r["version"], r["state"], f"{r['bytes'] / 1e6:,.0f} MB", r["holds"]] for r in rows]
    print_table(["asset", "version", "state", "size", "holds"], table)
    typer.echo(f"\nin {store.cache_dir()}")


def sources(as_json: JsonOption = False) -> None:
    """List the named sources of calibration text."""
    from cola_lib.data import load_samples, source_info, source_names

    rows: list[dict[str, Any]] = []
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
        print_json(rows)
        return
    print_table(
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
