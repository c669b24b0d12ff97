"""What the examples in docstrings run in: a folder of their own, and registries that forget what they entered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.doctest import DoctestItem


@pytest.fixture(autouse=True)
def _example_leaves_nothing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Run an example of a docstring in an empty folder, and take out what it registered."""
    if not isinstance(request.node, DoctestItem):
        yield
        return
    from cola_lib import revisions
    from cola_lib.analysis.claims import table
    from cola_lib.compress import block, specs
    from cola_lib.curation import base
    from cola_lib.data import registry

    registries: list[dict[str, Any]] = [
        registry._SOURCES,
        registry._INFOS,
        base._REGISTRY,
        specs._KINDS,
        block.SOLVERS,
        revisions.REVISIONS,
        table.CLAIMS,
    ]
    before = [dict(entries) for entries in registries]
    folder: Path = tmp_path_factory.mktemp("example")
    monkeypatch.chdir(folder)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    for entries, known in zip(registries, before, strict=True):
        entries.clear()
        entries.update(known)
