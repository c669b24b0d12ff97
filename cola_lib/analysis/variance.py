"""How much of the variation between compressed models lies between the sources they were calibrated on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cola_lib.analysis.scores import condition, same_items
from cola_lib.errors import DataError


def source_share(
    frame: pd.DataFrame, score: str = "bits_per_byte", *, source: str = "source", draw: str = "draw"
) -> float:
    """Share of the variance of scores that lies between sources, and not between draws of one source.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows of one capability and one method, several sources, equally many draws of each.
    score : str
        One of :data:`cola_lib.analysis.scores.SCORES`.
    source, draw : str
        Columns.

    Returns
    -------
    float
        Between 0 and 1: the intraclass correlation of a draw's score within its source, from the one-way analysis of
        variance without bias; a negative estimate counts as 0.

    Raises
    ------
    DataError
        If there are fewer than 2 sources or 2 draws, or sources differ in their number of draws.

    References
    ----------
    Shrout and Fleiss, "Intraclass correlations: uses in assessing rater reliability", Psychological Bulletin 86,
    1979, case 1.
    """
    conditions = [condition(rows, score, draw=draw) for _, rows in frame.groupby(source, sort=True)]
    counts = {one.n_draws for one in conditions}
    if len(conditions) < 2 or len(counts) > 1 or min(counts) < 2:
        raise DataError(f"a share of variance needs 2 sources with equally many draws, at least 2; draws: {counts}")
    same_items(conditions)
    scores = np.stack([one.by_draw() for one in conditions])  # (n_sources, n_draws)
    within = scores.var(axis=1, ddof=1).mean()
    between = max(scores.mean(axis=1).var(ddof=1) - within / scores.shape[1], 0.0)
    return float(between / (between + within)) if between + within > 0 else 0.0
