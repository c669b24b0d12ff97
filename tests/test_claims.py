"""Rules say what they were written down to say, and a scorecard says what was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from cola_lib.analysis import (
    CLAIMS,
    Finding,
    Options,
    c2_amount,
    c4_source_as_method,
    c5_source_ranks,
    c7_language,
    c8_domain_gain,
    cell_table,
    condition,
    judge_family,
    overall,
    scorecard,
    scorecard_parts,
    source_versus_method,
)
from cola_lib.analysis.claims import MARGIN, PRUNING, UNITS, Verdict, matters, verdict
from cola_lib.analysis.claims.effects import QUANTIZATION, unit_of
from cola_lib.compress import PRUNERS, QUANTIZERS
from cola_lib.errors import DataError, UnknownNameError
from tests.simulated_grids import simulated_grid


@pytest.mark.parametrize(
    "low,high,expected",
    [
        (0.01, 0.05, Verdict.REPRODUCED),
        (0.001, 0.02, Verdict.REPRODUCED),
        (0.001, 0.004, Verdict.NOT_REPRODUCED),  # there, and too small to matter
        (-0.05, -0.01, Verdict.NOT_REPRODUCED),  # reversed
        (-0.004, 0.004, Verdict.NOT_REPRODUCED),  # shown to be negligible
        (-0.01, 0.01, Verdict.UNDECIDED),
        (0.0, 0.01, Verdict.UNDECIDED),
    ],
)
def test_the_rule(low, high, expected):
    assert verdict(low, high) is expected


def test_an_interval_that_is_none_is_refused():
    for low, high in [(1, 0), (float("nan"), 1), (0, float("nan"))]:
        with pytest.raises(ValueError, match="is none"):
            verdict(low, high)


def test_no_finding_is_not_a_finding_of_nothing():
    assert matters(0.01, 0.001) is Verdict.REPRODUCED
    assert matters(0.3, 0.001) is Verdict.UNDECIDED
    assert matters(0.01, 0.1) is Verdict.UNDECIDED  # too few draws for any result to count


@pytest.mark.parametrize(
    "truth,spread,wanted,at_least",
    [
        (0.03, 0.01, Verdict.REPRODUCED, 0.9),  # a true effect is found
        (-0.03, 0.01, Verdict.NOT_REPRODUCED, 0.95),  # a reversed one is rejected
        (0.0, 0.0015, Verdict.NOT_REPRODUCED, 0.9),  # a precise null is rejected
        (0.0, 0.02, Verdict.UNDECIDED, 0.9),  # an imprecise one is left open
    ],
)
def test_simulated_truths_get_the_verdict_they_deserve(truth, spread, wanted, at_least):
    rng = np.random.default_rng(0)
    n, trials = 10, 2000
    samples = rng.normal(truth, spread * np.sqrt(n) / 2, size=(trials, n))
    half = stats.t.ppf(0.975, n - 1) * samples.std(1, ddof=1) / np.sqrt(n)
    verdicts = [verdict(m - h, m + h) for m, h in zip(samples.mean(1), half, strict=True)]
    assert np.mean([v is wanted for v in verdicts]) >= at_least
    if truth <= 0:  # at most half of the test's 5 % lies above 0
        assert np.mean([v is Verdict.REPRODUCED for v in verdicts]) < 0.04
    assert MARGIN == 0.005


# -- findings


def finding(low=0.01, high=0.05, p_value=0.001, **options) -> Finding:
    about = {"claim": "C5", "part": "awq · code", "unit": "% of bits per byte", "margin": MARGIN, **options}
    value = about.pop("value", (low + high) / 2)
    return Finding(value=value, low=low, high=high, p_value=p_value, n_draws=5, n_items=40, cells=("a", "b"), **about)


def test_a_family_is_corrected():
    alone = judge_family([finding(p_value=0.03)])
    assert alone[0].verdict is Verdict.REPRODUCED and alone[0].p_holm == 0.03
    family = judge_family([finding(p_value=0.03), finding(p_value=0.001), finding(-0.02, 0.03, p_value=0.7)])
    assert [one.p_holm for one in family] == pytest.approx([0.06, 0.003, 0.7])
    assert [one.verdict for one in family] == [Verdict.UNDECIDED, Verdict.REPRODUCED, Verdict.UNDECIDED]
    with pytest.raises(DataError, match="no findings"):
        judge_family([])


@pytest.mark.parametrize(
    "options,expected",
    [
        ({"low": 0.001, "high": 0.004}, Verdict.NOT_REPRODUCED),  # there, and too small to matter
        ({"low": -0.05, "high": -0.01}, Verdict.NOT_REPRODUCED),
        ({"over": "items"}, Verdict.UNDECIDED),  # one draw
        ({"low": 0.7, "high": 0.95, "null": 0.8, "margin": 0.0, "p_value": 0.2}, Verdict.UNDECIDED),
        ({"low": 0.85, "high": 0.95, "null": 0.8, "margin": 0.0}, Verdict.REPRODUCED),
        ({"low": 0.2, "high": 0.7, "null": 0.8, "margin": 0.0}, Verdict.NOT_REPRODUCED),
        ({"low": -0.004, "high": 0.002, "kind": "within"}, Verdict.REPRODUCED),
        ({"low": -0.004, "high": 0.002, "kind": "within", "p_value": 0.06}, Verdict.UNDECIDED),
        ({"low": -0.004, "high": 0.02, "kind": "within"}, Verdict.UNDECIDED),
        ({"low": 0.01, "high": 0.02, "kind": "within"}, Verdict.NOT_REPRODUCED),
        ({"low": -0.02, "high": -0.01, "kind": "within"}, Verdict.NOT_REPRODUCED),
    ],
)
def test_the_rule_for_findings(options, expected):
    assert judge_family([finding(**options)])[0].verdict is expected


def test_a_claim_is_as_strong_as_its_weakest_part():
    yes, no, open_ = finding(), finding(-0.05, -0.01), finding(-0.02, 0.03, p_value=0.7)
    for parts, expected in (
        ([yes, yes], Verdict.REPRODUCED),
        ([yes, open_], Verdict.UNDECIDED),
        ([yes, open_, no], Verdict.NOT_REPRODUCED),
    ):
        assert overall(judge_family(parts)) is expected
    with pytest.raises(DataError, match="no verdict yet"):
        overall([yes])
    with pytest.raises(DataError, match="of one claim"):
        overall([*judge_family([yes]), *judge_family([finding(claim="C6")])])


def test_a_finding_is_about_a_known_claim_in_a_known_unit():
    unknown = finding(-1.0, 1.0, value=float("nan"), unit="rank correlation", claim="C17")
    assert unknown.text == "– [-1.00, +1.00] rank correlation"
    with pytest.raises(UnknownNameError, match="unknown claim 'C99'"):
        finding(claim="C99")
    with pytest.raises(UnknownNameError, match="unknown unit"):
        finding(unit="parsec")


def test_the_table_of_claims():
    assert list(CLAIMS) == [f"C{i}" for i in range(1, 20)]
    assert all(key == claim.id and claim.unit in UNITS and claim.margin >= 0 for key, claim in CLAIMS.items())
    assert set(PRUNING) == set(PRUNERS) and set(QUANTIZATION) == set(QUANTIZERS)


def test_a_scorecard_shows_the_part_that_decides():
    weak = finding(0.001, 0.03, p_value=0.02, part="gptq · code")
    refuted = [
        finding(-0.05, -0.01, claim="C10", part="a"),
        finding(-0.09, -0.03, claim="C10", part="b", p_value=0.0001),
    ]
    findings = judge_family([*refuted, finding(part="awq · code"), weak])
    table = scorecard(findings)
    assert list(table["claim"]) == ["C5", "C10"]
    assert list(table["part"]) == ["gptq · code", "b"]
    assert list(table["verdict"]) == ["reproduced", "not reproduced"] and list(table["cells"]) == [2, 2]
    assert table["ours"][0] == "+1.55 [+0.10, +3.00] % of bits per byte"
    assert list(table["says"]) == ["> 0", "> 0"]
    parts = scorecard_parts(findings)
    assert list(parts["part"]) == ["awq · code", "gptq · code", "a", "b"] and parts["cells"][0] == ("a", "b")
    with pytest.raises(DataError, match="no findings"):
        scorecard([])


@pytest.mark.parametrize(
    "claim,changes,says",
    [
        ("C4", {"unit": "% of variance", "null": 0.5}, "> 50 %"),
        ("C17", {"unit": "rank correlation", "null": 0.8}, "> 0.8"),
        ("C2", {"kind": "within", "margin": 0.005}, "within ±0.5 %"),
    ],
)
def test_a_finding_tells_what_the_claim_says_of_it(claim, changes, says):
    assert replace(finding(claim=claim), **changes).says == says


@pytest.mark.parametrize(
    "score,unit",
    [
        ("bits_per_byte", "% of bits per byte"),
        ("js_divergence", "% of baseline"),
        ("accuracy", "percentage points"),
        ("calibration_error", "percentage points"),
    ],
)
def test_the_unit_is_that_of_the_score(score, unit):
    assert unit_of(score) == unit and unit in UNITS


# -- from frames to findings

SMALL = Options(n_boot=100)


def grid(sources=("c4", "wikipedia"), capabilities=("code", "math"), methods=("awq", "wanda"), seed=0, **options):
    conditions = [
        {"source": s, "capability": c, "method": m, "label": f"{m} x", "loss": 0.3 - 0.05 * (s == "c4")}
        for m in methods
        for s in sources
        for c in capabilities
    ]
    return simulated_grid(conditions, np.random.default_rng(seed), **options)


def test_a_gain_is_a_share_of_what_is_compared_with():
    frame = grid()
    found = c5_source_ranks(frame, options=SMALL)
    assert [one.part for one in found] == ["awq x · code", "wanda x · code", "awq x · math", "wanda x · math"]
    rows = frame[(frame["label"] == "awq x") & (frame["capability"] == "code")]
    pooled = rows.groupby(["source", "task"])[["nll", "n_bytes"]].sum()
    score = (pooled["nll"] / pooled["n_bytes"]).groupby("source").mean()
    assert found[0].value == pytest.approx(1 - score["c4"] / score["wikipedia"])
    assert set(found[0].cells) == set(rows["cell"]) and len(found[0].cells) == 10
    assert "stands in" in found[-1].note and not found[0].note
    again = c5_source_ranks(frame[frame["label"] == "awq x"], options=SMALL)
    assert again[0] == found[0], "a finding does not depend on what else is tested"


def test_p_values_belong_to_intervals():
    """Over grids with little and with much noise, so that both answers come up."""
    above, within = set(), set()
    for noise in (0.0005, 0.05, 0.2):
        for one in c5_source_ranks(grid(draw_sd=noise), options=SMALL):
            assert (one.p_value < 0.05) == (one.low > 0 or one.high < 0)
            above.add(one.p_value < 0.05)
        frame = pd.concat([grid(("c4",), seed=n, draw_sd=noise, item_sd=noise).assign(n_samples=n) for n in (128, 512)])
        for one in c2_amount(frame, options=SMALL):
            assert (one.p_value < 0.05) == (-MARGIN < one.low and one.high < MARGIN)
            within.add(one.p_value < 0.05)
    assert above == within == {True, False}


def test_one_draw_is_no_evidence_on_draws():
    found = judge_family(c5_source_ranks(grid(n_draws=1, draw_sd=0), options=SMALL))
    assert {one.verdict for one in found} == {Verdict.UNDECIDED}
    assert all("single draw" in one.note for one in found)


def test_what_is_missing_is_named():
    frame = grid()
    with pytest.raises(DataError, match="no row has source 'web'; there are c4, wikipedia"):
        c5_source_ranks(frame, web="web", options=SMALL)
    with pytest.raises(DataError, match="no column 'n_samples'"):
        c2_amount(frame, options=SMALL)
    with pytest.raises(DataError, match="about gptq, and the frame has awq, wanda"):
        c8_domain_gain(frame, {"math": "wikipedia"}, methods=("gptq",), options=SMALL)
    with pytest.raises(DataError, match="needs 2 languages"):
        c7_language(frame, options=SMALL)
    with pytest.raises(DataError, match="nothing to test"):
        c5_source_ranks(frame[frame["source"].isna()], options=SMALL)


def test_windows_of_a_document_are_one_item():
    names = ("de", "fr")
    conditions = [
        {"source": on, "capability": scored, "method": "awq", "label": "awq x", "loss": 0.3 - 0.05 * (on == scored)}
        for on in names
        for scored in names
    ]
    frame = simulated_grid(conditions, np.random.default_rng(0), n_items=12, n_tasks=1).assign(
        task=lambda f: f["capability"]
    )
    number = frame["item"].str[-3:].astype(int)
    windows = frame["item"].str[:-3] + (number // 3).astype(str)
    windows = windows.where(number % 3 == 0, windows + "+" + (number % 3).astype(str))
    plain = c7_language(frame, options=SMALL)[0]
    joined = c7_language(frame.assign(item=windows), options=SMALL)[0]
    assert joined.value == pytest.approx(plain.value) and joined.cells == plain.cells
    assert (plain.n_items, joined.n_items) == (24, 8)


def test_a_variance_share_comes_with_its_ratio():
    frame = grid(sources=("c4", "wikipedia", "code"), methods=("awq", "gptq", "wanda"), capabilities=("math",))
    one = c4_source_as_method(frame, options=SMALL)[0]
    assert 0 <= one.low <= one.value <= one.high <= 1 and one.null == 0.5
    assert one.note.startswith("ratio source / method")
    rows = frame[frame["capability"] == "math"]
    same = source_versus_method(rows, rng=np.random.default_rng(0), n_boot=4000)
    assert one.value == pytest.approx(np.clip(same.value, 0, 1), abs=0.1)


def test_cells_one_by_one():
    frame = grid()
    table = cell_table(frame)
    assert len(table) == 2 * 2 * 2 * 5 and table["cell"].nunique() == 40
    assert table["loss"].mean() == pytest.approx(0.275, abs=0.02)
    mean = table[(table["source"] == "c4") & (table["label"] == "awq x")].groupby("capability")["value"].mean()
    rows = frame[(frame["source"] == "c4") & (frame["label"] == "awq x") & (frame["capability"] == "code")]
    assert mean["code"] == pytest.approx(condition(rows).value()[0])
    with pytest.raises(DataError, match="5 cells have the labels"):
        cell_table(frame, by=("source", "label", "capability"))
    with pytest.raises(DataError, match="needs the dense model's cell"):
        cell_table(frame[frame["method"] != "dense"])
