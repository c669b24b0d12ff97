"""The paper's claims, each phrased as a test before our numbers were seen."""

from __future__ import annotations

from dataclasses import dataclass

from cola_lib.analysis.claims.rules import MARGIN
from cola_lib.errors import UnknownNameError
from cola_lib.registry import Registry

SHARE = "% of bits per byte"
SHARE_OF_OTHER = "% of baseline"
SQUARE = "%² of bits per byte"
VARIANCE = "% of variance"
CORRELATION = "rank correlation"
POINTS = "percentage points"
BITS = "bits per byte"
TIMES = "× (compressing ÷ choosing)"

UNITS: dict[str, tuple[float, str]] = {
    SHARE: (100, "+.2f"),
    SHARE_OF_OTHER: (100, "+.2f"),
    SQUARE: (1e4, "+.3f"),
    VARIANCE: (100, ".1f"),
    CORRELATION: (1, "+.2f"),
    POINTS: (100, "+.2f"),
    BITS: (1, "+.4f"),
    TIMES: (1, ".2f"),
}
"""For each unit, what a value is multiplied by to be shown in it, and its format."""

DIFFICULTY_MARGIN = 0.015
"""How near "mixed difficulty performs like hard" has to be: the 1.5 % that the paper names."""

PROXY_BOUND = 0.8
"""A proxy predicts the full evaluation if its rank correlation is above this."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper (arXiv 2510.10618).

    Parameters
    ----------
    id : str
        ``"C1"`` and so on, as everywhere in the book.
    title : str
        In a few words.
    test : str
        What is tested, so that positive means "as the paper says".
    paper : str
        The paper's own number, on LLaMA-3-8B or Qwen2.5-7B, as text.
    unit : str
        Of our number, one of :data:`UNITS`.
    margin : float
        Effects up to here count as none, in the unit of the value (a share, not per cent).
    null : float
        What the value is compared with.

    Examples
    --------
    >>> from cola_lib.analysis import CLAIMS
    >>> CLAIMS["C1"].title, CLAIMS["C1"].paper
    ('Longer samples keep more mathematics', '25.5 % relative (128 to 2048 tokens)')
    """

    id: str
    title: str
    test: str
    paper: str
    unit: str = SHARE
    margin: float = MARGIN
    null: float = 0.0


def _check(claim: Claim) -> None:
    if claim.unit not in UNITS:
        raise UnknownNameError("unit", claim.unit, UNITS)


CLAIMS: Registry[Claim] = Registry("claim", named="id", check=_check)
"""Claims that have a test, by id. Write one of your own down before you see the numbers: ``CLAIMS.register``."""

for _claim in (
    Claim(
        "C1",
        "Longer samples keep more mathematics",
        "Gain on math of long over short samples under SparseGPT is above 0, and the gain under pruning is above "
        "that under quantization",
        "25.5 % relative (128 to 2048 tokens)",
    ),
    Claim(
        "C2",
        "More samples stop helping",
        "Gain from more samples lies within the margin on either side of 0, for every method and capability",
        "diminishing beyond 64 to 128 samples",
    ),
    Claim(
        "C3",
        "Code is not monotone in the amount",
        "Gain on code of few over many samples is above 0 under AWQ and GPTQ",
        "+7.7 and +23.6 points (16 against 128 samples)",
    ),
    Claim(
        "C4",
        "Source matters as much as method",
        "Share of the source in the variance of source and method is above 1/2 (their ratio above 1), for every "
        "capability",
        "asserted",
        VARIANCE,
        0.0,
        0.5,
    ),
    Claim(
        "C5",
        "Web text beats Wikipedia",
        "Gain of C4 over Wikipedia on code, and of a web mix over Wikipedia on math, is above 0 for every method",
        "19.4 % on code, 8.7 % on math, relative",
    ),
    Claim(
        "C6",
        "Reasoning chains help mathematics",
        "Gain on math of question, reasoning and answer over question and answer, same items, is above 0 for every "
        "method",
        "47.34 to 51.84 (Qwen, AWQ)",
    ),
    Claim(
        "C7",
        "Calibrate in the language of use",
        "Mean gain over languages of matched over mismatched calibration is above 0 for every method",
        "31.22 against 16.72 on math (English, Japanese)",
    ),
    Claim(
        "C8",
        "Domain data help their domain",
        "Gain of a domain's data over general data on that domain is above 0 under AWQ",
        "+4.1/+6.4 commonsense, +5.4/+7.1 math, +5.9/+6.6 code, in points",
    ),
    Claim(
        "C9",
        "Domain data cost elsewhere",
        "Loss from a domain's data against general data on each other capability is above 0 under AWQ",
        "-1.0 to -4.9 points; perplexity +2 to +3",
    ),
    Claim(
        "C10",
        "Difficulty matters more for pruning",
        "Variance between difficulty levels is larger under pruning than under quantization, and mixed difficulty "
        "is within 1.5 % of hard",
        "2.3 times; attribution uncertain",
    ),
    Claim(
        "C11",
        "Activation space explains what is kept",
        "Losses predicted from activation-space measures on held-out sources correlate with the measured ones, above 0",
        "asserted",
        CORRELATION,
        0.0,
    ),
    Claim(
        "C12",
        "COLA keeps more than random samples",
        "Gain of COLA over random samples of C4, and of Wikipedia, is above 0 for every method and capability",
        "AWQ, LLaMA-3: +1.2/+0.7/+0.3 over C4, +2.2/+1.4/+1.5 over WikiText (commonsense/math/code), in points",
    ),
    Claim(
        "C13",
        "COLA keeps more than the model's own text",
        "Gain of COLA over self-generated samples is above 0 for every method and capability",
        "+0.34 to +0.48 points",
    ),
    Claim(
        "C14",
        "COLA gains more under pruning",
        "Gain of COLA over random samples is larger under pruning than under quantization, as a share and in bits "
        "per byte, for every capability",
        "relative yes; absolute reversed on math and code",
    ),
    Claim(
        "C15",
        "Activations choose better than texts",
        "Gain of COLA over TF-IDF clusters and over ZipCal, at equal size, is above 0 for every method and capability",
        "not in the paper",
    ),
    Claim(
        "C16",
        "Each stage of COLA contributes",
        "Main effect of each stage in the factorial of all three is above 0 for every method and capability",
        "unknown",
    ),
    Claim(
        "C17",
        "A proxy predicts the full evaluation",
        "Rank correlation of proxy and loss over cells is above 0.8, for every method and capability",
        '"high"',
        CORRELATION,
        0.0,
        PROXY_BOUND,
    ),
    Claim(
        "C18",
        "COLA's gain is robust",
        "Gain of COLA over random samples is above 0 on capabilities that nobody chose for, and after further training",
        "asserted",
    ),
    Claim(
        "C19",
        "Choosing is cheap",
        "Compression takes more than once the time of selection, for every method",
        '"modest"',
        TIMES,
        0.0,
        1.0,
    ),
):
    CLAIMS.register(_claim)
