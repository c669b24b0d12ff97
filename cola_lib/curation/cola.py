"""COLA: choose sources that cover the target, compose rows, and spread over activation space."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from cola_lib.activations import Probe, projection_probe
from cola_lib.calibration import CalibrationSet
from cola_lib.curation.base import STRATEGIES, Brief, Strategy, by_source, nearest_to_centres
from cola_lib.curation.composition import COLA_COMPOSITION, PLAIN
from cola_lib.curation.embeddings import embed
from cola_lib.curation.pool import Pool, Rows
from cola_lib.curation.target import Target
from cola_lib.errors import SpecError
from cola_lib.models import LanguageModel

log = logging.getLogger(__name__)

Array = NDArray[np.float64]

SEMANTIC_SHARE = 0.6
"""Weight of the embeddings' similarity in a coverage; token statistics have the rest."""

N_TEXTS = 100
"""Texts of a source that stage 1 looks at."""

N_SOURCES = 5
"""Most sources that stage 1 keeps."""

WIDTH = 64
"""Dimensions of the projected activation space."""

_SMOOTHING = 1e-10


@dataclass(frozen=True)
class Coverage:
    """How well sources cover the capabilities of a target."""

    table: pd.DataFrame
    chosen: tuple[str, ...]
    gains: tuple[float, ...]


def token_shares(texts: Iterable[Sequence[int]]) -> dict[int, float]:
    """Relative frequency of each token in some texts."""
    counts = Counter(token for ids in texts for token in ids)
    total = sum(counts.values())
    return {token: count / total for token, count in counts.items()}


def token_similarity(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Likeness of two distributions of tokens: 1 − min(symmetric KL / log |V|, 1).

    References
    ----------
    Released code of COLA: both directions' mean, frequencies smoothed by 1e-10.
    """
    tokens = sorted(set(one) | set(other))
    if len(tokens) < 2:
        return 1.0
    p, q = (np.array([side.get(token, 0.0) for token in tokens]) + _SMOOTHING for side in (one, other))
    p, q = p / p.sum(), q / q.sum()
    divergence = float((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2
    return 1 - min(divergence / math.log(len(tokens)), 1.0)


def cover(
    pool: Pool,
    lm: LanguageModel,
    target: Target,
    *,
    seq_len: int,
    n_sources: int = N_SOURCES,
    embedding: str = "model",
    seed: int = 0,
) -> Coverage:
    """Choose the set of sources that covers a target best: COLA's first stage.

    Notes
    -----
    As in the released code, 100 texts of each source are drawn at random and stand for it. Tokens are counted over
    whole texts. Coverage = 0.6 · semantic + 0.4 · statistical. Of one source and one capability, semantic is the mean
    cosine of all their pairs of texts. The paper asks for the *set* of sources with the best weighted coverage,
    argmax_S Σ_c w_c · coverage(S, c), and the released code scores each source alone and takes the best five, which may
    be five of one kind. Here a set's semantic part is the mean over the capability's texts of the best source's cosine,
    its statistical part that of the even mixture of its tokens, and the set grows greedily while that gains.

    References
    ----------
    He et al., arXiv 2510.10618, and github.com/BokwaiHo/COLA. Their embedding is all-MiniLM-L6-v2.
    """
    rows, wanted = (of.whole_texts(lm.tokenizer, seq_len, N_TEXTS, seed) for of in (pool, target.pool))
    texts, asked = embed(embedding, lm, (pool, rows), (target.pool, wanted))
    own, of_target = by_source(rows), by_source(wanted)
    tokens, asked_tokens = _token_shares(lm, rows, own), _token_shares(lm, wanted, of_target)
    # Mean cosine of each of a capability's texts to the texts of a source.
    near = {(s, c): asked[of_target[c]] @ texts[own[s]].mean(0) for s in own for c in of_target}
    table = []
    for (source, capability), cosines in near.items():
        semantic = float(cosines.mean())
        statistical = token_similarity(tokens[source], asked_tokens[capability])
        score = SEMANTIC_SHARE * semantic + (1 - SEMANTIC_SHARE) * statistical
        table.append((source, capability, semantic, statistical, score))

    def covered(members: Sequence[str]) -> float:
        mixed: Counter = Counter()
        for source in members:
            mixed.update({token: share / len(members) for token, share in tokens[source].items()})
        total = 0.0
        for capability, weight in target.weights.items():
            semantic = float(np.max([near[source, capability] for source in members], axis=0).mean())
            statistical = token_similarity(mixed, asked_tokens[capability])
            total += weight * (SEMANTIC_SHARE * semantic + (1 - SEMANTIC_SHARE) * statistical)
        return total

    members: list[str] = []
    gains: list[float] = []
    reached = -math.inf
    while len(members) < min(n_sources, len(own)):
        best = max((s for s in own if s not in members), key=lambda s: covered([*members, s]))
        value = covered([*members, best])
        if value <= reached:
            break
        gains.append(value - reached if members else value)
        members.append(best)
        reached = value
    columns = ["source", "capability", "semantic", "statistical", "coverage"]
    return Coverage(pd.DataFrame(table, columns=columns), tuple(members), tuple(gains))


def _token_shares(lm: LanguageModel, rows: Rows, members: Mapping[str, Sequence[int]]) -> dict[str, dict[int, float]]:
    """Relative frequency of each token in the whole texts of each source."""
    ids = lm.tokenizer(list(rows.texts), return_attention_mask=False, verbose=False)["input_ids"]
    return {name: token_shares(ids[i] for i in at) for name, at in members.items()}


def activation_vectors(
    pool: Pool, lm: LanguageModel, rows: Rows, *, seed: int, width: int = WIDTH, blocks: Sequence[int] | None = None
) -> Array:
    """Place rows in COLA's activation space: its third stage, before clustering.

    Parameters
    ----------
    pool : Pool
        That the rows are of; it keeps the result.
    lm : LanguageModel
        The untouched model.
    rows : Rows
        Candidates.
    seed : int
        Of the projection.
    width : int
        Dimensions of the space.
    blocks : sequence of int, optional
        Whose outputs are read. Default: all.

    Returns
    -------
    ndarray of shape (n_rows, width), float64
        Per block the mean over tokens, scaled to unit length; blocks side by side, projected by a Gaussian matrix
        divided by √width.

    Examples
    --------
    >>> from cola_lib.curation import Pool, activation_vectors
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> pool = Pool({"mine": [Sample("1", "Haste makes waste.", "mine"), Sample("2", "Less is more.", "mine")]})
    >>> activation_vectors(pool, lm, pool.rows(lm.tokenizer, seq_len=32), seed=0, width=8).shape
    (2, 8)
    """
    taken, probes = projection(lm, seed, width, blocks)
    key = ("projection", seed, width, taken)
    return pool.features(lm, rows, key, probes)["projection"].double().numpy()


def projection(
    lm: LanguageModel, seed: int, width: int, blocks: Sequence[int] | None
) -> tuple[tuple[int, ...], dict[str, Probe]]:
    """Make the probe that pools and projects the outputs of blocks, and say which blocks these are."""
    if width < 1:
        raise SpecError(f"the projection must have at least 1 dimension, and has {width}")
    taken = tuple(range(len(lm.blocks))) if blocks is None else tuple(blocks)
    generator = torch.Generator().manual_seed(seed)
    d_model = lm.model.config.get_text_config().hidden_size
    matrices = torch.randn(len(taken), d_model, width, generator=generator) / width**0.5
    return taken, {"projection": projection_probe(taken, matrices)}


@STRATEGIES.register
@dataclass(frozen=True)
class Cola(Strategy):
    """COLA's three stages, each of which can be switched off.

    Parameters
    ----------
    domain : bool
        Stage 1: keep the sources that cover the target. Otherwise all.
    composition : bool
        Stage 2: rows of a least length, cut at ends of paragraphs, problems as question, reasoning and answer.
        Otherwise texts as they are.
    activation : bool
        Stage 3: k-means in activation space, and the row nearest to each centre. Otherwise random rows.
    n_sources, embedding
        Of stage 1, see :func:`cover`.
    width : int
        Dimensions of stage 3's space.
    n_init : int
        Starts of k-means.

    Notes
    -----
    Deviations from the released code: it scores sources one by one and not as a set (see :func:`cover`); it finds
    questions and answers by regular expression, while sources here have them as fields; it pools over padding, and its
    hooks look for module names that LLaMA-type models do not have, so that block outputs are read here, over real
    tokens only; it never hands its tokenizer to stage 1. Its embedding model is not part of this library: see
    ``embedding``.

    References
    ----------
    He et al., "Preserving LLM Capabilities through Calibration Data Curation: From Analysis to Optimization", NeurIPS
    2025, arXiv 2510.10618; github.com/BokwaiHo/COLA.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Cola, Pool, deployment
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> target = deployment({"language": [Sample("t", "A stitch in time saves nine.", "target")]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = Cola().select(pool, tiny_model(), n_samples=2, seq_len=16, target=target, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'cola')
    """

    name: ClassVar[str] = "cola"
    stochastic: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True
    revision: ClassVar[int] = 2  # 1 looked at the first rows of each source, which may be of few texts

    domain: bool = True
    composition: bool = True
    activation: bool = True
    n_sources: int = N_SOURCES
    embedding: str = "model"
    width: int = WIDTH
    n_init: int = 10

    @property
    def choice_revision(self) -> int:
        """Revision of what these options use: only the first stage has changed."""
        return self.revision if self.domain else 1

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows(COLA_COMPOSITION if self.composition else PLAIN)
        _warn_of_short(brief, rows)
        kept: Sequence[int] = range(len(rows))
        if self.domain:
            of_source = by_source(rows)
            kept = [i for source in self.sources(brief, of_source).chosen for i in of_source[source]]
        seed = brief.seed()
        if not self.activation:
            return brief.take(rows, [kept[i] for i in brief.shuffled(len(kept))])
        vectors = activation_vectors(brief.pool, brief.lm, rows, seed=seed, width=self.width)[list(kept)]
        nearest = nearest_to_centres(vectors, brief.n_samples, seed, n_init=self.n_init)
        return brief.take(rows, [kept[i] for i in nearest])

    def sources(self, brief: Brief, among: Collection[str] | None = None) -> Coverage:
        """Run the first stage alone.

        Parameters
        ----------
        brief : Brief
            What is asked for.
        among : collection of str, optional
            Sources that the second stage leaves rows of; default all. A source that has nothing to give must not
            take the place of one that has.
        """
        pool = brief.pool
        if among is not None and set(among) != set(pool.sources):
            pool = pool.only(among)
        return cover(
            pool,
            brief.lm,
            brief.deployment,
            seq_len=brief.seq_len,
            n_sources=self.n_sources,
            embedding=self.embedding,
            seed=brief.generator.initial_seed(),
        )


def _warn_of_short(brief: Brief, rows: Rows) -> None:
    """Name the sources that lose most of their texts because they are short for such rows."""
    held = {name for some in rows.tokens.sample_ids for name in some}
    for source, some in brief.pool.samples.items():
        lost = sum(sample.id not in held for sample in some)
        if 2 * lost > len(some):
            log.warning(
                "%d of %d texts of %s are too short for rows of %d tokens, and left out; ask for shorter rows",
                lost,
                len(some),
                source,
                brief.seq_len,
            )
