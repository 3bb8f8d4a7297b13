"""Choose how to read bytes: from the page cache through a mapping, from a disk by preadv."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from converter.codecs.filters import as_bytes
from converter.errors import LoadError
from converter.files import Handle, is_refusal
from converter.format.layout import Layout
from converter.loader.memory import NewArrays
from converter.threads import Threads

#: A mapping is faster than preadv from the page cache (cached photos by key 1.46 times as fast, in
#: batches 1.3 times), but on a cold disk it takes one access for each 4 KiB. So each read first
#: asks whether one of its bytes is cached. A wrong guess costs little for small reads: one read
#: asks, and decides for the next few.
LARGEST_UNPROBED_NBYTES = 8 << 10
READS_PER_PROBE = 16
LARGE_NBYTES = 64 << 10
PIECES_PROBED = 8  # of those that are gathered at once
CACHED_BATCHES = 16  # one after the other: then all of the file may be, and one piece is probed
ADVISED_NBYTES = 128 << 10  # at a time: Linux fetches what its read-ahead allows, or a request
MOST_ABSENT = 16
GATHERED_NBYTES = 96 << 10  # at a time, on the way to memory that is used again: in the CPU's cache
NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)


class PageCache:
    """The first ``nbytes`` of a file. Callers keep within them."""

    def __init__(self, handle: Handle, nbytes: int, samples: int) -> None:
        self.path = handle.path
        self.nbytes = nbytes
        self.reads_to_probe = 0
        self.new_arrays = NewArrays()
        self._cached_batches = 0
        self._handle = handle
        self._byte = (bytearray(1),)  # read, and never looked at
        self._absent: set[int] = set()  # offsets of reads that found their byte absent
        self._mapped: mmap.mmap | None = None
        self._is_mappable = True
        if nbytes >= samples * LARGE_NBYTES and hasattr(os, "posix_fadvise"):
            # no reading ahead: it would fetch parts of neighbours, which then seem cached
            with contextlib.suppress(OSError):
                os.posix_fadvise(handle.fd, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, nbytes: int, offset: int) -> memoryview | bytearray:
        """Return bytes, perhaps as a part of the mapping."""
        if self.are_cached(nbytes, offset) and (mapped := self.map()) is not None:
            return memoryview(mapped)[offset : offset + nbytes]
        return self._handle.read(nbytes, offset)

    def read_into(self, target: np.ndarray, offset: int) -> None:
        """Fill a 1-D uint8 array."""
        if self.are_cached(target.nbytes, offset) and (mapped := self.map()) is not None:
            target[:] = np.frombuffer(mapped, np.uint8, target.nbytes, offset)
        else:
            self._handle.read_into(target, offset)

    def view(self, dtype: np.dtype[Any], shape: tuple[int, ...], offset: int) -> np.ndarray:
        """Return an array that lies at ``offset``, read-only, perhaps as a part of the mapping."""
        nbytes = dtype.itemsize * math.prod(shape)
        if not nbytes:
            data: Any = b""
        elif self.are_cached(nbytes, offset) and (mapped := self.map()) is not None:
            return np.ndarray(shape, dtype, mapped, offset)  # of a mapping that cannot be written
        else:
            data = self._handle.read(nbytes, offset)
        array = np.ndarray(shape, dtype, data)
        array.flags.writeable = False
        return array

    def read_array(self, target: np.ndarray, offset: int) -> None:
        """Fill an array of any strides with the one of its shape and dtype at ``offset``."""
        if target.flags.c_contiguous:
            self.read_into(as_bytes(target), offset)
        else:
            target[...] = self.view(target.dtype, target.shape, offset)

    def gather(
        self, offsets: np.ndarray, layout: Layout, threads: Threads, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the plain arrays of a layout at ``offsets``, one behind the other.

        They fill ``out``, where it is given, and it is returned.
        """
        nbytes = layout.nbytes
        # a batch of icons takes little longer to copy than to ask for eight of them
        probes = PIECES_PROBED if self._cached_batches < CACHED_BATCHES else 1
        step = max(1, len(offsets) // probes)
        seem_cached = self._seem_cached([(n, nbytes) for n in offsets[::step].tolist()])
        self._cached_batches = self._cached_batches + 1 if seem_cached else 0
        if nbytes <= LARGEST_UNPROBED_NBYTES and seem_cached and (mapped := self.map()):
            count = self.nbytes - nbytes + 1
            items = np.ndarray((count,), f"V{nbytes}", mapped, strides=(1,))
            return _gathered(items, offsets, layout, out)
        numbered = offsets.tolist()
        if not seem_cached:
            self._advise([(offset, nbytes) for offset in numbered])
        batch = out
        if batch is None:
            batch = self.new_arrays.empty((len(offsets), *layout.shape), layout.dtype)
        threads.map(lambda n: self.read_array(batch[n, ...], numbered[n]), range(len(numbered)))
        return batch

    def fetch(self, spans: Sequence[tuple[int, int]]) -> None:
        """Ask the disk for all spans (offset, nbytes) at once, where they are not cached.

        They are read next: one by one, each read would wait for the one before. On an SSD
        batches of 32 came 3 to 10 times as fast for small samples, twice for photos.
        """
        if not self._seem_cached(spans[:: max(1, len(spans) // PIECES_PROBED)]):
            self._advise(spans)

    def are_cached(self, nbytes: int, offset: int) -> bool:
        """Tell whether these bytes seem to be in the page cache: then the mapping is faster."""
        if nbytes > LARGEST_UNPROBED_NBYTES:
            if offset in self._absent:  # asking has brought that byte in, but no other
                self._absent.discard(offset)
                return False
            return self._seems_cached(offset, nbytes, unknown=False)
        if self.reads_to_probe > 0:
            self.reads_to_probe -= 1
            return True
        if not self._is_cached(offset + nbytes - 1, unknown=True):
            return False
        self.reads_to_probe = READS_PER_PROBE
        return True

    def _seem_cached(self, spans: Sequence[tuple[int, int]]) -> bool:
        """Tell whether all of these spans seem to be in the page cache."""
        return all(self._seems_cached(*span, unknown=True) for span in spans)

    def _seems_cached(self, offset: int, nbytes: int, *, unknown: bool) -> bool:
        """Ask for one byte of a span, and remember where it is absent."""
        # not near its ends, which may have come with its neighbours
        if self._is_cached(offset + nbytes // 4 * 3, unknown=unknown):
            return True
        if len(self._absent) >= MOST_ABSENT:
            self._absent.clear()
        self._absent.add(offset)
        return False

    def _advise(self, spans: Sequence[tuple[int, int]]) -> None:
        """Tell the disk what will be read."""
        if not hasattr(os, "posix_fadvise"):
            return
        with contextlib.suppress(OSError):  # a file system that takes no advice
            for offset, nbytes in spans:
                end = offset + nbytes
                for begin in range(offset, end, ADVISED_NBYTES):
                    some = min(ADVISED_NBYTES, end - begin)
                    os.posix_fadvise(self._handle.fd, begin, some, os.POSIX_FADV_WILLNEED)

    def _is_cached(self, offset: int, *, unknown: bool = False) -> bool:
        """Tell whether a byte is in the page cache; ``unknown`` where the system cannot."""
        if NOWAIT is None:
            return unknown
        try:
            return os.preadv(self._handle.fd, self._byte, offset, NOWAIT) == 1
        except BlockingIOError:
            return False
        except OSError:  # a file system that cannot tell
            return unknown

    def map(self) -> mmap.mmap | None:
        """Return the mapping; None where the disk cannot map, like some network disks."""
        if self._mapped is None and self._is_mappable:
            if self.nbytes > os.fstat(self._handle.fd).st_size:
                raise LoadError(f"{self.path} was cut while it was open: convert it again")
            try:
                mapped, _ = self._handle.map(0, self.nbytes)
            except OSError as error:
                if not is_refusal(error):
                    raise
                self._is_mappable = False
                warnings.warn(
                    f"{self.path} is on a disk that cannot map files into memory "
                    f"({error.strerror}): each read copies once more, and each process has an "
                    "index of its own in memory",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return None
            if hasattr(mapped, "madvise"):
                with contextlib.suppress(OSError):
                    mapped.madvise(mmap.MADV_RANDOM)
            self._mapped = mapped
        return self._mapped


def _gathered(
    items: np.ndarray, offsets: np.ndarray, layout: Layout, out: np.ndarray | None
) -> np.ndarray:
    """Return the items at ``offsets`` as what they are; ``items`` overlap."""
    count, shape, dtype = len(offsets), layout.shape, layout.dtype
    if out is None:
        return np.ndarray((count, *shape), dtype, items[offsets])
    is_whole = out.flags.c_contiguous
    target = np.ndarray(count, items.dtype, out) if is_whole else out
    # numpy's take would copy the overlapping items first, all of them
    some = max(1, GATHERED_NBYTES // layout.nbytes)
    for n in range(0, count, some):
        piece = items[offsets[n : n + some]]
        target[n : n + some] = piece if is_whole else piece.view(dtype).reshape(-1, *shape)
    return out
