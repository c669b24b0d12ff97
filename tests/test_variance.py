"""The share of variance between sources is the one that the data were made with."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import approx_fprime, minimize

from cola_lib.analysis import source_share, source_versus_method, variance_components
from cola_lib.analysis.variance import _restricted, _Strata
from cola_lib.errors import DataError


def frame(between, within, n_sources=40, n_draws=5, n_items=4, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for s in range(n_sources):
        level = rng.normal(0, between)
        for d in range(n_draws):
            shift = level + rng.normal(0, within)
            rows += [
                {"source": f"s{s:02d}", "draw": d, "item": i, "task": "t", "capability": "math",
                 "bits_per_byte": 5 + shift, "nll": (5 + shift) * np.log(2) * 10, "n_bytes": 10}
                for i in range(n_items)
            ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("between,within,share", [(1.0, 0.5, 0.8), (0.5, 0.5, 0.5), (0.0, 1.0, 0.0), (1.0, 0.0, 1.0)])
def test_the_share_is_found(between, within, share):
    assert source_share(frame(between, within)) == pytest.approx(share, abs=0.12)


def test_it_is_without_bias_where_there_are_few_draws():
    shares = [source_share(frame(0.5, 0.5, n_sources=30, n_draws=2, seed=seed)) for seed in range(40)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)


def test_one_source_or_unequal_draws_are_refused():
    with pytest.raises(DataError, match="needs 2 sources"):
        source_share(frame(1, 1, n_sources=1))
    unequal = frame(1, 1, n_sources=2)
    with pytest.raises(DataError, match="equally many draws"):
        source_share(unequal[~((unequal["source"] == "s00") & (unequal["draw"] == 4))])


# -- crossed components


def crossed(seed=0, S=6, M=4, D=4, n_items=24, **spread):
    """Losses as shares of a dense score of 1, from crossed effects of known spread; and the effects of cells."""
    sd = {"source": 0.04, "method": 0.06, "both": 0.01, "draw": 0.02, "cell": 0.01, "item": 0.1, "rest": 0.05, **spread}
    rng = np.random.default_rng(seed)
    cells = (
        rng.normal(0, sd["source"], (S, 1)) + rng.normal(0, sd["method"], (1, M)) + rng.normal(0, sd["both"], (S, M))
    )
    loss = cells[:, :, None] + rng.normal(0, sd["draw"], (S, 1, D)) + rng.normal(0, sd["cell"], (S, M, D))
    items = 1.3 + loss[..., None] + rng.normal(0, sd["item"], n_items) + rng.normal(0, sd["rest"], (S, M, D, n_items))
    s, m, d, i = (axis.ravel() for axis in np.indices(items.shape))
    rows = {"source": [f"s{x}" for x in s], "label": [f"m{x}" for x in m], "draw": d, "bits_per_byte": items.ravel()}
    dense = {"source": None, "label": "dense", "draw": None, "bits_per_byte": np.ones(n_items)}
    frame = pd.concat([pd.DataFrame(rows), pd.DataFrame(dense)], ignore_index=True)
    index = np.concatenate([i, np.arange(n_items)])
    return frame.assign(
        method=frame["label"],
        capability="math",
        item=[f"i{x:02d}" for x in index],
        task=[f"t{x % 2}" for x in index],
        n_bytes=10,
        nll=frame["bits_per_byte"] * np.log(2) * 10,
    ), cells


def test_components_are_those_of_the_data():
    found = pd.DataFrame(
        [variance_components(crossed(seed, 8, 8)[0]).set_index("component")["variance"] for seed in range(12)]
    ).mean()
    truth = {"source": 0.04, "method": 0.06, "source x method": 0.01, "draw": 0.02, "residual": 0.01, "item": 0.1}
    truth["item x cell"] = 0.05
    for name, sd in truth.items():
        loose = 0.4 if name in ("source", "method", "item") else 0.2  # 12 times 7 degrees of freedom, 12 times 23
        assert found[name] == pytest.approx(sd**2, rel=loose), name


def dense_deviance(grid, components):
    """Minus twice the restricted log-likelihood from whole matrices; one (method, draw) array for each source."""
    cells = [(s, m, d) for s, one in enumerate(grid) for m, d in np.ndindex(one.shape)]
    y = np.array([grid[s][m, d] for s, m, d in cells])
    shared = [[0], [1], [0, 1], [0, 2], [0, 1, 2]]  # what two cells have in common to share each component
    V = sum(
        variance * np.array([[all(a[i] == b[i] for i in axes) for b in cells] for a in cells])
        for variance, axes in zip(components, shared, strict=True)
    )
    inverse, ones = np.linalg.inv(V), np.ones(len(y))
    information = ones @ inverse @ ones
    rest = y - (ones @ inverse @ y) / information
    return np.linalg.slogdet(V)[1] + np.log(information) + rest @ inverse @ rest


@pytest.mark.parametrize("draws", [[3, 3, 3], [2, 4, 3, 2]])
def test_the_likelihood_is_that_of_the_whole_covariance_matrix(draws):
    rng = np.random.default_rng(len(draws))
    grid = [rng.normal(size=(4, n)) for n in draws]
    strata = _Strata.of(grid)
    points = rng.uniform(0.1, 2, (4, 5))
    constants = [dense_deviance(grid, at) - strata.deviance(at)[0] for at in points]
    assert np.ptp(constants) < 1e-9
    for at in points:
        slope = approx_fprime(at, lambda x: strata.deviance(x)[0], 1e-7)
        np.testing.assert_allclose(strata.deviance(at)[1], slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_no_other_components_are_more_likely(seed):
    """With components at 0, draws that differ in number, and starts all over the place."""
    rng = np.random.default_rng(seed)
    n_sources, n_methods = rng.integers(2, 7), rng.integers(2, 5)
    spread = rng.choice([0, 0.1, 1, 3], 4)
    of_method = rng.normal(0, 1, (n_methods, 1)) * spread[1]
    grid = [
        rng.normal() * spread[0]
        + of_method
        + rng.normal(0, 1, (n_methods, 1)) * spread[2]
        + rng.normal(0, 1, (1, n)) * spread[3]
        + rng.normal(0, 0.2, (n_methods, n))
        for n in (rng.integers(2, 6, n_sources) if seed % 2 else np.full(n_sources, 3))
    ]
    scale = np.concatenate([one.ravel() for one in grid]).std(ddof=1)
    strata = _Strata.of([one / scale for one in grid])
    found = np.array(list(_restricted(grid).values())) / scale**2
    bounds = [(0, None)] * 4 + [(1e-6, None)]
    others = [
        minimize(strata.deviance, rng.uniform(0.001, 2, 5), jac=True, method="L-BFGS-B", bounds=bounds).fun
        for _ in range(6)
    ]
    assert strata.deviance(found)[0] < min(others) + 1e-6
    again = np.array(list(_restricted([one[::-1] * 1000 + 5 for one in grid]).values()))
    np.testing.assert_allclose(again / 1e6, found * scale**2, rtol=1e-5, atol=1e-9)


def test_cells_without_a_residual_are_refused_unless_the_closed_form_holds():
    rng = np.random.default_rng(0)
    additive = [rng.normal() + rng.normal(size=(3, 1)) + rng.normal(size=(1, n)) for n in (2, 3, 4)]
    with pytest.raises(DataError, match="did not converge"):
        _restricted(additive)


def test_restricted_likelihood_is_the_analysis_of_variance_where_that_is_positive():
    frame, _ = crossed(3)
    table = variance_components(frame)
    found = table.set_index("component")["variance"]
    assert table["share"].sum() == pytest.approx(1)
    cells = frame[frame["source"].notna()].groupby(["source", "label", "draw"])["bits_per_byte"].mean()
    grid = cells.to_numpy().reshape(6, 4, 4)  # (source, method, draw)
    mean = grid.mean(axis=2)
    rest = mean - mean.mean(1, keepdims=True) - mean.mean(0) + mean.mean()
    ms_both = 4 * (rest**2).sum() / (5 * 3)
    ms_method = 6 * 4 * mean.mean(0).var(ddof=1)
    assert found["method"] == pytest.approx((ms_method - ms_both) / (6 * 4), rel=1e-9)
    within = grid - mean[..., None]
    draws = within.mean(axis=1, keepdims=True)
    ms_rest = ((within - draws) ** 2).sum() / (6 * 3 * 3)
    ms_draw = 4 * (draws**2).sum() / (6 * 3)
    assert found["draw"] == pytest.approx((ms_draw - ms_rest) / 4, rel=1e-9)


def test_a_component_may_be_nothing():
    table = variance_components(crossed(1, both=0.0, source=0.0, draw=0.0)[0]).set_index("component")
    assert (table["variance"] >= 0).all() and table["share"]["source"] < 0.01 and table["share"]["draw"] < 0.01


def truth_of(cells):
    both = cells - cells.mean(1, keepdims=True) - cells.mean(0) + cells.mean()
    both = (both**2).sum() / ((cells.shape[0] - 1) * (cells.shape[1] - 1))
    source, method = (
        cells.mean(1).var(ddof=1) - both / cells.shape[1],
        cells.mean(0).var(ddof=1) - both / cells.shape[0],
    )
    return source / (source + method)


def test_the_interval_of_the_share_covers_that_of_these_sources_and_methods():
    hits, errors = 0, []
    for seed in range(40):
        frame, cells = crossed(seed, S=4, M=3, D=4, n_items=12)
        found = source_versus_method(frame, rng=np.random.default_rng(seed), n_boot=200)
        hits += found.low <= truth_of(cells) <= found.high
        errors.append(found.value - truth_of(cells))
    assert hits >= 36
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(len(errors)) + 0.01


def test_a_grid_with_holes_is_refused():
    frame, _ = crossed(0, S=2, M=2, D=2, n_items=4)
    with pytest.raises(DataError, match="m1 on s0 is missing"):
        variance_components(frame[~((frame["source"] == "s0") & (frame["label"] == "m1"))])
    with pytest.raises(DataError, match="same draws"):
        variance_components(frame[~((frame["source"] == "s0") & (frame["label"] == "m1") & (frame["draw"] == 1))])
    with pytest.raises(DataError, match="2 sources and 2 methods; there are 1 and 2"):
        source_versus_method(frame[frame["source"] != "s1"], rng=np.random.default_rng(0))
    with pytest.raises(DataError, match="no sum over items"):
        variance_components(frame, "calibration_error")
    with pytest.raises(DataError, match="no variance to take apart"):
        variance_components(frame.assign(bits_per_byte=1.0))
