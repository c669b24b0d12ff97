"""Grids of scores whose truth is known: to try an analysis out, and to see what it can find before anything is run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

NO_SET = {"source": None, "draw": None}


DEFAULTS = {"capability": "math", "method": "wanda"}


def simulated_grid(
    conditions: Sequence[Mapping[str, Any]],
    chance: np.random.Generator | None = None,
    *,
    n_draws: int = 5,
    n_items: int = 20,
    n_tasks: int = 2,
    draw_sd: float = 0.01,
    item_sd: float = 0.02,
    noise_sd: float = 0.01,
) -> pd.DataFrame:
    """Bits per byte of every condition: the dense model's, raised by a known loss and by chance."""
    chance = chance or np.random.default_rng(0)
    conditions = [DEFAULTS | {"label": one.get("method", DEFAULTS["method"])} | dict(one) for one in conditions]
    items = np.random.default_rng(7)
    texts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    sets: dict[Hashable, np.ndarray] = {}
    parts = []
    for capability in dict.fromkeys(one["capability"] for one in conditions):
        texts[capability] = items.integers(20, 200, n_items), items.gamma(9, 0.1, n_items)
        dense = {"capability": capability, "method": "dense", "label": "dense", **NO_SET}
        parts.append(_rows(*texts[capability], np.zeros((1, n_items)), n_tasks, dense))
    for one in conditions:
        labels = {name: value for name, value in one.items() if name not in ("loss", "set", "draw_sd")}
        key = (one["source"], one.get("set"), one["capability"])
        if key not in sets:
            sets[key] = chance.normal(0, one.get("draw_sd", draw_sd), (n_draws, 1))
        loss = one["loss"] + sets[key] + chance.normal(0, item_sd, n_items)
        loss = loss + chance.normal(0, noise_sd, (n_draws, n_items))
        parts.append(_rows(*texts[one["capability"]], loss, n_tasks, labels))
    return pd.concat(parts, ignore_index=True)


def _rows(
    n_bytes: NDArray[np.int64],
    bits: NDArray[np.float64],
    loss: NDArray[np.float64],
    n_tasks: int,
    labels: Mapping[str, Any],
) -> pd.DataFrame:
    """Rows of one condition, of which ``loss`` has one line per draw."""
    n_draws, n_items = loss.shape
    draws, index = (axis.ravel() for axis in np.indices(loss.shape))
    score = (bits * (1 + loss)).ravel()
    tags = " ".join(str(value) for value in labels.values())
    return pd.DataFrame(
        {
            "cell": [f"{tags} #{draw}" for draw in draws],
            "item": [f"{labels['capability']}/{i:03d}" for i in index],
            "task": [f"{labels['capability']}{i % n_tasks}" for i in index],
            "draw": draws,
            "nll": score * n_bytes[index] * np.log(2),
            "n_bytes": n_bytes[index],
            "bits_per_byte": score,
            **labels,
        }
    )
