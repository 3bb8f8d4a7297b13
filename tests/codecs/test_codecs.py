"""Every compression gives back every array, through every reader, or says what is missing."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import converter.codecs.chunks
from converter import H5Folder
from converter.callbacks import Callbacks
from converter.codecs import blosc2 as blosc
from converter.commands.rebuild_index import rebuild_index
from converter.files import Handle
from converter.format.index_reader import open_index
from helpers.arrays import make_h5, smooth, stacked
from helpers.check import assert_same, everything_below, failures, filters_of, stored
from helpers.damage import payload_bytes
from helpers.images import as_pillow_reads, colours, noise, save
from helpers.run import ROOT, command, read_with, run, write_functions

hdf5plugin = pytest.importorskip("hdf5plugin", reason="h5py is the judge of what is written")
zstandard = pytest.importorskip("zstandard")
blosc2 = pytest.importorskip("blosc2")

COMPRESSIONS = [
    "auto", "none", "gzip:1", "gzip:9", "zstd", "zstd:1", "zstd:19", "blosc2", "blosc2:9",
]  # fmt: skip
LEVELS = {"auto": 2, "zstd": 6, "blosc2": 1}
CHUNK_NBYTES = 2200  # in place of 4 MiB: many chunks of few bytes
DTYPES = {
    "bool": "?",
    "uint8": "u1",
    "int16": "<i2",
    "uint16": "<u2",
    "uint16_big_endian": ">u2",
    "float16": "<f2",
    "float32": "<f4",
    "float64_big_endian": ">f8",
    "complex64": "<c8",
    "complex128": "<c16",
    "structured": [("a", "u1"), ("b", "<f8"), ("c", ">i2", (3,))],
    "opaque_3": "V3",
    "bytes_5": "S5",
    "opaque_130": "V130",
    "structured_131": [("a", "<f4", (32,)), ("b", "S3")],
}
SHAPES = {
    "no_dimension": (),
    "empty": (0,),
    "empty_in_the_middle": (3, 0, 4),
    "one": (1,),
    "one_of_five_dimensions": (1, 1, 1, 1, 1),
    "five": (5,),
    "colour": (20, 25, 3),
    "colour_and_alpha": (17, 20, 4),
    "five_channels": (20, 14, 5),
    "frames": (3, 12, 14, 3),
    "five_dimensions": (2, 3, 4, 5, 6),
    "cut_row": (2311,),
    "cut_table": (37, 43),
    "cut_colour": (17, 31, 3),
    "cut_deep": (2, 3, 7, 11, 4),
}
PARTS = {
    "first": lambda shape: np.s_[:1],
    "last_corner": lambda shape: tuple(np.s_[-2:] for _ in shape),
    "inner": lambda shape: tuple(np.s_[n // 3 : n // 2 + 1] for n in shape),
    "steps": lambda shape: (..., np.s_[::3]),
    "one_row": lambda shape: shape[0] - 1 if len(shape) > 1 and shape[0] else np.s_[...],
}


def sample_of(dtype: str | list, shape: tuple[int, ...]) -> np.ndarray:
    """Return values that repeat, with some that do not: none are NaN."""
    kind = np.dtype(dtype)
    if kind.kind == "V":
        count = math.prod(shape) * kind.itemsize
        raw = (np.arange(count) // 90 % 50 + np.random.default_rng(3).integers(0, 2, count)) % 60
        return raw.astype(np.uint8).view(kind).reshape(shape)
    count = math.prod(shape)
    values = np.arange(count) // 40 % 120 + np.random.default_rng(4).integers(0, 2, count)
    return (values % 2 if kind.kind == "b" else values).astype(kind).reshape(shape)


def samples_of(kind: str) -> dict[str, np.ndarray]:
    """Return an array of each shape; wide items are cut in any shape, so there are fewer."""
    is_wide = np.dtype(DTYPES[kind]).itemsize > 100
    return {
        f"{kind}/{name}.npy": sample_of(DTYPES[kind], shape)
        for name, shape in SHAPES.items()
        if not (is_wide and name in ("cut_row", "cut_table", "cut_colour"))
    }


def samples() -> dict[str, np.ndarray]:
    return {key: array for kind in DTYPES for key, array in samples_of(kind).items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], Path]:
    """Return the file of a compression, in small chunks; made when first asked for."""
    made: dict[str, Path] = {}

    def file_of(compression: str) -> Path:
        if compression not in made:
            folder = tmp_path_factory.mktemp(compression.replace(":", "_"))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(converter.codecs.chunks, "LARGEST_CHUNK_NBYTES", CHUNK_NBYTES)
                made[compression] = make_h5(folder, samples(), compression=compression)
        return made[compression]

    return file_of


@pytest.fixture(scope="module")
def files_without_tail(files, tmp_path_factory) -> Callable[[str], Path]:
    """Return a copy that HDF5 has opened for writing, which cuts off what is behind its part."""
    made: dict[str, Path] = {}

    def file_of(compression: str) -> Path:
        if compression not in made:
            path = tmp_path_factory.mktemp("without_tail") / "out.h5"
            shutil.copy(files(compression), path)
            with h5py.File(path, "r+"):
                pass
            handle = Handle(str(path))
            assert open_index(handle) is None
            made[compression] = path
        return made[compression]

    return file_of


def read_in_every_way(path: Path, kind: str, **options) -> None:
    """Compare what H5Folder gives by key, by position, as a part, and as a batch."""
    folder, arrays = H5Folder(path, **options), samples_of(kind)
    for key, array in arrays.items():
        assert_same(folder[key], array)
        for part in PARTS.values() if array.shape else ():
            selection = part(array.shape)
            assert_same(folder.read(key, selection), array[selection])
        assert_same(folder.read_batch([key, key]), stacked([array, array]))
    for got, array in zip(folder.read_batch([*arrays]), arrays.values(), strict=True):
        assert_same(got, array)
    folder.close()


# What is written


@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_h5py_reads_every_array(compression, files):
    with h5py.File(files(compression)) as file:
        for key, array in samples().items():
            assert_same(file[key][...], array)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_each_dataset_names_the_filters_asked_for_and_is_smaller_or_has_none(compression, files):
    compressed = set()
    with h5py.File(files(compression)) as file:
        for key, array in samples().items():
            dataset, stored_nbytes = file[key], file[key].id.get_storage_size()
            filters = filters_of(dataset)
            if not filters:
                assert dataset.chunks is None
                assert stored_nbytes == array.nbytes
                continue
            compressed.add(key)
            assert dataset.chunks is not None
            assert 0 < stored_nbytes < array.nbytes
            assert filters == expected_filters(compression, array, dataset.chunks)
    if compression == "none":
        assert not compressed
    elif compression == "auto":
        assert len(compressed) > len(DTYPES)
    else:
        large = {key for key, array in samples().items() if array.nbytes >= 1000}
        assert large <= compressed


def expected_filters(
    compression: str, array: np.ndarray, chunks: tuple[int, ...]
) -> list[tuple[int, tuple[int, ...]]]:
    """Return the registered filters and their values, as the plugins document them."""
    name, _, level = compression.partition(":")
    level = int(level or LEVELS[name])
    itemsize = array.dtype.itemsize
    if name == "blosc2":
        typesize = itemsize * chunks[-1] if array.ndim >= 3 and chunks[-1] <= 4 else itemsize
        typesize = typesize if typesize <= 127 else 1
        chunk_nbytes = math.prod(chunks) * itemsize
        return [(32026, (1, 0, typesize, chunk_nbytes, level, 1, 5))]
    shuffle = [(2, (itemsize,))] if itemsize > 1 else []
    return [*shuffle, (32015 if name == "zstd" else 1, (level,))]


@pytest.mark.parametrize("compression", ["gzip:1", "zstd", "blosc2"])
def test_arrays_over_one_chunk_are_cut_and_their_last_chunks_padded(compression, files):
    with h5py.File(files(compression)) as file:
        for kind in ("uint8", "float64_big_endian", "structured"):
            for name in ("cut_row", "cut_table", "cut_colour", "cut_deep"):
                dataset = file[f"{kind}/{name}.npy"]
                itemsize = dataset.dtype.itemsize
                if math.prod(dataset.shape) * itemsize <= CHUNK_NBYTES:
                    continue
                assert dataset.id.get_num_chunks() > 1
                assert math.prod(dataset.chunks) * itemsize <= CHUNK_NBYTES
            padded = file[f"{kind}/cut_row.npy"]
            assert padded.shape[0] % padded.chunks[0]


@pytest.mark.parametrize("compression", ["gzip", "zstd", "blosc2"])
def test_higher_levels_make_smaller_files(compression, tmp_path):
    array = {
        "a.npy": smooth((300, 400)) ^ np.random.default_rng(2).integers(0, 4, (300, 400), "u2")
    }
    highest = {"gzip": 9, "zstd": 22, "blosc2": 9}[compression]
    sizes = [
        make_h5(tmp_path / str(level), array, compression=f"{compression}:{level}").stat().st_size
        for level in (1, highest)
    ]
    assert sizes[1] < sizes[0]


def test_the_file_says_which_compression_and_level_it_was_made_with(tmp_path):
    for asked, said in {
        "auto": "auto",
        "none": "none",
        "gzip": "gzip:2",
        "gzip:9": "gzip:9",
        "zstd": "zstd:6",
        "zstd:22": "zstd:22",
        "blosc2": "blosc2:1",
    }.items():
        path = make_h5(tmp_path, {"a.npy": smooth((40, 50))}, compression=asked)
        with h5py.File(path) as file:
            assert json.loads(file.attrs["options"])["compression"] == said


@pytest.mark.parametrize("compression", ["zstd:22", "blosc2:9", "gzip:9"])
def test_an_array_that_becomes_no_smaller_lies_in_one_piece(compression, tmp_path):
    noise = np.random.default_rng(5).integers(0, 256, (90, 100, 3), np.uint8)
    arrays = {
        "noise.npy": noise,
        "tiny.npy": np.arange(3, dtype=np.uint8),
        "zeros.npy": np.zeros(9000),
    }
    path = make_h5(tmp_path, arrays, compression=compression)
    with h5py.File(path) as file:
        for name in ("noise.npy", "tiny.npy"):
            assert filters_of(file[name]) == []
            assert file[name].chunks is None
            assert file[name].id.get_storage_size() == arrays[name].nbytes
        assert file["zeros.npy"].chunks == (9000,)
    for key, array in arrays.items():
        assert_same(H5Folder(path)[key], array)


@pytest.mark.parametrize("has_index", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_h5py_s_own_plugins_write_what_is_read_here(compression, shuffle, has_index, tmp_path):
    """A file of another program: its Blosc2 cuts chunks into blocks of several dimensions."""
    options = hdf5plugin.Zstd(3) if compression == "zstd" else hdf5plugin.Blosc2(cname="zstd")
    array = smooth((70, 80, 3), "<f4")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("a", data=array, chunks=(32, 80, 3), shuffle=shuffle, **options)
    if has_index:
        rebuild_index(tmp_path / "other.h5", Callbacks())
    folder = H5Folder(tmp_path / "other.h5")
    assert_same(folder["a"], array)
    assert_same(folder.read("a", np.s_[30:40, ::7]), array[30:40, ::7])


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_h5py_writes_on_in_such_a_dataset(compression, tmp_path):
    """The filter values are such that the plugin can compress with them too."""
    array = smooth((300, 400))
    path = make_h5(tmp_path, {"a.npy": array}, compression=compression)
    with h5py.File(path, "r+") as file:
        file["a.npy"][10:20] = 7
        nbytes = file["a.npy"].id.get_storage_size()
    array[10:20] = 7
    with h5py.File(path) as file:
        assert_same(file["a.npy"][()], array)
    assert_same(H5Folder(path)["a.npy"], array)
    assert nbytes < array.nbytes / 2


# The ways to read


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_h5folder_reads_every_array_by_key_part_and_batch(compression, files):
    for kind in DTYPES:
        read_in_every_way(files(compression), kind)


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", ["none", "gzip:1", "zstd:1", "blosc2"])
def test_h5folder_reads_every_array_with_checksums_and_cache(compression, files):
    for kind in ("bool", "uint16_big_endian", "float32", "structured", "opaque_130"):
        read_in_every_way(files(compression), kind, verify=True, cache_nbytes=10**6)


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", ["auto", "zstd", "blosc2"])
def test_h5folder_reads_every_array_without_the_index(compression, files_without_tail):
    for kind in DTYPES:
        read_in_every_way(files_without_tail(compression), kind)


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", ["zstd:19", "blosc2:9"])
def test_without_zstandard_and_blosc2_h5folder_reads_through_hdf5plugin(
    compression, files, monkeypatch
):
    path = files(compression)  # which takes them
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "blosc2", None)
    blosc._module.cache_clear()
    for kind in DTYPES:
        read_in_every_way(path, kind, verify=True)


def test_a_part_without_dimensions_has_the_dtype_of_the_array(files):
    folder = H5Folder(files("zstd"))
    for kind in ("uint16_big_endian", "float64_big_endian", "bytes_5"):
        none, row = (sample_of(DTYPES[kind], SHAPES[name]) for name in ("no_dimension", "cut_row"))
        assert_same(folder.read(f"{kind}/no_dimension.npy"), none)
        assert_same(folder.read(f"{kind}/cut_row.npy", 2300), row[2300, ...])
        assert_same(folder.read(f"{kind}/cut_row.npy", (-1, ...)), row[-1, ...])


def with_missing(names: list[str], program: str) -> subprocess.CompletedProcess:
    """Run a program in a process where these modules cannot be imported."""
    head = f"import sys; sys.modules.update(dict.fromkeys({names!r}))\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(program)],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip


READ_ALL = """
from converter import H5Folder
from converter.commands.rebuild_index import rebuild_index
from converter.errors import LoadError
folder = H5Folder(path)
for read in (
    lambda: folder["a.npy"],
    lambda: folder[0],
    lambda: folder.read("a.npy", slice(1, 3)),
    lambda: folder.read_batch(["a.npy", "a.npy"]),
):
    try:
        print(read().sum())
    except LoadError as error:
        print(error)
"""


@pytest.mark.everyday(1)
@pytest.mark.parametrize("has_tail", [True, False])
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_without_any_package_that_undoes_it_the_reader_says_what_to_install(
    compression, has_tail, tmp_path
):
    path = make_h5(tmp_path, {"a.npy": smooth((300, 400))}, compression=compression)
    if not has_tail:
        with h5py.File(path, "r+"):
            pass
    ended = with_missing(
        ["hdf5plugin", "zstandard", "blosc2"], f"path = {str(path)!r}\n" + READ_ALL
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 4
    number = {"zstd": 32015, "blosc2": 32026}[compression]
    for line in lines:
        assert line == (
            f"'a.npy' in {path} needs HDF5's filter {number}, which is not installed: "
            "pip install hdf5plugin"
        )


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("compression", "missing"),
    [
        ("zstd", ["hdf5plugin", "blosc2"]),
        ("blosc2", ["hdf5plugin", "zstandard"]),
        ("zstd", ["zstandard", "blosc2"]),
        ("blosc2", ["zstandard", "blosc2"]),
        ("gzip", ["hdf5plugin", "zstandard", "blosc2"]),
        ("auto", ["hdf5plugin", "zstandard", "blosc2"]),
    ],
)
def test_one_package_that_undoes_it_is_enough(compression, missing, tmp_path):
    array = smooth((300, 400))
    path = make_h5(tmp_path, {"a.npy": array}, compression=compression)
    ended = with_missing(missing, f"path = {str(path)!r}\n" + READ_ALL)
    assert ended.returncode == 0, ended.stderr
    sums = [array.sum(), array.sum(), array[1:3].sum(), 2 * array.sum()]
    assert ended.stdout.splitlines() == [str(number) for number in sums]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_reading_through_the_packages_needs_no_hdf5plugin(compression, tmp_path):
    path = make_h5(tmp_path, {"a.npy": smooth((300, 400))}, compression=compression)
    program = f"""
        import sys
        from converter import H5Folder
        H5Folder({str(path)!r})["a.npy"]
        print("hdf5plugin" in sys.modules)
    """
    assert with_missing([], program).stdout == "False\n"


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_several_threads_read_at_once(compression, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    arrays = {f"{n:02}.npy": smooth((200, 300 + n), "<i4") + n for n in range(20)}
    folder = H5Folder(make_h5(tmp_path, arrays, compression=compression))
    with ThreadPoolExecutor(4) as threads:
        keys = [*arrays] * 5
        for key, got in zip(keys, threads.map(folder.__getitem__, keys), strict=True):
            assert_same(got, arrays[key])


@pytest.mark.everyday(1)
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<f4"])
@pytest.mark.parametrize("shape", [(300, 500, 3), (1201, 433), (1200, 1100, 4), (9, 700, 40, 5)])
def test_blosc2_in_several_threads_gives_what_one_gives(dtype, shape, tmp_path, monkeypatch):
    noise = np.random.default_rng(3).integers(0, 2, shape)
    array = (smooth(shape, dtype) + noise).astype(dtype)
    path = make_h5(tmp_path, {"a.npy": array}, compression="blosc2")
    assert_same(H5Folder(path, threads=1)["a.npy"], array)
    decompress, counts = blosc2.decompress2, []

    def counting(*args, nthreads, **options):
        counts.append(nthreads)
        return decompress(*args, nthreads=nthreads, **options)

    monkeypatch.setattr(blosc2, "decompress2", counting)
    for threads in (2, 4):
        with H5Folder(path, threads=threads) as folder:
            for _ in range(3):
                assert_same(folder["a.npy"], array)
            assert_same(folder.read_batch(["a.npy"])[0], array)
    assert max(counts) > 1


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_a_forked_process_reads_on(compression, tmp_path):
    import multiprocessing

    arrays = {f"{n}.npy": smooth((200, 300), "<i4") + n for n in range(3)}
    folder = H5Folder(make_h5(tmp_path, arrays, compression=compression))
    assert_same(folder["0.npy"], arrays["0.npy"])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for key, got in zip(arrays, pool.map(folder.__getitem__, arrays), strict=True):
            assert_same(got, arrays[key])


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_an_array_of_more_than_4_gib_is_read_in_part(
    compression, tmp_path, output, folder, convert
):
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 16 << 30:
        pytest.skip("it takes 16 GB of free memory")
    nbytes = (4 << 30) + (100 << 20) + 7
    functions = write_functions(
        tmp_path / "large_functions.py",
        f"""
        import numpy as np
        def my_read(path_sample):
            array = np.zeros({nbytes}, np.uint8)
            array[-5:] = 1, 2, 3, 4, 5
            return array
        """,
    )
    (folder / "a.num").write_bytes(b"x")
    flags = ("--ext=num", *read_with(functions))
    assert convert(folder, output, f"--compression={compression}", *flags).status == 0
    end = np.array([0, 0, 1, 2, 3, 4, 5], np.uint8)
    assert_same(H5Folder(output).read("a.num", np.s_[-7:]), end)
    with h5py.File(output) as file:
        assert file["a.num"].shape == (nbytes,)
        assert file["a.num"].id.get_num_chunks() > 1000
        assert_same(file["a.num"][-7:], end)


# Chunks of 1 to 4 MiB, and which arrays are compressed at all


MIB = 1 << 20


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
    "noise": noise(1, (300, 400)),
    "photo": colours(3, (300, 400, 3)) ^ (noise(1, (300, 400, 3)) & 7),
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
    "large_noise": noise(1, (3000, 3000)),
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
    ended = run(command(source, output, "--ext=npy", *read_with("load_npy.py"), *flags))
    assert ended.status == 0, ended.err
    return output


@pytest.fixture(scope="module", params=["auto", "none", "gzip", "zstd", "blosc2"])
def arrays(request, source, tmp_path_factory) -> tuple[str, Path]:
    output = tmp_path_factory.mktemp(request.param) / "OUT.h5"
    flags = () if request.param == "auto" else (f"--compression={request.param}",)
    return request.param, convert_arrays(source, output, *flags, "--workers=2")


@pytest.mark.everyday(2)
def test_every_array_comes_back_through_h5py_compressed_as_asked_for(arrays):
    compression, output = arrays
    with h5py.File(output) as file:
        for name, array in ARRAYS.items():
            dataset = file[f"{name}.npy"]
            assert_same(dataset[()], array)
            assert_compressed_as_asked_for(name, dataset, compression)
            if name in COMPRESSED:
                assert_cut_well(name, dataset, compression)


def assert_compressed_as_asked_for(name: str, dataset: h5py.Dataset, compression: str) -> None:
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


def assert_cut_well(name: str, dataset: h5py.Dataset, compression: str) -> None:
    """Chunks are whole arrays or 1 to 4 MiB, cover the array, and none leaves a filter out."""
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
    for number in range(dataset.id.get_num_chunks()):
        assert dataset.id.get_chunk_info(number).filter_mask == 0


@pytest.mark.everyday(2)
def test_a_part_of_a_large_array_is_read_without_the_rest(arrays):
    _, output = arrays
    with h5py.File(output) as file:
        for name in ("large_mask", "large_stack", "large_mask_16_bits"):
            dataset = file[f"{name}.npy"]
            assert_same(dataset[1:3], ARRAYS[name][1:3])
            assert_same(dataset[-1], ARRAYS[name][-1])
            assert_same(dataset[..., -7:], ARRAYS[name][..., -7:])


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


@pytest.mark.everyday(2)
def test_a_cut_file_is_smaller_than_twice_its_payload(arrays):
    """Edge chunks hold padding: it must not cost what compression saved."""
    compression, output = arrays
    with h5py.File(output) as file:
        sizes = {name: item.id.get_storage_size() for name, item in file.items()}
    assert output.stat().st_size < sum(sizes.values()) + 450 + 1000 * len(sizes) + 70_000
    if compression == "none":
        assert sizes == {f"{name}.npy": array.nbytes for name, array in ARRAYS.items()}


@pytest.mark.slow
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
    flags = ("--ext=num", *read_with(functions))
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


# The same bytes


ENVIRONMENT = {
    "BLOSC_NTHREADS": "2",
    "BLOSC_CLEVEL": "9",
    "BLOSC_COMPRESSOR": "lz4",
    "BLOSC_TYPESIZE": "4",
    "BLOSC_BLOCKSIZE": "4096",
    "BLOSC_SPLITMODE": "ALWAYS",
    "BLOSC_SHUFFLE": "NOSHUFFLE",
    "BLOSC_DELTA": "1",
}


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_the_same_bytes_whoever_makes_them_and_in_whatever_environment(compression, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        shape = [(90, 100, 3), (300, 200), (50, 60, 4), (9000,)][number % 4]
        dtype = ["u1", "<u2", "u1", "<f8"][number % 4]
        np.save(source / f"{number:02}.npy", smooth(shape, dtype) + number)
    np.save(source / "large.npy", smooth((1500, 2000), "<u2"))
    flags = ("--ext=npy", *read_with("load_npy.py"))
    files = []
    for number, (workers, environment) in enumerate(
        [(1, {}), (1, {}), (3, {}), (1, ENVIRONMENT), (2, ENVIRONMENT)]
    ):
        output = tmp_path / f"{number}.h5"
        arguments = (*flags, f"--compression={compression}", f"--workers={workers}")
        ended = run(command(source, output, *arguments), env={**os.environ, **environment})
        assert ended.status == 0, ended.err
        files.append(output.read_bytes())
    assert len(set(files)) == 1


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_the_same_bytes_whatever_was_made_before(compression, tmp_path):
    """A compressor that is kept would show."""
    one = {"a.npy": smooth((300, 400), "<u2")}
    many = {f"0/{n}.npy": smooth((30 + n, 400), "<u4") for n in range(5)} | one
    alone = make_h5(tmp_path / "one", one, compression=compression)
    among = make_h5(tmp_path / "many", many, compression=compression)
    assert payload_bytes(alone, "a.npy") == payload_bytes(among, "a.npy")


@pytest.mark.parametrize(("name", "words"), [("zstd", []), ("blosc2", ["4.4 or newer", "h5web"])])
def test_a_run_says_who_cannot_read_its_codec(name, words, folder, output, convert):
    pytest.importorskip({"zstd": "zstandard"}.get(name, name))
    save(folder / "a.png", np.zeros((100, 100), np.uint8))
    ended = convert(folder, output, "--ext=png", f"--compression={name}")
    assert ended.status == 0
    for word in (f"h5py reads {name} only after `import hdf5plugin`", *words):
        assert word in ended.err
