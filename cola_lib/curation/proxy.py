r"""Our own strategy: choose the rows whose statistics, given to the compression, would err least on the target.

A compressed layer errs on a target c by tr(ΔW G_c ΔWᵀ), and what ΔW is depends on the calibration set through its own
Gram matrix G alone. Of a weighted sum of such errors, each relative to the layer's energy tr(W G_c Wᵀ), the least is
reached by the method that minimizes tr(ΔW G* ΔWᵀ) with

.. math:: G^* = \sum_c w_c \, G_c / \mathrm{tr}(W G_c W^\top),

so the ideal calibration set is one whose Gram matrix is G* up to a factor, in every layer. Gram matrices of rows add
up: whether a row brings the set nearer to that is told from its own statistics, with no forward pass for each trial.
Three objectives say what "nearer" means, from coarse to fine; all read each candidate once.

``"energy"``
    Diagonals only. KL divergence, between target and set, of the shares in which channels make up a layer's output
    energy, a_j g_j with a_j the squared norm of column j of the weight.
``"wanda"``
    Diagonals only, and the error itself: rows of the weight are pruned by |W_ij| √g_j, and what that costs on the
    target is counted.
``"gram"``
    Whole matrices, projected to a few dimensions: one minus the cosine between the set's and the target's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cola_lib.activations import Probe, energy_probe, sketch_probe
from cola_lib.calibration import CalibrationSet
from cola_lib.curation.base import STRATEGIES, Brief, Strategy, by_source, shares
from cola_lib.curation.pool import Pool, Rows
from cola_lib.errors import SpecError

OBJECTIVES = ("energy", "wanda", "gram")

SKETCH_WIDTH = 24
"""Dimensions of a projected Gram matrix."""

WEIGHT_ROWS = 16
"""Rows of each weight on which the objective ``"wanda"`` tries a pruning."""

_TINY = torch.finfo(torch.float32).tiny


class Objective(ABC):
    """Loss of a set on each target, from sums over its rows."""

    def __init__(self, own: list[Tensor], targets: list[Tensor]) -> None:
        self.own, self.targets = own, targets
        self.sums = [torch.zeros_like(one[0]) for one in own]

    def add(self, row: int) -> None:
        """Add a candidate to the set."""
        for total, one in zip(self.sums, self.own, strict=True):
            total += one[row]

    def losses(self, rows: Sequence[int]) -> Tensor:
        """Loss on each target if one of some candidates joined the set."""
        at = torch.tensor(rows)
        total = torch.zeros(len(rows), len(self.targets[0]))
        for place, (summed, one) in enumerate(zip(self.sums, self.own, strict=True)):
            total += self.loss(place, summed + one[at])
        return total / len(self.own)

    @abstractmethod
    def loss(self, place: int, statistics: Tensor) -> Tensor:
        """Loss at one place."""


class EnergyObjective(Objective):
    """KL divergence of shares of output energy; see the module."""

    def __init__(self, own: list[Tensor], targets: list[Tensor], columns: list[Tensor]) -> None:
        super().__init__(own, targets)
        self.columns = columns
        self.wanted = [_share(t * a) for t, a in zip(targets, columns, strict=True)]

    def loss(self, place: int, statistics: Tensor) -> Tensor:
        """See :meth:`Objective.loss`."""
        share = _share(statistics * self.columns[place]).clamp(min=_TINY).log()
        wanted = self.wanted[place]
        entropy = torch.special.entr(wanted).sum(1)
        return -(share @ wanted.T) - entropy


class WandaObjective(Objective):
    """Share of the target's output energy that pruning by the set's statistics would cost; see the module."""

    def __init__(self, own: list[Tensor], targets: list[Tensor], squares: list[Tensor], sparsity: float = 0.5) -> None:
        super().__init__(own, targets)
        self.squares, self.sparsity = squares, sparsity
        self.energy = [t @ s.sum(0) for t, s in zip(targets, squares, strict=True)]

    def loss(self, place: int, statistics: Tensor) -> Tensor:
        """See :meth:`Objective.loss`."""
        squares = self.squares[place]
        n_pruned = int(self.sparsity * squares.shape[1])
        lost = []
        for energies in statistics:
            score = squares * energies  # squared Wanda score
            pruned = score.topk(n_pruned, dim=1, largest=False, sorted=False).indices
            mass = torch.zeros(squares.shape[1])
            mass.scatter_add_(0, pruned.flatten(), squares.gather(1, pruned).flatten())
            lost.append(self.targets[place] @ mass / self.energy[place])
        return torch.stack(lost)


class GramObjective(Objective):
    """One minus the cosine of projected Gram matrices; see the module."""

    def __init__(self, own: list[Tensor], targets: list[Tensor]) -> None:
        super().__init__(own, targets)
        self.wanted = [torch.nn.functional.normalize(t, dim=1) for t in targets]

    def loss(self, place: int, statistics: Tensor) -> Tensor:
        """See :meth:`Objective.loss`."""
        return 1 - torch.nn.functional.normalize(statistics, dim=1) @ self.wanted[place].T


def _share(values: Tensor) -> Tensor:
    return values / values.sum(-1, keepdim=True).clamp(min=_TINY)


@STRATEGIES.register
@dataclass(frozen=True)
class Proxy(Strategy):
    """Rows that let the compression err least on the target, found greedily from statistics alone.

    Parameters
    ----------
    objective : {"energy", "wanda", "gram"}
        See :mod:`cola_lib.curation.proxy`.
    across : {"mean", "worst"}
        Minimize the weighted mean of the capabilities' losses, or the largest of their losses times their weights.
    prior : float
        Weight of the whole pool as one more target, from 0 to below 1: holds the set near to what the model was trained
        on, should the target's texts be few.
    unit : {"rows", "sources"}
        Choose rows one by one; or find how much of each source to take, and take its rows at random, which makes the
        strategy stochastic.
    reweigh : bool
        Let rows count differently in the end, so that their weighted sum comes nearer still.
    stride : int
        Look at every so many blocks only.

    Notes
    -----
    The greedy choice is the usual one for herding: at each step the row that makes the set's loss least. Weights, of
    rows or of sources, are found by gradient descent on their logarithms.

    References
    ----------
    The proxy: chapter 7 of the book. Herding: Welling, "Herding dynamical weights to learn", ICML 2009.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.curation import Pool, Proxy, deployment
    >>> from cola_lib.data import Sample
    >>> from cola_lib.models import tiny_model
    >>> texts = ["Many hands make light work.", "Still waters run deep.", "Less is more.", "Haste makes waste."]
    >>> samples = [Sample(str(i), text, "proverbs") for i, text in enumerate(texts)]
    >>> pool = Pool({"first": samples[:2], "second": samples[2:]})
    >>> target = deployment({"language": [Sample("t", "A stitch in time saves nine.", "target")]})
    >>> chance = torch.Generator().manual_seed(0)
    >>> chosen = Proxy().select(pool, tiny_model(), n_samples=2, seq_len=16, target=target, generator=chance)
    >>> chosen.n_samples, chosen.name
    (2, 'proxy')
    """

    name: ClassVar[str] = "proxy"
    needs_target: ClassVar[bool] = True

    objective: Literal["energy", "wanda", "gram"] = "energy"
    across: Literal["mean", "worst"] = "mean"
    prior: float = 0.0
    unit: Literal["rows", "sources"] = "rows"
    reweigh: bool = False
    stride: int = 3

    def __post_init__(self) -> None:
        for option, known in (
            ("objective", OBJECTIVES),
            ("across", ("mean", "worst")),
            ("unit", ("rows", "sources")),
        ):
            if getattr(self, option) not in known:
                raise SpecError(f"{option} must be one of {', '.join(known)}, and is {getattr(self, option)!r}")
        if not 0 <= self.prior < 1:
            raise SpecError(f"prior must be from 0 to below 1, and is {self.prior:g}")
        if self.stride < 1:
            raise SpecError(f"stride must be at least 1, and is {self.stride}")

    def choose(self, brief: Brief) -> CalibrationSet:
        """See :meth:`Strategy.select`."""
        rows = brief.rows()
        objective, weights = self._objective(brief, rows)
        if self.unit == "sources":
            return self._mixed(brief, rows, objective, weights)
        if len(rows) < brief.n_samples:
            return brief.take(rows, range(len(rows)))  # which says what is missing
        left = brief.shuffled(len(rows))  # ties go to one at random
        order: list[int] = []
        while len(order) < brief.n_samples:
            loss = self._joined(objective.losses(left), weights)
            best = left.pop(int(loss.argmin()))
            objective.add(best)
            order.append(best)
        if not self.reweigh:
            return brief.take(rows, order)
        shares_of = self._weights(objective, [[i] for i in order], weights)
        return brief.take(rows, order, (shares_of * len(order)).tolist())

    def _mixed(self, brief: Brief, rows: Rows, objective: Objective, weights: Tensor) -> CalibrationSet:
        """Find how much of each source to take, and take its rows at random."""
        of_source = by_source(rows)
        found = self._weights(objective, list(of_source.values()), weights)
        share = dict(zip(of_source, found.tolist(), strict=True))
        taken = [
            of_source[source][i]
            for source, n in shares(share, brief.n_samples).items()
            for i in brief.shuffled(len(of_source[source]))[:n]
        ]
        return brief.take(rows, [taken[i] for i in brief.shuffled(len(taken))])

    def _joined(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Make one loss of those on each target: (n, n_targets) → (n,)."""
        weighted = losses * weights
        return weighted.sum(1) if self.across == "mean" else weighted.amax(1)

    def _weights(self, objective: Objective, groups: Sequence[Sequence[int]], weights: Tensor) -> Tensor:
        """Weights of groups of rows, which sum to 1, that make the loss of their weighted sum least."""
        if self.objective == "wanda":
            raise SpecError("weights are found by gradients, and the objective 'wanda' has none: take another")
        parts = [torch.stack([one[list(group)].mean(0) for group in groups]) for one in objective.own]
        logs = torch.zeros(len(groups), requires_grad=True)
        optimizer = torch.optim.Adam([logs], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            mixture = logs.softmax(0)
            losses = [objective.loss(i, (mixture @ part)[None]) for i, part in enumerate(parts)]
            loss = reduce(torch.add, losses) / len(parts)
            self._joined(loss, weights).sum().backward()
            optimizer.step()
        return logs.detach().softmax(0)

    def _objective(self, brief: Brief, rows: Rows) -> tuple[Objective, Tensor]:
        """Measure candidates and targets; the weights are those of the targets, the prior's last."""
        lm, wanted, pool = brief.lm, brief.target_rows(), brief.deployment.pool
        blocks = tuple(range(0, len(lm.blocks), self.stride))
        groups = lm.architecture.groups
        probes = {group.name: energy_probe(group.name, blocks) for group in groups}
        own, asked = (
            self._measured(p, brief, r, ("energy", blocks), probes) for p, r in ((brief.pool, rows), (pool, wanted))
        )
        capabilities = by_source(wanted)
        weights = [brief.deployment.weights[capability] * (1 - self.prior) for capability in capabilities]
        layers = [
            [lm.blocks[block].get_parameter(f"{layer}.weight").float().cpu() for layer in group.layers]
            for group in groups
            for block in blocks
        ]
        columns = [reduce(torch.add, [W.square().sum(0) for W in some]) for some in layers]
        if self.objective == "gram":
            scale = [one.mean(0).clamp(min=_TINY).rsqrt() for one in own]
            probes = self._sketches(brief, groups, blocks, scale)
            key = ("sketch", blocks, rows.tokens.fingerprint)  # what is measured depends on the pool's own energies
            own, asked = (self._measured(p, brief, r, key, probes) for p, r in ((brief.pool, rows), (pool, wanted)))
        targets = [torch.stack([one[at].sum(0) for at in capabilities.values()]) for one in asked]
        if self.prior:
            weights.append(self.prior)
            targets = [torch.cat([t, one.sum(0, keepdim=True)]) for t, one in zip(targets, own, strict=True)]
        if self.objective == "gram":
            return GramObjective(own, targets), torch.tensor(weights)
        if self.objective == "energy":
            return EnergyObjective(own, targets, columns), torch.tensor(weights)
        squares = [torch.cat([W[:: max(1, len(W) // WEIGHT_ROWS)] for W in some]).square() for some in layers]
        return WandaObjective(own, targets, squares), torch.tensor(weights)

    @staticmethod
    def _measured(pool: Pool, brief: Brief, rows: Rows, key: tuple, probes: dict[str, Probe]) -> list[Tensor]:
        """Statistics at each place: groups in order, and the blocks of each."""
        found = pool.features(brief.lm, rows, key, probes)
        return [found[name][:, position] for name, probe in probes.items() for position in range(len(probe.blocks))]

    @staticmethod
    def _sketches(brief: Brief, groups: Sequence, blocks: tuple[int, ...], scale: list[Tensor]) -> dict[str, Probe]:
        """Project inputs whose channels were scaled to the same mean square over the pool."""
        generator = torch.Generator().manual_seed(0)
        probes = {}
        for i, group in enumerate(groups):
            own = torch.stack(scale[i * len(blocks) : (i + 1) * len(blocks)])  # (n_blocks, d_in)
            matrices = torch.randn(len(blocks), own.shape[1], SKETCH_WIDTH, generator=generator) / SKETCH_WIDTH**0.5
            probes[group.name] = sketch_probe(group.name, blocks, matrices * own[..., None])
        return probes
