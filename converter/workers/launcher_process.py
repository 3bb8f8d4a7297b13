"""The launcher's own process: start workers, tell how they end, end with the parent."""

from __future__ import annotations

import gc
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
from contextlib import suppress
from typing import Any, NoReturn

HEAD = struct.Struct("<QI")  # bytes of the message behind it, descriptors that come with it
NOTICE = struct.Struct("<qi")  # a worker's number, its exit code
SECONDS_BETWEEN_LOOKS = 1.0  # whether the parent is there: a fork of it may hold the socket
#: On macOS system libraries do not survive a fork: there each worker is a new interpreter.
CAN_FORK = sys.platform != "darwin"
COULD_NOT_START = 254  # exit code of a worker that the system refused
IMPORT = (
    "import sys; sys.path[:] = {path!r}; from converter.workers import launcher_process as it; it."
)


def serve(descriptor: int) -> NoReturn:
    """Start workers and tell how they end, until the parent is gone."""
    _close_standard_input()
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # the parent's to handle: it ends this process
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked while it was started
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
    if kind == "prepare":
        _prepare(number)
        return True
    if kind == "kill":
        process = next((process for process, other in workers.items() if other == number), None)
        if process is None:  # a signal may have kept the parent from noting its end
            connection.sendall(NOTICE.pack(number, -signal.SIGKILL))
        else:
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


def _prepare(function: Callable[[], None]) -> None:
    """Have modules imported, which stay; an error will come up where they are needed."""
    gc.disable()
    with suppress(Exception):
        function()
    gc.freeze()  # else each worker gets a copy of all memory that a collection touches
    gc.enable()


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
    process = interpreter(f"run_message({numbers})", descriptors, stdin=subprocess.PIPE)
    assert process.stdin is not None
    with suppress(OSError), process.stdin:
        process.stdin.write(message)
    process.returncode = 0  # `_ended` waits for it
    return process.pid


def interpreter(call: str, descriptors: Sequence[int], stdin: int) -> subprocess.Popen[bytes]:
    """Start an interpreter with this one's sys.path that calls a function of this module."""
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
