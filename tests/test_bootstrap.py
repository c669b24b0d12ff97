"""Intervals and tests against simulated truths: they must cover, find what is there, and find nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cola_lib.analysis import (
    Condition,
    condition,
    difference,
    difference_table,
    gain_table,
    holm,
    ratio,
    retention_table,
    score_table,
    source_matters,
    source_table,
)
from cola_lib.analysis.bootstrap import estimate, score_interval
from cola_lib.analysis.permutation import permutation_test
from cola_lib.errors import DataError, UnknownNameError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make(numerator, task=None, weight=None, draws=True) -> Condition:
    numerator = np.atleast_2d(np.asarray(numerator, dtype=float))
    n_draws, n_items = numerator.shape
    task = np.zeros(n_items, dtype=np.int64) if task is None else np.asarray(task)
    return Condition(
        numerator=numerator,
        weight=np.ones(n_items) if weight is None else np.asarray(weight, dtype=float),
        task=task,
        items=tuple(f"i{i:03d}" for i in range(n_items)),
        tasks=tuple(f"t{t}" for t in range(task.max() + 1)),
        draws=tuple(range(n_draws)) if draws else (),
    )


def tidy(n_draws=3, per_task=8, shift=0.0, seed=0, draw_sd=0.02, **labels) -> pd.DataFrame:
    """Two capabilities of two tasks; ``n_draws=0`` gives a condition without calibration data."""
    items, chance = rng(7), rng(seed)
    rows = []
    for capability, task in (("math", "gsm8k"), ("math", "math"), ("commonsense", "piqa"), ("commonsense", "csqa")):
        n_bytes = items.integers(5, 200, per_task)
        bpb = items.gamma(9, 0.1, per_task)
        for draw in range(max(n_draws, 1)):
            moved = bpb + shift + chance.normal(0, draw_sd) + chance.normal(0, 0.02, per_task)
            for i in range(per_task):
                rows.append(
                    {
                        "capability": capability,
                        "task": task,
                        "item": f"{task}/{i}",
                        "draw": draw if n_draws else None,
                        "nll": moved[i] * n_bytes[i] * np.log(2),
                        "n_bytes": n_bytes[i],
                        "bits_per_byte": moved[i],
                        "correct": bool(bpb[i] < 0.9 - shift) if capability == "commonsense" else None,
                        **labels,
                    }
                )
    return pd.DataFrame(rows).astype({"correct": "boolean"})


def of(frame: pd.DataFrame, capability: str = "math") -> pd.DataFrame:
    return frame[frame["capability"] == capability]


# -- what a score is


def test_a_score_is_pooled_over_items_and_averaged_over_tasks_and_draws():
    frame = of(tidy())
    by_hand = []
    for _, one_draw in frame.groupby("draw"):
        for _, task in one_draw.groupby("task"):
            by_hand.append(task["nll"].sum() / np.log(2) / task["n_bytes"].sum())
    assert condition(frame).value()[0] == pytest.approx(np.mean(by_hand), rel=1e-12)
    per_item = frame.groupby("task")["bits_per_byte"].mean().mean()
    assert condition(frame, "item_bits_per_byte").value()[0] == pytest.approx(per_item, rel=1e-12)
    choices = of(tidy(), "commonsense")
    accuracy = choices.groupby("task")["correct"].mean().mean()
    assert condition(choices, "accuracy").value()[0] == pytest.approx(accuracy, rel=1e-12)


def test_a_task_counts_once_whatever_its_number_of_items():
    few, many = np.full(2, 1.0), np.full(20, 3.0)
    task = np.repeat([0, 1], [2, 20])
    assert make(np.concatenate([few, many]), task).value()[0] == 2.0


@given(n_draws=st.integers(1, 4), per_task=st.integers(1, 5), n_tasks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_replicates_agree_with_a_loop(n_draws, per_task, n_tasks, seed):
    chance = rng(seed)
    task = np.repeat(np.arange(n_tasks), per_task)
    one = make(chance.gamma(2, 1, (n_draws, task.size)), task, chance.integers(1, 9, task.size))
    draws = chance.integers(0, 3, (2, n_draws)) + 0.5
    items = chance.integers(0, 3, (2, task.size)) + 0.5
    expected = []
    for v, w in zip(draws, items, strict=True):
        tasks = []
        for t in range(n_tasks):
            at = np.flatnonzero(task == t)
            mean = [sum(v[k] * one.numerator[k, i] for k in range(n_draws)) / v.sum() for i in at]
            tasks.append(sum(w[at] * mean) / sum(w[at] * one.weight[at]))
        expected.append(np.mean(tasks))
    np.testing.assert_allclose(one.value(draws, items), expected, rtol=1e-12)
    np.testing.assert_allclose(one.by_draw().mean(), one.value()[0], rtol=1e-12)


def test_rows_may_come_in_any_order():
    frame = of(tidy())
    shuffled = frame.sample(frac=1, random_state=0)
    np.testing.assert_array_equal(condition(frame).numerator, condition(shuffled).numerator)


def test_unusable_frames_say_why():
    frame = tidy()
    with pytest.raises(DataError, match="no rows"):
        condition(frame[:0])
    with pytest.raises(DataError, match="one capability at a time.*commonsense, math"):
        condition(frame)
    with pytest.raises(DataError, match="occurs twice in draw 0.*more than one condition"):
        condition(pd.concat([of(frame), of(frame)]))
    with pytest.raises(DataError, match="1 of 48 scores are missing"):
        condition(of(frame)[1:])
    with pytest.raises(DataError, match="multiple choice only"):
        condition(of(frame), "accuracy")
    with pytest.raises(DataError, match="'draw' is missing in 16 of 64 rows"):
        condition(pd.concat([of(frame), of(tidy(n_draws=0))]))
    with pytest.raises(UnknownNameError, match="unknown score 'acuracy'; nearest: accuracy"):
        condition(of(frame), "acuracy")


def test_a_comparison_is_over_the_same_items():
    frame = of(tidy())
    fewer = frame[frame["item"] != "math/3"]
    with pytest.raises(DataError, match=r"1 items are in one condition only \(16 and 15 items\)"):
        difference(frame, fewer, rng=rng())
    longer = frame.assign(n_bytes=frame["n_bytes"] + 1)
    with pytest.raises(DataError, match="different lengths in bytes"):
        difference(frame, longer, rng=rng())


# -- intervals


def test_the_standard_error_of_a_mean_is_its_formula():
    values = rng(1).normal(size=40)
    found = estimate([make(values, draws=False)], lambda x: x, rng=rng(), n_boot=20_000)
    assert found.se_items == pytest.approx(values.std(ddof=1) / np.sqrt(40), rel=0.03)
    assert found.se_draws == 0 and found.over == "items" and found.n_draws == 0
    draws = rng(2).normal(size=(3, 1)) + np.zeros((3, 10))
    found = estimate([make(draws)], lambda x: x, rng=rng(), n_boot=20_000)
    assert found.se_draws == pytest.approx(draws[:, 0].std(ddof=1) / np.sqrt(3), rel=0.03)
    assert found.se_items == pytest.approx(0, abs=1e-12)
    assert found.high - found.value == pytest.approx(4.303 * found.se, rel=1e-3), "t with 2 degrees of freedom"


def simulated(chance, n_draws, per_task, draw_sd, item_sd, both_sd, *, skewed, drawn_b):
    """Conditions A and B; the expectation of A - B is 0.1 (B dense) or 0 (B of the same kind as A)."""
    task = np.repeat(np.arange(3), per_task)
    dense = chance.gamma(4, 0.25, task.size)

    def effect():
        return (chance.gamma(1, 1, task.size) - 1 if skewed else chance.normal(size=task.size)) * item_sd

    def draws(effects):
        moved = chance.normal(0, draw_sd, (n_draws, 1)) + chance.normal(0, both_sd, (n_draws, task.size))
        return make(dense + 0.1 + effects + moved, task)

    return (
        (draws(effect()), draws(effect()), 0.0) if drawn_b else (draws(effect()), make(dense, task, draws=False), 0.1)
    )


SPREADS = {"items": (0.0, 0.1, 0.1), "both": (0.05, 0.1, 0.05), "draws": (0.05, 0.02, 0.01)}


def coverage(interval, n_draws, spread, *, skewed=False, drawn_b=False, n=300, per_task=20) -> float:
    chance, hits = rng(11), 0
    for _ in range(n):
        a, b, truth = simulated(chance, n_draws, per_task, *SPREADS[spread], skewed=skewed, drawn_b=drawn_b)
        found = estimate([a, b], np.subtract, rng=chance, n_boot=200, interval=interval)
        hits += found.low <= truth <= found.high
    return hits / n


@pytest.mark.parametrize("n_draws", [2, 3, 5])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize(("skewed", "drawn_b"), [(False, False), (True, False), (False, True)])
def test_the_interval_covers_the_truth(n_draws, spread, skewed, drawn_b):
    # 300 simulations of 0.95 have a standard error of 0.013; a little wide is by design
    assert 0.91 <= coverage("t", n_draws, spread, skewed=skewed, drawn_b=drawn_b) <= 1.0


def test_the_interval_is_not_needlessly_wide():
    assert coverage("t", 5, "draws") <= 0.985
    assert coverage("t", 5, "both") <= 0.985


def test_the_percentile_interval_does_not_cover_with_few_draws():
    """Why it is not the default."""
    assert coverage("percentile", 3, "draws", n=200) < 0.85
    assert coverage("percentile", 3, "items", n=200) > 0.91


def test_an_effect_is_found_and_none_is_not():
    chance = rng(3)
    found = absent = 0
    for _ in range(100):
        a, dense, truth = simulated(chance, 5, 20, 0.01, 0.05, 0.02, skewed=False, drawn_b=False)
        found += estimate([a, dense], np.subtract, rng=chance, n_boot=200).low > 0
        b = simulated(chance, 5, 20, 0.01, 0.05, 0.02, skewed=False, drawn_b=True)
        null = estimate(b[:2], np.subtract, rng=chance, n_boot=200)
        absent += null.low <= 0 <= null.high
    assert found >= 99
    assert absent >= 90


def test_pairing_over_items_is_what_makes_a_small_difference_visible():
    a, b = of(tidy(shift=0.05, seed=1)), of(tidy(seed=2))
    paired = difference(a, b, rng=rng())
    alone = score_interval(a, rng=rng())
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert paired.low < 0.05 < paired.high


def test_pairing_over_draws():
    moved = rng(4).normal(0, 0.2, (4, 1))
    base = rng(5).gamma(4, 0.25, (1, 12))
    noise = rng(6).normal(0, 0.01, (4, 12))
    a, b = make(base + moved + 0.1), make(base + moved + noise)
    paired = estimate([a, b], np.subtract, rng=rng(), draws="paired")
    independent = estimate([a, b], np.subtract, rng=rng())
    assert paired.se_draws < 0.1 * independent.se_draws
    assert paired.value == independent.value
    with pytest.raises(DataError, match="draws are paired by name, and these differ: 0, 1, 2, 3 and 0, 1"):
        estimate([a, make(base + moved[:2])], np.subtract, rng=rng(), draws="paired")
    with pytest.raises(UnknownNameError, match="'pared'; nearest: paired"):
        estimate([a, b], np.subtract, rng=rng(), draws="pared")


def test_one_draw_says_that_it_speaks_of_items_only():
    found = difference(of(tidy(n_draws=1)), of(tidy(n_draws=3)), rng=rng())
    assert found.over == "items" and found.n_draws == 1
    assert difference(of(tidy()), of(tidy(n_draws=0)), rng=rng()).over == "draws and items"


def test_a_task_of_one_item_has_no_interval():
    with pytest.raises(DataError, match="task t1 has 1 item"):
        estimate([make(np.ones((2, 3)), [0, 0, 1])], lambda x: x, rng=rng())


def test_identical_conditions_differ_by_exactly_nothing():
    found = difference(of(tidy(n_draws=0)), of(tidy(n_draws=0)), rng=rng())
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_ratio_is_on_the_scale_of_the_logarithm():
    a, b = of(tidy(shift=0.3, seed=1)), of(tidy(n_draws=0))
    forth, back = ratio(a, b, rng=rng(), n_boot=4000), ratio(b, a, rng=rng(), n_boot=4000)
    assert forth.value == pytest.approx(1 / back.value)
    assert forth.low == pytest.approx(1 / back.high, rel=0.02)
    assert forth.low < forth.value < forth.high
    zero = of(tidy(), "commonsense").assign(correct=False)
    with pytest.raises(DataError, match="a score is 0"):
        ratio(zero, zero, "accuracy", rng=rng())


def test_level_and_kind_of_interval():
    frame = of(tidy())
    wide, narrow = (score_interval(frame, rng=rng(), level=level) for level in (0.99, 0.9))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    with pytest.raises(UnknownNameError, match="unknown interval 'bca'"):
        score_interval(frame, rng=rng(), interval="bca")


def test_the_same_seed_gives_the_same_interval():
    frame = of(tidy())
    assert score_interval(frame, rng=rng(5)) == score_interval(frame, rng=rng(5))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_a_p_value_is_the_interval_inverted(level):
    frame = of(tidy())
    for kind in (difference, ratio):
        found = kind(frame, of(tidy(shift=0.02, seed=3)), rng=rng(), level=level)
        assert found.p_value_at(found.low) == pytest.approx(1 - level, rel=1e-6)
        assert found.p_value_at(found.high) == pytest.approx(1 - level, rel=1e-6)
        assert found.p_value_at(found.value) == 1
        null = 1 if kind is ratio else 0
        assert (found.p_value < 1 - level) == (not found.low <= null <= found.high)


def test_a_p_value_of_one_sample_is_that_of_the_t_test():
    draws = rng(2).normal(0.5, 1, size=(6, 1)) + np.zeros((6, 10))
    found = estimate([make(draws)], lambda x: x, rng=rng(), n_boot=50_000)
    assert found.p_value == pytest.approx(stats.ttest_1samp(draws[:, 0], 0).pvalue, rel=0.05)


def test_p_values_at_the_edges():
    same = difference(of(tidy(n_draws=0)), of(tidy(n_draws=0)), rng=rng())
    assert same.p_value == 1 and same.p_value_at(0.1) == 0
    far = score_interval(of(tidy()), rng=rng())
    assert 0 < far.p_value < 1e-3 and far.p_value_at(1e9) < 1e-12
    assert 0 < score_interval(of(tidy(n_draws=1)), rng=rng()).p_value < 1e-4
    with pytest.raises(ValueError, match="a ratio is above 0"):
        ratio(of(tidy()), of(tidy(seed=1)), rng=rng()).p_value_at(0)


def test_draws_in_common_to_some_conditions():
    """Two sources, two methods on the draws of each: the methods' difference does not see the draws."""
    shifts = rng(4).normal(0, 0.3, (2, 5, 1))
    conditions = [make(1 + shifts[s] + rng(8 + s).normal(0, 0.01, (5, 12))) for s in (0, 0, 1, 1)]

    def contrast(a, b, c, d):
        return (a - b) - (c - d)

    shared = estimate(conditions, contrast, rng=rng(), draws=["s", "s", "t", "t"])
    alone = estimate(conditions, contrast, rng=rng())
    assert shared.se_draws < 0.05 * alone.se_draws and shared.value == alone.value
    paired = estimate(conditions[:2], np.subtract, rng=rng(), draws=["s", "s"])
    assert paired == estimate(conditions[:2], np.subtract, rng=rng(), draws="paired")
    with pytest.raises(DataError, match="paired by name"):
        estimate([make(np.ones((3, 4))), make(np.ones((2, 4)))], np.subtract, rng=rng(), draws=["s", "s"])


def test_scores_task_by_task():
    one = make(rng(1).gamma(2, 1, (3, 12)), np.repeat([0, 1, 2], 4))
    mean = estimate([one], lambda x: x.mean(axis=1), rng=rng(), by_task=True)
    assert mean == estimate([one], lambda x: x, rng=rng())


def test_a_spread_is_estimated_without_bias():
    chance, truth = rng(12), np.array([1.0, 1.1, 1.2])
    plain, unbiased = [], []
    for _ in range(100):
        conditions = [
            make(m + chance.normal(0, 0.1, (4, 1)) + chance.normal(0, 0.3, 9) + np.zeros((4, 9))) for m in truth
        ]

        def spread(*values):
            return np.stack(np.broadcast_arrays(*values)).var(axis=0, ddof=1)

        plain.append(spread(*(one.value() for one in conditions))[0])
        unbiased.append(estimate(conditions, spread, rng=chance, n_boot=300, unbiased=True).value)
    error = np.std(unbiased) / 10
    assert np.mean(unbiased) == pytest.approx(truth.var(ddof=1), abs=3 * error)
    assert np.mean(plain) > truth.var(ddof=1) + 3 * error
    with pytest.raises(ValueError, match="needs interval='t'"):
        estimate(conditions, spread, rng=chance, unbiased=True, interval="percentile")


# -- divergence and calibration


def confident(n_draws=3, seed=0, overconfidence=0.1, tokens=40, n_items=16) -> pd.DataFrame:
    """Tokens whose confidence is too high by a known amount, in one capability of two tasks."""
    chance, rows = rng(seed), []
    edges = np.linspace(0, 1, 11)[1:-1]
    for draw in range(max(n_draws, 1)):
        for i in range(n_items):
            sure = chance.uniform(0.3, 0.9, tokens)
            hit = chance.random(tokens) < sure - overconfidence
            where = np.digitize(sure, edges)
            rows.append(
                {
                    "capability": "math",
                    "task": f"t{i % 2}",
                    "item": f"i{i:02d}",
                    "draw": draw if n_draws else None,
                    "bin_tokens": tuple(np.bincount(where, minlength=10).tolist()),
                    "bin_confidence": tuple(np.bincount(where, sure, minlength=10).tolist()),
                    "bin_hits": tuple(np.bincount(where, hit, minlength=10).astype(int).tolist()),
                    "js_divergence": chance.gamma(2, 0.05),
                    "js_tokens": int(chance.integers(2, 9)),
                    "source": "c4",
                    "label": "wanda",
                }
            )
    frame = pd.DataFrame(rows)
    return frame.assign(js_tokens=frame["item"].map(frame.drop_duplicates("item").set_index("item")["js_tokens"]))


def naive_calibration_error(frame: pd.DataFrame) -> float:
    """Guo et al., equation 3, draw by draw and task by task."""
    found = []
    for _, rows in frame.groupby(["draw", "task"]):
        n, confidence, hits = (
            np.stack(rows[f"bin_{name}"].to_list()).sum(0) for name in ("tokens", "confidence", "hits")
        )
        full = n > 0
        gaps = np.abs(hits[full] / n[full] - confidence[full] / n[full])
        found.append((n[full] / n.sum() * gaps).sum())
    return np.mean(found)


def test_calibration_error_is_its_definition():
    frame = confident()
    one = condition(frame, "calibration_error")
    assert one.value()[0] == pytest.approx(naive_calibration_error(frame), rel=1e-12)
    assert one.by_draw().mean() == pytest.approx(one.value()[0])
    per_draw = [naive_calibration_error(rows) for _, rows in frame.groupby("draw")]
    np.testing.assert_allclose(one.by_draw(), per_draw, rtol=1e-12)
    draws, items = np.array([[2.0, 0.0, 1.0]]), rng(1).integers(0, 3, (1, 16)) + 0.0
    twice = frame.loc[frame.index.repeat([int(items[0, int(item[1:])]) for item in frame["item"]])]
    weighted = [naive_calibration_error(rows) for _, rows in twice.groupby("draw")]
    assert one.value(draws, items)[0] == pytest.approx((2 * weighted[0] + weighted[2]) / 3, rel=1e-12)


def test_calibration_error_compares_like_any_other_score():
    worse, better = confident(overconfidence=0.2, tokens=400), confident(overconfidence=0.05, tokens=400, seed=1)
    found = difference(worse, better, "calibration_error", rng=rng(), n_boot=300)
    assert found.low <= 0.15 <= found.high and found.low > 0.1
    assert ratio(worse, better, "calibration_error", rng=rng(), n_boot=300).low > 1
    table = score_table(worse, score="calibration_error", n_boot=300)
    assert table["value"][0] == pytest.approx(0.2, abs=0.02) and table["p_value"][0] < 1e-3
    assert score_interval(confident(n_draws=0), "calibration_error", rng=rng()).n_draws == 0


def test_calibration_error_of_few_tokens_is_too_high():
    few, many = (np.mean([condition(confident(seed=s, overconfidence=0, tokens=n), "calibration_error").value()
                          for s in range(10)]) for n in (5, 500))  # fmt: skip
    assert few > 0.05 > 0.02 > many


def test_divergence_is_a_mean_over_tokens():
    frame = confident()
    tasks = frame.groupby(["draw", "task"]).apply(
        lambda f: np.average(f["js_divergence"], weights=f["js_tokens"]), include_groups=False
    )
    assert condition(frame, "js_divergence").value()[0] == pytest.approx(tasks.mean())
    assert score_table(frame, score="js_divergence", n_boot=100)["value"][0] == pytest.approx(tasks.mean())


@pytest.mark.parametrize("score,column", [("js_divergence", "js_tokens"), ("calibration_error", "bin_hits")])
def test_a_frame_from_before_a_score_was_measured_says_so(score, column):
    frame = confident()
    with pytest.raises(DataError, match=f"score '{score}' needs column '{column}'.*compute them again"):
        score_table(frame.drop(columns=column), score=score)
    with pytest.raises(DataError, match=f"needs column '{column}'"):
        condition(frame.drop(columns=column), score)
    name = "js_divergence" if score == "js_divergence" else "bin_confidence"
    with pytest.raises(DataError, match=f"no item has a score '{score}'"):
        condition(frame.assign(**{name: None}), score)


# -- tests between sources


def naive_p(groups: list[np.ndarray]) -> float:
    """Every way to deal the pooled draws to groups of the same sizes."""
    pooled, sizes = np.concatenate(groups), [len(group) for group in groups]

    def between(split):
        return sum(len(g) * (g.mean() - pooled.mean()) ** 2 for g in split)

    observed, hits, total = between(groups), 0, 0
    for order in set(itertools.permutations(np.repeat(np.arange(len(sizes)), sizes))):
        split = [pooled[np.array(order) == g] for g in range(len(sizes))]
        hits += between(split) >= observed * (1 - 1e-9)
        total += 1
    return hits / total


def test_a_small_permutation_test_is_exact():
    groups = [rng(seed).normal(size=n) for seed, n in ((1, 3), (2, 3), (3, 2))]
    found = permutation_test(dict(zip("abc", groups, strict=True)), rng=rng())
    assert found.exact and found.p_value == pytest.approx(naive_p(groups))
    assert (found.n_sources, found.n_draws) == (3, 8)


@pytest.mark.parametrize(
    ("sizes", "smallest"), [((3, 3), 0.1), ((5, 5), 2 / 252), ((3, 3, 3), 6 / 1680), ((3, 4), 1 / 35)]
)
def test_the_smallest_possible_p_is_told_and_reached(sizes, smallest):
    groups = {str(g): g + 1e-3 * np.arange(n) for g, n in enumerate(sizes)}
    found = permutation_test(groups, rng=rng())
    assert found.exact and found.smallest_p == pytest.approx(smallest)
    assert found.p_value == pytest.approx(smallest)


def test_many_permutations_are_sampled_and_resolution_is_told():
    groups = {str(g): 10.0 * g + np.arange(4) for g in range(5)}
    found = permutation_test(groups, rng=rng(), n_resamples=499)
    assert not found.exact and found.smallest_p == pytest.approx(1 / 500) == pytest.approx(found.p_value)


def test_no_difference_between_sources_is_found_at_its_level_only():
    chance, n = rng(9), 400
    rejected = sum(
        permutation_test({str(g): chance.normal(size=3) for g in range(3)}, rng=chance, n_resamples=2000).p_value
        <= 0.05
        for _ in range(n)
    )
    assert 0.02 <= rejected / n <= 0.09


def test_a_difference_between_sources_is_found():
    frames = [
        tidy(shift=shift, seed=i, draw_sd=0.01, source=f"s{i}", label="wanda 50%")
        for i, shift in enumerate((0, 0.2, 0.4))
    ]
    frame = pd.concat(frames)
    assert source_matters(of(frame), rng=rng()).p_value < 0.05
    table = source_table(frame)
    assert set(table["capability"]) == {"math", "commonsense"}
    assert (table["p_holm"] >= table["p_value"]).all() and (table["p_holm"] < 0.05).all()


def test_too_few_to_test():
    with pytest.raises(DataError, match="needs 2 of them, and the frame has 1"):
        source_matters(of(tidy(source="c4")), rng=rng())
    with pytest.raises(DataError, match="source 'b' has 1 draw"):
        permutation_test({"a": np.ones(3), "b": np.ones(1)}, rng=rng())


def test_holm_by_hand():
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted.to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    for wrong in ({}, {"a": 1.5}, {"a": float("nan")}):
        with pytest.raises(DataError, match="between 0 and 1"):
            holm(wrong)


# -- tables


@pytest.fixture(scope="module")
def grid() -> pd.DataFrame:
    parts = [tidy(n_draws=0, method="dense", label="dense", source=None)]
    parts.append(tidy(n_draws=0, shift=0.3, method="rtn", label="rtn 3-bit", source=None))
    for i, source in enumerate(("c4", "code")):
        for j, method in enumerate(("wanda", "gptq")):
            parts.append(tidy(shift=0.1 + 0.1 * i, seed=10 * i + j, method=method, label=method, source=source))
    return pd.concat(parts, ignore_index=True)


def test_retention_has_a_row_per_condition(grid):
    table = retention_table(grid)
    assert len(table) == (1 + 2 * 2) * 2
    assert table["value"].between(0, 1).all() and (table["low"] < table["value"]).all()
    wanda = table[(table["label"] == "wanda") & (table["capability"] == "math")].set_index("source")
    rows = grid[(grid["label"] == "wanda") & (grid["source"] == "c4") & (grid["capability"] == "math")]
    dense = grid[(grid["label"] == "dense") & (grid["capability"] == "math")]
    assert wanda.loc["c4", "value"] == pytest.approx(condition(dense).value()[0] / condition(rows).value()[0])
    assert wanda.loc["c4", "value"] > wanda.loc["code", "value"]
    assert wanda.loc["c4", "n_draws"] == 3 and table[table["source"].isna()]["n_draws"].eq(0).all()


def test_a_label_may_not_have_the_name_of_a_result(grid):
    with pytest.raises(DataError, match="column 'level' of by= has the name of a column of the result"):
        retention_table(grid.assign(level="hard"), by=("level", "label", "capability"))


def test_retention_of_accuracy_is_the_other_way_round(grid):
    table = retention_table(grid, score="accuracy")
    assert set(table["capability"]) == {"commonsense"} and (table["value"] <= 1).all()
    with pytest.raises(DataError, match="needs the dense model's cell"):
        retention_table(grid[grid["method"] != "dense"])


def test_differences_from_a_baseline(grid):
    table = difference_table(grid, {"source": "c4"})
    assert set(table["source"]) == {"code"} and len(table) == 4
    assert (table["value"] > 0).all()
    over_dense = difference_table(grid, {"label": "dense", "source": None})
    assert set(over_dense["label"]) == {"rtn 3-bit", "wanda", "gptq"}
    with pytest.raises(DataError, match="no condition can be compared"):
        difference_table(grid, {"source": "wikipedia"})
    with pytest.raises(DataError, match="baseline column 'seed' is not one of"):
        difference_table(grid, {"seed": 1})


def test_gains_are_shares_of_the_baseline(grid):
    by = ["source", "label", "capability"]
    score = score_table(grid).set_index(by)["value"]
    with pytest.raises(DataError, match="of accuracy more is better: take difference_table"):
        gain_table(grid, {"source": "c4"}, score="accuracy")
    gained = gain_table(grid, {"source": "c4"}, draws="paired").set_index(by)
    less = difference_table(grid, {"source": "c4"}, draws="paired").set_index(by)
    assert list(gained.index) == list(less.index)
    for (source, label, capability), row in gained.iterrows():
        base = score["c4", label, capability]
        assert row["value"] == pytest.approx(1 - score[source, label, capability] / base)
        assert row["value"] == pytest.approx(-less.loc[(source, label, capability), "value"] / base)
        assert row["low"] < row["value"] < row["high"] < 1
    with pytest.raises(DataError, match="no condition can be compared"):
        gain_table(grid, {"source": "wikipedia"})


def test_a_condition_has_its_interval_whatever_else_is_in_the_table(grid):
    whole = score_table(grid)
    part = score_table(grid[grid["source"] == "code"])
    same = whole[whole["source"] == "code"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, part)
    with pytest.raises(DataError, match="one by one"):
        score_table(grid, by=["source"])
