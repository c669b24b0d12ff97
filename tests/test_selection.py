"""What strategies choose is chosen once, kept, and compared like any other calibration set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cola_lib.analysis import proxy_table
from cola_lib.curation import CentroidDistance, Cola, Pool, Proxy, deployment, strategy
from cola_lib.data import Sample
from cola_lib.errors import SpecError
from cola_lib.experiments import ResultStore, Tuning, as_strategy, run_grid, select
from cola_lib.experiments.selection import selection_key
from cola_lib.finetune import TuneSpec
from cola_lib.models import tiny_model
from tests.test_experiment import METHODS, small  # noqa: F401 - a fixture

POOL = ["stories", "gsm8k"]
TARGETS = {"math": ("gsm8k",), "code": ("mbpp",)}
STRATEGIES = ["uniform_mix", {"strategy": "proxy", "stride": 1}, "length_mixture"]


@pytest.fixture
def experiment(small, tmp_path):  # noqa: F811
    return replace(small, n_samples=4, targets=TARGETS, target_samples=2, store=tmp_path / "store")


def test_a_stage_that_is_off_cannot_have_changed_a_choice(experiment):
    pool, lm = experiment.pool(POOL, 0, 2, limit=3), experiment.lm
    keys = [selection_key(lm, Cola(domain=on), pool, 16, 2, None, None, 0) for on in (True, False)]
    assert keys[0].spec["revision"] == Cola.revision and "revision" not in keys[1].spec


def test_strategies_are_compared_on_disjoint_pools(experiment):
    asked = {"targets": ["general", "code"], "draws": 2, "limit": 6, "progress": False}
    found = experiment.run_strategies(STRATEGIES, METHODS[:1], POOL, **asked)
    frame = found.frame[found.frame["calibrated"]]
    rows = frame.drop_duplicates(["cell", "source", "target"])[["source", "draw", "target"]]
    label = as_strategy(STRATEGIES[1]).label
    expected = {("uniform_mix", None), ("length_mixture", None), (label, "general"), (label, "code")}
    assert {(s, t if isinstance(t, str) else None) for s, _, t in rows.itertuples(index=False)} == expected
    assert found.n_computed + found.n_read == 1 + 2 * 4 and set(rows["draw"]) == {0, 1}
    assert found.n_computed == 1 + frame["cell"].nunique()  # two targets may well choose the same rows of so few
    again = experiment.run_strategies(STRATEGIES, METHODS[:1], POOL, **asked)
    assert again.n_computed == 0 and again.n_read == 9
    assert {"error_on_math", "error_on_code"} <= set(found.layers)
    second = experiment.run_strategies(STRATEGIES, METHODS[:1], POOL, **asked | {"draws": [1], "n_draws": 2})
    assert second.n_computed == 0 and set(second.frame["draw"].dropna()) == {1}
    with pytest.raises(SpecError, match="draw 2 was asked for"):
        experiment.run_strategies(STRATEGIES, METHODS[:1], POOL, **asked | {"draws": [2], "n_draws": 2})


def test_a_stored_choice_needs_no_model(experiment, monkeypatch):
    options = {"pool": POOL, "draw": 1, "n_draws": 2, "target": "math", "limit": 6}
    first = experiment.select(Cola(), **options)
    assert not first.stored and first.seconds > 0 and first.rows.draw == 1
    fresh = replace(experiment)  # without what the workspace remembers
    monkeypatch.setattr("cola_lib.curation.base.Strategy.select", lambda *a, **k: pytest.fail("chosen again"))
    again = fresh.select(Cola(), **options)
    assert again.stored and again.seconds == first.seconds
    assert again.rows.fingerprint == first.rows.fingerprint and again.rows.sample_ids == first.rows.sample_ids
    assert (again.rows.name, again.rows.sources, again.rows.layout) == (
        first.rows.name,
        first.rows.sources,
        first.rows.layout,
    )


def test_a_packed_choice_of_an_earlier_revision_is_read_and_named(experiment, monkeypatch, tmp_path):
    options = {"pool": POOL, "target": "math", "limit": 6}
    monkeypatch.setattr(Cola, "revision", 1)
    first = experiment.select(Cola(), **options)
    ResultStore(experiment.store).pack(tmp_path / "cells.parquet")
    monkeypatch.undo()
    own = replace(experiment)
    assert not own.has_chosen(Cola(), POOL, target="math", limit=6), "a store of one's own follows today's revision"
    record = replace(experiment, store=tmp_path / "empty", packed=[tmp_path / "cells.parquet"])
    assert record.has_chosen(Cola(), POOL, target="math", limit=6)
    again = record.select(Cola(), **options)
    assert again.earlier and again.stored and again.rows.fingerprint == first.rows.fingerprint
    asked = {"targets": ["math"], "draws": 1, "limit": 6, "progress": False}
    grid = record.run_strategies([Cola(), "uniform_mix"], METHODS[:1], POOL, **asked)
    assert grid.earlier == ("cola",) and "sets of cola are on record as an earlier revision chose" in grid.provenance
    assert not record.select(strategy("uniform_mix"), **options).earlier


@pytest.mark.parametrize(
    "chooser", [Proxy(reweigh=True, stride=1), strategy("length_mixture"), strategy("random_tokens")]
)
def test_choices_come_back_from_a_packed_store(experiment, chooser, tmp_path):
    options = {"pool": POOL, "target": "general", "limit": 6}
    first = experiment.select(chooser, **options)
    ResultStore(experiment.store).pack(tmp_path / "cells.parquet")
    elsewhere = replace(experiment, store=tmp_path / "empty", packed=[tmp_path / "cells.parquet"])
    again = elsewhere.select(chooser, **options)
    assert again.stored and again.rows.fingerprint == first.rows.fingerprint
    assert again.rows.weights == first.rows.weights


def test_what_decides_a_choice_is_in_its_name(experiment):
    options = {"pool": POOL, "n_draws": 2, "limit": 6}
    asked = [
        {},
        {"draw": 1},
        {"limit": 5},
        {"n_samples": 3},
        {"n_tokens": 70},
        {"pool": ["stories"]},
        {"target": "code"},
    ]
    for change in asked:
        assert not experiment.select(Cola(embedding="tfidf"), **({"target": "math"} | options | change)).stored, change
    assert not experiment.select(Cola(embedding="tfidf", width=8), target="math", **options).stored
    assert experiment.select(Cola(embedding="tfidf"), target="math", **options).stored
    mix = strategy("uniform_mix")
    assert not experiment.select(mix, **options).stored
    assert experiment.select(mix, target="code", **options).stored  # it reads no target


def test_texts_decide_a_choice_and_not_their_ids_alone(experiment, tmp_path):
    """A file that was edited in place has the ids that it had; so have the problems of a source in other words."""
    lm, store = tiny_model(), ResultStore(tmp_path / "choices")

    def chosen(texts, target_texts, words="question"):
        pool = Pool({"mine": [Sample(str(i), text, "mine") for i, text in enumerate(texts)]})
        held = [Sample(f"t{i}", text, "t", question=words) for i, text in enumerate(target_texts)]
        target = deployment({"math": held})
        return select(lm, CentroidDistance(), pool, store, seq_len=16, n_samples=2, target=target)

    lines = ["one line", "another line", "a third one", "and the last"]
    assert not chosen(lines, ["2 + 2"]).stored and chosen(lines, ["2 + 2"]).stored
    assert not chosen(["ONE line", *lines[1:]], ["2 + 2"]).stored
    assert not chosen(lines, ["2 + 3"]).stored
    assert not chosen(lines, ["2 + 2"], words="other words").stored


def test_pools_share_no_text_with_each_other_or_the_targets(experiment):
    pools = [experiment.pool(POOL, draw, 2) for draw in range(2)]
    ids = [{s.id for some in pool.samples.values() for s in some} for pool in pools]
    target = experiment.target("math", 2).sample_ids
    assert target and not ids[0] & ids[1] and not (ids[0] | ids[1]) & target
    few = replace(experiment, target_texts=3).target("math", 2)
    assert {name: len(texts) for name, texts in few.texts.items()} == {"math": 3, "code": 3}


def test_strategies_are_tried_without_an_evaluation_on_texts_that_nothing_was_chosen_for(experiment, monkeypatch):
    monkeypatch.setattr("cola_lib.experiments.runner.evaluate", lambda *a, **k: pytest.fail("evaluated"))
    strategies = ["uniform_mix", {"strategy": "proxy", "stride": 1}]
    asked = {"targets": ["math", "code"], "draws": 2, "limit": 6, "progress": False}
    found = experiment.try_strategies(strategies, METHODS[:1], POOL, **asked)
    assert found.frame.empty and found.n_computed + found.n_read == 2 * (1 + 2)
    table = proxy_table(found.layers.fillna({"target": "any"}), by=("source", "draw", "target", "cell"))
    assert set(table["capability"]) == set(TARGETS) and (table["proxy"] > 0).all()
    assert experiment.try_strategies(strategies, METHODS[:1], POOL, **asked).n_computed == 0
    second = experiment.try_strategies(strategies, METHODS[:1], POOL, **asked | {"draws": [1], "n_draws": 2})
    assert second.n_computed == 0 and set(second.layers["draw"]) == {1}
    judges = {ids for name in TARGETS.values() for row in experiment.calibration(name, 2, 3).sample_ids for ids in row}
    for draw in range(2):
        chosen = experiment.select(as_strategy("uniform_mix"), POOL, draw=draw, n_draws=3, limit=6).rows
        assert judges and not judges & {ids for row in chosen.sample_ids for ids in row}
    assert not judges & experiment.target("math", 3).sample_ids


def test_without_a_suite_nothing_can_be_measured_on_a_model(experiment):
    with pytest.raises(SpecError, match="without a suite"):
        run_grid(experiment.lm, [], [], None, ResultStore(experiment.store))


def test_compressed_models_are_trained_further_and_kept_apart(experiment):
    rows = experiment.calibration("stories", 0, 1, n_samples=2)
    tuned = Tuning(TuneSpec(steps=2, batch_rows=2, rank=2, learning_rate=1e-2), rows)
    asked = {"draws": 1, "limit": 4, "progress": False}
    plain = experiment.run_strategies(["uniform_mix"], METHODS, POOL, **asked)
    after = experiment.run_strategies(["uniform_mix"], METHODS, POOL, tune=tuned, **asked)
    assert after.n_read == 1 and after.n_computed == 2  # the dense model is the same
    labels = set(after.frame["label"])
    assert labels == {"dense"} | {f"{label} tuned" for label in set(plain.frame["label"]) - {"dense"}}
    assert not set(plain.frame["cell"]) & set(after.frame.loc[after.frame["label"] != "dense", "cell"])
    again = experiment.run_strategies(["uniform_mix"], METHODS, POOL, tune=tuned, **asked)
    assert again.n_computed == 0
    other = replace(tuned, spec=replace(tuned.spec, steps=1))
    assert experiment.run_strategies(["uniform_mix"], METHODS, POOL, tune=other, **asked).n_computed == 2


def test_strategies_are_written_as_names_or_mappings():
    assert as_strategy("cola") == Cola() and as_strategy({"strategy": "cola", "width": 8}) == Cola(width=8)
    assert as_strategy(Cola(domain=False)) == Cola(domain=False)
    with pytest.raises(SpecError, match="this has no 'strategy'"):
        as_strategy({"width": 8})
