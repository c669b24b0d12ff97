"""Questions as the publishers of some datasets write them, read as the library's own columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cola_lib.errors import DataError

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
    letters = list("abcde"[: len(choices)])
    if record["correct"] not in letters:
        return UNANSWERED
    gold = letters.index(record["correct"])
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


def as_question(record: Record, where: str = "record") -> Record:
    """Read a record of a known dataset.

    Parameters
    ----------
    record : mapping
        As the dataset's file holds it.
    where : str
        Where it stands, for the message.

    Returns
    -------
    mapping
        With ``question``, ``answer`` and what else is known of it; the record itself if its columns are those of no
        known dataset.

    Raises
    ------
    DataError
        If it has the columns of a known dataset, and something else in them.
    """
    for columns, read in LAYOUTS.items():
        if columns <= record.keys():
            try:
                return read(record)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{where}: columns {', '.join(sorted(columns))} are those of a known dataset, and do not hold what "
                    f"they hold there ({error!r}); name the column that holds the text"
                ) from error
    return record
