"""Many ways of choosing against one another: gains over all tasks, mean ranks, and when these are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from cola_lib.analysis.bootstrap import estimate, rng_of
from cola_lib.analysis.estimates import Estimate, half_width
from cola_lib.analysis.scores import Condition, condition, less_is_better
from cola_lib.errors import DataError


@dataclass(frozen=True)
class Ranking:
    """Competitors in the order of their mean ranks."""

    table: pd.DataFrame
    critical_difference: float
    p_value: float
    n_blocks: int


def mean_ranks(
    scores: pd.DataFrame,
    *,
    competitor: str = "source",
    block: str = "draw",
    within: Sequence[str] = ("label", "capability"),
    value: str = "value",
    level: float = 0.95,
) -> Ranking:
    """Rank competitors within each task, and average.

    Parameters
    ----------
    scores : pandas.DataFrame
        One row per competitor, block and task; lower values are better.
    competitor, block : str
        Columns. Blocks are what would be drawn anew if all were repeated: the disjoint pools.
    within : sequence of str
        Columns that make a task: methods and capabilities. Ranks are averaged over tasks before anything is tested,
        because tasks of one block share their calibration sets and are no independent repetitions.
    value : str
        Column.
    level : float
        Of the interval and of the critical difference.

    Returns
    -------
    Ranking

    Raises
    ------
    DataError
        If a competitor is missing in a task, or there are fewer than 3 competitors or 2 blocks.

    References
    ----------
    Demšar, "Statistical Comparisons of Classifiers over Multiple Data Sets", JMLR 7, 2006: Friedman's test with
    Nemenyi's critical difference.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import mean_ranks
    >>> scores = pd.DataFrame({"source": ["cola", "random", "zipcal"] * 3, "draw": [0] * 3 + [1] * 3 + [2] * 3})
    >>> scores = scores.assign(label="wanda", capability="math", value=[1.0, 1.2, 1.1, 1.0, 1.3, 1.2, 1.1, 1.2, 1.3])
    >>> mean_ranks(scores).table[["source", "rank"]].round(2).to_dict("records")
    [{'source': 'cola', 'rank': 1.0}, {'source': 'zipcal', 'rank': 2.33}, {'source': 'random', 'rank': 2.67}]
    """
    tasks = scores.pivot_table(index=[block, *within], columns=competitor, values=value, aggfunc="mean")
    n_competitors, n_blocks = tasks.shape[1], tasks.index.get_level_values(block).nunique()
    if n_competitors < 3 or n_blocks < 2:
        raise DataError(
            f"ranks need at least 3 competitors and 2 blocks, and there are {n_competitors} and {n_blocks} ({block})"
        )
    if tasks.isna().any(axis=None):
        missing = tasks.columns[tasks.isna().any()][0]
        where = tasks.index[tasks[missing].isna()][0]
        raise DataError(f"{competitor} {missing!r} has no score at {where}, where others have one")
    ranks = tasks.round(12).rank(axis=1).groupby(level=block).mean()  # (n_blocks, n_competitors)
    spread = ranks.std(ddof=1) / np.sqrt(n_blocks) * stats.t.ppf((1 + level) / 2, n_blocks - 1)
    mean = ranks.mean()
    first = ranks.eq(ranks.min(axis=1), axis=0).mean()
    table = pd.DataFrame({"rank": mean, "low": mean - spread, "high": mean + spread, "best": first})
    table[["low", "high"]] = table[["low", "high"]].clip(1, n_competitors)
    studentized = stats.studentized_range.ppf(level, n_competitors, np.inf) / np.sqrt(2)
    critical = studentized * np.sqrt(n_competitors * (n_competitors + 1) / (6 * n_blocks))
    p_value = stats.friedmanchisquare(*ranks.to_numpy().T).pvalue
    table = table.sort_values("rank", kind="stable").rename_axis(competitor).reset_index()
    return Ranking(table, float(critical), float(p_value), n_blocks)


def overall_gains(
    frame: pd.DataFrame,
    baseline: str,
    *,
    competitor: str = "source",
    method: str = "label",
    score: str = "bits_per_byte",
    level: float = 0.95,
    n_boot: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Gain of each competitor over one of them, averaged over all methods and capabilities.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of calibrated cells, from :func:`cola_lib.experiments.run_grid` or a store. Draw *k* of one competitor and
        draw *k* of another belong together: they chose from the same pool.
    baseline : str
        The competitor that the others are compared with.
    competitor, method : str
        Columns.
    score : str
        A score of which less is better.
    level, n_boot
        As in :func:`~cola_lib.analysis.difference`.
    seed : int
        Of the resamples.

    Returns
    -------
    pandas.DataFrame
        Best first, one row per competitor but the baseline: ``value`` is the mean over methods and capabilities of
        1 - score / the baseline's; the other fields of :class:`~cola_lib.analysis.Estimate`, ``p_value``, and
        ``least``, the lowest of the gains that are averaged.

    Raises
    ------
    DataError
        If the baseline is missing, or a competitor was not measured with the same methods, capabilities and draws; or
        if more of the score is better.

    Notes
    -----
    All tasks of a draw share its calibration sets, so draws count once: their variance is that of the draws' own
    averages. Methods share the items of a capability, and are resampled together; capabilities share none.

    Examples
    --------
    >>> from cola_lib.analysis import overall_gains, simulated_grid
    >>> tasks = [{"method": method, "capability": name} for method in ("wanda", "gptq") for name in ("math", "code")]
    >>> losses = {"random": 0.10, "cola": 0.05}
    >>> frame = simulated_grid([{"source": s, "loss": loss} | task for s, loss in losses.items() for task in tasks])
    >>> found = overall_gains(frame[frame["source"].notna()], "random")
    >>> found[["source", "value"]].round(2).to_dict("records"), bool(found["low"][0] > 0)
    ([{'source': 'cola', 'value': 0.04}], True)
    """
    less_is_better(score)
    found: dict[str, dict[tuple[str, str], Condition]] = {}
    for (name, label, capability), rows in frame.groupby([competitor, method, "capability"], sort=False):
        found.setdefault(str(name), {})[str(label), str(capability)] = condition(rows, score)
    if baseline not in found:
        raise DataError(f"there is no {competitor} {baseline!r} to compare with; there are {', '.join(found)}")
    gains = []
    for name, own in found.items():
        if name == baseline:
            continue
        _check_matched(name, own, baseline, found[baseline])
        gain, least = _overall(own, found[baseline], rng=rng_of(seed, {competitor: name}), level=level, n_boot=n_boot)
        gains.append({competitor: name, **asdict(gain), "p_value": gain.p_value, "least": least})
    if not gains:
        raise DataError(f"there is no {competitor} beside {baseline!r}")
    return pd.DataFrame(gains).sort_values("value", ascending=False, kind="stable", ignore_index=True)


Task = tuple[str, str]
"""A method's label and a capability."""


def _check_matched(name: str, own: dict[Task, Condition], baseline: str, base: dict[Task, Condition]) -> None:
    """Refuse what was not measured on the same tasks, on the same draws."""
    if own.keys() != base.keys():
        one_sided = sorted(own.keys() ^ base.keys())[0]
        raise DataError(f"{name!r} and {baseline!r} are not measured on the same tasks: one lacks {one_sided}")
    for task, one in own.items():
        if one.draws != base[task].draws:
            raise DataError(
                f"{name!r} and {baseline!r} have different draws at {task}: {one.draws}, {base[task].draws}"
            )


def _overall(
    own: dict[Task, Condition], base: dict[Task, Condition], *, rng: np.random.Generator, level: float, n_boot: int
) -> tuple[Estimate, float]:
    """Mean gain over all tasks, and the least gain on one."""

    def mean_gain(*scores: NDArray[np.float64]) -> NDArray[np.float64]:
        half = len(scores) // 2
        return np.mean([1 - a / b for a, b in zip(scores[:half], scores[half:], strict=True)], axis=0)

    of_capability, by_draw = [], []
    for capability in dict.fromkeys(capability for _, capability in own):
        tasks = [task for task in own if task[1] == capability]
        conditions = [own[task] for task in tasks] + [base[task] for task in tasks]
        of_capability.append(estimate(conditions, mean_gain, rng=rng, draws="paired", n_boot=n_boot, level=level))
        by_draw.append(mean_gain(*(one.by_draw() for one in conditions)))
    value = float(np.mean([one.value for one in of_capability]))
    n_draws = len(by_draw[0])
    of_draws = float(np.mean(by_draw, axis=0).var(ddof=1) / n_draws) if n_draws > 1 else 0.0
    of_items = np.array([one.se_items**2 for one in of_capability]) / len(of_capability) ** 2
    dof_items = np.array([one.dof_items for one in of_capability])
    freedom = float(of_items.sum() ** 2 / (of_items**2 / dof_items).sum()) if of_items.any() else 1.0
    half = half_width([(of_draws, max(n_draws - 1, 1)), (float(of_items.sum()), freedom)], level)
    gain = Estimate(
        value=value,
        low=value - half,
        high=value + half,
        se_draws=of_draws**0.5,
        se_items=float(of_items.sum()) ** 0.5,
        n_draws=n_draws,
        n_items=sum(one.n_items for one in of_capability),
        level=level,
        over="draws and items" if n_draws > 1 else "items",
        dof_draws=max(n_draws - 1, 1),
        dof_items=freedom,
    )
    return gain, float(min(1 - one.value()[0] / base[task].value()[0] for task, one in own.items()))
