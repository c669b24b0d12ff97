"""Small integers in 32-bit words, without a gap between them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 32
ROWS = 1024
"""Rows packed at a time: a code takes eight bytes on the way."""


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack each row of codes into 32-bit words.

    References
    ----------
    ``pack_to_int32`` of compressed-tensors since 0.18. Before, codes of 3, 5, 6 and 7 bits did not cross a word; those
    of 1, 2, 4 and 8 bits are as they were.
    """
    n_rows, n = codes.shape
    words = -(-n * bits // WORD)
    packed = np.empty((n_rows, words), dtype=np.int32)
    for start in range(0, n_rows, ROWS):
        some = codes[start : start + ROWS].numpy()
        stream = np.unpackbits(some[:, :, None], axis=2, count=bits, bitorder="little").reshape(len(some), n * bits)
        stream = np.pad(stream, ((0, 0), (0, words * WORD - n * bits)))
        packed[start : start + ROWS] = np.packbits(stream, axis=1, bitorder="little").view("<i4")
    return torch.from_numpy(packed)
