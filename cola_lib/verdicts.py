"""What the notebooks found: kept beside the results, and read by the scorecard and the command line."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from cola_lib.analysis import Finding, Primary, primaries, scorecard_parts
from cola_lib.errors import ColaError, DataError, StoreError
from cola_lib.experiments.store import ResultStore, open_store, write_whole

FOLDER = "findings"
"""Folder below the store."""


def record(store: str | os.PathLike[str], notebook: str, findings: Sequence[Finding]) -> None:
    """Keep what a notebook found.

    Parameters
    ----------
    store : str or path
        Folder or fsspec URL of the results.
    notebook : str
        Its name; what it found before is replaced.
    findings : sequence of Finding
        Judged.

    Raises
    ------
    DataError
        If a finding has not been judged.
    StoreError
        If the store cannot be written.

    Examples
    --------
    >>> from cola_lib.analysis import Finding, judge_family
    >>> from cola_lib.verdicts import record, recorded
    >>> finding = Finding("C1", "wanda · math", 0.03, 0.01, 0.05, "% of bits per byte", 0.004, n_draws=5, n_items=60)
    >>> record("results", "03_sample_amount", judge_family([finding]))
    >>> list(recorded("results"))
    ['03_sample_amount']
    """
    bare = [finding.part for finding in findings if finding.verdict is None]
    if bare:
        raise DataError(f"{notebook}: {len(bare)} findings have no verdict, the first {bare[0]!r}: judge_family first")
    fs, root = open_store(os.fspath(store))
    folder = posixpath.join(root, FOLDER)
    text = json.dumps([finding.to_dict() for finding in findings], indent=1, ensure_ascii=False, allow_nan=False)
    try:
        write_whole(fs, posixpath.join(folder, f"{notebook}.json"), text.encode() + b"\n")
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error})") from error


def recorded(store: str | os.PathLike[str]) -> dict[str, list[Finding]]:
    """Read what notebooks found.

    Parameters
    ----------
    store : str or path
        Folder or fsspec URL of the results.

    Returns
    -------
    dict of str to list of Finding
        By notebook, in the order of their names.

    Raises
    ------
    DataError
        If there is nothing, or something else.
    StoreError
        If the store cannot be read.

    Examples
    --------
    >>> from cola_lib.analysis import Finding, judge_family
    >>> from cola_lib.verdicts import record, recorded
    >>> finding = Finding("C1", "wanda · math", 0.03, 0.01, 0.05, "% of bits per byte", 0.004, n_draws=5, n_items=60)
    >>> record("results", "03_sample_amount", judge_family([finding]))
    >>> [found.part for found in recorded("results")["03_sample_amount"]]
    ['wanda · math']
    """
    fs, root = open_store(os.fspath(store))
    folder = posixpath.join(root, FOLDER)
    paths = sorted(fs.glob(posixpath.join(folder, "*.json"))) if fs.exists(folder) else []
    if not paths:
        raise DataError(f"no findings in {folder}; the notebooks write them: run make book, or cola notebook")
    found = {}
    for path in paths:
        try:
            values = json.loads(fs.cat_file(path))
            found[posixpath.basename(path).removesuffix(".json")] = [Finding.from_dict(each) for each in values]
        except (ColaError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DataError(f"{path} holds no findings ({error}); run its notebook again") from error
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}; mend its permissions") from error
    return found


def has_findings(store: str | os.PathLike[str]) -> bool:
    """Whether :func:`recorded` finds something."""
    fs, root = open_store(os.fspath(store))
    return bool(fs.glob(posixpath.join(root, FOLDER, "*.json")))


BEGIN, END = "<!-- scorecard -->", "<!-- end of scorecard -->"
"""Lines of a page between which the scorecard stands."""


def with_scorecard(page: str, table: str) -> str:
    """Put the scorecard into a page, in the place of the one that is there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"the page has no place for the scorecard: put the lines {BEGIN} and {END} where it belongs")
    return f"{before}{BEGIN}\n\n{table}\n{END}{after}"


STAGES = {"pilot": "cells.parquet", "confirmation": "confirmation/cells.parquet"}
"""Packed cells of each stage of the evidence: the draws that the rules were made after, and those that they judge."""

OWN = "these results"
"""Name of the only stage of a store that holds no packed evidence."""

Stages = tuple[dict[str, dict[str, Primary]], dict[str, dict[str, str]]]


def stages(store: str | os.PathLike[str]) -> Stages:
    """Compute the primary numbers of each stage of the evidence, each stage judged by itself.

    Parameters
    ----------
    store : str or path
        Folder with the files of :data:`STAGES`; or else a store of results, which makes one stage.

    Returns
    -------
    numbers : dict of str to dict of str to Primary
        By stage and claim.
    missing : dict of str to dict of str to str
        By stage and claim, what a number lacks. The confirmation shows no number before all of its draws are there.

    Raises
    ------
    DataError
        If there are no results.

    Examples
    --------
    >>> from cola_lib.verdicts import stages
    >>> numbers, missing = stages("evidence")  # doctest: +SKIP
    >>> numbers["pilot"]["C5"].number.text  # doctest: +SKIP
    '+1.7 [-0.2, +3.6] %'
    """
    numbers, missing = {}, {}
    for stage, frame in stage_frames(store).items():
        numbers[stage], missing[stage] = primaries(frame, complete=stage == "confirmation")
    return numbers, missing


def stage_frames(store: str | os.PathLike[str]) -> dict[str, pd.DataFrame]:
    """Read the scores of each stage of the evidence.

    Parameters
    ----------
    store : str or path
        As for :func:`stages`.

    Returns
    -------
    dict of str to pandas.DataFrame
        By stage, tidy scores.

    Raises
    ------
    DataError
        If there are no results.

    Examples
    --------
    >>> from cola_lib.verdicts import stage_frames
    >>> list(stage_frames("evidence"))  # doctest: +SKIP
    ['pilot', 'confirmation']
    """
    packed = {stage: Path(store) / name for stage, name in STAGES.items() if (Path(store) / name).is_file()}
    frames = {stage: ResultStore(store, packed=[path]).to_frame() for stage, path in packed.items()}
    frames = frames or {OWN: ResultStore(store).to_frame()}
    if any(frame.empty for frame in frames.values()):
        raise DataError(f"no results in {store}; make book or cola sweep computes some")
    return frames


def has_cells(store: str | os.PathLike[str]) -> bool:
    """Whether :func:`stages` finds results."""
    return any((Path(store) / name).exists() for name in ("cells", *STAGES.values()))


def verdict_table(findings: Sequence[Finding]) -> Styler:
    """Show findings at the end of a notebook.

    Parameters
    ----------
    findings : sequence of Finding
        Judged.

    Returns
    -------
    Styler
        One row per part: claim, part, the paper's number, what the claim says of ours, ours with its 95 % interval,
        Holm's p-value (two-sided, of the bound), verdict.

    Examples
    --------
    >>> from cola_lib.analysis import Finding, judge_family
    >>> from cola_lib.verdicts import verdict_table
    >>> finding = Finding("C1", "wanda · math", 0.03, 0.01, 0.05, "% of bits per byte", 0.004, n_draws=5, n_items=60)
    >>> verdict_table(judge_family([finding])).data["verdict"].tolist()
    ['reproduced']
    """
    table = scorecard_parts(findings)
    shown = pd.DataFrame(
        {
            "claim": table["claim"] + " " + table["title"],
            "part": table["part"],
            "paper": table["paper"],
            "the claim says": table["says"],
            "ours, 95 % interval": table["ours"],
            "p (Holm)": table["p_holm"].map("{:.3f}".format),
            "verdict": table["verdict"],
        }
    )
    return shown.style.hide(axis="index")
