"""Data that the user brings: Hugging Face datasets, and local JSON lines, Parquet and text files."""

from __future__ import annotations

import io
import json
import logging
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cola_lib.data.benchmarks import question_answer
from cola_lib.data.layouts import as_question
from cola_lib.data.sample import Sample, content_hash
from cola_lib.errors import DataError, UnknownNameError

log = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".parquet", ".txt")
TEXT_COLUMNS = ("text", "content")
OPTIONAL = ("domain", "language", "difficulty", "subject", "reasoning", "split_key")

_LOCAL = re.compile(r"^(?P<path>.+?(?:\.jsonl|\.parquet|\.txt))(?::column=(?P<column>.+))?$")
_ONE_FILE = re.compile(r"\.(?:jsonl?|parquet)(?:\.gz|\.zst)?$")
_FIRST = re.compile(r"train(?:\[:(?P<n>\d{1,18})\])?")
_CHAT = (
    "lists of chat messages are not read: render them with the tokenizer's apply_chat_template(messages, "
    "tokenize=False) into a column 'text', or give columns 'question' and 'answer' and take format chat "
    "(cola compress --format chat)"
)
_COLON = re.compile(r":(?![^\[]*\])")  # not the colon of a slice, as in train[:100]

Row = tuple[str, Mapping[str, Any]]
"""Where a record stands, for messages, and the record."""


def is_external(name: str) -> bool:
    """Say whether a source name means a dataset of the hub or a local file.

    Parameters
    ----------
    name : str
        As :func:`load_samples` takes it.

    Returns
    -------
    bool
        Whether it begins with ``hf:`` or ends as a file does that can be read.

    Examples
    --------
    >>> from cola_lib.data import is_external
    >>> is_external("notes.jsonl"), is_external("hf:allenai/c4:en"), is_external("c4")
    (True, True, False)
    """
    return name.startswith("hf:") or _LOCAL.match(name) is not None


def unread_path(name: str) -> str:
    """Say how to give a path that exists and is not read as it is written.

    Parameters
    ----------
    name : str
        What was given as a source, and is neither the name of one nor external.

    Returns
    -------
    str
        What it is and what to do; empty if nothing is there.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cola_lib.data.external import unread_path
    >>> Path("corpus").mkdir()
    >>> unread_path("corpus"), unread_path("c4")
    ("is a folder; that of a dataset is given as 'hf:corpus'", '')
    """
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return f"is a folder; that of a dataset is given as {'hf:' + name!r}"
        if not path.is_file():
            return ""
    except (OSError, RuntimeError, ValueError):  # no name that a path can have: then it was not meant as one
        return ""
    if _ONE_FILE.search(name) and path.suffix in (".gz", ".zst"):
        return f"is a packed file, which is given as {'hf:' + name!r}"
    return (
        f"is a file of a kind that is not read: {', '.join(SUFFIXES[:-1])} and {SUFFIXES[-1]} are. Write it anew as "
        '.jsonl, one {"text": "..."} a line'
    )


def load_external(name: str) -> list[Sample]:
    """Read a dataset that the user names.

    Parameters
    ----------
    name : str
        ``"hf:NAME[:config][:split][:column]"``, where an empty part means the default and NAME may be a local folder,
        or one file of a dataset: ``"hf:allenai/c4/en/c4-train.00000-of-01024.json.gz"``, of which ``::train[:1000]``
        takes the first rows; or a path ending in ``.jsonl``, ``.parquet`` or ``.txt``, the first two with
        ``:column=NAME`` if the text is in another column than ``text`` or ``content``; the texts of a ``.txt`` are
        parted by blank lines. Records with ``question`` and ``answer`` are joined to a text; ``reasoning``,
        ``choices``, ``gold``, ``domain``, ``language``, ``difficulty``, ``subject``, ``split_key`` and ``id`` are
        kept, the last with a hash of the text behind it, so that records which share one stay apart. Those of
        CommonsenseQA, MathQA and CodeQA are read from the columns that their publishers gave them.

    Returns
    -------
    list of Sample
        In the order of the data. Repeats of a text and records without any are left out, with a
        warning that counts them.

    Raises
    ------
    DataError
        If it cannot be read, or holds no text; with the line where that is known.
    UnknownNameError
        If there is no such column.
    """
    if name.startswith("hf:"):
        rows, column = _hub_rows(name)
    else:
        match = _LOCAL.match(name)
        if match is None:
            raise DataError(f"{name!r} is neither hf:NAME nor a path that ends in {', '.join(SUFFIXES)}")
        path, column = _local(match["path"]), match["column"]
        if path is None:
            raise DataError(f"no file {match['path']}: check the path")
        rows = _READERS[path.suffix](path)
    return _collect(name, rows, column)


def _collect(name: str, rows: Iterable[Row], column: str | None) -> list[Sample]:
    unique: dict[str, Sample] = {}
    n_rows = n_empty = 0
    for where, record in rows:
        n_rows += 1
        sample = _sample(name, where, record, column)
        if sample is None:
            n_empty += 1
        else:
            unique.setdefault(sample.id, sample)
    if not unique:
        raise DataError(f"source {name!r} is empty: 0 of its {n_rows:,} records have text")
    if dropped := n_rows - len(unique):
        log.warning(
            "source %r: %d of %d records left out: %d without text, %d repeats",
            name,
            dropped,
            n_rows,
            n_empty,
            dropped - n_empty,
        )
    return list(unique.values())


def _sample(name: str, where: str, record: Mapping[str, Any], column: str | None) -> Sample | None:
    """Build a sample, or None from a record whose text is empty."""
    if column is None:
        record = as_question(record, where)
    question, answer = _string(record, "question", where), _string(record, "answer", where)
    text = _text(name, record, column, where)
    if not text.strip():
        return None
    given = {key: _string(record, key, where) for key in OPTIONAL}
    known: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    choices = record.get("choices")
    gold = record.get("gold")
    name_of_text, own = content_hash(text), record.get("id")
    if own is not None:
        known.setdefault("split_key", str(own))
    return Sample(
        id=name_of_text if own is None else f"{own}-{name_of_text[:8]}",
        text=text,
        source=name,
        question=question,
        answer=answer,
        choices=tuple(map(str, choices)) if isinstance(choices, list | tuple) else (),
        gold=gold if isinstance(gold, int) and not isinstance(gold, bool) else None,
        **known,
    )


def _text(name: str, record: Mapping[str, Any], column: str | None, where: str) -> str:
    if column is not None:
        if column not in record:
            raise UnknownNameError(f"column, at {where},", column, record)
        return _string(record, column, where) or ""
    for candidate in TEXT_COLUMNS:
        if candidate in record:
            return _string(record, candidate, where) or ""
    if "question" in record and "answer" in record:
        question, answer = _string(record, "question", where), _string(record, "answer", where)
        return question_answer(question or "", answer or "", _string(record, "reasoning", where))
    problem = f"{where}: no column 'text' or 'content', and not both 'question' and 'answer'"
    columns = ", ".join(map(str, record)) or "(none)"
    texts = {key: value for key, value in record.items() if isinstance(value, str)}
    if texts:
        longest = max(texts, key=lambda key: len(texts[key]))  # a text is longer than an id or a label
        how = f"name the column that holds the text, as in {_with_column(name, longest)}"
        raise DataError(f"{problem}; {how}; there are: {columns}")
    for key, value in record.items():
        if _is_chat(value):
            raise DataError(f"{problem}; column {key!r} holds a chat, and {_CHAT}")
    raise DataError(f"{problem}, and no other column holds a text; there are: {columns}")


def _with_column(name: str, column: str) -> str:
    """Name of a source that reads another column."""
    if not name.startswith("hf:"):
        return f"{name}:column={column}"
    dataset, config, split, *_ = [*_COLON.split(name.removeprefix("hf:")), "", ""]
    return f"hf:{dataset}:{config}:{split}:{column}"


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, as datasets for fine-tuning have them."""
    roles = ("role", "from")
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and any(role in turn for role in roles) for turn in value)
    )


def _string(record: Mapping[str, Any], key: str, where: str) -> str | None:
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    advice = f"; {_CHAT}" if _is_chat(value) else ""
    raise DataError(f"{where}: {key!r} should be a text, and is a {type(value).__name__}{advice}")


# ---------------------------------------------------------------------------------------------
# local files


def _local(name: str) -> Path | None:
    """Path of a file, or None if there is none."""
    try:
        path = Path(name).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError) as error:  # too long a name, a closed folder, the home of an unknown user
        raise DataError(f"file {reprlib.repr(name)} cannot be looked up: {error}; check the path") from error


def _decoded(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start:,} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        yield where, _json_object(where, line)


def _json_object(where: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a JSON object is needed, and this is a {type(record).__name__}")
    if "\\ud" in line.lower():  # the only way to write half a character, which no tokenizer takes
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise DataError(f"{where}: {half!a} is half of a character; write the text anew as UTF-8") from error
    return record


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        records = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # bytes, or a value that Python has not
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error
    for number, record in enumerate(records, start=1):
        yield f"{path}, row {number}", record


def _text_rows(path: Path) -> Iterator[Row]:
    documents = [document.strip("\n") for document in re.split(r"\n[ \t]*\n\s*", _decoded(path))]
    texts = [document for document in documents if document.strip()]
    if len(texts) == 1 and (n_lines := texts[0].strip().count("\n") + 1) > 1:  # most likely meant as one text a line
        log.warning("source %s is 1 text of %d lines: separate texts by blank lines, or use .jsonl", str(path), n_lines)
    for number, document in enumerate(documents, start=1):
        if document.strip():
            yield f"{path}, document {number}", {"text": document}


_READERS = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".txt": _text_rows}


# ---------------------------------------------------------------------------------------------
# the Hugging Face hub


def parse_hub_name(name: str) -> tuple[str, str | None, str, str | None]:
    """Parse ``hf:NAME[:config][:split][:column]``.

    Parameters
    ----------
    name : str
        An empty part means the default. The split may be a slice: ``"hf:NAME::train[:1000]"``.

    Returns
    -------
    tuple of (str, str or None, str, str or None)
        Dataset, configuration, split (``"train"`` by default) and column.

    Raises
    ------
    DataError
        If there is no NAME, or too many parts.
    """
    dataset, *rest = _COLON.split(name.removeprefix("hf:"))
    if not dataset or len(rest) > 3:
        raise DataError(f"source {name!r} is not of the form hf:NAME[:config][:split][:column]")
    config, split, column = [*rest, "", "", ""][:3]
    return dataset, config or None, split or "train", column or None


def _hub_rows(name: str) -> tuple[Iterator[Row], str | None]:
    dataset, config, split, column = parse_hub_name(name)
    if _ONE_FILE.search(dataset):
        return _file_rows(name, dataset, config, split), column
    # Imported here: it takes seconds, and only this function needs it.
    import datasets

    try:
        table = datasets.load_dataset(dataset, config, split=split)
    except (ConnectionError, FileNotFoundError) as error:
        raise DataError(
            f"dataset {dataset!r} was not found: {_first_line(error)}. Check its name on the hub and that this "
            "machine is online; or download it and name the folder: hf:/path/to/folder"
        ) from error
    except (ValueError, OSError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"dataset {dataset!r} (config {config or 'default'}, split {split}) cannot be read: {_first_line(error)}"
        ) from error
    if column is not None and column not in table.column_names:
        raise UnknownNameError(f"column of {dataset!r}", column, table.column_names)
    return ((f"{dataset}, row {i}", record) for i, record in enumerate(table)), column


def _file_rows(name: str, file: str, config: str | None, split: str) -> Iterator[Row]:
    """Read one file of a dataset: of the terabytes of a corpus, a calibration set needs some megabytes."""
    asked = _FIRST.fullmatch(split)
    if config is not None or asked is None:
        raise DataError(
            f"source {name!r} names one file, which has no configuration and no splits; its first rows are "
            "hf:FILE::train[:N], and all of them hf:FILE"
        )
    path = _hub_file(file)
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _compressed_rows(path)
    return islice(rows, int(asked["n"]) if asked["n"] else None)


def _hub_file(file: str) -> Path:
    """Where a file of a dataset lies on this machine, after it was fetched if need be."""
    local = _local(file)
    if local is not None:
        return local
    owner, repository, inside = (*file.split("/", 2), "", "")[:3]
    if not (owner and repository and inside):
        raise DataError(f"no file {file}: check the path; a file of a dataset on the hub is hf:OWNER/NAME/path/in/it")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", inside, repo_type="dataset"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise DataError(
            f"{inside} of dataset {owner}/{repository} was not found: {_first_line(error)}. Check its name on the hub "
            "and that this machine is online; or download it and name the file: hf:/path/to/file"
        ) from error


def _compressed_rows(path: Path) -> Iterator[Row]:
    """Read JSON lines, packed or not, no further than is asked for."""
    try:
        with (
            pa.input_stream(str(path), compression="detect") as unpacked,
            io.TextIOWrapper(unpacked, encoding="utf-8") as lines,
        ):
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield where, _json_object(where, line)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8; save the file as UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
