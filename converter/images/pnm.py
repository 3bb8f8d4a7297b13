"""Decode and encode Netpbm formats and PFM: the values as they are written, by numpy alone."""

from __future__ import annotations

import math
import re

import numpy as np

from converter.errors import UnreadableError
from converter.images.formats import PNM
from converter.images.picture import Bytes, Image, Pixels, Resized, refuse_too_large
from converter.samples import Note

SPACE = rb"(?:\s|#[^\r\n]*[\r\n])"
PLAIN = re.compile(rb"P([1-6])" + SPACE + rb"+(\d{1,10})" + SPACE + rb"+(\d{1,10})")
MAXVAL = re.compile(SPACE + rb"+(\d{1,5})")
PAM = re.compile(rb"P7\s*\n(.*?)^ENDHDR[ \t]*\r?\n", re.DOTALL | re.MULTILINE)
PFM = re.compile(rb"P([fF])\s+(\d{1,10})\s+(\d{1,10})\s+([-+.\deE]{1,30})(?:\r\n|\s)")
MAGIC = PNM.magic


def decode(data: Bytes) -> Image:
    """Return ``(H, W[, C])``, or ``(N, H, W[, C])`` where the file holds several images.

    bool for bitmaps, True white; uint8 or, above a maxval of 255, uint16: as written, not
    scaled to the full range. PFM: float32, its first row on top.
    """
    data = bytes(data)
    arrays, kinds, offset = [], set(), 0
    while True:
        begin = offset
        array, offset = _decode_one(data, begin)
        arrays.append(array)
        kinds.add(_pixels(data, begin))
        while data[offset : offset + 1].isspace():
            offset += 1
        if not MAGIC.match(data, offset):
            break
    pixels = kinds.pop() if len(kinds) == 1 else Pixels(None)
    if len(arrays) == 1:
        return Image(arrays[0], pixels=pixels)
    if len({(array.shape, array.dtype) for array in arrays}) > 1:
        raise UnreadableError(
            f"it holds {len(arrays)} images of different sizes or depths, which do not fit into "
            "one array: split it into files (pamsplit), or return one image from my_read"
        )
    row_axis = None if pixels.row_axis is None else 1
    alpha_axis = None if pixels.alpha_axis is None else 3
    several = pixels._replace(row_axis=row_axis, alpha_axis=alpha_axis)
    return Image(np.stack(arrays), Note.FRAMES, several)


def encode(data: Bytes, resized: Resized) -> bytes:
    """Return a file of the same kind and maxval; numbers that were text become bytes."""
    array = resized.array if resized.pixels.row_axis else resized.array[None]
    pam = PAM.match(bytes(data))
    return b"".join(_encode_one(picture, pam, resized.pixels.most) for picture in array)


def _encode_one(picture: np.ndarray, pam: re.Match[bytes] | None, most: int | None) -> bytes:
    height, width, *depth = picture.shape
    size, kind = f"{width} {height}", picture.dtype.kind
    if kind == "f":
        floats = picture[::-1].astype("<f4").tobytes()
        return f"P{'F' if depth else 'f'}\n{size}\n-1.0\n".encode() + floats
    if kind == "b" and pam is None:
        return f"P4\n{size}\n".encode() + np.packbits(~picture, axis=1).tobytes()
    most = 1 if kind == "b" else most or np.iinfo(picture.dtype).max
    samples = picture.astype(">u2" if most > 255 else np.uint8).tobytes()
    if pam is None:
        return f"P{6 if depth else 5}\n{size}\n{most}\n".encode() + samples
    fields = {"WIDTH": width, "HEIGHT": height, "DEPTH": depth[0] if depth else 1, "MAXVAL": most}
    lines = [b"P7", *(f"{name} {value}".encode() for name, value in fields.items())]
    if tuple_type := _fields(pam).get(b"TUPLTYPE"):
        lines.append(b"TUPLTYPE " + tuple_type.strip())
    return b"\n".join((*lines, b"ENDHDR", samples))


def _pixels(data: bytes, offset: int) -> Pixels:
    """Return what the header of an image that was decoded says of its numbers."""
    alpha_axis, most = None, None
    if header := PAM.match(data, offset):
        fields = _fields(header)
        most = int(fields[b"MAXVAL"])
        if fields.get(b"TUPLTYPE", b"").strip().endswith(b"_ALPHA") and fields[b"DEPTH"] != b"1":
            alpha_axis = 2
    elif header := PLAIN.match(data, offset):
        maxval = MAXVAL.match(data, header.end()) if header[1] not in b"14" else None
        most = int(maxval[1]) if maxval else None
    return Pixels(alpha_axis=alpha_axis, most=None if most in (255, 65535) else most)


def _decode_one(data: bytes, offset: int) -> tuple[np.ndarray, int]:
    if header := PFM.match(data, offset):
        return _floats(data, header)
    if header := PAM.match(data, offset):
        return _pam(data, header)
    header = PLAIN.match(data, offset)
    if header is None:
        raise UnreadableError("a PNM file whose header is damaged")
    kind, width, height = (int(text) for text in header.groups())
    refuse_too_large(width * height)
    if kind in (1, 4):
        return _bitmap(data, header.end(), kind, height, width)
    most = MAXVAL.match(data, header.end())
    if most is None or not 0 < int(most[1]) < 65536:
        raise UnreadableError("a PNM file whose header is damaged: it has no maxval in 1..65535")
    shape = (height, width, 3) if kind in (3, 6) else (height, width)
    if kind in (2, 3):
        return _text(data, most.end(), shape, int(most[1]))
    return _samples(data, most.end() + 1, shape, int(most[1]))


def _samples(data: bytes, begin: int, shape: tuple[int, ...], most: int) -> tuple[np.ndarray, int]:
    dtype = np.dtype(np.uint8 if most < 256 else ">u2")
    array, end = _take(data, begin, shape, dtype)
    if array.size and array.max() > most:
        raise UnreadableError(f"a damaged PNM file: values above its maxval of {most}")
    return array.astype(dtype.newbyteorder("=")), end


def _take(
    data: bytes, begin: int, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[np.ndarray, int]:
    count = math.prod(shape)
    end = begin + count * dtype.itemsize
    if end > len(data):
        raise UnreadableError("a truncated PNM file")
    return np.frombuffer(data, dtype, count, begin).reshape(shape), end


def _bitmap(data: bytes, offset: int, kind: int, height: int, width: int) -> tuple[np.ndarray, int]:
    if kind == 4:
        rows, end = _take(data, offset + 1, (height, -(-width // 8)), np.dtype(np.uint8))
        return np.unpackbits(rows, axis=1, count=width) == 0, end
    text = re.sub(rb"#[^\r\n]*", b"", data[offset:])
    bits = np.frombuffer(text, np.uint8)
    bits = bits[(bits == ord("0")) | (bits == ord("1"))]
    if bits.size < height * width:
        raise UnreadableError("a truncated PNM file")
    return (bits[: height * width] == ord("0")).reshape(height, width), len(data)


def _text(data: bytes, offset: int, shape: tuple[int, ...], most: int) -> tuple[np.ndarray, int]:
    words = re.sub(rb"#[^\r\n]*", b"", data[offset:]).split()
    count = math.prod(shape)
    if len(words) < count:
        raise UnreadableError("a truncated PNM file")
    try:
        array = np.array(words[:count], dtype=np.int64)
    except (ValueError, OverflowError):
        raise UnreadableError("a damaged PNM file: a value is not a number") from None
    if array.size and not 0 <= array.min() <= array.max() <= most:
        raise UnreadableError(f"a damaged PNM file: values outside 0..{most}, its maxval")
    return array.astype(np.uint8 if most < 256 else np.uint16).reshape(shape), len(data)


def _pam(data: bytes, header: re.Match[bytes]) -> tuple[np.ndarray, int]:
    fields = _fields(header)
    names = (b"HEIGHT", b"WIDTH", b"DEPTH", b"MAXVAL")
    try:
        height, width, depth, most = (int(fields[name]) for name in names)
        if min(height, width, depth) < 1 or not 0 < most < 65536:
            raise ValueError
    except (KeyError, ValueError):
        raise UnreadableError("a PAM file whose header is damaged") from None
    refuse_too_large(width * height)
    shape = (height, width) if depth == 1 else (height, width, depth)
    array, end = _samples(data, header.end(), shape, most)
    is_bitmap = depth == 1 and fields.get(b"TUPLTYPE", b"").strip() == b"BLACKANDWHITE"
    return (array != 0 if is_bitmap and most == 1 else array), end


def _fields(header: re.Match[bytes]) -> dict[bytes, bytes]:
    lines = (line.split(None, 1) for line in header[1].splitlines() if not line.startswith(b"#"))
    return {line[0]: line[1] for line in lines if len(line) == 2}


def _floats(data: bytes, header: re.Match[bytes]) -> tuple[np.ndarray, int]:
    width, height = int(header[2]), int(header[3])
    refuse_too_large(width * height)
    try:
        scale = float(header[4])
    except ValueError:
        raise UnreadableError("a PFM file whose header is damaged") from None
    if abs(scale) != 1:
        raise UnreadableError(
            f"its header has a scale of {abs(scale):g}, by which only some readers multiply: write "
            "my_read and add --custom_read_func: import cv2; "
            "return cv2.imread(path, cv2.IMREAD_UNCHANGED), or read the floats behind the three "
            "lines of the header with numpy.frombuffer"
        )
    dtype = np.dtype("<f4" if scale < 0 else ">f4")
    shape = (height, width, 3) if header[1] == b"F" else (height, width)
    array, end = _take(data, header.end(), shape, dtype)
    return np.ascontiguousarray(array[::-1], np.float32), end
