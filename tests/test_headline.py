"""The README's figure can be drawn from the committed evidence."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from PIL import Image

from cola_lib.experiments import ResultStore

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "evidence" / "cells.parquet"


@pytest.mark.skipif(not EVIDENCE.exists(), reason="no evidence has been packed yet")
def test_the_headline_s_figure_is_drawn_from_the_evidence(tmp_path):
    script = runpy.run_path(str(ROOT / "book" / "headline.py"))
    frame = ResultStore(tmp_path / "results", packed=[EVIDENCE]).to_frame()
    grid = script["grid"](frame)
    assert grid["source"].nunique() >= 8 and grid["label"].nunique() >= 5, "sources, methods and the untouched model"
    script["draw"](frame, tmp_path / "sources.png")
    with Image.open(tmp_path / "sources.png") as picture:
        assert picture.width > 600 and len(picture.getcolors(maxcolors=1000)) > 50
