"""Runs of the file are found and read ahead, whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter.training.labels import select
from converter.training.orders import Order
from converter.training.runs import LARGEST_GAP_NBYTES, READ_NBYTES, FileRuns, ReadAhead
from helpers.arrays import equal_samples, make_h5
from helpers.run import wait_until

SAMPLES = equal_samples(40)
NBYTES = 60  # of each
needs_preadv = pytest.mark.skipif(not hasattr(os, "preadv"), reason="reads by preadv are counted")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_h5(tmp_path_factory.mktemp("runs"), SAMPLES)


def runs_of(path, keys=None, block_nbytes=300) -> tuple[H5Folder, FileRuns]:
    folder = H5Folder(path)
    return folder, FileRuns(folder, select(folder, keys), block_nbytes)


def members_of(runs: FileRuns) -> list[list[int]]:
    return [runs.runs.members(n).tolist() for n in range(len(runs.runs.firsts))]


def test_a_run_is_about_as_large_as_asked_for(path):
    _, runs = runs_of(path)
    assert members_of(runs) == [list(range(n, n + 5)) for n in range(0, 40, 5)]
    _, runs = runs_of(path, block_nbytes=1)
    assert members_of(runs) == [[n] for n in range(40)]
    _, runs = runs_of(path, block_nbytes=1 << 30)
    assert members_of(runs) == [list(range(40))]


def test_a_run_holds_the_bytes_of_its_samples(path):
    folder, runs = runs_of(path)
    content = path.read_bytes()
    for n, members in enumerate(members_of(runs)):
        name, spans = runs.spans(n)
        assert name == str(path) and len(spans) == 1
        [(begin, end)] = spans
        assert end - begin < 3 * NBYTES * len(members)
        for index in members:
            assert folder[index].tobytes() in content[begin:end]


def test_samples_in_any_order_lie_in_runs_of_the_file(path):
    chosen = np.random.default_rng(3).permutation(40)[:20]
    _, runs = runs_of(path, chosen)
    found = [chosen[n] for members in members_of(runs) for n in members]
    assert found == sorted(chosen)
    order = Order(20, batch_size=1, kind="blocks", runs=runs.runs)
    assert sorted(int(index) for [index] in order.batches(0)) == list(range(20))


def test_large_gaps_between_samples_are_not_read(tmp_path):
    shape = (LARGEST_GAP_NBYTES + 1,)
    samples = {f"{n}.npy": np.full(shape if n == 1 else (9,), n, np.uint8) for n in range(4)}
    _, runs = runs_of(make_h5(tmp_path, samples), [0, 2, 3], 1 << 20)
    _, spans = runs.spans(0)
    assert len(spans) == 2
    assert sum(end - begin for begin, end in spans) < 1000
    _, runs = runs_of(tmp_path / "out.h5", None, 1 << 20)
    assert len(runs.spans(0)[1]) == 1


def test_a_run_never_spans_two_files(tmp_path):
    paths = [
        make_h5(tmp_path / str(n), {f"{n}{m}.npy": np.ones(9) for m in range(3)}) for n in (1, 2)
    ]
    _, runs = runs_of(paths, None, 1 << 20)
    assert members_of(runs) == [[0, 1, 2], [3, 4, 5]]
    assert [runs.spans(n)[0] for n in range(2)] == list(map(str, paths))


def test_arrays_in_chunks_lie_where_their_chunks_do(tmp_path):
    random = np.random.default_rng(0)
    large = random.integers(0, 9, (1200, 5000), np.uint8)  # in several chunks
    path = make_h5(tmp_path, {"a.npy": large, "b.npy": large[:5]}, compression="gzip")
    folder, runs = runs_of(path)
    index = folder._open().source.keys
    for n in range(2):
        extents = index.extents(n)
        assert len(extents) > 1 or n
        assert runs.spans(n)[1] == [(extents[0].offset, extents[-1].offset + extents[-1].nbytes)]


def test_a_file_without_index_has_no_runs(tmp_path):
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file["a"] = np.ones(9)
    with pytest.raises(ValueError, match=r"order='blocks' needs the index of .*--rebuild_index"):
        runs_of(tmp_path / "bare.h5")


def test_block_nbytes_is_checked(path):
    with pytest.raises(ValueError, match="block_nbytes is 0: give 1 or more"):
        runs_of(path, block_nbytes=0)


def test_runs_are_read_before_their_samples_come(path):
    _, runs = runs_of(path)
    read: list[int] = []
    noting = SimpleNamespace(spans=lambda run: (read.append(run), runs.spans(run))[1])
    order = Order(40, batch_size=1, kind="blocks", runs=runs.runs, window=2)
    ahead = ReadAhead(order, noting, 3, 4)
    run_of = {index: n for n, members in enumerate(members_of(runs)) for index in members}
    for sample, [index] in enumerate(order.batches(3, 4), 4):
        ahead.wait(ahead.advance(sample))
        assert run_of[int(index)] in read
        assert len(read) <= 2 * 2 * (sample // 10 + 1)
    assert sorted(read) == list(range(8))
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ReadAhead"]


def uncached(monkeypatch, read: Callable[[int], object]) -> None:
    """Have nothing be in the page cache, and ``read`` told the offset before each read."""
    preadv = os.preadv

    def telling(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        read(offset)
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", telling)


@needs_preadv
def test_pieces_of_a_run_are_read_at_once(tmp_path, monkeypatch):
    path = make_h5(tmp_path, {"a.npy": np.zeros(8 * READ_NBYTES - 3000, np.uint8)})
    folder, runs = runs_of(path)
    two, read = threading.Barrier(2, timeout=30), []
    uncached(monkeypatch, lambda offset: (two.wait(), read.append(offset)))
    ahead = ReadAhead(Order(1, batch_size=1, kind="blocks", runs=runs.runs), runs, 0)
    ahead.wait(ahead.advance(0))
    first = folder.location("a.npy").offset
    assert sorted(read) == [first + n * READ_NBYTES for n in range(8)]
    ahead.close()


@needs_preadv
def test_a_run_is_waited_for_though_later_ones_are_read(path, monkeypatch):
    _, runs = runs_of(path)
    order = Order(40, batch_size=1, kind="blocks", runs=runs.runs)
    _, [(first, _)] = runs.spans(next(order.openings(0)).run)
    may_read, read = threading.Event(), []
    uncached(
        monkeypatch, lambda offset: (offset == first and may_read.wait(30), read.append(offset))
    )
    ahead = ReadAhead(order, runs, 0)
    waiting = threading.Thread(target=ahead.wait, args=(ahead.advance(0),))
    waiting.start()
    wait_until(lambda: len(read) == 7)
    assert waiting.is_alive() and first not in read
    may_read.set()
    waiting.join(30)
    assert not waiting.is_alive() and len(read) == 8
    ahead.close()


def test_reading_ahead_begins_by_itself(path):
    _, runs = runs_of(path)
    read: list[int] = []
    noting = SimpleNamespace(spans=lambda run: (read.append(run), runs.spans(run))[1])
    ahead = ReadAhead(Order(40, batch_size=1, kind="blocks", runs=runs.runs, window=2), noting, 0)
    ahead.close()
    assert len(read) >= 2


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="asks Linux for the page cache")
def test_what_cannot_be_read_is_left_to_whoever_needs_it(tmp_path):
    path = make_h5(tmp_path, SAMPLES)
    _, runs = runs_of(path)
    path.unlink()
    order = Order(40, batch_size=1, kind="blocks", runs=runs.runs)
    ahead = ReadAhead(order, runs, 0)
    ahead.wait(ahead.advance(39))
    ahead.close()


def test_closing_ends_the_waiting(path):
    _, runs = runs_of(path)
    order = Order(40, batch_size=1, kind="blocks", runs=runs.runs)
    ahead = ReadAhead(order, runs, 0)
    waiting = threading.Thread(target=ahead.wait, args=(1000,))
    waiting.start()
    ahead.close()
    waiting.join(30)
    assert not waiting.is_alive()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "ReadAhead"])
