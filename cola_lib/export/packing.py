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

    Parameters
    ----------
    codes : Tensor of shape (n_rows, n), uint8
        From 0 to ``2**bits - 1``.
    bits : int
        Bits of a code, 1 to 8.

    Returns
    -------
    Tensor of shape (n_rows, ceil(n · bits / 32)), int32
        A row is one string of bits: code i takes the bits from i · bits on, the lowest first, also across the border of
        two words; what is left of the last word is 0.

    References
    ----------
    ``pack_to_int32`` of compressed-tensors since 0.18. Before, codes of 3, 5, 6 and 7 bits did not cross a word; those
    of 1, 2, 4 and 8 bits are as they were.

    Examples
    --------
    >>> import torch
    >>> from cola_lib.export.packing import pack_rows
    >>> pack_rows(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=4).tolist()  # 1 + 2 * 16 + 3 * 256
    [[801]]
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
