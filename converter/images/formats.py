"""The table of formats that the default reader reads, each by the plugin named for it.

A format is in it if tests/sources/test_formats.py proves that values, depth, channels and frames
come through whole. The first bytes of a file decide what it is; the extension does so only for
TGA, which has no such bytes. `others` knows what is not in the table, and who reads it.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from converter.errors import ConverterError, UnreadableError, describe
from converter.images import others

if TYPE_CHECKING:
    from converter.images.picture import Allocate, Bytes, Image, Least, Resized
    from converter.samples import Note

#: Counts up whenever a file may come out as another array than before, or as a failure.
REVISION = 1


class Format(NamedTuple):
    """A format: what decodes and encodes it, its extensions, and how its files begin.

    ``module`` is one of this folder, which is imported with the first file of the format: most
    folders hold one format. Its functions are ``decode`` and ``encode``, with ``suffix`` behind.
    """

    name: str
    plugin: str
    extensions: tuple[str, ...]
    module: str
    magic: re.Pattern[bytes]
    suffix: str = ""

    def decode(self, data: Bytes) -> Image:
        """Return the image in the bytes of a file."""
        image: Image = self._function("decode")(data)
        return image

    def encode(self, data: Bytes, resized: Resized) -> bytes:
        """Return what a file becomes: ``data`` are the bytes before."""
        encoded: bytes = self._function("encode")(data, resized)
        return encoded

    def prepare(self) -> None:
        """Import what is needed for it, and have it do what it does once."""
        module = self._module()
        if self is JPEG:
            module.decoders_agree()

    def _function(self, name: str) -> Any:
        return getattr(self._module(), name + self.suffix)

    def _module(self) -> Any:
        return import_module(f"converter.images.{self.module}")


JPEG = Format(  # FF D8 FF F7 is JPEG-LS
    "JPEG",
    "pillow",
    ("jpg", "jpeg", "jpe", "jfif", "mpo"),
    "jpeg",
    re.compile(rb"\xff\xd8\xff(?!\xf7)"),
)
PNG = Format("PNG", "pillow", ("png", "apng"), "png", re.compile(rb"\x89PNG\r\n\x1a\n"))
GIF = Format("GIF", "pillow", ("gif",), "gif", re.compile(rb"GIF8[79]a"))
WEBP = Format(
    "WebP", "pillow", ("webp",), "bitmaps", re.compile(rb"(?s:RIFF....WEBP)"), suffix="_webp"
)
BMP = Format("BMP", "pillow", ("bmp", "dib"), "bitmaps", re.compile(rb"BM"), suffix="_bmp")
TIFF = Format("TIFF", "tifffile", ("tif", "tiff"), "tiff", re.compile(rb"II[*+]\0|MM\0[*+]"))
PNM = Format(
    "PNM",
    "numpy",
    ("pbm", "pgm", "ppm", "pnm", "pam", "pfm"),
    "pnm",
    re.compile(rb"P(?:[1-6][\s#]|7\s|[fF]\s)"),
)
TGA = Format("TGA", "pillow", ("tga",), "bitmaps", re.compile(rb"(?!)"), suffix="_tga")  # none
FORMATS = (JPEG, PNG, GIF, WEBP, BMP, TIFF, PNM, TGA)
BY_EXTENSION = {extension: kind for kind in FORMATS for extension in kind.extensions}

LONGEST_HEAD = others.LONGEST_HEAD


def extension_of(name: str) -> str:
    """Return an extension in lower case, without the dot."""
    return name.rpartition(".")[2].lower()


def decode_noted(
    data: Bytes, extension: str, allocate: Allocate | None = None, least: Least | None = None
) -> Image:
    """Decode the content of a file, into ``allocate(nbytes)`` where the decoder can.

    With ``least`` a JPEG may be decoded to a smaller size, as `jpeg.decode` says.
    """
    kind = recognise(bytes(data[:LONGEST_HEAD]), extension)
    image: Image | None = None
    if kind is JPEG:
        image = _jpeg().decode_fast(data, allocate, least)
    if image is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _jpeg().decode(data, least) if kind is JPEG else _decoded(kind, data)
    return image


def check_noted(data: Bytes, extension: str, allocate: Allocate | None = None) -> Note:
    """Raise what `decode_noted` raises, or return what it notes: no pixels are wanted."""
    kind = recognise(bytes(data[:LONGEST_HEAD]), extension)
    if kind is JPEG and _jpeg().is_whole(data, allocate):
        note: Note = _jpeg().note_of(data)
        return note
    return decode_noted(data, extension, allocate).note


@functools.cache
def _jpeg() -> ModuleType:
    """Return the module: `import` takes 1 us for each file."""
    module: ModuleType = JPEG._module()
    return module


def decode_image(data: Bytes, extension: str) -> np.ndarray:
    """Decode as `decode_noted` does, in any thread; return the array alone.

    It does not hide warnings, because that is not safe in threads.
    """
    kind = recognise(bytes(data[:LONGEST_HEAD]), extension)
    array: np.ndarray | None = _jpeg().pixels(data) if kind is JPEG else None
    return _decoded(kind, data).array if array is None else array


def _decoded(kind: Format, data: Bytes) -> Image:
    """Decode; Pillow's bools are bytes of 0 and 255, which torch and others count wrong."""
    image = kind.decode(data)
    if image.array.dtype == bool:
        return image._replace(array=np.ascontiguousarray(image.array).view(np.uint8) != 0)
    return image


def encode_again(data: Bytes, extension: str, resized: Resized) -> bytes:
    """Return what a file becomes when its picture was resized: a file of the same format.

    JPEG, and WebP that was lossy, are encoded with ``resized.quality``. Any other format holds the
    array exactly, which is tried. The colour profile (ICC), the orientation (EXIF) and a palette
    are kept; the rest that described the picture is left out.

    Raises UnreadableError where the format cannot hold the array, and for animations.
    """
    kind = recognise(bytes(data[:LONGEST_HEAD]), extension)
    is_lossy = kind is JPEG or (kind is WEBP and _is_lossy_webp(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encoded = kind.encode(data, resized)
            if not is_lossy:
                _check_same(_decoded(kind, encoded).array, resized.array)
        except Exception as error:
            why = str(error) if isinstance(error, UnreadableError) else describe(error)
            raise UnreadableError(
                f"resized, it cannot be encoded as {kind.name} again ({why}): --store=array stores "
                "its array"
            ) from error
    return encoded


def _is_lossy_webp(data: Bytes) -> bool:
    from converter.images.bitmaps import is_lossy_webp

    return is_lossy_webp(data)


def _check_same(decoded: np.ndarray, array: np.ndarray) -> None:
    """Raise UnreadableError for other values; alpha that is opaque may be left out."""
    opaque_shape = (*array.shape[:-1], array.shape[-1] - 1)
    if decoded.shape == opaque_shape and (array[..., -1] == 255).all():
        array = array[..., :-1]
    if (decoded.shape, decoded.dtype) != (array.shape, array.dtype):
        raise UnreadableError(
            f"its array {array.shape} {array.dtype} would be {decoded.shape} {decoded.dtype}"
        )
    if decoded.tobytes() != array.tobytes():  # NaN is not equal to itself
        raise UnreadableError("it would hold other values")


def recognise(head: bytes, extension: str) -> Format:
    """Return the format of a file by its first bytes, of which `LONGEST_HEAD` are enough.

    Raises UnreadableError, with the cure, for a format that is not in the table.
    """
    kind = _known(head)
    if kind is None and extension in TGA.extensions:
        return TGA
    is_canon_raw = kind is TIFF and head.startswith(others.CANON_RAW, 4)
    if kind is not None and not is_canon_raw:
        return kind
    if not head:
        raise UnreadableError("an empty file")
    other = others.BY_EXTENSION["cr2"] if is_canon_raw else others.recognise(head)
    named = others.BY_EXTENSION.get(extension)
    if other is None and named is not None and not named.magic:  # else it would have been found
        other = named
    if other is not None:
        raise UnreadableError(f"it is {other.name}, not read by default: {other.cure}")
    what = others.UNKNOWN
    if extension in BY_EXTENSION:
        what = f"it is damaged, or not a {BY_EXTENSION[extension].name} file"
    raise UnreadableError(f"not an image that the default reader knows, by its first bytes: {what}")


def _known(head: bytes) -> Format | None:
    for kind in FORMATS:
        if kind.magic.match(head):
            return kind
    return None


def other_of(name: str) -> others.Other | None:
    """Return the format that an extension names, if it is one that is not read."""
    return others.BY_EXTENSION.get(name, others.BY_EXTENSION.get(extension_of(name)))


def refuse_unread(extensions: Iterable[str], *, store: str) -> None:
    """Raise ConverterError for an extension whose files the default reader cannot read."""
    for name in extensions:
        extension, other = extension_of(name), other_of(name)
        if extension in BY_EXTENSION:
            continue
        if store == "encoded":
            raise ConverterError(
                f"--ext={name} names files that the default reader cannot decode: add "
                "--skip_decode_check to store them as they are, unchecked"
            )
        import difflib  # few need it

        what = f"{other.name}: {other.cure}" if other else others.UNKNOWN
        meant = difflib.get_close_matches(extension, BY_EXTENSION, n=1)
        if other is None and meant:
            what = f"did you mean --ext={meant[0]}? Else {what}"
        raise ConverterError(
            f"--ext={name} names files that the default reader does not read: {what}"
        )


def magic_of(path: str | os.PathLike[str]) -> bytes:
    """Return the first bytes of a file."""
    with open(path, "rb") as file:
        return file.read(LONGEST_HEAD)
