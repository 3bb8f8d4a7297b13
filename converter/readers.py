"""Turn a source file into the array imageio returns for it."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable
from enum import Flag
from typing import NamedTuple

import imageio.v3 as iio
import numpy as np
import PIL.Image
from imageio.config import known_extensions

from converter.errors import UnreadableError

try:
    import simplejpeg

    HAS_SIMPLEJPEG = True
except ImportError:  # optional: replaces Pillow's JPEG decoding, 1.4 times as fast
    HAS_SIMPLEJPEG = False

JPEG_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif"})
PLUGINS = ("pillow", "tifffile")  # the imageio plugins whose packages are always installed
LONGEST_HEAD = 1 << 16  # looked at before the segments of a JPEG are taken apart
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: Gives a writable buffer of that many bytes for the pixels to be decoded into.
Allocate = Callable[[int], memoryview]


class Note(Flag):
    """What a reader did to an image that its user may not expect."""

    NONE = 0
    PALETTE = 1
    FRAMES = 2


class Image(NamedTuple):
    """An array and what was noticed while reading it."""

    array: np.ndarray
    note: Note


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as the converter does when no ``my_read`` is asked for.

    Returns
    -------
    numpy.ndarray
        ``(H, W)`` or ``(H, W, C)``, RGB order; ``(N, H, W[, C])`` for several frames or pages.
        The array of ``imageio.v3.imread(path, plugin=plugin_of(extension))``, but for PNGs of
        16 bits a channel in colour, which Pillow would cut to 8 bits: these keep their uint16.

    Raises
    ------
    UnreadableError
        More than ``2 * PIL.Image.MAX_IMAGE_PIXELS`` pixels (Pillow's limit against
        decompression bombs), or 16-bit colour PNG without OpenCV.
    Exception
        Whatever imageio's plugin raises for a damaged file.
    """
    return read_noted(os.fspath(path)).array


def read_noted(path: str, allocate: Allocate | None = None) -> Image:
    """Read as `read_image` does; decode into ``allocate(nbytes)`` where the decoder can."""
    extension = path.rpartition(".")[2].lower()
    if extension in JPEG_EXTENSIONS and jpeg_decoders_agree():
        data = _read_bytes(path)
        array = _decode_jpeg(data, allocate)
        if array is not None:
            return Image(array, Note.FRAMES if _has_more_pictures(data) else Note.NONE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _read_with_imageio(path, plugin_of(extension))


@functools.cache
def plugin_of(extension: str) -> str | None:
    """Return imageio's first choice among `PLUGINS` for an extension, or None: its own search."""
    for config in known_extensions.get("." + extension, ()):
        for name in config.priority:
            if name in PLUGINS:
                return str(name)
    return None


@functools.cache
def jpeg_decoders_agree() -> bool:
    """Tell whether simplejpeg is there and gives Pillow's pixels on this machine.

    The two may be built on different libjpegs, whose colour upsampling differs. So both
    decode a small noisy image in each subsampling once a process (3 ms).
    """
    if not HAS_SIMPLEJPEG:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (35, 43, 3), dtype=np.uint8)
    smooth = np.cumsum(noise, axis=1, dtype=np.uint8)
    samples = [
        simplejpeg.encode_jpeg(smooth, quality, "RGB", subsampling)
        for quality, subsampling in ((50, "420"), (90, "422"), (95, "444"))
    ]
    samples.append(simplejpeg.encode_jpeg(smooth[:, :, :1].copy(), 80, "GRAY", "Gray"))
    for data in samples:
        array = _decode_jpeg(data, None)
        if array is None or not np.array_equal(array, iio.imread(data, plugin="pillow")):
            return False
    return True


def _decode_jpeg(data: bytes, allocate: Allocate | None) -> np.ndarray | None:
    """Decode with simplejpeg, strictly; None where only imageio can say what the pixels are."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray"):
            return None
        _refuse_too_large(height * width)
        channels = 3 if colorspace == "YCbCr" else 1
        buffer = allocate(height * width * channels) if allocate else None
        array: np.ndarray = simplejpeg.decode_jpeg(
            data, "RGB" if channels == 3 else "GRAY", buffer=buffer, strict=True
        )
    except ValueError:
        return None
    return array if channels == 3 else array[:, :, 0]


def _has_more_pictures(data: bytes) -> bool:
    """Tell whether a JPEG has the index of a multi-picture file (CIPA DC-007): an APP2 "MPF"."""
    if b"MPF\0" not in data[:LONGEST_HEAD]:
        return False
    place = 2
    while data[place] == 0xFF and data[place + 1] != 0xDA:  # up to the start of scan
        if data[place + 1] == 0xE2 and data.startswith(b"MPF\0", place + 4):
            return True
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if place + 1 >= len(data):
            break
    return False


def _read_with_imageio(path: str, plugin: str | None) -> Image:
    note = Note.NONE
    if plugin != "tifffile":
        if _is_16_bit_colour_png(path):
            return Image(_read_png_16(path), note)
        if plugin == "pillow":
            note = _inspect(path)
    else:
        note = _inspect_tiff(path)
    return Image(iio.imread(path, plugin=plugin), note)  # type: ignore[arg-type]


def _inspect(path: str) -> Note:
    """Note palette and frames as Pillow sees them, from the header; refuse too many pixels."""
    note = Note.NONE
    try:
        with PIL.Image.open(path) as image:
            if image.mode == "P":
                note |= Note.PALETTE
            if getattr(image, "is_animated", False):
                note |= Note.FRAMES
    except PIL.UnidentifiedImageError:
        raise UnreadableError("not an image that Pillow knows") from None
    except PIL.Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        _refuse_too_large(int(count[0]) if count else 0, certain=True)
    return note


def _inspect_tiff(path: str) -> Note:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        pages = tiff.pages
        if not len(pages):
            return Note.NONE
        _refuse_too_large(pages.first.imagelength * pages.first.imagewidth)
        return Note.FRAMES if len(pages) > 1 else Note.NONE


def _refuse_too_large(pixels: int, *, certain: bool = False) -> None:
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if certain or (limit is not None and pixels > 2 * limit):
        raise UnreadableError(
            f"it has {pixels} pixels, more than the limit of {int(2 * (limit or 0))}: "
            f"raise it with --max_pixels={pixels} if the file can be trusted"
        )


def limit_pixels(max_pixels: int | None) -> None:
    """Refuse larger images from now on in this process; None keeps Pillow's limit.

    Pillow warns above its MAX_IMAGE_PIXELS and refuses above twice that.
    """
    if max_pixels is not None:
        PIL.Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]


def _is_16_bit_colour_png(path: str) -> bool:
    """Look at bit depth and colour type, bytes 24 and 25 of a PNG (its specification, 11.2.1)."""
    with open(path, "rb") as file:
        head = file.read(26)
    return len(head) == 26 and head.startswith(PNG_SIGNATURE) and head[24] == 16 and head[25] != 0


def _read_png_16(path: str) -> np.ndarray:
    """Read at full depth: OpenCV gives BGR, or BGRA also for gray with alpha."""
    try:
        import cv2
    except ImportError:
        raise UnreadableError(
            "16-bit colour PNG, which Pillow would cut to 8 bits: to read it at full depth, "
            "pip install opencv-python-headless"
        ) from None
    data = np.frombuffer(_read_bytes(path), np.uint8)
    channels = {2: 3, 4: 2, 6: 4}.get(int(data[25]))
    pixels = int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    _refuse_too_large(pixels)
    array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    order = {3: [2, 1, 0], 2: [0, 3], 4: [2, 1, 0, 3]}.get(channels or 0)
    if array is None or array.dtype != np.uint16 or array.ndim != 3 or order is None:
        raise UnreadableError("a damaged 16-bit colour PNG: OpenCV cannot read it")
    if max(order) >= array.shape[2]:
        raise UnreadableError("16-bit colour PNG whose channels OpenCV does not give")
    return np.ascontiguousarray(array[:, :, order])


def _read_bytes(path: str) -> bytes:
    """Read a whole file with four system calls; ``open().read()`` makes eight."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size + 1)
        while len(data) < size:  # one call returns at most 2 GiB
            more = os.read(descriptor, size - len(data))
            if not more:
                break
            data += more
        return data
    finally:
        os.close(descriptor)
