"""Say where samples lie, and cut a selection such as ``np.s_[2:5, ::-1]`` into a box to load."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np

from converter.format.layout import Layout

Axes = tuple[int | slice, ...]


class Placed(NamedTuple):
    """Where samples lie and what arrays they are, as numbers: two columns of int64.

    ``offsets``: of the array in its file, -1 where it does not lie there in one piece, as it is.
    ``numbers``: of their layouts, which ``layout(number)`` of the same source gives. Samples of one
    number have one shape and dtype; those of two numbers may have, too. -1: an image file, of
    which only decoding tells them.
    """

    offsets: np.ndarray
    numbers: np.ndarray


class Location(NamedTuple):
    """Where the bytes of a sample lie in a file, in C order and as they are."""

    path: str
    offset: int
    nbytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class _Keys(Protocol):
    def key(self, position: int) -> str: ...


class Box(NamedTuple):
    """A block of an array: from ``start`` up to ``stop`` on each axis; then ``take`` of it."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    take: Axes

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Return what cuts the block out of the array."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))


def check_row(
    out: np.ndarray | None, array: np.ndarray | Layout, keys: _Keys, position: int
) -> None:
    """Raise ValueError where an array does not fit a row of ``out``."""
    if out is not None and (out.shape[1:] != array.shape or out.dtype != array.dtype):
        raise ValueError(
            f"out has rows of shape {out.shape[1:]} and {out.dtype}, but "
            f"{keys.key(position)!r} has {array.shape} and {array.dtype}: give "
            "it that shape and dtype"
        )


def fill_rows(
    out: np.ndarray, arrays: Iterable[np.ndarray], keys: _Keys, positions: np.ndarray
) -> np.ndarray:
    """Copy the arrays at positions into the rows of ``out``, and return it."""
    for n, array in enumerate(arrays):
        check_row(out, array, keys, int(positions[n]))
        out[n, ...] = array
    return out


def stacked(
    arrays: list[np.ndarray], make: Callable[..., np.ndarray] = np.empty
) -> np.ndarray | list[np.ndarray]:
    """Stack equal arrays into what ``make`` returns for shape and dtype; return others as they are.

    numpy's own stack would make big-endian numbers native.
    """
    shape, dtype = arrays[0].shape, arrays[0].dtype
    if any(array.shape != shape or array.dtype != dtype for array in arrays):
        return arrays
    batch = make((len(arrays), *shape), dtype)
    for n, array in enumerate(arrays):
        batch[n] = array
    return batch


def rows_of(first_row: int, rows: int | None) -> slice:
    """Return the slice of ``rows`` rows from ``first_row`` on; None: of all that follow."""
    return slice(first_row, None if rows is None else first_row + rows)


def box_of(selection: Any, shape: tuple[int, ...]) -> Box:
    """Return the smallest box that holds a selection by integers, slices and ``...``.

    Raises IndexError for an integer outside the array or too many of them, TypeError for
    selections of another kind.
    """
    axes = [_one_axis(*axis) for axis in zip(_full(selection, shape), shape, strict=True)]
    return Box(*zip(*axes, strict=True)) if axes else Box((), (), ())


def _full(selection: Any, shape: tuple[int, ...]) -> list[Any]:
    """Return an index for each axis."""
    parts = list(selection) if isinstance(selection, tuple) else [selection]
    ellipses = [number for number, part in enumerate(parts) if part is Ellipsis]
    if len(ellipses) > 1:
        raise IndexError("a selection can hold only one ...")
    missing = len(shape) - (len(parts) - len(ellipses))
    if missing < 0:
        raise IndexError(
            f"a selection has {len(parts) - len(ellipses)} indices for {len(shape)} dimensions"
        )
    at = ellipses[0] if ellipses else len(parts)
    parts[at : at + 1] = [slice(None)] * missing
    return parts


def _one_axis(index: Any, length: int) -> tuple[int, int, int | slice]:
    if isinstance(index, slice):
        chosen = range(*index.indices(length))
        if not chosen:
            return 0, 0, slice(None)
        start, stop = min(chosen[0], chosen[-1]), max(chosen[0], chosen[-1]) + 1
        return start, stop, slice(None, None, chosen.step)
    try:
        number = operator.index(index)
    except TypeError:
        raise TypeError(
            f"a part is selected by integers, slices and ..., not by {type(index).__name__}: "
            "read the array and index that"
        ) from None
    if isinstance(index, bool) or not -length <= number < length:
        raise IndexError(f"index {index} is outside an axis of {length}")
    number %= length
    return number, number + 1, 0
