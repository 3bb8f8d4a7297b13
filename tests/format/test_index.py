"""The tail: nothing in it is believed, whether its checksum is right or not."""

from __future__ import annotations

import contextlib
import itertools
import json
import struct

import h5py
import numpy as np
import pytest

import converter.codecs.filters
import converter.codecs.gzip
import converter.format.layout
from converter import H5Folder
from converter.errors import LoadError
from converter.format.index import CHUNK, FOOTER, ROW, SECTIONS, SOURCE, Footer
from helpers.arrays import equal_samples, make_h5, smooth
from helpers.check import assert_same, case
from helpers.damage import TailEditor

COUNT = 12
#: Those `H5Folder` relies on; of the groups' checksum alone `--verify` takes notice.
FOOTER_FIELDS = ["version", "bucket_bits", "hdf5_nbytes", "sources_nbytes", *SECTIONS]
FIELDS_OF_32_BITS = ("version", "bucket_bits", "groups_crc32")
LAYOUT = {
    "dtype": "|u1", "shape": [4, 5, 3], "chunks": None, "filters": [], "content": "array",
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return make_h5(tmp_path, equal_samples(COUNT))


@pytest.fixture
def chunked(tmp_path):
    folder = tmp_path / "chunked"
    return make_h5(folder, {"a.npy": smooth((40, 500, 300), "<u4")}, compression="gzip")


def read_everything(path):
    """Read in every way there is; return how many arrays were right."""
    samples = equal_samples(COUNT)
    folder = H5Folder(path)
    assert list(folder) == sorted(samples)
    for key, array in samples.items():
        assert_same(folder[key], array)
    for position, key in enumerate(sorted(samples)):
        assert_same(folder[position], samples[key])
        assert_same(folder.read(position, np.s_[1:3]), samples[key][1:3])
    stacked = np.stack([samples[key] for key in sorted(samples)])
    assert_same(folder.read_batch(sorted(samples)), stacked)
    assert_same(folder.read_batch(range(COUNT)), stacked)


def assert_every_way_is_refused(path, position=3):
    folder = H5Folder(path)
    for read in (
        lambda: folder[position],
        lambda: folder.read(position, np.s_[0:1]),
        lambda: folder.read_batch([position]),
        lambda: folder.read_batch([0, position]),
    ):
        with pytest.raises(LoadError):
            read()


def test_the_index_agrees_with_hdf5(tmp_path):
    samples = {**equal_samples(5), "c/gzip.npy": smooth((40, 500, 300), "<u4")}
    path = make_h5(tmp_path, samples, compression="auto")
    tail = H5Folder(path)._open().source.keys
    with h5py.File(path) as file:
        for position, key in enumerate(tail.keys()):
            dataset, layout = file[key], tail.layout(tail.layout_numbers[position])
            places = tail.extents(position)
            assert (layout.dtype, layout.shape, layout.chunks) == (
                dataset.dtype, dataset.shape, dataset.chunks,
            )  # fmt: skip
            if dataset.chunks is None:
                assert [places[0].offset] == [dataset.id.get_offset()]
            else:
                infos = [dataset.id.get_chunk_info(n) for n in range(dataset.id.get_num_chunks())]
                assert sorted((p.offset, p.nbytes) for p in places) == sorted(
                    (info.byte_offset, info.size) for info in infos
                )


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_of_the_tail_is_found(path, bit):
    """All bytes but the magic, and the padding before the tail, which holds nothing."""
    editor = TailEditor(path)
    original = bytes(editor.content)
    begin = editor.begin("rows")
    for at in range(begin, len(original) - 8, 5):
        content = bytearray(original)
        content[at] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(LoadError, match=r"index of .*read the file with h5py"):
            len(H5Folder(path))


@pytest.mark.parametrize("at", range(8))
def test_without_its_magic_the_file_reads_through_hdf5(path, at):
    content = bytearray(path.read_bytes())
    content[len(content) - 8 + at] ^= 1
    path.write_bytes(content)
    read_everything(path)


def test_each_field_of_the_footer_is_checked(path):
    content = path.read_bytes()
    fields = [
        *itertools.product(FOOTER_FIELDS, [True, False]),
        ("groups_begin", False),
        ("groups_crc32", False),
    ]
    for (field, good_crc), change in itertools.product(fields, [-8, -1, 1, 8, 2**31, 0, "most"]):
        path.write_bytes(content)
        editor = TailEditor(path)
        old = editor.field(field)
        most = 2**32 - 1 if field in FIELDS_OF_32_BITS else 2**64 - 1
        new = most if change == "most" else old + change if change else 0
        if new == old or not 0 <= new <= most:
            continue
        with case(field, change, good_crc):
            editor.set_field(field, new).save(good_crc=good_crc)
            with pytest.raises(LoadError, match=r"index of .*read the file with h5py"):
                len(H5Folder(path))


def test_an_unknown_version_is_named(path):
    TailEditor(path).set_field("version", 3).save()
    with pytest.raises(LoadError, match=r"has version 3, not 2"):
        len(H5Folder(path))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("offset", [2**64 - 1, 2**63, 2**63 - 1, "end", "near end"]),
        ("nbytes", [0, 1, 59, 61, 2**31, 2**63, 2**64 - 1, 2**64 - 60]),
        ("layout", [1, 2**31, 2**32 - 1]),
    ],
)
def test_a_row_that_leads_astray_is_refused_when_it_is_read(path, field, values):
    original = path.read_bytes()
    for value in values:
        path.write_bytes(original)
        editor = TailEditor(path)
        end = editor.field("hdf5_nbytes")
        number = {"end": end, "near end": end - 59}.get(value, value)
        at, dtype = ROW.fields[field][1], ROW.fields[field][0]
        form = "<Q" if dtype.itemsize == 8 else "<I"
        assert_every_way_is_refused(editor.put("rows", 3 * ROW.itemsize + at, form, number).save())
        assert_same(H5Folder(path)[2], equal_samples(COUNT)["a/0004.npy"])


def test_a_misplaced_sample_is_named(path):
    TailEditor(path).put("rows", 3 * ROW.itemsize, "<Q", 2**40).save()
    for read in (lambda f: f[3], lambda f: f.read_batch(range(COUNT))):
        with pytest.raises(
            LoadError, match=r"gives 'a/0006.npy' impossible extents \(60 bytes at 10995"
        ):
            read(H5Folder(path))


@pytest.mark.parametrize("value", [0, 1, 2**32, 2**63, 2**64 - 1])
@pytest.mark.parametrize("position", [0, 3, COUNT - 1])
def test_paths_out_of_order_are_refused(path, position, value):
    at = position * ROW.itemsize + ROW.fields["path_end"][1]
    editor = TailEditor(path).put("rows", at, "<Q", value)
    editor.save()
    if position == 0 and value < 10:  # another cut between two keys, in order
        folder = H5Folder(path)
        assert "a/0000.npy" not in folder
        with pytest.raises(KeyError):
            folder["a/0000.npy"]
        return
    with pytest.raises(LoadError, match=r"has paths"):
        len(H5Folder(path))


def test_a_path_that_is_not_utf8_is_refused(path):
    TailEditor(path).put("paths", 0, "<B", 0xFF).save()
    with pytest.raises(LoadError, match=r"not UTF-8"):
        list(H5Folder(path))


@pytest.mark.parametrize("value", [1, 5, COUNT + 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("number", [0, 3, -1])
def test_buckets_out_of_order_are_refused_or_find_nothing(path, number, value):
    editor = TailEditor(path)
    count = editor.field("buckets") // 4
    editor.put("buckets", (number % count) * 4, "<I", value).save()
    try:
        folder = H5Folder(path)
        len(folder)
    except LoadError as error:
        assert "buckets" in str(error)
        return
    assert number == 3  # still in order: a key is found, rightly, or the index is to blame
    for key, array in equal_samples(COUNT).items():
        try:
            assert_same(folder[key], array)
        except LoadError as error:
            assert "which it holds" in str(error)


@pytest.mark.parametrize("value", [COUNT, 2**31, 2**32 - 1])
def test_slots_outside_the_rows_are_refused(path, value):
    TailEditor(path).put("slots", 0, "<I", value).save()
    with pytest.raises(LoadError, match=r"slots outside"):
        len(H5Folder(path))


def test_slots_that_are_swapped_never_give_another_sample(path):
    editor = TailEditor(path)
    slots = np.frombuffer(editor.content, "<u4", COUNT, editor.begin("slots")).copy()
    for n, value in enumerate(np.roll(slots, 5).tolist()):
        editor.put("slots", 4 * n, "<I", value)
    editor.save()
    folder = H5Folder(path)
    refused = 0
    for key, array in equal_samples(COUNT).items():
        try:
            assert_same(folder[key], array)
        except LoadError as error:
            assert f"cannot find {key!r}, which it holds" in str(error)
            refused += 1
    assert refused
    with pytest.raises(LoadError, match=r"which it holds"):
        folder.read_batch(list(folder))


@pytest.mark.parametrize("value", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_layout_ends_that_are_wrong_are_refused(path, value):
    TailEditor(path).put("layout_ends", 0, "<Q", value).save()
    with pytest.raises(LoadError, match=r"has layouts"):
        len(H5Folder(path))


UNWRITTEN = [
    {"dtype": "|O"}, {"dtype": "O"}, {"dtype": "|O8"}, {"dtype": "object"}, {"dtype": "<U5"},
    {"dtype": "<M8[s]"}, {"dtype": "<m8[s]"}, {"dtype": "|V0"}, {"dtype": "|S0"},
    {"dtype": "u1,O"}, {"dtype": [["a", "|O"]]}, {"dtype": [["a", "|u1"], ["b", [["c", "O"]]]]},
    {"dtype": []}, {"dtype": None}, {"dtype": 5}, {"dtype": ["|u1"]}, {"dtype": {"a": 1}},
    {"dtype": [["a", "|u1", [2**40]]]}, {"dtype": [["a", "|u1"], ["a", "|u1"]]},
    {"dtype": "<u8"}, {"dtype": "<f3"}, {"dtype": "|V999999999999"}, {"dtype": "|u1 "},
    {"shape": [4, 5, 4]}, {"shape": [2**63, 2**63]}, {"shape": [-4, -5, 3]}, {"shape": [60.0]},
    {"shape": [True, 60]}, {"shape": 60}, {"shape": None}, {"shape": [1] * 70 + [60]},
    {"shape": [0, 2**62, 2**62]}, {"shape": [2**64, 60]}, {"shape": [0]}, {"shape": "60"},
    {"chunks": [0, 5, 3]}, {"chunks": [8, 5, 3]}, {"chunks": [4, 5]}, {"chunks": "x"},
    {"chunks": [-4, 5, 3]}, {"chunks": [2, 5, 3]}, {"chunks": [4, 5, 3], "filters": [[1, []]]},
    {"filters": [[1, []]]}, {"filters": [1]}, {"filters": None}, {"filters": "zlib"},
    {"chunks": [4, 5, 3], "filters": [[1, [-1]]]}, {"content": "pickle"}, {"content": None},
    {"shape": [2**40], "chunks": [2**40], "filters": [[1, []]]},
    {"shape": [2**40], "chunks": [1], "filters": [[1, []]]},
]  # fmt: skip


def test_a_layout_the_converter_would_not_write_is_refused(path):
    content = path.read_bytes()
    for change in UNWRITTEN:
        path.write_bytes(content)
        described = json.dumps({**LAYOUT, **change}).encode()
        with case(change):
            assert_every_way_is_refused(TailEditor(path).replace_layouts(described).save())


@pytest.mark.parametrize(
    "described",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 200_000, b"{}" + b" " * (2 << 20), b"NaN",
     b'{"dtype":' + b"[" * 100 + b"]" * 100 + b"}"],
    ids=lambda described: repr(described[:20]),
)  # fmt: skip
def test_a_layout_that_is_no_description_is_refused(path, described):
    assert_every_way_is_refused(TailEditor(path).replace_layouts(described).save())


def test_of_a_filter_it_does_not_know_hdf5_s_word_counts(path):
    layout = {**LAYOUT, "chunks": [4, 5, 3], "filters": [[32001, []]]}
    TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
    read_everything(path)
    layout["shape"] = layout["chunks"] = [5, 4, 3]
    TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
    with pytest.raises(LoadError, match=r"describes 'a/0006.npy' differently from HDF5"):
        H5Folder(path)[3]


def test_the_unchanged_layout_rewritten_reads_right(path):
    TailEditor(path).replace_layouts(json.dumps(LAYOUT).encode()).save()
    read_everything(path)


@pytest.mark.parametrize("good_crc", [True, False])
@pytest.mark.parametrize("value", [0, 1, 2**40, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field", ["offset", "nbytes"])
def test_a_chunk_that_leads_astray_is_refused(chunked, field, value, good_crc):
    editor = TailEditor(chunked)
    assert editor.field("chunks") >= 2 * CHUNK.itemsize
    at = CHUNK.itemsize + CHUNK.fields[field][1]
    editor.put("chunks", at, "<Q", value).save(good_crc=good_crc)
    with pytest.raises(LoadError):
        H5Folder(chunked)[0]
    with pytest.raises(LoadError):
        H5Folder(chunked).read_batch([0, 0])


@pytest.mark.parametrize("value", [1, 100, 2**63, 2**64 - 1])
def test_chunk_rows_outside_the_index_are_refused(chunked, value):
    TailEditor(chunked).put("rows", 0, "<Q", value).save()
    with pytest.raises(LoadError, match=r"has no chunks"):
        H5Folder(chunked)[0]


def test_checksums_that_are_wrong_are_damage_when_verified(path, chunked):
    at = ROW.fields["crc32"][1]
    for file, section, offset in (
        (path, "rows", at),
        (chunked, "chunks", CHUNK.fields["crc32"][1]),
    ):
        TailEditor(file).put(section, offset, "<I", 1).save()
        with pytest.raises(LoadError, match=r"is damaged"):
            H5Folder(file, verify=True)[0]


@pytest.mark.parametrize(
    ("shape", "message"), [([300, 399], "another size"), ([300, 401], "another size")]
)
def test_a_chunk_must_inflate_to_its_own_size(tmp_path, shape, message):
    path = make_h5(tmp_path, {"a.npy": smooth((300, 400))}, compression="gzip")
    layout = {**LAYOUT, "dtype": "<u2", "shape": shape, "chunks": shape,
              "filters": [[2, [2]], [1, [2]]]}  # fmt: skip
    TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
    for read in (lambda f: f[0], lambda f: f.read(0, np.s_[0]), lambda f: f.read_batch([0])):
        with pytest.raises(LoadError, match=f"'a.npy' in .* {message}"):
            read(H5Folder(path))


def test_inflating_takes_no_more_memory_than_the_chunk_should():
    zlib = converter.codecs.filters.deflate_library
    bomb = zlib.compress(bytes(50 << 20))
    small, whole = np.empty(100, np.uint8), np.ones(50 << 20, np.uint8)
    for payload, target in ((bomb, small), (bomb[:-1], whole)):
        with pytest.raises(ValueError, match=r"another size|ends too early"):
            converter.codecs.gzip.decode(payload, target)
    converter.codecs.gzip.decode(bomb, whole)
    assert not whole.any()


def test_a_shape_beyond_all_memory_is_refused_before_any_is_taken(path):
    """8 TiB that 60 deflated bytes cannot hold; numpy alone would try."""
    layout = {**LAYOUT, "shape": [2**43], "chunks": [2**22], "filters": [[1, [2]]]}
    TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
    assert_every_way_is_refused(path)


def test_the_bound_on_inflation_is_deflate_s_own():
    zlib = converter.codecs.filters.deflate_library
    for nbytes in (1, 1000, 10**6, 10**7):
        layout = converter.format.layout.parse_layout(
            json.dumps(
                {**LAYOUT, "shape": [nbytes], "chunks": [nbytes], "filters": [[1, [9]]]}
            ).encode()
        )
        assert layout.can_come_from(len(zlib.compress(bytes(nbytes), 9)))
        assert not layout.can_come_from(nbytes // 2000)


def test_an_hdf5_part_that_is_none_is_refused(path):
    content = bytearray(path.read_bytes())
    content[:8] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"is not an HDF5 file"):
        len(H5Folder(path))


def test_bytes_behind_the_tail_hide_it_and_change_nothing(path):
    with path.open("ab") as file:
        file.write(b"appended")
    read_everything(path)


@pytest.mark.parametrize("change", ["damaged", "of more files", "of fewer files"])
def test_what_it_says_of_its_sources_matters_to_no_reader(path, change):
    """Sizes and times of the files it was made of are for updates."""
    editor = TailEditor(path)
    begin, end = editor.sources_begin, editor.index_begin
    if change == "damaged":
        editor.content[begin:end] = bytes(end - begin)
    elif change == "of more files":
        editor.content[begin:begin] = bytes(SOURCE.itemsize)
    else:
        del editor.content[begin : begin + SOURCE.itemsize]
    editor.set_field("sources_nbytes", len(editor.content) - len(path.read_bytes()) + end - begin)
    editor.save()
    assert path.stat().st_size == len(editor.content)
    read_everything(path)


def test_a_tail_of_another_file_is_refused(path, tmp_path):
    other = make_h5(tmp_path / "other", equal_samples(3))
    editor = TailEditor(other)
    tail = bytes(editor.content[editor.index_begin :])
    content = path.read_bytes()
    begin = TailEditor(path).index_begin
    path.write_bytes(content[:begin] + tail)
    with pytest.raises(LoadError, match=r"HDF5 part"):
        len(H5Folder(path))


def test_footers_without_an_hdf5_part_are_refused(tmp_path):
    path = tmp_path / "footer.h5"
    for nbytes in (0, 8, 40, 100):
        footer = Footer(nbytes, 0, nbytes, (0,) * len(SECTIONS), 0, 0)
        path.write_bytes(bytes(nbytes) + footer.pack())
        with pytest.raises(LoadError):
            len(H5Folder(path))


@pytest.mark.slow
def test_random_damage_with_a_good_checksum_never_crashes(path):
    """Any array that is returned lies within the HDF5 part and has its layout's shape."""
    random = np.random.default_rng(3)
    original = path.read_bytes()
    begin = TailEditor(path).begin("rows")
    for _ in range(300):
        path.write_bytes(original)
        editor = TailEditor(path)
        end = len(editor.content) - FOOTER.size
        for _ in range(random.integers(1, 4)):
            at = int(random.integers(begin, end))
            struct.pack_into("<B", editor.content, at, int(random.integers(256)))
        editor.save()
        folder = H5Folder(path)
        for read in (
            list, lambda f: f.read_batch(range(COUNT)), lambda f: f[5], lambda f: f["a/0000.npy"],
            lambda f: f.read_batch(["a/0000.npy", "b/0001.npy"]), lambda f: f.read(7, np.s_[1]),
        ):  # fmt: skip
            with contextlib.suppress(LoadError, KeyError, IndexError):
                read(folder)
