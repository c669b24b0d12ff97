"""Many ways of choosing against one another: mean ranks, and how far apart they must be to be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cola_lib.errors import DataError


@dataclass(frozen=True)
class Ranking:
    """Competitors in the order of their mean ranks.

    Parameters
    ----------
    table : pandas.DataFrame
        Best first: the competitor, ``rank`` (1 is best, mean over all), ``low`` and ``high`` (95 % interval over
        blocks) and ``best`` (share of blocks in which it came first).
    critical_difference : float
        Two mean ranks that differ by less are not told apart (Nemenyi).
    p_value : float
        Of there being no difference at all (Friedman).
    n_blocks : int
        Independent repetitions.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import mean_ranks
    >>> scores = pd.DataFrame({"source": list("abc") * 4, "draw": [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3})
    >>> scores = scores.assign(label="wanda", capability="math", value=[1.0, 2.0, 3.0] * 4)
    >>> ranking = mean_ranks(scores)
    >>> ranking.table["source"].tolist(), ranking.n_blocks
    (['a', 'b', 'c'], 4)
    """

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
    ranks = tasks.rank(axis=1).groupby(level=block).mean()  # (n_blocks, n_competitors)
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
