"""The fastest float32 product that torch has on this processor, chosen by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""Largest error of a product that counts as float32, relative to its largest entry."""

WORTH = 1.3
"""How much faster oneDNN must be to be preferred: enough that noise in the measurement does not decide."""

DEFAULT = "default"
"""The BLAS that torch was built with: MKL on x86, OpenBLAS or Accelerate elsewhere."""

ONEDNN = "onednn"
"""oneDNN's kernels for the same float32 products."""


@dataclass(frozen=True)
class Products:
    """The backend chosen for float32 products on the CPU, and the measurement behind it."""

    backend: str
    gflops: Mapping[str, float]
    error: Mapping[str, float]

    def __str__(self) -> str:
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in self.gflops.items())
        return f"{self.backend} (GFLOP/s: {rates})"


def _matmul() -> Any:
    """Get the settings of oneDNN's matrix products, which torch's types do not know."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@contextmanager
def _permitted() -> Iterator[None]:
    """Let oneDNN take float32 products."""
    matmul = _matmul()
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def onednn_permission() -> bool:
    """Whether this torch has the switch that gives float32 products to oneDNN."""
    return torch.backends.mkldnn.is_available() and hasattr(_matmul(), "fp32_precision")


@cache
def measured_products() -> Products:
    """Measure the backends, once in a process.

    Notes
    -----
    The probe takes a few tenths of a second. It multiplies as a linear layer, a Gram matrix and a batched product do,
    in the sizes of the embedded model.
    """
    generator = torch.Generator().manual_seed(0)
    X, W = torch.randn(512, 576, generator=generator), torch.randn(1536, 576, generator=generator)
    products = {DEFAULT: _probe(X, W)}
    if onednn_permission():
        with _permitted():
            products[ONEDNN] = _probe(X, W)
    gflops = {name: rate for name, (rate, _) in products.items()}
    error = {name: worst for name, (_, worst) in products.items()}
    fast = gflops.get(ONEDNN, 0.0) > WORTH * gflops[DEFAULT] and error[ONEDNN] < TOLERANCE
    return Products(ONEDNN if fast else DEFAULT, gflops, error)


def _probe(X: Tensor, W: Tensor) -> tuple[float, float]:
    """Rate of a linear layer, and the largest error of all kinds of products."""

    def products(X: Tensor, W: Tensor) -> list[Tensor]:
        heads = X.unflatten(1, (9, 64)).transpose(0, 1)  # (9, n, 64)
        total = torch.zeros(X.shape[1], X.shape[1], dtype=X.dtype)
        return [torch.nn.functional.linear(X, W), total.addmm_(X.T, X), torch.bmm(heads, heads.transpose(1, 2))]

    error = 0.0
    for found, exact in zip(products(X, W), products(X.double(), W.double()), strict=True):
        error = max(error, float((found.double() - exact).abs().max() / exact.abs().max()))
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        torch.nn.functional.linear(X, W)
        seconds.append(time.perf_counter() - began)
    return 2 * X.shape[0] * X.shape[1] * W.shape[0] / min(seconds) / 1e9, error


@contextmanager
def fast_products() -> Iterator[None]:
    """Compute float32 products on the CPU with the faster backend while the block, or the decorated function, runs.

    Notes
    -----
    A precision that the caller has set for oneDNN's products is left as it is. CUDA's products are not concerned.
    """
    chosen = measured_products().backend == ONEDNN and _matmul().fp32_precision == "none"
    if not chosen:
        yield
        return
    with _permitted():
        yield
