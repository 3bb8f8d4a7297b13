"""Turn a source file into an array, by the table of formats."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from converter.errors import UnreadableError
from converter.files import local_path
from converter.images import formats
from converter.images.formats import REVISION as REVISION
from converter.images.formats import decode_noted, extension_of
from converter.images.formats import refuse_unread as refuse_unread

if TYPE_CHECKING:
    import numpy as np

    from converter.images.picture import Allocate, Image, Least

IS_RGB = True


def check_installed() -> None:
    """Do nothing: the packages that the default reader needs are always installed."""


def plugins_of(extensions: Sequence[str]) -> dict[str, str | None]:
    """Return what decodes files of each extension; None where it is not in the table."""
    kinds = {name: formats.BY_EXTENSION.get(extension_of(name)) for name in extensions}
    return {name: kind.plugin if kind else None for name, kind in kinds.items()}


def prepare(extensions: Sequence[str]) -> None:
    """Import what reads files of these extensions: processes that are forked then have it."""
    for name in extensions:
        kind = formats.BY_EXTENSION.get(extension_of(name))
        if kind is not None:
            kind.prepare()


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as the converter does when no ``my_read`` is asked for.

    Returns
    -------
    numpy.ndarray
        ``(H, W)`` or ``(H, W, C)``, RGB order; ``(N, H, W[, C])`` for several frames or pages.
        docs/formats.md tells it for each format.

    Raises
    ------
    UnreadableError
        The format is not in the table, the file would lose something, or it has more than
        ``2 * PIL.Image.MAX_IMAGE_PIXELS`` pixels (Pillow's limit against decompression bombs).
    Exception
        Whatever Pillow or tifffile raise for a damaged file.
    """
    return read_noted(str(local_path(path))).array


def read_noted(path: str, allocate: Allocate | None = None, least: Least | None = None) -> Image:
    """Read as `read_image` does; decode into ``allocate(nbytes)`` where the decoder can.

    With ``least`` a JPEG may be decoded to a smaller size, as `jpeg.decode` says.
    """
    extension = extension_of(path)
    is_tiff = extension in formats.TIFF.extensions
    if is_tiff and formats.recognise(formats.magic_of(path), extension) is formats.TIFF:
        from converter.images import tiff

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tiff.decode(path)  # not from memory, for which it may be too large
    return decode_noted(read_bytes(path), extension, allocate, least)


def limit_pixels(max_pixels: int | None) -> None:
    """Refuse larger images from now on in this process; None keeps Pillow's limit.

    Pillow warns above its MAX_IMAGE_PIXELS and refuses above twice that.
    """
    if max_pixels is not None:
        import PIL.Image

        from converter.images import jpeg

        if jpeg.decoders_agree():  # tries them on an image that may be larger, once
            jpeg.reducing_agrees()
        PIL.Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]


def read_bytes(path: str) -> bytes:
    """Read a whole file with four system calls; ``open().read()`` makes eight."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        data = os.read(descriptor, size + 1)
        # one call returns at most 2 GiB
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def read_into(path: str, allocate: Allocate) -> memoryview:
    """Read a whole file into ``allocate(nbytes)``.

    Raises UnreadableError when its size changes meanwhile: it would be stored in part.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        size = os.fstat(descriptor).st_size
        target, behind = allocate(size), bytearray(1)
        done = _read_some(descriptor, target, behind)
        # one call returns at most 2 GiB
        while done < size and (count := _read_some(descriptor, target[done:], behind)):
            done += count
        if done != size:
            raise UnreadableError("it changed while it was read")
        return target
    finally:
        os.close(descriptor)


def _read_some(descriptor: int, target: memoryview, behind: bytearray) -> int:
    """Fill a buffer, and one more byte where there is one: a file must end with the first."""
    if hasattr(os, "readv"):
        return os.readv(descriptor, [target, behind])
    with io.FileIO(descriptor, closefd=False) as file:  # Windows
        count = file.readinto(target)
        return count if count < len(target) else count + file.readinto(behind)
