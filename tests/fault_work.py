"""What the fault tests do in processes of their own, which get killed, run out of disk or lose their rights.

A fork server imports this module once, which takes seconds, and every process is then forked from it in milliseconds.
Nothing here computes at import: a library that has started threads must not be forked.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM  # noqa: F401  imported when a model is made, in every process anew

from cola_lib.compress import method_spec
from cola_lib.errors import ColaError
from cola_lib.evaluate import Suite
from cola_lib.experiments import CellResult, GridResult, ResultStore, run_grid, store
from cola_lib.models import LanguageModel
from tests.byte_tokenizer import byte_tokenizer
from tests.test_runner import SUITE, tiny_set
from tests.tiny_models import tiny_language_model

WORDS = ("band", "sand", "land", "hand", "wand", "grand")
SPECS = (method_spec("wanda"), method_spec("gptq", bits=3, group_size=16), method_spec("rtn", bits=2, group_size=16))
N_CELLS = 2 + 2 * len(WORDS)
"""Dense and rtn once, wanda and gptq for each set."""

NOBODY = 65534
"""User and group without rights on anything of ours."""


def forkserver() -> multiprocessing.context.ForkServerContext:
    """Processes that start with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def small_lm(**overrides: object) -> LanguageModel:
    shape = {"vocab_size": 264, "max_position_embeddings": 256, "num_hidden_layers": 1}
    return tiny_language_model("llama", byte_tokenizer(), **(shape | overrides))


def sweep(url: str | os.PathLike[str], n_sets: int = len(WORDS)) -> GridResult:
    """The grid of all these tests."""
    sets = [tiny_set(word) for word in WORDS[:n_sets]]
    return run_grid(small_lm(), sets, SPECS, SUITE, ResultStore(url), progress=False)


class _Journal(logging.Handler):
    """Writes down which cells are begun, at once, so that a kill leaves what was written."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("computing cell "):
            os.write(self._file, f"{record.args[0]}\n".encode())


def _begin(journal: Path | None = None) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own lock is shared by processes, and a kill would leave it behind
    if journal is not None:
        log = logging.getLogger("cola_lib.experiments.runner")
        log.setLevel(logging.INFO)
        log.addHandler(_Journal(journal))


def journalled_sweep(url: str, journal: Path) -> None:
    _begin(journal)
    sweep(url)


def sweep_beside_another(url: str, journal: Path, together: Any, told: Path) -> None:
    """Sweep at the same time as another process, and tell what came out."""
    _begin(journal)
    together.wait()
    result = sweep(url)
    result.frame.to_pickle(told)


def told(task: Callable[..., Any], path: Path, *args: Any) -> None:
    """Do a task, and write down what it gave, or the library's error that it ended in."""
    _begin()
    with path.open("w") as file:  # opened while there is the right to
        try:
            said = {"result": task(*args)}
        except ColaError as error:
            said = {"error": type(error).__name__, "message": str(error)}
        json.dump(said, file)


def counted_sweep(url: str) -> tuple[int, int]:
    result = sweep(url)
    return result.n_read, result.n_computed


def packed_store(url: str, out: str) -> int:
    return ResultStore(url).pack(out)


def drop_rights() -> None:
    """Become a user whom permissions bind, which root is not."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def sweep_as_ordinary_user(url: str, n_sets: int) -> list[Any]:
    """Sweep once with the rights of the test, then twice without any of root's."""
    lm, sets = small_lm(), [tiny_set(word) for word in WORDS]
    options = {"specs": SPECS, "suite": SUITE, "store": ResultStore(url), "progress": False}
    run_grid(lm, sets[:n_sets], **options)
    folder = Path(url) / "cells"
    folder.chmod(0o555)
    Path(url).chmod(0o555)
    drop_rights()
    stored = run_grid(lm, sets[:n_sets], **options)
    begun: list[str] = []
    log = logging.getLogger("cola_lib.experiments.runner")
    log.setLevel(logging.INFO)
    log.addFilter(lambda record: begun.append(record.getMessage()) or True)
    try:
        run_grid(lm, sets, **options)
    except ColaError as error:
        return [stored.n_read, stored.n_computed, begun, type(error).__name__, str(error)]
    raise AssertionError("what is read-only was written")


def read_unreadable(url: str) -> int:
    """Look into a store as a user who may not."""
    (Path(url) / "cells").chmod(0o000)
    drop_rights()
    return len(ResultStore(url))


def put_and_die(url: str, result: CellResult, line: int) -> None:
    """Put a cell, and be killed before the given line of the store's code runs, counted as they come."""
    passed = 0

    def count(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal passed
        if frame.f_code.co_filename != store.__file__:
            return None
        if event == "line":
            passed += 1
            if passed == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return count

    target = ResultStore(url)
    sys.settrace(count)
    target.put(result)
    sys.settrace(None)


def memory_of_cells(url: str, path: Path, n_cells: int) -> None:
    """Sweep over many sets, two cells each, and tell the memory before each cell is computed, and the weights' size."""
    _begin()
    lm = small_lm(hidden_size=128, intermediate_size=128)
    resident: list[int] = []
    log = logging.getLogger("cola_lib.experiments.runner")
    log.setLevel(logging.INFO)
    log.addFilter(lambda record: resident.append(_resident()) or True)
    builders = [lambda seed=seed: tiny_set("band", seed) for seed in range(n_cells // 2)]
    suite = Suite(SUITE.items[:1])
    result = run_grid(lm, builders, SPECS[:2], suite, ResultStore(url), dense=False, progress=False)
    weights = sum(weight.numel() * weight.element_size() for weight in lm.model.parameters())
    told = {"resident": resident, "weights": weights, "cells": result.frame["cell"].nunique()}
    path.write_text(json.dumps(told))


def _resident() -> int:
    """Bytes of this process that are in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def from_version(result: CellResult, version: str) -> CellResult:
    """The same cell, said to be of another version of the library."""
    return replace(result, versions={**result.versions, "cola-lib": version})
