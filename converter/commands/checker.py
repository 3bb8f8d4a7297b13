"""Check samples of an HDF5 file, one at a time: against their checksums, HDF5 and the folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.errors import LoadError, describe
from converter.files import Handle
from converter.loader.h5folder import H5Folder
from converter.loader.h5py_file import Datasets
from converter.samples import Checked, Failure, Result, Room
from converter.sources.encoder import Encoder, Settings


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

    def make(self) -> Checker:
        """Return what does the work."""
        return Checker(self)


class Checker:
    """Checks samples in this process."""

    def __init__(self, checks: Checks) -> None:
        self._folder = H5Folder(checks.path, verify=True, threads=1) if checks.has_index else None
        self._datasets = Datasets(Handle(os.fspath(checks.path)), allow_external=False)
        self._encoder = Encoder(checks.reading) if checks.reading is not None else None

    def encode(self, key: str, room: Room) -> Result:
        """Return what was checked, or what is wrong with a sample; nothing is put in the room."""
        used = room.used
        try:
            reason, nbytes = self._check(key, room)
        except LoadError as error:
            reason, nbytes = str(error), 0
        except Exception as error:  # of h5py, for a damaged file
            reason, nbytes = f"cannot be read ({describe(error)})", 0
        room.used = used
        return Checked(key, nbytes) if reason is None else Failure(key, reason)

    def _check(self, key: str, room: Room) -> tuple[str | None, int]:
        by_index = self._by_index(self._folder, key) if self._folder is not None else None
        stored = self._datasets.read(key)
        if by_index is not None and _differ(stored, by_index):
            return "h5py reads it otherwise than H5Folder", 0
        if self._encoder is not None:
            source = self._encoder.read(key, room)
            if isinstance(source, Failure):
                return f"its source file cannot be read: {source.reason}", 0
            if _differ(stored, source):
                return "its source file gives another array", 0
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
    return bool(one.size) and not np.array_equal(_bytes_of(one), _bytes_of(other))


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
