"""Damage finished HDF5 files on purpose, and craft tails that are wrong with a right checksum."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from converter.codecs.filters import crc32
from converter.format.index import FOOTER, MAGIC, SECTIONS, SOURCES_END, Footer, IndexBuilder
from converter.format.index_reader import Index
from converter.format.layout import layout_json
from converter.loader.h5folder import H5Folder


class Part(NamedTuple):
    """A part of a file: the bytes from ``begin`` on, before ``end``."""

    begin: int
    end: int


def tail_of(path: Path) -> Index:
    """Return the index of a file."""
    tail = H5Folder(path)._open().source.keys
    assert isinstance(tail, Index)
    return tail


def parts_of(path: Path) -> dict[str, Part]:
    """Return where the parts of a finished file are: payloads, groups, sources, each section."""
    content = path.read_bytes()
    footer = Footer.unpack(content[-FOOTER.size :])
    assert footer is not None
    sources = footer.hdf5_nbytes + -footer.hdf5_nbytes % 8
    parts = {
        "samples": Part(48, footer.groups_begin),
        "groups": Part(footer.groups_begin, footer.hdf5_nbytes),
        "sources": Part(sources, sources + footer.sources_nbytes),
    }
    at = sources + footer.sources_nbytes
    for name, size in zip(SECTIONS, footer.sizes, strict=True):
        parts[name] = Part(at, at + size)
        at += size + -size % 8
    parts["footer"] = Part(at, len(content))
    assert at + FOOTER.size == len(content)
    return parts


def payload_of(path: Path, key: str) -> Part:
    """Return where the first payload of a sample is."""
    tail = tail_of(path)
    position = tail.find(key)
    assert position is not None
    place = tail.extents(position)[0]
    return Part(place.offset, place.offset + place.nbytes)


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def rewrite_tail(path: Path, change: Callable[[bytearray, dict[str, Part]], None]) -> None:
    """Change bytes of a tail, and make its checksum good."""
    content, parts = bytearray(path.read_bytes()), parts_of(path)
    change(content, parts)
    begin, end = parts[SECTIONS[0]].begin, len(content) - len(MAGIC) - 4
    content[end : end + 4] = zlib.crc32(content[begin:end]).to_bytes(4, "little")
    path.write_bytes(content)


def replace_tail(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Put another index in the place of a file's own: of (new key, key it has) pairs."""
    tail, content, parts = tail_of(path), path.read_bytes(), parts_of(path)
    builder = IndexBuilder()
    for name, key in rows:
        position = tail.find(key)
        assert position is not None
        layout = tail.layout(tail.row(position).layout)
        described = layout_json(
            layout.dtype, layout.shape, layout.chunks, layout.filters, layout.content
        )
        builder.add(name.encode(), described, tail.extents(position), (0, 0))
    groups, written = parts["groups"], io.BytesIO()
    builder.write(
        written,
        groups.end,
        groups_begin=groups.begin,
        groups_crc32=crc32(content[groups.begin : groups.end]),
    )
    path.write_bytes(content[: groups.end] + written.getvalue())


def without_sources(path: Path) -> bytes:
    """Return a file's bytes with its sources' rows and their checksum zeroed."""
    content, part = bytearray(path.read_bytes()), parts_of(path)["sources"]
    content[part.begin : part.end - SOURCES_END.size + 4] = bytes(
        part.end - part.begin - SOURCES_END.size + 4
    )
    return bytes(content)
