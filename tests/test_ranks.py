"""Rank correlations: they cover the truth, and held-out predictions see nothing of the source that is held out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cola_lib.analysis import held_out_correlation, held_out_table, spearman
from cola_lib.analysis.ranks import mean_correlation
from cola_lib.errors import DataError


def clustered(chance, n_sources, n_draws, between, within):
    """Two numbers per cell, correlated between sources and within them."""
    level = chance.multivariate_normal([0, 0], [[1, between], [between, 1]], n_sources)
    cells = chance.multivariate_normal([0, 0], [[1, within], [within, 1]], (n_sources, n_draws)) * 0.5
    x, y = np.moveaxis(level[:, None] + cells, -1, 0).reshape(2, -1)
    return x, y, np.repeat(np.arange(n_sources), n_draws)


@pytest.mark.parametrize("n_sources,between,within", [(5, 0.0, 0.9), (6, 0.6, 0.3), (10, 0.9, 0.9)])
def test_the_interval_covers_the_truth(n_sources, between, within):
    chance = np.random.default_rng(0)
    truth = stats.spearmanr(*clustered(chance, 20_000, 3, between, within)[:2]).statistic
    n, hits = 100, 0
    for _ in range(n):
        found = spearman(*clustered(chance, n_sources, 3, between, within))
        hits += found.low <= truth <= found.high
    assert hits / n >= 0.91


def test_cells_of_a_source_are_not_independent():
    x, y, groups = clustered(np.random.default_rng(1), 6, 10, 0.3, 0.0)
    found, naive = spearman(x, y, groups), spearman(x, y, np.arange(60))
    assert found.value == naive.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.se > 1.5 * naive.se and (found.n_groups, found.n_cells) == (6, 60)


def test_p_values_belong_to_the_interval():
    found = spearman(*clustered(np.random.default_rng(2), 8, 3, 0.7, 0.7))
    for end in (found.low, found.high):
        assert found.p_value_at(end) == pytest.approx(0.05)
    assert (found.p_value < 0.05) == (found.low > 0)
    with pytest.raises(ValueError, match="between -1 and 1"):
        found.p_value_at(1.0)


def test_a_perfect_rank_correlation_of_few_cells_proves_little():
    found = spearman(range(5), range(5), range(5))
    assert found.value == pytest.approx(1) and found.low < 0 < found.high < 1
    found = spearman(range(12), range(12), range(12))
    assert 0.8 < found.low < found.high < 1


def test_unusable_cells_say_why():
    with pytest.raises(DataError, match="needs 4 of them, and there are 3"):
        spearman(range(6), range(6), [0, 0, 1, 1, 2, 2])
    with pytest.raises(DataError, match="the same in all of them"):
        spearman(range(5), np.ones(5), range(5))
    with pytest.raises(DataError, match="some are missing"):
        spearman([1, 2, 3, np.nan, 5], range(5), range(5))


def table(seed=0, slope=1.0, n_sources=8, n_draws=3, noise=0.3):
    chance = np.random.default_rng(seed)
    rows = []
    for label, offset, scale in (("wanda", 10.0, 5.0), ("gptq", 0.0, 0.1)):
        for s in range(n_sources):
            level = np.random.default_rng([seed, s]).normal()
            for d in range(n_draws):
                measure = level + chance.normal(0, 0.2)
                loss = offset + scale * (slope * measure + chance.normal(0, noise))
                domain = "web" if s % 2 else "code"
                rows.append(
                    {"source": f"s{s}", "draw": d, "label": label, "domain": domain, "measure": measure, "loss": loss}
                )
    return pd.DataFrame(rows)


def test_a_measure_predicts_sources_that_it_was_not_fitted_to():
    found = held_out_correlation(table(), ["measure"], "loss", within=["label"])
    assert found.correlation.low > 0 and found.r2 > 0.5 and found.skill > 0.5
    assert found.baseline_r2 < 0.05, "labels of sources that were never seen say nothing"
    assert np.isnan(found.p_permutation)


def test_nothing_of_a_held_out_source_reaches_its_prediction():
    before = table()
    after = before.assign(loss=before["loss"].where(before["source"] != "s3", 1e3))
    options = {"predictors": ["measure"], "outcome": "loss", "within": ["label"]}
    one, other = (held_out_correlation(frame, **options).predictions for frame in (before, after))
    held = before["source"] == "s3"
    pd.testing.assert_series_equal(one[held], other[held])
    assert not np.allclose(one[~held], other[~held])


def test_scaling_inside_groups_makes_methods_comparable():
    moved = table().assign(loss=lambda f: f["loss"].where(f["label"] == "wanda", 7 + 100 * f["loss"]))
    options = {"predictors": ["measure"], "outcome": "loss", "within": ["label"]}
    one, other = (held_out_correlation(frame, **options) for frame in (table(), moved))
    np.testing.assert_allclose(one.predictions, other.predictions, rtol=1e-9)


def test_the_baseline_knows_the_domain():
    frame = table(slope=0.0).assign(loss=lambda f: f["loss"] + 50.0 * (f["domain"] == "code"))
    options = {"predictors": ["measure"], "outcome": "loss", "within": ["label"]}
    assert held_out_correlation(frame, **options, domain="domain").baseline_r2 > 0.5
    assert held_out_correlation(frame, **options).baseline_r2 < 0.05


def test_permutations_of_sources():
    options = {"predictors": ["measure"], "outcome": "loss", "within": ["label"], "n_permutations": 39}
    found = held_out_correlation(table(n_draws=1), **options, rng=np.random.default_rng(0))
    assert found.p_permutation == pytest.approx(1 / 40)
    none = held_out_correlation(table(n_draws=1, slope=0.0), **options, rng=np.random.default_rng(0))
    assert none.p_permutation > 0.05
    with pytest.raises(DataError, match="need an rng"):
        held_out_correlation(table(n_draws=1), **options)
    with pytest.raises(DataError, match="each has the same cells"):
        held_out_correlation(table()[1:], **options, rng=np.random.default_rng(0))


def test_an_unusable_table_says_why():
    with pytest.raises(DataError, match="no column 'coverage'"):
        held_out_correlation(table(), ["coverage"], "loss")
    with pytest.raises(DataError, match="'measure' is missing in 1 of 48 cells"):
        held_out_correlation(table().assign(measure=lambda f: f["measure"].mask(f.index == 0)), ["measure"], "loss")
    with pytest.raises(DataError, match="needs 4 of them"):
        held_out_correlation(table(n_sources=3), ["measure"], "loss")


def test_the_table_of_models_holds_what_each_alone_gives():
    frame = table()
    frame["other"] = np.random.default_rng(3).normal(size=len(frame))
    frame["capability"] = np.where(np.arange(len(frame)) % 2, "math", "code")
    models = {"one": ["measure"], "both": ["measure", "other"]}
    found = held_out_table(frame, models, "loss", within=["label"])
    assert list(zip(found["model"], found["part"], strict=True)) == [
        (model, part) for model in models for part in ("all", *frame["capability"].unique())
    ]
    for row in found.itertuples():
        piece = frame if row.part == "all" else frame[frame["capability"] == row.part]
        alone = held_out_correlation(piece, models[row.model], "loss", within=["label"])
        assert (row.value, row.low, row.high) == (
            alone.correlation.value,
            alone.correlation.low,
            alone.correlation.high,
        )
        assert (row.r2, row.baseline_r2, row.skill) == (alone.r2, alone.baseline_r2, alone.skill)


def several_parts(chance: np.random.Generator, n_sources: int, noise: dict[str, float]) -> pd.DataFrame:
    """A predictor, and for each part an outcome that follows it, and is measured with noise in each draw."""
    x, parts = chance.normal(size=n_sources), []
    for name, sd in noise.items():
        level = 0.8 * x + 0.6 * chance.normal(size=n_sources)
        for _ in range(3):
            loss = level + sd * chance.normal(size=n_sources)
            parts.append(pd.DataFrame({"source": range(n_sources), "error": x, "loss": loss, "label": name}))
    return pd.concat(parts, ignore_index=True).assign(capability="math")


def test_a_mean_correlation_covers_its_truth_with_what_parts_have_in_common():
    chance, noise = np.random.default_rng(0), dict.fromkeys("ab", 0.3)
    truth = np.mean([mean_correlation(several_parts(chance, 200, noise), "error")[0].z for _ in range(2)])
    hits = 0
    for _ in range(40):
        found, _ = mean_correlation(several_parts(chance, 12, noise), "error")
        hits += found.low <= np.tanh(truth) <= found.high
    assert stats.binomtest(hits, 40, 0.92, alternative="less").pvalue > 0.001


def test_parts_in_which_draws_differ_as_much_as_sources_are_left_out():
    table = several_parts(np.random.default_rng(0), 20, {"quiet": 0.1, "loud": 5.0})
    mean, parts = mean_correlation(table, "error")
    assert parts.set_index("label")["counts"].to_dict() == {"quiet": True, "loud": False}
    assert mean.value == pytest.approx(parts.set_index("label")["correlation"]["quiet"]) and mean.n_cells == 60
    assert parts["reliability"].iloc[0] == pytest.approx(0.99, abs=0.02)
    reverse, _ = mean_correlation(table, "error", higher_is_worse=False)
    assert reverse.value == pytest.approx(-mean.value)
    with pytest.raises(DataError, match="in all of 1 parts"):
        mean_correlation(table[table["label"] == "loud"], "error")
