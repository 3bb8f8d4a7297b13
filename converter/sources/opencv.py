"""Turn a source file into the array ``cv2.imread(path)`` returns for it."""

from __future__ import annotations

import os
import warnings
from types import ModuleType

from converter.errors import ConverterError, UnreadableError
from converter.samples import Note
from converter.sources.images import (
    START_OF_JPEG,
    Image,
    inspect,
    is_cut_jpeg,
    read_bytes,
    refuse_too_large,
)


def import_opencv() -> ModuleType:
    """Return the module cv2, made for one thread: the workers are many.

    Raises ConverterError where it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ConverterError(
            "--reader=opencv needs OpenCV: pip install opencv-python-headless"
        ) from error
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # None says it too
    return cv2


def read_noted(path: str) -> Image:
    """Read a file as OpenCV does by default.

    Returns
    -------
    Image
        ``(H, W, 3)`` uint8 in BGR order, EXIF orientation applied; the first frame or page.

    Raises
    ------
    UnreadableError
        OpenCV cannot read it; it has more pixels than Pillow's limit; or it is a JPEG that
        was cut off, whose missing rows OpenCV would make gray.
    """
    cv2 = import_opencv()
    note = _inspect(path)
    try:
        # not imdecode: it gives other arrays for APNG and TIFF with several pages
        array = cv2.imread(path)
    except cv2.error as error:
        raise UnreadableError(f"OpenCV cannot read it ({error.err})") from None
    if array is None:
        raise UnreadableError("OpenCV cannot read it")
    if _starts_as_jpeg(path) and is_cut_jpeg(read_bytes(path)):
        raise UnreadableError("a truncated JPEG: OpenCV would make its missing rows gray")
    refuse_too_large(array.shape[0] * array.shape[1])  # of what Pillow does not know
    return Image(array, note)


def _starts_as_jpeg(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(len(START_OF_JPEG)) == START_OF_JPEG


def _inspect(path: str | os.PathLike[str]) -> Note:
    """Look at what Pillow knows; OpenCV knows other formats."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return inspect(os.fspath(path))
    except UnreadableError as error:
        if "pixels" in str(error):
            raise
    except Exception:  # of a format Pillow takes it for and OpenCV may not
        return Note.NONE
    return Note.NONE
