"""Write a compressed model as a checkpoint that transformers loads, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cola_lib.compress.api import CompressionReport
from cola_lib.errors import OutputError, SpecError
from cola_lib.folders import written_whole
from cola_lib.models import LanguageModel

REPORT = "report.json"


def check_output(out: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Refuse an output folder that exists, before any work is done."""
    out = Path(out)
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists; give --overwrite to replace it, or another --out")
    if out.exists() and not _ours(out):
        raise OutputError(
            f"{out} exists and is no compressed checkpoint (it has no {REPORT}), so --overwrite does not remove it; "
            "give another --out"
        )
    parent = next(p for p in [out.absolute(), *out.absolute().parents][1:] if p.exists())
    if not parent.is_dir():
        raise OutputError(f"{parent} is a file, so {out} cannot be a folder below it")
    return out


def _ours(out: Path) -> bool:
    """Whether a folder may be replaced: it is empty, or a checkpoint that this module wrote."""
    return out.is_dir() and ((out / REPORT).is_file() or not any(out.iterdir()))


def check_dense(lm: LanguageModel) -> None:
    """Refuse to write a model as weights alone that is more than its weights."""
    if lm.input_rounding:
        raise SpecError(
            f"{len(lm.input_rounding)} layers of this model round their inputs when it runs, and an ordinary "
            "checkpoint cannot say so; write it with export_quantized (--save-as compressed-tensors)"
        )


def save_checkpoint(
    lm: LanguageModel,
    report: CompressionReport,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> Path:
    """Write model, tokenizer and report."""
    check_dense(lm)
    needed = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    with checkpoint_folder(out, needed=needed, overwrite=overwrite) as partial:
        lm.save(partial)
        write_report(report, partial)
    return Path(out)


def write_report(report: CompressionReport, folder: Path, **more: Any) -> None:
    """Write ``report.json``, which marks a folder as ours."""
    (folder / REPORT).write_text(json.dumps(report.to_dict() | more, indent=1) + "\n", encoding="utf-8")


@contextmanager
def checkpoint_folder(out: str | os.PathLike[str], *, needed: int, overwrite: bool) -> Iterator[Path]:
    """Fill a folder with a checkpoint, whole or not at all."""
    out = check_output(out, overwrite=overwrite)
    try:
        with written_whole(out) as partial:
            free = shutil.disk_usage(out.parent).free
            if free < needed:
                raise OutputError(f"{out}: the checkpoint needs {needed:,} bytes and the disk has {free:,}; free some")
            yield partial
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out}: could not be written ({error}); nothing is left of it") from error
