"""Revision of each algorithm whose numbers reach a result.

A result cell is found again by the revisions of the algorithms that shaped it. Raise one when its
numbers change, and only then: every stored cell that used it is computed again. A refactoring, a
docstring or a new release of the package leaves them alone.
"""

from __future__ import annotations

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
