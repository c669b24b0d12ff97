"""Numbers with their intervals, as text for tables."""

from __future__ import annotations

import pandas as pd

NO_BREAK = "\u00a0"


def with_interval(table: pd.DataFrame, fmt: str = ".2f", *, scale: float = 1.0) -> pd.Series:
    """Write each estimate as ``value [low, high]``.

    Parameters
    ----------
    table : pandas.DataFrame
        Columns ``value``, ``low`` and ``high``.
    fmt : str
        Format of each number.
    scale : float
        What to multiply them by first: 100 for per cent.

    Returns
    -------
    pandas.Series of str
        Without a place to break the line at, indexed as ``table`` is.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import with_interval
    >>> one = pd.DataFrame({"value": [0.784], "low": [0.671], "high": [0.92]})
    >>> with_interval(one, ".0f", scale=100)[0].split()
    ['78', '[67,', '92]']
    """
    parts = [scale * table[name] for name in ("value", "low", "high")]
    text = [f"{v:{fmt}} [{low:{fmt}}, {high:{fmt}}]" for v, low, high in zip(*parts, strict=True)]
    return pd.Series([entry.replace(" ", NO_BREAK) for entry in text], index=table.index, dtype=object)
