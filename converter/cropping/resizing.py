"""Write the cut of one image into its row of a batch: resized, padded, mirrored."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from converter.cropping.geometry import CropError, Cut, Geometry
from converter.cropping.libraries import OpenCV, Torch, opencv_library, torch_library

MOST_CHANNELS = 4
MOST_PADDING = 4  # times the pixels of an image or its row: more are padded one by one

FLOAT32 = np.dtype(np.float32)
#: As what arrays of these are interpolated: as they are, or as what holds each of their values.
WORKING_DTYPES = {
    np.dtype(own): np.dtype(working)
    for own, working in {
        "uint8": "uint8",
        "uint16": "float32",
        "float16": "float32",
        "float32": "float32",
        "float64": "float64",
    }.items()
}


class Resizer:
    """Fills rows of a batch, in any thread.

    Parameters
    ----------
    antialias : bool
        True: torch's antialiased bilinear interpolation, bit for bit that of torchvision's v2
        transforms on a uint8 tensor. False: OpenCV's ``INTER_LINEAR``, faster, with aliasing where
        an image is reduced.

    Of a JPEG that is stored as it is and at least twice as large as needed, the box comes from a
    decode to a half, a quarter or an eighth of its size, which averages pixels too: the mean
    difference from a whole decode was 2 to 3 of 255 over random crops of photos, and up to 17 in
    one of them. The box is rounded to the pixels of the reduced image.

    Neither changes a setting of torch or of OpenCV. An image whose cut is not resized, and a mask,
    need numpy alone.
    """

    def __init__(self, antialias: bool = True) -> None:
        self.antialias = antialias
        self._source = _Scratch()
        self._result = _Scratch()

    def fill(
        self,
        target: np.ndarray,
        source: np.ndarray,
        cut: Cut,
        *,
        hflip: bool = False,
        vflip: bool = False,
        nearest: bool = False,
        fill: float = 0,
    ) -> None:
        """Write one row.

        Parameters
        ----------
        target : (H, W[, C]) array
            The row: of the crop's size, and of the image's dtype.
        source : (h, w[, C]) array
            The box that the cut names, and nothing else; may be strided and read-only. With one
            channel, it fills all of the row's.
        cut : Cut
            How the box is resized, and what of it is shown where.
        hflip, vflip : bool
            Mirror the row left to right, upside down.
        nearest : bool
            For masks: take the value of a pixel, as torch's ``nearest`` and torchvision's v2
            transforms of masks do. Any dtype.
        fill : float
            The value of padding.
        """
        row = target if target.ndim == 3 else target[:, :, None]
        source = source if source.ndim == 3 else source[:, :, None]
        if source.shape[2] != row.shape[2]:  # gray, to be colours
            source = np.broadcast_to(source, (*source.shape[:2], row.shape[2]))
        size = cut.resized_height, cut.resized_width
        shown, first = row, (cut.window_top, cut.window_left)
        if size != row.shape[:2] or first != (0, 0):
            shown, first = _shown(row, size, first)
            if shown.size < row.size:
                _pad(row, fill)
                if not shown.size:
                    return
        mirror = mirror_one
        if size == source.shape[:2]:
            shown[...] = _window(source, first, shown.shape)
        elif nearest:
            _pick(source, shown, size, first)
        else:
            library = torch_library() if self.antialias else opencv_library()
            self._interpolate(library, source, shown, size, first)
            mirror = library.mirror
        if hflip or vflip:
            mirror(row, hflip, vflip)

    def _interpolate(
        self,
        library: Torch | OpenCV,
        source: np.ndarray,
        target: np.ndarray,
        size: tuple[int, int],
        first: tuple[int, int],
    ) -> None:
        """Resize a box to ``size``, and show what of it begins at ``first``."""
        dtype = target.dtype
        working = WORKING_DTYPES.get(dtype)
        if working is None:
            raise CropError(
                f"arrays of {dtype} cannot be interpolated, only uint8, uint16, float16, float32 "
                "and float64: give them as masks, or use a crop that does not resize"
            )
        if size[1] == 1 and self.antialias and working == np.uint8:
            working = FLOAT32  # torch 2.14 gives wrong bytes for a width of 1
        if working != source.dtype or not library.takes(source):
            box = self._source.array(source.shape, working)
            box[...] = source
            source = box
        if working == dtype and size == target.shape[:2] and target.flags.c_contiguous:
            library.resize(source, target)
            return
        result = self._result.array((*size, source.shape[2]), working)
        library.resize(source, result)
        _put(_window(result, first, target.shape), target)


def windows(
    images: np.ndarray, geometry: Geometry, size: tuple[int, int], fill: float
) -> np.ndarray | None:
    """Return the rows of equal images that are not resized: what `Resizer` gives, all at once.

    None where padding would take much more memory than images and rows.
    """
    firsts = geometry.top + geometry.window_top, geometry.left + geometry.window_left
    count, *sides = images.shape[:3]
    before = [max(0, -int(first.min())) for first in firsts]
    after = [
        max(0, int(first.max()) + length - side)
        for first, length, side in zip(firsts, size, sides, strict=True)
    ]
    top, left = before
    height, width = (sum(axis) for axis in zip(before, sides, after, strict=True))
    if height * width > MOST_PADDING * max(math.prod(sides), math.prod(size)):
        return None
    channels, shape = math.prod(images.shape[3:]), images.shape[3:]
    if (height, width) != tuple(sides):
        padded = np.empty((count, height, width, *shape), images.dtype)
        _pad(padded, fill)
        padded[:, top : top + sides[0], left : left + sides[1]] = images
        images = padded
    lines = images.reshape(count, height, width * channels)
    shown = sliding_window_view(lines, (size[0], size[1] * channels), (1, 2))
    rows: np.ndarray = shown[np.arange(count), firsts[0] + top, (firsts[1] + left) * channels]
    return rows.reshape(count, *size, *shape)


def mirror_rows(rows: np.ndarray, hflips: np.ndarray, vflips: np.ndarray) -> None:
    """Mirror some of ``(N, H, W, ...)`` where they are, by numpy."""
    if vflips.any():
        rows[vflips] = rows[vflips][:, ::-1]
    if not hflips.any():
        return
    some = rows[hflips]
    mirrored = np.empty_like(some)
    if some.ndim == 4 and some.shape[3] <= MOST_CHANNELS:
        for channel in range(some.shape[3]):  # numpy moves 3 at once at a quarter of the speed
            mirrored[..., channel] = some[:, :, ::-1, channel]
    else:
        mirrored[...] = some[:, :, ::-1]
    rows[hflips] = mirrored


def mirror_one(row: np.ndarray, hflip: bool, vflip: bool) -> None:
    """Mirror an array ``(H, W, ...)`` where it is, by numpy."""
    mirror_rows(row[None], np.array([hflip]), np.array([vflip]))


class _Scratch(threading.local):
    """Memory that is used again for each row, of each thread its own; grows to the largest."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > self._memory.nbytes:
            self._memory = np.empty(nbytes, np.uint8)
        return np.ndarray(shape, dtype, self._memory)


def _shown(
    row: np.ndarray, resized: tuple[int, int], window: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the part of a row that is no padding, and which pixel of the image it begins with."""
    spans = [
        slice(max(0, -start), max(min(side, length - start), max(0, -start)))
        for side, length, start in zip(row.shape[:2], resized, window, strict=True)
    ]
    first = spans[0].start + window[0], spans[1].start + window[1]
    return row[spans[0], spans[1]], first


def _window(array: np.ndarray, first: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    (top, left), (height, width, _) = first, shape
    return array[top : top + height, left : left + width]


def _pad(target: np.ndarray, fill: float) -> None:
    kind = target.dtype.kind
    if kind in "iu":
        limits = np.iinfo(target.dtype)
        is_held = limits.min <= fill <= limits.max and fill == int(fill)
    else:
        is_held = kind != "b" or fill in (0, 1)
    if not is_held:
        raise CropError(
            f"arrays of {target.dtype} cannot hold {fill}, with which they are padded: give fill "
            "or mask_fill a value that they can hold"
        )
    target[...] = fill


def _pick(
    source: np.ndarray, target: np.ndarray, size: tuple[int, int], first: tuple[int, int]
) -> None:
    """Write the nearest pixels, chosen as torch's ``nearest`` chooses them."""
    rows, columns = (
        _nearest(source.shape[axis], size[axis], first[axis], target.shape[axis])
        for axis in range(2)
    )
    target[...] = source[rows].take(columns, axis=1)


def _nearest(length: int, resized: int, first: int, count: int) -> np.ndarray:
    """Return which pixels of the source an axis shows; in float32, as torch calculates."""
    scale = np.float32(length) / np.float32(resized)
    indices = np.arange(first, first + count, dtype=np.float32) * scale
    return np.minimum(indices.astype(np.int64), length - 1)


def _put(values: np.ndarray, target: np.ndarray) -> None:
    """Write values into an array of perhaps another dtype: rounded, and within its range."""
    if target.dtype.kind == "u" and values.dtype.kind == "f":
        values = np.clip(np.rint(values), 0, np.iinfo(target.dtype).max)
    target[...] = values
