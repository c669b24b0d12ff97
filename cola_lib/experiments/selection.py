"""Which rows a strategy chose: read from the store, or chosen now and put there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import torch

from cola_lib.calibration import CalibrationSet
from cola_lib.curation import Pool, Strategy, Target, at_tokens
from cola_lib.errors import SpecError
from cola_lib.experiments.cells import CellKey, CellResult, Label, current_versions
from cola_lib.experiments.runner import device_name
from cola_lib.experiments.store import ResultStore
from cola_lib.fingerprint import fingerprint
from cola_lib.models import LanguageModel
from cola_lib.registry import revisions


@dataclass(frozen=True)
class Selection:
    """A chosen set, and whether an earlier revision of the strategy chose it."""

    rows: CalibrationSet
    seconds: float
    stored: bool
    earlier: bool = False


def select(
    lm: LanguageModel,
    chooser: Strategy,
    pool: Pool,
    store: ResultStore,
    *,
    seq_len: int,
    n_samples: int | None = None,
    n_tokens: int | None = None,
    target: Target | None = None,
    seed: int = 0,
    draw: int = 0,
) -> Selection:
    """Let a strategy choose, once.

    Notes
    -----
    Packed files are a record: a choice that an earlier revision of the strategy made is read from them where today's
    revision has none, since what was evaluated is that choice. Nothing else reads earlier revisions.
    """
    target = target if chooser.needs_target else None
    asked = (lm, chooser, pool, seq_len, n_samples, n_tokens, target, seed)
    key = selection_key(*asked)
    if key not in store:
        earlier = (selection_key(*asked, revision=n) for n in range(chooser.choice_revision - 1, 0, -1))
        recorded = next((store.get(each) for each in earlier if store.recorded(each)), None)
        if recorded is not None:
            return Selection(_set_of(recorded, chooser, seq_len, seed, draw), recorded.seconds, True, earlier=True)

    def choose() -> CellResult:
        began = time.perf_counter()
        if n_samples is None:
            if n_tokens is None:
                raise SpecError("a set has a number of rows or a number of tokens: give n_samples or n_tokens")
            rows = at_tokens(chooser, pool, lm, n_tokens=n_tokens, seq_len=seq_len, target=target, seed=seed)
        else:
            generator = torch.Generator().manual_seed(seed)
            rows = chooser.select(pool, lm, n_samples=n_samples, seq_len=seq_len, target=target, generator=generator)
        seconds = time.perf_counter() - began
        labels: dict[str, Label] = {"strategy": chooser.label, "layout": rows.layout, "draw": draw, "seed": seed}
        return CellResult(
            key=key,
            scores=_table(rows),
            labels={**labels, "target": target.name if target else None},
            device=device_name(lm.device),
            seconds=seconds,
            versions=current_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    found, stored = store.cached(key, choose)
    return Selection(_set_of(found, chooser, seq_len, seed, draw), found.seconds, stored)


def selection_key(
    lm: LanguageModel,
    chooser: Strategy,
    pool: Pool,
    seq_len: int,
    n_samples: int | None,
    n_tokens: int | None,
    target: Target | None,
    seed: int,
    *,
    revision: int | None = None,
) -> CellKey:
    """Name a choice by everything that decides it; the revision is the strategy's own by default."""
    revision = revision or chooser.choice_revision
    own = {"revision": revision} if revision > 1 else {}  # keys of strategies without one stay
    size = {"seq_len": seq_len, "n_samples": n_samples, "n_tokens": n_tokens, "seed": seed}
    return CellKey(
        model=lm.fingerprint,
        suite="selection",
        spec={"strategy": chooser.name, **asdict(chooser), **size, **own},
        calibration=pool.fingerprint,
        propagate=None,
        revisions=revisions("curate", "split", "tokenize"),
        targets=target_names(target) if target else None,
    )


def target_names(target: Target) -> dict[str, str]:
    """Name what decides a target: for each capability its texts and its weight."""
    held = {capability: [text.fingerprint for text in texts] for capability, texts in target.texts.items()}
    return {name: fingerprint([held[name], target.weights[name]]) for name in sorted(held)}


def _table(rows: CalibrationSet) -> pd.DataFrame:
    """Write a set as one row each: source, ids of its samples, tokens, weight."""
    ids = [tuple(row[mask].tolist()) for row, mask in zip(rows.input_ids, rows.attention_mask, strict=True)]
    table: dict[str, Sequence[Any]] = {"source": rows.sources, "sample_ids": rows.sample_ids, "input_ids": ids}
    if rows.weights is not None:
        table["weight"] = rows.weights
    return pd.DataFrame(table)


def _set_of(found: CellResult, chooser: Strategy, seq_len: int, seed: int, draw: int) -> CalibrationSet:
    table = found.scores
    lengths = torch.tensor([len(ids) for ids in table["input_ids"]])
    width = seq_len if len(table) else 0
    return CalibrationSet(
        torch.tensor([list(ids) + [0] * (width - len(ids)) for ids in table["input_ids"]], dtype=torch.int64),
        torch.arange(width) < lengths[:, None],
        sample_ids=tuple(tuple(ids) for ids in table["sample_ids"]),
        sources=tuple(table["source"]),
        name=chooser.label,
        seed=seed,
        layout=str(found.labels["layout"]),
        draw=draw,
        weights=tuple(float(weight) for weight in table["weight"]) if "weight" in table else None,
    )
