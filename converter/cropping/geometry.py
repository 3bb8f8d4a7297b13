"""Say which part of an image is shown, and where in its row."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from converter.errors import ConverterError


class CropError(ConverterError):
    """Why an image does not become a row, in a sentence that does not name it."""


class ImpossibleCropError(CropError):
    """A crop that an image does not have; ``row`` is its place in the batch."""

    def __init__(self, row: int, why: str) -> None:
        super().__init__(why)
        self.row = row

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.row, str(self))


class Cut(NamedTuple):
    """One image's part, in pixels: a box of it, resized, and a window of the result.

    The window has the size of the crop. Where it reaches beyond the resized box, which begins at
    its (0, 0), the row is padded.
    """

    top: int
    left: int
    height: int
    width: int
    resized_height: int
    resized_width: int
    window_top: int
    window_left: int

    def reduction(self) -> int:
        """Return by which of 8, 4, 2 and 1 the image may be reduced before this cut is made."""
        resized = max(1, self.resized_height), max(1, self.resized_width)
        spare = min(self.height // resized[0], self.width // resized[1])
        return next(factor for factor in (8, 4, 2, 1) if spare >= factor or factor == 1)

    def reduced(self, factor: int) -> Cut:
        """Return this cut of an image reduced so: the box, to the nearest of its pixels."""
        top, left = round(self.top / factor), round(self.left / factor)
        height = max(1, round((self.top + self.height) / factor) - top)
        width = max(1, round((self.left + self.width) / factor) - left)
        return self._replace(top=top, left=left, height=height, width=width)


class Geometry(NamedTuple):
    """The cuts of a batch: the fields of `Cut`, each an int64 array with a number an image."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    resized_height: np.ndarray
    resized_width: np.ndarray
    window_top: np.ndarray
    window_left: np.ndarray

    def cuts(self) -> list[Cut]:
        return list(map(Cut._make, zip(*(column.tolist() for column in self), strict=True)))
