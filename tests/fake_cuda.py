"""A CUDA device without a card: shapes, dtypes, devices, memory and synchronizations, but no numbers.

What lives in main memory is computed for real. What lives on ``cuda`` is a fake tensor: torch refuses to mix it with
other devices as it would on a card. Whatever the host reads from the device comes as :data:`STAND_INS`, is counted, and
the place in the library that read it is kept.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from cola_lib.compress import captured, sweep

LIBRARY = str(Path(__file__).parents[1] / "cola_lib")

STAND_INS = {torch.bool: True}
"""What the host reads: true for a condition, 1 for a floating-point number, 0 for an integer, which counts failures."""

aten = torch.ops.aten
IN_PLACE = {
    aten.add_.Tensor, aten.sub_.Tensor, aten.mul_.Tensor, aten.div_.Tensor, aten.addmm_.default, aten.addr_.default,
    aten.clamp_.default, aten.clamp_.Tensor, aten.round_.default, aten.square_.default,
}  # fmt: skip


def _stand_in(dtype: torch.dtype) -> Any:
    return STAND_INS.get(dtype, 1.0 if dtype.is_floating_point else 0)


def _device(tensor: Tensor) -> torch.device:
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _place() -> str:
    """Function of the library that is running, the innermost."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(LIBRARY):
        frame = frame.f_back
    return "elsewhere" if frame is None else frame.f_code.co_name


class _FlashAttention(TorchFunctionMode):
    """Attention as a card's fused kernel does it: without a matrix of all pairs of tokens."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and args[0].device.type == "cuda":
            query, _, value = args[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        return func(*args, **(kwargs or {}))


class FakeCuda(TorchDispatchMode):
    """Run what is under it with a CUDA device that holds no numbers.

    Attributes
    ----------
    synchronizations : Counter of str
        How often the host read from the device, by the library's function that did.
    uploads : Counter of str
        How often something was copied to the device.
    launches : int
        Operations on the device, views not counted.
    bytes, peak : int
        On the device now, and at most since the last :meth:`reset`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.attention = _FlashAttention()
        self.synchronizations: Counter[str] = Counter()
        self.uploads: Counter[str] = Counter()
        self._undo = ExitStack()
        self.launches = self.bytes = self.peak = 0
        self._known: dict[int, int] = {}

    def __enter__(self) -> FakeCuda:
        self.fake.__enter__()  # below, so that torch does not look for a driver
        super().__enter__()
        sweep._replayed.cache_clear()  # a graph holds tensors of its device
        self._undo.callback(sweep._replayed.cache_clear)
        self.attention.__enter__()
        self._undo.enter_context(patch.object(FakeTensor, "tolist", lambda tensor: self._read(tensor, None).tolist()))
        self._undo.enter_context(patch.object(captured, "capture", self._capture))
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()
        self.attention.__exit__(*error)
        super().__exit__(*error)
        self.fake.__exit__(*error)

    def reset(self) -> None:
        """Begin to count again."""
        self.synchronizations.clear()
        self.uploads.clear()
        self.launches, self.peak = 0, self.bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # Tensor.device
            return _device(args[0])
        kwargs = dict(kwargs or {})
        parts = [*args, *kwargs.values()]
        parts += [part for each in args if isinstance(each, list | tuple) for part in each]
        inputs = [part for part in parts if isinstance(part, Tensor)]
        on_device = any(_device(tensor).type == "cuda" for tensor in inputs)
        to = kwargs.get("device")
        if func is aten._pin_memory.default:
            with unset_fake_temporarily():
                return args[0].clone()
        kwargs.pop("pin_memory", None)
        if not on_device and (to is None or torch.device(to).type != "cuda"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in (aten._local_scalar_dense.default, aten.item.default):  # the latter in inference mode
            self.synchronizations[_place()] += 1
            return _stand_in(args[0].dtype)
        if to is not None and torch.device(to).type == "cpu":
            return self._read(args[0], kwargs.get("dtype"))
        if func is aten.copy_.default and _device(args[0]).type == "cpu":
            if True in args[2:] or kwargs.get("non_blocking"):
                return args[0]
            read = self._read(args[1], None)
            with unset_fake_temporarily():
                return args[0].copy_(read)
        if func in (aten.nonzero.default, aten._unique2.default) or (
            func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
            and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        ):
            self.synchronizations[_place()] += 1
            raise NotImplementedError(f"{func} in {_place()}: its shape depends on numbers, so the host waits for it")
        if to is not None and not on_device and inputs:
            self.uploads[_place()] += 1
        if func is aten.copy_.default and _device(args[1]).type == "cpu":
            self.uploads[_place()] += 1
        if func in IN_PLACE:  # fake tensors take a while, and would find out no more than this
            self.launches += 1
            if any(_device(tensor) != _device(args[0]) and tensor.dim() for tensor in inputs):
                raise RuntimeError(f"{func} in {_place()} mixes devices")
            return args[0]
        made = self._on_device(func, args, kwargs)
        self.launches += not func.is_view
        return made

    def _on_device(self, func: Any, args: Any, kwargs: Any) -> Any:
        def enter(tensor: Tensor) -> Tensor:
            return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)

        made = func(*tree_map_only(Tensor, enter, args), **tree_map_only(Tensor, enter, kwargs))
        for part in tree_flatten(made)[0]:
            if isinstance(part, FakeTensor) and part.fake_device.type == "cuda":
                self._hold(part)
        return made

    def _read(self, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
        self.synchronizations[_place()] += 1
        dtype = dtype or tensor.dtype
        with unset_fake_temporarily():
            return torch.full(tensor.shape, _stand_in(dtype), dtype=dtype)

    def _capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """Record a graph: what it runs, runs once, and replaying it is one launch."""
        before = self.synchronizations.total()
        run()
        assert self.synchronizations.total() == before, "a captured graph cannot wait for the device"

        def replay() -> None:
            self.launches += 1

        return replay

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.bytes -= self._known.pop(key)
