"""Decode PNG and APNG at full depth, with the transparency of a colour key; encode PNG."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from converter.errors import UnreadableError
from converter.images.canvas import Background, Disposal, Frame, compose
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
    refuse_too_large,
    saved,
)
from converter.samples import Note

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Of the PNG specification (third edition), 11.2.1.
HEADER = struct.Struct(">IIBBBBB")
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
SUB = 1  # the filter that subtracts the pixel to the left
FRAME_CONTROL = struct.Struct(">IIIIIHHBB")
DISPOSALS = (Disposal.KEEP, Disposal.CLEAR, Disposal.PREVIOUS)


class Header(NamedTuple):
    """The fields of IHDR."""

    width: int
    height: int
    depth: int  # bits a sample
    colour_type: int
    compression: int
    filter: int
    interlace: int

    @property
    def has_alpha(self) -> bool:
        return self.colour_type in (GRAY_ALPHA, RGBA)


def decode(data: Bytes) -> Image:
    """Return ``(H, W[, C])``, of an APNG ``(N, H, W[, C])``.

    bool for gray of 1 bit, uint16 for 16 bits, else uint8; gray of 2 and 4 bits is scaled to
    0..255. Palettes are expanded. A colour key (tRNS) adds a channel of alpha.
    """
    header = read_header(data)
    refuse_too_large(header.width * header.height)
    before = _chunks_before_pixels(data)
    key = before.get(b"tRNS") if header.colour_type in (GRAY, RGB) else None
    note = Note.PALETTE if header.colour_type == PALETTE else Note.NONE
    if b"acTL" in before:
        frames = _decode_frames(bytes(data), header, key)
        return of_colours(frames, note | Note.FRAMES, row_axis=1)
    image = of_colours(_decode_still(data, header, key), note)
    is_mixable = image.pixels.is_mixable and header.depth > 1
    return image._replace(pixels=image.pixels._replace(is_mixable=is_mixable))


def encode(data: Bytes, resized: Resized) -> bytes:
    """Return a PNG of the same depth, with the palette that it has."""
    array, before = resized.array, _chunks_before_pixels(data)
    if b"acTL" in before:
        refuse_animation(len(array))
    with open_with_pillow(data, "PNG") as image:
        kept = kept_of(image)
        if image.mode == "P":
            return saved(pick(image, resized), "PNG", **kept)
    if array.dtype == np.uint16 and array.ndim == 3:
        return _encode_deep(array, kept, before.get(b"iCCP"))
    return saved(as_picture(array), "PNG", **kept)


def _encode_deep(array: np.ndarray, kept: dict[str, Any], profile: bytes | None) -> bytes:
    """Return a PNG of 16 bits a channel in colour, which Pillow cannot write."""
    height, width, channels = array.shape
    colour_type = {2: GRAY_ALPHA, 3: RGB, 4: RGBA}[channels]
    samples = array.astype(">u2").view(np.uint8).reshape(height, -1)
    rows = np.empty((height, 1 + samples.shape[1]), np.uint8)
    rows[:, 0] = SUB
    rows[:, 1:] = samples
    rows[:, 1 + 2 * channels :] -= samples[:, : -2 * channels]
    parts = [SIGNATURE, _chunk(b"IHDR", HEADER.pack(width, height, 16, colour_type, 0, 0, 0))]
    if profile:
        parts.append(_chunk(b"iCCP", profile))
    if "exif" in kept:
        parts.append(_chunk(b"eXIf", kept["exif"].tobytes().removeprefix(b"Exif\0\0")))
    parts += [_chunk(b"IDAT", zlib.compress(rows.tobytes())), _chunk(b"IEND", b"")]
    return b"".join(parts)


def read_header(data: Bytes) -> Header:
    """Return what IHDR says; UnreadableError where it is not there."""
    if bytes(data[12:16]) == b"CgBI":
        raise UnreadableError(
            "a PNG of an iPhone app, which only Apple's software reads: "
            "convert it with `pngcrush -revert-iphone-optimizations`"
        )
    if len(data) < 33 or bytes(data[12:16]) != b"IHDR":
        raise UnreadableError("a truncated or damaged PNG: it has no header")
    return Header(*HEADER.unpack(data[16:29]))


def chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the kind of each chunk, and the offsets at which its data begins and ends."""
    offset = len(SIGNATURE)
    while offset + 8 <= len(data):
        nbytes = int.from_bytes(data[offset : offset + 4], "big")
        yield bytes(data[offset + 4 : offset + 8]), offset + 8, offset + 8 + nbytes
        offset += 12 + nbytes


def _sound_chunks(data: bytes, what: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield what `chunks` does; UnreadableError where a checksum differs."""
    for kind, begin, end in chunks(data):
        if zlib.crc32(data[begin - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise UnreadableError(f"a damaged {what}: the checksum of {kind!r} differs")
        yield kind, begin, end


def cut_by_opencv(data: Bytes) -> Note:
    """Note depth and alpha, which ``cv2.imread(path)`` leaves out."""
    header = read_header(data)
    has_alpha = header.has_alpha or b"tRNS" in _chunks_before_pixels(data)
    depth = Note.DEPTH if header.depth == 16 else Note.NONE
    return depth | (Note.ALPHA if has_alpha else Note.NONE)


def _chunks_before_pixels(data: Bytes) -> dict[bytes, bytes]:
    before = itertools.takewhile(lambda chunk: chunk[0] != b"IDAT", chunks(data))
    return {kind: bytes(data[begin:end]) for kind, begin, end in before}


def _decode_still(data: Bytes, header: Header, key: bytes | None) -> np.ndarray:
    if header.depth == 16 and header.colour_type != GRAY:
        array = _decode_deep(bytes(data), header)
    else:
        with open_with_pillow(data, "PNG") as image:
            if image.mode == "P":
                return np.array(image.convert("RGBA" if "transparency" in image.info else "RGB"))
            array = np.array(image)
            if header.depth == 16 and array.dtype != np.uint16:  # before Pillow 10.1
                array = array.astype(np.uint16)
    return array if key is None else _with_key(array, header, key)


def _decode_deep(data: bytes, header: Header) -> np.ndarray:
    """Decode 16 bits a channel in colour, of which Pillow alone keeps the upper 8."""
    for kind, _, _ in _sound_chunks(data, "16-bit PNG"):
        if kind == b"IEND":
            break
    if header.colour_type == GRAY_ALPHA:  # 4 bytes a pixel, as RGBA of 8 bits has
        changed = header._replace(depth=8, colour_type=RGBA)
        data = SIGNATURE + _chunk(b"IHDR", HEADER.pack(*changed)) + data[33:]
        with open_with_pillow(data, "PNG") as image:
            pixels = np.array(image)
        return pixels.view(">u2").astype(np.uint16)
    channels = "RGB" if header.colour_type == RGB else "RGBA"
    upper, lower = (_decode_half(data, f"{channels};16{order}") for order in "BL")
    array = upper.astype(np.uint16)
    array <<= 8
    array |= lower
    return array


def _decode_half(data: bytes, raw_mode: str) -> np.ndarray:
    """Return the upper byte of each sample (``;16B``), or the lower (``;16L``)."""
    with open_with_pillow(data, "PNG") as image:
        (tile,) = image.tile  # type: ignore[attr-defined]
        kind = getattr(tile, "_make", tuple)  # a plain tuple before Pillow 11
        image.tile = [kind((*tile[:3], raw_mode))]  # type: ignore[attr-defined]
        return np.array(image)


def _with_key(array: np.ndarray, header: Header, key: bytes) -> np.ndarray:
    """Add alpha: pixels of the one colour that tRNS names are transparent (11.3.1.1)."""
    samples = _with_channels(array)
    if len(key) < 2 * samples.shape[2]:
        raise UnreadableError("a damaged PNG: its tRNS is too short")
    most = np.iinfo(samples.dtype).max
    colour = np.frombuffer(key, ">u2", samples.shape[2]) & (2**header.depth - 1)
    if header.depth < 8:
        colour = colour * (255 // (2**header.depth - 1))
    is_clear = (samples == colour.astype(samples.dtype)).all(axis=2, keepdims=True)
    alpha = np.where(is_clear, 0, most).astype(samples.dtype)
    return np.concatenate((samples, alpha), axis=2)


def _with_channels(array: np.ndarray) -> np.ndarray:
    """Return ``(H, W, C)`` integers."""
    if array.dtype == bool:
        array = array.astype(np.uint8) * np.uint8(255)
    return array[..., None] if array.ndim == 2 else array


def _decode_frames(data: bytes, header: Header, key: bytes | None) -> np.ndarray:
    parts = _Parts(data, header)
    frames = [_decode_frame(parts, n, header, key) for n in range(len(parts.frames))]
    channels, dtype = frames[0].colours.shape[2], frames[0].colours.dtype
    shape = len(frames), header.height, header.width
    colours, alpha = compose(frames, shape, dtype, Background((0,) * channels, 0))
    most = np.iinfo(alpha.dtype).max
    if parts.default is not None:  # a picture for those who cannot show the animation
        still = _split(_decode_still(parts.default, header, key))
        colours = np.concatenate((still[0][None], colours))
        alpha = np.concatenate((still[1][None], alpha))
    has_alpha = header.has_alpha or key is not None or parts.has_palette_alpha
    if has_alpha or (alpha != most).any():
        return np.concatenate((colours, alpha[..., None]), axis=3)
    return colours if channels > 1 else colours[..., 0]


def _decode_frame(parts: _Parts, n: int, header: Header, key: bytes | None) -> Frame:
    width, height, left, top, _, _, dispose, blend = parts.frames[n][1:]
    own = header._replace(width=width, height=height)
    colours, alpha = _split(_decode_still(parts.png(n, own), own, key))
    return Frame(colours, alpha, top, left, DISPOSALS[dispose], blend == 1)


def _split(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return colours ``(H, W, C)`` and alpha ``(H, W)``."""
    array = _with_channels(array)
    if array.shape[2] in (2, 4):
        return array[..., :-1], array[..., -1]
    return array, np.full(array.shape[:2], np.iinfo(array.dtype).max, array.dtype)


class _Parts:
    """An APNG taken apart, every chunk checked. Raises UnreadableError where a part is missing."""

    def __init__(self, data: bytes, header: Header) -> None:
        self.frames: list[tuple[int, ...]] = []
        self.default: bytes | None = None
        self.has_palette_alpha = False
        self._pixels: list[list[bytes]] = []
        self._shared = b""
        is_ended, sequence, count = False, 0, []
        for kind, begin, end in _sound_chunks(data, "APNG"):
            content = data[begin:end]
            if kind == b"acTL" and len(content) == 8:
                count.append(int.from_bytes(content[:4], "big"))
            elif kind in (b"PLTE", b"tRNS"):
                self._shared += _chunk(kind, content)
                self.has_palette_alpha |= kind == b"tRNS" and header.colour_type == PALETTE
            elif kind in (b"fcTL", b"fdAT"):
                if int.from_bytes(content[:4], "big") != sequence:
                    raise UnreadableError("a damaged APNG: a part of its frames is missing")
                sequence += 1
                if kind == b"fcTL":
                    self._begin_frame(content, header)
                elif self._pixels:
                    self._pixels[-1].append(content[4:])
            elif kind == b"IDAT" and self.frames:
                self._pixels[-1].append(content)
            elif kind == b"IDAT":  # a picture before the first frame
                self.default = self.default or _without_animation(data)
            is_ended |= kind == b"IEND"
        has_pixels = all(any(parts) for parts in self._pixels)
        if not is_ended or count != [len(self.frames)] or not count[0] or not has_pixels:
            raise UnreadableError(
                f"a damaged APNG: it announces {sum(count)} frames and holds {len(self.frames)}"
            )

    def png(self, n: int, header: Header) -> bytes:
        """Return a frame as a PNG of its own."""
        pixels = b"".join(self._pixels[n])
        head = _chunk(b"IHDR", HEADER.pack(*header))
        return SIGNATURE + head + self._shared + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")

    def _begin_frame(self, content: bytes, header: Header) -> None:
        if len(content) != FRAME_CONTROL.size:
            raise UnreadableError("a damaged APNG: a frame has no size")
        fields = FRAME_CONTROL.unpack(content)
        _, width, height, left, top, _, _, dispose, blend = fields
        is_inside = left + width <= header.width and top + height <= header.height
        if not (is_inside and width and height and dispose <= 2 and blend <= 1):
            raise UnreadableError("a damaged APNG: a frame lies outside the picture")
        self.frames.append(fields)
        self._pixels.append([])


def _without_animation(data: bytes) -> bytes:
    animation = (b"acTL", b"fcTL", b"fdAT")
    kept = (data[begin - 8 : end + 4] for kind, begin, end in chunks(data) if kind not in animation)
    return b"".join((SIGNATURE, *kept))


def _chunk(kind: bytes, content: bytes) -> bytes:
    size, checksum = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
    return size + kind + content + checksum
