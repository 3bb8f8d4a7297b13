"""Lay samples out one behind the other, with HDF5's structures for them; then groups and index.

The structures are made here, many at once, not by libhdf5: it takes 30 us and 270 bytes for what
takes 2 us and 90 bytes here, and it can crash on a full disk.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
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
from converter.format.index import SOURCE, Extent, IndexBuilder
from converter.format.layout import IMAGE, Layout, layout_json
from converter.format.superblock import SUPERBLOCK_NBYTES, UNDEFINED, superblock
from converter.samples import Batch, Encoded
from converter.writer import provenance
from converter.writer.journal import Rows


class _Form(NamedTuple):
    """What all samples of one layout have in common."""

    kind: Kind
    header: Header
    nbytes: int  # of the structures of each
    described: bytes


@functools.lru_cache(maxsize=4096)
def _form(layout: Layout) -> _Form:
    return _Form(kind_of(layout), header(layout), structure_nbytes(layout), layout_json(layout))


def _forms(layouts: Sequence[Layout]) -> tuple[list[_Form], np.ndarray]:
    """Return the forms of layouts, each once, and the number of each layout's."""
    ids = list(map(id, layouts))
    distinct = dict(zip(ids, layouts, strict=True))
    numbers = dict(zip(distinct, range(len(distinct)), strict=True))
    return list(map(_form, distinct.values())), np.array([numbers[one] for one in ids])


class Structures:
    """All of the file but the payloads: 60 bytes of memory a sample beside its key."""

    def __init__(self) -> None:
        self.end = SUPERBLOCK_NBYTES  # of the samples so far; at last of the HDF5 part
        self._index = IndexBuilder()
        self._headers = array("Q")  # the address of each dataset's object header
        self._has_chunks = self._has_images = False

    def __len__(self) -> int:
        return len(self._index)

    def add(self, batch: Batch) -> Rows:
        """Append samples; put HDF5's structures into the space their payload has for them.

        Returns what to record of each file, failures too.
        """
        samples = [result for result in batch.results if isinstance(result, Encoded)]
        if not samples:
            return Rows([], [(result.key,) for result in batch.results])
        keys, layouts, parts, nbytes, mtimes_ns, _ = zip(*samples, strict=True)
        forms, numbers = _forms(layouts)
        counts = np.array(list(map(len, parts)))
        extents = self._lay_out(samples, forms, numbers, counts, batch.payload)
        sources = np.empty(len(samples), SOURCE)
        sources["nbytes"], sources["mtime_ns"] = nbytes, mtimes_ns
        described = [forms[number].described for number in numbers.tolist()]
        self._index.extend([key.encode() for key in keys], described, counts, extents, sources)
        flat, ends = extents.ravel().tolist(), (3 * counts.cumsum()).tolist()
        each = zip(keys, numbers.tolist(), sources.tolist(), pairwise([0, *ends]), strict=True)
        rows = ((key, n, *source, *flat[begin:end]) for key, n, source, (begin, end) in each)
        content = [
            next(rows) if isinstance(result, Encoded) else (result.key,) for result in batch.results
        ]
        return Rows([form.described.decode() for form in forms], content)

    def _lay_out(
        self,
        samples: Sequence[Encoded],
        forms: Sequence[_Form],
        numbers: np.ndarray,
        counts: np.ndarray,
        payload: memoryview,
    ) -> np.ndarray:
        """Put the structures of samples behind their payloads; return the extents ``(P, 3)``.

        ``numbers`` say which of the forms each has, and ``counts`` how many extents.
        """
        parts = chain.from_iterable(sample.parts for sample in samples)
        extents = np.zeros((int(counts.sum()), 3), np.int64)
        extents[:, 1:] = np.fromiter(chain.from_iterable(parts), np.int64).reshape(-1, 2)
        firsts = np.concatenate(([0], counts.cumsum()))
        offsets = np.concatenate(([0], extents[:, 1].cumsum()))  # if all were payload
        begins, sizes = offsets[firsts[:-1]], np.diff(offsets[firsts])
        each = [(form.nbytes, len(form.header.data), bool(form.kind.filters)) for form in forms]
        structures, header_sizes, in_chunks = np.array(each)[numbers].T
        ends = self.end + (sizes + structures).cumsum()
        starts = ends - structures - sizes
        extents[:, 0] = offsets[:-1] + np.repeat(starts - begins, counts)
        addresses = np.where(sizes > 0, starts.astype(np.uint64), np.uint64(UNDEFINED))
        for n in np.flatnonzero(in_chunks).tolist():
            places = [Extent(*place) for place in extents[firsts[n] : firsts[n + 1]].tolist()]
            addresses[n] = self._put_tree(samples[n].layout, places, payload)
        self._put_headers(forms, numbers, payload, ends - header_sizes, addresses, sizes)
        self.end = int(ends[-1])
        return extents

    def _put_headers(
        self,
        forms: Sequence[_Form],
        numbers: np.ndarray,
        payload: memoryview,
        *columns: np.ndarray,
    ) -> None:
        """Put object headers where they go: ``columns`` are their places, addresses and sizes."""
        self._headers.frombytes(columns[0].astype(np.uint64).tobytes())
        kinds: dict[Kind, list[int]] = {}
        for number, form in enumerate(forms):
            kinds.setdefault(form.kind, []).append(number)
        for kind, alike in kinds.items():
            self._has_images |= kind.content == IMAGE
            self._has_chunks |= bool(kind.filters)
            chosen = np.isin(numbers, alike) if len(kinds) > 1 else slice(None)
            places, addresses, nbytes = (column[chosen] for column in columns)
            fill_headers(
                np.frombuffer(payload, np.uint8),
                [forms[number].header for number in alike],
                np.searchsorted(alike, numbers[chosen]),
                places=places - self.end,
                addresses=addresses,
                nbytes=nbytes,
            )

    def _put_tree(self, layout: Layout, extents: Sequence[Extent], payload: memoryview) -> int:
        """Put the B-tree of a dataset's chunks behind them; return its root's address."""
        assert layout.chunks is not None
        address = extents[-1].offset + extents[-1].nbytes
        nodes, root = chunk_tree(layout.shape, layout.chunks, extents, address)
        payload[address - self.end :][: len(nodes)] = nodes
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

        open_folders: list[tuple[bytes, groups.Links]] = [(b"", [])]

        def close_folder() -> None:
            name, links = open_folders.pop()
            data, address = groups.group(sorted(links), self.end)
            open_folders[-1][1].append((name, address))
            write(data)

        def enter(folders: list[bytes]) -> None:
            while [name for name, _ in open_folders[1:]] != folders[: len(open_folders) - 1]:
                close_folder()
            open_folders.extend((name, []) for name in folders[len(open_folders) - 1 :])

        path = b""
        for key, address in zip(self._index.keys(), self._headers, strict=True):
            before, (path, slash, name) = path, key.rpartition(b"/")
            if path != before:
                enter(path.split(b"/") if slash else [])
            open_folders[-1][1].append((name, address))
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
        data, root = groups.group(sorted(open_folders[0][1]), self.end, messages)
        write(data)
        return root, extension, crc
