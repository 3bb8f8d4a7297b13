"""Put an array together from its chunks, whole or in part."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from converter.codecs.compression import decode
from converter.codecs.filters import Payload, as_bytes, crc32
from converter.format.index import Extent
from converter.format.layout import Layout
from converter.loader.page_cache import PageCache
from converter.loader.selection import Box, box_of


def read_plain_box(pages: PageCache, extent: Extent, layout: Layout, box: Box) -> np.ndarray:
    """Return a box of an array that lies in one piece, reading little more than its bytes."""
    axis = 0  # the first on which the box is longer than 1: all before are one index each
    while axis < len(layout.shape) - 1 and box.shape[axis] == 1:
        axis += 1
    starts = zip(box.start[: axis + 1], layout.strides, strict=False)
    offset = extent.offset + sum(start * stride for start, stride in starts)
    slab = np.empty(box.shape[: axis + 1] + layout.shape[axis + 1 :], layout.dtype)
    pages.read_into(as_bytes(slab), offset)
    inner = box.slices[axis + 1 :]
    return slab[(slice(None),) * (slab.ndim - len(inner)) + (*inner, ...)]


def read_chunks(
    pages: PageCache,
    extents: Sequence[Extent],
    layout: Layout,
    target: np.ndarray,
    *,
    box: Box | None = None,
    verify: bool,
    threads: int = 1,
) -> None:
    """Fill ``target`` with the whole array, or a box of it, reading only the chunks it needs.

    Raises ValueError when a payload does not inflate to exactly its chunk.
    """
    chunks = layout.chunks or layout.shape
    if chunks == target.shape == layout.shape:
        payload = _stored(pages, extents[0], layout, verify=verify)
        decode(payload, layout.filters, target, threads)
        return
    start, stop, _ = box or box_of(..., layout.shape)
    spans = [range(a // c, -(-b // c)) for a, b, c in zip(start, stop, chunks, strict=True)]
    for corner in itertools.product(*spans):
        index = 0  # in C order of the grid
        for n, length in zip(corner, layout.grid, strict=True):
            index = index * length + n
        chunk = np.empty(chunks, layout.dtype)
        payload = _stored(pages, extents[index], layout, verify=verify)
        decode(payload, layout.filters, chunk, threads)
        inner, outer = [], []
        for n, length, a, b in zip(corner, chunks, start, stop, strict=True):
            first, last = max(a, n * length), min(b, (n + 1) * length)
            inner.append(slice(first - n * length, last - n * length))
            outer.append(slice(first - a, last - a))
        target[tuple(outer)] = chunk[tuple(inner)]


def _stored(pages: PageCache, extent: Extent, layout: Layout, *, verify: bool) -> Payload:
    """Return the payload of a chunk, checked where its filters would not notice damage."""
    payload = pages.read(extent.nbytes, extent.offset)
    if verify or layout.needs_index_checksum:
        check(extent, payload)
    return payload


def check(extent: Extent, payload: Payload | np.ndarray) -> None:
    """Raise ValueError where a payload has another checksum than the index."""
    if crc32(payload) != extent.crc32:
        raise ValueError("is damaged (its checksum differs)")
