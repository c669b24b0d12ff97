"""Questions as the publishers of some datasets write them, read as the library's own columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

UNANSWERED: Record = {"text": ""}
"""What is read of an item whose answer is kept secret, as in a test split: a record without text."""

_OPTION = re.compile(r"\s*,?\s*\b[a-e] \)\s*")


def _lettered(question: str, letters: Sequence[str], choices: Sequence[str]) -> str:
    offered = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return f"{question}\n{offered}"


def _commonsense_qa(record: Record) -> Record:
    """Read an item of CommonsenseQA, ARC or OpenBookQA: choices with letters, and the right one's letter."""
    letters, choices = list(record["choices"]["label"]), list(record["choices"]["text"])
    if record["answerKey"] not in letters:
        return UNANSWERED
    gold = letters.index(record["answerKey"])
    question = _lettered(record["question"], letters, choices)
    return {"question": question, "answer": choices[gold], "choices": choices, "gold": gold, "id": record.get("id")}


def _math_qa(record: Record) -> Record:
    """Read a problem of MathQA, whose options stand in one line: ``a ) 38 , b ) 27.675 , c ) 30``."""
    choices = [option.strip() for option in _OPTION.split(record["options"])[1:]]
    gold = "abcde".find(record["correct"])
    if not 0 <= gold < len(choices):
        return UNANSWERED
    reasoning = str(record["Rationale"]).strip().strip('"').strip()
    return {
        "question": record["Problem"],
        "reasoning": reasoning,
        "answer": choices[gold],
        "choices": choices,
        "gold": gold,
    }


def _code_qa(record: Record) -> Record:
    """Read a question of CodeQA with the function that it is about."""
    code = record.get("code") or record.get("code_processed") or ""
    return {"question": f"{code}\n{record['question']}", "answer": record["answer"], "domain": "code"}


LAYOUTS: dict[frozenset[str], Callable[[Record], Record]] = {
    frozenset({"question", "choices", "answerKey"}): _commonsense_qa,
    frozenset({"Problem", "Rationale", "options", "correct"}): _math_qa,
    frozenset({"question", "answer", "code"}): _code_qa,
    frozenset({"question", "answer", "code_processed"}): _code_qa,
}
"""Columns that a dataset must have, and how its records are then read."""


def as_question(record: Record) -> Record:
    """Read a record of a known dataset.

    Parameters
    ----------
    record : mapping
        As the dataset's file holds it.

    Returns
    -------
    mapping
        With ``question``, ``answer`` and what else is known of it; the record itself if its columns are those of no
        known dataset.
    """
    for columns, read in LAYOUTS.items():
        if columns <= record.keys():
            return read(record)
    return record
