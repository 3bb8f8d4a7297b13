"""The table of formats that the default reader reads, each by the plugin named for it.

A format is in it where tests/test_formats.py proves that values, depth, channels and frames
come through whole. What a file is, its first bytes decide, and its extension only for TGA,
which has none of its own. `others` knows what is not in the table, and who reads it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from converter.errors import ConverterError, UnreadableError
from converter.images import bitmaps, gif, jpeg, others, png, pnm, tiff
from converter.images.picture import Allocate, Bytes, Image

#: Counts up whenever a file may come out as another array than before, or as a failure.
REVISION = 1


class Format(NamedTuple):
    """A format: what decodes it, and the extensions it is known by."""

    name: str
    plugin: str
    extensions: tuple[str, ...]
    decode: Callable[[Bytes], Image]


JPEG = Format("JPEG", "pillow", ("jpg", "jpeg", "jpe", "jfif", "mpo"), jpeg.decode)
PNG = Format("PNG", "pillow", ("png", "apng"), png.decode)
GIF = Format("GIF", "pillow", ("gif",), gif.decode)
WEBP = Format("WebP", "pillow", ("webp",), bitmaps.decode_webp)
BMP = Format("BMP", "pillow", ("bmp", "dib"), bitmaps.decode_bmp)
TIFF = Format("TIFF", "tifffile", ("tif", "tiff"), tiff.decode)
PNM = Format("PNM", "numpy", ("pbm", "pgm", "ppm", "pnm", "pam", "pfm"), pnm.decode)
TGA = Format("TGA", "pillow", ("tga",), bitmaps.decode_tga)
FORMATS = (JPEG, PNG, GIF, WEBP, BMP, TIFF, PNM, TGA)
BY_EXTENSION = {extension: kind for kind in FORMATS for extension in kind.extensions}

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LONGEST_HEAD = others.LONGEST_HEAD


def extension_of(name: str) -> str:
    """Return an extension in lower case, without the dot."""
    return name.rpartition(".")[2].lower()


def plugin_of(extension: str) -> str | None:
    """Return what reads files of an extension; None for one that is not in the table."""
    kind = BY_EXTENSION.get(extension_of(extension))
    return kind.plugin if kind else None


def decode_noted(data: Bytes, extension: str, allocate: Allocate | None = None) -> Image:
    """Decode what a file of that extension holds, into ``allocate(nbytes)`` where it can be."""
    kind = recognise(bytes(data[:LONGEST_HEAD]), extension)
    if kind is JPEG and (image := jpeg.decode_fast(data, allocate)):
        return image
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decoded(kind, data)


def decode_image(data: Bytes, extension: str) -> np.ndarray:
    """Decode as `decode_noted` does, noticing nothing; in any thread.

    Warnings are the caller's to see: keeping them back is not safe in threads.
    """
    return _decoded(recognise(bytes(data[:LONGEST_HEAD]), extension), data).array


def _decoded(kind: Format, data: Bytes) -> Image:
    """Decode; Pillow's bools are bytes of 0 and 255, which torch and others count wrong."""
    image = kind.decode(data)
    if image.array.dtype == bool:
        return image._replace(array=np.ascontiguousarray(image.array).view(np.uint8) != 0)
    return image


def recognise(head: bytes, extension: str) -> Format:
    """Return the format of a file by its first bytes, of which `LONGEST_HEAD` are enough.

    Raises UnreadableError, with the cure, for a format that is not in the table.
    """
    kind = _own(head)
    if kind is None and extension in TGA.extensions:
        return TGA
    other = others.recognise(head) if kind is None else None
    if kind is TIFF and head.startswith(others.CANON_RAW, 4):
        other = others.BY_EXTENSION["cr2"]
    if other is None and kind is not None:
        return kind
    if not head:
        raise UnreadableError("an empty file")
    if other is None:
        other = others.BY_EXTENSION.get(extension)
        if other is not None and other.magic:  # what it is called, it is not
            other = None
    if other is None and extension in BY_EXTENSION:
        raise UnreadableError(
            "not an image that the default reader knows, by its first bytes: damaged, or no "
            f"{BY_EXTENSION[extension].name}"
        )
    if other is None:
        raise UnreadableError(
            f"not an image that the default reader knows, by its first bytes: {others.UNKNOWN}"
        )
    raise UnreadableError(f"it is {other.name}, not read by default: {other.cure}")


def _own(head: bytes) -> Format | None:
    if head.startswith(b"\xff\xd8\xff") and head[3:4] != b"\xf7":  # that is JPEG-LS
        return JPEG
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(TIFF_MAGIC):
        return TIFF
    if head.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WEBP
    if head.startswith(b"BM"):
        return BMP
    return PNM if pnm.MAGIC.match(head) else None


def refuse_unread(extensions: Iterable[str], *, reader: str, store: str) -> None:
    """Raise ConverterError for extensions of which no file can be read."""
    for name in extensions:
        extension = extension_of(name)
        other = others.BY_EXTENSION.get(name, others.BY_EXTENSION.get(extension))
        if reader == "opencv":
            is_read = other is None or extension in OPENCV_READS
        else:
            is_read = extension in BY_EXTENSION
        if is_read:
            continue
        if store == "encoded":
            raise ConverterError(
                f"--ext={name} names files that the default reader cannot decode: add "
                "--skip_decode_check, which stores them as they are without a look"
            )
        what = f"{other.name}: {other.cure}" if other else others.UNKNOWN
        who = "OpenCV" if reader == "opencv" else "the default reader"
        raise ConverterError(f"--ext={name} names files that {who} does not read: {what}")


OPENCV_READS = frozenset({"jp2", "j2k", "avif", "exr", "hdr", "pic", "ras", "sr"})


def magic_of(path: str | os.PathLike[str]) -> bytes:
    """Return the first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(LONGEST_HEAD)
