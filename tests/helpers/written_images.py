"""Write image files by their specifications alone, so that the expected pixels are known."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def png(
    samples: np.ndarray,
    colour_type: int,
    depth: int,
    *,
    interlaced: bool = False,
    palette: bytes = b"",
    trns: bytes = b"",
) -> bytes:
    """Return a PNG of samples ``(H, W, C)``; each row has another filter."""
    parts = [_png_head(samples, colour_type, depth, interlaced=interlaced)]
    parts += [png_chunk(b"PLTE", palette)] if palette else []
    parts += [png_chunk(b"tRNS", trns)] if trns else []
    pixels = _png_pixels(samples, depth, interlaced=interlaced)
    half = len(pixels) // 2  # two chunks, as large images have
    parts += [png_chunk(b"IDAT", pixels[:half]), png_chunk(b"IDAT", pixels[half:])]
    return b"".join((*parts, png_chunk(b"IEND", b"")))


def apng(
    frames: Sequence[tuple[np.ndarray, int, int, int, int]],
    size: tuple[int, int],
    colour_type: int,
    depth: int,
    *,
    still: np.ndarray | None = None,
    extra: bytes = b"",
) -> bytes:
    """Return an APNG of frames (samples, top, left, dispose, blend), perhaps with a still."""
    canvas = np.zeros((*size, PNG_CHANNELS[colour_type]))
    parts = [
        _png_head(canvas, colour_type, depth),
        png_chunk(b"acTL", struct.pack(">II", len(frames), 0)),
    ]
    parts.append(extra)
    if still is not None:
        parts.append(png_chunk(b"IDAT", _png_pixels(still, depth)))
    number = 0
    for n, (samples, top, left, dispose, blend) in enumerate(frames):
        height, width = samples.shape[:2]
        fields = (number, width, height, left, top, 1, 10, dispose, blend)
        parts.append(png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", *fields)))
        number += 1
        pixels = _png_pixels(samples, depth)
        if n == 0 and still is None:
            parts.append(png_chunk(b"IDAT", pixels))
        else:
            parts.append(png_chunk(b"fdAT", struct.pack(">I", number) + pixels))
            number += 1
    return b"".join((*parts, png_chunk(b"IEND", b"")))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def _png_head(
    samples: np.ndarray, colour_type: int, depth: int, *, interlaced: bool = False
) -> bytes:
    height, width = samples.shape[:2]
    fields = (width, height, depth, colour_type, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))


def _png_pixels(samples: np.ndarray, depth: int, *, interlaced: bool = False) -> bytes:
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = (samples[top::down, left::right] for top, left, down, right in passes)
    return zlib.compress(b"".join(_filtered(part, depth) for part in parts if part.size))


def _filtered(samples: np.ndarray, depth: int) -> bytes:
    step = max(1, samples.shape[2] * depth // 8)
    before, out = None, bytearray()
    for n, row in enumerate(samples.reshape(len(samples), -1)):
        if depth == 16:
            line = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
        elif depth == 8:
            line = row.astype(np.uint8)
        else:
            bits = np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
            line = np.packbits(bits)
        line = line.astype(int)
        if before is None:
            before = np.zeros_like(line)
        left = np.concatenate((np.zeros(step, int), line))[: len(line)]
        corner = np.concatenate((np.zeros(step, int), before))[: len(line)]
        kind = n % 5
        guesses = (0 * line, left, before, (left + before) // 2, _paeth(left, before, corner))
        out += bytes([kind]) + ((line - guesses[kind]) % 256).astype(np.uint8).tobytes()
        before = line
    return bytes(out)


def _paeth(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return np.where((pa <= pb) & (pa <= pc), a, np.where(pb <= pc, b, c))


def gif(
    frames: Iterable[tuple[np.ndarray, int, int, int, int | None]],
    size: tuple[int, int],
    table: np.ndarray,
    *,
    tables: Sequence[np.ndarray | None] = (),
    background: int = 0,
    interlaced: bool = False,
) -> bytes:
    """Return a GIF of frames (indices, top, left, disposal, transparent).

    ``table`` ``(2**n, 3)`` is for frames without one of their own in ``tables``.
    """
    height, width = size
    flags = 0x80 | (len(table).bit_length() - 2)
    out = b"GIF89a" + struct.pack("<HHBBB", width, height, flags, background, 0) + table.tobytes()
    for n, (indices, top, left, disposal, transparent) in enumerate(frames):
        flags = disposal << 2 | (transparent is not None)
        out += b"!\xf9\x04" + struct.pack("<BHB", flags, 5, transparent or 0) + b"\0"
        own = tables[n] if n < len(tables) else None
        flags = 0 if own is None else 0x80 | (len(own).bit_length() - 2)
        if interlaced:
            flags |= 0x40
            passes = ((0, 8), (4, 8), (2, 4), (1, 2))
            indices = np.concatenate([indices[first::step] for first, step in passes])
        rows, columns = indices.shape
        out += b"," + struct.pack("<HHHHB", left, top, columns, rows, flags)
        out += (b"" if own is None else own.tobytes()) + _lzw(indices)
    return out + b";"


def _lzw(indices: np.ndarray) -> bytes:
    """Code each index in 9 bits, beginning anew before codes would grow."""
    bits: list[int] = []
    codes: list[int] = []
    for n, index in enumerate(indices.ravel().tolist()):
        codes += [256, index] if n % 200 == 0 else [index]
    for code in [*codes, 257]:
        bits += [code >> place & 1 for place in range(9)]
    data = np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()
    blocks = [data[n : n + 255] for n in range(0, len(data), 255)]
    return b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def bmp(
    rows: bytes, width: int, height: int, bits: int, *, table: bytes = b"", **fields: int
) -> bytes:
    """Return a BMP with a header of 40 bytes; rows are padded to 4 bytes, the lowest first."""
    begin = 54 + len(table)
    head = struct.pack("<2sIHHI", b"BM", begin + len(rows), 0, 0, begin)
    compression = fields.get("compression", 0)
    info = (40, width, height, 1, bits, compression, len(rows), 0, 0, len(table) // 4, 0)
    return head + struct.pack("<IiiHHIIiiII", *info) + table + rows


def tga(
    pixels: bytes,
    width: int,
    height: int,
    bits: int,
    kind: int,
    *,
    flags: int = 0,
    table: bytes = b"",
) -> bytes:
    """Return a TGA; ``table`` holds BGR, ``flags`` 0x20 for the first row on top."""
    count, entry = (len(table) // 3, 24) if table else (0, 0)
    head = (0, int(bool(table)), kind, 0, count, entry, 0, 0, width, height, bits, flags)
    return struct.pack("<BBBHHBHHHHBB", *head) + table + pixels
