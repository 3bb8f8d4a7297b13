"""Damage finished HDF5 files on purpose, and craft tails that are wrong with a right checksum."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import h5py

from converter.codecs.filters import crc32
from converter.format.index import FOOTER, MAGIC, ROW, SECTIONS, SOURCES_END, Footer, IndexBuilder
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


def payload_bytes(path: Path, key: str) -> bytes:
    """Return the first payload of a sample."""
    begin, end = payload_of(path, key)
    return path.read_bytes()[begin:end]


def put_payload(path: Path, payload: bytes) -> Path:
    """Put another payload, no longer one, in the place of a file's only; the index agrees."""
    begin, end = payload_of(path, "a.npy")
    assert len(payload) <= end - begin
    editor = TailEditor(path)
    editor.content[begin : begin + len(payload)] = payload
    editor.put("rows", ROW.fields["nbytes"][1], "<Q", len(payload))
    editor.put("rows", ROW.fields["crc32"][1], "<I", crc32(payload))
    return editor.save()


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Flip one bit."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def cut_in_half(path: Path) -> None:
    """Leave the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_tail_off(path: Path) -> Path:
    """Let HDF5 do it, as any tool that opens the file for writing does."""
    nbytes = path.stat().st_size
    h5py.File(path, "r+").close()
    assert path.stat().st_size < nbytes
    return path


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
        layout = tail.layout(tail.layout_numbers[position])
        described = layout_json(layout)
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


class TailEditor:
    """Change the fields of a file's tail; the checksum is made good unless told otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = bytearray(path.read_bytes())
        footer = Footer.unpack(self.content[-FOOTER.size :])
        assert footer is not None
        self.footer = footer

    @property
    def index_begin(self) -> int:
        """Return where the footer says that the index begins, behind the sources."""
        return self.sources_begin + self.footer.sources_nbytes

    @property
    def sources_begin(self) -> int:
        return self.footer.hdf5_nbytes + -self.footer.hdf5_nbytes % 8

    def begin(self, section: str) -> int:
        """Return where a section begins in the file."""
        at = self.index_begin
        for name, size in zip(SECTIONS, self.footer.sizes, strict=True):
            if name == section:
                return at
            at += size + -size % 8
        raise KeyError(section)

    def field(self, name: str) -> int:
        """Return a field of the footer, or the size of a section."""
        if name in SECTIONS:
            return self.footer.sizes[SECTIONS.index(name)]
        value = getattr(self.footer, name)
        assert isinstance(value, int)
        return value

    def set_field(self, name: str, value: int) -> TailEditor:
        """Change a field of the footer, or the size of a section."""
        if name in SECTIONS:
            sizes = list(self.footer.sizes)
            sizes[SECTIONS.index(name)] = value
            self.footer = self.footer._replace(sizes=tuple(sizes))
        else:
            self.footer = self.footer._replace(**{name: value})
        return self

    def put(self, section: str, offset: int, form: str, value: int) -> TailEditor:
        """Overwrite one number within a section."""
        struct.pack_into(form, self.content, self.begin(section) + offset, value)
        return self

    def replace_layouts(self, layouts: bytes) -> TailEditor:
        """Put one other layout in the place of all, moving what is behind."""
        sections = {}
        for name in SECTIONS:
            begin = self.begin(name)
            sections[name] = bytes(self.content[begin : begin + self.field(name)])
        sections["layouts"], sections["layout_ends"] = layouts, struct.pack("<Q", len(layouts))
        del self.content[self.index_begin :]
        for section in sections.values():
            self.content += section + bytes(-len(section) % 8)
        self.footer = self.footer._replace(sizes=tuple(map(len, sections.values())))
        self.content += bytes(FOOTER.size)
        return self

    def save(self, *, good_crc: bool = True) -> Path:
        """Write the file back."""
        end = len(self.content) - FOOTER.size
        self.content[end:] = self.footer.pack()
        if good_crc:
            limit = len(self.content) - len(MAGIC) - 4
            crc = zlib.crc32(self.content[min(self.index_begin, end) : limit])
            self.footer = self.footer._replace(crc32=crc)
            self.content[end:] = self.footer.pack()
        self.path.write_bytes(self.content)
        return self.path
