"""The result store: one file per cell, named by its content, written whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import posixpath
import re
import secrets
import stat
import zlib
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow as pa
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from cola_lib.errors import SpecError, StoreError
from cola_lib.experiments.cells import CellKey, CellResult, plain_text, result_from_plain, result_to_plain, text_digest
from cola_lib.experiments.packed import PackedCells, write_packed
from cola_lib.fingerprint import LENGTH
from cola_lib.folders import owned_suffix, remove_leftovers

log = logging.getLogger(__name__)

FORMAT = "cola-cell/1"
"""Written into every file; raised when the layout of the file changes."""

LARGEST_FILE, LARGEST_CELL = 2**26, 2**29
"""Bytes of a cell's file, and of a cell once unpacked: thousands of times what one takes."""

_FORMAT = re.compile(r"cola-cell/\d+")
_NAME = re.compile(rf"([0-9a-f]{{{LENGTH}}})\.json\.gz")


def open_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Find the file system of a store."""
    try:
        if b"\0" in os.fsencode(url):
            raise ValueError("a name holds no zero byte")
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError) as error:
        raise StoreError(f"result store {url!a}: {error}") from error


class ResultStore:
    """Results by the fingerprint of their key.

    Parameters
    ----------
    url : str or path
        A local folder, or any URL that fsspec knows (``s3://…``, ``gs://…``, ``memory://…``). It is made when
        the first result is put.
    packed : sequence of str or path
        Packed files (see :meth:`pack`) that lie below the folder: what is not in the folder is looked up in
        them, in order. They are never written.

    Attributes
    ----------
    quarantined : list of str
        Files that this object found damaged or foreign, and moved to the folder ``quarantine``.

    Raises
    ------
    StoreError
        If the URL's protocol is not known.

    Notes
    -----
    Safe against a kill at any moment and against several writers: a local file is written under a temporary
    name in the same folder, flushed to the disk, and renamed; on other file systems it is put in one request.
    Writers of one cell write the same numbers, and the last one stays. A kill may leave a hidden ``.tmp`` file
    behind, which nothing reads. A file whose format is that of another version of this library is neither read nor
    moved nor replaced: that version still needs it.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.experiments import CellResult, ResultStore, cell_key
    >>> scores = pd.DataFrame({"item": ["1"], "capability": "math", "task": "sums", "bits_per_byte": [1.2]})
    >>> key = cell_key(model="m", suite="s")
    >>> store = ResultStore("results")
    >>> store.put(CellResult(key, scores, {"method": "dense"}))
    >>> store.keys() == [key.fingerprint], store.get(key).labels
    (True, {'method': 'dense'})
    """

    def __init__(self, url: str | os.PathLike[str], *, packed: Sequence[str | os.PathLike[str]] = ()) -> None:
        self.url = os.fspath(url)
        self._fs, root = open_store(self.url)
        self._local = isinstance(self._fs, LocalFileSystem)
        self._cells = posixpath.join(root, "cells")
        self._aside = posixpath.join(root, "quarantine")
        self._packed_urls = tuple(os.fspath(path) for path in packed)
        self._packed: ChainMap[str, CellResult] | None = None
        self.quarantined: list[str] = []

    def __repr__(self) -> str:
        below = f", packed={list(self._packed_urls)}" if self._packed_urls else ""
        return f"ResultStore({self.url!r}{below})"

    # -- reading

    def get(self, key: CellKey | str) -> CellResult | None:
        """Look a cell up.

        Parameters
        ----------
        key : CellKey or str
            Or its fingerprint.

        Returns
        -------
        CellResult or None
            ``None`` if it is not there. A damaged file counts as not there, and is moved aside.

        Raises
        ------
        StoreError
            If the store cannot be read, or the cell has the format of another version of this library.
        """
        name = key if isinstance(key, str) else key.fingerprint
        path = self._path(name)
        if (bad := self._unreadable(path)) is not None:
            self._quarantine(path, bad)
        data = self._read(path) if bad is None else None
        if data is not None:
            try:
                return _decode(data, name)
            except _DamageError as damage:
                self._quarantine(path, str(damage))
            except _OtherVersionError as error:
                raise StoreError(
                    f"{path} was written by another version of cola-lib: it has format {error}, and this version "
                    f"reads {FORMAT}. It is left as it is; use that version, or another folder for the results"
                ) from None
        with _packed_errors(", ".join(self._packed_urls)):
            return self._below().get(name)

    def __contains__(self, key: CellKey | str) -> bool:
        return self.get(key) is not None

    def recorded(self, key: CellKey) -> bool:
        """Whether a packed file holds a result: what was computed once, and is read as it was."""
        with _packed_errors(", ".join(self._packed_urls)):
            return key.fingerprint in self._below()

    def keys(self) -> list[str]:
        """Fingerprints of all cells that can be read, sorted.

        Reads every file, so that what it lists is there; foreign files are moved aside.
        """
        return sorted(result.key.fingerprint for result in self)

    def __iter__(self) -> Iterator[CellResult]:
        seen = set()
        for path in self._list():
            match = _NAME.fullmatch(posixpath.basename(path))
            if match is None:
                self._quarantine(path, "its name is not that of a cell")
                continue
            result = self.get(match[1])
            if result is not None:
                seen.add(match[1])
                yield result
        for name in self._below():
            if name not in seen:
                yield self._require(name)

    def __len__(self) -> int:
        return len(self.keys())

    def to_frame(self) -> pd.DataFrame:
        """All scores of all cells as one tidy table.

        Returns
        -------
        pandas.DataFrame
            One row per cell and item: ``cell``, the cell's labels, and the columns of
            :func:`cola_lib.evaluate.evaluate`. Cells that hold no scores are left out, and those of algorithms that
            were changed since, which would stand beside today's under the same labels. Empty if there is no cell.
        """
        frames = [result.frame() for result in self if "item" in result.scores and not result.key.outdated]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()

    # -- writing

    def put(self, result: CellResult) -> None:
        """Write a cell, whole or not at all.

        Parameters
        ----------
        result : CellResult
            Replaces what is there under the same key.

        Raises
        ------
        StoreError
            If the store cannot be written.
        """
        self._write(self._path(result.key.fingerprint), _encode(result))

    def cached(self, key: CellKey, compute: Callable[[], CellResult]) -> tuple[CellResult, bool]:
        """Read a result, or compute it and put it here at once.

        Parameters
        ----------
        key : CellKey
            Its name.
        compute : callable
            Makes the result of that name.

        Returns
        -------
        (CellResult, bool)
            The result, and whether it was stored.

        Raises
        ------
        StoreError
            If the store cannot be read, or, before anything is computed, if it cannot be written.
        """
        found = self.get(key)
        if found is not None:
            return found, True
        self.check_writable()
        result = compute()
        self.put(result)
        return result, False

    def check_writable(self) -> None:
        """Write and remove a small file, so that a long computation does not end in an error.

        Raises
        ------
        StoreError
            If the store cannot be written.
        """
        path = posixpath.join(self._cells, f".probe.{owned_suffix()}.tmp")
        self._write(path, b"probe")
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)
        if self._local:
            remove_leftovers(Path(self._cells), ".*")

    def size_of(self, key: CellKey | str) -> int:
        """Bytes that a cell takes in the store.

        Parameters
        ----------
        key : CellKey or str
            Of a cell that is there, not in a packed file.

        Raises
        ------
        StoreError
            If it is not there.
        """
        name = key if isinstance(key, str) else key.fingerprint
        data = self._read(self._path(name))
        if data is None:
            raise StoreError(f"{self.url}: cell {name} is not there")
        return len(data)

    @contextlib.contextmanager
    def marked(self) -> Iterator[str]:
        """Leave a mark in the store, by which other machines can tell that they see the same one.

        Yields
        ------
        str
            For :meth:`has_mark`. It is gone afterwards.

        Raises
        ------
        StoreError
            If the store cannot be written.
        """
        mark = f".mark.{owned_suffix()}.tmp"
        path = posixpath.join(self._cells, mark)
        self._write(path, b"mark")
        try:
            yield mark
        finally:
            try:
                self._fs.rm_file(path)
            except OSError as error:  # raised from here it would hide what ended the work
                log.warning("%s stays, and nothing reads it: it cannot be removed (%s)", path, error)

    def has_mark(self, mark: str) -> bool:
        """Whether a mark is there.

        Parameters
        ----------
        mark : str
            From :meth:`marked`.
        """
        self._fs.invalidate_cache()
        return self._read(posixpath.join(self._cells, mark)) is not None

    # -- packing

    def pack(self, path: str | os.PathLike[str], cells: Iterable[CellKey | str] | None = None) -> int:
        """Write cells into one Parquet file, for a repository or an archive.

        Parameters
        ----------
        path : str or path
            Local file; written atomically.
        cells : iterable of CellKey or str, optional
            Which; default all.

        Returns
        -------
        int
            How many.

        Raises
        ------
        StoreError
            If a cell that was asked for is not there, or the file cannot be written.

        Notes
        -----
        Floating-point numbers are kept in float32, which likelihoods already are.
        """
        results = list(self) if cells is None else [self._require(key) for key in cells]
        try:
            data = write_packed(sorted(results, key=lambda result: result.key.fingerprint))
        except (pa.ArrowException, TypeError) as error:
            raise StoreError(f"cells of {self.url} have columns that do not go together: {error}") from error
        try:
            _replace(Path(path), data)
        except OSError as error:
            raise StoreError(f"packed results {path} cannot be written: {error.strerror or error}") from error
        return len(results)

    def unpack(self, path: str | os.PathLike[str]) -> int:
        """Put every cell of a packed file into this store.

        Parameters
        ----------
        path : str or path
            From :meth:`pack`.

        Returns
        -------
        int
            How many.

        Raises
        ------
        StoreError
            If the file is missing or damaged, or the store cannot be written.
        """
        packed = _load_packed(os.fspath(path))
        with _packed_errors(os.fspath(path)):
            results = list(packed.values())
        for result in results:
            self.put(result)
        return len(results)

    # -- files

    def _path(self, name: str) -> str:
        return posixpath.join(self._cells, f"{name}.json.gz")

    def _require(self, key: CellKey | str) -> CellResult:
        result = self.get(key)
        if result is None:
            raise StoreError(f"{self.url}: cell {key if isinstance(key, str) else key.fingerprint} is not there")
        return result

    def _below(self) -> Mapping[str, CellResult]:
        if self._packed is None:
            files: list[Any] = [_load_packed(url) for url in self._packed_urls]  # which are read, and never written
            self._packed = ChainMap(*files)
        return self._packed

    def _unreadable(self, path: str) -> str | None:
        """Say why a file must not even be opened: a pipe would wait for ever, and a huge one fill the memory."""
        if not self._local:
            return None
        try:
            about = os.stat(path)
        except OSError:
            return None  # not there, or told when it is read
        if not stat.S_ISREG(about.st_mode):
            return "not a regular file"
        return f"{about.st_size:,} bytes, too large for a cell" if about.st_size > LARGEST_FILE else None

    def _read(self, path: str) -> bytes | None:
        try:
            return self._fs.cat_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}; mend its permissions") from error

    def _list(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._cells, detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self._cells} cannot be listed: {error.strerror or error}") from error
        return sorted(path for path in paths if not posixpath.basename(path).startswith("."))

    def _write(self, path: str, data: bytes) -> None:
        try:
            write_whole(self._fs, path, data)
        except OSError as error:
            raise StoreError(
                f"result store {self.url} cannot be written: {error.strerror or error}; free some space, mend its "
                "permissions, or choose another folder. What it already holds is kept"
            ) from error

    def _quarantine(self, path: str, reason: str) -> None:
        """Move a file aside, so that it is neither read nor lost."""
        target = posixpath.join(self._aside, f"{posixpath.basename(path)}.{secrets.token_hex(4)}")
        log.warning("%s is damaged or foreign (%s); moved to %s", path, reason, target)
        self.quarantined.append(path)
        try:
            self._fs.makedirs(self._aside, exist_ok=True)
            self._fs.mv(path, target)
        except FileNotFoundError:
            log.debug("%s was moved by another process", path)
        except OSError as error:
            raise StoreError(
                f"{path} is damaged or foreign ({reason}) and cannot be moved aside: {error.strerror or error}; "
                "remove it"
            ) from error


def read_scores(*where: str | os.PathLike[str]) -> pd.DataFrame:
    """All scores of stores and packed files; what several of them hold is read once.

    Parameters
    ----------
    *where : str or path
        Folder or URL of a store, which need not be there yet if others are; or packed files, whose names end in
        ``.parquet``.

    Returns
    -------
    pandas.DataFrame
        As from :meth:`ResultStore.to_frame`.

    Raises
    ------
    StoreError
        If one cannot be read, or there are no scores in any.
    SpecError
        If several stores are named.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.experiments import CellResult, ResultStore, cell_key, read_scores
    >>> scores = pd.DataFrame({"item": ["1"], "capability": "math", "task": "sums", "bits_per_byte": [1.2]})
    >>> ResultStore("results").put(CellResult(cell_key(model="m", suite="s"), scores, {"method": "dense"}))
    >>> read_scores("results")["item"].tolist()
    ['1']
    """
    names = [os.fspath(each) for each in where]
    packed = [name for name in names if name.endswith(".parquet")]
    stores = [name for name in names if name not in packed] or ["memory://nothing-of-its-own"]
    if len(stores) > 1:
        raise SpecError(f"{' and '.join(stores)}: scores are read from one store, with packed files below it")
    frame = ResultStore(stores[0], packed=packed).to_frame()
    if frame.empty:
        raise StoreError(
            f"{' and '.join(names)} {'hold' if len(names) > 1 else 'holds'} no scores; notebooks write them: run make "
            "book, or cola notebook"
        )
    return frame


class _DamageError(Exception):
    """A file's bytes are not those of the cell that its name says."""


class _OtherVersionError(Exception):
    """A file has a format that this version does not read."""


def _encode(result: CellResult) -> bytes:
    cell = plain_text(result_to_plain(result))
    digest = text_digest(cell)
    text = f'{{"format":"{FORMAT}","sha256":"{digest}","cell":{cell}}}'
    return gzip.compress(text.encode(), mtime=0)


def _decode(data: bytes, name: str) -> CellResult:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            text = file.read(LARGEST_CELL + 1)
        if len(text) > LARGEST_CELL:
            raise _DamageError(f"more than {LARGEST_CELL:,} bytes once unpacked")
        outer = json.loads(text)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise _DamageError(f"truncated or altered: {error}") from error
    said = outer.get("format") if isinstance(outer, dict) else None
    if said != FORMAT:
        if isinstance(said, str) and _FORMAT.fullmatch(said):
            raise _OtherVersionError(said)
        raise _DamageError(f"not a file of format {FORMAT}")
    try:
        cell = outer["cell"]
        if text_digest(plain_text(cell)) != outer["sha256"]:
            raise _DamageError("its checksum does not match")
        result = result_from_plain(cell)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise _DamageError(f"not a cell: {error!r}") from error
    if result.key.fingerprint != name:
        raise _DamageError(f"it holds cell {result.key.fingerprint}")
    return result


def _load_packed(url: str) -> PackedCells:
    with _packed_errors(url), fsspec.open(url, "rb") as file:
        if "://" not in url and not stat.S_ISREG(os.stat(url).st_mode):
            raise ValueError("not a regular file")
        return PackedCells(file.read())


@contextlib.contextmanager
def _packed_errors(urls: str) -> Iterator[None]:
    """Name the packed file in an error: nobody can mend it here, so it is not moved aside."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(f"packed results {urls} are not there") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"packed results {urls} are damaged: {error}; take the file again from where it came from"
        ) from error


def write_whole(fs: AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file whole or not at all, with what is temporary beside it."""
    if isinstance(fs, LocalFileSystem):
        _replace(Path(path), data)
        return
    fs.makedirs(posixpath.dirname(path), exist_ok=True)
    fs.pipe_file(path, data)


def _replace(path: Path, data: bytes) -> None:
    """Write a local file so that at any moment the old or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{owned_suffix()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder; the file itself is safe
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
