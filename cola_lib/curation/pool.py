"""What a strategy chooses from, and what has been measured on it."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from cola_lib.activations import Probe, row_features
from cola_lib.calibration import CalibrationSet, draw_samples, source_samples
from cola_lib.curation.composition import PLAIN, Candidate, Composition, candidates, worded
from cola_lib.data import Sample
from cola_lib.errors import DataError
from cola_lib.fingerprint import fingerprint
from cola_lib.models import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


class Rows:
    """Candidate rows with their texts."""

    def __init__(
        self, found: Sequence[Candidate], sources: Sequence[str], *, name: str, seq_len: int, filler: int
    ) -> None:
        lengths = torch.tensor([len(candidate.ids) for candidate in found])
        mask = torch.arange(seq_len) < lengths[:, None]
        ids = [candidate.ids + [filler] * (seq_len - len(candidate.ids)) for candidate in found]
        self.tokens = CalibrationSet(
            torch.tensor(ids, dtype=torch.int64),
            mask,
            sample_ids=tuple((candidate.sample.id,) for candidate in found),
            sources=tuple(sources),
            name=name,
            seed=0,
            layout="pad",
        )
        self.texts = tuple(candidate.text for candidate in found)

    @classmethod
    def of(
        cls,
        found: Sequence[Candidate],
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        seq_len: int,
        sources: Sequence[str] | None = None,
    ) -> Rows:
        """Lay candidates out for a model."""
        known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        filler = next(token for token in known if token is not None)
        names = [candidate.sample.source for candidate in found] if sources is None else sources
        return cls(found, names, name=name, seq_len=seq_len, filler=filler)

    def __len__(self) -> int:
        """Rows."""
        return len(self.texts)

    @property
    def sources(self) -> tuple[str, ...]:
        """Source of each row."""
        return self.tokens.sources

    @property
    def lengths(self) -> Tensor:
        """Real tokens of each row, of shape (n_rows,), int64."""
        return self.tokens.attention_mask.sum(1)

    def ids(self, row: int) -> list[int]:
        """Token ids of a row, without padding."""
        return self.tokens.input_ids[row][self.tokens.attention_mask[row]].tolist()


class Remembering:
    """Keeps what was computed, so that strategies which ask for the same thing share it."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Any] = {}

    def remember(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Compute something once."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]


def _rows(
    samples: Mapping[str, Iterable[Sample]],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    seq_len: int,
    composition: Composition,
    most: int | None,
) -> Rows:
    found, sources = [], []
    for source, some in samples.items():
        own = list(islice(candidates(some, tokenizer, seq_len=seq_len, composition=composition), most))
        found += own
        sources += [source] * len(own)
    if not found:
        raise DataError(
            f"{name}: no sample has {composition.min_share:.3g} of the {seq_len:,} tokens of a row; ask for shorter "
            "rows or a smaller share"
        )
    return Rows.of(found, tokenizer, name=name, seq_len=seq_len, sources=sources)


class Pool(Remembering):
    """Samples of one or several sources.

    Parameters
    ----------
    samples : mapping of str to sequence of Sample
        For each source, under the name that it was asked for by. The order matters only where a strategy meets a tie.

    Raises
    ------
    DataError
        If there is no sample.

    Examples
    --------
    >>> from cola_lib.curation import Pool
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import byte_tokenizer
    >>> pool = Pool({"songs": [Sample("1", "Haste makes waste.", "songs")], "notes": [Sample("2", "milk", "notes")]})
    >>> pool.sources, len(pool.rows(byte_tokenizer(), seq_len=8))
    (('songs', 'notes'), 4)
    """

    def __init__(self, samples: Mapping[str, Sequence[Sample]]) -> None:
        super().__init__()
        self.samples = {source: tuple(some) for source, some in samples.items()}
        empty = [source for source, some in self.samples.items() if not some]
        if empty or not self.samples:
            raise DataError(f"a pool needs samples of each source; there are none of: {', '.join(empty) or 'any'}")

    @classmethod
    def load(
        cls,
        sources: Sequence[str],
        *,
        seed: int = 0,
        draw: int = 0,
        n_draws: int = 1,
        limit: int | None = None,
        without: Container[str] = (),
    ) -> Pool:
        """Load one of several disjoint draws of the calibration half of sources.

        Parameters
        ----------
        sources : sequence of str
            Names for :func:`cola_lib.data.load_samples`.
        seed, draw, n_draws
            As in :func:`cola_lib.calibration.draw_samples`.
        limit : int, optional
            Take no more than so many samples of each source.
        without : container of str
            Ids of samples that stand for the target, and are left out.

        Raises
        ------
        DataError
            If a source is empty, or nothing but the target's texts, or one of your own repeats evaluation items.
        """
        samples = {}
        for name in sources:
            drawn = draw_samples(source_samples(name), seed=seed, draw=draw, n_draws=n_draws)
            kept = [sample for sample in drawn if sample.id not in without]
            if drawn and not kept:
                raise DataError(
                    f"all {len(drawn):,} texts of {name} stand for the target already; give the pool other texts, or "
                    "split the file: one part for the target, one for the pool"
                )
            samples[name] = kept[:limit]
        return cls(samples)

    @property
    def fingerprint(self) -> str:
        """Hash of the samples, source by source."""
        return fingerprint({source: [sample.fingerprint for sample in some] for source, some in self.samples.items()})

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources."""
        return tuple(self.samples)

    def only(self, sources: Iterable[str]) -> Pool:
        """Take some of the sources; what was measured is not taken along.

        Parameters
        ----------
        sources : iterable of str
            Their names.
        """
        return Pool({name: self.samples[name] for name in sources})

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        seq_len: int,
        composition: Composition = PLAIN,
        most: int | None = None,
    ) -> Rows:
        """Cut all samples into candidate rows, once.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            Of the model that the set is for.
        seq_len : int
            Most tokens of a row.
        composition : Composition
            What a row holds.
        most : int, optional
            Take no more than the first so many rows of each source.

        Raises
        ------
        DataError
            If no sample is long enough.
        """
        key = ("rows", tokenizer, seq_len, composition, most)
        return self.remember(key, lambda: _rows(self.samples, tokenizer, "the pool", seq_len, composition, most))

    def whole_texts(self, tokenizer: PreTrainedTokenizerBase, seq_len: int, most: int, seed: int) -> Rows:
        """Draw whole texts of each source at random, once.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            Of the model that the set is for.
        seq_len : int
            Most tokens of a row, which holds the beginning of its text.
        most : int
            Texts of each source.
        seed : int
            Seed for the draw. A source has the same texts whatever other sources are in the pool.

        Returns
        -------
        Rows
            One per text, whose ``texts`` are not cut.
        """

        def drawn() -> Rows:
            some = {}
            for source, samples in self.samples.items():
                order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
                some[source] = [samples[i] for i in order[:most].tolist()]
            rows = _rows(some, tokenizer, "the pool", seq_len, Composition(first_only=True), None)
            text = {
                (source, one.id): worded(one, PLAIN, tokenizer) for source, samples in some.items() for one in samples
            }
            ids = (of_row[0] for of_row in rows.tokens.sample_ids)
            rows.texts = tuple(text[place] for place in zip(rows.sources, ids, strict=True))
            return rows

        return self.remember(("whole texts", tokenizer, seq_len, most, seed), drawn)

    def features(self, lm: LanguageModel, rows: Rows, key: Hashable, probes: Mapping[str, Probe]) -> dict[str, Tensor]:
        """Run the model over candidate rows once, and reduce what happens in it.

        Parameters
        ----------
        lm : LanguageModel
            Left as it is.
        rows : Rows
            Of :meth:`rows`.
        key : hashable
            Names the probes.
        probes : mapping of str to Probe
            For :func:`~cola_lib.activations.row_features`.
        """
        return self.remember(self._place(lm, rows, key), lambda: row_features(lm, rows.tokens, probes, progress=False))

    @staticmethod
    def _place(lm: LanguageModel, rows: Rows, key: Hashable) -> Hashable:
        return ("features", lm.fingerprint, rows.tokens.fingerprint, key)
