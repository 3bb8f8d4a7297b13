"""Decode JPEG: with simplejpeg where it gives Pillow's pixels, else with Pillow."""

from __future__ import annotations

import functools
import io
import math
import random
import re
from collections.abc import Iterator

import numpy as np

from converter.errors import UnreadableError
from converter.images.picture import (
    Allocate,
    Bytes,
    Image,
    Least,
    Pixels,
    Resized,
    Size,
    as_picture,
    kept_of,
    open_with_pillow,
    refuse_too_large,
    saved,
)
from converter.samples import Note

try:
    import simplejpeg

    HAS_SIMPLEJPEG = True
except ImportError:  # optional: replaces Pillow's JPEG decoding, 1.4 times as fast
    HAS_SIMPLEJPEG = False

FACTORS = (8, 4, 2)
LEAST_REDUCED = 64  # pixels a side: of less, two factors may give the same size
#: Of a longer file the segments are looked at sooner than all of it.
QUICKLY_SEARCHED_NBYTES = 4096
MULTI_PICTURE = re.compile(rb"MPF\0")  # found in half the time that `in` takes
#: Of JPEG (ITU-T T.81, table B.1).
START_OF_JPEG, END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\xd9"
APP2, START_OF_SCAN = 0xE2, 0xDA
FRAME_HEADERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


def decode(data: Bytes, least: Least | None = None) -> Image:
    """Return ``(H, W)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` CMYK, uint8; the first picture.

    Where ``least`` names a size, the file is decoded to the smallest of 1/8, 1/4, 1/2 and all of
    its size that is not smaller, as `PIL.Image.Image.draft` does.
    """
    image = decode_fast(data, least=least)
    return _decode_with_pillow(data, least) if image is None else image


def encode(data: Bytes, resized: Resized) -> bytes:
    """Return a JPEG of gray, RGB or CMYK; of several pictures in a file the first."""
    with open_with_pillow(data, "JPEG") as image:
        kept, is_cmyk = kept_of(image), image.mode == "CMYK"
    picture = as_picture(resized.array, "CMYK" if is_cmyk else None)
    return saved(picture, "JPEG", quality=resized.quality, **kept)


def reducible_shape(data: Bytes) -> tuple[int, ...] | None:
    """Return the shape `decode` gives, by the header alone; None where `decode_reduced` cannot.

    Raises UnreadableError for too many pixels.
    """
    if not (bytes(data[:3]) == START_OF_JPEG and decoders_agree()):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace not in ("YCbCr", "Gray") or min(height, width) < LEAST_REDUCED:
        return None
    refuse_too_large(height * width)
    return (height, width, 3) if colorspace == "YCbCr" else (height, width)


def decode_reduced(data: Bytes, factor: int, allocate: Allocate | None = None) -> np.ndarray | None:
    """Decode to a half, a quarter or an eighth of the size, rounded up; None where it is damaged.

    For data that has a `reducible_shape`. libjpeg calculates fewer coefficients, which averages
    pixels: it takes 0.4 to 0.6 of the time. The last row and column may stand for fewer pixels.
    """
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    size = -(-height // factor), -(-width // factor)
    channels = 3 if colorspace == "YCbCr" else 1
    buffer = allocate(size[0] * size[1] * channels) if allocate else None
    try:
        array: np.ndarray = simplejpeg.decode_jpeg(
            data,
            "RGB" if channels == 3 else "GRAY",
            min_height=size[0],
            min_width=size[1],
            buffer=buffer,
            strict=True,
        )
    except ValueError:
        return None
    if array.shape[:2] != size:
        return None
    return array if channels == 3 else array[:, :, 0]


def is_whole(data: Bytes, allocate: Allocate | None = None) -> bool:
    """Tell whether `decode_fast` gives an image, without its pixels; False may mean not known.

    All of the data is decoded, but of each block of pixels only the mean is calculated: 0.7 of
    the time of a photo of 500 x 375, and less of a larger one.

    Raises UnreadableError for too many pixels.
    """
    if reducible_shape(data) is None:
        return False
    return decode_reduced(data, FACTORS[0], allocate) is not None


def decode_fast(
    data: Bytes, allocate: Allocate | None = None, least: Least | None = None
) -> Image | None:
    """Decode as `decode` does, into ``allocate(nbytes)``; None where only Pillow can do it.

    Gives no warnings.
    """
    size, factor = _factor(data, least) if least and decoders_agree() else (None, 1)
    if factor == 1:
        array = pixels(data, allocate)
        return None if array is None else Image(array, note_of(data))
    if reducible_shape(data) is None or not reducing_agrees():
        return None
    array = decode_reduced(data, factor, allocate)
    return None if array is None else Image(array, note_of(data), Pixels(size=size))


def _factor(data: Bytes, least: Least) -> tuple[Size | None, int]:
    """Return width and height by the header, and by how much smaller it may be decoded."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None, 1
    wanted = least((width, height))
    if wanted is None:
        return None, 1
    most = min(width // wanted[0], height // wanted[1])
    return (width, height), next((factor for factor in FACTORS if factor <= most), 1)


def pixels(data: Bytes, allocate: Allocate | None = None) -> np.ndarray | None:
    """Return the array of `decode_fast`, without looking for what it would note."""
    return _decode_with_simplejpeg(data, allocate) if decoders_agree() else None


@functools.cache
def decoders_agree() -> bool:
    """Tell whether simplejpeg is there and gives Pillow's pixels on this machine.

    The two may be built on different libjpegs, whose colour upsampling differs. So both
    decode a small noisy image in each subsampling once a process (3 ms).
    """
    if not HAS_SIMPLEJPEG:
        return False
    for data in _samples(35, 43):
        try:
            array = _decode_with_simplejpeg(data, None)
            if array is None or not np.array_equal(array, _as_pillow_decodes(data)):
                return False
        except UnreadableError:  # under a limit that allows no such image
            return False
    return True


def _as_pillow_decodes(data: bytes) -> np.ndarray:
    from PIL.JpegImagePlugin import JpegImageFile  # `PIL.Image.open` imports five formats: 12 ms

    with JpegImageFile(io.BytesIO(data)) as image:
        return np.array(image)


@functools.cache
def reducing_agrees() -> bool:
    """Tell whether `decode_reduced` gives the pixels of Pillow's `draft` on this machine."""
    for data in _samples(2 * LEAST_REDUCED + 5, 2 * LEAST_REDUCED + 19):
        for factor in FACTORS:
            try:
                drafted = _decode_with_pillow(data, _part(factor)).array
            except UnreadableError:  # under a limit that allows no such image
                return False
            array = decode_reduced(data, factor)
            if array is None or not np.array_equal(array, drafted):
                return False
    return True


def _part(factor: int) -> Least:
    return lambda size: (size[0] // factor, size[1] // factor)


def _samples(height: int, width: int) -> list[bytes]:
    """Return a small noisy image as JPEG in each subsampling."""
    shape = height, width, 3
    data = random.Random(0).randbytes(math.prod(shape))  # numpy.random takes 8 ms to import
    noise = np.frombuffer(data, np.uint8).reshape(shape)
    smooth = np.cumsum(noise, axis=1, dtype=np.uint8)
    samples = [
        simplejpeg.encode_jpeg(smooth, quality, "RGB", subsampling)
        for quality, subsampling in ((50, "420"), (90, "422"), (95, "444"))
    ]
    samples.append(simplejpeg.encode_jpeg(smooth[:, :, :1].copy(), 80, "GRAY", "Gray"))
    return samples


def _decode_with_simplejpeg(data: Bytes, allocate: Allocate | None) -> np.ndarray | None:
    """Decode with simplejpeg, strictly; None where only Pillow can say what the pixels are."""
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


def _decode_with_pillow(data: Bytes, least: Least | None = None) -> Image:
    bits = _bits_of(data)
    if bits not in (8, None):
        raise UnreadableError(
            f"a JPEG of {bits} bits a channel, which Pillow does not read: write my_read and add "
            "--custom_read_func: import imagecodecs; return imagecodecs.imread(path) "
            "(pip install imagecodecs)"
        )
    with open_with_pillow(data, "JPEG") as image:
        size = image.size
        if least and (wanted := least(size)):
            image.draft(None, wanted)
        is_smaller = image.size != size
        return Image(np.array(image), note_of(data), Pixels(size=size if is_smaller else None))


def _bits_of(data: Bytes) -> int | None:
    """Return the bits a channel that the header of the frame names."""
    data = bytes(data)
    headers = (offset for marker, offset in _segments(data) if marker in FRAME_HEADERS)
    return next((data[offset + 4] for offset in headers if offset + 4 < len(data)), None)


def note_of(data: Bytes) -> Note:
    """Note the index of a multi-picture file (CIPA DC-007): an APP2 "MPF"."""
    if len(data) <= QUICKLY_SEARCHED_NBYTES and not MULTI_PICTURE.search(data):
        return Note.NONE
    for marker, offset in _segments(data):
        if marker == APP2 and data[offset + 4 : offset + 8] == b"MPF\0":
            return Note.FIRST_PICTURE
    return Note.NONE


def is_cut(data: bytes) -> bool:
    """Tell whether data is a JPEG without the end of its picture."""
    if not data.startswith(START_OF_JPEG):
        return False
    # a thumbnail, with an end of its own, comes before
    scans = (offset for marker, offset in _segments(data) if marker == START_OF_SCAN)
    return END_OF_IMAGE not in data[next(scans, len(data)) :]


def _segments(data: Bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and offset of the segments of a JPEG, up to the start of scan."""
    offset = 2
    while offset + 4 <= len(data) and data[offset] == 0xFF:
        yield data[offset + 1], offset
        if data[offset + 1] == START_OF_SCAN:
            return
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
