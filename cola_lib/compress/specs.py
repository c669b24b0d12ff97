"""What a method is: a frozen specification of its strength, and ``solve``, its mathematics for one input of a block."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from cola_lib.errors import DataError, SpecError, UnknownNameError
from cola_lib.plain import misfit
from cola_lib.registry import Registry, revisions

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from cola_lib.compress.quantized import OnGrid
    from cola_lib.models import InputGroup
    from cola_lib.statistics import InputStatistics

METHODS: Registry[type[Spec]] = Registry("method", named="method", revised=True)
"""Class of every method's specification, by the method's name; ``METHODS.register`` adds to it."""

ACT_STRATEGIES = ("token", "tensor")

SINCE: Mapping[str, str] = {"key": "since"}
"""Metadata of a field that was added later: at its default it is left out of keys, so that stored results are found."""

SILENT: Mapping[str, str] = {"key": "never"}
"""Metadata of a field that does not change the numbers, and so is never in a key."""


@dataclass(frozen=True)
class Problem:
    """The layers that read one input, ready to be solved together.

    Parameters
    ----------
    weights : list of Tensor of shape (d_out_i, d_in), float32
        Their weights.
    layers : list of str
        Their qualified names.
    stats : InputStatistics, ChannelStatistics or None
        Of their input: channel by channel where the method reads no more, and nobody asked for errors.
    group : InputGroup
        Their row in the architecture table.
    config : PretrainedConfig
        The model's.
    parts : (InputStatistics, InputStatistics), optional
        The two parts of ``stats``: of the rows to solve with, and of those held out to judge the solution.

    Examples
    --------
    >>> from cola_lib.compress import Problem
    >>> from cola_lib.models import tiny_model
    >>> lm = tiny_model()
    >>> group = lm.architecture.groups[0]
    >>> weights = [lm.blocks[0].get_submodule(layer).weight.float() for layer in group.layers]
    >>> problem = Problem(weights, list(group.layers), None, group, lm.model.config)
    >>> [tuple(W.shape) for W in problem.weights]
    [(32, 32), (16, 32), (16, 32)]
    """

    weights: list[Tensor]
    layers: list[str]
    stats: InputStatistics | None
    group: InputGroup
    config: PretrainedConfig
    parts: tuple[InputStatistics, InputStatistics] | None = None

    @property
    def statistics(self) -> InputStatistics:
        """Statistics of the input, for methods that read them."""
        if self.stats is None:
            raise DataError(f"{self.layers[0]}: the method reads calibration data, and no statistics were given")
        return self.stats


class Solution(NamedTuple):
    """What a method found for the layers that read one input.

    Attributes
    ----------
    weights : list of Tensor of shape (d_out_i, d_in), float32
        New weights.
    scale : Tensor of shape (d_in,), or None
        What the input has to be divided by.
    rounded : list of OnGrid, or None
        The new weights with their grids, from quantizers.
    damp : float or None
        Damping that was used.
    held_out_ratios : list of float, or None
        Error of each layer on held-out rows, over that of rounding to nearest.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.compress import Solution
    >>> solution = Solution([torch.zeros(2, 4)])
    >>> solution.scale is None, solution.rounded is None
    (True, True)
    """

    weights: list[Tensor]
    scale: Tensor | None = None
    rounded: list[OnGrid] | None = None
    damp: float | None = None
    held_out_ratios: list[float] | None = None

    @classmethod
    def on_grid(cls, rounded: list[OnGrid], scale: Tensor | None = None) -> Solution:
        """Make the solution of a quantizer."""
        return cls([each.values for each in rounded], scale, rounded)


@dataclass(frozen=True)
class Spec(ABC):
    """A compression method and its options: the base of all specifications.

    A method is a subclass, a frozen dataclass whose fields are its options, with ``solve``. Enter it with
    ``METHODS.register``.

    Attributes
    ----------
    method : str
        Name of the method.
    kind : str
        What it does, for messages: pruning, quantization or factorization.
    revision : int
        Raise it when the method's numbers change: stored results that used it are then computed again.
    reads_gram : bool
        Whether the method reads whole Gram matrices, and not only sums over each channel.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from typing import ClassVar
    >>> from cola_lib.compress import METHODS, PruneSpec, Solution, compress, method_spec
    >>> from cola_lib.compress.masks import prune_mask
    >>> @METHODS.register
    ... @dataclass(frozen=True)
    ... class Quiet(PruneSpec):
    ...     method: ClassVar[str] = "quiet"
    ...     def solve(self, problem):
    ...         norm = problem.statistics.input_norm()  # of inputs alone, whatever their weights
    ...         masks = [prune_mask(norm.expand_as(W), self, per_row=True) for W in problem.weights]
    ...         return Solution([W.masked_fill(mask, 0) for W, mask in zip(problem.weights, masks)])
    >>> compress(lm, method_spec("quiet", sparsity=0.25), rows, progress=False).sparsity
    0.25
    """

    method: ClassVar[str]
    kind: ClassVar[str] = "compression"
    revision: ClassVar[int] = 1
    reads_gram: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if wrong := misfit(type(self), {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}):
            raise SpecError(f"{self.method}: {wrong}")

    @abstractmethod
    def solve(self, problem: Problem) -> Solution:
        """Find new weights for the layers that read one input.

        Parameters
        ----------
        problem : Problem
            Their weights, and the statistics of their input.

        Returns
        -------
        Solution
        """

    @property
    def calibrated(self) -> bool:
        """Whether the method reads calibration data."""
        return True

    @property
    def label(self) -> str:
        """Short name for tables and figures."""
        return self.method

    def key(self) -> dict[str, Any]:
        """Everything that decides the numbers, for a fingerprint."""
        used = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.metadata != SILENT and not (field.metadata == SINCE and getattr(self, field.name) == field.default)
        }
        return {"method": self.method, **used, "revisions": revisions(self.method)}

    def to_dict(self) -> dict[str, Any]:
        """All options, as plain data."""
        return {"method": self.method, **dataclasses.asdict(self)}

    def for_widths(self, widths: set[int]) -> Spec:
        """Check the options against the widths of a model's layers, and settle what depends on them."""
        return self


@dataclass(frozen=True)
class PruneSpec(Spec):
    """A method that removes weights: the base of all pruners.

    Parameters
    ----------
    sparsity : float
        Share of weights removed, in [0, 1]. An N:M pattern determines it.
    pattern : (int, int) or None
        (N, M): in each M consecutive inputs of a row, N weights stay and M − N go.

    Examples
    --------
    >>> from cola_lib.compress import SparseGPT, Wanda
    >>> Wanda(sparsity=0.6).label
    'wanda 60%'
    >>> SparseGPT(pattern=(2, 4)).sparsity
    0.5
    """

    kind: ClassVar[str] = "pruning"

    sparsity: float = 0.5
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None:
            n, m = self.pattern
            if not 0 <= n <= m or m < 1:
                raise SpecError(f"pattern {n}:{m} keeps {n} of {m} weights; use N:M with 0 <= N <= M, as in 2:4")
            object.__setattr__(self, "sparsity", 1 - n / m)
        if not 0 <= self.sparsity <= 1:
            raise SpecError(f"sparsity is a share between 0 and 1, not {self.sparsity:g}")

    @property
    def label(self) -> str:
        """Short name for tables and figures, for example ``"wanda 50%"`` or ``"sparsegpt 2:4"``."""
        strength = f"{self.pattern[0]}:{self.pattern[1]}" if self.pattern else f"{100 * self.sparsity:g}%"
        return f"{self.method} {strength}"

    def for_widths(self, widths: set[int]) -> PruneSpec:
        """Refuse a pattern that does not divide the widths of all layers."""
        if self.pattern is not None:
            n, m = self.pattern
            bad = sorted(width for width in widths if width % m)
            if bad:
                raise SpecError(f"pattern {n}:{m} does not fit layers of width {', '.join(map(str, bad))}")
        return self


@dataclass(frozen=True)
class QuantSpec(Spec):
    """A method that rounds weights, and with ``act_bits`` activations too: the base of all quantizers.

    Parameters
    ----------
    bits : int
        Bits of each weight, 2 to 8.
    group_size : int or None
        Consecutive inputs of a row that share a scale; -1 for whole rows. ``None`` takes the largest
        divisor of all the model's input widths that is at most 128: see :meth:`for_widths`.
    symmetric : bool
        Zero point fixed at the middle of the range, instead of fitted.
    act_bits : int or None
        Bits, 2 to 8, to which the inputs of the quantized layers are rounded whenever the compressed model runs, to a
        symmetric grid. ``None`` leaves them as they are.
    act_strategy : {"token", "tensor"}
        Range of that grid: of each token, as it comes, or of each layer's input, as seen in calibration.

    Examples
    --------
    >>> from cola_lib.compress import GPTQ
    >>> spec = GPTQ(bits=3, act_order=True)
    >>> spec.label, spec.for_widths({576, 1536}).group_size
    ('gptq 3-bit act-order', 96)
    """

    kind: ClassVar[str] = "quantization"

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    act_bits: int | None = None
    act_strategy: str = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise SpecError(f"bits is a whole number from 2 to 8, not {self.bits}")
        if self.group_size is not None and self.group_size != -1 and self.group_size < 1:
            raise SpecError(f"group_size is positive, or -1 for whole rows, not {self.group_size}")
        if self.act_bits is not None and not 2 <= self.act_bits <= 8:
            raise SpecError(f"act_bits is a whole number from 2 to 8, or left out, not {self.act_bits}")
        if self.act_strategy not in ACT_STRATEGIES:
            raise UnknownNameError("act_strategy", self.act_strategy, ACT_STRATEGIES)

    @property
    def chooses_damp(self) -> bool:
        """Whether the method chooses its damping on held-out rows."""
        return False

    @property
    def fixed_range(self) -> bool:
        """Whether activations are rounded within the range seen in calibration."""
        return self.act_bits is not None and self.act_strategy == "tensor"

    @property
    def label(self) -> str:
        """Short name for tables and figures, for example ``"gptq 3-bit"`` or ``"rtn W8A8"``.

        ``W8A8`` are bits of weights and activations; ``static`` follows where ranges are those of calibration.
        """
        if self.act_bits is None:
            return f"{self.method} {self.bits}-bit"
        return f"{self.method} W{self.bits}A{self.act_bits}{' static' if self.fixed_range else ''}"

    def key(self) -> dict[str, Any]:
        """Everything that decides the numbers, for a fingerprint."""
        key = super().key()
        if self.act_bits is None:  # such specifications keep the keys from before activations could be rounded
            return {name: value for name, value in key.items() if name not in ("act_bits", "act_strategy")}
        return key | {"revisions": key["revisions"] | revisions("input_rounding")}

    @property
    def settled_group_size(self) -> int:
        """Group size, which must have been settled; -1 for whole rows."""
        if self.group_size is None:
            raise SpecError(f"the group size of {self.label} is not settled: give one, or call settle or for_widths")
        return self.group_size

    def for_widths(self, widths: set[int]) -> QuantSpec:
        """Settle the group size for a model.

        Parameters
        ----------
        widths : set of int
            Input widths of all layers to be quantized.

        Returns
        -------
        QuantSpec
            With a group size that divides every width.

        Raises
        ------
        SpecError
            If the group size asked for does not; the message lists those that do.
        """
        common = math.gcd(*widths)
        if self.group_size is None:
            return dataclasses.replace(self, group_size=max(d for d in range(1, 129) if common % d == 0))
        if self.group_size != -1 and common % self.group_size:
            divisors = [str(d) for d in range(8, 1025) if common % d == 0]
            raise SpecError(
                f"group_size {self.group_size} does not divide the model's layer widths "
                f"{', '.join(map(str, sorted(widths)))}; these do: {', '.join(divisors)}, and -1 for whole rows"
            )
        return self


def positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0."""
    if value <= 0:
        raise SpecError(f"{name} must be above 0, not {value:g}")


def method_spec(method: str, /, **options: Any) -> Spec:
    """Make the specification of a method by name.

    Parameters
    ----------
    method : str
        One of :data:`METHODS`.
    **options
        Fields of its class. A pattern may be written ``"2:4"``.

    Returns
    -------
    Spec
        Checked.

    Raises
    ------
    UnknownNameError
        If the method, or an option of it, is not known.
    SpecError
        If a value is of the wrong type, or out of range.

    Examples
    --------
    >>> from cola_lib.compress import method_spec
    >>> method_spec("wanda", pattern="2:4").label
    'wanda 2:4'
    >>> method_spec("smoothquant", alpha=0.8).label
    'smoothquant W8A8'
    """
    if isinstance(options.get("pattern"), str):
        options["pattern"] = parse_pattern(options["pattern"])
    spec: Spec = METHODS.make(method, **options)
    return spec


def parse_pattern(text: str) -> tuple[int, int]:
    """Read an N:M pattern, such as ``"2:4"``."""
    n, colon, m = text.partition(":")
    if not (colon and n.isdigit() and m.isdigit()):
        raise SpecError(f"pattern {text!r} is not N:M, such as 2:4")
    return int(n), int(m)
