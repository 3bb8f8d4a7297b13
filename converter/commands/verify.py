"""Check a finished file: its structure, its index, each payload, and its source files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from converter.callbacks import Caller, Progress
from converter.codecs.filters import crc32
from converter.commands.checker import Checks
from converter.commands.prepare import encoding_settings, load_functions, plan_of
from converter.commands.request import Request, check_folder
from converter.errors import LoadError
from converter.files import Handle, open_handle
from converter.format.index_reader import Tail, open_tail, read_sources
from converter.loader.h5py_file import Datasets
from converter.samples import Checked, Encoded, Failure, KeyList, Plan, Run
from converter.sources.encoder import Settings
from converter.workers.pool import Pool
from converter.workers.tasks import Work

KEYS_AT_ONCE = 4096
PIECE_NBYTES = 1 << 24


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
    remarks: list[str] = field(default_factory=list)


def verify(
    path: Path,
    caller: Caller,
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

    keys = _check_structure(path, found, wrong)
    found.total = len(keys)
    reading = None
    if request is not None:
        check_folder(request.path_images)
        functions = load_functions(request, caller)
        reading = encoding_settings(request, functions)
        plan = plan_of(request, functions)
        keys = _check_presence(plan, reading, keys, found, wrong, workers)
    checks = Checks(path, found.has_index, reading, file_timeout)
    with _running(checks, workers) as run:
        for batch in run(keys):
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


@contextmanager
def _running(settings: Work, workers: int) -> Iterator[Run]:
    with Pool(settings, workers) as pool:  # a damaged file may end the process that reads it
        yield pool.run


def _check_structure(path: Path, found: Verification, wrong: Callable[[str], None]) -> KeyList:
    """Check all but the samples; return their keys."""
    handle = open_handle(path)
    tail = None
    try:
        tail = open_tail(handle)
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
    names = names or []
    for first in range(0, len(names), KEYS_AT_ONCE):
        some = names[first : first + KEYS_AT_ONCE]
        for name, position in zip(some, tail.find_all(some).tolist(), strict=True):
            if position < 0:
                wrong(f"{name}: it is not in the index")
    for key in tail.keys():  # noqa: SIM118 (a Tail is no dict)
        keys.append(key.encode())
    _check_sums(path, handle, tail, wrong)
    return keys


def _check_sums(path: Path, handle: Handle, tail: Tail, wrong: Callable[[str], None]) -> None:
    """Check what has no checksum of HDF5's own: names, attributes, the sources."""
    crc, at = 0, tail.groups_begin
    while at < tail.hdf5_nbytes:
        nbytes = min(PIECE_NBYTES, tail.hdf5_nbytes - at)
        crc = crc32(handle.read(nbytes, at), crc)
        at += nbytes
    if crc != tail.groups_crc32:
        wrong(f"the groups or attributes of {path} are damaged (their checksum differs)")
    begin = tail.hdf5_nbytes + -tail.hdf5_nbytes % 8
    if tail.sources_nbytes and read_sources(handle.read(tail.sources_nbytes, begin)) is None:
        wrong(f"{path} has damaged sizes and times of its source files (their checksum differs)")


def _names_in_hdf5(path: Path, handle: Handle) -> list[str]:
    """Return the names of all datasets."""
    datasets = Datasets(handle, allow_external=False)
    try:
        return list(datasets.names())
    finally:
        datasets.close()


def _check_presence(
    plan: Plan,
    reading: Settings,
    keys: KeyList,
    found: Verification,
    wrong: Callable[[str], None],
    workers: int,
) -> KeyList:
    """Check that file and folder have the same samples; return the keys of both."""
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
    if not absent:
        return present
    with _running(reading, workers) as run:
        for batch in run(absent):
            for result in batch.results:
                if isinstance(result, Encoded):
                    wrong(f"{result.key}: it is not in {found.path}")
                elif isinstance(result, Failure):
                    found.unreadable += 1
    return present
