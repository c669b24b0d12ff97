"""Draw the README's figure from the evidence: the share of each capability that is kept, by source and method.

``make evidence`` runs it after the results of the standard profile were packed. It draws the grid of chapter 2.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import yaml
from PIL import Image

from cola_lib import figures
from cola_lib.analysis import retention_table
from cola_lib.experiments import ResultStore, as_spec

ROOT = Path(__file__).resolve().parents[1]
EVIDENCE = ROOT / "evidence" / "cells.parquet"
PICTURE = ROOT / "book" / "images" / "sources.png"
COLORS = 256
"""In the file, which a picture of few colours makes small."""


def grid(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of chapter 2's grid, as the standard profile has it, and those of the untouched model on the same items."""
    asked = yaml.safe_load((ROOT / "notebooks" / "profiles" / "standard.yml").read_text())["notebooks"][
        "02_data_source"
    ]
    labels = {as_spec(method).label for method in asked["methods"]}
    plain = frame[["split_rows", "repeat"]].isna().all(axis=1) if "split_rows" in frame else True
    cells = frame[
        frame["source"].isin(asked["sources"])
        & frame["label"].isin(labels)
        & (frame["n_samples"] == asked["n_samples"])
        & (frame["seq_len"] == asked["seq_len"])
        & frame["layout"].isin(["pack", "random"])
        & (frame["format"] == "text")
        & (frame["propagate"] == "original")
        & frame["capability"].isin(asked["capabilities"])
        & plain
    ]
    # cells of other chapters that are like these lack some capabilities
    cells = cells[cells.groupby("cell")["capability"].transform("nunique") == len(asked["capabilities"])]
    dense = frame[(frame["method"] == "dense") & frame["item"].isin(cells["item"])].drop_duplicates("item")
    found = pd.concat([cells, dense], ignore_index=True)
    order = {name: i for i, name in enumerate(asked["sources"])}
    kinds = {name: i for i, name in enumerate(asked["capabilities"])}
    place = found.assign(_source=found["source"].map(order), _kind=found["capability"].map(kinds))
    return place.sort_values(["_source", "_kind"], kind="stable").drop(columns=["_source", "_kind"])


def draw(frame: pd.DataFrame, picture: Path) -> None:
    """Draw the heat map, and store it in few colours."""
    figures.use_style()
    kept = retention_table(grid(frame))
    figure = figures.retention_heatmap(kept, row="source", column="capability", facet="label")
    figure.savefig(picture, dpi=110)
    plt.close(figure)
    with Image.open(picture) as whole:
        few = whole.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    few.save(picture, optimize=True)


if __name__ == "__main__":
    draw(ResultStore(ROOT / "results", packed=[EVIDENCE]).to_frame(), PICTURE)
