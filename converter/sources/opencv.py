"""Turn a source file into the array ``cv2.imread(path)`` returns for it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image

from converter.errors import ConverterError, UnreadableError
from converter.images import jpeg, png
from converter.images.formats import extension_of, magic_of, other_of
from converter.images.picture import (
    Allocate,
    Image,
    Least,
    Pixels,
    pixels_error,
    refuse_too_large,
)
from converter.samples import Note
from converter.sources.images import read_bytes

REVISION = 0
IS_RGB = False
#: Of the extensions that the default reader does not read.
READ = frozenset({"jp2", "j2k", "avif", "exr", "hdr", "pic", "ras", "sr"})


def check_installed() -> None:
    """Raise ConverterError where OpenCV is not installed."""
    import_opencv()


def plugins_of(extensions: Sequence[str]) -> dict[str, str | None]:
    """Return nothing: OpenCV ignores extensions."""
    return {}


def refuse_unread(extensions: Sequence[str], *, store: str) -> None:
    """Raise ConverterError for an extension whose files it cannot read."""
    for name in extensions:
        other = other_of(name)
        if other is not None and extension_of(name) not in READ:
            raise ConverterError(
                f"--ext={name} names files that OpenCV does not read: {other.name}: {other.cure}"
            )


def import_opencv() -> ModuleType:
    """Return the module cv2, set to one thread: there are many workers.

    Raises ConverterError where it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConverterError(
            "--reader=opencv needs OpenCV: pip install opencv-python-headless"
        ) from error
    cv2.setNumThreads(1)
    if hasattr(cv2.utils, "logging"):  # not in every build of 4.7
        # imread's None says the same
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def read_noted(path: str, allocate: Allocate | None = None, least: Least | None = None) -> Image:
    """Read a file as OpenCV does by default.

    Returns
    -------
    Image
        ``(H, W, 3)`` uint8 in BGR order, EXIF orientation applied; the first frame or page.

    Raises
    ------
    UnreadableError
        OpenCV cannot read it; it has more pixels than Pillow's limit; or it is a truncated
        JPEG, whose missing rows OpenCV would make gray.
    """
    cv2 = import_opencv()
    note, pixels = _inspect(path)
    try:
        # not imdecode, which returns other arrays for APNG and TIFF with several pages
        array = cv2.imread(path)
    except cv2.error as error:
        raise UnreadableError(f"OpenCV cannot read it ({error.err})") from None
    if array is None:
        raise UnreadableError("OpenCV cannot read it")
    refuse_too_large(array.shape[0] * array.shape[1])  # for formats that Pillow does not know
    head = magic_of(path)
    if head.startswith(png.SIGNATURE):
        note |= png.cut_by_opencv(read_bytes(path))
    elif not head.startswith(jpeg.START_OF_JPEG):
        note |= _cut_off(cv2, path)
    elif jpeg.is_cut(read_bytes(path)):
        raise UnreadableError("a truncated JPEG: OpenCV would make its missing rows gray")
    return Image(array, note, pixels)


def _cut_off(cv2: Any, path: str) -> Note:
    """Note depth and alpha that the file has and ``cv2.imread(path)`` leaves out."""
    try:
        whole = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        whole = None
    if whole is None:
        return Note.NONE
    depth = Note.DEPTH if whole.dtype != np.uint8 else Note.NONE
    return depth | (Note.ALPHA if whole.ndim == 3 and whole.shape[2] == 4 else Note.NONE)


def _inspect(path: str) -> tuple[Note, Pixels]:
    """Note several frames and refuse too many pixels, where Pillow knows the format."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with PIL.Image.open(path) as image:
                is_animated = getattr(image, "is_animated", False)
                pixels = Pixels(is_mixable=image.mode not in ("1", "P", "PA"))
                return Note.FIRST_FRAME if is_animated else Note.NONE, pixels
        except PIL.Image.DecompressionBombError as error:
            raise pixels_error(error) from None
        except Exception:  # OpenCV may read what Pillow does not
            return Note.NONE, Pixels()
