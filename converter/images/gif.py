"""Decode GIF: all frames, composed; encode one. Pillow expands the pixels of each frame."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from converter.errors import UnreadableError
from converter.images.canvas import Background, Disposal, Frame, compose
from converter.images.picture import (
    Bytes,
    Image,
    Resized,
    as_picture,
    of_colours,
    open_with_pillow,
    pick,
    refuse_animation,
    refuse_too_large,
    saved,
)
from converter.samples import Note

#: Of GIF89a, sections 18 to 26.
SIGNATURES = (b"GIF87a", b"GIF89a")
EXTENSION, IMAGE, TRAILER, GRAPHIC_CONTROL = 0x21, 0x2C, 0x3B, 0xF9
HAS_TABLE, INTERLACED, TABLE_BITS = 0x80, 0x40, 0x07
DISPOSALS = {2: Disposal.CLEAR, 3: Disposal.PREVIOUS}


class _Picture(NamedTuple):
    """One image of the file, its pixels not yet expanded."""

    left: int
    top: int
    width: int
    height: int
    is_interlaced: bool
    table: np.ndarray  # (K, 3)
    transparent: int | None
    disposal: Disposal
    data: bytes


def decode(data: Bytes) -> Image:
    """Return ``(N, H, W, C)`` uint8: RGB, with alpha where there is transparency.

    ``(N, H, W)`` or ``(N, H, W, 2)`` where every colour table is the ramp of grays, index for
    index. Alpha is there where the first picture names a transparent colour, or a pixel of any
    frame is transparent.
    """
    data = bytes(data)
    width, height, background, pictures = _parse(data)
    width = max(width, *(p.left + p.width for p in pictures))
    height = max(height, *(p.top + p.height for p in pictures))
    refuse_too_large(width * height)
    is_gray = all(_is_ramp(picture.table) for picture in pictures)
    channels = 1 if is_gray else 3
    is_opaque = background is not None and all(p.transparent is None for p in pictures)
    colour = background[:channels] if background is not None and is_opaque else (0,) * channels
    frames = (_frame(picture, channels) for picture in pictures)
    under = Background(colour, 255 if is_opaque else 0)
    colours, alpha = compose(frames, (len(pictures), height, width), np.uint8, under)
    if pictures[0].transparent is not None or not alpha.all():
        colours = np.concatenate((colours, alpha[..., None]), axis=3)
    elif is_gray:
        colours = colours[..., 0]
    note = Note.NONE if is_gray else Note.PALETTE
    note |= Note.FRAMES if len(pictures) > 1 else Note.NONE
    return of_colours(colours, note, row_axis=1)


def encode(data: Bytes, resized: Resized) -> bytes:
    """Return a GIF of one frame, with the palette that it has."""
    if len(resized.array) > 1:
        refuse_animation(len(resized.array))
    with open_with_pillow(data, "GIF") as image:
        picture = pick(image, resized) if image.mode == "P" else as_picture(resized.array[0])
        return saved(picture, "GIF", optimize=False)


def _frame(picture: _Picture, channels: int) -> Frame:
    table = np.zeros((256, 4), np.uint8)
    table[: len(picture.table), :3] = picture.table
    table[:, 3] = 255
    if picture.transparent is not None:
        table[picture.transparent, 3] = 0
    indices = _expand(picture)
    pixels = np.take(table.view(np.uint32)[:, 0], indices).view(np.uint8)  # 10 times table[indices]
    pixels = pixels.reshape(*indices.shape, 4)
    left, top = picture.left, picture.top
    return Frame(pixels[..., :channels], pixels[..., 3], top, left, picture.disposal, True)


def _expand(picture: _Picture) -> np.ndarray:
    """Return the colour indices of a picture, which Pillow decodes from a GIF of its own."""
    size = picture.width.to_bytes(2, "little") + picture.height.to_bytes(2, "little")
    flags = INTERLACED if picture.is_interlaced else 0
    alone = b"".join(
        (SIGNATURES[1], size, bytes(3), b",", bytes(4), size, bytes([flags]), picture.data, b";")
    )
    with open_with_pillow(alone, "GIF") as image:  # without a table indices are grays
        return np.asarray(image)


def _parse(data: bytes) -> tuple[int, int, tuple[int, ...] | None, list[_Picture]]:
    """Return width, height, the colour of the background if there is one, and the pictures."""
    try:
        width, height = _number(data, 6), _number(data, 8)
        table, offset = _table(data, data[10], 13)
        background = None
        if table is not None and data[11] < len(table):
            background = tuple(table[data[11]].tolist())
        return width, height, background, list(_pictures(data, offset, table))
    except IndexError:
        raise UnreadableError("a truncated GIF: its end is missing") from None


def _pictures(data: bytes, offset: int, shared: np.ndarray | None) -> Iterator[_Picture]:
    transparent, disposal, count = None, Disposal.KEEP, 0
    while data[offset] != TRAILER:
        kind = data[offset]
        if kind == EXTENSION:
            if data[offset + 1] == GRAPHIC_CONTROL and data[offset + 2] >= 4:
                flags = data[offset + 3]
                transparent = data[offset + 6] if flags & 1 else None
                disposal = DISPOSALS.get(flags >> 2 & 7, Disposal.KEEP)
            offset = _behind_blocks(data, offset + 2)
        elif kind == IMAGE:
            left, top, width, height = (_number(data, offset + n) for n in (1, 3, 5, 7))
            refuse_too_large(width * height)
            is_interlaced = bool(data[offset + 9] & INTERLACED)
            table, begin = _table(data, data[offset + 9], offset + 10)
            offset = _behind_blocks(data, begin + 1)
            if table is None:
                table = shared if shared is not None else _RAMP
            box, pixels = (left, top, width, height), data[begin:offset]
            yield _Picture(*box, is_interlaced, table, transparent, disposal, pixels)
            transparent, disposal, count = None, Disposal.KEEP, count + 1
        elif kind == 0 and count:  # filler
            offset += 1
        else:
            raise UnreadableError(f"a damaged GIF: an unknown block after picture {count}")
    if not count:
        raise UnreadableError("a GIF without a picture")


def _behind_blocks(data: bytes, offset: int) -> int:
    """Return where a chain of sub-blocks ends."""
    while data[offset]:
        offset += 1 + data[offset]
    return offset + 1


def _table(data: bytes, flags: int, offset: int) -> tuple[np.ndarray | None, int]:
    if not flags & HAS_TABLE:
        return None, offset
    end = offset + (6 << (flags & TABLE_BITS))
    if end > len(data):
        raise UnreadableError("a truncated GIF")
    return np.frombuffer(data, np.uint8, end - offset, offset).reshape(-1, 3), end


_RAMP = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def _is_ramp(table: np.ndarray) -> bool:
    return bool(np.array_equal(table, _RAMP[: len(table)]))


def _number(data: bytes, offset: int) -> int:
    return data[offset] | data[offset + 1] << 8
