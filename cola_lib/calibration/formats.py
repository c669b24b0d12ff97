r"""How a structured sample is worded before it is tokenized.

A benchmark item has a question, an answer, often the reasoning between them, and sometimes choices. What of it a
calibration set holds, and in which words, is its format:

``text``
    The source's own text. Every sample has one; it is the default. A chat goes through the tokenizer's chat template,
    with its system prompt and tools.
``question``
    The question alone, without prompt words.
``question_answer``
    ``Question: …``, a new line, ``Answer: …`` with the final answer and no reasoning.
``question_reasoning``
    The same with the reasoning before the final answer. A solution that boxes its answer (MATH) states it already,
    so it is not said again.
``chat``
    A user's turn with the question, an assistant's with reasoning and answer, or the answer where there is no
    reasoning, through the tokenizer's own chat template, with whatever system prompt that adds by itself. A sample
    that is a chat keeps all of its turns.
``few_shot``
    Solved exemplars, then the sample itself, solved: blank lines between them.

The right answer of a multiple-choice item stands as text and never as a letter, and the other choices do not appear.
Sources with words of their own keep them: a HellaSwag ending follows its context, WinoGrande's gap is filled, BoolQ's
question stands after its passage, and code after its description.

References
----------
Bandari et al., "Is C4 Dataset Optimal for Pruning? An Investigation of Calibration Data for LLM Pruning",
arXiv 2410.07461: zero-shot, few-shot and chain-of-thought calibration data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from cola_lib.data import Sample
from cola_lib.data.benchmarks import question_answer as prompted
from cola_lib.errors import DataError, SpecError, UnknownNameError, translated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Format = Literal["text", "question", "question_answer", "question_reasoning", "chat", "few_shot"]

OWN_WORDS = frozenset({"boolq", "hellaswag", "humaneval", "lambada", "mbpp", "winogrande"})
"""Sources whose text is the question with its answer in other words than ``Question: … Answer: …``."""

_NEEDS: dict[str, tuple[str, ...]] = {
    "text": (),
    "question": ("question",),
    "question_answer": ("question", "answer"),
    "question_reasoning": ("question", "reasoning", "answer"),
    "chat": ("question", "answer"),  # or messages, see formats_of
    "few_shot": ("question", "answer"),
}

# Some templates write today's date into the system prompt, and the same arguments must give the same bytes on any day.
# A macro of that name hides the function that tells the date. Llama 3's template falls back to this one.
_FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


def formats_of(sample: Sample) -> tuple[str, ...]:
    """List the formats that a sample has the parts for."""
    whole = {"chat"} if sample.messages else set()
    return tuple(name for name, parts in _NEEDS.items() if name in whole or all(_part(sample, part) for part in parts))


def _part(sample: Sample, part: str) -> str | None:
    return _answer(sample) if part == "answer" else getattr(sample, part)


def _answer(sample: Sample) -> str | None:
    """Take the answer as text: a user's record may hold a letter beside its choices."""
    if not sample.choices or sample.gold is None:
        return sample.answer
    if not 0 <= sample.gold < len(sample.choices):
        raise DataError(
            f"source {sample.source!r}: sample {sample.id} has gold {sample.gold}, and {len(sample.choices)} choices; "
            "gold counts from 0"
        )
    return sample.choices[sample.gold]


def _check(sample: Sample, format: str) -> None:
    """Refuse a sample that lacks a part."""
    missing = [part for part in _NEEDS[format] if not _part(sample, part)]
    if missing:
        raise DataError(
            f"source {sample.source!r}: sample {sample.id} has no {' and no '.join(missing)}, which format {format!r} "
            f"needs; it can take: {', '.join(formats_of(sample))}"
        )


def _question(sample: Sample) -> str:
    return sample.question or ""


def _response(sample: Sample) -> str:
    """Reasoning and answer, or the answer alone; the words of :func:`cola_lib.data.benchmarks.question_answer`."""
    answer, reasoning = _answer(sample) or "", sample.reasoning
    if not reasoning:
        return answer
    return reasoning if "\\boxed" in reasoning else f"{reasoning}\nThe answer is {answer}."


def _solved(sample: Sample) -> str:
    return question_reasoning(sample) if sample.reasoning else question_answer(sample)


# ---------------------------------------------------------------------------------------------
# the formats


def text(sample: Sample, tokenizer: PreTrainedTokenizerBase | None = None, shots: Sequence[Sample] = ()) -> str:
    """Word a sample as its source does; a chat through the tokenizer's template."""
    return rendered(sample.messages, sample.tools, tokenizer, sample) if sample.messages else sample.text


def question(sample: Sample, tokenizer: object = None, shots: Sequence[Sample] = ()) -> str:
    """Word a sample as its question alone."""
    _check(sample, "question")
    return _question(sample)


def question_answer(sample: Sample, tokenizer: object = None, shots: Sequence[Sample] = ()) -> str:
    """Word a sample as question and final answer, without reasoning."""
    _check(sample, "question_answer")
    return sample.text if sample.source in OWN_WORDS else prompted(_question(sample), _answer(sample) or "")


def question_reasoning(sample: Sample, tokenizer: object = None, shots: Sequence[Sample] = ()) -> str:
    """Word a sample as question, reasoning and final answer."""
    _check(sample, "question_reasoning")
    return prompted(_question(sample), _response(sample))


def chat(sample: Sample, tokenizer: PreTrainedTokenizerBase, shots: Sequence[Sample] = ()) -> str:
    """Word a sample as a user's and an assistant's turn in the tokenizer's chat template.

    Notes
    -----
    The template writes all special tokens itself, a beginning-of-sequence token among them where the model has one:
    the text is tokenized without adding any (:meth:`Wording.templated`). A template that asks for today's
    date is given a fixed one.
    """
    if sample.messages:
        return rendered(sample.messages, sample.tools, tokenizer, sample)
    _check(sample, "chat")
    turns = [{"role": "user", "content": _question(sample)}, {"role": "assistant", "content": _response(sample)}]
    return rendered(turns, (), tokenizer, sample)


def rendered(
    turns: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase | None,
    sample: Sample,
) -> str:
    """Put a chat through the tokenizer's template."""
    callable_tools: list[Any] | None = [dict(tool) for tool in tools] or None
    try:
        if tokenizer is None:
            raise ValueError("no tokenizer")
        template = tokenizer.get_chat_template(tools=callable_tools)
    except ValueError as error:
        others = ", ".join(repr(name) for name in formats_of(sample) if name not in ("text", "chat"))
        raise SpecError(
            f"source {sample.source!r}: format 'chat' needs the tokenizer's chat template, and this one has none that "
            "it takes by default: take the tokenizer of the model's instruct version, set tokenizer.chat_template, or "
            f"take another format: {others or 'there is none for this sample'} (cola compress --format)"
        ) from error
    if callable_tools and not re.search(r"\btools\b", template):
        raise SpecError(
            f"source {sample.source!r}: sample {sample.id} comes with tools, which this tokenizer's chat template does "
            "not read: take a model that calls tools, or leave column 'tools' out"
        )
    if "strftime_now" in template:
        template = _FIXED_DATE + template
    what = f"source {sample.source!r}: the tokenizer's chat template cannot render sample {sample.id}"
    with translated(f"{what}; correct it, or take another format"):
        return str(
            tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], tools=callable_tools, tokenize=False, chat_template=template
            )
        )


def few_shot(sample: Sample, tokenizer: object = None, shots: Sequence[Sample] = ()) -> str:
    """Word a sample as solved exemplars and the sample itself, solved, with blank lines between them."""
    _check(sample, "few_shot")
    for shot in shots:
        _check(shot, "few_shot")
    return "\n\n".join(_solved(one) for one in (*shots, sample))


FORMATS: Mapping[str, Callable[..., str]] = MappingProxyType(
    {
        "text": text,
        "question": question,
        "question_answer": question_answer,
        "question_reasoning": question_reasoning,
        "chat": chat,
        "few_shot": few_shot,
    }
)
"""Each takes ``(sample, tokenizer, shots)``, the exemplars being samples, and returns the text to tokenize.

``DataError`` is raised for a sample that lacks a part, with the formats that it can take; ``SpecError`` for a tokenizer
that has no chat template.
"""


# ---------------------------------------------------------------------------------------------
# the samples of one draw in one format


class Wording:
    """One format for the samples of one draw, with their exemplars.

    Notes
    -----
    Exemplars have the sample's own source. They are taken from the end of the draw, the next ``shots`` for each
    sample, and the sample itself is passed over. So they depend on the ids, the seed and the draw alone, neither on the
    number of rows nor on lengths; and as rows begin at the other end, no text comes twice as long as the draw has
    ``shots + 1`` samples of that source for each row. A smaller draw is gone through again.
    """

    def __init__(
        self, format: str, drawn: Sequence[Sample], tokenizer: PreTrainedTokenizerBase, *, shots: int = 3
    ) -> None:
        if format not in FORMATS:
            raise UnknownNameError("format", format, FORMATS)
        if format == "few_shot" and shots < 1:
            raise SpecError(f"shots must be at least 1 for format 'few_shot', and is {shots}")
        self.format = format
        self._tokenizer = tokenizer
        self._shots = shots if format == "few_shot" else 0
        self._of_source: dict[str, list[Sample]] = {}
        self._place: dict[str, tuple[str, int]] = {}
        for sample in drawn if self._shots else ():
            group = self._of_source.setdefault(sample.source, [])
            self._place[sample.id] = (sample.source, len(group))
            group.append(sample)

    def templated(self, sample: Sample) -> bool:
        """Whether a chat template writes the sample's special tokens, so that the tokenizer must not add its own."""
        return self.format == "chat" or (self.format == "text" and bool(sample.messages))

    def text(self, sample: Sample) -> str:
        """Word one sample of the draw."""
        return FORMATS[self.format](sample, self._tokenizer, self.exemplars(sample.id))

    def exemplars(self, sample_id: str) -> tuple[Sample, ...]:
        """Other samples that stand before a sample; none unless the format is ``"few_shot"``."""
        if not self._shots:
            return ()
        source, place = self._place[sample_id]
        group = self._of_source[source]
        if len(group) <= self._shots:
            raise DataError(
                f"source {source!r}: {self._shots} exemplars were asked for each sample, and its draw has "
                f"{len(group) - 1} other samples; ask for fewer shots or fewer draws"
            )
        # One more than the shots, since one of them may be the sample itself.
        last = len(group) - 1 - place * self._shots
        near = [group[(last - i) % len(group)] for i in range(self._shots + 1)]
        return tuple(sample for sample in near if sample.id != sample_id)[: self._shots]

    def provenance(self, sample_ids: Sequence[str]) -> tuple[str, ...]:
        """List the samples of a row with their exemplars after them, each once."""
        shots = (shot.id for sample_id in sample_ids for shot in self.exemplars(sample_id))
        return tuple(dict.fromkeys((*sample_ids, *shots)))
