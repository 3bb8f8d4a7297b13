"""Check a finished file: its structure, its index, each payload, and its source files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.callbacks import Callbacks
from converter.codecs.filters import as_bytes
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
from converter.format.index_reader import (
    Index,
    crc32_of,
    open_index,
    read_sources,
    sources_begin,
)
from converter.loader.h5folder import H5Folder
from converter.loader.h5py_file import Datasets
from converter.samples import Batch, Buffer, Checked, Encoded, Failure, KeyList, Plan, Result
from converter.sources.encoder import Encoder, Settings
from converter.sources.storable import with_clean_bools
from converter.workers.launcher import launching
from converter.workers.pool import Pool


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
        """Return what does the work."""
        return Checker(self)


class Checker:
    """Checks samples in this process."""

    def __init__(self, checks: Checks) -> None:
        self._folder = H5Folder(checks.path, verify=True, threads=1) if checks.has_index else None
        self._datasets = Datasets(Handle(os.fspath(checks.path)))
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
        stored, by_index = self._datasets.read(key), None
        if self._folder is not None and self._folder.is_encoded:
            by_index = np.frombuffer(self._folder.read_bytes(key), np.uint8)
        elif self._folder is not None:
            by_index = self._folder[key]
        if by_index is not None and _differ(stored, by_index):
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


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether dtype, shape or any bit differs: NaN equals itself, and -0.0 is not 0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return True
    if one.dtype.hasobject:
        return not np.array_equal(one, other)
    one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)
    return bool(one.size) and not np.array_equal(as_bytes(one), as_bytes(other))
