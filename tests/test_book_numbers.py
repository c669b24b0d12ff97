"""Numbers that are typed in the book's written pages are those of the committed evidence.

A page marks such a number with a comment right behind it, which a reader does not see::

    +2.30 [+0.99, +3.62] %<!-- finding: CLAIM | PART | VERDICT -->
    -23.3 [-35.4, -12.2] %<!-- gain: SOURCE | METHOD | CAPABILITY -->
    +12.0 [+9.7, +14.4] %<!-- overall: STRATEGY | STRATEGY -->
    +6.0 [+2.1, +10.0] %<!-- overall: STRATEGY | STRATEGY | CAPABILITY -->

The first is a part of a claim with its verdict, the second what a source gains over web text in the grid of sources,
the third what a way of choosing gains over another in the league, averaged over methods and capabilities, the last
what it gains over methods on one capability if it is what sets are chosen for.
When the evidence changes, these tests fail, and whoever mends the number reads the sentence around it again.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from cola_lib.analysis import Finding, gain_table, holm, overall_gains, study, with_interval
from cola_lib.analysis import gains as source_gains
from cola_lib.analysis.text import NO_BREAK
from cola_lib.experiments.packed import PackedCells
from cola_lib.verdicts import recorded, stage_frames

ROOT = Path(__file__).parents[1]
EVIDENCE = ROOT / "evidence"
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "book").glob("*.md"))}
INTERVAL = r"[-+]?\d[\d.]* \[[-+]?\d[\d.]*, [-+]?\d[\d.]*\]"
MARKED = re.compile(rf"({INTERVAL}(?: %[\w %]*)?)<!-- (finding|gain|overall): ([^>]*) -->")
WEB = "c4"

pytestmark = pytest.mark.skipif(not EVIDENCE.exists(), reason="no evidence has been packed yet")


def marked(kind: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Page, number and what it is, for every mark of a kind."""
    return [
        (page, " ".join(found[1].split()), tuple(part.strip() for part in found[3].split("|")))
        for page, text in PAGES.items()
        for found in MARKED.finditer(text)
        if found[2] == kind
    ]


@cache
def findings() -> dict[tuple[str, str], Finding]:
    return {(f.claim, f.part): f for found in recorded(EVIDENCE).values() for f in found}


def parts(claim: str) -> list[Finding]:
    return [finding for (name, _), finding in findings().items() if name == claim]


@cache
def labels() -> dict[str, dict]:
    """What each cell of the evidence is, and where it was computed."""
    table = pq.read_table(EVIDENCE / "cells.parquet", columns=["about", "key"])
    return dict(zip(table["key"].to_pylist(), map(json.loads, table["about"].to_pylist()), strict=True))


@cache
def gains() -> dict[tuple[str, ...], str]:
    """What each marked source gains over web text, as a page writes it."""
    frame = stage_frames(EVIDENCE)["pilot"]
    shape = {"n_samples": 32, "seq_len": 256, "layout": ["pack", "random"], "format": "text", "split_rows": None}
    sets = study(frame, **shape)
    others = [sets.find(source=source) for source in {what[0] for _, _, what in marked("gain")}]
    table = source_gains(sets, sets.find(source=WEB), others)
    texts = with_interval(table, "+.1f", scale=100).str.replace(NO_BREAK, " ") + " %"
    return dict(zip(table[["source", "label", "capability"]].itertuples(index=False, name=None), texts, strict=True))


@cache
def league(target: str = "") -> pd.DataFrame:
    """Rows of every strategy that was measured as those behind C12 were: same items, texts that judge, deployment.

    With a target, those of sets that were chosen for it or for nothing, and of its items.
    """
    behind = {cell for finding in parts("C12") for cell in finding.cells}
    cells = PackedCells((EVIDENCE / "cells.parquet").read_bytes())

    def place(key: str) -> str:
        facts = dict(labels()[key]["key"])
        spec = facts.pop("spec", None) or {}
        return json.dumps([facts | {"calibration": None}, spec.get("method")], sort_keys=True)

    wanted = {place(key) for key in behind}
    draws = {labels()[key]["labels"]["draw"] for key in behind}
    deployments = {target} if target else {labels()[key]["labels"].get("target") for key in behind}

    def belongs(key: str) -> bool:
        own = labels()[key].get("labels", {})
        return own.get("draw") in draws and own.get("target") in {None, *deployments} and place(key) in wanted

    frame = pd.concat(cells[key].frame() for key in labels() if belongs(key))
    return frame[frame["capability"] == target] if target else frame


@cache
def overall(strategy: str, baseline: str, target: str = "") -> tuple[str, bool]:
    """Its overall gain as a page writes it, and whether it is told from zero."""
    frame = league(target)
    found = overall_gains(frame[frame["source"].isin([strategy, baseline])], baseline)
    text = with_interval(found, "+.1f", scale=100).str.replace(NO_BREAK, " ")[0] + " %"
    return text, bool(found["p_value"][0] < 0.05)


@pytest.mark.parametrize(("page", "number", "what"), marked("overall"))
def test_overall_gains(page, number, what):
    assert overall(*what)[0] == number, f"{page}.md: {' over '.join(what)}"


@pytest.mark.parametrize(("page", "number", "what"), marked("finding"))
def test_findings(page, number, what):
    claim, part, verdict = what
    finding = findings()[claim, part]
    assert finding.text.startswith(number), f"{page}.md: {claim} {part} is {finding.text}"
    assert "%" not in finding.unit or "%" in number, f"{page}.md: {number} of {finding.unit}"
    assert str(finding.verdict) == verdict, f"{page}.md: read the sentence on {claim} {part} again"


@pytest.mark.parametrize(("page", "number", "what"), marked("gain"))
def test_gains(page, number, what):
    assert gains()[what] == number, f"{page}.md: {' '.join(what)}"


def test_there_are_marks_and_no_interval_is_without_one():
    assert len(marked("finding")) > 5 and len(marked("gain")) > 3
    for page, text in PAGES.items():
        intervals = re.findall(INTERVAL, re.sub(r"\$[^$]*\$", "", text))
        n_marked = len(MARKED.findall(text))
        assert len(intervals) == n_marked, f"{page}.md: {len(intervals)} intervals, {n_marked} with a mark"


# ------------------------------------------------------------------- what the pages say without a number


def test_who_is_ahead_in_the_league():
    page = "summary.md: Which way of choosing is best?"
    web = f"random(source={WEB})"
    table = overall_gains(league(), web).set_index("source")
    best = table.index.drop("proxy")[0]
    assert table.index[0] == "proxy" and best == "centroid_distance", page
    assert not overall("proxy", best)[1] and not overall("proxy", "uniform_mix")[1] and overall("proxy", "cola")[1], (
        page
    )
    for narrow in ("math", "code"):
        assert overall_gains(league(narrow), web)["source"][0] == "proxy", page
        assert not overall("proxy", "centroid_distance", narrow)[1] and overall("proxy", "cola", narrow)[1], page
    rest = [name for name in [*table.index, web] if name != "proxy"]
    frame = league()
    p = {s: overall_gains(frame[frame["source"].isin(["proxy", s])], s)["p_value"][0] for s in rest}
    assert holm(pd.Series(p))["cola"] >= 0.05, f"{page}: after correction it is ahead of COLA"
    own = gain_table(frame[frame["source"].isin(["proxy", web])], {"source": web}, draws="paired")
    mean = own.groupby("capability")["value"].mean()
    assert set(mean.nlargest(2).index) == {"code", "math"} and mean["language"] < 0, page
    assert own.groupby("label")["value"].mean().idxmax().startswith("gptq"), page


def test_no_gain_of_wanda_or_awq_from_more_samples():
    own = [finding for finding in parts("C2") if finding.part.startswith(("wanda", "awq"))]
    assert len(own) > 4 and all(finding.low < 0 < finding.high for finding in own), "summary.md: How much?"


def test_difficulty_and_subjects_are_told_from_nothing():
    assert {str(finding.verdict) for finding in parts("C10")} == {"undecided at this power"}, "summary.md: how hard?"
    assert all(f.low < 0 < f.high for f in parts("C10")), "summary.md: how hard?"
    for finding in parts("C7"):
        subject = finding.part.startswith("subject")
        assert str(finding.verdict) == ("undecided at this power" if subject else "reproduced"), (
            "summary.md: Which data?"
        )


def test_web_text_is_not_told_from_wikipedia():
    assert {str(finding.verdict) for finding in parts("C5")} == {"undecided at this power"}, "summary.md: Which data?"


def test_a_language_gains_more_under_gptq_than_under_wanda():
    for kind in ("natural", "programming"):
        gptq, wanda = (findings()["C7", f"{kind} language · {m}"] for m in ("gptq 3-bit act-order", "wanda 50%"))
        assert wanda.high < gptq.low, "summary.md: Which data?"


def test_the_source_s_share_is_decided_for_mathematics_only():
    decided = [f.part for f in parts("C4") if str(f.verdict) == "not reproduced"]
    assert decided == ["math"] and findings()["C4", "math"].high < 0.5, "summary.md: Choose the method before the data"


def test_limits_of_the_evidence():
    page = PAGES["limits"]
    items = {finding.n_items for finding in parts("C4")}
    assert f"{min(items)} to {max(items)} items<!-- items -->" in page
    words = "zero one two three four five six seven eight nine ten eleven twelve".split()
    (held_out,) = parts("C11")
    n_sources = int(re.search(r"(\d+) sources", held_out.note)[1])
    assert f"rest on {words[n_sources]}<!-- sources --> of them" in page
    fewer = [f for f in findings().values() if f.n_draws == 2]
    assert fewer and all(f.claim == "C19" or "training" in f.part for f in fewer), "limits.md: what two pools were"
    drawn = {f.n_draws for f in findings().values() if f not in fewer}
    assert drawn == {3} and "- **Three draws** are few" in page and "three disjoint draws" in PAGES["summary"]
    devices = {about["device"] for about in labels().values()}
    assert devices == {"cpu"}, "limits.md says that no result of the evidence is a GPU's"
    assert {about["labels"].get("propagate") for about in labels().values()} >= {"original"}
