"""Payloads are the same bytes in the file however they are written, and told of when they are."""

from __future__ import annotations

import errno
import io
import mmap
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter
from converter.writer import payloads
from converter.writer.payloads import Payloads, is_large
from helpers.images import save_jpegs
from helpers.resuming import Conversion

BLOCK = 1 << 16
needs_pwrite = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="no pwrite")


class Disk:
    """Notes how a file is written; ``refuse`` answers a direct write, if it is not done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ordinary: list[tuple[int, int]] = []  # begin and end of each write
        self.direct: list[tuple[int, int]] = []
        self.refuse: BaseException | None = None
        self.longest = sys.maxsize
        self._opened = -1
        self._real = os.pwrite
        monkeypatch.setattr(os, "pwrite", self._pwrite)
        monkeypatch.setattr(payloads, "BLOCK_NBYTES", BLOCK)
        monkeypatch.setattr(payloads, "open_direct", self._open_direct)

    def _open_direct(self, descriptor: int) -> int:
        self._opened = os.dup(descriptor)
        return self._opened

    def _pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        if descriptor != self._opened:
            self.ordinary.append((offset, offset + len(data)))
            return self._real(descriptor, data, offset)
        assert np.frombuffer(data, np.uint8).ctypes.data % mmap.PAGESIZE == 0
        if self.refuse is not None:
            raise self.refuse
        data = data[: self.longest]
        self.direct.append((offset, offset + len(data)))
        return self._real(descriptor, data, offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def pieces_of(seed: int) -> list[bytes]:
    drawn = random.Random(seed)
    sizes = [drawn.choice((0, 1, 300, BLOCK - 1, BLOCK, 3 * BLOCK + 7)) for _ in range(60)]
    return [drawn.randbytes(size) for size in sizes]


def write(path: Path, pieces: list[bytes], begin: int = 0, **options: object) -> tuple:
    """Write all, each in memory that is spoilt when it may be; return bytes and offsets told."""
    told: list[int] = []
    with io.FileIO(path, "w+") as file:
        file.write(bytes(begin))
        made = Payloads(file, begin, told.append, **options)
        for piece in pieces:
            memory = bytearray(piece)

            def spoil(memory: bytearray = memory) -> None:
                memory[:] = bytes(len(memory))

            made.append(memoryview(memory), spoil)
        made.settle()
        made.close()
        assert made.error is None
    return path.read_bytes()[begin:], told


REFUSALS = {
    "none": None,
    "the file system": OSError(errno.EINVAL, "invalid"),
    "another one": OSError(errno.EOPNOTSUPP, "not supported"),
}


@needs_pwrite
@pytest.mark.everyday(6)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("begin", [0, 48, BLOCK + 5])
@pytest.mark.parametrize("refused_by", REFUSALS)
def test_the_bytes_are_the_same_in_blocks(
    refused_by: str, begin: int, threads: int, disk: Disk, tmp_path: Path
) -> None:
    disk.refuse = REFUSALS[refused_by]
    pieces = pieces_of(begin)
    found, told = write(tmp_path / "a", pieces, begin, threads=threads, is_large=True)
    assert found == b"".join(pieces)
    assert told == sorted(told)
    assert told[-1] == begin + len(found)
    assert bool(disk.direct) == (refused_by == "none")


@needs_pwrite
@pytest.mark.everyday(2)
@pytest.mark.parametrize("seconds", [0.0, 100.0])
@pytest.mark.parametrize("begin", [0, 48, BLOCK + 5])
def test_only_whole_blocks_are_written_directly_and_each_once(
    begin: int, seconds: float, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of the cache that a direct write passes by may hold what was there before."""
    monkeypatch.setattr(payloads, "SECONDS_BETWEEN_WRITES", seconds)
    pieces = pieces_of(1)
    found, _ = write(tmp_path / "a", pieces, begin, threads=2, is_large=True)
    assert found == b"".join(pieces)
    assert disk.direct
    assert all(begin % BLOCK == 0 == end % BLOCK for begin, end in disk.direct)
    blocks = [number // BLOCK for begin, end in disk.direct for number in range(begin, end, BLOCK)]
    assert len(blocks) == len({*blocks})
    touched = {
        number for begin, end in disk.ordinary for number in range(begin // BLOCK, -(-end // BLOCK))
    }
    assert not touched & {*blocks}


def test_the_ordinary_way_uses_no_other(disk: Disk, tmp_path: Path) -> None:
    pieces = pieces_of(2)
    found, told = write(tmp_path / "a", pieces)
    assert found == b"".join(pieces)
    assert told[-1] == len(found)
    assert not disk.direct


@needs_pwrite
def test_what_is_behind_the_last_block_is_not_told_of_before_it_is_written(
    disk: Disk, tmp_path: Path
) -> None:
    told: list[int] = []
    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, told.append, threads=1, is_large=True)
        made.append(memoryview(bytes(BLOCK + 10)), lambda: None)
        made.append(memoryview(b""), lambda: None)  # a failure behind it is not recorded either
        assert told == [BLOCK]
        assert os.path.getsize(file.name) == BLOCK
        made.settle()
        assert told == [BLOCK, BLOCK + 10]
        assert os.path.getsize(file.name) == BLOCK + 10
        made.close()


@needs_pwrite
def test_what_comes_slowly_is_written_as_it_comes(disk: Disk, tmp_path: Path) -> None:
    """Else a file that takes an hour to read would be read again when the run is killed."""
    told: list[int] = []
    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, told.append, threads=1, is_large=True)
        made.append(memoryview(bytes(10)), lambda: None)
        assert told == [10]
        made.append(memoryview(bytes(10)), lambda: None)
        assert told == [10]
        made._last_time -= payloads.SECONDS_BETWEEN_WRITES
        made.append(memoryview(bytes(10)), lambda: None)
        assert told == [10, 30]
        made.close()


@needs_pwrite
@pytest.mark.parametrize("longest", [1000, BLOCK])
def test_what_a_write_leaves_over_is_written_too(longest: int, disk: Disk, tmp_path: Path) -> None:
    disk.longest = longest
    pieces = pieces_of(3)
    found, _ = write(tmp_path / "a", pieces, threads=2, is_large=True)
    assert found == b"".join(pieces)


@needs_pwrite
def test_a_full_disk_is_an_error_and_no_refusal(disk: Disk, tmp_path: Path) -> None:
    disk.refuse = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told: list[int] = []
    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, told.append, threads=2, is_large=True)
        made.append(memoryview(bytes(3 * BLOCK)), lambda: None)
        made.settle()
        made.close()
    assert made.error is disk.refuse
    assert not told


@needs_pwrite
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("nbytes", [10, 1 << 20], ids=["small", "large"])
def test_whatever_fails_nobody_waits_for_ever(nbytes: int, threads: int, tmp_path: Path) -> None:
    def record(end: int) -> None:
        raise MemoryError("no memory for the journal")

    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, record, threads=threads)
        for _ in range(20):
            made.append(memoryview(bytes(nbytes)), lambda: None)
        made.settle()
        made.close()
    assert isinstance(made.error, MemoryError)


@needs_pwrite
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no posix_fadvise")
def test_where_it_is_refused_what_was_written_is_dropped_twice(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time it is on its way to the disk."""
    dropped: list[int] = []

    def advise(descriptor: int, begin: int, nbytes: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        dropped.extend(range(begin // BLOCK, (begin + nbytes) // BLOCK))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(payloads, "DROPPED_NBYTES", 4 * BLOCK)
    disk.refuse = REFUSALS["the file system"]
    write(tmp_path / "a", [bytes(BLOCK)] * 32, threads=1, is_large=True)
    assert [dropped.count(number) for number in range(32)] == 28 * [2] + 4 * [1]


def test_a_large_payload_is_written_in_few_blocks_of_memory(disk: Disk, tmp_path: Path) -> None:
    content = random.Random(4).randbytes(80 * BLOCK)
    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, lambda end: None, threads=2, is_large=True)
        made.append(memoryview(content), lambda: None)
        made.settle()
        assert len(made._spare_blocks) <= payloads.MOST_WAITING_BLOCKS + 2
        made.close()
    assert (tmp_path / "a").read_bytes() == content


def takes_direct_writes(path: Path) -> bool:
    if not os.major(path.stat().st_dev):
        return False
    try:
        os.close(os.open(path, os.O_WRONLY | getattr(os, "O_DIRECT", 1 << 30)))
    except OSError:
        return False
    return hasattr(os, "O_DIRECT")


@needs_pwrite
def test_direct_writes_of_a_real_disk(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with io.FileIO(tmp_path / "a", "w+") as file:
        opened = payloads.open_direct(file.fileno())
        if not takes_direct_writes(tmp_path / "a"):
            pytest.skip("the folder of tests is on no disk that takes them")
        assert opened is not None
        assert fcntl.fcntl(opened, fcntl.F_GETFL) & os.O_DIRECT
        os.close(opened)
    content = random.Random(5).randbytes(3 * payloads.BLOCK_NBYTES + 77)
    pieces = [content[:100], content[100:-500], content[-500:]]
    found, _ = write(tmp_path / "b", pieces, 48, threads=2, is_large=True)
    assert found == content


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory")
def test_no_direct_writes_where_there_is_no_disk() -> None:
    descriptor = os.memfd_create("a")
    assert payloads.open_direct(descriptor) is None
    os.close(descriptor)


@pytest.mark.parametrize(
    ("nbytes", "free", "expected"),
    [
        (None, 0, False),
        (1 << 30, 0, False),
        ((1 << 30) + 1, 0, True),
        (5 << 30, 64 << 30, False),
        (7 << 30, 64 << 30, True),
        ((1 << 30) + 1, 1 << 30, True),
    ],
)
def test_a_file_that_fits_into_the_cache_stays_there(
    nbytes: int | None, free: int, expected: bool
) -> None:
    assert is_large(nbytes, free) is expected


@needs_pwrite
def test_a_conversion_in_blocks_gives_the_same_file(
    disk: Disk, tmp_path: Path, convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversion = Conversion(tmp_path, convert).add(40, ("large", "small", "mask", "chunks", "bad"))
    conversion.run("--workers=2")
    expected = conversion.output.read_bytes()
    assert not disk.direct
    monkeypatch.setattr(payloads, "CACHED_NBYTES", 0)
    monkeypatch.setattr(payloads, "CACHED_SHARE", 0)
    conversion.run("--workers=2", "--overwrite")
    assert disk.direct
    assert conversion.output.read_bytes() == expected
    assert not [one for one in threading.enumerate() if one.name.startswith("Writer")]


@needs_pwrite
def test_ctrl_c_in_a_program_is_raised_when_a_batch_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid the writing it may keep a lock, for which the end of the run would wait for ever."""
    folder = save_jpegs(tmp_path / "folder", [f"{number}.jpg" for number in range(9)])
    whole, output = tmp_path / "whole" / "OUT.h5", tmp_path / "OUT.h5"
    converter.convert(folder, whole, workers=1)
    real, done = os.pwrite, []

    def write(*arguments: Any) -> int:
        if len(done) == 1:  # the mark is written; now come the samples
            signal.raise_signal(signal.SIGINT)
        done.append(real(*arguments))
        return done[-1]

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "pwrite", write)
            converter.convert(folder, output, workers=1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(done) > 1
    assert not output.exists()
    converter.convert(folder, output, workers=1)
    assert output.read_bytes() == whole.read_bytes()
