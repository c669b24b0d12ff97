"""Claims that one way of choosing calibration data is better than another: C12 to C16, C18 and C19."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import product

import numpy as np
import pandas as pd

from cola_lib.analysis.bootstrap import Draws, Statistic
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
    unit_of,
)
from cola_lib.analysis.claims.findings import Finding
from cola_lib.analysis.claims.table import BITS, TIMES
from cola_lib.analysis.estimates import Estimate, half_width
from cola_lib.errors import DataError


def c12_over_random(
    frame: pd.DataFrame,
    baselines: Sequence[str],
    *,
    ours: str = "cola",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether COLA keeps more than random samples.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores whose ``source`` is the strategy.
    baselines : sequence of str
        Values of ``source`` to be compared with.
    ours : str
        Value of ``source`` of the strategy that the claim is about.
    draws : {"paired", "independent"}
        ``"paired"`` where draws of one name chose from one pool.
    options : Options
        How.

    Returns
    -------
    list of Finding
        One for each baseline, method and capability.

    Examples
    --------
    >>> from cola_lib.analysis import c12_over_random, simulated_grid
    >>> frame = simulated_grid([{"source": "cola", "loss": 0.05}, {"source": "random", "loss": 0.10}])
    >>> [finding.text for finding in c12_over_random(frame, ["random"])]
    ['+3.93 [+2.80, +5.06] % of bits per byte']
    """
    return _over("C12", frame, baselines, ours, draws, options)


def c13_over_self_generated(
    frame: pd.DataFrame,
    baselines: Sequence[str] = ("self_generated",),
    *,
    ours: str = "cola",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether COLA keeps more than what the model wrote itself.

    Parameters
    ----------
    frame, baselines, ours, draws, options
        As in :func:`c12_over_random`.

    Returns
    -------
    list of Finding
        One for each baseline, method and capability.

    Examples
    --------
    >>> from cola_lib.analysis import c13_over_self_generated, simulated_grid
    >>> frame = simulated_grid([{"source": "cola", "loss": 0.05}, {"source": "self_generated", "loss": 0.10}])
    >>> [finding.text for finding in c13_over_self_generated(frame)]
    ['+3.93 [+2.82, +5.04] % of bits per byte']
    """
    return _over("C13", frame, baselines, ours, draws, options)


def c15_over_text_only(
    frame: pd.DataFrame,
    baselines: Sequence[str] = ("tfidf_clusters", "zipcal"),
    *,
    ours: str = "cola",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether choosing in activation space keeps more than choosing by texts alone.

    Parameters
    ----------
    frame, baselines, ours, draws, options
        As in :func:`c12_over_random`; sets of equal size.

    Returns
    -------
    list of Finding
        One for each baseline, method and capability.

    Examples
    --------
    >>> from cola_lib.analysis import c15_over_text_only, simulated_grid
    >>> frame = simulated_grid([{"source": "cola", "loss": 0.05}, {"source": "zipcal", "loss": 0.10}])
    >>> [finding.text for finding in c15_over_text_only(frame, ["zipcal"])]
    ['+3.93 [+2.80, +5.06] % of bits per byte']
    """
    return _over("C15", frame, baselines, ours, draws, options)


def _over(
    claim: str, frame: pd.DataFrame, baselines: Sequence[str], ours: str, draws: Draws, options: Options
) -> list[Finding]:
    findings = []
    for baseline in baselines:
        rows = at(calibrated(frame), "source", [ours, baseline])
        for part, one in parts(rows, "label", "capability"):
            pair = at(one, "source", ours), at(one, "source", baseline)
            findings.append(compare(claim, f"{part} · over {baseline}", *pair, options, draws=draws))
    return findings


def c14_larger_for_pruning(
    frame: pd.DataFrame,
    baseline: str,
    *,
    ours: str = "cola",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether the gain is larger under pruning than under quantization, as a share and in bits per byte.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores, for methods of pruning and of quantization.
    baseline : str
        Value of ``source`` over which there is a gain.
    ours, draws, options
        As in :func:`c12_over_random`.

    Returns
    -------
    list of Finding
        For each capability the difference of mean relative gains, and, of bits per byte, that of mean absolute ones.

    Notes
    -----
    All methods saw the same sets, so a draw moves all of them together: the comparison is paired over draws.

    Examples
    --------
    >>> from cola_lib.analysis import c14_larger_for_pruning, simulated_grid
    >>> losses = {("cola", "wanda"): 0.04, ("random", "wanda"): 0.10, ("cola", "gptq"): 0.04, ("random", "gptq"): 0.05}
    >>> conditions = [{"source": source, "method": method, "loss": loss} for (source, method), loss in losses.items()]
    >>> [finding.text for finding in c14_larger_for_pruning(simulated_grid(conditions), "random")]
    ['+4.55 [+3.15, +5.95] % of bits per byte', '+0.0383 [+0.0292, +0.0475] bits per byte']
    """
    relative = gain_of(options.score)

    def absolute(better: Array, worse: Array) -> Array:
        return worse - better

    findings = []
    for part, rows in parts(at(calibrated(frame), "source", [ours, baseline]), "capability"):
        families = [list(among(rows, methods)["label"].unique()) for methods in (PRUNING, QUANTIZATION)]
        frames = [
            at(at(rows, "label", label), "source", source)
            for labels in families
            for label in labels
            for source in (ours, baseline)
        ]
        n = len(families[0])
        shared: Draws | list[str] = draws if draws == "paired" else [ours, baseline] * (len(frames) // 2)
        kinds = [("relative", relative, unit_of(options.score))]
        if options.score.endswith("bits_per_byte"):
            kinds.append(("absolute", absolute, BITS))
        for kind, gain, unit in kinds:

            def difference(*values: Array, gain: Statistic = gain, n: int = n) -> Array:
                gains = [gain(*pair) for pair in zip(values[::2], values[1::2], strict=True)]
                return reduce(np.add, gains[:n]) / n - reduce(np.add, gains[n:]) / (len(gains) - n)

            name = f"{kind} · {part}"
            findings.append(combine("C14", name, frames, difference, options, draws=shared, unit=unit))
    return findings


def c16_stages(
    frame: pd.DataFrame,
    stages: Sequence[str] = ("domain", "composition", "activation"),
    *,
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether each stage of COLA contributes.

    Parameters
    ----------
    frame : pandas.DataFrame
        Tidy scores of the full factorial, with a Boolean column for each stage.
    stages : sequence of str
        These columns.
    draws, options
        As in :func:`c12_over_random`.

    Returns
    -------
    list of Finding
        For each stage, method and capability its main effect: the gain of having it, mean over all settings of the
        others.

    Raises
    ------
    DataError
        If a setting is missing.

    Examples
    --------
    >>> from cola_lib.analysis import c16_stages, simulated_grid
    >>> conditions = [
    ...     {"source": f"cola {a} {b}", "domain": a, "activation": b, "loss": 0.10 - 0.03 * a - 0.02 * b}
    ...     for a in (False, True)
    ...     for b in (False, True)
    ... ]
    >>> frame = simulated_grid(conditions)
    >>> for finding in c16_stages(frame, ["domain", "activation"]):
    ...     print(finding.part, finding.text)
    domain · wanda · math +2.81 [+1.33, +4.29] % of bits per byte
    activation · wanda · math +2.36 [+1.32, +3.40] % of bits per byte
    """
    rows = calibrated(frame)
    gain, findings = gain_of(options.score), []
    for stage in stages:
        others = [other for other in stages if other != stage]
        for part, one in parts(rows, "label", "capability"):
            frames = []
            for setting in product((True, False), repeat=len(others)):
                at_setting = one
                for other, on in zip(others, setting, strict=True):
                    at_setting = at(at_setting, other, on)
                frames += [at(at_setting, stage, True), at(at_setting, stage, False)]

            def main_effect(*values: Array) -> Array:
                return np.mean([gain(*pair) for pair in zip(values[::2], values[1::2], strict=True)], axis=0)

            findings.append(combine("C16", f"{stage} · {part}", frames, main_effect, options, draws=draws))
    return findings


def c18_robust(
    shifted: Mapping[str, pd.DataFrame],
    baselines: Sequence[str],
    *,
    ours: str = "cola",
    draws: Draws = "paired",
    options: Options = DEFAULT,
) -> list[Finding]:
    """Test whether the gain is still there where nobody chose for it.

    Parameters
    ----------
    shifted : mapping of str to pandas.DataFrame
        For each shift, such as another domain or further training, tidy scores after it.
    baselines, ours, draws, options
        As in :func:`c12_over_random`.

    Returns
    -------
    list of Finding
        One for each shift, baseline, method and capability.

    Examples
    --------
    >>> from cola_lib.analysis import c18_robust, simulated_grid
    >>> frame = simulated_grid([{"source": "cola", "loss": 0.05}, {"source": "random", "loss": 0.10}])
    >>> [finding.part for finding in c18_robust({"after training": frame}, ["random"])]
    ['after training · wanda · math · over random']
    """
    return [
        replace(finding, part=f"{shift} · {finding.part}")
        for shift, frame in shifted.items()
        for finding in _over("C18", frame, baselines, ours, draws, options)
    ]


def c19_cheap(times: pd.DataFrame, *, level: float = 0.95) -> list[Finding]:
    """Test whether choosing takes less time than compressing.

    Parameters
    ----------
    times : pandas.DataFrame
        One row for each draw and method: ``label``, ``draw``, ``selection`` and ``compression``, both in seconds and
        measured on one machine.
    level : float
        Coverage of the interval.

    Returns
    -------
    list of Finding
        For each method how many times as long compression takes as selection; the interval is over draws, by Student's
        t on logarithms.

    Raises
    ------
    DataError
        If a time is not above 0.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.analysis import c19_cheap
    >>> times = pd.DataFrame({"label": "gptq 3-bit", "draw": [0, 1, 2], "selection": [10.0, 11.0, 12.0]})
    >>> times["compression"] = 60.0
    >>> [finding.text for finding in c19_cheap(times)]
    ['5.47 [4.36, 6.86] × (compressing ÷ choosing)']
    """
    for column in ("selection", "compression"):
        if not (times[column] > 0).all():
            raise DataError(f"times must be above 0 seconds, and {column} has {times[column].min():g}")
    return [
        finding_of("C19", str(label), _ratio(rows, level), [], unit=TIMES)
        for label, rows in times.groupby("label", sort=False)
    ]


def _ratio(rows: pd.DataFrame, level: float) -> Estimate:
    """Geometric mean over draws of compression time over selection time."""
    logs = np.log(rows["compression"].to_numpy(float) / rows["selection"].to_numpy(float))
    n = len(logs)
    se, dof = (float(logs.std(ddof=1) / np.sqrt(n)), n - 1.0) if n > 1 else (0.0, 1.0)
    value, half = float(logs.mean()), half_width([(se**2, dof)], level)
    low, high = float(np.exp(value - half)), float(np.exp(value + half))
    over = "draws" if n > 1 else "items"  # one draw tells nothing of others
    return Estimate(float(np.exp(value)), low, high, se, 0.0, n, 0, level, over, dof_draws=dof, scale="ratio")
