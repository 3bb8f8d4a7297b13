"""A call that only makes things faster or safer may be refused: then all goes without it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from converter import ConverterError, H5Folder
from converter import convert as convert_folder
from converter.cli import main
from helpers.images import colours, save
from helpers.run import Finished

SAMPLES = {f"{n}.png": colours(n, (20 + 200 * (n % 3), 30, 3)) for n in range(12)}
REFUSALS = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ENODEV, errno.ENOLCK]


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    """Have each process that is forked from now on refuse a call."""

    def refusing(*arguments: Any, **options: Any) -> Any:
        raise OSError(number, os.strerror(number))

    if call == "madvise":

        class Mapping(mmap.mmap):
            madvise = refusing

        monkeypatch.setattr(mmap, "mmap", Mapping)
    elif call == "preadv flags":
        usual = os.preadv

        def preadv(fd: int, buffers: Any, offset: int, flags: int = 0) -> int:
            return refusing() if flags else usual(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", preadv)
    elif call == "HDF5's lock":
        usual_file = h5py.File

        def file(name: Any, *arguments: Any, locking: Any = None, **options: Any) -> Any:
            if isinstance(name, (str, os.PathLike)) and locking is not False:
                raise OSError(number, "Unable to open file (unable to lock file)")
            return usual_file(name, *arguments, locking=locking, **options)

        monkeypatch.setattr(h5py, "File", file)
    elif call == "rename of an open file":
        usual_replace = os.replace

        def replace(source: Any, *arguments: Any, **options: Any) -> None:
            for path in Path("/proc/self/fd").iterdir():
                with contextlib.suppress(OSError):
                    if not options and os.path.samefile(path, source):
                        refusing()
            usual_replace(source, *arguments, **options)

        monkeypatch.setattr(os, "replace", replace)
    else:
        modules = {"flock": fcntl, "mmap": mmap, "disk_usage": shutil}
        monkeypatch.setattr(modules.get(call, os), call, refusing)


CALLS = ["flock", "mmap", "madvise", "posix_fadvise", "preadv", "preadv flags", "posix_fallocate",
         "memfd_create", "fsync", "rename of an open file",
         "disk_usage", "sched_getaffinity", "HDF5's lock"]  # fmt: skip


@pytest.fixture
def photos(folder: Path) -> Path:
    for name, array in SAMPLES.items():
        save(folder / name, array)
    return folder


#: Each call with two of the errors, each error with four or more of the calls.
IN_ALL_MODES = [
    (call, REFUSALS[(n + more) % len(REFUSALS)]) for n, call in enumerate(CALLS) for more in (0, 3)
]


@pytest.mark.filterwarnings("ignore:.*cannot map files:RuntimeWarning")
@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_a_conversion_does_without_a_call_that_is_refused(
    photos: Path,
    output: Path,
    convert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
) -> None:
    refuse(monkeypatch, call, number)
    ended = convert(photos, output, "--ext=png", "--workers=2", "--compression=none")
    assert ended.status == 0, ended.err
    check(output)


@pytest.mark.filterwarnings("ignore:.*cannot map files:RuntimeWarning")
@pytest.mark.parametrize(("call", "number"), IN_ALL_MODES)
def test_all_modes_do_without_a_call_that_is_refused(
    photos: Path,
    output: Path,
    convert: Callable[..., Finished],
    verify: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
) -> None:
    refuse(monkeypatch, call, number)
    flags = ["--ext=png", "--workers=2", "--compression=none"]
    (photos / "9z.png").write_text("no image")
    assert convert(photos, output, *flags, "--on_error=stop").status == 1
    (photos / "9z.png").unlink()
    resumed = convert(photos, output, *flags)
    assert resumed.status == 0, resumed.err
    check(output)
    save(photos / "new.png")
    assert convert(photos, output, "--update", "--workers=1").status == 0
    (photos / "new.png").unlink()
    assert convert(photos, output, "--update", "--workers=1").status == 0
    joined = output.with_name("joined.h5")
    assert main(["--merge", str(output), f"--path_output={joined}"]) == 0
    check(joined)
    assert convert(photos, joined, "--verify", "--workers=2").status == 0
    with h5py.File(joined, "r+", locking=False) as file:
        file.create_dataset("12.png", data=colours())
    assert verify(joined, "--rebuild_index").status == 0
    back = output.parent / "back"
    assert main([f"--extract={back}", f"--path_output={output}"]) == 0
    assert len(list(back.iterdir())) == len(SAMPLES)


def check(path: Path) -> None:
    """Read a file in all ways, and compare it with what was put in."""
    with h5py.File(path, locking=False) as file:
        assert set(file) == set(SAMPLES)
    with H5Folder(path) as folder, H5Folder(path, verify=True) as verified:
        for samples in (folder, verified):
            for key, array in SAMPLES.items():
                for _ in range(2):  # later reads go other ways than the first
                    assert np.array_equal(samples[key], array)
                assert np.array_equal(samples.read(key, np.s_[2:5]), array[2:5])
            keys = [key for key, array in SAMPLES.items() if array.shape[0] == 20]
            assert np.array_equal(samples.read_batch(keys), [SAMPLES[key] for key in keys])
            for one, key in zip(samples.read_batch(list(SAMPLES)), SAMPLES, strict=True):
                assert np.array_equal(one, SAMPLES[key])


def test_it_is_said_once_that_a_disk_cannot_map(
    photos: Path,
    output: Path,
    convert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert(photos, output, "--ext=png", "--compression=none")
    refuse(monkeypatch, "mmap", errno.ENODEV)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_one = H5Folder(output)
        for key in SAMPLES:
            assert np.array_equal(check_one[key], SAMPLES[key])
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "cannot map files into memory (No such device)" in str(caught[0].message)


def test_it_is_said_once_that_a_disk_cannot_synchronise(
    photos: Path,
    output: Path,
    convert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse(monkeypatch, "fsync", errno.EINVAL)
    ended = convert(photos, output, "--ext=png")
    assert ended.status == 0
    assert ended.err.count("cannot tell when it has all of it (fsync: Invalid argument)") == 1


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
@pytest.mark.parametrize("call", ["fsync", "pwrite", "close"])
def test_lost_bytes_are_an_error_and_there_is_no_output(
    photos: Path,
    output: Path,
    convert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
) -> None:
    def failing(*arguments: Any) -> int:
        raise OSError(number, os.strerror(number))

    if call == "close":  # which alone can tell where fsync is refused
        refuse(monkeypatch, "fsync", errno.EINVAL)

        class File(io.FileIO):
            def close(self) -> None:
                is_output = not self.closed and self.writable() and self.readable()
                super().close()
                if is_output:
                    failing()

        monkeypatch.setattr(io, "FileIO", File)
    else:
        monkeypatch.setattr(os, call, failing)
    ended = convert(photos, output, "--ext=png")
    assert ended.status == 1
    assert "could not be written" in ended.err
    assert not output.exists()


def test_without_locks_two_runs_do_not_make_one_file(
    photos: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second begins anew, or resumes, what the first is at; the first then gives up."""
    refuse(monkeypatch, "flock", errno.ENOLCK)
    seen = []

    def second(progress: Any) -> None:
        if progress.done and not seen:
            seen.append(progress)
            seen.append(convert_folder(photos, output, ext="png", workers=1))

    with pytest.raises(ConverterError, match="another run"):
        convert_folder(photos, output, ext="png", workers=2, progress=second)
    assert seen[1].stored == len(SAMPLES)
    with H5Folder(output, verify=True) as samples:
        for key, array in SAMPLES.items():
            assert np.array_equal(samples[key], array)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_a_disk_that_says_it_has_no_bytes_at_all_is_written_to(
    photos: Path,
    output: Path,
    convert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As some network disks do."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 0))
    assert convert(photos, output, "--ext=png").status == 0
