"""Put the HDF5 file together from finished payloads. Alone decides what goes where in it.

Behind the superblock the file holds, sample by sample, the payload and HDF5's structures for it,
then the groups, then the tail. The structures are made here, many at once, not by libhdf5: it
takes 30 us and 270 bytes for what takes 2 us and 90 bytes here, and it can crash on a full disk.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from converter import groups
from converter.chunk_tree import chunk_tree
from converter.encoder import Encoded
from converter.errors import ConverterError, WriteError
from converter.headers import UNDEFINED, Kind, fill_headers, kind_of, structure_nbytes, template
from converter.index import IndexBuilder, Place, layout_json
from converter.places import write_at
from converter.pool import Batch

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Writer:
    """Write samples in plan order to ``path``.partial, which becomes ``path`` when complete.

    The copying of payloads a worker does where it can, from the cache they are still in.
    """

    def __init__(self, path: Path, *, estimate: int | None = None) -> None:
        """Take the name, and how many bytes are expected: no more than a guess."""
        self.path = path
        self.partial = path_of_partial(path)
        self.payload_nbytes = 0
        self._estimate = estimate or 0
        self._index = IndexBuilder()
        self._headers = array("Q")  # where each dataset's object header is
        self._end = groups.SUPERBLOCK_NBYTES
        self._file: io.FileIO | None = None

    def open(self) -> None:
        """Begin the file.

        Raises ConverterError while another run writes it, WriteError where it cannot be made.
        """
        try:
            self._file = _open_locked(self.partial)
            self._file.truncate(0)
        except OSError as error:
            raise self.explain(error) from error

    def __len__(self) -> int:
        return len(self._index)

    def write(self, batch: Batch) -> None:
        """Append the samples of a batch.

        Raises WriteError when the disk is full or fails: nothing can be written after that.
        """
        assert self._file is not None
        samples = [result for result in batch.results if isinstance(result, Encoded)]
        if not samples:
            return
        start = self._end
        self._complete(samples, np.frombuffer(batch.payload, np.uint8))
        try:
            if not batch.write_elsewhere(self.partial, start):
                write_at(self._file, batch.payload, start)
        except OSError as error:
            raise self.explain(error) from error

    def finish(self, attributes: Mapping[str, str]) -> int:
        """Write groups and tail, give the file its name; return its bytes.

        ``attributes`` are those of the root group.
        """
        assert self._file is not None
        try:
            self._file.seek(self._end)
            buffered = io.BufferedWriter(self._file)  # it writes on after a short write
            root = self._write_groups(buffered, attributes)
            self._index.write(buffered, self._end)
            nbytes = buffered.tell()
            buffered.flush()
            buffered.detach()
            write_at(self._file, memoryview(groups.superblock(root, self._end)), 0)
            if os.name == "nt":  # no open file can be renamed there
                self._file.close()
            os.replace(self.partial, self.path)
            self._file.close()
        except OSError as error:
            raise self.explain(error) from error
        return nbytes

    def abandon(self) -> None:
        """Leave nothing behind. Does nothing after `finish`."""
        if self._file is None or self._file.closed:
            return
        self._file.truncate(0)  # a worker may still hold it open
        self.partial.unlink(missing_ok=True)
        self._file.close()

    def explain(self, error: OSError) -> WriteError:
        """Return the error to raise when the file system refuses."""
        needed = max(self._estimate, self.payload_nbytes)
        return WriteError(
            f"{self.path} could not be written ({error.strerror or error}): it needs about "
            f"{needed / 1e6:,.0f} MB: free that much, or name another disk with --path_output"
        )

    def _complete(self, samples: Sequence[Encoded], buffer: np.ndarray) -> None:
        """Give samples their places; put HDF5's structures into the space left for them."""
        known: dict[int, tuple[Kind, int, bytes]] = {}
        rows_of: dict[Kind, list[int]] = {}
        structures = []
        for row, sample in enumerate(samples):
            layout = sample.layout
            found = known.get(id(layout))
            if found is None:
                found = kind_of(layout), structure_nbytes(layout), layout_json(*layout)
                known[id(layout)] = found
            rows_of.setdefault(found[0], []).append(row)
            structures.append(found[1])
        nbytes = np.array([sum([part.nbytes for part in s.parts]) for s in samples])
        ends = np.cumsum(nbytes + structures)
        starts = ends - nbytes - structures
        headers = ends.copy()
        for kind, rows in rows_of.items():
            form = template(kind)
            headers[rows] -= len(form.data)
            addresses = (self._end + starts[rows]).astype(np.uint64)
            addresses[nbytes[rows] == 0] = UNDEFINED
            if kind.chunks is not None:
                for number, row in enumerate(rows):
                    addresses[number] = self._put_tree(samples[row], buffer, starts[row])
            shapes = [samples[row].layout.shape for row in rows]
            fill_headers(
                buffer,
                form,
                places=headers[rows],
                shapes=np.array(shapes, np.uint64).reshape(len(rows), kind.rank),
                addresses=addresses,
                nbytes=nbytes[rows],
            )
        offsets = (self._end + starts).tolist()
        for sample, offset in zip(samples, offsets, strict=True):
            places = _places(sample, offset)
            self._index.add(sample.key.encode(), known[id(sample.layout)][2], places)
        self._headers.extend((self._end + headers).tolist())
        self.payload_nbytes += int(nbytes.sum())
        self._end += int(ends[-1])

    def _put_tree(self, sample: Encoded, buffer: np.ndarray, start: int) -> int:
        """Put the B-tree of a dataset of several chunks behind them; return its root."""
        layout = sample.layout
        assert layout.chunks is not None
        places = _places(sample, self._end + int(start))
        address = places[-1].offset + places[-1].nbytes
        nodes, root = chunk_tree(layout.shape, layout.chunks, places, address)
        buffer[address - self._end :][: len(nodes)] = np.frombuffer(nodes, np.uint8)
        return root

    def _write_groups(self, file: BinaryIO, attributes: Mapping[str, str]) -> int:
        """Write all groups, each behind those within it; return where the root's header is."""

        def write(data: bytes) -> None:
            file.write(data)
            self._end += len(data)

        open_folders = [groups.Links(b"")]

        def close_folder() -> None:
            folder = open_folders.pop()
            data, address = groups.group(folder.sorted(), self._end)
            open_folders[-1].add(folder.name, address)
            write(data)

        for key, address in zip(self._index.keys(), self._headers, strict=True):
            *parts, name = key.split(b"/")
            depth = _common(parts, open_folders)
            while len(open_folders) > depth + 1:
                close_folder()
            open_folders += [groups.Links(part) for part in parts[depth:]]
            open_folders[-1].add(name, address)
        while len(open_folders) > 1:
            close_folder()
        heap, messages = groups.texts(attributes, self._end)
        write(heap)
        data, root = groups.group(open_folders[0].sorted(), self._end, messages)
        write(data)
        return root


def _common(parts: Sequence[bytes], open_folders: Sequence[groups.Links]) -> int:
    """Return how many of a key's folders are open already."""
    depth = 0
    for part, folder in zip(parts, open_folders[1:], strict=False):
        if part != folder.name:
            break
        depth += 1
    return depth


def _places(sample: Encoded, offset: int) -> list[Place]:
    places = []
    for part in sample.parts:
        places.append(Place(offset, part.nbytes, part.crc32))
        offset += part.nbytes
    return places


def path_of_partial(path: Path) -> Path:
    """Return the name a file has while it is being written."""
    return path.with_name(path.name + ".partial")


def _open_locked(path: Path) -> io.FileIO:
    """Open a file for writing and keep others from writing it, where the file system can."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
    file = io.FileIO(os.open(path, flags, 0o666), "r+")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise _in_use(path) from None
        except OSError:  # a file system without locks
            pass
    # Another run may have finished, and renamed this very file, while it was being opened.
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        file.close()
        raise _in_use(path)
    return file


def _in_use(path: Path) -> ConverterError:
    return ConverterError(f"{path} is being written by another run: wait for it, or end it")
