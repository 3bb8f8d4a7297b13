"""What all codecs share: HDF5's shuffle filter, and zlib, as zlib-ng where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

try:
    from zlib_ng import zlib_ng as zlib

    HAS_ZLIB_NG = True
except ImportError:  # optional: replaces zlib's deflate and CRC-32, 3 and 15 times as fast
    import zlib  # type: ignore[no-redef]

    HAS_ZLIB_NG = False

SHUFFLE = 2  # a filter id of the HDF5 specification
#: Numbers of filters and their values, in the order in which they are applied.
FilterPipeline = tuple[tuple[int, tuple[int, ...]], ...]
Payload = bytes | bytearray | memoryview
deflate_library: Any = zlib
crc32: Callable[..., int] = zlib.crc32


def as_bytes(array: np.ndarray) -> np.ndarray:
    """Return the bytes of a C-contiguous array, without a copy, whatever its dtype."""
    return array.reshape(-1).view("u1")


def after_shuffle(number: int, values: tuple[int, ...], itemsize: int) -> FilterPipeline:
    """Return a filter, with HDF5's shuffle filter before it where items have several bytes."""
    filters: FilterPipeline = ((number, values),)
    return filters if itemsize == 1 else ((SHUFFLE, (itemsize,)), *filters)


def is_alone_or_shuffled(filters: FilterPipeline, itemsize: int) -> bool:
    """Tell whether the last filter stands alone, or behind the shuffle filter of such items."""
    return filters[:-1] in ((), ((SHUFFLE, (itemsize,)),))


def shuffled(array: np.ndarray) -> bytes:
    """Return the first bytes of all items, their second bytes and so on (HDF5's shuffle)."""
    if array.dtype.itemsize == 1:
        return array.tobytes()
    return as_bytes(array.copy()).reshape(-1, array.dtype.itemsize).T.tobytes()


def unshuffle(planes: np.ndarray, raw: np.ndarray) -> None:
    """Put items together from planes of their first bytes, their second bytes and so on.

    Items of 2 and 4 bytes by shifts: 17 and 4 times as fast as numpy's transposing.
    """
    itemsize = len(planes)
    if itemsize in (2, 4):
        items = raw.view(f"<u{itemsize}")
        items[:] = planes[-1]
        for plane in planes[-2::-1]:
            items <<= 8
            items |= plane
        return
    columns = raw.reshape(-1, itemsize)
    for n, plane in enumerate(planes):
        columns[:, n] = plane
