"""What a row of a dataset is: chats, instructions, questions, preference pairs, texts.

A row becomes one of three things: a text, a question with its answer, or a chat. :data:`SHAPES` is the table of what is
recognized; to read one more shape, add a row to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """Read a record of a known dataset."""
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


# ---------------------------------------------------------------------------------------------
# what a row is


@dataclass(frozen=True)
class Shape:
    """One way in which datasets write a row."""

    name: str
    read: Callable[[Record], Record | None]


TEXTS = ("text", "content")
CHATS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
SYSTEM = ("system", "system_prompt")
ASKS = ("instruction", "prompt", "query", "question", "problem", "input", "inputs", "user")
GIVENS = ("input", "context")
REPLIES = ("output", "response", "answer", "solution", "completion", "targets", "target", "assistant")
PASSAGES = ("passage", "context")
ANSWERS = ("answer", "answers")
OPTIONS = ("choices", "options")
RIGHT = (
    "answer",
    "answerKey",
    "answer_key",
    "answer_idx",
    "answer_index",
    "gold",
    "label",
    "correct_answer",
    "correct",
)

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "developer": "system",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
"""Names of roles, as the chat templates of models have them."""


def recognized(record: Record) -> tuple[str, Record] | None:
    """Find out what a row is."""
    for shape in SHAPES:
        if (found := shape.read(record)) is not None:
            return shape.name, found
    return None


def first(record: Record, names: Iterable[str]) -> str | None:
    """First of the columns that a record has a value in."""
    return next((name for name in names if record.get(name) is not None), None)


def _plain(record: Record) -> Record | None:
    name = first(record, TEXTS)
    if name == "content" and record.get("role") is not None:
        raise ValueError("this is one message of a chat; put each chat into one row, as a list in column 'messages'")
    if name is None:
        return None
    parts = ("question", "reasoning", "answer", "choices", "gold")
    return item(record, text=record[name], **{part: record[part] for part in parts if part in record})


KEPT = ("id", "domain", "language", "difficulty", "subject", "split_key")


def item(record: Record, **known: Any) -> Record:
    """Canonical form of a record: what is known of its text, and nothing else that it may hold."""
    return {name: record[name] for name in KEPT if name in record} | known


def _published(record: Record) -> Record | None:
    if isinstance(record.get("choices"), list | str):  # the known datasets have an object there
        return None
    found = as_question(record)
    return None if found is record else found


def _chat(record: Record) -> Record | None:
    name = first(record, CHATS)
    if name is None:
        return None
    turns = messages(record[name])
    return None if turns is None else chat(record, turns)


def _preferred(record: Record) -> Record | None:
    """Read the chosen side of a pair, with its prompt."""
    if record.get("chosen") is None:
        return None
    chosen, prompt = parsed(record["chosen"]), parsed(record.get("prompt"))
    if (turns := messages(chosen)) is None:
        if not isinstance(chosen, str):
            raise ValueError(f"'chosen' should be a text or a list of messages, and is a {type(chosen).__name__}")
        turns = _transcript(chosen) or [{"role": "assistant", "content": chosen}]
    asked = messages(prompt)
    if asked is None and isinstance(prompt, str):
        asked = _transcript(prompt) or [{"role": "user", "content": prompt}]
    unasked = bool(turns) and turns[0]["role"] == "assistant"  # else the prompt stands in the chosen side already
    if asked and unasked:
        turns = [*asked, *turns]
    elif unasked and (ask := first(record, ("question", "instruction", "query"))):
        turns = [{"role": "user", "content": text_of(record, ask)}, *turns]
    return chat(record, turns)


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _transcript(text: str) -> list[dict[str, Any]] | None:
    """Read a chat that is written out, as Anthropic's HH-RLHF has it."""
    before, *parts = _SPEAKER.split(text)
    if before.strip() or not parts:
        return None
    names = {"Human": "user", "Assistant": "assistant"}
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": names[who], "content": said.strip()} for who, said in turns if said.strip()]


def _multiple_choice(record: Record) -> Record | None:
    name, asked = first(record, OPTIONS), first(record, ("question", "query", "problem"))
    if name is None or asked is None:
        return None
    letters, choices = _offered(parsed(record[name]))
    if not choices:
        return None
    key = first(record, ("gold",) if isinstance(record.get("gold"), int) else RIGHT)
    if key is None or record[key] in (-1, ""):  # as a test split has it
        return UNANSWERED
    gold = _which(record[key], letters, choices)
    if gold is None and (not isinstance(record[key], str) or len(record[key].strip()) == 1):
        raise ValueError(f"{key!r} is {record[key]!r}, which is none of the {len(choices)} choices, counted from 0")
    answer = record[key] if gold is None else choices[gold]
    question, reasoning = _with_passage(record, asked), record.get("reasoning")
    return item(record, question=question, reasoning=reasoning, answer=answer, choices=choices, gold=gold)


def _offered(value: Any) -> tuple[list[str], list[str]]:
    """Letters and words of the choices, however they are written."""
    if isinstance(value, Mapping) and {"label", "text"} <= value.keys():
        letters, choices = value["label"], value["text"]
    elif isinstance(value, Mapping):
        letters, choices = zip(*((k, v) for k, v in value.items() if v is not None), strict=True) if value else ([], [])
    elif isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) and "text" in one for one in value):
        choices = [one["text"] for one in value]
        letters = [one.get("label", one.get("key", "")) for one in value]
    elif isinstance(value, list | tuple):
        letters, choices = [], value
    else:
        raise ValueError(f"the choices should be a list, and are a {type(value).__name__}")
    if not all(isinstance(one, str | int | float) for one in choices):
        raise ValueError("the choices should be texts")
    choices = [str(one) for one in choices]
    letters = [str(one).strip() for one in letters] or list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)])
    if len(letters) != len(choices):
        raise ValueError(f"there are {len(choices)} choices and {len(letters)} labels")
    return letters, choices


def _which(answer: Any, letters: Sequence[str], choices: Sequence[str]) -> int | None:
    """Position of the right choice, from its words, letter or index."""
    if isinstance(answer, bool):
        answer = _answer(answer)
    if isinstance(answer, int | float):
        return int(answer) if 0 <= answer < len(choices) and answer == int(answer) else None
    if not isinstance(answer, str):
        return None
    sought = answer.strip().casefold()
    for names in (choices, letters):
        folded = [name.strip().casefold() for name in names]
        if sought in folded:
            return folded.index(sought)
    letter = re.match(r"\(?([a-z])[).:]", sought)  # as in "(b)" and "B. the light"
    if letter and letter[1] in folded:
        return folded.index(letter[1])
    return int(sought) if sought.isdecimal() and int(sought) < len(choices) else None


def _question(record: Record) -> Record | None:
    name = first(record, ANSWERS)
    if name is None or record.get("question") is None:
        return None
    question, answer = _with_passage(record, "question"), _answer(record[name])
    return item(record, question=question, reasoning=record.get("reasoning"), answer=answer)


def _answer(value: Any) -> str:
    """Words of an answer: yes or no, the first of several, or the one that has aliases."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, Mapping):
        name = first(value, ("value", "text", "answer", "normalized_value", "aliases"))
        if name is not None:
            return _answer(value[name])
    if isinstance(value, list | tuple):
        return _answer(value[0]) if value else ""  # SQuAD's unanswerable questions
    raise ValueError(f"the answer should be a text, and is a {type(value).__name__}")


def _with_passage(record: Record, asked: str) -> str:
    passage, question = first(record, PASSAGES), text_of(record, asked)
    return question if passage is None or not isinstance(record[passage], str) else f"{record[passage]}\n{question}"


def _completed(record: Record) -> Record | None:
    """Read a prompt with the completion that goes on from it, as text or as messages."""
    if record.get("prompt") is None or record.get("completion") is None:
        return None
    if (turns := messages(record["completion"])) is not None:
        asked = messages(record["prompt"]) or [{"role": "user", "content": text_of(record, "prompt")}]
        return chat(record, [*asked, *turns])
    prompt, completion = text_of(record, "prompt"), text_of(record, "completion")
    joined = prompt[-1:].isspace() or completion[:1].isspace() or not prompt or not completion
    text = f"{prompt}{completion}" if joined else f"{prompt}\n{completion}"
    return item(record, text=text, question=prompt, answer=completion)


def _instructed(record: Record) -> Record | None:
    ask = first(record, ASKS)
    reply = first(record, (name for name in REPLIES if name != ask))
    if ask is None or reply is None:
        return None
    if messages(record[ask]) is not None:
        return chat(record, [*(messages(record[ask]) or ()), {"role": "assistant", "content": text_of(record, reply)}])
    given = first(record, (name for name in GIVENS if name != ask))
    parts = [text_of(record, ask), text_of(record, given) if given else ""]
    asked = "\n\n".join(part for part in parts if part.strip())
    answered = {"role": "assistant", "content": text_of(record, reply)}
    return chat(record, [{"role": "user", "content": asked}, answered])


def _empty(record: Record) -> Record | None:
    known = any(name in record for name in (*TEXTS, *CHATS)) or {"question", "answer"} <= record.keys()
    return UNANSWERED if known else None


SHAPES: tuple[Shape, ...] = (
    Shape("items of a known dataset", _published),
    Shape("text", _plain),
    Shape("chats", _chat),
    Shape("preference pairs, the chosen side", _preferred),
    Shape("multiple choice", _multiple_choice),
    Shape("question and answer", _question),
    Shape("prompt and completion", _completed),
    Shape("instruction and output", _instructed),
    Shape("nothing", _empty),
)
"""In the order in which they are tried: what holds a whole sample comes before what may be a part of it."""


# ---------------------------------------------------------------------------------------------
# chats


def parsed(value: Any) -> Any:
    """Value of a cell, out of JSON where a table has written lists and objects so."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def text_of(record: Record, name: str) -> str:
    """Text of a column; a number is written out."""
    value = record.get(name)
    if isinstance(value, str) or value is None:
        return value or ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{name!r} should be a text, and is a {type(value).__name__}")


def messages(value: Any) -> list[dict[str, Any]] | None:
    """Read the turns of a chat as a chat template takes them; None if it is something else."""
    value = parsed(value)
    if not isinstance(value, list) or not all(
        isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value
    ):
        return None
    return [_turn(turn) for turn in value]


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """One message of OpenAI's or ShareGPT's form; what a table has filled up with nulls is left out."""
    known = {key: value for key, value in turn.items() if value is not None and key not in ("from", "value", "weight")}
    role = str(turn.get("role") or turn.get("from"))
    content = _content(turn.get("content") if turn.get("content") is not None else turn.get("value"))
    calls = parsed(known.pop("tool_calls", None))
    made = {**known, "role": ROLES.get(role.lower(), role.lower()), "content": content}
    if calls:
        if not isinstance(calls, list):
            raise ValueError(f"'tool_calls' should be a list, and is a {type(calls).__name__}")
        made["tool_calls"] = [_call(without_null(call)) for call in calls]
    return made


def _content(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"the content of a message should be a text, and is a {type(value).__name__}")
    texts = []
    for part in value:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            what = part.get("type", "something else") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"a message has a part of type {what!r}; only text is read")
        texts.append(text)
    return "\n".join(texts)


def _call(call: Any) -> Any:
    """Make the arguments of a tool call an object, as templates take them, and not JSON in a string."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        function = call["function"]
        return {**call, "function": {**function, "arguments": parsed(function.get("arguments", {}))}}
    return call


def without_null(value: Any) -> Any:
    """Plain data without the nulls that a table fills up missing keys with."""
    if isinstance(value, Mapping):
        return {key: without_null(one) for key, one in value.items() if one is not None}
    return [without_null(one) for one in value] if isinstance(value, list) else value


def chat(record: Record, turns: Sequence[Mapping[str, Any]]) -> Record:
    """Canonical form of a chat, with the tools and the system prompt that stand beside it."""
    said = [turn for turn in turns if turn["content"].strip() or turn.get("tool_calls")]
    system = first(record, SYSTEM)
    if said and system is not None and said[0]["role"] != "system" and text_of(record, system).strip():
        said = [{"role": "system", "content": text_of(record, system)}, *said]
    tools = without_null(parsed(record.get("tools"))) or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError("'tools' should be a list of objects")
    last = said[-1] if said else {}
    answered = last.get("role") == "assistant" and last["content"].strip() and "tool_calls" not in last
    asked = said[:-1] if answered else said
    question = asked[0]["content"] if len(asked) == 1 else "\n\n".join(map(_spoken, asked))
    answer = last["content"] if answered else None
    text = "\n\n".join(map(_words, said))
    return item(record, text=text, question=question or None, answer=answer, messages=said, tools=tools)


def _words(turn: Mapping[str, Any]) -> str:
    calls = json.dumps(turn["tool_calls"], ensure_ascii=False) if turn.get("tool_calls") else ""
    return "\n".join(part for part in (turn["content"], calls) if part)


def _spoken(turn: Mapping[str, Any]) -> str:
    return _words(turn) if turn["role"] == "system" else f"{turn['role'].capitalize()}: {_words(turn)}"
