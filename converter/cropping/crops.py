"""Decide which part of each image becomes its row of the batch, at random or not.

Nothing is read here: heights and widths go in, whole numbers come out, for a batch at once.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from converter.cropping.draws import CROP, Draws, below, between
from converter.cropping.geometry import Geometry, ImpossibleCropError
from converter.errors import ConverterError

Size = int | Sequence[int]

TRIES = 10  # of torchvision, before it takes the central crop
MOST_PIXELS = 1 << 28  # of a resized image of which a window is cut


class CropMethod(Protocol):
    """What a crop has: its size, its padding, and its geometry for a batch.

    One that never ``resizes`` shows the pixels of the image as they are.
    """

    size: tuple[int, int]
    resizes: bool
    fill: float
    mask_fill: float

    def geometry(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Geometry:
        """Return the cuts of images of these heights and widths."""


class RandomResizedCrop:
    """A box of random area and aspect ratio, resized: torchvision's algorithm and distribution.

    Parameters
    ----------
    size : int or (height, width)
        Of the result; an int gives a square.
    scale : (float, float)
        The least and the largest area of the box, as a part of the image's.
    ratio : (float, float)
        The least and the largest width of the box over its height; drawn evenly on a log scale.
    """

    fill = mask_fill = 0.0
    resizes = True

    def __init__(
        self,
        size: Size,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size = _pair("size", size)
        self.scale = _range("scale", scale)
        self.ratio = _range("ratio", ratio)
        self._log_ratio = tuple(np.log(self.ratio).tolist())
        if self.scale[0] > 1:
            raise ConverterError(
                f"scale={self.scale} asks for a box larger than the image: it is a part of the "
                "image's area, such as (0.08, 1.0)"
            )

    def geometry(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Geometry:
        """Return a box for each image: the first of ten draws that fits, else a central one."""
        heights, widths = _sizes(heights, widths)
        draw = draws.uniform(CROP, 4 * TRIES).reshape(-1, TRIES, 4)
        area = (heights * widths)[:, None] * between(draw[..., 0], *self.scale)
        ratio = np.exp(between(draw[..., 1], *self._log_ratio))
        tried_width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        tried_height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (tried_width > 0) & (tried_width <= widths[:, None])
        fits &= (tried_height > 0) & (tried_height <= heights[:, None])
        first = np.arange(len(heights)) * TRIES + fits.argmax(axis=1)
        height, width = tried_height.take(first), tried_width.take(first)
        _, _, down, right = draw.reshape(-1, 4).take(first, axis=0).T
        top, left = below(down, heights - height + 1), below(right, widths - width + 1)
        if not (is_found := fits.take(first)).all():
            central_height, central_width = self._central(heights, widths)
            height = np.where(is_found, height, central_height)
            width = np.where(is_found, width, central_width)
            top = np.where(is_found, top, (heights - height) // 2)
            left = np.where(is_found, left, (widths - width) // 2)
        return _whole(top, left, height, width, self.size)

    def _central(self, heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return height and width of the largest box of an allowed ratio."""
        least, most = self.ratio
        ratio = widths / heights
        height = np.where(ratio < least, np.rint(widths / least).astype(np.int64), heights)
        width = np.where(ratio > most, np.rint(heights * most).astype(np.int64), widths)
        return np.clip(height, 1, heights), np.clip(width, 1, widths)


class CenterCrop:
    """The middle of each image, padded with zeros where the image is smaller.

    Parameters
    ----------
    size : int or (height, width)
        Of the result; an int gives a square.
    resize : int or (height, width), optional
        To this the image is resized first: an int is the length of its shorter side. Then it is
        torchvision's ``Resize(resize), CenterCrop(size)``.
    """

    fill = mask_fill = 0.0

    def __init__(self, size: Size, resize: Size | None = None) -> None:
        self.size = _pair("size", size)
        self.resize = None if resize is None else _pair("resize", resize)
        self.resizes = resize is not None
        self._shorter = self.resize[0] if isinstance(resize, numbers.Integral) else None

    def geometry(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Geometry:
        """Return the middle of each image; nothing is drawn."""
        heights, widths = _sizes(heights, widths)
        if self.resize is None:
            tops, lefts = (
                _central_start(sides, side)
                for sides, side in zip((heights, widths), self.size, strict=True)
            )
            return _windows(tops, lefts, self.size, heights, widths)
        resized = self._resized(heights, widths)
        window = [_central_start(*sides) for sides in zip(resized, self.size, strict=True)]
        zeros = np.zeros_like(heights)
        return Geometry(zeros, zeros, heights, widths, *resized, *window)

    def _resized(self, heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._shorter is None:
            height, width = self.resize or self.size
            return np.full_like(heights, height), np.full_like(widths, width)
        shorter, longer = np.minimum(heights, widths), np.maximum(heights, widths)
        length = (self._shorter * longer / shorter).astype(np.int64)
        if (wrong := length * self._shorter > MOST_PIXELS).any():
            row = int(wrong.argmax())
            raise ImpossibleCropError(
                row,
                f"an image of {heights[row]}x{widths[row]} resized to a shorter side of "
                f"{self._shorter} would have {length[row] * self._shorter} pixels: leave it out, "
                "or give resize=(height, width)",
            )
        is_upright = heights >= widths
        return (
            np.where(is_upright, length, self._shorter),
            np.where(is_upright, self._shorter, length),
        )


class RandomCrop:
    """A window at a random place of each image.

    Parameters
    ----------
    size : int or (height, width)
        Of the result; an int gives a square.
    padding : int or (vertical, horizontal)
        Pixels of the result by which the window may reach beyond each side of the image.
    scale : (float, float), optional
        The image is enlarged by a random factor between these, or reduced where it is below 1;
        only what the window shows of it is read and resized. An image that is then smaller than
        the window is padded. Without it, such an image is an error.
    fill, mask_fill : float
        The value of padding, in images and in masks.
    """

    def __init__(
        self,
        size: Size,
        padding: Size = 0,
        scale: Sequence[float] | None = None,
        fill: float = 0,
        mask_fill: float = 255,
    ) -> None:
        self.size = _pair("size", size)
        self.padding = _pair("padding", padding, least=0)
        self.scale = None if scale is None else _range("scale", scale)
        self.resizes = scale is not None
        self.fill, self.mask_fill = fill, mask_fill

    def geometry(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Geometry:
        """Return a window for each image, every place being equally likely."""
        heights, widths = _sizes(heights, widths)
        draw = draws.uniform(CROP, 3)
        if self.scale is None:
            self._check(heights, widths)
            factor = np.ones(len(heights))
        else:
            factor = between(draw[:, 2], *self.scale)
        spans = [
            _random_span(draw[:, n], (heights, widths)[n], factor, self.size[n], self.padding[n])
            for n in range(2)
        ]
        (top, height, resized_height, window_top), (left, width, resized_width, window_left) = spans
        return Geometry(
            top, left, height, width, resized_height, resized_width, window_top, window_left
        )

    def _check(self, heights: np.ndarray, widths: np.ndarray) -> None:
        (height, width), (vertical, horizontal) = self.size, self.padding
        wrong = (heights + 2 * vertical < height) | (widths + 2 * horizontal < width)
        if wrong.any():
            row = int(wrong.argmax())
            padding = f" with a padding of {self.padding}" if any(self.padding) else ""
            raise ImpossibleCropError(
                row,
                f"an image of {heights[row]}x{widths[row]}{padding} is smaller than the crop of "
                f"{height}x{width}: give RandomCrop a padding, or a smaller size",
            )


class Resize:
    """The whole image, resized to ``size``, its aspect ratio changed where it is another.

    ``size`` is (height, width), or an int for a square: the images of a batch have one shape.
    ``CenterCrop(size, resize)`` keeps the aspect ratio.
    """

    fill = mask_fill = 0.0
    resizes = True

    def __init__(self, size: Size) -> None:
        self.size = _pair("size", size)

    def geometry(self, heights: np.ndarray, widths: np.ndarray, draws: Draws) -> Geometry:
        """Return all of each image; nothing is drawn."""
        heights, widths = _sizes(heights, widths)
        zeros = np.zeros_like(heights)
        return _whole(zeros, zeros, heights, widths, self.size)


def _whole(
    top: np.ndarray,
    left: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
    size: tuple[int, int],
) -> Geometry:
    """Return boxes that are resized to the crop's size, all of it."""
    zeros = np.zeros(len(top), np.int64)
    resized = zeros + size[0], zeros + size[1]
    return Geometry(top, left, height, width, *resized, zeros, zeros)


def _windows(
    tops: np.ndarray,
    lefts: np.ndarray,
    size: tuple[int, int],
    heights: np.ndarray,
    widths: np.ndarray,
) -> Geometry:
    """Return windows that are not resized and may reach beyond the image."""
    top, left = np.clip(tops, 0, heights), np.clip(lefts, 0, widths)
    height = np.clip(tops + size[0], 0, heights) - top
    width = np.clip(lefts + size[1], 0, widths) - left
    return Geometry(top, left, height, width, height, width, tops - top, lefts - left)


def _random_span(
    draw: np.ndarray, lengths: np.ndarray, factor: np.ndarray, side: int, padding: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return along one axis: start and length in the image, length resized, start of the window.

    ``side`` pixels of the result show ``side / factor`` of the image.
    """
    shown = np.maximum(np.rint(side / factor).astype(np.int64), 1)
    beyond = np.rint(padding / factor).astype(np.int64)
    ends = -beyond, lengths - shown + beyond
    first, last = np.minimum(*ends), np.maximum(*ends)
    start = first + below(draw, last - first + 1)
    begin, end = np.clip(start, 0, lengths), np.clip(start + shown, 0, lengths)
    before = np.rint((begin - start) * side / shown).astype(np.int64)
    after = np.rint((end - start) * side / shown).astype(np.int64)
    # a part of the image that is less than half a pixel of the result is padding
    return begin, end - begin, after - before, -before


def _central_start(lengths: np.ndarray, side: int) -> np.ndarray:
    """Return where a central window begins, rounded as torchvision does."""
    free = lengths - side
    return np.where(free < 0, -(-free // 2), np.rint(free / 2).astype(np.int64))


def _sizes(heights: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    heights, widths = np.asarray(heights, np.int64), np.asarray(widths, np.int64)
    if (empty := np.minimum(heights, widths) < 1).any():
        row = int(empty.argmax())
        raise ImpossibleCropError(
            row, f"an image of {heights[row]}x{widths[row]} has no pixels to crop: leave it out"
        )
    return heights, widths


def _pair(name: str, value: Size, least: int = 1) -> tuple[int, int]:
    """Return an int twice, or two of them; check both."""
    pair: Any = (value, value) if _is_whole(value) else value
    is_pair = isinstance(pair, (tuple, list, np.ndarray)) and len(pair) == 2
    if not is_pair or not all(_is_whole(side) and side >= least for side in pair):
        kind = "(height, width)" if least else "(vertical, horizontal)"
        raise ConverterError(
            f"{name}={value!r} must be a whole number from {least} on, or {kind} of such"
        )
    return int(pair[0]), int(pair[1])


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))


def _range(name: str, value: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest of what is drawn; check both."""
    try:
        least, most = (float(bound) for bound in value)
    except (TypeError, ValueError):
        least, most = math.nan, math.nan
    if not (0 < least <= most < math.inf):
        raise ConverterError(f"{name}={value!r} must be two numbers above 0, the smaller one first")
    return least, most
