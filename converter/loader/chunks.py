"""Undo the filters of chunks and put arrays together from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from converter.codecs import blosc2, zstd
from converter.codecs.filters import BLOSC2, ZSTD, crc32
from converter.files import as_bytes
from converter.format.index import Place
from converter.format.layout import DEFLATE_INFLATION, ArrayLayout
from converter.loader.page_cache import Pages
from converter.loader.selection import Box

try:
    from zlib_ng import zlib_ng as zlib
except ImportError:  # optional: inflates 2.5 times as fast
    import zlib  # type: ignore[no-redef]

Payload = bytes | bytearray | memoryview
InflateError: type[Exception] = zlib.error  # type: ignore[assignment, unused-ignore]
#: What inflates to at most this much even if it lies is inflated in one go, which is quicker.
HARMLESS_NBYTES = 16 << 20
#: Zstd's own checksum is of what comes out, and takes longer to compare than masks take to expand.
#: The index has one of what is stored: much sooner compared where that is so much smaller.
SMALL_BY = 16


def read_plain(pages: Pages, place: Place, target: np.ndarray, *, verify: bool) -> None:
    """Fill a C-contiguous array from its bytes in the file."""
    data = as_bytes(target)
    pages.read_into(data, place.offset)
    if verify:
        check(place, data)


def read_plain_box(pages: Pages, place: Place, layout: ArrayLayout, box: Box) -> np.ndarray:
    """Return a box of an array that lies in one piece, reading little more than its bytes."""
    if not layout.shape:
        array = np.empty((), layout.dtype)
        pages.read_into(as_bytes(array), place.offset)
        return array
    axis = 0  # the first on which the box is longer than 1: all before are one index each
    while axis < len(layout.shape) - 1 and box.stop[axis] - box.start[axis] == 1:
        axis += 1
    begin = sum(
        a * stride for a, stride in zip(box.start[: axis + 1], layout.strides, strict=False)
    )
    slab = np.empty(
        (1,) * axis + (box.stop[axis] - box.start[axis],) + layout.shape[axis + 1 :], layout.dtype
    )
    pages.read_into(as_bytes(slab), place.offset + begin)
    inner = tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))[axis + 1 :]
    return slab[(slice(None),) * (axis + 1) + inner]


def read_chunks(
    pages: Pages,
    places: Sequence[Place],
    layout: ArrayLayout,
    target: np.ndarray,
    *,
    box: Box | None = None,
    verify: bool,
    threads: int = 1,
) -> None:
    """Fill ``target`` from chunks: the whole array, or a box of it, touching no others.

    Raises ValueError when a payload does not inflate to exactly its chunk.
    """
    chunks = layout.chunks or layout.shape
    if chunks == target.shape == layout.shape:
        expand(_stored(pages, places[0], layout, target, verify=verify), layout, target, threads)
        return
    start = box.start if box else (0,) * len(layout.shape)
    stop = box.stop if box else layout.shape
    strides = [1]
    for length in reversed(layout.grid[1:]):
        strides.insert(0, strides[0] * length)
    spans = [range(a // c, -(-b // c)) for a, b, c in zip(start, stop, chunks, strict=True)]
    for corner in itertools.product(*spans):
        place = places[sum(n * stride for n, stride in zip(corner, strides, strict=True))]
        chunk = np.empty(chunks, layout.dtype)
        expand(_stored(pages, place, layout, chunk, verify=verify), layout, chunk, threads)
        inner, outer = [], []
        for n, length, a, b in zip(corner, chunks, start, stop, strict=True):
            first, last = max(a, n * length), min(b, (n + 1) * length)
            inner.append(slice(first - n * length, last - n * length))
            outer.append(slice(first - a, last - a))
        target[tuple(outer)] = chunk[tuple(inner)]


def _stored(
    pages: Pages, place: Place, layout: ArrayLayout, target: np.ndarray, *, verify: bool
) -> Payload:
    """Return what is to be expanded: the bytes of a chunk as they are in the file, or nearly."""
    payload = pages.read(place.nbytes, place.offset)
    is_small = layout.is_zstd and place.nbytes * SMALL_BY <= target.nbytes
    if verify or layout.has_no_checksum or is_small:
        check(place, payload)
    return zstd.without_checksum(payload) if is_small else payload


def expand(payload: Payload, layout: ArrayLayout, target: np.ndarray, threads: int = 1) -> None:
    """Fill ``target``, C-contiguous and as large as one chunk, from a payload.

    Raises ValueError when the payload does not come to exactly that.
    """
    raw = as_bytes(target)
    if not layout.filters:
        if len(payload) != raw.nbytes:
            raise ValueError("has a chunk of another size")
        raw[:] = np.frombuffer(payload, np.uint8)
        return
    number, _ = layout.filters[-1]
    if number == BLOSC2:
        blosc2.expand(payload, raw, threads)
    elif len(layout.filters) == 1 and number == ZSTD:
        zstd.expand(payload, raw)
    elif len(layout.filters) == 1:
        raw[:] = np.frombuffer(inflate(payload, raw.nbytes), np.uint8)
    else:
        planes = np.empty(raw.nbytes, np.uint8)
        if number == ZSTD:
            zstd.expand(payload, planes)
        else:
            planes = np.frombuffer(inflate(payload, raw.nbytes), np.uint8)
        _unshuffle(planes.reshape(layout.dtype.itemsize, -1), raw)


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


def check(place: Place, payload: Payload | np.ndarray) -> None:
    """Compare a payload's checksum."""
    if crc32(payload) != place.crc32:
        raise ValueError("is damaged (its checksum differs)")
