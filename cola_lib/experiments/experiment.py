"""What a notebook asks for: sources × methods × draws on one model, read from the store or computed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple

import pandas as pd

from cola_lib.calibration import CalibrationSet, Layout, calibration_set, random_tokens_set
from cola_lib.compress import Spec, method_spec
from cola_lib.curation import (
    GENERAL,
    TARGET_SAMPLES,
    Coverage,
    Pool,
    Strategy,
    Target,
    cover,
    load_target,
    strategy,
)
from cola_lib.curation.cola import N_SOURCES
from cola_lib.errors import SpecError
from cola_lib.evaluate import CAPABILITIES, Balance, Choices, Suite, capability_suite, source_suite
from cola_lib.experiments.cells import CellKey, CellResult, Label, current_versions
from cola_lib.experiments.features import run_activations
from cola_lib.experiments.outside import OutsideRecipe, run_outside
from cola_lib.experiments.runner import GridResult, Tuning, device_name, list_cells, run_grid
from cola_lib.experiments.selection import Selection, select, selection_key, target_names
from cola_lib.experiments.store import ResultStore
from cola_lib.experiments.workspace import Workspace
from cola_lib.models import LanguageModel, load_model
from cola_lib.registry import load_plugins, revisions
from cola_lib.statistics import Propagate

RANDOM_TOKENS = "random tokens"
"""Source name of the control that holds no language at all."""


class LabelledSet(NamedTuple):
    """A calibration set that is built when its turn comes."""

    build: Callable[[], CalibrationSet]
    labels: Mapping[str, Label]


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
    balance, choices
        As in :func:`~cola_lib.evaluate.capability_suite`. The default is the suite of the pilot's stored cells.
    layout : {"pack", "truncate", "pad"}
        How samples become rows.
    seed : int
        Of the order in which a source's samples are drawn.
    device : str
        ``"auto"`` takes CUDA when it is there.
    targets : mapping of str to sequence of str
        For each target, sources; :data:`cola_lib.data.TARGETS` has one for each capability. Their texts come from the
        calibration half too, from a draw of their own that nothing is calibrated on.
    target_samples : int
        Rows of a target's set.
    target_texts : int
        Samples of each of a target's sources that strategies choose for.
    eval_dtype : str, optional
        Data type of evaluations, such as ``"bfloat16"`` for screening; part of a cell's name. Default: the model's own.
        Calibration statistics are float32 sums in any case.
    evaluate_on : mapping of str to str, optional
        Instead of capabilities: for each name, the source whose evaluation half is scored under it, see
        :func:`~cola_lib.evaluate.source_suite`.
    spot_check : bool
        Compute one stored cell of the first grid again that has some, and compare a third of its items.
    overlap : {"drop", "raise", "allow"}
        What is done with samples of a dataset of your own that repeat evaluation items. They are left out and counted
        in a warning, since any large corpus of the web has some.

    Examples
    --------
    >>> from cola_lib.experiments import Experiment
    >>> from cola_lib.models import tiny_model
    >>> tiny_model().save("tiny")
    >>> experiment = Experiment(
    ...     model="tiny", n_samples=2, seq_len=16, evaluate_on={"sums": "gsm8k"}, tokens_per_capability=1600
    ... )
    >>> grid = experiment.run(["random tokens"], [{"method": "wanda", "sparsity": 0.5}], draws=1, progress=False)
    >>> sorted(grid.frame["label"].unique())
    ['dense', 'wanda 50%']
    """

    model: str = "smollm2-135m"
    n_samples: int = 8
    seq_len: int = 256
    tokens_per_capability: int = 2048
    store: str | os.PathLike[str] = "results"
    packed: Sequence[str | os.PathLike[str]] = ()
    capabilities: Sequence[str] = CAPABILITIES
    balance: Balance = "items"
    choices: Choices = "all"
    layout: Layout = "pack"
    seed: int = 0
    device: str = "auto"
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    target_samples: int = 16
    target_texts: int = TARGET_SAMPLES
    eval_dtype: str | None = None
    evaluate_on: Mapping[str, str] | None = None
    spot_check: bool = False
    overlap: Literal["drop", "raise", "allow"] = "drop"

    def __post_init__(self) -> None:
        load_plugins()  # so that an unchanged notebook knows the sources and methods of `cola --plugin`

    @cached_property
    def lm(self) -> LanguageModel:
        """The model, loaded when first needed."""
        return load_model(self.model, device=self.device)

    @cached_property
    def suite(self) -> Suite:
        """The fixed sample of evaluation items."""
        if self.evaluate_on is not None:
            return source_suite(
                self.lm.tokenizer,
                self.evaluate_on,
                tokens_per_source=self.tokens_per_capability,
                choices=self.choices,
            )
        return capability_suite(
            self.lm.tokenizer,
            tokens_per_capability=self.tokens_per_capability,
            capabilities=tuple(self.capabilities),
            balance=self.balance,
            choices=self.choices,
        )

    @cached_property
    def results(self) -> ResultStore:
        """The store, whose packed files are read once."""
        return ResultStore(self.store, packed=self.packed)

    @cached_property
    def workspace(self) -> Workspace:
        """What this experiment's grids share."""
        return Workspace()

    def _divided(self, n_draws: int) -> int:
        """Into how many draws a source is divided: the targets take one more, which nothing is calibrated on."""
        return n_draws + bool(self.targets)

    def calibration(
        self, source: str | Sequence[str], draw: int = 0, n_draws: int = 1, **options: Any
    ) -> CalibrationSet:
        """Build one calibration set.

        Parameters
        ----------
        source : str or sequence of str
            A source's name, :data:`RANDOM_TOKENS`, or several names to be mixed evenly.
        draw, n_draws : int
            Which of how many disjoint draws.
        **options
            Other arguments of :func:`~cola_lib.calibration.calibration_set` than this experiment's own (``n_samples``,
            ``seq_len``, ``layout``, ``format``, ``segment_len``); ``split_rows``, to cut every row into rows of so
            many tokens; and ``repeat``, to have every row so many times.
        """
        split, times = options.pop("split_rows", None), options.pop("repeat", 1)
        sizes: dict[str, Any] = {"n_samples": self.n_samples, "seq_len": self.seq_len, "layout": self.layout} | options
        if source == RANDOM_TOKENS:
            built = random_tokens_set(self.lm.tokenizer, sizes["n_samples"], sizes["seq_len"], seed=self.seed + draw)
        else:
            built = calibration_set(
                _names(source),
                self.lm.tokenizer,
                seed=self.seed,
                draw=draw,
                n_draws=self._divided(n_draws),
                **({"overlap": self.overlap} | sizes),
            )
        if split is not None:
            built = built.split_rows(split)
        return built.repeat(times) if times > 1 else built

    def target_sets(self, n_draws: int = 1) -> dict[str, CalibrationSet]:
        """Texts of each target.

        Parameters
        ----------
        n_draws : int
            Of the calibration sets that they must share no text with.
        """
        size = (n_draws, self.target_samples, self.seq_len, self.layout, self.seed, self.overlap)
        return self.workspace.remember(
            ("target sets", *size),
            lambda: {
                name: self.calibration(sources, n_draws, n_draws, n_samples=self.target_samples)
                for name, sources in self.targets.items()
            },
        )

    def resized(self, n_samples: int, seq_len: int) -> Experiment:
        """Make an experiment with calibration sets of another size, on the same loaded model.

        Parameters
        ----------
        n_samples, seq_len : int
            Of every calibration set.
        """
        other = replace(self, n_samples=n_samples, seq_len=seq_len)
        vars(other).update(lm=self.lm, suite=self.suite, results=self.results, workspace=self.workspace)
        return other

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
        conditions, divided = _conditions(sources, draws, n_draws)
        return self.run_conditions(conditions, methods, n_draws=divided, propagate=propagate, progress=progress)

    def run_conditions(
        self,
        conditions: Sequence[Mapping[str, Any]],
        methods: Sequence[Spec | Mapping[str, Any]],
        *,
        n_draws: int,
        propagate: Propagate = "original",
        progress: bool = True,
    ) -> GridResult:
        """Evaluate every method under calibration sets that differ in more than source and draw.

        Parameters
        ----------
        conditions : sequence of mapping
            One for each calibration set: ``source``, ``draw``, and the options of :meth:`calibration`. Put sets that
            begin with one another's rows next to each other, smallest first: they then cost one walk.
        methods, propagate, progress
            As in :meth:`run`.
        n_draws : int
            Into how many disjoint draws each source is divided.

        Returns
        -------
        GridResult
            Every option of a condition is a label.

        Raises
        ------
        SpecError
            If a draw is asked for that there is not.
        """
        _draws([condition.get("draw", 0) for condition in conditions], n_draws)
        sets = [self.source_set(condition, n_draws) for condition in conditions]
        return self.run_sets(sets, methods, n_draws=n_draws, propagate=propagate, progress=progress)

    def source_set(self, condition: Mapping[str, Any], n_draws: int) -> LabelledSet:
        """Say how the set of one condition is built, and what it is called.

        Parameters
        ----------
        condition : mapping
            As for :meth:`run_conditions`.
        n_draws : int
            Into how many disjoint draws its source is divided.
        """
        build = partial(self.calibration, **{"n_draws": n_draws, **condition})
        return LabelledSet(build, {**_labels(condition), "n_draws": n_draws})

    def run_sets(
        self,
        sets: Sequence[LabelledSet],
        methods: Sequence[Spec | Mapping[str, Any]],
        *,
        n_draws: int,
        propagate: Propagate = "original",
        dense: bool = True,
        tune: Tuning | None = None,
        progress: bool = True,
    ) -> GridResult:
        """Evaluate every method under some calibration sets; what the other grids of capabilities come to.

        Parameters
        ----------
        sets : sequence of LabelledSet
            From :meth:`source_set` or :meth:`chosen_set`.
        methods, propagate, progress
            As in :meth:`run`.
        n_draws : int
            Into how many disjoint draws the sources are divided; the targets' texts are of the one after these.
        dense : bool
            Whether the untouched model is a cell too.
        tune : Tuning, optional
            Train every compressed model further before it is evaluated.

        Returns
        -------
        GridResult
        """
        grid = run_grid(
            self.lm,
            [each.build for each in sets],
            [as_spec(method) for method in methods],
            self.suite,
            self.results,
            propagate=propagate,
            labels=[each.labels for each in sets],
            dense=dense,
            targets=self.target_sets(n_draws),
            workspace=self.workspace,
            spot_check=self.spot_check and not self.workspace.checked,
            tune=tune,
            eval_dtype=self.eval_dtype,
            progress=progress,
        )
        self.workspace.checked |= bool(grid.checks)
        return grid

    def list_sets(
        self,
        sets: Sequence[LabelledSet],
        methods: Sequence[Spec | Mapping[str, Any]],
        *,
        n_draws: int,
        propagate: Propagate = "original",
        dense: bool = True,
    ) -> dict[str, bool]:
        """Name the cells of :meth:`run_sets`, and say which are in the store; no cell is computed.

        Parameters
        ----------
        sets, methods, n_draws, propagate, dense
            As in :meth:`run_sets`.
        """
        return list_cells(
            self.lm,
            [each.build for each in sets],
            [as_spec(method) for method in methods],
            self.suite,
            self.results,
            propagate=propagate,
            labels=[each.labels for each in sets],
            dense=dense,
            targets=self.target_sets(n_draws),
            eval_dtype=self.eval_dtype,
        )

    def pool(self, sources: Sequence[str], draw: int = 0, n_draws: int = 1, *, limit: int | None = None) -> Pool:
        """Load samples for strategies to choose from; what is measured on the last pool is kept.

        Parameters
        ----------
        sources : sequence of str
            Names.
        draw, n_draws : int
            Which of how many disjoint draws.
        limit : int, optional
            Most samples of each source.
        """
        divided = self._divided(n_draws)
        return self.workspace.pool(
            ("pool", tuple(sources), self.seed, draw, divided, limit),
            lambda: Pool.load(sources, seed=self.seed, draw=draw, n_draws=divided, limit=limit),
        )

    def target(self, name: str = GENERAL, n_draws: int = 1) -> Target:
        """Make a deployment whose capabilities are this experiment's targets.

        Parameters
        ----------
        name : str
            ``"general"``, or the capability that is targeted.
        n_draws : int
            Of the pools that it must share no text with.
        """
        capabilities = tuple(self.targets)
        options: dict[str, Any] = {
            "capabilities": capabilities,
            "seed": self.seed,
            "draw": n_draws,
            "n_draws": n_draws + 1,
            "limit": self.target_texts,
        }
        key = ("target", name, *options.items())
        if name in capabilities:
            return self.workspace.remember(key, lambda: self.target(GENERAL, n_draws).towards(name))
        return self.workspace.remember(key, lambda: load_target(name, sources=self.targets, **options))

    def select(
        self,
        chooser: Strategy,
        pool: Sequence[str],
        *,
        draw: int = 0,
        n_draws: int = 1,
        target: str | None = None,
        limit: int | None = None,
        n_samples: int | None = None,
        n_tokens: int | None = None,
    ) -> Selection:
        """Let a strategy choose, or read what it chose.

        Parameters
        ----------
        chooser : Strategy
            Of :data:`cola_lib.curation.STRATEGIES`.
        pool : sequence of str
            Sources that it chooses from.
        draw, n_draws, limit
            As in :meth:`pool`. The draw is also the seed of the strategy.
        target : str, optional
            As in :meth:`target`.
        n_samples, n_tokens : int, optional
            Rows, or effective tokens. Default: this experiment's rows.
        """
        found = select(
            self.lm,
            chooser,
            self.pool(pool, draw, n_draws, limit=limit),
            self.results,
            seq_len=self.seq_len,
            n_samples=(n_samples or self.n_samples) if n_tokens is None else None,
            n_tokens=n_tokens,
            target=self.target(target, n_draws) if target is not None else None,
            seed=draw,
            draw=draw,
        )
        if found.earlier:
            self._earlier[chooser.label] = None
        return found

    @cached_property
    def _earlier(self) -> dict[str, None]:
        """Strategies of which an earlier revision's choice was read, in order."""
        return {}

    def coverage(
        self,
        pool: Sequence[str],
        target: str = GENERAL,
        *,
        draw: int = 0,
        n_draws: int = 1,
        limit: int | None = None,
        n_sources: int = N_SOURCES,
    ) -> Coverage:
        """Run COLA's first stage, or read what it gave: see :func:`~cola_lib.curation.cover`.

        Parameters
        ----------
        pool, draw, n_draws, limit
            As in :meth:`pool`.
        target : str
            As in :meth:`target`.
        n_sources : int
            Most sources that it keeps.
        """
        samples, aim = self.pool(pool, draw, n_draws, limit=limit), self.target(target, n_draws)

        def covered() -> pd.DataFrame:
            found = cover(samples, self.lm, aim, seq_len=self.seq_len, n_sources=n_sources)
            gains = dict(zip(found.chosen, found.gains, strict=True))
            places = {source: place for place, source in enumerate(found.chosen, start=1)}
            sources = found.table["source"]
            return found.table.assign(
                place=sources.map(places).fillna(0).astype(int), gain=sources.map(gains).fillna(0.0)
            )

        table = self.table(
            "coverage",
            covered,
            rests_on=("curate", "split", "tokenize"),
            pool=samples.fingerprint,
            target=target_names(aim),
            seq_len=self.seq_len,
            n_sources=n_sources,
        )
        chosen = table[table["place"] > 0].drop_duplicates("source").sort_values("place")
        bare = table.drop(columns=["place", "gain"])
        return Coverage(bare, tuple(chosen["source"]), tuple(map(float, chosen["gain"])))

    def table(
        self, name: str, make: Callable[[], pd.DataFrame], *, rests_on: Sequence[str] = (), **facts: Any
    ) -> pd.DataFrame:
        """Read a table that a figure needs, or make it and keep it in the store like a cell.

        Parameters
        ----------
        name : str
            What it holds.
        make : callable
            Makes the table from this experiment's model: columns of texts, numbers, or tuples of numbers.
        rests_on : sequence of str
            Algorithms of :data:`cola_lib.registry.REVISIONS` that shape it.
        **facts
            Everything else that decides it, as plain data.

        Returns
        -------
        pandas.DataFrame
            As made. Once it was packed, its fractions have the digits of float32.
        """
        key = CellKey(self.lm.fingerprint, name, dict(facts), None, None, revisions(*rests_on))

        def made() -> CellResult:
            began = time.perf_counter()
            return CellResult(
                key,
                make(),
                {},
                device=device_name(self.lm.device),
                seconds=time.perf_counter() - began,
                versions=current_versions(),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
            )

        return self.results.cached(key, made)[0].scores

    def has_chosen(
        self,
        chooser: Strategy,
        pool: Sequence[str],
        *,
        draw: int = 0,
        n_draws: int = 1,
        target: str | None = None,
        limit: int | None = None,
    ) -> bool:
        """Whether the store holds what a strategy chooses, so that :meth:`select` reads it.

        Parameters
        ----------
        chooser, pool, draw, n_draws, target, limit
            As in :meth:`select`.
        """
        asked = (
            self.lm,
            chooser,
            self.pool(pool, draw, n_draws, limit=limit),
            self.seq_len,
            self.n_samples,
            None,
            self.target(target, n_draws) if target is not None else None,
            draw,
        )
        earlier = (selection_key(*asked, revision=n) for n in range(chooser.choice_revision - 1, 0, -1))
        return selection_key(*asked) in self.results or any(map(self.results.recorded, earlier))

    def run_strategies(
        self,
        strategies: Sequence[Strategy | str | Mapping[str, Any]],
        methods: Sequence[Spec | Mapping[str, Any]],
        pool: Sequence[str],
        *,
        targets: Sequence[str] = (GENERAL,),
        draws: int | Sequence[int] = 3,
        n_draws: int | None = None,
        limit: int | None = None,
        n_samples: int | None = None,
        n_tokens: int | None = None,
        tune: Tuning | None = None,
        progress: bool = True,
    ) -> GridResult:
        """Evaluate every method under what every strategy chooses.

        Parameters
        ----------
        strategies : sequence of Strategy, str or mapping
            A mapping such as ``{"strategy": "cola", "domain": False}`` or a name is made a strategy.
        methods
            As in :meth:`run`.
        pool : sequence of str
            Sources that are chosen from.
        targets : sequence of str
            Deployments to choose for; a strategy that reads none chooses once.
        draws : int or sequence of int
            How many disjoint pools, each with a seed of its own; or which of ``n_draws``.
        n_draws : int, optional
            Into how many disjoint pools the sources are divided; by default as many as are taken.
        limit, n_samples, n_tokens
            As in :meth:`select`.
        tune : Tuning, optional
            Train every compressed model further before it is evaluated.
        progress : bool
            Show a bar over cells.

        Returns
        -------
        GridResult
            With labels ``source`` (the strategy's), ``draw`` and ``target`` (missing where none was read).
        """
        wanted, divided = _draws(draws, n_draws)
        sizes = {"n_draws": divided, "limit": limit, "n_samples": n_samples, "n_tokens": n_tokens}
        sets = self._choices(strategies, pool, targets, wanted, sizes)
        found = self.run_sets(sets, methods, n_draws=divided, tune=tune, progress=progress)
        return replace(found, earlier=tuple(name for name in self._earlier if name in set(found.frame["source"])))

    def try_strategies(
        self,
        strategies: Sequence[Strategy | str | Mapping[str, Any]],
        methods: Sequence[Spec | Mapping[str, Any]],
        pool: Sequence[str],
        *,
        targets: Sequence[str] = (GENERAL,),
        draws: int | Sequence[int] = 3,
        n_draws: int | None = None,
        limit: int | None = None,
        progress: bool = True,
    ) -> GridResult:
        """Compress under what every strategy chooses, and measure only what the layers err on texts of the targets.

        To tune a strategy by: it needs no evaluation, and touches no item of one. The texts that judge are a draw of
        their own, neither of the pools nor of the texts that the strategies choose for.

        Parameters
        ----------
        strategies, methods, pool, targets, draws, n_draws, limit, progress
            As in :meth:`run_strategies`. The sources are divided once more, for the texts that judge, so that the pools
            of as many draws there are others than these.

        Returns
        -------
        GridResult
            Without scores; its ``layers`` are for :func:`cola_lib.analysis.proxy_table`.
        """
        wanted, divided = _draws(draws, n_draws)
        judges = {
            name: self.calibration(sources, divided, divided + 1, n_samples=self.target_samples)
            for name, sources in self.targets.items()
        }
        sizes = {"n_draws": divided + 1, "limit": limit}
        sets = self._choices(strategies, pool, targets, wanted, sizes)
        return run_grid(
            self.lm,
            [each.build for each in sets],
            [as_spec(method) for method in methods],
            None,
            self.results,
            labels=[each.labels for each in sets],
            dense=False,
            targets=judges,
            workspace=self.workspace,
            progress=progress,
        )

    def run_outside(
        self,
        strategies: Sequence[Strategy | str | Mapping[str, Any]],
        recipe: OutsideRecipe,
        pool: Sequence[str],
        *,
        python: str | os.PathLike[str],
        targets: Sequence[str] = (GENERAL,),
        draws: int = 3,
        limit: int | None = None,
        progress: bool = True,
    ) -> GridResult:
        """Let llm-compressor compress on what every strategy chooses, and evaluate that like our own.

        Parameters
        ----------
        strategies, pool, targets, draws, limit, progress
            As in :meth:`run_strategies`: the same sets.
        recipe : OutsideRecipe
            What the tool does.
        python : path
            Interpreter of its environment; needed only for what is not in the store.

        Returns
        -------
        GridResult
        """
        sizes = {"n_draws": draws, "limit": limit}
        sets = self._choices(strategies, pool, targets, range(draws), sizes)
        return run_outside(
            self.lm,
            [each.build for each in sets],
            recipe,
            self.suite,
            self.results,
            python=python,
            labels=[each.labels for each in sets],
            workspace=self.workspace,
            progress=progress,
        )

    def _choices(
        self,
        strategies: Sequence[Strategy | str | Mapping[str, Any]],
        pool: Sequence[str],
        targets: Sequence[str],
        draws: Sequence[int],
        sizes: Mapping[str, Any],
    ) -> list[LabelledSet]:
        """List what every strategy is to choose from every pool, each when its turn comes, and how it is labelled."""
        return [
            self.chosen_set(chooser, pool, draw=draw, target=target, **sizes)
            for draw in draws
            for chooser in map(as_strategy, strategies)
            for target in (targets if chooser.needs_target else (None,))
        ]

    def chosen_set(
        self, chooser: Strategy, pool: Sequence[str], *, draw: int = 0, target: str | None = None, **sizes: Any
    ) -> LabelledSet:
        """Say how a strategy's choice is had, and what it is called.

        Parameters
        ----------
        chooser, pool, draw, target
            As in :meth:`select`.
        **sizes
            Other arguments of :meth:`select`.
        """

        def build() -> CalibrationSet:
            return self.select(chooser, pool, draw=draw, target=target, **sizes).rows

        labels = {"source": chooser.label, "draw": draw, "n_draws": sizes.get("n_draws", 1), "target": target}
        return LabelledSet(build, labels)

    def activations(
        self, sources: Sequence[str | Sequence[str]], *, draws: int | Sequence[int] = 3, n_draws: int | None = None
    ) -> GridResult:
        """Measure sources in activation space, by themselves and for each target.

        Parameters
        ----------
        sources, draws, n_draws
            As in :meth:`run`; the same calibration sets.

        Returns
        -------
        GridResult
            See :func:`~cola_lib.experiments.features.run_activations`.
        """
        conditions, divided = _conditions(sources, draws, n_draws)
        return run_activations(
            self.lm,
            [partial(self.calibration, n_draws=divided, **condition) for condition in conditions],
            self.target_sets(divided),
            self.results,
            labels=[_labels(condition) for condition in conditions],
            workspace=self.workspace,
        )


def _conditions(
    sources: Sequence[str | Sequence[str]], draws: int | Sequence[int], n_draws: int | None
) -> tuple[list[dict[str, Any]], int]:
    """Every source with every draw, and into how many draws a source is divided."""
    wanted, divided = _draws(draws, n_draws)
    return [{"source": source, "draw": draw} for source in sources for draw in wanted], divided


def _draws(draws: int | Sequence[int], n_draws: int | None) -> tuple[Sequence[int], int]:
    """Which draws are wanted, of how many. The one after the last is the targets', and must not be asked for."""
    wanted = range(draws) if isinstance(draws, int) else draws
    last = max(wanted, default=-1)
    if n_draws is not None and last >= n_draws:
        raise SpecError(f"draw {last} was asked for, of {n_draws} draws numbered from 0")
    return wanted, n_draws or last + 1


def _labels(condition: Mapping[str, Any]) -> dict[str, Label]:
    """Name a condition as a reader would; rows that are cut say how long they are themselves."""
    labels = {name: value for name, value in condition.items() if name not in ("source", "seq_len")}
    return {"source": "+".join(_names(condition["source"])), "draw": 0, **labels}


def as_strategy(given: Strategy | str | Mapping[str, Any]) -> Strategy:
    """Make a strategy of a name or a mapping, as a notebook's parameters hold them.

    Parameters
    ----------
    given : Strategy, str or mapping
        A mapping needs a ``strategy``; the rest are its options.

    Returns
    -------
    Strategy
        With its options.

    Raises
    ------
    SpecError
        If a mapping names no strategy, or it is something else.

    Examples
    --------
    >>> from cola_lib.experiments import as_strategy
    >>> as_strategy("random").label, as_strategy({"strategy": "perplexity", "order": "middle"}).label
    ('random', 'perplexity(order=middle)')
    """
    if isinstance(given, Strategy):
        return given
    options = _named({"strategy": given} if isinstance(given, str) else given, "strategy", "'cola', 'domain': False")
    return strategy(options.pop("strategy"), **options)


def as_spec(method: Spec | Mapping[str, Any]) -> Spec:
    """Make a specification of a mapping, as a notebook's parameters hold them.

    Parameters
    ----------
    method : PruneSpec, QuantSpec or mapping
        A mapping needs a ``method``; the rest are its options.

    Returns
    -------
    Spec
        Checked.

    Raises
    ------
    SpecError
        If a mapping names no method, or it is something else.

    Examples
    --------
    >>> from cola_lib.experiments import as_spec
    >>> as_spec({"method": "wanda", "pattern": "2:4"}).label
    'wanda 2:4'
    """
    if isinstance(method, Spec):
        return method
    options = _named(method, "method", "'gptq', 'bits': 3")
    return method_spec(options.pop("method"), **options)


def _named(given: Any, kind: str, example: str) -> dict[str, Any]:
    """Options with a name among them, all of whose keys are texts."""
    if not isinstance(given, Mapping) or not isinstance(given.get(kind), str):
        raise SpecError(f"a {kind} is written as {{{kind!r}: {example}}}, and this has no {kind!r}: {given!r}")
    for option in given:
        if not isinstance(option, str):
            raise SpecError(f"{kind} {given[kind]!r}: an option is named by a text, and not by {option!r}")
    return dict(given)


def _names(source: str | Sequence[str]) -> list[str]:
    return [source] if isinstance(source, str) else list(source)
