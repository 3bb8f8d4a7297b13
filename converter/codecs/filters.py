"""Encode and decode one chunk; tell whether compressing an array is worth while."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from converter.codecs import blosc2, zstd

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
#: Below this a dataset's own 400 bytes in the file outweigh what compression could save.
SMALLEST_COMPRESSED_NBYTES = 4096
SAMPLE_PIECES = 8
SAMPLE_PIECE_NBYTES = 512
#: How much smaller an array must become for its inflating to be worth the time.
WORTHWHILE_RATIO = 3.0

FilterPipeline = tuple[tuple[int, tuple[int, ...]], ...]
crc32: Callable[..., int] = zlib.crc32
deflate: Callable[..., bytes] = zlib.compress
#: What deflate can make of one byte at most (zlib's technical details); zstd, of 4 bytes a
#: block of 128 KiB (RFC 8878, 3.1.1.2); Blosc2, of 4 MiB of zeros here. And a header's worth.
DEFLATE_INFLATION = 1032
MOST_INFLATION = 1 << 15
Payload = bytes | bytearray | memoryview
InflateError: type[Exception] = zlib.error  # type: ignore[assignment, unused-ignore]
#: What inflates to at most this much even if it lies is inflated in one go, which is quicker.
HARMLESS_NBYTES = 16 << 20


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


def shuffled(array: np.ndarray) -> bytes:
    """Return the bytes of an array, item bytes regrouped by place (HDF5's shuffle filter)."""
    if array.dtype.itemsize == 1:
        return array.tobytes()
    raw = np.frombuffer(array.tobytes(), np.uint8)
    return raw.reshape(-1, array.dtype.itemsize).T.tobytes()


def inflation(filters: Sequence[int]) -> int:
    """Return how many bytes filters, by their numbers, can make of one at most."""
    return DEFLATE_INFLATION if {*filters} <= {DEFLATE, SHUFFLE} else MOST_INFLATION


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of a C-contiguous array, without a copy, whatever its dtype."""
    return array.reshape(-1).view(np.uint8)


def shrink(chunk: np.ndarray, filters: FilterPipeline) -> bytes:
    """Apply filters to a C-contiguous chunk."""
    number, values = filters[-1]
    if number == BLOSC2:
        return blosc2.shrink(chunk, values)
    if number == ZSTD:
        return zstd.shrink(shuffled(chunk), values[0])
    # a fresh compressor for each chunk: zlib-ng issue 2100
    return deflate(shuffled(chunk), values[0])


def expand(payload: Payload, filters: FilterPipeline, target: np.ndarray, threads: int = 1) -> None:
    """Fill ``target``, C-contiguous and as large as one chunk, from a payload.

    Raises ValueError when the payload does not come to exactly that.
    """
    raw = as_bytes(target)
    if not filters:
        if len(payload) != raw.nbytes:
            raise ValueError("has a chunk of another size")
        raw[:] = np.frombuffer(payload, np.uint8)
        return
    number, _ = filters[-1]
    if number == BLOSC2:
        blosc2.expand(payload, raw, threads)
    elif len(filters) == 1 and number == ZSTD:
        zstd.expand(payload, raw)
    elif len(filters) == 1:
        raw[:] = np.frombuffer(inflate(payload, raw.nbytes), np.uint8)
    else:
        planes = np.empty(raw.nbytes, np.uint8)
        if number == ZSTD:
            zstd.expand(payload, planes)
        else:
            planes = np.frombuffer(inflate(payload, raw.nbytes), np.uint8)
        _unshuffle(planes.reshape(target.dtype.itemsize, -1), raw)


def _unshuffle(planes: np.ndarray, raw: np.ndarray) -> None:
    """Put items together from planes of their first bytes, their second bytes and so on.

    By shifts for 2 and 4 bytes: 17 and 4 times as fast as numpy's transposing.
    """
    itemsize = len(planes)
    if itemsize in (2, 4):
        items = raw.view(f"<u{itemsize}")
        items[:] = planes[-1]
        for plane in planes[-2::-1]:
            np.left_shift(items, 8, out=items)
            np.bitwise_or(items, plane, out=items)
        return
    columns = raw.reshape(-1, itemsize)
    for n, plane in enumerate(planes):
        columns[:, n] = plane


def inflate(payload: Payload, nbytes: int) -> bytes:
    """Inflate a zlib stream that must come to exactly ``nbytes``, taking no more memory."""
    try:
        if len(payload) * DEFLATE_INFLATION <= HARMLESS_NBYTES:
            data: bytes = zlib.decompress(payload, bufsize=nbytes)
            whole = len(data) == nbytes
        else:
            stream = zlib.decompressobj()
            data = stream.decompress(payload, nbytes + 1)
            whole = len(data) == nbytes and stream.eof
    except InflateError as error:
        raise ValueError(f"has a chunk that does not inflate ({error})") from None
    if not whole:
        raise ValueError("has a chunk that inflates to another size")
    return data
