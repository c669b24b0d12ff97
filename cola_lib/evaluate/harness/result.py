"""What lm-eval found, in its own schema, and read as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cola_lib.errors import DataError
from cola_lib.evaluate.harness.tasks import TASKS

OWN = "cola"
"""Key of the results under which stands what lm-eval does not record."""

Z = 1.959963984540054
"""Of a 95 % interval."""

_TRANSFORMS = {
    "perplexity": lambda rate: math.exp(-rate),
    "word_perplexity": lambda rate: math.exp(-rate),
    "byte_perplexity": lambda rate: math.exp(-rate),
    "bits_per_byte": lambda rate: -rate / math.log(2),
}
"""How lm-eval turns log-likelihood per unit into a metric."""

_CAPABILITY = {task.name: task.capability for task in TASKS}


@dataclass(frozen=True)
class HarnessResult:
    """Results of lm-eval.

    Parameters
    ----------
    report : dict
        lm-eval's own: ``results``, ``groups``, ``group_subtasks``, ``configs``, ``versions``, ``n-shot``,
        ``higher_is_better``, ``n-samples``, ``samples``, ``task_hashes``, ``config``, and its version. Each entry of
        ``samples`` has in addition the ``item``'s name in this library, and the ``sandbox``'s verdict where code was
        run. The key ``"cola"`` holds what was chosen: suite, half, dataset, tasks left out.

    Examples
    --------
    >>> from cola_lib.evaluate.harness import HarnessResult
    >>> result = HarnessResult({"results": {"piqa": {"acc,none": 0.7}}, "cola": {"suite": "commonsense"}})
    >>> result.to_dict()["results"]["piqa"]
    {'acc,none': 0.7}
    """

    report: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the report, for JSON."""
        return dict(self.report)

    def frame(self) -> pd.DataFrame:
        """Scores, one row per item, filter and metric.

        Returns
        -------
        pandas.DataFrame
            ``capability``, ``task``, ``item``, ``doc_id``, ``filter``, ``metric``, ``value``, and ``weight``: 1, or
            the units (words, bytes) that a log-likelihood is spread over.
        """
        rows = []
        for task, samples in self.report["samples"].items():
            for sample in samples:
                for metric in sample["metrics"]:
                    value = sample[metric]
                    value, weight = value if isinstance(value, list | tuple) else (value, 1)
                    rows.append(
                        {
                            "capability": _CAPABILITY[task],
                            "task": task,
                            "item": sample["item"],
                            "doc_id": sample["doc_id"],
                            "filter": sample["filter"],
                            "metric": metric,
                            "value": float(value),
                            "weight": int(weight),
                        }
                    )
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """Metrics with 95 % intervals, one row per task, filter and metric, then the same for groups.

        Returns
        -------
        pandas.DataFrame
            ``name``, ``filter``, ``metric``, ``n`` (items), ``value`` (lm-eval's number), ``low``, ``high``.

        Notes
        -----
        lm-eval gives standard errors, by a bootstrap where there is no formula. The intervals here say how far the
        number would move with other items of the same kind, taken as independent draws: Wilson's for shares, and for
        the rest that of a mean or a ratio (delta method), turned into the metric's units. An interval needs two items.

        References
        ----------
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22 (1927).
        """
        frame = self.frame()
        rows = []
        for name, members in self._members().items():
            own = frame[frame["task"].isin(members)]
            for (key, metric), part in own.groupby(["filter", "metric"], sort=False):
                reported = self.report["results"][name].get(f"{metric},{key}")
                if reported is None:
                    continue  # a group leaves out metrics that it does not aggregate
                low, high = interval(part["value"].to_numpy(), part["weight"].to_numpy(), str(metric))
                rows.append(
                    {
                        "name": name,
                        "filter": key,
                        "metric": metric,
                        "n": len(part),
                        "value": reported,
                        "low": low,
                        "high": high,
                    }
                )
        return pd.DataFrame(rows)

    def _members(self) -> dict[str, list[str]]:
        """Tasks by themselves, then those of each group."""
        below = self.report.get("group_subtasks", {})

        def leaves(name: str) -> list[str]:
            return [leaf for child in below[name] for leaf in leaves(child)] if name in below else [name]

        return {task: [task] for task in self.report["samples"]} | {group: leaves(group) for group in below}


def interval(value: np.ndarray, weight: np.ndarray, metric: str) -> tuple[float, float]:
    """Find a 95 % interval of a metric."""
    n = len(value)
    if n < 2:
        return math.nan, math.nan
    if metric not in _TRANSFORMS and np.isin(value, (0.0, 1.0)).all():
        share, room = value.mean(), Z**2 / n
        middle = (share + room / 2) / (1 + room)
        half = math.sqrt(room * share * (1 - share) + room**2 / 4) / (1 + room)
        return middle - half, middle + half
    rate = value.sum() / weight.sum()
    half = Z * math.sqrt(n / (n - 1) * ((value - rate * weight) ** 2).sum()) / weight.sum()
    transform = _TRANSFORMS.get(metric, float)
    ends = sorted(transform(end) for end in (rate - half, rate + half))
    return ends[0], ends[1]


def plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a report to what JSON can hold, as lm-eval does when it writes one."""
    return json.loads(json.dumps(report, default=_plain_value, ensure_ascii=False))


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return sorted(value) if isinstance(value, set) else str(value)


def result_of(report: Mapping[str, Any]) -> HarnessResult:
    """Read a report back."""
    absent = [key for key in ("results", "samples", "versions", OWN) if key not in report]
    if absent:
        raise DataError(f"not a report of cola evaluate --backend lm-eval: it has no {absent[0]!r}")
    return HarnessResult(dict(report))
