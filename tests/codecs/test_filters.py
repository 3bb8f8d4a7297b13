"""Which arrays are compressed, how they are cut, and that h5py reads them back."""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from helpers.check import assert_same, everything_below, failures, filters_of, stored
from helpers.images import as_pillow_reads, colours, save
from helpers.run import command, run, write_functions

MIB = 1 << 20

NPY_READER = """
import numpy as np
def my_read(path_sample):
    return np.load(path_sample)
"""


def noise(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype="uint8").astype(dtype)


def mask(shape: tuple[int, ...], dtype: str = "uint8") -> np.ndarray:
    """Return a few large areas, as in a segmentation."""
    array = np.zeros(shape, dtype)
    array[tuple(slice(n // 5, n // 2) for n in shape)] = 1
    array[tuple(slice(n // 3, n // 2 + 1) for n in shape)] = 2
    return array


def depth(shape: tuple[int, int]) -> np.ndarray:
    """Return slanted planes with a little noise, 16 bits, such as a depth camera gives."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    plane = 2000 + rows // 2 + columns // 4
    return np.where((rows // 60 + columns // 80) % 4 == 0, 0, plane).astype(np.uint16)


ARRAYS = {
    "noise": noise((300, 400)),
    "photo": colours(3, (300, 400, 3)) ^ (noise((300, 400, 3)) & 7),
    "random_floats": np.random.default_rng(1).random((100, 100)),
    "mask": mask((300, 400)),
    "mask_bool": mask((300, 400)).astype(bool),
    "mask_int64": mask((300, 400), "int64"),
    "depth": depth((480, 640)),
    "depth_big_endian": depth((480, 640)).astype(">u2"),
    "zeros_complex": np.zeros((50, 60), np.complex64),
    "zeros_float16": np.zeros((500, 60), np.float16),
    "zeros_compound": np.zeros(1000, [("a", "u1"), ("b", "<f8")]),
    "tiny_zeros": np.zeros(10, np.uint8),
    "one_number": np.array(5.0),
    "empty": np.zeros((0, 5), np.int32),
    "large_mask": mask((3000, 3001)),
    "large_mask_16_bits": mask((1500, 3001), "uint16"),
    "large_mask_colour": mask((1777, 1999, 3)),
    "large_row": np.zeros(9_000_001, np.uint8),
    "large_first_axis": np.zeros((20_000_011, 1), np.uint8),
    "large_in_few_rows": np.zeros((2, 5_000_003), np.uint8),
    "large_stack": np.zeros((5, 3, 700, 900), np.float32),
    "large_last_axis_only": np.zeros((1, 1, 9_000_001), np.uint8),
    "just_4_mib": np.zeros(4 * MIB, np.uint8),
    "just_above_4_mib": np.zeros(4 * MIB + 1, np.uint8),
    "large_noise": noise((3000, 3000)),
    "large_items": np.zeros(3, "V5000001"),
}

COMPRESSED = {name for name in ARRAYS if name.startswith(("mask", "depth", "zeros", "just"))}
COMPRESSED |= {name for name in ARRAYS if name.startswith("large_")} - {"large_noise"}
#: Behind HDF5's shuffle, 2, where items have several bytes; Blosc2 has its own.
FILTERS = {"auto": [1], "gzip": [1], "zstd": [32015], "blosc2": [32026]}
TOO_LARGE_ITEMS = {("blosc2", "large_items")}
NEVER_COMPRESSED = {"one_number", "empty"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    for name, array in ARRAYS.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def convert_arrays(source: Path, output: Path, *flags: str) -> Path:
    functions = write_functions(output.parent / "npy_functions.py", NPY_READER)
    flags = ("--ext=npy", "--custom_read_func", f"--path_functions={functions}", *flags)
    ended = run(command(source, output, *flags))
    assert ended.status == 0, ended.err
    return output


@pytest.fixture(scope="module", params=["auto", "none", "gzip", "zstd", "blosc2"])
def arrays(request, source, tmp_path_factory) -> tuple[str, Path]:
    if request.param in ("zstd", "blosc2"):
        pytest.importorskip("hdf5plugin")
        pytest.importorskip("blosc2" if request.param == "blosc2" else "zstandard")
    output = tmp_path_factory.mktemp(request.param) / "OUT.h5"
    flags = () if request.param == "auto" else (f"--compression={request.param}",)
    return request.param, convert_arrays(source, output, *flags, "--workers=2")


@pytest.mark.parametrize("name", ARRAYS)
def test_every_array_comes_back_through_h5py_with_every_compression(name, arrays):
    _, output = arrays
    with h5py.File(output) as file:
        assert_same(file[f"{name}.npy"][()], ARRAYS[name])


@pytest.mark.parametrize("name", ARRAYS)
def test_compression_is_as_asked_for(name, arrays):
    compression, output = arrays
    with h5py.File(output) as file:
        dataset = file[f"{name}.npy"]
        filters = [number for number, _ in filters_of(dataset)]
        if compression == "none" or name in NEVER_COMPRESSED:
            assert not filters
        elif compression == "auto":
            assert bool(filters) == (name in COMPRESSED)
        elif name in ("noise", "large_noise"):
            assert not filters  # it would become larger
        elif (compression, name) in TOO_LARGE_ITEMS:
            assert not filters
        elif name in COMPRESSED:
            assert filters
        if not filters:
            assert dataset.chunks is None
            assert dataset.id.get_storage_size() == ARRAYS[name].nbytes
        else:
            assert dataset.id.get_storage_size() < ARRAYS[name].nbytes
            shuffle = [2] if dataset.dtype.itemsize > 1 and compression != "blosc2" else []
            assert filters == shuffle + FILTERS[compression]


@pytest.mark.parametrize("name", sorted(COMPRESSED))
def test_chunks_are_whole_arrays_or_1_to_4_mib_and_cover_the_array(name, arrays):
    compression, output = arrays
    with h5py.File(output) as file:
        dataset = file[f"{name}.npy"]
        if compression == "none" or (compression, name) in TOO_LARGE_ITEMS:
            assert dataset.chunks is None
            return
        array, chunks = ARRAYS[name], dataset.chunks
        nbytes = math.prod(chunks) * array.dtype.itemsize
        if array.nbytes <= 4 * MIB:
            assert chunks == array.shape
        elif array.dtype.itemsize <= 4 * MIB:
            assert MIB <= nbytes <= 4 * MIB
        counts = [math.ceil(n / c) for n, c in zip(array.shape, chunks, strict=True)]
        assert dataset.id.get_num_chunks() == math.prod(counts)
        assert all(c <= n for n, c in zip(array.shape, chunks, strict=True))
        # along the first axes only: what follows the last cut one stays whole
        cut = [axis for axis, count in enumerate(counts) if count > 1]
        if cut:
            assert all(c == 1 for c in chunks[: cut[-1]])


@pytest.mark.parametrize("name", ["large_mask", "large_stack", "large_mask_16_bits"])
def test_a_part_of_a_large_array_is_read_without_the_rest(name, arrays):
    _, output = arrays
    with h5py.File(output) as file:
        dataset = file[f"{name}.npy"]
        assert_same(dataset[1:3], ARRAYS[name][1:3])
        assert_same(dataset[-1], ARRAYS[name][-1])
        assert_same(dataset[..., -7:], ARRAYS[name][..., -7:])


def test_no_chunk_was_written_with_a_filter_left_out(arrays):
    _, output = arrays
    with h5py.File(output) as file:
        for dataset in file.values():
            if dataset.chunks is not None:
                for number in range(dataset.id.get_num_chunks()):
                    assert dataset.id.get_chunk_info(number).filter_mask == 0


@pytest.mark.slow
def test_auto_decides_by_the_bytes_alone(source, tmp_path):
    one = convert_arrays(source, tmp_path / "one.h5", "--workers=1")
    two = convert_arrays(source, tmp_path / "two.h5", "--workers=3")
    assert one.read_bytes() == two.read_bytes()


def test_photos_come_out_uncompressed_and_masks_and_depth_compressed(folder, output, convert):
    save(folder / "photo.jpg", colours(1, (300, 400, 3)), quality=95)
    save(folder / "mask.png", mask((300, 400)) * 100)
    save(folder / "depth.png", depth((480, 640)))
    assert convert(folder, output, "--ext=jpg,png").status == 0
    with h5py.File(output) as file:
        assert file["photo.jpg"].compression is None
        assert file["mask.png"].compression == "gzip"
        assert file["depth.png"].compression == "gzip"
        assert file["depth.png"].shuffle
        assert file["depth.png"].dtype == np.uint16
        for name in ("photo.jpg", "mask.png", "depth.png"):
            assert_same(file[name][()], as_pillow_reads(folder / name))


def test_a_cut_file_is_smaller_than_twice_its_payload(arrays):
    """Edge chunks hold padding: it must not cost what compression saved."""
    compression, output = arrays
    with h5py.File(output) as file:
        sizes = {name: item.id.get_storage_size() for name, item in file.items()}
    assert output.stat().st_size < sum(sizes.values()) + 450 + 1000 * len(sizes) + 70_000
    if compression == "none":
        assert sizes == {f"{name}.npy": array.nbytes for name, array in ARRAYS.items()}


def test_results_of_a_failing_file_among_compressed_ones_do_not_shift(folder, output, tmp_path):
    """A payload that was begun and given up leaves nothing between its neighbours."""
    for number in range(30):
        (folder / f"{number:02}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "mixed_functions.py",
        """
        import os
        import numpy as np
        def my_read(path_sample):
            number = int(os.path.basename(path_sample)[:2])
            if number % 5 == 0:
                return np.array(["no"])
            if number % 3 == 0:
                return np.full((100, 100), number, np.int32)
            if number % 3 == 1:
                return np.random.default_rng(number).integers(0, 256, 5000, dtype=np.uint8)
            return np.full(number, number)
        """,
    )
    flags = ("--ext=num", "--custom_read_func", f"--path_functions={functions}")
    run(command(folder, output, "--workers=2", "--compression=gzip", *flags))
    assert len(failures(output)) == 6
    for key, array in stored(output).items():
        number = int(key[:2])
        if number % 3 == 0:
            assert_same(array, np.full((100, 100), number, np.int32))
        elif number % 3 == 1:
            generator = np.random.default_rng(number)
            assert_same(array, generator.integers(0, 256, 5000, dtype=np.uint8))
        else:
            assert_same(array, np.full(number, number))
    assert set(everything_below(output.parent)) == {"OUT.h5", "OUT.h5.failures.csv"}
