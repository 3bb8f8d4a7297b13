"""The file: an ordinary HDF5 file of the user's arrays, and a tail that HDF5 ignores."""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from helpers.check import assert_same, stored
from helpers.images import colours, save, save_jpegs
from helpers.run import command, read_with, run, write_functions

MAGIC = b"\x89D2H5IX\n"
SUPERBLOCK_OF_HDF5_1_10 = 3


class Row(NamedTuple):
    """One sample of the tail."""

    key: str
    layout: dict[str, Any]
    pieces: list[tuple[int, int, int]]  # offset, nbytes, crc32


class Tail(NamedTuple):
    hdf5_nbytes: int
    groups_begin: int
    sources: list[tuple[int, int]]  # size and time in nanoseconds
    rows: list[Row]
    bucket_bits: int
    buckets: list[int]
    slots: list[int]


def parse_tail(path: Path) -> Tail:
    """Read the tail as the docstring of format/index.py describes it, with struct alone."""
    data = path.read_bytes()
    footer = struct.Struct("<QQQ7QIIII8s")
    hdf5_nbytes, sources_nbytes, groups_begin, *rest = footer.unpack(data[-footer.size :])
    *sizes, groups_crc, bits, version, crc, magic = rest
    assert (version, magic) == (2, MAGIC)
    assert zlib.crc32(data[groups_begin:hdf5_nbytes]) == groups_crc
    place = hdf5_nbytes + -hdf5_nbytes % 8
    assert not any(data[hdf5_nbytes:place])
    sources = parse_sources(data[place : place + sources_nbytes])
    place += sources_nbytes
    assert zlib.crc32(data[place:-12]) == crc
    sections = []
    for size in sizes:
        sections.append(data[place : place + size])
        padded = size + -size % 8
        assert not any(data[place + size : place + padded])
        place += padded
    assert place == len(data) - footer.size
    rows_data, chunks_data, paths, layouts, ends, buckets, slots = sections
    layout_ends = [0, *struct.unpack(f"<{len(ends) // 8}Q", ends)]
    chunk_rows = list(struct.iter_unpack("<QQII", chunks_data))
    rows, path_start, chunks_seen = [], 0, 0
    for offset, nbytes, path_end, row_crc, number in struct.iter_unpack("<QQQII", rows_data):
        layout = json.loads(layouts[layout_ends[number] : layout_ends[number + 1]])
        counts = [-(-n // c) for n, c in zip(layout["shape"], layout["chunks"] or [], strict=False)]
        pieces_count = int(np.prod(counts)) if layout["chunks"] else 1
        if nbytes == 0:
            pieces = []
        elif pieces_count == 1:
            pieces = [(offset, nbytes, row_crc)]
        else:
            pieces = [row[:3] for row in chunk_rows[offset : offset + pieces_count]]
            assert sum(size for _, size, _ in pieces) == nbytes
            chunks_seen += pieces_count
        rows.append(Row(paths[path_start:path_end].decode(), layout, pieces))
        path_start = path_end
    assert path_start == len(paths)
    assert chunks_seen == len(chunk_rows)
    assert len(sources) == len(rows)
    return Tail(
        hdf5_nbytes,
        groups_begin,
        sources,
        rows,
        bits,
        list(struct.unpack(f"<{len(buckets) // 4}I", buckets)),
        list(struct.unpack(f"<{len(slots) // 4}I", slots)),
    )


def parse_sources(section: bytes) -> list[tuple[int, int]]:
    end = struct.Struct("<II8s")
    crc, zero, magic = end.unpack(section[-end.size :])
    assert (zero, magic) == (0, b"D2H5SRC\n")
    assert zlib.crc32(section[: -end.size]) == crc
    return list(struct.iter_unpack("<Qq", section[: -end.size]))


def dtype_of(described: Any) -> np.dtype:
    """Undo what JSON does to the description of a compound dtype."""
    if isinstance(described, str):
        return np.dtype(described)

    def field(entry: list[Any]) -> tuple[Any, ...]:
        name, inner, *shape = entry
        name = tuple(name) if isinstance(name, list) else name
        return (name, dtype_of(inner) if isinstance(inner, list) else inner, *map(tuple, shape))

    return np.lib.format.descr_to_dtype([field(entry) for entry in described])


def array_of(data: bytes, row: Row) -> np.ndarray:
    """Decode a row's pieces: inflate, undo the shuffle, put the chunks together."""
    layout, dtype = row.layout, dtype_of(row.layout["dtype"])
    shape = tuple(layout["shape"])
    payloads = []
    for offset, nbytes, crc in row.pieces:
        payload = data[offset : offset + nbytes]
        assert zlib.crc32(payload) == crc
        for number, values in reversed(layout["filters"]):
            if number == 1:
                payload = zlib.decompress(payload)
            else:
                assert (number, values) == (2, [dtype.itemsize])
                planes = np.frombuffer(payload, np.uint8).reshape(dtype.itemsize, -1)
                payload = planes.T.tobytes()
        payloads.append(payload)
    if not row.pieces:
        return np.zeros(shape, dtype)
    if layout["chunks"] is None:
        return np.frombuffer(payloads[0], dtype).reshape(shape)
    chunks = layout["chunks"]
    counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    array = np.zeros([n * c for n, c in zip(counts, chunks, strict=True)], dtype)
    for position, payload in zip(np.ndindex(*counts), payloads, strict=True):
        corner = [p * c for p, c in zip(position, chunks, strict=True)]
        place = tuple(slice(s, s + c) for s, c in zip(corner, chunks, strict=True))
        array[place] = np.frombuffer(payload, dtype).reshape(chunks)
    return array[tuple(slice(0, n) for n in shape)]


READER = """
import os
import numpy as np
from converter import read_image

VALUES = {
    "number": np.float64(2.5),
    "empty": np.zeros((0, 3), np.uint16),
    "text": "grüße",
    "complex": np.arange(3) * 1j,
    "compound": np.ones(3, np.dtype([("a", "u1"), ("b", "<f8"), ("c", ">i2", (3,))])),
    "large_mask": np.pad(np.ones((700, 700), np.uint16), 900),
    "large_bytes": np.zeros((3001, 3002), np.uint8),
    "big_endian": np.arange(7, dtype=">u4"),
    "truths": np.arange(7) % 2 == 0,
}

def my_read(path_sample):
    name = os.path.basename(path_sample)
    return VALUES[name[:-4]] if name.endswith(".val") else read_image(path_sample)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of many kinds of arrays, and the file made of it."""
    place = tmp_path_factory.mktemp("a_folder_with_a_long_name")
    folder, output = place / "source", place / "OUT.h5"
    names = ["number", "empty", "text", "complex", "compound", "large_mask", "large_bytes"]
    for name in [*names, "big_endian", "truths"]:
        (folder / "values").mkdir(parents=True, exist_ok=True)
        (folder / "values" / f"{name}.val").write_bytes(b"x")
    save_jpegs(folder, [f"deep/er/{number:03}.jpg" for number in range(50)])
    save_jpegs(folder, ["top.jpg", "größe/図.jpg", "z/a.jpg", "z/A.jpg"])
    functions = write_functions(place / "value_functions.py", READER)
    flags = ("--ext=val,jpg", *read_with(functions))
    ended = run(command(folder, output, "--workers=2", *flags))
    assert ended.status == 0, ended.err
    return folder, output


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_the_hierarchy_holds_the_users_files_and_nothing_else(made):
    folder, output = made
    kinds: dict[str, type] = {}
    with h5py.File(output) as file:
        file.visititems(lambda name, item: kinds.__setitem__(name, type(item)))
    datasets = {name for name, kind in kinds.items() if kind is h5py.Dataset}
    groups = {name for name, kind in kinds.items() if kind is h5py.Group}
    assert datasets == files_below(folder)
    assert groups == {"values", "deep", "deep/er", "größe", "z"}


def test_every_row_of_the_tail_leads_to_the_dataset(made):
    folder, output = made
    tail, data = parse_tail(output), output.read_bytes()
    assert {row.key for row in tail.rows} == files_below(folder)
    assert len(tail.rows) == len(files_below(folder))
    with h5py.File(output) as file:
        for row in tail.rows:
            dataset = file[row.key]
            assert dtype_of(row.layout["dtype"]) == dataset.dtype
            assert tuple(row.layout["shape"]) == dataset.shape
            assert_same(array_of(data, row), dataset[()])
            assert row.layout["chunks"] == (list(dataset.chunks) if dataset.chunks else None)
            content = dataset.attrs.get("content", b"array")
            content = content.decode() if isinstance(content, bytes) else content
            assert row.layout["content"] == content


def test_every_row_says_where_hdf5_says_it_is(made):
    _, output = made
    tail = parse_tail(output)
    with h5py.File(output) as file:
        for row in tail.rows:
            dataset = file[row.key]
            if dataset.chunks is not None:
                count = dataset.id.get_num_chunks()
                infos = [dataset.id.get_chunk_info(number) for number in range(count)]
                places = [(info.byte_offset, info.size) for info in infos]
            elif dataset.id.get_offset() is not None:
                places = [(dataset.id.get_offset(), dataset.id.get_storage_size())]
            else:
                places = []
            assert sorted(places) == sorted(piece[:2] for piece in row.pieces)
            for offset, nbytes, _ in row.pieces:
                assert 0 < offset <= offset + nbytes <= tail.hdf5_nbytes


def test_no_two_payloads_overlap_and_the_groups_are_behind_all(made):
    _, output = made
    tail = parse_tail(output)
    pieces = sorted(piece for row in tail.rows for piece in row.pieces)
    for (offset, nbytes, _), (following, _, _) in itertools.pairwise(pieces):
        assert offset + nbytes <= following
    assert sum(pieces[-1][:2]) <= tail.groups_begin < tail.hdf5_nbytes


def test_the_tail_knows_size_and_time_of_every_source_file(made):
    folder, output = made
    tail = parse_tail(output)
    for source, row in zip(tail.sources, tail.rows, strict=True):
        status = (folder / row.key).stat()
        assert source == (status.st_size, status.st_mtime_ns)


def test_a_source_file_from_before_1970_has_its_time(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    os.utime(folder / "a.jpg", ns=(-5_000_000_001, -5_000_000_001))
    assert convert(folder, output).status == 0
    time = (folder / "a.jpg").stat().st_mtime_ns
    assert time < 0
    assert parse_tail(output).sources[0][1] == time


def test_every_key_is_found_through_its_bucket(made):
    _, output = made
    tail = parse_tail(output)
    assert len(tail.buckets) == 2**tail.bucket_bits + 1
    assert tail.buckets[0] == 0
    assert tail.buckets[-1] == len(tail.slots) == len(tail.rows)
    assert sorted(tail.slots) == list(range(len(tail.rows)))
    for number, row in enumerate(tail.rows):
        bucket = zlib.crc32(row.key.encode()) >> (32 - tail.bucket_bits)
        assert number in tail.slots[tail.buckets[bucket] : tail.buckets[bucket + 1]]


def test_a_tail_of_a_single_file_is_whole_too(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    convert(folder, output)
    tail = parse_tail(output)
    assert [row.key for row in tail.rows] == ["a.jpg"]
    assert_same(array_of(output.read_bytes(), tail.rows[0]), stored(output)["a.jpg"])


def test_the_files_order_is_each_folders_files_before_its_folders(folder, output, convert):
    save_jpegs(folder, ["z.jpg", "B.jpg", "a.jpg", "b/a.jpg", "a.d/x.jpg", "a/x.jpg", "b/B/y.jpg"])
    convert(folder, output)
    assert [row.key for row in parse_tail(output).rows] == [
        "B.jpg",
        "a.jpg",
        "z.jpg",
        "a/x.jpg",
        "a.d/x.jpg",
        "b/a.jpg",
        "b/B/y.jpg",
    ]


def test_without_the_tail_the_file_is_the_same(made, tmp_path):
    _, output = made
    cut = tmp_path / "cut.h5"
    cut.write_bytes(output.read_bytes()[: parse_tail(output).hdf5_nbytes])
    expected, found = stored(output), stored(cut)
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert_same(found[key], array)


def test_opening_for_writing_cuts_the_tail_and_keeps_the_data(made, tmp_path):
    _, output = made
    copy = tmp_path / "copy.h5"
    copy.write_bytes(output.read_bytes())
    with h5py.File(copy, "r+"):
        pass
    assert not copy.read_bytes().endswith(MAGIC)
    assert copy.stat().st_size <= parse_tail(output).hdf5_nbytes
    expected, found = stored(output), stored(copy)
    assert set(found) == set(expected)
    for key, array in expected.items():
        assert_same(found[key], array)


def test_a_dataset_can_be_added_later(made, tmp_path):
    _, output = made
    copy = tmp_path / "copy.h5"
    copy.write_bytes(output.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["deep/er/new.jpg"] = np.arange(5)
        file["top.jpg"][0] = 7
    found = stored(copy)
    assert_same(found["deep/er/new.jpg"], np.arange(5))
    assert (found["top.jpg"][0] == 7).all()
    assert_same(found["z/a.jpg"], stored(output)["z/a.jpg"])


def test_the_format_is_that_of_hdf5_1_10(made):
    """Layout messages of version 4 are not read by pyfive and jsfive, of 5 not by HDF5 1.14."""
    _, output = made
    data = output.read_bytes()
    assert data[:8] == b"\x89HDF\r\n\x1a\n"
    assert data[8] == SUPERBLOCK_OF_HDF5_1_10
    with h5py.File(output) as file:
        versions = {layout_version(data, item) for item in datasets_of(file)}
        assert file.userblock_size == 0
        assert any(item.chunks for item in datasets_of(file))
    assert versions == {3}  # of HDF5 1.6


def datasets_of(file: h5py.File) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def layout_version(data: bytes, dataset: h5py.Dataset) -> int:
    """Find the layout message, type 8, in a version 2 object header (HDF5's file format)."""
    start = h5py.h5o.get_info(dataset.id).addr
    assert data[start : start + 5] == b"OHDR\x02"
    flags = data[start + 5]
    assert flags & 0x20 == 0  # no times
    place = start + 6 + (4 if flags & 0x10 else 0)
    width = 1 << (flags & 3)
    end = place + width + int.from_bytes(data[place : place + width], "little")
    place += width
    while place < end:
        kind, size = data[place], int.from_bytes(data[place + 1 : place + 3], "little")
        place += 4 + (2 if flags & 4 else 0)
        if kind == 8:
            return data[place]
        place += size
    raise AssertionError("no layout message")


def test_the_root_attributes_say_how_the_file_was_made(made):
    _, output = made
    with h5py.File(output) as file:
        attributes = dict(file.attrs)
        sizes = [file.attrs.get_id(name).get_storage_size() for name in file.attrs]
    text = json.dumps({name: str(value) for name, value in attributes.items()})
    assert len(text) < 4000
    assert all(size < 64_000 for size in sizes)
    assert h5py.__version__ in text
    assert np.__version__ in text
    assert "format" in attributes
    assert "my_read" in text
    assert "jpg" in text


def test_the_plugin_of_each_extension_is_recorded(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    save(folder / "b.tif")
    save(folder / "c.png")
    convert(folder, output, "--ext=jpg,tif,png", "--compression=none")
    with h5py.File(output) as file:
        text = json.dumps({name: str(value) for name, value in file.attrs.items()})
        plugins = json.loads(file.attrs["plugins"])
    assert plugins == {"jpg": "pillow", "tif": "tifffile", "png": "pillow"}
    assert "none" in text


def test_no_path_host_user_or_time_is_in_the_file(made):
    folder, output = made
    data = output.read_bytes()
    assert b"a_folder_with_a_long_name" not in data
    assert str(folder.parent).encode() not in data
    assert b"value_functions" not in data
    assert b"OUT.h5" not in data
    if len(socket.gethostname()) > 4:
        assert socket.gethostname().encode() not in data
    with h5py.File(output) as file:
        for item in [file, *datasets_of(file), file["deep"], file["values"]]:
            info = h5py.h5o.get_info(item.id)
            if hasattr(info, "mtime"):
                assert info.mtime == 0


def test_uncompressed_arrays_are_contiguous_and_allocated(made):
    _, output = made
    with h5py.File(output) as file:
        for item in datasets_of(file):
            if item.chunks is None:
                layout = item.id.get_create_plist().get_layout()
                assert layout == h5py.h5d.CONTIGUOUS
                assert item.id.get_storage_size() == item.nbytes
            else:
                assert item.compression == "gzip"


FOLDER_SIZES = {"flat": (3000, 1), "small": (5, 400), "large": (30, 100)}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("kind", [*FOLDER_SIZES, "nested"])
@pytest.mark.parametrize("name_nbytes", [8, 30])
def test_a_file_costs_at_most_350_bytes_and_a_folder_450(
    kind, name_nbytes, folder, output, tmp_path, convert
):
    """Beside payload and tail; the tail itself is bounded below too."""
    files_in_each, folders = FOLDER_SIZES.get(kind, (3, 300))
    count = 0
    for number in range(folders):
        place = folder if kind == "flat" else folder / f"{number:05}"
        if kind == "nested":
            place = folder / f"{number // 60:02}" / f"{number // 10 % 6}" / f"{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        for _ in range(files_in_each):
            (place / f"{count:0{name_nbytes - 4}}.num").write_bytes(b"x")
            count += 1
    functions = write_functions(
        tmp_path / "size_functions.py",
        """
        import numpy as np
        VALUE = np.random.default_rng(0).integers(0, 256, 3072, dtype=np.uint8)
        def my_read(path_sample):
            return VALUE
        """,
    )
    flags = ("--ext=num", *read_with(functions))
    assert convert(folder, output, *flags).status == 0
    tail = parse_tail(output)
    assert len(tail.rows) == count
    made_folders = sum(1 for path in folder.rglob("*") if path.is_dir())
    payload = sum(nbytes for row in tail.rows for _, nbytes, _ in row.pieces)
    assert payload == 3072 * count
    assert tail.hdf5_nbytes - payload <= 350 * count + 450 * made_folders
    paths_nbytes = sum(len(row.key.encode()) for row in tail.rows)
    tail_nbytes = output.stat().st_size - tail.hdf5_nbytes
    assert tail_nbytes <= paths_nbytes + 64 * count + 2000


@pytest.mark.slow
def test_a_compressed_file_costs_at_most_400_bytes(folder, output, tmp_path, convert):
    for number in range(2000):
        (folder / f"{number:026}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "size_functions.py",
        """
        import numpy as np
        VALUE = np.zeros((64, 64), np.uint8)
        def my_read(path_sample):
            return VALUE
        """,
    )
    flags = ("--ext=num", *read_with(functions))
    assert convert(folder, output, *flags).status == 0
    tail = parse_tail(output)
    payload = sum(nbytes for row in tail.rows for _, nbytes, _ in row.pieces)
    assert all(row.layout["filters"] for row in tail.rows)
    assert tail.hdf5_nbytes - payload <= 400 * 2000  # the B-tree of its chunk among them


@pytest.mark.slow
def test_ten_thousand_files_in_a_folder_are_all_found(folder, output, tmp_path, convert):
    for number in range(10_000):
        (folder / f"{number}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "name_functions.py",
        "import os\ndef my_read(path): return int(os.path.basename(path)[:-4])\n",
    )
    flags = ("--ext=num", *read_with(functions))
    assert convert(folder, output, *flags).status == 0
    with h5py.File(output) as file:
        assert len(file) == 10_000
        for number in range(0, 10_000, 97):
            assert file[f"{number}.num"][()] == number


def test_the_ratio_and_the_sizes_that_are_printed_are_those_of_the_file(folder, output, convert):
    for number in range(20):
        save(folder / f"{number}.jpg", colours(number, (200, 300, 3)))
    ended = convert(folder, output)
    source = sum(path.stat().st_size for path in folder.iterdir())
    made = output.stat().st_size
    assert f"source {source / 1e6:.2f} MB, HDF5 {made / 1e6:.2f} MB" in ended.out
    assert f"ratio {made / source:.2f}" in ended.out
    assert not os.path.exists(str(output) + ".failures.csv")
