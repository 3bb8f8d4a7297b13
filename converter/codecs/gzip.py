"""Encode and decode HDF5's own filter 1, deflate; tell for which arrays it pays off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.codecs.filters import (
    FilterPipeline,
    Payload,
    after_shuffle,
    is_alone_or_shuffled,
    shuffled,
)
from converter.codecs.filters import deflate_library as zlib

if TYPE_CHECKING:
    import numpy as np

NAME = "gzip"
FILTER = 1
LEVELS = range(1, 10)
DEFAULT_LEVEL = 2  # 1 (of zlib-ng) is 2.5 times larger on masks
PACKAGE: str | None = "zlib-ng"
MODULE: str | None = None  # that package is optional: Python has zlib
NOTICE: str | None = None
NEEDS_INDEX_CHECKSUM = False  # a zlib stream ends with one
INFLATION = 1032  # of one byte at most (zlib's technical details)
PAYLOAD_VERSION = 1

#: Below this a dataset's own 400 bytes in the file outweigh what compression could save.
SMALLEST_COMPRESSED_NBYTES = 4096
SAMPLE_PIECES = 8
SAMPLE_PIECE_NBYTES = 512
#: How much smaller an array must become: below, decoding costs more time than reading saves.
WORTHWHILE_RATIO = 3.0


def pipeline(level: int, dtype: np.dtype, chunks: tuple[int, ...]) -> FilterPipeline:
    return after_shuffle(FILTER, (level,), dtype.itemsize)


can_decode = is_alone_or_shuffled


def encode(data: bytes | np.ndarray, values: tuple[int, ...]) -> bytes:
    """Return the zlib stream of a chunk's bytes."""
    # a fresh compressor for each chunk: zlib-ng issue 2100
    stream: bytes = zlib.compress(data, values[0])
    return stream


def decode(payload: Payload, target: np.ndarray, threads: int = 1) -> None:
    """Fill ``target``, 1-D uint8, from a zlib stream of its size.

    Takes no more memory for a stream that is larger. Raises ValueError for anything else.
    """
    nbytes = target.nbytes
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(payload, nbytes + 1)
    except zlib.error as error:
        raise ValueError(f"has a chunk that does not inflate ({error})") from None
    if len(data) <= nbytes and not stream.eof:
        raise ValueError("has a chunk that does not inflate (it ends too early)")
    if len(data) != nbytes:
        raise ValueError("has a chunk that inflates to another size")
    target.data[:] = data


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
