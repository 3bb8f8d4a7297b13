"""Start worker processes from a process in which no user code has run.

Libraries with threads of their own, such as OpenMP's, do not survive a fork: a worker forked from
a process where one has started threads hangs at its first parallel loop. So workers are forked by
a launcher, which imports this package and nothing of the user's.

The command line forks its launcher before it imports ``my_functions.py`` (5 ms). Elsewhere, where
the process has a past, the launcher is a new interpreter (0.2 s). It never imports the caller's
``__main__``: scripts without a guard, notebooks and ``python -c`` work.

The launcher reads from a socket that ends with its parent. Then it kills its workers, wherever
they are.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from converter.errors import WorkersError
from converter.workers import launcher_process
from converter.workers.launcher_process import HEAD, NOTICE, interpreter, serve

#: Descriptors are handed over through a Unix socket.
IS_AVAILABLE = hasattr(socket, "send_fds") and hasattr(os, "fork")


class Launcher:
    """The parent's end; close it to end all workers.

    Parameters
    ----------
    fork
        Fork this process, in which no user code may have run; else start an interpreter.
    prepare
        A function of a module that imports what workers need: the launcher calls it at once, and
        so once for all workers, while the caller goes on.

    Raises
    ------
    WorkersError
        The system starts no process.
    """

    def __init__(self, *, fork: bool = False, prepare: Callable[[], None] | None = None) -> None:
        self._exit_codes: dict[int, int] = {}
        self._count = 0
        self._received = b""
        self._socket, theirs = socket.socketpair()
        try:
            self._end = (
                _forked(theirs, self._socket)
                if fork and launcher_process.CAN_FORK
                else _spawned(theirs)
            )
        except OSError as error:
            self._socket.close()
            raise WorkersError(
                f"worker processes cannot be started ({error.strerror}): --workers=1 works "
                "without them"
            ) from error
        finally:
            theirs.close()
        if prepare is not None and launcher_process.CAN_FORK:
            with suppress(WorkersError):  # it is said when a worker is to start
                self._send(("prepare", prepare))

    def fileno(self) -> int:
        """Return what can be read when a worker has ended."""
        return self._socket.fileno()

    def start(
        self, target: Callable[..., None], args: Sequence[Any], descriptors: Sequence[int]
    ) -> Launched:
        """Start a worker that calls ``target(*args, descriptors)`` with duplicates of these.

        ``target`` is a function of a module. Raises WorkersError when the launcher is gone.
        """
        self._count += 1
        self._send(("start", self._count, target, tuple(args)), descriptors)
        return Launched(self, self._count)

    def exit_code(self, number: int, *, wait: bool = False) -> int | None:
        """Return how a worker ended: its exit status, or minus a signal's number."""
        while number not in self._exit_codes:
            if not wait and not select.select([self._socket], [], [], 0)[0]:
                return None
            data = self._socket.recv(4096)
            if not data:  # somebody killed the launcher
                return -int(signal.SIGKILL)
            self._received += data
            whole = len(self._received) // NOTICE.size * NOTICE.size
            for told, code in NOTICE.iter_unpack(self._received[:whole]):
                self._exit_codes.setdefault(told, code)  # of a killed one it may be told twice
            self._received = self._received[whole:]
        return self._exit_codes[number]

    def kill(self, number: int) -> None:
        """End a worker at once, if it still runs; its end is told again if it does not."""
        with suppress(WorkersError):
            self._send(("kill", number))

    def close(self) -> None:
        """End all workers at once, and wait until they are gone."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._end()

    def _send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        data, is_sent = pickle.dumps(message), False
        try:
            head = HEAD.pack(len(data), len(descriptors))
            socket.send_fds(self._socket, [head], list(descriptors))
            self._socket.sendall(data)
            is_sent = True
        except OSError as error:
            raise WorkersError(
                "the process that starts the worker processes has ended: repeat the command, or "
                "add --workers=1"
            ) from error
        finally:
            if not is_sent:  # a signal came: what is sent next would be taken for the rest
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


class Launched:
    """A worker, with what `multiprocessing.Process` has of the same name."""

    def __init__(self, launcher: Launcher, number: int) -> None:
        self.sentinel = launcher
        self._number = number

    @property
    def exitcode(self) -> int | None:
        return self.sentinel.exit_code(self._number)

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.sentinel.kill(self._number)

    def join(self) -> None:
        self.sentinel.exit_code(self._number, wait=True)


@contextmanager
def launching(
    *, is_needed: bool, fork: bool, prepare: Callable[[], None] | None = None
) -> Iterator[Launcher | None]:
    """Give a launcher for as long as the block runs; None where none is needed, or can be had."""
    if not is_needed or not IS_AVAILABLE:
        yield None
        return
    launcher = Launcher(fork=fork, prepare=prepare)
    try:
        yield launcher
    finally:
        launcher.close()


def _forked(theirs: socket.socket, ours: socket.socket) -> Callable[[], object]:
    """Fork; return what waits for the end."""
    with _interrupts_blocked():
        process = os.fork()
        if not process:
            ours.close()
            serve(theirs.detach())
    return lambda: os.waitpid(process, 0)


def _spawned(theirs: socket.socket) -> Callable[[], object]:
    """Start an interpreter; return what waits for its end."""
    with _interrupts_blocked():
        descriptor = theirs.fileno()
        process = interpreter(f"serve({descriptor})", [descriptor], stdin=subprocess.DEVNULL)
    return process.wait


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from a process that is starting: it is the parent's to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
