"""One document or benchmark item, as every source yields it."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cola_lib.fingerprint import fingerprint


def normalised(text: str) -> str:
    """Fold case, Unicode form and white space, so that copies of a text compare equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_hash(*parts: str) -> str:
    """Name a text by its content, so that the name survives reordering of the source.

    Parameters
    ----------
    *parts : str
        Texts that identify the item together.

    Returns
    -------
    str
        16 hexadecimal digits of a SHA-256 over the normalised parts.

    Examples
    --------
    >>> from cola_lib.data import content_hash
    >>> content_hash("Still waters run deep.")
    'ff90f21151bcc458'
    >>> content_hash("still  waters run DEEP.") == content_hash("Still waters run deep.")
    True
    """
    joined = "\x1f".join(normalised(part) for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Sample:
    """A text with what is known about it.

    Parameters
    ----------
    id : str
        Stable and unique within its source: it depends on the content, never on a position.
    text : str
        What a calibration set tokenizes.
    source : str
        Name of the registered source, or of the file or dataset the user gave.
    domain : str, optional
        ``"web"``, ``"encyclopedia"``, ``"math"``, ``"code"``, ``"commonsense"`` and so on.
    language : str, optional
        ISO 639-1 code of a natural language, or the lower-case name of a programming language.
    difficulty : str, optional
        As the source grades it, for MATH ``"1"`` to ``"5"``.
    subject : str, optional
        As the source names it.
    question, reasoning, answer : str, optional
        Parts of a benchmark item, without prompt words around them.
    choices : tuple of str
        Offered answers of a multiple-choice item.
    gold : int, optional
        Index into ``choices`` of the right one.
    split_key : str, optional
        Samples that share it stay on one side of the calibration/evaluation split, for example one
        MBPP task in 18 languages, or all questions on one passage. Default: ``id``.
    messages : tuple of mapping
        Turns of a chat, as :meth:`transformers.PreTrainedTokenizerBase.apply_chat_template` takes them. The chat
        template of the model is applied when rows are made; ``text`` holds the words alone.
    tools : tuple of mapping
        Tools that the chat may call.

    Examples
    --------
    >>> from cola_lib.data import Sample
    >>> sample = Sample("7", "Still waters run deep.", "proverbs", language="en")
    >>> sample.text, sample.split_key
    ('Still waters run deep.', '7')
    """

    id: str
    text: str
    source: str
    domain: str | None = None
    language: str | None = None
    difficulty: str | None = None
    subject: str | None = None
    question: str | None = None
    reasoning: str | None = None
    answer: str | None = None
    choices: tuple[str, ...] = ()
    gold: int | None = None
    split_key: str = ""
    messages: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        if not self.split_key:
            object.__setattr__(self, "split_key", self.id)

    @property
    def fingerprint(self) -> str:
        """Hash of its id and of all that it can put before a model: filters and files change texts under one id."""
        chat = [self.messages, self.tools] if self.messages else []
        return fingerprint([self.id, self.text, self.question, self.reasoning, self.answer, self.choices, *chat])
