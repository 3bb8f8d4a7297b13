"""What is read of large files is right, read many samples at once, and leaves the page cache be."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from converter.errors import LoadError
from converter.files import Handle
from converter.writer import large_reads
from converter.writer.large_reads import (
    MOST_NBYTES,
    SMALLEST_NBYTES,
    UNCACHED,
    Window,
    knows_uncached,
    reader_of,
)

NBYTES = 3 * MOST_NBYTES
REFUSALS = {
    "none": None,
    "tmpfs": OSError(errno.EOPNOTSUPP, "not supported"),
    "an older kernel": OSError(errno.EINVAL, "invalid"),
    "Python": NotImplementedError(),
}
pytestmark = pytest.mark.skipif(not hasattr(os, "preadv"), reason="no preadv")


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(0).randbytes(NBYTES)


@pytest.fixture
def path(content: bytes, tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(content)
    return tmp_path / "a"


class Disk:
    """Notes the flags of each read; ``refuse`` answers those past the page cache, if not done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuse: BaseException | None = None
        self.asked: list[int] = []
        self.longest = NBYTES
        self._real = os.preadv
        monkeypatch.setattr(os, "preadv", self._preadv)
        monkeypatch.setattr(large_reads, "knows_uncached", lambda: True)
        monkeypatch.setattr(large_reads, "is_large", lambda nbytes: nbytes >= NBYTES)

    def _preadv(self, descriptor: int, parts: list[memoryview], offset: int, flags: int = 0) -> int:
        self.asked.append(flags)
        if flags and self.refuse is not None:
            raise self.refuse
        return self._real(descriptor, [memoryview(parts[0])[: self.longest]], offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("longest", [NBYTES, 1000])
@pytest.mark.parametrize("refused_by", REFUSALS)
def test_a_large_file_is_read_past_the_cache(
    refused_by: str, longest: int, disk: Disk, path: Path, content: bytes
) -> None:
    disk.refuse, disk.longest = REFUSALS[refused_by], longest
    read = reader_of(Handle(str(path)))
    for nbytes in (10, SMALLEST_NBYTES):
        target = memoryview(bytearray(nbytes))
        read(target, 5)
        assert target == content[5 : 5 + nbytes]
    assert disk.asked.count(UNCACHED) == 1
    with pytest.raises(LoadError, match="was cut"):
        read(memoryview(bytearray(SMALLEST_NBYTES)), NBYTES - SMALLEST_NBYTES + 1)


def test_a_small_file_is_read_past_the_cache_as_part_of_many(disk: Disk, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(SMALLEST_NBYTES))
    handle = Handle(str(tmp_path / "small"))
    reader_of(handle)(memoryview(bytearray(SMALLEST_NBYTES)), 0)
    assert disk.asked == [0]
    reader_of(handle, NBYTES)(memoryview(bytearray(SMALLEST_NBYTES)), 0)
    assert disk.asked == [0, UNCACHED]


def test_a_window_gives_what_is_in_the_file(path: Path, content: bytes) -> None:
    """Inside it, behind it, before it, across its end, and at the end of the file."""
    window, drawn = Window(str(path)), random.Random(1)
    file = window.reopened()
    for _ in range(100):
        nbytes = drawn.choice((0, 1, 5000, 100_000, MOST_NBYTES + 1))
        offset = drawn.randrange(NBYTES - nbytes + 1)
        if drawn.random() < 0.5:
            assert window.fetch(nbytes, offset) == content[offset : offset + nbytes]
        assert window.read(nbytes, offset) == content[offset : offset + nbytes]
        file.seek(offset)
        assert file.read(nbytes) == content[offset : offset + nbytes]
        assert file.tell() == offset + nbytes
    assert file.seek(-10, os.SEEK_END) == NBYTES - 10
    assert file.read(100) == content[-10:]
    assert file.read(100) == b""


def test_samples_of_one_size_are_read_many_at_once(disk: Disk, path: Path) -> None:
    window, nbytes = Window(str(path)), 300_000
    for offset in range(0, NBYTES - nbytes, nbytes):
        window.fetch(nbytes, offset)
    assert len(disk.asked) == 4


def test_memory_for_a_large_sample_is_given_back(disk: Disk, path: Path) -> None:
    window = Window(str(path))
    window.fetch(NBYTES, 0)
    assert len(window._memory) == NBYTES
    window.fetch(100, 1)  # which are there already
    assert len(window._memory) == NBYTES
    window._begin = 1  # as if they were not
    window.fetch(100, 0)
    assert len(window._memory) < MOST_NBYTES


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
def test_kernels_that_may_lose_pages_are_not_asked(
    system: str, release: str, is_known: bool
) -> None:
    assert knows_uncached(system, release) is is_known
