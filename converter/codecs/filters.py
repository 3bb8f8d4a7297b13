"""Cut an array into HDF5 chunks; tell whether compressing it is worth while."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

try:
    from zlib_ng import zlib_ng as zlib

    HAS_ZLIB_NG = True
except ImportError:  # optional: replaces zlib's deflate and CRC-32, 3 and 15 times as fast
    import zlib  # type: ignore[no-redef]

    HAS_ZLIB_NG = False

DEFLATE = 1  # filter ids of the HDF5 specification
SHUFFLE = 2
ZSTD = 32015  # registered with the HDF Group
BLOSC2 = 32026
LARGEST_CHUNK_NBYTES = 4 << 20
#: Below this a dataset's own 400 bytes in the file outweigh what compression could save.
SMALLEST_COMPRESSED_NBYTES = 4096
SAMPLE_PIECES = 8
SAMPLE_PIECE_NBYTES = 512
#: How much smaller an array must become for its inflating to be worth the time.
WORTHWHILE_RATIO = 3.0

FilterPipeline = tuple[tuple[int, tuple[int, ...]], ...]
crc32: Callable[..., int] = zlib.crc32
deflate: Callable[..., bytes] = zlib.compress


class Layout(NamedTuple):
    """How an array lies in the file: contiguous without filters, in chunks with them."""

    dtype: np.dtype
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None = None
    filters: FilterPipeline = ()
    content: str = "array"


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Cut an array along its first axes into chunks of at most 4 MiB; small ones stay whole.

    An axis is cut into equal parts, as far as it divides, so that the last chunk is not
    mostly padding.
    """
    chunks = list(shape)
    for axis, length in enumerate(shape):
        if math.prod(chunks) * itemsize <= LARGEST_CHUNK_NBYTES:
            break
        step_nbytes = math.prod(shape[axis + 1 :]) * itemsize
        longest = max(1, LARGEST_CHUNK_NBYTES // step_nbytes)
        parts = math.ceil(length / longest)
        chunks[axis] = math.ceil(length / parts)
    return tuple(chunks)


def pays_off(array: np.ndarray) -> bool:
    """Tell from 4 KiB of a C-contiguous array whether deflate makes it much smaller.

    Deflates eight pieces spread evenly over it. Deterministic: the same bytes, the same
    answer.
    """
    if array.nbytes < SMALLEST_COMPRESSED_NBYTES:
        return False
    itemsize = array.dtype.itemsize
    items = array.reshape(-1)
    if array.nbytes <= SAMPLE_PIECES * SAMPLE_PIECE_NBYTES:
        sample = shuffled(items)
    else:
        length = max(1, SAMPLE_PIECE_NBYTES // itemsize)
        step = max(0, len(items) - length) // (SAMPLE_PIECES - 1)
        starts = [n * step for n in range(SAMPLE_PIECES)]
        sample = b"".join(shuffled(items[start : start + length]) for start in starts)
    return len(zlib.compress(sample, 1)) * WORTHWHILE_RATIO <= len(sample)


def encode_chunks(
    array: np.ndarray, chunks: tuple[int, ...], shrink: Callable[[np.ndarray], bytes]
) -> Iterator[bytes]:
    """Yield each chunk's payload in C order of the chunk grid; edge chunks padded with zeros."""
    for start in chunk_starts(array.shape, chunks):
        part = array[tuple(slice(s, s + c) for s, c in zip(start, chunks, strict=True))]
        if part.shape != chunks:
            padded = np.zeros(chunks, array.dtype)
            padded[tuple(slice(0, n) for n in part.shape)] = part
            part = padded
        yield shrink(part)


def chunk_starts(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the first index of each chunk, in C order of the chunk grid."""
    counts = [math.ceil(n / c) for n, c in zip(shape, chunks, strict=True)]
    for position in np.ndindex(*counts):
        yield tuple(int(p) * c for p, c in zip(position, chunks, strict=True))


def shuffled(array: np.ndarray) -> bytes:
    """Return the bytes of an array, item bytes regrouped by place (HDF5's shuffle filter)."""
    if array.dtype.itemsize == 1:
        return array.tobytes()
    raw = np.frombuffer(array.tobytes(), np.uint8)
    return raw.reshape(-1, array.dtype.itemsize).T.tobytes()
