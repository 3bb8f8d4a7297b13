"""Decide which values can be stored bit for bit, and as which array."""

from __future__ import annotations

import functools
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np

from converter.errors import UnstorableError
from converter.format.layout import MOST_DIMENSIONS, NUMBERS, has_bool

PACK = "return a packed copy: numpy.lib.recfunctions.repack_fields(array, recurse=True)"
_UINT8 = np.dtype(np.uint8)


class Storable(NamedTuple):
    """A C-contiguous array HDF5 can hold, and what it was: "array", "text" or "bytes"."""

    array: np.ndarray
    content: str


def as_storable(value: Any) -> Storable:
    """Return the array to store for what a reader returned.

    str and bytes become 1-D uint8 (a fixed-length string would lose trailing NULs).
    Raises UnstorableError with what to return instead.
    """
    if _is_plain_image(value):  # nearly all there is: no more to check
        return Storable(value, "array")
    if isinstance(value, (str, bytes, bytearray)):
        is_text = isinstance(value, str)
        data = value.encode() if isinstance(value, str) else bytes(value)
        return Storable(np.frombuffer(data, np.uint8), "text" if is_text else "bytes")
    if value is None:
        raise UnstorableError("the reader returned None: return an array")
    if _is_masked(value):
        raise UnstorableError(
            "the reader returned a masked array, whose mask HDF5 cannot hold: return "
            ".filled(value), or a structured array with the mask as a field"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise UnstorableError(
            f"the reader returned a {type(value).__name__} that is no regular array "
            f"({error}): pad it, or return one flat array"
        ) from None
    reason = _objection(array.dtype)
    if reason:
        raise UnstorableError(f"the reader returned {reason}")
    if array.ndim > MOST_DIMENSIONS:
        raise UnstorableError(
            f"the reader returned {array.ndim} dimensions, HDF5 holds {MOST_DIMENSIONS}: reshape it"
        )
    plain = np.asarray(array, order="C").view(_plain(array.dtype))
    return Storable(with_clean_bools(plain), "array")


def with_clean_bools(array: np.ndarray) -> np.ndarray:
    """Return an array whose bools are bytes of 0 and 1, in fields too.

    numpy takes any byte but 0 for True, as Pillow's 255; HDF5's enum knows 0 and 1 alone.
    """
    if not has_bool(array.dtype):
        return array
    clean = array.copy()
    _clean_bools(clean)
    return clean


def _clean_bools(array: np.ndarray) -> None:
    for name in array.dtype.names or ():
        if has_bool(array.dtype[name]):
            _clean_bools(array[name])
    if array.dtype.kind == "b":
        raw = array.view(np.uint8)
        np.minimum(raw, 1, out=raw)


def _is_masked(value: Any) -> bool:
    """Tell whether it is a masked array: there are none where nobody has imported numpy.ma."""
    masked = sys.modules.get("numpy.ma")  # whose import takes 20 ms
    return masked is not None and masked.isMaskedArray(value)


def _is_plain_image(value: Any) -> bool:
    return (
        type(value) is np.ndarray
        and value.dtype is _UINT8
        and value.ndim <= MOST_DIMENSIONS
        and value.flags.c_contiguous
    )


@functools.lru_cache(maxsize=256)
def _objection(dtype: np.dtype) -> str | None:
    """Say why a dtype cannot be stored and what to return instead; None when it can."""
    if dtype.char in NUMBERS:
        return None
    if dtype.hasobject:
        return "an array of Python objects: return numbers, or text as str"
    if dtype.kind == "U":
        return "an array of str (dtype U): return one str, or .astype('S')"
    if dtype.kind in "mM":
        return f"{dtype} values: return .astype('int64')"
    if dtype.itemsize == 0:
        return f"items of no size ({dtype}): return an array of numbers"
    if _has_x87(dtype):
        wide = "complex128" if dtype.kind == "c" else "float64"
        return f"numbers of 80 bits ({dtype}): return .astype('{wide}'), also in fields"
    if _has_gaps(dtype):
        return f"a dtype with gaps between its fields ({dtype}): {PACK}"
    import h5py  # most arrays do without

    try:
        stored = h5py.h5t.py_create(dtype, logical=True).dtype
    except (TypeError, ValueError) as error:
        return f"dtype {dtype}, which HDF5 cannot hold ({error}): return an array of numbers"
    if _plain(dtype) != dtype:
        return f"a dtype whose fields overlap or are out of order ({dtype}): {PACK}"
    if stored != dtype:
        return f"dtype {dtype}, which HDF5 would change to {stored}: return an array of numbers"
    return None


@functools.lru_cache(maxsize=256)
def _plain(dtype: np.dtype) -> np.dtype:
    """Return a dtype without metadata, as the index describes it; another one if it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy says that the metadata goes
            return np.lib.format.descr_to_dtype(np.lib.format.dtype_to_descr(dtype))
    except ValueError:
        return np.dtype(np.void)


def _has_gaps(dtype: np.dtype) -> bool:
    """Tell whether items have bytes between their fields: these hold whatever memory held."""
    if dtype.subdtype is not None:
        return _has_gaps(dtype.subdtype[0])
    fields = [dtype[name] for name in dtype.names or ()]
    is_packed = not fields or sum(field.itemsize for field in fields) == dtype.itemsize
    return not is_packed or any(map(_has_gaps, fields))


def _has_x87(dtype: np.dtype) -> bool:
    """Tell whether there are numbers of 80 bits in 12 or 16 bytes, whose rest is any."""
    if dtype.subdtype is not None:
        return _has_x87(dtype.subdtype[0])
    if dtype.names is not None:
        return any(_has_x87(dtype[name]) for name in dtype.names)
    return dtype.char in "gG" and np.finfo(np.longdouble).nmant == 63
