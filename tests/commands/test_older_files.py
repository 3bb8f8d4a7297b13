"""Files of the versions before one way of chunking, and before bools of 0 and 1.

tests/older/OUT.hdf5 was made by such a version from the folder that the fixture makes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from converter import H5Folder
from helpers.check import assert_same, stored
from helpers.run import ROOT, Finished, read_with, run_here
from helpers.seams import pretend_installed

OLDER = ROOT / "tests" / "older" / "OUT.hdf5"
LONG_AGO_NS = 1_500_000_000_123_456_789
KEYS = ["bool.n", "fields.n", "large.n", "mask.n", "number.n", "zeros.n"]
WITH_BOOLS = {"bool.n", "fields.n", "mask.n"}

#: OLDER has its checksum: another text would be another function.
READER = """
from pathlib import Path
import numpy as np

BYTES = np.array([0, 255, 1, 7, 2] * 3, np.uint8)

def fields():
    array = np.zeros(5, [("x", "<i4"), ("m", "?", (3,)), ("n", [("k", "?"), ("z", "<f4")])])
    array["m"].view(np.uint8)[...] = BYTES.reshape(5, 3)
    array["n"]["k"].view(np.uint8)[...] = BYTES[:5]
    array["x"] = 300
    return array

ARRAYS = {
    "bool.n": BYTES.view(bool),
    "fields.n": fields(),
    "large.n": np.zeros((5, 1 << 20), np.uint8),
    "mask.n": np.repeat(BYTES, 1000).view(bool).reshape(5, 3000),
    "zeros.n": np.zeros((100, 100), np.uint16),
}

def my_read(path_sample):
    path = Path(path_sample)
    with open(Path(__file__).with_name("read.log"), "a") as log:
        log.write(path.name + "\\n")
    return ARRAYS.get(path.name, np.arange(12))
"""


def make_folder(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, ns=(LONG_AGO_NS, LONG_AGO_NS))


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "functions.py"
    path.write_text(READER, encoding="utf-8")
    return path


@pytest.fixture
def older(folder: Path, output: Path, functions: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An older file, whose folder is as it was, on a machine with the same packages."""
    make_folder(folder, KEYS)
    with h5py.File(OLDER) as file:
        versions = json.loads(file.attrs["versions"])
    pretend_installed(monkeypatch, versions)
    shutil.copy(OLDER, output)
    return output


def read_again(functions: Path) -> set[str]:
    log = functions.with_name("read.log")
    return {*log.read_text().split()} if log.exists() else set()


def has_bytes_of_bools(array: np.ndarray) -> set[int]:
    """Return the bytes that stand for bools, in fields too."""
    found: set[int] = set()
    for name in array.dtype.names or ():
        found |= has_bytes_of_bools(array[name])
    return found | ({*array.view(np.uint8).flat} if array.dtype == bool else set())


def test_it_is_read_as_before(older, functions):
    expected: dict[str, np.ndarray] = {"number.n": np.arange(12)}
    exec(READER, expected)
    expected |= expected["ARRAYS"]
    folder = H5Folder(older, verify=True)
    assert list(folder) == KEYS
    assert folder["bool.n"].view(np.uint8).max() == 255
    with h5py.File(older) as file:
        for key in KEYS:
            assert_same(folder[key], expected[key])
            assert_same(file[key][()], expected[key])


def test_verify_names_its_bools_where_it_compares_them(older, folder, functions, verify):
    assert verify(older).status == 0
    flags = (f"--path_images={folder}", f"--path_functions={functions}")
    ended = verify(older, *flags)
    assert ended.status == 1
    for key in KEYS:
        is_named = f"{key}: its bools are stored as other bytes than 0 and 1" in ended.err
        assert is_named == (key in WITH_BOOLS)


def test_an_update_reads_its_bools_alone_again(older, folder, functions, update, verify):
    flags = (f"--path_functions={functions}",)
    ended = update(folder, older, *flags)
    assert ended.status == 0, ended.err
    assert "3 samples" in ended.err
    assert "0 added, 3 changed, 0 removed, 3 kept" in ended.out
    assert read_again(functions) == WITH_BOOLS
    assert verify(older, f"--path_images={folder}", *flags).status == 0
    for key, array in stored(older).items():
        assert has_bytes_of_bools(array) == ({0, 1} if key in WITH_BOOLS else set())
    with h5py.File(older) as file:
        assert file.attrs["format"] == "data2h5 1.1"
        assert file.attrs["reader_revision"] == "0"
    assert "nothing changed" in update(folder, older, *flags).out


def test_another_layout_of_chunks_is_no_reason_to_read_again(older, folder, functions, update):
    for name in WITH_BOOLS:
        (folder / name).unlink()
    content = stored(older)
    ended = update(folder, older, f"--path_functions={functions}")
    assert "0 added, 0 changed, 3 removed, 3 kept" in ended.out
    assert read_again(functions) == set()
    assert {*stored(older)} == {*KEYS} - WITH_BOOLS
    for key, array in stored(older).items():
        assert_same(array, content[key])


def test_it_is_joined_with_a_new_one(
    older: Path,
    functions: Path,
    tmp_path: Path,
    convert: Callable[..., Finished],
    capfd: pytest.CaptureFixture[str],
):
    other, new, joined = tmp_path / "other", older.with_name("new.h5"), older.with_name("all.h5")
    other.mkdir()
    make_folder(other, ["a.n", "zeros.n"])
    (other / "zeros.n").rename(other / "z.n")
    flags = ("--ext=n", "--hidden_folders", *read_with(functions))  # as older versions did
    assert convert(other, new, *flags).status == 0
    for order in ((older, new), (new, older)):
        joined.unlink(missing_ok=True)
        ended = run_here(capfd, "--merge", *map(str, order), f"--path_output={joined}")
        assert ended.status == 0, ended.err
        expected = stored(older) | stored(new)
        for key, array in stored(joined).items():
            assert_same(array, expected.pop(key))
        assert not expected
        with h5py.File(joined) as file:  # an update reads the bools again
            assert "reader_revision" not in file.attrs
