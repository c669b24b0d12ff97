"""Local files as rows, read one piece at a time, so that a file of kilobytes cannot fill the memory."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import logging
import lzma
import re
import reprlib
import stat
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cola_lib.errors import DataError

Row = tuple[str, Mapping[str, Any] | DataError]
"""Where a record stands, for messages, and the record, or why there is none."""

RECORD = 2**26
"""Most bytes of one record; no text that is meant to be read is as long."""

EXPANDED = 2**28
"""Bytes that a compressed file may always expand to."""

RATIO = 100
"""Bytes that a larger file may expand to, for each of its own. Text shrinks to a tenth."""

_COST = 32
"""Least bytes that a record counts for: a billion empty ones take hours."""

_FAILURES = (pa.ArrowException, OSError, ValueError, OverflowError)
_PIECE = 2**20
_HALF = re.compile(r"\\ud[89a-f]", re.IGNORECASE)  # the only way to write half a character, which no tokenizer takes
_DELIMITERS = ",;\t|"
_SEPARATORS = re.compile(r"[\s,]*")

log = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------
# bytes


def regular(path: Path) -> Path:
    """Refuse what is not a regular file: a pipe would wait for ever, and a device never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"file {reprlib.repr(str(path))} cannot be looked up: {error}; check the path") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is not a regular file; save its content to one")
    return path


@contextmanager
def readable(what: object, kind: str = "") -> Iterator[None]:
    """Turn the errors of readers into one that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{what}: byte {error.start:,} is not UTF-8; save the file as UTF-8") from error
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        csv.Error,
        ValueError,
        OverflowError,
    ) as error:
        raise DataError(f"{what} cannot be read{kind}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Reason of another library's error, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def allowance(path: Path) -> int:
    """Bytes that a file of this size may expand to."""
    return max(EXPANDED, RATIO * path.stat().st_size)


def _too_large(path: Path, limit: int) -> DataError:
    return DataError(
        f"{path} has {path.stat().st_size:,} bytes and expands to more than {limit:,}; take its first rows, as in "
        f"{path}:rows=1000, or unpack it if that is its true size"
    )


_PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(cast("io.RawIOBase", pa.input_stream(str(path), compression="zstd"))),
}


class _Bytes:
    """Content of a file, unpacked as it is asked for."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream, self._seen = path, stream, 0
        self._limit = allowance(path) if path.suffix in _PACKED else None

    def _counted(self, data: bytes, least: int = 0) -> bytes:
        self._seen += max(len(data), least)
        if self._limit is not None and self._seen > self._limit:
            raise _too_large(self._path, self._limit)
        return data

    def read(self) -> bytes:
        return self._counted(self._stream.read(_PIECE))

    def rest(self) -> bytes:
        return b"".join(iter(self.read, b""))

    def readline(self) -> bytes:
        line = self._counted(self._stream.readline(RECORD + 1), _COST)
        if len(line) > RECORD:
            raise DataError(f"{self._path} has a line of more than {RECORD:,} bytes; divide it")
        return line


@contextmanager
def _unpacked(path: Path) -> Iterator[_Bytes]:
    with readable(path), (_PACKED.get(path.suffix) or io.FileIO)(path) as raw:
        yield _Bytes(path, raw if path.suffix in _PACKED else io.BufferedReader(raw))


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Lines of a file, each with where it stands."""
    with _unpacked(path) as stream:
        for number, line in enumerate(iter(stream.readline, b""), start=1):
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise DataError(f"{path} is UTF-16; save the file as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            yield f"{path}, line {number}", line


# ---------------------------------------------------------------------------------------------
# records


def _record(where: str, value: Any, written: str) -> Row:
    """Check that a JSON value can be a row."""
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        value = {"messages": value}
    if not isinstance(value, dict):
        return where, DataError(f"{where}: a JSON object is needed, and this is a {type(value).__name__}")
    if _HALF.search(written):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            return where, DataError(f"{where}: {half!a} is half of a character; write the text as UTF-8")
    return where, value


def _json_line(where: str, line: bytes) -> Row:
    try:
        text = line.decode()
        return _record(where, json.loads(text), text)
    except UnicodeDecodeError:
        return where, DataError(f"{where}: not UTF-8; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return where, DataError(f"{where}: not valid JSON: {error}")


def _jsonl_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    for where, line in _lines(path):
        if line.strip():
            yield _json_line(where, line)


def _json_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    """Rows of an array, of JSON lines that are named ``.json``, or of the list in an object."""
    with _unpacked(path) as stream:
        head = stream.read().removeprefix(codecs.BOM_UTF8).lstrip()
    first, _, rest = head.partition(b"\n")
    second = rest.lstrip().partition(b"\n")[0]
    if rest.strip() and _is_json(first) or not first.startswith(b"[") and _is_json(second):
        yield from _jsonl_rows(path)
    elif first.startswith(b"["):
        yield from _array_rows(path)
    elif head:
        yield from _object_rows(path, split)


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _array_rows(path: Path) -> Iterator[Row]:
    """Elements of one array, however long it is."""
    decode, parse = codecs.getincrementaldecoder("utf-8-sig")().decode, json.JSONDecoder().raw_decode
    with _unpacked(path) as stream:
        text, at, number, ended = decode(stream.read()).lstrip()[1:], 0, 1, False
        while True:
            at = _SEPARATORS.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing too
            where = f"{path}, element {number}"
            if text.startswith("]", at):
                return
            try:
                value, end = parse(text, at)
                if end < len(text) or ended:  # else a number may go on
                    value = {"text": value} if isinstance(value, str) else value
                    yield _record(where, value, text[at:end])
                    at, number = end, number + 1
                    continue
            except RecursionError as error:
                raise DataError(f"{where}: not valid JSON: {error}") from error
            except ValueError as error:
                if ended or len(text) - at > RECORD:
                    raise DataError(
                        f"{where}: not valid JSON, or longer than {RECORD:,} characters: {error}"
                    ) from error
            # As much again as is there, so that a long element is parsed a few times and not a thousand.
            more = [stream.read() for _ in range(0, max(len(text) - at, 1), _PIECE)]
            ended = not more[-1]
            text, at = text[at:] + decode(b"".join(more), ended), 0


def _object_rows(path: Path, split: str | None) -> Iterator[Row]:
    """Rows of the list that an object holds, or the object itself where it holds none."""
    with _unpacked(path) as stream:
        written = stream.rest()
    where, value = _json_line(str(path), written.removeprefix(codecs.BOM_UTF8))
    if isinstance(value, DataError):
        raise DataError(f"{value}; if it has one object a line, name it .jsonl") from value
    tables = {key: rows for key, rows in value.items() if rows and _is_table(key, rows)}
    if split is not None and split not in tables:
        raise DataError(f"{path} has no list {split!r}; its lists of objects are: {', '.join(tables) or '(none)'}")
    if len(tables) > 1 and split is None:
        raise DataError(
            f"{path} holds several lists; name one, as in {path}:split={next(iter(tables))}: {', '.join(tables)}"
        )
    name = split or next(iter(tables), None)
    if name is None:
        yield where, value
    else:
        yield from (_record(f"{path}, element {i} of {name}", row, "") for i, row in enumerate(tables[name], start=1))


def _is_table(key: str, rows: Any) -> bool:
    own = key in ("messages", "conversations", "tools", "choices")  # parts of one row
    return not own and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _csv_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    csv.field_size_limit(RECORD)
    lines = (line.decode() for _, line in _lines(path))
    with readable(path, " as CSV"):
        head = next(lines, "")
        delimiter = "\t" if ".tsv" in path.suffixes else max(_DELIMITERS, key=head.count)
        table = csv.reader(chain([head], lines), delimiter=delimiter)
        columns = next(table, [])
        for number, cells in enumerate(table, start=1):
            where = f"{path}, row {number}"
            if len(cells) > len(columns):
                yield where, DataError(f"{where}: {len(cells)} cells, and the first line names {len(columns)} columns")
            elif cells:
                yield where, dict(zip(columns, cells, strict=False))


def _parquet_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    with readable(path, " as Parquet"), pq.ParquetFile(path) as file:
        left = limit = allowance(path)
        number = 0
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            size = sum(about.column(i).total_uncompressed_size for i in range(about.num_columns))
            if size > limit:  # a page is unpacked whole, and may be all of it
                raise DataError(
                    f"{path} has {path.stat().st_size:,} bytes and a row group that expands to {size:,}; write it "
                    "again with smaller row groups if that is its true size"
                )
            # A value that is stored once may come in every row: as many rows as fit even then.
            batch_size = max(1, min(32, limit // max(size, 1)))
            for batch in file.iter_batches(batch_size, row_groups=[group], use_threads=False):
                plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
                left -= sum(column.nbytes for column in plain) + _COST * batch.num_rows
                if left < 0:
                    raise _too_large(path, limit)
                for record in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record


def _text_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    documents = [document.strip("\n") for document in re.split(r"\n[ \t]*\n\s*", _text(path))]
    texts = [document for document in documents if document.strip()]
    if len(texts) == 1 and (n_lines := texts[0].strip().count("\n") + 1) > 1:  # most likely meant as one text a line
        log.warning("source %s is 1 text of %d lines: separate texts by blank lines, or use .jsonl", str(path), n_lines)
    for number, document in enumerate(documents, start=1):
        if document.strip():
            yield f"{path}, document {number}", {"text": document}


def document_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    """Read a file as one text."""
    yield str(path), {"text": _text(path)}


def _text(path: Path) -> str:
    with _unpacked(path) as stream:
        written = stream.rest()
    with readable(path):
        text = written.removeprefix(codecs.BOM_UTF8).decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


READERS: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".ndjson": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
    ".md": document_rows,
}
"""How a file of a suffix is read; of what is in it, a split may be asked for by name."""

DOCUMENTS = (".txt", ".md")
"""Files that are one text each where several are read."""

SUFFIX = rf"(?:{'|'.join(map(re.escape, READERS))})(?:{'|'.join(map(re.escape, _PACKED))})?"
"""End of a name that is read, as a regular expression."""


def kind(path: Path) -> str:
    """Suffix of a file, without that of its compression; empty if it is not read."""
    found = re.search(rf"({'|'.join(map(re.escape, READERS))})(?:{'|'.join(map(re.escape, _PACKED))})?$", path.name)
    return found[1] if found else ""


def file_rows(path: Path, split: str | None = None) -> Iterator[Row]:
    """Read the rows of a file."""
    suffix = kind(path)
    if split is not None and suffix != ".json":
        raise DataError(f"{path} is one file, which has no split {split!r}")
    return READERS[suffix](regular(path), split)
