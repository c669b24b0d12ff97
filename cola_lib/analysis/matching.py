"""Squares of what is calibrated on and what is evaluated on."""

from __future__ import annotations

import pandas as pd

from cola_lib.analysis.retention import cell_table
from cola_lib.errors import DataError


def matched_gains(frame: pd.DataFrame) -> pd.DataFrame:
    """Gain of every calibration over the mean of all mismatched ones, on the same text.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores in which ``source`` names what was calibrated on and ``capability`` what is evaluated on, in the
        same words; the dense model's rows included.

    Returns
    -------
    pandas.DataFrame
        One row per ``label``, ``source`` and ``capability``: ``value`` is the share of bits per byte saved against the
        mean over mismatched sources, all draws averaged. No interval: that is for the mean of the diagonal, see
        :func:`cola_lib.analysis.claims.c7_language`.

    Raises
    ------
    DataError
        If nothing that is evaluated on has a mismatched source.

    Examples
    --------
    >>> from cola_lib.analysis import matched_gains, simulated_grid
    >>> conditions = [
    ...     {"source": source, "capability": target, "loss": 0.05 if source == target else 0.10}
    ...     for source in ("de", "fr")
    ...     for target in ("de", "fr")
    ... ]
    >>> gains = matched_gains(simulated_grid(conditions))
    >>> gains.loc[gains["source"] == gains["capability"], "value"].gt(0).all().item()
    True
    """
    by = ["label", "source", "capability"]
    bits = cell_table(frame).groupby(by, sort=False, as_index=False)["value"].mean()
    mismatched = bits[bits["source"] != bits["capability"]]
    if mismatched.empty:
        raise DataError("every source is matched: a gain needs two sources that evaluate on one another")
    mean = mismatched.groupby(["label", "capability"])["value"].mean().rename("mean")
    bits = bits.join(mean, on=["label", "capability"])
    return bits.assign(value=1 - bits["value"] / bits["mean"]).drop(columns="mean")
