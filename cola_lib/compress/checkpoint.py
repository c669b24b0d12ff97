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
    """Refuse an output folder that exists, before any work is done.

    Parameters
    ----------
    out : path
        Of the folder to be written.
    overwrite : bool
        Whether to replace what is there.

    Returns
    -------
    Path
        Of the folder, absolute.

    Raises
    ------
    OutputError
        If it exists and may not be replaced or was not written by :func:`save_checkpoint`, or if its parent cannot
        hold it.

    Examples
    --------
    >>> from cola_lib.compress import check_output
    >>> check_output("new-folder", overwrite=False).name
    'new-folder'
    """
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
    """Refuse to write a model as weights alone that is more than its weights.

    Parameters
    ----------
    lm : LanguageModel
        The model to be written.

    Raises
    ------
    SpecError
        If its layers round their inputs, of which an ordinary checkpoint would lose every trace.

    Examples
    --------
    >>> from cola_lib.compress import check_dense
    >>> from cola_lib.models import tiny_model
    >>> check_dense(tiny_model())  # silent: its weights are all there is to it
    """
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
    """Write model, tokenizer and report.

    Parameters
    ----------
    lm : LanguageModel
        The compressed model.
    report : CompressionReport
        Becomes ``report.json`` beside the weights.
    out : path
        Folder. Plain ``AutoModelForCausalLM.from_pretrained`` loads it.
    overwrite : bool
        Replace what is there, once the new checkpoint is complete.

    Returns
    -------
    Path
        Of the folder.

    Raises
    ------
    OutputError
        If the folder exists and may not be replaced, or the disk is full. No half-written checkpoint is left.
    SpecError
        If the model rounds its activations: a file of weights cannot say so.

    Examples
    --------
    >>> from cola_lib.compress import compress, method_spec, save_checkpoint
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> report = compress(lm, method_spec("magnitude", sparsity=0.5), progress=False)
    >>> folder = save_checkpoint(lm, report, "pruned")
    >>> sorted(path.name for path in folder.glob("*.json"))
    ['config.json', 'generation_config.json', 'report.json', 'tokenizer.json', 'tokenizer_config.json']
    """
    check_dense(lm)
    needed = sum(p.numel() * p.element_size() for p in lm.model.parameters())
    with checkpoint_folder(out, needed=needed, overwrite=overwrite) as partial:
        lm.save(partial)
        write_report(report, partial)
    return Path(out)


def write_report(report: CompressionReport, folder: Path, **more: Any) -> None:
    """Write ``report.json``, which marks a folder as ours.

    Parameters
    ----------
    report : CompressionReport
        What was done to the model.
    folder : Path
        Of the checkpoint.
    **more
        Further entries, as plain data.

    Examples
    --------
    >>> import json
    >>> from pathlib import Path
    >>> from cola_lib.compress import compress, method_spec, write_report
    >>> from cola_lib.models import tiny_model
    >>> report = compress(tiny_model(), method_spec("magnitude", sparsity=0.5), progress=False)
    >>> write_report(report, Path("."), note="for the record")
    >>> json.loads(Path("report.json").read_text())["note"]
    'for the record'
    """
    (folder / REPORT).write_text(json.dumps(report.to_dict() | more, indent=1) + "\n", encoding="utf-8")


@contextmanager
def checkpoint_folder(out: str | os.PathLike[str], *, needed: int, overwrite: bool) -> Iterator[Path]:
    """Fill a folder with a checkpoint, whole or not at all.

    Parameters
    ----------
    out : path
        The folder.
    needed : int
        Bytes that will be written.
    overwrite : bool
        Replace what is there.

    Yields
    ------
    Path
        An empty folder to write to, with :func:`write_report` too.

    Raises
    ------
    OutputError
        If the folder exists and may not be replaced, or the disk is full.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cola_lib.compress import checkpoint_folder
    >>> with checkpoint_folder("checkpoint", needed=100, overwrite=False) as folder:
    ...     _ = (folder / "config.json").write_text("{}")
    >>> Path("checkpoint/config.json").read_text()
    '{}'
    """
    out = check_output(out, overwrite=overwrite)
    try:
        with written_whole(out) as partial:
            free = shutil.disk_usage(out.parent).free
            if free < needed:
                raise OutputError(f"{out}: the checkpoint needs {needed:,} bytes and the disk has {free:,}; free some")
            yield partial
    except (OSError, SafetensorError) as error:
        raise OutputError(f"{out}: could not be written ({error}); nothing is left of it") from error
