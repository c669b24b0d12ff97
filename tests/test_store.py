"""The result store: atomic, found by content, never fooled by a damaged file."""

from __future__ import annotations

import gzip
import json
import logging
import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cola_lib.errors import SpecError, StoreError
from cola_lib.evaluate import with_derived
from cola_lib.experiments import CellKey, CellResult, ResultStore, cell_key, packed
from cola_lib.experiments.packed import PackedCells, write_packed
from cola_lib.registry import REVISIONS

WANDA = {"method": "wanda", "sparsity": 0.5, "pattern": (2, 4), "revisions": {"wanda": 1}}


def key(**changes) -> CellKey:
    parts = {"model": "m", "suite": "s", "spec": WANDA, "calibration": "c", "propagate": "original"}
    return cell_key(**{**parts, "calibrated": True, **changes})


def result(calibration: str = "c", seed: int = 0, n_items: int = 6) -> CellResult:
    rng = np.random.default_rng(seed)
    choice_nll = [tuple(map(float, rng.exponential(9, 1 + i % 3).astype(np.float32))) for i in range(n_items)]
    scores = pd.DataFrame(
        {
            "item": [f"piqa/{i}é" for i in range(n_items)],
            "capability": "commonsense",
            "task": "piqa",
            "nll": [nll[0] for nll in choice_nll],
            "n_bytes": range(5, 5 + n_items),
            "n_tokens": range(1, 1 + n_items),
            "gold": 0,
            "choice_nll": choice_nll,
            "choice_bytes": [tuple(5 + i + c for c in range(len(nll))) for i, nll in enumerate(choice_nll)],
        }
    )
    layers = pd.DataFrame(
        {
            "layer": ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"],
            "output_error": [0.25, float("nan")],
            "weight_error": [0.5, 0.125],
            "sparsity": [0.5, 0.5],
        }
    )
    return CellResult(
        key=key(calibration=calibration),
        scores=with_derived(scores),
        labels={"source": "c4", "draw": seed, "method": "wanda", "note": None},
        layers=layers,
        device="cpu",
        seconds=1.5,
        versions={"torch": "2"},
        created="2025-01-01T00:00:00+00:00",
    )


def assert_same(a: CellResult, b: CellResult) -> None:
    assert a.key.fingerprint == b.key.fingerprint
    assert dict(a.labels) == dict(b.labels) and a.created == b.created and a.seconds == b.seconds
    pd.testing.assert_frame_equal(a.scores, b.scores, check_column_type=False)
    pd.testing.assert_frame_equal(a.layers, b.layers, check_column_type=False)


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path) -> ResultStore:
    if request.param == "folder":
        return ResultStore(tmp_path / "results")
    return ResultStore(f"memory://{tmp_path.name}/results")


def only_file(store: ResultStore) -> str:
    (path,) = store._list()
    return path


def test_a_packed_cell_is_decoded_once(tmp_path, monkeypatch):
    ResultStore(tmp_path / "own").put(result())
    ResultStore(tmp_path / "own").pack(tmp_path / "cells.parquet")
    decoded = []
    real = packed.result_from_plain
    monkeypatch.setattr(packed, "result_from_plain", lambda plain: decoded.append(1) or real(plain))
    below = ResultStore(tmp_path / "none", packed=[tmp_path / "cells.parquet"])
    assert below.get(key()) is not None and len(decoded) == 1


def test_a_result_is_computed_once(tmp_path):
    store, calls = ResultStore(tmp_path), []

    def compute():
        calls.append(1)
        return result()

    assert [store.cached(key(), compute)[1] for _ in range(2)] == [False, True] and len(calls) == 1


def test_what_is_put_is_what_is_got(store):
    cell = result()
    assert cell.key not in store and store.get(cell.key) is None and store.keys() == [] and len(store) == 0
    store.put(cell)
    assert cell.key in store and cell.key.fingerprint in store
    assert_same(store.get(cell.key), cell)
    assert_same(ResultStore(store.url).get(cell.key.fingerprint), cell)
    assert store.quarantined == []


def test_the_last_write_wins(store):
    store.put(result(seed=0))
    store.put(result(seed=1))
    assert len(store) == 1
    assert store.get(key()).labels["draw"] == 1


def test_frame_is_tidy_and_labelled(store):
    for i in range(3):
        store.put(result(calibration=f"c{i}", seed=i))
    frame = store.to_frame()
    assert len(frame) == 3 * 6 and frame["cell"].nunique() == 3
    assert set(frame["draw"]) == {0, 1, 2}
    assert {"item", "nll", "bits_per_byte", "correct", "source", "method"} <= set(frame.columns)
    assert frame["correct"].dtype == "boolean"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "truncated or altered"),
        (lambda data: b"", "truncated or altered"),
        (lambda data: b"not a cell at all", "truncated or altered"),
        (lambda data: gzip.compress(b'{"hello": 1}'), "not a file of format"),
        (lambda data: gzip.compress(b'["cola-cell/1"]'), "not a file of format"),
        (lambda data: gzip.compress(b"[" * 100_000), "truncated or altered"),
        (lambda data: gzip.compress(gzip.decompress(data).replace(b"piqa/0", b"piqa/9")), "checksum"),
        (lambda data: gzip.compress(b'{"format": "cola-cell/1"}'), "not a cell"),
    ],
)
def test_a_damaged_file_is_moved_aside_and_never_read(store, damage, reason, caplog):
    store.put(result())
    path = only_file(store)
    store._fs.pipe_file(path, damage(store._fs.cat_file(path)))
    with caplog.at_level(logging.WARNING):
        assert store.get(key()) is None
    assert path in caplog.text and reason in caplog.text
    assert store.quarantined == [path]
    assert not store._fs.exists(path) and len(store._fs.ls(store._aside)) == 1
    store.put(result())
    assert_same(store.get(key()), result())


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_no_flipped_bit_is_ever_read_as_a_result(position, bit):
    store = ResultStore("memory://flip/results")
    cell = result()
    store.put(cell)
    path = store._path(cell.key.fingerprint)
    data = bytearray(store._fs.cat_file(path))
    data[int(position * len(data))] ^= 1 << bit
    store._fs.pipe_file(path, bytes(data))
    found = store.get(cell.key)
    if found is not None:  # the bit was in a part of the gzip header that says nothing
        assert_same(found, cell)


def test_a_cell_under_another_cells_name_is_not_read(store):
    store.put(result())
    other = result(calibration="other")
    store._fs.pipe_file(store._path(other.key.fingerprint), store._fs.cat_file(only_file(store)))
    assert store.get(other.key) is None
    assert store.keys() == [key().fingerprint]
    assert len(store.quarantined) == 1


def test_foreign_files_are_moved_aside_when_listed(store, caplog):
    store.put(result())
    store._fs.pipe_file(store._cells + "/notes.txt", b"mine")
    store._fs.pipe_file(store._cells + "/.hidden", b"not ours to judge")
    with caplog.at_level(logging.WARNING):
        assert store.keys() == [key().fingerprint]
    assert "notes.txt" in caplog.text and len(store.quarantined) == 1
    assert store._fs.exists(store._cells + "/.hidden")


def test_a_file_that_a_killed_writer_left_is_ignored(tmp_path):
    store = ResultStore(tmp_path)
    store.put(result())
    left = tmp_path / "cells" / f".{'0' * 20}.json.gz.99-abc.tmp"
    left.write_bytes(b"half")
    assert store.keys() == [key().fingerprint] and left.exists() and store.quarantined == []


def test_an_unwritable_store_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = ResultStore(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot be written.*choose another folder"):
        store.put(result())
    with pytest.raises(StoreError, match="cannot be written"):
        store.check_writable()


@pytest.mark.fault
def test_a_full_disk_leaves_the_old_cell_and_no_half_file(tmp_path, monkeypatch):
    store = ResultStore(tmp_path)
    store.put(result(seed=0))

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; free some space"):
        store.put(result(seed=1))
    monkeypatch.undo()
    assert store.get(key()).labels["draw"] == 0
    assert [p.name for p in (tmp_path / "cells").iterdir()] == [f"{key().fingerprint}.json.gz"]


def test_check_writable_leaves_nothing(store):
    store.check_writable()
    assert store._list() == [] and store.keys() == []
    assert [p for p in store._fs.ls(store._cells, detail=False)] == []


def test_an_unknown_protocol_is_refused():
    with pytest.raises(StoreError, match="result store 'nonsense://x'"):
        ResultStore("nonsense://x")


def _write_many(url: str, seed: int) -> None:
    store = ResultStore(url)
    for i in range(10):
        store.put(result(calibration=f"c{i}", seed=i))


def test_several_writers_of_the_same_cells(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(str(tmp_path), seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = ResultStore(tmp_path)
    assert len(store) == 10 and store.quarantined == []
    assert not [p for p in (tmp_path / "cells").iterdir() if p.name.startswith(".")]


def test_packed_cells_come_back_as_they_were(store, tmp_path):
    cells = [result(calibration=f"c{i}", seed=i) for i in range(5)]
    for cell in cells:
        store.put(cell)
    assert store.pack(tmp_path / "packed.parquet") == 5
    layered = ResultStore(tmp_path / "empty", packed=[tmp_path / "packed.parquet"])
    assert len(layered) == 5 and not (tmp_path / "empty").exists()
    for cell in cells:
        assert_same(layered.get(cell.key), cell)
    other = ResultStore(tmp_path / "other")
    assert other.unpack(tmp_path / "packed.parquet") == 5
    assert other.keys() == store.keys()
    assert_same(other.get(cells[3].key), cells[3])


def test_packing_is_deterministic_and_can_choose(store, tmp_path):
    for i in range(4):
        store.put(result(calibration=f"c{i}", seed=i))
    store.pack(tmp_path / "a.parquet")
    store.pack(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert store.pack(tmp_path / "c.parquet", [key(calibration="c2")]) == 1
    with pytest.raises(StoreError, match="is not there"):
        store.pack(tmp_path / "d.parquet", [key(calibration="missing")])
    assert not (tmp_path / "d.parquet").exists()


def test_the_folder_lies_above_the_packed_file(tmp_path):
    below = ResultStore(tmp_path / "below")
    below.put(result(seed=0))
    below.put(result(calibration="only below", seed=7))
    below.pack(tmp_path / "packed.parquet")
    store = ResultStore(tmp_path / "above", packed=[tmp_path / "packed.parquet"])
    store.put(result(seed=1))
    assert store.get(key()).labels["draw"] == 1
    assert len(store) == 2 and sorted(store.to_frame()["draw"].unique()) == [1, 7]


def test_a_packed_file_is_small(tmp_path):
    store = ResultStore(tmp_path)
    n_cells, n_items = 40, 300
    for i in range(n_cells):
        store.put(result(calibration=f"c{i}", seed=i, n_items=n_items))
    store.pack(tmp_path / "packed.parquet")
    incompressible = 4 * 2 * n_items  # likelihoods of two choices on average, in float32
    assert (tmp_path / "packed.parquet").stat().st_size < n_cells * incompressible * 1.3 + 20_000


@pytest.mark.parametrize("damage", [lambda d: d[:-100], lambda d: b"PAR1", lambda d: b""])
def test_a_damaged_packed_file_is_an_error(tmp_path, damage):
    store = ResultStore(tmp_path)
    store.put(result())
    store.pack(tmp_path / "packed.parquet")
    path = tmp_path / "packed.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match="packed.parquet are damaged"):
        ResultStore(tmp_path / "x", packed=[path]).get(key())
    with pytest.raises(StoreError, match="gone.parquet are not there"):
        store.unpack(tmp_path / "gone.parquet")


def test_no_altered_packed_cell_is_ever_read_as_a_result():
    cell, refused = result(n_items=40), 0
    data = write_packed([cell])
    positions = range(0, len(data), max(1, len(data) // 150))
    for position in positions:
        altered = bytearray(data)
        altered[position] ^= 0x10
        try:
            found = PackedCells(bytes(altered))[cell.key.fingerprint]
        except (OSError, KeyError, TypeError, ValueError):
            refused += 1
        else:
            assert_same(found, cell)
    assert refused > len(positions) / 4


def test_uncalibrated_cells_do_not_depend_on_the_calibration_set():
    rtn = {"method": "rtn", "bits": 3}
    one = cell_key(model="m", suite="s", spec=rtn, calibration="a", propagate="original")
    other = cell_key(model="m", suite="s", spec=rtn, calibration="b", propagate="compressed")
    assert one.fingerprint == other.fingerprint
    with pytest.raises(SpecError, match="wanda needs a calibration set"):
        cell_key(model="m", suite="s", spec=WANDA, calibrated=True)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"suite": "t"},
        {"spec": {**WANDA, "sparsity": 0.6}},
        {"spec": {**WANDA, "revisions": {"wanda": 2}}},
        {"calibration": "d"},
        {"propagate": "compressed"},
    ],
)
def test_everything_that_shapes_the_numbers_is_in_the_key(change):
    assert key(**change).fingerprint != key().fingerprint


def test_a_raised_revision_makes_the_cell_new(monkeypatch):
    before = key().fingerprint
    monkeypatch.setitem(__import__("cola_lib.registry", fromlist=["x"]).REVISIONS, "likelihood", 99)
    assert key().fingerprint != before


def test_cells_of_an_algorithm_that_was_changed_are_not_in_the_table_beside_its_new_ones(store, monkeypatch):
    tuned = key(spec={**WANDA, "tuned": {"spec": {"steps": 2}, "finetune": 1}}, calibration="c0")
    store.put(result("c0"))
    store.put(replace(result("c0"), key=tuned))
    monkeypatch.setitem(REVISIONS, "finetune", 1)
    assert tuned.outdated == [] and tuned.fingerprint in set(store.to_frame()["cell"])
    monkeypatch.setitem(REVISIONS, "finetune", 2)
    assert tuned.outdated == ["finetune"] and tuned.fingerprint not in set(store.to_frame()["cell"])
    assert tuned in store and set(store.to_frame()["cell"]) == {key(calibration="c0").fingerprint}
    monkeypatch.setitem(REVISIONS, "walk", REVISIONS["walk"] + 1)
    assert tuned.outdated == ["finetune", "walk"] and store.to_frame().empty


def test_keys_are_the_same_everywhere_and_forever():
    """A change of this value would throw away every stored result."""
    cell = CellKey("m", "s", {"method": "wanda", "pattern": (2, 4), "damp": 0.01}, "c", "original", {"walk": 1})
    assert cell.fingerprint == "f220c8c20c9569e41c12"


def test_a_file_is_plain_enough_to_read_without_the_library(tmp_path):
    store = ResultStore(tmp_path)
    store.put(result())
    outer = json.loads(gzip.decompress((tmp_path / "cells" / f"{key().fingerprint}.json.gz").read_bytes()))
    assert outer["cell"]["labels"]["source"] == "c4" and "bits_per_byte" not in outer["cell"]["scores"]


def test_cells_are_packed_where_no_notebook_has_found_anything(tmp_path):
    from typer.testing import CliRunner

    from cola_lib.cli import app

    key = cell_key(model="m", suite="s")
    ResultStore(tmp_path / "results").put(CellResult(key, pd.DataFrame({"item": ["1"]}), {"method": "dense"}))
    done = CliRunner().invoke(app, ["pack", "--store", str(tmp_path / "results"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert ResultStore(tmp_path / "none", packed=[tmp_path / "out" / "cells.parquet"]).keys() == [key.fingerprint]
