"""Check a finished file: its structure, its index, each payload, and its source files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.callbacks import Callbacks, Progress
from converter.codecs.filters import as_bytes
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
class Verification:
    """What was checked, and how much of it is wrong."""

    path: Path
    total: int = 0
    good: int = 0
    failed: int = 0
    nbytes: int = 0
    seconds: float = 0.0
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
    """Check a file; ``caller.notice`` hears of everything that is wrong.

    Parameters
    ----------
    path
        The file.
    caller
        Hears what is wrong, and how far it is.
    request
        What made the file, to compare it with its folder too.
    workers
        Processes.
    file_timeout
        Seconds a sample may take.

    Raises
    ------
    ConverterError
        There is no such file, or it cannot be opened at all.
    """
    start = time.perf_counter()
    found = Verification(path, compared=request is not None)

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
                        found.good += 1
                        found.nbytes += result.nbytes
                caller.progress(
                    Progress(found.total, found.good + found.failed, found.failed, found.nbytes)
                )
    found.seconds = time.perf_counter() - start
    return found


def _check_structure(path: Path, found: Verification, wrong: Callable[[str], None]) -> KeyList:
    """Check all but the samples; return their keys."""
    handle = open_handle(path)
    tail = None
    try:
        tail = open_index(handle)
    except LoadError as error:
        wrong(str(error))
    names: list[str] | None = None
    try:
        names = _names_in_hdf5(path, handle)
    except LoadError as error:
        if tail is None:
            raise
        wrong(str(error))
    keys = KeyList()
    if tail is None:
        found.has_index = False
        for name in names or ():
            keys.append(name.encode())
        return keys
    if names is not None and len(names) != len(tail):
        wrong(f"{path} holds {len(names)} datasets, and its index {len(tail)}")
    for name in names or ():
        if tail.find(name) is None:
            wrong(f"{name}: it is not in the index")
    for key in tail.keys():  # noqa: SIM118 (a Index is no dict)
        keys.append(key.encode())
    _check_sums(path, handle, tail, wrong)
    return keys


def _check_sums(path: Path, handle: Handle, tail: Index, wrong: Callable[[str], None]) -> None:
    """Check what has no checksum of HDF5's own: names, attributes, the sources."""
    if crc32_of(handle, tail.groups_begin, tail.hdf5_nbytes) != tail.groups_crc32:
        wrong(f"the groups or attributes of {path} are damaged (their checksum differs)")
    begin = sources_begin(tail.hdf5_nbytes)
    if tail.sources_nbytes and read_sources(handle.read(tail.sources_nbytes, begin)) is None:
        wrong(f"{path} has damaged sizes and times of its source files (their checksum differs)")


def _names_in_hdf5(path: Path, handle: Handle) -> list[str]:
    """Return the names of all datasets."""
    datasets = Datasets(handle)
    try:
        return list(datasets.names())
    finally:
        datasets.close()


def _compare_keys(
    plan: Plan, keys: KeyList, wrong: Callable[[str], None]
) -> tuple[KeyList, KeyList]:
    """Check that each sample has its file; return the files without a sample, and those with."""
    stored = set(keys)
    absent, present = KeyList(), KeyList()
    for key in plan.keys:
        if key in stored:
            stored.discard(key)
            present.append(key.encode())
        else:
            absent.append(key.encode())
    for key in sorted(stored):
        wrong(f"{key}: its source file is not in {plan.root}")
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

    ``reading`` says how its source files are read, where these are to be compared; without
    ``has_index`` HDF5 alone is asked.
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
        by_index = self._by_index(self._folder, key) if self._folder is not None else None
        stored = self._datasets.read(key)
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

    def _by_index(self, folder: H5Folder, key: str) -> np.ndarray:
        if folder.is_encoded:
            return np.frombuffer(folder.read_bytes(key), np.uint8)
        return folder[key]


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Compare dtype, shape and every bit: NaN is like itself, and -0.0 unlike 0.0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return True
    if one.dtype.hasobject:
        return not np.array_equal(one, other)
    one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)
    return bool(one.size) and not np.array_equal(as_bytes(one), as_bytes(other))
