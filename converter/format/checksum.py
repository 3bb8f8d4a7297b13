"""Compute the checksum of HDF5's metadata, for many equally long blocks at once."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

_SEED = 0xDEADBEEF
_BITS_32 = 0xFFFFFFFF
#: Below this Python's own integers are faster than numpy.
_FEW_BLOCKS = 10
CHECKSUM_NBYTES = 4
STEP_NBYTES = 12

#: A checksum after a part of its bytes: ints of one block, or uint32 arrays of many.
State = tuple[Any, Any, Any]


def beginning(data: bytes, nbytes: int) -> State:
    """Return the state after ``data``, the first whole steps of ``nbytes`` bytes."""
    a = b = c = _SEED + nbytes & _BITS_32
    words = struct.unpack(f"<{len(data) // 4}I", data)
    for n in range(0, len(words), 3):
        a, b, c = _mixed(
            a + words[n] & _BITS_32, b + words[n + 1] & _BITS_32, c + words[n + 2] & _BITS_32
        )
    return a, b, c


def lookup3(blocks: np.ndarray, states: np.ndarray | None = None) -> np.ndarray:
    """Return the checksum of each row: ``(N, nbytes)`` uint8 to ``(N,)`` uint32.

    Bob Jenkins' lookup3, function hashlittle with initval 0 (public domain, 2006), which
    the HDF5 file format specification names for all its checksums. With ``states`` ``(N, 3)``
    rows are only the ends of blocks, at least one byte each; a state is that of the bytes before.
    """
    count, nbytes = blocks.shape
    padded = np.zeros((count, max(1, -(-nbytes // STEP_NBYTES)) * STEP_NBYTES), np.uint8)
    padded[:, :nbytes] = blocks
    words = padded.view("<u4").astype(np.uint32, copy=False)
    if states is None:
        states = np.array([beginning(b"", nbytes)] * count, np.uint32)
    if count < _FEW_BLOCKS:
        pairs = zip(words.tolist(), states.tolist(), strict=True)
        return np.array([_end(block, state) for block, state in pairs], np.uint32)
    a, b, c = states.T
    checksums: np.ndarray = _end(words.T, (a, b, c))
    return checksums


def _end(words: Any, state: State) -> Any:
    """Return the checksum after its last words of 32 bits: ints of one block, or arrays of many."""
    a, b, c = state
    for n in range(0, len(words), 3):
        a = a + words[n] & _BITS_32
        b = b + words[n + 1] & _BITS_32
        c = c + words[n + 2] & _BITS_32
        if n + 3 == len(words):
            break
        a, b, c = _mixed(a, b, c)
    for shift in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - (b << shift & _BITS_32 | b >> 32 - shift) & _BITS_32
        a, b, c = b, c, a
    return b


def _mixed(a: Any, b: Any, c: Any) -> State:
    for shift in (4, 6, 8, 16, 19, 4):  # each step is the one before with the names moved on
        a = (a - c & _BITS_32) ^ (c << shift & _BITS_32 | c >> 32 - shift)
        a, b, c = b, b + c & _BITS_32, a
    return a, b, c


def checksum(data: bytes) -> bytes:
    value = lookup3(np.frombuffer(data, np.uint8)[np.newaxis])[0]
    return int(value).to_bytes(CHECKSUM_NBYTES, "little")
