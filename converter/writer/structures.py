"""Lay samples out one behind the other, with HDF5's structures for them; then groups and index.

The structures are made here, many at once, not by libhdf5: it takes 30 us and 270 bytes for what
takes 2 us and 90 bytes here, and it can crash on a full disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np

from converter.codecs.filters import crc32
from converter.format import groups
from converter.format.chunk_tree import chunk_tree
from converter.format.headers import Kind, fill_headers, kind_of, structure_nbytes, template
from converter.format.index import Extent, IndexBuilder
from converter.format.layout import IMAGE, Layout, layout_json
from converter.format.superblock import SUPERBLOCK_NBYTES, UNDEFINED, superblock
from converter.samples import Batch, Encoded
from converter.writer import provenance
from converter.writer.journal import Row


class Structures:
    """All of the file but the payloads: 60 bytes of memory a sample beside its key."""

    def __init__(self) -> None:
        self.end = SUPERBLOCK_NBYTES  # of the samples so far; at last of the HDF5 part
        self.payload_nbytes = 0
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
        if not samples:
            return [Row(result.key) for result in batch.results]
        buffer = np.frombuffer(batch.payload, np.uint8)
        known: dict[int, tuple[Kind, int, str]] = {}
        samples_of: dict[Kind, list[int]] = {}
        structures = []
        for number, sample in enumerate(samples):
            layout = sample.layout
            if id(layout) not in known:
                described = layout_json(layout).decode()
                known[id(layout)] = kind_of(layout), structure_nbytes(layout), described
            kind, structure, _ = known[id(layout)]
            samples_of.setdefault(kind, []).append(number)
            structures.append(structure)
        nbytes = np.array([sum([part.nbytes for part in s.parts]) for s in samples])
        ends = np.cumsum(nbytes + structures)
        starts = ends - nbytes - structures
        headers = ends.copy()
        extents = [
            _extents(sample, self.end + start)
            for sample, start in zip(samples, starts.tolist(), strict=True)
        ]
        for kind, numbers in samples_of.items():
            form = template(kind)
            self._has_images |= kind.content == IMAGE
            headers[numbers] -= len(form.data)
            addresses = (self.end + starts[numbers]).astype(np.uint64)
            addresses[nbytes[numbers] == 0] = UNDEFINED
            layouts = [samples[number].layout for number in numbers]
            shapes = np.array([layout.shape for layout in layouts], np.uint64)
            chunks = None
            if kind.filters:
                self._has_chunks = True
                chunks = np.array([layout.chunks for layout in layouts], np.uint32)
                for n, number in enumerate(numbers):
                    addresses[n] = self._put_tree(layouts[n], extents[number], batch.payload)
            fill_headers(
                buffer,
                form,
                places=headers[numbers],
                shapes=shapes.reshape(len(numbers), kind.rank),
                chunks=chunks,
                addresses=addresses,
                nbytes=nbytes[numbers],
            )
        self._headers.extend((self.end + headers).tolist())
        self.payload_nbytes += int(nbytes.sum())
        self.end += int(ends[-1])
        rows, unrecorded = [], iter(extents)
        for result in batch.results:
            if not isinstance(result, Encoded):
                rows.append(Row(result.key))
                continue
            source = (result.source_nbytes, result.source_mtime_ns)
            described, extents_of = known[id(result.layout)][2], next(unrecorded)
            rows.append(Row(result.key, described, extents_of, source))
            self._index.add(result.key.encode(), described.encode(), extents_of, source)
        return rows

    def _put_tree(self, layout: Layout, extents: Sequence[Extent], payload: memoryview) -> int:
        """Put the B-tree of a dataset's chunks behind them; return its root's address."""
        assert layout.chunks is not None
        address = extents[-1].offset + extents[-1].nbytes
        nodes, root = chunk_tree(layout.shape, layout.chunks, extents, address)
        begin = address - self.end
        payload[begin : begin + len(nodes)] = nodes
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

        for key, address in zip(self._index.keys(), self._headers, strict=True):
            *folders, name = key.split(b"/")
            while [folder.name for folder in open_folders[1:]] != folders[: len(open_folders) - 1]:
                close_folder()
            open_folders += [groups.Links(folder) for folder in folders[len(open_folders) - 1 :]]
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


def _extents(sample: Encoded, offset: int) -> list[Extent]:
    extents = []
    for part in sample.parts:
        extents.append(Extent(offset, part.nbytes, part.crc32))
        offset += part.nbytes
    return extents
