"""Put an array together from its chunks, whole or in part."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from converter.codecs import zstd
from converter.codecs.filters import Payload, as_bytes, crc32, expand
from converter.format.index import Extent
from converter.format.layout import ArrayLayout
from converter.loader.page_cache import PageCache
from converter.loader.selection import Box

#: Where data is so compressible, checking zstd's checksum of the output costs more than decoding.
#: The index's checksum of the input is cheaper.
SMALL_BY = 16


def read_plain(pages: PageCache, place: Extent, target: np.ndarray, *, verify: bool) -> None:
    """Fill a C-contiguous array from its bytes in the file."""
    data = as_bytes(target)
    pages.read_into(data, place.offset)
    if verify:
        check(place, data)


def read_plain_box(pages: PageCache, place: Extent, layout: ArrayLayout, box: Box) -> np.ndarray:
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
    pages: PageCache,
    places: Sequence[Extent],
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
        payload = _stored(pages, places[0], layout, target, verify=verify)
        expand(payload, layout.filters, target, threads)
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
        payload = _stored(pages, place, layout, chunk, verify=verify)
        expand(payload, layout.filters, chunk, threads)
        inner, outer = [], []
        for n, length, a, b in zip(corner, chunks, start, stop, strict=True):
            first, last = max(a, n * length), min(b, (n + 1) * length)
            inner.append(slice(first - n * length, last - n * length))
            outer.append(slice(first - a, last - a))
        target[tuple(outer)] = chunk[tuple(inner)]


def _stored(
    pages: PageCache, place: Extent, layout: ArrayLayout, target: np.ndarray, *, verify: bool
) -> Payload:
    """Return what is to be expanded: the bytes of a chunk as they are in the file, or nearly."""
    payload = pages.read(place.nbytes, place.offset)
    is_small = layout.is_zstd and place.nbytes * SMALL_BY <= target.nbytes
    if verify or layout.has_no_checksum or is_small:
        check(place, payload)
    return zstd.without_checksum(payload) if is_small else payload


def check(place: Extent, payload: Payload | np.ndarray) -> None:
    """Compare a payload's checksum."""
    if crc32(payload) != place.crc32:
        raise ValueError("is damaged (its checksum differs)")
