"""Compute the checksum of HDF5's metadata, for many equally long blocks at once."""

from __future__ import annotations

import struct

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
    if count < _FEW_BLOCKS:
        return np.array([_checksum(block.tobytes()) for block in blocks], np.uint32)
    words = max(1, -(-nbytes // 12)) * 3
    padded = np.zeros((count, words * 4), np.uint8)
    padded[:, :nbytes] = blocks
    columns = padded.view("<u4").astype(np.uint32, copy=False).T
    a = np.full(count, (_SEED + nbytes) & _BITS_32, np.uint32)
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


def _checksum(block: bytes) -> int:
    words = struct.iter_unpack("<III", block + bytes(-len(block) % 12))
    a = b = c = (_SEED + len(block)) & _BITS_32
    for number, (x, y, z) in enumerate(words, 1):
        a, b, c = (a + x) & _BITS_32, (b + y) & _BITS_32, (c + z) & _BITS_32
        if number * 12 >= len(block):
            break
        for shift in (4, 6, 8, 16, 19, 4):  # each step is the one before with the names moved on
            a = (a - c & _BITS_32) ^ (c << shift & _BITS_32 | c >> 32 - shift)
            a, b, c = b, b + c & _BITS_32, a
    for shift in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - (b << shift | b >> 32 - shift) & _BITS_32
        a, b, c = b, c, a
    return b


def checksum(data: bytes) -> bytes:
    value = lookup3(np.frombuffer(data, np.uint8)[np.newaxis])[0]
    return int(value).to_bytes(CHECKSUM_NBYTES, "little")
