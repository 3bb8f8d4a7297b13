"""Lay samples out one behind the other, with HDF5's structures for them; then groups and index.

The structures are made here, many at once, not by libhdf5: it takes 30 us and 270 bytes for what
takes 2 us and 90 bytes here, and it can crash on a full disk.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np

from converter.codecs.filters import crc32
from converter.format import groups
from converter.format.chunk_tree import chunk_tree
from converter.format.headers import (
    Header,
    Kind,
    fill_headers,
    header,
    kind_of,
    structure_nbytes,
)
from converter.format.index import Extent, IndexBuilder
from converter.format.layout import IMAGE, Layout, layout_json
from converter.format.superblock import SUPERBLOCK_NBYTES, UNDEFINED, superblock
from converter.samples import Batch, Encoded
from converter.writer import provenance
from converter.writer.journal import Row


class _Form(NamedTuple):
    """What all samples of one layout have in common."""

    kind: Kind
    header: Header
    nbytes: int  # of the structures of each
    described: bytes
    text: str


class _Placed(NamedTuple):
    """Headers, their offsets in a payload, and address and size of what their datasets hold."""

    headers: list[Header]
    places: list[int]
    addresses: list[int]
    sizes: list[int]


@functools.lru_cache(maxsize=4096)
def _form(layout: Layout) -> _Form:
    described = layout_json(layout)
    nbytes = structure_nbytes(layout)
    return _Form(kind_of(layout), header(layout), nbytes, described, described.decode())


class Structures:
    """All of the file but the payloads: 60 bytes of memory a sample beside its key."""

    def __init__(self) -> None:
        self.end = SUPERBLOCK_NBYTES  # of the samples so far; at last of the HDF5 part
        self._index = IndexBuilder()
        self._headers = array("Q")  # the address of each dataset's object header
        self._has_chunks = self._has_images = False

    def __len__(self) -> int:
        return len(self._index)

    def add(self, batch: Batch) -> list[Row]:
        """Append samples; put HDF5's structures into the space their payload has for them.

        Returns what to record of each file, failures too.
        """
        samples = [result for result in batch.results if isinstance(result, Encoded)]
        layouts = {id(sample.layout): sample.layout for sample in samples}
        form_of = {number: _form(layout) for number, layout in layouts.items()}
        forms = [form_of[id(sample.layout)] for sample in samples]
        extents = self._lay_out(samples, form_of, batch.payload)
        sources = [(sample.source_nbytes, sample.source_mtime_ns) for sample in samples]
        keys, described = [sample.key for sample in samples], [form.described for form in forms]
        self._index.extend([key.encode() for key in keys], described, extents, sources)
        rows = map(Row, keys, [form.text for form in forms], extents, sources)
        return [
            next(rows) if isinstance(result, Encoded) else Row(result.key)
            for result in batch.results
        ]

    def _lay_out(
        self, samples: Sequence[Encoded], form_of: Mapping[int, _Form], payload: memoryview
    ) -> list[list[Extent]]:
        """Put the structures of samples behind their payloads; return where these lie."""
        begin, end, all_extents = self.end, self.end, []
        placed = {form.kind: _Placed([], [], [], []) for form in form_of.values()}
        placed_of = {number: placed[form.kind] for number, form in form_of.items()}
        for sample in samples:
            form, start, extents = form_of[id(sample.layout)], end, []
            for nbytes, crc in sample.parts:
                extents.append(Extent(end, nbytes, crc))
                end += nbytes
            all_extents.append(extents)
            nbytes, address = end - start, start if end > start else UNDEFINED
            if form.kind.filters:
                address = self._put_tree(sample.layout, extents, payload[end - begin :])
            end += form.nbytes
            place = end - len(form.header.data)
            self._headers.append(place)
            alike = placed_of[id(sample.layout)]
            alike.headers.append(form.header)
            alike.places.append(place - begin)
            alike.addresses.append(address)
            alike.sizes.append(nbytes)
        self.end = end
        for kind, datasets in placed.items():
            self._has_images |= kind.content == IMAGE
            self._has_chunks |= bool(kind.filters)
            fill_headers(np.frombuffer(payload, np.uint8), *datasets)
        return all_extents

    def _put_tree(self, layout: Layout, extents: Sequence[Extent], space: memoryview) -> int:
        """Put the B-tree of a dataset's chunks behind them; return its root's address."""
        assert layout.chunks is not None
        address = extents[-1].offset + extents[-1].nbytes
        nodes, root = chunk_tree(layout.shape, layout.chunks, extents, address)
        space[: len(nodes)] = nodes
        return root

    def write(self, file: BinaryIO, attributes: Mapping[str, str]) -> bytes:
        """Write groups and index behind the samples; return the superblock.

        ``attributes`` are those of the root group.
        """
        begin = self.end
        root, extension, crc = self._write_groups(file, attributes)
        self._index.write(file, self.end, groups_begin=begin, groups_crc32=crc)
        return superblock(root, self.end, extension)

    def _write_groups(self, file: BinaryIO, attributes: Mapping[str, str]) -> tuple[int, int, int]:
        """Write all groups, each behind those within it.

        Returns the addresses of the root's header and of the superblock's extension, if there is
        one, and the checksum of all that was written.
        """
        crc = 0

        def write(data: bytes) -> None:
            nonlocal crc
            file.write(data)
            crc = crc32(data, crc)
            self.end += len(data)

        open_folders = [groups.Links(b"")]

        def close_folder() -> None:
            folder = open_folders.pop()
            data, address = groups.group(folder.sorted(), self.end)
            open_folders[-1].add(folder.name, address)
            write(data)

        def enter(folders: list[bytes]) -> None:
            while [folder.name for folder in open_folders[1:]] != folders[: len(open_folders) - 1]:
                close_folder()
            open_folders.extend(map(groups.Links, folders[len(open_folders) - 1 :]))

        path = b""
        for key, address in zip(self._index.keys(), self._headers, strict=True):
            before, (path, slash, name) = path, key.rpartition(b"/")
            if path != before:
                enter(path.split(b"/") if slash else [])
            open_folders[-1].add(name, address)
        while len(open_folders) > 1:
            close_folder()
        extension = UNDEFINED
        if self._has_chunks:
            extension = self.end
            write(groups.superblock_extension())
        attributes = provenance.with_structures(
            attributes, has_chunks=self._has_chunks, has_images=self._has_images
        )
        heap, messages = groups.texts(attributes, self.end)
        write(heap)
        data, root = groups.group(open_folders[0].sorted(), self.end, messages)
        write(data)
        return root, extension, crc
