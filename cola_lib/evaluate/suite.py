"""Suites: a fixed sample of evaluation items per capability, within a budget of tokens."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain

import pandas as pd
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cola_lib.data import Sample, load_samples
from cola_lib.errors import DataError, UnknownNameError
from cola_lib.evaluate.requests import Request, encode_request, rows_of
from cola_lib.fingerprint import fingerprint
from cola_lib.revisions import revisions

log = logging.getLogger(__name__)

CAPABILITIES = ("language", "commonsense", "math", "code", "knowledge")
"""What a model can do, reported one by one and never only as an average."""

WINDOW_TOKENS = 128
"""Length of a scored text window. Short windows give a budget more documents, and so narrower intervals."""

MIN_WINDOW_TOKENS = 64
"""A document shorter than this is left out: its few tokens all lack context."""

MAX_LENGTH = 512
"""An item with a longer request (in tokens run) is left out, and counted."""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """A context, the continuations offered, and which of them is right.

    Parameters
    ----------
    id : str
        Unique in a suite and stable: it depends on the item's content.
    capability, task : str
        Where it is reported.
    context : str or tuple of str
        One for all continuations, or one for each (WinoGrande fills the blank in the context).
    continuations : tuple of str
        One for plain text and solutions, several for multiple choice.
    gold : int
        Index of the right continuation.

    Raises
    ------
    DataError
        If contexts and continuations do not pair up, a continuation is empty, or ``gold`` is out of range.
    """

    id: str
    capability: str
    task: str
    context: str | tuple[str, ...]
    continuations: tuple[str, ...]
    gold: int = 0

    def __post_init__(self) -> None:
        n = len(self.continuations)
        if not isinstance(self.context, str) and len(self.context) != n:
            raise DataError(f"item {self.id}: {len(self.context)} contexts for {n} continuations")
        if not 0 <= self.gold < n:
            raise DataError(f"item {self.id}: gold is {self.gold}, with {n} continuations")
        if not all(self.continuations):
            raise DataError(f"item {self.id}: continuation {self.continuations.index('')} is empty")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Context and continuation of each choice."""
        contexts = self.context
        if isinstance(contexts, str):
            contexts = (contexts,) * len(self.continuations)
        return tuple(zip(contexts, self.continuations, strict=True))

    def requests(self, tokenizer: PreTrainedTokenizerBase) -> tuple[Request, ...]:
        """Tokenize each choice.

        Parameters
        ----------
        tokenizer : PreTrainedTokenizerBase
            The evaluated model's.
        """
        return tuple(encode_request(tokenizer, *pair) for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class TaskCount:
    """What a suite took from a task, and what it had to leave out.

    Parameters
    ----------
    task, capability : str
        Names.
    available : int
        Evaluation items of the task's source.
    items : int
        Those in the suite.
    tokens : int
        Tokens that must be run to score them.
    too_long, too_short : int
        Items that were met on the way and left out.
    """

    task: str
    capability: str
    available: int
    items: int = 0
    tokens: int = 0
    too_long: int = 0
    too_short: int = 0


@dataclass(frozen=True)
class Suite:
    """A fixed list of items.

    Parameters
    ----------
    items : tuple of EvalItem
        In the order in which the budget took them, capability by capability.
    name : str
        For labels; not part of the fingerprint.
    tokens_per_capability : int
        The budget, counted in tokens that are run.
    seed : int
        Of the sample of items.
    counts : tuple of TaskCount
        How the items came about.
    """

    items: tuple[EvalItem, ...]
    name: str = "capabilities"
    tokens_per_capability: int = 0
    seed: int = 0
    counts: tuple[TaskCount, ...] = field(default=(), compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what the items say; names, budget and seed do not matter."""
        return fingerprint({"items": [asdict(item) for item in self.items], **revisions("suite")})

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Those with an item, in order."""
        return tuple(dict.fromkeys(item.capability for item in self.items))

    def count_table(self) -> pd.DataFrame:
        """One row per task: items available, taken, left out, and tokens."""
        return pd.DataFrame([asdict(count) for count in self.counts])


Worded = tuple[str | tuple[str, ...], tuple[str, ...], int]
"""Context or contexts, continuations, and the index of the right one."""

Format = Callable[[Sample, PreTrainedTokenizerBase], Worded | None]
"""Words a sample as an item; None where it is too short to be one."""


@dataclass(frozen=True, slots=True)
class Task:
    """Where a task's items come from, and how they are worded.

    Parameters
    ----------
    name, capability : str
        Names.
    source : str
        For :func:`cola_lib.data.load_samples`.
    format : callable
        See :data:`Format`.
    """

    name: str
    capability: str
    source: str
    format: Format


def _window(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded | None:
    """Take the first tokens of a document, scored from its first token on."""
    text = sample.text[: WINDOW_TOKENS * 40]  # no tokenizer packs more characters into a token on average
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < MIN_WINDOW_TOKENS:
        return None
    if len(ids) > WINDOW_TOKENS:
        # A cut inside a character decodes to U+FFFD, which would be text that nobody wrote.
        text = tokenizer.decode(ids[:WINDOW_TOKENS], clean_up_tokenization_spaces=False).rstrip("\ufffd")
    return "", (text,), 0


def _last_word(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded | None:
    """LAMBADA: the last word, given the passage before it (arXiv 1606.06031)."""
    context, _, word = sample.text.rstrip().rpartition(" ")
    return (context, (" " + word,), 0) if context else None


def _cloze(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """Question and answer texts, never letters: small models cannot yet use letters (arXiv 2406.08446)."""
    context = f"Question: {sample.question}\nAnswer:"
    return context, tuple(f" {choice}" for choice in sample.choices), sample.gold


def _passage(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """BoolQ: the question stands after its passage, with its own prompt word."""
    return f"{sample.question}\nAnswer:", tuple(f" {choice}" for choice in sample.choices), sample.gold


def _ending(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """HellaSwag: which ending follows."""
    return sample.question, tuple(f" {choice}" for choice in sample.choices), sample.gold


def _blank(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """WinoGrande, partial evaluation: the rest of the sentence, given each filling (arXiv 1806.02847)."""
    before, _, after = sample.question.partition("_")
    return tuple(before + choice for choice in sample.choices), (after,) * len(sample.choices), sample.gold


def _solution(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """Reasoning and answer as one text to predict, zero-shot, worded as the same source's calibration text."""
    return _after(sample, f"Question: {sample.question}\nAnswer:")


def _code(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """Code that solves the task, given its description or the function's head."""
    return _after(sample, sample.question)


def _after(sample: Sample, context: str) -> Worded:
    """Split a sample's text where its question ends."""
    if not sample.text.startswith(context):
        raise DataError(
            f"sample {sample.id} of source {sample.source} does not begin with its question, {context[:60]!r}; "
            "its source and its task in cola_lib/evaluate/suite.py word it differently"
        )
    return context, (sample.text[len(context) :],), 0


TASKS: tuple[Task, ...] = (
    Task("c4", "language", "c4", _window),
    Task("wikipedia", "language", "wikipedia", _window),
    Task("lambada", "language", "lambada", _last_word),
    Task("piqa", "commonsense", "piqa", _cloze),
    Task("hellaswag", "commonsense", "hellaswag", _ending),
    Task("winogrande", "commonsense", "winogrande", _blank),
    Task("arc_easy", "commonsense", "arc:set=easy", _cloze),
    Task("arc_challenge", "commonsense", "arc:set=challenge", _cloze),
    Task("openbookqa", "commonsense", "openbookqa", _cloze),
    Task("csqa", "commonsense", "csqa", _cloze),
    Task("siqa", "commonsense", "siqa", _cloze),
    Task("boolq", "commonsense", "boolq", _passage),
    Task("gsm8k", "math", "gsm8k", _solution),
    Task("math", "math", "math", _solution),
    Task("humaneval", "code", "humaneval", _code),
    Task("mbpp", "code", "mbpp:language=python", _code),
    Task("mmlu", "knowledge", "mmlu", _cloze),
)


def capability_suite(
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens_per_capability: int = 4096,
    seed: int = 0,
    capabilities: Sequence[str] = CAPABILITIES,
    max_length: int = MAX_LENGTH,
) -> Suite:
    """Draw a fixed sample of items for each capability.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Of the model that will be evaluated; it decides how long an item is.
    tokens_per_capability : int
        Budget of *all* tokens that have to be run, context included, because those are what costs
        time. A context that several choices share counts once.
    seed : int
        Of the sample. The same seed and budget give the same items; a smaller budget gives the first
        items of a larger one.
    capabilities : sequence of str
        Which of :data:`CAPABILITIES`.
    max_length : int
        Items with a request of more tokens are left out, and counted in ``Suite.counts``.

    Returns
    -------
    Suite
        Within a capability the tasks take turns, so each has the same number of items until one runs dry.

    Raises
    ------
    UnknownNameError
        If a capability is not known.
    DataError
        If the budget does not hold one item of each task of a capability.
    """
    for name in capabilities:
        if name not in CAPABILITIES:
            raise UnknownNameError("capability", name, CAPABILITIES)
    filled = [
        _fill(capability, tokenizer, tokens_per_capability, seed, max_length)
        for capability in CAPABILITIES
        if capability in capabilities
    ]
    return Suite(
        items=tuple(chain.from_iterable(items for items, _ in filled)),
        tokens_per_capability=tokens_per_capability,
        seed=seed,
        counts=tuple(chain.from_iterable(counts for _, counts in filled)),
    )


def _fill(
    capability: str, tokenizer: PreTrainedTokenizerBase, budget: int, seed: int, max_length: int
) -> tuple[list[EvalItem], list[TaskCount]]:
    """Take items from a capability's tasks in turns, until the next one would not fit.

    Stopping there, instead of looking for a smaller item, is what makes a small budget's items the first of
    a large one's, and keeps long items from being passed over.
    """
    queues = [_Queue(task, tokenizer, seed, max_length) for task in TASKS if task.capability == capability]
    items: list[EvalItem] = []
    spent = 0
    waiting = list(queues)
    while waiting:
        for queue in tuple(waiting):
            item, cost = next(queue, (None, 0))
            if item is None:
                waiting.remove(queue)
                continue
            if spent + cost > budget:
                _check_every_task(capability, queues, budget, spent + cost)
                return items, [queue.count for queue in queues]
            queue.take(cost)
            items.append(item)
            spent += cost
    _check_every_task(capability, queues, budget, spent)
    log.warning(
        "%s: all %d items together have %d tokens, fewer than the budget of %d",
        capability,
        len(items),
        spent,
        budget,
    )
    return items, [queue.count for queue in queues]


def _check_every_task(capability: str, queues: Sequence[_Queue], budget: int, needed: int) -> None:
    """Refuse a capability that would lack one of its tasks."""
    empty = [queue.count for queue in queues if not queue.count.items]
    if not empty:
        return
    first = empty[0]
    if first.available and needed <= budget:
        raise DataError(
            f"{capability}: none of the {first.available} items of task {first.task} can be used: "
            f"{first.too_long} too long, {first.too_short} too short; raise max_length"
        )
    raise DataError(
        f"{capability}: a budget of {budget} tokens ends before task {first.task} has an item; one item "
        f"of each of its {len(queues)} tasks takes at least {needed}; raise tokens_per_capability"
    )


class _Queue(Iterator[tuple[EvalItem, int]]):
    """A task's usable items in the order of a seeded hash, tokenized only when their turn comes."""

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, seed: int, max_length: int) -> None:
        samples = load_samples(task.source, "evaluation")
        self._samples = iter(sorted(samples, key=lambda sample: _rank(seed, sample.id)))
        self._task, self._tokenizer, self._max_length = task, tokenizer, max_length
        self.count = TaskCount(task.name, task.capability, available=len(samples))

    def __next__(self) -> tuple[EvalItem, int]:
        for sample in self._samples:
            worded = self._task.format(sample, self._tokenizer)
            if worded is None:
                self.count = replace(self.count, too_short=self.count.too_short + 1)
                continue
            item = EvalItem(f"{self._task.name}/{sample.id}", self._task.capability, self._task.name, *worded)
            requests = item.requests(self._tokenizer)
            if max(len(request.fed) for request in requests) > self._max_length:
                self.count = replace(self.count, too_long=self.count.too_long + 1)
                continue
            return item, sum(row.n_tokens for row in rows_of(tuple(dict.fromkeys(requests))))
        raise StopIteration

    def take(self, cost: int) -> None:
        """Count the item that was handed out last as taken."""
        self.count = replace(self.count, items=self.count.items + 1, tokens=self.count.tokens + cost)


def _rank(seed: int, name: str) -> bytes:
    """Shuffle by hash: an item keeps its rank when others are added or removed."""
    return hashlib.sha256(f"{seed}|{name}".encode()).digest()
