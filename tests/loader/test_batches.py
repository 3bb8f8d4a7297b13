"""Batches into memory that is used again, as other programs ask for them, and where samples lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter import H5Folder
from converter.cli import main
from converter.errors import LoadError
from helpers.arrays import equal_samples, make_h5, smooth
from helpers.check import assert_same
from helpers.damage import cut_tail_off
from helpers.images import save_jpegs
from helpers.seams import pretend_cached

SMALL, LARGE = (8, 9, 3), (80, 90, 3)  # around what is gathered in numpy at once


def rows_in_order(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return memory in C order."""
    return np.full(shape, 7, dtype)


def channels_first(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return memory in which the last axis has the largest strides of an array."""
    shape = (shape[0], *shape[-1:], *shape[1:-1])
    return np.moveaxis(np.full(shape, 7, dtype), 1, -1)


def every_second(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return memory with gaps between the arrays."""
    return np.full((shape[0] * 2, *shape[1:]), 7, dtype)[::2]


@pytest.mark.parametrize("make", [rows_in_order, channels_first, every_second])
@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("shape", [SMALL, LARGE, (5,), ()])
@pytest.mark.parametrize("is_cached", [True, False])
def test_a_batch_fills_the_memory_it_is_given(
    make: Callable[..., np.ndarray], compression, shape, is_cached, tmp_path, monkeypatch
):
    pretend_cached(monkeypatch, is_cached)
    samples = equal_samples(70, shape) if shape else {f"{n}.npy": np.int32(n) for n in range(70)}
    folder = H5Folder(make_h5(tmp_path, samples, compression=compression), threads=2)
    order = np.random.default_rng(2).integers(0, 70, 50)
    dtype = folder[0].dtype
    memory = make((50, *shape), dtype) if len(shape) > 1 else rows_in_order((50, *shape), dtype)
    assert folder.read_batch(order, out=memory) is memory
    for row, position in zip(memory, order, strict=True):
        np.testing.assert_array_equal(row, folder[int(position)])
    assert_same(folder.read_batch(order), np.ascontiguousarray(memory))


@pytest.mark.parametrize("kind", ["h5py", "encoded", "several", "cache", "verify"])
def test_batches_of_any_file_fill_the_memory_they_are_given(kind, tmp_path):
    options: dict[str, Any] = {"cache": {"cache_nbytes": 10**6}, "verify": {"verify": True}}
    samples = equal_samples(6)
    if kind == "encoded":
        images = tmp_path / "images"
        images.mkdir()
        save_jpegs(images, [f"{n}.jpg" for n in range(6)])
        path: Any = tmp_path / "out.h5"
        assert not main([f"--path_images={images}", f"--path_output={path}", "--ext=jpg",
                         "--store=encoded", "--workers=1", "--quiet"])  # fmt: skip
    elif kind == "several":
        others = {f"other/{key}": array[::-1].copy() for key, array in samples.items()}
        path = [make_h5(tmp_path / "1", samples), make_h5(tmp_path / "2", others)]
    else:
        path = make_h5(tmp_path, samples)
    if kind == "h5py":
        cut_tail_off(path)
    folder = H5Folder(path, **options.get(kind, {}))
    order = [4, len(folder) - 1, 0, 4]
    memory = np.empty((4, *folder[0].shape), folder[0].dtype)
    assert folder.read_batch(order, out=memory) is memory
    for row, position in zip(memory, order, strict=True):
        assert_same(row, folder[position])
    with pytest.raises(ValueError, match=r"^out has rows of shape \(3,\) and uint8, but '.*' has "):
        folder.read_batch(order, out=np.empty((4, 3), np.uint8))


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.empty((3, *SMALL), np.uint8), ValueError, r"give it 2 rows, one for each key"),
        (np.empty((), np.uint8), ValueError, r"give it 2 rows"),
        (np.empty((2, *SMALL), np.int8), ValueError, r"'a/0000.npy' has \(8, 9, 3\) and uint8"),
        (np.empty((2, 9, 8, 3), np.uint8), ValueError, r"out has rows of shape \(9, 8, 3\)"),
        (np.broadcast_to(np.uint8(0), (2, *SMALL)), ValueError, r"out is read-only"),
        ([1, 2], TypeError, r"out is an array of numpy to fill, not list"),
    ],
)
def test_memory_that_does_not_fit_is_refused_in_a_sentence(out, error, message, tmp_path):
    folder = H5Folder(make_h5(tmp_path, equal_samples(2, SMALL)))
    with pytest.raises(error, match=message):
        folder.read_batch([0, 1], out=out)


def test_arrays_of_two_shapes_do_not_fill_one_memory(tmp_path):
    samples = {"a.npy": smooth((4, 5)), "b.npy": smooth((5, 4))}
    folder = H5Folder(make_h5(tmp_path, samples))
    with pytest.raises(ValueError, match=r"but 'b.npy' has \(5, 4\) and uint16"):
        folder.read_batch([0, 1], out=np.empty((2, 4, 5), np.uint16))


def test_nothing_asked_for_fills_nothing(tmp_path):
    folder = H5Folder(make_h5(tmp_path, equal_samples(2)))
    memory = np.empty((0, 4, 5, 3), np.uint8)
    assert folder.read_batch([], out=memory) is memory


@pytest.mark.parametrize("name", ["__getitems__", "_getitems"])
def test_other_loaders_get_a_list_with_one_array_each(name, tmp_path):
    samples = equal_samples(5)
    folder = H5Folder(make_h5(tmp_path, samples))
    arrays = getattr(folder, name)([3, 1, 3])
    assert isinstance(arrays, list)
    assert len(arrays) == 3
    for array, position in zip(arrays, [3, 1, 3], strict=True):
        assert_same(array, folder[position])
    arrays[0][...] = 0
    assert_same(arrays[2], folder[3])


@pytest.mark.slow
def test_pytorch_s_loader_reads_a_batch_at_once(tmp_path, monkeypatch):
    torch_data = pytest.importorskip("torch.utils.data")
    folder = H5Folder(make_h5(tmp_path, equal_samples(10)))
    expected = folder.read_batch(slice(None))
    monkeypatch.setattr(H5Folder, "__getitem__", None)
    batches = list(torch_data.DataLoader(folder, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), expected)


@pytest.fixture
def encoded(tmp_path: Path) -> Path:
    """Return the path of a file of three JPEG files as they are."""
    (tmp_path / "images").mkdir()
    save_jpegs(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"])
    path = tmp_path / "encoded.h5"
    assert not main([f"--path_images={tmp_path / 'images'}", f"--path_output={path}", "--ext=jpg",
                     "--store=encoded", "--workers=1", "--quiet"])  # fmt: skip
    return path


def test_original_files_come_in_batches(encoded):
    folder = H5Folder(encoded)
    files = [(encoded.parent / "images" / f"{name}.jpg").read_bytes() for name in "cac"]
    assert folder.read_bytes_batch(["c.jpg", "a.jpg", "c.jpg"]) == files
    assert folder.read_bytes_batch(np.array([2, 0, -1])) == files
    assert folder.read_bytes_batch([]) == []


def test_arrays_are_no_original_files_in_batches_either(tmp_path):
    folder = H5Folder(make_h5(tmp_path, equal_samples(2)))
    with pytest.raises(LoadError, match=r"is an array, not an original file"):
        folder.read_bytes_batch([0])


def test_a_location_is_where_the_very_bytes_lie(tmp_path, encoded):
    samples = {"a.npy": smooth((40, 30), ">u2"), "b.npy": np.array(2.5)}
    path = make_h5(tmp_path / "plain", samples)
    folder = H5Folder([path, encoded])
    for key, array in samples.items():
        where = folder.location(key)
        assert where[0] == str(path)
        assert (where.dtype, where.shape, where.nbytes) == (array.dtype, array.shape, array.nbytes)
        assert_same(np.fromfile(path, where.dtype, array.size, offset=where.offset)
                    .reshape(where.shape), array)  # fmt: skip
    where = folder.location(3)  # the second of the other file
    original = (encoded.parent / "images/b.jpg").read_bytes()
    assert where[2:] == (len(original), np.uint8, (len(original),))
    assert Path(where.path).read_bytes()[where.offset :].startswith(original)


def test_what_has_no_location_says_why(tmp_path):
    samples = {"a.npy": smooth((64, 64)), "e.npy": np.empty((0, 3))}
    path = make_h5(tmp_path, samples, compression="gzip")
    folder = H5Folder(path)
    with pytest.raises(LoadError, match=r"'a.npy' in .* is compressed, .*: read it, or convert"):
        folder.location("a.npy")
    with pytest.raises(LoadError, match=r"'e.npy' in .* holds no bytes"):
        folder.location("e.npy")
    with pytest.raises(KeyError, match="did you mean"):
        folder.location("b.npy")


def test_without_an_index_no_location_is_known(tmp_path):
    path = make_h5(tmp_path, equal_samples(1))
    cut_tail_off(path)
    with pytest.raises(LoadError, match=r"has no index, .*: add one with --verify --rebuild_index"):
        H5Folder(path).location(0)
