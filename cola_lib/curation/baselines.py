"""Sets that nobody chose: random rows, even mixtures, and controls that hold no language."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from cola_lib.calibration import CalibrationSet, random_tokens_set
from cola_lib.curation.base import STRATEGIES, Brief, Strategy, alternating, by_source
from cola_lib.curation.pool import Rows
from cola_lib.errors import DataError


def even(brief: Brief, rows: Rows) -> list[int]:
    """Order rows so that the first ones are evenly of all sources, random within each."""
    return alternating([[own[i] for i in brief.shuffled(len(own))] for own in by_source(rows).values()])


@STRATEGIES.register
@dataclass(frozen=True)
class Random(Strategy):
    """Rows of the pool, drawn uniformly: what the methods' own code does with C4.

    Parameters
    ----------
    source : str, optional
        Draw from this source only. Default: from all, where a source counts by its rows.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, Random
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = Random().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'random')
    """

    name: ClassVar[str] = "random"
    stochastic: ClassVar[bool] = True

    source: str | None = None

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        if self.source is not None and self.source not in brief.pool.sources:
            raise DataError(
                f"strategy {self.name!r}: source {self.source!r} is not among the pool's sources, which are: "
                f"{', '.join(brief.pool.sources)}"
            )
        rows = brief.rows()
        eligible = range(len(rows)) if self.source is None else by_source(rows).get(self.source, [])
        return brief.take(rows, [eligible[i] for i in brief.shuffled(len(eligible))])


@STRATEGIES.register
@dataclass(frozen=True)
class UniformMix(Strategy):
    """The same number of random rows of each source.

    References
    ----------
    Xu et al., "Calibration Data Trade-offs Across Capability Dimensions", arXiv 2606.03328: mixing sources evenly is a
    strong baseline.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, UniformMix
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = UniformMix().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'uniform_mix')
    """

    name: ClassVar[str] = "uniform_mix"
    stochastic: ClassVar[bool] = True

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        return brief.take(rows, even(brief, rows))


@STRATEGIES.register
@dataclass(frozen=True)
class ShuffledWords(Strategy):
    """An even mixture whose rows have their words in random order: the words without the language.

    Notes
    -----
    Words are what stands between white space. A row is tokenized again, and cut where it was as long before.

    References
    ----------
    Control of the ZipCal repository (Monaco et al., arXiv 2603.16105).

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, ShuffledWords
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = ShuffledWords().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'shuffled_words')
    """

    name: ClassVar[str] = "shuffled_words"
    stochastic: ClassVar[bool] = True

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        order = even(brief, rows)
        whole = brief.take(rows, order)
        input_ids, mask = whole.input_ids.clone(), whole.attention_mask.clone()
        for i in range(whole.n_samples):
            words = rows.texts[order[i]].split()
            text = " ".join(words[j] for j in brief.shuffled(len(words)))
            ids = brief.lm.tokenizer(text, verbose=False)["input_ids"][: int(mask[i].sum())]
            input_ids[i, : len(ids)] = torch.tensor(ids)
            mask[i] = torch.arange(whole.seq_len) < len(ids)
        return replace(whole, input_ids=input_ids, attention_mask=mask)


@STRATEGIES.register
@dataclass(frozen=True)
class RandomTokens(Strategy):
    """Tokens drawn uniformly from the vocabulary: no words, no language.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, RandomTokens
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = RandomTokens().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'random_tokens')
    """

    name: ClassVar[str] = "random_tokens"
    stochastic: ClassVar[bool] = True

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        drawn = random_tokens_set(brief.lm.tokenizer, brief.n_samples, brief.seq_len, seed=brief.seed())
        return replace(drawn, name=brief.name, seed=brief.generator.initial_seed())
