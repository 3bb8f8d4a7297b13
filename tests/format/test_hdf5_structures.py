"""libhdf5 finds in the structures laid out here what went in, and can go on from there."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from converter.codecs.chunks import encode_chunks
from converter.codecs.compression import OF_AUTO, encode, pipeline
from converter.codecs.filters import FilterPipeline, crc32
from converter.format import groups, headers
from converter.format.checksum import lookup3
from converter.format.headers import structure_nbytes, template
from converter.format.layout import IMAGE, NUMBERS, Layout
from converter.format.superblock import SUPERBLOCK_NBYTES, superblock
from converter.samples import Batch, Encoded, Part
from converter.sources.storable import as_storable
from converter.writer import structures
from converter.writer.journal import Head
from converter.writer.paths import Paths
from converter.writer.writer import Writer
from helpers.check import assert_same, case, failures, stored
from helpers.run import read_with, write_functions

BEYOND_32_BITS = 5 << 30


class Sample(NamedTuple):
    """An array to store, compressed if it has ``chunks``."""

    key: str
    array: np.ndarray
    chunks: tuple[int, ...] | None = None
    content: str = "array"


def write_file(
    path: Path,
    samples: Iterable[Sample],
    *,
    attributes: Mapping[str, str] | None = None,
    most_in_batch: int = 256,
) -> Path:
    """Write samples, in plan order, as a conversion does."""
    writer, waiting = Writer(Paths(path)), iter(samples)
    writer.lock()
    writer.begin(Head(output=path.name, mark="", root="", encoding_options={}))
    while some := list(itertools.islice(waiting, most_in_batch)):
        writer.write(batch_of(some))
    writer.finish(attributes or {})
    return path


def batch_of(samples: Sequence[Sample]) -> Batch:
    results, room = [], bytearray()
    for sample in samples:
        array = sample.array
        filters = pipeline(OF_AUTO, array.dtype, sample.chunks) if sample.chunks else ()
        layout = Layout(array.dtype, array.shape, sample.chunks, filters, sample.content)
        parts = []
        for payload in payloads_of(sample, filters):
            if payload:
                parts.append(Part(len(payload), crc32(payload)))
                room += payload
        room += bytes(structure_nbytes(layout))
        results.append(Encoded(sample.key, layout, tuple(parts), 0, 0))
    return Batch(results, memoryview(room))


def payloads_of(sample: Sample, filters: FilterPipeline) -> Iterable[bytes]:
    if sample.chunks is None:
        return [sample.array.tobytes()]
    return encode_chunks(sample.array, sample.chunks, lambda chunk: encode(chunk, filters))


def numbers(count: int, folder: str = "") -> Iterator[Sample]:
    for number in range(count):
        yield Sample(f"{folder}{number}", np.array(number))


def random_array(dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return any values but NaN, whose bits a conversion in libhdf5 may change."""
    few = np.random.default_rng(0).integers(0, 2, math.prod(shape) * dtype.itemsize, np.uint8)
    return as_storable(few.view(dtype).reshape(shape)).array


def assert_stored(path: Path, samples: Iterable[Sample]) -> None:
    """Compare dtype, shape and values of all, and that there is nothing else."""
    keys = set()
    with h5py.File(path) as file:
        for sample in samples:
            dataset = file[sample.key]
            assert dataset.dtype == sample.array.dtype
            assert dataset.shape == sample.array.shape
            assert dataset.chunks == sample.chunks
            np.testing.assert_array_equal(dataset[()], sample.array)
            keys.add(sample.key)
    assert set(stored(path)) == keys


# Groups


@pytest.mark.parametrize("count", [0, 1, 8, 9, 31, 32, 33, 256, 257, 264, 265])
def test_a_group_has_its_links_and_no_others(count, tmp_path):
    path = write_file(tmp_path / "OUT.h5", numbers(count))
    with h5py.File(path) as file:
        assert len(file) == count
        assert list(file) == sorted(str(number) for number in range(count))
        for number in range(count):
            assert file[str(number)][()] == number
        for absent in ("", " ", "/", "00", "10000", "1000 ", "5x", "999999", "~", "\xff"):
            assert absent not in file or absent in ("", "/")


@pytest.mark.slow
@pytest.mark.parametrize("count", [8192, 8193, 70_000])  # 8192: two levels of the B-tree are full
def test_a_large_group_has_its_links_and_no_others(count, tmp_path):
    path = write_file(tmp_path / "OUT.h5", numbers(count, "folder/"))
    with h5py.File(path) as file:
        folder = file["folder"]
        assert len(folder) == count
        names = sorted(str(number) for number in range(count))
        assert list(folder) == names
        for place in places_at_borders(count):
            assert folder[names[place]][()] == int(names[place])
            assert f"{names[place]}x" not in folder  # it would be next to it


def places_at_borders(count: int) -> list[int]:
    """Return the last place of each B-tree node and the next, and those of some nodes below."""
    of_tree = groups.NODE_ENTRIES * groups.NODE_CHILDREN
    ends = {*range(of_tree, count, of_tree), *range(groups.NODE_ENTRIES, count, 56), count}
    return sorted({place for end in ends for place in (end - 1, end)} - {count})


@pytest.mark.parametrize("count", [1, 31, 32, 33, 34, 300])
def test_groups_hold_groups_however_many(count, tmp_path):
    samples = [Sample(f"in/{n:03}/{m}", np.array([n, m])) for n in range(count) for m in range(2)]
    assert_stored(write_file(tmp_path / "OUT.h5", samples), samples)


def test_folders_follow_on_files_of_the_same_beginning(tmp_path):
    names = ["a", "a b", "ab", "b", "A/x", "a.d/x", "a.d/y/z", "a.d!/x", "ad/y/z", "é/x", "é/é/x"]
    samples = [Sample(name, np.array(number)) for number, name in enumerate(names)]
    assert_stored(write_file(tmp_path / "OUT.h5", samples), samples)


NAMES = [
    *("x" * length for length in range(1, 20)),
    *("x" * length for length in (127, 128, 247, 248, 249, 254, 255, 256, 257, 1020)),
    *("é" * length for length in (1, 4, 127, 128, 255, 510)),
    *("a\x7f", "a\x80", "aÿ", "a\u07ff", "a\u0800", "a\uffff", "a\U00010000", "a\U0010ffff"),
    *(" ", "  ", "...", "..a", ".a", "a.", "~", "\x01", "\n", "\\", "a\\b", "a:b", "*", "?", "%00"),
    *("e\u0301", "日本語", "привет", "😀", "A", "a", "b", "Z", "z"),
]


@pytest.mark.parametrize("at_once", [1, 32, 33, 100])
def test_any_name_is_found_again(at_once, tmp_path):
    samples = []
    for number, name in enumerate(NAMES):
        samples.append(Sample(f"{number // at_once:03}/{name}", np.array(number)))
    path = write_file(tmp_path / "OUT.h5", samples)
    assert_stored(path, samples)
    with h5py.File(path) as file:
        for sample in samples:
            assert file[sample.key][()] == sample.array
            assert sample.key + "\x01" not in file
        for folder in file.values():
            assert list(folder) == sorted(folder, key=str.encode)  # as strcmp has it


@pytest.mark.parametrize("length", [212, 213, 65_491, 65_492])
def test_object_headers_around_255_and_65535_bytes(length, tmp_path):
    samples = [Sample("x" * length, np.array(3))]
    data, _ = groups.group([(samples[0].key.encode(), 0)], 0)
    width = 2 ** data[5]
    body_nbytes = int.from_bytes(data[6 : 6 + width], "little")
    assert body_nbytes in (255, 256, 65_535, 65_536)
    assert width == (1 if body_nbytes < 256 else 2 if body_nbytes < 65_536 else 4)
    assert_stored(write_file(tmp_path / "OUT.h5", samples), samples)


def test_folders_a_thousand_deep(tmp_path):
    deep = "/".join(f"level {number}" for number in range(1000))
    samples = [Sample("x", np.array(0)), Sample(f"{deep}/x", np.array(1))]
    path = write_file(tmp_path / "OUT.h5", samples)
    with h5py.File(path) as file:
        assert file[samples[1].key][()] == 1
        assert list(file[deep]) == ["x"]


# Root attributes


def test_root_attributes_of_any_length(tmp_path):
    for length in (0, 1, 7, 8, 9, *range(4000, 4100), 70_000, 1_000_000):
        with case(length):
            attributes = {"first": "a" * length, "größe": "é€😀", "last": "z" * (length % 9 + 1)}
            path = write_file(
                tmp_path / "OUT.h5", [Sample("x", np.array(1))], attributes=attributes
            )
            with h5py.File(path) as file:
                assert dict(file.attrs) == attributes
                assert len(file.attrs) == 3
                assert file["x"][()] == 1


@pytest.mark.parametrize("count", [1, 32, 33])
def test_attributes_are_counted(count, tmp_path):
    samples = [Sample(f"{n:02}", np.zeros(3, np.uint8), content="bytes") for n in range(count)]
    attributes = {f"attribute {number}": str(number) for number in range(7)}
    path = write_file(tmp_path / "OUT.h5", samples, attributes=attributes)
    with h5py.File(path) as file:
        assert len(file.attrs) == 7
        assert dict(file.attrs) == attributes
        for dataset in file.values():
            assert len(dataset.attrs) == 1
            assert dataset.attrs["content"] == b"bytes"


# Chunks

CUTS = {
    "1 of 1": ((5,), (5,)),
    "1 larger than the array": ((5,), (8,)),
    "2": ((2,), (1,)),
    "2 uneven": ((3,), (2,)),
    "64": ((640,), (10,)),
    "65": ((641,), (10,)),
    "128": ((128,), (1,)),
    "129": ((129,), (1,)),
    "4096": ((4096,), (1,)),
    "4097": ((4097,), (1,)),
    "second axis": ((1, 1000), (1, 7)),
    "second axis, many rows": ((3, 1000), (3, 7)),
    "two axes": ((70, 70), (1, 1)),
    "two axes uneven": ((71, 131), (10, 3)),
    "three axes": ((5, 7, 9), (2, 3, 4)),
    "last axis": ((2, 3, 300), (2, 3, 1)),
    "middle axis": ((2, 300, 3), (2, 1, 3)),
    "first index beyond 65535": ((70_000, 2), (300, 1)),
    "32 axes": ((2,) * 8 + (1,) * 24, (1,) * 7 + (2,) + (1,) * 24),
    "32 axes, the last cut": ((1,) * 31 + (200,), (1,) * 31 + (3,)),
}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("dtype", ["u1", ">u4"])
def test_chunks_lie_where_they_belong(dtype, tmp_path):
    for name, (shape, chunks) in CUTS.items():
        with case(name):
            array = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
            samples = [
                Sample("x", array, chunks),
                Sample("y", array),
                Sample("z", array[:1], (1,) * array.ndim),
            ]
            samples = samples[: 3 if array[:1].size < 500 else 2]
            path = write_file(tmp_path / "OUT.h5", samples)
            assert_stored(path, samples)
            with h5py.File(path) as file:
                dataset = file["x"]
                assert dataset.chunks == chunks
                assert dataset.maxshape == shape
                count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
                assert dataset.id.get_num_chunks() == count
                for number in {0, 1, 63, 64, count // 2, count - 1} & set(range(count)):
                    info = dataset.id.get_chunk_info(number)
                    assert info.filter_mask == 0
                    start = info.chunk_offset
                    inside = tuple(slice(s, s + c) for s, c in zip(start, chunks, strict=True))
                    assert_same(dataset[inside], array[inside])


SINGLE_CHUNKS = {
    "one": ((1,), "u1"),
    "254": ((254,), "u1"),
    "255": ((255,), "u1"),
    "256": ((256,), "u1"),
    "65535": ((65_535,), "u1"),
    "65536": ((65_536,), "u1"),
    "2**24 - 1": ((2**24 - 1,), "u1"),
    "2**24": ((2**24,), "u1"),
    "behind": ((1, 256, 1), "u2"),
    "item of 255": ((3,), "V255"),
    "item of 256": ((3,), "V256"),
    "item of 65536": ((2, 2), "V65536"),
    "item of 2**24": ((1,), "S16777216"),
    "32 axes": ((1,) * 31 + (300,), "f8"),
}


@pytest.mark.parametrize("name", SINGLE_CHUNKS)
def test_the_one_chunk_of_an_array(name, tmp_path):
    shape, dtype = SINGLE_CHUNKS[name]
    items = np.zeros(shape, dtype).view("u1")
    items[..., ::7] = 3
    samples = [Sample("x", items.view(dtype), shape)]
    path = write_file(tmp_path / "OUT.h5", samples)
    assert_stored(path, samples)
    with h5py.File(path) as file:
        assert file["x"].chunks == shape
        assert file["x"].id.get_num_chunks() == 1
        assert file["x"].compression == "gzip"
        assert file["x"].shuffle == (np.dtype(dtype).itemsize > 1)


# Values

DTYPES: dict[str, object] = {
    **{code: code for code in ("?", "i1", "u1", "<i2", ">i2", "<u4", ">u4", "<i8", ">u8")},
    **{code: code for code in ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "<c8", ">c8", "<c16")},
    **{code: code for code in ("S1", "S5", "S300", "V1", "V9")},
    "compound": [("a", "i4"), ("b", ">f8"), ("c", "S3"), ("d", "?"), ("e", "c8")],
    "nested": [("a", [("b", "u1"), ("c", [("d", ">i2"), ("e", "f4")])]), ("f", "V3")],
    "array": [("a", "f4", (2, 3)), ("b", [("c", "u1"), ("d", ">i4", (2,))], (3,)), ("e", "?", 2)],
    "names": [("größe / mm", "f4"), ("", "i4"), ("x" * 300, "u1")],
    "400 fields": [(f"field {number}", "u1") for number in range(400)],
}


@pytest.mark.parametrize("chunks", [None, (4, 5), (2, 2)], ids=["contiguous", "one", "several"])
def test_every_dtype_comes_back(chunks, tmp_path):
    samples = []
    for name, description in DTYPES.items():
        array = random_array(np.dtype(description), (4, 5))
        samples.append(Sample(f"dtype {name}".replace("/", "_"), array, chunks))
    path = write_file(tmp_path / "OUT.h5", samples)
    with h5py.File(path) as file:
        for sample in samples:
            assert file[sample.key].dtype == sample.array.dtype
            assert file[sample.key].chunks == chunks
            np.testing.assert_array_equal(file[sample.key][()], sample.array)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (0, 0), (1,) * 32, (2,) * 5 + (1,) * 27])
def test_arrays_without_filters_of_any_shape(shape, tmp_path):
    samples = [
        Sample(f"{number} {content}", np.ones(shape, dtype), content=content)
        for number, dtype in enumerate(["u1", ">f8", [("a", "u1"), ("b", "S2")]])
        for content in ("array", "text")
    ]
    assert_stored(write_file(tmp_path / "OUT.h5", samples), samples)


@pytest.mark.parametrize("first", ["array", "text"])
def test_strings_of_ascii_and_utf_8_are_not_taken_for_each_other(first, tmp_path):
    template.cache_clear()
    strings = Sample("strings", np.array([b"abcd"]))  # as long as the word "text"
    text = Sample("text", np.zeros(3, np.uint8), content="text")
    samples = [strings, text] if first == "array" else [text, strings]
    path = write_file(tmp_path / "OUT.h5", samples)
    with h5py.File(path) as file:
        attribute = h5py.h5a.open(file["text"].id, b"content")
        assert attribute.get_type().get_cset() == h5py.h5t.CSET_UTF8
        assert file["strings"].id.get_type().get_cset() == h5py.h5t.CSET_ASCII


def all_different() -> list[Sample]:
    shapes = [(a, b, c) for a in range(3) for b in (1, 300) for c in (0, 1, 2)]
    shapes += [(), (7,), (256,), (255,), (2, 2), (1, 2, 3, 4), (600, 4)]
    samples = []
    for number, (shape, dtype) in enumerate(itertools.product(shapes, ["u1", ">u2", "f8", "S3"])):
        array = random_array(np.dtype(dtype), shape)
        chunks: list[tuple[int, ...] | None] = [None]
        if array.size:
            chunks += [shape, tuple(-(-n // 2) for n in shape)] if shape else []
        for cut, content in itertools.product(chunks, ["array", "bytes"]):
            samples.append(Sample(f"{number // 9}/{number}.{len(samples)}", array, cut, content))
    return samples


def test_samples_that_are_all_different_in_one_batch(tmp_path):
    samples = all_different()
    path = write_file(tmp_path / "OUT.h5", samples, most_in_batch=10**6)
    assert_stored(path, samples)


def test_the_same_bytes_however_samples_are_batched(tmp_path):
    samples = all_different()
    contents = set()
    for most in (1, 2, 7, 11, 64, 10**6):
        path = write_file(
            tmp_path / f"{most}.h5", samples, attributes={"a": "b"}, most_in_batch=most
        )
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_a_dtype_too_large_for_hdf5_fails_that_file_alone(folder, output, convert, tmp_path):
    text = """
    import numpy as np

    def my_read(path_sample):
        count = int(open(path_sample).read())
        return np.zeros(2, [(f"a field with quite a long name {n}", "u1") for n in range(count)])
    """
    functions = write_functions(tmp_path / "wide_functions.py", text)
    counts = {"a": 10, "b": 700, "c": 5000, "d": 10}
    for name, count in counts.items():
        (folder / f"{name}.n").write_text(str(count))
    ended = convert(folder, output, "--ext=n", *read_with(functions))
    assert ended.status == 1
    assert list(failures(output)) == ["c.n"]
    assert "more than 64 KiB" in failures(output)["c.n"]
    found = stored(output)
    assert {name: len(array.dtype) for name, array in found.items()} == {
        "a.n": 10,
        "b.n": 700,
        "d.n": 10,
    }


# What lies far behind


def test_what_lies_beyond_4_gib_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(structures, "SUPERBLOCK_NBYTES", BEYOND_32_BITS + 3)  # the rest is a hole
    samples = [*numbers(40, "large/"), *numbers(3, "small/")]
    cut = np.arange(5000, dtype=np.int16).reshape(50, 100)
    samples += [Sample("z/cut", cut, (7, 9)), Sample("z/one", cut, cut.shape, "bytes")]
    path = write_file(tmp_path / "OUT.h5", samples, attributes={"a": "b"})
    assert path.stat().st_size > BEYOND_32_BITS
    assert_stored(path, samples)
    with h5py.File(path) as file:
        assert file["z/cut"].id.get_chunk_info(0).byte_offset > BEYOND_32_BITS
        assert dict(file.attrs) == {"a": "b"}


@pytest.mark.parametrize("shape", [(BEYOND_32_BITS,), (1, BEYOND_32_BITS), (70_000, 70_001)])
def test_an_array_of_more_than_4_gib(shape, tmp_path):
    nbytes, address = math.prod(shape), SUPERBLOCK_NBYTES
    form = headers.header(Layout(np.dtype("u1"), shape))
    header = np.zeros(len(form.data), np.uint8)
    zero, addresses, sizes = (np.array([number]) for number in (0, address, nbytes))
    headers.fill_headers(header, [form], zero, places=zero, addresses=addresses, nbytes=sizes)
    after = address + nbytes
    group, root = groups.group([(b"x", after)], after + len(header))
    path = tmp_path / "OUT.h5"
    with open(path, "wb") as file:
        file.write(superblock(root, after + len(header) + len(group)))
        file.write(b"\1")
        file.seek(after - 1)
        file.write(b"\2" + header.tobytes() + group)
    with h5py.File(path) as file:
        assert file["x"].shape == shape
        assert file["x"].id.get_storage_size() == nbytes
        assert file["x"][(0,) * len(shape)] == 1
        assert file["x"][tuple(n - 1 for n in shape)] == 2


# Changes by libhdf5


@pytest.mark.slow
def test_libhdf5_can_change_such_a_file(tmp_path):
    cut = np.arange(600).reshape(20, 30)
    samples = [
        *numbers(300, "large/"),
        *numbers(20, "small/"),
        *numbers(32, "full/"),
        Sample("z/cut", cut, (3, 7)),
        Sample("z/one", cut, cut.shape, "bytes"),
        Sample("z/text", np.zeros(3, np.uint8), content="text"),
    ]
    path = write_file(tmp_path / "OUT.h5", samples, attributes={"format": "ours", "b": "x" * 5000})
    expected = {sample.key: sample.array for sample in samples}
    folders = ("large", "small", "full", "z")
    with h5py.File(path, "r+") as file:
        for name in folders:
            for number in range(500):
                file[name].create_dataset(f"new {number}", data=-number)
                expected[f"{name}/new {number}"] = np.array(-number)
        for name in [key for key in expected if not key.startswith("z/")][::3]:
            del file[name], expected[name]
        file.move("large/1", "small/moved")
        expected["small/moved"] = expected.pop("large/1")
        file.move("z/cut", "elsewhere/cut")
        expected["elsewhere/cut"] = expected.pop("z/cut").copy()
        file["elsewhere/cut"][5, :] = -1
        expected["elsewhere/cut"][5, :] = -1
        for name in ("/", *folders, "z/one", "z/text", "elsewhere/cut"):
            for number in range(12):  # more than HDF5 keeps in an object header
                file[name].attrs[f"mine {number}"] = "x" * number
        del file.attrs["b"], file["z/text"].attrs["content"]
        file["full"].create_group("sub/sub")["y"] = 7
        expected["full/sub/sub/y"] = np.array(7)
    found = stored(path)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    mine = {f"mine {number}": "x" * number for number in range(12)}
    with h5py.File(path) as file:
        assert dict(file.attrs) == {"format": "ours.1"} | mine
        assert len(file.attrs) == 13
        assert dict(file["z/one"].attrs) == {"content": b"bytes"} | mine
        assert dict(file["z/text"].attrs) == mine
        assert all(dict(file[name].attrs) == mine for name in (*folders, "elsewhere/cut"))


COUNT = 600  # chunks; with nodes of two children HDF5 2.0 has too many levels after 256
ORDERS = {
    "forwards": list(range(COUNT)),
    "backwards": list(range(COUNT - 1, -1, -1)),
    "from both ends": [n // 2 if n % 2 else COUNT - 1 - n // 2 for n in range(COUNT)],
    "at random": np.random.default_rng(0).permutation(COUNT).tolist(),
}


@pytest.mark.everyday(4)
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_libhdf5_can_add_arrays_of_many_chunks(order, tmp_path):
    samples = [
        Sample("one", np.arange(20), (20,)),
        Sample("cut", np.arange(900).reshape(30, 30), (2, 7)),
        Sample("plain", np.arange(7)),
    ]
    path = write_file(tmp_path / "OUT.h5", samples)
    with h5py.File(path, "r+") as file:
        file["added"] = np.arange(5)
        dataset = file.create_dataset(
            "new", (0, 3), "i4", maxshape=(None, 3), chunks=(1, 3), compression="gzip"
        )
        dataset.resize(COUNT, axis=0)
        for row in order:
            dataset[row] = row
        file["one"][3] = -1
        file["cut"][:, 8] = -1
    found = stored(path)
    assert np.array_equal(found["new"], np.repeat(np.arange(COUNT), 3).reshape(COUNT, 3))
    assert np.array_equal(found["added"], np.arange(5))
    assert np.array_equal(found["plain"], samples[2].array)
    samples[0].array[3] = samples[1].array[:, 8] = -1
    assert np.array_equal(found["one"], samples[0].array)
    assert np.array_equal(found["cut"], samples[1].array)


@pytest.mark.parametrize("chunks", [None, (20,)])
def test_a_superblock_extension_is_in_files_with_chunks_alone(chunks, tmp_path):
    path = write_file(tmp_path / "OUT.h5", [Sample("x", np.arange(20), chunks)])
    extension = int.from_bytes(path.read_bytes()[20:28], "little")
    assert (extension == 2**64 - 1) == (chunks is None)


@pytest.mark.parametrize("count", [1, 8, 32, 33, 1000])
def test_libhdf5_can_empty_a_group_and_fill_it_again(count, tmp_path):
    path = write_file(tmp_path / "OUT.h5", numbers(count, "folder/"))
    order = np.random.default_rng(0).permutation(count)
    with h5py.File(path, "r+") as file:
        for number in order:
            del file[f"folder/{number}"]
        assert list(file["folder"]) == []
        for number in order:
            file[f"folder/{number}"] = int(number) + 1
    with h5py.File(path) as file:
        assert {name: int(item[()]) for name, item in file["folder"].items()} == {
            str(number): number + 1 for number in range(count)
        }


# Checksums


def blocks_with_checksums(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield the superblock and each object header of one block that libhdf5 wrote."""
    data = path.read_bytes()
    yield data[:44], int.from_bytes(data[44:48], "little")
    for match in re.finditer(b"OHDR\2", data):
        start, flags = match.start(), data[match.end()]
        width = 2 ** (flags & 3)
        size_at = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        end = size_at + width + int.from_bytes(data[size_at : size_at + width], "little")
        yield data[start:end], int.from_bytes(data[end : end + 4], "little")


@pytest.mark.parametrize("repeats", [1, 100])
def test_checksums_are_those_of_libhdf5(repeats, tmp_path):
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w", libver="v110") as file:
        for length in (*range(1, 100), 1000, 5000, 40_000):
            file.create_group(str(length)).attrs["a"] = np.bytes_(os.urandom(length - 1) + b"x")
    blocks = list(blocks_with_checksums(path))
    for block, expected in blocks:
        rows = np.tile(np.frombuffer(block, np.uint8), (repeats, 1))
        assert lookup3(rows).tolist() == [expected] * repeats
    lengths = {len(block) for block, _ in blocks}
    assert len(lengths) > 50 and {length % 12 for length in lengths} == set(range(12))


@pytest.mark.parametrize("repeats", [1, 100])
def test_the_checksum_of_its_authors_example(repeats):
    rows = np.tile(np.frombuffer(b"Four score and seven years ago", np.uint8), (repeats, 1))
    assert lookup3(rows).tolist() == [0x17770551] * repeats


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", NUMBERS)
def test_the_datatype_of_a_number_is_as_libhdf5_encodes_it(code: str, order: str) -> None:
    dtype = np.dtype(code).newbyteorder(order)
    made = bytes(h5py.h5t.py_create(dtype, logical=True).encode()[2:])
    assert headers.datatype(dtype) == made


@pytest.mark.parametrize("text", ["a", "\u00e4" * 300])
def test_the_datatype_of_text_is_as_libhdf5_encodes_it(text: str) -> None:
    kind = h5py.string_dtype("utf-8", len(text.encode()))
    made = bytes(h5py.h5t.py_create(kind, logical=True).encode()[2:])
    assert headers.text_attribute("name", text) == headers.attribute("name", made, text.encode())


def fill(buffer: np.ndarray, forms: list[headers.Header], places: Sequence[int]) -> None:
    addresses, nbytes = np.full(len(forms), 48), np.full(len(forms), 7)
    headers.fill_headers(
        buffer,
        forms,
        np.arange(len(forms)),
        places=np.array(places),
        addresses=addresses,
        nbytes=nbytes,
    )


@pytest.mark.parametrize("content", ["encoded", IMAGE])
def test_headers_of_many_new_layouts_are_those_of_each_alone(content: str) -> None:
    shape = () if content == "encoded" else (300, 3)
    layouts = [Layout(np.dtype("u1"), (1000 + n, *shape), content=content) for n in range(40)]
    alone = []
    for layout in layouts:
        header = headers.header.__wrapped__(layout)
        alone.append(np.zeros(len(header.data), np.uint8))
        fill(alone[-1], [header], [0])
    length = len(alone[0])
    forms = [headers.header.__wrapped__(layout) for layout in layouts]
    for _ in range(2):  # new, and used before
        made = np.zeros(len(forms) * length, np.uint8)
        fill(made, forms, range(0, len(made), length))
        np.testing.assert_array_equal(made.reshape(len(forms), length), alone)
