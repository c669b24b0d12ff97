"""What is killed, starved of disk or rights, or given damaged files loses nothing and says what to do."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from cola_lib.errors import StoreError
from cola_lib.experiments import ResultStore
from cola_lib.registry import REVISIONS
from tests import fault_work as work
from tests.test_store import assert_same, result

pytestmark = [
    pytest.mark.fault,
    pytest.mark.skipif(
        "forkserver" not in multiprocessing.get_all_start_methods(), reason="forks the processes that it kills"
    ),
]

KILLS = 50


@pytest.fixture(scope="module")
def processes():
    return work.forkserver()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    """A finished sweep that nothing happened to: its store, and its scores."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, work.sweep(folder).frame


def names_in(store: Path) -> set[str]:
    """Cells whose files are in a folder, without a look inside."""
    folder = store / "cells"
    return {path.name.split(".")[0] for path in folder.glob("*.json.gz")} if folder.exists() else set()


def lines(journal: Path) -> list[str]:
    return journal.read_text().split() if journal.exists() else []


def ended(process, timeout: float = 120) -> int:
    process.join(timeout)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


# ----------------------------------------------------------------------------------------------- kills


def seconds_of_a_sweep(processes, tmp_path: Path) -> float:
    """How long a process sweeps that is let end; the first one also waits for the fork server's imports."""
    for url in ("warm", "timed"):
        process = processes.Process(target=work.journalled_sweep, args=(str(tmp_path / url), tmp_path / "journal"))
        process.start()
        began = time.perf_counter()
        assert ended(process) == 0
    return time.perf_counter() - began


def test_fifty_kills_lose_no_cell_and_repeat_only_what_was_in_flight(processes, undisturbed, tmp_path):
    _, expected = undisturbed
    rng, kills, sweeps = random.Random(0), 0, 0
    whole = seconds_of_a_sweep(processes, tmp_path)
    while kills < KILLS:
        url, finished, runs = tmp_path / f"sweep-{sweeps}", set(), 0
        while True:
            journal = tmp_path / f"journal-{sweeps}-{runs}"
            process = processes.Process(target=work.journalled_sweep, args=(str(url), journal))
            process.start()
            process.join(rng.uniform(0, whole) if kills < KILLS else 120)
            process.kill()
            code = ended(process)
            assert code in (0, -9)
            begun, runs = lines(journal), runs + 1
            assert not finished & set(begun), "a cell that was finished is computed again"
            assert len(begun) == len(set(begun))
            finished |= set(begun if code == 0 else begun[:-1])
            assert finished <= names_in(url), "a cell that was finished is gone"
            if code == 0:
                break
            kills += 1
        store = ResultStore(url)
        assert len(store) == work.N_CELLS and store.quarantined == []
        again = work.sweep(url)
        assert again.n_computed == 0
        pd.testing.assert_frame_equal(again.frame, expected)
        sweeps += 1
    assert kills >= KILLS


def test_killed_before_any_line_of_a_write_the_old_or_the_new_cell_is_there_whole(processes, tmp_path):
    old, new = result(seed=0), result(seed=1)
    held, line, code = [], 0, -9
    while code == -9:
        line += 1
        url = tmp_path / str(line)
        ResultStore(url).put(old)
        process = processes.Process(target=work.put_and_die, args=(str(url), new, line))
        process.start()
        code = ended(process)
        store = ResultStore(url)
        (found,) = store
        held.append(found.labels["draw"])
        assert_same(found, (old, new)[found.labels["draw"]])
        assert store.quarantined == []
    assert code == 0 and line > 20
    assert held == sorted(held) and set(held) == {0, 1}, "the new cell takes the old one's place once"


# ------------------------------------------------------------------------------------ two sweeps at once


def test_two_sweeps_on_one_store_at_once(processes, undisturbed, tmp_path):
    _, expected = undisturbed
    url, together = tmp_path / "store", processes.Barrier(3)
    pair = [
        processes.Process(
            target=work.sweep_beside_another, args=(str(url), tmp_path / f"j{i}", together, tmp_path / f"frame{i}")
        )
        for i in range(2)
    ]
    for process in pair:
        process.start()
    together.wait(60)
    held = [0]
    while any(process.is_alive() for process in pair):  # a third one reads meanwhile
        reader = ResultStore(url)
        held.append(len(reader))
        assert reader.quarantined == []
    assert [ended(process) for process in pair] == [0, 0]
    assert held == sorted(held) and len(held) > 2
    for i in range(2):
        assert set(lines(tmp_path / f"j{i}")) <= names_in(url)
        pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / f"frame{i}"), expected)
    store = ResultStore(url)
    assert len(store) == work.N_CELLS and store.quarantined == []
    assert not [path for path in (url / "cells").iterdir() if path.name.startswith(".")]


def test_a_sweep_goes_on_when_the_one_beside_it_is_killed(processes, undisturbed, tmp_path):
    _, expected = undisturbed
    url, together = tmp_path / "store", processes.Barrier(2)
    killed, other = [
        processes.Process(
            target=work.sweep_beside_another, args=(str(url), tmp_path / f"j{i}", together, tmp_path / f"frame{i}")
        )
        for i in range(2)
    ]
    killed.start(), other.start()
    while len(names_in(url)) < 3:
        assert other.is_alive()
    killed.kill()
    assert (ended(killed), ended(other)) == (-9, 0)
    pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / "frame1"), expected)
    assert len(ResultStore(url)) == work.N_CELLS


# --------------------------------------------------------------------------------------- disk and rights


def do(processes, tmp_path: Path, task: Callable, *args: object) -> dict:
    """What a task in a process of its own gave, or the error it ended in."""
    told = tmp_path / "told.json"
    process = processes.Process(target=work.told, args=(task, told, *args))
    process.start()
    assert ended(process) == 0
    return json.loads(told.read_text())


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 32 KB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("a disk that can be filled has to be mounted, which takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"root may not mount a disk here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_ends_a_sweep_with_what_to_do_and_keeps_what_it_has(processes, small_disk, undisturbed, tmp_path):
    _, expected = undisturbed
    said = do(processes, tmp_path, work.counted_sweep, str(small_disk / "store"))
    assert said["error"] == "StoreError"
    assert "No space left on device; free some space" in said["message"] and str(small_disk) in said["message"]
    kept = names_in(small_disk / "store")
    assert 0 < len(kept) < work.N_CELLS
    store = ResultStore(small_disk / "store")
    assert set(store.keys()) == kept and store.quarantined == []
    assert not [path for path in (small_disk / "store" / "cells").iterdir() if path.name.startswith(".")]

    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert do(processes, tmp_path, work.counted_sweep, str(small_disk / "store"))["result"] == [
        len(kept),
        work.N_CELLS - len(kept),
    ]
    pd.testing.assert_frame_equal(work.sweep(small_disk / "store").frame, expected)


def test_a_full_disk_leaves_the_packed_file_that_was_there(processes, small_disk, undisturbed, tmp_path):
    folder, _ = undisturbed
    out = small_disk / "cells.parquet"
    store = ResultStore(folder)
    store.pack(out, [store.keys()[0]])
    before = out.read_bytes()
    (small_disk / "fill").write_bytes(bytes(32 * 1024 - 2 * 4096 - len(before) // 4096 * 4096))
    said = do(processes, tmp_path, work.packed_store, str(folder), str(out))
    assert said["error"] == "StoreError" and "No space left on device" in said["message"]
    assert out.read_bytes() == before and {path.name for path in small_disk.iterdir()} == {"cells.parquet", "fill"}


def test_a_read_only_disk_is_found_out_before_anything_is_computed(processes, small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    said = do(processes, tmp_path, work.counted_sweep, str(small_disk / "store"))
    assert said["error"] == "StoreError" and "Read-only file system; free some space, mend" in said["message"]


@pytest.fixture
def anybodys_folder() -> Iterator[Path]:
    """A folder that a user without rights can reach; those of pytest are the tester's own."""
    folder = Path(tempfile.mkdtemp(prefix="cola-faults-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_store_is_read_and_refuses_new_cells_before_they_are_computed(processes, anybodys_folder, tmp_path):
    url = anybodys_folder / "store"
    said = do(processes, tmp_path, work.sweep_as_ordinary_user, str(url), 2)
    n_read, n_computed, begun, error, message = said["result"]
    assert (n_read, n_computed) == (2 + 2 * 2, 0)
    assert begun == [] and error == "StoreError"
    assert message.startswith(f"result store {url} cannot be written: Permission denied; ")


def test_a_store_that_may_not_be_read_is_not_taken_for_an_empty_one(processes, anybodys_folder, tmp_path):
    url = anybodys_folder / "store"
    ResultStore(url).put(result())
    said = do(processes, tmp_path, work.read_unreadable, str(url))
    assert said["error"] == "StoreError" and str(url / "cells") in said["message"]
    assert "Permission denied" in said["message"]


# ------------------------------------------------------------------------------------------ what lies there


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: data[: len(data) // 2],
    lambda data: data[:-1],
    lambda data: b"",
    _flipped,
    lambda data: bytes(len(data)),  # what some file systems leave of a file after a power cut
    lambda data: b"PK\x03\x04 somebody's archive",
    lambda data: gzip.compress(b'{"somebody": "else"}'),
)


def test_a_sweep_moves_damaged_cells_aside_and_computes_them_again(undisturbed, tmp_path, caplog):
    folder, expected = undisturbed
    url = tmp_path / "store"
    shutil.copytree(folder, url)
    paths = sorted((url / "cells").iterdir())
    damaged = {}
    for path, damage in zip(paths, DAMAGES, strict=False):
        damaged[path] = damage(path.read_bytes())
        path.write_bytes(damaged[path])
    foreign = url / "cells" / "notes.txt"
    foreign.write_text("mine")
    again = work.sweep(url)
    assert (again.n_read, again.n_computed) == (work.N_CELLS - len(DAMAGES), len(DAMAGES))
    pd.testing.assert_frame_equal(again.frame, expected)
    for path in damaged:
        assert f"{path} is damaged or foreign" in caplog.text
    kept = {path.read_bytes() for path in (url / "quarantine").iterdir()}
    assert kept == set(damaged.values()), "what is moved aside is kept as it was"
    assert foreign.exists(), "a sweep looks for its cells only"
    store = ResultStore(url)
    assert len(store) == work.N_CELLS and store.quarantined == [str(foreign)]


def test_a_cell_of_another_version_with_the_same_algorithms_is_read_and_keeps_its_version(undisturbed, tmp_path):
    url = tmp_path / "store"
    for cell in ResultStore(undisturbed[0]):
        ResultStore(url).put(work.from_version(cell, "0.0.1"))
    again = work.sweep(url)
    assert (again.n_read, again.n_computed) == (work.N_CELLS, 0)
    assert {cell.versions["cola-lib"] for cell in ResultStore(url)} == {"0.0.1"}


def test_cells_of_another_version_of_an_algorithm_are_kept_and_not_mixed(undisturbed, tmp_path, monkeypatch):
    url, expected = tmp_path / "store", undisturbed[1]
    with monkeypatch.context() as later:
        later.setitem(REVISIONS, "likelihood", REVISIONS["likelihood"] + 1)
        theirs = work.sweep(url, n_sets=1)
    before = {path: path.read_bytes() for path in (url / "cells").iterdir()}
    ours = work.sweep(url)
    assert (ours.n_read, ours.n_computed) == (0, work.N_CELLS)
    pd.testing.assert_frame_equal(ours.frame, expected)
    assert not set(ours.frame["cell"]) & set(theirs.frame["cell"])
    assert {path: path.read_bytes() for path in before} == before
    assert len(ResultStore(url)) == len(before) + work.N_CELLS


def test_a_file_of_another_format_is_left_as_it_is_and_the_error_says_so(undisturbed, tmp_path):
    url = tmp_path / "store"
    shutil.copytree(undisturbed[0], url)
    path = sorted((url / "cells").iterdir())[0]
    outer = json.loads(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(json.dumps({**outer, "format": "cola-cell/2"}).encode()))
    before = path.read_bytes()
    for look in (work.sweep, lambda url: ResultStore(url).keys()):
        with pytest.raises(StoreError, match=r"written by another version of cola-lib.*cola-cell/2.*cola-cell/1"):
            look(url)
    assert path.read_bytes() == before and not (url / "quarantine").exists()


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_bounded_over_five_hundred_cells(processes, tmp_path):
    """What grows is the table of results; a copy of the model or the statistics of a set would show."""
    n_cells, warm = 500, 50
    told = tmp_path / "told.json"
    process = processes.Process(target=work.memory_of_cells, args=(str(tmp_path / "store"), told, n_cells))
    process.start()
    assert ended(process, 280) == 0
    said = json.loads(told.read_text())
    resident = said["resident"]
    assert said["cells"] == n_cells == len(resident)
    growth = (max(resident[warm:]) - max(resident[:warm])) / (n_cells - warm)
    assert growth < 0.25 * said["weights"], f"{growth / 1e3:.0f} KB a cell"
