"""Every compression gives back every array, through every reader, or says what is missing."""

from __future__ import annotations

import ast
import functools
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import converter.codecs.filters
from converter import H5Folder
from converter.codecs import blosc2 as blosc
from converter.codecs import zstd
from converter.errors import LoadError
from converter.files import Handle
from converter.format.index import ROW
from converter.format.index_reader import open_index
from helpers.arrays import make_h5, smooth, stacked
from helpers.check import assert_same, filters_of
from helpers.damage import TailEditor
from helpers.run import ROOT, command, run, write_functions

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
                patch.setattr(converter.codecs.filters, "LARGEST_CHUNK_NBYTES", CHUNK_NBYTES)
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


@pytest.fixture
def _without_decoders(monkeypatch):
    """Have the packages that undo zstd and Blosc2 without HDF5 be missing."""
    monkeypatch.setattr(zstd, "is_installed", lambda: False)
    monkeypatch.setattr(blosc, "is_installed", lambda: False)


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


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_h5py_reads_every_array(compression, kind, files):
    with h5py.File(files(compression)) as file:
        for key, array in samples_of(kind).items():
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


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_h5py_s_own_plugins_write_what_is_read_here(compression, tmp_path):
    """A file of another program, without an index."""
    options = hdf5plugin.Zstd(3) if compression == "zstd" else hdf5plugin.Blosc2(cname="zstd")
    array = smooth((70, 80, 3), "<f4")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.create_dataset("a", data=array, chunks=(32, 80, 3), shuffle=True, **options)
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


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_h5folder_reads_every_array_by_key_part_and_batch(compression, kind, files):
    read_in_every_way(files(compression), kind)


@pytest.mark.parametrize("compression", ["none", "gzip:1", "zstd:1", "blosc2"])
def test_h5folder_reads_every_array_with_checksums_and_cache(compression, files):
    for kind in ("bool", "uint16_big_endian", "float32", "structured", "opaque_130"):
        read_in_every_way(files(compression), kind, verify=True, cache_nbytes=10**6)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("compression", ["auto", "zstd", "blosc2"])
def test_h5folder_reads_every_array_without_the_index(compression, kind, files_without_tail):
    read_in_every_way(files_without_tail(compression), kind)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("compression", ["zstd:19", "blosc2:9"])
@pytest.mark.usefixtures("_without_decoders")
def test_without_zstandard_and_blosc2_h5folder_reads_through_hdf5plugin(
    compression, kind, files, monkeypatch
):
    def refuse(*_):
        raise AssertionError("the package is used, which is not there")

    monkeypatch.setattr(zstd, "expand", refuse)
    monkeypatch.setattr(blosc, "expand", refuse)
    read_in_every_way(files(compression), kind, verify=True)


@pytest.mark.parametrize("kind", ["uint16_big_endian", "float64_big_endian", "bytes_5"])
def test_a_part_without_dimensions_has_the_dtype_of_the_array(kind, files):
    folder = H5Folder(files("zstd"))
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
            f"'a.npy' in {path} is in HDF5's filter {number}, which is not installed: "
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
    flags = ("--ext=num", "--custom_read_func", f"--path_functions={functions}")
    assert convert(folder, output, f"--compression={compression}", *flags).status == 0
    end = np.array([0, 0, 1, 2, 3, 4, 5], np.uint8)
    assert_same(H5Folder(output).read("a.num", np.s_[-7:]), end)
    with h5py.File(output) as file:
        assert file["a.num"].shape == (nbytes,)
        assert file["a.num"].id.get_num_chunks() > 1000
        assert_same(file["a.num"][-7:], end)


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
    functions = write_functions(
        tmp_path / "npy_functions.py",
        """
        import numpy as np
        def my_read(path_sample):
            return np.load(path_sample)
        """,
    )
    flags = ("--ext=npy", "--custom_read_func", f"--path_functions={functions}")
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
    assert payload_of(alone, "a.npy") == payload_of(among, "a.npy")


# Damage


def place_of(path: Path, key: str) -> tuple[int, int]:
    """Return where the one payload of a sample begins, and its length."""
    with h5py.File(path) as file:
        assert file[key].id.get_num_chunks() == 1
        chunk = file[key].id.get_chunk_info(0)
        return chunk.byte_offset, chunk.size


def payload_of(path: Path, key: str) -> bytes:
    offset, nbytes = place_of(path, key)
    return path.read_bytes()[offset : offset + nbytes]


def with_payload(path: Path, payload: bytes) -> Path:
    """Put another payload, no longer one, in the place of a file's only; the index agrees."""
    offset, nbytes = place_of(path, "a.npy")
    assert len(payload) <= nbytes
    editor = TailEditor(path)
    editor.content[offset : offset + len(payload)] = payload
    editor.put("rows", ROW.fields["nbytes"][1], "<Q", len(payload))
    editor.put("rows", ROW.fields["crc32"][1], "<I", converter.codecs.filters.crc32(payload))
    return editor.save()


READ_DAMAGED = """
import sys
import numpy as np
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from converter import H5Folder
from converter.errors import LoadError

path, offset, nbytes, count = Path(sys.argv[3]), *map(int, sys.argv[4:])
wanted = H5Folder(path)["a.npy"]
original = path.read_bytes()
generator = np.random.default_rng(0)
outcomes = {"refused": 0, "right": 0, "wrong": 0}
for number in range(count):
    content = bytearray(original)
    for place in generator.integers(0, nbytes, 1 + number % 3):
        content[offset + place] ^= 1 << generator.integers(8)
    path.write_bytes(content)
    folder = H5Folder(path)
    for read, cut in (
        (lambda: folder["a.npy"], ...),
        (lambda: folder.read("a.npy", np.s_[5:7]), np.s_[5:7]),
        (lambda: folder.read_batch(["a.npy"]), np.s_[np.newaxis]),
    ):
        try:
            got = read()
        except LoadError as error:
            assert str(error).startswith(f"'a.npy' in {path} "), error
            assert str(error).endswith(": convert it again"), error
            outcomes["refused"] += 1
        else:
            outcomes["right" if np.array_equal(got, wanted[cut]) else "wrong"] += 1
path.write_bytes(original)
print(outcomes)
"""


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    ("kind", "compression"),
    [
        *((kind, name) for kind in ("smooth", "zeros", "colours") for name in ("zstd", "blosc2")),
        ("smooth", "zstd:19"),
        ("smooth", "blosc2:9"),
        ("smooth", "gzip"),
    ],
)
def test_a_damaged_payload_is_refused_or_reads_right(compression, kind, tmp_path):
    """In a process of its own, which must not crash."""
    arrays = {
        "smooth": smooth((200, 300)),
        "zeros": np.zeros((300, 400), np.uint8),
        "colours": smooth((90, 100, 3), "u1"),
    }
    path = make_h5(tmp_path, {"a.npy": arrays[kind]}, compression=compression)
    offset, nbytes = place_of(path, "a.npy")
    program = [sys.executable, "-c", READ_DAMAGED, str(ROOT), str(ROOT / "tests"), str(path)]
    ended = run([*program, str(offset), str(nbytes), "100"])
    assert ended.status == 0, ended.err
    outcomes = ast.literal_eval(ended.out)
    assert outcomes["wrong"] == 0
    if compression.startswith("blosc2"):
        assert outcomes == {"refused": 300, "right": 0, "wrong": 0}
    else:  # a few bits of a header mean nothing
        assert outcomes["refused"] > 200


CHECKSUM_DIFFERS = "is damaged (its checksum differs): convert it again"


def test_of_blosc2_payloads_the_checksum_is_compared_unasked(tmp_path):
    path = make_h5(tmp_path, {"a.npy": smooth((200, 300))}, compression="blosc2")
    offset, nbytes = place_of(path, "a.npy")
    content = bytearray(path.read_bytes())
    content[offset + nbytes // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LoadError) as error:
        H5Folder(path)["a.npy"]
    assert str(error.value) == f"'a.npy' in {path} {CHECKSUM_DIFFERS}"


def hardly_compressible(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 99, shape).astype("<u2")


@pytest.mark.parametrize("make", [smooth, hardly_compressible])
def test_zstd_finds_damage_of_what_becomes_little_by_the_index_else_by_its_frame(make, tmp_path):
    array = make((200, 300))
    path = make_h5(tmp_path, {"a.npy": array}, compression="zstd")
    offset, nbytes = place_of(path, "a.npy")
    is_small = nbytes * 16 < array.nbytes
    assert is_small == (make is smooth)
    content = bytearray(path.read_bytes())
    content[offset + nbytes - 2] ^= 1  # of the checksum in the frame
    path.write_bytes(content)
    in_frame = "has a chunk that does not inflate .*checksum"
    by_index = re.escape(CHECKSUM_DIFFERS)
    with pytest.raises(LoadError, match=rf"'a.npy' in .* {by_index if is_small else in_frame}"):
        H5Folder(path)["a.npy"]
    with pytest.raises(LoadError, match=rf"'a.npy' in .* {by_index}"):
        H5Folder(path, verify=True)["a.npy"]
    with h5py.File(path) as h5, pytest.raises(OSError, match=r"[Cc]an't"):
        h5["a.npy"][:]


@pytest.mark.parametrize("has_checksum", [True, False])
def test_a_small_zstd_frame_reads_right_with_and_without_its_checksum(has_checksum, tmp_path):
    """Of another maker: one that is right is left out, not required."""
    path = make_h5(tmp_path, {"a.npy": smooth((90_000,), "u1")}, compression="zstd")
    frame = zstandard.ZstdCompressor(write_checksum=has_checksum).compress(bytes(90_000))
    with_payload(path, frame)
    for read in (
        lambda folder: folder["a.npy"],
        lambda folder: folder.read("a.npy", np.s_[:]),
        lambda folder: folder.read_batch(["a.npy", "a.npy"])[1],
    ):
        for verify in (False, True):
            assert_same(read(H5Folder(path, verify=verify)), np.zeros(90_000, "u1"))


READ_ANY = """
import sys
from converter import H5Folder
from converter.errors import LoadError
for line in sys.stdin:
    path = line.rstrip()
    try:
        array = H5Folder(path)["a.npy"]
        print("read", array.shape, array.sum(), flush=True)
    except LoadError as error:
        print(error, flush=True)
"""


@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_a_payload_cut_short_is_refused(compression, tmp_path):
    """Or reads right, where only bytes behind the data are missing.

    The index agrees with what is left of it, checksum and all.
    """
    array = smooth((200, 300))
    right = f"read (200, 300) {array.sum()}"
    path = make_h5(tmp_path, {"a.npy": array}, compression=compression)
    whole = payload_of(path, "a.npy")
    original, cut = path.read_bytes(), []
    for length in {*range(1, 20), *range(20, len(whole), len(whole) // 60), len(whole) - 1}:
        path.write_bytes(original)
        cut.append(with_payload(path, whole[:length]).rename(tmp_path / f"{length}.h5"))
        path.write_bytes(original)
        if compression == "blosc2" and length > 24:  # and the frame says so as well
            payload = whole[:16] + struct.pack(">Q", length) + whole[24:length]
            cut.append(with_payload(path, payload).rename(tmp_path / f"{length}_.h5"))
    lines = read_each(cut)
    for line, path in zip(lines, cut, strict=True):
        if line != right:
            assert f"'a.npy' in {path} " in line or f"index of {path} places 'a.npy'" in line
            assert line.endswith("convert it again")
    assert lines.count(right) < 5


def read_each(paths: list[Path]) -> list[str]:
    """Read each file in one other process, which must not crash; return what came of them."""
    ended = subprocess.run(
        [sys.executable, "-c", READ_ANY], input="".join(f"{path}\n" for path in paths),
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_a_forged_blosc2_payload_never_crashes(tmp_path):
    """With a checksum that is right, as only somebody who means harm would give it."""
    path = make_h5(tmp_path, {"a.npy": smooth((200, 300))}, compression="blosc2")
    whole, original, forged = payload_of(path, "a.npy"), path.read_bytes(), []
    generator = np.random.default_rng(1)
    for number in range(200):
        payload = bytearray(whole)
        for place in generator.integers(0, 140 if number % 2 else len(whole), 1 + number % 4):
            payload[place] = generator.choice([0, 1, 127, 128, 255, generator.integers(256)])
        path.write_bytes(original)
        forged.append(with_payload(path, bytes(payload)).rename(tmp_path / f"{number}.h5"))
    lines = read_each(forged)
    assert len(lines) == 200
    refused = [line for line in lines if not line.startswith("read (200, 300) ")]
    assert len(refused) > 50
    for line in refused:
        assert re.fullmatch(r"'a.npy' in \S+ has a chunk that .+: convert it again", line)


@functools.cache
def zstd_frames(nbytes: int) -> dict[str, bytes]:
    """Return frames of which none holds ``nbytes`` zeros as it should."""
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    right = compressor.compress(bytes(nbytes))
    size = struct.pack("<I", nbytes)
    assert right.count(size) == 1  # the content size of the frame's header
    return {
        "one byte less": compressor.compress(bytes(nbytes - 1)),
        "one byte more": compressor.compress(bytes(nbytes + 1)),
        "64 MiB": compressor.compress(bytes(64 << 20)),
        "nothing": compressor.compress(b""),
        "without a size": unsized.compress(bytes(nbytes)),
        "claims more": right.replace(size, struct.pack("<I", nbytes + 1)),
        "claims less": right.replace(size, struct.pack("<I", nbytes - 1)),
        "claims 4 GiB": right.replace(size, b"\xff\xff\xff\xff"),
        "64 MiB that claim to fit": compressor.compress(bytes(64 << 20)).replace(
            struct.pack("<I", 64 << 20), size
        ),
        "two frames": right + compressor.compress(bytes(nbytes)),
        "half in each of two frames": 2 * compressor.compress(bytes(nbytes // 2)),
        "garbage behind": right + b"garbage",
        "no frame": b"garbage",
        "an empty skippable frame": b"\x50\x2a\x4d\x18\0\0\0\0",
    }


@pytest.mark.parametrize("kind", zstd_frames(120_000))
@pytest.mark.parametrize("dtype", ["u1", "<u4", ">f8"])
def test_a_zstd_frame_of_another_size_is_refused(kind, dtype, tmp_path):
    itemsize = np.dtype(dtype).itemsize
    noise = np.random.default_rng(0).integers(0, 7, 120_000).astype("u1").view(dtype)
    path = make_h5(tmp_path, {"a.npy": noise}, compression="zstd")
    assert noise.nbytes == 120_000 and len(noise) == 120_000 // itemsize
    with_payload(path, zstd_frames(120_000)[kind])
    reason = r"has a chunk that (inflates to another size|does not inflate \(.*\))"
    for read in (
        lambda folder: folder["a.npy"],
        lambda folder: folder.read("a.npy", np.s_[1:3]),
        lambda folder: folder.read_batch(["a.npy", "a.npy"]),
    ):
        with pytest.raises(LoadError, match=rf"^'a.npy' in {path} {reason}: convert it again$"):
            read(H5Folder(path))


@functools.cache
def blosc2_frames(nbytes: int) -> dict[str, bytes]:
    """Return frames of which none holds ``nbytes`` zeros as it should."""

    def frame(*sizes: int) -> bytes:
        chunk = blosc2.SChunk(chunksize=sizes[0], contiguous=True)
        for size in sizes:
            chunk.append_data(np.zeros(size, np.uint8))
        return chunk.to_cframe()

    right = frame(nbytes)
    return {
        "one byte less": frame(nbytes - 1),
        "one byte more": frame(nbytes + 1),
        "1 GiB": frame(1 << 30),
        "two chunks": frame(nbytes, nbytes),
        "half in each of two chunks": frame(nbytes // 2, nbytes // 2),
        "claims more": right.replace(struct.pack(">Q", nbytes), struct.pack(">Q", nbytes + 1)),
        "garbage behind": right + b"garbage",
        "no frame": b"garbage" * 30,
        "a bare chunk": blosc2.compress2(np.zeros(nbytes, np.uint8)),
    }


@pytest.mark.parametrize("kind", blosc2_frames(120_000))
@pytest.mark.parametrize("dtype", ["u1", ">f8"])
def test_a_blosc2_frame_of_another_size_is_refused(kind, dtype, tmp_path):
    noise = np.random.default_rng(0).integers(0, 7, 120_000).astype("u1").view(dtype)
    path = make_h5(tmp_path, {"a.npy": noise}, compression="blosc2")
    with_payload(path, blosc2_frames(120_000)[kind])
    reason = r"has a chunk that (is no Blosc2 frame|inflates to another size|does not inflate.*)"
    for read in (
        lambda folder: folder["a.npy"],
        lambda folder: folder.read("a.npy", np.s_[1:3]),
        lambda folder: folder.read_batch(["a.npy", "a.npy"]),
    ):
        with pytest.raises(LoadError, match=rf"^'a.npy' in {path} {reason}: convert it again$"):
            read(H5Folder(path))


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_a_right_payload_put_there_by_hand_reads_right(compression, tmp_path):
    """What the tests above rely on; of another maker's settings too."""
    noise = np.random.default_rng(0).integers(0, 7, 120_000).astype("u1")
    path = make_h5(tmp_path, {"a.npy": noise}, compression=compression)
    with_payload(path, payload_of(path, "a.npy"))
    assert_same(H5Folder(path)["a.npy"], noise)
    if compression == "zstd":
        zeros = zstandard.ZstdCompressor(level=1).compress(bytes(120_000))
    else:
        frame = blosc2.SChunk(chunksize=120_000, contiguous=True)
        frame.append_data(np.zeros(120_000, np.uint8))
        zeros = frame.to_cframe()
    with_payload(path, zeros)
    assert_same(H5Folder(path)["a.npy"], np.zeros(120_000, np.uint8))


HOSTILE = {
    "an exabyte": {"shape": [2**30, 2**30], "chunks": [2**30, 2**30]},
    "an exabyte in one row": {"shape": [2**60], "chunks": [2**60]},
    "an exabyte in chunks": {"shape": [2**30, 2**30], "chunks": [1, 2**10]},
    "a terabyte": {"shape": [2**20, 2**20], "chunks": [2**20, 2**20]},
    "many chunks": {"shape": [2**40], "chunks": [1]},
    "wide items": {"dtype": "|V999999999", "shape": [10**6], "chunks": [10**6]},
    "wide items in chunks": {"dtype": "|V999999999", "shape": [10**6], "chunks": [1]},
    "one more": {"shape": [200, 301], "chunks": [200, 301]},
    "one less": {"shape": [200, 299], "chunks": [200, 299]},
    "overflow": {"shape": [2**62, 8], "chunks": [2**62, 8]},
    "chunks of nothing": {"shape": [200, 300], "chunks": [0, 300]},
    "chunks larger than it": {"shape": [200, 300], "chunks": [200, 2**40]},
    "no chunks": {"shape": [200, 300], "chunks": None},
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("filters", [[[32015, [3]]], [[2, [1]], [32015, [3]]], [[32026, []]]])
def test_a_layout_that_claims_what_cannot_be_is_refused(filters, kind, tmp_path):
    name = "blosc2" if filters == [[32026, []]] else "zstd"
    array = np.random.default_rng(0).integers(0, 2, (200, 300), np.uint8)
    path = make_h5(tmp_path, {"a.npy": array}, compression=name)
    layout = {"dtype": "|u1", "content": "array", "filters": filters, **HOSTILE[kind]}
    if layout["dtype"] != "|u1" and len(filters) == 2:
        layout["filters"] = [[2, [999999999]], filters[1]]
    TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
    for read in (
        lambda folder: folder["a.npy"],
        lambda folder: folder.read("a.npy", 0),
        lambda folder: folder.read("a.npy", np.s_[-1:]),
        lambda folder: folder.read_batch(["a.npy", "a.npy"]),
    ):
        with pytest.raises(LoadError, match=re.escape(str(path))):
            read(H5Folder(path))


@pytest.mark.parametrize(
    "filters",
    [
        [[32015, [3]], [2, [2]]],
        [[2, [4]], [32015, [3]]],
        [[2, [2]], [32026, []]],
        [[32015, [3]], [32015, [3]]],
        [[32015, [3]], [1, [2]]],
        [[32026, []], [32026, []]],
    ],
)
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_of_filters_in_another_order_hdf5_s_word_counts(filters, compression, tmp_path):
    array = smooth((200, 300))
    path = make_h5(tmp_path, {"a.npy": array}, compression=compression)
    layout = {
        "dtype": "<u2", "content": "array", "shape": [200, 300], "chunks": [200, 300],
        "filters": filters,
    }  # fmt: skip
    TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
    assert_same(H5Folder(path)["a.npy"], array)
