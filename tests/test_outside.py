"""What another tool makes of our sets is kept like our own cells, and asked for only once."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from cola_lib.errors import ColaError, SpecError
from cola_lib.evaluate import evaluate
from cola_lib.experiments import CellResult, OutsideRecipe, ResultStore, as_strategy
from cola_lib.experiments.outside import outside_key
from tests.test_selection import POOL, experiment, small  # noqa: F401 - fixtures

RECIPE = OutsideRecipe(bits=4, group_size=16)
ASKED = {"draws": 1, "limit": 6, "progress": False}


def test_a_missing_environment_is_named(experiment, tmp_path):  # noqa: F811
    with pytest.raises(ColaError, match="make interop"):
        experiment.run_outside(["uniform_mix"], RECIPE, POOL, python=tmp_path / "python", **ASKED)


def test_a_tool_that_fails_says_so(experiment):  # noqa: F811
    # This environment's own interpreter has everything but the tool.
    with pytest.raises(ColaError, match="(?s)failed with exit code 1.*llmcompressor"):
        experiment.run_outside(["uniform_mix"], RECIPE, POOL, python=sys.executable, **ASKED)


def test_a_stored_result_needs_no_tool(experiment):  # noqa: F811
    rows = experiment.select(as_strategy("uniform_mix"), POOL, limit=6).rows
    scores = evaluate(experiment.lm, experiment.suite, progress=False)
    key = outside_key(experiment.lm, rows, RECIPE, experiment.suite)
    ResultStore(experiment.store).put(CellResult(key=key, scores=scores, labels={}))
    found = experiment.run_outside(["uniform_mix"], RECIPE, POOL, python="nowhere", **ASKED)
    assert found.n_computed == 0 and set(found.frame["label"]) == {RECIPE.label}
    assert found.frame["item"].tolist() == scores["item"].tolist()
    assert set(found.frame["source"]) == {"uniform_mix"} and found.frame["calibrated"].all()
    for other in (replace(RECIPE, bits=3), replace(RECIPE, version="1.0"), replace(RECIPE, act_order=True)):
        assert outside_key(experiment.lm, rows, other, experiment.suite) != key


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"group_size": 0}, {"damp": 0.0}])
def test_recipes_are_checked(wrong):
    with pytest.raises(SpecError, match="bits must be from 2 to 8"):
        OutsideRecipe(**wrong)
