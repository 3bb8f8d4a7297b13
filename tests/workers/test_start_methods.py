"""The same bytes whatever starts the workers, however many, run after run."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.check import assert_same, failures, stored
from helpers.images import as_pillow_reads, colours, save
from helpers.run import ROOT, Finished, command, read_with, run, write_functions

pytestmark = pytest.mark.mostly_slow

METHODS = ["fork", "spawn", "forkserver"]

FUNCTIONS = """
import os
import resource
import numpy as np
from converter import read_image

FIELDS = np.dtype([("small", "u1"), ("large", "<f8")])


def my_read(path_sample):
    name = os.path.basename(path_sample)
    if name.startswith("text"):
        return "grüße\\0"
    if name.startswith("fields"):
        array = np.empty(2000, FIELDS)
        array["small"] = np.arange(2000) % 5
        array["large"] = np.arange(2000)
        return array
    if name.startswith("fails"):
        raise ValueError("as it should")
    if name.startswith("number"):
        return 7
    return read_image(path_sample)


def my_prune(filename_str, ext_str):
    return not filename_str.startswith("left_out") and ext_str == "jpg,png"
"""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A folder of photos, icons, masks, and files that only `FUNCTIONS` reads."""
    folder = tmp_path_factory.mktemp("mixed") / "source"
    for number in range(24):
        save(folder / f"photos/{number:02}.jpg", colours(number, (150, 200, 3)))
    for number in range(300):
        save(folder / f"icons/{number % 7}/{number:03}.jpg", colours(number, (16, 16, 3)))
    for number in range(12):
        mask = np.kron(colours(number, (10, 12)) > 127, np.ones((40, 40))).astype(np.uint8)
        save(folder / f"masks/{number}.png", mask * 255)
    save(folder / "masks/large.png", np.zeros((3000, 3000), np.uint8))
    save(folder / "photos/large.jpg", colours(5, (1200, 1500, 3)))
    for name in ("text", "fields", "number", "left_out", "fails"):
        for number in range(3):
            (folder / f"{name}{number}.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> Path:
    return write_functions(tmp_path_factory.mktemp("hooks") / "mixed_functions.py", FUNCTIONS)


def write_driver(path: Path, method: str) -> Path:
    """Write a program like the converter whose workers are started by this method."""
    return write_functions(
        path,
        f"""
        import multiprocessing, sys
        sys.path.insert(0, {str(ROOT)!r})
        from converter.cli import main

        if __name__ == "__main__":
            multiprocessing.set_start_method({method!r})
            sys.exit(main())
        """,
    )


def convert_with(method: str, folder: Path, output: Path, *flags: str) -> Finished:
    driver = write_driver(output.parent / "driver.py", method)
    return run([sys.executable, str(driver), *command(folder, output, *flags)[2:]])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def alone(mixed, functions, tmp_path_factory) -> Path:
    """What one process without a pool makes of the mixed folder."""
    output = tmp_path_factory.mktemp("alone") / "OUT.h5"
    ended = run(command(mixed, output, "--workers=1", *flags_of(functions)))
    assert ended.status == 1, ended.err
    return output


def flags_of(functions: Path) -> tuple[str, ...]:
    return (
        "--ext=jpg,png",
        "--custom_read_func",
        "--custom_prune_func",
        f"--path_functions={functions}",
    )


def test_my_read_and_my_prune_decide_what_one_process_stores(mixed, alone):
    found = stored(alone)
    assert len(found) == 24 + 300 + 12 + 2 + 9
    assert set(failures(alone)) == {"fails0.jpg", "fails1.jpg", "fails2.jpg"}
    assert failures(alone)["fails0.jpg"] == "ValueError: as it should"
    assert_same(found["text0.jpg"], np.frombuffer("grüße\0".encode(), np.uint8))
    assert_same(found["number1.jpg"], np.int64(7))
    assert found["fields2.jpg"]["large"].tolist() == list(range(2000))
    for key in ("photos/03.jpg", "icons/3/101.jpg", "masks/large.png", "photos/large.jpg"):
        assert_same(found[key], as_pillow_reads(mixed / key))


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_every_start_method_and_number_of_workers_makes_the_same_bytes(
    method, workers, mixed, functions, alone, tmp_path
):
    output = tmp_path / "OUT.h5"
    ended = convert_with(method, mixed, output, f"--workers={workers}", *flags_of(functions))
    assert ended.status == 1, ended.err
    assert failures(output) == failures(alone)
    assert sha256(output) == sha256(alone)


@pytest.mark.parametrize("method", METHODS)
def test_every_start_method_stores_what_the_default_reader_reads(method, mixed, tmp_path):
    output = tmp_path / "OUT.h5"
    ended = convert_with(method, mixed, output, "--workers=2", "--ext=png")
    assert ended.status == 0, ended.err
    found = stored(output)
    assert len(found) == 13
    for key, array in found.items():
        assert_same(array, as_pillow_reads(mixed / key))


@pytest.mark.parametrize("method", METHODS)
def test_every_start_method_gets_over_a_killed_worker(method, mixed, tmp_path):
    killing = write_functions(
        tmp_path / "killing_functions.py",
        """
        import os
        def my_read(path_sample):
            if path_sample.endswith(("0.png", "5.png")):
                os.abort()
            return 1
        """,
    )
    output = tmp_path / "OUT.h5"
    ended = convert_with(
        method,
        mixed,
        output,
        "--workers=2",
        "--ext=png",
        *read_with(killing),
    )
    assert ended.status == 1, ended.err
    assert set(failures(output)) == {"masks/0.png", "masks/10.png", "masks/5.png"}
    assert len(stored(output)) == 10


@pytest.mark.parametrize("method", METHODS)
def test_an_error_of_the_disk_ends_the_run_under_every_start_method(method, mixed, tmp_path):
    output = tmp_path / "out" / "OUT.h5"
    output.parent.mkdir()
    driver = write_driver(tmp_path / "driver.py", method)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    ended = run(
        [sys.executable, str(driver), *command(mixed / "photos", output, "--workers=2")[2:]],
        preexec_fn=limit,
    )
    assert ended.status == 1, ended.err
    assert "could not be written" in ended.err
    assert "Traceback" not in ended.err
    assert set(os.listdir(output.parent)) <= {"OUT.h5.partial", "OUT.h5.partial.journal"}


def test_a_second_later_the_same_folder_makes_the_same_bytes(mixed, functions, alone, tmp_path):
    time.sleep(1.1 - (time.time() - alone.stat().st_mtime) % 1)
    output = tmp_path / "OUT.h5"
    assert run(command(mixed, output, *flags_of(functions))).status == 1
    assert sha256(output) == sha256(alone)


def test_a_copy_of_the_folder_elsewhere_makes_the_same_bytes(mixed, functions, alone, tmp_path):
    copy = tmp_path / "deeper" / "and deeper" / "copied"
    shutil.copytree(mixed, copy)
    other_functions = shutil.copy(functions, tmp_path / "renamed_functions.py")
    output = tmp_path / "another name.hdf5"
    assert run(command(copy, output, *flags_of(other_functions)), cwd=tmp_path).status == 1
    assert sha256(output) == sha256(alone)


def test_replacing_an_older_output_makes_the_same_bytes(mixed, functions, alone, tmp_path):
    output = tmp_path / "OUT.h5"
    output.write_bytes(os.urandom(5_000_000))
    output.with_name("OUT.h5.partial").write_bytes(os.urandom(50_000_000))
    assert run(command(mixed, output, "--overwrite", *flags_of(functions))).status == 1
    assert sha256(output) == sha256(alone)


def test_a_worker_that_was_killed_once_changes_no_byte(mixed, alone, tmp_path):
    """The file in which it happened is read again, in another worker and alone."""
    source = FUNCTIONS.replace(
        'name.startswith("number")', 'name.startswith("number") and not _killed()'
    )
    functions = write_functions(
        tmp_path / "mixed_functions.py",
        source
        + f"""
MARK = {str(tmp_path / "killed")!r}


def _killed():
    if not os.path.exists(MARK):
        open(MARK, "w").close()
        os.kill(os.getpid(), 9)
""",
    )
    output, calm = tmp_path / "OUT.h5", tmp_path / "CALM.h5"
    assert run(command(mixed, output, "--workers=2", *flags_of(functions))).status == 1
    assert (tmp_path / "killed").exists()
    assert run(command(mixed, calm, "--workers=1", *flags_of(functions))).status == 1
    assert set(stored(output)) == set(stored(alone))
    assert sha256(output) == sha256(calm)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_run_broken_off_is_gone_on_with_under_every_start_method(
    method, mixed, functions, alone, tmp_path
):
    """By a limit of the file's size, which the second run does not have."""
    output = tmp_path / "out" / "OUT.h5"
    output.parent.mkdir()
    driver = write_driver(tmp_path / "driver.py", method)
    arguments = command(mixed, output, *flags_of(functions), "--workers=2")[2:]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (alone.stat().st_size // 2,) * 2)

    ended = run([sys.executable, str(driver), *arguments], preexec_fn=limit)
    assert ended.status == 1, ended.err
    assert " files are kept in " in ended.err
    ended = run([sys.executable, str(driver), *arguments])
    assert ended.status == 1, ended.err  # of the files that fail
    assert " files are kept from the interrupted run" in ended.err
    assert sha256(output) == sha256(alone)
    assert sorted(os.listdir(output.parent)) == ["OUT.h5", "OUT.h5.failures.csv"]
