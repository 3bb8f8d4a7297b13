"""Payloads are the same bytes in the file however they are written, and told of when they are."""

from __future__ import annotations

import errno
import io
import os
import random
import sys
import threading
from pathlib import Path

import pytest

from converter.writer import payloads
from converter.writer.payloads import Payloads, is_large, knows_uncached
from helpers.resuming import Conversion

BLOCK = 1 << 16
needs_pwritev = pytest.mark.skipif(not hasattr(os, "pwritev"), reason="no pwritev")


class Disk:
    """Notes how a file is written; ``refuse`` answers an uncached write, if it is not done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ordinary: list[tuple[int, int]] = []  # begin and end of each write
        self.uncached: list[tuple[int, int]] = []
        self.refuse: BaseException | None = None
        self.longest = sys.maxsize
        self._real = os.pwrite
        monkeypatch.setattr(os, "pwrite", self._pwrite)
        monkeypatch.setattr(os, "pwritev", self._pwritev)
        monkeypatch.setattr(payloads, "BLOCK_NBYTES", BLOCK)
        monkeypatch.setattr(payloads, "knows_uncached", lambda: True)

    def _pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        self.ordinary.append((offset, offset + len(data)))
        return self._real(descriptor, data, offset)

    def _pwritev(self, descriptor: int, parts: list, offset: int, flags: int) -> int:
        assert flags == payloads.UNCACHED
        if self.refuse is not None:
            raise self.refuse
        data = memoryview(b"".join(parts))[: self.longest]
        self.uncached.append((offset, offset + len(data)))
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
    "tmpfs": OSError(errno.EOPNOTSUPP, "not supported"),
    "an older kernel": OSError(errno.EINVAL, "invalid"),
    "Python": NotImplementedError(),
}


@needs_pwritev
@pytest.mark.everyday(6)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("begin", [0, 48, BLOCK + 5])
@pytest.mark.parametrize("refused_by", REFUSALS)
def test_the_bytes_are_the_same_in_blocks(
    refused_by: str, begin: int, threads: int, disk: Disk, tmp_path: Path
) -> None:
    disk.refuse = REFUSALS[refused_by]
    pieces = pieces_of(begin)
    found, told = write(tmp_path / "a", pieces, begin, threads=threads, in_blocks=True)
    assert found == b"".join(pieces)
    assert told == sorted(told)
    assert told[-1] == begin + len(found)
    assert bool(disk.uncached) == (refused_by == "none")


@needs_pwritev
@pytest.mark.everyday(2)
@pytest.mark.parametrize("seconds", [0.0, 100.0])
@pytest.mark.parametrize("begin", [0, 48, BLOCK + 5])
def test_past_the_cache_go_only_whole_blocks_and_each_once(
    begin: int, seconds: float, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is written again, while it is on its way to the disk, may be lost."""
    monkeypatch.setattr(payloads, "SECONDS_BETWEEN_WRITES", seconds)
    pieces = pieces_of(1)
    found, _ = write(tmp_path / "a", pieces, begin, threads=2, in_blocks=True)
    assert found == b"".join(pieces)
    assert disk.uncached
    assert all(begin % BLOCK == 0 == end % BLOCK for begin, end in disk.uncached)
    blocks = [
        number // BLOCK for begin, end in disk.uncached for number in range(begin, end, BLOCK)
    ]
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
    assert not disk.uncached


@needs_pwritev
def test_what_is_behind_the_last_block_is_not_told_of_before_it_is_written(
    disk: Disk, tmp_path: Path
) -> None:
    told: list[int] = []
    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, told.append, threads=1, in_blocks=True)
        made.append(memoryview(bytes(BLOCK + 10)), lambda: None)
        made.append(memoryview(b""), lambda: None)  # a failure behind it is not recorded either
        assert told == [BLOCK]
        assert os.path.getsize(file.name) == BLOCK
        made.settle()
        assert told == [BLOCK, BLOCK + 10]
        assert os.path.getsize(file.name) == BLOCK + 10
        made.close()


@needs_pwritev
def test_what_comes_slowly_is_written_as_it_comes(disk: Disk, tmp_path: Path) -> None:
    """Else a file that takes an hour to read would be read again when the run is killed."""
    told: list[int] = []
    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, told.append, threads=1, in_blocks=True)
        made.append(memoryview(bytes(10)), lambda: None)
        assert told == [10]
        made.append(memoryview(bytes(10)), lambda: None)
        assert told == [10]
        made._last_time -= payloads.SECONDS_BETWEEN_WRITES
        made.append(memoryview(bytes(10)), lambda: None)
        assert told == [10, 30]
        made.close()


@needs_pwritev
@pytest.mark.parametrize("longest", [1000, BLOCK])
def test_what_a_write_leaves_over_is_written_too(longest: int, disk: Disk, tmp_path: Path) -> None:
    disk.longest = longest
    pieces = pieces_of(3)
    found, _ = write(tmp_path / "a", pieces, threads=2, in_blocks=True)
    assert found == b"".join(pieces)


@needs_pwritev
def test_a_full_disk_is_an_error_and_no_refusal(disk: Disk, tmp_path: Path) -> None:
    disk.refuse = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told: list[int] = []
    with io.FileIO(tmp_path / "a", "w+") as file:
        made = Payloads(file, 0, told.append, threads=2, in_blocks=True)
        made.append(memoryview(bytes(3 * BLOCK)), lambda: None)
        made.settle()
        made.close()
    assert made.error is disk.refuse
    assert not told


@needs_pwritev
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
    disk.refuse = REFUSALS["tmpfs"]
    write(tmp_path / "a", [bytes(BLOCK)] * 32, threads=1, in_blocks=True)
    assert [dropped.count(number) for number in range(32)] == 28 * [2] + 4 * [1]


@pytest.mark.parametrize(
    ("system", "release", "is_known"),
    [
        ("linux", "6.16.0", True),
        ("linux", "6.16-rc1", True),
        ("linux", "7.0", True),
        ("linux", "6.14.11-generic", False),
        ("linux", "6.15.9", False),
        ("linux", "5.19", False),
        ("linux", "strange", False),
        ("darwin", "24.0", False),
        ("win32", "11", False),
    ],
)
@needs_pwritev
def test_kernels_that_may_lose_pages_are_not_asked(
    system: str, release: str, is_known: bool
) -> None:
    assert knows_uncached(system, release) is is_known


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


@needs_pwritev
def test_a_conversion_in_blocks_gives_the_same_file(
    disk: Disk, tmp_path: Path, convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversion = Conversion(tmp_path, convert).add(40, ("large", "small", "mask", "chunks", "bad"))
    conversion.run("--workers=2")
    expected = conversion.output.read_bytes()
    assert not disk.uncached
    monkeypatch.setattr(payloads, "CACHED_NBYTES", 0)
    monkeypatch.setattr(payloads, "CACHED_SHARE", 0)
    conversion.run("--workers=2", "--overwrite")
    assert disk.uncached
    assert conversion.output.read_bytes() == expected
    assert not [one for one in threading.enumerate() if one.name.startswith("Writer")]
