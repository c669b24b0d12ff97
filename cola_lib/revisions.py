"""Revision of each algorithm whose numbers reach a result.

A result cell is found again by the revisions of the algorithms that shaped it. Raise one when its
numbers change, and only then: every stored cell that used it is computed again. A refactoring, a
docstring or a new release of the package leaves them alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

REVISIONS: dict[str, int] = {
    # what a calibration set consists of
    "split": 1,
    "tokenize": 1,
    # what is read from it
    "walk": 1,
    "activations": 1,
    # how a set is chosen
    "curate": 1,
    # what is done with that
    "magnitude": 1,
    "rtn": 1,
    "wanda": 1,
    "ria": 1,
    "sparsegpt": 1,
    "gptq": 1,
    "auto_damp": 1,
    "awq": 1,
    "smoothquant": 1,
    "input_rounding": 1,
    "joint_lowrank": 1,
    "finetune": 2,
    # what is measured afterwards
    "suite": 1,
    "likelihood": 2,
    "harness": 1,
}


def revisions(*names: str) -> dict[str, int]:
    """Revisions of the named algorithms, for a fingerprint.

    Parameters
    ----------
    *names : str
        Keys of :data:`REVISIONS`.

    Raises
    ------
    KeyError
        If a name has no revision: an algorithm without one must not shape a stored number.
    """
    return {name: REVISIONS[name] for name in sorted(names)}


def outdated(facts: Mapping[str, Any]) -> list[str]:
    """Names of the algorithms that have a higher number today than where they are recorded.

    Parameters
    ----------
    facts : mapping
        What a fingerprint was made of. Revisions may lie at any depth of it; those of algorithms that are not known
        here, as a method of somebody's own may be, are let pass.

    Returns
    -------
    list of str
        Sorted; empty if the numbers would come out the same today.
    """

    def recorded(part: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
        for name, value in part.items():
            if isinstance(value, Mapping):
                yield from recorded(value)
            elif isinstance(value, int) and name in REVISIONS:
                yield name, value

    return sorted({name for name, number in recorded(facts) if number < REVISIONS[name]})
