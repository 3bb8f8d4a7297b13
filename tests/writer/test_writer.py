"""The writer's threads: what is recorded, and in which order, and whose error is whose."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest

from converter.codecs.filters import crc32
from converter.errors import WriteError
from converter.files import Handle
from converter.format.headers import structure_nbytes
from converter.format.layout import Layout
from converter.samples import Batch, Encoded, Failure, Part, until_failure
from converter.writer.journal import Head, read_rows
from converter.writer.paths import Paths
from converter.writer.payloads import BLOCK_NBYTES, SMALLEST_FOR_THREAD_NBYTES
from converter.writer.writer import Writer

pytestmark = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="one thread without pwrite")


def batch_of(key: str, nbytes: int, released: list[str]) -> Batch:
    layout = Layout(np.dtype("u1"), (nbytes,))
    buffer = np.ones(nbytes + structure_nbytes(layout), np.uint8).data
    sample = Encoded(key, layout, (Part(nbytes, crc32(buffer[:nbytes])),), nbytes, 1)
    return Batch([sample], buffer, lambda: released.append(key))


@pytest.fixture
def writer(tmp_path):
    made = Writer(Paths(tmp_path / "OUT.h5"), threads=2)
    made.lock()
    made.begin(Head("OUT.h5", "", "", {}))
    yield made
    made.close()


def test_what_is_written_sooner_than_what_is_before_it_waits_to_be_recorded(writer, monkeypatch):
    real, may_write = os.pwrite, threading.Event()

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        if threading.current_thread() is not threading.main_thread():
            may_write.wait(30)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    released: list[str] = []
    batches = [
        batch_of("large", SMALLEST_FOR_THREAD_NBYTES, released),
        batch_of("small", 10, released),
    ]
    for batch in batches:
        writer.write(batch)
    assert all(batch.is_held for batch in batches)
    assert not released
    assert not list(read_rows(writer.paths.journal))
    may_write.set()
    writer.settle()
    assert released == ["large", "small"]
    assert [row.key for row in read_rows(writer.paths.journal)] == ["large", "small"]
    assert writer.recorded == 2


def killed(act: Callable[[], None]) -> int:
    """Act in a forked process, and return the signal that ended it; 0 where it came to an end."""
    child = os.fork()
    if not child:
        try:
            act()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def recorded(writer: Writer) -> list[str]:
    """Return what the journal says, once all of it is found in the file."""
    rows, handle = list(read_rows(writer.paths.journal)), Handle(str(writer.paths.partial))
    for row in rows:
        for extent in row.extents:
            assert crc32(handle.read(extent.nbytes, extent.offset)) == extent.crc32
    return [row.key for row in rows]


def test_a_kill_while_a_payload_is_written_leaves_it_unrecorded(writer, monkeypatch):
    """The one before it is recorded, and the one behind it waits."""
    real, behind_first = os.pwrite, SMALLEST_FOR_THREAD_NBYTES + 48
    is_second_begun, is_first_released = threading.Event(), threading.Event()

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        if offset > behind_first:
            is_second_begun.set()
            is_first_released.wait(30)
            os.kill(os.getpid(), signal.SIGKILL)
        is_second_begun.wait(30)
        return real(descriptor, data, offset)

    def write_three() -> None:
        for key in ("first", "second", "third"):
            batch = batch_of(key, SMALLEST_FOR_THREAD_NBYTES, [])
            if key == "first":
                batch.release = is_first_released.set
            writer.write(batch)
        writer.settle()

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert killed(write_three) == signal.SIGKILL
    assert recorded(writer) == ["first"]


@pytest.mark.skipif(not hasattr(os, "pwrite"), reason="no pwrite")
def test_a_kill_between_two_blocks_leaves_what_is_in_both_unrecorded(tmp_path, monkeypatch):
    monkeypatch.setattr("converter.writer.payloads.CACHED_NBYTES", 0)
    monkeypatch.setattr("converter.writer.payloads.CACHED_SHARE", 0)
    writer = Writer(Paths(tmp_path / "OUT.h5"), threads=1)
    writer.lock()
    writer.expected_nbytes = 4 * BLOCK_NBYTES
    writer.begin(Head("OUT.h5", "", "", {}))

    def write_two() -> None:
        for key in ("first", "second"):
            writer.write(batch_of(key, BLOCK_NBYTES * 3 // 4, []))
        os.kill(os.getpid(), signal.SIGKILL)

    assert killed(write_two) == signal.SIGKILL
    assert writer.paths.partial.stat().st_size == BLOCK_NBYTES
    assert recorded(writer) == ["first"]
    writer.close()


@pytest.mark.parametrize("is_last", [False, True])
def test_an_error_of_a_thread_is_the_error_of_the_run(is_last, writer, monkeypatch):
    """What was behind it is not recorded, though it may have been written."""

    def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    released: list[str] = []
    writer.write(batch_of("first", SMALLEST_FOR_THREAD_NBYTES, released))
    writer.settle()
    monkeypatch.setattr(os, "pwrite", pwrite)

    def write_more() -> None:
        writer.write(batch_of("second", SMALLEST_FOR_THREAD_NBYTES, released))
        if is_last:
            writer.finish({})
        for number in range(9):
            writer.write(batch_of(f"more {number}", SMALLEST_FOR_THREAD_NBYTES, released))
            writer.settle()

    with pytest.raises(WriteError, match="No space left on device"):
        write_more()
    assert writer.recorded == 1
    assert released == ["first"]
    assert [row.key for row in read_rows(writer.paths.journal)] == ["first"]
    assert not writer.paths.output.exists()


def test_a_payload_that_fills_the_memory_is_written_before_the_next_is_taken(writer, monkeypatch):
    monkeypatch.setattr("converter.writer.payloads.MOST_WAITING_NBYTES", 1 << 20)
    released: list[str] = []
    writer.write(batch_of("huge", 2 << 20, released))
    assert released == ["huge"]


def test_of_a_run_that_stops_at_a_failure_nothing_behind_it_is_written():
    # the next run, which may read that file, would drop it: perhaps most of what was kept
    first, second = batch_of("a", 10, []), batch_of("c", 20, [])
    payload = memoryview(bytes(first.payload) + bytes(second.payload))
    whole = Batch([*first.results, Failure("b", "it is damaged"), *second.results], payload)
    cut = until_failure(whole)
    assert [result.key for result in cut.results] == ["a", "b"]
    assert bytes(cut.payload) == bytes(first.payload)
    assert until_failure(first) is first
