"""The command line's frame: its errors, its log, its exit status."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from cola_lib.errors import ColaError
from cola_lib.registry import load_plugins

BAD_INPUT = 2
DEBUG = "COLA_DEBUG"
"""Environment variable that shows the traceback of an unexpected error."""

NOTEBOOK_FAILED = 1


class _Group(TyperGroup):
    """Commands whose errors are one line that begins with ``error:``."""

    def _main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, and let its errors out."""
        return super().main(*args, **{**kwargs, "standalone_mode": False})

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        """Run a command, and exit with its status."""
        if not standalone_mode:
            return self._main(*args, **kwargs)
        try:
            status = self._main(*args, **kwargs)
        except typer.TyperException as error:
            if not error.format_message():  # no command was given, and the help has been shown
                sys.exit(BAD_INPUT)
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "cola"
            fail(f"{error.format_message()} (see {command} --help)", BAD_INPUT)
        except ColaError as error:
            fail(str(error), BAD_INPUT)
        except MemoryError:
            fail("not enough memory; ask for fewer or shorter samples, a smaller budget, or --stream", BAD_INPUT)
        except Exception as error:  # whatever a library raised that nobody translated
            if os.environ.get(DEBUG):
                raise
            fail(f"{type(error).__name__}: {error}. {DEBUG}=1 shows where it comes from", BAD_INPUT)
        sys.exit(status if isinstance(status, int) else 0)


def fail(message: str, status: int) -> NoReturn:
    """Say on one line what was wrong, and end with ``status``."""
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


def _show_version(verbose: bool) -> None:
    typer.echo(f"cola-lib {importlib.metadata.version('cola-lib')}")
    if verbose:
        from cola_lib.arithmetic import measured_products

        for name in ("numpy", "torch", "transformers"):
            typer.echo(f"{name} {importlib.metadata.version(name)}")
        typer.echo(f"float32 products on the CPU: {measured_products()}")


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version, also show what computes: packages and products.")
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            help="Module, or .py file, that registers sources, methods or strategies of your own; may be repeated.",
            metavar="NAME",
        ),
    ] = None,
) -> None:
    # typer takes its --help from the Typer object; what stands here runs before every command
    if version:
        _show_version(verbose)
        raise typer.Exit
    if context.invoked_subcommand is None:
        fail("no command was given (see cola --help)", BAD_INPUT)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cola_lib").setLevel(logging.INFO)
    load_plugins(plugin or [])


def main() -> None:
    """Run the command line."""
    app(prog_name="cola")
