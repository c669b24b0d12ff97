"""What to do to a model, as plain frozen data: a method and its strength."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from cola_lib.errors import SpecError, UnknownNameError
from cola_lib.plain import misfit
from cola_lib.revisions import revisions


@dataclass(frozen=True)
class PruneSpec:
    """How to prune.

    Parameters
    ----------
    method : {"magnitude", "wanda", "ria", "sparsegpt"}
        The method.
    sparsity : float
        Share of weights removed, in [0, 1]. For an N:M pattern it follows from the pattern.
    pattern : (int, int) or None
        (N, M): in each M consecutive inputs of a row, N weights stay and M − N go.
    damp : float
        SparseGPT: share of the mean diagonal that is added to the Hessian's diagonal.
    block_size : int
        SparseGPT: columns whose mask is chosen together.
    exponent : float
        RIA: power of the input norm; 0 leaves the inputs out.

    Examples
    --------
    >>> from cola_lib.compress import PruneSpec
    >>> PruneSpec("wanda", sparsity=0.6).label
    'wanda 60%'
    >>> PruneSpec("sparsegpt", pattern=(2, 4)).sparsity
    0.5
    """

    method: str
    sparsity: float = 0.5
    pattern: tuple[int, int] | None = None
    damp: float = 0.01
    block_size: int = 128
    exponent: float = 0.5

    def __post_init__(self) -> None:
        _check_method(self)
        if self.pattern is not None:
            n, m = self.pattern
            if not 0 <= n <= m or m < 1:
                raise SpecError(f"pattern {n}:{m} keeps {n} of {m} weights; use N:M with 0 <= N <= M, as in 2:4")
            object.__setattr__(self, "sparsity", 1 - n / m)
            if self.method == "sparsegpt" and self.block_size % m:
                raise SpecError(f"block_size {self.block_size} is no multiple of the pattern's {m}")
        if not 0 <= self.sparsity <= 1:
            raise SpecError(f"sparsity is a share between 0 and 1, not {self.sparsity:g}")
        _positive("damp", self.damp)
        _positive("block_size", self.block_size)
        if self.exponent < 0:
            raise SpecError(f"exponent must not be below 0, and is {self.exponent:g}")

    @property
    def calibrated(self) -> bool:
        """Whether the method reads calibration data."""
        return self.method != "magnitude"

    @property
    def reads_gram(self) -> bool:
        """Whether the method reads whole Gram matrices, and not only sums of each channel."""
        return self.method == "sparsegpt" or _registered(self.method)

    @property
    def label(self) -> str:
        """Short name for tables and figures, for example ``"wanda 50%"`` or ``"sparsegpt 2:4"``."""
        strength = f"{self.pattern[0]}:{self.pattern[1]}" if self.pattern else f"{100 * self.sparsity:g}%"
        return f"{self.method} {strength}"

    def key(self) -> dict[str, Any]:
        """Everything that decides the numbers, for a fingerprint: nothing that the method does not read."""
        used = {"method", "sparsity", "pattern"}
        if self.method == "sparsegpt":
            used |= {"damp", "block_size"}
        if self.method == "ria":
            used |= {"exponent"}
        return _key(self, used)


@dataclass(frozen=True)
class QuantSpec:
    """How to quantize weights, and with ``act_bits`` the activations that they multiply.

    Parameters
    ----------
    method : {"rtn", "gptq", "awq"}
        The method; for ``"smoothquant"`` see :class:`SmoothQuantSpec`.
    bits : int
        Bits of each weight, 2 to 8.
    group_size : int or None
        Consecutive inputs of a row that share a scale; -1 for whole rows. ``None`` takes the largest
        divisor of all the model's input widths that is at most 128: see :meth:`for_widths`.
    symmetric : bool
        Zero point fixed at the middle of the range, instead of fitted.
    damp : float or "auto"
        GPTQ: share of the mean diagonal that is added to the Hessian's diagonal. ``"auto"`` chooses it for each input,
        on held-out rows: see :func:`choose_damp`.
    act_order : bool
        GPTQ: quantize columns by falling Hessian diagonal.
    static_groups : bool
        GPTQ: fit every group's scale to the untouched weights, over neighbouring columns, before the sweep. With
        ``act_order`` this keeps groups contiguous, which fast kernels need.
    block_size : int
        GPTQ: columns after which the update of the rest is applied.
    n_grid : int
        AWQ: exponents tried between 0 and 1.
    duo_scaling : bool
        AWQ: beside scales that only rise with the size of a channel's inputs, also try such as fall with that of its
        weights. It takes twice the search.
    clip : bool
        AWQ: also search for a smaller range per group.
    act_bits : int or None
        Bits, 2 to 8, to which the inputs of the quantized layers are rounded whenever the compressed model runs, to a
        symmetric grid. ``None`` leaves them as they are.
    act_strategy : {"token", "tensor"}
        What shares a step of that grid: a token, as it comes; or all tokens of a layer's input, with the range that
        calibration saw.
    keep_zeros : bool or None
        GPTQ: keep weights at zero that are zero, and with them an N:M pattern. ``None`` does so in layers where at
        least 5 % of the weights are zero, as they are after pruning. The other methods round zero to zero anyway.

    Examples
    --------
    >>> from cola_lib.compress import QuantSpec
    >>> spec = QuantSpec("gptq", bits=3, act_order=True)
    >>> spec.label, spec.for_widths({576, 1536}).group_size
    ('gptq 3-bit act-order', 96)
    """

    method: str
    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    damp: float | Literal["auto"] = 0.01
    act_order: bool = False
    static_groups: bool = False
    block_size: int = 128
    n_grid: int = 20
    duo_scaling: bool = False
    clip: bool = True
    act_bits: int | None = None
    act_strategy: str = "token"
    keep_zeros: bool | None = None

    def __post_init__(self) -> None:
        _check_method(self)
        if not 2 <= self.bits <= 8:
            raise SpecError(f"bits is a whole number from 2 to 8, not {self.bits}")
        if self.group_size is not None and self.group_size != -1 and self.group_size < 1:
            raise SpecError(f"group_size is positive, or -1 for whole rows, not {self.group_size}")
        if isinstance(self.damp, str):
            if self.damp != "auto":
                raise UnknownNameError("damp", self.damp, ["auto"])
        else:
            _positive("damp", self.damp)
        _positive("block_size", self.block_size)
        _positive("n_grid", self.n_grid)
        if self.act_bits is not None and not 2 <= self.act_bits <= 8:
            raise SpecError(f"act_bits is a whole number from 2 to 8, or left out, not {self.act_bits}")
        if self.act_strategy not in ACT_STRATEGIES:
            raise UnknownNameError("act_strategy", self.act_strategy, ACT_STRATEGIES)

    @property
    def calibrated(self) -> bool:
        """Whether the method reads calibration data."""
        return self.method != "rtn" or self.fixed_range

    @property
    def reads_gram(self) -> bool:
        """Whether the method reads whole Gram matrices, and not only sums of each channel."""
        return self.method in ("gptq", "awq") or _registered(self.method)

    @property
    def chooses_damp(self) -> bool:
        """Whether the method chooses its damping on held-out rows."""
        return self.method == "gptq" and self.damp == "auto"

    @property
    def fixed_range(self) -> bool:
        """Whether activations are rounded within the range that calibration saw."""
        return self.act_bits is not None and self.act_strategy == "tensor"

    @property
    def label(self) -> str:
        """Short name for tables and figures, for example ``"gptq 3-bit"``, ``"gptq 3-bit act-order"``, ``"rtn W8A8"``.

        ``W8A8`` are bits of weights and activations; ``static`` stands behind it where ranges are those of calibration.
        """
        ordered = " act-order" if self.method == "gptq" and self.act_order else ""
        ordered += " auto-damp" if self.chooses_damp else ""
        if self.act_bits is None:
            return f"{self.method} {self.bits}-bit{ordered}"
        return f"{self.method} W{self.bits}A{self.act_bits}{' static' if self.fixed_range else ''}{ordered}"

    def key(self) -> dict[str, Any]:
        """Everything that decides the numbers, for a fingerprint: nothing that the method does not read."""
        used = {"method", "bits", "group_size", "symmetric"}
        if self.method == "gptq":
            used |= {"damp", "act_order", "static_groups"}
            if self.keep_zeros is not None:  # as below: no choice, no other key
                used.add("keep_zeros")
        if self.method == "awq":
            used |= {"n_grid", "clip"}
            if self.duo_scaling:  # specifications without it keep the keys that they had before there was a choice
                used.add("duo_scaling")
        return self._with_activations(used)

    def _with_activations(self, used: set[str]) -> dict[str, Any]:
        """Add what activations are rounded to, if they are: specifications that leave them alone keep their keys."""
        algorithms = ["auto_damp"] if self.chooses_damp else []
        if self.act_bits is not None:
            used = used | {"act_bits", "act_strategy"}
            algorithms.append("input_rounding")
        return _key(self, used, *algorithms)

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


@dataclass(frozen=True)
class SmoothQuantSpec(QuantSpec):
    """How to quantize weights and activations after moving outliers from these into those.

    Parameters
    ----------
    method : {"smoothquant"}
        The method.
    bits : int
        Bits of each weight, 2 to 8.
    group_size : int or None
        As in :class:`QuantSpec`; by default a row of the weight, which is an output channel, shares a scale.
    symmetric : bool
        As in :class:`QuantSpec`; true by default.
    act_bits : int
        Bits of each activation, 2 to 8.
    act_strategy : {"token", "tensor"}
        As in :class:`QuantSpec`.
    alpha : float
        Migration strength, in [0, 1]: how much of the activations' outliers the weights take over.
    smooth : {"all", "norms"}
        Which inputs are smoothed: all that something before them can take up the scale of, or of these only those that
        follow a norm, as in the reference.
    damp, act_order, static_groups, block_size, n_grid, duo_scaling, clip, keep_zeros
        Not read.

    Examples
    --------
    >>> from cola_lib.compress import SmoothQuantSpec
    >>> spec = SmoothQuantSpec(alpha=0.8)
    >>> spec.label, spec.act_bits
    ('smoothquant W8A8', 8)
    """

    method: str = "smoothquant"
    bits: int = 8
    group_size: int | None = -1
    symmetric: bool = True
    act_bits: int | None = 8
    alpha: float = 0.5
    smooth: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.act_bits is None:
            raise SpecError("smoothquant is for rounding activations: give act_bits, or take rtn for the weights alone")
        if not 0 <= self.alpha <= 1:
            raise SpecError(f"alpha is a number between 0 and 1, not {self.alpha:g}")
        if self.smooth not in SMOOTHED:
            raise UnknownNameError("smooth", self.smooth, SMOOTHED)

    def key(self) -> dict[str, Any]:
        """Everything that decides the numbers, for a fingerprint: nothing that the method does not read."""
        return self._with_activations({"method", "bits", "group_size", "symmetric", "alpha", "smooth"})


@dataclass(frozen=True)
class LowRankSpec:
    """How to factorize.

    Parameters
    ----------
    method : {"joint_lowrank"}
        The method.
    keep : float
        Share of the parameters of the factorized layers that is kept, above 0 and at most 1.

    Examples
    --------
    >>> from cola_lib.compress import LowRankSpec
    >>> spec = LowRankSpec(keep=0.5)
    >>> spec.label, spec.rank(d_out=64, d_in=32)
    ('joint_lowrank 50%', 10)
    """

    method: str = "joint_lowrank"
    keep: float = 0.8

    def __post_init__(self) -> None:
        _check_method(self)
        if not 0 < self.keep <= 1:
            raise SpecError(f"keep is a share above 0 and at most 1, not {self.keep:g}")

    @property
    def calibrated(self) -> bool:
        """Whether the method reads calibration data: it does not."""
        return False

    @property
    def reads_gram(self) -> bool:
        """Whether the method reads whole Gram matrices: joint_lowrank does not."""
        return _registered(self.method)

    @property
    def label(self) -> str:
        """Short name for tables and figures, for example ``"joint_lowrank 80%"``."""
        return f"{self.method} {100 * self.keep:g}%"

    def key(self) -> dict[str, Any]:
        """Everything that decides the numbers, for a fingerprint."""
        return _key(self, {"method", "keep"})

    def rank(self, d_out: int, d_in: int) -> int:
        """Rank whose two factors have the share of parameters to keep, at least 1.

        Parameters
        ----------
        d_out, d_in : int
            Shape of the weights that are factorized together.
        """
        return max(1, min(d_out, d_in, int(self.keep * d_out * d_in / (d_out + d_in))))


Spec = PruneSpec | QuantSpec | LowRankSpec

PRUNERS = ("magnitude", "wanda", "ria", "sparsegpt")
QUANTIZERS = ("rtn", "gptq", "awq", "smoothquant")
FACTORIZERS = ("joint_lowrank",)
ACT_STRATEGIES = ("token", "tensor")
SMOOTHED = ("all", "norms")

_KINDS: dict[str, type[Spec]] = {
    **dict.fromkeys(PRUNERS, PruneSpec),
    **dict.fromkeys(QUANTIZERS, QuantSpec),
    **dict.fromkeys(FACTORIZERS, LowRankSpec),
    "smoothquant": SmoothQuantSpec,
}
METHODS: Mapping[str, type[Spec]] = MappingProxyType(_KINDS)
"""Class of specification of every method, by the method's name; :func:`register_method` adds to it."""


def enter(method: str, kind: type[Spec]) -> None:
    """Make a method's name known.

    Parameters
    ----------
    method : str
        Its name.
    kind : type
        Class of its specifications.

    Raises
    ------
    SpecError
        If there is one of that name.
    """
    if method in _KINDS:
        raise SpecError(f"there is a method named {method!r} already; take another name")
    _KINDS[method] = kind


def _check_method(spec: Spec) -> None:
    """Refuse a method that is not known, or is described by another class."""
    kind = type(spec)
    own = [name for name, known in METHODS.items() if known is kind]
    if spec.method in METHODS and spec.method not in own:
        raise SpecError(
            f"{spec.method} is no method of {kind.__name__}, which has {', '.join(own)}; method_spec takes the right "
            "class"
        )
    if spec.method not in own:
        raise UnknownNameError("method", spec.method, own)


def _positive(name: str, value: float) -> None:
    if value <= 0:
        raise SpecError(f"{name} must be above 0, not {value:g}")


def _registered(method: str) -> bool:
    """Whether a method is a user's own: only its author knows what it reads, so it is taken to read everything."""
    return method not in (*PRUNERS, *QUANTIZERS, *FACTORIZERS)


def _key(spec: Spec, used: set[str], *algorithms: str) -> dict[str, Any]:
    values = dataclasses.asdict(spec)
    if _registered(spec.method):
        used = set(values)
    return {name: values[name] for name in sorted(used)} | {"revisions": revisions(spec.method, *algorithms)}


def method_spec(method: str, /, **options: Any) -> Spec:
    """Make the specification of a method by name.

    Parameters
    ----------
    method : str
        One of :data:`METHODS`.
    **options
        Fields of :class:`PruneSpec`, :class:`QuantSpec`, :class:`SmoothQuantSpec` or :class:`LowRankSpec`. A pattern
        may be written ``"2:4"``.

    Returns
    -------
    PruneSpec, QuantSpec, SmoothQuantSpec or LowRankSpec
        Checked.

    Raises
    ------
    UnknownNameError
        If the method, or an option of it, is not known.
    SpecError
        If a value is of the wrong kind, or out of range.

    Examples
    --------
    >>> from cola_lib.compress import method_spec
    >>> method_spec("wanda", pattern="2:4").label
    'wanda 2:4'
    >>> method_spec("gptq", bits=3, group_size=64).label
    'gptq 3-bit'
    >>> method_spec("smoothquant", alpha=0.8).label
    'smoothquant W8A8'
    """
    kind = spec_class(method)
    fields = {field.name for field in dataclasses.fields(kind)} - {"method"}
    for name in options:
        if name not in fields:
            raise UnknownNameError(f"option of {method}", name, fields)
    if isinstance(options.get("pattern"), str):
        options["pattern"] = parse_pattern(options["pattern"])
    if wrong := misfit(kind, options):
        raise SpecError(f"{method}: {wrong}")
    return kind(method, **options)


def spec_class(method: str) -> type[Spec]:
    """Class of a method's specification, whose fields are its options.

    Parameters
    ----------
    method : str
        One of :data:`METHODS`.

    Returns
    -------
    type
        A dataclass.

    Raises
    ------
    UnknownNameError
        If there is no such method.

    Examples
    --------
    >>> from cola_lib.compress import spec_class
    >>> spec_class("gptq").__name__
    'QuantSpec'
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    return METHODS[method]


def parse_pattern(text: str) -> tuple[int, int]:
    """Read an N:M pattern.

    Parameters
    ----------
    text : str
        Such as ``"2:4"``.

    Returns
    -------
    (int, int)
        Weights kept, and weights they are chosen from.

    Raises
    ------
    SpecError
        If the text is not two whole numbers with a colon between.
    """
    n, colon, m = text.partition(":")
    if not (colon and n.isdigit() and m.isdigit()):
        raise SpecError(f"pattern {text!r} is not N:M, such as 2:4")
    return int(n), int(m)
