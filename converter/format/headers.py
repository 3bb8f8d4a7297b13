"""Lay out the object headers of datasets, many at once.

Numbers of messages and fields are those of the HDF5 File Format Specification, version 3.0,
section IV, and the attributes of images those of the HDF5 Image and Palette Specification, version
1.2. All structures used are read by HDF5 1.10 and newer.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from converter.codecs.filters import FilterPipeline
from converter.format.checksum import (
    CHECKSUM_NBYTES,
    STEP_NBYTES,
    State,
    beginning,
    checksum,
    lookup3,
)
from converter.format.chunk_tree import tree_nbytes
from converter.format.layout import IMAGE, NUMBERS, Layout
from converter.format.superblock import UNDEFINED

DATASPACE, DATATYPE, FILL_VALUE, LAYOUT, PIPELINE = 0x01, 0x03, 0x05, 0x08, 0x0B
ATTRIBUTE, ATTRIBUTE_INFO = 0x0C, 0x15
CONSTANT, NEVER_SHARED = 1, 4  # message flags
LARGEST_MESSAGE_NBYTES = 2**16 - 1
SHARE_OF_IMAGE = 100
MANY_NEW = 10  # layouts: numpy takes as long for them as Python for each
MESSAGE_HEAD = struct.Struct("<BHB")  # type, size, flags
#: Heads of datatypes, version 1: class, or with flags; the size follows.
INTEGER, FLOAT, ENUM = 0x10, 0x11, 0x18
STRING, UTF_8_STRING = bytes((0x13, 0, 0, 0)), bytes((0x13, 0x11, 0, 0))
BIG_ENDIAN, SIGNED, IMPLIED_BIT = 0x01, 0x08, 0x20
#: Bits of exponent and mantissa of IEEE 754, by bytes.
FLOATS = {2: (5, 10), 4: (8, 23), 8: (11, 52)}


class Template(NamedTuple):
    """A dataset's object header but for its numbers, which go to these places.

    ``nbytes_at`` or ``chunks_at`` is -1: what is in one piece has no chunks.
    """

    data: bytes
    shape_at: int
    address_at: int
    nbytes_at: int
    chunks_at: int


class Kind(NamedTuple):
    """What datasets have in common that share a template."""

    dtype: np.dtype
    rank: int
    filters: FilterPipeline
    content: str


@dataclass(eq=False)
class Header:
    """The object header of datasets of one layout, without address and size of their payloads.

    All of one kind have the same bytes before the shape, all of one layout before the address.
    ``is_used`` tells whether there were datasets of it already.
    """

    data: bytes
    shape_at: int
    address_at: int
    nbytes_at: int
    is_used: bool = False

    @cached_property
    def state(self) -> State:
        """Return the state of the checksum before the step with the address."""
        return self.state_before(self.address_at)

    def state_before(self, place: int) -> State:
        begin = _step_of(place)
        return beginning(self.data[:begin], len(self.data) - CHECKSUM_NBYTES)


def _step_of(place: int) -> int:
    """Return where the step of the checksum begins in which a byte is."""
    return place - place % STEP_NBYTES


def kind_of(layout: Layout) -> Kind:
    return Kind(layout.dtype, len(layout.shape), layout.filters, layout.content)


@functools.lru_cache(maxsize=4096)
def structure_nbytes(layout: Layout) -> int:
    """Return the bytes that HDF5's structures for one dataset take behind its payload."""
    nbytes = len(template(kind_of(layout)).data)
    if layout.chunks is not None:
        nbytes += tree_nbytes(layout.shape, layout.chunks)
    return nbytes


@functools.lru_cache(maxsize=1024)
def template(kind: Kind) -> Template:
    """Return the object header for datasets of one kind.

    Raises ValueError where a dtype has too many fields for HDF5.
    """
    messages = [
        (DATASPACE, 0, dataspace((0,) * kind.rank)),
        (DATATYPE, CONSTANT, datatype(kind.dtype)),
        (FILL_VALUE, CONSTANT, bytes((3, 0x0B if kind.filters else 0x0A))),  # HDF5's defaults
    ]
    if kind.filters:
        messages.append((PIPELINE, CONSTANT, _pipeline(kind.filters)))
    if kind.content in ("text", "bytes"):  # of encoded files the root group says it
        messages += attribute_messages([text_attribute("content", kind.content)])
    if kind.content == IMAGE:
        messages += attribute_messages(_image_attributes(kind.rank))
    body, address_at, nbytes_at, chunks_at = _layout(kind)
    messages.append((LAYOUT, 0, body))
    data = object_header(messages)
    layout_at = len(data) - CHECKSUM_NBYTES - len(body)
    first_message_at = 6 + 2 ** data[5]
    return Template(
        data,
        shape_at=first_message_at + MESSAGE_HEAD.size + 4,
        address_at=layout_at + address_at,
        nbytes_at=layout_at + nbytes_at if nbytes_at >= 0 else -1,
        chunks_at=layout_at + chunks_at if chunks_at >= 0 else -1,
    )


@functools.lru_cache(maxsize=4096)
def header(layout: Layout) -> Header:
    form = template(kind_of(layout))
    data = bytearray(form.data)
    struct.pack_into(f"<{len(layout.shape)}Q", data, form.shape_at, *layout.shape)
    if form.chunks_at >= 0 and layout.chunks is not None:
        struct.pack_into(f"<{len(layout.chunks)}I", data, form.chunks_at, *layout.chunks)
    return Header(bytes(data), form.shape_at, form.address_at, form.nbytes_at)


def fill_headers(
    buffer: np.ndarray,
    forms: Sequence[Header],
    numbers: np.ndarray,
    *,
    places: np.ndarray,
    addresses: np.ndarray,
    nbytes: np.ndarray,
) -> None:
    """Write object headers of one kind into ``buffer``, uint8, with checksums.

    ``numbers`` say which of the forms each has, ``places`` the offsets at which they begin;
    ``addresses`` and ``nbytes`` are those of the payloads.
    """
    first, count = forms[0], len(numbers)
    length = len(first.data)
    templates = np.frombuffer(b"".join([form.data for form in forms]), np.uint8)
    rows = templates.reshape(-1, length)[numbers]
    for start, values in ((first.address_at, addresses), (first.nbytes_at, nbytes)):
        if start >= 0:
            rows[:, start : start + 8] = values.astype("<u8").view(np.uint8).reshape(count, 8)
    begin, states = _begun(forms)
    checksums = lookup3(rows[:, begin:-CHECKSUM_NBYTES], np.array(states, np.uint32)[numbers])
    rows[:, -CHECKSUM_NBYTES:] = checksums.astype("<u4").view(np.uint8).reshape(count, -1)
    whole = f"V{length}"  # copied at once
    windows: np.ndarray = np.ndarray(len(buffer) - length + 1, whole, buffer, strides=1)
    windows[places] = rows.view(whole)[:, 0]


def _begun(forms: Sequence[Header]) -> tuple[int, list[State]]:
    """Return up to where checksums are known, and their states there.

    Of encoded files each has a layout of its own, of photos nearly each: where many layouts are
    new, only what is before the shape is left out of the many checksums made at once.
    """
    first = forms[0]
    new = [form for form in forms if not form.is_used]
    for form in new:
        form.is_used = True
    if len(new) >= MANY_NEW:
        return _step_of(first.shape_at), [first.state_before(first.shape_at)] * len(forms)
    return _step_of(first.address_at), [form.state for form in forms]


def object_header(messages: Sequence[tuple[int, int, bytes]]) -> bytes:
    """Return a version 2 object header of (type, flags, body) messages, with its checksum."""
    if any(len(content) > LARGEST_MESSAGE_NBYTES for _, _, content in messages):
        raise ValueError("a message of more than 64 KiB, as of a dtype with too many fields")
    body = b"".join(
        MESSAGE_HEAD.pack(number, len(content), flags) + content
        for number, flags, content in messages
    )
    width = next(n for n in (0, 1, 2) if len(body) < 2 ** (8 * 2**n))
    data = b"OHDR" + bytes((2, width)) + len(body).to_bytes(2**width, "little") + body
    return data + checksum(data)


def dataspace(shape: tuple[int, ...]) -> bytes:
    """Return a dataspace message, version 2, without maximum sizes."""
    head = bytes((2, len(shape), 0, 1 if shape else 0))
    return head + struct.pack(f"<{len(shape)}Q", *shape)


def datatype(dtype: np.dtype) -> bytes:
    """Return a datatype message, as HDF5 itself encodes it (behind a head of two bytes)."""
    if dtype.char in NUMBERS and dtype.metadata is None:  # by metadata h5py knows enums
        return _number(dtype)
    from h5py import h5t  # its import takes 25 ms

    # not cached: dtypes of ASCII and UTF-8 are equal, and one would be taken for the other
    return bytes(h5t.py_create(dtype, logical=True).encode()[2:])


def _number(dtype: np.dtype) -> bytes:
    """Return the message of a bool, an integer or a float."""
    nbytes, bits = dtype.itemsize, 8 * dtype.itemsize
    if dtype.kind == "b":
        names = b"FALSE".ljust(8, b"\0") + b"TRUE".ljust(8, b"\0")
        return (
            struct.pack("<BHBI", ENUM, 2, 0, nbytes) + _number(np.dtype(np.int8)) + names + b"\0\1"
        )
    flags = BIG_ENDIAN if dtype.newbyteorder("<") != dtype else 0
    if dtype.kind == "f":
        exponent, mantissa = FLOATS[nbytes]
        head = struct.pack("<BBHIHH", FLOAT, flags | IMPLIED_BIT, bits - 1, nbytes, 0, bits)
        bias = 2 ** (exponent - 1) - 1
        return head + struct.pack("<BBBBI", mantissa, exponent, 0, mantissa, bias)
    flags |= SIGNED if dtype.kind == "i" else 0
    return struct.pack("<BBHIHH", INTEGER, flags, 0, nbytes, 0, bits)


def attribute_messages(attributes: Sequence[bytes]) -> list[tuple[int, int, bytes]]:
    """Return the messages for an object's attributes; without the first HDF5 counts none."""
    if not attributes:
        return []
    info = struct.pack("<BBQQ", 0, 0, UNDEFINED, UNDEFINED)
    kept = [(ATTRIBUTE, 0, attribute) for attribute in attributes]
    return [(ATTRIBUTE_INFO, NEVER_SHARED, info), *kept]


def text_attribute(name: str, value: str) -> bytes:
    """Return an attribute message: a fixed-length UTF-8 string."""
    data = value.encode() or b"\0"
    return attribute(name, UTF_8_STRING + len(data).to_bytes(4, "little"), data)


def attribute(name: str, kind: bytes, data: bytes) -> bytes:
    """Return an attribute message, version 3, of one value of a datatype."""
    space, label = dataspace(()), name.encode() + b"\0"
    head = struct.pack("<BBHHHB", 3, 0, len(label), len(kind), len(space), 1)
    return head + label + kind + space + data


def _image_attributes(rank: int) -> list[bytes]:
    """Return what makes a dataset an image: of three colours, or gray where ``rank`` is 2."""
    texts = {
        "CLASS": "IMAGE",
        "IMAGE_VERSION": "1.2",
        "IMAGE_SUBCLASS": "IMAGE_GRAYSCALE" if rank == 2 else "IMAGE_TRUECOLOR",
        "DISPLAY_ORIGIN": "UL",
    }
    if rank == 3:
        texts["INTERLACE_MODE"] = "INTERLACE_PIXEL"
    attributes = []
    for name, text in texts.items():
        data = text.encode() + b"\0"
        attributes.append(attribute(name, STRING + len(data).to_bytes(4, "little"), data))
    if rank == 2:
        attributes.append(attribute("IMAGE_WHITE_IS_ZERO", datatype(np.dtype(np.uint8)), b"\0"))
    return attributes


@functools.cache
def _image_nbytes(rank: int) -> int:
    """Return the bytes that the attributes of an image take."""
    messages = attribute_messages(_image_attributes(rank))
    return sum(MESSAGE_HEAD.size + len(body) for _, _, body in messages)


def is_image(dtype: np.dtype, shape: tuple[int, ...], stored_nbytes: int) -> bool:
    """Tell whether viewers should show an array of the default reader as an image.

    That is one of ``(H, W)`` or ``(H, W, 3)`` bytes, whose payload is so large that saying so
    takes less than one byte in `SHARE_OF_IMAGE`.
    """
    rank = len(shape)
    if rank != 2 and (rank != 3 or shape[2] != 3):
        return False
    return dtype == np.uint8 and SHARE_OF_IMAGE * _image_nbytes(rank) < stored_nbytes


@functools.lru_cache(maxsize=4096)
def as_image(layout: Layout) -> Layout:
    """Return the layout of an array that is marked as an image."""
    return replace(layout, content=IMAGE)


def _pipeline(filters: FilterPipeline) -> bytes:
    """Return a filter pipeline message, version 2; each filter optional, as h5py makes them."""
    parts = [bytes((2, len(filters)))]
    for number, values in filters:
        name = struct.pack("<H", 0) if number >= 256 else b""
        parts.append(struct.pack("<H", number) + name + struct.pack("<HH", 1, len(values)))
        parts.append(struct.pack(f"<{len(values)}I", *values))
    return b"".join(parts)


def _layout(kind: Kind) -> tuple[bytes, int, int, int]:
    """Return a data layout message, version 3, and where address, size and chunks go in it."""
    if not kind.filters:
        return struct.pack("<BBQQ", 3, 1, UNDEFINED, 0), 2, 10, -1
    head = struct.pack("<BBBQ", 3, 2, kind.rank + 1, UNDEFINED)
    return head + struct.pack(f"<{kind.rank}II", *(0,) * kind.rank, kind.dtype.itemsize), 3, -1, 11
