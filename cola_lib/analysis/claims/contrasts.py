"""Claims about spreads and matrices of conditions: C4, C7 and C10."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from cola_lib.analysis.bootstrap import Draws, Statistic, estimate, rng_of
from cola_lib.analysis.claims.effects import (
    DEFAULT,
    PRUNING,
    QUANTIZATION,
    Array,
    Options,
    among,
    at,
    calibrated,
    combine,
    compare,
    finding_of,
    gain_of,
    parts,
    values_of,
)
from cola_lib.analysis.claims.findings import Finding
from cola_lib.analysis.claims.rules import MARGIN
from cola_lib.analysis.claims.table import DIFFICULTY_MARGIN, SQUARE, VARIANCE
from cola_lib.analysis.scores import condition, score_named
from cola_lib.analysis.variance import source_versus_method
from cola_lib.errors import DataError


def c4_source_as_method(frame: pd.DataFrame, *, options: Options = DEFAULT) -> list[Finding]:
    """Test whether the source accounts for more variance than the method.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores, every method on the same draws of every source. The answer depends on which sources and methods
        are in it: leave controls (random tokens) out, and say which strengths are in.
    options : Options
        How.

    Returns
    -------
    list of Finding
        One for each capability: the source's share of the variance of source and method, see
        :func:`cola_lib.analysis.variance.source_versus_method`; the note has their ratio.

    Examples
    --------
    >>> from cola_lib.analysis import c4_source_as_method, simulated_grid
    >>> conditions = [
    ...     {"source": source, "method": method, "loss": 0.05 + of_source + of_method}
    ...     for source, of_source in {"c4": 0.0, "code": 0.04, "math": 0.08}.items()
    ...     for method, of_method in {"wanda": 0.0, "gptq": 0.01}.items()
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c4_source_as_method(frame):
    ...     print(finding.part, finding.text)
    math 97.6 [92.6, 100.0] % of variance
    """
    findings = []
    for part, rows in parts(calibrated(frame), "capability"):
        found = source_versus_method(
            rows,
            options.score,
            rng=rng_of(options.seed, {"claim": "C4", "part": part}),
            n_boot=options.n_boot,
            level=options.level,
        )
        finding = finding_of("C4", part, found, [rows], unit=VARIANCE)
        # A share lies between 0 and 1; its estimate without bias, and so its interval, may not.
        value, low, high = np.clip([found.value, found.low, found.high], 0.0, 1.0)
        note = f"ratio source / method {_ratio(value)} [{_ratio(low)}, {_ratio(high)}]"
        findings.append(replace(finding, value=float(value), low=float(low), high=float(high), note=note))
    return findings


def _ratio(share: float) -> str:
    return "∞" if share == 1 else f"{share / (1 - share):.2f}"


def c7_language(
    frame: pd.DataFrame,
    *,
    calibrated_on: str = "source",
    evaluated_on: str = "task",
    draws: Draws = "independent",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether calibration in the language of evaluation keeps more than calibration in another one.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of a calibrated-on × evaluated-on matrix.
    calibrated_on, evaluated_on : str
        Columns with the names of the languages; those in both are compared, every other row is left out.
    draws, options
        As in :func:`cola_lib.analysis.claims.c1_length`.

    Returns
    -------
    list of Finding
        One for each method: the gain of matched over the mean of all mismatched calibration, for each evaluated
        language, and then the mean over languages.

    Notes
    -----
    Windows of one document are one item here: their bits and bytes are summed, so the interval is over documents.

    Examples
    --------
    >>> from cola_lib.analysis import c7_language, simulated_grid
    >>> conditions = [
    ...     {"source": source, "capability": target, "loss": 0.05 if source == target else 0.10}
    ...     for source in ("de", "fr")
    ...     for target in ("de", "fr")
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c7_language(frame, evaluated_on="capability")[-1:]:
    ...     print(finding.part, finding.text)
    wanda +4.18 [+3.22, +5.14] % of bits per byte
    """
    rows = calibrated(frame)
    both: set[Any] = set(values_of(rows, calibrated_on)) & set(values_of(rows, evaluated_on))
    languages = sorted(both)
    if len(languages) < 2:
        raise DataError(f"a matrix needs 2 languages calibrated and evaluated on; there are: {languages or 'none'}")
    rows = rows[rows[calibrated_on].isin(languages) & rows[evaluated_on].isin(languages)]
    rows = rows.assign(task=rows[evaluated_on], capability="multilingual")
    gain = gain_of(options.score)

    def matched(*values: Array) -> Array:
        grid = np.stack(np.broadcast_arrays(*values))  # (n_languages calibrated, n_replicates, n_languages evaluated)
        gains = [gain(grid[i, :, i], np.delete(grid[:, :, i], i, axis=0).mean(axis=0)) for i in range(len(languages))]
        return np.mean(gains, axis=0)

    note = f"mean over {len(languages)} languages"
    return [
        combine(
            "C7",
            part,
            [_documents(at(one, calibrated_on, language), options.score) for language in languages],
            matched,
            options,
            draws=draws,
            by_task=True,
            note=note,
        )
        for part, one in parts(rows, "label")
    ]


def _documents(rows: pd.DataFrame, score: str) -> pd.DataFrame:
    """Join the windows of a document, whose ids end in +1, +2 and so on: they are no independent items."""
    document = rows["item"].str.replace(r"\+\d+$", "", regex=True)
    if score != "bits_per_byte" or document.equals(rows["item"]):
        return rows
    rows = rows.assign(item=document)
    keys = [column for column in ("item", "draw", "task", "capability", "cell") if column in rows]
    return rows.groupby(keys, dropna=False, sort=False)[["nll", "n_bytes"]].sum().reset_index()


def c10_difficulty(
    frame: pd.DataFrame,
    *,
    column: str = "level",
    hard: str = "5",
    mixed: str | None = "mixed",
    capability: str = "math",
    draws: Draws = "independent",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether difficulty matters more under pruning, and whether mixed difficulty does as well as hard.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of several levels, for methods of pruning and of quantization.
    column : str
        Column of the level.
    hard : str
        Its highest value.
    mixed : str, optional
        Its value for samples of all levels, which counts as no level; ``None`` leaves the second part out.
    capability : str
        What the claim is about.
    draws, options
        As in :func:`cola_lib.analysis.claims.c1_length`.

    Returns
    -------
    list of Finding
        For each source the difference of variances, and for each method how far hard is ahead of mixed.

    Notes
    -----
    Sensitivity is a size, and a size estimated from noisy means is too large: the method with the noisier draws
    would look the more sensitive with no sensitivity at all. So it is measured by the *variance* of relative scores
    between levels, mean over the methods of a family, from which the part due to draws and items is taken off without
    bias (``unbiased`` in :func:`cola_lib.analysis.bootstrap.estimate`). It may then be negative, and the difference of
    two of them is 0 on average where neither family is sensitive. A slope's absolute value has no such estimate, and
    would miss a sensitivity that is not monotone. A ratio of sensitivities, as the paper gives it, has no interval
    where the smaller one can be 0; the note has both spreads.

    Examples
    --------
    >>> from cola_lib.analysis import c10_difficulty, simulated_grid
    >>> conditions = [
    ...     {"source": "math", "method": method, "level": level, "set": level, "loss": loss if method == "wanda" else 0}
    ...     for method in ("wanda", "gptq")
    ...     for level, loss in {"1": 0.03, "3": 0.06, "5": 0.09}.items()
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c10_difficulty(frame, mixed=None):
    ...     print(finding.part, finding.text)
    pruning − quantization · math +7.587 [+2.456, +12.717] %² of bits per byte
    """
    rows = calibrated(frame, capability)
    findings = []
    for part, one in parts(rows, "capability", "source"):
        found: list[Any] = [level for level in values_of(one, column) if level != mixed]
        levels = sorted(found)
        findings.append(_more_sensitive(f"pruning − quantization · {part}", one, column, levels, draws, options))
    if mixed is None:
        return findings
    for part, one in parts(at(rows, column, [hard, mixed]), "label", "capability", "source"):
        pair = at(one, column, hard), at(one, column, mixed)
        findings.append(
            compare(
                "C10",
                f"hard − mixed · {part}",
                *pair,
                options,
                draws=draws,
                kind="within",
                margin=DIFFICULTY_MARGIN,
            )
        )
    return findings


def _more_sensitive(
    part: str, rows: pd.DataFrame, column: str, levels: list[str], draws: Draws, options: Options
) -> Finding:
    """Variance between levels under pruning less that under quantization."""
    if len(levels) < 2:
        raise DataError(f"sensitivity to difficulty needs 2 levels in column {column!r}; there are: {levels}")
    pruned, quantized = (_level_frames(among(rows, methods), column, levels) for methods in (PRUNING, QUANTIZATION))
    variance, n = _variance_between(len(levels), options.score), len(pruned)

    def difference(*values: Array) -> Array:
        return variance(*values[:n]) - variance(*values[n:])

    spreads = []
    for name, frames in (("pruning", pruned), ("quantization", quantized)):
        found = estimate(
            [condition(one, options.score) for one in frames],
            variance,
            rng=rng_of(options.seed, {"claim": "C10", "part": part, "family": name}),
            draws=_shared(levels, len(frames), draws),
            unbiased=True,
            n_boot=options.n_boot,
        )
        spreads.append(f"{name} {100 * np.sqrt(max(found.value, 0)):.2f} %")
    return combine(
        "C10",
        part,
        [*pruned, *quantized],
        difference,
        options,
        draws=_shared(levels, len(pruned) + len(quantized), draws),
        unbiased=True,
        unit=SQUARE,
        margin=MARGIN**2,
        note=f"standard deviation between {len(levels)} levels: {', '.join(spreads)}",
    )


def _level_frames(rows: pd.DataFrame, column: str, levels: list[str]) -> list[pd.DataFrame]:
    """Rows of each label at each level."""
    return [at(at(rows, "label", label), column, level) for label in rows["label"].unique() for level in levels]


def _shared(levels: list[str], n: int, draws: Draws) -> Draws | list[str]:
    """Calibration sets of a level are in common to all methods."""
    return "paired" if draws == "paired" else levels * (n // len(levels))


def _variance_between(n_levels: int, score: str) -> Statistic:
    """Variance of relative scores between levels, mean over methods; the levels of a method follow one another."""
    relative = score_named(score).relative

    def variance(*values: Array) -> Array:
        grid = np.stack(np.broadcast_arrays(*values))
        grid = grid.reshape(-1, n_levels, grid.shape[-1])  # (n_methods, n_levels, n_replicates)
        return (np.log(grid) if relative else grid).var(axis=1, ddof=1).mean(axis=0)

    return variance
