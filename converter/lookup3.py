"""Compute the checksum of HDF5's metadata, for many equally long blocks at once."""

from __future__ import annotations

import numpy as np

_SEED = 0xDEADBEEF


def lookup3(blocks: np.ndarray) -> np.ndarray:
    """Return the checksum of each row: ``(N, nbytes)`` uint8 to ``(N,)`` uint32.

    Bob Jenkins' lookup3, function hashlittle with initval 0 (public domain, 2006), which
    the HDF5 file format specification names for all its checksums.
    """
    count, nbytes = blocks.shape
    words = max(1, -(-nbytes // 12)) * 3
    padded = np.zeros((count, words * 4), np.uint8)
    padded[:, :nbytes] = blocks
    columns = padded.view("<u4").astype(np.uint32, copy=False).T
    a = np.full(count, (_SEED + nbytes) & 0xFFFFFFFF, np.uint32)
    b, c = a.copy(), a.copy()
    for word in range(0, words - 3, 3):
        a += columns[word]
        b += columns[word + 1]
        c += columns[word + 2]
        for shift_a, shift_b, shift_c in ((4, 6, 8), (16, 19, 4)):
            a -= c
            a ^= _rotated(c, shift_a)
            c += b
            b -= a
            b ^= _rotated(a, shift_b)
            a += c
            c -= b
            c ^= _rotated(b, shift_c)
            b += a
    a += columns[-3]
    b += columns[-2]
    c += columns[-1]
    for target, source, shift in (
        (c, b, 14),
        (a, c, 11),
        (b, a, 25),
        (c, b, 16),
        (a, c, 4),
        (b, a, 14),
        (c, b, 24),
    ):
        target ^= source
        target -= _rotated(source, shift)
    return c


def _rotated(values: np.ndarray, bits: int) -> np.ndarray:
    return (values << np.uint32(bits)) | (values >> np.uint32(32 - bits))
