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
    """Arguments of llm-compressor's ``oneshot``."""
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
    """Arguments of GPTQModel's ``quantize``."""
    _check_unweighted(rows, "GPTQModel")
    return {
        "calibration": [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows.token_lists()],
        "calibration_sort": None,
        "calibration_data_min_length": 0,
        "batch_size": 1,
    }


def row_texts(rows: CalibrationSet, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Write rows out for a tool that tokenizes them again."""
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
