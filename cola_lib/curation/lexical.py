"""Strategies that look at texts and tokens alone, and at no model's states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from cola_lib.calibration import CalibrationSet
from cola_lib.curation.base import STRATEGIES, Brief, Strategy, alternating, by_source, nearest_to_centres
from cola_lib.curation.baselines import even
from cola_lib.curation.embeddings import embed
from cola_lib.curation.pool import Rows
from cola_lib.curation.surprise import surprise
from cola_lib.errors import SpecError

MOST_COMPARED = 2000
"""ZipCal compares no more candidates at a step."""


@STRATEGIES.register
@dataclass(frozen=True)
class TfidfClusters(Strategy):
    """Cluster texts by their words, length and variety of tokens, and take the one nearest to each centre.

    Parameters
    ----------
    n_init : int
        Starts of k-means, the best of which counts.

    Notes
    -----
    The original weighs its features (0.1 for TF-IDF, 1 for the others) before it standardizes them, which undoes the
    weights; they are left out here. It takes two or three documents of a cluster and packs them; here a row is one
    candidate, as for every other strategy. It starts k-means 50 times, here ``n_init``.

    References
    ----------
    COLA-Zero, a bachelor's thesis of 2025 (github.com/aydamdonelly/cola_zero, ``sampler_balanced.py``).

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, TfidfClusters
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = TfidfClusters().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'tfidf_clusters')
    """

    name: ClassVar[str] = "tfidf_clusters"
    stochastic: ClassVar[bool] = True

    n_init: int = 10

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        from sklearn.preprocessing import StandardScaler

        rows = brief.rows()
        words = embed("tfidf", brief.lm, (brief.pool, rows))[0]
        lengths = rows.lengths.numpy().astype(float)
        variety = np.array([len(set(rows.ids(i))) for i in range(len(rows))]) / lengths
        features = StandardScaler().fit_transform(np.column_stack([words, lengths, variety]))
        return brief.take(rows, nearest_to_centres(features, brief.n_samples, brief.seed(), n_init=self.n_init))


@STRATEGIES.register
@dataclass(frozen=True)
class ZipCal(Strategy):
    """Take the row with the most token types that no row before it has; then spread over the sources.

    From each source as many rows as the set shall have are taken greedily; of all these, k-centre keeps those that lie
    farthest apart.

    Parameters
    ----------
    embedding : str
        In which the second step compares texts, see :func:`~cola_lib.curation.embeddings.embed`.

    Notes
    -----
    A token type is a token's text in lower case without the white space around it. Ties go to the row with more types,
    then to the first. Of more than 2,000 candidates each step compares so many, drawn at random. When nothing new is
    left, rows with the most types follow. The original embeds with all-MiniLM-L12-v2; the default here needs no further
    model.

    References
    ----------
    Monaco et al., "Frequency Matters: Fast Model-Agnostic Data Curation for Pruning and Quantization", arXiv
    2603.16105, and github.com/FrancescoMonaco/ZipCal, ``unique_tokens_sampling``.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, ZipCal
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = ZipCal().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'zipcal')
    """

    name: ClassVar[str] = "zipcal"

    embedding: str = "tfidf"

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        types = self._types(brief, rows)
        parts = [self._greedy(brief, own, types) for own in by_source(rows).values()]
        if len(parts) == 1:
            return brief.take(rows, parts[0])
        candidates = [i for part in parts for i in part]
        vectors = embed(self.embedding, brief.lm, (brief.pool, rows))[0][candidates]
        return brief.take(rows, [candidates[i] for i in k_centres(vectors, brief.n_samples)])

    @staticmethod
    def _types(brief: Brief, rows: Rows) -> list[frozenset[str]]:
        tokenizer = brief.lm.tokenizer
        special = set(tokenizer.all_special_ids)
        known = sorted({i for row in range(len(rows)) for i in rows.ids(row)} - special)
        written = {i: str(tokenizer.decode([i])).strip().lower() for i in known}
        return [frozenset(written.get(i, "") for i in rows.ids(row)) - {""} for row in range(len(rows))]

    @staticmethod
    def _greedy(brief: Brief, own: Sequence[int], types: Sequence[frozenset[str]]) -> list[int]:
        left, covered = list(own), set[str]()
        order: list[int] = []
        while left and len(order) < brief.n_samples:
            compared = left
            if len(left) > MOST_COMPARED:
                compared = [left[i] for i in sorted(brief.shuffled(len(left))[:MOST_COMPARED])]
            best = max(compared, key=lambda i: (len(types[i] - covered), len(types[i])))
            covered |= types[best]
            order.append(best)
            left.remove(best)
        return order


def k_centres(vectors: np.ndarray, n: int) -> list[int]:
    """Order vectors so that each is the farthest from those before it.

    References
    ----------
    Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 38, 1985.
    """
    order = [0]
    distance = np.square(vectors - vectors[0]).sum(1)
    distance[0] = -1
    while len(order) < min(n, len(vectors)):
        best = int(distance.argmax())
        order.append(best)
        distance = np.minimum(distance, np.square(vectors - vectors[best]).sum(1))
        distance[order] = -1
    return order


@STRATEGIES.register
@dataclass(frozen=True)
class LengthMixture(Strategy):
    """Rows of several lengths, each of which counts the same whatever its length.

    Parameters
    ----------
    shortest : float
        Length of the shortest rows as a share of ``seq_len``; lengths double from there.

    Notes
    -----
    A token counts the inverse of its row's length (times the mean length, so that the set keeps its number of tokens).
    The rows are an even mixture of the sources, and each source's rows go through the lengths, one source beginning
    where the one before it had its second. The lengths of the paper are not known to us.

    References
    ----------
    Son et al., "On the Importance of a Multi-Scale Calibration for Quantization" (MaCa), arXiv 2602.07465.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import LengthMixture, Pool
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = LengthMixture(shortest=0.5).select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'length_mixture(shortest=0.5)')
    """

    name: ClassVar[str] = "length_mixture"
    stochastic: ClassVar[bool] = True
    revision: ClassVar[int] = 2  # 1 dealt lengths out row by row, so a source could get one length only

    shortest: float = 1 / 8

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= 1:
            raise SpecError(f"shortest must be above 0 and at most 1, and is {self.shortest:g}")

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        lengths, cut = [brief.seq_len], brief.seq_len // 2
        while cut >= max(2, self.shortest * brief.seq_len):
            lengths.append(cut)
            cut //= 2
        found = brief.take(rows, even(brief, rows))
        mask = found.attention_mask.clone()
        turn = {source: i for i, source in enumerate(dict.fromkeys(found.sources))}
        for i, source in enumerate(found.sources):
            mask[i, lengths[turn[source] % len(lengths)] :] = False
            turn[source] += 1
        own = mask.sum(1).double()
        weights = tuple((own.mean() / own).float().tolist())
        return replace(found, attention_mask=mask, weights=weights)


def repeated_ngrams(ids: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that a text has had before."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@STRATEGIES.register
@dataclass(frozen=True)
class InformationMix(Strategy):
    """An even mixture of the rows that repeat themselves least, of like perplexity in every source.

    Parameters
    ----------
    keep : float
        Share of each source's rows, those with the fewest repeated 4-grams, that are candidates.

    Notes
    -----
    Of each source the candidates are ordered by perplexity, and rows are taken at the same quantiles of it. The paper
    applies its protocol to texts that the model wrote; its exact scores are not known to us, so these are ours.

    References
    ----------
    Xu et al., "Calibration Data Trade-offs Across Capability Dimensions" (IGSP), arXiv 2606.03328.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import InformationMix, Pool
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = InformationMix().select(pool, tiny_model(), n_samples=2, seq_len=16, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'information_mix')
    """

    name: ClassVar[str] = "information_mix"

    keep: float = 0.5

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        nll = surprise(brief, rows)
        parts = []
        sources = by_source(rows)
        each = -(-brief.n_samples // len(sources))
        for own in sources.values():
            calm = sorted(own, key=lambda i: (repeated_ngrams(rows.ids(i)), i))
            kept = calm[: max(min(each, len(calm)), round(self.keep * len(calm)))]
            ranked = sorted(kept, key=lambda i: float(nll[i]))
            places = [int((q + 0.5) * len(ranked) / each) for q in range(each)] if len(ranked) >= each else []
            spread = [ranked[p] for p in places]
            parts.append(list(dict.fromkeys([*spread, *ranked])))
        return brief.take(rows, alternating(parts))
