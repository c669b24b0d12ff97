"""The table that the explore page lets a reader choose from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cola_lib.analysis import KEPT, explore_table, gain_over, retention_table
from cola_lib.analysis.explore import NO_DATA
from cola_lib.errors import DataError, SpecError, StoreError
from cola_lib.experiments import CellResult, ResultStore, cell_key, read_scores
from tests.simulated_grids import simulated_grid


def grid(sources=("c4", "code"), capabilities=("math",), **labels) -> pd.DataFrame:
    conditions = [
        {"source": source, "method": "wanda", "label": "wanda 50%", "capability": capability, "loss": 0.25, **labels}
        for source in sources
        for capability in capabilities
    ]
    frame = simulated_grid(conditions, np.random.default_rng(0), n_draws=3)
    # a cell is a set and a method, whatever is measured on it
    frame["cell"] = [f"{one.method} {one.source} #{one.draw}" for one in frame.itertuples()]
    sizes = {"n_samples": 8, "seq_len": 64, "layout": "pack", "format": "text"}
    return frame.assign(model="tiny", **{name: frame["source"].map(lambda _, v=v: v) for name, v in sizes.items()})


def kept(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["measure"] == KEPT]


def test_estimates_are_those_of_the_tables_in_per_cent():
    frame = grid()
    table = explore_table(frame, n_boot=200)
    expected = retention_table(frame, by=("source", "label", "capability"), n_boot=200).set_index("source")
    shown = kept(table).set_index("source")
    assert set(shown.index) == {"c4", "code"}
    assert shown["value"].to_dict() == pytest.approx((100 * expected["value"]).to_dict())
    assert (shown["low"] < shown["value"]).all() and (shown["value"] < shown["high"]).all()
    assert set(shown["study"]) == {"tiny: math (20 items)"}
    assert set(shown["set"]) == {"8 × 64 tokens"} and set(shown["strength"]) == {"50%"}
    gains = table[table["measure"] == gain_over("c4")]
    assert gains["source"].tolist() == ["code"] and (gains["low"] < gains["high"]).all()


def test_the_cells_behind_an_estimate_are_named_with_what_each_keeps():
    row = kept(explore_table(grid(), n_boot=50)).set_index("source").loc["code"]
    assert [(draw, cell) for draw, cell, _ in row["cells"]] == [(draw, f"wanda code #{draw}") for draw in range(3)]
    alone = [value for _, _, value in row["cells"]]
    assert min(alone) <= row["value"] <= max(alone)


def test_studies_are_told_apart_by_their_items():
    one, other = grid(), grid(capabilities=("math", "code"))
    both = pd.concat([one, other.assign(item="other " + other["item"], cell="other " + other["cell"])])
    table = explore_table(both, n_boot=50)
    assert table["study"].unique().tolist() == ["tiny: math, code (40 items)", "tiny: math (20 items)"]
    twin = pd.concat([one, one.assign(item="twin " + one["item"], cell="twin " + one["cell"])])
    assert explore_table(twin, n_boot=50)["study"].nunique() == 2


def test_sets_of_one_source_are_told_apart():
    frame = grid()
    pieces = [
        ({}, "8 × 64 tokens"),
        ({"split_rows": 32}, "8 long rows cut into 32 tokens each"),
        ({"repeat": 4}, "8 × 64 tokens, each 4 times"),
        ({"layout": "pad", "format": "question_answer"}, "8 × 64 tokens, a text a row, question, answer"),
        ({"propagate": "compressed"}, "8 × 64 tokens, blocks see compressed inputs"),
    ]
    calibrated = frame["source"].notna()
    parts = [frame[~calibrated]]
    parts += [
        frame[calibrated].assign(cell=f"{i} " + frame["cell"], **changed) for i, (changed, _) in enumerate(pieces)
    ]
    table = kept(explore_table(pd.concat(parts), n_boot=50))
    assert set(table["set"]) == {said for _, said in pieces}
    assert all(len(cells) == 3 for cells in table["cells"])


def test_methods_without_data_and_strategies_have_their_place():
    frame = grid(sources=("random(source=c4)", "cola"))
    frame["target"] = frame["source"].map({"cola": "math"})
    plain = frame[frame["source"] == "cola"][lambda f: f["draw"] == 0]
    plain = plain.assign(
        source=None, draw=None, target=None, n_samples=None, cell="rtn", method="rtn", label="rtn 3-bit"
    )
    table = explore_table(pd.concat([frame, plain]), n_boot=50)
    none = kept(table)[lambda t: t["source"] == NO_DATA].iloc[0]
    assert pd.isna(none["set"]) and none["cells"] == [[None, "rtn", None]]
    gains = table[table["measure"] == gain_over("random(source=c4)")]
    assert gains[["source", "target"]].to_numpy().tolist() == [["cola", "math"]]


def test_what_has_no_interval_or_no_dense_model_is_left_out():
    frame = grid(capabilities=("math", "code"))
    lone = (frame["capability"] == "code") & ~frame["item"].isin(["code/000", "code/001"])
    assert set(explore_table(frame[~lone], n_boot=50)["capability"]) == {"math"}
    with pytest.raises(DataError, match="dense"):
        explore_table(frame[frame["method"] != "dense"])


def test_a_draw_counts_once():
    frame = grid()
    again = frame[frame["source"].notna()].assign(cell=lambda f: "again " + f["cell"])
    table = kept(explore_table(pd.concat([frame, again]), n_boot=50))
    assert all([draw for draw, _, _ in cells] == [0, 1, 2] for cells in table["cells"])
    assert set(table["n_draws"]) == {3}


def test_scores_are_read_from_packed_files_and_stores(tmp_path):
    key = cell_key(model="m", suite="s")
    scores = pd.DataFrame({"item": ["a", "b"], "n_tokens": [1, 2]})
    store = ResultStore(tmp_path / "store")
    store.put(CellResult(key, scores, {"method": "dense"}))
    store.pack(tmp_path / "cells.parquet")
    for where in (tmp_path / "store", tmp_path / "cells.parquet"):
        frame = read_scores(where)
        assert frame["n_tokens"].tolist() == [1, 2] and set(frame["cell"]) == {key.fingerprint}
    with pytest.raises(StoreError, match="holds no scores"):
        read_scores(tmp_path / "empty")
    with pytest.raises(SpecError, match="one store"):
        read_scores(tmp_path / "store", tmp_path / "empty")


def test_a_clean_clone_has_only_packed_scores_to_explore(tmp_path):
    for cell, rows in grid().groupby("cell", sort=False):
        items = ["item", *(name for name in rows if rows[name].nunique() > 1 and name != "item")]
        items += [name for name in ("capability", "task", "nll", "n_bytes", "bits_per_byte") if name not in items]
        one = rows.drop(columns=[*items, "cell"]).iloc[0].to_dict()
        labels = {name: None if pd.isna(value) else value for name, value in one.items()}
        choices = {"choice_nll": rows["nll"], "choice_bytes": rows["n_bytes"]}
        choices = {name: [(value,) for value in values] for name, values in choices.items()}
        scores = rows[items].assign(gold=0, **choices).reset_index(drop=True)
        ResultStore(tmp_path / "elsewhere").put(CellResult(cell_key(model=cell, suite="s"), scores, labels))
    ResultStore(tmp_path / "elsewhere").pack(tmp_path / "cells.parquet")
    found = explore_table(read_scores(tmp_path / "empty", tmp_path / "cells.parquet"), n_boot=50)
    assert len(kept(found)) == len(kept(explore_table(grid(), n_boot=50))) > 0
    assert not (tmp_path / "empty").exists()
