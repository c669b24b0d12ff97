"""Figures show the numbers they were given, and can be told apart without colour."""

from __future__ import annotations

import itertools

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from cola_lib import figures
from cola_lib.figures.verdicts import verdict_strip

METHODS = ("dense", "wanda 50%", "gptq 3-bit")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table():
    rows = itertools.product(["c4", "code"], METHODS[1:], ["math", "language", "code"])
    values = np.linspace(0.3, 0.95, 12)
    return pd.DataFrame(
        [
            {"source": s, "label": m, "capability": c, "value": v, "low": v - 0.02, "high": v + 0.03}
            for (s, m, c), v in zip(rows, values, strict=True)
        ]
    )


def test_each_field_of_the_heat_map_holds_its_value_and_interval():
    figure = figures.retention_heatmap(table(), row="source", column="capability", facet="label")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == ["wanda 50%", "gptq 3-bit"]
    shown = {text.get_text() for axis in panels for text in axis.texts}
    expected = {
        f"{100 * r.value:.0f}\n[{100 * r.low:.0f}, {100 * r.high:.0f}]" for r in table().itertuples(index=False)
    }
    assert shown == expected
    for axis in panels:  # one scale, so that panels compare
        assert axis.collections[0].get_clim() == pytest.approx((30.0, 95.0))


def test_dots_sit_on_their_values_between_the_ends_of_their_intervals():
    one = table()[lambda t: t["source"] == "c4"]
    figure = figures.interval_dots(one, row="label", facet="capability", xlabel="x")
    assert [axis.get_title() for axis in figure.axes] == ["math", "language", "code"]
    for axis in figure.axes:
        part = one[one["capability"] == axis.get_title()]
        dots = sorted(line.get_xdata()[0] for line in axis.lines if line.get_marker() not in (None, "None", ""))
        assert dots == pytest.approx(sorted(100 * part["value"]))
        bars = sorted(tuple(line.get_xdata()) for line in axis.lines if len(line.get_xdata()) == 2)
        for low, high in zip(part["low"], part["high"], strict=True):
            assert any(np.allclose(bar, (100 * low, 100 * high)) for bar in bars)
        markers = {line.get_marker() for line in axis.lines if len(line.get_xdata()) == 1}
        assert len(markers) == 2  # shape as well as colour


def test_lines_are_labelled_at_their_points_when_there_are_few():
    data = pd.DataFrame({"x": [256, 512, 1024] * 2, "y": range(6), "m": ["a"] * 3 + ["b"] * 3})
    axis = figures.lines(data, x="x", y="y", hue="m", xlabel="tokens", ylabel="error", logx=True).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["256", "512", "1024"]
    assert {text.get_text() for text in axis.get_legend().get_texts()} == {"a", "b"}


def test_matrices_share_one_scale():
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=["a", "b"], columns=["a", "b"])
    figure = figures.matrix_heatmap({"one": frame, "ten": 10 * frame}, xlabel="x", ylabel="y", label="v", fmt=".0f")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [[t.get_text() for t in axis.texts] for axis in panels] == [["1", "2", "3", "4"], ["10", "20", "30", "40"]]
    assert {axis.collections[0].get_clim() for axis in panels} == {(1.0, 40.0)}


def test_methods_come_dense_first_then_each_control_before_what_it_controls():
    labels = ["gptq 3-bit", "dense", "rtn 3-bit", "wanda 50%", "magnitude 50%", "mine"]
    assert figures.in_order(labels) == ["dense", "magnitude 50%", "wanda 50%", "rtn 3-bit", "gptq 3-bit", "mine"]


def curve_table():
    rows = itertools.product([4, 16, 64], METHODS[1:], ["math", "code"])
    values = np.linspace(0.3, 0.9, 12)
    return pd.DataFrame(
        [
            {"n": n, "label": m, "capability": c, "value": v, "low": v - 0.03, "high": v + 0.02}
            for (n, m, c), v in zip(rows, values, strict=True)
        ]
    )


def test_curves_pass_through_their_values_with_their_intervals():
    given = curve_table()
    figure = figures.interval_curves(given, x="n", hue="label", column="capability", xlabel="n", ylabel="kept (%)")
    assert [axis.get_title() for axis in figure.axes] == ["math", "code"]
    for axis in figure.axes:
        assert [tick.get_text() for tick in axis.get_xticklabels()] == ["4", "16", "64"]
        assert len(axis.containers) == 2
        for container, label in zip(axis.containers, METHODS[1:], strict=True):
            own = given[(given["label"] == label) & (given["capability"] == axis.get_title())]
            line, _, (bars,) = container
            assert list(line.get_ydata()) == pytest.approx(list(100 * own["value"]))
            ends = [sorted(segment[:, 1]) for segment in bars.get_segments()]
            assert np.allclose(ends, 100 * own[["low", "high"]].to_numpy())
    lines = [container[0] for container in figure.axes[0].containers]
    assert len({(line.get_marker(), line.get_linestyle()) for line in lines}) == 2


def test_stacked_shares_add_up_and_carry_their_numbers():
    given = pd.DataFrame(
        {
            "capability": ["math"] * 3 + ["code"] * 3,
            "part": ["a", "b", "c"] * 2,
            "share": [0.5, 0.47, 0.03, 0.2, 0.3, 0.5],
        }
    )
    figure = figures.stacked_shares(given, row="capability", part="part", value="share", xlabel="share (%)")
    bars = [patch for container in figure.axes[0].containers for patch in container]
    assert [round(bar.get_width(), 6) for bar in bars] == [50, 20, 47, 30, 3, 50]
    assert [round(bar.get_x(), 6) for bar in bars] == [0, 0, 50, 20, 97, 50]
    assert {text.get_text() for text in figure.axes[0].texts} == {"50", "47", "20", "30", ""}
    assert len({bar.get_hatch() for bar in bars}) == 3


def test_verdicts_are_told_apart_by_marker_and_long_intervals_end_in_an_arrow():
    given = pd.DataFrame(
        [
            ("C5", 0.10, 0.05, 0.15, "reproduced"),
            ("C5", 0.02, -0.01, 0.05, "undecided at this power"),
            ("C8", -0.05, -0.90, 0.80, "undecided at this power"),
            ("C8", -0.08, -0.10, -0.06, "not reproduced"),
        ],
        columns=["claim", "value", "low", "high", "verdict"],
    )
    figure = verdict_strip(given, xlabel="effect (%)")
    axis = figure.axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["C5", "C8"]
    points = {line.get_xdata()[0]: line.get_marker() for line in axis.lines if len(line.get_xdata()) == 1}
    assert {round(x, 3): m for x, m in points.items() if m not in "<>"} == {10: "o", 2: "D", -5: "D", -8: "X"}
    assert sorted(m for m in points.values() if m in "<>") == ["<", ">"]


def test_stacked_bars_keep_their_unit_and_show_the_limit():
    parts = pd.DataFrame(
        [("a", "x", 3.0), ("a", "y", 30.0), ("b", "x", 4.0)],  # b has no y
        columns=["row", "part", "value"],
    )
    axis = figures.stacked_bars(parts, row="row", part="part", value="value", xlabel="GB", limit=50.0).axes[0]
    widths = {bar.get_label(): [patch.get_width() for patch in bar] for bar in axis.containers}
    assert widths == {"x": [3.0, 4.0], "y": [30.0, 0.0]}
    assert axis.lines[0].get_xdata()[0] == 50.0 and axis.get_xlim()[1] > 50.0
