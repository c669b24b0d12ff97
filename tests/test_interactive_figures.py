"""Interactive figures carry what they were given, into a page of the book or one that stands alone."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from cola_lib import figures
from cola_lib.errors import DataError, OutputError, SpecError
from cola_lib.figures.interactive import SCRIPTS, STYLES, read_asset


def table() -> pd.DataFrame:
    rows = [
        ("kept (%)", "math", "gptq 3-bit", "c4", 78.4, 67.1, 92.0, [[0, "a1", 77.0], [1, "b2", None]]),
        ("kept (%)", "math", "wanda 50%", "</script><b>", 60.0, 50.0, 70.0, [[0, "c3", 60.0]]),
    ]
    frame = pd.DataFrame(rows, columns=["measure", "capability", "label", "source", "value", "low", "high", "cells"])
    return frame.assign(n_draws=np.int64(2), target=[None, np.nan])


def explorer(given: pd.DataFrame, **changed):
    options = {
        "name": "kept",
        "label": "What is kept",
        "choose": {"measure": "Measure", "capability": "Capability", "source": "Source"},
        "single": ["measure"],
        "by": ["source", "target"],
        "hue": "label",
        "reference": {"kept (%)": 100},
        "cells": "cells",
    }
    return figures.interval_explorer(given, **{**options, **changed})


def content_of(page: str) -> dict:
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)
    return json.loads(data)


def records(content: dict) -> list[dict]:
    names = [column["name"] for column in content["columns"]]
    return [dict(zip(names, row, strict=True)) for row in content["rows"]]


def test_every_estimate_reaches_the_page_with_its_interval_and_its_cells():
    content = content_of(explorer(table())._repr_html_())
    first, second = records(content)
    assert (first["value"], first["low"], first["high"], first["n_draws"]) == (78.4, 67.1, 92.0, 2)
    assert first["cells"] == [[0, "a1", 77.0], [1, "b2", None]]
    assert second["source"] == "</script><b>" and second["target"] is None is first["target"]
    assert [(one["column"], one["all"]) for one in content["choose"]] == [
        ("measure", False),
        ("capability", True),
        ("source", True),
    ]
    assert content["hues"] == ["wanda 50%", "gptq 3-bit"], "methods come in their order everywhere"
    said = [column["name"] for column in content["columns"] if column["hover"]]
    assert {"value", "low", "high", "source", "label", "n_draws"} <= set(said)


def test_the_map_says_which_rows_were_picked_and_what_they_say():
    points = pd.DataFrame({"x": [0.0, 1.0], "y": [1.0, 2.0], "source": ["c4", "math"], "picked": [True, False]})
    figure = figures.interactive_map(points.assign(text=["web", "1 < 2"]), name="map", label="Map")
    found = records(content_of(figure._repr_html_()))
    assert [(one["picked"], one["text"]) for one in found] == [("yes", "web"), ("no", "1 < 2")]


def test_a_saved_page_stands_alone(tmp_path):
    path = tmp_path / "kept.html"
    explorer(table()).save(path)
    page = path.read_text(encoding="utf-8")
    assert records(content_of(page))[0]["value"] == 78.4
    for name in (*SCRIPTS, *STYLES):
        assert read_asset(name) in page
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=", page[:2000] + page[-2000:])
    with pytest.raises(OutputError, match="could not be written"):
        explorer(table()).save(tmp_path / "none" / "kept.html")


@pytest.mark.parametrize(
    ("given", "changed", "error", "message"),
    [
        (table().drop(columns="low"), {}, DataError, "no column 'low'"),
        (table().drop(columns="measure"), {"choose": {}, "single": []}, DataError, "no column 'measure'"),
        (table().iloc[:0], {}, DataError, "nothing to show"),
        (table(), {"name": "No good"}, SpecError, "lower-case"),
        (table(), {"single": ["source", "label"]}, SpecError, "'label' is not one of the choices"),
    ],
)
def test_what_cannot_be_shown_is_refused(given, changed, error, message):
    with pytest.raises(error, match=message):
        explorer(given, **changed)
