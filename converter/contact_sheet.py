"""Draw a contact sheet: some samples of a finished file in a grid, as people would see them."""

from __future__ import annotations

import colorsys
import errno
import functools
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from PIL.PngImagePlugin import PngInfo

from converter.errors import ConverterError, LoadError, StoppedError, WriteError
from converter.files import open_handle, open_hdf5
from converter.loader.h5folder import H5Folder
from converter.sources.readers import READERS

COLUMNS, ROWS = 10, 6
TILE, GAP, LINE = 160, 8, 14  # pixels
LINES, LETTERS = 4, 27  # below a picture
THINNEST = 64  # longer side to shorter: a thinner array is no picture
GOLDEN_RATIO = 0.618
MOST_CLASSES = 64  # whole numbers below are class ids, drawn in colours
CMYK_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif")  # of four channels the last is black
SOFTWARE = "data2h5 contact sheet"
WHITE, BLACK, PALE, RED = (255, 255, 255), (0, 0, 0), (225, 225, 225), (190, 0, 0)
#: What the sheet says above its grid, where it is so of any picture.
TURNED = "OpenCV's BGR was turned round"
SCALED = "values scaled from least to largest"
CLASSES = "class ids drawn in colours"
FIRST_FRAME = "of several frames the first is drawn"
OVER = "masks drawn over their photos"


class Masks(NamedTuple):
    """Where masks are: replacing ``photos`` in a photo's key by ``masks`` gives its mask's key."""

    photos: str
    masks: str

    def find(self, samples: H5Folder, key: str) -> str | None:
        """Return the key of a photo's mask, whose extension may differ."""
        name = key.replace(self.photos, self.masks, 1)
        if name == key:
            return None
        stem = name.rpartition(".")[0]
        others = (f"{stem}.{extension}" for extension in ("png", "tif", "tiff", "npy", "gif"))
        return next((one for one in (name, *others) if one in samples), None)


class Sheet(NamedTuple):
    """What was drawn: samples, of how many, and those that cannot be read or have a wrong mask."""

    drawn: int
    total: int
    wrong: int


class _Tile(NamedTuple):
    """A picture, if the array is one, the lines below it, and what was done to it."""

    picture: PIL.Image.Image | None
    lines: Sequence[str]
    notes: frozenset[str] = frozenset()
    is_wrong: bool = False


def parse_masks(text: str) -> Masks:
    """Return what ``PHOTOS=MASKS`` says. Raises ConverterError."""
    photos, equals, masks = text.partition("=")
    if not equals or not photos or photos == masks:
        raise ConverterError(
            f"--contact_masks must be PHOTOS=MASKS, such as images/=masks/, not {text!r}"
        )
    return Masks(photos, masks)


def check_sheet(sheet: Path, output: Path, folder: Path | None) -> None:
    """Raise ConverterError where the sheet cannot be made, or would replace something else."""
    if sheet.suffix.lower() != ".png":
        raise ConverterError(f"{sheet} must end in .png: a contact sheet is a PNG")
    if not sheet.parent.is_dir():
        raise ConverterError(f"no folder {sheet.parent}: make it, or name another --contact_sheet")
    if folder is not None and sheet.resolve().is_relative_to(folder.resolve()):
        raise ConverterError(f"{sheet} is in the folder to convert: name a file elsewhere")
    if sheet == output or (os.path.lexists(sheet) and not _is_sheet(sheet)):
        raise ConverterError(f"{sheet} exists and is no contact sheet: name another file")


def draw_contact_sheet(output: Path, sheet: Path, masks: Masks | None = None) -> Sheet:
    """Draw some samples of ``output``, spread evenly, to ``sheet``; the same for the same file.

    With ``masks`` those that are called like photos, with their masks over them.

    Raises
    ------
    ConverterError
        The file cannot be opened, or holds no photo that ``masks`` names.
    WriteError
        ``sheet`` cannot be written.
    """
    open_handle(output)  # says what is wrong with the name
    try:
        with H5Folder(output, verify=True) as samples:
            chosen, total = _choose(samples, masks)
            is_bgr = _is_bgr(output)
            tiles = [_tile(samples, p, masks, is_bgr=is_bgr) for p in chosen]
    except LoadError as error:
        raise StoppedError(f"no contact sheet was drawn: {error}") from error
    notes = sorted(frozenset().union(*(tile.notes for tile in tiles)))
    head = "; ".join([f"{output.name}: {len(tiles)} of {total} samples", *notes])
    _save(_arranged(tiles, head), sheet)
    return Sheet(len(tiles), total, sum(tile.is_wrong for tile in tiles))


def _choose(samples: H5Folder, masks: Masks | None) -> tuple[list[int], int]:
    """Return positions spread evenly over all samples, or over all photos, and how many are."""
    positions: Sequence[int] = range(len(samples))
    if masks is not None:
        positions = [n for n, key in enumerate(samples) if masks.find(samples, key)]
        if not positions:
            raise ConverterError(
                f"no sample is the mask of another by --contact_masks={masks.photos}={masks.masks}:"
                " each key that holds the first text should be there with the second in its place"
            )
    count = min(COLUMNS * ROWS, len(positions))
    return [positions[n * len(positions) // count] for n in range(count)], len(positions)


def _is_bgr(output: Path) -> bool:
    with open_hdf5(output) as file:
        reader = READERS.get(str(file.attrs.get("reader")))
    return reader is not None and not reader.IS_RGB


def _tile(samples: H5Folder, position: int, masks: Masks | None, *, is_bgr: bool) -> _Tile:
    key = f"number {position}"
    try:
        key = samples.key_at(position)
        array = samples[position]
        shape = "x".join(map(str, array.shape)) or "a number"
        lines = [*_named(key), f"{shape} {array.dtype}"]
        name = masks.find(samples, key) if masks is not None else None
        mask = None if name is None else samples[name]
    except LoadError as error:
        reason = str(error).partition(f"in {samples.path} ")[2] or str(error)
        return _Tile(None, [*_named(key), _wrapped(reason, LETTERS)[0]], is_wrong=True)
    picture, notes = _picture(array, is_bgr=is_bgr, is_cmyk=key.lower().endswith(CMYK_EXTENSIONS))
    if picture is None or mask is None:
        return _Tile(picture, lines, notes)
    size = array.shape[-3:-1] if array.ndim > 2 and array.shape[-1] <= 4 else array.shape[-2:]
    if mask.shape[:2] != size or mask.dtype.kind not in "buif":
        wrong = f"its mask is {'x'.join(map(str, mask.shape))} {mask.dtype}"
        return _Tile(picture, [*lines, wrong], notes, is_wrong=True)
    return _Tile(_with_mask(picture, mask), lines, notes | {OVER})


def _picture(
    array: np.ndarray, *, is_bgr: bool, is_cmyk: bool
) -> tuple[PIL.Image.Image | None, frozenset[str]]:
    """Return an array as an RGB picture of at most the size of a tile, and what was done to it.

    None for what is no picture: numbers, lists, texts, structured and complex values.
    """
    notes = set()
    has_channels = array.ndim > 2 and array.shape[-1] <= 4
    if array.ndim not in (2, 3, 4) or array.dtype.kind not in "buif" or not array.size:
        return None, frozenset()
    if array.ndim > 2 + has_channels:
        array = array[(0,) * (array.ndim - 2 - has_channels)]
        notes.add(FIRST_FRAME)
    if min(array.shape[:2]) * THINNEST < max(array.shape[:2]):
        return None, frozenset()
    step = max(1, max(array.shape[:2]) // (3 * TILE))
    array = array[::step, ::step]
    if array.ndim == 2 and _are_classes(array):
        colours = _colours_of(array)
        notes.add(CLASSES)
    else:
        if array.dtype == bool:
            array = array * np.uint8(255)
        elif array.dtype != np.uint8:
            array = _scaled(array)
            notes.add(SCALED)
        colours = array
        if is_bgr and array.ndim == 3:
            colours = array[..., ::-1]
            notes.add(TURNED)
    picture = _as_rgb(np.ascontiguousarray(colours), is_cmyk=is_cmyk)
    return _fitted(picture), frozenset(notes)


def _fitted(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture as large as a tile allows; small ones with larger pixels."""
    times = TILE // max(picture.size)
    if times > 1:
        size = picture.width * times, picture.height * times
        return picture.resize(size, PIL.Image.Resampling.NEAREST)
    picture.thumbnail((TILE, TILE))
    return picture


def _as_rgb(array: np.ndarray, *, is_cmyk: bool) -> PIL.Image.Image:
    """Return bytes of 1 to 4 channels as RGB; what is transparent becomes pale."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 4 and is_cmyk:
        return PIL.Image.frombytes("CMYK", array.shape[1::-1], array.tobytes()).convert("RGB")
    picture = PIL.Image.fromarray(array)
    if picture.mode not in ("LA", "RGBA"):
        return picture.convert("RGB")
    below = PIL.Image.new("RGBA", picture.size, PALE)
    return PIL.Image.alpha_composite(below, picture.convert("RGBA")).convert("RGB")


def _scaled(array: np.ndarray) -> np.ndarray:
    """Return bytes, the least finite value as 0 and the largest as 255."""
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    least, largest = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 0.0)
    share = (np.where(finite, values, least) - least) / max(largest - least, 1e-300)
    return (share * 255).astype(np.uint8)


def _are_classes(array: np.ndarray) -> bool:
    return array.dtype.kind in "iu" and 0 <= array.min() <= array.max() < MOST_CLASSES


def _colours_of(classes: np.ndarray) -> np.ndarray:
    """Return a bright colour for each class id, far from those of its neighbours; 0 is black."""
    ids = classes.astype(np.int64)
    return _class_colours()[np.where(ids == 0, 0, 1 + (ids - 1) % 255)]


@functools.cache
def _class_colours() -> np.ndarray:
    hues = [n * GOLDEN_RATIO % 1 for n in range(255)]
    colours = [(0.0, 0.0, 0.0), *(colorsys.hsv_to_rgb(hue, 0.9, 1.0) for hue in hues)]
    return (np.array(colours) * 255).astype(np.uint8)


def _with_mask(picture: PIL.Image.Image, mask: np.ndarray) -> PIL.Image.Image:
    """Return a photo with the colours of its mask's classes over it, where these are not 0."""
    if mask.ndim == 3 and mask.shape[2] in (3, 4):  # a palette, expanded
        colours = mask[..., :3]
    else:
        classes = mask if mask.ndim == 2 else mask[..., 0]
        few = np.asarray(classes != 0) if classes.dtype.kind == "f" else classes
        colours = _colours_of(few.astype(np.int64) % 256)
    over = PIL.Image.fromarray(np.ascontiguousarray(colours, np.uint8))
    over = over.resize(picture.size, PIL.Image.Resampling.NEAREST)
    inside = np.asarray(over).any(axis=2)
    weight = PIL.Image.fromarray((inside * np.uint8(140)).astype(np.uint8))
    return PIL.Image.composite(over, picture, weight)


def _arranged(tiles: Sequence[_Tile], head: str) -> PIL.Image.Image:
    columns = min(COLUMNS, max(len(tiles), 4))
    rows = -(-len(tiles) // columns)
    width, height = TILE + GAP, TILE + LINES * LINE + GAP
    heads = _wrapped(head, columns * LETTERS)
    top = GAP + LINE * len(heads) + GAP
    sheet = PIL.Image.new("RGB", (GAP + columns * width, top + rows * height), WHITE)
    draw, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default()
    for n, line in enumerate(heads):
        draw.text((GAP, GAP + n * LINE), line, BLACK, font)
    for n, tile in enumerate(tiles):
        left, above = GAP + n % columns * width, top + n // columns * height
        draw.rectangle((left - 1, above - 1, left + TILE, above + TILE), outline=PALE)
        if tile.picture is None:
            draw.text((left + GAP, above + TILE // 2), tile.lines[-1], BLACK, font)
        else:
            spare = [(TILE - side) // 2 for side in tile.picture.size]
            sheet.paste(tile.picture, (left + spare[0], above + spare[1]))
        for number, line in enumerate(tile.lines):
            colour = RED if tile.is_wrong and number == len(tile.lines) - 1 else BLACK
            draw.text((left, above + TILE + 2 + number * LINE), line, colour, font)
    return sheet


def _wrapped(text: str, letters: int) -> list[str]:
    """Cut a text into lines, in the letters of Pillow's own font."""
    printable = text.encode("latin-1", "replace").decode("latin-1")
    return [printable[n : n + letters] for n in range(0, len(printable), letters)]


def _named(key: str) -> list[str]:
    """Return a key in two lines at most, without its middle where it is longer."""
    most = 2 * LETTERS
    if len(key) > most:
        key = f"{key[: LETTERS // 2]}...{key[LETTERS // 2 + 3 - most :]}"
    return _wrapped(key, LETTERS)


def _is_sheet(path: Path) -> bool:
    with suppress(OSError), PIL.Image.open(path, formats=("PNG",)) as image:
        return image.info.get("Software") == SOFTWARE
    return False


def _save(image: PIL.Image.Image, path: Path) -> None:
    """Write a PNG; an older one stays until the new one is complete."""
    info = PngInfo()
    info.add_text("Software", SOFTWARE)
    partial = path.with_name(path.name + ".partial")
    try:
        image.save(partial, "PNG", pnginfo=info)
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        what = error.strerror or os.strerror(error.errno or errno.EIO)
        raise WriteError(f"{path} could not be written ({what}): name another file") from error
