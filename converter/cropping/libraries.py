"""Interpolate and mirror by torch or OpenCV, without changing a setting of either."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from converter.cropping.geometry import CropError


class Torch:
    """Interpolates by torch, in the thread that calls it."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self._from_numpy = torch.from_numpy
        self._set_threads = _set_openmp_threads(torch)
        # as torch's own `interpolate` calls it: half the time of torch.ops.aten's way to the same
        self._resize: Any = torch._C._nn._upsample_bilinear2d_aa

    def takes(self, source: np.ndarray) -> bool:
        """Tell whether an array can be resized as it lies: here it must be copied first."""
        return False

    def resize(self, source: np.ndarray, target: np.ndarray) -> None:
        """Resize one contiguous ``(H, W, C)`` array into another of its dtype."""
        image, out, size = self._tensor(source), self._tensor(target), target.shape[:2]
        threads = self._torch.get_num_threads()
        self._set_threads(1)
        try:
            if size[1] == 1:  # `out` with the strides of such an array gets wrong numbers
                out.copy_(self._resize(image.contiguous(), size, False))
            else:
                self._resize(image, size, False, None, None, out=out)
        finally:
            self._set_threads(threads)

    def mirror(self, row: np.ndarray, hflip: bool, vflip: bool) -> None:
        """Mirror a contiguous ``(H, W, C)`` array where it is."""
        if "cv2" in sys.modules:  # loaded anyway: a row of 224x224 takes it 5 us, torch 23
            opencv_library().mirror(row, hflip, vflip)
            return
        pixels = row.view(np.uint8)
        axes = [axis for axis, is_flipped in ((0, vflip), (1, hflip)) if is_flipped]
        threads = self._torch.get_num_threads()
        self._set_threads(1)
        try:
            # copied back by numpy: 4 us of a row of 224x224, by torch 10
            pixels[...] = self._torch.flip(self._from_numpy(pixels), axes).numpy()
        finally:
            self._set_threads(threads)

    def _tensor(self, array: np.ndarray) -> Any:
        """Return a contiguous ``(H, W, C)`` array as ``(1, C, H, W)`` in channels_last."""
        height, width, channels = array.shape
        one = array.itemsize
        strides = array.nbytes, one, width * channels * one, channels * one
        shape = 1, channels, height, width
        # numpy makes such a view in half of the time of torch's as_strided
        return self._from_numpy(np.ndarray(shape, array.dtype, array, 0, strides))


class OpenCV:
    """Interpolates by OpenCV."""

    def __init__(self) -> None:
        import cv2

        self._resize, self._flip = cv2.resize, cv2.flip
        self._linear = cv2.INTER_LINEAR

    def takes(self, source: np.ndarray) -> bool:
        """Tell whether an array can be resized as it lies: its pixels must lie side by side."""
        channels, itemsize = source.shape[2], source.itemsize
        _, of_column, of_channel = source.strides
        is_dense = of_channel == itemsize or channels == 1
        return is_dense and of_column == channels * itemsize and source.flags.aligned

    def resize(self, source: np.ndarray, target: np.ndarray) -> None:
        """Resize an ``(H, W, C)`` array into a contiguous one of its dtype."""
        height, width, _ = target.shape
        self._resize(source, (width, height), target, interpolation=self._linear)

    def mirror(self, row: np.ndarray, hflip: bool, vflip: bool) -> None:
        """Mirror a contiguous ``(H, W, C)`` array where it is."""
        pixels = row.view(np.uint8)
        self._flip(pixels, -1 if hflip and vflip else int(hflip), dst=pixels)


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
def torch_library() -> Torch:
    try:
        return Torch()
    except ImportError as error:
        raise CropError(
            "a crop that resizes needs torch, or OpenCV with antialias=False: pip install torch"
        ) from error


@functools.cache
def opencv_library() -> OpenCV:
    try:
        return OpenCV()
    except ImportError as error:
        raise CropError(
            "a crop with antialias=False needs OpenCV: pip install opencv-python-headless"
        ) from error
