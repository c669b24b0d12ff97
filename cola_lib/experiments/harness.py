"""Results of lm-eval in the store: computed once for a model and a suite, and found again."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import pandas as pd

from cola_lib.evaluate.harness import HarnessResult, HarnessSuite, result_of, run_harness
from cola_lib.experiments.cells import CellKey, CellResult, current_versions
from cola_lib.experiments.runner import device_name
from cola_lib.experiments.store import ResultStore
from cola_lib.models import LanguageModel
from cola_lib.revisions import revisions


def harness_cell(
    lm: LanguageModel,
    suite: HarnessSuite,
    store: ResultStore,
    *,
    batch_size: int = 8,
    allow_code_execution: bool = False,
) -> HarnessResult:
    """Evaluate a model with lm-eval, once.

    Parameters
    ----------
    lm : LanguageModel
        Untouched or compressed: its weights name it.
    suite : HarnessSuite
        Of packaged items.
    store : ResultStore
        Read first; a new result is put there, its log of samples included.
    batch_size, allow_code_execution
        As in :func:`~cola_lib.evaluate.harness.run_harness`. A stored result is read without running code.

    Returns
    -------
    HarnessResult

    Raises
    ------
    SpecError
        If the suite's items come from the hub.
    """
    key = harness_key(lm, suite)

    def evaluated() -> CellResult:
        began = time.perf_counter()
        result = run_harness(lm, suite, batch_size=batch_size, allow_code_execution=allow_code_execution)
        return CellResult(
            key=key,
            scores=_table(result),
            labels={"model": lm.name, "suite": suite.name, "items": suite.items, "limit": suite.limit},
            device=device_name(lm.device),
            seconds=time.perf_counter() - began,
            versions={**current_versions(), "lm_eval": result.report["lm_eval_version"]},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    return _result_of(store.cached(key, evaluated)[0].scores)


def harness_key(lm: LanguageModel, suite: HarnessSuite) -> CellKey:
    """Name a result by everything that decides it.

    Parameters
    ----------
    lm : LanguageModel
        The model as it is evaluated.
    suite : HarnessSuite
        Of packaged items.

    Returns
    -------
    CellKey
        Of its cell.

    Examples
    --------
    >>> from cola_lib.evaluate.harness import harness_suite
    >>> from cola_lib.experiments import harness_key
    >>> from cola_lib.models import tiny_model
    >>> one, other = (harness_key(tiny_model(), harness_suite("piqa", limit=n)) for n in (2, 3))
    >>> one.fingerprint != other.fingerprint
    True
    """
    return CellKey(
        model=lm.fingerprint,
        suite=suite.fingerprint,
        spec=None,
        calibration=None,
        propagate=None,
        revisions=revisions("harness"),
    )


def _table(result: HarnessResult) -> pd.DataFrame:
    """Write a report as rows of JSON: one for all but the samples, then one for each sample.

    Text, so that nothing of lm-eval's nested schema is lost in the store, whose numbers are float32 when packed.
    """
    report = result.to_dict()
    samples = report.pop("samples")
    rows = [("", report), *((task, sample) for task, logged in samples.items() for sample in logged)]
    return pd.DataFrame({"part": [name for name, _ in rows], "json": [json.dumps(value) for _, value in rows]})


def _result_of(table: pd.DataFrame) -> HarnessResult:
    samples: dict[str, list[Any]] = {}
    report: dict[str, Any] = {}
    for name, text in zip(table["part"], table["json"], strict=True):
        if name:
            samples.setdefault(name, []).append(json.loads(text))
        else:
            report = json.loads(text)
    return result_of(report | {"samples": samples})
