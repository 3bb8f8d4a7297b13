"""--verify names all that is wrong with a file; --rebuild_index adds an index or does nothing."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t

from converter import ConverterError, H5Folder
from converter.callbacks import Callbacks
from converter.commands.rebuild_index import rebuild_index
from converter.commands.verify import Checks
from converter.format.index import ROW, Footer
from converter.samples import Buffer, Checked, Failure
from converter.writer.large_reads import BLOCK_NBYTES, UNCACHED
from helpers.check import assert_refused, everything_below, stored
from helpers.damage import (
    cut_in_half,
    flip,
    parts_of,
    payload_of,
    replace_tail,
    rewrite_tail,
    tail_of,
)
from helpers.images import colours, save, save_jpegs
from helpers.run import (
    FUNCTIONS,
    Finished,
    program,
    read_with,
    run,
    start,
    without_root_rights,
    write_functions,
)

NAMES = ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/d.jpg", "z/e.jpg"]
WORKERS = pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
SOURCES = "sizes and times of its source files"


def command(path: Path, *flags: str) -> list[str]:
    """Return the command line of a --verify in a process of its own."""
    return program("--verify", f"--path_output={path}", *flags)


@pytest.fixture
def album(folder) -> Path:
    return save_jpegs(folder, NAMES)


@pytest.fixture
def made(album, output, convert) -> Path:
    """A file of five images."""
    assert convert(album, output, "--compression=none").status == 0
    return output


def assert_good(ended: Finished, path: Path, count: int = 5) -> None:
    assert ended.status == 0, ended.err
    assert ended.err == ""
    assert f"{path}: {count} of {count} files good, 0 faults\n" in ended.out


def assert_faults(ended: Finished, *said: str, good: int = -1, total: int = 5) -> None:
    """Check that just these faults are named, one a line."""
    assert ended.status == 1, ended.err
    lines = ended.err.splitlines()
    assert len(lines) == len(said), ended.err
    assert all(line.startswith("converter: ") for line in lines)
    for words in said:
        found = [line for line in lines if words in line]
        assert found, ended.err
        lines.remove(found[0])
    if good >= 0:
        assert f"{good} of {total} files good, {len(said)} faults\n" in ended.out


def both_read(path: Path) -> dict[str, np.ndarray]:
    """Return what H5Folder gives, checked against checksums and against h5py."""
    found = {}
    with h5py.File(path, "r") as file:
        for read in (H5Folder(path, verify=True), H5Folder(path)):
            batch = read.read_batch(list(read))
            for key, one in zip(list(read), batch, strict=True):
                array = read[key]
                wanted = np.empty(file[key].shape, file[key].dtype)
                if wanted.size:
                    file[key].read_direct(wanted)  # [()] would make a scalar native
                for got in (array, one):
                    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), key
                    np.testing.assert_array_equal(got, wanted, err_msg=key, strict=True)
                found[key] = array
    return found


# Good files


WAYS = {
    "array": (),
    "none": ("--compression=none",),
    "gzip": ("--compression=gzip",),
    "zstd": ("--compression=zstd",),
    "blosc2": ("--compression=blosc2",),
    "encoded": ("--store=encoded",),
    "opencv": ("--reader=opencv",),
}


@pytest.mark.everyday(2)
@WORKERS
@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS)
def test_a_good_file_is_good(flags, workers, album, output, convert, verify):
    for name, package in (("zstd", "zstandard"), ("blosc2", "blosc2"), ("opencv", "cv2")):
        if any(name in flag for flag in flags):
            pytest.importorskip(package)
            pytest.importorskip("hdf5plugin")
    save(album / "gray.jpg", colours(9, (30, 40)))
    save(album / "large.jpg", np.zeros((2000, 2500), np.uint8))
    assert convert(album, output, *flags).status == 0
    assert_good(verify(output, workers), output, 7)
    ended = verify(output, workers, f"--path_images={album}")
    assert_good(ended, output, 7)
    assert "compared with the folder, in which 0 files cannot be read" in ended.out


ARRAYS = {
    "scalar.npy": np.array(5, "<i4"),
    "scalar, big-endian.npy": np.array(5, ">i2"),
    "scalar of bytes.npy": np.array(b"ab", "S4"),
    "none.npy": np.empty((0, 3), "f8"),
    "large.npy": (np.arange(4_000_000) // 5).astype(">u4").reshape(2, 2000, 1000),
    "nan.npy": np.array([np.nan, -0.0, 0.0, np.inf]),
    "fields.npy": np.array([(1, 2.5, b"ab")] * 5, [("a", "<i4"), ("b", ">f8"), ("c", "S3")]),
    "flags.npy": np.array([True, False, True]),
    "complex.npy": np.arange(6).astype("c8"),
    "half.npy": np.arange(6).astype("f2"),
    "void.npy": np.array([b"ab\0"], "V3"),
    "fixed.npy": np.array([b"ab", b""], "S4"),
}


@pytest.fixture
def arrays(folder, output, tmp_path, convert) -> Path:
    """A file of arrays of all kinds, read by my_read."""
    for name, array in ARRAYS.items():
        np.save(folder / name, array)
    (folder / "text.txt").write_text("text")
    (folder / "empty.txt").write_text("")
    functions = shutil.copy(FUNCTIONS / "load_npy.py", tmp_path / "np_functions.py")
    flags = (*read_with(functions), "--ext=npy,txt")
    assert convert(folder, output, *flags).status == 0
    return output


@pytest.mark.everyday(1)
@WORKERS
def test_arrays_of_all_kinds_are_compared_with_their_sources(
    workers, arrays, folder, tmp_path, verify
):
    count = len(ARRAYS) + 2
    assert_good(verify(arrays, workers), arrays, count)
    functions = f"--path_functions={tmp_path / 'np_functions.py'}"
    ended = verify(arrays, workers, f"--path_images={folder}", functions)
    assert ended.status == 0, ended.err
    assert f"{count} of {count} files good, 0 faults" in ended.out
    assert ended.err == f"converter: my_read from {tmp_path / 'np_functions.py'}\n"


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="no preadv")
@pytest.mark.parametrize("is_large", [False, True])
@pytest.mark.parametrize("flags", [("--compression=none",), ("--compression=gzip",)])
def test_what_h5py_and_the_index_find_is_read_once_many_samples_at_a_time(
    flags, is_large, folder, output, convert, monkeypatch
):
    """Past the page cache where the file is large."""
    for number in range(40):
        name = folder / f"{number:02}.npy"
        np.save(name, np.random.default_rng(number).integers(0, 99, 200_000, "u1"))
    convert(folder, output, "--ext=npy", *read_with(FUNCTIONS / "load_npy.py"), *flags)
    real, read = os.preadv, []

    def preadv(descriptor: int, parts: list[memoryview], offset: int, flags: int = 0) -> int:
        nbytes = real(descriptor, parts, offset)
        if nbytes > 1:  # a single byte only asks whether it is cached
            read.append((nbytes, flags))
        return nbytes

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr("converter.writer.large_reads.is_large", lambda nbytes: is_large)
    monkeypatch.setattr("converter.writer.large_reads.knows_uncached", lambda: True)
    checker, buffer = Checks(output).start(), Buffer()
    results = [checker.encode(key, buffer) for key in H5Folder(output)]
    assert results == [Checked(f"{number:02}.npy", 200_000) for number in range(40)]
    of_samples = [(nbytes, flags) for nbytes, flags in read if nbytes > 100_000]
    assert sum(nbytes for nbytes, _ in of_samples) < 1.2 * output.stat().st_size
    assert len(of_samples) <= 5
    some = {flags for nbytes, flags in of_samples if nbytes >= BLOCK_NBYTES}
    assert some == {UNCACHED if is_large else 0}
    assert sum(nbytes for nbytes, _ in read) < 1.3 * output.stat().st_size


@pytest.mark.parametrize("compared", [False, True])
def test_nothing_is_written(compared, made, album, tmp_path, verify):
    before = everything_below(tmp_path)
    times = made.stat().st_mtime_ns, made.parent.stat().st_mtime_ns, album.stat().st_mtime_ns
    flags = [f"--path_images={album}"] if compared else []
    assert verify(made, *flags).status == 0
    flip(made, payload_of(made, "b.jpg").begin)
    flip(made, payload_of(made, "b.jpg").begin)
    times = made.stat().st_mtime_ns, made.parent.stat().st_mtime_ns, album.stat().st_mtime_ns
    assert verify(made, *flags).status == 0
    assert everything_below(tmp_path) == before
    assert times == (
        made.stat().st_mtime_ns, made.parent.stat().st_mtime_ns, album.stat().st_mtime_ns
    )  # fmt: skip


@pytest.mark.everyday(1)
@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@WORKERS
def test_a_read_only_file_in_a_read_only_folder_is_checked(workers, made, album, tmp_path):
    made.chmod(0o444)
    made.parent.chmod(0o555)
    before = everything_below(tmp_path)
    try:
        flags = (workers, f"--path_images={album}")
        ended = run(command(made, *flags), cwd=made.parent, preexec_fn=without_root_rights)
    finally:
        made.parent.chmod(0o755)
    assert_good(ended, made)
    assert everything_below(tmp_path) == before


def test_the_file_may_be_in_use(made, verify):
    folder = H5Folder(made)
    assert len(folder) == 5
    assert_good(verify(made), made)


# Damaged files


@WORKERS
@pytest.mark.parametrize("flags", [WAYS["none"], WAYS["gzip"], WAYS["encoded"]], ids=str)
def test_a_damaged_payload_is_named(flags, workers, album, output, convert, verify):
    convert(album, output, *flags)
    for name in ("b.jpg", "z/e.jpg"):
        part = payload_of(output, name)
        flip(output, (part.begin + part.end) // 2, 5)
    ended = verify(output, workers)
    assert_faults(ended, "b.jpg: ", "z/e.jpg: ", good=3)


def test_a_damaged_payload_of_plain_bytes_is_told_by_its_checksum(made, verify):
    flip(made, payload_of(made, "sub/c.jpg").end - 1, 7)
    ended = verify(made)
    assert_faults(ended, f"'sub/c.jpg' in {made} is damaged (its checksum differs)", good=4)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("number", range(4))
def test_each_chunk_of_a_large_array_is_checked(number, arrays, verify):
    tail = tail_of(arrays)
    place = tail.extents(tail.find("large.npy"))[number]
    flip(arrays, place.offset + place.nbytes - 2)
    assert_faults(verify(arrays), "large.npy: ", good=len(ARRAYS) + 1, total=len(ARRAYS) + 2)


def test_a_damaged_header_is_named(made, verify):
    """HDF5's structures of a sample lie behind its payload; they have checksums of HDF5's."""
    flip(made, payload_of(made, "b.jpg").end + 30)
    ended = verify(made)
    assert ended.status == 1
    assert re.search(r"^converter: b\.jpg: ", ended.err, re.M)
    assert "4 of 5 files good" in ended.out


def where_is(path: Path, part: str, words: bytes) -> int:
    """Return where in a part of a file these bytes are."""
    place = parts_of(path)[part]
    at = path.read_bytes().index(words, place.begin)
    assert at < place.end
    return at


@WORKERS
def test_a_damaged_name_in_the_groups_is_reported(workers, made, verify):
    flip(made, where_is(made, "groups", b"e.jpg"))
    flip(made, payload_of(made, "a.jpg").begin)
    ended = verify(made, workers)
    assert ended.status == 1
    assert f"the groups or attributes of {made} are damaged" in ended.err
    assert f"'a.jpg' in {made} is damaged (its checksum differs)" in ended.err
    assert "converter: z/e.jpg: " in ended.err
    assert "3 of 5 files good" in ended.out


def test_damaged_attributes_are_reported(made, verify):
    """Those of HDF5's heap have no checksum but ours."""
    flip(made, where_is(made, "groups", b"imageio"))
    ended = verify(made)
    assert_faults(
        ended, f"the groups or attributes of {made} are damaged (their checksum differs)", good=5
    )


@pytest.mark.parametrize("where", ["first", "last", "checksum", "magic"])
def test_damaged_sources_are_reported(where, made, verify):
    part = parts_of(made)["sources"]
    at = {"first": part.begin, "last": part.end - 17, "checksum": part.end - 16, "magic": -1}[where]
    flip(made, at if at >= 0 else part.end - 1)
    assert_faults(verify(made), f"{made} has damaged {SOURCES} (their checksum differs)", good=5)


@WORKERS
@pytest.mark.parametrize(
    "part", ["rows", "paths", "layouts", "layout_ends", "buckets", "slots", "footer"]
)
def test_a_damaged_index_is_reported_and_the_samples_are_checked_through_hdf5(
    part, workers, made, verify
):
    flip(made, parts_of(made)[part].begin)
    ended = verify(made, workers)
    assert_faults(ended, f"the index of {made} ", good=5)
    assert "without an index there are no checksums" in ended.out


def test_several_faults_are_all_named(made, verify):
    flip(made, where_is(made, "groups", b"imageio"))
    flip(made, parts_of(made)["sources"].begin)
    flip(made, payload_of(made, "a.jpg").begin)
    flip(made, payload_of(made, "z/e.jpg").begin)
    assert_faults(verify(made), "groups or attributes", SOURCES, "a.jpg: ", "z/e.jpg: ", good=3)


def test_an_index_that_swaps_samples_is_told_by_hdf5(folder, output, convert, verify):
    """Its own checksum is right, and so are those of the payloads it leads to."""
    for number, name in enumerate("abc"):
        save(folder / f"{name}.jpg", colours(number, (16, 16, 3)))
    convert(folder, output, "--compression=none")
    replace_tail(output, [("a.jpg", "b.jpg"), ("b.jpg", "a.jpg"), ("c.jpg", "c.jpg")])
    words = "h5py and H5Folder read it differently"
    assert_faults(verify(output), f"a.jpg: {words}", f"b.jpg: {words}", good=1, total=3)


def test_an_index_that_lacks_a_sample_is_told_by_hdf5(made, verify):
    replace_tail(made, [(name, name) for name in NAMES if name != "sub/c.jpg"])
    ended = verify(made)
    assert_faults(
        ended,
        f"{made} holds 5 datasets, and its index 4",
        "sub/c.jpg: it is not in the index",
        good=4,
        total=4,
    )


def test_an_index_with_a_sample_that_hdf5_lacks_is_reported(made, verify):
    replace_tail(made, [*((name, name) for name in NAMES), ("ghost.jpg", "a.jpg")])
    ended = verify(made)
    assert_faults(
        ended, f"{made} holds 5 datasets, and its index 6", "ghost.jpg: ", good=5, total=6
    )


def test_an_index_that_describes_another_dtype_is_told_by_hdf5(made, verify):
    def change(content: bytearray, parts: dict[str, Any]) -> None:
        begin, end = parts["layouts"]
        content[begin:end] = content[begin:end].replace(b"|u1", b"|i1")

    rewrite_tail(made, change)
    ended = verify(made)
    assert_faults(
        ended, *(f"{name}: h5py and H5Folder read it differently" for name in NAMES), good=0
    )


@pytest.mark.parametrize(
    ("array", "here", "there"),
    [
        (np.ones((6, 4), "u1"), b"[6,4]", b"[4,6]"),
        (np.ones((6, 4), "u2"), b"<u2", b">u2"),
        (np.ones((6, 4), "u4"), b"<u4", b"<f4"),
        (np.ones((6, 4), "u1"), b"|u1", b"|b1"),
    ],
    ids=["shape", "byte order", "kind", "bool"],
)
def test_equal_bytes_that_the_index_takes_for_another_array_are_told_by_hdf5(
    array, here, there, folder, output, convert, verify
):
    """Of an array in one piece h5py need not read the same bytes again: only what they are."""
    np.save(folder / "a.npy", array)
    convert(folder, output, "--ext=npy", *read_with(FUNCTIONS / "load_npy.py"))

    def change(content: bytearray, parts: dict[str, Any]) -> None:
        begin, end = parts["layouts"]
        assert content[begin:end].count(here) == 1
        content[begin:end] = content[begin:end].replace(here, there)

    rewrite_tail(output, change)
    assert_faults(verify(output), "a.npy: h5py and H5Folder read it differently", total=1)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("crc32", 1, "is damaged (its checksum differs)"),
        ("offset", 2**63, "impossible extents"),
        ("nbytes", 1, "impossible extents"),
        ("layout", 77, "has no layout 77"),
    ],
)
def test_a_wrong_row_is_a_fault_of_its_sample(field, value, words, made, verify):
    def change(content: bytearray, parts: dict[str, Any]) -> None:
        dtype, offset = ROW.fields[field][:2]
        at = parts["rows"].begin + 2 * ROW.itemsize + offset
        content[at : at + dtype.itemsize] = value.to_bytes(dtype.itemsize, "little")

    rewrite_tail(made, change)
    ended = verify(made)
    assert_faults(ended, "sub/c.jpg: ", good=4)
    assert words in ended.err


def test_a_wrong_checksum_of_the_groups_is_reported(made, verify):
    def change(content: bytearray, parts: dict[str, Any]) -> None:
        begin, end = parts["footer"]
        footer = Footer.unpack(content[begin:end])
        assert footer is not None
        content[begin:end] = footer._replace(groups_crc32=footer.groups_crc32 ^ 1).pack()

    rewrite_tail(made, change)
    assert_faults(verify(made), "groups or attributes", good=5)


# Source files


@WORKERS
def test_a_changed_source_file_is_named(workers, made, album, verify):
    save(album / "b.jpg", colours(50))
    save(album / "sub/c.jpg", colours(51, (5, 6)))
    ended = verify(made, workers, f"--path_images={album}")
    words = "its source file gives another array"
    assert_faults(ended, f"b.jpg: {words}", f"sub/c.jpg: {words}", good=3)


def test_a_change_that_size_and_time_do_not_tell_is_found(arrays, folder, tmp_path, verify, update):
    path = folder / "nan.npy"
    status = path.stat()
    np.save(path, np.array([np.nan, 0.0, -0.0, np.inf]))
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    functions = f"--path_functions={tmp_path / 'np_functions.py'}"
    assert "0 changed" in update(folder, arrays, functions).out
    ended = verify(arrays, f"--path_images={folder}", functions)
    assert ended.status == 1
    assert "nan.npy: its source file gives another array" in ended.err


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    "other",
    [np.array(5, ">i4"), np.array(5, "<u4"), np.array([5], "<i4"), np.array(6, "<i4")],
    ids=repr,
)
def test_dtype_and_shape_count_too(other, arrays, folder, tmp_path, verify):
    np.save(folder / "scalar.npy", other)
    functions = f"--path_functions={tmp_path / 'np_functions.py'}"
    ended = verify(arrays, f"--path_images={folder}", functions)
    assert ended.status == 1
    assert "scalar.npy: its source file gives another array" in ended.err


def test_an_encoded_file_is_compared_byte_by_byte(album, output, convert, verify):
    convert(album, output, "--store=encoded")
    with (album / "a.jpg").open("ab") as file:
        file.write(b"\0")
    ended = verify(output, f"--path_images={album}")
    assert_faults(ended, "a.jpg: its source file gives another array", good=4)


def test_missing_and_new_source_files_are_named(made, album, verify):
    (album / "a.jpg").rename(album / "renamed.jpg")
    shutil.rmtree(album / "sub/deep")
    ended = verify(made, f"--path_images={album}")
    assert_faults(
        ended,
        f"a.jpg: its source file is not in {album}",
        f"sub/deep/d.jpg: its source file is not in {album}",
        f"renamed.jpg: it is not in {made}",
        good=3,
    )


def test_a_source_file_that_cannot_be_read_any_more_is_named(made, album, verify):
    (album / "b.jpg").write_bytes(b"broken")
    ended = verify(made, f"--path_images={album}")
    assert_faults(ended, "b.jpg: its source file cannot be read: ", good=4)


def test_files_that_failed_are_no_faults(album, output, convert, verify):
    (album / "bad.jpg").write_bytes(b"none")
    assert convert(album, output).status == 1
    ended = verify(output, f"--path_images={album}")
    assert_good(ended, output)
    assert "compared with the folder, in which 1 files cannot be read" in ended.out


def test_a_name_that_is_no_utf8_is_no_fault(album, output, convert, verify):
    name = b"\xff.jpg"
    try:
        shutil.copy(album / "a.jpg", os.fsencode(album) + b"/" + name)
    except OSError:
        pytest.skip("names are UTF-8 here")
    assert convert(album, output).status == 1
    assert verify(output, f"--path_images={album}").status == 0


def test_damage_and_another_source_are_both_found(made, album, verify):
    flip(made, payload_of(made, "a.jpg").begin)
    save(album / "b.jpg", colours(50))
    (album / "z/e.jpg").unlink()
    ended = verify(made, f"--path_images={album}")
    assert_faults(ended, "a.jpg: ", "b.jpg: ", "z/e.jpg: ", good=2)


def test_files_are_read_as_they_were_when_it_was_made(folder, output, convert, verify):
    save(folder / "a.png", colours(1))
    save(folder / "b.jpg", colours(2))
    save(folder / "c.tif", colours(3))
    convert(folder, output, "--ext=png,jpg", "--compression=gzip:9", "--max_pixels=1000")
    assert_good(verify(output, f"--path_images={folder}"), output, 2)


def test_all_source_files_gone_is_reported(made, album, verify):
    for name in NAMES:
        (album / name).unlink()
    ended = verify(made, f"--path_images={album}")
    assert ended.status in (1, 2)
    assert str(album) in ended.err


# What cannot be checked


def test_a_file_without_an_index_says_what_can_be_checked(made, verify):
    with h5py.File(made, "r+") as file:
        file.attrs["note"] = "touched"
    ended = verify(made)
    assert ended.status == 0
    assert f"{made}: 5 of 5 files good, 0 faults" in ended.out
    assert "without an index there are no checksums" in ended.out
    assert "--verify --rebuild_index" in ended.out


def test_a_file_without_an_index_can_be_compared_with_the_folder(made, album, verify):
    with h5py.File(made, "r+") as file:
        file["a.jpg"][0, 0] = 0
        file["new"] = 5
    ended = verify(made, f"--path_images={album}")
    assert_faults(
        ended,
        "a.jpg: its source file gives another array",
        f"new: its source file is not in {album}",
        good=4,
        total=6,
    )


def test_a_file_of_another_program_is_checked_through_h5py(tmp_path, verify):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["a/b"] = np.arange(5)
        file.create_dataset("c", data=np.arange(1000), chunks=(100,), fletcher32=True)
    ended = verify(path)
    assert ended.status == 0
    assert "2 of 2 files good, 0 faults" in ended.out
    with h5py.File(path) as file:
        chunk = file["c"].id.get_chunk_info(3)
    flip(path, chunk.byte_offset + 5)
    ended = verify(path)
    assert_faults(ended, "converter: c: ", good=1, total=2)


NO_FILES = {
    "nothing": (lambda path: path.unlink(), "no file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "text": (lambda path: path.write_bytes(b"a text" * 100), "is not an HDF5 file"),
    "truncated": (cut_in_half, "is truncated"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "folder"),
}


@pytest.mark.parametrize("flags", [(), ("--rebuild_index",), ("--path_images",)], ids=str)
@pytest.mark.parametrize(("make", "words"), NO_FILES.values(), ids=NO_FILES)
def test_what_cannot_be_opened_is_refused(make, words, flags, made, album, tmp_path, verify):
    make(made)
    before = everything_below(tmp_path)
    if flags == ("--path_images",):
        flags = (f"--path_images={album}",)
    ended = verify(made, *flags)
    assert_refused(ended, str(made), *([] if flags else [words]))
    assert "--update" not in ended.err
    assert re.search(r"0x[0-9a-f]+|errno = |time = ", ended.err) is None
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("what", ["nowhere", "file"])
def test_a_folder_that_is_none_is_refused(what, made, tmp_path, verify):
    path = tmp_path / what
    if what == "file":
        path.write_bytes(b"")
    assert_refused(verify(made, f"--path_images={path}"), str(path))


def test_comparing_with_a_folder_needs_a_file_that_says_how_it_was_made(album, tmp_path, verify):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["a"] = 1
    ended = verify(path, f"--path_images={album}")
    assert_refused(ended, str(path), "how it was made")
    assert "updated" not in ended.err


def test_other_functions_than_it_was_made_with_are_refused(arrays, folder, tmp_path, verify):
    other = write_functions(
        tmp_path / "other_functions.py", (FUNCTIONS / "load_npy.py").read_text() + "# changed\n"
    )
    ended = verify(arrays, f"--path_images={folder}", f"--path_functions={other}")
    assert_refused(ended, str(arrays), "my_read", str(other))


@pytest.mark.parametrize(
    "flag",
    ["--ext=jpg", "--overwrite", "--dry_run", "--store=array", "--restart", "--update",
     "--custom_read_func", "--compression=gzip", "--extract=x", "--max_pixels=5"],
)  # fmt: skip
def test_flags_of_other_modes_are_refused(flag, made, album, verify, tmp_path):
    before = everything_below(tmp_path)
    ended = verify(made, flag, f"--path_images={album}")
    assert ended.status == 2
    assert ended.out == ""
    assert "--verify" in ended.err
    assert everything_below(tmp_path) == before


def test_without_verify_an_index_is_not_rebuilt(made, album, convert, tmp_path):
    before = everything_below(tmp_path)
    ended = convert(album, made, "--rebuild_index")
    assert_refused(ended, "--rebuild_index needs --verify")
    assert everything_below(tmp_path) == before


# Reads that end or stop a process


@pytest.fixture
def faulty_h5py(tmp_path) -> Callable[[str], dict[str, str]]:
    """Have h5py do something in every process when it opens b.jpg."""

    def environment(action: str) -> dict[str, str]:
        site = tmp_path / "site"
        site.mkdir()
        text = f"""
        import os, signal, time
        import h5py

        def wrapped(self, name, before=h5py.Group.__getitem__):
            if name.endswith("b.jpg"):
                {action}
            return before(self, name)

        h5py.Group.__getitem__ = wrapped
        """
        (site / "sitecustomize.py").write_text(textwrap.dedent(text))
        path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, "PYTHONPATH": path}

    return environment


@pytest.mark.everyday(1)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="ends processes by signals")
@pytest.mark.parametrize("action", ["os.kill(os.getpid(), signal.SIGSEGV)", "os._exit(3)"])
@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_a_read_that_ends_its_process_is_a_fault(workers, action, made, faulty_h5py):
    ended = run(command(made, workers), env=faulty_h5py(action))
    assert_faults(ended, "b.jpg: ", good=4)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="ends processes by signals")
@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_a_read_that_does_not_end_is_a_fault_when_limited(workers, made, faulty_h5py):
    environment = faulty_h5py("time.sleep(1000)")
    ended = run(command(made, workers, "--file_timeout=4"), env=environment)
    assert_faults(ended, "b.jpg: ", good=4)


def test_a_read_that_raises_anything_is_a_fault(made, faulty_h5py):
    action = "raise ZeroDivisionError('by libhdf5')"
    ended = run(command(made, "--workers=2"), env=faulty_h5py(action))
    assert_faults(ended, "b.jpg: cannot be read (ZeroDivisionError: by libhdf5)", good=4)


@pytest.mark.slow
def test_an_interrupted_check_says_so(made, faulty_h5py):
    import signal

    process = start(command(made, "--workers=2"), env=faulty_h5py("time.sleep(1000)"))
    from helpers.run import finish, processes_left, wait_until, workers_of

    wait_until(lambda: len(workers_of(process.pid)) >= 2)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.status == 130
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err
    assert processes_left(process.pid) == []


# Adding an index


def rows_of(path: Path) -> dict[str, tuple[Any, ...]]:
    """Return what an index says of each sample."""
    tail = tail_of(path)
    return {
        key: (tail.layout_at(n), tail.extents(n), tail.nbytes[n])
        for n, key in enumerate(tail.keys())
    }


def cut_tail(path: Path) -> None:
    """Have HDF5 cut off the tail, as it does when it writes."""
    with h5py.File(path, "r+") as file:
        file.attrs["note"] = "touched"


FLAGS = {name: WAYS[name] for name in ("array", "none", "gzip", "encoded")}


@pytest.mark.slow
@pytest.mark.everyday(2)
@WORKERS
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_rebuilt_index_is_the_one_it_had(flags, workers, album, output, convert, verify):
    save(album / "gray.jpg", colours(9, (30, 40)))
    save(album / "large.jpg", np.zeros((2000, 2500), np.uint8))
    convert(album, output, *flags)
    rows, arrays = rows_of(output), stored(output)
    before = {key: H5Folder(output)[key] for key in rows}
    cut_tail(output)
    hdf5_part = output.read_bytes()
    ended = verify(output, "--rebuild_index", workers)
    assert ended.status == 0, ended.err
    assert f"an index of 7 datasets was added to {output}" in ended.err
    assert "7 of 7 files good, 0 faults" in ended.out
    assert "without an index" not in ended.out
    assert rows_of(output) == rows
    assert output.read_bytes().startswith(hdf5_part)
    for key, array in before.items():
        np.testing.assert_array_equal(H5Folder(output, verify=True)[key], array, strict=True)
        np.testing.assert_array_equal(stored(output)[key], arrays[key], strict=True)


def test_arrays_of_all_kinds_get_the_index_they_had(arrays, verify):
    rows = rows_of(arrays)
    cut_tail(arrays)
    assert verify(arrays, "--rebuild_index").status == 0
    assert rows_of(arrays) == rows
    found = both_read(arrays)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_rebuilt_index_knows_what_was_added_moved_and_removed(made, verify):
    before, rows = stored(made), rows_of(made)
    with h5py.File(made, "r+") as file:
        file.move("a.jpg", "moved/to/a")
        del file["b.jpg"]
        file["sub/c.jpg"][0, 0] = 255
        file.create_dataset("z/zipped", data=np.arange(9000), compression="gzip", chunks=(1000,))
    assert verify(made, "--rebuild_index").status == 0
    found, now = both_read(made), rows_of(made)
    assert sorted(found) == ["moved/to/a", "sub/c.jpg", "sub/deep/d.jpg", "z/e.jpg", "z/zipped"]
    np.testing.assert_array_equal(found["moved/to/a"], before["a.jpg"])
    np.testing.assert_array_equal(found["z/zipped"], np.arange(9000))
    assert now["z/e.jpg"] == rows["z/e.jpg"]
    assert now["moved/to/a"] == rows["a.jpg"]
    assert found["sub/c.jpg"][0, 0].tolist() == [255, 255, 255]


def test_an_array_added_to_an_encoded_file_leaves_the_images_as_they_are(
    album, output, convert, verify
):
    """The file says that it holds files; an array among them must not change what these give."""
    convert(album, output, "--store=encoded")
    before = {name: H5Folder(output)[name] for name in NAMES}
    with h5py.File(output, "r+") as file:
        file["0_mean"] = np.arange(3.0)
        file["zz_mean"] = np.arange(3.0)
    content = output.read_bytes()
    if verify(output, "--rebuild_index").status == 2:
        assert output.read_bytes() == content
    for name in NAMES:
        np.testing.assert_array_equal(H5Folder(output)[name], before[name], strict=True)


def test_a_file_with_an_index_keeps_it(made, verify, tmp_path):
    before = everything_below(tmp_path)
    assert_refused(verify(made, "--rebuild_index"), str(made), "drop --rebuild_index")
    assert everything_below(tmp_path) == before


def test_a_damaged_index_is_not_taken_for_none(made, verify, tmp_path):
    """It may be the disk; a copy of the file may be good."""
    flip(made, parts_of(made)["rows"].begin)
    before = everything_below(tmp_path)
    assert_refused(verify(made, "--rebuild_index"), f"the index of {made} is damaged")
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("behind", ["a damaged magic number", "a few bytes", "many bytes"])
def test_what_lies_behind_hdf5s_end_does_not_hide_the_new_index(behind, made, verify):
    before, rows = stored(made), rows_of(made)
    if behind == "a damaged magic number":
        flip(made, made.stat().st_size - 1)
    else:
        with made.open("ab") as file:
            file.write(b"junk" if behind == "a few bytes" else bytes(100_000))
    assert tail_is_absent(made)
    ended = verify(made, "--rebuild_index")
    assert ended.status == 0, ended.err
    assert "without an index" not in ended.out
    assert rows_of(made) == rows
    np.testing.assert_equal(both_read(made), before)


def tail_is_absent(path: Path) -> bool:
    return "IndexedFile" not in type(H5Folder(path)._open().source).__name__


def test_twice_is_refused_and_afterwards_it_can_be_cut_and_added_again(made, verify):
    rows = rows_of(made)
    for _ in range(3):
        cut_tail(made)
        assert verify(made, "--rebuild_index").status == 0
        assert verify(made, "--rebuild_index").status == 2
        assert rows_of(made) == rows


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_read_only_file_gets_no_index(made, tmp_path):
    cut_tail(made)
    made.chmod(0o444)
    before = everything_below(tmp_path)
    ended = run(command(made, "--rebuild_index", "--workers=1"), preexec_fn=without_root_rights)
    assert ended.status in (1, 2)
    assert f"the index could not be added to {made} (Permission denied)" in ended.err
    assert "Traceback" not in ended.err
    assert everything_below(tmp_path) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits a process by rlimit")
def test_a_full_disk_leaves_the_file_as_good_as_before(made, verify):
    cut_tail(made)
    before, size = stored(made), made.stat().st_size

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))

    ended = run(command(made, "--rebuild_index", "--workers=1"), preexec_fn=limit)
    assert ended.status == 1
    assert f"the index could not be added to {made}" in ended.err
    assert "Traceback" not in ended.err
    np.testing.assert_equal(both_read(made), before)
    assert verify(made, "--rebuild_index").status == 0
    np.testing.assert_equal(both_read(made), before)


@pytest.mark.slow
def test_a_file_another_program_writes_gets_no_index(made, tmp_path):
    cut_tail(made)
    script = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); "
    writer = start([sys.executable, "-c", script + "sys.stdin.read()", str(made)], stdin=-1)
    try:
        assert writer.stdout.readline() == "open\n"
        ended = run(command(made, "--rebuild_index", "--workers=1"))
        checked = run(command(made, "--workers=1"))
    finally:
        writer.kill()
        writer.communicate()
    for one in (ended, checked):
        assert "Traceback" not in one.err
        assert one.status in (1, 2)
        assert one.err


# Files of other programs


def low_level(file: h5py.File, dtype: h5t.TypeID, array: np.ndarray, memory: Any = None) -> None:
    space = h5s.create_simple(array.shape)
    h5d.create(file.id, b"x", dtype, space).write(h5s.ALL, h5s.ALL, array, memory)


def string_type(padding: int) -> h5t.TypeID:
    dtype = h5t.C_S1.copy()
    dtype.set_size(5)
    dtype.set_strpad(padding)
    return dtype


def an_integer_of_12_bits(file: h5py.File) -> None:
    dtype = h5t.STD_I16LE.copy()
    dtype.set_precision(12)
    low_level(file, dtype, np.array([-200, 0, 100], "i2"))


def an_integer_behind_4_bits(file: h5py.File) -> None:
    dtype = h5t.STD_U16LE.copy()
    dtype.set_precision(12)
    dtype.set_offset(4)
    low_level(file, dtype, np.array([0, 100, 200], "u2"))


def an_integer_of_3_bytes(file: h5py.File) -> None:
    dtype = h5t.STD_U32LE.copy()
    dtype.set_precision(24)
    dtype.set_size(3)
    low_level(file, dtype, np.arange(3, dtype="u4"))


def strings_padded_with_spaces(file: h5py.File) -> None:
    low_level(file, string_type(h5t.STR_SPACEPAD), np.array([b"a", b"ccccc"], "S5"))


def strings_ended_by_nul(file: h5py.File) -> None:
    dtype = string_type(h5t.STR_NULLTERM)
    low_level(file, dtype, np.array([b"a", b"b\0xy", b"cccc"], "S5"), dtype)


def fields_padded_with_spaces(file: h5py.File) -> None:
    numpys = np.dtype({"names": ["s"], "formats": ["S5"], "offsets": [0], "itemsize": 8})
    dtype = h5t.create(h5t.COMPOUND, 8)
    dtype.insert(b"s", 0, string_type(h5t.STR_SPACEPAD))
    low_level(file, dtype, np.array([(b"a",), (b"bb",)], numpys), h5t.py_create(numpys))


def a_float_of_another_bias(file: h5py.File) -> None:
    dtype = h5t.IEEE_F32LE.copy()
    dtype.set_ebias(100)
    low_level(file, dtype, np.array([1, 2, 3], "f4"))


def a_time(file: h5py.File) -> None:
    h5d.create(file.id, b"x", h5t.UNIX_D32LE, h5s.create_simple((3,)))


def compact(file: h5py.File) -> None:
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_layout(h5d.COMPACT)
    dataset = h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple((5,)), creation)
    dataset.write(h5s.ALL, h5s.ALL, np.arange(5, dtype="<i4"))


def filters_in_another_order(file: h5py.File) -> None:
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_chunk((10,))
    creation.set_deflate(2)
    creation.set_shuffle()
    dataset = h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple((55,)), creation)
    dataset.write(h5s.ALL, h5s.ALL, np.arange(55, dtype="<i4"))


def allocated_but_not_written(file: h5py.File) -> None:
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    creation.set_fill_value(np.array(7, "<i4"))
    h5d.create(file.id, b"x", h5t.STD_I32LE, h5s.create_simple((5,)), creation)


def partly_written(file: h5py.File) -> None:
    file.create_dataset("x", (30, 40), "f4", chunks=(10, 10), fillvalue=7)
    file["x"][:10] = 1


def partly_written_and_zipped(file: h5py.File) -> None:
    file.create_dataset("x", (30, 40), "f4", chunks=(10, 10), fillvalue=7, compression="gzip")
    file["x"][:, 10:] = 1


def shrunk(file: h5py.File) -> None:
    file.create_dataset("x", data=np.arange(100), chunks=(10,), maxshape=(None,))
    file["x"].resize((35,))


def grown(file: h5py.File) -> None:
    file.create_dataset("x", data=np.arange(20), chunks=(10,), maxshape=(None,))
    file["x"].resize((35,))
    file["x"][20:] = 5


def written_without_its_filter(file: h5py.File) -> None:
    file.create_dataset("x", (20,), "<i4", chunks=(10,), compression="gzip")
    for first, number in ((0, 1), (10, 2)):
        data = np.full(10, number, "<i4").tobytes()
        file["x"].id.write_direct_chunk((first,), data, filter_mask=1)


def named_type(file: h5py.File) -> None:
    file["t"] = np.dtype("f4")
    file.create_dataset("x", data=np.arange(3), dtype=file["t"])


def links(file: h5py.File) -> None:
    file["a/x"] = np.arange(4)
    file["soft"] = h5py.SoftLink("/a/x")
    file["dangling"] = h5py.SoftLink("/nowhere")
    file["b"] = file["a/x"]
    file["a/loop"] = file["/"]


def external_link(file: h5py.File) -> None:
    file["x"] = np.arange(4)
    file["e"] = h5py.ExternalLink("other.h5", "/x")


def external_storage(file: h5py.File) -> None:
    raw = Path(file.filename).with_name("raw.bin")
    raw.write_bytes(np.arange(4, dtype="<i4").tobytes())
    file.create_dataset("x", (4,), "<i4", external=[(str(raw), 0, 16)])


def virtual(file: h5py.File) -> None:
    file["x"] = np.arange(4)
    layout = h5py.VirtualLayout((4,), "i8")
    layout[:] = h5py.VirtualSource(".", "x", (4,))
    file.create_virtual_dataset("v", layout)


def strange_attributes(file: h5py.File) -> None:
    for name, value in {"a": np.array([1, 2]), "b": "text", "c": b"bytes", "d": 5.0}.items():
        file[name] = np.arange(5)
        file[name].attrs["content"] = value
    file["e"] = np.arange(5)
    file["e"].attrs["content"] = h5py.Empty("f4")
    file.attrs["store"] = np.array([1, 2])


def claims_encoded(file: h5py.File) -> None:
    file["x"] = np.arange(5.0)
    file["y"] = np.arange(5.0)
    file.attrs["store"] = "something"


def odd_names(file: h5py.File) -> None:
    for name in ("ü/é\U0001f600", " ", "a\nb", "#", "'\"", "..", "x" * 3000, "e\u0301"):
        file[name] = len(name)


def many_attributes(file: h5py.File) -> None:
    file["x"] = np.arange(3)
    for number in range(20):
        file["x"].attrs[f"a{number}"] = np.arange(500)


def dense_groups(file: h5py.File) -> None:
    for number in range(300):
        file[f"{number % 3}/{number}"] = number


FOREIGN: dict[str, tuple[Callable[[h5py.File], Any], str | None]] = {
    "numbers": (lambda f: f.create_dataset("x", data=np.arange(5)), None),
    "big-endian": (lambda f: f.create_dataset("x", data=np.arange(5, dtype=">i4")), None),
    "scalar": (lambda f: f.create_dataset("x", data=2.5), None),
    "bool": (lambda f: f.create_dataset("x", data=np.array([True, False])), None),
    "enum": (lambda f: f.create_dataset("x", data=[1, 0], dtype=h5py.enum_dtype({"a": 0, "b": 1})),
             None),
    "complex": (lambda f: f.create_dataset("x", data=np.arange(4) * (1 + 2j)), None),
    "complex, big-endian": (lambda f: f.create_dataset("x", data=np.arange(4, dtype=">c8")), None),
    "half": (lambda f: f.create_dataset("x", data=np.arange(4, dtype="f2")), None),
    "long double": (lambda f: f.create_dataset("x", data=np.arange(4, dtype="g")), None),
    "opaque": (lambda f: f.create_dataset("x", data=np.array([b"ab\0"], "V3")), None),
    "fixed strings": (lambda f: f.create_dataset("x", data=np.array([b"ab", b""], "S4")), None),
    "compound": (lambda f: f.create_dataset("x", data=ARRAYS["fields.npy"]), None),
    "compound with gaps": (lambda f: f.create_dataset(
        "x", data=np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True))), None),
    "compound of compounds": (lambda f: f.create_dataset(
        "x", data=np.zeros(3, [("a", "i4", (2,)), ("b", [("c", "f4"), ("d", "c16")])])), None),
    "times": (lambda f: f.create_dataset("x", data=np.array(["2020-01-01"], "M8[D]").astype(
        h5py.opaque_dtype("M8[D]"))), "dtype"),
    "arrays in items": (lambda f: f.create_dataset("x", (5,), np.dtype(("<i4", (3,)))), "dtype"),
    "strings": (lambda f: f.create_dataset("x", data=["a", "b"]), "not an array of numbers"),
    "string": (lambda f: f.create_dataset("x", data="text"), "not an array of numbers"),
    "ragged": (lambda f: f.create_dataset("x", (3,), h5py.vlen_dtype("i4")), "array of numbers"),
    "compound with strings": (lambda f: f.create_dataset(
        "x", (3,), [("a", "i4"), ("b", h5py.string_dtype())]), "not an array of numbers"),
    "references": (lambda f: f.create_dataset("x", (2,), h5py.ref_dtype), "array of numbers"),
    "null dataspace": (lambda f: f.create_dataset("x", data=h5py.Empty("f4")), "array of numbers"),
    "no items": (lambda f: f.create_dataset("x", data=np.empty((0, 3))), None),
    "no items yet": (lambda f: f.create_dataset("x", (0, 4), "f4", maxshape=(None, 4)), "chunks"),
    "nothing": (lambda f: f.create_group("g"), None),
    "chunks": (lambda f: f.create_dataset("x", data=np.arange(1200).reshape(30, 40),
                                          chunks=(7, 15)), None),
    "gzip": (lambda f: f.create_dataset("x", data=np.zeros((30, 40)), compression="gzip"), None),
    "shuffle, gzip": (lambda f: f.create_dataset(
        "x", data=np.arange(1200), chunks=(100,), compression="gzip", shuffle=True), None),
    "gzip of noise": (lambda f: f.create_dataset(
        "x", data=colours(1, (5000,)), chunks=(1000,), compression="gzip"), None),
    "shuffle": (lambda f: f.create_dataset("x", data=np.arange(1200), shuffle=True), None),
    "lzf": (lambda f: f.create_dataset("x", data=np.zeros((30, 40)), compression="lzf"), None),
    "lzf of noise": (lambda f: f.create_dataset(
        "x", data=np.random.default_rng(1).integers(0, 256, 5000), chunks=(1000,),
        compression="lzf"), None),
    "fletcher32": (lambda f: f.create_dataset("x", data=np.arange(1200), fletcher32=True), None),
    "fletcher32, gzip": (lambda f: f.create_dataset(
        "x", data=np.arange(1200), fletcher32=True, compression="gzip"), None),
    "scale-offset": (lambda f: f.create_dataset("x", data=np.arange(1200), scaleoffset=0), None),
    "chunks larger than the array": (lambda f: f.create_dataset(
        "x", data=np.arange(5), chunks=(10,), maxshape=(None,)), "chunks larger"),
    "never written": (lambda f: f.create_dataset("x", (30, 40), "f4", fillvalue=7),
                      "never written"),
    "zipped and never written": (lambda f: f.create_dataset(
        "x", (2**40,), "f4", chunks=(2**20,), compression="gzip"), "of which 0 are stored"),
    "partly written": (partly_written, "never written"),
    "partly written and zipped": (partly_written_and_zipped, "never written"),
    "written without its filter": (written_without_its_filter, "leave filters out"),
    "compact": (compact, "within its own header"),
    "external storage": (external_storage, ""),
    "virtual": (virtual, ""),
    "external link": (external_link, "link to another file"),
    "name not UTF-8": (lambda f: f.create_dataset(b"\xff\xfe", data=1), "not UTF-8"),
    "int of 12 bits": (an_integer_of_12_bits, ""),
    "int behind 4 bits": (an_integer_behind_4_bits, ""),
    "int of 3 bytes": (an_integer_of_3_bytes, ""),
    "padded with spaces": (strings_padded_with_spaces, ""),
    "ended by NUL": (strings_ended_by_nul, ""),
    "fields padded with spaces": (fields_padded_with_spaces, ""),
    "another float": (a_float_of_another_bias, ""),
    "time": (a_time, ""),
    "bit field": (lambda f: low_level(f, h5t.STD_B8LE, np.array([1, 255], "u1"), h5t.STD_B8LE),
                  ""),
    "filters in another order": (filters_in_another_order, None),
    "allocated": (allocated_but_not_written, None),
    "shrunk": (shrunk, None),
    "grown": (grown, None),
    "named type": (named_type, None),
    "links": (links, None),
    "strange attributes": (strange_attributes, None),
    "another store": (claims_encoded, None),
    "odd names": (odd_names, None),
    "many attributes": (many_attributes, None),
    "dense groups": (dense_groups, None),
}  # fmt: skip


def make_foreign(path: Path, make: Callable[[h5py.File], Any], libver: str) -> bool:
    """Tell whether this version of HDF5 can make it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with h5py.File(path, "w", libver=libver) as file:
                make(file)
        except (OSError, TypeError, ValueError):
            return False
    return True


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_foreign_files_get_an_index_that_gives_what_h5py_gives_or_stay_untouched(libver, tmp_path):
    wrong = {}
    for kind, (make, refusal) in FOREIGN.items():
        path = tmp_path / "foreign.h5"
        try:
            if make_foreign(path, make, libver):
                check_foreign(path, refusal)
        except (AssertionError, UserWarning) as error:
            wrong[kind] = error
        for file in tmp_path.iterdir():
            file.unlink()
    assert wrong == {}


def check_foreign(path: Path, refusal: str | None) -> None:
    """Check a file without an index, add one, and check the file with it."""
    before = everything_below(path.parent)
    faults = faults_of(path, has_index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of numpy, on stderr
        error = refusal_of(path)
    if refusal is None:
        assert (faults, error) == ([], None)
        assert path.read_bytes().startswith(before["foreign.h5"])
        assert not tail_is_absent(path)
        both_read(path)
        assert faults_of(path, has_index=True) == []
    else:
        assert error is not None
        assert str(path) in error and refusal in error and "\n" not in error
        assert everything_below(path.parent) == before


def refusal_of(path: Path) -> str | None:
    """Add an index; return the reason where that is refused."""
    try:
        rebuild_index(path, Callbacks())
    except ConverterError as error:
        return str(error)
    return None


def faults_of(path: Path, *, has_index: bool) -> list[str]:
    """Check all samples within this process; return what is wrong."""
    try:
        keys = list(H5Folder(path))
    except ConverterError as error:
        return [str(error)]
    checker = Checks(path, has_index).start()
    results = [checker.encode(key, Buffer()) for key in keys]
    return [result.reason for result in results if isinstance(result, Failure)]


def test_a_file_behind_a_user_block_is_refused(tmp_path, verify):
    path = tmp_path / "block.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["x"] = np.arange(5)
    before = path.read_bytes()
    assert_refused(verify(path, "--rebuild_index"), str(path), "does not begin as HDF5")
    assert path.read_bytes() == before
    assert verify(path).status == 0
    np.testing.assert_array_equal(H5Folder(path)["x"], np.arange(5))


def test_after_an_index_was_added_h5py_can_go_on_writing(tmp_path, verify):
    path = tmp_path / "foreign.h5"
    for libver in ("earliest", "latest"):
        with h5py.File(path, "w", libver=libver) as file:
            file["x"] = np.arange(5)
        assert verify(path, "--rebuild_index").status == 0
        with h5py.File(path, "r+") as file:
            file["y"] = np.arange(7)
            file["x"][0] = 100
        assert tail_is_absent(path)
        assert H5Folder(path)["x"].tolist() == [100, 1, 2, 3, 4]
        assert H5Folder(path)["y"].tolist() == list(range(7))
        assert verify(path, "--rebuild_index").status == 0
        assert H5Folder(path, verify=True)["x"].tolist() == [100, 1, 2, 3, 4]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_other_files_are_not_read_through_hdf5(tmp_path):
    """A file may name any other: a pipe there would never end."""
    path, pipe = tmp_path / "foreign.h5", tmp_path / "pipe"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (4,), "<i4", external=[(str(pipe), 0, 16)])
        file["y"] = np.arange(3)
    os.mkfifo(pipe)
    ended = run(command(path, "--workers=1"))
    assert ended.status == 1
    assert "x: " in ended.err
    assert "1 of 2 files good, 1 faults" in ended.out


@pytest.mark.slow
def test_a_claim_of_more_than_there_is_takes_no_memory(tmp_path):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (2**36,), "f4", chunks=(2**20,), compression="gzip")
        file["y"] = np.arange(3)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (60, 60))

    ended = run(command(path, "--workers=1"), preexec_fn=limit)
    assert_faults(ended, "x: ", good=1, total=2)
    assert "claims" in ended.err
