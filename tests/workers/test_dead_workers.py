"""A worker that is killed, from outside or by the file it reads, costs that file alone."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.check import assert_same, failures, stored
from helpers.images import save_jpegs
from helpers.run import (
    ROOT,
    command,
    finish,
    processes_left,
    processes_of,
    read_with,
    run,
    start,
    wait_until,
    workers_of,
    write_functions,
)

pytestmark = [
    pytest.mark.mostly_slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

KILLERS = {
    "abort": "os.abort()",
    "exit": "os._exit(7)",
    "sigkill": "os.kill(os.getpid(), signal.SIGKILL)",
    "sigterm": "os.kill(os.getpid(), signal.SIGTERM)",
    "segfault": "ctypes.string_at(0)",
    "too_much_memory": "os.kill(os.getpid(), signal.SIGBUS)",
}


def write_killing_reader(path: Path, killer: str, condition: str) -> Path:
    return write_functions(
        path,
        f"""
        import ctypes, faulthandler, os, signal
        faulthandler.disable()

        def my_read(path_sample):
            number = int(os.path.basename(path_sample)[:4])
            if {condition}:
                {killer}
            return number
        """,
    )


def write_numbered(folder: Path, count: int) -> Path:
    for number in range(count):
        (folder / f"{number:04}.num").write_bytes(b"x")
    return folder


@pytest.mark.everyday(1)
@pytest.mark.parametrize("killer", KILLERS)
def test_a_file_that_kills_its_worker_is_named_and_the_rest_is_stored(
    killer, folder, output, tmp_path
):
    write_numbered(folder, 40)
    functions = write_killing_reader(
        tmp_path / "killing_functions.py", KILLERS[killer], "number in (0, 17, 18, 39)"
    )
    flags = ("--ext=num", "--workers=2", *read_with(functions))
    process = start(command(folder, output, *flags))
    ended = finish(process)
    assert ended.status == 1, ended.err
    killed = {f"{number:04}.num" for number in (0, 17, 18, 39)}
    assert set(failures(output)) == killed
    assert all("ended the worker process" in reason for reason in failures(output).values())
    found = stored(output)
    assert set(found) == {f"{number:04}.num" for number in range(40)} - killed
    assert all(int(key[:4]) == value for key, value in found.items())
    assert "Traceback" not in ended.err
    assert not processes_left(process.pid)
    assert sorted(os.listdir(output.parent)) == ["OUT.h5", "OUT.h5.failures.csv"]


@pytest.mark.everyday
def test_the_reason_names_the_signal_or_the_exit_status(folder, output, tmp_path):
    write_numbered(folder, 3)
    functions = write_functions(
        tmp_path / "killing_functions.py",
        """
        import os, signal
        def my_read(path_sample):
            if "0000" in path_sample:
                os.kill(os.getpid(), signal.SIGKILL)
            if "0001" in path_sample:
                os._exit(7)
            return 1
        """,
    )
    run(command(folder, output, "--ext=num", "--workers=2", *read_with(functions)))
    reasons = failures(output)
    assert "SIGKILL" in reasons["0000.num"]
    assert "exit status 7" in reasons["0001.num"]


@pytest.mark.parametrize("workers", [2, 3])
def test_when_every_file_kills_its_worker_the_run_ends_without_output(
    workers, folder, output, tmp_path
):
    write_numbered(folder, 30)
    functions = write_killing_reader(tmp_path / "killing_functions.py", "os.abort()", "True")
    process = start(
        command(folder, output, "--ext=num", f"--workers={workers}", *read_with(functions))
    )
    ended = finish(process)
    assert ended.status == 1
    assert "none of the 30 files could be read" in ended.err
    assert set(failures(output)) == {f"{number:04}.num" for number in range(30)}
    assert os.listdir(output.parent) == ["OUT.h5.failures.csv"]
    assert not processes_left(process.pid)


@pytest.mark.everyday
@pytest.mark.parametrize(("deaths", "reads"), [(1, 2), (2, 3), (99, 3)])
def test_a_file_is_to_blame_when_it_ended_a_worker_twice_alone(
    deaths, reads, folder, output, tmp_path
):
    """It kills the first so many workers that read it: among others first, then alone."""
    write_numbered(folder, 10)
    log = tmp_path / "reads.log"
    log.touch()
    functions = write_functions(
        tmp_path / "killing_functions.py",
        f"""
        import os

        def my_read(path_sample):
            if "0003" in path_sample:
                with open({str(log)!r}, "r+") as log:
                    before = len(log.read())
                    log.write("x")
                if before < {deaths}:
                    os.abort()
            return 1
        """,
    )
    ended = run(command(folder, output, "--ext=num", "--workers=2", *read_with(functions)))
    found = failures(output)
    is_stored = deaths < reads
    assert ended.status == (0 if is_stored else 1), ended.err
    assert list(found) == ([] if is_stored else ["0003.num"])
    assert len(stored(output)) == 9 + is_stored
    assert log.read_text() == "x" * reads


def test_large_arrays_before_and_after_a_killing_file_are_stored_whole(folder, output, tmp_path):
    write_numbered(folder, 12)
    functions = write_functions(
        tmp_path / "killing_functions.py",
        """
        import os
        import numpy as np

        def my_read(path_sample):
            number = int(os.path.basename(path_sample)[:4])
            array = np.random.default_rng(number).integers(0, 256, 9_000_000, dtype=np.uint8)
            if number in (0, 5, 6):
                os.abort()
            return array
        """,
    )
    ended = run(command(folder, output, "--ext=num", "--workers=2", *read_with(functions)))
    assert ended.status == 1, ended.err
    assert set(failures(output)) == {"0000.num", "0005.num", "0006.num"}
    found = stored(output)
    assert len(found) == 9
    for key, array in found.items():
        assert_same(
            array,
            np.random.default_rng(int(key[:4])).integers(0, 256, 9_000_000, dtype=np.uint8),
        )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_workers_killed_from_outside_are_replaced_and_at_most_their_files_are_lost(
    number, folder, output, tmp_path
):
    write_numbered(folder, 120)
    functions = write_functions(
        tmp_path / "slow_functions.py",
        """
        import os, time
        def my_read(path_sample):
            time.sleep(0.02)
            return int(os.path.basename(path_sample)[:4])
        """,
    )
    process = start(command(folder, output, "--ext=num", "--workers=2", *read_with(functions)))
    wait_until(output.with_name("OUT.h5.partial").exists)
    killed = 0
    while killed < 3 and process.poll() is None:
        for worker in workers_of(process.pid)[:1]:
            os.kill(worker, number)
            killed += 1
        wait_until(lambda: process.poll() is not None, seconds=0.3)
    ended = finish(process)
    assert killed >= 1
    lost = failures(output)
    assert ended.status == (1 if lost else 0), ended.err
    assert len(lost) <= killed
    found = stored(output)
    assert set(found) | set(lost) == {f"{n:04}.num" for n in range(120)}
    assert all(int(key[:4]) == value for key, value in found.items())
    assert "Traceback" not in ended.err
    assert not processes_left(process.pid)


@pytest.mark.parametrize(("method", "pause"), [("fork", 0), ("spawn", 0.6)])
def test_workers_killed_while_arrays_are_on_their_way_spoil_no_stored_byte(
    method, pause, folder, output, tmp_path
):
    """Between reading, answering and writing a worker may be killed at any moment."""
    write_numbered(folder, 80)
    functions = write_functions(
        tmp_path / "large_functions.py",
        """
        import os
        import numpy as np
        def my_read(path_sample):
            number = int(os.path.basename(path_sample)[:4])
            size = 11_000_000 if number % 9 == 0 else 900_000 + number
            return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
        """,
    )
    driver = write_functions(
        tmp_path / "driver.py",
        f"""
        import multiprocessing, sys
        sys.path.insert(0, {str(ROOT)!r})
        from converter.cli import main

        if __name__ == "__main__":
            multiprocessing.set_start_method({method!r})
            sys.exit(main())
        """,
    )
    flags = ("--ext=num", *read_with(functions), "--workers=3")
    process = start([sys.executable, str(driver), *command(folder, output, *flags)[2:]])
    wait_until(output.with_name("OUT.h5.partial").exists)
    generator, killed = np.random.default_rng(0), 0
    while killed < 12 and process.poll() is None:
        workers = workers_of(process.pid)
        seconds = 0.01  # until all have started
        if len(workers) == 3:
            os.kill(int(generator.choice(workers)), signal.SIGKILL)
            killed += 1
            seconds = generator.random() * 0.1 + pause
        wait_until(lambda: process.poll() is not None, seconds=seconds)
    ended = finish(process)
    assert killed
    lost = failures(output)
    assert ended.status == (1 if lost else 0), ended.err
    assert "Traceback" not in ended.err
    found = stored(output)
    assert set(found) | set(lost) == {f"{n:04}.num" for n in range(80)}
    assert len(found) + len(lost) == 80
    assert len(lost) <= killed // 2  # twice alone, until a file is to blame
    for key, array in found.items():
        number = int(key[:4])
        size = 11_000_000 if number % 9 == 0 else 900_000 + number
        generator = np.random.default_rng(number)
        assert_same(array, generator.integers(0, 256, size, dtype=np.uint8))
    assert not processes_left(process.pid)


def test_a_reader_that_ends_every_worker_at_import_ends_the_run(folder, output, tmp_path):
    save_jpegs(folder, ["a.jpg", "b.jpg"])
    functions = write_functions(
        tmp_path / "dying_functions.py",
        """
        import os
        if os.getpid() != os.getsid(0):  # not the process that leads the session: a worker
            os._exit(3)

        def my_read(path_sample):
            return 1
        """,
    )
    process = start(command(folder, output, "--workers=2", *read_with(functions)))
    ended = finish(process)
    assert ended.status in (1, 2)
    assert "worker processes die while they start (exit status 3)" in ended.err
    assert "--workers=1" in ended.err
    assert "Traceback" not in ended.err
    assert not os.listdir(output.parent)
    assert not processes_left(process.pid)


def test_a_reader_that_raises_in_every_worker_at_import_ends_the_run(folder, output, tmp_path):
    save_jpegs(folder, ["a.jpg", "b.jpg"])
    functions = write_functions(
        tmp_path / "dying_functions.py",
        """
        import os
        if os.getpid() != os.getsid(0):  # not the process that leads the session: a worker
            raise ImportError("not in a worker")

        def my_read(path_sample):
            return 1
        """,
    )
    process = start(command(folder, output, "--workers=2", *read_with(functions)))
    ended = finish(process)
    assert ended.status in (1, 2)
    assert "not in a worker" in ended.err
    assert "Traceback" not in ended.err
    assert not os.listdir(output.parent)
    assert not processes_left(process.pid)


def test_workers_go_away_when_their_parent_is_killed(folder, output, tmp_path):
    write_numbered(folder, 100)
    functions = write_functions(
        tmp_path / "slow_functions.py",
        """
        import time
        def my_read(path_sample):
            time.sleep(1)
            return 1
        """,
    )
    process = start(command(folder, output, "--ext=num", "--workers=3", *read_with(functions)))
    wait_until(lambda: len(workers_of(process.pid)) >= 3)
    wait_until(output.with_name("OUT.h5.partial").exists)
    process.kill()
    finish(process)
    assert not processes_left(process.pid)
    assert not output.exists()


def test_the_file_of_a_run_that_was_killed_is_replaced_by_the_next_run(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    output.with_name("OUT.h5.partial").write_bytes(os.urandom(300_000))
    assert convert(folder, output).status == 0
    assert list(stored(output)) == ["a.jpg"]
    assert os.listdir(output.parent) == ["OUT.h5"]


# Files that take for ever

HANGING = {
    "sleeps": "time.sleep(1000)",
    "loops": "while True: pass",
    "swallows_everything": """
            while True:
                try:
                    time.sleep(1000)
                except BaseException:
                    pass""",
    "holds_the_gil_in_a_regular_expression": 're.match(r"(a+)+$", "a" * 60 + "b")',
    "holds_the_gil_in_c": "ctypes.PyDLL(None).sleep(1000)",
    "blocks_all_signals": """
            signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
            time.sleep(1000)""",
    "waits_for_a_process": 'subprocess.run(["sleep", "1000"], stdout=-3, stderr=-3)',
    "reads_a_pipe_nobody_writes": "os.read(os.pipe()[0], 1)",
    "locks_itself_out": """
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()""",
}


def write_hanging_reader(path: Path, what: str, condition: str) -> Path:
    return write_functions(
        path,
        f"""
        import ctypes, os, re, signal, subprocess, threading, time

        def my_read(path_sample):
            number = int(os.path.basename(path_sample)[:4])
            if {condition}:
                {what.replace(chr(10) + "    ", chr(10) + "            ")}
            return number
        """,
    )


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("kind", "workers"),
    [("sleeps", 1), ("holds_the_gil_in_c", 1), *((kind, 2) for kind in HANGING)],
)
def test_a_file_that_never_returns_is_given_up_and_the_rest_is_stored(
    kind, workers, folder, output, tmp_path
):
    write_numbered(folder, 12)
    functions = write_hanging_reader(tmp_path / "hanging.py", HANGING[kind], "number == 7")
    flags = ("--ext=num", f"--workers={workers}", "--file_timeout=1")
    process = start(command(folder, output, *flags, *read_with(functions)))
    ended = finish(process)
    assert ended.status == 1, ended.err
    reason = "reading it took longer than 1 s (--file_timeout)"
    assert failures(output) == {"0007.num": reason}
    assert f"0007.num: {reason}" in ended.err
    found = stored(output)
    assert set(found) == {f"{number:04}.num" for number in range(12)} - {"0007.num"}
    assert all(int(key[:4]) == value for key, value in found.items())
    assert "Traceback" not in ended.err
    assert "Timeout" not in ended.err
    assert sorted(os.listdir(output.parent)) == ["OUT.h5", "OUT.h5.failures.csv"]
    wait_until(lambda: not [p for p in processes_of(process.pid) if name_of(p) != "sleep"])
    for left in processes_of(process.pid):  # what my_read starts is its own
        os.kill(left, signal.SIGKILL)


def test_files_that_never_return_are_given_up_whatever_their_place(folder, output, tmp_path):
    """The first, whose turn it is at the estimate too, two in a row, and the last."""
    write_numbered(folder, 40)
    functions = write_hanging_reader(
        tmp_path / "hanging.py", HANGING["sleeps"], "number in (0, 17, 18, 39)"
    )
    flags = ("--ext=num", "--workers=2", "--file_timeout=0.5")
    ended = run(command(folder, output, *flags, *read_with(functions)))
    assert ended.status == 1, ended.err
    assert set(failures(output)) == {"0000.num", "0017.num", "0018.num", "0039.num"}
    assert set(failures(output).values()) == {"reading it took longer than 0.5 s (--file_timeout)"}
    assert len(stored(output)) == 36


def test_all_that_can_befall_a_worker_in_one_run(folder, output, tmp_path):
    """Those files are the only failures, and each has its own reason."""
    write_numbered(folder, 60)
    functions = write_functions(
        tmp_path / "worst_functions.py",
        """
        import os, re, signal, time

        def my_read(path_sample):
            number = int(os.path.basename(path_sample)[:4])
            if number == 3:
                os.abort()
            if number == 11:
                much = []
                while True:
                    much.append(bytes(500_000_000))  # takes addresses alone
            if number == 23:
                re.match(r"(a+)+$", "a" * 60 + "b")
            if number == 37:
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 41:
                raise SystemExit("enough")
            return number
        """,
    )
    flags = ("--ext=num", "--workers=2", "--file_timeout=3")
    ended = run(
        command(folder, output, *flags, *read_with(functions)),
        preexec_fn=limit_memory(6_000_000_000),
    )
    assert ended.status == 1, ended.err
    reasons = failures(output)
    assert set(reasons) == {f"{n:04}.num" for n in (3, 11, 23, 37, 41)}
    assert "SIGABRT" in reasons["0003.num"]
    assert "MemoryError" in reasons["0011.num"]
    assert "longer than 3 s" in reasons["0023.num"]
    assert "SIGKILL" in reasons["0037.num"]
    assert reasons["0041.num"] == "SystemExit: enough"
    found = stored(output)
    assert len(found) == 55
    assert all(int(key[:4]) == value for key, value in found.items())


def test_a_file_that_takes_its_time_is_stored(folder, output, tmp_path):
    """The limit is one for each file, not for a task or a run."""
    write_numbered(folder, 30)
    functions = write_hanging_reader(tmp_path / "slow.py", "time.sleep(0.2)", "True")
    flags = ("--ext=num", "--workers=2", "--file_timeout=60")
    ended = run(command(folder, output, *flags, *read_with(functions)))
    assert ended.status == 0, ended.err
    assert len(stored(output)) == 30


def test_on_error_stop_ends_at_a_file_that_never_returns(folder, output, tmp_path):
    write_numbered(folder, 12)
    functions = write_hanging_reader(tmp_path / "hanging.py", "time.sleep(1000)", "number == 7")
    flags = ("--ext=num", "--workers=2", "--file_timeout=1", "--on_error=stop")
    process = start(command(folder, output, *flags, *read_with(functions)))
    ended = finish(process)
    assert ended.status == 1
    assert "0007.num: reading it took longer than 1 s" in ended.err
    assert not output.exists()
    assert not processes_left(process.pid)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e9", "soon", ""])
def test_a_time_that_is_none_is_refused(seconds, folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    ended = convert(folder, output, f"--file_timeout={seconds}")
    assert ended.status == 2
    assert f"must be a number of seconds above 0, not {seconds!r}" in ended.err


def limit_memory(nbytes: int):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, nbytes))

    return limit


def name_of(process: int) -> str:
    return Path(f"/proc/{process}/comm").read_text().strip()
