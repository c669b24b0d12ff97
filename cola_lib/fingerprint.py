"""Fingerprints: the same content has the same name, on every machine and in every process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

LENGTH = 20
"""Hexadecimal digits kept: 80 bits, so a million cells collide with probability below 1e-12."""


def _plain(value: Any) -> Any:
    """Reduce ``value`` to what JSON can hold, refusing anything whose text is not stable."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(v) for v in value), key=repr)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"cannot fingerprint a {type(value).__name__}: reduce it to plain data first")


def fingerprint(value: Any) -> str:
    """Hash plain data by its content."""
    text = json.dumps(_plain(value), sort_keys=True, ensure_ascii=True, allow_nan=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def fingerprint_tensors(named: Iterable[tuple[str, Any]]) -> str:
    """Hash tensors by name, dtype, shape and bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor_or_reader in sorted(named, key=lambda pair: pair[0]):
        tensor = tensor_or_reader if isinstance(tensor_or_reader, torch.Tensor) else tensor_or_reader()
        flat = tensor.detach().contiguous().cpu().reshape(-1)
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:LENGTH]
