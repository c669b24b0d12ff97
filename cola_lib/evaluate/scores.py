"""What follows from likelihoods: the one place that defines bits per byte and choice accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

DERIVED = ("nll", "n_bytes", "bits_per_byte", "correct")
"""Columns that :func:`with_derived` adds, and that a store therefore leaves out."""

_ORDER = ("item", "capability", "task", "nll", "n_bytes", "n_tokens", "bits_per_byte", "correct", "gold")


def with_derived(scores: pd.DataFrame) -> pd.DataFrame:
    """Add what follows from the likelihood of every choice."""
    choices = list(zip(scores["choice_nll"], scores["choice_bytes"], scores["gold"], strict=True))
    nll = np.array([nll[gold] for nll, _, gold in choices], dtype=np.float64)
    n_bytes = np.array([n_bytes[gold] for _, n_bytes, gold in choices], dtype=np.int64)
    correct = [_best(nll, n_bytes) == gold if len(nll) > 1 else None for nll, n_bytes, gold in choices]
    derived = scores.assign(
        nll=nll,
        n_bytes=n_bytes,
        bits_per_byte=nll / np.log(2) / n_bytes,
        correct=pd.array(correct, dtype="boolean"),
    )
    first = [name for name in _ORDER if name in derived]
    return derived[[*first, *(name for name in derived if name not in first)]]


def _best(nll: Sequence[float], n_bytes: Sequence[int]) -> int:
    return int(np.argmin(np.divide(nll, n_bytes)))
