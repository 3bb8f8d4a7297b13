"""Items are done by several threads where that pays, and their results are those of a loop."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from converter.threads import SECONDS_AN_ITEM, Threads

NEVER = 60  # seconds, after which a test fails


def work_for(seconds: float) -> None:
    """Take CPU time of this thread."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class Clock(threading.local):
    """CPU time of each thread, as much as it says it worked."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def work(self, seconds: float) -> None:
        self.seconds += seconds


class Meeting:
    """Says which threads did items; from the second item on waits until there are ``count``."""

    def __init__(self, count: int, work: Callable[[float], None] = work_for) -> None:
        self.seen: set[int] = set()
        self._work = work
        self._count = count
        self._all_there = threading.Event()

    def __call__(self, item: int) -> int:
        self._work(5 * SECONDS_AN_ITEM)
        self.seen.add(threading.get_ident())
        if len(self.seen) >= self._count:
            self._all_there.set()
        if item:
            assert self._all_there.wait(NEVER)
        return -item


@pytest.mark.parametrize("count", [2, 4])
def test_items_that_take_long_are_done_by_all_threads(count):
    clock = Clock()
    meet = Meeting(count, clock.work)
    assert Threads(count, clock=clock).map(meet, range(40)) == [-item for item in range(40)]
    assert threading.get_ident() in meet.seen
    assert len(meet.seen) == count


def test_quick_items_are_done_by_the_caller_alone():
    clock, before = Clock(), set(threading.enumerate())
    threads = Threads(4, clock=clock)
    for _ in range(20):
        threads.map(lambda item: clock.work(SECONDS_AN_ITEM / 2), range(100))
    assert set(threading.enumerate()) <= before


def test_it_changes_as_items_do():
    clock = Clock()
    threads, seen = Threads(2, clock=clock), set()
    threads.map(lambda item: None, range(100))
    threads.map(lambda item: clock.work(10 * SECONDS_AN_ITEM), range(3))
    meet = Meeting(2, clock.work)
    threads.map(meet, range(10))
    assert len(meet.seen) == 2
    for _ in range(2):
        threads.map(lambda item: None, range(100))
    threads.map(lambda item: seen.add(threading.get_ident()), range(100))
    assert seen == {threading.get_ident()}


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("items", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("seconds", [0, 3 * SECONDS_AN_ITEM])
def test_the_results_are_in_order(seconds, items, count):
    clock = Clock()

    def square(item):
        clock.work(seconds)
        return item * item

    threads = Threads(count, clock=clock)
    for _ in range(3):
        assert threads.map(square, range(items)) == [n * n for n in range(items)]


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("seconds", [0, 3 * SECONDS_AN_ITEM])
def test_what_the_first_failing_item_raised_is_raised(seconds, count):
    done = []

    def fail_from_20(item):
        work_for(seconds)
        if item >= 20:
            raise ValueError(f"item {item}")
        done.append(item)

    threads = Threads(count)
    for _ in range(3):
        done.clear()
        with pytest.raises(ValueError, match=r"^item 20$"):
            threads.map(fail_from_20, range(1000))
        assert sorted(done) == list(range(20))
    assert threads.map(str, range(3)) == ["0", "1", "2"]


def test_several_callers_at_once_each_have_their_results():
    threads = Threads(2)

    def call(caller):
        def add(item):
            work_for(2 * SECONDS_AN_ITEM)
            return caller + item

        return threads.map(add, range(50))

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(call, range(0, 8000, 1000)))
    assert found == [[caller + n for n in range(50)] for caller in range(0, 8000, 1000)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    threads = Threads(2)
    threads.map(Meeting(2), range(10))
    child = os.fork()
    if not child:
        try:
            meet = Meeting(2)
            threads.map(meet, range(10))
            os._exit(len(meet.seen))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


def test_they_end_when_closed():
    before = set(threading.enumerate())
    threads = Threads(4)
    threads.map(Meeting(4), range(10))
    begun = set(threading.enumerate()) - before
    assert len(begun) == 3
    threads.close()
    for thread in begun:
        thread.join(NEVER)
        assert not thread.is_alive()
    assert threads.map(Meeting(4), range(10)) == [-n for n in range(10)]
    threads.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_comes_through():
    import signal

    threads = Threads(2)
    threads.map(Meeting(2), range(10))

    def interrupt(item):
        work_for(3 * SECONDS_AN_ITEM)
        if item == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return item

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.map(interrupt, range(2000))
    finally:
        signal.signal(signal.SIGINT, before)
