"""Figures of measures and predictions show the numbers they were given, and can be told apart without colour."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cola_lib.figures.predictions import agreement_scatter, correlation_forest, depth_profiles, scaled_heatmaps


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def profiles() -> pd.DataFrame:
    rows = itertools.product(["c4", "code"], ["math", "language", "code", "knowledge"], [0, 1], range(30))
    table = pd.DataFrame(rows, columns=["source", "target", "draw", "block"])
    return table.assign(value=np.linspace(0, 1, len(table)))


def test_depth_profiles_are_means_over_draws_with_marks_apart():
    table = profiles()
    figure = depth_profiles(table, y="value", hue="source", facet="target", ylabel="y")
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == ["math", "language", "code", "knowledge"]
    first = table[(table["target"] == "math") & (table["source"] == "c4")].groupby("block")["value"].mean()
    line, other = panels[0].lines
    assert line.get_ydata() == pytest.approx(first.to_numpy())
    assert line.get_marker() != other.get_marker() and line.get_markevery() != other.get_markevery()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["c4", "code"]


def test_heat_maps_have_their_own_scales_and_directions():
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=["a", "b"], columns=["m", "n"])
    figure = scaled_heatmaps({"near": frame, "far": 10 * frame}, lower_is_better=["far"])
    near, far = (axis.collections[0] for axis in figure.axes)
    assert near.get_clim() == (1.0, 4.0) and far.get_clim() == (10.0, 40.0)
    assert [t.get_text() for t in figure.axes[1].texts] == ["10", "20", "30", "40"]
    best = near.get_facecolors()[3], far.get_facecolors()[0]
    assert best[0] == pytest.approx(best[1]), "the best field has one colour in both"


def test_forest_draws_what_is_known():
    table = pd.DataFrame(
        {
            "part": ["wanda · math", "gptq · math"] * 2,
            "proxy": ["error"] * 2 + ["coverage"] * 2,
            "value": [0.9, 0.2, np.nan, -0.4],
            "low": [0.7, -0.3, -1, -0.9],
            "high": [0.97, 0.6, 1, 0.5],
        }
    )
    figure = correlation_forest(table, row="part", facet="proxy", xlabel="x", reference=0.8)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["wanda · math", "gptq · math"]
    dots = [[line for line in axis.lines if len(line.get_xdata()) == 1] for axis in (first, second)]
    assert [line.get_xdata()[0] for line in dots[0]] == [0.9, 0.2]
    assert [line.get_xdata()[0] for line in dots[1]] == [-0.4], "a missing value is its interval alone"
    assert [0.8, 0.8] in [list(line.get_xdata()) for line in first.lines]
    assert dots[0][0].get_marker() != dots[1][0].get_marker()


def test_scatter_has_a_panel_for_each_row_and_column():
    cells = itertools.product(["c4", "code", "gsm8k"], ["wanda", "gptq"], ["math", "code"], [0, 1])
    table = pd.DataFrame(cells, columns=["source", "label", "capability", "draw"])
    table = table.assign(x=np.arange(len(table)), y=-np.arange(len(table)))
    figure = agreement_scatter(
        table, x="x", y="y", hue="source", row="label", column="capability", xlabel="x", ylabel="y"
    )
    assert len(figure.axes) == 4
    shown = sorted(x for axis in figure.axes for line in axis.lines for x in line.get_xdata())
    assert shown == list(range(len(table)))
    assert len({line.get_marker() for line in figure.axes[0].lines}) == 3
    one = agreement_scatter(table, x="x", y="y", hue="source", column="label", xlabel="x", ylabel="y", share=True)
    assert len({axis.get_xlim() for axis in one.axes}) == 1
