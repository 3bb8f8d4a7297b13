"""Workers come from a process in which no user code has run, and end with their parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from converter.errors import WorkersError
from converter.workers import launcher, launcher_process
from converter.workers.launcher import Launcher
from converter.workers.launcher_process import COULD_NOT_START
from helpers.run import ROOT, wait_until

pytestmark = pytest.mark.skipif(not launcher.IS_AVAILABLE, reason="no Unix sockets")


def say(text: str, descriptors: Sequence[int]) -> None:
    os.write(descriptors[0], f"{text} {os.getpid()}\n".encode())


def sleep(path: str, descriptors: Sequence[int]) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def leave(status: int, descriptors: Sequence[int]) -> None:
    os._exit(status)


def fail(descriptors: Sequence[int]) -> None:
    raise ValueError("as it should")


def read_input(descriptors: Sequence[int]) -> None:
    os.write(descriptors[0], os.read(0, 100) + b"<end>")


def is_running(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


@pytest.fixture(params=["forked", "new interpreter", "interpreter each"])
def started(request, monkeypatch) -> Iterator[Launcher]:
    if request.param == "interpreter each":  # as on macOS
        monkeypatch.setattr(launcher_process, "CAN_FORK", False)
        cannot = launcher_process.IMPORT.replace(" as it;", " as it; it.CAN_FORK = False;")
        monkeypatch.setattr(launcher_process, "IMPORT", cannot)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        made = Launcher(fork=request.param == "forked")
        yield made
        made.close()


class Signalled(BaseException):
    """What a handler of a signal raises, anywhere."""


def test_a_signal_amid_a_message_holds_nobody_up(started, tmp_path, monkeypatch):
    worker = started.start(sleep, (str(tmp_path / "sleeping"),), [])
    wait_until((tmp_path / "sleeping").exists)
    send_fds = socket.send_fds

    def send_head(*arguments):
        send_fds(*arguments)
        raise Signalled

    with monkeypatch.context() as patch:
        patch.setattr(socket, "send_fds", send_head)
        with pytest.raises(Signalled):
            started.start(sleep, ("a" * 1000,), [])
    worker.kill()  # the launcher would wait for the rest of the message
    worker.join()
    started.close()


def test_an_end_that_a_signal_kept_from_being_noted_is_told_again(started):
    worker = started.start(leave, (7,), [])
    started._socket.recv(4096)  # what was read, when the signal came
    worker.kill()
    worker.join()


def test_the_first_that_is_told_of_an_end_counts(started):
    worker = started.start(leave, (7,), [])
    worker.join()
    worker.kill()
    started.start(leave, (0,), []).join()
    assert worker.exitcode == 7


@pytest.mark.everyday(1)
def test_workers_get_their_arguments_and_descriptors(started):
    reading, writing = os.pipe()
    for text in ("one", "two"):
        started.start(say, (text,), [writing]).join()
    os.close(writing)
    lines = os.read(reading, 1000).decode().splitlines()
    assert [line.split()[0] for line in lines] == ["one", "two"]
    assert len({line.split()[1] for line in lines} | {str(os.getpid())}) == 3


@pytest.mark.everyday(1)
@pytest.mark.parametrize("status", [0, 1, 7])
def test_how_a_worker_ended_is_known(started, status):
    worker = started.start(leave, (status,), [])
    worker.join()
    assert (worker.is_alive(), worker.exitcode) == (False, status)


def test_a_worker_that_raises_says_so_and_ends_with_1(capfd):
    made = Launcher(fork=True)
    worker = made.start(fail, (), [])
    worker.join()
    made.close()
    assert worker.exitcode == 1
    assert "as it should" in capfd.readouterr().err


@pytest.mark.everyday(1)
def test_one_worker_is_killed_and_the_others_live(started, tmp_path):
    first = started.start(sleep, (str(tmp_path / "1"),), [])
    second = started.start(sleep, (str(tmp_path / "2"),), [])
    wait_until((tmp_path / "2").exists)
    first.kill()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    assert second.is_alive()


@pytest.mark.everyday(1)
def test_closing_ends_all_workers(started, tmp_path):
    started.start(sleep, (str(tmp_path / "1"),), [])
    wait_until(lambda: (tmp_path / "1").exists() and (tmp_path / "1").read_text())
    started.close()
    assert not is_running(int((tmp_path / "1").read_text()))


@pytest.mark.everyday(1)
def test_workers_have_no_standard_input(started):
    reading, writing = os.pipe()
    started.start(read_input, (), [writing]).join()
    assert os.read(reading, 100) == b"<end>"


def test_a_launcher_that_is_gone_is_said():
    made = Launcher(fork=True)
    made.close()
    with pytest.raises(WorkersError, match="has ended"):
        made.start(leave, (0,), [])


def test_a_worker_the_system_refuses_has_ended(monkeypatch):
    """The launcher is forked from this process, with an ``os.fork`` that fails then."""
    fork, calls = os.fork, []

    def refuse() -> int:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", refuse)
    made = Launcher(fork=True)
    worker = made.start(leave, (0,), [])
    worker.join()
    assert worker.exitcode == COULD_NOT_START
    made.close()


def note_process() -> None:
    os.environ["PREPARED_IN"] = str(os.getpid())


def fail_to_prepare() -> None:
    raise ImportError("as it should")


def tell_preparation(descriptors: Sequence[int]) -> None:
    os.write(descriptors[0], f"{os.environ.get('PREPARED_IN')} {os.getppid()}\n".encode())


@pytest.mark.parametrize("fork", [True, False])
def test_a_launcher_prepares_for_all_workers(fork, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    reading, writing = os.pipe()
    made = Launcher(fork=fork, prepare=note_process)
    for _ in range(2):
        made.start(tell_preparation, (), [writing]).join()
    made.close()
    os.close(writing)
    for line in os.read(reading, 1000).decode().splitlines():
        prepared_in, launcher = line.split()
        assert prepared_in == launcher


def test_workers_start_where_preparing_fails():
    made = Launcher(fork=True, prepare=fail_to_prepare)
    worker = made.start(leave, (7,), [])
    worker.join()
    made.close()
    assert worker.exitcode == 7


PARENT = """
import sys, time
sys.path[:0] = [{root!r}, {here!r}]
import test_launcher
from converter.workers.launcher import Launcher
made = Launcher(fork={fork})
made.start(test_launcher.sleep, ({path!r},), [])
time.sleep(600)
"""


@pytest.mark.everyday(1)
@pytest.mark.parametrize("fork", [True, False])
def test_workers_end_when_the_parent_is_killed(tmp_path, fork):
    path = tmp_path / "worker"
    text = PARENT.format(root=str(ROOT), here=str(Path(__file__).parent), fork=fork, path=str(path))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    parent = subprocess.Popen([sys.executable, "-c", text], env=environment)
    wait_until(lambda: path.exists() and path.read_text())
    process = int(path.read_text())
    assert is_running(process)
    parent.kill()
    parent.wait()
    wait_until(lambda: not is_running(process))
