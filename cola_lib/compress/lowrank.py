"""Joint low-rank approximation: a control that reads no data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cola_lib.compress.specs import METHODS, Problem, Solution, Spec
from cola_lib.errors import SpecError


@METHODS.register
@dataclass(frozen=True)
class JointLowRank(Spec):
    """Joint low-rank approximation: factorize weights that read the same input, without calibration data.

    Parameters
    ----------
    keep : float
        Share of the parameters of the factorized layers that is kept, above 0 and at most 1.

    References
    ----------
    Peng et al., "Data-free Weight Compress and Denoise for Large Language Models", arXiv 2402.16319.

    Examples
    --------
    >>> from cola_lib.compress import JointLowRank
    >>> spec = JointLowRank(keep=0.5)
    >>> spec.label, spec.rank(d_out=64, d_in=32)
    ('joint_lowrank 50%', 10)
    """

    method: ClassVar[str] = "joint_lowrank"
    kind: ClassVar[str] = "factorization"
    reads_gram: ClassVar[bool] = False

    keep: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.keep <= 1:
            raise SpecError(f"keep is a share above 0 and at most 1, not {self.keep:g}")

    @property
    def calibrated(self) -> bool:
        """Whether the method reads calibration data: it does not."""
        return False

    @property
    def label(self) -> str:
        """Short name for tables and figures, for example ``"joint_lowrank 80%"``."""
        return f"{self.method} {100 * self.keep:g}%"

    def rank(self, d_out: int, d_in: int) -> int:
        """Rank whose two factors have the share of parameters to keep, at least 1."""
        return max(1, min(d_out, d_in, int(self.keep * d_out * d_in / (d_out + d_in))))

    def solve(self, problem: Problem) -> Solution:
        """Factorize the layers that the architecture joins; the others stay."""
        weights = list(problem.weights)
        joined = [i for i, layer in enumerate(problem.group.layers) if layer in problem.group.joined]
        if joined:
            for i, low in zip(joined, joint_lowrank([weights[i] for i in joined], self), strict=True):
                weights[i] = low
        return Solution(weights)


def joint_lowrank(weights: list[Tensor], spec: JointLowRank) -> list[Tensor]:
    """Approximate weights that read the same input by one low-rank factorization.

    Notes
    -----
    The stacking, and a rank for each pair from the share of parameters to keep, are our reading of the paper's text,
    whose details could not be had.

    References
    ----------
    Peng et al., "Data-free Weight Compress and Denoise for Large Language Models", arXiv 2402.16319.
    """
    stacked = torch.cat(weights)
    U, S, Vh = torch.linalg.svd(stacked.double(), full_matrices=False)
    rank = spec.rank(*stacked.shape)
    low = ((U[:, :rank] * S[:rank]) @ Vh[:rank]).float()
    return list(low.split([len(W) for W in weights]))
