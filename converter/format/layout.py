"""Describe how one array lies in the file; write that as JSON, and read it unbelieving."""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from converter.codecs import compression
from converter.codecs.filters import FilterPipeline

HEADER_NBYTES = 64
#: An array that claims to be larger must have the stored bytes for it: the system gives memory
#: only when it is written to.
HARMLESS_NBYTES = 1 << 30
LONGEST_DESCRIPTION = 1 << 20  # HDF5 itself keeps a dtype within 64 KiB
MOST_DIMENSIONS = 32  # H5S_MAX_RANK
IMAGE = "image"  # an array that HDF5's structures, and not the index, mark as an image
NUMBERS = "?bBhHiIlLqQefd"  # characters of dtypes that numpy and HDF5 have in common
#: Numbers, fixed-length bytes and opaque items; never "O", a pointer of the file's choice.
SCALAR_DTYPE = re.compile(
    r"[<>|=]?(?:b1|[iu][1248]|f(?:2|4|8|12|16)|c(?:8|16|24|32)|[SV][1-9][0-9]{0,8})"
)


def has_bool(dtype: np.dtype[Any]) -> bool:
    """Tell whether there are bools among its numbers."""
    base = dtype.base  # of a subarray
    return base.kind == "b" or any(has_bool(base[name]) for name in base.names or ())


@dataclass(frozen=True)
class Layout:
    """How an array lies in the file: in one piece without filters, in chunks with them.

    One layout serves all samples that have it, so what follows from it is computed once.
    `parse_layout` has checked that no size it read is negative, overflows or contradicts another.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None = None
    filters: FilterPipeline = ()
    content: str = "array"

    @cached_property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def is_encoded(self) -> bool:
        """Tell whether it is a whole file, stored as it was, and not an array."""
        return self.content == "encoded"

    @property
    def has_shape(self) -> bool:
        """Tell whether the shape is known; else it is the number of bytes of the payload."""
        return self.content != "encoded" or self.chunks is not None

    @property
    def is_plain(self) -> bool:
        """Tell whether the bytes in the file are the array's own, in one piece."""
        return self.chunks is None

    @cached_property
    def is_in_parts(self) -> bool:
        """Tell whether it lies in several chunks."""
        return self.has_shape and self._chunk_count > 1

    @cached_property
    def chunk_nbytes(self) -> int:
        """Return the bytes of one decoded chunk."""
        return self.dtype.itemsize * math.prod(self.chunks or self.shape)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Return the bytes from one index to the next on each axis."""
        lengths = (self.dtype.itemsize, *reversed(self.shape[1:]))
        return tuple(itertools.accumulate(lengths, operator.mul))[::-1] if self.shape else ()

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Return the number of chunks along each axis."""
        if self.chunks is None:
            return (1,) * len(self.shape)
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    @cached_property
    def is_decodable(self) -> bool:
        """Tell whether its filters can be undone without HDF5."""
        return compression.is_decodable(self.filters, self.dtype.itemsize)

    @cached_property
    def needs_index_checksum(self) -> bool:
        """Tell whether damage of its payloads would pass its filters unnoticed."""
        return compression.needs_index_checksum(self.filters)

    @cached_property
    def _chunk_count(self) -> int:
        return math.prod(self.grid)

    @cached_property
    def _inflation(self) -> int:
        return compression.inflation([number for number, _ in self.filters])

    def count_extents(self, stored_nbytes: int) -> int:
        """Return the number of payloads of a sample of so many stored bytes."""
        if not self.has_shape:
            return 1 if stored_nbytes else 0
        return self._chunk_count if self.nbytes else 0

    def can_come_from(self, stored_nbytes: int) -> bool:
        """Tell whether so many stored bytes can hold the array; asked before memory is taken."""
        whole = self.chunk_nbytes * self._chunk_count
        if not self.filters:
            return stored_nbytes == whole
        most = stored_nbytes * self._inflation + HEADER_NBYTES
        if not self.is_decodable:  # HDF5 undoes the filters; some need no stored bytes at all
            most = max(most, HARMLESS_NBYTES)
        return stored_nbytes > 0 and whole <= most


def layout_json(layout: Layout) -> bytes:
    """Describe how an array lies in the file; the dtype as in an .npy file's header.

    Encoded files share one description: the length of each is that of its payload.
    """
    if not layout.has_shape:
        return _json_of_encoded()
    content = "array" if layout.content == IMAGE else layout.content
    return _json(layout.dtype, layout.shape, layout.chunks, layout.filters, content)


@functools.cache
def _json_of_encoded() -> bytes:
    """Return what is asked for each file anew: its layout is its own."""
    return _json(np.dtype(np.uint8), (None,), None, (), "encoded")


def _json(
    dtype: np.dtype[Any],
    shape: tuple[int | None, ...],
    chunks: tuple[int, ...] | None,
    filters: FilterPipeline,
    content: str,
) -> bytes:
    described = {
        "dtype": np.lib.format.dtype_to_descr(dtype),
        "shape": shape,
        "chunks": chunks,
        "filters": filters,
        "content": content,
    }
    return json.dumps(described, separators=(",", ":")).encode()


def parse_layout(described: bytes) -> Layout:
    """Return the layout that `layout_json` described.

    Raises ValueError, saying what is impossible, for anything it would never describe.
    """
    if len(described) > LONGEST_DESCRIPTION:
        raise ValueError(f"a layout of {len(described)} bytes")
    try:
        fields = json.loads(described.decode())
    except (ValueError, RecursionError):
        raise ValueError("a layout that is no JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("a layout that is no JSON object")
    content = fields.get("content")
    if content not in ("array", "text", "bytes", "encoded"):
        raise ValueError(f"content {str(content)[:50]!r}")
    dtype = _dtype(fields.get("dtype"))
    if content == "encoded" and fields.get("shape") == [None]:
        if dtype != np.uint8 or fields.get("chunks") is not None or fields.get("filters") != []:
            raise ValueError("encoded files that are no plain bytes")
        return Layout(dtype, (0,), content=content)
    shape = _lengths(fields.get("shape"), "shape", least=0)
    _check_nbytes(shape, dtype)
    chunks, filters = None, _filters(fields.get("filters"))
    if fields.get("chunks") is not None:
        chunks = _lengths(fields["chunks"], "chunks", least=1)
        if len(chunks) != len(shape) or any(c > n for c, n in zip(chunks, shape, strict=True)):
            raise ValueError(f"chunks {chunks} of shape {shape}")
        _check_nbytes(chunks, dtype)
    elif filters:
        raise ValueError("filters without chunks")
    if content == "encoded" and (dtype != np.uint8 or len(shape) != 1 or chunks is None):
        raise ValueError(f"encoded files of shape {shape}, {dtype}")
    return Layout(dtype, shape, chunks, filters, content)


def _dtype(described: Any) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.lib.format.descr_to_dtype(_descr(described, depth=0))
    except (TypeError, ValueError, OverflowError, RecursionError, MemoryError):
        raise ValueError(f"dtype {str(described)[:80]!r}") from None
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"dtype {str(described)[:80]!r}")
    return dtype


def _descr(described: Any, depth: int) -> Any:
    """Return a dtype's description with tuples for JSON's lists, once it is harmless."""
    if isinstance(described, str) and SCALAR_DTYPE.fullmatch(described):
        return described
    if isinstance(described, list) and described and depth < MOST_DIMENSIONS:
        return [_field(field, depth + 1) for field in described]
    raise ValueError


def _field(field: Any, depth: int) -> tuple[Any, ...]:
    if not isinstance(field, list) or len(field) not in (2, 3) or not isinstance(field[0], str):
        raise ValueError
    descr = _descr(field[1], depth)
    if len(field) == 2:
        return (field[0], descr)
    return (field[0], descr, _lengths(field[2], "shape", least=1))


def _lengths(values: Any, what: str, *, least: int) -> tuple[int, ...]:
    if (
        not isinstance(values, list)
        or len(values) > MOST_DIMENSIONS
        or not all(type(value) is int and value >= least for value in values)
    ):
        raise ValueError(f"{what} {str(values)[:80]}")
    return tuple(values)


def _check_nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    # numpy refuses what would overflow without its zeros, so that is refused here too
    if math.prod(n for n in shape if n) * dtype.itemsize >= 2**63:
        raise ValueError(f"shape {shape} of {dtype}")


def _filters(described: Any) -> FilterPipeline:
    if not isinstance(described, list) or len(described) > MOST_DIMENSIONS:
        raise ValueError(f"filters {str(described)[:80]}")
    filters = []
    for one in described:
        if not isinstance(one, list) or len(one) != 2 or type(one[0]) is not int:
            raise ValueError(f"filters {str(described)[:80]}")
        filters.append((one[0], _lengths(one[1], "filter values", least=0)))
    return tuple(filters)
