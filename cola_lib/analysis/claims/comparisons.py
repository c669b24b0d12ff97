"""Claims that one kind of calibration data is better than another: C1, C2, C3, C5, C6, C8 and C9."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial, reduce
from types import MappingProxyType

import numpy as np
import pandas as pd

from cola_lib.analysis.bootstrap import Draws
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
    gain_of,
    parts,
)
from cola_lib.analysis.claims.findings import Finding

DOMAINS: Mapping[str, str] = MappingProxyType({"commonsense": "commonsense", "math": "math", "code": "mbpp"})
"""For each capability, the source of its domain."""


def c1_length(
    frame: pd.DataFrame,
    long: int = 2048,
    short: int = 128,
    *,
    capability: str = "math",
    method: str = "sparsegpt",
    column: str = "seq_len",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether long samples keep more, and more so under pruning than under quantization.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of both lengths, for ``method``, and for at least one method of pruning and one of quantization.
        Filter it to equal numbers of tokens if that is what is to be compared.
    long, short : int
        Values of ``column``.
    capability, method : str
        What the claim is about.
    column : str
        Column of the length.
    draws : {"independent", "paired"}
        ``"paired"`` is right wherever both lengths have draws of the same names, whether or not draws of one name have
        text in common; ``"independent"`` only if they have not.
    options : Options
        How.

    Returns
    -------
    list of Finding
        For each source, one for each strength of ``method``, and the difference of the mean relative gain
        between pruning and quantization.

    Examples
    --------
    >>> from cola_lib.analysis import c1_length, simulated_grid
    >>> conditions = [
    ...     {"source": "c4", "method": method, "label": method, "seq_len": seq_len, "set": seq_len, "loss": loss}
    ...     for method in ("sparsegpt", "gptq")
    ...     for seq_len, loss in {128: 0.10, 2048: 0.05}.items()
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c1_length(frame):
    ...     print(finding.part, finding.text)
    sparsegpt · math +5.15 [+4.04, +6.27] % of bits per byte
    pruning − quantization · math -0.03 [-1.35, +1.29] % of bits per byte
    """
    rows = at(calibrated(frame, capability), column, [long, short])
    findings = []
    for part, one in parts(among(rows, [method]), "label", "capability", "source"):
        pair = at(one, column, long), at(one, column, short)
        findings.append(compare("C1", part, *pair, options, draws=draws))
    for part, one in parts(rows, "capability", "source"):
        findings.append(_steeper(f"pruning − quantization · {part}", one, long, short, column, draws, options))
    return findings


def _steeper(
    part: str, rows: pd.DataFrame, long: int, short: int, column: str, draws: Draws, options: Options
) -> Finding:
    """Mean gain under pruning minus mean gain under quantization; a method's sets are those of all others."""
    families = [among(rows, methods)["label"].unique() for methods in (PRUNING, QUANTIZATION)]
    labels = np.concatenate(families)
    frames = [at(at(rows, "label", label), column, length) for label in labels for length in (long, short)]
    gain, n = gain_of(options.score), len(families[0])

    def difference(*values: Array) -> Array:
        gains = [gain(better, worse) for better, worse in zip(values[::2], values[1::2], strict=True)]
        return reduce(np.add, gains[:n]) / n - reduce(np.add, gains[n:]) / (len(gains) - n)

    together = "paired" if draws == "paired" else [length for _ in labels for length in (long, short)]
    return combine("C1", part, frames, difference, options, draws=together)


def c2_amount(
    frame: pd.DataFrame,
    n_from: int = 128,
    n_to: int = 512,
    *,
    column: str = "n_samples",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether more samples make no difference, which takes an interval inside the margin.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of both amounts.
    n_from, n_to : int
        Values of ``column``.
    column : str
        Column of the amount.
    draws, options
        As in :func:`c1_length`.

    Returns
    -------
    list of Finding
        One for each method, capability and source.

    Examples
    --------
    >>> from cola_lib.analysis import c2_amount, simulated_grid
    >>> conditions = [{"source": "c4", "n_samples": n, "set": n, "loss": 0.05} for n in (128, 512)]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c2_amount(frame):
    ...     print(finding.part, finding.text)
    wanda · math +0.65 [-0.54, +1.85] % of bits per byte
    """
    rows = at(calibrated(frame), column, [n_from, n_to])
    return [
        compare("C2", part, at(one, column, n_to), at(one, column, n_from), options, draws=draws, kind="within")
        for part, one in parts(rows, "label", "capability", "source")
    ]


def c3_code_not_monotone(
    frame: pd.DataFrame,
    few: int = 16,
    many: int = 128,
    *,
    capability: str = "code",
    methods: tuple[str, ...] = ("awq", "gptq"),
    column: str = "n_samples",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether few samples keep more code than many.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of both amounts.
    few, many : int
        Values of ``column``.
    capability : str
        What the claim is about.
    methods : tuple of str
        Whatever their strength.
    column : str
        Column of the amount.
    draws, options
        As in :func:`c1_length`.

    Returns
    -------
    list of Finding
        One for each label of the methods and each source.

    Examples
    --------
    >>> from cola_lib.analysis import c3_code_not_monotone, simulated_grid
    >>> conditions = [
    ...     {"source": "c4", "method": "gptq", "capability": "code", "n_samples": n, "set": n, "loss": loss}
    ...     for n, loss in {16: 0.05, 128: 0.08}.items()
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c3_code_not_monotone(frame, methods=("gptq",)):
    ...     print(finding.part, finding.text)
    gptq · code +2.15 [+1.00, +3.29] % of bits per byte
    """
    rows = among(at(calibrated(frame, capability), column, [few, many]), methods)
    return [
        compare("C3", part, at(one, column, few), at(one, column, many), options, draws=draws)
        for part, one in parts(rows, "label", "capability", "source")
    ]


def c5_source_ranks(
    frame: pd.DataFrame,
    web: str = "c4",
    encyclopedia: str = "wikipedia",
    *,
    mix: str | None = None,
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether web text keeps more code and mathematics than an encyclopedia.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of the sources, under whatever methods.
    web, encyclopedia : str
        Values of ``source``.
    mix : str, optional
        Source that stands for a cleaned web mix; default is ``web``, and the finding says so.
    options : Options
        How.

    Returns
    -------
    list of Finding
        For each method one on code and one on math.

    Examples
    --------
    >>> from cola_lib.analysis import c5_source_ranks, simulated_grid
    >>> conditions = [
    ...     {"source": source, "capability": capability, "loss": loss}
    ...     for source, loss in {"c4": 0.05, "wikipedia": 0.09}.items()
    ...     for capability in ("code", "math")
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c5_source_ranks(frame):
    ...     print(finding.part, finding.text)
    wanda · code +3.49 [+1.77, +5.22] % of bits per byte
    wanda · math +4.30 [+2.72, +5.87] % of bits per byte
    """
    stand_in = "" if mix else f"{web} stands in for the paper's cleaned web mix (SlimPajama)"
    findings = []
    for capability, source, note in (("code", web, ""), ("math", mix or web, stand_in)):
        rows = at(calibrated(frame, capability), "source", [source, encyclopedia])
        for part, one in parts(rows, "label", "capability"):
            pair = at(one, "source", source), at(one, "source", encyclopedia)
            findings.append(compare("C5", part, *pair, options, draws="independent", note=note))
    return findings


def c6_reasoning(
    frame: pd.DataFrame,
    reasoning: str = "question_reasoning",
    plain: str = "question_answer",
    *,
    column: str = "format",
    capability: str = "math",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether calibration samples with a reasoning chain keep more mathematics.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of both formats; draw by draw they hold the same items.
    reasoning, plain : str
        Values of ``column``.
    column : str
        Column of the format.
    capability : str
        What the claim is about.
    draws, options
        As in :func:`c1_length`.

    Returns
    -------
    list of Finding
        One for each method and source.

    Examples
    --------
    >>> from cola_lib.analysis import c6_reasoning, simulated_grid
    >>> conditions = [
    ...     {"source": "gsm8k", "format": form, "set": form, "loss": loss}
    ...     for form, loss in {"question_reasoning": 0.05, "question_answer": 0.08}.items()
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c6_reasoning(frame):
    ...     print(finding.part, finding.text)
    wanda · math +2.15 [+0.97, +3.32] % of bits per byte
    """
    rows = at(calibrated(frame, capability), column, [reasoning, plain])
    return [
        compare("C6", part, at(one, column, reasoning), at(one, column, plain), options, draws=draws)
        for part, one in parts(rows, "label", "capability", "source")
    ]


def c8_domain_gain(
    frame: pd.DataFrame,
    domains: Mapping[str, str] = DOMAINS,
    general: str = "c4",
    *,
    methods: tuple[str, ...] = ("awq",),
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether a domain's own data keep more of it than general data.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of the sources.
    domains : mapping of str to str
        For each capability, the source of its domain.
    general : str
        Value of ``source``.
    methods : tuple of str
        Whatever their strength.
    options : Options
        How.

    Returns
    -------
    list of Finding
        One for each capability and label.

    Examples
    --------
    >>> from cola_lib.analysis import c8_domain_gain, simulated_grid
    >>> losses = {"math": 0.05, "c4": 0.09}
    >>> conditions = [{"source": source, "method": "awq", "loss": loss} for source, loss in losses.items()]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c8_domain_gain(frame, {"math": "math"}):
    ...     print(finding.part, finding.text)
    awq · math on math +3.05 [+1.78, +4.32] % of bits per byte
    """
    findings = []
    for capability, source in domains.items():
        rows = among(at(calibrated(frame, capability), "source", [source, general]), methods)
        for part, one in parts(rows, "label", "capability"):
            pair = at(one, "source", source), at(one, "source", general)
            findings.append(compare("C8", f"{part} on {source}", *pair, options, draws="independent"))
    return findings


def c9_domain_cost(
    frame: pd.DataFrame,
    domains: Mapping[str, str] = DOMAINS,
    general: str = "c4",
    *,
    methods: tuple[str, ...] = ("awq",),
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether a domain's data cost other capabilities something.

    Parameters
    ----------
    frame, domains, general, methods, options
        As in :func:`c8_domain_gain`; every other capability in the frame is off target.

    Returns
    -------
    list of Finding
        One for each domain, off-target capability and label; above 0 is a loss, as a share of the score under general
        data, which is also what :func:`c8_domain_gain` divides by.

    Examples
    --------
    >>> from cola_lib.analysis import c9_domain_cost, simulated_grid
    >>> conditions = [
    ...     {"source": source, "method": "awq", "capability": capability, "loss": loss}
    ...     for source, loss in {"math": 0.09, "c4": 0.05}.items()
    ...     for capability in ("math", "code")
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c9_domain_cost(frame, {"math": "math"}):
    ...     print(finding.part, finding.text)
    awq · code on math +3.14 [+1.47, +4.81] % of bits per byte
    """
    cost = partial(_cost, gain_of(options.score))
    findings = []
    for target, source in domains.items():
        rows = among(at(calibrated(frame), "source", [source, general]), methods)
        for part, one in parts(rows[rows["capability"] != target], "label", "capability"):
            pair = [at(one, "source", source), at(one, "source", general)]
            findings.append(combine("C9", f"{part} on {source}", pair, cost, options, draws="independent"))
    return findings


def _cost(gain: Callable[[Array, Array], Array], own: Array, general: Array) -> Array:
    return -gain(own, general)
