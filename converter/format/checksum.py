"""Compute the checksum of HDF5's metadata, for many equally long blocks at once."""

from __future__ import annotations

from typing import Any

import numpy as np

_SEED = 0xDEADBEEF
_BITS_32 = 0xFFFFFFFF
#: Below this Python's own integers are faster than numpy.
_FEW_BLOCKS = 10
CHECKSUM_NBYTES = 4


def lookup3(blocks: np.ndarray) -> np.ndarray:
    """Return the checksum of each row: ``(N, nbytes)`` uint8 to ``(N,)`` uint32.

    Bob Jenkins' lookup3, function hashlittle with initval 0 (public domain, 2006), which
    the HDF5 file format specification names for all its checksums.
    """
    count, nbytes = blocks.shape
    padded = np.zeros((count, max(1, -(-nbytes // 12)) * 12), np.uint8)
    padded[:, :nbytes] = blocks
    words = padded.view("<u4").astype(np.uint32, copy=False)
    if count < _FEW_BLOCKS:
        return np.array([_hash(block, nbytes) for block in words.tolist()], np.uint32)
    checksums: np.ndarray = _hash(words.T, nbytes)
    return checksums


def _hash(words: Any, nbytes: int) -> Any:
    """Return the checksum of words of 32 bits: ints of one block, or uint32 arrays of many."""
    a = b = c = _SEED + nbytes & _BITS_32
    for n in range(0, len(words), 3):
        a = a + words[n] & _BITS_32
        b = b + words[n + 1] & _BITS_32
        c = c + words[n + 2] & _BITS_32
        if n + 3 == len(words):
            break
        for shift in (4, 6, 8, 16, 19, 4):  # each step is the one before with the names moved on
            a = (a - c & _BITS_32) ^ (c << shift & _BITS_32 | c >> 32 - shift)
            a, b, c = b, b + c & _BITS_32, a
    for shift in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - (b << shift & _BITS_32 | b >> 32 - shift) & _BITS_32
        a, b, c = b, c, a
    return b


def checksum(data: bytes) -> bytes:
    value = lookup3(np.frombuffer(data, np.uint8)[np.newaxis])[0]
    return int(value).to_bytes(CHECKSUM_NBYTES, "little")
