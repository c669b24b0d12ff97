"""Strategies that ask how surely the model expects a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cola_lib.calibration import CalibrationSet
from cola_lib.curation.base import STRATEGIES, Brief, Strategy
from cola_lib.curation.pool import Rows
from cola_lib.errors import SpecError
from cola_lib.evaluate import row_nll


def surprise(brief: Brief, rows: Rows) -> Tensor:
    """Mean negative log-likelihood of each candidate's tokens, computed once for a pool."""

    def compute() -> Tensor:
        nll = torch.full((len(rows),), torch.inf)
        longer = (rows.lengths > 1).nonzero()[:, 0]
        nll[longer] = row_nll(brief.lm, rows.tokens.take(longer.tolist()), progress=False)
        return nll

    return brief.pool.remember(("surprise", brief.lm.fingerprint, rows.tokens.fingerprint), compute)


@STRATEGIES.register
@dataclass(frozen=True)
class Perplexity(Strategy):
    """Rows in the order of the model's perplexity.

    Parameters
    ----------
    order : {"lowest", "highest", "middle"}
        Which come first.

    References
    ----------
    Lowest: ``least_perplexity_sampling`` in the repository of ZipCal (Monaco et al., arXiv 2603.16105). Highest: a
    baseline of COVERCAL (Shihab et al., arXiv 2604.24008).

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Perplexity, Pool
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = Perplexity(order="lowest").select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'perplexity')
    """

    name: ClassVar[str] = "perplexity"

    order: Literal["lowest", "highest", "middle"] = "lowest"

    def __post_init__(self) -> None:
        if self.order not in ("lowest", "highest", "middle"):
            raise SpecError(f"order must be 'lowest', 'highest' or 'middle', and is {self.order!r}")

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        ranked = surprise(brief, rows).argsort(stable=True).tolist()
        if self.order == "highest":
            ranked.reverse()
        elif self.order == "middle":
            middle = (len(ranked) - 1) / 2
            ranked = [ranked[i] for i in sorted(range(len(ranked)), key=lambda i: (abs(i - middle), i))]
        return brief.take(rows, ranked)
