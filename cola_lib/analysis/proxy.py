"""What stands in for an evaluation: layer errors on a target's inputs, and measures in activation space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from cola_lib.analysis.permutation import holm
from cola_lib.analysis.ranks import MIN_GROUPS, spearman
from cola_lib.errors import DataError, UnknownNameError

Average = Literal["mean", "geometric"]
AVERAGES: tuple[Average, ...] = ("mean", "geometric")

ON_TARGET = "error_on_"
"""How the columns of layer errors on a target's inputs begin."""

REPRESENTATIVENESS: Mapping[str, int] = {
    "coverage": -1,
    "subspace_share": -1,
    "outlier_overlap": -1,
    "frechet_distance": 1,
    "mmd": 1,
}
"""Measures of a set for a target, and where the loss should go as each one rises: -1 down, 1 up."""

DIVERSITY: Mapping[str, int] = {"effective_rank": -1, "vendi_score": -1, "channel_kurtosis": 1}
"""Measures of a set alone, with the same directions; energy in a few channels is the opposite of diverse."""

NOT_MEASURES = ("eigenvalue",)
"""Features that are a curve, and no number."""


def proxy_table(
    layers: pd.DataFrame,
    targets: Sequence[str] | None = None,
    *,
    by: Sequence[str] = ("source", "draw", "label", "cell"),
    average: Average = "mean",
    weight: str | None = None,
) -> pd.DataFrame:
    """Average the expected output errors of a cell's layers on each target's inputs.

    mean over layers of tr(ΔW·G_t·ΔWᵀ) / tr(W·G_t·Wᵀ), with G_t the Gram matrix of the target's inputs

    Parameters
    ----------
    layers : pandas.DataFrame
        ``GridResult.layers`` of a grid that had targets: one row per cell and layer. Leave rows out to look at some
        layers only.
    targets : sequence of str, optional
        Default: all that the table has.
    by : sequence of str
        Columns to keep; must tell the cells apart. Rows where one is missing are left out: cells that read no
        calibration data have no source.
    average : {"mean", "geometric"}
        Of the layers' errors. The geometric mean lets a factor of two count alike in a good layer and in a bad one.
    weight : str, optional
        Column with each layer's weight in the average. Default: all layers count alike.

    Returns
    -------
    pandas.DataFrame
        One row per cell and target: ``by``, ``capability`` (the target's name, so that the table joins that of
        :func:`cola_lib.analysis.cell_table`) and ``proxy``.

    Raises
    ------
    DataError
        If the table has no targets, an error is missing, two cells have the same labels, or weights are none.
    UnknownNameError
        If there is no such target or average.

    Notes
    -----
    Every layer's error is that of this layer alone, read by the untouched model: what errors do to the layers after
    them is left out.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import proxy_table
    >>> layers = pd.DataFrame({"source": "c4", "draw": 0, "label": "wanda 50%", "cell": "1", "layer": ["q", "k"]})
    >>> proxy_table(layers.assign(error_on_math=[0.1, 0.3]))[["source", "capability", "proxy"]].to_dict("records")
    [{'source': 'c4', 'capability': 'math', 'proxy': 0.2}]
    """
    if average not in AVERAGES:
        raise UnknownNameError("average", str(average), AVERAGES)
    known = [name.removeprefix(ON_TARGET) for name in layers.columns if name.startswith(ON_TARGET)]
    if not known:
        raise DataError(f"the layers have no column {ON_TARGET}...; give the experiment targets")
    for target in targets or ():
        if target not in known:
            raise UnknownNameError("target", target, known)
    chosen = list(dict.fromkeys(targets or known))
    rows = layers.dropna(subset=list(by))
    if "cell" in rows and (rows.groupby(list(by), sort=False)["cell"].nunique() > 1).any():
        raise DataError(f"several cells have the same {', '.join(by)}; name what tells them apart in by")
    errors = rows[[f"{ON_TARGET}{target}" for target in chosen]]
    if errors.isna().any(axis=None):
        column = str(errors.columns[errors.isna().any()][0])
        raise DataError(f"column {column!r} is missing in {int(errors[column].isna().sum())} of {len(rows)} layers")
    weights = _weights(rows, weight)
    geometric = average == "geometric"
    values = errors.clip(lower=np.finfo(float).tiny).apply(np.log) if geometric else errors
    keys = [rows[column] for column in by]
    sums = values.mul(weights, axis=0).groupby(keys, sort=False).sum()
    means = sums.div(weights.groupby(keys, sort=False).sum(), axis=0)
    means = means.apply(np.exp) if geometric else means
    means.columns = pd.Index(chosen, name="capability")
    return pd.Series(means.stack(), name="proxy").reset_index()


def deployment_errors(
    layers: pd.DataFrame, weights: Mapping[str, Mapping[str, float]], baseline: str, *, average: Average = "mean"
) -> pd.DataFrame:
    """Say how much less than a baseline's the layers of each strategy err in each deployment.

    Parameters
    ----------
    layers : pandas.DataFrame
        ``GridResult.layers`` of :meth:`cola_lib.experiments.Experiment.try_strategies`.
    weights : mapping of str to mapping of str to float
        For each deployment, how much each capability counts.
    baseline : str
        A strategy's label.
    average : {"mean", "geometric"}
        Of the layers' errors.

    Returns
    -------
    pandas.DataFrame
        One row per strategy, method, deployment and draw: ``source``, ``label``, ``target``, ``draw``, and ``value``,
        1 − error / error of the baseline under the same method, deployment and draw. A strategy that read no target
        has a row in every deployment.

    Raises
    ------
    DataError
        If the baseline lacks a draw, a method or a deployment that another strategy has.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import deployment_errors
    >>> layers = pd.DataFrame(
    ...     {
    ...         "source": ["random", "cola"],
    ...         "label": "wanda 50%",
    ...         "target": "general",
    ...         "draw": 0,
    ...         "cell": ["1", "2"],
    ...         "layer": "up_proj",
    ...         "error_on_math": [0.10, 0.08],
    ...     }
    ... )
    >>> deployment_errors(layers, {"general": {"math": 1.0}}, "random")[["source", "value"]].round(2).to_dict("records")
    [{'source': 'random', 'value': 0.0}, {'source': 'cola', 'value': 0.2}]
    """
    everywhere = ""  # a table keyed by what is missing would lose the rows
    table = proxy_table(
        layers.assign(target=layers["target"].fillna(everywhere)),
        by=("source", "label", "target", "draw", "cell"),
        average=average,
    ).drop(columns="cell")
    parts = []
    for target, own in weights.items():
        rows = table[table["target"].isin([target, everywhere]) & table["capability"].isin(list(own))]
        weighted = rows.assign(error=rows["proxy"] * rows["capability"].map(dict(own)), target=target)
        parts.append(weighted.groupby(["source", "label", "target", "draw"], sort=False)["error"].sum())
    errors = pd.concat(parts).reset_index()
    base = errors.loc[errors["source"] == baseline].drop(columns="source").rename(columns={"error": "base"})
    joined = errors.merge(base, on=["label", "target", "draw"], how="left", validate="many_to_one")
    if joined["base"].isna().any():
        first = joined[joined["base"].isna()].iloc[0]
        raise DataError(
            f"the baseline {baseline!r} has no error for {first['label']}, {first['target']}, draw {first['draw']}, "
            f"and {first['source']!r} has one: run both on the same methods, deployments and draws"
        )
    joined["value"] = 1 - joined["error"] / joined["base"]
    return joined[["source", "label", "target", "draw", "value"]]


def _weights(rows: pd.DataFrame, weight: str | None) -> pd.Series:
    if weight is None:
        return pd.Series(1.0, rows.index)
    if weight not in rows:
        raise UnknownNameError("column", weight, list(map(str, rows.columns)))
    weights = rows[weight].astype(float)
    if not (weights >= 0).all() or not (weights > 0).any():
        raise DataError(f"column {weight!r} holds no weights: they must not be missing or negative, nor all zero")
    return weights


def measure_table(features: pd.DataFrame, *, by: Sequence[str] = ("source", "draw")) -> pd.DataFrame:
    """Give one number for each calibration set, target and measure in activation space.

    Parameters
    ----------
    features : pandas.DataFrame
        ``frame`` of :func:`cola_lib.experiments.Experiment.activations`.
    by : sequence of str
        Columns that tell the sets apart.

    Returns
    -------
    pandas.DataFrame
        One row per set and target: ``by``, ``capability`` (the target's name) and a column for each measure. A measure
        that was taken of all blocks together is that number, any other its mean over blocks and input groups; a
        measure of the set alone is the same for all targets.

    Raises
    ------
    DataError
        If there is no measure for a target, or a set lacks one that another has.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import measure_table
    >>> features = pd.DataFrame(
    ...     {
    ...         "source": "c4",
    ...         "draw": 0,
    ...         "feature": ["vendi_score", "coverage", "coverage"],
    ...         "block": [-1, 0, 1],
    ...         "group": "output",
    ...         "target": ["", "math", "math"],
    ...         "value": [3.0, 0.5, 0.7],
    ...     }
    ... )
    >>> measure_table(features)[["capability", "vendi_score", "coverage"]].round(2).to_dict("records")
    [{'capability': 'math', 'vendi_score': 3.0, 'coverage': 0.6}]
    """
    rows = features[~features["feature"].isin(NOT_MEASURES)]
    whole = rows[rows["block"] < 0]  # ALL_BLOCKS of cola_lib.activations.features, which needs torch
    parts = rows[~rows["feature"].isin(whole["feature"].unique())]
    wide = pd.concat([whole, parts]).pivot_table(
        index=[*by, "target"], columns="feature", values="value", aggfunc="mean", sort=False
    )
    wide.columns.name = None
    unaimed = "" in wide.index.unique("target")
    alone = pd.DataFrame(wide.xs("", level="target")).dropna(axis=1, how="all") if unaimed else None
    own = wide.drop(index="", level="target", errors="ignore").dropna(axis=1, how="all")
    if own.empty:
        raise DataError("no measure is for a target; give the experiment targets")
    table = own.reset_index().rename(columns={"target": "capability"})
    if alone is not None:
        table = table.merge(alone.reset_index(), on=list(by), how="left", validate="many_to_one")
    missing = table.columns[table.isna().any()]
    if len(missing):
        n_missing = int(table[missing[0]].isna().sum())
        raise DataError(f"measure {missing[0]!r} is missing in {n_missing} of {len(table)} sets and targets")
    return table


def rank_correlations(
    table: pd.DataFrame,
    predictors: Mapping[str, int],
    outcome: str = "loss",
    *,
    groups: str = "source",
    by: Sequence[str] = (),
    within: Sequence[str] = (),
    level: float = 0.95,
) -> pd.DataFrame:
    """Correlate several predictors with one outcome, and correct for their number.

    Parameters
    ----------
    table : pandas.DataFrame
        One row per cell and capability.
    predictors : mapping of str to int
        Columns, with 1 where a high value should go with a high outcome, and -1 where with a low one.
    outcome : str
        Column.
    groups : str
        Column that names the source.
    by : sequence of str
        Columns that split the table.
    within : sequence of str
        Columns: before they are pooled, predictors and outcome are centred and scaled inside each combination. With
        the source among them, what is left is what tells the draws of one source apart.
    level : float
        Coverage of each interval.

    Returns
    -------
    pandas.DataFrame
        One row per part and predictor: ``by``, ``predictor``, ``value``, ``low`` and ``high`` of Spearman's
        coefficient, positive where the predictor is right; ``p_value`` of no correlation, ``p_holm`` (over all rows
        of this table), ``n_cells`` and ``n_groups``. Where there are too few sources for an interval, or nothing
        varies, the coefficient is missing and the interval is all of -1 to 1.

    Raises
    ------
    DataError
        If a column or a value is missing.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from cola_lib.analysis import rank_correlations
    >>> chance = np.random.default_rng(0)
    >>> table = pd.DataFrame({"source": np.repeat(list("abcdef"), 3), "label": "wanda 50%", "capability": "math"})
    >>> table["distance"] = np.arange(18) / 18
    >>> table["loss"] = 0.1 + 0.2 * table["distance"] + chance.normal(0, 0.01, 18)
    >>> rank_correlations(table, {"distance": 1})[["predictor", "n_cells", "n_groups"]].to_dict("records")
    [{'predictor': 'distance', 'n_cells': 18, 'n_groups': 6}]
    """
    columns = [*predictors, outcome]
    for column in [*columns, groups, *by, *within]:
        if column not in table:
            raise DataError(f"the table has no column {column!r}; it has {', '.join(map(str, table.columns))}")
    missing = [column for column in columns if table[column].isna().any()]
    if missing:
        raise DataError(f"column {missing[0]!r} is missing in {table[missing[0]].isna().sum()} of {len(table)} cells")
    values = table[columns].astype(float)
    if within:
        standardized: Any = _standardized  # column by column
        values = values.groupby([table[column] for column in within], sort=False).transform(standardized)
    found = []
    parts = table.groupby(list(by), sort=False) if by else [((), table)]
    for name, rows in parts:
        labels = dict(zip(by, name, strict=True))
        part, names = values.loc[rows.index], rows[groups].to_numpy()
        for predictor, sign in predictors.items():
            one = _correlation(sign * part[predictor].to_numpy(), part[outcome].to_numpy(), names, level)
            found.append({**labels, "predictor": predictor, **one})
    result = pd.DataFrame(found)
    adjusted = holm({str(i): p for i, p in enumerate(result["p_value"])})
    result.insert(list(result.columns).index("p_value") + 1, "p_holm", list(map(float, adjusted)))
    return result


def _standardized(values: pd.Series) -> pd.Series:
    centred, spread = values - values.mean(), values.std(ddof=0)
    # What rounding leaves of equal values is no variation.
    return centred / spread if spread > 1e-9 * values.abs().max() else 0.0 * centred


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64], names: NDArray, level: float) -> dict[str, float]:
    sources = np.unique(names)
    counts = {"n_cells": len(x), "n_groups": len(sources)}
    left = [np.ptp(side[names != name]) for side in (x, y) for name in sources] if len(sources) > 1 else [0.0]
    if len(sources) < MIN_GROUPS or min(left) == 0:
        return {"value": np.nan, "low": -1.0, "high": 1.0, "p_value": 1.0, **counts}
    one = spearman(x, y, names, level=level)
    return {"value": one.value, "low": one.low, "high": one.high, "p_value": one.p_value, **counts}


def needed_correlation(null: float, n_cells: int, n_groups: int, *, level: float = 0.95) -> float:
    """Give the smallest rank correlation whose interval can lie above a bound, at best.

    Parameters
    ----------
    null : float
        The bound, between -1 and 1.
    n_cells, n_groups : int
        Cells, and the sources that they come from.
    level : float
        Coverage.

    Returns
    -------
    float
        With the interval of :func:`cola_lib.analysis.spearman` at its narrowest, where sources agree as well as
        independent cells would. Not a number if even equal ranks would not do.

    Examples
    --------
    >>> from cola_lib.analysis import needed_correlation
    >>> round(needed_correlation(0.0, n_cells=30, n_groups=10), 2), round(needed_correlation(0.8, 30, 10), 2)
    (0.43, 0.92)
    """
    if n_groups < MIN_GROUPS or n_cells < 4:
        return float("nan")
    quantile = stats.t.ppf((1 + level) / 2, n_groups - 1)

    def above(value: float) -> float:
        se = np.sqrt((1 + value**2 / 2) / (n_cells - 3))
        return float(np.arctanh(value) - quantile * se - np.arctanh(null))

    best = 1 - 6 / (n_cells * (n_cells**2 - 1))
    return float(optimize.brentq(above, null, best)) if above(best) > 0 else float("nan")
