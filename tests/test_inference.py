"""Weighted sums of log scores: what their variance is made of, and how often their intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cola_lib.analysis import simulated_grid
from cola_lib.analysis.claims.primaries import (
    LEVEL,
    RULES,
    Decision,
    Estimated,
    Primary,
    Sets,
    generality,
    judged,
    primaries,
)
from cola_lib.analysis.inference import (
    PRIOR_CAP,
    UNDECISIVE,
    Interval,
    WeightedSet,
    log_scores,
    moderated,
    weighted_sum,
)
from cola_lib.errors import DataError

PART = ("wanda", "math")


def of(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    return frame[frame["source"] == source]


def gain(frame: pd.DataFrame, draws: str | None = None) -> Interval:
    sets = {"c4": 1.0, "code": -1.0}
    return weighted_sum([WeightedSet(log_scores(of(frame, s), [PART]), {PART: w}, draws) for s, w in sets.items()])


def two(chance: np.random.Generator | None = None, **options) -> pd.DataFrame:
    return simulated_grid([{"source": "c4", "loss": 0.10}, {"source": "code", "loss": 0.05}], chance, **options)


# ------------------------------------------------------------------------------------------------- the number


def test_bytes_are_pooled_over_tasks_and_draws_averaged_in_logarithms():
    frame = of(two(), "c4")
    sums = frame.groupby("draw")[["nll", "n_bytes"]].sum()
    expected = np.log(sums["nll"] / np.log(2) / sums["n_bytes"]).mean()
    assert weighted_sum([WeightedSet(log_scores(frame, [PART]), {PART: 1.0})]).value == pytest.approx(expected)


@pytest.mark.parametrize("task", UNDECISIVE)
def test_tasks_of_a_few_tokens_do_not_count(task):
    frame = two()
    short = frame[frame["item"].str.endswith(("000", "001"))].assign(task=task, item=lambda f: f["item"] + "s", nll=1e6)
    assert gain(pd.concat([frame, short])).value == gain(frame).value
    alone = pd.concat([short.assign(capability=task)])
    assert np.isfinite(log_scores(of(alone, "c4"), [("wanda", task)])["wanda", task].value).all()


# ----------------------------------------------------------------------------------------------- its variance


def jackknife_over_items(frame: pd.DataFrame) -> float:
    """Variance over items by leaving each out of its task, an oracle that knows nothing of influences."""
    found = 0.0
    for _, rows in frame.groupby("task"):
        items = rows["item"].unique()
        without = np.array([gain(frame[frame["item"] != item]).value for item in items])
        found += (len(items) - 1) / len(items) * ((without - without.mean()) ** 2).sum()
    return found


def test_the_variance_over_items_is_the_jackknife_s():
    frame = two(n_items=60)
    assert gain(frame).se_items ** 2 == pytest.approx(jackknife_over_items(frame), rel=0.1)


def test_the_interaction_of_draws_and_items_counts_once():
    """With nothing but an interaction, three variances of it would be in draws plus items: it is in both, minus one."""
    found = [
        gain(two(np.random.default_rng(i), draw_sd=0, item_sd=0, noise_sd=0.05, n_draws=5, n_items=40))
        for i in range(40)
    ]
    spread = np.var([one.value for one in found], ddof=1)
    stated = np.mean([one.se**2 for one in found])
    counted_twice = np.mean([one.se_draws**2 + one.se_items**2 for one in found])
    assert stated < 0.8 * counted_twice
    assert 0.5 < stated / spread < 2


def test_draws_in_common_cancel():
    """Two ways of cutting the same texts move together from draw to draw."""
    frame = simulated_grid(
        [{"source": "c4", "cut": cut, "loss": loss} for cut, loss in {"long": 0.1, "short": 0.05}.items()],
        draw_sd=0.05,
        item_sd=0.001,
        noise_sd=0.001,
    )
    cuts = {cut: rows for cut, rows in frame.groupby("cut")}

    def interval(draws: str | None) -> Interval:
        pairs = {"long": 1.0, "short": -1.0}
        return weighted_sum([WeightedSet(log_scores(cuts[c], [PART]), {PART: w}, draws) for c, w in pairs.items()])

    assert interval("texts").se_draws < 0.1 * interval(None).se_draws


def test_methods_under_the_same_draws_are_not_independent_evidence():
    """The same numbers under a second label: no more is known, so the interval stays."""
    frame = two()
    both = pd.concat([frame, frame.assign(label="again")])
    parts = [PART, ("again", "math")]
    sets = [
        WeightedSet(log_scores(of(both, source), parts), dict.fromkeys(parts, sign / 2))
        for source, sign in {"c4": 1.0, "code": -1.0}.items()
    ]
    assert weighted_sum(sets).se == pytest.approx(gain(frame).se)


# ------------------------------------------------------------------------------------------------- moderation


def test_a_variance_is_shrunk_towards_its_pool_and_never_pooled():
    pool = [(1.0, 2.0)] * 8
    variance, dof = moderated(9.0, 2.0, pool)
    assert 1.0 < variance < 9.0 and dof <= 2 + PRIOR_CAP
    assert moderated(9.0, 2.0, pool[:3]) == (9.0, 2.0)


def test_a_pool_whose_variances_differ_lends_little():
    chance = np.random.default_rng(0)
    wild = [(float(v), 9.0) for v in np.exp(chance.normal(0, 2, 30))]
    assert moderated(1.0, 9.0, wild)[1] < 9 + 4


# -------------------------------------------------------------------------------------------------- coverage


def held(n_truths: int, n_draws: int, *, tails: str, spread: str, chance: np.random.Generator) -> float:
    """Share of 95 % intervals that hold the truth: a contrast of two of six sets, the others their pool."""
    hits = 0
    for _ in range(n_truths):
        frames = []
        for source in "abcdef":
            sd = 0.02 * (np.sqrt(4 / chance.chisquare(4)) if spread == "chi2" else 1.0)
            draws = chance.standard_t(4, n_draws) / np.sqrt(2) if tails == "t4" else chance.normal(size=n_draws)
            items = chance.normal(0, 0.04, 40) + chance.normal(0, 0.04, (n_draws, 40))
            score = 1 + sd * draws[:, None] + items
            frames.append((source, score))
        bytes_ = np.full(40, 100)
        sets = {}
        for source, score in frames:
            draw, item = (axis.ravel() for axis in np.indices(score.shape))
            rows = pd.DataFrame({"draw": draw, "item": item.astype(str), "task": (item % 2).astype(str)})
            rows = rows.assign(nll=score.ravel() * 100 * np.log(2), n_bytes=bytes_[item], label="m", capability="math")
            sets[source] = log_scores(rows, [("m", "math")])
        weights = {("m", "math"): 1.0}
        pool = [sets[source] for source in "cdef"]
        found = weighted_sum(
            [
                WeightedSet(sets["a"], weights, pool=[*pool, sets["b"]]),
                WeightedSet(sets["b"], {("m", "math"): -1.0}, pool=[*pool, sets["a"]]),
            ]
        )
        low, high = found.ends()
        hits += low <= 0 <= high
    return hits / n_truths


@pytest.mark.parametrize("n_draws", [3, 10])
@pytest.mark.parametrize(("tails", "spread"), [("normal", "equal"), ("t4", "chi2")])
def test_intervals_hold_the_truth_as_often_as_they_say(n_draws, tails, spread):
    chance = np.random.default_rng([n_draws, len(tails)])
    share = held(80, n_draws, tails=tails, spread=spread, chance=chance)
    assert 0.86 <= share <= 1.0  # three standard errors of 80 truths around 0.93 to 0.97, the designed range


# --------------------------------------------------------------------------------------------------- verdicts


def number(
    value: float, se: float = 0.01, *, margin: float = 0.005, within: bool = False, n_draws: int = 10
) -> Primary:
    interval = Interval(value, se, dof=30, se_draws=se, se_items=se, n_draws=n_draws, n_items=50)
    return Primary("C5", Estimated("x", interval), (), margin, within)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (number(0.05), Decision.REPRODUCED),
        (number(-0.05), Decision.REVERSED),
        (number(0.01), Decision.UNDECIDED),
        (number(0.001, 0.001), Decision.NEGLIGIBLE),
        (number(0.004, 0.0005), Decision.NEGLIGIBLE),  # real, and too small to matter
        (number(0.05, n_draws=2), Decision.UNDECIDED),
        (number(0.001, 0.004, margin=0.015, within=True), Decision.REPRODUCED),
        (number(0.05, 0.01, margin=0.015, within=True), Decision.REVERSED),
        (number(0.01, 0.01, margin=0.015, within=True), Decision.UNDECIDED),
    ],
)
def test_verdicts_follow_the_rule(one, expected):
    (found,) = judged([one])
    assert found.decision is expected


def test_all_numbers_of_the_book_are_one_family():
    strong, weak = number(0.05), number(0.023)  # p about 0.03 by itself
    assert next(judged([weak])).decision is Decision.REPRODUCED
    assert [one.decision for one in judged([strong, weak, number(0.0)])][1] is Decision.UNDECIDED
    assert list(judged([])) == []


@pytest.mark.parametrize(
    ("values", "se", "expected"),
    [((0.1, 0.1, 0.1, 0.1), 0.005, "uniform"), ((0.1, 0.2, -0.1), 0.01, "mixed"), ((0.1, 0.1), 0.01, "unknown")],
)
def test_generality_is_a_second_word(values, se, expected):
    parts = [Estimated(str(i), Interval(value, se, 30, se, se, 5, 50)) for i, value in enumerate(values)]
    mean = Estimated("mean", Interval(float(np.mean(values)), se / 2, 30, se, se, 5, 50))
    assert generality(mean, parts) == expected


def test_a_claim_is_read_from_the_labels_of_a_store():
    losses = {"c4": 0.05, "wikipedia": 0.15, "commonsense": 0.05, "math": 0.05}
    conditions = [
        {"source": source, "capability": capability, "loss": loss, "seq_len": 256, "layout": "pack", "format": "text"}
        for source, loss in losses.items()
        for capability in ("code", "math")
    ]
    found, missing = primaries(simulated_grid(conditions))
    assert found["C5"].decision is Decision.REPRODUCED
    assert found["C5"].number.interval.value == pytest.approx(np.log(1.15 / 1.05), abs=0.02)
    assert [part.name for part in found["C5"].parts] == ["wanda · code", "wanda · math"]
    assert set(missing) == set(RULES) - {"C5"} and "split_rows 2048" in missing["C1"]


def test_a_score_in_several_cells_counts_once():
    frame = two()
    again = pd.concat([frame, frame.assign(cell=frame["cell"] + " again")])
    once, twice = (Sets(rows).parts([Sets(rows).find(source="c4")], None, ["math"]) for rows in (frame, again))
    assert once == twice == [PART]
    values = [
        Sets(rows).estimate("x", {"source=c4": {PART: 1.0}, "source=code": {PART: -1.0}}, False).interval
        for rows in (frame, again)
    ]
    assert values[0] == values[1]
    with pytest.raises(DataError, match="wikipedia"):
        Sets(frame).find(source="wikipedia")


def test_levels_are_those_of_the_page():
    assert LEVEL == 0.05 and RULES["C10"].margin == 0.015 and RULES["C13"].margin == 0.02
