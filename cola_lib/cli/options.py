"""Options that several commands have, and the panels of their help."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

model_option = partial(typer.Option, rich_help_panel="Model")
curation_option = partial(typer.Option, rich_help_panel="Curation")
calibration_option = partial(typer.Option, rich_help_panel="Calibration")
method_option = partial(typer.Option, rich_help_panel="Method")
items_option = partial(typer.Option, rich_help_panel="Items")
harness_option = partial(typer.Option, rich_help_panel="lm-eval")
output_option = partial(typer.Option, rich_help_panel="Output")

ModelOption = Annotated[
    str,
    model_option(
        help="smollm2-135m, a folder with a checkpoint, or a Hugging Face name such as org/model.", metavar="NAME"
    ),
]
DeviceOption = Annotated[str, model_option(help="auto (CUDA when there is some), cpu, cuda or cuda:N.", metavar="NAME")]
DtypeOption = Annotated[
    str,
    model_option(
        help="To compute in: auto (bfloat16 on CUDA, else float32), float32, bfloat16 or float16.", metavar="NAME"
    ),
]
SeedOption = Annotated[int, calibration_option(min=0, help="Seed of what is drawn.", metavar="N")]

OverwriteOption = Annotated[bool, output_option("--overwrite", help="Replace --out if it exists.")]
ProgressOption = Annotated[bool, output_option(help="Show progress bars on standard error.")]
JsonOption = Annotated[bool, output_option("--json", help="Print JSON instead of text.")]
