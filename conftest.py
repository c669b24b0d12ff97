"""What the examples in docstrings run in: a folder of their own, and registries that forget what they entered."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.doctest import DoctestItem


@pytest.fixture(autouse=True)
def _example_leaves_nothing(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    doctest_namespace: dict[str, Any],
) -> Iterator[None]:
    """Run an example of a docstring in an empty folder, and take out what it registered.

    Examples may use ``lm``, a tiny model, and ``rows``, a calibration set for it, without making them.
    """
    if not isinstance(request.node, DoctestItem):
        yield
        return
    from cola_lib.analysis import CLAIMS
    from cola_lib.calibration import random_tokens_set
    from cola_lib.compress import METHODS
    from cola_lib.curation import STRATEGIES
    from cola_lib.data import SOURCES
    from cola_lib.models import ARCHITECTURES, tiny_model
    from cola_lib.registry import REVISIONS

    source = "".join(example.source for example in request.node.dtest.examples)
    if re.search(r"\b(lm|rows)\b", source):
        lm = tiny_model()
        doctest_namespace |= {"lm": lm, "rows": random_tokens_set(lm.tokenizer, n_samples=4, seq_len=32)}
    registries: list[dict[str, Any]] = [REVISIONS]
    registries += [each._entries for each in (ARCHITECTURES, CLAIMS, METHODS, SOURCES, STRATEGIES)]
    before = [dict(entries) for entries in registries]
    folder: Path = tmp_path_factory.mktemp("example")
    monkeypatch.chdir(folder)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    for entries, known in zip(registries, before, strict=True):
        entries.clear()
        entries.update(known)
