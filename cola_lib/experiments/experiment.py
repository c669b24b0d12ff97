"""What a notebook asks for: sources × methods × draws on one model, read from the store or computed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from cola_lib.compress import Spec, method_spec
from cola_lib.curation import CalibrationSet, Layout, calibration_set, random_tokens_set
from cola_lib.errors import SpecError
from cola_lib.evaluate import CAPABILITIES, Suite, capability_suite
from cola_lib.experiments.cells import Label
from cola_lib.experiments.runner import GridResult, run_grid
from cola_lib.experiments.store import ResultStore
from cola_lib.models import LanguageModel, load_model
from cola_lib.statistics import Propagate

RANDOM_TOKENS = "random tokens"
"""Source name of the control that holds no language at all."""


@dataclass(frozen=True)
class Experiment:
    """A model, the size of its calibration sets, and what is measured on it.

    Parameters
    ----------
    model : str
        Name or path for :func:`~cola_lib.models.load_model`.
    n_samples, seq_len : int
        Of every calibration set.
    tokens_per_capability : int
        Budget of the suite, in tokens run.
    store : str or path
        Of the results.
    packed : sequence of str or path
        Packed results below the store.
    capabilities : sequence of str
        What is measured.
    layout : {"pack", "truncate", "pad"}
        How samples become rows.
    seed : int
        Of the order in which a source's samples are drawn.
    device : str
        ``"auto"`` takes CUDA when it is there.
    """

    model: str = "smollm2-135m"
    n_samples: int = 8
    seq_len: int = 256
    tokens_per_capability: int = 2048
    store: str | os.PathLike[str] = "results"
    packed: Sequence[str | os.PathLike[str]] = ()
    capabilities: Sequence[str] = CAPABILITIES
    layout: Layout = "pack"
    seed: int = 0
    device: str = "auto"

    @cached_property
    def lm(self) -> LanguageModel:
        """The model, loaded when first needed."""
        return load_model(self.model, device=self.device)

    @cached_property
    def suite(self) -> Suite:
        """The fixed sample of evaluation items."""
        return capability_suite(
            self.lm.tokenizer,
            tokens_per_capability=self.tokens_per_capability,
            capabilities=tuple(self.capabilities),
        )

    def calibration(self, source: str | Sequence[str], draw: int = 0, n_draws: int = 1) -> CalibrationSet:
        """Build one calibration set.

        Parameters
        ----------
        source : str or sequence of str
            A source's name, :data:`RANDOM_TOKENS`, or several names to be mixed evenly.
        draw, n_draws : int
            Which of how many disjoint draws.
        """
        if source == RANDOM_TOKENS:
            return random_tokens_set(self.lm.tokenizer, self.n_samples, self.seq_len, seed=self.seed + draw)
        return calibration_set(
            _names(source),
            self.lm.tokenizer,
            n_samples=self.n_samples,
            seq_len=self.seq_len,
            seed=self.seed,
            layout=self.layout,
            draw=draw,
            n_draws=n_draws,
        )

    def run(
        self,
        sources: Sequence[str | Sequence[str]],
        methods: Sequence[Spec | Mapping[str, Any]],
        *,
        draws: int | Sequence[int] = 3,
        n_draws: int | None = None,
        propagate: Propagate = "original",
        progress: bool = True,
    ) -> GridResult:
        """Evaluate every method under every source and draw, and the untouched model.

        Parameters
        ----------
        sources : sequence
            Each as for :meth:`calibration`.
        methods : sequence of PruneSpec, QuantSpec or mapping
            A mapping such as ``{"method": "gptq", "bits": 3}`` is made a specification.
        draws : int or sequence of int
            How many disjoint draws to take of each source, or which of ``n_draws``.
        n_draws : int, optional
            Into how many disjoint draws a source is divided; by default as many as are taken. It decides
            what each draw holds.
        propagate : {"original", "compressed"}
            What the blocks after a compressed one read.
        progress : bool
            Show a bar over cells.

        Returns
        -------
        GridResult
            With labels ``source`` and ``draw``; methods that read no data occur once.
        """
        wanted = range(draws) if isinstance(draws, int) else draws
        divided = n_draws or (draws if isinstance(draws, int) else max(draws) + 1)
        if max(wanted, default=0) >= divided:
            raise SpecError(f"draw {max(wanted)} was asked for, of {divided} draws numbered from 0")
        grid = [(source, draw) for source in sources for draw in wanted]
        builders: list[Callable[[], CalibrationSet]] = [
            partial(self.calibration, source, draw, divided) for source, draw in grid
        ]
        labels: list[Mapping[str, Label]] = [
            {"source": "+".join(_names(source)), "draw": draw} for source, draw in grid
        ]
        specs = [as_spec(method) for method in methods]
        store = ResultStore(self.store, packed=self.packed)
        return run_grid(
            self.lm, builders, specs, self.suite, store, propagate=propagate, labels=labels, progress=progress
        )


def as_spec(method: Spec | Mapping[str, Any]) -> Spec:
    """Make a specification of a mapping, as a notebook's parameters hold them.

    Parameters
    ----------
    method : PruneSpec, QuantSpec or mapping
        A mapping needs a ``method``; the rest are its options.

    Raises
    ------
    SpecError
        If a mapping names no method.
    """
    if not isinstance(method, Mapping):
        return method
    options = dict(method)
    if "method" not in options:
        raise SpecError(f"a method is written as {{'method': 'gptq', 'bits': 3}}, and this has no 'method': {method}")
    return method_spec(options.pop("method"), **options)


def _names(source: str | Sequence[str]) -> list[str]:
    return [source] if isinstance(source, str) else list(source)
