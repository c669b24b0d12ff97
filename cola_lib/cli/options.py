"""Options that several commands have, and the panels of their help."""

from __future__ import annotations

from typing import Annotated

import typer

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
