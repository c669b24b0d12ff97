"""Calibration sets as other tools take them, with what keeps those tools from shuffling, cutting or dropping rows.

Each function gives keyword arguments for one call of the tool::

    oneshot(model=model, recipe=recipe, **for_llmcompressor(rows))      # llm-compressor 0.14
    model.quantize(**for_gptqmodel(rows))                               # GPTQModel 7.7

Where a tool lives in an environment of its own, a folder of :func:`~cola_lib.curation.write_dataset` goes there, and
its card says the same.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cola_lib.calibration import CalibrationSet
from cola_lib.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def for_llmcompressor(rows: CalibrationSet, *, batch_size: int = 1) -> dict[str, Any]:
    """Arguments of llm-compressor's ``oneshot``.

    Parameters
    ----------
    rows : CalibrationSet
        Unweighted.
    batch_size : int
        Rows that the tool takes at a time.

    Returns
    -------
    dict
        ``dataset`` is a ``DataLoader`` over rows of ``input_ids`` and ``attention_mask``, without padding. The tool
        takes it as it is. A plain dataset it would shuffle, without a seed, or else sort by length, which mixes rows of
        one length too (from 17 rows on); and it would take 512 rows at most.

    Raises
    ------
    DataError
        If rows are weighted; or if they differ in length and ``batch_size`` is above 1.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.curation import for_llmcompressor
    >>> from cola_lib.models import byte_tokenizer
    >>> arguments = for_llmcompressor(random_tokens_set(byte_tokenizer(), 2, 8))
    >>> len(arguments["dataset"])
    2
    """
    from datasets import Dataset
    from torch.utils.data import DataLoader

    _check_unweighted(rows, "llm-compressor")
    ids = rows.token_lists()
    lengths = {len(row) for row in ids}
    if batch_size > 1 and len(lengths) > 1:
        raise DataError(
            f"calibration set {rows.name!r}: its rows have {min(lengths):,} to {max(lengths):,} tokens, which make no "
            "batches; take batch_size 1, or a set of layout 'pack'"
        )
    dataset = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    return {"dataset": DataLoader(dataset.with_format("torch"), batch_size=batch_size)}


def for_gptqmodel(rows: CalibrationSet) -> dict[str, Any]:
    """Arguments of GPTQModel's ``quantize``.

    Parameters
    ----------
    rows : CalibrationSet
        Unweighted, and not longer than the model's ``max_position_embeddings``: there the tool cuts rows.

    Returns
    -------
    dict
        ``calibration`` is a list of ``{"input_ids", "attention_mask"}``, without padding and without a ``text``, which
        the tool would tokenize again in their stead. The rest switches off that it sorts rows by length and drops those
        of 10 tokens or fewer.

    Raises
    ------
    DataError
        If rows are weighted.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.curation import for_gptqmodel
    >>> from cola_lib.models import byte_tokenizer
    >>> arguments = for_gptqmodel(random_tokens_set(byte_tokenizer(), 2, 8))
    >>> sorted(arguments["calibration"][0])
    ['attention_mask', 'input_ids']
    """
    _check_unweighted(rows, "GPTQModel")
    return {
        "calibration": [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows.token_lists()],
        "calibration_sort": None,
        "calibration_data_min_length": 0,
        "batch_size": 1,
    }


def row_texts(rows: CalibrationSet, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Write rows out for a tool that tokenizes them again.

    Parameters
    ----------
    rows : CalibrationSet
        Any.
    tokenizer : PreTrainedTokenizerBase
        That wrote the rows.

    Returns
    -------
    list of str
        A text for each row, special tokens spelled out: those of a chat template, and ends of documents. The ones that
        the tokenizer puts around any text by itself are left out, so that they do not come twice.

    Examples
    --------
    >>> from cola_lib.curation import Pool, row_texts
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import byte_tokenizer
    >>> tokenizer = byte_tokenizer()
    >>> rows = Pool({"proverbs": [Sample("1", "Haste makes waste.", "proverbs")]}).rows(tokenizer, seq_len=32)
    >>> row_texts(rows.tokens, tokenizer)
    ['Haste makes waste.']
    """
    before, after = _added(tokenizer)
    found = []
    for ids in rows.token_lists():
        if before and ids[: len(before)] == before:
            ids = ids[len(before) :]
        if after and ids[-len(after) :] == after:
            ids = ids[: -len(after)]
        found.append(str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
    return found


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that a tokenizer puts before and after any text."""
    plain = list(tokenizer("a", add_special_tokens=False).input_ids)
    whole = list(tokenizer("a").input_ids)
    start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
    return whole[:start], whole[start + len(plain) :]


def _check_unweighted(rows: CalibrationSet, tool: str) -> None:
    if rows.weights is not None:
        raise DataError(
            f"calibration set {rows.name!r}: its rows have weights, and {tool} counts every row alike; take a set of "
            "another strategy, or dataclasses.replace(rows, weights=None) if they may be forgotten"
        )
