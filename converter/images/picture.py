"""What all decoders of the default reader share: their result, and the limit on pixels."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import PIL.Image

from converter.errors import UnreadableError
from converter.samples import Note

Bytes = bytes | bytearray | memoryview
#: Returns a writable buffer of that many bytes, to decode pixels into.
Allocate = Callable[[int], memoryview]


class Image(NamedTuple):
    """An array, and what the reader noticed."""

    array: np.ndarray
    note: Note = Note.NONE


def open_with_pillow(data: Bytes, name: str) -> PIL.Image.Image:
    """Open an image of the format that Pillow calls so; nothing is decoded yet.

    Raises UnreadableError for too many pixels, and for what is not of this format.
    """
    try:
        return PIL.Image.open(io.BytesIO(data), formats=(name,))
    except PIL.UnidentifiedImageError:
        raise UnreadableError(f"damaged, or not a {name} file: Pillow cannot read it") from None
    except PIL.Image.DecompressionBombError as error:
        raise pixels_error(error) from None


def pixels_error(error: PIL.Image.DecompressionBombError) -> UnreadableError:
    """Return the failure for an image that Pillow refuses for its size."""
    count = re.search(r"\d+", str(error))
    return _too_large(int(count[0]) if count else 0)


def refuse_too_large(pixels: int) -> None:
    """Raise UnreadableError above the limit on pixels."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > 2 * limit:
        raise _too_large(pixels)


def _too_large(pixels: int) -> UnreadableError:
    return UnreadableError(
        f"it has {pixels} pixels, more than the limit of "
        f"{int(2 * (PIL.Image.MAX_IMAGE_PIXELS or 0))}: if you trust the file, raise it with "
        f"--max_pixels={pixels} (in Python: PIL.Image.MAX_IMAGE_PIXELS = {math.ceil(pixels / 2)})"
    )
