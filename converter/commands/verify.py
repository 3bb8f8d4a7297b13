"""Check a finished file: its structure, its index, each payload, and its source files."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.callbacks import Callbacks
from converter.codecs.filters import as_bytes, crc32
from converter.commands.report import Counts
from converter.commands.request import (
    Request,
    check_folder,
    encoding_settings,
    load_functions,
    plan_of,
)
from converter.errors import LoadError, describe
from converter.files import Handle, open_handle
from converter.format.headers import datatype
from converter.format.index import Extent
from converter.format.index_reader import (
    Index,
    crc32_of,
    open_index,
    read_sources,
    sources_begin,
)
from converter.format.layout import Layout
from converter.loader.h5py_file import Datasets
from converter.loader.indexed_file import IndexedFile
from converter.samples import Batch, Buffer, Checked, Encoded, Failure, KeyList, Plan, Result
from converter.sources.encoder import Encoder
from converter.sources.readers import Settings
from converter.sources.storable import with_clean_bools
from converter.threads import Threads
from converter.workers.launcher import launching
from converter.workers.pool import Pool
from converter.writer.large_reads import Window


@dataclass
class Verification(Counts):
    """What was checked: ``done`` samples are good, ``failed`` faults were found."""

    path: Path = Path()
    has_index: bool = True
    compared: bool = False
    unreadable: int = 0


def verify(
    path: Path,
    caller: Callbacks,
    *,
    request: Request | None = None,
    workers: int = 1,
    file_timeout: float | None = None,
) -> Verification:
    """Check a file; ``caller.notice`` is called with each fault.

    ``request`` is what the file was made with, to compare it with its folder too. A sample that
    takes longer than ``file_timeout`` seconds is a fault.

    Raises
    ------
    ConverterError
        There is no such file, or it cannot be opened at all.
    """
    start = time.perf_counter()
    found = Verification(path=path, compared=request is not None)

    def wrong(what: str) -> None:
        found.failed += 1
        caller.notice(what)

    # before the user's functions are imported, so that none of these is in a worker
    with launching(is_needed=True, fork=caller.is_fresh) as launcher:
        keys = _check_structure(path, found, wrong)
        found.total = len(keys)
        reading = None
        if request is not None:
            check_folder(request.path_images)
            functions = load_functions(request, caller)
            reading = encoding_settings(request, functions)
            plan = plan_of(request, functions)
            absent, keys = _compare_keys(plan, keys, wrong)
            if absent:
                with Pool(reading, workers, launcher) as pool:
                    _read_absent(pool.run(absent), found, wrong)
        checks = Checks(path, found.has_index, reading, file_timeout)
        # workers, even if it is one: a damaged file may end the process that reads it
        with Pool(checks, workers, launcher) as pool:
            for batch in pool.run(keys):
                for result in batch.results:
                    if isinstance(result, Failure):
                        wrong(f"{result.key}: {result.reason}")
                    elif isinstance(result, Checked):
                        found.done += 1
                        found.nbytes += result.nbytes
                caller.progress(found.progress)
    found.seconds = time.perf_counter() - start
    return found


def _check_structure(path: Path, found: Verification, wrong: Callable[[str], None]) -> KeyList:
    """Check all but the samples; return their keys."""
    handle = open_handle(path)
    index = None
    try:
        index = open_index(handle)
    except LoadError as error:
        wrong(str(error))
    names: list[str] | None = None
    try:
        with closing(Datasets(handle)) as datasets:
            names = list(datasets.names())
    except LoadError as error:
        if index is None:
            raise
        wrong(str(error))
    if index is None:
        found.has_index = False
        return KeyList(names or ())
    if names is not None and len(names) != len(index):
        wrong(f"{path} holds {len(names)} datasets, and its index {len(index)}")
    for name in names or ():
        if index.find(name) is None:
            wrong(f"{name}: it is not in the index")
    _check_sums(path, handle, index, wrong)
    return KeyList(index.keys())


def _check_sums(path: Path, handle: Handle, index: Index, wrong: Callable[[str], None]) -> None:
    """Check what has no checksum of HDF5's own: names, attributes, the sources."""
    if crc32_of(handle, index.groups_begin, index.hdf5_nbytes) != index.groups_crc32:
        wrong(f"the groups or attributes of {path} are damaged (their checksum differs)")
    begin = sources_begin(index.hdf5_nbytes)
    if index.sources_nbytes and read_sources(handle.read(index.sources_nbytes, begin)) is None:
        wrong(f"{path} has damaged sizes and times of its source files (their checksum differs)")


def _compare_keys(
    plan: Plan, keys: KeyList, wrong: Callable[[str], None]
) -> tuple[KeyList, KeyList]:
    """Check that each sample has its file; return the files without a sample, and those with."""
    stored = set(keys)
    for key in sorted(stored.difference(plan.keys)):
        wrong(f"{key}: its source file is not in {plan.root}")
    absent = KeyList(key for key in plan.keys if key not in stored)
    present = KeyList(key for key in plan.keys if key in stored)
    return absent, present


def _read_absent(
    batches: Iterator[Batch], found: Verification, wrong: Callable[[str], None]
) -> None:
    """Read files that have no sample: those that can be read should have one."""
    for batch in batches:
        for result in batch.results:
            if isinstance(result, Encoded):
                wrong(f"{result.key}: it is not in {found.path}")
            elif isinstance(result, Failure):
                found.unreadable += 1


@dataclass(frozen=True)
class Checks:
    """What to check of a file; travels to the workers.

    ``reading`` says how its source files are read, if these are to be compared; without
    ``has_index`` the file is only read through HDF5.
    """

    path: Path
    has_index: bool = True
    reading: Settings | None = None
    file_timeout: float | None = None

    def start(self) -> Checker:
        return Checker(self)


class Checker:
    """Checks samples in this process."""

    def __init__(self, checks: Checks) -> None:
        self._handle = Window(os.fspath(checks.path))
        self._datasets = Datasets(self._handle)
        index = open_index(self._handle) if checks.has_index else None
        self._file = None
        if index is not None:
            self._file = IndexedFile(self._handle, index, threads=Threads(1), verify=True)
        self._encoder = Encoder(checks.reading) if checks.reading is not None else None

    def encode(self, key: str, buffer: Buffer) -> Result:
        """Return what was checked, or what is wrong with a sample; nothing is put in the buffer."""
        used = buffer.used
        try:
            reason, nbytes = self._check(key, buffer)
        except LoadError as error:
            reason, nbytes = str(error), 0
        except Exception as error:  # of h5py, for a damaged file
            reason, nbytes = f"cannot be read ({describe(error)})", 0
        buffer.used = used
        return Checked(key, nbytes) if reason is None else Failure(key, reason)

    def _check(self, key: str, buffer: Buffer) -> tuple[str | None, int]:
        stored = self._datasets.read(key) if self._file is None else self._stored(self._file, key)
        if stored is None:
            return "h5py and H5Folder read it differently", 0
        if self._encoder is not None:
            source = self._encoder.read(key, buffer)
            if isinstance(source, Failure):
                return f"its source file cannot be read: {source.reason}", 0
            if _differ(stored, source):
                if _differ(with_clean_bools(stored), source):
                    return "its source file gives another array", 0
                return (
                    "its bools are stored as other bytes than 0 and 1, which other programs "
                    "misread: --update reads it again",
                    0,
                )
        return None, stored.nbytes

    def _stored(self, file: IndexedFile, key: str) -> np.ndarray | None:
        """Return the array of a sample; None where h5py and the index do not give the same."""
        position = file.keys.find(key)
        assert position is not None
        extents = file.keys.extents(position)
        nbytes = sum(extent.nbytes for extent in extents)
        if extents and extents[-1].offset + extents[-1].nbytes == extents[0].offset + nbytes:
            payload = self._handle.fetch(nbytes, extents[0].offset)
            layout = file.keys.layout_at(position)
            if layout.is_plain and _is_there(self._datasets.dataset(key), layout, extents[0]):
                if crc32(payload) != extents[0].crc32:
                    raise LoadError(
                        f"{key!r} in {self._handle.path} is damaged (its checksum differs)"
                    )
                return np.frombuffer(payload, layout.dtype).reshape(layout.shape)
        stored, by_index = self._datasets.read(key), file.payload(position)
        if not isinstance(by_index, np.ndarray):
            by_index = np.frombuffer(by_index, np.uint8)
        return None if _differ(stored, by_index) else stored


def _is_there(dataset: Any, layout: Layout, extent: Extent) -> bool:
    """Tell whether HDF5 finds just these bytes, and takes them for the same array.

    Then reading them through h5py too would tell nothing more.
    """
    return bool(
        dataset.chunks is None
        and dataset.shape == layout.shape
        and dataset.id.get_offset() == extent.offset
        and dataset.id.get_storage_size() == extent.nbytes
        and bytes(dataset.id.get_type().encode()[2:]) == _datatype(layout.dtype)
    )


@functools.lru_cache
def _datatype(dtype: np.dtype[Any]) -> bytes:
    return b"" if dtype.kind in "SV" else datatype(dtype)  # equal ones may differ in HDF5


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether dtype, shape or any bit differs: NaN equals itself, and -0.0 is not 0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return True
    if one.dtype.hasobject:
        return not np.array_equal(one, other)
    one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)
    return bool(one.size) and not np.array_equal(as_bytes(one), as_bytes(other))
