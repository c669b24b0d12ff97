"""GPTQ's error on inputs that it has not seen, over damping, amount and source: read from the store, or computed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from cola_lib.arithmetic import fast_products
from cola_lib.calibration import CalibrationSet
from cola_lib.compress import DAMPS, GPTQ, choose_damp, settle
from cola_lib.compress.gptq import held_out_ratios
from cola_lib.errors import SpecError
from cola_lib.experiments.cells import CellKey, CellResult, Label, cell_key, current_versions
from cola_lib.experiments.experiment import Experiment
from cola_lib.experiments.runner import GridResult, device_name, each_set
from cola_lib.experiments.store import ResultStore
from cola_lib.models import LanguageModel
from cola_lib.statistics import InputStatistics, walk

SEEN = "calibration rows"
"""Target of the ratio on the very rows that GPTQ solved with."""

Sums = dict[tuple[int, str], InputStatistics]


def run_damping(
    experiment: Experiment,
    sources: Sequence[str],
    method: Mapping[str, Any] | None = None,
    *,
    draws: int,
    n_draws: int | None = None,
    amounts: Sequence[int],
    blocks: Sequence[int],
    target_samples: int = 16,
    row_step: int = 1,
    damps: Sequence[float] = DAMPS,
    progress: bool = True,
) -> GridResult:
    """Compare GPTQ with rounding to nearest, layer by layer, on held-out inputs of the untouched model.

    Parameters
    ----------
    experiment : Experiment
        Its model, store, seed and row length. The model is left as it is.
    sources : sequence of str
        Calibrated on, and in another draw judged on.
    method : mapping, optional
        Options of GPTQ. Default: 3 bits, in activation order.
    draws : int
        Draws of each source to calibrate on.
    n_draws : int, optional
        Disjoint draws that each source is divided into, beside one more that is held out for judging. Default:
        ``draws``.
    amounts : sequence of int
        Rows of the nested sets of each draw, rising by 5 or more, so that each step holds a row out.
    blocks : sequence of int
        Decoder blocks whose layers are measured.
    target_samples : int
        Rows of each held-out set.
    row_step : int
        Every so many outputs of a layer are measured. GPTQ rounds each row of a weight by itself.
    damps : sequence of float
        Dampings that are compared.
    progress : bool
        Show a bar over sets.

    Returns
    -------
    GridResult
        Its ``layers`` has, besides the labels ``source`` and ``draw``, one row for each ``amount``, ``layer``, ``damp``
        and ``target``: the held-out ``ratio``, and whether the damping was ``chosen`` on the held-out fifth of the
        calibration rows. GPTQ solves with all rows. The target :data:`SEEN` stands for the calibration rows themselves.

    Raises
    ------
    SpecError
        If the amounts do not rise by at least 5 rows.

    Examples
    --------
    >>> from cola_lib.experiments import Experiment, run_damping
    >>> from cola_lib.models import tiny_model
    >>> tiny_model().save("tiny")
    >>> experiment = Experiment(model="tiny", seq_len=16)
    >>> grid = run_damping(
    ...     experiment, ["random tokens"], draws=1, amounts=[5, 10], blocks=[1], target_samples=4, progress=False
    ... )
    >>> len(grid.layers["layer"].unique()), sorted(grid.layers["amount"].unique().tolist())
    (7, [5, 10])
    """
    if min(after - before for before, after in pairwise([0, *amounts])) < 5:
        raise SpecError(f"amounts must rise by 5 rows or more, from 5 on, and are {list(amounts)}")
    lm, store = experiment.lm, ResultStore(experiment.store, packed=experiment.packed)
    options = {"bits": 3, "act_order": True} if method is None else dict(method)
    spec = settle(lm, GPTQ(**options, damp="auto"))
    assert isinstance(spec, GPTQ)
    n_draws = n_draws or draws
    build = partial(experiment.calibration, n_draws=n_draws + 1)
    labels: list[dict[str, Label]] = [{"source": source, "draw": draw} for draw in range(draws) for source in sources]
    targets = {source: build(source, draw=n_draws, n_samples=target_samples) for source in sources}
    shape = {"amounts": list(amounts), "blocks": list(blocks), "row_step": row_step, "damps": list(damps)}

    def key(rows: CalibrationSet) -> CellKey:
        return cell_key(
            model=lm.fingerprint,
            suite="damping",
            spec={**spec.key(), **shape},
            calibrated=True,
            calibration=rows.fingerprint,
            propagate="original",
            targets={name: each.fingerprint for name, each in targets.items()},
        )

    held: dict[str, Sums] = {}  # walked over when the first cell is missing

    def compute(rows: CalibrationSet, name: CellKey, own: Mapping[str, Label]) -> CellResult:
        if not held:
            held.update({target: _statistics(lm, each, blocks)[0] for target, each in targets.items()})
        began = time.perf_counter()
        table = pd.concat(_measured(lm, rows, spec, held, amounts, blocks, row_step, damps), ignore_index=True)
        return CellResult(
            key=name,
            scores=pd.DataFrame(),
            labels=dict(own),
            layers=table,
            device=device_name(lm.device),
            seconds=time.perf_counter() - began,
            versions=current_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    began = time.perf_counter()
    sets = [partial(build, **label, n_samples=max(amounts)) for label in labels]
    found = list(each_set(sets, labels, store, key, compute, desc="damping", progress=progress))
    n_read = sum(stored for *_, stored in found)
    return GridResult(
        frame=pd.DataFrame(),
        layers=pd.concat([result.layer_frame(own) for _, own, result, _ in found], ignore_index=True),
        n_read=n_read,
        n_computed=len(found) - n_read,
        device=device_name(lm.device),
        seconds=time.perf_counter() - began,
    )


def _statistics(
    lm: LanguageModel, rows: CalibrationSet, blocks: Sequence[int], held_out: CalibrationSet | None = None
) -> tuple[Sums, Sums]:
    """Statistics of the inputs of some blocks, and those of held-out rows."""
    seen: Sums = {}
    held: Sums = {}
    for step in walk(lm, rows, gram=True, held_out=held_out, blocks=blocks, progress=False):
        seen |= {(step.index, group): stats for group, stats in step.statistics.items()}
        held |= {(step.index, group): stats for group, stats in (step.held_out or {}).items()}
    return seen, held


def _measured(
    lm: LanguageModel,
    rows: CalibrationSet,
    spec: GPTQ,
    targets: Mapping[str, Sums],
    amounts: Sequence[int],
    blocks: Sequence[int],
    row_step: int,
    damps: Sequence[float],
) -> Iterator[pd.DataFrame]:
    """Measure one set at each amount: a running sum over its rows."""
    fit: Sums = {}
    held: Sums = {}
    for before, amount in pairwise([0, *amounts]):
        parts = rows.rows(0, amount).hold_out()
        known = [each.n_samples for each in rows.rows(0, before).hold_out()] if before else [0, 0]
        new = [part.rows(n, part.n_samples) for part, n in zip(parts, known, strict=True)]
        for sums, more in zip((fit, held), _statistics(lm, new[0], blocks, new[1]), strict=True):
            sums.update({place: sums[place] + stats if sums else stats for place, stats in more.items()})
        for place in fit:
            weights, layers = _layers(lm, place, row_step)
            yield _ratios(weights, layers, fit[place], held[place], spec, targets, place, damps).assign(amount=amount)


def _layers(lm: LanguageModel, place: tuple[int, str], row_step: int) -> tuple[list[Tensor], list[str]]:
    """Weights and names of the layers that read one input."""
    index, group = place
    names = next(each.layers for each in lm.architecture.groups if each.name == group)
    with lm.resident(index) as block:
        weights = [block.get_parameter(f"{name}.weight")[::row_step].float() for name in names]
    return weights, [f"{lm.block_name(index)}.{name}" for name in names]


@torch.no_grad()
@fast_products()
def _ratios(
    weights: list[Tensor],
    layers: list[str],
    fit: InputStatistics,
    held: InputStatistics,
    spec: GPTQ,
    targets: Mapping[str, Sums],
    place: tuple[int, str],
    damps: Sequence[float],
) -> pd.DataFrame:
    chosen = choose_damp(weights, fit, held, spec, layers[0], damps).damp
    whole = fit + held
    judged_on = {SEEN: whole, **{name: sums[place] for name, sums in targets.items()}}
    rows = []
    for damp in damps:
        ratios = held_out_ratios(weights, whole, list(judged_on.values()), replace(spec, damp=damp), layers[0])
        whole.forget_factors()
        for target, of_target in zip(judged_on, ratios, strict=True):
            rows += [
                {"layer": layer, "damp": damp, "target": target, "ratio": ratio, "chosen": damp == chosen}
                for layer, ratio in zip(layers, of_target, strict=True)
            ]
    return pd.DataFrame(rows)
