"""Views of arrays in the file and what is known of them unread: what training builds batches of."""

from __future__ import annotations

import errno
import mmap
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter.cli import main
from converter.errors import LoadError
from helpers.arrays import make_h5, smooth
from helpers.check import assert_same
from helpers.damage import cut_tail_off
from helpers.images import save_jpegs
from helpers.seams import pretend_cached

#: The kinds of source: with an index, through h5py, of original files, several files.
SOURCES = ("indexed", "h5py", "encoded", "encoded, h5py", "several")


def arrays() -> dict[str, np.ndarray]:
    """Return arrays of two shapes, two dtypes, of no axis and of no byte."""
    return {
        "a.npy": smooth((40, 30, 3), "u1"),
        "b.npy": smooth((40, 30, 3), "u1") + np.uint8(1),
        "c.npy": smooth((20, 30), ">u2"),
        "d.npy": np.array(2.5),
        "e.npy": np.empty((0, 3), np.float32),
    }


def make_encoded(folder: Path) -> Path:
    """Store a JPEG file as it is, and an array beside it."""
    folder.mkdir()
    (folder / "images").mkdir()
    save_jpegs(folder / "images", ["a.jpg", "b.jpg"])
    assert not main([f"--path_images={folder / 'images'}", f"--path_output={folder / 'out.h5'}",
                     "--ext=jpg", "--store=encoded", "--quiet", "--workers=1"])  # fmt: skip
    return folder / "out.h5"


@pytest.fixture(params=SOURCES)
def folder(tmp_path: Path, request: Any) -> H5Folder:
    """Return an H5Folder of each kind."""
    kind = request.param
    if kind == "several":
        some = arrays()
        first = make_h5(tmp_path / "1", {f"1/{key}": array for key, array in some.items()})
        second = make_h5(tmp_path / "2", {f"2/{key}": array for key, array in some.items()})
        return H5Folder([first, second])
    if kind.startswith("encoded"):
        path = make_encoded(tmp_path / "source")
    else:
        path = make_h5(tmp_path, arrays())
    if kind.endswith("h5py"):
        cut_tail_off(path)
    return H5Folder(path)


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_view_is_the_array_or_rows_of_it_and_cannot_be_written(folder, is_cached, monkeypatch):
    pretend_cached(monkeypatch, is_cached)
    source = folder._open().source
    for position in range(len(folder)):
        expected = folder[position]
        assert_same(source.view(position), expected)
        assert not source.view(position).flags.writeable
        if not expected.ndim:
            continue
        for first, rows in ((0, None), (0, 5), (7, 11), (7, None), (0, 0), (19, 100)):
            view = source.view(position, first, rows)
            assert_same(view, expected[first : None if rows is None else first + rows])
            assert not view.flags.writeable


def test_rows_that_are_not_cached_are_read_alone(tmp_path, monkeypatch):
    path = make_h5(tmp_path, arrays())
    reads = pretend_cached(monkeypatch, False)
    source = H5Folder(path)._open().source
    reads.clear()
    source.view(0, 10, 4)
    assert [nbytes for _, nbytes in reads] == [4 * 30 * 3]


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_view_where_the_mapping_cannot_be_had_is_right(tmp_path, is_cached, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENODEV, "cannot map")

    path = make_h5(tmp_path, arrays())
    monkeypatch.setattr(mmap, "mmap", refuse)
    pretend_cached(monkeypatch, is_cached)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it cannot map
        view = H5Folder(path)._open().source.view(2, 3, 4)
    assert_same(view, arrays()["c.npy"][3:7])


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_view_of_a_damaged_array_is_an_error_with_verify(tmp_path, compression):
    path = make_h5(tmp_path, {"a.npy": smooth((64, 64), "u1")}, compression=compression)
    with h5py.File(path) as file:
        dataset = file["a.npy"].id
        plain = file["a.npy"].chunks is None
        offset = dataset.get_offset() if plain else dataset.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 40] ^= 1
    path.write_bytes(content)
    source = H5Folder(path, verify=True)._open().source
    with pytest.raises(LoadError, match=r"'a.npy' in .*out.h5 is damaged"):
        source.view(0, 0, 1)


def test_layouts_tell_shape_and_dtype_before_anything_is_read(folder):
    source = folder._open().source
    positions = np.arange(len(folder))
    layouts = [source.layout(number) for number in source.placed(positions).numbers.tolist()]
    for position, layout in enumerate(layouts):
        array = folder[position]
        if folder.is_encoded:
            assert layout is None
        else:
            assert (layout.shape, layout.dtype) == (array.shape, array.dtype)


def test_samples_of_one_number_have_one_layout_and_lie_where_it_says(tmp_path):
    some = arrays()
    path = make_h5(tmp_path, some)
    placed = H5Folder(path)._open().source.placed(np.array([1, 0, 2, 3, 4]))
    a, b, *others = placed.numbers.tolist()
    assert a == b
    assert len({a, *others}) == 4
    content = path.read_bytes()
    for key, offset in zip(("b.npy", "a.npy", "c.npy", "d.npy"), placed.offsets, strict=False):
        assert content[offset:].startswith(some[key].tobytes())
    assert placed.offsets[4] == -1  # of no byte


def test_compressed_arrays_lie_nowhere_as_they_are(tmp_path):
    path = make_h5(tmp_path, {"a.npy": smooth((64, 64))}, compression="gzip")
    placed = H5Folder(path)._open().source.placed(np.array([0]))
    assert placed.offsets.tolist() == [-1]
    assert placed.numbers.tolist() == [0]
