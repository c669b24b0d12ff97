"""The methods once more, written as naively as their papers put them, in float64.

Independent of the library on purpose: single rows, single columns, explicit inverses, no blocks, no
deferred updates, nothing shared.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def _exactly_lowest(scores: list[tuple[float, tuple]], k: int) -> set[tuple]:
    return {where for _, where in sorted(scores)[:k]}


def magnitude(W: Tensor, sparsity: float, pattern: tuple[int, int] | None = None) -> Tensor:
    rows, columns = W.shape
    out = W.clone()
    if pattern:
        for i in range(rows):
            _prune_groups(out, i, W[i].abs(), pattern)
        return out
    scores = [(float(W[i, j].abs()), (i, j)) for i in range(rows) for j in range(columns)]
    for i, j in _exactly_lowest(scores, round(len(scores) * sparsity)):
        out[i, j] = 0
    return out


def _prune_groups(out: Tensor, i: int, score: Tensor, pattern: tuple[int, int]) -> None:
    n, m = pattern
    for start in range(0, len(score), m):
        order = sorted(range(start, start + m), key=lambda j: float(score[j]))
        for j in order[: m - n]:
            out[i, j] = 0


def wanda(W: Tensor, X: Tensor, sparsity: float, pattern: tuple[int, int] | None = None) -> Tensor:
    out = W.clone()
    for i in range(W.shape[0]):
        score = torch.tensor([float(W[i, j].abs() * X[:, j].double().norm()) for j in range(W.shape[1])])
        if pattern:
            _prune_groups(out, i, score, pattern)
        else:
            for j in sorted(range(W.shape[1]), key=lambda j: float(score[j]))[: round(W.shape[1] * sparsity)]:
                out[i, j] = 0
    return out


def ria(W: Tensor, X: Tensor, sparsity: float, pattern: tuple[int, int] | None = None, exponent: float = 0.5) -> Tensor:
    out, size = W.clone(), W.double().abs()
    score = torch.zeros_like(size)
    for i in range(W.shape[0]):
        for j in range(W.shape[1]):
            share = size[i, j] / size[i].sum() + size[i, j] / size[:, j].sum() if size[i, j] else 0.0
            score[i, j] = share * X[:, j].double().norm() ** exponent
    if pattern:
        for i in range(W.shape[0]):
            _prune_groups(out, i, score[i], pattern)
        return out
    order = sorted(range(W.numel()), key=lambda at: float(score.flatten()[at]))
    out.view(-1)[order[: round(W.numel() * sparsity)]] = 0
    return out


def _hessian(X: Tensor, damp: float) -> Tensor:
    X = X.double()
    H = 2 * X.T @ X / X.shape[0]
    live = [value for value in H.diagonal().tolist() if value > 0]
    mean = sum(live) / len(live)
    for j in range(len(H)):
        H[j, j] += damp * mean + (mean if H[j, j] == 0 else 0)
    return H


def _brain_surgery_step(W: Tensor, Hinv: Tensor, j: int, value: Tensor) -> tuple[Tensor, Tensor]:
    """Set column j to ``value``, move the error onto the columns after it, and drop j from the inverse Hessian.

    Optimal brain surgery (arXiv 2208.11580, eq. 3) and Gaussian elimination of one variable; the inverse of
    what remains is what the Cholesky factor's rows hold.
    """
    W = W.clone()
    error = (W[:, j] - value) / Hinv[j, j]
    W[:, j + 1 :] -= torch.outer(error, Hinv[j, j + 1 :])
    W[:, j] = value
    Hinv = Hinv - torch.outer(Hinv[:, j], Hinv[j]) / Hinv[j, j]
    return W, Hinv


def sparsegpt(
    W: Tensor, X: Tensor, sparsity: float, pattern: tuple[int, int] | None, damp: float, block_size: int
) -> Tensor:
    W = W.double().clone()
    rows, columns = W.shape
    Hinv = torch.linalg.inv(_hessian(X, damp))
    W[:, (X == 0).all(0)] = 0
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    # What the diagonal of the inverse will be when the sweep arrives at each column.
    pivot, running = [], Hinv.clone()
    for j in range(columns):
        pivot.append(float(running[j, j]))
        running = running - torch.outer(running[:, j], running[j]) / running[j, j]
    for j in range(columns):
        if pattern is None and j % block_size == 0:
            block = range(j, min(j + block_size, columns))
            scores = [(float(W[i, c] ** 2 / pivot[c]), (i, c)) for i in range(rows) for c in block]
            for i, c in _exactly_lowest(scores, round(len(scores) * sparsity)):
                mask[i, c] = True
        if pattern is not None and j % pattern[1] == 0:
            n, m = pattern
            for i in range(rows):
                order = sorted(range(j, j + m), key=lambda c, i=i: float(W[i, c] ** 2 / pivot[c]))
                mask[i, order[: m - n]] = True
        W, Hinv = _brain_surgery_step(W, Hinv, j, W[:, j].masked_fill(mask[:, j], 0))
    return W


def grid(values: list[float], bits: int, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point of some weights."""
    low, high = min(0.0, *values), max(0.0, *values)
    levels = 2**bits - 1
    if symmetric:
        high = max(-low, high)
        low = -high
    if high == low:
        return 1.0, (levels + 1) // 2 if symmetric else 0
    scale = (high - low) * (1 - 1e-6) / levels  # off the tie at the ends of a range: see the grid's notes
    return scale, (levels + 1) // 2 if symmetric else round(-low / scale + 1e-6)


def quantize(value: float, scale: float, zero: int, bits: int) -> float:
    q = min(max(round(value / scale) + zero, 0), 2**bits - 1)
    return (q - zero) * scale


def rtn(W: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    W = W.double()
    out = W.clone()
    size = W.shape[1] if group_size == -1 else group_size
    for i, start in itertools.product(range(W.shape[0]), range(0, W.shape[1], size)):
        values = W[i, start : start + size].tolist()
        scale, zero = grid(values, bits, symmetric)
        out[i, start : start + size] = torch.tensor([quantize(v, scale, zero, bits) for v in values]).double()
    return out


def gptq(
    W: Tensor,
    X: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    damp: float,
    act_order: bool = False,
    static_groups: bool = False,
) -> Tensor:
    W = W.double().clone()
    W[:, (X == 0).all(0)] = 0
    rows, columns = W.shape
    size = columns if group_size == -1 else group_size
    H = _hessian(X, damp)
    order = list(range(columns))
    if act_order:
        order.sort(key=lambda j: -float(H[j, j]))
    static = {
        (i, g): grid(W[i, g * size : (g + 1) * size].tolist(), bits, symmetric)
        for i in range(rows)
        for g in range(columns // size)
    }
    W, Hinv = W[:, order], torch.linalg.inv(H[order][:, order])
    grids: list[tuple[float, int]] = []
    for j in range(columns):
        if static_groups:
            grids = [static[i, order[j] // size] for i in range(rows)]
        elif j % size == 0:
            grids = [grid(W[i, j : j + size].tolist(), bits, symmetric) for i in range(rows)]
        value = torch.tensor([quantize(float(W[i, j]), *grids[i], bits) for i in range(rows)]).double()
        W, Hinv = _brain_surgery_step(W, Hinv, j, value)
    out = torch.empty_like(W)
    out[:, order] = W
    return out


def awq(
    weights: list[Tensor],
    X: Tensor,
    bits: int,
    group_size: int,
    symmetric: bool,
    n_grid: int,
    clip: bool,
    rows: list[int] | None = None,
    clipped: list[bool] | None = None,
    duo_scaling: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Judge every candidate by running the layers, on every token."""
    X = X.double()
    weights = [W.double() for W in weights]
    importance = X.abs().mean(0)
    if rows is not None:
        shared = {r: [c for c, other in enumerate(rows) if other == r] for r in rows}
        importance = torch.stack([importance[shared[r]].mean() for r in rows])
    units = range(len(importance)) if rows is None else [rows.index(row) for row in sorted(set(rows))]
    live = [float(importance[j]) for j in units if importance[j] > 0]
    typical = sum(live) / len(live)
    best, least = torch.ones_like(importance), float("inf")
    heaviness = _relative_weights(torch.cat(weights), group_size)
    if rows is not None:
        heaviness = torch.stack([heaviness[shared[r]].mean() for r in rows])
    for duo, step in itertools.product((False, True) if duo_scaling else (False,), range(n_grid)):
        s = importance ** (step / n_grid)
        if duo:
            s = s / (heaviness ** (1 - step / n_grid) + 1e-4)
        s = s.clamp(min=1e-4 * typical ** (step / n_grid))
        s = s / (s.max() * s.min()).sqrt()
        loss = sum(
            float(((X / s) @ rtn(W * s, bits, group_size, symmetric).T - X @ W.T).square().sum()) for W in weights
        )
        if loss < least:
            best, least = s, loss
    out = []
    for W, may_clip in zip(weights, clipped or [True] * len(weights), strict=True):
        scaled = W * best
        if clip and may_clip:
            scaled = _clip(scaled, X / best, bits, group_size, symmetric)
        out.append(rtn(scaled, bits, group_size, symmetric))
    return out, best


def _relative_weights(W: Tensor, size: int) -> Tensor:
    """By column, the mean share that a weight has of the largest one in its row's group."""
    columns = []
    for j in range(W.shape[1]):
        start = j // size * size
        shares = [float(w[j].abs()) / float(w[start : start + size].abs().max()) for w in W]
        columns.append(sum(shares) / len(shares))
    return torch.tensor(columns).double()


def _clip(W: Tensor, X: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    out = W.clone()
    size = W.shape[1] if group_size == -1 else group_size
    for i, start in itertools.product(range(W.shape[0]), range(0, W.shape[1], size)):
        w, x = W[i, start : start + size], X[:, start : start + size]
        best, least = w, float("inf")
        for step in range(10):
            limit = float(w.abs().max()) * (1 - step / 20)
            candidate = w.clamp(-limit, limit)
            scale, zero = grid(candidate.tolist(), bits, symmetric)
            rounded = torch.tensor([quantize(v, scale, zero, bits) for v in candidate.tolist()]).double()
            loss = float((x @ (rounded - w)).square().sum())
            if loss < least:
                best, least = candidate, loss
        out[i, start : start + size] = best
    return out


def smoothquant_scale(weights: list[Tensor], X: Tensor, alpha: float, rows: list[int] | None = None) -> Tensor:
    """Channel by channel; channels that share a row are one channel with the largest of their maxima."""
    W, X = torch.cat(weights).double(), X.double()
    scale = []
    for j in range(X.shape[1]):
        tied = [j] if rows is None else [c for c, other in enumerate(rows) if other == rows[j]]
        x = max(float(X[t, c].abs()) for t in range(X.shape[0]) for c in tied)
        w = max(float(W[i, c].abs()) for i in range(W.shape[0]) for c in tied)
        scale.append(x**alpha / max(w, 1e-5) ** (1 - alpha) if x > 0 else None)
    units = range(len(scale)) if rows is None else [rows.index(row) for row in sorted(set(rows))]
    live = [scale[j] for j in units if scale[j] is not None]
    typical = math.prod(s ** (1 / len(live)) for s in live)  # geometric mean; 1 if there is none
    scale = [typical if s is None else max(s, 1e-5 * typical) for s in scale]
    return torch.tensor(scale, dtype=torch.float64)


def round_tokens(X: Tensor, bits: int, step: float | None = None) -> Tensor:
    out, most = X.double().clone(), 2 ** (bits - 1) - 1
    for t in range(X.shape[0]):
        own = max(float(value.abs()) for value in X[t]) / most if step is None else step
        for j in range(X.shape[1]):
            out[t, j] = 0 if own == 0 else min(max(round(float(X[t, j]) / own), -most - 1), most) * own
    return out
