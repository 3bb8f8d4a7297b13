"""Undo the filters of chunks and put arrays together from them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from converter.filters import DEFLATE, crc32
from converter.handle import as_bytes
from converter.index import Place
from converter.layouts import MOST_INFLATION, ArrayLayout
from converter.pages import Pages
from converter.selection import Box

try:
    from zlib_ng import zlib_ng as zlib
except ImportError:  # optional: inflates 2.5 times as fast
    import zlib  # type: ignore[no-redef]

Payload = bytes | bytearray | memoryview
InflateError: type[Exception] = zlib.error  # type: ignore[assignment, unused-ignore]
#: What inflates to at most this much even if it lies is inflated in one go, which is quicker.
HARMLESS_NBYTES = 16 << 20


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
) -> None:
    """Fill ``target`` from chunks: the whole array, or a box of it, touching no others.

    Raises ValueError when a payload does not inflate to exactly its chunk.
    """
    chunks = layout.chunks or layout.shape
    start = box.start if box else (0,) * len(layout.shape)
    stop = box.stop if box else layout.shape
    strides = [1]
    for length in reversed(layout.grid[1:]):
        strides.insert(0, strides[0] * length)
    spans = [range(a // c, -(-b // c)) for a, b, c in zip(start, stop, chunks, strict=True)]
    for corner in itertools.product(*spans):
        place = places[sum(n * stride for n, stride in zip(corner, strides, strict=True))]
        payload = pages.read(place.nbytes, place.offset)
        if verify:
            check(place, payload)
        chunk = decode(payload, layout)
        inner, outer = [], []
        for n, length, a, b in zip(corner, chunks, start, stop, strict=True):
            first, last = max(a, n * length), min(b, (n + 1) * length)
            inner.append(slice(first - n * length, last - n * length))
            outer.append(slice(first - a, last - a))
        target[tuple(outer)] = chunk[tuple(inner)]


def decode(payload: Payload, layout: ArrayLayout) -> np.ndarray:
    """Return one chunk; it may be read-only."""
    chunks = layout.chunks or layout.shape
    data: Payload = payload
    if any(number == DEFLATE for number, _ in layout.filters):
        data = inflate(payload, layout.chunk_nbytes)
    elif len(payload) != layout.chunk_nbytes:
        raise ValueError("has a chunk of another size")
    if len(layout.filters) < 2:
        return np.frombuffer(data, layout.dtype).reshape(chunks)
    planes = np.frombuffer(data, np.uint8).reshape(layout.dtype.itemsize, -1)
    return planes.T.reshape(-1).view(layout.dtype).reshape(chunks)


def inflate(payload: Payload, nbytes: int) -> bytes:
    """Inflate a zlib stream that must come to exactly ``nbytes``, taking no more memory."""
    try:
        if len(payload) * MOST_INFLATION <= HARMLESS_NBYTES:
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
