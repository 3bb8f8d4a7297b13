"""Decode and encode TIFF: all pages, full depth, by tifffile."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.errors import UnreadableError
from converter.images.picture import (
    ORIENTATION,
    Bytes,
    Image,
    Pixels,
    Resized,
    refuse_too_large,
)
from converter.samples import Note

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

#: Tags and values of TIFF 6.0, TIFF/EP and DNG 1.7.
REDUCED, PALETTE, COLOUR_FILTER, LINEAR_RAW = 1, 3, 32803, 34892
WHITE_IS_0, BLACK_IS_0, RGB, MASK, SEPARATED, YCBCR, ICC_LAB, ITU_LAB = 0, 1, 2, 4, 5, 6, 9, 10
MIXABLE = (WHITE_IS_0, BLACK_IS_0, RGB, MASK, SEPARATED, YCBCR, ICC_LAB, ITU_LAB)
OLD_JPEG, JPEG = 6, 7
STRAIGHT_ALPHA, UNCOMPRESSED = 2, 1
ICC_PROFILE, SHORT, UNDEFINED = 34675, 3, 7
OF_RAW_FILES = (33421, 33422, 50706)  # CFARepeatPatternDim, CFAPattern, DNGVersion
GDAL_METADATA = 42112
PAGES_LOOKED_AT = 16  # for tags that only cameras write
RAWPY = (
    "write my_read and add --custom_read_func: import rawpy; "
    "return rawpy.imread(path).postprocess(output_bps=16) (pip install rawpy)"
)
TIFFFILE = "write my_read and add --custom_read_func: import tifffile; return "
ONE_PAGE = TIFFFILE + "tifffile.imread(path, key=0)"


def decode(source: Bytes | str) -> Image:
    """Return the pages of a file, or of its bytes, as tifffile gives them.

    That is ``(H, W[, C])``, or ``(C, H, W)`` where planar. With several pages, their axes come
    first; pages of several series are joined in the order of the file. Palettes, min-is-white
    and CMYK stay as they are.
    """
    import tifffile

    try:
        file = source if isinstance(source, str) else io.BytesIO(source)
        with tifffile.TiffFile(file) as tiff:
            note = _look_around(tiff)
            count = _count_pages(tiff)
            refuse_too_large(tiff.pages.first.imagelength * tiff.pages.first.imagewidth)
            _refuse_scaled(tiff)
            return _decode_pages(tiff, count, note)
    except (ValueError, KeyError, NotImplementedError) as error:
        if "imagecodecs" in str(error):
            raise UnreadableError(f"{error}: pip install imagecodecs") from None
        raise


def encode(data: Bytes, resized: Resized) -> bytes:
    """Return a TIFF of the same pages; deflated where the first was compressed at all.

    Raises UnreadableError where the numbers of one page mean something else than those of another.
    """
    import tifffile

    file = io.BytesIO()
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page: Any = tiff.pages.first
        options = _options_of(page, resized.pixels.most)
        for other in _pages(tiff, _count_pages(tiff))[1:]:
            if other.shape == page.shape and _options_of(other, resized.pixels.most) != options:
                raise UnreadableError("its pages differ in colours, alpha, profile or orientation")
        byteorder = tiff.byteorder
    options["compression"] = None if page.compression == UNCOMPRESSED else "zlib"
    options["colormap"] = page.colormap
    sides = {"X": resized.size[0], "Y": resized.size[1]}
    shape = [sides.get(*item) for item in zip(page.axes, page.shape, strict=True)]
    with tifffile.TiffWriter(file, byteorder=byteorder) as writer:
        for array in resized.array.reshape(-1, *shape):
            writer.write(np.ascontiguousarray(array), metadata=None, contiguous=False, **options)
    return file.getvalue()


def _options_of(page: Any, most: int | None) -> dict[str, Any]:
    photometric = int(page.photometric)
    if photometric == YCBCR:
        if page.compression not in (OLD_JPEG, JPEG):
            raise UnreadableError("its colours are YCbCr")
        photometric = RGB  # as they were decoded
    options: dict[str, Any] = {
        "photometric": photometric,
        "bitspersample": None if most is None else most.bit_length(),
        "planarconfig": int(page.planarconfig) if page.samplesperpixel > 1 else None,
        "extrasamples": tuple(int(kind) for kind in page.extrasamples) or None,
        "colormap": None if page.colormap is None else page.colormap.tobytes(),  # to compare
        "extratags": [],
    }
    if profile := page.tags.valueof(ICC_PROFILE):
        options["extratags"].append((ICC_PROFILE, UNDEFINED, len(profile), profile, True))
    if orientation := page.tags.valueof(ORIENTATION):
        options["extratags"].append((ORIENTATION, SHORT, 1, int(orientation), True))
    return options


def _decode_pages(tiff: TiffFile, count: int, note: Note) -> Image:
    if count > 1:
        note |= Note.FRAMES
    if tiff.pages.first.photometric == PALETTE:
        note |= Note.INDICES
    series = tiff.series
    _refuse_missing_files(tiff)
    if len(series) == 1 and len(_indices(series)) >= count:
        array, axes = series[0].asarray(), series[0].axes
        full: list[Any] = [tiff.pages.first]  # the others are alike
    else:
        pages = _pages(tiff, count)
        full = [page for page in pages if not page.subfiletype & REDUCED]
        if len(full) < len(pages):
            note |= Note.REDUCED
            if len(full) == 1:
                note &= ~Note.FRAMES
        series = [one for one in series if not one.keyframe.subfiletype & REDUCED]
        array, axes = _joined(series, full)
    if not array.size:
        raise UnreadableError("a truncated TIFF: its pages have no pixels")
    kinds = [_pixels(page, axes, array.shape) for page in full]
    pixels = kinds[0]
    if any(kind != pixels for kind in kinds):  # gray and palette: indices of any must not be mixed
        pixels = pixels._replace(is_mixable=False)
    return Image(array, note, pixels)


def _pages(tiff: TiffFile, count: int) -> list[Any]:
    return [tiff.pages.get(n, aspage=True, cache=False) for n in range(count)]


def _pixels(page: Any, axes: str, shape: tuple[int, ...]) -> Pixels:
    """Return what is known of an array's numbers; ``axes`` are tifffile's letters for its axes."""
    row_axis: int | None = axes.find("YX")
    if len(axes) != len(shape) or axes.count("S") > 1 or axes.partition("YX")[2] not in ("", "S"):
        row_axis = None
    alpha_axis = None
    if STRAIGHT_ALPHA in page.extrasamples:
        alpha_axis = axes.find("S")
        if len(page.extrasamples) > 1 or alpha_axis < 0:
            row_axis = None  # which channels it is alpha of is not known
    is_mixable = page.photometric in MIXABLE
    bits, dtype = page.bitspersample, page.dtype
    is_whole = not isinstance(bits, int) or dtype is None or bits == 8 * dtype.itemsize
    most = None if is_whole or dtype.kind != "u" else 2**bits - 1
    return Pixels(None if row_axis == -1 else row_axis, alpha_axis, most, is_mixable)


def _joined(series: list[Any], pages: list[Any]) -> tuple[np.ndarray, str]:
    """Return all pages as one array, in the order of the file, and tifffile's names of its axes."""
    kinds = {(tuple(page.shape), page.dtype) for page in pages}
    if len(kinds) > 1:
        shapes = ", ".join(dict.fromkeys(f"{page.shape} {page.dtype}" for page in pages))
        raise UnreadableError(
            f"its {len(pages)} pages differ and do not fit into one array ({shapes}); to store one "
            f"of them, {ONE_PAGE}"
        )
    is_covered = _indices(series) == {page.index for page in pages}
    if len(series) == 1 and is_covered:
        return np.asarray(series[0].asarray()), series[0].axes
    if len(pages) == 1:
        return np.asarray(pages[0].asarray()), pages[0].axes
    axes = "Q" + pages[0].axes
    if is_covered:  # a page may hold a whole stack
        parts = [np.asarray(one.asarray()).reshape(-1, *pages[0].shape) for one in series]
        firsts = [min(page.index for page in one.pages) for one in series]
        lasts = [max(page.index for page in one.pages) for one in series]
        if all(last < first for last, first in zip(lasts, firsts[1:], strict=False)):
            return np.concatenate(parts), axes
    return np.stack([page.asarray() for page in pages]), axes


def _indices(series: list[Any]) -> set[int]:
    """Return the indices of the pages that series hold."""
    return {page.index for one in series for page in one.pages if page is not None}


def _count_pages(tiff: TiffFile) -> int:
    """Follow the chain of pages; UnreadableError where it leads out of the file."""
    file, form = tiff.filehandle, tiff.tiff
    end, offset = file.size, tiff.pages.first.offset
    order: Literal["little", "big"] = "little" if tiff.byteorder == "<" else "big"
    seen: set[int] = set()
    while offset and offset not in seen:  # some chains end in a loop
        if offset + form.tagnosize > end:
            raise UnreadableError(f"a truncated or damaged TIFF: page {len(seen) + 1} is missing")
        seen.add(offset)
        file.seek(offset)
        count = int.from_bytes(file.read(form.tagnosize), order)
        offset += form.tagnosize + count * form.tagsize
        if offset + form.offsetsize > end:
            raise UnreadableError(f"a truncated or damaged TIFF: page {len(seen)} is cut")
        file.seek(offset)
        offset = int.from_bytes(file.read(form.offsetsize), order)
    return len(seen)


def _look_around(tiff: TiffFile) -> Note:
    """Refuse a camera's raw file, and pictures where only small copies belong.

    Returns a note of small copies below the pages.
    """
    if not len(tiff.pages):
        raise UnreadableError("a truncated TIFF: it has no page")
    first: Any = tiff.pages.first
    note = Note.NONE
    for page, is_below in _directories(tiff):
        if page.photometric in (COLOUR_FILTER, LINEAR_RAW) or any(
            tag in page.tags for tag in OF_RAW_FILES
        ):
            raise UnreadableError(f"a camera's raw file, not read as a TIFF: {RAWPY}")
        larger = page.imagelength * page.imagewidth > first.imagelength * first.imagewidth
        if larger and (is_below or first.subfiletype & REDUCED):
            raise UnreadableError(
                f"its first page is a small copy of {page.imagelength} x {page.imagewidth} pixels "
                f"elsewhere in the file: for a camera's raw file {RAWPY}"
            )
        if is_below and not page.subfiletype & REDUCED:
            raise UnreadableError(
                f"it holds another picture below a page (a SubIFD of {page.shape}): {ONE_PAGE}"
            )
        if is_below:
            note = Note.REDUCED
    if first.subfiletype & REDUCED:
        raise UnreadableError(
            "its first page is a small copy of a picture that is missing or lies elsewhere: for a "
            f"camera's raw file {RAWPY}"
        )
    return note


def _directories(tiff: TiffFile) -> Iterator[tuple[TiffPage, bool]]:
    """Yield the first pages, each followed by those below it, and whether one lies below."""
    for n in range(min(len(tiff.pages), PAGES_LOOKED_AT)):
        page: Any = tiff.pages.get(n, aspage=True, cache=False)
        yield page, False
        if page.subifds:
            yield from ((below, True) for below in page.pages)


def _refuse_missing_files(tiff: TiffFile) -> None:
    """Refuse an OME-TIFF of which some pages are in other files that are missing."""
    if tiff.is_ome and any(page is None for series in tiff.series for page in series.pages):
        raise UnreadableError(
            "an OME-TIFF whose pages are in several files, of which some are missing: put them "
            "into its folder; only --store=array can join them"
        )


def _refuse_scaled(tiff: TiffFile) -> None:
    """Refuse values that the header says to scale, which tifffile does not do."""
    scale, offset = 1.0, 0.0
    found: Any = tiff.imagej_metadata if tiff.is_imagej else None
    if found and found.get("cf") == 0:  # a straight line
        scale, offset = float(found.get("c1", 1)), float(found.get("c0", 0))
    text = tiff.pages.first.tags.valueof(GDAL_METADATA)
    if isinstance(text, str):
        for name, value in re.findall(r'role="(scale|offset)"[^>]*>\s*([-+.\deE]+)', text):
            if name == "scale" and scale == 1:
                scale = float(value)
            if name == "offset" and offset == 0:
                offset = float(value)
    if (scale, offset) != (1, 0):
        raise UnreadableError(
            f"its header says to multiply values by {scale:g} and add {offset:g}: {TIFFFILE}"
            f"tifffile.imread(path) * {scale:g} + {offset:g}"
        )
