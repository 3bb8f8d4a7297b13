"""SIGKILL at any moment leaves nothing, the older file or the new one; the next run goes on."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from converter.samples import Batch, Buffer, Failure
from converter.workers.pool import Pool
from converter.workers.pool_worker import BUFFERS
from converter.writer.journal import read_head, read_rows
from converter.writer.paths import Paths
from helpers.breaking import WAYS, Broken, Point, break_all
from helpers.check import assert_same, failures, stored
from helpers.images import colours, save
from helpers.resuming import Conversion, files_in, taken_over
from helpers.run import command, finish, processes_left, start, wait_until, workers_of
from helpers.seams import forget_estimate, make_tasks_small

pytestmark = [
    pytest.mark.mostly_slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]
FILES_IN_TASK = 2
FIRST_STEPS = 8  # opening, and the first batch
LAST_STEPS = 14  # groups, index and names
MORE_STEPS = 6  # than were counted, where processes read


@pytest.fixture
def small_tasks(monkeypatch):
    make_tasks_small(monkeypatch, FILES_IN_TASK)
    forget_estimate(monkeypatch)


# At every step of the writing


class Scene:
    """What there is before a run that is broken off at every step: files, and what is left."""

    def __init__(self, conversion: Conversion, *flags: str, in_blocks: bool = False) -> None:
        self.conversion = conversion
        self.flags, self.in_blocks = flags, in_blocks
        self.before = files_in(conversion.output.parent)
        self.whole = conversion.tmp_path / "whole" / "OUT.h5"
        self.whole.parent.mkdir(exist_ok=True)
        conversion.run("--overwrite", output=self.whole)
        self.expected = files_in(self.whole.parent)
        conversion.reads()

    def break_everywhere(self, *, thinly: bool) -> list[tuple[Point, Broken]]:
        """Run once unbroken, to count the steps; then break a run off at each, from this scene.

        The first and the last in all ways, those amid the writing, which are alike, in one of
        them; thinly: the first and the last in one, and a third of the others, and some steps more,
        for the next run may do more.
        """
        steps = self._break([self._point("unbroken", None)])[0].steps
        last = len(steps) - LAST_STEPS
        points = [
            self._point(way, step)
            for number, way in enumerate(WAYS)
            for step in range(1, len(steps) + 1 + thinly * MORE_STEPS)
            if _is_chosen(step, number, not FIRST_STEPS < step <= last, thinly=thinly)
            if way != "full" or "write" in "".join(steps[step - 1 : step])
        ]
        return list(zip(points, self._break(points), strict=True))

    def _point(self, way: str, step: int | None) -> Point:
        place = self.conversion.tmp_path / "places" / f"{way}-{step}"
        place.mkdir(parents=True)
        for name, content in self.before.items():
            (place / name).write_bytes(content)
        return Point(str(place), "before" if step is None else way, step)

    def _break(self, points: list[Point]) -> list[Broken]:
        conversion = self.conversion
        arguments = [f"--path_images={conversion.folder}", *conversion.flags, *self.flags]
        return break_all(arguments, points, files_in_task=FILES_IN_TASK, in_blocks=self.in_blocks)


def _is_chosen(step: int, way: int, is_first_or_last: bool, *, thinly: bool) -> bool:
    is_its_way = step % len(WAYS) == way
    if thinly:
        return is_its_way and (is_first_or_last or step // len(WAYS) % len(WAYS) == 0)
    return is_its_way or is_first_or_last


def of_use(paths: Paths, folder: Path) -> set[str]:
    """Return the names in an unfinished file whose source files are as they were."""
    found: set[str] = set()
    if not paths.partial.exists() or not paths.partial.stat().st_size:
        return found
    for row in read_rows(paths.journal) if read_head(paths.journal) else ():
        status = os.stat(folder / row.key) if (folder / row.key).exists() else None
        if status and tuple(row.source) == (status.st_size, status.st_mtime_ns):
            found.add(row.key)
    return found


def make_fresh(conversion: Conversion) -> None:
    """Nothing was there before."""


def make_replacing(conversion: Conversion) -> None:
    conversion.output.write_bytes(b"an older one")
    conversion.output.with_name("OUT.h5.failures.csv").write_bytes(b"its failures")


def make_going_on(conversion: Conversion) -> None:
    conversion.break_off("0007.num")


def make_cutting(conversion: Conversion) -> None:
    """A part of what was kept can stay, and of its last batch a part."""
    conversion.add(16).put("0005.num", "chunks", 5)
    (conversion.folder / "0003.num").write_text("none:0")
    conversion.break_off("0014.num")
    os.utime(conversion.folder / "0013.num", (0, 0))


def make_completing(conversion: Conversion) -> None:
    """All samples are there already."""
    conversion.break_off("0009.num")
    for name in conversion.names[8:]:
        (conversion.folder / name).unlink()


SCENES = {
    "fresh": make_fresh,
    "replacing": make_replacing,
    "going_on": make_going_on,
    "cutting": make_cutting,
    "completing": make_completing,
    "fresh, in blocks": make_fresh,
    "going on, in blocks": make_going_on,
}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("scene", SCENES)
def test_whatever_step_it_is_broken_off_at_the_next_run_ends_with_the_same_bytes(
    scene, workers, tmp_path, convert, small_tasks
):
    """Killed before and amid each step, or refused as by a full disk."""
    conversion = Conversion(tmp_path, convert).add(12)
    conversion.put("0005.num", "chunks", 5)
    (conversion.folder / "0003.num").write_text("none:0")
    SCENES[scene](conversion)
    in_blocks = scene.endswith("in blocks")
    made = Scene(conversion, "--overwrite", f"--workers={workers}", in_blocks=in_blocks)
    broken = made.break_everywhere(thinly=workers > 1)  # the steps of one are always the same
    assert len(broken) > (8 if workers > 1 else 26)
    completed = 0
    for point, ended in broken:
        output = Path(point.place) / "OUT.h5"
        where = (point.way, point.step, ended)
        if ended.status != -signal.SIGKILL and point.way != "full":
            assert workers > 1, where  # not always the same steps
            assert point.step > len(ended.steps), where
        elif point.way == "full" and "No space left" not in ended.err:
            assert workers > 1, where
        elif point.way == "full":
            assert "Traceback" not in ended.err, where
            assert "Exception ignored" not in ended.err, where
            assert ended.status == 1, where
            assert ended.err.count(f"{output} could not be written (No space left") == 1, where
        found = files_in(output.parent)
        assert found.get("OUT.h5") in (made.before.get("OUT.h5"), made.expected["OUT.h5"]), where
        assert found.get("OUT.h5.failures.csv") in (
            made.before.get("OUT.h5.failures.csv"),
            made.expected["OUT.h5.failures.csv"],
        ), where
        is_complete = found.get("OUT.h5") == made.expected["OUT.h5"]
        completed += is_complete
        paths = Paths(output)
        own = of_use(paths, conversion.folder)
        conversion.reads()
        again = conversion.run("--overwrite", output=output)
        read = set(conversion.reads())
        assert again.status == 1, (where, again)
        assert "Traceback" not in again.err, where
        assert "damaged" not in again.err, where
        assert files_in(output.parent) == made.expected, where
        assert is_complete or not read & own, where
    assert 0 < completed < len(broken)


# At seeded moments


class Seeded(NamedTuple):
    """A conversion to be killed at moments that are given by the size its file has then."""

    conversion: Conversion
    workers: int
    files_in_task: int
    most_estimated: int

    def points(self, count: int, nbytes: int) -> list[Point]:
        random = np.random.default_rng(0)
        places = [self.conversion.tmp_path / "places" / str(n) for n in range(count)]
        for place in places:
            place.mkdir(parents=True)
        return [Point(str(place), nbytes=int(random.integers(nbytes))) for place in places]

    def break_all(self, points: list[Point]) -> list[Broken]:
        conversion = self.conversion
        arguments = [f"--path_images={conversion.folder}", *conversion.flags, "--overwrite"]
        arguments.append(f"--workers={self.workers}")
        return break_all(arguments, points, files_in_task=self.files_in_task)

    @property
    def most_in_flight(self) -> int:
        """Return how many files at most are read and not yet recorded, whenever it is killed."""
        return self.workers * BUFFERS * self.files_in_task + self.most_estimated


@pytest.fixture
def photos(tmp_path, convert) -> Seeded:
    """60 photos of 0.2 MB."""
    conversion = Conversion(tmp_path, convert)
    for number in range(60):
        save(conversion.folder / f"{number:04}.num", colours(number, (200, 300, 3)), format="JPEG")
    conversion.functions.write_text(PHOTO_READER)
    return Seeded(conversion, workers=2, files_in_task=2, most_estimated=4)


PHOTO_READER = """
import os
from converter import read_image

HERE = os.path.dirname(__file__)


def my_read(path_sample):
    with open(os.environ.get("READS", HERE + "/reads.log"), "a") as log:
        log.write(os.path.basename(path_sample) + "\\n")
    return read_image(path_sample)
"""


@pytest.fixture
def arrays(tmp_path, convert) -> Seeded:
    """500 arrays of 100 bytes: twice as many as are in flight."""
    conversion = Conversion(tmp_path, convert).add(500, ("small",))
    return Seeded(conversion, workers=2, files_in_task=16, most_estimated=64)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["photos", "arrays"])
def test_killed_at_50_moments_the_next_run_ends_with_the_same_bytes(kind, request, monkeypatch):
    """And reads again no more than what was in flight."""
    seeded = request.getfixturevalue(kind)
    conversion = seeded.conversion
    make_tasks_small(monkeypatch, seeded.files_in_task)
    whole = conversion.tmp_path / "whole.h5"
    assert conversion.run(output=whole).status == 0
    expected, older = whole.read_bytes(), b"an older one"
    points, killed, partly = seeded.points(50, len(expected)), 0, 0
    for first in range(0, len(points), 10):  # not all fifty files at once
        some = points[first : first + 10]
        for point in some[::2]:
            (Path(point.place) / "OUT.h5").write_bytes(older)
        for number, (point, ended) in enumerate(zip(some, seeded.break_all(some), strict=True)):
            output = Path(point.place) / "OUT.h5"
            paths = Paths(output)
            assert ended.status in (0, -signal.SIGKILL), ended
            killed += ended.status != 0
            found = output.read_bytes() if output.exists() else None
            before = None if number % 2 else older
            assert found in (before, expected)
            own = of_use(paths, conversion.folder)
            if found == before:
                assert len(set(ended.reads) - own) <= seeded.most_in_flight
                partly += 0 < len(own) < len(conversion.names)
            conversion.reads()
            again = conversion.run("--overwrite", f"--workers={1 + number % 2}", output=output)
            assert again.status == 0, again
            assert output.read_bytes() == expected
            assert os.listdir(output.parent) == ["OUT.h5"]
            if own:
                assert taken_over(again) == len(own)
                assert Counter(conversion.reads()) == Counter(set(conversion.names) - own)
            shutil.rmtree(output.parent)
    assert killed > 40
    assert partly > 20


@pytest.mark.slow
def test_killed_again_and_again_it_comes_to_its_end_all_the_same(arrays, monkeypatch):
    conversion = arrays.conversion
    whole = conversion.tmp_path / "whole.h5"
    assert conversion.run(output=whole).status == 0
    random, read = np.random.default_rng(1), Counter()
    place = conversion.tmp_path / "place"
    place.mkdir()
    rounds = 0
    while not (place / "OUT.h5").exists():
        partial = place / "OUT.h5.partial"
        size = partial.stat().st_size if partial.exists() else 0
        (ended,) = arrays.break_all([Point(str(place), nbytes=size + int(random.integers(40_000)))])
        read = Counter(ended.reads)  # of all rounds: the log of a place grows
        rounds += 1
        assert rounds < 200
    assert rounds > 3
    assert (place / "OUT.h5").read_bytes() == whole.read_bytes()
    assert set(read) == set(conversion.names)
    assert read.total() <= len(read) + rounds * arrays.most_in_flight


class LoggingWork(NamedTuple):
    """Payloads that somebody writes; at a slow sample it is noted what is in flight."""

    place: Path
    slow: frozenset[str]
    file_timeout: float | None = None

    def start(self) -> LoggingWork:
        return self

    def encode(self, key: str, buffer: Buffer) -> Failure:
        with open(self.place / "begun", "a") as log:
            print(key, file=log)
        time.sleep(0.01)
        if key in self.slow:
            time.sleep(0.3)
            begun, recorded = (self._count(name) for name in ("begun", "recorded"))
            with open(self.place / "in_flight", "a") as log:
                print(begun - recorded, file=log)
        buffer.view(1000)[:] = key.encode() * 250
        buffer.keep(1000)
        return Failure(key, "for its payload's sake")

    def _count(self, name: str) -> int:
        return len((self.place / name).read_text().split())


@pytest.mark.parametrize("seconds", [0, 0.03])
@pytest.mark.parametrize("distance", range(6, 15, 4))
def test_no_more_is_in_flight_than_there_are_buffers_whatever_is_slow(
    distance, seconds, tmp_path, monkeypatch
):
    """A worker may be at a slow file, or the disk be slow: the others must not run ahead.

    A buffer is filled again only when it was released: nobody else may touch what lies there.
    """
    make_tasks_small(monkeypatch, 1)
    keys = [f"{n:04}" for n in range(60)]
    work = LoggingWork(tmp_path, frozenset((keys[12], keys[12 + distance])))
    held: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
    written = []

    def write() -> None:
        with open(tmp_path / "recorded", "w") as log:
            while (batch := held.get()) is not None:
                time.sleep(seconds)
                written.append(bytes(batch.payload[:4]).decode())
                print(written[-1], file=log, flush=True)
                batch.release()

    thread = threading.Thread(target=write)
    (tmp_path / "recorded").touch()
    with Pool(work, 3) as pool:
        thread.start()
        for batch in pool.run(keys):
            batch.is_held = True
            held.put(batch)
        held.put(None)
        thread.join()
    in_flight = (tmp_path / "in_flight").read_text().split()
    assert len(in_flight) == 2
    assert max(map(int, in_flight)) <= 3 * BUFFERS
    assert written == keys


@pytest.mark.everyday(1)
@pytest.mark.parametrize("seed", range(4))
def test_when_the_parent_alone_is_killed_the_next_run_need_not_wait(seed, tmp_path, convert):
    """Workers that are still about to go must not write into what it makes."""
    conversion = Conversion(tmp_path, convert).add(80, ("large",))
    nbytes = int(np.random.default_rng(seed).integers(1, 80 * 600_000))
    process = start(command(conversion.folder, conversion.output, *conversion.flags, "--workers=2"))
    wait_until(
        lambda: (
            (conversion.partial.exists() and conversion.partial.stat().st_size >= nbytes)
            or process.poll() is not None
        )
    )
    process.kill()
    process.wait()
    ended = conversion.run("--workers=2", "--overwrite")
    assert ended.status == 0, ended
    conversion.assert_as_uninterrupted(ended=ended)
    finish(process)
    assert not processes_left(process.pid)


@pytest.mark.slow
def test_a_worker_killed_at_20_moments_costs_few_files_and_no_wrong_byte(tmp_path, convert):
    """One at a time, the moments given by how many files have been read."""
    conversion = Conversion(tmp_path, convert).add(400)
    functions = conversion.functions
    functions.write_text(
        functions.read_text().replace("    break_off(name)\n", "    time.sleep(0.01)\n")
    )
    whole = tmp_path / "whole.h5"
    assert conversion.run(output=whole).status == 0
    conversion.reads()
    random = np.random.default_rng(0)
    moments = sorted(random.integers(1, 380, 20).tolist())
    process = start(command(conversion.folder, conversion.output, *conversion.flags, "--workers=3"))
    wait_until(conversion.journal.exists)
    before = len(conversion.log.read_text().split())
    killed = 0
    for moment in moments:
        wait_until(lambda at=moment: len(conversion.log.read_text().split()) >= before + at)
        workers = workers_of(process.pid)
        if workers:
            os.kill(int(random.choice(workers)), signal.SIGKILL)
            killed += 1
    ended = finish(process)
    assert killed >= 15
    assert "Traceback" not in ended.err
    lost = failures(conversion.output)
    assert ended.status == (1 if lost else 0), ended
    assert len(lost) <= killed // 2  # twice alone, until a file is to blame
    found, expected = stored(conversion.output), stored(whole)
    assert set(found) | set(lost) == set(expected)
    for key, array in found.items():
        assert_same(array, expected[key])
    if not lost:
        assert conversion.output.read_bytes() == whole.read_bytes()
    assert not processes_left(process.pid)
