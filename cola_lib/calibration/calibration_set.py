"""The calibration set: what a model is calibrated on, and where it came from."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from cola_lib.calibration.formats import Format, Wording
from cola_lib.calibration.tokenization import Layout, Row, draw_samples, generator, lay_out
from cola_lib.data import Sample, check_no_overlap, evaluation_index, is_packaged, load_samples
from cola_lib.errors import DataError, SpecError
from cola_lib.fingerprint import fingerprint_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_TENSORS = "tokens.safetensors"
_FACTS = "calibration_set.json"


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Rectangular token ids with a mask, and the samples behind each row.

    Parameters
    ----------
    input_ids : Tensor of shape (n_samples, seq_len) and dtype int64
        Token ids. What stands at masked positions has no meaning.
    attention_mask : Tensor of shape (n_samples, seq_len) and dtype bool
        True at real tokens; padding is on the right.
    sample_ids : tuple of tuple of str
        For each row, the ids of the samples in it; exemplars of format ``"few_shot"`` stand after those that
        they belong to.
    sources : tuple of str
        For each row, where its samples come from; several are joined by ``+``.
    name : str
        For people: it does not enter the fingerprint.
    seed : int
        That it was drawn with.
    layout : {"pack", "truncate", "pad", "random"}
        How the rows were made.
    draw, n_draws : int
        Which of several disjoint draws it is.
    format : str
        How the samples are worded, see :mod:`cola_lib.calibration.formats`; several are joined by ``+``.
    weights : tuple of float, optional
        How much each token of a row counts in the statistics. Default: all tokens count 1.

    Raises
    ------
    DataError
        If shapes disagree, a row is empty, or padding is not on the right.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.models import byte_tokenizer
    >>> rows = random_tokens_set(byte_tokenizer(), n_samples=4, seq_len=16)
    >>> rows.n_samples, rows.seq_len, rows.n_tokens
    (4, 16, 64)
    >>> rows.split_rows(8).input_ids.shape
    torch.Size([8, 8])
    >>> rows.take([3, 0]).n_samples
    2
    """

    input_ids: Tensor
    attention_mask: Tensor
    sample_ids: tuple[tuple[str, ...], ...]
    sources: tuple[str, ...]
    name: str
    seed: int
    layout: str
    draw: int = 0
    n_draws: int = 1
    format: str = "text"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.input_ids.shape)
        if len(shape) != 2 or 0 in shape or shape != tuple(self.attention_mask.shape):
            raise DataError(
                f"calibration set {self.name!r}: input_ids {shape} and attention_mask "
                f"{tuple(self.attention_mask.shape)} must be one shape (n_samples, seq_len)"
            )
        if self.input_ids.dtype != torch.int64 or self.attention_mask.dtype != torch.bool:
            raise DataError(
                f"calibration set {self.name!r}: input_ids must be int64 and attention_mask bool, and are "
                f"{self.input_ids.dtype} and {self.attention_mask.dtype}"
            )
        if not len(self.sample_ids) == len(self.sources) == shape[0]:
            raise DataError(
                f"calibration set {self.name!r}: {shape[0]} rows have {len(self.sample_ids)} lists of samples "
                f"and {len(self.sources)} sources"
            )
        if self.weights is not None and (
            len(self.weights) != shape[0] or not all(0 < weight < float("inf") for weight in self.weights)
        ):
            raise DataError(
                f"calibration set {self.name!r}: {shape[0]} rows need as many positive weights, and have "
                f"{len(self.weights)} with the least {min(self.weights, default=0):g}; leave out what counts nothing"
            )
        if not self.attention_mask[:, 0].all():
            row = int((~self.attention_mask[:, 0]).nonzero()[0])
            raise DataError(f"calibration set {self.name!r}: row {row} does not start with a token")
        if (self.attention_mask[:, 1:] & ~self.attention_mask[:, :-1]).any():
            raise DataError(f"calibration set {self.name!r}: padding must be on the right only")

    @property
    def n_samples(self) -> int:
        """Rows."""
        return self.input_ids.shape[0]

    @property
    def seq_len(self) -> int:
        """Positions in a row."""
        return self.input_ids.shape[1]

    @functools.cached_property
    def n_tokens(self) -> int:
        """Effective tokens: positions that are not padding."""
        return int(self.attention_mask.sum())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the tokens at unmasked positions, of the mask and of weights: what statistics are made of."""
        visible = self.input_ids.masked_fill(~self.attention_mask, 0)
        parts = [("input_ids", visible), ("attention_mask", self.attention_mask)]
        if self.weights is not None:
            parts.append(("weights", torch.tensor(self.weights, dtype=torch.float64)))
        return fingerprint_tensors(parts)

    def __len__(self) -> int:
        """Rows."""
        return self.n_samples

    def token_lists(self) -> list[list[int]]:
        """Token ids of each row, without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.input_ids, self.attention_mask, strict=True)]

    def rows(self, start: int, stop: int) -> CalibrationSet:
        """Take consecutive rows, for example to add statistics up chunk by chunk.

        Parameters
        ----------
        start, stop : int
            As in a slice.
        """
        return self.take(range(*slice(start, stop).indices(self.n_samples)))

    def take(self, rows: Sequence[int], **changes: Any) -> CalibrationSet:
        """Take some of the rows, in the order given.

        Parameters
        ----------
        rows : sequence of int
            Positions.
        **changes
            Other fields of the new set, such as its name.
        """
        at = list(rows)
        return replace(
            self,
            input_ids=self.input_ids[at],
            attention_mask=self.attention_mask[at],
            sample_ids=tuple(self.sample_ids[i] for i in at),
            sources=tuple(self.sources[i] for i in at),
            weights=None if self.weights is None else tuple(self.weights[i] for i in at),
            **changes,
        )

    def hold_out(self, every: int = 5) -> tuple[CalibrationSet, CalibrationSet]:
        """Set rows aside, at even distances, so that every part of a mixture gives its share.

        Parameters
        ----------
        every : int
            The last of so many rows is held out; of a set with fewer rows, its last.

        Returns
        -------
        rest, held_out : CalibrationSet
            All rows, in two sets. Rows that repeat, or that share a text, are not kept together.

        Raises
        ------
        DataError
            If the set has one row.
        """
        if self.n_samples < 2:
            raise DataError(f"calibration set {self.name!r}: one row cannot be divided; ask for more, shorter rows")
        every = min(every, self.n_samples)
        held = range(every - 1, self.n_samples, every)
        return self.take([i for i in range(self.n_samples) if i not in held]), self.take(held)

    def split_rows(self, seq_len: int) -> CalibrationSet:
        """Cut each row into consecutive shorter ones, to compare context lengths on exactly the same tokens.

        Parameters
        ----------
        seq_len : int
            Tokens in a new row; divides the present row length.

        Returns
        -------
        CalibrationSet
            With the same tokens in the same order under the same name. Rows that would be all padding are dropped.
            Provenance is coarse: a new row has the samples and sources of the row that it was cut from, whether or
            not each of them reaches into it.

        Raises
        ------
        SpecError
            If ``seq_len`` does not divide the row length.
        """
        if seq_len < 1 or self.seq_len % seq_len:
            raise SpecError(
                f"calibration set {self.name!r}: rows of {self.seq_len:,} tokens cannot be cut into rows of "
                f"{seq_len:,}: take a divisor of {self.seq_len:,}"
            )
        mask = self.attention_mask.reshape(-1, seq_len)
        kept = mask[:, 0]  # padding is on the right, so a row without a first token has none
        parents = torch.arange(self.n_samples).repeat_interleave(self.seq_len // seq_len)[kept].tolist()
        return replace(
            self,
            input_ids=self.input_ids.reshape(-1, seq_len)[kept],
            attention_mask=mask[kept],
            sample_ids=tuple(self.sample_ids[i] for i in parents),
            sources=tuple(self.sources[i] for i in parents),
            weights=None if self.weights is None else tuple(self.weights[i] for i in parents),
        )

    def repeat(self, times: int) -> CalibrationSet:
        """Repeat all rows, to compare more of the same with as many new samples.

        Parameters
        ----------
        times : int
            How often each row comes; the set as it is comes first.

        Returns
        -------
        CalibrationSet
            Of ``times`` as many rows, under the same name.

        Raises
        ------
        SpecError
            If ``times`` is below 1.

        Notes
        -----
        Statistics are sums over tokens, so they become ``times`` as large. A method that reads the Gram matrix only up
        to scale (Wanda, SparseGPT, GPTQ with relative damping) gives the same weights, up to rounding of the sums.
        """
        if times < 1:
            raise SpecError(f"times must be at least 1, and is {times}")
        return replace(
            self,
            input_ids=self.input_ids.repeat(times, 1),
            attention_mask=self.attention_mask.repeat(times, 1),
            sample_ids=self.sample_ids * times,
            sources=self.sources * times,
            weights=None if self.weights is None else self.weights * times,
        )

    def summary(self) -> str:
        """Say in one line what the set holds; of formats, those other than the sources' own text."""
        counts = {source: self.sources.count(source) for source in dict.fromkeys(self.sources)}
        mix = ", ".join(f"{count} {source}" for source, count in counts.items())
        worded = "" if self.format == "text" else f"{self.format}; "
        return (
            f"{self.name}: {self.n_samples:,} rows of {self.seq_len:,} ({self.layout}; {worded}{mix}), "
            f"{self.n_tokens:,} effective tokens"
        )


def build_calibration_set(
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_samples: int,
    seq_len: int,
    seed: int = 0,
    layout: Layout = "pack",
    draw: int = 0,
    n_draws: int = 1,
    segment_len: int | None = None,
    name: str | None = None,
    format: Format = "text",
    shots: int = 3,
) -> CalibrationSet:
    """Draw, tokenize and lay out samples."""
    if name is None:
        name = "+".join(dict.fromkeys(sample.source for sample in samples)) or "(no samples)"
    drawn = draw_samples(samples, seed=seed, draw=draw, n_draws=n_draws)
    wording = Wording(format, drawn, tokenizer, shots=shots)
    rng = generator("window", seed, draw)
    try:
        rows = lay_out(
            layout,
            drawn,
            tokenizer,
            n_samples=n_samples,
            seq_len=seq_len,
            rng=rng,
            segment_len=segment_len,
            wording=wording,
        )
    except DataError as error:
        of = f", draw {draw} of {n_draws}" if n_draws > 1 else ""
        raise DataError(f"{name}{of}: {error}") from error
    input_ids, mask = _tensors(rows, seq_len, tokenizer)
    return CalibrationSet(
        input_ids,
        mask,
        sample_ids=tuple(wording.provenance(row.sample_ids) for row in rows),
        sources=tuple("+".join(row.sources) for row in rows),
        name=name,
        seed=seed,
        layout=layout,
        draw=draw,
        n_draws=n_draws,
        format=format,
    )


def _tensors(rows: Sequence[Row], seq_len: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Pad rows on the right. Padding is masked, so any id that the embedding has will do."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    filler = next(token for token in candidates if token is not None)
    lengths = torch.tensor([len(row.ids) for row in rows])
    mask = torch.arange(seq_len) < lengths[:, None]  # (n_samples, seq_len)
    input_ids = torch.tensor([row.ids + [filler] * (seq_len - len(row.ids)) for row in rows], dtype=torch.int64)
    return input_ids, mask


def calibration_set(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_samples: int,
    seq_len: int,
    seed: int = 0,
    layout: Layout = "pack",
    draw: int = 0,
    n_draws: int = 1,
    segment_len: int | None = None,
    overlap: Literal["raise", "drop", "allow"] = "raise",
    format: Format = "text",
    shots: int = 3,
) -> CalibrationSet:
    """Load sources by name and mix them evenly into one calibration set.

    Parameters
    ----------
    sources : sequence of str
        Names for :func:`cola_lib.data.load_samples`. Each gets the same number of rows; what does
        not divide goes to the first ones. Rows of the sources alternate.
    tokenizer, n_samples, seq_len, seed, layout, draw, n_draws, segment_len
        As in :func:`build_calibration_set`.
    overlap : {"raise", "drop", "allow"}
        What to do with samples of a dataset of your own that share 13 words in a row with an
        evaluation item: refuse the set, leave them out with a warning, or keep them with a warning.
    format, shots
        As in :func:`build_calibration_set`; one format for all sources.

    Returns
    -------
    CalibrationSet
        Its ``sources`` are the names given here.

    Raises
    ------
    DataError
        If a source does not suffice, repeats evaluation items, or lacks what the format needs.
    SpecError
        If there is no source, one comes twice, there are fewer rows than sources, or the tokenizer has no
        chat template for format ``"chat"``.

    Examples
    --------
    >>> from cola_lib.calibration import calibration_set
    >>> from cola_lib.models import byte_tokenizer
    >>> rows = calibration_set(["technical", "openbookqa"], byte_tokenizer(), n_samples=4, seq_len=16)
    >>> rows.sources
    ('technical', 'openbookqa', 'technical', 'openbookqa')
    """
    if not sources or len(set(sources)) < len(sources):
        raise SpecError(f"sources must be one name or several different ones, and are: {', '.join(sources) or 'none'}")
    if n_samples < len(sources):
        raise SpecError(f"n_samples is {n_samples}, fewer than the {len(sources)} sources: each needs a row")
    each, rest = divmod(n_samples, len(sources))
    parts = []
    for i, source in enumerate(sources):
        part = build_calibration_set(
            source_samples(source, overlap),
            tokenizer,
            n_samples=each + (i < rest),
            seq_len=seq_len,
            seed=seed,
            layout=layout,
            draw=draw,
            n_draws=n_draws,
            segment_len=segment_len,
            name=source,
            format=format,
            shots=shots,
        )
        parts.append(replace(part, sources=(source,) * part.n_samples))
    return interleave(parts)


def source_samples(source: str, overlap: Literal["raise", "drop", "allow"] = "raise") -> list[Sample]:
    """Load a source's calibration half; a dataset of your own is compared with the evaluation items first."""
    samples = load_samples(source, "calibration")
    if is_packaged(source):
        return samples  # packaged halves are disjoint already
    if overlap == "raise":
        check_no_overlap(samples, evaluation_index(), what=f"source {source!r}")
        return samples
    found = {pair.calibration_id for pair in evaluation_index().find(samples)}
    if not found:
        return samples
    done = "left out" if overlap == "drop" else "kept, as asked: scores on those items are flattered"
    log.warning("source %r: %d of %d samples repeat evaluation items: %s", source, len(found), len(samples), done)
    return [s for s in samples if s.id not in found] if overlap == "drop" else samples


def interleave(parts: Sequence[CalibrationSet], *, name: str | None = None) -> CalibrationSet:
    """Mix calibration sets row by row, so that any first rows hold about the whole's proportions."""
    lengths = {part.seq_len for part in parts}
    if len(lengths) != 1:
        raise SpecError(f"sets of one seq_len can be mixed, and these have: {sorted(lengths) or 'no rows'}")
    if len(parts) == 1:
        return replace(parts[0], name=name or parts[0].name)
    # Row i of n stands at (i + 1/2) / n of the mixture.
    order = sorted(
        ((2 * i + 1) / (2 * part.n_samples), p, i) for p, part in enumerate(parts) for i in range(part.n_samples)
    )
    places = [(parts[p], i) for _, p, i in order]
    return replace(
        parts[0],
        input_ids=torch.stack([part.input_ids[i] for part, i in places]),
        attention_mask=torch.stack([part.attention_mask[i] for part, i in places]),
        sample_ids=tuple(part.sample_ids[i] for part, i in places),
        sources=tuple(part.sources[i] for part, i in places),
        weights=(
            tuple(1.0 if part.weights is None else part.weights[i] for part, i in places)
            if any(part.weights is not None for part in parts)
            else None
        ),
        name=name or "+".join(part.name for part in parts),
        format="+".join(dict.fromkeys(one for part in parts for one in part.format.split("+"))),
    )


def random_tokens_set(
    tokenizer: PreTrainedTokenizerBase, n_samples: int, seq_len: int, seed: int = 0
) -> CalibrationSet:
    """Draw tokens uniformly from the vocabulary: a control that holds no language at all.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Its special tokens are left out.
    n_samples : int
        Rows.
    seq_len : int
        Tokens in a row.
    seed : int
        Of the draw.

    Returns
    -------
    CalibrationSet
        Of layout ``"random"``, without padding.

    Raises
    ------
    SpecError
        If ``n_samples`` or ``seq_len`` is below 1.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.models import byte_tokenizer
    >>> rows = random_tokens_set(byte_tokenizer(), n_samples=4, seq_len=16)
    >>> rows.input_ids.shape, rows.layout
    (torch.Size([4, 16]), 'random')
    """
    if n_samples < 1 or seq_len < 1:
        raise SpecError(f"n_samples and seq_len must be at least 1, and are {n_samples} and {seq_len}")
    added = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = added | set(tokenizer.all_special_ids)
    plain = torch.tensor(sorted(set(tokenizer.get_vocab().values()) - special))
    picks = torch.randint(len(plain), (n_samples, seq_len), generator=generator("random tokens", seed))
    return CalibrationSet(
        plain[picks],
        torch.ones(n_samples, seq_len, dtype=torch.bool),
        sample_ids=((),) * n_samples,
        sources=("random",) * n_samples,
        name="random",
        seed=seed,
        layout="random",
    )
