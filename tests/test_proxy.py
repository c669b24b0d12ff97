"""Proxies are the averages they say they are, and their correlations are corrected for how many there are."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from cola_lib.activations.features import ALL_BLOCKS
from cola_lib.analysis import holm, spearman
from cola_lib.analysis.proxy import deployment_errors, measure_table, needed_correlation, proxy_table, rank_correlations
from cola_lib.errors import DataError, UnknownNameError

ERRORS = {"math": [0.1, 0.4], "code": [0.2, 0.2]}


def layers() -> pd.DataFrame:
    """Two cells of two layers, the second with twice the errors, and one that reads no data."""
    parts = []
    for cell, source, factor in [("a", "c4", 1), ("b", "code", 2), ("control", None, 9)]:
        errors = {f"error_on_{name}": factor * np.array(values) for name, values in ERRORS.items()}
        labels = {"cell": cell, "source": source, "draw": 0 if source else None, "label": "wanda 50%"}
        parts.append(pd.DataFrame({**labels, "layer": ["first", "second"], "depth": [3.0, 1.0], **errors}))
    return pd.concat(parts, ignore_index=True)


def proxies(**options) -> dict:
    table = proxy_table(layers(), **options)
    return table.set_index(["source", "capability"])["proxy"].to_dict()


def test_proxy_is_the_mean_over_layers_of_each_cell_and_target():
    expected = {("c4", "math"): 0.25, ("c4", "code"): 0.2, ("code", "math"): 0.5, ("code", "code"): 0.4}
    assert proxies() == pytest.approx(expected)
    assert list(proxy_table(layers())) == ["source", "draw", "label", "cell", "capability", "proxy"]
    assert proxies(targets=["code"]) == pytest.approx({k: v for k, v in expected.items() if k[1] == "code"})


def test_geometric_and_weighted_averages():
    assert proxies(average="geometric")["c4", "math"] == pytest.approx(np.sqrt(0.1 * 0.4))
    assert proxies(weight="depth")["c4", "math"] == pytest.approx((3 * 0.1 + 0.4) / 4)
    assert proxies(weight="depth", average="geometric")["c4", "math"] == pytest.approx((0.1**3 * 0.4) ** 0.25)


def test_a_layer_without_error_makes_no_infinite_logarithm():
    table = layers()
    table.loc[0, "error_on_math"] = 0.0
    assert np.isfinite(proxy_table(table, average="geometric")["proxy"]).all()


def tried() -> pd.DataFrame:
    """A baseline that reads no target, and a strategy that errs less on what it was told to choose for."""
    errors = {
        ("random", None, 0): (0.4, 0.2),
        ("random", None, 1): (0.2, 0.2),
        ("proxy", "math", 0): (0.2, 0.4),
        ("proxy", "math", 1): (0.1, 0.1),
        ("proxy", "code", 0): (0.4, 0.1),
        ("proxy", "code", 1): (0.2, 0.1),
    }
    columns = ["source", "target", "draw", "error_on_math", "error_on_code"]
    table = pd.DataFrame([(*key, *value) for key, value in errors.items()], columns=columns)
    return table.assign(cell=[f"c{i}" for i in range(len(table))], label="wanda 50%", layer="first")


def test_deployments_weigh_errors_and_compare_them_draw_by_draw():
    weights = {"math": {"math": 0.8, "code": 0.2}, "code": {"math": 0.5, "code": 0.5}}
    found = deployment_errors(tried(), weights, "random").set_index(["source", "target", "draw"])["value"]
    assert found["random"].eq(0).all() and len(found["random"]) == 4
    expected = {
        ("math", 0): 1 - (0.8 * 0.2 + 0.2 * 0.4) / (0.8 * 0.4 + 0.2 * 0.2),
        ("math", 1): 1 - 0.1 / 0.2,
        ("code", 0): 1 - (0.4 + 0.1) / (0.4 + 0.2),
        ("code", 1): 1 - (0.2 + 0.1) / (0.2 + 0.2),
    }
    assert found["proxy"].to_dict() == pytest.approx(expected)
    table = tried()
    with pytest.raises(DataError, match="random' has no error for wanda 50%, math, draw 1"):
        deployment_errors(table[(table["source"] != "random") | (table["draw"] == 0)], weights, "random")


def test_proxies_that_cannot_be_made_say_why():
    table = layers()
    with pytest.raises(DataError, match="targets"):
        proxy_table(table.drop(columns=["error_on_math", "error_on_code"]))
    with pytest.raises(UnknownNameError, match="target 'maths'"):
        proxy_table(table, ["maths"])
    with pytest.raises(UnknownNameError, match="average"):
        proxy_table(table, average="median")
    with pytest.raises(UnknownNameError, match="'width'"):
        proxy_table(table, weight="width")
    with pytest.raises(DataError, match="no weights"):
        proxy_table(table.assign(depth=-1.0), weight="depth")
    with pytest.raises(DataError, match="same label"):
        proxy_table(table, by=["label"])
    table.loc[1, "error_on_math"] = np.nan
    with pytest.raises(DataError, match="missing in 1 of 4 layers"):
        proxy_table(table)


def features() -> pd.DataFrame:
    """One set: coverage of all blocks and of each, a share of two blocks, a rank of two groups, a curve."""
    rows = [
        ("math", "coverage", ALL_BLOCKS, "output", 0, 0.9),
        ("math", "coverage", 0, "output", 0, 0.1),
        ("code", "coverage", ALL_BLOCKS, "output", 0, 0.8),
        ("code", "coverage", 0, "output", 0, 0.1),
        ("math", "subspace_share", 0, "attn_in", 0, 0.2),
        ("math", "subspace_share", 1, "mlp_in", 0, 0.4),
        ("code", "subspace_share", 0, "attn_in", 0, 0.6),
        ("code", "subspace_share", 1, "mlp_in", 0, 0.8),
        ("", "effective_rank", 0, "attn_in", 0, 10.0),
        ("", "effective_rank", 0, "mlp_in", 0, 30.0),
        ("", "eigenvalue", 0, "attn_in", 1, 0.5),
    ]
    return pd.DataFrame(rows, columns=["target", "feature", "block", "group", "rank", "value"]).assign(
        source="c4", draw=0
    )


def test_measures_are_of_all_blocks_or_the_mean_over_blocks_and_groups():
    table = measure_table(features()).set_index("capability")
    assert table.loc["math", ["coverage", "subspace_share", "effective_rank"]].tolist() == pytest.approx([0.9, 0.3, 20])
    assert table.loc["code", ["coverage", "subspace_share", "effective_rank"]].tolist() == pytest.approx([0.8, 0.7, 20])
    assert set(table.columns) == {"source", "draw", "coverage", "subspace_share", "effective_rank"}


def test_measures_without_targets_or_with_gaps_are_refused():
    with pytest.raises(DataError, match="targets"):
        measure_table(features()[lambda t: t["target"] == ""])
    other = features().assign(source="code")[lambda t: t["feature"] != "effective_rank"]
    with pytest.raises(DataError, match="'effective_rank' is missing in 2 of 4"):
        measure_table(pd.concat([features(), other]))
    assert "effective_rank" not in measure_table(features()[lambda t: t["target"] != ""])


def cells(rng: np.random.Generator, *, n_sources: int = 6, slope: float = 1.0) -> pd.DataFrame:
    """Loss = slope x good + a shift of each capability + chance."""
    rows = []
    for source, capability in itertools.product(range(n_sources), ["math", "code"]):
        good, noise = rng.normal(size=2)
        for draw in range(3):
            here = good + 0.1 * rng.normal()
            loss = slope * here + 50 * (capability == "code") + 0.05 * rng.normal()
            labels = {"source": f"s{source}", "draw": draw, "capability": capability}
            rows.append({**labels, "good": here, "bad": -here, "noise": noise, "loss": loss})
    return pd.DataFrame(rows)


def test_correlations_are_signed_scaled_within_groups_and_corrected():
    table = cells(np.random.default_rng(0))
    found = rank_correlations(table, {"good": 1, "bad": -1, "noise": 1}, within=["capability"])
    value = found.set_index("predictor")["value"]
    assert value["good"] > 0.95 and value["good"] == pytest.approx(value["bad"])
    assert rank_correlations(table, {"good": 1})["value"][0] < 0.8, "pooled without centring, capabilities mix"
    expected = holm(dict(zip(found["predictor"], found["p_value"], strict=True)))
    assert found["p_holm"].tolist() == pytest.approx(expected.tolist())
    assert (found["n_cells"] == len(table)).all() and (found["n_groups"] == 6).all()
    one = table[table["capability"] == "math"]
    direct = spearman(one["good"], one["loss"], one["source"])
    split = rank_correlations(table, {"good": 1}, by=["capability"]).set_index("capability").loc["math"]
    assert split[["value", "low", "high"]].tolist() == pytest.approx([direct.value, direct.low, direct.high])


def test_within_a_source_only_draws_are_left():
    table = cells(np.random.default_rng(1)).assign(label=lambda t: t.groupby("source").ngroup().astype(float))
    found = rank_correlations(table, {"good": 1, "label": 1}, within=["capability", "source"]).set_index("predictor")
    assert found.loc["good", "value"] > 0.5
    # what does not differ between draws says nothing of them
    assert np.isnan(found.loc["label", "value"]) and found.loc["label", ["low", "high"]].tolist() == [-1, 1]


def test_too_few_sources_leave_the_correlation_open():
    table = cells(np.random.default_rng(2), n_sources=3)
    found = rank_correlations(table, {"good": 1}, within=["capability"]).iloc[0]
    assert np.isnan(found["value"]) and (found["low"], found["high"], found["p_value"]) == (-1.0, 1.0, 1.0)


def test_correlations_of_what_is_missing_are_refused():
    table = cells(np.random.default_rng(3))
    with pytest.raises(DataError, match="no column 'better'"):
        rank_correlations(table, {"better": 1})
    with pytest.raises(DataError, match="'good' is missing in 1 of"):
        rank_correlations(table.assign(good=table["good"].where(table.index > 0)), {"good": 1})


def test_noise_is_rarely_found():
    """Over tables without a relation, any Holm-adjusted p-value below 0.05 is about as rare as it says."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(120):
        table = cells(rng, slope=0.0).assign(loss=lambda t: t["loss"] + rng.normal(size=12).repeat(3))
        hits += (rank_correlations(table, {"good": 1, "noise": 1}, within=["capability"])["p_holm"] < 0.05).any()
    assert hits / 120 <= 0.08


def test_the_needed_correlation_is_where_the_best_interval_touches_the_bound():
    needed = needed_correlation(0.8, 21, 7)
    assert 0.9 < needed < 1
    groups = np.repeat(np.arange(7), 3)
    for wobble, enough in [(0.5, True), (4.0, False)]:
        x = np.arange(21.0)
        y = x + wobble * np.tile([1.0, -1.0, 0.0], 7)
        one = spearman(x, y, groups)
        assert (one.value > needed) is enough
        assert (one.low > 0.8) is enough
    assert np.isnan(needed_correlation(0.8, 8, 4)), "two draws of four sources cannot show it"
    assert np.isnan(needed_correlation(0.8, 30, 3))
