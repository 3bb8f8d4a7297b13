"""Decode and encode BMP, TGA and WebP by Pillow."""

from __future__ import annotations

import struct

import numpy as np

from converter.errors import UnreadableError
from converter.images.picture import (
    Bytes,
    Image,
    Resized,
    as_picture,
    kept_of,
    of_colours,
    open_with_pillow,
    pick,
    refuse_animation,
    saved,
)
from converter.samples import Note

#: Of BITMAPFILEHEADER and BITMAPINFOHEADER: offset of the pixels, size of the second header,
#: width, height, bits a pixel, compression.
BMP_HEADER = struct.Struct("<10xIIii2xHI20x")


def decode_bmp(data: Bytes) -> Image:
    """Return ``(H, W)`` or ``(H, W, C)``: RGB, or RGBA where the header has a mask for alpha."""
    _refuse_unused_channel(bytes(data))
    return _decode(data, "BMP")


def decode_tga(data: Bytes) -> Image:
    """Return ``(H, W)`` or ``(H, W, C)``, its first row on top."""
    kind, entry_bits, bits = (data[2] & 7, data[7], data[16]) if len(data) > 16 else (0, 0, 0)
    if (kind == 2 and bits not in (24, 32)) or (kind == 1 and entry_bits not in (24, 32)):
        raise UnreadableError(  # readers disagree about the sixteenth bit
            f"a TGA with colours of {bits if kind == 2 else entry_bits} bits: write my_read and "
            "add --custom_read_func: import PIL.Image, numpy; "
            "return numpy.array(PIL.Image.open(path))"
        )
    return _decode(data, "TGA")


def decode_webp(data: Bytes) -> Image:
    """Return ``(H, W, C)``, RGB or RGBA; of an animation ``(N, H, W, C)``."""
    with open_with_pillow(data, "WEBP") as image:
        count = getattr(image, "n_frames", 1)
        if count == 1:
            return of_colours(np.array(image))
        frames = np.empty((count, image.height, image.width, len(image.getbands())), np.uint8)
        for n in range(count):
            image.seek(n)
            frames[n] = image
        return of_colours(frames, Note.FRAMES, row_axis=1)


def _decode(data: Bytes, name: str) -> Image:
    with open_with_pillow(data, name) as image:
        if image.mode != "P":
            return of_colours(np.array(image))
        image.load()
        assert image.palette is not None
        return of_colours(np.array(image.convert(image.palette.mode)), Note.PALETTE)


def encode_bmp(data: Bytes, resized: Resized) -> bytes:
    """Return a BMP of gray or RGB, or of the palette that it has."""
    return _encode(data, resized, "BMP")


def encode_tga(data: Bytes, resized: Resized) -> bytes:
    """Return a TGA, with a palette and in runs where it was."""
    with open_with_pillow(data, "TGA") as image:
        runs = {"compression": "tga_rle"} if image.info.get("compression") else {}
    return _encode(data, resized, "TGA", **runs)


def encode_webp(data: Bytes, resized: Resized) -> bytes:
    """Return a WebP, lossy where it was."""
    with open_with_pillow(data, "WEBP") as image:
        if getattr(image, "n_frames", 1) > 1:
            refuse_animation(len(resized.array))
        kept = kept_of(image)
    picture = as_picture(resized.array)
    if is_lossy_webp(data):
        return saved(picture, "WEBP", quality=resized.quality, **kept)
    return saved(picture, "WEBP", lossless=True, exact=True, **kept)


def is_lossy_webp(data: Bytes) -> bool:
    """Tell whether the first picture is of the lossy kind."""
    offset, data = 12, bytes(data)
    while offset + 8 <= len(data):
        kind = data[offset : offset + 4]
        if kind in (b"VP8 ", b"VP8L"):
            return kind == b"VP8 "
        if kind == b"ANMF":  # a frame: its size and time, then chunks
            offset += 8 + 16
            continue
        nbytes = int.from_bytes(data[offset + 4 : offset + 8], "little")
        offset += 8 + nbytes + nbytes % 2
    return True


def _encode(data: Bytes, resized: Resized, name: str, **options: str) -> bytes:
    with open_with_pillow(data, name) as image:
        is_indexed = image.mode == "P"
        return saved(
            pick(image, resized) if is_indexed else as_picture(resized.array), name, **options
        )


def _refuse_unused_channel(data: bytes) -> None:
    """Refuse a BMP of 32 bits with values in the byte that its header says is not used."""
    if len(data) < BMP_HEADER.size:
        return
    begin, header_nbytes, width, height, bits, compression = BMP_HEADER.unpack_from(data)
    if header_nbytes < 40 or bits != 32 or compression != 0:
        return
    height = abs(height)
    fourth = np.frombuffer(data, np.uint8)[begin + 3 : begin + 4 * max(width, 0) * height : 4]
    if fourth.size and fourth.min() != fourth.max():
        raise UnreadableError(
            "a BMP of 32 bits with values in its fourth channel, which Pillow drops: write my_read "
            "and add --custom_read_func: import cv2; return cv2.imread(path, cv2.IMREAD_UNCHANGED)"
        )
