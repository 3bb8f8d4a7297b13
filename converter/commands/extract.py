"""Write what an HDF5 file holds back to files below a folder, and never outside of it."""

from __future__ import annotations

import errno
import io
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from converter.callbacks import Callbacks
from converter.commands.report import Counts
from converter.errors import ConverterError, LoadError, UnreadableError, WriteError, describe
from converter.files import DISK_FULL, open_handle, open_hdf5, write_at
from converter.loader.h5folder import H5Folder
from converter.samples import Failure
from converter.writer import provenance

DRIVE = re.compile(r"[A-Za-z]:")


def extract(path: Path, folder: Path, caller: Callbacks, *, overwrite: bool) -> Counts:
    """Write each sample to a file below ``folder``.

    Encoded files get their own names and bytes; an array becomes a file under its name with
    ``.npy``. What cannot be written is counted as a failure, and the rest goes on.
    ``caller.notice`` is told where files are not the originals.

    Raises
    ------
    ConverterError
        ``folder`` cannot be written to, or is not empty and ``overwrite`` is not given.
    LoadError
        ``path`` cannot be read.
    WriteError
        The disk is full or fails.
    """
    open_handle(path)  # says what is wrong with the name
    with H5Folder(path, verify=True, threads=1) as samples:
        done = Counts(total=len(samples))
        _make_folder(folder, overwrite=overwrite)
        below, source = folder.resolve(), os.stat(path)
        if samples.is_encoded:
            _say_if_resized(path, caller)
        for position in range(done.total):
            key = f"number {position}"
            try:
                key = samples.key_at(position)
                name, data = _file_of(samples, key, position)
                with caller.without_signals():
                    target = _path_below(below, name)
                    _check_replaced(target, source, overwrite=overwrite)
                    _write(target, data)
            except Exception as error:  # a name or a value that this system cannot hold, too
                is_own = isinstance(error, (UnreadableError, LoadError))
                done.add_failure(Failure(key, str(error) if is_own else describe(error)))
                if isinstance(error, OSError) and error.errno in (*DISK_FULL, errno.EIO):
                    raise WriteError(
                        f"{folder} could not be written ({error.strerror}) after {done.done} "
                        f"of {done.total} files: free space, repeat with --overwrite"
                    ) from error
            else:
                done.done += 1
                done.nbytes += len(data)
            caller.progress(done.progress)
    return done


def _say_if_resized(path: Path, caller: Callbacks) -> None:
    # H5Folder reads files, too, whose attributes are damaged
    with suppress(OSError, RuntimeError, KeyError, TypeError, ValueError):
        with open_hdf5(path) as file:
            size = provenance.size_resized_to(file.attrs.get("options"))
        if size is not None:
            caller.notice(
                f"{path} was made with --resize={size}: images of another size were "
                "resized and encoded again, so their files are not the originals"
            )


def _file_of(samples: H5Folder, key: str, position: int) -> tuple[str, bytes | memoryview]:
    if samples.is_encoded:
        return key, samples.read_bytes(position)
    array = samples[position]
    if array.dtype.hasobject:
        raise UnreadableError("an array of objects, such as text: read it with h5py")
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that h5py gives to values are not kept
        np.lib.format.write_array(content, array, allow_pickle=False)
    return key + ".npy", content.getbuffer()


def _make_folder(folder: Path, *, overwrite: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(os.scandir(folder))
    except FileExistsError:
        raise ConverterError(f"{folder} is a file: give a folder as --extract") from None
    except OSError as error:
        raise ConverterError(f"{folder} cannot be made or listed ({error.strerror})") from error
    if not is_empty and not overwrite:
        raise ConverterError(
            f"{folder} is not empty: name another folder, or add --overwrite to replace files in it"
        )


def check_name(name: str) -> tuple[str, ...]:
    """Return the parts of a name.

    Raises UnreadableError for one that could lead out of the folder, on any system.
    """
    parts = tuple(name.split("/"))
    for part in parts:
        if part in ("", ".", "..") or "\\" in part or "\0" in part or DRIVE.match(part):
            raise UnreadableError(
                "refused, because its name could lead out of the folder (it has empty parts, "
                "'..', a backslash or a drive letter): read it with H5Folder"
            )
    return parts


def _path_below(folder: Path, name: str) -> Path:
    """Return the path of a file below a resolved folder; make the folders above the file.

    Raises UnreadableError for a name, or a link, that leads out of the folder.
    """
    *folders, last = check_name(name)
    parent = folder.joinpath(*folders).resolve()
    if not parent.is_relative_to(folder):
        raise UnreadableError(
            "refused, because a link in the folder leads out of it: remove the link"
        )
    parent.mkdir(parents=True, exist_ok=True)
    return parent / last


def _check_replaced(target: Path, source: os.stat_result, *, overwrite: bool) -> None:
    """Refuse to replace a file without ``overwrite``, and the one that is being extracted."""
    with suppress(FileNotFoundError):
        status = target.lstat()
        if not overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if os.path.samestat(status, source):
            raise UnreadableError("it would replace the file that is being extracted")


def _write(path: Path, data: bytes | memoryview) -> None:
    """Write a file; an older one stays until the new one is complete."""
    partial = path.with_name(f".{os.urandom(8).hex()}.partial")  # that nothing else has
    file = io.FileIO(partial, "x")
    try:
        with file:
            write_at(file, memoryview(data), 0)
        partial.replace(path)
    except BaseException:
        partial.unlink()
        raise
