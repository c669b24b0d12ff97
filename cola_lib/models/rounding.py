"""Activations rounded to integers while a model runs: a grid for each token, or one that is fixed beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class InputRounding:
    """How a linear layer rounds its input before it multiplies."""

    bits: int
    step: float | None = None

    @property
    def most(self) -> int:
        """Greatest integer."""
        return 2 ** (self.bits - 1) - 1

    def __call__(self, X: Tensor) -> Tensor:
        """Round an input.

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
        """Round what a layer is called with: a forward pre-hook."""
        return (self(inputs[0]), *inputs[1:])
