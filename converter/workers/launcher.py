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

import multiprocessing.spawn
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from converter.errors import WorkersError

HEAD = struct.Struct("<QI")  # bytes of the message behind it, descriptors that come with it
NOTICE = struct.Struct("<qi")  # a worker's number, its exit code
SECONDS_BETWEEN_LOOKS = 1.0  # whether the parent is there: a fork of it may hold the socket
#: Descriptors are handed over through a Unix socket.
IS_AVAILABLE = hasattr(socket, "send_fds") and hasattr(os, "fork")
#: On macOS system libraries do not survive a fork: there each worker is a new interpreter.
CAN_FORK = sys.platform != "darwin"
COULD_NOT_START = 254  # exit code of a worker that the system refused
IMPORT = "import sys; sys.path[:] = {path!r}; from converter.workers import launcher; launcher."


class Launcher:
    """The parent's end; close it to end all workers.

    Parameters
    ----------
    fork
        Fork this process, in which no user code may have run; else start an interpreter.

    Raises
    ------
    WorkersError
        The system starts no process.
    """

    def __init__(self, *, fork: bool = False) -> None:
        self._exit_codes: dict[int, int] = {}
        self._count = 0
        self._received = b""
        self._socket, theirs = socket.socketpair()
        try:
            self._end = _forked(theirs, self._socket) if fork and CAN_FORK else _spawned(theirs)
        except OSError as error:
            self._socket.close()
            raise WorkersError(
                f"worker processes cannot be started ({error.strerror}): --workers=1 works "
                "without them"
            ) from error
        finally:
            theirs.close()

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
            self._exit_codes.update(NOTICE.iter_unpack(self._received[:whole]))
            self._received = self._received[whole:]
        return self._exit_codes[number]

    def kill(self, number: int) -> None:
        """End a worker at once, if it still runs."""
        with suppress(WorkersError):
            self._send(("kill", number))

    def close(self) -> None:
        """End all workers at once, and wait until they are gone."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self._end()

    def _send(self, message: Any, descriptors: Sequence[int] = ()) -> None:
        data = pickle.dumps(message)
        try:
            head = HEAD.pack(len(data), len(descriptors))
            socket.send_fds(self._socket, [head], list(descriptors))
            self._socket.sendall(data)
        except OSError as error:
            raise WorkersError(
                "the process that starts the worker processes has ended: repeat the command, or "
                "add --workers=1"
            ) from error


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


# The launcher's own process


def serve(descriptor: int) -> NoReturn:
    """Start workers and tell how they end, until the parent is gone."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the parent's to handle: it ends this process
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = os.getppid()
    connection = socket.socket(fileno=descriptor)
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    workers: dict[int, int] = {}  # number of each process
    try:
        while os.getppid() == parent:
            ready = select.select([connection, wake], [], [], SECONDS_BETWEEN_LOOKS)[0]
            if wake in ready:
                wake.recv(4096)
            for number, code in _ended(workers):
                connection.sendall(NOTICE.pack(number, code))
            if connection in ready and not _obey(connection, workers, (wake, woken)):
                break
    except OSError:  # the parent is gone
        pass
    finally:
        for process in workers:
            os.kill(process, signal.SIGKILL)
        for process in workers:
            os.waitpid(process, 0)
        os._exit(0)


def _obey(
    connection: socket.socket, workers: dict[int, int], ends: Sequence[socket.socket]
) -> bool:
    """Do what one message asks for; False when there is no more to come."""
    head, descriptors, _, _ = socket.recv_fds(connection, HEAD.size, 64)
    if len(head) < HEAD.size:
        return False
    nbytes, _ = HEAD.unpack(head)
    data = b""
    while len(data) < nbytes:
        piece = connection.recv(min(nbytes - len(data), 1 << 20))
        if not piece:
            return False
        data += piece
    kind, number, *rest = pickle.loads(data)  # imports what workers need, once for all of them
    if kind == "kill":
        for process, other in workers.items():
            if other == number:
                os.kill(process, signal.SIGKILL)
        return True
    try:
        if CAN_FORK:
            process = os.fork()
            if not process:
                for end in (connection, *ends):
                    end.close()
                target, args = rest
                _run(target, args, descriptors)
        else:
            process = _start_interpreter(data, descriptors)
        workers[process] = number
    except OSError:
        connection.sendall(NOTICE.pack(number, COULD_NOT_START))
    for descriptor in descriptors:
        os.close(descriptor)
    return True


def _ended(workers: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Yield number and exit code of each worker that has ended."""
    while workers:
        process, status = os.waitpid(-1, os.WNOHANG)
        if not process:
            return
        if process in workers:
            yield workers.pop(process), os.waitstatus_to_exitcode(status)


def _run(target: Callable[..., None], args: Sequence[Any], descriptors: Sequence[int]) -> NoReturn:
    """Be a worker."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        target(*args, descriptors)
        code = 0
    except BaseException:
        with suppress(OSError, ValueError):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # it may be closed, or full
                stream.flush()
        os._exit(code)


def run_message(*descriptors: int) -> NoReturn:
    """Be a worker in an interpreter of its own; what to do comes from standard input."""
    _, _, target, args = pickle.load(sys.stdin.buffer)
    _run(target, args, descriptors)


def _start_interpreter(message: bytes, descriptors: Sequence[int]) -> int:
    numbers = ", ".join(map(str, descriptors))
    process = _interpreter(f"run_message({numbers})", descriptors, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with suppress(OSError), process.stdin:
        process.stdin.write(message)
    process.returncode = 0  # `_ended` waits for it
    return process.pid


# Starting it


def _forked(theirs: socket.socket, ours: socket.socket) -> Callable[[], object]:
    """Fork; return what waits for the end."""
    with _interrupts_blocked():
        process = os.fork()
        if not process:
            ours.close()
            _close_standard_input()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            serve(theirs.detach())
    return lambda: os.waitpid(process, 0)


def _spawned(theirs: socket.socket) -> Callable[[], object]:
    """Start an interpreter; return what waits for its end."""
    with _interrupts_blocked():
        descriptor = theirs.fileno()
        process = _interpreter(f"serve({descriptor})", [descriptor], stdin=subprocess.DEVNULL)
    return process.wait


def _interpreter(call: str, descriptors: Sequence[int], stdin: int) -> subprocess.Popen[bytes]:
    path = [os.path.abspath(entry) for entry in sys.path]  # "" is the current folder
    executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)
    code = IMPORT.format(path=path) + call
    return subprocess.Popen([executable, "-c", code], pass_fds=descriptors, stdin=stdin)


def _close_standard_input() -> None:
    """Give workers none: what the user types is for the parent."""
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    if empty:
        os.close(empty)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from a process that is starting: it is the parent's to handle."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
