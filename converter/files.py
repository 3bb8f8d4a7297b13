"""Read and write bytes of a file at any offset, on disks and systems that refuse some calls."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os
import re
import threading
from pathlib import Path
from typing import Any

from converter.errors import ConverterError, LoadError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LONGEST_READ = 1 << 30  # one call returns at most 2 GiB
#: By one system call. Linux gives a longer write larger pages of its cache, which are expensive to
#: allocate: 2.8 GB took 0.9 s in pieces of 256 KiB, 2 to 8 s in pieces of 4 MiB (virtual machine).
LONGEST_WRITE_NBYTES = 256 << 10

#: How a system says that it does not have a call, or not on this disk; all else is an error.
REFUSALS = frozenset(
    (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.ENODEV,
     errno.ENOLCK)
)  # fmt: skip
#: ``s3://``, and what is left of it in a `Path`; one letter and a colon is a drive of Windows.
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(given: str | os.PathLike[str]) -> Path:
    """Return the absolute path of what a user named; ``~`` is the home folder, as in a shell.

    Links and ``..`` stay as they are. Raises ConverterError for an empty name, for a URL, and for
    the home folder of a user who does not exist.
    """
    text = os.fsdecode(given)
    if not text:  # such as a shell variable that is not set
        raise ConverterError("the name is empty: give a path")
    url = URL.match(text)
    if url and (text.startswith("//", url.end() - 1) or not os.path.isdir(url[1] + ":")):
        if url[1].lower() == "file":
            raise ConverterError(f"{text} is a URL: give the path, without file://")
        raise ConverterError(
            f"{text} is a URL, and only files of this machine are read and written: give the "
            "path of a folder where it is mounted, or copy it"
        )
    expanded = os.path.expanduser(text)
    first, *rest = Path(expanded).parts or ("",)
    if first.startswith("~") and rest and not os.path.isdir(first):
        raise ConverterError(
            f"{text} is below the home folder of a user who does not exist: write ./{text} for a "
            f"folder called {first}"
        )
    try:
        return Path(expanded).absolute()
    except OSError as error:
        raise ConverterError(
            f"{text} cannot be found, because the current folder was removed: change to another"
        ) from error


def is_refusal(error: OSError) -> bool:
    """Tell whether a system refuses a call that is not needed: no bytes are lost."""
    return error.errno in REFUSALS


def synchronise(descriptor: int) -> OSError | None:
    """Wait until the disk has a file's bytes; return the refusal of one that cannot say so.

    Raises OSError where bytes were lost.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_refusal(error):
            raise
        return error
    return None


def free_space(folder: str | os.PathLike[str]) -> int | None:
    """Return the free bytes of a disk; None where it does not tell."""
    import shutil  # not for --help

    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.free if usage.total else None  # some network disks say 0 of 0


def are_descriptors_used_up() -> bool:
    """Tell whether this process can open no more files."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)
    return False


class Spare:
    """Descriptors kept from the user's code, so that this process can open files after it."""

    def __init__(self, count: int) -> None:
        self._held: list[int] = []
        with contextlib.suppress(OSError):  # then fewer
            for _ in range(count):
                self._held.append(os.open(os.devnull, os.O_RDONLY))

    def release(self) -> None:
        while self._held:
            os.close(self._held.pop())


def open_hdf5(path: str | os.PathLike[str]) -> Any:
    """Return an `h5py.File` to read from, also on a disk without locks."""
    import h5py  # not all who read files need it

    try:
        return h5py.File(path, "r")
    except OSError as error:  # BlockingIOError: another program has it open
        if isinstance(error, BlockingIOError) or "lock file" not in str(error):
            raise
        return h5py.File(path, "r", locking=False)


class Handle:
    """A file open for reading, from any thread and in forked processes; its last user closes it.

    A shared lock, where the file system has them, keeps HDF5 from opening the file for
    writing meanwhile: that would cut off the index, and a mapped file must not be cut.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._close = os.close  # at interpreter exit the module may be gone first
        self._lock = threading.Lock()  # where there is no preadv
        self.nbytes = os.fstat(self.fd).st_size
        with contextlib.suppress(BlockingIOError):
            lock(self.fd)

    def __del__(self) -> None:
        if hasattr(self, "_close"):
            self._close(self.fd)

    def read_into(self, target: Any, offset: int) -> None:
        """Fill a writable, C-contiguous buffer from ``offset`` on.

        Raises LoadError where the file ends before.
        """
        view = memoryview(target).cast("B")
        while view.nbytes:
            count = self._read_some(view[:LONGEST_READ], offset)
            if not count:
                raise LoadError(f"{self.path} was cut while it was being read: convert it again")
            view, offset = view[count:], offset + count

    def read(self, nbytes: int, offset: int) -> bytearray:
        """Return bytes from ``offset`` on; the caller has checked that they lie in the file."""
        data = bytearray(nbytes)
        self.read_into(data, offset)
        return data

    def map(self, begin: int, end: int) -> tuple[mmap.mmap, int]:
        """Map a part of the file; return the map and the offset of ``begin`` in it.

        Raises OSError where the disk cannot map: see `is_refusal`.
        """
        start = begin - begin % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self.fd, end - start, access=mmap.ACCESS_READ, offset=start)
        return mapped, begin - start

    def reopened(self) -> io.FileIO:
        """Open the same file again, with a file position of its own.

        Raises LoadError when another file has its name now, and the system cannot find this one.
        """
        for path in (self.path, f"/proc/self/fd/{self.fd}"):
            try:
                file = io.FileIO(path)
            except OSError:
                continue
            if os.path.samestat(os.fstat(file.fileno()), os.fstat(self.fd)):
                return file
            file.close()
        raise LoadError(f"{self.path} was replaced while it was open: open it again")

    def _read_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            try:
                return os.preadv(self.fd, [view], offset)
            except OSError as error:
                if not is_refusal(error):
                    raise
        with self._lock:  # Windows, and systems that refuse preadv
            os.lseek(self.fd, offset, os.SEEK_SET)
            data = os.read(self.fd, view.nbytes)
        view[: len(data)] = data
        return len(data)


def open_handle(path: os.PathLike[str]) -> Handle:
    """Open the file that ``--path_output`` names, or raise ConverterError."""
    if os.path.isdir(path):
        raise ConverterError(f"{path} is a folder: --path_output names the HDF5 file")
    try:
        return Handle(os.fspath(path))
    except FileNotFoundError:
        raise ConverterError(f"no file {path}: --path_output names the HDF5 file") from None
    except OSError as error:
        raise ConverterError(f"{path} cannot be read ({error.strerror})") from error


def lock(descriptor: int, *, exclusive: bool = False) -> bool:
    """Lock an open file; return whether system and file system have locks.

    Raises BlockingIOError where another process holds a lock that excludes this one.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True


def write_at(file: io.FileIO, data: memoryview, offset: int) -> None:
    """Write all of ``data``; raises OSError when the disk is full or fails."""
    start = 0
    while start < len(data):
        piece = data[start : start + LONGEST_WRITE_NBYTES]
        if hasattr(os, "pwrite"):
            written = os.pwrite(file.fileno(), piece, offset + start)
        else:  # Windows
            file.seek(offset + start)
            written = file.write(piece)
        if not written:
            raise OSError(errno.EIO, "nothing was written")
        start += written


def open_to_write(path: str | os.PathLike[str]) -> io.FileIO:
    """Open an existing file to write into it."""
    return io.FileIO(os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0)), "r+")
