"""Data that the user brings: Hugging Face datasets, local files, and folders of them."""

from __future__ import annotations

import functools
import json
import logging
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from glob import glob, has_magic, iglob
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from cola_lib.data.benchmarks import question_answer
from cola_lib.data.files import DOCUMENTS, READERS, SUFFIX, Row, document_rows, file_rows, first_line, kind, regular
from cola_lib.data.layouts import chat, item, messages, recognized
from cola_lib.data.sample import Sample, content_hash
from cola_lib.errors import ColaError, DataError, UnknownNameError

log = logging.getLogger(__name__)

OPTIONAL = ("domain", "language", "difficulty", "subject", "split_key")

BAD_SHARE = 0.01
"""Most rows that may be faulty; more, and the data is not what it was taken for."""

_OPTIONS = ("column", "split", "rows")
_OPTION = re.compile(rf":(?=(?:{'|'.join(_OPTIONS)})=)")
_FILE = re.compile(rf".+{SUFFIX}")
_SLICE = re.compile(r"(?P<split>[\w.-]+)(?:\[(?P<start>\d{0,18}):(?P<stop>\d{0,18})\])?")
_COLON = re.compile(r":(?![^\[]*\])")  # not the colon of a slice, as in train[:100]
_SAVED = ("dataset_dict.json", "state.json")


def is_external(name: str) -> bool:
    """Say whether a source name means a dataset of the hub or a local file."""
    return name.startswith("hf:") or _FILE.fullmatch(_OPTION.split(name)[0]) is not None


def is_folder(name: str) -> bool:
    """Say whether a source name means a local folder, or a pattern that files match."""
    try:
        path = Path(_OPTION.split(name)[0]).expanduser()
        return path.is_dir() or (has_magic(str(path)) and next(iglob(str(path), recursive=True), None) is not None)
    except (OSError, RuntimeError, ValueError):  # no name that a path can have: then it was not meant as one
        return False


def unread_path(name: str) -> str:
    """Say what is wrong with a path that exists and is not read."""
    try:
        if not Path(name).expanduser().exists():
            return ""
    except (OSError, RuntimeError, ValueError):
        return ""
    return f"is a file of a kind that is not read: {', '.join(READERS)} are, also with .gz, .zst, .bz2 or .xz behind it"


def load_external(name: str) -> list[Sample]:
    """Read a dataset that the user names."""
    if name.startswith("hf:"):
        rows, column = _hub_rows(name)
    else:
        path, *given = _OPTION.split(name)
        options = dict(option.split("=", 1) for option in given)
        n_rows = options.get("rows", "")
        if len(options) < len(given) or not all(options.values()):
            raise DataError(f"source {name!r}: each of :column=, :split= and :rows= is given once, with a value")
        if n_rows and not (n_rows.isdecimal() and len(n_rows) < 18):
            raise DataError(f"source {name!r}: rows={n_rows} is not a number of rows")
        column = options.get("column")
        rows = islice(_local_rows(path, options.get("split")), int(n_rows) if n_rows else None)
    return _collect(name, rows, column)


# ---------------------------------------------------------------------------------------------
# from rows to samples


def _collect(name: str, rows: Iterable[Row], column: str | None) -> list[Sample]:
    unique: dict[str, Sample] = {}
    shapes: Counter[str] = Counter()
    first: ColaError | None = None
    n_rows = n_empty = n_faults = 0
    for where, record in rows:
        n_rows += 1
        try:
            if isinstance(record, DataError):
                raise record
            shape, sample = _sample(name, where, record, column)
        except (DataError, UnknownNameError) as error:
            n_faults += 1
            first = first or error
            if n_faults > 100 and n_faults > n_rows / 2:  # what follows is no better, and may be endless
                break
            continue
        if sample is None:
            n_empty += 1
        else:
            shapes[shape] += 1
            unique.setdefault(sample.id, sample)
    if first and n_faults > BAD_SHARE * n_rows:
        raise _faulty(first, n_faults, n_rows)
    if not unique:
        raise DataError(f"source {name!r} is empty: 0 of its {n_rows:,} records have text")
    _report(name, ", ".join(f"{shape} ({n:,})" for shape, n in shapes.most_common()))
    if dropped := n_rows - len(unique):
        log.warning(
            "source %r: %d of %d records left out: %d without text, %d repeats%s",
            name,
            dropped,
            n_rows,
            n_empty,
            dropped - n_empty - n_faults,
            f", {n_faults} faulty, the first: {first}" if first else "",
        )
    return list(unique.values())


@functools.cache
def _report(name: str, shapes: str) -> None:
    """Log once what a source was recognized as, however often it is read."""
    log.info("source %r: read as %s", name, shapes)


def _faulty(first: ColaError, n_faults: int, n_rows: int) -> ColaError:
    if isinstance(first, UnknownNameError) or n_rows == 1:
        return first
    return DataError(f"{first} ({n_faults:,} of {n_rows:,} rows are faulty, and at most {BAD_SHARE:.0%} may be)")


def _sample(name: str, where: str, record: Mapping[str, Any], column: str | None) -> tuple[str, Sample | None]:
    """Recognize a row and make its sample, or None if it is without text."""
    try:
        found = recognized(record) if column is None else _named(record, column, where)
    except ValueError as error:
        raise DataError(f"{where}: {error}; name the column that holds the text, as in {_with_column(name)}") from error
    if found is None:
        raise _unrecognized(name, where, record)
    shape, row = found
    question, answer, reasoning = (_optional(row, key) for key in ("question", "answer", "reasoning"))
    text = _string(row["text"], where) if "text" in row else question_answer(question or "", answer or "", reasoning)
    if not text.strip():
        return shape, None
    known: dict[str, Any] = {key: value for key in OPTIONAL if (value := _optional(row, key)) is not None}
    choices, gold, own = row.get("choices"), row.get("gold"), row.get("id")
    turns, tools = tuple(row.get("messages", ())), tuple(row.get("tools", ()))
    if own is not None:
        known.setdefault("split_key", str(own))
    # Chats of the same words may differ in who says them.
    name_of_text = content_hash(json.dumps([turns, tools], sort_keys=True, default=str) if turns else text)
    return shape, Sample(
        id=name_of_text if own is None else f"{own}-{name_of_text[:8]}",
        text=text,
        source=name,
        question=question,
        reasoning=reasoning,
        answer=answer,
        choices=tuple(map(str, choices)) if isinstance(choices, list | tuple) else (),
        gold=gold if isinstance(gold, int) and not isinstance(gold, bool) else None,
        messages=turns,
        tools=tools,
        **known,
    )


def _string(value: Any, where: str) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: 'text' should be a text, and is a {type(value).__name__}")


def _optional(row: Mapping[str, Any], key: str) -> str | None:
    """Take what is known beside a text, if it is of a kind that can be kept."""
    value = row.get(key)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None


def _named(record: Mapping[str, Any], column: str, where: str) -> tuple[str, Mapping[str, Any]]:
    """Read the column that was named, or what its path leads to, and nothing else."""
    value: Any = record
    for step in [column] if column in record else column.split("."):
        if not isinstance(value, Mapping) or step not in value:
            raise UnknownNameError(f"column, at {where},", column, record)
        value = value[step]
    if turns := messages(value):
        return f"chats of column {column!r}", chat(record, turns)
    if value is not None and not isinstance(value, str | int | float):
        raise DataError(f"{where}: {column!r} should be a text, and is a {type(value).__name__}")
    return f"text of column {column!r}", item(record, text=value)


def _unrecognized(name: str, where: str, record: Mapping[str, Any]) -> DataError:
    problem = f"{where}: no column 'text' or 'content', and no chat, question or instruction with its answer"
    columns = ", ".join(map(str, record)) or "(none)"
    texts = {key: value for key, value in record.items() if isinstance(value, str)}
    if not texts:
        return DataError(f"{problem}, and no other column holds a text; there are: {columns}")
    longest = max(texts, key=lambda key: len(texts[key]))  # a text is longer than an id or a label
    how = f"name the column that holds the text, as in {_with_column(name, longest)}"
    return DataError(f"{problem}; {how}; there are: {columns}")


def _with_column(name: str, column: str = "NAME") -> str:
    """Name of a source that reads another column."""
    if not name.startswith("hf:"):
        return f"{name}:column={column}"
    dataset, config, split, *_ = [*_COLON.split(name.removeprefix("hf:")), "", ""]
    return f"hf:{dataset}:{config}:{split}:{column}"


# ---------------------------------------------------------------------------------------------
# local files and folders


def _local_rows(name: str, split: str | None) -> Iterator[Row]:
    try:
        path = Path(name).expanduser()
        exists = path.exists()
        found = sorted(map(Path, glob(str(path), recursive=True))) if has_magic(name) and not exists else []
    except (OSError, RuntimeError, ValueError) as error:  # too long a name, a closed folder, an unknown user's home
        raise DataError(f"file {reprlib.repr(name)} cannot be looked up: {error}; check the path") from error
    if path.is_dir():
        return _folder_rows(path, split)
    if exists:
        return file_rows(path, split)
    if not found:
        raise DataError(f"no file {name}: check the path")
    return _rows_of([file for file in found if kind(file)], split)


def _rows_of(files: Iterable[Path], split: str | None = None) -> Iterator[Row]:
    """Rows of several files; a document is a text."""
    for file in files:
        yield from (document_rows if kind(file) in DOCUMENTS else file_rows)(regular(file), split)


def _folder_rows(folder: Path, split: str | None) -> Iterator[Row]:
    if any((folder / name).is_file() for name in _SAVED):
        return _saved_rows(folder, split)
    files = sorted(file for file in folder.rglob("*") if kind(file) and not file.is_dir())
    if not files:
        raise DataError(f"folder {folder} holds no file that is read: {', '.join(READERS)} are")
    if any(kind(file) not in DOCUMENTS for file in files):  # a dataset, whose README is none of its texts
        return _dataset_rows(str(folder), None, split or "train")
    if split is not None:
        raise DataError(f"{folder} is a folder of texts, which has no split {split!r}")
    return _rows_of(_inside(folder, files))


def _inside(folder: Path, files: Iterable[str | Path]) -> list[Path]:
    """Refuse files that a folder names and that are not in it, or are not regular."""
    root = folder.resolve()
    if root.parent.name == "snapshots":  # the hub's cache, whose files are links to its blobs
        root = root.parent.parent
    found = []
    for file in files:
        path = Path(file)
        if not path.resolve().is_relative_to(root):
            raise DataError(f"{folder} refers to {file}, which is outside the folder; copy what is needed into it")
        found.append(regular(path))
    return found


def _saved_rows(folder: Path, split: str | None) -> Iterator[Row]:
    """Rows of what ``save_to_disk`` wrote; its Arrow files are mapped into memory and not read whole."""
    import datasets

    where = str(folder)
    try:
        if (folder / _SAVED[0]).is_file():
            splits = json.loads((folder / _SAVED[0]).read_text(encoding="utf-8"))["splits"]
            chosen = split or ("train" if "train" in splits else splits[0])
            if chosen not in splits:
                raise UnknownNameError(f"split of {where!r}", chosen, splits)
            (folder,) = (folder / name for name in splits if name == chosen)
        elif split is not None:
            raise DataError(f"{where} is one dataset, which has no split {split!r}")
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        _inside(Path(where), [folder / file["filename"] for file in state["_data_files"]])
        table = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, pa.ArrowException) as error:
        raise DataError(f"{where} cannot be read as a saved dataset: {first_line(error)}") from error
    return ((f"{where}, row {i}", record) for i, record in enumerate(table, start=1))


# ---------------------------------------------------------------------------------------------
# the Hugging Face hub


def parse_hub_name(name: str) -> tuple[str, str | None, str, str | None]:
    """Parse ``hf:NAME[:config][:split][:column]``."""
    dataset, *rest = _COLON.split(name.removeprefix("hf:"))
    if not dataset or len(rest) > 3:
        raise DataError(f"source {name!r} is not of the form hf:NAME[:config][:split][:column]")
    config, split, column = [*rest, "", "", ""][:3]
    return dataset, config or None, split or "train", column or None


def _hub_rows(name: str) -> tuple[Iterator[Row], str | None]:
    dataset, config, split, column = parse_hub_name(name)
    if _FILE.fullmatch(dataset):
        return _one_file(name, dataset, config, split), column
    if is_folder(dataset) and any((Path(dataset).expanduser() / saved).is_file() for saved in _SAVED):
        return _saved_rows(Path(dataset).expanduser(), None if split == "train" else split), column
    return _dataset_rows(dataset, config, split), column


def _dataset_rows(dataset: str, config: str | None, split: str) -> Iterator[Row]:
    """Rows of one split, as far as they are asked for."""
    # Imported here: it takes seconds, and only this function needs it.
    import datasets

    folder = Path(dataset).expanduser()
    part = _SLICE.fullmatch(split)
    try:
        builder = datasets.load_dataset_builder(str(folder) if folder.is_dir() else dataset, config)
        files = {str(key): list(some) for key, some in (builder.config.data_files or {}).items()}
        if folder.is_dir():
            files = {key: list(map(str, _inside(folder, some))) for key, some in files.items()}
        elif outside := [file for some in files.values() for file in some if not file.startswith("hf://datasets/")]:
            raise DataError(f"dataset {dataset!r} refers to {outside[0]}, which is no part of it")
        tables = [kind(Path(file)) not in ("", *DOCUMENTS) for some in files.values() for file in some]
        if part is None:  # a share, or several splits: only a dataset that is here as a whole can give that
            rows = _numbered(dataset, datasets.load_dataset(dataset, config, split=split))
        elif folder.is_dir() and all(tables):
            if part["split"] not in files:
                raise ValueError(f"its splits are {', '.join(files)}")
            rows = _rows_of(map(Path, files[part["split"]]))
        else:
            rows = _numbered(dataset, builder.as_streaming_dataset(split=part["split"]))
        start, stop = (part["start"], part["stop"]) if part else ("", "")
        yield from islice(rows, int(start or 0), int(stop) if stop else None)
    except (ConnectionError, FileNotFoundError) as error:
        raise DataError(
            f"dataset {dataset!r} was not found: {first_line(error)}. Check its name on the hub and that this "
            "machine is online; or download it and name the folder: hf:/path/to/folder"
        ) from error
    except (ValueError, OSError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"dataset {dataset!r} (config {config or 'default'}, split {split}) cannot be read: {first_line(error)}"
        ) from error


def _numbered(dataset: str, table: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    return ((f"{dataset}, row {i}", record) for i, record in enumerate(table))


def _one_file(name: str, file: str, config: str | None, split: str) -> Iterator[Row]:
    """Read one file of a dataset: of the terabytes of a corpus, a calibration set needs some megabytes."""
    asked = _SLICE.fullmatch(split)
    if config is not None or asked is None or asked["split"] != "train" or asked["start"]:
        raise DataError(
            f"source {name!r} names one file, which has no configuration and no splits; its first rows are "
            "hf:FILE::train[:N], and all of them hf:FILE"
        )
    return islice(file_rows(_hub_file(file)), int(asked["stop"]) if asked["stop"] else None)


def _hub_file(file: str) -> Path:
    """Where a file of a dataset lies on this machine, after it was fetched if need be."""
    local = Path(file).expanduser()
    if local.exists():
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
            f"{inside} of dataset {owner}/{repository} was not found: {first_line(error)}. Check its name on the hub "
            "and that this machine is online; or download it and name the file: hf:/path/to/file"
        ) from error
