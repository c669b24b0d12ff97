"""Compress a whole model."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm.auto import tqdm

from cola_lib.arithmetic import measured_products
from cola_lib.compress.block import BlockUpdate, LayerReport, compress_block
from cola_lib.compress.quantized import QuantizedWeight
from cola_lib.compress.specs import QuantSpec, Spec
from cola_lib.errors import SpecError
from cola_lib.models import LanguageModel
from cola_lib.registry import revisions
from cola_lib.statistics import InputStatistics, LayerStatistics, Propagate, walk

if TYPE_CHECKING:
    from cola_lib.calibration import CalibrationSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressionReport:
    """What was done to a model, and from what.

    Parameters
    ----------
    spec : Spec
        With its group size settled.
    propagate : {"compressed", "original"} or None
        What each block's statistics were read from; ``None`` for methods that read no data.
    layers : tuple of LayerReport
        One per linear layer, in order.
    n_tokens : float or None
        Effective calibration tokens: those that are not padding.
    calibration : tuple of str
        Fingerprints of the calibration sets.
    calibration_set : mapping or None
        Name, sources, size, layout and seed of the set, where one was given rather than its statistics.
    model : str
        Name that the model was loaded by.
    model_before, model_after : str
        Fingerprints of the model.
    seconds : float
        Wall time of walk and solving.
    device : str
        Where it ran.
    quantized : mapping of str to QuantizedWeight
        Codes, scales and zero points by qualified name of the layer, where they were to be kept.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.compress import compress, method_spec
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> calibration = random_tokens_set(lm.tokenizer, n_samples=4, seq_len=32)
    >>> report = compress(lm, method_spec("wanda", sparsity=0.5), calibration, progress=False)
    >>> report.spec.label, len(report.layers), report.sparsity, report.n_tokens
    ('wanda 50%', 14, 0.5, 128.0)
    >>> sorted(report.to_dict())[:4]
    ['calibration', 'calibration_set', 'device', 'label']
    """

    spec: Spec
    propagate: str | None
    layers: tuple[LayerReport, ...]
    n_tokens: float | None
    calibration: tuple[str, ...]
    calibration_set: Mapping[str, Any] | None
    model: str
    model_before: str
    model_after: str
    seconds: float
    device: str
    quantized: Mapping[str, QuantizedWeight] = field(default_factory=dict, repr=False)

    @property
    def sparsity(self) -> float:
        """Share of zeros over all compressed weights."""
        weights = [layer.d_out * layer.d_in for layer in self.layers]
        zeros = [layer.sparsity * n for layer, n in zip(self.layers, weights, strict=True)]
        return sum(zeros) / sum(weights)

    @property
    def overfitted(self) -> tuple[str, ...]:
        """Layers in which GPTQ made more error on held-out rows than rounding to nearest does."""
        return tuple(layer.layer for layer in self.layers if (layer.held_out_ratio or 0) > 1)

    @property
    def output_error(self) -> float | None:
        """Mean over layers of the relative output error, or ``None`` without statistics."""
        errors = [layer.output_error for layer in self.layers if layer.output_error is not None]
        return sum(errors) / len(errors) if errors else None

    def to_dict(self) -> dict[str, Any]:
        """Everything but the codes, as plain data for JSON."""
        plain = dataclasses.asdict(dataclasses.replace(self, quantized={}))
        del plain["quantized"]
        plain["spec"] = self.spec.to_dict()
        plain["label"] = self.spec.label
        plain["products"] = measured_products().backend
        plain["sparsity"], plain["output_error"] = self.sparsity, self.output_error
        plain["overfitted"] = list(self.overfitted)
        plain["revisions"] = revisions("walk", "tokenize", *self.spec.key()["revisions"])
        return plain


@contextmanager
def restored(lm: LanguageModel) -> Iterator[LanguageModel]:
    """Put a model's weights back, and how it rounds activations, when the block of code is left, however it is left.

    Parameters
    ----------
    lm : LanguageModel
        The originals are kept, not copied, while the block runs.

    Yields
    ------
    LanguageModel
        The same.

    Examples
    --------
    >>> from cola_lib.compress import compress, method_spec, restored
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> before = lm.fingerprint
    >>> with restored(lm):
    ...     report = compress(lm, method_spec("magnitude", sparsity=0.5), progress=False)
    ...     lm.fingerprint == before
    False
    >>> lm.fingerprint == before
    True
    """
    before = lm.weights()
    try:
        yield lm
    finally:
        lm.put_back(before)


@contextmanager
def _unchanged_on_error(lm: LanguageModel, keep_originals: bool) -> Iterator[None]:
    if not keep_originals:
        yield
        return
    before = lm.weights()
    try:
        yield
    except BaseException:
        lm.put_back(before)
        raise


def _apply(lm: LanguageModel, block: nn.Module, name: str, update: BlockUpdate) -> None:
    for parameter, value in update.values.items():
        block.get_parameter(parameter).data = value
    if update.rounding:
        added = {f"{name}.{layer}": rounding for layer, rounding in update.rounding.items()}
        lm.round_inputs(lm.input_rounding | added)
    lm.weights_changed()


def settle(lm: LanguageModel, spec: Spec) -> Spec:
    """Check a specification against a model, and fix what depends on the model.

    Parameters
    ----------
    lm : LanguageModel
        The model to be compressed.
    spec : Spec
        As asked for.

    Returns
    -------
    Spec
        With the group size settled.

    Raises
    ------
    SpecError
        If a group size or pattern does not divide the model's layer widths.

    Examples
    --------
    >>> from cola_lib.compress import method_spec, settle
    >>> from cola_lib.models import tiny_model
    >>> settle(tiny_model(), method_spec("rtn", bits=4)).group_size
    32
    """
    return spec.for_widths({lm.blocks[0].get_parameter(f"{name}.weight").shape[1] for name in lm.architecture.layers})


def _steps(
    lm: LanguageModel,
    calibration: Sequence[CalibrationSet],
    statistics: Sequence[LayerStatistics],
    propagate: Propagate,
    gram: bool,
    progress: bool,
) -> Iterator[tuple[int, str, nn.Module, Any, Any]]:
    """Visit the blocks, with the statistics, and those of held-out rows, from wherever they come."""
    if calibration:
        rows, *apart = calibration
        held_out = apart[0] if apart else None
        for step in walk(lm, rows, propagate=propagate, gram=gram, held_out=held_out, progress=progress):
            yield step.index, step.name, step.block, step.statistics, step.held_out
            del step  # its Gram matrices would stay while the next block makes its own
        return
    for index in tqdm(range(len(lm.blocks)), desc="compress", unit="block", disable=not progress, leave=False):
        with lm.resident(index) as block:
            given = [_of_block(lm, each, index) for each in statistics]
            stats, held = given[0] if given else None, given[1] if len(given) > 1 else None
            yield index, lm.block_name(index), block, stats, held


def _of_block(lm: LanguageModel, statistics: LayerStatistics, index: int) -> dict[str, InputStatistics]:
    """Statistics of one block's inputs, where they are computed with."""
    return {group: stats.to(lm.device) for group, stats in statistics.block(index).items()}


def _check_arguments(
    lm: LanguageModel,
    spec: Spec,
    calibration: CalibrationSet | None,
    statistics: LayerStatistics | None,
    held_out: LayerStatistics | None,
) -> None:
    if calibration is not None and statistics is not None:
        raise SpecError("give a calibration set or statistics, not both")
    if spec.calibrated and calibration is None and statistics is None:
        raise SpecError(f"{spec.method} reads calibration data: give a calibration set or statistics")
    if statistics is not None:
        _check_model(lm, statistics, "the statistics")
    if held_out is not None:
        if statistics is None:
            raise SpecError("held_out belongs to statistics; of a calibration set, hold_out sets rows aside")
        _check_model(lm, held_out, "the held-out statistics")
    elif statistics is not None and isinstance(spec, QuantSpec) and spec.chooses_damp:
        raise SpecError(
            f"{spec.label} chooses its damping on held-out rows: give held_out too, or a calibration set instead"
        )


def _check_model(lm: LanguageModel, statistics: LayerStatistics, what: str) -> None:
    if statistics.model != lm.fingerprint:
        raise SpecError(
            f"{what} are of model {statistics.model} and this model is {lm.fingerprint}; collect them on this one"
        )


def _facts(calibration: CalibrationSet) -> dict[str, Any]:
    """Reduce a set to what another run needs to make it again."""
    return {
        "name": calibration.name,
        "sources": sorted(set(calibration.sources)),
        "n_samples": calibration.n_samples,
        "seq_len": calibration.seq_len,
        "layout": calibration.layout,
        "seed": calibration.seed,
        "draw": calibration.draw,
        "n_draws": calibration.n_draws,
    }


def compress(
    lm: LanguageModel,
    spec: Spec,
    calibration: CalibrationSet | None = None,
    *,
    statistics: LayerStatistics | None = None,
    held_out: LayerStatistics | None = None,
    hold_out: bool = False,
    propagate: Propagate = "compressed",
    targets: Mapping[str, LayerStatistics] | None = None,
    layer_errors: bool = True,
    keep_codes: bool = False,
    keep_originals: bool = True,
    progress: bool = True,
) -> CompressionReport:
    """Compress all linear layers of a model's blocks, in place.

    Parameters
    ----------
    lm : LanguageModel
        Its weights are replaced, and where the specification says so its linear layers round their inputs from then
        on: see :meth:`~cola_lib.models.LanguageModel.round_inputs`. After an error it is as it was. Of a streamed model
        one block is in memory at a time; what replaces it goes to files, and
        :func:`~cola_lib.compress.save_checkpoint` makes them a checkpoint.
    spec : Spec
        What to do, from :func:`~cola_lib.compress.method_spec`.
    calibration : CalibrationSet, optional
        Watched in one walk with the compression.
    statistics : LayerStatistics, optional
        Gathered before on this very model; the alternative to ``calibration``, and always ``"original"``.
    held_out : LayerStatistics, optional
        Of more calibration rows, with ``statistics``: GPTQ is judged on them, then solves with all rows. Other methods
        read them like the rest.
    hold_out : bool
        Judge GPTQ on a fifth of the calibration rows, at the cost of a second solution of each layer: see
        ``held_out_ratio`` of :class:`LayerReport`. Damping ``"auto"`` does so in any case. Other methods ignore it.
    propagate : {"compressed", "original"}
        What the blocks after a compressed one read, with ``calibration``. See
        :func:`~cola_lib.statistics.walk`.
    targets : mapping of str to LayerStatistics, optional
        Statistics, of this very model, of inputs on which every layer's output error is reported too: what the model
        will be used for. They decide nothing.
    layer_errors : bool
        Report each layer's output error on the calibration data. It takes the Gram matrix of every input, which not all
        methods read, and of every change. Without it all are faster; the weights differ by no more than float32
        rounding of the statistics can make them.
    keep_codes : bool
        Keep the integers that a quantizer rounded to, in ``quantized`` of the report: one byte a weight in main memory.
        :func:`cola_lib.export.export_quantized` packs them.
    keep_originals : bool
        Hold the original weights until all blocks are done, so that an error leaves the model as it was. Without it a
        block's originals are freed once it is compressed, which saves as much memory as the blocks take; after an error
        the model is then part original and part compressed, and only good to be loaded again.
    progress : bool
        Show a progress bar over blocks.

    Returns
    -------
    CompressionReport

    Raises
    ------
    SpecError
        If the arguments contradict each other or the model's shape.
    NumericsError
        If a weight or an input is not finite or a Hessian is singular; the message names the layer.

    Examples
    --------
    >>> from cola_lib.calibration import random_tokens_set
    >>> from cola_lib.compress import compress, method_spec
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> calibration = random_tokens_set(lm.tokenizer, n_samples=4, seq_len=32)
    >>> report = compress(lm, method_spec("gptq", bits=3, group_size=16), calibration, progress=False)
    >>> report.spec.label, len(report.layers), report.calibration == (calibration.fingerprint,)
    ('gptq 3-bit', 14, True)
    """
    _check_arguments(lm, spec, calibration, statistics, held_out)
    if keep_codes and not isinstance(spec, QuantSpec):
        raise SpecError(f"{spec.method} rounds to no codes that could be kept; leave keep_codes out, or quantize")
    if keep_codes and lm.streamed is not None:
        raise SpecError("keep_codes holds codes of all blocks in memory, and this model is streamed; load it whole")
    for target, of_target in (targets or {}).items():
        _check_model(lm, of_target, f"the statistics of target {target!r}")
    spec = settle(lm, spec)
    before, began, reports = lm.fingerprint, time.perf_counter(), []
    quantized: dict[str, QuantizedWeight] = {}
    if not spec.calibrated:
        calibration = None
    gram = layer_errors or spec.reads_gram
    chooses = isinstance(spec, QuantSpec) and spec.chooses_damp
    sets: tuple[CalibrationSet, ...] = () if calibration is None else (calibration,)
    if calibration is not None and spec.method == "gptq" and (chooses or hold_out):
        sets = calibration.hold_out()
    gathered = [each for each in (statistics, held_out) if each is not None]
    with _unchanged_on_error(lm, keep_originals):
        for index, name, block, stats, held in _steps(lm, sets, gathered, propagate, gram, progress):
            on_targets = {target: _of_block(lm, each, index) for target, each in (targets or {}).items()}
            update = compress_block(
                block,
                name,
                stats,
                spec,
                lm.architecture,
                lm.model.config,
                on_targets,
                held_out=held,
                layer_errors=layer_errors,
                keep_codes=keep_codes,
            )
            _apply(lm, block, name, update)
            reports += update.reports
            quantized |= {f"{name}.{layer}": codes for layer, codes in update.quantized.items()}
            log.debug("%s: block %d of %d", spec.label, index + 1, len(lm.blocks))
            # What was found for this block would stay in memory while the next one is solved.
            del block, stats, held, on_targets, update
    n_tokens = [each.n_tokens for each in sets] + [each.n_tokens for each in gathered]
    return CompressionReport(
        spec=spec,
        propagate=None if not spec.calibrated else ("original" if statistics is not None else propagate),
        layers=tuple(reports),
        n_tokens=float(sum(n_tokens)) if n_tokens else None,
        calibration=(calibration.fingerprint,)
        if calibration
        else tuple(name for each in gathered for name in each.calibration),
        calibration_set=_facts(calibration) if calibration is not None else None,
        model=lm.name,
        model_before=before,
        model_after=lm.fingerprint,
        seconds=time.perf_counter() - began,
        device=str(lm.device),
        quantized=quantized,
    )
