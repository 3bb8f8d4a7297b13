"""Read through HDF5 files without an index, and filters that only HDF5 can undo."""

from __future__ import annotations

import atexit
import functools
import io
import math
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5l, h5o, h5z

from converter.codecs.compression import inflation
from converter.errors import LoadError
from converter.files import Handle
from converter.format.index import IndexBuilder
from converter.format.index_reader import Index
from converter.format.layout import HARMLESS_NBYTES, Layout
from converter.format.superblock import check_closed
from converter.loader.selection import Box, Location, Placed, box_of, fill_rows, rows_of


class Datasets:
    """The datasets of a file by name, opened when first asked for and once per process.

    External links, external storage and virtual datasets make HDF5 read other files, any that
    you may read: they are refused.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._opened: tuple[int, h5py.File] | None = None

    def close(self) -> None:
        """Close what is open in this process."""
        opened, self._opened = self._opened, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

    def names(self) -> Iterator[str]:
        """Yield the hard-linked datasets in the order HDF5 lists them.

        Raises LoadError at an external link.
        """
        file = self._file()
        links: list[tuple[bytes, int]] = []
        with _explaining(f"the names in {self._handle.path} cannot be listed"):
            file.id.links.visit(lambda name, info: links.append((name, info.type)), info=True)
        for name, kind in links:
            text = name.decode(errors="replace")
            if kind == h5l.TYPE_EXTERNAL:
                raise self._refusal(text, "is a link to another file")
            if kind == h5l.TYPE_SOFT:
                continue
            with _explaining(f"{text!r} in {self._handle.path} cannot be opened"):
                is_dataset = h5o.get_info(file.id, name).type == h5o.TYPE_DATASET
            if is_dataset and text.encode() != name:
                raise LoadError(f"{self._handle.path} holds a name that is not UTF-8")
            if is_dataset:
                yield text

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """Return a dataset, or a box of it."""
        dataset = self.dataset(name)
        shape = dataset.shape
        if shape is None:
            raise LoadError(f"{name!r} in {self._handle.path} holds no array: it is empty")
        array = np.empty(box.shape if box else shape, dataset.dtype)
        if array.size:
            with _explaining(f"{name!r} in {self._handle.path} cannot be read"):
                dataset.read_direct(array, box.slices if box else None)
        return array

    def store(self) -> str | None:
        """Return ``--store`` as the converter recorded it; None if it did not make the file."""
        attributes = self._file().attrs
        with _explaining(f"{self._handle.path} cannot be read"):
            return str(attributes["store"]) if "store" in attributes else None

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.dataset(name).shape or ())

    def _file(self) -> h5py.File:
        opened = self._opened
        if opened is not None and opened[0] == os.getpid():
            return opened[1]
        _closing_at_exit().add(self)
        if opened is not None:  # from before a fork: HDF5 would share it with the new one
            opened[1].close()
        check_closed(self._handle)
        try:
            # Through a Python file HDF5 takes no lock and shares nothing with other handles.
            file = h5py.File(self._handle.reopened(), "r")
        except (OSError, OverflowError, RuntimeError, ValueError) as error:
            raise _explained(self._handle, error) from error
        self._opened = os.getpid(), file
        return file

    def dataset(self, name: str) -> h5py.Dataset:
        """Open a dataset, once it is known to read no other files."""
        file = self._file()
        self._check_links(file, name)
        with _explaining(f"{name!r} in {self._handle.path} cannot be opened"):
            dataset = file[name]
            if not isinstance(dataset, h5py.Dataset):
                raise ValueError("it is not a dataset")
            dataset.dtype  # noqa: B018 (not all of HDF5's types have one)
        self._check_storage(name, dataset)
        return dataset

    def _check_links(self, file: h5py.File, name: str) -> None:
        """Walk to a dataset over hard links alone: those cannot leave the file."""
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            link = "/".join(parts[:depth])
            with _explaining(f"{link!r} in {self._handle.path} cannot be opened"):
                kind = file.id.links.get_info(link.encode()).type
            if kind != h5l.TYPE_HARD:
                raise self._refusal(link, "is a link to elsewhere")

    def _check_storage(self, name: str, dataset: h5py.Dataset) -> None:
        creation = dataset.id.get_create_plist()
        filters = [creation.get_filter(n)[0] for n in range(creation.get_nfilters())]
        if creation.get_layout() == h5d.VIRTUAL:
            raise self._refusal(name, "takes its values from other files")
        if creation.get_external_count():
            raise self._refusal(name, "keeps its bytes in another file")
        nbytes = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
        stored = min(dataset.id.get_storage_size(), self._handle.nbytes)
        if nbytes > HARMLESS_NBYTES and nbytes > stored * inflation(filters):
            raise LoadError(
                f"{name!r} in {self._handle.path} claims {nbytes} bytes, of which {stored} are "
                "stored: read it with h5py, part by part"
            )
        for number in filters:
            if not _has_filter(number):
                raise LoadError(
                    f"{name!r} in {self._handle.path} needs HDF5's filter {number}, which is not "
                    "installed: pip install hdf5plugin"
                )

    def _refusal(self, name: str, why: str) -> LoadError:
        return LoadError(
            f"{name!r} in {self._handle.path} {why}, which is refused: if you trust the file, "
            "read it with h5py"
        )


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Turn what h5py raises into a LoadError that begins with ``what``."""
    try:
        yield
    except (KeyError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise LoadError(f"{what}: {_short(error)}") from error


@functools.cache
def _closing_at_exit() -> weakref.WeakSet[Datasets]:
    """Return the datasets to close before Python ends: HDF5 would call into it afterwards."""
    opened: weakref.WeakSet[Datasets] = weakref.WeakSet()

    def close_all() -> None:
        for datasets in list(opened):
            datasets.close()

    atexit.register(close_all)
    return opened


class H5pyFile:
    """A file without an index, read through HDF5 by the methods of an `IndexedFile`.

    Its names are kept as an index in memory.
    """

    holds_files = False

    def __init__(self, handle: Handle) -> None:
        self._datasets = Datasets(handle)
        self.keys = _index_of(self._datasets.names(), handle.path)
        self.identity = (handle.nbytes, self.keys.crc32)
        self.is_encoded = self._datasets.store() == "encoded"
        self._numbers: dict[tuple[Any, ...], int] = {}  # of layouts
        self._layouts: list[Layout] = []

    def close(self) -> None:
        self._datasets.close()

    def read(self, position: int) -> np.ndarray:
        return self._datasets.read(self.keys.key(position))

    def view(self, position: int, first_row: int = 0, rows: int | None = None) -> np.ndarray:
        if (first_row, rows) == (0, None) or not self._datasets.shape(self.keys.key(position)):
            array = self.read(position)
        else:
            array = self.read_part(position, rows_of(first_row, rows))
        array.flags.writeable = False
        return array

    def placed(self, positions: np.ndarray) -> Placed:
        """Return what arrays the samples at positions in range are; HDF5 opens each."""
        numbers = [self._number(self.keys.key(position)) for position in positions.tolist()]
        return Placed(np.full(len(numbers), -1, np.int64), np.array(numbers, np.int64))

    def layout(self, number: int) -> Layout | None:
        """Return the shape and dtype of a number in `placed`, as a layout; None for -1."""
        return None if number < 0 else self._layouts[number]

    def payload(self, position: int) -> memoryview | np.ndarray:
        """Return the bytes of an encoded file, which are stored as 1-D uint8; or an array."""
        array = self.read(position)
        if array.ndim != 1 or array.dtype != np.uint8:
            return array
        return memoryview(array)  # type: ignore[arg-type]

    def read_part(self, position: int, selection: Any) -> np.ndarray:
        name = self.keys.key(position)
        box = box_of(selection, self._datasets.shape(name))
        return np.array(self._datasets.read(name, box)[(*box.take, ...)])

    def read_batch(
        self, positions: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray | list[np.ndarray]:
        arrays = map(self.read, positions.tolist())
        return list(arrays) if out is None else fill_rows(out, arrays, self.keys, positions)

    def fetch(self, positions: np.ndarray) -> None:
        """Ask nothing of the disk: where samples lie is known to HDF5 alone."""

    def location(self, position: int) -> Location:
        """Raise LoadError: only an index tells where samples lie."""
        raise LoadError(
            f"{self.keys.path} has no index, which tells where {self.keys.key(position)!r} lies: "
            "add one with --verify --rebuild_index"
        )

    def _number(self, name: str) -> int:
        """Return the number of a dataset's shape and dtype."""
        dataset = self._datasets.dataset(name)
        dtype, shape = dataset.dtype, tuple(dataset.shape or ())
        if self.is_encoded and len(shape) == 1 and dtype == np.uint8:
            return -1
        number = self._numbers.setdefault((dtype, shape), len(self._layouts))
        if number == len(self._layouts):
            self._layouts.append(Layout(dtype, shape))
        return number


def _has_filter(number: int) -> bool:
    """Tell whether HDF5 can undo a filter, once the package of filters is imported."""
    if not h5z.filter_avail(number):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401 (importing makes its filters known)
    return bool(h5z.filter_avail(number))


def _index_of(names: Iterator[str], path: str) -> Index:
    builder, content = IndexBuilder(), io.BytesIO()
    for name in names:
        builder.add(name.encode(), b"", ())
    builder.write(content, 0)
    return Index(content.getvalue(), 0, path)


def _explained(handle: Handle, error: Exception) -> LoadError:
    text = str(error).lower()
    if not handle.nbytes:
        why = "is empty: convert it again"
    elif "signature not found" in text:
        why = "is not an HDF5 file: name the file the converter made"
    elif "truncated" in text:
        why = "is truncated: copy it or convert it again"
    else:
        why = f"cannot be opened: {_short(error)}"
    return LoadError(f"{handle.path} {why}")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
