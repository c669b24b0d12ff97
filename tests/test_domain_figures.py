"""Figures of matching calibration to use show the numbers they were given, and say which are on target."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from cola_lib import figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def gains():
    rows = itertools.product(["gsm8k", "code"], ["language", "math", "code"], ["wanda 50%", "gptq 3-bit"])
    target = {"gsm8k": "math", "code": "code"}
    return pd.DataFrame(
        [
            {"source": s, "capability": c, "label": m, "on_target": target[s] == c, "value": v}
            for (s, c, m), v in zip(rows, np.linspace(-0.1, 0.12, 12), strict=True)
        ]
    ).assign(low=lambda table: table["value"] - 0.02, high=lambda table: table["value"] + 0.01)


def test_dots_on_target_are_filled_and_all_sit_on_their_values():
    table = gains()
    figure = figures.interval_dots(
        table, row="capability", facet="source", hue="label", matched="on_target", xlabel="gain", reference=0.0
    )
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["gsm8k", "code"]
    for axis in panels:
        part = table[table["source"] == axis.get_title()]
        dots = [line for line in axis.lines if line.get_marker() not in (None, "None", "")]
        filled = [line for line in dots if to_hex(line.get_markerfacecolor()) != "#ffffff"]
        assert sorted(line.get_xdata()[0] for line in dots) == pytest.approx(sorted(100 * part["value"]))
        assert sorted(line.get_xdata()[0] for line in filled) == pytest.approx(
            sorted(100 * part.loc[part["on_target"], "value"])
        )
        ends = [tuple(line.get_xdata()) for line in axis.lines if line.get_linewidth() == 1.5]
        bars = sorted(pair for pair in ends if len(pair) == 2)
        assert np.allclose(bars, sorted(zip(100 * part["low"], 100 * part["high"], strict=True)))
        assert len({(line.get_marker(), line.get_color()) for line in dots}) == 2  # shape as well as colour
    said = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"wanda 50%", "gptq 3-bit", "off target"} <= said


def test_matches_are_outlined_on_a_scale_around_zero():
    names = ["zh", "de", "fr"]
    table = pd.DataFrame(
        [
            {"on": on, "of": of, "label": label, "value": 0.04 if on == of else -0.02}
            for label, on, of in itertools.product(["wanda 50%", "gptq 3-bit"], [*names, "c4"], names)
        ]
    )
    figure = figures.matched_heatmap(table, row="on", column="of", facet="label", xlabel="x", ylabel="y", label="gain")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["wanda 50%", "gptq 3-bit"]
    for axis in panels:
        assert [text.get_text() for text in axis.texts] == [
            "+4.0" if row == column else "-2.0" for row in range(4) for column in range(3)
        ]
        assert axis.collections[0].get_clim() == pytest.approx((-4.0, 4.0))
        outlined = {patch.get_xy() for patch in axis.patches if isinstance(patch, Rectangle)}
        assert outlined == {(0, 0), (1, 1), (2, 2)}
