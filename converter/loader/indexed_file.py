"""Read arrays by the index, without HDF5."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from converter.codecs.filters import as_bytes
from converter.errors import LoadError
from converter.files import Handle
from converter.format.index import Extent
from converter.format.index_reader import Index
from converter.format.layout import Layout
from converter.loader.chunks import check, read_chunks, read_plain_box
from converter.loader.h5py_file import Datasets
from converter.loader.page_cache import LARGEST_UNPROBED_NBYTES, PageCache
from converter.loader.selection import Box, Location, Placed, box_of, check_row, rows_of
from converter.threads import Threads

MOST_PLAINS = 4096
Bytes = bytes | bytearray | memoryview


class EqualArrays:
    """Arrays of one shape and dtype that lie in the file as they are; all that is checked."""

    def __init__(
        self, pages: PageCache, offsets: np.ndarray, layout: Layout, threads: Threads
    ) -> None:
        self.layout = layout
        self._pages = pages
        self._offsets = offsets
        self._threads = threads

    def take(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return some of them, by their places among the positions that were asked for."""
        return self._pages.gather(self._offsets.take(indices), self.layout, self._threads, out)


class Plain(NamedTuple):
    """How arrays of a layout are copied out of the mapping.

    Of small arrays ``items[offset]`` is the one there: overlapping, and quicker than making a view.
    """

    nbytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    mapped: Any
    items: np.ndarray | None


NOT_PLAIN = Plain(-1, np.dtype(np.uint8), (), None, None)


class IndexedFile:
    """An open file with its index."""

    holds_files = False

    def __init__(self, handle: Handle, index: Index, *, threads: Threads, verify: bool) -> None:
        self.keys = index
        self.identity = (handle.nbytes, index.crc32)
        self.is_encoded = index.has_encoded  # arrays may be among the files
        self._handle = handle
        self._threads = threads
        self._verify = verify
        self._datasets = Datasets(handle)
        self._pages = PageCache(handle, index.hdf5_nbytes, len(index))
        self._plains: dict[int, Plain] = {}

    def close(self) -> None:
        """Close HDF5's handle and end the threads; all else closes with its last user."""
        self._datasets.close()
        self._threads.close()

    def read(self, position: int, threads: int | None = None) -> np.ndarray:
        """Return the array at a position in range.

        At most ``threads`` decompress it; None: as many as a batch may use.
        """
        keys, pages = self.keys, self._pages
        offset, number = keys.offsets[position], keys.layout_numbers[position]
        plain = self._plains.get(number) or self._plain(number)
        if keys.nbytes[position] != plain.nbytes:
            return self._read_checked(position, threads)
        if plain.items is not None and pages.reads_to_probe > 0:
            pages.reads_to_probe -= 1
        elif offset + plain.nbytes > pages.nbytes or not pages.are_cached(plain.nbytes, offset):
            return self._read_checked(position, threads)
        if plain.items is None:
            return np.ndarray(plain.shape, plain.dtype, plain.mapped, offset).copy()
        try:
            array: np.ndarray = plain.items[offset].copy()
            return array
        except IndexError:  # behind the HDF5 part
            raise keys.misplaced(position) from None

    def view(self, position: int, first_row: int = 0, rows: int | None = None) -> np.ndarray:
        """Return an array, or rows of it, read-only, for a caller that copies out of it at once.

        It is a part of the mapping where its pages are cached. Elsewhere these rows are read.
        """
        keys = self.keys
        offset, nbytes = keys.offsets[position], keys.nbytes[position]
        layout = keys.layout(keys.layout_numbers[position])
        shape = layout.shape
        is_simple = layout.is_plain and layout.nbytes == nbytes and not self._verify
        if not is_simple or not nbytes or not shape or offset + nbytes > self._pages.nbytes:
            array = self.read(position)
            view = array[rows_of(first_row, rows)] if array.ndim else array
            view.flags.writeable = False
            return view
        if rows is not None or first_row:
            length = max(0, shape[0] - first_row)
            shape = (length if rows is None else min(rows, length), *shape[1:])
            offset += min(first_row, layout.shape[0]) * layout.strides[0]
        return self._pages.view(layout.dtype, shape, offset)

    def placed(self, positions: np.ndarray) -> Placed:
        """Return where the samples at positions in range lie; nothing of that is checked yet."""
        rows = self.keys.rows
        offsets = rows["offset"][positions].astype(np.int64)
        numbers = rows["layout"][positions].astype(np.int64)
        for number in np.unique(numbers).tolist():
            layout = self.keys.layout(number)
            if not layout.is_plain or not layout.nbytes:
                offsets[numbers == number] = -1
            if layout.is_encoded:
                numbers[numbers == number] = -1
        return Placed(offsets, numbers)

    def layout(self, number: int) -> Layout | None:
        """Return the layout of a number in `placed`; None for -1."""
        return None if number < 0 else self.keys.layout(number)

    def payload(self, position: int) -> Bytes | np.ndarray:
        """Return the bytes of a file, perhaps as a part of the mapping; or an array."""
        keys = self.keys
        layout = keys.layout(keys.layout_numbers[position])
        if not layout.is_encoded:
            return self.read(position)
        if not layout.has_shape and not self._verify:
            offset, nbytes = keys.offsets[position], keys.nbytes[position]
            if nbytes and offset + nbytes <= self._pages.nbytes:  # that is all to be checked
                return self._pages.read(nbytes, offset)
        return memoryview(self._read_checked(position))  # type: ignore[arg-type]

    def fetch(self, positions: np.ndarray) -> None:
        """Ask the disk for all samples that are read next, at once."""
        rows = self.keys.rows[positions]
        spans = []
        columns = [rows[name].tolist() for name in ("layout", "offset", "nbytes")]
        for position, number, offset, nbytes in zip(positions.tolist(), *columns, strict=True):
            if self.keys.layout(number).is_in_parts:
                spans += [(extent.offset, extent.nbytes) for extent in self.keys.extents(position)]
            elif offset + nbytes <= self._pages.nbytes:  # else the row is damaged
                spans.append((offset, nbytes))
        self._pages.fetch(spans)

    def read_part(self, position: int, selection: Any) -> np.ndarray:
        """Return a part of the array at a position in range, reading what that needs."""
        layout = self.keys.layout_at(position)
        box = box_of(selection, layout.shape)
        try:
            block = self._block(position, layout, box)
        except ValueError as error:
            raise self._damage(position, error) from None
        return np.array(block[(*box.take, ...)])

    def read_batch(
        self, positions: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Return arrays, stacked where shapes and dtypes agree; or fill ``out``, and return it."""
        rows = self.keys.rows
        numbers = rows["layout"][positions]
        if (numbers == numbers[0]).all():
            layout = self.keys.layout(int(numbers[0]))
            if layout.is_plain and layout.has_shape and layout.nbytes:
                check_row(out, layout, self.keys, int(positions[0]))
                return self._read_equal(positions, layout, out)
        self.fetch(positions)
        numbered = positions.tolist()
        layouts = [self.keys.layout_at(position) for position in numbered]
        if out is None and len({(layout.dtype, layout.shape) for layout in layouts}) > 1:
            return self._threads.map(functools.partial(self.read, threads=1), numbered)
        for position, layout in zip(numbered, layouts, strict=True):
            check_row(out, layout, self.keys, position)
        # checked before memory is taken
        extents = [self.keys.extents(position) for position in numbered]
        batch = out
        if batch is None:
            batch = np.empty((len(numbered), *layouts[0].shape), layouts[0].dtype)
        rows_of_batch = [batch[n, ...] for n in range(len(numbered))]

        def fill(n: int) -> None:
            row = rows_of_batch[n]
            target = row if row.flags.c_contiguous else np.empty(row.shape, row.dtype)
            self._fill(numbered[n], extents[n], layouts[n], target)
            if target is not row:
                row[...] = target

        self._threads.map(fill, range(len(numbered)))
        return batch

    def equal_arrays(self, positions: np.ndarray) -> EqualArrays | None:
        """Return what gives these arrays, in any order, without looking each up; None if unlike.

        It takes 8 bytes of memory for each.
        """
        rows = self.keys.rows.take(positions)
        number = int(rows["layout"][0])
        if self._verify or (rows["layout"] != number).any():
            return None
        layout = self.keys.layout(number)
        if not layout.is_plain or not layout.has_shape or not layout.nbytes:
            return None
        offsets = self._checked_offsets(positions, rows, layout)
        return EqualArrays(self._pages, offsets, layout, self._threads)

    def _checked_offsets(
        self, positions: np.ndarray, rows: np.ndarray, layout: Layout
    ) -> np.ndarray:
        """Return where plain arrays of one layout lie."""
        offsets, nbytes = rows["offset"], rows["nbytes"]
        last = self._pages.nbytes - layout.nbytes
        wrong = (nbytes != layout.nbytes) | (offsets > max(last, 0))
        if last < 0 or wrong.any():
            raise self.keys.misplaced(int(positions[np.argmax(wrong)]))
        return offsets.astype(np.int64)

    def location(self, position: int) -> Location:
        """Return where the bytes of a sample lie, where they are in the file as they are."""
        layout = self.keys.layout_at(position)
        key = self.keys.key(position)
        if not layout.is_plain:
            raise LoadError(
                f"{key!r} in {self.keys.path} is compressed, so that its bytes are not in the file "
                "as they are: read it, or convert with --compression=none"
            )
        extents = self.keys.extents(position)
        if not extents:
            raise LoadError(f"{key!r} in {self.keys.path} holds no bytes, and so lies nowhere")
        offset, nbytes, _ = extents[0]
        return Location(self.keys.path, offset, nbytes, layout.dtype, layout.shape)

    def _read_equal(
        self, positions: np.ndarray, layout: Layout, out: np.ndarray | None
    ) -> np.ndarray:
        offsets = self._checked_offsets(positions, self.keys.rows.take(positions), layout)
        batch = self._pages.gather(offsets, layout, self._threads, out)
        if self._verify:
            for n, position in enumerate(positions.tolist()):
                (extent,) = self.keys.extents(position)
                try:
                    check(extent, as_bytes(np.ascontiguousarray(batch[n, ...])))
                except ValueError as error:
                    raise self._damage(position, error) from None
        return batch

    def _plain(self, number: int) -> Plain:
        """Return how arrays of a layout are copied out of the mapping."""
        layout, plain = self.keys.layout(number), NOT_PLAIN
        is_plain = layout.is_plain and layout.has_shape and layout.nbytes and not self._verify
        mapped = self._pages.map() if is_plain else None
        if mapped is not None:
            nbytes, shape, dtype = layout.nbytes, layout.shape, layout.dtype
            count, items = self._pages.nbytes - nbytes + 1, None
            if shape and nbytes <= LARGEST_UNPROBED_NBYTES and count > 0:
                items = np.ndarray((count, *shape), dtype, mapped, 0, (1, *layout.strides))
            plain = Plain(nbytes, dtype, shape, mapped, items)
        if len(self._plains) >= MOST_PLAINS:
            self._plains.clear()
        self._plains[number] = plain
        return plain

    def _read_checked(self, position: int, threads: int | None = None) -> np.ndarray:
        layout = self.keys.layout_at(position)
        extents = self.keys.extents(position)  # checked before memory is taken
        array = np.empty(layout.shape, layout.dtype)
        self._fill(position, extents, layout, array, threads=threads or self._threads.count)
        return array

    def _fill(
        self,
        position: int,
        extents: Sequence[Extent],
        layout: Layout,
        target: np.ndarray,
        *,
        threads: int = 1,
    ) -> None:
        """Read one sample into an array of its shape and dtype."""
        if not layout.nbytes:
            return
        pages, verify = self._pages, self._verify
        try:
            if layout.is_plain:
                data = as_bytes(target)
                pages.read_into(data, extents[0].offset)
                if verify:
                    check(extents[0], data)
            elif layout.is_decodable:
                read_chunks(pages, extents, layout, target, verify=verify, threads=threads)
            else:
                self._check_payloads(extents, layout)
                target[...] = self._through_hdf5(position, layout)
        except ValueError as error:
            raise self._damage(position, error) from None

    def _block(self, position: int, layout: Layout, box: Box) -> np.ndarray:
        extents = self.keys.extents(position)
        array = np.empty(box.shape, layout.dtype)
        if not array.size or not layout.nbytes:
            return array
        if layout.is_decodable and not layout.is_plain:
            read_chunks(self._pages, extents, layout, array, box=box, verify=self._verify)
            return array
        self._check_payloads(extents, layout)
        if layout.is_plain:
            return read_plain_box(self._pages, extents[0], layout, box)
        return self._through_hdf5(position, layout, box)

    def _through_hdf5(self, position: int, layout: Layout, box: Box | None = None) -> np.ndarray:
        array = self._datasets.read(self.keys.key(position), box)
        if array.dtype != layout.dtype or array.shape != (box.shape if box else layout.shape):
            raise self.keys.damage(f"describes {self.keys.key(position)!r} differently from HDF5")
        return array

    def _check_payloads(self, extents: Sequence[Extent], layout: Layout) -> None:
        if self._verify or layout.needs_index_checksum:
            for extent in extents:
                check(extent, self._pages.read(extent.nbytes, extent.offset))

    def _damage(self, position: int, error: ValueError) -> LoadError:
        """Return an error that says which sample is damaged."""
        return LoadError(
            f"{self.keys.key(position)!r} in {self._handle.path} {error}: convert it again"
        )
