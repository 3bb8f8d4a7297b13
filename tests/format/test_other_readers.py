"""Programs with a reader of HDF5 of their own, or another libhdf5, read what went in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.check import stored
from helpers.images import colours, save
from helpers.run import read_with, write_functions

READER = """
import numpy as np
from pathlib import Path

ARRAYS = {
    "bool": np.repeat(np.array([0, 255, 1, 7], np.uint8), 6).view(bool).reshape(4, 6),
    "mask": np.repeat(np.array([0, 255], np.uint8), 5000).view(bool).reshape(100, 100),
    "number": np.array(7, np.int16),
    "depth": np.zeros((60, 80), np.uint16),
    "large": np.arange(5 << 20, dtype=np.uint8).reshape(5, 1 << 20) // 64,
    "floats": np.linspace(0, 1, 50),
    "big_endian": np.arange(20, dtype=">i4"),
    "text": "a text",
}

def my_read(path_sample):
    return ARRAYS[Path(path_sample).stem]
"""
NAMES = ["bool", "mask", "number", "depth", "large", "floats", "big_endian", "text"]


def with_pyfive(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    with pytest.importorskip("pyfive").File(str(path)) as file:
        return {key: np.asarray(file[key][()]) for key in keys}


def with_pytables(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    with pytest.importorskip("tables").open_file(str(path)) as file:
        return {key: np.asarray(file.get_node(f"/{key}").read()) for key in keys}


def with_netcdf4(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    with pytest.importorskip("netCDF4").Dataset(str(path)) as file:
        file.set_auto_maskandscale(False)
        return {key: np.asarray(file[f"/{key}"][...]) for key in keys}


@pytest.fixture
def made(folder, output, tmp_path, convert) -> Path:
    (folder / "sub").mkdir()
    for name in NAMES:
        (folder / "sub" / f"{name}.x").write_bytes(b"x")
    for number in range(40):  # in a symbol table
        (folder / f"number {number}.x").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "functions.py", READER.replace("stem]", "stem.split()[0]]")
    )
    ended = convert(folder, output, "--ext=x", *read_with(functions))
    assert ended.status == 0, ended.err
    return output


@pytest.mark.parametrize("read", [with_pyfive, with_pytables, with_netcdf4])
@pytest.mark.filterwarnings("ignore")  # PyTables on names that are no identifiers
def test_every_array_is_read_as_h5py_reads_it(read, made):
    arrays = stored(made)
    found = read(made, arrays)
    assert len(arrays) == len(NAMES) + 40
    for key, array in arrays.items():
        assert found[key].shape == array.shape, key
        wanted = array.view(np.uint8) if array.dtype == bool else array  # their bools are numbers
        np.testing.assert_array_equal(found[key], wanted, err_msg=key)


@pytest.mark.parametrize("read", [with_pyfive, with_pytables, with_netcdf4])
@pytest.mark.filterwarnings("ignore")
def test_images_are_read_by_default(read, folder, output, convert):
    save(folder / "photo.png", colours(0, (30, 40, 3)))
    save(folder / "labels.png", np.zeros((200, 100), np.uint8))
    save(folder / "mask.png", np.arange(6000).reshape(60, 100) % 7 < 3)
    assert convert(folder, output, "--ext=png").status == 0
    arrays = stored(output)
    found = read(output, arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
