"""Files and folders that are written whole or not at all, and what a killed process left of them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cola_lib.errors import OutputError

_OWNED = re.compile(r"\.(\d+)-[0-9a-f]+\.(?:partial|old|tmp)(?:\.ipynb)?$")

_EXCHANGE, _HERE = 2, -100
"""Linux: RENAME_EXCHANGE and AT_FDCWD."""


def owned_suffix() -> str:
    """Name this process in a temporary file, so that a later one can tell that nobody writes it any more."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Remove what processes that are gone have left."""
    for path in folder.glob(pattern):
        owner = _OWNED.search(path.name)
        if owner and not _alive(int(owner[1])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Fill a folder beside the one that is wanted, and put it in its place when that went well.

    Notes
    -----
    A kill between two renames would leave neither version in place. Where the file system can exchange two names in one
    step, there is no such moment; elsewhere the next run puts the old version back before it begins.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _put_back(folder)
    remove_leftovers(folder.parent, f".{folder.name}.*")
    partial = folder.with_name(f".{folder.name}.{owned_suffix()}.partial")
    try:
        partial.mkdir()
        yield partial
        _move(partial, folder)
    finally:
        _remove(partial)


def _put_back(folder: Path) -> None:
    """Restore the version that a kill between two renames has left aside."""
    old = sorted(folder.parent.glob(f".{folder.name}.*.old"), key=lambda path: path.stat().st_mtime)
    if old and not folder.exists():
        old[-1].rename(folder)


def _move(partial: Path, folder: Path) -> None:
    if not folder.exists():
        partial.rename(folder)
    elif not _exchanged(partial, folder):
        old = folder.with_name(f".{folder.name}.{owned_suffix()}.old")
        folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        _remove(old)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the disk cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return renameat2 is not None and 0 == renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_json(value: Any, out: str | os.PathLike[str]) -> None:
    """Write JSON, whole or not at all."""
    out = Path(out)
    partial = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, out)
    except OSError as error:
        raise OutputError(f"{out}: could not be written ({error}); nothing is left of it") from error
    finally:
        partial.unlink(missing_ok=True)
