"""Statistics of layer inputs: what every method reads of the calibration data, and all that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cola_lib.errors import DataError, NumericsError

STRIPS = 6
"""Strips of a Gram matrix: more of them multiply less twice, and in smaller products. Six take 0.58 of the products."""

LEAST_STRIP = 64
"""Rows of a strip below which a product is too small to be fast."""


def gram_matrix(X: Tensor) -> Tensor:
    """Compute XᵀX, for little more than half of a matrix product."""
    total = X.new_zeros(X.shape[1], X.shape[1])
    _add_product(total, X, X)
    return total


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ·right, which must be symmetric, in place."""
    # Of each strip of rows only what is right of the diagonal is multiplied, the rest mirrored.
    step = max(-(-len(total) // STRIPS), LEAST_STRIP)
    for start in range(0, len(total), step):
        stop = start + step
        if right.dtype == total.dtype:
            total[start:stop, start:].addmm_(left[:, start:stop].T, right[:, start:])
        else:  # products of two 16-bit numbers are exact in float32, in which a GPU's tensor cores add them up
            total[start:stop, start:] += torch.mm(left[:, start:stop].T, right[:, start:], out_dtype=total.dtype)
        total[stop:, start:stop] = total[start:stop, stop:].T


class Energy(NamedTuple):
    """Sum of squares of a layer's outputs, and the tokens that it is of."""

    value: Tensor  # of shape (), float64: on the device, where nobody has to wait for it
    n_tokens: float


class ChannelSums:
    """What statistics say of each channel by itself, however much more they know."""

    abs_sum: Tensor
    n_tokens: float
    abs_max: Tensor | None

    def square_sums(self) -> Tensor:
        """Σx² of each channel, of shape (d_in,)."""
        raise NotImplementedError

    @property
    def d_in(self) -> int:
        """Width of the input."""
        return self.abs_sum.shape[0]

    def input_norm(self) -> Tensor:
        """Euclidean norm of each channel over all tokens: ‖X_j‖₂, of shape (d_in,)."""
        return self.square_sums().sqrt()

    def abs_mean(self) -> Tensor:
        """Mean magnitude of each channel: mean |x_j|, of shape (d_in,)."""
        return self.abs_sum / self.n_tokens

    def channel_max(self, layer: str) -> Tensor:
        """Largest magnitude of each channel: max |x_j|, of shape (d_in,)."""
        if self.abs_max is None:
            raise DataError(
                f"{layer}: these statistics do not hold the largest magnitude of each channel, because they come from "
                "a file that was written before it was gathered, or because tokens were subtracted; collect them again"
            )
        return self.abs_max

    def check(self, layer: str) -> None:
        """Refuse statistics that no input can have: NaN, infinity, a negative sum of squares, or no token."""
        if not self.n_tokens > 0:
            raise DataError(f"{layer}: the calibration set has {self.n_tokens:g} tokens that are not padding")
        squares = self.square_sums()
        right = torch.isfinite(squares) & torch.isfinite(self.abs_sum) & (squares >= 0)
        if self.abs_max is not None:
            right &= torch.isfinite(self.abs_max)
        bad = int((~right).sum())
        if bad:
            raise NumericsError(
                layer,
                f"NaN or infinity in {bad} of {self.d_in} input channels, or a negative sum of squares; the model, or "
                "its dtype's range, fails on this calibration set, or these statistics are damaged",
            )

    def _add_channels(self, X: Tensor, weights: Tensor | None, total: float | None) -> None:
        """Add tokens to what is kept of each channel here: X of shape (n_tokens, d_in), weights of (n_tokens,)."""
        size = X.abs()
        self.abs_sum += (size if weights is None else size * weights[:, None]).sum(0, dtype=torch.float32)
        if weights is None:
            total = X.shape[0]
        elif total is None:
            total = float(weights.sum(dtype=torch.float64))
        self.n_tokens += total
        if self.abs_max is not None and X.shape[0]:
            counted = size if weights is None else size.masked_fill((weights == 0)[:, None], 0.0)
            self.abs_max = torch.maximum(self.abs_max, counted.amax(0))


@dataclass
class ChannelStatistics(ChannelSums):
    """Sums over the tokens that one input of a block has seen, channel by channel: all that some methods read."""

    square_sum: Tensor
    abs_sum: Tensor
    n_tokens: float
    abs_max: Tensor | None = None

    @classmethod
    def empty(cls, d_in: int, device: torch.device | str = "cpu") -> ChannelStatistics:
        """Return statistics of no tokens at all."""
        square_sum, abs_sum, abs_max = torch.zeros(3, d_in, device=device)
        return cls(square_sum, abs_sum, 0.0, abs_max)

    def square_sums(self) -> Tensor:
        """Σx² of each channel, of shape (d_in,)."""
        return self.square_sum

    def update(self, X: Tensor, weights: Tensor | None = None, total: float | None = None) -> None:
        """Add tokens, in place."""
        X = X.float()
        squares = X.square()
        self.square_sum += (squares if weights is None else squares * weights[:, None]).sum(0)
        self._add_channels(X, weights, total)


@dataclass
class InputStatistics(ChannelSums):
    """Sums over the tokens that one input of a block has seen.

    Parameters
    ----------
    gram : Tensor of shape (d_in, d_in), float32
        XᵀX, for inputs X of shape (n_tokens, d_in).
    abs_sum : Tensor of shape (d_in,), float32
        Σ|x| of each channel.
    n_tokens : float
        Tokens summed; a weighted mixture makes it fractional.
    abs_max : Tensor of shape (d_in,), float32, or None
        max|x| of each channel over the tokens that count at all. ``None`` where it is not known, as in files that were
        written before it was gathered: a maximum cannot be had from sums. See :meth:`channel_max`.

    Notes
    -----
    Sums add, so statistics of a mixture are the weighted sum of its parts' statistics. Maxima do not: that of a mixture
    is the largest of its parts', whatever their positive weights.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.statistics import InputStatistics
    >>> stats = InputStatistics.empty(2)
    >>> stats.update(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))
    >>> stats.gram.tolist(), stats.n_tokens
    ([[25.0, 4.0], [4.0, 1.0]], 2.0)
    >>> stats.input_norm().tolist()
    [5.0, 1.0]
    >>> (stats + stats).n_tokens
    4.0
    """

    gram: Tensor
    abs_sum: Tensor
    n_tokens: float
    abs_max: Tensor | None = None
    _factors: dict[tuple[float, bool], tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    _energies: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _watched: dict[str, Energy] = field(default_factory=dict, repr=False)

    @classmethod
    def empty(cls, d_in: int, device: torch.device | str = "cpu") -> InputStatistics:
        """Return statistics of no tokens at all.

        Parameters
        ----------
        d_in : int
            Width of the input.
        device : torch.device
            Where the sums live.
        """
        gram, abs_sum = torch.zeros(d_in, d_in, device=device), torch.zeros(d_in, device=device)
        return cls(gram, abs_sum, 0.0, torch.zeros_like(abs_sum))

    def to(self, device: torch.device) -> InputStatistics:
        """Return the statistics on a device: these very ones, with the factors they keep, if they are there.

        Parameters
        ----------
        device : torch.device
            Where the sums are wanted.
        """
        gram = self.gram.to(device)
        if gram is self.gram:  # devices do not compare: "cuda" is not equal to "cuda:0"
            return self
        abs_max = None if self.abs_max is None else self.abs_max.to(device)
        return InputStatistics(gram, self.abs_sum.to(device), self.n_tokens, abs_max, _watched=dict(self._watched))

    def update(self, X: Tensor, weights: Tensor | None = None, total: float | None = None) -> None:
        """Add tokens, in place.

        Parameters
        ----------
        X : Tensor of shape (n_tokens, d_in)
            Real tokens only, without padding.
        weights : Tensor of shape (n_tokens,), optional
            How much each counts. Default: 1. A token of weight 0 is not seen by the maximum either.
        total : float, optional
            Sum of the weights, where it is known: it need not be read from the device then.
        """
        if not X.is_cuda or weights is not None or X.dtype not in (torch.bfloat16, torch.float16):
            X = X.float()
        self.forget_factors()
        self._energies.clear()
        left = X if weights is None else X * weights[:, None]
        _add_product(self.gram, left, X)
        self._add_channels(X, weights, total)

    def square_sums(self) -> Tensor:
        """Σx² of each channel, of shape (d_in,)."""
        return self.gram.diagonal()

    def hessian(self) -> Tensor:
        """Hessian of the layer's mean squared output error, 2·XᵀX / n_tokens, of shape (d_in, d_in)."""
        return self.gram * (2.0 / self.n_tokens)

    def output_energy(self, W: Tensor) -> float:
        """Sum of squares that a weight makes of these inputs: tr(W·XᵀX·Wᵀ).

        Parameters
        ----------
        W : Tensor of shape (d_out, d_in)
            A weight, or the difference of two.
        """
        return float(self.energy_under(gram_matrix(W.float())))

    def energy_under(self, weight_gram: Tensor) -> Tensor:
        """Sum of squares that a weight makes of these inputs, from its own Gram matrix: tr(WᵀW·XᵀX).

        Parameters
        ----------
        weight_gram : Tensor of shape (d_in, d_in), float32
            WᵀW of a weight, or of the difference of two.

        Returns
        -------
        Tensor of shape (), float64
            On the device, where nobody has to wait for it.

        Notes
        -----
        The same number as :meth:`output_energy`, up to rounding. One product gives WᵀW, and then each set of inputs
        that the weight is judged on costs a sum over d_in² numbers instead of another product.
        """
        return torch.linalg.vecdot(weight_gram, self.gram).sum(dtype=torch.float64)

    def watch_outputs(self, layer: str, Y: Tensor, weights: Tensor | None = None) -> None:
        """Add up what a layer makes of the tokens that :meth:`update` was given last.

        Parameters
        ----------
        layer : str
            Its qualified name.
        Y : Tensor of shape (n_tokens, d_out)
            Outputs without bias.
        weights : Tensor of shape (n_tokens,), optional
            As given to :meth:`update`.
        """
        Y = Y.float()
        squares = torch.linalg.vecdot(Y, Y)
        value = (squares if weights is None else squares * weights).sum(dtype=torch.float64)
        if layer in self._watched:
            value += self._watched[layer].value
        self._watched[layer] = Energy(value, self.n_tokens)

    def energy_of(self, layer: str, W: Tensor) -> Tensor:
        """Energy that a layer of the untouched model makes of these inputs.

        Parameters
        ----------
        layer : str
            Its qualified name.
        W : Tensor of shape (d_out, d_in)
            Its weight before compression.

        Returns
        -------
        Tensor of shape (), float64
            On the device.

        Notes
        -----
        The walk saw the layer's outputs, whose squares need no product. Where they are not known for all the tokens, it
        is computed from the Gram matrix, once: every method that is tried on a layer asks for it.
        """
        watched = self._watched.get(layer)
        if watched is not None and watched.n_tokens == self.n_tokens:
            return watched.value
        if layer not in self._energies:
            self._energies[layer] = self.energy_under(gram_matrix(W.float()))
        return self._energies[layer]

    def inverse_factor(self, damp: float, layer: str, *, act_order: bool = False) -> tuple[Tensor, Tensor]:
        """Upper Cholesky factor of the inverse of the damped Hessian, and the column order it is in.

        Parameters
        ----------
        damp : float
            Share of the mean diagonal that is added to the diagonal.
        layer : str
            Name for the error message.
        act_order : bool
            Order the columns by falling diagonal, as GPTQ's activation order does. Dead channels come last.

        Returns
        -------
        U : Tensor of shape (d_in, d_in), float32
            UᵀU = (H + damp·mean(diag H)·I)⁻¹, rows and columns in ``order``. The mean is over live channels, and a dead
            channel, which is 0 on all tokens, has this mean as its diagonal.
        order : Tensor of shape (d_in,), int64
            ``order[i]`` is the column of the weight that comes at place i.

        Raises
        ------
        NumericsError
            If the matrix is singular after damping, or not finite.

        Notes
        -----
        IST-DASLab/gptq sets the diagonal of dead channels to 1 before it takes the mean, so that damping depends on
        their number and on the unit of the inputs. Here neither has an effect.

        With J the reversal, J·H·J = L·Lᵀ gives H = R·Rᵀ for the upper R = J·L·J, so U = R⁻¹: one Cholesky
        and one triangular inverse, instead of the Cholesky, inverse and second Cholesky of the reference
        code (IST-DASLab/gptq, ``gptq.py``). Kept between calls, since q, k, v and several methods share it;
        :meth:`forget_factors` frees it.
        """
        key = (damp, act_order)
        if key not in self._factors:
            H = self.hessian()
            diagonal = H.diagonal()
            if not torch.isfinite(H).all():
                raise NumericsError(layer, "its Gram matrix holds NaN or infinity; collect the statistics again")
            live = diagonal != 0
            mean = torch.where(live.any(), diagonal.sum() / live.sum(), 1.0)
            order = torch.arange(self.d_in, device=H.device)
            if act_order:
                order = torch.argsort(diagonal, descending=True, stable=True)
            # A dead channel is coupled to no other, so any positive diagonal keeps it out of their solution.
            diagonal.copy_(torch.where(live, diagonal, mean) + damp * mean)
            reverse = order.flip(0)
            # Of a wide layer each of these matrices is most of a gigabyte: none stays longer than it is needed.
            H = H[reverse][:, reverse] if act_order else H.flip(0, 1)
            del diagonal
            L, failed = torch.linalg.cholesky_ex(H)
            del H
            if failed.item():
                raise NumericsError(
                    layer,
                    f"its {self.d_in} x {self.d_in} Gram matrix of {self.n_tokens:g} tokens is singular "
                    f"after damping by {damp:g} of its mean diagonal; calibrate on more tokens or raise damp",
                )
            R = L.flip(0, 1)
            del L
            eye = torch.eye(self.d_in, device=R.device, dtype=R.dtype)
            self._factors[key] = torch.linalg.solve_triangular(R, eye, upper=True).contiguous(), order
        return self._factors[key]

    def forget_factors(self) -> None:
        """Free what :meth:`inverse_factor` kept."""
        self._factors.clear()

    def __add__(self, other: InputStatistics) -> InputStatistics:
        if self.d_in != other.d_in:
            raise DataError(f"statistics of {self.d_in} and of {other.d_in} channels do not add")
        abs_max = None
        if self.abs_max is not None and other.abs_max is not None:
            abs_max = torch.maximum(self.abs_max, other.abs_max)
        watched = {
            layer: Energy(own.value + other._watched[layer].value, own.n_tokens + other._watched[layer].n_tokens)
            for layer, own in self._watched.items()
            if layer in other._watched
        }
        return InputStatistics(
            self.gram + other.gram,
            self.abs_sum + other.abs_sum,
            self.n_tokens + other.n_tokens,
            abs_max,
            _watched=watched,
        )

    def __mul__(self, weight: float) -> InputStatistics:
        abs_max = self.abs_max if weight > 0 else None  # which token was largest is not known once tokens are taken off
        if weight == 0:
            abs_max = torch.zeros_like(self.abs_sum)  # no token is left
        watched = {layer: Energy(own.value * weight, own.n_tokens * weight) for layer, own in self._watched.items()}
        return InputStatistics(
            self.gram * weight, self.abs_sum * weight, self.n_tokens * weight, abs_max, _watched=watched
        )

    __rmul__ = __mul__


@dataclass(frozen=True)
class LayerStatistics(Mapping[tuple[int, str], InputStatistics]):
    """Input statistics of a whole model: (block index, input group) → :class:`InputStatistics`."""

    inputs: Mapping[tuple[int, str], InputStatistics]
    model: str
    calibration: tuple[str, ...]

    def __getitem__(self, key: tuple[int, str]) -> InputStatistics:
        return self.inputs[key]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def block(self, index: int) -> dict[str, InputStatistics]:
        """Statistics of one block's inputs, by group name."""
        return {group: stats for (block, group), stats in self.inputs.items() if block == index}

    @property
    def n_tokens(self) -> float:
        """Tokens read, possibly weighted."""
        return next(iter(self.inputs.values())).n_tokens

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        if self.model != other.model:
            raise DataError(
                f"statistics of two models do not add: {self.model} and {other.model}; collect both on one model"
            )
        summed = {key: self.inputs[key] + other.inputs[key] for key in self.inputs}
        return LayerStatistics(summed, self.model, self.calibration + other.calibration)

    def __mul__(self, weight: float) -> LayerStatistics:
        scaled = {key: stats * weight for key, stats in self.inputs.items()}
        return LayerStatistics(scaled, self.model, tuple(f"{weight:g}*{name}" for name in self.calibration))

    __rmul__ = __mul__
