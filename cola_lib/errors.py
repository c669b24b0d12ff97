"""Errors that say what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class ColaError(Exception):
    """Base of every error this library raises on purpose.

    The command line shows its message on one line and exits with status 2, so a message reads as
    a sentence: what was wrong, where, and what mends it. It can be pickled, to be raised again in another process.

    Examples
    --------
    >>> from cola_lib.data import load_samples
    >>> from cola_lib.errors import ColaError
    >>> try:
    ...     load_samples("wikipedai")
    ... except ColaError as error:
    ...     print(str(error).partition(". ")[0])
    unknown source 'wikipedai'; nearest: wikipedia
    """

    def __reduce__(self) -> tuple[Callable[..., ColaError], tuple[Any, ...]]:
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[ColaError], args: tuple[Any, ...], state: dict[str, Any]) -> ColaError:
    """Rebuild an error without its ``__init__``, which takes other arguments than the message it makes."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn whatever another library raises into one line of ours."""
    try:
        yield
    except (ColaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except MemoryError as error:
        raise ColaError(f"{what}: there is not enough memory") from error
    except BaseException as error:  # a panic of the tokenizers package is no Exception
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        if "trust_remote_code" in str(error):  # transformers recommends it
            reason = "it needs code of its own, which is never run here"
        elif not reason or not isinstance(error, OSError | ValueError):
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        raise ColaError(f"{what}: {reason}") from error


class UnknownNameError(ColaError):
    """A name that is in no registry."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        nearest = difflib.get_close_matches(name, self.known, n=3, cutoff=0.5)
        offer = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(self.known)}"
        super().__init__(f"unknown {kind} {name!r}; {offer}" + (f". {hint}" if hint else ""))


class AssetError(ColaError):
    """A packaged asset is missing, truncated or altered."""


class DataError(ColaError):
    """A source or a set has too little, or unusable, data."""


class SpecError(ColaError):
    """A method was asked for something that it or the layer's shape cannot give."""


class NumericsError(ColaError):
    """NaN, infinity or a singular matrix where numbers were needed."""

    def __init__(self, layer: str, problem: str) -> None:
        self.layer = layer
        super().__init__(f"{layer}: {problem}")


class OutputError(ColaError):
    """An output exists already, or could not be written whole."""


class StoreError(ColaError):
    """The result store holds something that it cannot read, or cannot be written."""


class ClusterError(ColaError):
    """A cluster cannot be reached, has no room for what is asked, or lost a worker too often."""


class SandboxError(ColaError):
    """Code that a model wrote may not run, or cannot be contained on this machine."""


class EvidenceError(ColaError):
    """A stored result does not come out again when it is computed anew, or is not there."""
