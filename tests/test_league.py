"""Mean ranks of many competitors, on scores whose order is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from scipy import stats

from cola_lib import figures
from cola_lib.analysis import gain_table, mean_ranks, overall_gains, simulated_grid
from cola_lib.errors import DataError
from cola_lib.figures.leagues import _groups


def scores(means, n_draws=8, noise=0.02, draw_sd=0.1, seed=0, tasks=("math", "code")):
    chance = np.random.default_rng(seed)
    rows = []
    for draw in range(n_draws):
        for task in tasks:
            shared = chance.normal(0, draw_sd)  # of the pool: it moves all alike, and so no rank
            for name, mean in means.items():
                value = mean + shared + chance.normal(0, noise)
                rows.append({"source": name, "draw": draw, "label": "wanda", "capability": task, "value": value})
    return pd.DataFrame(rows)


def test_what_is_better_ranks_before_what_is_worse():
    found = mean_ranks(scores({"b": 1.1, "a": 1.0, "c": 1.3, "d": 1.2}))
    assert found.table["source"].tolist() == ["a", "b", "d", "c"]
    assert found.table["rank"].sum() == pytest.approx(10) and found.p_value < 0.001 and found.n_blocks == 8
    assert (found.table["low"] >= 1).all() and (found.table["high"] <= 4).all()
    assert found.table["best"].iloc[0] > 0.9


def test_the_critical_difference_is_that_of_the_table():
    # Demšar (2006), table 5: q at 0.05 for 4 classifiers is 2.569.
    found = mean_ranks(scores(dict.fromkeys("abcd", 1.0), n_draws=14))
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), rel=1e-3)


def test_where_there_is_no_difference_none_is_found_at_the_level():
    p_values = [mean_ranks(scores(dict.fromkeys("abcde", 1.0), seed=seed)).p_value for seed in range(200)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.09
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_tasks_of_one_draw_are_no_repetitions():
    few = mean_ranks(scores(dict.fromkeys("abc", 1.0), n_draws=3))
    many = mean_ranks(scores(dict.fromkeys("abc", 1.0), n_draws=3, tasks=("math", "code", "language", "knowledge")))
    assert few.critical_difference == many.critical_difference and many.n_blocks == 3


def test_what_cannot_be_ranked_is_refused():
    full = scores({"a": 1.0, "b": 1.1, "c": 1.2})
    with pytest.raises(DataError, match="at least 3 competitors and 2 blocks, and there are 2"):
        mean_ranks(full[full["source"] != "c"])
    with pytest.raises(DataError, match="source 'b' has no score at"):
        mean_ranks(full[(full["source"] != "b") | (full["draw"] != 3)])


LOSSES = {"random": 0.20, "cola": 0.15, "worse": 0.22}


def simulated(seed=0, tasks=(("wanda", "math"), ("gptq", "math"), ("wanda", "code"), ("gptq", "code")), **options):
    conditions = [
        {"source": source, "loss": loss, "method": method, "capability": capability}
        for source, loss in LOSSES.items()
        for method, capability in tasks
    ]
    frame = simulated_grid(conditions, np.random.default_rng(seed), **options)
    return frame[frame["source"].notna()]


def test_an_overall_gain_is_the_mean_of_the_gains():
    frame = simulated(n_draws=3)
    found = overall_gains(frame, "random").set_index("source")
    apart = gain_table(frame, {"source": "random"}, draws="paired").groupby("source")["value"]
    assert found.index.tolist() == ["cola", "worse"]
    assert found["value"].to_dict() == pytest.approx(apart.mean().to_dict())
    assert found["least"].to_dict() == pytest.approx(apart.min().to_dict())
    assert (found["n_draws"] == 3).all() and (found["n_items"] == 40).all()


def test_the_interval_of_an_overall_gain_covers_the_truth():
    truth = 1 - (1 + LOSSES["cola"]) / (1 + LOSSES["random"])
    for n_draws, draw_sd in ((3, 0.03), (5, 0.03), (5, 0.002)):
        covered = []
        for seed in range(80):
            found = overall_gains(simulated(seed, n_draws=n_draws, draw_sd=draw_sd), "random", n_boot=200)
            cola = found.set_index("source").loc["cola"]
            assert (cola["p_value"] < 0.05) == (cola["low"] > 0 or cola["high"] < 0)
            covered.append(cola["low"] <= truth <= cola["high"])
        assert 0.89 <= np.mean(covered), (n_draws, draw_sd)


def test_methods_on_the_same_sets_are_no_further_evidence():
    """Twice the same method has the interval of one."""
    once = simulated(tasks=[("wanda", "math")])
    twice = pd.concat([once, once.assign(label="again")])
    one, two = (overall_gains(frame, "random") for frame in (once, twice))
    assert two["value"].to_list() == pytest.approx(one["value"].to_list())
    assert (two["high"] - two["low"]).to_list() == pytest.approx((one["high"] - one["low"]).to_list(), rel=0.1)


def test_what_has_no_overall_gain_is_refused():
    frame = simulated(n_draws=2)
    with pytest.raises(DataError, match="no source 'c4' to compare with; there are random, cola, worse"):
        overall_gains(frame, "c4")
    with pytest.raises(DataError, match="no source beside 'random'"):
        overall_gains(frame[frame["source"] == "random"], "random")
    with pytest.raises(DataError, match="'cola' and 'random' are not measured on the same tasks: one lacks"):
        overall_gains(frame[(frame["source"] != "cola") | (frame["capability"] != "code")], "random")
    with pytest.raises(DataError, match="'cola' and 'random' have different draws at"):
        overall_gains(frame[(frame["source"] != "cola") | (frame["draw"] == 0)], "random")


def test_groups_join_what_is_not_told_apart():
    assert _groups(np.array([1.0, 1.5, 2.0, 4.0, 4.2]), 1.2) == [(0, 2), (3, 4)]
    assert _groups(np.array([1.0, 2.0, 3.0]), 1.5) == [(0, 1), (1, 2)]
    assert _groups(np.array([1.0, 3.0, 5.0]), 1.0) == []


def test_names_in_the_picture_of_costs_do_not_meet():
    near = np.linspace(9.0, 10.0, 6)
    names = [f"a strategy with number {i}" for i in range(6)]
    table = pd.DataFrame({"source": names, "seconds": 100 + near, "value": near, "low": near - 3, "high": near + 3})
    figure = figures.cost_benefit(pd.concat([table, table.assign(seconds=0.01)]), xlabel="x", ylabel="y")
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines to their points
    assert len(boxes) == 12 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = figure.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_figures_show_every_competitor():
    found = mean_ranks(scores({"b": 1.1, "a": 1.0, "c": 1.3, "d": 1.2}))
    figure = figures.critical_difference(found.table, found.critical_difference)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["a", "b", "d", "c"]
    table = pd.DataFrame(
        {"source": ["a", "b"], "seconds": [1, 100.0], "value": [1, 2.0], "low": [0, 1.0], "high": [2, 3.0]}
    )
    drawn = figures.cost_benefit(table, xlabel="x", ylabel="y")
    assert drawn.axes[0].get_xscale() == "log" and {t.get_text() for t in drawn.axes[0].texts} == {"a", "b"}
    points = pd.DataFrame({"x": [0, 1.0], "y": [0, 1.0], "source": ["a", "b"], "picked": [True, False]})
    labels = [t.get_text() for t in figures.activation_map(points).axes[0].get_legend().get_texts()]
    assert labels == ["a", "b", "picked"]
    rows = pd.DataFrame({"set": ["one", "one", "two"], "source": ["a", "b", "a"], "tokens": [10, 30, 5]})
    widths = [patch.get_width() for patch in figures.set_overview(rows).axes[0].patches]
    assert sorted(widths) == [0, 25, 75, 100]
