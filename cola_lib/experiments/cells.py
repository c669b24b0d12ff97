"""A cell: one number-producing act, named by everything that shaped its numbers."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any

import pandas as pd

from cola_lib.arithmetic import measured_products
from cola_lib.errors import SpecError
from cola_lib.evaluate import DERIVED, with_derived
from cola_lib.fingerprint import fingerprint
from cola_lib.registry import outdated, revisions

Label = str | int | float | bool | None
"""What a label may be: plain, so that it can be written and compared."""


@dataclass(frozen=True)
class CellKey:
    """What decides a cell's numbers. Build it with :func:`cell_key`, which leaves out what does not matter."""

    model: str
    suite: str
    spec: Mapping[str, Any] | None
    calibration: str | None
    propagate: str | None
    revisions: Mapping[str, int]
    targets: Mapping[str, str] | None = None
    eval_dtype: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The cell's name in every store."""
        facts = asdict(self)
        for name in ("targets", "eval_dtype"):
            if facts[name] is None:
                del facts[name]  # cells without it keep the names they had before there was such a thing
        return fingerprint(facts)

    @property
    def outdated(self) -> list[str]:
        """Algorithms that were changed since: their numbers would not come out the same today."""
        return outdated(asdict(self))


def cell_key(
    *,
    model: str,
    suite: str,
    spec: Mapping[str, Any] | None = None,
    calibrated: bool = False,
    calibration: str | None = None,
    propagate: str | None = None,
    targets: Mapping[str, str] | None = None,
    eval_dtype: str | None = None,
) -> CellKey:
    """Name a cell.

    Parameters
    ----------
    model, suite : str
        Fingerprints.
    spec : mapping, optional
        ``spec.key()`` of a settled specification; without it the cell is the dense model's.
    calibrated : bool
        Whether the method reads calibration data. If not, ``calibration`` and ``propagate`` are dropped: the
        cell is the same under every calibration set.
    calibration : str, optional
        Fingerprint of the calibration set.
    propagate : str, optional
        ``"original"`` or ``"compressed"``.
    targets : mapping of str to str, optional
        Fingerprints of the targets' inputs; dropped for the dense model, which makes no errors.
    eval_dtype : str, optional
        Data type of the evaluation, where it is not the model's own.

    Returns
    -------
    CellKey
        Without what does not matter.

    Raises
    ------
    SpecError
        If the method reads calibration data and there is none.

    Examples
    --------
    >>> from cola_lib.experiments import cell_key
    >>> cell_key(model="m", suite="s") == cell_key(model="m", suite="s", calibration="what the dense model never reads")
    True
    """
    targets = dict(sorted(targets.items())) if targets and spec is not None else None
    if not calibrated:
        return CellKey(model, suite, spec, None, None, revisions("likelihood"), targets, eval_dtype)
    if calibration is None or propagate is None:
        raise SpecError(f"a cell of {spec and spec.get('method')} needs a calibration set and a propagation mode")
    known = revisions("likelihood", "walk")
    return CellKey(model, suite, spec, calibration, propagate, known, targets, eval_dtype)


@dataclass(frozen=True)
class CellResult:
    """A computed cell.

    Parameters
    ----------
    key : CellKey
        Its name.
    scores : pandas.DataFrame
        One row per item, from :func:`cola_lib.evaluate.evaluate`.
    labels : mapping of str to str, int, float, bool or None
        What a reader calls it: model, method, source, draw, seed and so on. They decide nothing.
    layers : pandas.DataFrame
        One row per compressed layer: ``layer``, ``output_error``, ``weight_error``, ``sparsity``, and for each target
        ``error_on_`` and its name. Empty for the dense model.
    device : str
        Where it was computed.
    seconds : float
        Wall time of compression (its share of the walk left out) and evaluation.
    versions : mapping of str to str
        Of the packages that computed it.
    created : str
        ISO 8601 time in UTC.

    Examples
    --------
    >>> import pandas as pd
    >>> from cola_lib.experiments import CellResult, cell_key
    >>> scores = pd.DataFrame({"item": ["1"], "capability": "math", "task": "sums", "bits_per_byte": [1.2]})
    >>> key = cell_key(model="m", suite="s")
    >>> CellResult(key, scores, {"method": "dense"}).frame()[["method", "item", "bits_per_byte"]].to_dict("records")
    [{'method': 'dense', 'item': '1', 'bits_per_byte': 1.2}]
    """

    key: CellKey
    scores: pd.DataFrame
    labels: Mapping[str, Label]
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    device: str = ""
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    created: str = ""

    def frame(self, labels: Mapping[str, Label] | None = None) -> pd.DataFrame:
        """Scores with the cell's name and labels in every row.

        Parameters
        ----------
        labels : mapping, optional
            Instead of the stored ones.
        """
        return self._labelled(self.scores, labels)

    def layer_frame(self, labels: Mapping[str, Label] | None = None) -> pd.DataFrame:
        """Layers with the cell's name and labels in every row.

        Parameters
        ----------
        labels : mapping, optional
            Instead of the stored ones.
        """
        return self._labelled(self.layers, labels)

    def _labelled(self, table: pd.DataFrame, labels: Mapping[str, Label] | None) -> pd.DataFrame:
        named = {"cell": self.key.fingerprint, **(self.labels if labels is None else labels)}
        columns = pd.DataFrame({name: [value] * len(table) for name, value in named.items()})
        return pd.concat([columns, table.reset_index(drop=True)], axis=1)


def result_to_plain(result: CellResult) -> dict[str, Any]:
    """Reduce a result to what JSON can hold; derived columns are left out."""
    scores = result.scores.drop(columns=list(DERIVED), errors="ignore")
    return {
        "key": asdict(result.key),
        "labels": dict(result.labels),
        "device": result.device,
        "seconds": result.seconds,
        "versions": dict(result.versions),
        "created": result.created,
        "scores": scores.to_dict("list"),
        "layers": result.layers.to_dict("list"),
    }


def result_from_plain(plain: Mapping[str, Any]) -> CellResult:
    """Rebuild a result."""
    for name, kind in _PLAIN.items():
        if not isinstance(plain[name], kind):
            raise TypeError(f"{name} is a {type(plain[name]).__name__}")
    rest = {name: plain[name] for name in ("labels", "device", "seconds", "versions", "created")}
    scores = pd.DataFrame({name: _column(values) for name, values in plain["scores"].items()})
    return CellResult(
        key=CellKey(**plain["key"]),
        scores=with_derived(scores) if "choice_nll" in scores else scores,
        layers=pd.DataFrame({name: _column(values) for name, values in plain["layers"].items()}),
        **rest,
    )


def plain_text(plain: Any) -> str:
    """Write plain data as JSON, always in the same way."""
    return json.dumps(plain, separators=(",", ":"), default=_number)


def text_digest(text: str) -> str:
    """Checksum of a text: its SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def _number(value: Any) -> int | float:
    """Unwrap NumPy's numbers, which JSON does not know."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a result cannot hold a {type(value).__name__}")


_PLAIN: dict[str, type | tuple[type, ...]] = {
    "key": dict,
    "scores": dict,
    "layers": dict,
    "labels": dict,
    "versions": dict,
    "device": str,
    "created": str,
    "seconds": (int, float),
}
"""What a plain result holds."""


def _column(values: list[Any]) -> list[Any]:
    """Turn the lists that JSON makes of tuples back into tuples."""
    if not isinstance(values, list):
        raise TypeError(f"a column is a {type(values).__name__}")
    return [tuple(value) if isinstance(value, list) else value for value in values]


def current_versions() -> dict[str, str]:
    """Versions of Python and the packages whose arithmetic a result rests on, and which product they used."""
    names = ("cola-lib", "numpy", "torch", "transformers")
    versions = {"python": platform.python_version(), **{name: _version(name) for name in names}}
    return versions | {"float32 products": measured_products().backend}


_version = cache(version)  # which reads and parses the package's files each time
