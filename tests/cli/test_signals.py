"""Ctrl-C and its like: workers gone, nothing left but what can be gone on with, no traceback."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from helpers.check import everything_below, names_kept, stored
from helpers.images import save_jpegs
from helpers.run import (
    ROOT,
    command,
    finish,
    processes_left,
    read_with,
    start,
    wait_until,
    write_functions,
)

pytestmark = [
    pytest.mark.mostly_slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

SLOW = """
import time
def my_read(path_sample):
    open(__file__ + ".called", "w").close()
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        time.sleep(0.01)
    return list(range(1000))
"""


def start_slowly(folder: Path, output: Path, tmp_path: Path, *flags: str):
    save_jpegs(folder, [f"{number:03}.jpg" for number in range(60)])
    functions = write_functions(tmp_path / "slow_functions.py", SLOW)
    return start(command(folder, output, *read_with(functions), *flags))


def send(process, number: int, to_whole_group: bool) -> None:
    if to_whole_group:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("to_whole_group", [True, False], ids=["group", "parent"])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_nothing_but_what_is_kept(workers, to_whole_group, folder, tmp_path):
    output = tmp_path / "new" / "deep" / "OUT.h5"
    process = start_slowly(folder, output, tmp_path, f"--workers={workers}")
    wait_until(output.with_name("OUT.h5.partial").exists)
    time.sleep(0.3)
    send(process, signal.SIGINT, to_whole_group)
    ended = finish(process)
    assert ended.status == 130
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err
    kept = names_kept(ended, output)
    assert set(os.listdir(output.parent)) == kept if kept else not (tmp_path / "new").exists()
    assert not processes_left(process.pid)


@pytest.mark.everyday(1)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_end_leaves_nothing_but_what_is_kept(number, status, folder, output, tmp_path):
    process = start_slowly(folder, output, tmp_path, "--workers=2")
    wait_until(output.with_name("OUT.h5.partial").exists)
    send(process, number, to_whole_group=False)
    ended = finish(process)
    assert ended.status == status
    assert "Traceback" not in ended.err
    assert set(os.listdir(output.parent)) == names_kept(ended, output)
    assert not processes_left(process.pid)


def test_an_impatient_second_ctrl_c_changes_nothing(folder, output, tmp_path):
    process = start_slowly(folder, output, tmp_path, "--workers=2")
    wait_until(output.with_name("OUT.h5.partial").exists)
    for _ in range(5):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.002)
    ended = finish(process)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert set(os.listdir(output.parent)) == names_kept(ended, output)
    assert not processes_left(process.pid)


@pytest.mark.parametrize("milliseconds", [60, 150, 250, 350, 500, 700])
def test_ctrl_c_at_any_moment_gives_no_traceback(milliseconds, folder, output, tmp_path):
    process = start_slowly(folder, output, tmp_path, "--workers=2")
    time.sleep(milliseconds / 1000)
    send(process, signal.SIGINT, to_whole_group=True)
    ended = finish(process)
    said = ended.err.splitlines()
    # Python's own start is not ours to mend, nor what comes before anything can be done
    ours = [code for line, code in itertools.pairwise(said) if str(ROOT / "converter") in line]
    assert [code.strip() for code in ours] in ([], ["import signal"])
    is_pythons = not ours and "Traceback" in ended.err and ended.status == 1
    assert is_pythons or ended.status in (130, -signal.SIGINT)  # a shell shows both as 130
    assert set(os.listdir(output.parent)) == names_kept(ended, output)
    assert not processes_left(process.pid)


def test_ctrl_c_keeps_an_older_output_and_its_list_of_failures(folder, output, tmp_path):
    output.write_bytes(b"an older one")
    output.with_name("OUT.h5.failures.csv").write_bytes(b"its failures")
    (folder / "000-broken.jpg").write_bytes(b"")
    before = everything_below(output.parent)
    process = start_slowly(folder, output, tmp_path, "--workers=2", "--overwrite")
    wait_until(output.with_name("OUT.h5.partial").exists)
    time.sleep(0.5)
    send(process, signal.SIGINT, to_whole_group=True)
    ended = finish(process)
    assert ended.status == 130
    left = everything_below(output.parent)
    assert set(left) == {*before, *names_kept(ended, output)}
    assert {name: left[name] for name in before} == before


def test_ctrl_c_ends_a_dry_run(folder, output, tmp_path):
    process = start_slowly(folder, output, tmp_path, "--workers=2", "--dry_run")
    wait_until((tmp_path / "slow_functions.py.called").exists)
    send(process, signal.SIGINT, to_whole_group=True)
    ended = finish(process)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert not processes_left(process.pid)


@pytest.mark.parametrize("seconds", [0, 0.2, 0.6])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_ctrl_c_ends_the_workers_of_every_start_method(method, seconds, folder, output, tmp_path):
    """While they start, too: the output is begun by then, and their interpreter is not."""
    save_jpegs(folder, [f"{number:03}.jpg" for number in range(60)])
    functions = write_functions(tmp_path / "slow_functions.py", SLOW)
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
    flags = (*read_with(functions), "--workers=2")
    process = start([sys.executable, str(driver), *command(folder, output, *flags)[2:]])
    wait_until(output.with_name("OUT.h5.partial").exists)
    time.sleep(seconds)
    send(process, signal.SIGINT, to_whole_group=True)
    ended = finish(process)
    assert ended.status == 130
    assert "Traceback" not in ended.err
    assert set(os.listdir(output.parent)) == names_kept(ended, output)
    assert not processes_left(process.pid)


ENDING = """
import os, signal, sys
sys.path.insert(0, {root!r})
from converter.cli import main

real, calls = os.{function}, 0


def interrupted(*arguments, **options):
    global calls
    calls += 1
    if calls == {call}:
        os.kill(os.getpid(), signal.SIGINT)
    return real(*arguments, **options)


os.{function} = interrupted
sys.exit(main())
"""


@pytest.mark.parametrize(("function", "call"), [("fsync", 1), ("replace", 1), ("fsync", 2)])
def test_ctrl_c_while_the_file_is_completed_comes_too_late(
    function, call, folder, output, tmp_path
):
    """It is not left half done: what is said of it must be true, too."""
    save_jpegs(folder, [f"{number:03}.jpg" for number in range(10)])
    text = ENDING.format(root=str(ROOT), function=function, call=call)
    driver = write_functions(tmp_path / "driver.py", text)
    arguments = command(folder, output, "--workers=1")[2:]
    ended = finish(start([sys.executable, str(driver), *arguments]))
    assert os.listdir(output.parent) == ["OUT.h5"]
    assert len(stored(output)) == 10
    assert "was not made" not in ended.err
    assert "are kept in" not in ended.err
    assert "Traceback" not in ended.err
