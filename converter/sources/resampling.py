"""Resize arrays of images, as Pillow does.

The operation is Pillow's. For 8 bits a channel these lines give the same pixels, where ``size`` and
``box`` are those of `resizing.target_of`::

    image = PIL.Image.open(path)
    width = image.width
    drafted = image.draft(None, (2 * size[0], 2 * size[1]))  # a smaller decode, of JPEG alone
    scale = width / drafted[1][2] if drafted else 1  # 1, 2, 4 or 8
    box = tuple(side / scale for side in box)
    resized = image.resize(size, PIL.Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)

Other depths are resized in the same way, channel by channel in mode "F", then rounded half to even
and clipped. An image that is transparent everywhere is resized as if its alpha were a channel like
others. The filter "area" is Pillow's BOX. Nearest is NEAREST, of the whole image: no ``draft``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from converter.errors import UnreadableError
from converter.images.picture import Image, Pixels, Size
from converter.samples import Note
from converter.sources.resizing import GAP, Resizing, Target, target_of

ROWS_LOOKED_AT = 32
FLAT = 0.75  # of neighbours are equal
FEW = 32  # distinct values
LEAST_HOLES = 0.01  # of all pixels
NEAREST = "add --resize_filter=nearest, which mixes no values"
FILTER_OF_PILLOW = {
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "area": PIL.Image.Resampling.BOX,
    "nearest": PIL.Image.Resampling.NEAREST,
}


def resize(image: Image, resizing: Resizing) -> tuple[Image, Target | None]:
    """Resize an image, all its frames; return it, and what it was resized to.

    bool and what is not mixable go by nearest. A `Note` tells of values that should perhaps not
    have been mixed.

    Raises
    ------
    UnreadableError
        Its axes are not known, its values cannot be mixed without loss, or it would become too
        large.
    """
    array, pixels = image.array, image.pixels
    row_axis = pixels.row_axis
    if row_axis is None:
        raise UnreadableError(
            f"which axes of its array {array.shape} are height, width and channels is not known: "
            "resize it in my_read, and add --custom_read_func"
        )
    decoded = array.shape[row_axis + 1], array.shape[row_axis]
    size = pixels.size or decoded
    target = target_of(resizing, size)
    if target is None:
        return image, None
    _refuse_too_large(target.size)
    scale = next((n for n in (1, 2, 4, 8) if decoded == (-(-size[0] // n), -(-size[1] // n))), 1)
    left, top, right, bottom = (side / scale for side in target.box)
    part = target._replace(box=(left, top, right, bottom))
    note = image.note
    if (right - left, bottom - top) == target.size:  # a part as it is
        rows, columns = slice(int(top), int(bottom)), slice(int(left), int(right))
        resized = array[(slice(None),) * row_axis + (rows, columns)].copy()
    elif resizing.filter == "nearest" or not pixels.is_mixable or array.dtype == bool:
        resized = _nearest(array, part, row_axis)
    else:
        resized = _mixed(array, part, pixels, FILTER_OF_PILLOW[resizing.filter])
        note |= _suspicion(array, row_axis)
    return Image(resized, note, pixels._replace(size=None)), target


def _refuse_too_large(size: Size) -> None:
    limit, count = PIL.Image.MAX_IMAGE_PIXELS, size[0] * size[1]
    if limit is not None and count > 2 * limit:
        raise UnreadableError(
            f"resized to {size[0]} x {size[1]} it would have {count} pixels, more than the limit "
            f"of {int(2 * limit)}: resize to fewer, or raise the limit with --max_pixels={count}"
        )


def _nearest(array: np.ndarray, part: Target, row_axis: int) -> np.ndarray:
    """Take the pixels that Pillow's NEAREST takes, of any dtype."""
    (width, height), (left, top, right, bottom) = part
    rows = _nearest_indices(top, bottom, height, array.shape[row_axis])
    columns = _nearest_indices(left, right, width, array.shape[row_axis + 1])
    return array.take(rows, axis=row_axis).take(columns, axis=row_axis + 1)


def _nearest_indices(begin: float, end: float, count: int, length: int) -> np.ndarray:
    """Return where the middle of each pixel lies; added up one by one, as Pillow does."""
    step = (end - begin) / count
    steps = np.full(count, step)
    steps[0] = begin + step * 0.5
    return np.minimum(np.cumsum(steps).astype(np.intp), length - 1)


def _mixed(
    array: np.ndarray, part: Target, pixels: Pixels, resample: PIL.Image.Resampling
) -> np.ndarray:
    """Interpolate each picture of an array."""
    dtype, alpha_axis = array.dtype, pixels.alpha_axis
    if dtype.kind not in "iuf" or dtype.itemsize > (4 if dtype.kind == "f" else 2):
        raise UnreadableError(f"its {dtype} values cannot be mixed without loss: {NEAREST}")
    row_axis = pixels.row_axis or 0
    is_planar = alpha_axis is not None and alpha_axis < row_axis
    if alpha_axis is not None and is_planar:
        array, row_axis = np.moveaxis(array, alpha_axis, -1), row_axis - 1
    how = _How(part, alpha_axis is not None, pixels.most, resample)
    if row_axis == 0:
        resized = _picture(array, how)
    else:
        width, height = part.size
        shape = array.shape[:row_axis], (height, width), array.shape[row_axis + 2 :]
        resized = np.empty([*shape[0], *shape[1], *shape[2]], dtype)
        for index in np.ndindex(shape[0]):
            resized[index] = _picture(array[index], how)
    return np.moveaxis(resized, -1, alpha_axis) if alpha_axis is not None and is_planar else resized


class _How(NamedTuple):
    """How a picture ``(H, W[, C])`` is interpolated."""

    part: Target
    has_alpha: bool
    most: int | None
    resample: PIL.Image.Resampling

    def resize(self, image: PIL.Image.Image) -> np.ndarray:
        return np.asarray(image.resize(self.part.size, self.resample, self.part.box, float(GAP)))


def _picture(array: np.ndarray, how: _How) -> np.ndarray:
    if how.has_alpha and not array[..., -1].any():  # it would be nothing: some files hold data so
        how = how._replace(has_alpha=False)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or (how.has_alpha and (how.most or channels not in (2, 4))):
        resized = _in_floats(array.reshape(*array.shape[:2], channels), how)
    else:
        resized = _in_bytes(array, channels, how)
        if how.most is not None:
            resized = np.minimum(resized, np.uint8(how.most))
    return resized.reshape(*resized.shape[:2], *array.shape[2:])


def _in_bytes(array: np.ndarray, channels: int, how: _How) -> np.ndarray:
    """Resize 8 bits a channel. Pillow multiplies with alpha, and divides by it again."""
    modes = {1: "L", 3: "RGB", 4: "CMYK"}  # any mode of four channels without alpha
    mode = {2: "LA", 4: "RGBA"}[channels] if how.has_alpha else modes.get(channels)
    if mode is None:
        one_by_one = (_in_bytes(array[..., n], 1, how) for n in range(channels))
        return np.stack(list(one_by_one), axis=2)
    size = array.shape[1], array.shape[0]
    plain: Any = np.ascontiguousarray(array)
    return how.resize(PIL.Image.frombuffer(mode, size, plain, "raw", mode, 0, 1))


@np.errstate(invalid="ignore", over="ignore")  # what it leads to is refused
def _in_floats(array: np.ndarray, how: _How) -> np.ndarray:
    """Resize other numbers, each channel in mode "F"."""
    is_integer = array.dtype.kind in "iu"
    limits = np.iinfo(array.dtype) if is_integer else np.finfo(array.dtype)
    most = limits.max if how.most is None else how.most
    channels = [array[..., n].astype(np.float32, order="C") for n in range(array.shape[2])]
    if how.has_alpha:
        alpha = channels.pop()
        if is_integer:
            alpha /= most
        channels = [channel * alpha for channel in channels]
        opacity = how.resize(PIL.Image.fromarray(alpha)).clip(0, alpha.max())
        divisor = np.where(opacity > 0, opacity, np.float32(1))
        resized = [how.resize(PIL.Image.fromarray(channel)) / divisor for channel in channels]
        resized = [*(np.where(opacity > 0, one, np.float32(0)) for one in resized)]
        resized.append(opacity * most if is_integer else opacity)
    else:
        resized = [how.resize(PIL.Image.fromarray(channel)) for channel in channels]
    stacked = np.stack(resized, axis=2)
    if not np.isfinite(stacked).all():
        raise UnreadableError(
            f"it holds NaN or infinity, which mixing would spread to other pixels: {NEAREST}"
        )
    if is_integer:
        np.rint(stacked, out=stacked)
    return stacked.clip(limits.min, most).astype(array.dtype)


def _is_gray(rows: np.ndarray) -> bool:
    return bool((rows == rows[..., :1]).all())


def _suspicion(array: np.ndarray, row_axis: int) -> Note:
    """Note values of one channel that look as if they should not be mixed, by some of the rows.

    Of 1,620 photos and micrographs in gray at most 0.88 of neighbours are equal, and at most 0.65
    of those beside the background; of label masks more than 0.95 and 0.75. Depth has holes of 0
    beside values that are far from 0.
    """
    rows = array.reshape(-1, *array.shape[row_axis + 1 :])
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), ROWS_LOOKED_AT)).astype(int)]
    if rows.ndim == 3:
        if rows.shape[2] not in (1, 3) or not (_is_gray(rows[:1]) and _is_gray(rows)):
            return Note.NONE
        rows = rows[..., 0]
    is_equal = rows[:, 1:] == rows[:, :-1]
    if rows.dtype.kind in "iu" and is_equal.size and is_equal.mean() >= FLAT:
        values, counts = np.unique(rows, return_counts=True)
        is_shown = rows != values[counts.argmax()]  # by the most frequent one: the background
        is_beside = is_shown[:, 1:] | is_shown[:, :-1]
        if len(values) > 1 and (len(values) <= FEW or is_equal[is_beside].mean() >= FLAT):
            return Note.FEW_VALUES
    return Note.HOLES if rows.dtype.itemsize > 1 and _has_holes(rows) else Note.NONE


def _has_holes(rows: np.ndarray) -> bool:
    """Tell whether there are many zeros, and next to nothing between them and the other values."""
    sizes = np.abs(rows.astype(np.float32))
    holes, near = (sizes == 0).mean(), sizes.max() / 100
    if not LEAST_HOLES <= holes < 1 or (rows.dtype.kind != "f" and near < 2):
        return False
    return bool(((sizes > 0) & (sizes < near)).mean() < holes / 10)
