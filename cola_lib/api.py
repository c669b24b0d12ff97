"""The front door: five verbs that take a model from calibration data to scores.

``import cola_lib as cola`` offers them, and the command line calls nothing else.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import pandas as pd

from cola_lib import calibration, curation, export
from cola_lib.arithmetic import measured_products
from cola_lib.calibration import CalibrationSet, Format, Layout
from cola_lib.compress import CompressionReport, QuantSpec, Spec
from cola_lib.compress import compress as compress_layers
from cola_lib.curation import Curated, Strategy, Target
from cola_lib.errors import DataError
from cola_lib.evaluate import CAPABILITIES, LINES, Suite, capability_suite
from cola_lib.evaluate import evaluate as score_items
from cola_lib.evaluate.harness import HarnessResult, HarnessSuite, run_harness
from cola_lib.folders import write_json
from cola_lib.models import LanguageModel, load_model, resolve_dtype
from cola_lib.statistics import Propagate

__all__ = ["Compressed", "Evaluation", "calibration_set", "compress", "curate", "evaluate", "load_model"]


def calibration_set(
    sources: str | Sequence[str],
    lm: LanguageModel,
    *,
    n_samples: int = 128,
    seq_len: int = 2048,
    seed: int = 0,
    layout: Layout = "pack",
    format: Format = "text",
    overlap: Literal["raise", "drop", "allow"] = "raise",
) -> CalibrationSet:
    """Draw a calibration set from sources, mixed evenly.

    Parameters
    ----------
    sources : str or sequence of str
        Named sources such as ``"c4"`` or ``"math:level=5"``, Hugging Face datasets ``"hf:NAME"``, local files.
    lm : LanguageModel
        The model to be compressed: its tokenizer makes the rows, which it must have positions for.
    n_samples : int
        Rows of the set.
    seq_len : int
        Tokens in a row.
    seed : int
        Seed for all random choices.
    layout : {"pack", "truncate", "pad"}
        How texts fill rows: end to end, or one text a row.
    format : {"text", "question", "question_answer", "question_reasoning", "chat", "few_shot"}
        How a question is worded.
    overlap : {"raise", "drop", "allow"}
        What to do with samples of your own that share 13 words in a row with an evaluation item.

    Returns
    -------
    CalibrationSet

    Raises
    ------
    UnknownNameError
        If a source is not known; the message has the nearest names.
    DataError
        If a source does not suffice, or repeats evaluation items.
    SpecError
        If a size is out of range.

    Examples
    --------
    >>> import cola_lib as cola
    >>> rows = cola.calibration_set(["stories", "gsm8k"], lm, n_samples=4, seq_len=32)
    >>> rows.sources
    ('stories', 'gsm8k', 'stories', 'gsm8k')
    """
    lm.check_length(seq_len)
    return calibration.calibration_set(
        [sources] if isinstance(sources, str) else sources,
        lm.tokenizer,
        n_samples=n_samples,
        seq_len=seq_len,
        seed=seed,
        layout=layout,
        format=format,
        overlap=overlap,
    )


def curate(
    lm: LanguageModel,
    strategy: Strategy | str,
    sources: str | Sequence[str],
    *,
    target: str | Target | None = None,
    n_samples: int | None = None,
    n_tokens: int | None = None,
    seq_len: int = 2048,
    seed: int = 0,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Curated:
    """Choose a calibration set for a model and its use.

    Parameters
    ----------
    lm : LanguageModel
        The untouched model.
    strategy : Strategy or str
        How to choose: for example ``Proxy()``, ``Cola(width=64)`` or a name.
    sources : str or sequence of str
        What to choose from, as for :func:`calibration_set`.
    target : str or Target, optional
        What the model will be used for: ``"general"``, a capability, or a source such as a file of prompts.
    n_samples : int, optional
        Rows of the set. Default: 128, unless ``n_tokens`` is given.
    n_tokens : int, optional
        Tokens of the set, padding not counted, instead of rows.
    seq_len : int
        Most tokens in a row.
    seed : int
        Seed for all random choices. The same arguments give the same set.
    limit : int, optional
        Most samples of each source to choose from.
    options : mapping, optional
        Options of a strategy that is given by name.

    Returns
    -------
    Curated
        Its ``rows`` are the calibration set; ``save`` writes it as a Hugging Face dataset with a card.

    Raises
    ------
    UnknownNameError
        If a name is not known.
    SpecError
        If a target is missing, or both sizes are given.
    DataError
        If the sources do not suffice, or repeat evaluation items.

    Examples
    --------
    >>> import cola_lib as cola
    >>> made = cola.curate(lm, cola.Random(), ["stories"], n_samples=2, seq_len=32, limit=8)
    >>> made.rows.n_samples, made.facts["strategy"]
    (2, 'random')
    """
    return curation.curate(
        lm,
        strategy,
        [sources] if isinstance(sources, str) else sources,
        n_samples=128 if n_samples is None and n_tokens is None else n_samples,
        n_tokens=n_tokens,
        seq_len=seq_len,
        target=target,
        seed=seed,
        limit=limit,
        options=options,
    )


@dataclass(frozen=True, repr=False)
class Compressed:
    """A compressed model with the report of its compression, from :func:`compress`.

    Parameters
    ----------
    lm : LanguageModel
        The model.
    report : CompressionReport
        What was done to each layer, and from what data.
    notes, warnings : tuple of str
        What to know before trusting the result, and what casts doubt on it; a sentence each.

    Examples
    --------
    >>> import cola_lib as cola
    >>> model = cola.compress(lm, cola.Wanda(sparsity=0.5), rows, progress=False)
    >>> model.save("pruned")
    >>> cola.load_model("pruned").fingerprint == model.report.model_after
    True
    """

    lm: LanguageModel
    report: CompressionReport
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        format: export.SaveFormat | None = None,
        dtype: str = "bfloat16",
        overwrite: bool = False,
    ) -> export.Export | None:
        """Write a checkpoint with its ``report.json``, whole or not at all.

        Parameters
        ----------
        out : path
            Folder.
        format : {"dense", "compressed-tensors"}, optional
            Ordinary weights that transformers loads, or packed integers for vLLM. By default the format follows the
            method: packed integers where activations are rounded, which a dense checkpoint cannot express.
        dtype : str
            Data type of scales, embeddings and norms of packed integers; ``"auto"`` takes that of the source.
        overwrite : bool
            Replace what is there, once the new checkpoint is complete.

        Returns
        -------
        Export or None
            Sizes of packed integers; ``None`` for a dense checkpoint.
        """
        return export.save(self.lm, self.report, out, format=format, dtype=dtype, overwrite=overwrite)

    def __repr__(self) -> str:
        return f"<{self.lm.name} compressed with {self.report.spec.label}: {len(self.report.layers)} layers>"


def compress(
    lm: LanguageModel,
    spec: Spec,
    rows: CalibrationSet | Curated | None = None,
    *,
    propagate: Propagate = "compressed",
    layer_errors: bool = True,
    keep_codes: bool | None = None,
    keep_originals: bool = True,
    progress: bool = True,
) -> Compressed:
    """Compress all linear layers of a model's blocks, in place.

    Parameters
    ----------
    lm : LanguageModel
        Its weights are replaced. After an error it is as it was.
    spec : Spec
        Method and strength, for example ``GPTQ(bits=3)``, ``Wanda(sparsity=0.5)`` or ``SmoothQuant()``.
    rows : CalibrationSet or Curated, optional
        Calibration data. Magnitude pruning, rounding to nearest and low-rank approximation need none.
    propagate : {"compressed", "original"}
        Calibrate a block on what reaches it through the compressed blocks before it, or through the original ones.
    layer_errors : bool
        Report the output error of each layer, and for GPTQ, whether it beats rounding on held-out rows. Without it
        compression is faster; the weights are the same.
    keep_codes : bool, optional
        Keep the integers of a quantizer, one byte a weight, for ``save(format="compressed-tensors")``. By default they
        are kept where activations are rounded, since such a model can be saved in no other format.
    keep_originals : bool
        Hold the original weights until all blocks are done, to restore them after an error.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    Compressed

    Raises
    ------
    SpecError
        If the method needs data and there are none, or does not fit the model's shape.
    DataError
        If the calibration data were tokenized for another model.
    NumericsError
        If a weight or an input is not finite, or a Hessian is singular; the message names the layer.

    Examples
    --------
    >>> import cola_lib as cola
    >>> model = cola.compress(lm, cola.GPTQ(bits=3, group_size=16), rows, progress=False)
    >>> model.report.spec.label, len(model.report.layers)
    ('gptq 3-bit', 14)
    """
    if isinstance(rows, Curated):
        _check_tokenizer(lm, rows)
        rows = rows.rows
    if keep_codes is None:
        keep_codes = isinstance(spec, QuantSpec) and spec.act_bits is not None and lm.streamed is None
    report = compress_layers(
        lm,
        spec,
        rows,
        propagate=propagate,
        layer_errors=layer_errors,
        keep_codes=keep_codes,
        keep_originals=keep_originals,
        hold_out=layer_errors and rows is not None and rows.n_samples > 1,
        progress=progress,
    )
    return Compressed(lm, report, tuple(_size_notes(lm, spec, rows)), tuple(_overfitting(report)))


def _check_tokenizer(lm: LanguageModel, made: Curated) -> None:
    """Refuse a set whose token ids mean something else to this model."""
    known = made.facts.get("tokenizer")
    if known is not None and known != lm.tokenizer_fingerprint:
        raise DataError(
            f"the calibration set was written with the tokenizer of {made.facts.get('model', 'another model')}, for "
            f"which its token ids mean something else than for {lm.name}: curate it again for this model"
        )


def _size_notes(lm: LanguageModel, spec: Spec, rows: CalibrationSet | None) -> list[str]:
    widest = max(lm.blocks[0].get_parameter(f"{name}.weight").shape[1] for name in lm.architecture.layers)
    if rows is None or spec.method not in ("sparsegpt", "gptq") or rows.n_tokens >= widest:
        return []
    return [
        f"{rows.n_tokens:,} tokens for layers of up to {widest:,} inputs; {spec.method} solves with a matrix "
        "of that many rows, and needs several times as many tokens"
    ]


SHOWN_LAYERS = 5
"""Layers that a note names before it counts the others."""


def _overfitting(report: CompressionReport) -> list[str]:
    """Name the layers in which GPTQ loses to rounding on rows that it has not seen."""
    layers = report.overfitted
    if not layers:
        return []
    worst = sorted(report.layers, key=lambda each: -(each.held_out_ratio or 0))[: min(SHOWN_LAYERS, len(layers))]
    named = ", ".join(f"{each.layer} ({each.held_out_ratio:.2f} times)" for each in worst)
    more = f" and {len(layers) - len(worst)} more" if len(layers) > len(worst) else ""
    cure = "more tokens, a larger --damp, or --damp auto"
    if getattr(report.spec, "damp", None) == "auto":
        cure = "more tokens, or --method rtn if there are none; no damping that was tried is better than rounding there"
    return [
        f"on held-out rows gptq makes more error than rounding to nearest in {len(layers)} of "
        f"{len(report.layers)} layers: {named}{more}. It has fitted the calibration text; try {cure}"
    ]


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on a suite of items, from :func:`evaluate`.

    Parameters
    ----------
    scores : pandas.DataFrame
        One row per item: ``capability``, ``bits_per_byte``, ``correct`` and so on.
    model, model_fingerprint : str
        Name and fingerprint of the model.
    suite : mapping of str to Any
        Settings and fingerprint of the suite.
    seconds : float
        Wall time.
    device, dtype : str
        Where, and in which data type, it was computed.

    Examples
    --------
    >>> import cola_lib as cola
    >>> found = cola.evaluate(lm, tokens_per_capability=3000, capabilities=["math"], progress=False)
    >>> found.summary().index.tolist(), found.summary()["n_items"].gt(0).all().item()
    (['math'], True)
    """

    scores: pd.DataFrame = field(repr=False)
    model: str
    model_fingerprint: str
    suite: Mapping[str, Any]
    seconds: float
    device: str
    dtype: str

    def summary(self) -> pd.DataFrame:
        """Bits per byte and accuracy of each capability; accuracy is over the items that offer a choice."""
        return pd.DataFrame.from_dict(self._by_capability(), orient="index")

    def _by_capability(self) -> dict[str, dict[str, Any]]:
        summary = {}
        for capability, group in self.scores.groupby("capability", sort=False):
            choices = group["correct"].dropna()
            summary[str(capability)] = {
                "bits_per_byte": float(group["nll"].sum() / math.log(2) / group["n_bytes"].sum()),
                "accuracy": float(choices.mean()) if len(choices) else None,
                "n_items": len(group),
                "n_choice_items": len(choices),
                "n_bytes": int(group["n_bytes"].sum()),
                "n_tokens": int(group["n_tokens"].sum()),
            }
        return summary

    def to_dict(self) -> dict[str, Any]:
        """Everything but the items, as plain data."""
        return {
            "model": self.model,
            "model_fingerprint": self.model_fingerprint,
            "suite": dict(self.suite),
            "capabilities": self._by_capability(),
            "seconds": self.seconds,
            "device": self.device,
            "dtype": self.dtype,
            "versions": {name: importlib.metadata.version(name) for name in ("cola-lib", "torch", "transformers")}
            | {"python": platform.python_version(), "float32 products": measured_products().backend},
        }

    def save(self, out: str | os.PathLike[str]) -> None:
        """Write summary and items to a JSON file."""
        items = json.loads(self.scores.to_json(orient="records", double_precision=15))
        write_json(self.to_dict() | {"items": items}, out)


@overload
def evaluate(
    model: LanguageModel | Compressed,
    suite: Suite | None = None,
    *,
    tokens_per_capability: int = 4096,
    seed: int = 0,
    capabilities: Sequence[str] | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> Evaluation: ...
@overload
def evaluate(
    model: LanguageModel | Compressed,
    suite: HarnessSuite,
    *,
    batch_size: int = 8,
    allow_code_execution: bool = False,
    progress: bool = True,
) -> HarnessResult: ...
def evaluate(
    model: LanguageModel | Compressed,
    suite: Suite | HarnessSuite | None = None,
    *,
    tokens_per_capability: int = 4096,
    seed: int = 0,
    capabilities: Sequence[str] | None = None,
    dtype: str | None = None,
    batch_size: int = 8,
    allow_code_execution: bool = False,
    progress: bool = True,
) -> Evaluation | HarnessResult:
    """Measure what a model can do, capability by capability.

    Parameters
    ----------
    model : LanguageModel or Compressed
        The model; it is left as it is.
    suite : Suite or HarnessSuite, optional
        Items of your own, or lm-eval's tasks from :func:`cola_lib.evaluate.harness.harness_suite`. By default packaged
        items of all capabilities, chosen by the next three arguments.
    tokens_per_capability : int
        Tokens to run for each capability, contexts included.
    seed : int
        Seed for the choice of items.
    capabilities : sequence of str, optional
        Which capabilities; all by default.
    dtype : str, optional
        Data type to compute in, such as ``"bfloat16"`` for screening. Default: the model's.
    batch_size : int
        lm-eval: requests that run together.
    allow_code_execution : bool
        lm-eval: run the code that the model writes, in a sandbox.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Evaluation or HarnessResult
        Both have a ``summary``.

    Raises
    ------
    UnknownNameError
        If a capability is not known.
    SandboxError
        If a task runs generated code, and that is not allowed or cannot be contained.

    Examples
    --------
    >>> import cola_lib as cola
    >>> found = cola.evaluate(lm, tokens_per_capability=3000, capabilities=["math"], progress=False)
    >>> found.summary().columns[:2].tolist()
    ['bits_per_byte', 'accuracy']
    """
    lm = model.lm if isinstance(model, Compressed) else model
    if isinstance(suite, HarnessSuite):
        return run_harness(
            lm, suite, batch_size=batch_size, allow_code_execution=allow_code_execution, progress=progress
        )
    about: dict[str, Any] = {"name": "own"}
    if suite is None:
        about = {"name": "capabilities", "seed": seed, "tokens_per_capability": tokens_per_capability}
        suite = capability_suite(
            lm.tokenizer,
            tokens_per_capability=tokens_per_capability,
            seed=seed,
            capabilities=capabilities or (*CAPABILITIES, *LINES),
        )
    began = time.perf_counter()
    computed = resolve_dtype(dtype, lm.device) if dtype else lm.dtype
    scores = score_items(lm, suite, dtype=computed, progress=progress)
    return Evaluation(
        scores,
        lm.name,
        lm.fingerprint,
        about | {"fingerprint": suite.fingerprint},
        round(time.perf_counter() - began, 3),
        str(lm.device),
        str(computed).removeprefix("torch."),
    )
