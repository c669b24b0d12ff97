"""GPTQ's held-out ratio, the damping that it chooses, and where both reach a user."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats as scipy_stats

from cola_lib.analysis import against, damping_table, damping_to_use, draw_scores, losing_layers
from cola_lib.analysis.damping import with_t_interval
from cola_lib.calibration import CalibrationSet, random_tokens_set
from cola_lib.compress import DAMPS, GPTQ, choose_damp, compress, gptq, held_out_ratio, method_spec
from cola_lib.errors import ColaError, DataError, SpecError
from cola_lib.experiments import Experiment, ResultStore, run_damping, run_grid
from cola_lib.fingerprint import fingerprint
from cola_lib.models import tiny_model
from cola_lib.statistics import InputStatistics, collect_statistics, walk
from tests import oracles
from tests.test_cli import checkpoint, run  # noqa: F401 - a fixture

D_IN = 32
AUTO = method_spec("gptq", bits=3, group_size=16, damp="auto")


def fixed(damp: float) -> GPTQ:
    return method_spec("gptq", bits=3, group_size=16, damp=damp)


def inputs(n_tokens: int, seed: int) -> torch.Tensor:
    """Correlated inputs, of one distribution."""
    mix = torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(0)) * 0.4 + torch.eye(D_IN)
    return torch.randn(n_tokens, D_IN, generator=torch.Generator().manual_seed(seed)) @ mix


def statistics(X: torch.Tensor) -> InputStatistics:
    found = InputStatistics.empty(X.shape[1])
    found.update(X)
    return found


@pytest.fixture
def weights() -> list[torch.Tensor]:
    return list(torch.randn(20, D_IN, generator=torch.Generator().manual_seed(7)).split([12, 8]))


def naive_ratio(W: torch.Tensor, seen: torch.Tensor, unseen: torch.Tensor, damp: float) -> float:
    """Squared output errors, token by token and output by output."""
    solved, plain = oracles.gptq(W, seen, 3, 16, False, damp), oracles.rtn(W, 3, 16, False)
    lost = [
        sum(float((new[i] - W[i].double()) @ x.double()) ** 2 for i in range(len(W)) for x in unseen)
        for new in (solved, plain)
    ]
    return lost[0] / lost[1]


@pytest.fixture
def lm():
    return tiny_model()


@pytest.fixture
def rows(lm) -> CalibrationSet:
    return random_tokens_set(lm.tokenizer, 10, 16)


# ---------------------------------------------------------------------------------------------- mathematics


@pytest.mark.parametrize("damp", [0.001, 0.3])
@pytest.mark.parametrize("n_tokens", [24, 200])
def test_held_out_ratio_matches_its_oracle(weights, n_tokens, damp):
    seen, unseen = inputs(n_tokens, 1), inputs(40, 2)
    ours = held_out_ratio(weights[0], statistics(seen), statistics(unseen), fixed(damp))
    assert ours == pytest.approx(naive_ratio(weights[0], seen, unseen, damp), rel=1e-3)


def test_gptq_loses_to_rounding_where_it_has_fewer_tokens_than_inputs(weights):
    few, many, unseen = (statistics(inputs(n, seed)) for n, seed in ((16, 1), (4000, 2), (500, 3)))
    assert held_out_ratio(weights[0], few, few, fixed(0.001)) < 0.5
    assert held_out_ratio(weights[0], few, unseen, fixed(0.001)) > 1
    assert held_out_ratio(weights[0], many, unseen, fixed(0.001)) < 0.9


def test_a_layer_that_lies_on_its_grid_has_a_ratio_of_one(weights):
    zeros = torch.zeros_like(weights[0])
    assert held_out_ratio(zeros, statistics(inputs(50, 1)), statistics(inputs(50, 2)), fixed(0.1)) == 1


def test_the_chosen_damping_is_the_best_one_tried_on_held_out_tokens(weights):
    seen, unseen = inputs(24, 1), inputs(60, 2)
    choice = choose_damp(weights, statistics(seen), statistics(unseen), AUTO)
    naive = {damp: [naive_ratio(W, seen, unseen, damp) for W in weights] for damp in DAMPS}
    assert choice.damp == min(naive, key=lambda damp: sum(naive[damp]))
    assert choice.ratios == pytest.approx(naive[choice.damp], rel=1e-3)
    assert choice.damp > 0.001


def test_a_fixed_damping_is_judged_and_kept(weights):
    choice = choose_damp(weights, statistics(inputs(24, 1)), statistics(inputs(60, 2)), fixed(0.001))
    assert choice.damp == 0.001 and max(choice.ratios) > 1


# ----------------------------------------------------------------------------------------- specification


def test_auto_is_a_damping_of_gptq_alone(weights):
    assert AUTO.chooses_damp and not method_spec("rtn").chooses_damp
    with pytest.raises(SpecError, match="auto"):
        GPTQ(damp="automatic")
    with pytest.raises(SpecError, match="damp"):
        method_spec("gptq", damp="automatic")
    with pytest.raises(SpecError, match="damp"):
        method_spec("sparsegpt", damp="auto")
    with pytest.raises(SpecError, match="held-out"):
        gptq(weights[0], statistics(inputs(50, 1)), AUTO)


def test_stored_cells_keep_their_names():
    key = method_spec("gptq", bits=3, act_order=True, damp=0.1).for_widths({576, 1536}).key()
    assert fingerprint(key) == "edb2aac333d67f32ebb0"
    assert AUTO.key()["damp"] == "auto" and "auto_damp" in AUTO.key()["revisions"]


# ------------------------------------------------------------------------------------------ held-out rows


@pytest.mark.parametrize(("n_rows", "held"), [(10, [4, 9]), (12, [4, 9]), (5, [4]), (3, [2]), (2, [1])])
def test_every_fifth_row_is_held_out(lm, n_rows, held):
    rows = random_tokens_set(lm.tokenizer, n_rows, 8)
    rest, apart = rows.hold_out()
    assert torch.equal(apart.input_ids, rows.input_ids[held])
    assert torch.equal(rest.input_ids, rows.input_ids[[i for i in range(n_rows) if i not in held]])


def test_one_row_cannot_be_divided(lm):
    with pytest.raises(DataError, match="one row"):
        random_tokens_set(lm.tokenizer, 1, 8).hold_out()


@pytest.mark.parametrize("propagate", ["original", "compressed"])
def test_a_walk_keeps_held_out_rows_apart(lm, rows, propagate):
    rest, apart = rows.hold_out()
    alone = collect_statistics(lm, apart, progress=False)
    for step in walk(lm, rest, propagate=propagate, held_out=apart, progress=False):
        assert step.statistics["mlp_in"].n_tokens == rest.n_tokens
        torch.testing.assert_close(step.held_out["mlp_in"].gram, alone[step.index, "mlp_in"].gram)


def test_a_walk_visits_the_blocks_that_were_asked_for(lm, rows):
    whole = collect_statistics(lm, rows, progress=False)
    (step,) = walk(lm, rows, blocks=[1], progress=False)
    assert step.index == 1 and step.held_out is None
    torch.testing.assert_close(step.statistics["mlp_down"].gram, whole[1, "mlp_down"].gram)
    assert [step.index for step in walk(lm, rows, blocks=[0], progress=False)] == [0]


# ------------------------------------------------------------------------------------------- whole models


@pytest.mark.parametrize("propagate", ["original", "compressed"])
def test_auto_solves_with_all_rows_and_the_chosen_damping(lm, rows, propagate, monkeypatch):
    solver = sys.modules["cola_lib.compress.gptq"]  # the package has a function of that name
    monkeypatch.setattr(solver, "choose_damp", lambda weights, *_: (0.3, [2.0] * len(weights)))
    report = compress(lm, AUTO, rows, propagate=propagate, progress=False)
    other = tiny_model()
    compress(other, fixed(0.3), rows, propagate=propagate, progress=False)
    for ours, theirs in zip(lm.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert {layer.damp for layer in report.layers} == {0.3}
    assert len(report.overfitted) == len(report.layers) == len(report.to_dict()["overfitted"])
    assert report.n_tokens == rows.n_tokens and report.calibration == (rows.fingerprint,)


def test_auto_from_statistics_is_auto_from_rows(lm, rows):
    statistics, held_out = (collect_statistics(lm, part, progress=False) for part in rows.hold_out())
    one = compress(lm, AUTO, statistics=statistics, held_out=held_out, progress=False)
    other = compress(tiny_model(), AUTO, rows, propagate="original", progress=False)
    assert [layer.damp for layer in one.layers] == [layer.damp for layer in other.layers]
    assert [a.held_out_ratio for a in one.layers] == pytest.approx([b.held_out_ratio for b in other.layers], rel=1e-3)


def test_ratios_of_a_fixed_damping_are_reported_when_asked_for(lm, rows):
    report = compress(lm, fixed(0.01), rows, hold_out=True, propagate="original", progress=False)
    assert all(layer.held_out_ratio > 0 and layer.damp == 0.01 for layer in report.layers)
    plain = compress(tiny_model(), fixed(0.01), rows, propagate="original", progress=False)
    assert {layer.held_out_ratio for layer in plain.layers} == {None} and plain.overfitted == ()
    assert [a.output_error for a in report.layers] == pytest.approx([b.output_error for b in plain.layers], rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lm, rows, sums: compress(lm, AUTO, statistics=sums), "held_out"),
        (lambda lm, rows, sums: compress(lm, AUTO, rows, held_out=sums), "hold_out"),
        (lambda lm, rows, sums: compress(lm, AUTO, rows.rows(0, 1)), "one row"),
    ],
)
def test_auto_without_held_out_rows_is_refused(lm, rows, make, message):
    before = lm.fingerprint
    with pytest.raises(ColaError, match=message):
        make(lm, rows, collect_statistics(lm, rows, progress=False))
    assert lm.fingerprint == before


def test_a_grid_of_cells_takes_auto(lm, rows, tmp_path):
    sets = [rows, random_tokens_set(lm.tokenizer, 10, 16, seed=1)]
    grids = [
        run_grid(lm, sets, [AUTO], None, ResultStore(tmp_path), dense=False, propagate=propagate, progress=False)
        for propagate in ("original", "compressed", "original")
    ]
    assert [(grid.n_computed, grid.n_read) for grid in grids] == [(2, 0), (2, 0), (0, 2)]
    assert set(grids[0].layers["label"]) == {"gptq 3-bit auto-damp"}


# ------------------------------------------------------------------------------------------- command line


def test_compress_warns_of_layers_that_lose_to_rounding(tmp_path, checkpoint):  # noqa: F811
    common = ["compress", "--model", checkpoint, "--method", "gptq", "--bits", 3, "--no-progress", "--source", "c4"]
    few = run(*common, "--n-samples", 4, "--seq-len", 8, "--damp", 0.001, "--out", tmp_path / "few")
    assert few.exit_code == 0, few.output
    report = json.loads((tmp_path / "few" / "report.json").read_text())
    assert report["overfitted"]
    (warning,) = [line for line in few.stderr.splitlines() if line.startswith("warning: ")]
    assert f"{len(report['overfitted'])} of 21 layers" in warning and "--damp auto" in warning
    worst = max(report["layers"], key=lambda layer: layer["held_out_ratio"])
    assert worst["layer"] in warning

    options = ["--n-samples", 4, "--seq-len", 8, "--damp", 0.001, "--no-layer-errors", "--out", tmp_path / "unjudged"]
    assert "warning" not in run(*common, *options).stderr


def test_compress_chooses_its_damping(tmp_path, checkpoint):  # noqa: F811
    common = ["compress", "--model", checkpoint, "--source", "c4", "--n-samples", 5, "--seq-len", 64, "--no-progress"]
    done = run(*common, "--method", "gptq", "--bits", 3, "--damp", "auto", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["spec"]["damp"] == "auto" and {layer["damp"] for layer in report["layers"]} <= set(DAMPS)
    assert "damping: " in done.stdout and report["n_tokens"] == 5 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--method sparsegpt --damp auto", "--damp is a number"),
        ("--method gptq --damp much", "number or auto"),
        ("--method gptq --damp -1", "above 0"),
        ("--method wanda --damp 0.1", "wanda"),
    ],
)
def test_dampings_that_are_refused(tmp_path, options, message):
    refused = run("compress", "--model", "m", "--source", "c4", "--out", tmp_path / "out", *options.split())
    assert refused.exit_code == 2 and message in refused.stderr


# ----------------------------------------------------------------------------------------- grid and analysis


@pytest.fixture
def grid(lm, tmp_path):
    lm.save(tmp_path / "tiny")
    experiment = Experiment(model=str(tmp_path / "tiny"), seq_len=16, store=tmp_path / "store")
    options = {"draws": 2, "amounts": [5, 10], "blocks": [1], "target_samples": 4, "progress": False}
    first = run_damping(experiment, ["random tokens"], **options)
    again = run_damping(experiment, ["random tokens"], **options)
    assert (first.n_computed, again.n_read, again.n_computed) == (2, 2, 0)
    pd.testing.assert_frame_equal(first.layers, again.layers)
    return experiment, first.layers


def test_the_grid_measures_what_the_library_does(grid):
    experiment, layers = grid
    rows = experiment.calibration("random tokens", 1, 3, n_samples=10)
    spec = method_spec("gptq", bits=3, act_order=True, damp="auto")
    report = compress(experiment.lm, spec, rows, propagate="original", progress=False)
    own = layers[(layers["draw"] == 1) & (layers["amount"] == 10) & (layers["target"] == "random tokens")]
    chosen = own[own["chosen"]].set_index("layer")["damp"].to_dict()
    assert chosen == {each.layer: each.damp for each in report.layers if ".1." in each.layer}
    assert (own.groupby("layer")["damp"].nunique() == len(DAMPS)).all()


@pytest.mark.parametrize("amounts", [[4, 12], [8, 10], [10, 5]])
def test_amounts_without_a_held_out_row_are_refused(amounts):
    with pytest.raises(SpecError, match="amounts"):
        run_damping(Experiment(model="nothing is loaded"), ["c4"], draws=1, amounts=amounts, blocks=[0])


def test_nested_amounts_are_what_each_amount_is_alone(grid):
    experiment, layers = grid
    options = {"draws": 1, "n_draws": 2, "blocks": [1], "target_samples": 4, "progress": False}
    alone = run_damping(experiment, ["random tokens"], amounts=[10], **options).layers
    nested = layers[(layers["draw"] == 0) & (layers["amount"] == 10)].reset_index(drop=True)
    assert alone["ratio"].to_numpy() == pytest.approx(nested["ratio"].to_numpy(), rel=1e-3)
    assert alone["chosen"].equals(nested["chosen"])


def simulated(change: dict[str, float]) -> pd.DataFrame:
    """Layers whose ratio at a damping is that of 0.1 times a change, in four draws with a little noise."""
    noise = np.random.default_rng(0)
    return pd.DataFrame(
        {
            **{"source": source, "target": target, "draw": draw, "amount": 8, "layer": "a.q_proj", "damp": float(damp)},
            "ratio": (0.5 if source == target else 1.2) * factor * np.exp(0.002 * noise.standard_normal()),
            "chosen": damp == "0.3",
        }
        for source in ("c4", "code", "random tokens")
        for target in ("c4", "code", "random tokens", "calibration rows")
        for draw in range(4)
        for damp, factor in change.items()
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"0.1": 1, "0.3": 0.95, "1": 0.9}, "1"),
        ({"0.1": 1, "0.3": 0.995, "1": 1.1}, "0.1"),  # for certain, but less than the margin
        ({"0.1": 1, "0.3": 1.2, "1": 1.3}, "0.1"),
    ],
)
def test_the_book_changes_its_damping_only_for_a_better_one(change, expected):
    layers = simulated(change)
    assert damping_to_use(layers, "0.1", 8) == expected
    found = against(layers, "0.1", 8).set_index(["where", "damp"])
    for damp, factor in change.items():
        row = found.loc["all text", damp]
        assert row["low"] - 1e-9 <= factor - 1 <= row["high"] + 1e-9
    assert found.loc[("all text", "auto"), "value"] == found.loc[("all text", "0.3"), "value"]


def test_relations_are_kept_apart():
    layers = simulated({"0.1": 1.0, "0.3": 1.0})
    table = damping_table(layers).set_index(["where", "damp"])
    assert table.loc[("same source", "0.1"), "value"] == pytest.approx(0.5, rel=0.01)
    assert table.loc[("other source", "0.1"), "value"] == pytest.approx(1.2, rel=0.01)
    assert table.loc[("random tokens", "auto"), "losing"] == 1
    assert losing_layers(layers).to_dict() == {("q_proj", 8, "0.1"): 1.0, ("q_proj", 8, "0.3"): 1.0}


def test_scores_are_means_of_log_ratios(grid):
    _, layers = grid
    scores = draw_scores(layers)
    assert len(scores) == 2 * 2 * 2 * (len(DAMPS) + 1)
    one = layers[(layers["draw"] == 0) & (layers["amount"] == 5) & (layers["target"] == "random tokens")]
    picked = scores[(scores["draw"] == 0) & (scores["amount"] == 5) & (scores["target"] == "random tokens")]
    by_damp = picked.set_index("damp")["score"]
    assert by_damp["0.1"] == pytest.approx(np.log(one.loc[one["damp"] == 0.1, "ratio"]).mean())
    assert by_damp["auto"] == pytest.approx(np.log(one.loc[one["chosen"], "ratio"]).mean())


def test_t_interval():
    values = pd.Series([0.3, 0.1, 0.4, 0.2])
    expected = scipy_stats.t.interval(0.95, 3, values.mean(), scipy_stats.sem(values))
    assert with_t_interval(values)[["low", "high"]].tolist() == pytest.approx(list(expected))
