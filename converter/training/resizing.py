"""Write the cut of one image into its row of a batch: resized, padded, mirrored."""

from __future__ import annotations

import ctypes
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from converter.training.crops import CropError, Cut

#: Interpolated by torch as they are.
NATIVE_DTYPES = frozenset({np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64)})
#: Interpolated as float32, which holds each of their values.
WIDENED_DTYPES = frozenset({np.dtype(np.uint16), np.dtype(np.float16)})


class Resizer:
    """Fills rows of a batch. It has memory of its own: make one for each thread.

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
            The box that the cut names, and nothing else; may be strided and read-only.
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
        target, source = _with_channels(target), _with_channels(source)
        if source.shape[2] != target.shape[2]:
            source = _adapt(source, target.shape[2])
        rows = _shown(target.shape[0], cut.resized_height, cut.window_top)
        columns = _shown(target.shape[1], cut.resized_width, cut.window_left)
        if len(rows) < target.shape[0] or len(columns) < target.shape[1]:
            _pad(target, fill)
            if not rows or not columns:
                return
        first = rows.start + cut.window_top, columns.start + cut.window_left
        if vflip:
            rows = range(target.shape[0] - rows.stop, target.shape[0] - rows.start)
        if hflip:
            columns = range(target.shape[1] - columns.stop, target.shape[1] - columns.start)
        shown = target[rows.start : rows.stop, columns.start : columns.stop]
        size = cut.resized_height, cut.resized_width
        if size == source.shape[:2]:
            _copy(_window(source, first, shown.shape), shown, hflip=hflip, vflip=vflip)
            return
        view = _View(size, first, hflip, vflip)
        if nearest:
            _pick(source, shown, view)
        else:
            self._interpolate(source, shown, view)

    def _interpolate(self, source: np.ndarray, target: np.ndarray, view: _View) -> None:
        dtype = target.dtype
        if dtype not in NATIVE_DTYPES and dtype not in WIDENED_DTYPES:
            raise CropError(
                f"arrays of {dtype} cannot be interpolated, only uint8, uint16, float16, float32 "
                "and float64: give them as masks, or use a crop that does not resize"
            )
        library = _torch() if self.antialias else _opencv()
        working = dtype if dtype in NATIVE_DTYPES else np.dtype(np.float32)
        if self.antialias and view.size[1] == 1 and working == np.uint8:
            working = np.dtype(np.float32)  # torch 2.14 gives wrong bytes for a width of 1
        box = self._source.array(source.shape, working)
        box[...] = source
        is_whole = view.size == target.shape[:2] and target.flags.c_contiguous
        if working == dtype and is_whole and not view.hflip and not view.vflip:
            library.resize(box, target)
            return
        result = self._result.array((*view.size, source.shape[2]), working)
        library.resize(box, result)
        values = _window(result, view.first, target.shape)
        if view.hflip:
            values = library.mirror(values)
        _put(values[::-1] if view.vflip else values, target)


class _View(NamedTuple):
    """What of a resized box is shown: it has this ``size``, and the view begins at ``first``."""

    size: tuple[int, int]
    first: tuple[int, int]
    hflip: bool
    vflip: bool


class _Scratch:
    """Memory that is used again for each row; grows to the largest."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes > self._memory.nbytes:
            self._memory = np.empty(nbytes, np.uint8)
        return self._memory[:nbytes].view(dtype).reshape(shape)


def _with_channels(array: np.ndarray) -> np.ndarray:
    return array[:, :, None] if array.ndim == 2 else array


def _adapt(source: np.ndarray, channels: int) -> np.ndarray:
    """Return gray in as many channels as are wanted, or colours without alpha."""
    if source.shape[2] == channels + 1:
        return source[:, :, :channels]
    if source.shape[2] == 1:
        return np.broadcast_to(source, (*source.shape[:2], channels))
    raise CropError(
        f"an image has {source.shape[2]} channels where the batch has {channels}: "
        "channels=3 makes them equal"
    )


def _shown(side: int, resized: int, start: int) -> range:
    """Return which pixels of one axis of the row show the image; the others are padding."""
    return range(max(0, -start), max(min(side, resized - start), max(0, -start)))


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


def _copy(source: np.ndarray, target: np.ndarray, *, hflip: bool, vflip: bool) -> None:
    source = source[::-1] if vflip else source
    if not hflip:
        target[...] = source
        return
    for channel in range(target.shape[2]):  # numpy mirrors 3 channels at a quarter of the speed
        target[:, :, channel] = source[:, ::-1, channel]


def _pick(source: np.ndarray, target: np.ndarray, view: _View) -> None:
    """Write the nearest pixels, chosen as torch's ``nearest`` chooses them."""
    rows, columns = (
        _nearest(source.shape[axis], view.size[axis], view.first[axis], target.shape[axis])
        for axis in range(2)
    )
    rows = rows[::-1] if view.vflip else rows
    columns = columns[::-1] if view.hflip else columns
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


class _Torch:
    """Interpolates by torch, in the thread that calls it."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._set_threads = _set_openmp_threads(torch)
        operator = torch.ops.aten._upsample_bilinear2d_aa
        self._resize, self._resize_into = operator.default, operator.out

    def resize(self, source: np.ndarray, target: np.ndarray) -> None:
        """Resize one contiguous ``(H, W, C)`` array into another of its dtype."""
        torch = self._torch
        image = torch.from_numpy(source).permute(2, 0, 1).unsqueeze(0)
        out = torch.from_numpy(target).permute(2, 0, 1).unsqueeze(0)
        size = target.shape[:2]
        threads = torch.get_num_threads()
        self._set_threads(1)
        try:
            if size[1] == 1:  # `out` with the strides of such an array gets wrong numbers
                out.copy_(self._resize(image.contiguous(), size, False))
            else:
                self._resize_into(image, size, False, None, None, out=out)
        finally:
            self._set_threads(threads)

    def mirror(self, values: np.ndarray) -> np.ndarray:
        """Return an ``(H, W, C)`` array mirrored left to right."""
        torch = self._torch
        threads = torch.get_num_threads()
        self._set_threads(1)
        try:
            image = torch.from_numpy(values).permute(2, 0, 1).unsqueeze(0)
            mirrored: np.ndarray = torch.flip(image, (3,))[0].permute(1, 2, 0).numpy()
        finally:
            self._set_threads(threads)
        return mirrored


class _OpenCV:
    """Interpolates by OpenCV."""

    def __init__(self) -> None:
        import cv2

        self._cv2 = cv2

    def resize(self, source: np.ndarray, target: np.ndarray) -> None:
        """Resize one contiguous ``(H, W, C)`` array into another of its dtype."""
        height, width, _ = target.shape
        cv2 = self._cv2
        cv2.resize(source, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)

    def mirror(self, values: np.ndarray) -> np.ndarray:
        """Return an ``(H, W, C)`` array mirrored left to right."""
        mirrored: np.ndarray = self._cv2.flip(values, 1)
        return mirrored.reshape(values.shape)


def _set_openmp_threads(torch: Any) -> Callable[[int], object]:
    """Return OpenMP's ``omp_set_num_threads``, of the library that torch uses.

    It is a setting of the calling thread alone, unlike `torch.set_num_threads`. Where it cannot be
    found, torch divides each resize between its threads.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        function = ctypes.PyDLL(os.fspath(library)).omp_set_num_threads
    except (OSError, AttributeError):
        return lambda count: None
    function.argtypes, function.restype = [ctypes.c_int], None
    return function


@functools.cache
def _torch() -> _Torch:
    try:
        return _Torch()
    except ImportError as error:
        raise CropError(
            "a crop that resizes needs torch, or OpenCV with antialias=False: pip install torch"
        ) from error


@functools.cache
def _opencv() -> _OpenCV:
    try:
        return _OpenCV()
    except ImportError as error:
        raise CropError(
            "a crop with antialias=False needs OpenCV: pip install opencv-python-headless"
        ) from error
