"""What every way of choosing calibration data has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import zip_longest
from typing import Any, ClassVar

import numpy as np
import torch

from cola_lib.calibration import CalibrationSet
from cola_lib.curation.composition import PLAIN, Composition
from cola_lib.curation.pool import Pool, Rows
from cola_lib.curation.target import Target
from cola_lib.errors import DataError, SpecError
from cola_lib.models import LanguageModel
from cola_lib.registry import Registry

TARGET_ROWS = 32
"""Rows of each capability's texts that strategies look at."""

MANY = 20_000
"""Above so many candidates clusters are found on batches of them."""

PART = 4096
"""Candidates whose distances are computed at a time."""


@dataclass(frozen=True)
class Brief:
    """What a strategy is asked for, and with what."""

    pool: Pool
    lm: LanguageModel
    n_samples: int
    seq_len: int
    target: Target | None
    generator: torch.Generator
    name: str

    def rows(self, composition: Composition = PLAIN) -> Rows:
        """Candidate rows of the whole pool."""
        return self.pool.rows(self.lm.tokenizer, self.seq_len, composition)

    def target_rows(self, composition: Composition = PLAIN, most: int = TARGET_ROWS) -> Rows:
        """Rows of the target's texts, whose sources are its capabilities."""
        return self.deployment.pool.rows(self.lm.tokenizer, self.seq_len, composition, most)

    @property
    def deployment(self) -> Target:
        """The target, which must be there."""
        if self.target is None:
            raise SpecError(
                f"strategy {self.name!r} chooses for a target: say what the model will be used for, or 'general'"
            )
        return self.target

    def shuffled(self, n: int) -> list[int]:
        """Put the numbers below n in random order."""
        return torch.randperm(n, generator=self.generator).tolist()

    def seed(self) -> int:
        """Draw a seed, from 0 to 2³¹ - 2, for a library that has generators of its own."""
        return int(torch.randint(2**31 - 1, (), generator=self.generator))

    def take(self, rows: Rows, order: Sequence[int], weights: Sequence[float] | None = None) -> CalibrationSet:
        """Make the set of the first of some candidates."""
        n = self.n_samples
        if len(order) < n:
            raise DataError(
                f"strategy {self.name!r} has {len(order):,} candidates, and {n:,} rows were asked for: ask for fewer "
                "or shorter rows, or add a source"
            )
        return replace(
            rows.tokens.take(list(order[:n]), name=self.name, seed=self.generator.initial_seed()),
            weights=None if weights is None else tuple(float(weight) for weight in weights[:n]),
        )


@dataclass(frozen=True)
class Strategy(ABC):
    """A way of choosing a calibration set from a pool.

    Subclasses are frozen dataclasses whose fields are the strategy's options.

    Attributes
    ----------
    name : str
        As in the registry.
    stochastic : bool
        Whether another generator gives another set; k-means counts, since its start is random.
    needs_target : bool
        Whether it reads what the model will be used for.
    revision : int
        Raise it when the strategy's choices change: stored sets are then chosen again.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from typing import ClassVar
    >>> from cola_lib.curation import STRATEGIES, Pool, Strategy, at_tokens
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> @STRATEGIES.register
    ... @dataclass(frozen=True)
    ... class Last(Strategy):
    ...     name: ClassVar[str] = "last"
    ...     def choose(self, brief):
    ...         rows = brief.rows()
    ...         return brief.take(rows, range(len(rows))[::-1])
    >>> pool = Pool({"mine": [Sample("1", "Haste makes waste.", "mine"), Sample("2", "Less is more.", "mine")]})
    >>> at_tokens(Last(), pool, tiny_model(), n_tokens=8, seq_len=32).sample_ids
    (('2',),)
    """

    name: ClassVar[str]
    stochastic: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False
    revision: ClassVar[int] = 1

    @property
    def choice_revision(self) -> int:
        """Revision of what this strategy's options use: a part that is switched off cannot have changed its choices."""
        return self.revision

    def select(
        self,
        pool: Pool,
        lm: LanguageModel,
        *,
        n_samples: int,
        seq_len: int,
        target: Target | None = None,
        generator: torch.Generator,
    ) -> CalibrationSet:
        """Choose a calibration set.

        Parameters
        ----------
        pool : Pool
            What there is. It keeps what is measured on it, so that strategies share the cost.
        lm : LanguageModel
            The untouched model with its tokenizer.
        n_samples : int
            Rows of the set.
        seq_len : int
            Most tokens of a row.
        target : Target, optional
            What the model will be used for.
        generator : torch.Generator
            Of everything random. The same arguments and the same state of it give the same bytes.

        Returns
        -------
        CalibrationSet
            Named after the strategy.

        Raises
        ------
        DataError
            If the pool does not suffice.
        SpecError
            If a target is needed and there is none, or a number is out of range.
        """
        if n_samples < 1:
            raise SpecError(f"n_samples must be at least 1, and is {n_samples}")
        lm.check_length(seq_len)
        return self.choose(Brief(pool, lm, n_samples, seq_len, target, generator, self.label))

    @abstractmethod
    def choose(self, brief: Brief) -> CalibrationSet:
        """Do what :meth:`select` promises.

        Parameters
        ----------
        brief : Brief
            Its arguments.
        """

    @property
    def label(self) -> str:
        """Name with the options that are not the default."""
        given = [
            f"{option.name}={getattr(self, option.name)}"
            for option in fields(self)
            if getattr(self, option.name) != option.default
        ]
        return f"{self.name}({', '.join(given)})" if given else self.name

    def key(self) -> dict[str, Any]:
        """Name, options and revision, for a fingerprint."""
        own = {"revision": self.revision} if self.revision > 1 else {}  # strategies without one keep their keys
        return {"strategy": self.name, **asdict(self), **own}


STRATEGIES: Registry[type[Strategy]] = Registry("strategy")
"""Class of every strategy by its name; ``STRATEGIES.register`` adds to it."""


def strategy(name: str, /, **options: Any) -> Strategy:
    """Make a strategy.

    Parameters
    ----------
    name : str
        Key of :data:`STRATEGIES`.
    **options
        Its fields.

    Returns
    -------
    Strategy
        With these options.

    Raises
    ------
    UnknownNameError
        If there is no such strategy, or it has no such option.
    SpecError
        If the value of an option is of the wrong kind, or out of range.

    Examples
    --------
    >>> from cola_lib.curation import strategy
    >>> strategy("perplexity", order="highest").label
    'perplexity(order=highest)'
    """
    made: Strategy = STRATEGIES.make(name, **options)
    return made


def alternating(parts: Sequence[Sequence[int]]) -> list[int]:
    """Take the first of each part, then the second of each that has one, and so on; every number once."""
    turns = (number for turn in zip_longest(*parts) for number in turn if number is not None)
    return list(dict.fromkeys(turns))


def by_source(rows: Rows) -> dict[str, list[int]]:
    """Positions of each source's rows."""
    found: dict[str, list[int]] = {}
    for position, source in enumerate(rows.sources):
        found.setdefault(source, []).append(position)
    return found


def shares(weights: Mapping[str, float], n: int) -> dict[str, int]:
    """Divide n rows in proportion to weights, by largest remainder."""
    total = sum(weights.values())
    exact = {name: n * weight / total for name, weight in weights.items()}
    counts = {name: int(value) for name, value in exact.items()}
    rest = n - sum(counts.values())
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[:rest]:
        counts[name] += 1
    return counts


def nearest_to_centres(vectors: np.ndarray, n_clusters: int, seed: int, *, n_init: int = 10) -> list[int]:
    """Cluster vectors and take the one nearest to each centre.

    Notes
    -----
    Above :data:`MANY` vectors it is mini-batch k-means, in bounded memory.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    different: set[bytes] = set()
    for vector in vectors:
        different.add((vector + 0.0).tobytes())  # both zeros are one
        if len(different) == n_clusters:
            break
    else:
        raise DataError(
            f"{len(vectors):,} candidates, {len(different):,} of them different, cannot make {n_clusters:,} clusters: "
            "ask for fewer rows, or for shorter ones, or add a source"
        )
    if len(vectors) > MANY:
        clustering = MiniBatchKMeans(n_clusters, n_init=n_init, random_state=seed, batch_size=PART)
    else:
        clustering = KMeans(n_clusters, n_init=n_init, random_state=seed)
    labels = clustering.fit_predict(vectors)
    distance = np.empty(len(vectors), dtype=vectors.dtype)
    for at in range(0, len(vectors), PART):  # no second array of the size of the pool
        part = slice(at, at + PART)
        distance[part] = np.square(vectors[part] - clustering.cluster_centers_[labels[part]]).sum(1)
    order = np.lexsort((distance, labels))
    first = order[np.unique(labels[order], return_index=True)[1]]
    sizes = np.bincount(labels, minlength=n_clusters)[labels[first]]
    return first[np.argsort(-sizes, kind="stable")].tolist()


def at_tokens(
    chooser: Strategy,
    pool: Pool,
    lm: LanguageModel,
    *,
    n_tokens: int,
    seq_len: int,
    target: Target | None = None,
    seed: int = 0,
) -> CalibrationSet:
    """Let a strategy choose as many rows as a budget of effective tokens takes.

    Parameters
    ----------
    chooser : Strategy
        Any.
    pool, lm, seq_len, target
        As in :meth:`Strategy.select`.
    n_tokens : int
        Effective tokens of the set, exactly.
    seed : int
        Of the generator, which starts anew with every attempt.

    Returns
    -------
    CalibrationSet
        Its last row is cut where the budget ends.

    Raises
    ------
    DataError
        If the pool has fewer tokens.

    Examples
    --------
    >>> from cola_lib.curation import Pool, at_tokens, strategy
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> pool = Pool({"mine": [Sample("1", "Haste makes waste.", "mine"), Sample("2", "Less is more.", "mine")]})
    >>> at_tokens(strategy("random"), pool, tiny_model(), n_tokens=25, seq_len=16).n_tokens
    25
    """
    too_few, n_samples, too_many = 0, max(1, -(-n_tokens // seq_len)), math.inf
    while True:
        generator = torch.Generator().manual_seed(seed)
        try:
            found = chooser.select(pool, lm, n_samples=n_samples, seq_len=seq_len, target=target, generator=generator)
        except DataError:  # the pool has no so many rows; fewer may do, if the first ones were short
            if n_samples == too_few + 1:
                raise
            too_many = n_samples
        else:
            if found.n_tokens >= n_tokens:
                return _cut(found, n_tokens)
            if n_samples + 1 == too_many:
                raise DataError(
                    f"strategy {chooser.label!r} was asked for {n_tokens:,} tokens, and all {n_samples:,} rows of "
                    f"the pool have {found.n_tokens:,}; ask for fewer or add a source"
                )
            too_few = n_samples
            n_samples = max(n_samples + 1, int(n_samples * n_tokens / found.n_tokens))
        if too_many < math.inf and n_samples >= too_many:
            n_samples = (too_few + int(too_many)) // 2


def _cut(rows: CalibrationSet, n_tokens: int) -> CalibrationSet:
    """Take the first so many effective tokens."""
    total = rows.attention_mask.sum(1).cumsum(0)
    n_rows = int((total < n_tokens).sum()) + 1
    taken = rows.take(range(n_rows))
    excess = int(total[n_rows - 1]) - n_tokens
    mask = taken.attention_mask.clone()
    length = int(mask[-1].sum())
    mask[-1, length - excess : length] = False
    return replace(taken, attention_mask=mask)
