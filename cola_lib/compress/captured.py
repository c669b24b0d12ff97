"""Functions of many small steps, recorded once as a CUDA graph and replayed at the cost of one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def capture(run: Callable[[], None]) -> Callable[[], None]:
    """Record what a function launches on the GPU; returns what launches all of it at once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Captured:
    """A function that writes into tensors, replayed as a CUDA graph from the second call on.

    Notes
    -----
    A graph works on the memory it was recorded with. Arguments are copied there and back, so one graph serves every
    block of columns, of all layers of one shape. The first call runs the function itself: it loads the kernels and
    allocates cuBLAS' workspace, neither of which may happen while a graph is being recorded.
    """

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run
        self._warm = False
        self._held: tuple[Tensor, ...] = ()
        self._replay: Callable[[], None] | None = None

    def __call__(self, *tensors: Tensor) -> None:
        """Run, or replay."""
        if not self._warm:
            self._warm = True
            self._run(*tensors)
            return
        if self._replay is None:
            self._held = tuple(tensor.clone() for tensor in tensors)
            self._replay = capture(lambda: self._run(*self._held))
        for held, tensor in zip(self._held, tensors, strict=True):
            held.copy_(tensor)
        self._replay()
        for held, tensor in zip(self._held, tensors, strict=True):
            tensor.copy_(held)
