"""Findings are kept beside the results, read back as they were, and shown by the scorecard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from cola_lib.analysis import Finding, judge_family, primary_markdown, simulated_grid
from cola_lib.cli import app
from cola_lib.errors import DataError, StoreError
from cola_lib.experiments import CellKey, CellResult, ResultStore
from cola_lib.verdicts import BEGIN, END, record, recorded, stages, verdict_table, with_scorecard


def finding(claim="C5", value=0.1, half=0.02, part="wanda 50% · code", p_value=0.001) -> Finding:
    return Finding(
        claim=claim,
        part=part,
        value=value,
        low=value - half,
        high=value + half,
        unit="% of bits per byte",
        p_value=p_value,
        n_draws=3,
        n_items=40,
        cells=("a" * 20, "b" * 20),
    )


@pytest.fixture
def judged():
    return judge_family([finding(), finding("C8", -0.1, 0.2, p_value=0.4)])


def test_what_is_recorded_comes_back(tmp_path, judged):
    record(tmp_path / "store", "02_data_source", judged)
    record(tmp_path / "store", "05_domain", judged[:1])
    assert recorded(tmp_path / "store") == {"02_data_source": judged, "05_domain": judged[:1]}
    record(tmp_path / "store", "05_domain", judged[1:])
    assert recorded(tmp_path / "store")["05_domain"] == judged[1:]


def test_a_store_may_be_any_url(judged):
    record("memory://somewhere/results", "02_data_source", judged)
    assert recorded("memory://somewhere/results") == {"02_data_source": judged}


def test_findings_without_a_verdict_are_refused(tmp_path):
    with pytest.raises(DataError, match="1 findings have no verdict, the first 'wanda 50% · code': judge_family"):
        record(tmp_path, "x", [finding()])
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_read_is_named(tmp_path, judged):
    with pytest.raises(DataError, match="no findings in .*/findings; .* run make book"):
        recorded(tmp_path)
    record(tmp_path, "a", judged)
    (tmp_path / "findings" / "a.json").write_text('[{"claim": "C5"}]')
    with pytest.raises(DataError, match=r"a\.json holds no findings .*run its notebook again"):
        recorded(tmp_path)


def test_an_unwritable_store_is_an_error(tmp_path, judged):
    (tmp_path / "findings").write_text("in the way")
    with pytest.raises(StoreError, match="findings: cannot be written"):
        record(tmp_path, "a", judged)


def test_the_table_shows_every_part(judged):
    html = verdict_table(judged).to_html()
    for each in judged:
        assert each.part in html
        assert str(each.verdict) in html
        assert each.text in html


def test_the_command_prints_what_chapters_found(tmp_path, judged):
    record(tmp_path, "02_data_source", judged)
    shown = claims("--chapters", "--store", str(tmp_path))
    assert shown.exit_code == 0
    for each in judged:
        row = next(line for line in shown.stdout.splitlines() if line.startswith(each.claim))
        assert str(each.verdict) in row
        assert each.text in row
    rows = json.loads(claims("--chapters", "--store", str(tmp_path), "--json").stdout)
    assert [(row["claim"], row["verdict"], row["cells"]) for row in rows] == [
        (each.claim, str(each.verdict), 2) for each in judged
    ]
    parts = json.loads(claims("--chapters", "--store", str(tmp_path), "--parts", "--json").stdout)
    assert [Finding.from_dict(part) for part in parts] == judged


def test_the_command_prefers_the_evidence_to_results(tmp_path, judged, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert claims("--chapters").exit_code == 2
    record("results", "a", judged)
    assert claims("--chapters").stderr == "findings in results\n"
    record("evidence", "a", judged[:1])
    shown = claims("--chapters", "--json")
    assert shown.stderr == "findings in evidence\n"
    assert len(json.loads(shown.stdout)) == 1


def test_the_command_says_where_it_looked(tmp_path):
    for more, said in ((["--chapters"], "no findings in"), ([], "no results in")):
        result = claims("--store", str(tmp_path / "none"), *more)
        assert result.exit_code == 2
        assert said in result.stderr


# --------------------------------------------------------------------------------- primary numbers of a store


def claims(*options: str):
    return CliRunner().invoke(app, ["claims", *options])


def pack_into(path: Path, n_draws: int) -> None:
    """Pack cells in which C4 is ahead of Wikipedia, as a store packs them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    losses = {"c4": 0.05, "wikipedia": 0.15}
    shape = {"capability": "code", "seq_len": 256, "layout": "pack", "format": "text"}
    frame = simulated_grid([{"source": name, "loss": loss} | shape for name, loss in losses.items()], n_draws=n_draws)
    store = ResultStore(path.parent / "results")
    raw = {
        "choice_nll": frame["nll"].map(lambda x: [x]),
        "choice_bytes": frame["n_bytes"].map(lambda x: [x]),
        "gold": 0,
    }
    frame = frame.drop(columns=["nll", "n_bytes", "bits_per_byte"]).assign(**raw, n_tokens=1)
    own = ["item", "task", "capability", "n_tokens", *raw]
    for cell, rows in frame.groupby("cell"):
        labels = rows.iloc[0].drop([*own, "cell"]).dropna().to_dict()
        store.put(CellResult(CellKey("m", "s", cell, None, None, {}), rows[own], labels))
    store.pack(path)
    shutil.rmtree(path.parent / "results")


def test_pilot_and_confirmation_are_judged_apart_and_a_confirmation_stays_hidden_until_complete(tmp_path):
    pack_into(tmp_path / "cells.parquet", 3)
    pack_into(tmp_path / "confirmation" / "cells.parquet", 4)
    numbers, missing = stages(tmp_path)
    assert list(numbers["pilot"]) == ["C5"] and not numbers["confirmation"]
    assert missing["confirmation"]["C5"] == "4 of 10 draws have been computed"
    pack_into(tmp_path / "confirmation" / "cells.parquet", 10)
    assert list(stages(tmp_path)[0]["confirmation"]) == ["C5"]


def test_the_command_prints_primary_numbers_and_writes_them_into_a_page(tmp_path):
    store, page = tmp_path / "evidence", tmp_path / "PAGE.md"
    pack_into(store / "cells.parquet", 3)
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    for _ in range(2):  # the second time nothing changes
        result = claims("--store", str(store), "--into", str(page), "--json")
        assert result.exit_code == 0, result.output
        (row,) = json.loads(result.stdout)
        assert (row["claim"], row["stage"], row["verdict"]) == ("P5", "pilot", "reproduced")
        table = primary_markdown(stages(store)[0])
        assert page.read_text() == f"before\n\n{BEGIN}\n\n{table}\n{END}\n\nafter\n"
    assert "no number yet for P1, P2" in result.stderr
    shown = claims("--store", str(store), "--parts", "--json")
    (part,) = json.loads(shown.stdout)
    assert part["part"] == "wanda · code" and "P1 has no number: no calibration set" in shown.stderr
    with pytest.raises(DataError, match="no place for the scorecard"):
        with_scorecard("no place", table)


def test_results_are_packed_with_what_was_found(tmp_path, judged):
    store, out = tmp_path / "results", tmp_path / "evidence"
    result = CellResult(CellKey("m", "s", None, None, None, {}), pd.DataFrame({"feature": ["a"], "value": [1.5]}), {})
    ResultStore(store).put(result)
    record(store, "02_data_source", judged)
    done = CliRunner().invoke(app, ["pack", "--store", str(store), "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    assert "1 cells" in done.stdout
    assert recorded(out) == {"02_data_source": judged}
    found = ResultStore(tmp_path / "empty", packed=[out / "cells.parquet"]).get(result.key)
    pd.testing.assert_frame_equal(found.scores, result.scores)
    # Another machine's results are added to those that are there.
    other = CellResult(CellKey("m2", "s", None, None, None, {}), result.scores, {})
    ResultStore(tmp_path / "second").put(other)
    record(tmp_path / "second", "05_domain", judged[:1])
    more = CliRunner().invoke(app, ["pack", "--store", str(tmp_path / "second"), "--out", str(out)])
    assert more.exit_code == 0 and "2 cells" in more.stdout
    assert set(recorded(out)) == {"02_data_source", "05_domain"}


def test_the_readme_shows_the_scorecard_of_the_evidence():
    root = Path(__file__).parents[1]
    readme = (root / "README.md").read_text()
    numbers, _ = stages(root / "evidence")
    assert with_scorecard(readme, primary_markdown(numbers)) == readme, "make evidence writes it"
