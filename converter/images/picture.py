"""What all formats share: the result of decoding, the limit on pixels, what to encode again."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np
import PIL.Image

from converter.errors import UnreadableError
from converter.samples import Note

Bytes = bytes | bytearray | memoryview
#: Returns a writable buffer of that many bytes, to decode pixels into.
Allocate = Callable[[int], memoryview]
#: Of width and height.
Size = tuple[int, int]
#: Returns the least size to decode an image of that size to; None: all of it.
Least = Callable[[Size], Size | None]

ORIENTATION = 0x0112  # the tag of TIFF and EXIF


class Pixels(NamedTuple):
    """What the numbers of an array mean: whoever resizes it has to know.

    Attributes
    ----------
    row_axis : int, optional
        The axis of height. Width comes next, and after it only channels. None: not known.
    alpha_axis : int, optional
        The axis of channels, of which the last is alpha, by which the others are not multiplied.
    most : int, optional
        The largest value that the file allows, where that is not the largest of the dtype.
    is_mixable : bool
        Whether a number between two of them means something between: not with a palette.
    size : (int, int), optional
        Width and height of the file, where its array is smaller.
    """

    row_axis: int | None = 0
    alpha_axis: int | None = None
    most: int | None = None
    is_mixable: bool = True
    size: Size | None = None


class Image(NamedTuple):
    """An array, what the reader noticed, and what the array's numbers are."""

    array: np.ndarray
    note: Note = Note.NONE
    pixels: Pixels = Pixels()


def of_colours(array: np.ndarray, note: Note = Note.NONE, *, row_axis: int = 0) -> Image:
    """Return an image of gray or RGB; of two or four channels the last is alpha."""
    has_alpha = array.shape[row_axis + 2 :] in ((2,), (4,))
    alpha_axis = array.ndim - 1 if has_alpha else None
    return Image(array, note, Pixels(row_axis, alpha_axis, is_mixable=Note.PALETTE not in note))


class Resized(NamedTuple):
    """A picture to be encoded again: its pixels now, and how they were chosen from those before.

    ``size`` is its width and height, ``box`` the part of the picture before that fills it: left,
    top, right and bottom. ``quality`` is of lossy formats.
    """

    array: np.ndarray
    pixels: Pixels
    size: Size
    box: tuple[float, float, float, float]
    quality: int


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


def kept_of(image: PIL.Image.Image) -> dict[str, Any]:
    """Return the options of Pillow's ``save`` that keep the colour profile and the orientation."""
    kept: dict[str, Any] = {}
    if profile := image.info.get("icc_profile"):
        kept["icc_profile"] = profile
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # damaged: nobody can tell
        orientation = None
    if orientation in range(2, 9):
        kept["exif"] = PIL.Image.Exif()
        kept["exif"][ORIENTATION] = orientation
    return kept


def as_picture(array: np.ndarray, mode: str | None = None) -> PIL.Image.Image:
    """Return Pillow's image of gray or RGB, perhaps with alpha, or of the mode named."""
    if array.dtype != np.uint8:
        return PIL.Image.fromarray(array)
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    mode = mode or modes[array.shape[2] if array.ndim == 3 else 1]
    size = array.shape[1], array.shape[0]
    plain: Any = np.ascontiguousarray(array)
    return PIL.Image.frombuffer(mode, size, plain, "raw", mode, 0, 1)


def pick(image: PIL.Image.Image, resized: Resized) -> PIL.Image.Image:
    """Resize a picture with a palette, which is kept."""
    return image.resize(resized.size, PIL.Image.Resampling.NEAREST, resized.box)


def saved(image: PIL.Image.Image, name: str, **options: Any) -> bytes:
    """Return a file of the format that Pillow calls so."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def refuse_animation(frames: int) -> NoReturn:
    """Raise UnreadableError for what is not encoded again."""
    raise UnreadableError(f"it is an animation of {frames} frame{'s' * (frames > 1)}")


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
