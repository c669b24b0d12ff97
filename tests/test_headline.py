"""The README's figure can be drawn from the committed evidence."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

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
    picture = imread(tmp_path / "sources.png")  # (height, width, channels)
    assert picture.shape[1] > 600 and len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 50
