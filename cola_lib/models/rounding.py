"""Activations rounded to integers while a model runs: a grid for each token, or one that is fixed beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InputRounding:
    """How a linear layer rounds its input before it multiplies.

    Parameters
    ----------
    bits : int
        Bits of each integer; they run from ``-2**(bits - 1)`` to ``2**(bits - 1) - 1``, and 0 stands for 0.
    step : float or None
        Distance between neighbouring values, fixed; what lies beyond the range is clipped. ``None``: each token has a
        step of its own, such that its largest channel falls on the end of the range.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.models import InputRounding
    >>> rounding = InputRounding(bits=4, step=0.5)
    >>> (rounded,) = rounding.hook(None, (torch.tensor([[0.2, 0.8, 9.0]]),))
    >>> rounded.tolist()
    [[0.0, 1.0, 3.5]]
    """

    bits: int
    step: float | None = None

    @property
    def most(self) -> int:
        """Greatest integer."""
        return 2 ** (self.bits - 1) - 1

    def __call__(self, X: Tensor) -> Tensor:
        """Round an input.

        Parameters
        ----------
        X : Tensor of shape (..., d_in)
            Any floating type; the last dimension is a token's.

        Returns
        -------
        Tensor of the shape and dtype of ``X``
            Values on the grid. Computed in float32; in a smaller type they are rounded once more, to what it holds.

        Notes
        -----
        A token of zeros stays one, where the reference bounds its step from below by 1e-5 / ``most``: here no bound is
        put on the step of a token that is small but not zero.

        References
        ----------
        Xiao et al., "SmoothQuant", arXiv 2211.10438, eq. 1; ``quantize_activation_per_token_absmax`` in
        ``fake_quant.py`` of mit-han-lab/smoothquant.
        """
        values = X.float()
        if self.step is None:
            step = values.abs().amax(-1, keepdim=True) / self.most
            step = torch.where(step == 0, 1.0, step)
        else:
            step = torch.tensor(self.step, dtype=torch.float32, device=X.device)
        return torch.div(values, step).round_().clamp_(-self.most - 1, self.most).mul_(step).to(X.dtype)

    def hook(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Round what a layer is called with: a forward pre-hook.

        Parameters
        ----------
        _ : nn.Module
            The layer.
        inputs : tuple of Tensor
            Its arguments, the input first.
        """
        return (self(inputs[0]), *inputs[1:])
