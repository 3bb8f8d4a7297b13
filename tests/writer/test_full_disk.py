"""A full disk and scarce shared memory: one sentence or another way, never a crash."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.check import assert_same, failures, names_kept, stored
from helpers.images import as_pillow_reads, colours, save, save_jpegs
from helpers.run import ROOT, Finished, command, read_with, run, write_functions

pytestmark = [
    pytest.mark.mostly_slow,
    pytest.mark.skipif(sys.platform != "linux", reason="mounts with Linux's unshare"),
]
CANNOT_MOUNT = 77


def run_with_mount(mount: str, arguments: list[str], look_at: Path) -> Finished:
    """Run with another mount, that only this process sees; then list ``look_at``."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    script = (
        f"{mount} || exit {CANNOT_MOUNT}\n"
        '"$@"; status=$?\n'
        f'find "{look_at}" -mindepth 1 -printf "left: %P\\n"; exit $status'
    )
    ended = run([*unshare, "sh", "-c", script, "sh", *arguments])
    if ended.status == CANNOT_MOUNT or "unshare" in ended.err:
        pytest.skip("mounting is not permitted here")
    return ended


def run_on_small_disk(nbytes: int, folder: Path, output: Path, *flags: str) -> Finished:
    disk = output.parent
    mount = f'mount -t tmpfs -o size={nbytes} tmpfs "{disk}"'
    return run_with_mount(mount, command(folder, output, *flags), disk)


def limit_file_size(nbytes: int):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))

    return limit


def assert_one_sentence_about_space(ended: Finished, output: Path) -> None:
    assert ended.status == 1, (ended.status, ended.err)
    lines = [line for line in ended.err.splitlines() if "could not be written" in line]
    assert len(lines) == 1, ended.err
    assert str(output) in lines[0]
    assert " MB" in lines[0]
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
    assert "stored" not in ended.out


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Tiny JPEGs, some of which are looked at for the estimate, and 20 of 1.5 MB decoded."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(80):
        shape = (500, 1000, 3) if number % 4 == 1 else (4, 4, 3)
        save(folder / f"{number:03}.jpg", colours(number, shape), quality=30)
    return folder


@pytest.fixture(scope="module")
def icons(tmp_path_factory) -> Path:
    """2000 files for `ICON_READER`."""
    folder = tmp_path_factory.mktemp("icons")
    for number in range(2000):
        (folder / f"{number:04}.icon").write_bytes(b"x")
    return folder


# Only the first is looked at for the estimate when there are few: small, the others are not.
ICON_READER = """
import os
import numpy as np

def my_read(path_sample):
    number = int(os.path.basename(path_sample)[:4])
    return np.random.default_rng(number).integers(0, 256, 3072, dtype=np.uint8)
"""

MASK_READER = """
import os
import numpy as np

def my_read(path_sample):
    number = int(os.path.basename(path_sample)[:3])
    noise = np.random.default_rng(number).integers(0, 256, 400_000, dtype=np.uint8)
    return np.repeat(noise, 8)[: 10 if number == 0 else None]
"""


# Fills the disk once the output is being written, but for 3 MB.
FILLING = """
import os
import numpy as np
from converter import read_image

DISK = {disk!r}


def fill():
    free = os.statvfs(DISK).f_bavail * os.statvfs(DISK).f_frsize
    descriptor = os.open(DISK + "/filler", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(descriptor, 0, free - 3_000_000)


def my_read(path_sample):
    if os.path.exists(DISK + "/OUT.h5.partial.journal") and not os.path.exists(DISK + "/filler"):
        fill()
    if path_sample.endswith(".jpg"):
        return read_image(path_sample)
    number = int(os.path.basename(path_sample)[:4])
    return np.random.default_rng(number).integers(0, 256, 3072, dtype=np.uint8)
"""


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["photos", "icons"])
def test_a_disk_that_fills_up_meanwhile_gives_one_sentence(
    kind, workers, photos, icons, output, tmp_path
):
    functions = write_functions(
        tmp_path / "filling_functions.py", FILLING.format(disk=str(output.parent))
    )
    ended = run_on_small_disk(
        60_000_000,
        photos if kind == "photos" else icons,
        output,
        f"--workers={workers}",
        "--ext=jpg,icon",
        *read_with(functions),
    )
    assert_one_sentence_about_space(ended, output.parent)
    assert "No space left on device" in ended.err
    left = {line.removeprefix("left: ") for line in ended.out.splitlines() if "left: " in line}
    assert left == {"filler", *names_kept(ended, output)}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kilobytes", [8, 100, 1000, 5000])
def test_a_file_that_must_not_grow_gives_one_sentence_for_tiny_arrays(
    kilobytes, workers, icons, output, tmp_path
):
    functions = write_functions(tmp_path / "icon_functions.py", ICON_READER)
    flags = (
        "--ext=icon",
        f"--workers={workers}",
        *read_with(functions),
    )
    ended = run(command(icons, output, *flags), preexec_fn=limit_file_size(kilobytes * 1000))
    assert_one_sentence_about_space(ended, output)
    assert set(os.listdir(output.parent)) == names_kept(ended, output)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kilobytes", [0, 2, 64, 3000, 20_000])
def test_a_file_that_must_not_grow_gives_one_sentence_for_photos(
    kilobytes, workers, photos, output
):
    ended = run(
        command(photos, output, f"--workers={workers}"),
        preexec_fn=limit_file_size(kilobytes * 1000),
    )
    assert_one_sentence_about_space(ended, output)
    assert set(os.listdir(output.parent)) == names_kept(ended, output)


@pytest.mark.parametrize("kilobytes", [10, 600, 3000])
def test_a_file_that_must_not_grow_gives_one_sentence_for_compressed_arrays(
    kilobytes, photos, output, tmp_path
):
    functions = write_functions(tmp_path / "mask_functions.py", MASK_READER)
    flags = ("--workers=2", *read_with(functions))
    ended = run(command(photos, output, *flags), preexec_fn=limit_file_size(kilobytes * 1000))
    assert_one_sentence_about_space(ended, output)
    assert set(os.listdir(output.parent)) == names_kept(ended, output)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("missing_nbytes", [1, 1000, 30_000])
def test_a_disk_that_is_full_at_the_very_end_gives_one_sentence(
    missing_nbytes, icons, output, tmp_path, convert
):
    functions = write_functions(tmp_path / "icon_functions.py", ICON_READER)
    flags = ("--ext=icon", *read_with(functions))
    assert convert(icons, tmp_path / "whole.h5", *flags).status == 0
    nbytes = (tmp_path / "whole.h5").stat().st_size - missing_nbytes
    ended = run(command(icons, output, "--workers=1", *flags), preexec_fn=limit_file_size(nbytes))
    assert_one_sentence_about_space(ended, output)
    assert set(os.listdir(output.parent)) == names_kept(ended, output)


@pytest.mark.parametrize("missing_nbytes", [1, 5000, 50_000])
def test_a_list_of_failures_that_does_not_fit_gives_one_sentence(
    missing_nbytes, folder, output, tmp_path
):
    for number in range(900):
        (folder / f"{number:04}.icon").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "failing_functions.py",
        """
        def my_read(path_sample):
            if "0000" in path_sample:
                return 1
            raise ValueError("no " * 100)
        """,
    )
    flags = (
        "--ext=icon",
        "--workers=1",
        *read_with(functions),
    )
    whole = tmp_path / "whole.h5"
    assert run(command(folder, whole, *flags)).status == 1
    nbytes = whole.with_name("whole.h5.failures.csv").stat().st_size - missing_nbytes
    assert nbytes > whole.stat().st_size
    ended = run(command(folder, output, *flags), preexec_fn=limit_file_size(nbytes))
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert "Exception ignored" not in ended.err
    assert "could not be written" in ended.err
    assert set(os.listdir(output.parent)) == names_kept(ended, output)


def test_a_full_disk_keeps_the_older_output(photos, output):
    output.write_bytes(b"an older one")
    ended = run(
        command(photos, output, "--workers=2", "--overwrite"),
        preexec_fn=limit_file_size(3_000_000),
    )
    assert_one_sentence_about_space(ended, output)
    assert set(os.listdir(output.parent)) == {"OUT.h5", *names_kept(ended, output)}
    assert output.read_bytes() == b"an older one"


@pytest.mark.everyday
def test_what_is_said_to_be_kept_is_in_the_file(photos, output):
    """What the writer was given behind it is not: it did not fit."""
    ended = run(command(photos, output, "--workers=2"), preexec_fn=limit_file_size(16_000_000))
    said = re.search(r"files are kept in .* \(([\d.]+) MB\)", ended.err)
    assert said is not None, ended.err
    assert 1.5 <= float(said[1]) <= 16.0


@pytest.mark.everyday
def test_a_disk_that_is_expected_to_be_too_small_is_refused_before_any_work(output, tmp_path):
    folder = tmp_path / "photos"
    for number in range(10):
        save(folder / f"{number}.jpg", colours(number, (300, 400, 3)))
    ended = run_on_small_disk(1_000_000, folder, output, "--workers=2")
    assert ended.status == 2
    assert "would take about 4 MB, but only 1 MB are free" in ended.err
    assert "--compression=gzip" in ended.err
    assert "left:" not in ended.out


def test_a_disk_without_room_for_a_single_name_gives_one_sentence(output, tmp_path):
    folder = save_jpegs(tmp_path / "photos", ["a.jpg"])
    disk = output.parent
    mount = f'mount -t tmpfs -o size=1m,nr_inodes=1 tmpfs "{disk}"'
    ended = run_with_mount(mount, command(folder, output), disk)
    assert ended.status in (1, 2)
    assert "Traceback" not in ended.err
    assert "No space left on device" in ended.err
    assert "left:" not in ended.out


# Scarce shared memory


@pytest.mark.parametrize("options", ["size=64k", "size=1m", "ro"])
def test_a_small_or_missing_shared_memory_folder_changes_nothing(options, photos, output):
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    ended = run_with_mount(mount, command(photos, output, "--workers=2"), output.parent)
    assert ended.status == 0, ended.err
    found = stored(output)
    assert len(found) == 80
    for key, array in found.items():
        assert_same(array, as_pillow_reads(photos / key))


def test_shared_memory_that_must_not_grow_changes_nothing(folder, output, tmp_path):
    """The limit hits the shared memory (4 MiB at once) but not the small output."""
    save_jpegs(folder, [f"{number}.jpg" for number in range(20)])
    ended = run(command(folder, output, "--workers=2"), preexec_fn=limit_file_size(1_000_000))
    assert ended.status == 0, ended.err
    assert {key: array.tolist() for key, array in stored(output).items()} == {
        path.name: as_pillow_reads(path).tolist() for path in folder.iterdir()
    }


@pytest.mark.parametrize(
    "missing",
    ["memfd_create", "posix_fallocate"],
    ids=["a_temporary_file_is_used", "the_pipe_is_used"],
)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_system_without_a_kind_of_shared_memory_stores_the_same(
    method, missing, photos, output, tmp_path
):
    driver = write_functions(
        tmp_path / "driver.py",
        f"""
        import multiprocessing, os, sys
        del os.{missing}
        sys.path.insert(0, {str(ROOT)!r})
        from converter.cli import main

        if __name__ == "__main__":
            multiprocessing.set_start_method({method!r})
            sys.exit(main())
        """,
    )
    ended = run([sys.executable, str(driver), *command(photos, output, "--workers=2")[2:]])
    assert ended.status == 0, ended.err
    found = stored(output)
    assert len(found) == 80
    for key, array in found.items():
        assert_same(array, as_pillow_reads(photos / key))


def test_temporary_files_that_must_not_grow_change_nothing(folder, output, tmp_path):
    save_jpegs(folder, [f"{number}.jpg" for number in range(20)])
    driver = write_functions(
        tmp_path / "driver.py",
        f"""
        import os, sys
        del os.memfd_create
        sys.path.insert(0, {str(ROOT)!r})
        from converter.cli import main
        if __name__ == "__main__":
            sys.exit(main())
        """,
    )
    ended = run(
        [sys.executable, str(driver), *command(folder, output, "--workers=2")[2:]],
        preexec_fn=limit_file_size(1_000_000),
    )
    assert ended.status == 0, ended.err
    assert len(stored(output)) == 20
    assert failures(output) == {}


def test_scarce_memory_fails_the_files_that_need_it_and_stores_the_rest(folder, output, tmp_path):
    for number in range(8):
        (folder / f"{number}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "large_functions.py",
        """
        import os
        import numpy as np

        def my_read(path_sample):
            large = os.path.basename(path_sample)[0] in "36"
            return np.ones((1 << 42) if large else 3, np.uint8)
        """,
    )
    ended = run(command(folder, output, "--ext=num", "--workers=2", *read_with(functions)))
    assert ended.status == 1
    assert set(failures(output)) == {"3.num", "6.num"}
    assert all("MemoryError" in reason for reason in failures(output).values())
    for array in stored(output).values():
        assert_same(array, np.ones(3, np.uint8))


def test_this_file_leaves_no_mount_behind():
    mounts = subprocess.run(["cat", "/proc/mounts"], capture_output=True, text=True).stdout
    assert "/pytest-" not in mounts
