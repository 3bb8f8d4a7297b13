"""Turn a source file into the array imageio returns for it."""

from __future__ import annotations

import functools
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import imageio.v3 as iio
import numpy as np
import PIL.Image
from imageio.config import known_extensions

from converter.errors import UnreadableError
from converter.files import local_path
from converter.samples import Note

try:
    import simplejpeg

    HAS_SIMPLEJPEG = True
except ImportError:  # optional: replaces Pillow's JPEG decoding, 1.4 times as fast
    HAS_SIMPLEJPEG = False

JPEG_EXTENSIONS = frozenset({"jpg", "jpeg", "jpe", "jfif"})
PLUGINS = ("pillow", "tifffile")  # the imageio plugins whose packages are always installed
LONGEST_HEAD = 1 << 16  # looked at before the segments of a JPEG are taken apart
#: Of JPEG (ITU-T T.81, table B.1).
START_OF_JPEG, END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\xd9"
APP2, START_OF_SCAN = 0xE2, 0xDA
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

Bytes = bytes | bytearray | memoryview
#: Gives a writable buffer of that many bytes for the pixels to be decoded into.
Allocate = Callable[[int], memoryview]


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
    return read_noted(str(local_path(path))).array


def read_noted(path: str, allocate: Allocate | None = None) -> Image:
    """Read as `read_image` does; decode into ``allocate(nbytes)`` where the decoder can."""
    extension = extension_of(path)
    if extension in JPEG_EXTENSIONS and jpeg_decoders_agree():
        image = _decode_jpeg_noted(read_bytes(path), allocate)
        if image is not None:
            return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decode_with_imageio(path, extension)


def decode_noted(data: Bytes, extension: str, allocate: Allocate | None = None) -> Image:
    """Decode what a file of that extension holds: the array `read_noted` gives for the file."""
    if extension in JPEG_EXTENSIONS and jpeg_decoders_agree():
        image = _decode_jpeg_noted(data, allocate)
        if image is not None:
            return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decode_with_imageio(io.BytesIO(data), extension)


def decode_image(data: Bytes, extension: str) -> np.ndarray:
    """Decode as `decode_noted` does, noticing nothing; in any thread.

    Warnings are the caller's to see: keeping them back is not safe in threads.
    """
    if extension in JPEG_EXTENSIONS and jpeg_decoders_agree():
        array = _decode_jpeg(data, None)
        if array is not None:
            return array
    return _decode_with_imageio(io.BytesIO(data), extension).array


def extension_of(name: str) -> str:
    """Return what decides on the reader: lower case, without the dot."""
    return name.rpartition(".")[2].lower()


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
        try:
            array = _decode_jpeg(data, None)
        except UnreadableError:  # under a limit that allows no such image
            return False
        if array is None or not np.array_equal(array, iio.imread(data, plugin="pillow")):
            return False
    return True


def _decode_jpeg_noted(data: Bytes, allocate: Allocate | None) -> Image | None:
    array = _decode_jpeg(data, allocate)
    if array is None:
        return None
    return Image(array, Note.FRAMES if _has_more_pictures(data) else Note.NONE)


def _decode_jpeg(data: Bytes, allocate: Allocate | None) -> np.ndarray | None:
    """Decode with simplejpeg, strictly; None where only imageio can say what the pixels are."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace not in ("YCbCr", "Gray"):
            return None
        refuse_too_large(height * width)
        channels = 3 if colorspace == "YCbCr" else 1
        buffer = allocate(height * width * channels) if allocate else None
        array: np.ndarray = simplejpeg.decode_jpeg(
            data, "RGB" if channels == 3 else "GRAY", buffer=buffer, strict=True
        )
    except ValueError:
        return None
    return array if channels == 3 else array[:, :, 0]


def _has_more_pictures(data: Bytes) -> bool:
    """Tell whether a JPEG has the index of a multi-picture file (CIPA DC-007): an APP2 "MPF"."""
    if b"MPF\0" not in bytes(data[:LONGEST_HEAD]):
        return False
    data = bytes(data)
    return any(
        marker == APP2 and data.startswith(b"MPF\0", place + 4)
        for marker, place in _jpeg_segments(data)
    )


def is_cut_jpeg(data: bytes) -> bool:
    """Tell whether data is a JPEG, whatever it is called, without the end of its picture."""
    if not data.startswith(START_OF_JPEG):
        return False
    begin = len(data)
    for marker, place in _jpeg_segments(data):
        if marker == START_OF_SCAN:  # a thumbnail, with an end of its own, comes before
            begin = place
    return END_OF_IMAGE not in data[begin:]


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and place of the segments of a JPEG, up to the start of scan."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        yield data[place + 1], place
        if data[place + 1] == START_OF_SCAN:
            return
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")


def _decode_with_imageio(source: str | io.BytesIO, extension: str) -> Image:
    plugin = plugin_of(extension)
    note = Note.NONE
    if plugin == "tifffile":
        note = _inspect_tiff(source)
    elif is_16_bit_colour_png(source):
        data = read_bytes(source) if isinstance(source, str) else source.getvalue()
        return Image(_decode_png_16(data), note)
    elif plugin == "pillow":
        note = inspect(source)
    _rewind(source)
    hint = None if plugin or isinstance(source, str) else "." + extension
    array = iio.imread(source, plugin=plugin, extension=hint)  # type: ignore[arg-type]
    return Image(array, note)


def inspect(source: str | io.BytesIO) -> Note:
    """Note palette and frames as Pillow sees them, from the header.

    Raises UnreadableError for too many pixels, and for what Pillow does not know.
    """
    note = Note.NONE
    _rewind(source)
    try:
        with PIL.Image.open(source) as image:
            if image.mode == "P":
                note |= Note.PALETTE
            if getattr(image, "is_animated", False):
                note |= Note.FRAMES
    except PIL.UnidentifiedImageError:
        raise UnreadableError("not an image that Pillow knows") from None
    except PIL.Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        refuse_too_large(int(count[0]) if count else 0, certain=True)
    return note


def _inspect_tiff(source: str | io.BytesIO) -> Note:
    import tifffile

    with tifffile.TiffFile(source) as tiff:
        pages = tiff.pages
        if not len(pages):
            raise UnreadableError("a truncated TIFF: it has no page")
        refuse_too_large(pages.first.imagelength * pages.first.imagewidth)
        if tiff.is_ome and not isinstance(source, str):
            _refuse_several_files(tiff)
        return Note.FRAMES if len(pages) > 1 else Note.NONE


def _refuse_several_files(tiff: Any) -> None:
    """Refuse an OME-TIFF whose pages are partly in other files, which are not at hand."""
    if any(page is None for series in tiff.series for page in series.pages):
        raise UnreadableError(
            "an OME-TIFF whose pages are in several files, which only the array store can join: "
            "take --store=array"
        )


def _rewind(source: str | io.BytesIO) -> None:
    if not isinstance(source, str):
        source.seek(0)


def refuse_too_large(pixels: int, *, certain: bool = False) -> None:
    """Raise UnreadableError above the limit on pixels; in any case where that is certain."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if certain or (limit is not None and pixels > 2 * limit):
        raise UnreadableError(
            f"it has {pixels} pixels, more than the limit of {int(2 * (limit or 0))}: if the file "
            f"can be trusted, raise it with --max_pixels={pixels} (in Python: "
            f"PIL.Image.MAX_IMAGE_PIXELS = {math.ceil(pixels / 2)})"
        )


def limit_pixels(max_pixels: int | None) -> None:
    """Refuse larger images from now on in this process; None keeps Pillow's limit.

    Pillow warns above its MAX_IMAGE_PIXELS and refuses above twice that.
    """
    if max_pixels is not None:
        jpeg_decoders_agree()  # which tries them on an image that may be larger
        PIL.Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]


def is_16_bit_colour_png(source: str | io.BytesIO) -> bool:
    """Look at bit depth and colour type, bytes 24 and 25 of a PNG (its specification, 11.2.1)."""
    if isinstance(source, str):
        with open(source, "rb") as file:
            head = file.read(26)
    else:
        head = source.getvalue()[:26]
    return len(head) == 26 and head.startswith(PNG_SIGNATURE) and head[24] == 16 and head[25] != 0


def _decode_png_16(raw: bytes) -> np.ndarray:
    """Decode at full depth: OpenCV gives BGR, or BGRA also for gray with alpha."""
    try:
        import cv2
    except ImportError:
        raise UnreadableError(
            "16-bit colour PNG, which Pillow would cut to 8 bits: to read it at full depth, "
            "pip install opencv-python-headless"
        ) from None
    data = np.frombuffer(raw, np.uint8)
    channels = {2: 3, 4: 2, 6: 4}.get(int(data[25]))
    pixels = int.from_bytes(data[16:20], "big") * int.from_bytes(data[20:24], "big")
    refuse_too_large(pixels)
    array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    order = {3: [2, 1, 0], 2: [0, 3], 4: [2, 1, 0, 3]}.get(channels or 0)
    if array is None or array.dtype != np.uint16 or array.ndim != 3 or order is None:
        raise UnreadableError("a damaged 16-bit colour PNG: OpenCV cannot read it")
    if max(order) >= array.shape[2]:
        raise UnreadableError("16-bit colour PNG whose channels OpenCV does not give")
    return np.ascontiguousarray(array[:, :, order])


def read_bytes(path: str) -> bytes:
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


def read_into(path: str, allocate: Allocate) -> memoryview:
    """Read a whole file into ``allocate(nbytes)``.

    Raises UnreadableError when its size changes meanwhile: it would be stored in part.
    """
    with io.FileIO(path) as file:
        size = os.fstat(file.fileno()).st_size
        target = allocate(size)
        done = 0
        while done < size and (count := file.readinto(target[done:])):
            done += count
        if done != size or file.read(1):
            raise UnreadableError("it changed while it was read")
        return target
