"""Profiles: how large a grid is, from minutes on a laptop to hours on a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cola_lib.compress import Spec, method_spec
from cola_lib.errors import UnknownNameError


@dataclass(frozen=True)
class Profile:
    """The size of a grid.

    Parameters
    ----------
    name : str
        What ``PROFILE=`` takes.
    summary : str
        One line on what it is for.
    n_samples, seq_len : int
        Of each calibration set.
    n_draws : int
        Disjoint calibration sets per source; at least 3, since an interval over fewer says next to nothing.
    tokens_per_capability : int
        Budget of the suite, in tokens run.
    sources : tuple of str
        Calibration sources.
    methods : tuple of (str, mapping)
        Method and its options, for :func:`cola_lib.compress.method_spec`.
    """

    name: str
    summary: str
    n_samples: int
    seq_len: int
    n_draws: int
    tokens_per_capability: int
    sources: tuple[str, ...]
    methods: tuple[tuple[str, Mapping[str, Any]], ...]

    @property
    def specs(self) -> tuple[Spec, ...]:
        """Specification of each method."""
        return tuple(method_spec(method, **options) for method, options in self.methods)

    @property
    def tokens_per_set(self) -> int:
        """Calibration tokens of one set, if none is padding."""
        return self.n_samples * self.seq_len


_METHODS = (
    ("magnitude", {"sparsity": 0.5}),
    ("rtn", {"bits": 3}),
    ("wanda", {"sparsity": 0.5}),
    ("sparsegpt", {"sparsity": 0.5}),
    ("gptq", {"bits": 3}),
    ("awq", {"bits": 3}),
)

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="quick",
            summary="minutes on two CPU cores: shows every step, decides only large effects",
            n_samples=16,
            seq_len=128,
            n_draws=3,
            tokens_per_capability=2048,
            sources=("c4", "wikipedia", "code", "gsm8k"),
            methods=_METHODS,
        ),
        Profile(
            name="standard",
            summary="hours on a CPU, minutes on a GPU: the numbers that the book's verdicts rest on",
            n_samples=128,
            seq_len=512,
            n_draws=5,
            tokens_per_capability=16384,
            sources=("c4", "wikipedia", "code", "technical", "stories", "multilingual", "gsm8k", "math", "csqa"),
            methods=_METHODS,
        ),
    )
}


def profile(name: str) -> Profile:
    """Look a profile up.

    Parameters
    ----------
    name : str
        One of :data:`PROFILES`.

    Raises
    ------
    UnknownNameError
        If there is none of that name.
    """
    if name not in PROFILES:
        raise UnknownNameError("profile", name, PROFILES)
    return PROFILES[name]
