"""``--extract``: the same files again, and nothing outside of their folder."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter.cli import main
from converter.format.index import ROW
from helpers.arrays import make_h5
from helpers.check import assert_refused, case, everything_below, files_of
from helpers.damage import TailEditor, cut_tail_off
from helpers.images import colours, save
from helpers.run import (
    ROOT,
    Finished,
    finish,
    program,
    run,
    run_here,
    start,
    wait_until,
    without_root_rights,
    write_functions,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX names, links and signals")
Extract = Callable[..., Finished]
PARTIAL = f".{bytes(8).hex()}.partial"
LEADS_OUT = "refused, because its name could lead out of the folder"


@pytest.fixture
def back(tmp_path) -> Path:
    """Where the files go; not there yet."""
    return tmp_path / "back"


def extract_command(path: Path, folder: Path, *flags: str) -> list[str]:
    return program(f"--path_output={path}", f"--extract={folder}", *flags)


def encode(source: Path, files: dict[str, bytes], *flags: str) -> Path:
    """Write files, whose names end in txt, below ``source``, and store them as they are."""
    for key, data in files.items():
        (source / key).parent.mkdir(parents=True, exist_ok=True)
        (source / key).write_bytes(data)
    path = source.with_name(source.name + ".h5")
    status = main(
        [f"--path_images={source}", f"--path_output={path}", "--ext=txt", "--store=encoded",
         "--skip_decode_check", "--hidden_folders", "--workers=1", "--quiet", *flags]
    )  # fmt: skip
    assert status == 0
    return path


def write_h5(path: Path, arrays: dict[str, Any], *, store: str | None = None) -> Path:
    """Write an HDF5 file with h5py, so without a tail."""
    with h5py.File(path, "w") as h5:
        for name, array in arrays.items():
            h5[name] = array
        if store:
            h5.attrs["store"] = store
    return path


def assert_whole(folder: Path, files: dict[str, bytes]) -> dict[str, bytes]:
    """Check that what there is of the files is whole; return it."""
    found = files_of(folder)
    assert {key: files.get(key) for key in found} == found
    return found


def flip_a_byte(path: Path, key: str) -> None:
    """Damage the last byte of a payload."""
    with h5py.File(path) as h5:
        dataset = h5[key]
        begin = dataset.id.get_offset() or dataset.id.get_chunk_info(0).byte_offset
        last = begin + dataset.id.get_storage_size() - 1
    content = bytearray(path.read_bytes())
    content[last] ^= 1
    path.write_bytes(content)


# There and back

FILES = {
    "plain.txt": b"plain",
    "empty.txt": b"",
    "large.txt": b"all the same " * 400_000,
    "noise.txt": np.random.default_rng(0).bytes(100_000),
    "deep/er/and/deeper/a.txt": b"deep",
    "deep/er/b.txt": b"less deep",
    "with space/a b .txt": b"spaces",
    "new\nline/a\nb.txt": b"lines",
    "tab\tand\x1b[31mred.txt": b"control characters",
    "ünï/çödé \N{SNOWMAN} \N{GRINNING FACE}.txt": b"unicode",
    "-rf.txt": b"a dash",
    "--extract/--overwrite.txt": b"two dashes",
    'quote\'s "$HOME" `ls` *.txt': b"what shells know",
    "..txt": b"two dots",
    "...txt": b"three dots",
    ".hidden/.a.txt": b"hidden",
    "..a/b...txt": b"dots and more",
    "dots.../ .. /a.txt": b"dots and spaces",
    "~/%2e%2e/a.txt": b"what is expanded elsewhere",
    "abc:d.txt": b"a colon, but no drive",
    "n" * 251 + ".txt": b"as long as a name can be",
}


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("compression", ["auto", "none", "gzip"])
def test_files_come_back_byte_for_byte_under_their_names(
    compression, tail, tmp_path, back, extract
):
    path = encode(tmp_path / "source", FILES, f"--compression={compression}")
    if not tail:
        cut_tail_off(path)
    ended = extract(path, back)
    assert ended.status == 0, ended.err
    assert ended.err == ""
    megabytes = sum(map(len, FILES.values())) / 1e6
    assert ended.out == f"{back}: {len(FILES)} files written, {megabytes:.2f} MB, 0 failed\n"
    assert files_of(back) == FILES
    assert everything_below(back) == everything_below(tmp_path / "source")


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_files_in_a_filter_of_a_package_come_back(compression, tmp_path, back, extract):
    pytest.importorskip({"zstd": "zstandard", "blosc2": "blosc2"}[compression])
    path = encode(tmp_path / "source", FILES, f"--compression={compression}")
    assert extract(path, back).status == 0
    assert files_of(back) == FILES


def test_images_come_back_byte_for_byte(folder, output, convert, back, extract):
    shutil.copytree(ROOT / "tests" / "images", folder, dirs_exist_ok=True)
    flags = ("--ext=jpg,png,tif,gif", "--store=encoded")
    assert convert(folder, output, *flags).status == 0
    assert extract(output, back).status == 0
    assert everything_below(back) == everything_below(folder)


def test_a_process_of_its_own_does_the_same(tmp_path, back):
    path = encode(tmp_path / "source", FILES)
    ended = run(extract_command(path, back / "new" / "folders", "--quiet"))
    assert (ended.status, ended.err) == (0, "")
    assert files_of(back / "new" / "folders") == FILES


def test_new_files_have_the_rights_of_any_new_file(tmp_path, back, extract):
    path = encode(tmp_path / "source", {"a.txt": b"a"})
    before = os.umask(0o027)
    try:
        assert extract(path, back).status == 0
    finally:
        os.umask(before)
    assert (back / "a.txt").stat().st_mode & 0o777 == 0o640


@pytest.fixture
def odd_arrays() -> dict[str, Any]:
    fields = np.zeros(6, np.dtype([("x", "<i4"), ("y", ">f8", (2,)), ("z", "|b1")]))
    fields["x"], fields["z"] = range(6), [1, 0] * 3
    return {
        "0d.npy": np.array(2.5),
        "big_endian.npy": np.arange(12.0, dtype=">f8").reshape(3, 4),
        "bool/yes.npy": np.array([[True, False, True]]),
        "bool/one.npy": np.array(True),
        "bytes.npy": np.array([b"ab", b"c"], "S3"),
        "complex.npy": np.arange(4) * (1 + 2j),
        "empty.npy": np.empty((0, 3), ">f4"),
        "fields.npy": fields,
        "float16.npy": np.array([1, np.nan, -0.0], np.float16),
        "image.npy": colours(),
        "large.npy": (np.arange(3_000_000) // 7).astype("<u2").reshape(3, 1000, 1000),
        "void.npy": np.array([b"\1\2\3\4", b"\5\6\7\0"], "V4"),
    }


@pytest.mark.everyday(2)
@pytest.mark.filterwarnings("error:metadata on a dtype")
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_arrays_come_back_as_npy_files(compression, tail, tmp_path, odd_arrays, back, extract):
    path = make_h5(tmp_path, odd_arrays, compression=compression)
    if not tail:
        cut_tail_off(path)
    ended = extract(path, back)
    assert ended.status == 0, ended.err
    assert ended.err == ""
    assert set(files_of(back)) == {key + ".npy" for key in odd_arrays}
    for key, array in odd_arrays.items():
        got = np.load(back / (key + ".npy"), allow_pickle=False)
        assert (got.dtype, got.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("tail", [True, False])
def test_texts_come_back_as_arrays_of_their_bytes(tail, tmp_path, back, extract):
    texts = {"a.txt": "grüße\0", "sub/empty.txt": ""}
    path = make_h5(tmp_path, texts)
    if not tail:
        cut_tail_off(path)
    assert extract(path, back).status == 0
    assert {
        key: np.load(back / (key + ".npy"), allow_pickle=False).tobytes().decode() for key in texts
    } == texts


def test_decoded_images_come_back_as_arrays(folder, output, convert, back, extract):
    save(folder / "a.png", colours(3))
    assert convert(folder, output, "--ext=png").status == 0
    assert extract(output, back).status == 0
    assert list(files_of(back)) == ["a.png.npy"]
    np.testing.assert_array_equal(np.load(back / "a.png.npy"), colours(3))


def test_a_file_without_datasets_gives_an_empty_folder(tmp_path, back, extract):
    path = write_h5(tmp_path / "foreign.h5", {})
    ended = extract(path, back)
    assert (ended.status, ended.out) == (0, f"{back}: 0 files written, 0.00 MB, 0 failed\n")
    assert everything_below(back) == {}


# Files of other tools


def test_what_npy_cannot_hold_is_a_failure_and_the_rest_is_written(tmp_path, back, extract):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as h5:
        h5["a"] = np.arange(3)
        h5["a text"] = "text"
        h5.create_dataset("lists", (2,), h5py.vlen_dtype("i4"))
        h5.create_dataset("references", (2,), h5py.ref_dtype)
        h5["nothing"] = h5py.Empty("f4")
        h5.create_dataset("sub/texts", data=["a", "b"], dtype=h5py.string_dtype())
        three = h5py.h5s.create_simple((3,))
        h5py.h5d.create(h5.id, b"times", h5py.h5t.UNIX_D32LE, three)
        h5["z"] = np.arange(4)
    ended = extract(path, back)
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert "6 failed" in ended.out
    for key in ("a text", "lists", "references", "sub/texts"):
        assert re.search(rf"^{key}: .* read it with h5py$", ended.err, re.MULTILINE), ended.err
    for key in ("nothing", "times"):
        assert re.search(rf"^{key}: .*'{key}' in .*", ended.err, re.MULTILINE), ended.err
    assert sorted(files_of(back)) == ["a.npy", "z.npy"]


@pytest.mark.filterwarnings("error:metadata on a dtype")
def test_only_values_are_kept_of_named_ones(tmp_path, back, extract):
    path = tmp_path / "foreign.h5"
    names = h5py.enum_dtype({"cat": 0, "dog": 1}, "u1")
    with h5py.File(path, "w") as h5:
        h5.create_dataset("classes", data=np.array([1, 0, 1], "u1"), dtype=names)
    assert extract(path, back).status == 0
    np.testing.assert_array_equal(np.load(back / "classes.npy"), np.array([1, 0, 1], "u1"))


def test_soft_links_are_passed_over_and_outside_links_are_refused(tmp_path, back, extract):
    path = write_h5(tmp_path / "foreign.h5", {"a": np.arange(3)})
    with h5py.File(path, "r+") as h5:
        h5["soft"] = h5py.SoftLink("/a")
    assert extract(path, back).status == 0
    assert list(files_of(back)) == ["a.npy"]
    with h5py.File(path, "r+") as h5:
        h5["outside"] = h5py.ExternalLink("/etc/passwd", "/x")
    ended = extract(path, back, "--overwrite")
    assert ended.status in (1, 2)
    assert "'outside'" in ended.err
    assert list(files_of(back)) == ["a.npy"]


# Names that lead out

HOSTILE_NAMES = [
    "../evil",
    "../../evil",
    "a/../../evil",
    "a/../evil",
    "../back2/evil",
    "a\\evil",
    "..\\evil",
    "a/..\\..\\evil",
    "\\\\server\\share\\evil",
    "C:evil",
    "c:/evil",
    "C:\\evil",
    "sub/C:evil",
]


@pytest.mark.parametrize("store", ["encoded", None])
def test_names_that_lead_out_are_refused_and_the_rest_is_written(store, tmp_path, back, extract):
    data = np.frombuffer(b"evil", np.uint8)
    names = ["a/good", "good", *HOSTILE_NAMES]
    path = write_h5(tmp_path / "foreign.h5", dict.fromkeys(names, data), store=store)
    with h5py.File(path) as h5:
        assert all(name in h5 for name in names)
    assert set(H5Folder(path)) == set(names)
    before = everything_below(tmp_path)
    ended = extract(path, back)
    assert ended.status == 1
    assert f"{len(HOSTILE_NAMES)} failed" in ended.out
    suffix = "" if store else ".npy"
    assert sorted(files_of(back)) == ["a/good" + suffix, "good" + suffix]
    shutil.rmtree(back)
    assert everything_below(tmp_path) == before
    for line in ended.err.splitlines()[:10]:
        name, _, reason = line.partition(": ")
        assert name in names
        assert reason.startswith(LEADS_OUT)
    assert ended.err.splitlines()[10:] == ["... and 3 more failed"]


@pytest.mark.parametrize("name", ["..", "a/.."])
def test_a_file_that_is_called_two_dots_is_refused(name, tmp_path, back, extract):
    path = write_h5(
        tmp_path / "foreign.h5", {name: np.frombuffer(b"evil", np.uint8)}, store="encoded"
    )
    before = everything_below(tmp_path)
    for flags in ((), ("--overwrite",)):
        ended = extract(path, back, *flags)
        assert ended.status == 1
        assert LEADS_OUT in ended.err
        assert not files_of(back)
    shutil.rmtree(back)
    assert everything_below(tmp_path) == before


TAIL_NAMES = {  # of 10 bytes each, which HDF5's own names cannot be, or can
    "absolute": b"/tmp/evil1",
    "empty part": b"aa//evil12",
    "empty end": b"aaaaaaaaa/",
    "empty start and end": b"/aaaaaaaa/",
    "slashes alone": b"//////////",
    "one dot": b"./evil1234",
    "one dot within": b"aa/./evil1",
    "two dots": b"../evil123",
    "two dots at the end": b"aaaaaaa/..",
    "a zero byte": b"a\0evil1234",
    "a zero byte behind dots": b"..\0/evil12",
    "a backslash": b"..\\evil123",
    "a drive": b"C:/evil123",
    "a drive alone": b"aaaaaaa/C:",
}


@pytest.mark.parametrize("kind", TAIL_NAMES)
@pytest.mark.parametrize("position", [0, 1])
def test_names_of_a_lying_index_are_refused(position, kind, tmp_path, back, extract):
    files = {f"{number}23456.txt": b"evil" for number in range(3)}
    path = encode(tmp_path / "source", files)
    editor = TailEditor(path)
    for n, byte in enumerate(TAIL_NAMES[kind]):
        editor.put("paths", 10 * position + n, "<B", byte)
    editor.save()
    before = everything_below(tmp_path)
    ended = extract(path, back)
    assert ended.status == 1, ended.err
    assert LEADS_OUT in ended.err
    assert set(files_of(back)) == set(files) - {f"{position}23456.txt"}
    shutil.rmtree(back)
    assert everything_below(tmp_path) == before
    assert not Path("/tmp/evil1").exists()


def test_a_name_of_the_index_that_is_no_text_is_a_failure(tmp_path, back, extract):
    path = encode(tmp_path / "source", {f"{number}.txt": b"x" for number in range(3)})
    TailEditor(path).put("paths", 5, "<B", 0xFF).save()
    ended = extract(path, back)
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert "not UTF-8" in ended.err
    assert sorted(files_of(back)) == ["0.txt", "2.txt"]


def test_a_name_of_hdf5_that_is_no_text_refuses_the_file(tmp_path, back, extract):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as h5:
        space = h5py.h5s.create_simple((3,))
        h5py.h5d.create(h5.id, b"\xff\xfe", h5py.h5t.NATIVE_INT8, space)
    assert_refused(extract(path, back), str(path), "not UTF-8")
    assert not back.exists()


def test_a_name_that_is_too_long_is_a_failure(tmp_path, back, extract):
    path = write_h5(tmp_path / "foreign.h5", {"n" * 252: np.arange(3), "a": np.arange(3)})
    ended = extract(path, back)
    assert ended.status == 1
    assert "File name too long" in ended.err
    assert list(files_of(back)) == ["a.npy"]


@pytest.mark.slow
def test_a_name_the_system_cannot_write_is_a_failure(tmp_path, back):
    path = encode(tmp_path / "source", {"a.txt": b"a", "grüße.txt": b"g", "z.txt": b"z"})
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = run(extract_command(path, back), env=environment)
    assert "Traceback" not in ended.err
    assert (back / "a.txt").read_bytes() == b"a"
    assert (back / "z.txt").read_bytes() == b"z"
    if ended.status:  # where file names are not UTF-8 without a locale
        assert ended.status == 1
        assert "UnicodeEncodeError" in ended.err


# Links within the folder


@pytest.fixture
def nested(tmp_path) -> Path:
    """An encoded store of files in folders."""
    return encode(
        tmp_path / "source", {"a.txt": b"new a", "sub/b.txt": b"new b", "sub/deep/c.txt": b"new c"}
    )


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder of somebody else."""
    path = tmp_path / "outside"
    (path / "deep").mkdir(parents=True)
    (path / "b.txt").write_bytes(b"of somebody else")
    return path


@pytest.mark.parametrize("target", ["{outside}", "../outside", "..", "../nowhere", "/"])
def test_a_folder_linked_from_outside_is_not_entered(target, nested, outside, back, extract):
    back.mkdir()
    (back / "sub").symlink_to(target.format(outside=outside))
    before = everything_below(outside.parent)
    ended = extract(nested, back, "--overwrite")
    assert ended.status == 1
    assert "1 files written" in ended.out and "2 failed" in ended.out
    for key in ("sub/b.txt", "sub/deep/c.txt"):
        assert f"{key}: refused, because a link in the folder leads out of it" in ended.err
    assert (back / "a.txt").read_bytes() == b"new a"
    (back / "a.txt").unlink()
    assert everything_below(outside.parent) == before


@pytest.mark.parametrize("target", ["inside", "inside/..", "nowhere", "sub"])
def test_a_link_that_stays_within_the_folder_writes_nothing_outside(
    target, nested, outside, back, extract
):
    (back / "inside").mkdir(parents=True)
    (back / "sub").symlink_to(target)
    before = everything_below(outside)
    ended = extract(nested, back, "--overwrite")
    assert "Traceback" not in ended.err
    assert (back / "sub").is_symlink()
    assert (back / "a.txt").read_bytes() == b"new a"
    assert everything_below(outside) == before
    assert ended.status == int(target == "sub")  # a link to itself
    shutil.rmtree(back)
    assert sorted(outside.parent.iterdir()) == [outside, nested.with_suffix(""), nested]


def test_a_linked_folder_further_down_is_not_entered(nested, outside, back, extract):
    (back / "sub").mkdir(parents=True)
    (back / "sub" / "deep").symlink_to(outside)
    before = everything_below(outside)
    ended = extract(nested, back, "--overwrite")
    assert ended.status == 1
    assert "sub/deep/c.txt: refused, because a link in the folder" in ended.err
    assert (back / "sub" / "b.txt").read_bytes() == b"new b"
    assert everything_below(outside) == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_linked_file_is_replaced_and_its_target_stays(exists, nested, outside, back, extract):
    back.mkdir()
    target = outside / ("b.txt" if exists else "new.txt")
    (back / "a.txt").symlink_to(target)
    before = everything_below(outside)
    assert extract(nested, back, "--overwrite").status == 0
    assert everything_below(outside) == before
    assert not (back / "a.txt").is_symlink()
    assert (back / "a.txt").read_bytes() == b"new a"


def test_another_name_of_the_same_file_keeps_what_it_held(nested, outside, back, extract):
    back.mkdir()
    os.link(outside / "b.txt", back / "a.txt")
    assert extract(nested, back, "--overwrite").status == 0
    assert (outside / "b.txt").read_bytes() == b"of somebody else"
    assert (back / "a.txt").read_bytes() == b"new a"


def test_a_link_with_the_name_of_partial_files_is_not_followed(
    nested, outside, back, extract, monkeypatch
):
    monkeypatch.setattr(os, "urandom", bytes)
    (back / "sub").mkdir(parents=True)
    for folder in (back, back / "sub"):
        (folder / PARTIAL).symlink_to(outside / "b.txt")
    before = everything_below(outside)
    ended = extract(nested, back, "--overwrite")
    assert everything_below(outside) == before
    assert ended.status == 1
    assert "File exists" in ended.err


def test_the_folder_itself_may_be_a_link(nested, tmp_path, back, extract):
    (tmp_path / "real").mkdir()
    back.symlink_to("real")
    assert extract(nested, back).status == 0
    assert files_of(tmp_path / "real") == files_of(tmp_path / "source")


# What is there already


def test_a_folder_that_is_not_empty_is_refused(nested, back, extract):
    back.mkdir()
    (back / ".mine").write_bytes(b"mine")
    before = everything_below(back)
    assert_refused(extract(nested, back), str(back), "is not empty", "--overwrite")
    assert everything_below(back) == before


def test_an_empty_folder_is_taken(nested, back, extract):
    back.mkdir()
    assert extract(nested, back).status == 0


def test_overwrite_replaces_files_and_leaves_others_alone(nested, back, extract):
    (back / "sub").mkdir(parents=True)
    (back / "a.txt").write_bytes(b"a much longer older one")
    (back / "sub" / "mine.txt").write_bytes(b"mine")
    ended = extract(nested, back, "--overwrite")
    assert ended.status == 0, ended.err
    assert files_of(back) == {
        "a.txt": b"new a",
        "sub/b.txt": b"new b",
        "sub/deep/c.txt": b"new c",
        "sub/mine.txt": b"mine",
    }
    assert extract(nested, back, "--overwrite").status == 0


def test_a_folder_or_pipe_in_the_place_of_a_file_is_no_crash(nested, back, extract):
    (back / "a.txt").mkdir(parents=True)
    (back / "a.txt" / "mine").write_bytes(b"mine")
    os.mkfifo(back / "sub")
    ended = extract(nested, back, "--overwrite")
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert "3 failed" in ended.out
    assert everything_below(back) == {"a.txt": None, "a.txt/mine": b"mine", "sub": None}


def test_a_pipe_in_the_place_of_a_file_is_replaced(nested, back, extract):
    back.mkdir()
    os.mkfifo(back / "a.txt")
    assert extract(nested, back, "--overwrite").status == 0
    assert (back / "a.txt").read_bytes() == b"new a"


@pytest.mark.parametrize("names", [["a", "a.npy/b"], ["b.npy/c", "b"], ["b", "b.npy/c"]])
def test_names_that_take_each_others_place_cost_only_one_of_them(names, tmp_path, back, extract):
    path = write_h5(tmp_path / "foreign.h5", {name: np.arange(3) for name in [*names, "other"]})
    for flags in ((), ("--overwrite",)):
        ended = extract(path, back, *flags)
        assert ended.status == 1
        assert "Traceback" not in ended.err
        assert "2 files written" in ended.out and "1 failed" in ended.out
        assert len(ended.err.splitlines()) == 1
        assert len(files_of(back)) == 2
        np.testing.assert_array_equal(np.load(back / "other.npy"), np.arange(3))


@pytest.mark.parametrize("linked", [True, False])
def test_the_file_that_is_being_extracted_is_never_replaced(linked, tmp_path, back, extract):
    made = encode(tmp_path / "source", {"OUT.txt": b"an older one", "b.txt": b"b"})
    back.mkdir()
    path = back / "OUT.txt"
    shutil.copy(made, path)
    if linked:
        path = tmp_path / "OUT.h5"
        path.symlink_to(back / "OUT.txt")
    ended = extract(path, back, "--overwrite")
    assert ended.status == 1
    assert re.search(r"^OUT\.txt: ", ended.err, re.MULTILINE)
    assert (back / "OUT.txt").read_bytes() == made.read_bytes()
    assert (back / "b.txt").read_bytes() == b"b"


# What cannot work


def test_a_file_in_the_place_of_the_folder_is_refused(nested, back, extract):
    back.write_bytes(b"mine")
    for flags in ((), ("--overwrite",)):
        assert_refused(extract(nested, back, *flags), str(back), "is a file", "--extract")
    assert_refused(extract(nested, back / "below"), str(back / "below"))
    assert back.read_bytes() == b"mine"


def test_a_link_to_nowhere_in_the_place_of_the_folder_is_refused(nested, back, extract):
    back.symlink_to("nowhere")
    assert_refused(extract(nested, back), str(back))
    assert back.is_symlink() and not back.exists()


def test_an_empty_name_of_the_folder_is_refused(nested, extract, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = everything_below(tmp_path)
    assert_refused(extract(nested, ""), "--extract", "empty")
    assert everything_below(tmp_path) == before


def not_hdf5(path: Path) -> None:
    path.write_bytes(b"no HDF5 " * 100)


def truncated(path: Path) -> None:
    path.write_bytes(encode(path.with_name("whole"), {"a.txt": b"a"}).read_bytes()[:3000])


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "no file"),
    "a folder": (Path.mkdir, "is a folder"),
    "empty": (Path.touch, "is empty"),
    "no HDF5": (not_hdf5, "is not an HDF5 file"),
    "truncated": (truncated, "truncated"),
    "a link to nowhere": (lambda path: path.symlink_to("nowhere"), "no file"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_read_is_refused_and_no_folder_made(kind, tmp_path, back, extract):
    make, words = BAD_FILES[kind]
    path = tmp_path / "OUT.h5"
    make(path)
    before = everything_below(tmp_path)
    assert_refused(extract(path, back), str(path), words)
    assert everything_below(tmp_path) == before


@pytest.mark.slow
def test_a_file_without_permission_is_refused(nested, back):
    nested.chmod(0)
    ended = run(extract_command(nested, back), preexec_fn=without_root_rights)
    assert_refused(ended, str(nested), "Permission denied")
    assert not back.exists()


@pytest.mark.slow
def test_a_folder_without_permission_fails_and_says_so(nested, back):
    back.mkdir(mode=0o555)
    ended = run(extract_command(nested, back), preexec_fn=without_root_rights)
    assert ended.status in (1, 2)
    assert "Permission denied" in ended.err or "permission" in ended.err
    assert "Traceback" not in ended.err
    assert not os.listdir(back)


@pytest.mark.parametrize("store", ["encoded", "array"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_damaged_payload_fails_alone(store, compression, tmp_path, back, extract):
    if store == "encoded":
        files = {f"{name}.txt": bytes(range(100)) * 9 for name in "abc"}
        path = encode(tmp_path / "source", files, f"--compression={compression}")
    else:
        arrays = {f"{name}.npy": np.arange(900) // 9 for name in "abc"}
        path = make_h5(tmp_path, arrays, compression=compression)
    keys = list(H5Folder(path))
    flip_a_byte(path, keys[1])
    ended = extract(path, back)
    assert ended.status == 1
    assert "2 files written" in ended.out and "1 failed" in ended.out
    assert re.search(rf"^{keys[1]}: '{keys[1]}' in .* is damaged", ended.err)
    suffix = ".npy" if store == "array" else ""
    assert sorted(files_of(back)) == [keys[0] + suffix, keys[2] + suffix]
    (back / (keys[1] + suffix)).write_bytes(b"an older one")
    assert extract(path, back, "--overwrite").status == 1
    assert (back / (keys[1] + suffix)).read_bytes() == b"an older one"


@pytest.mark.parametrize(("field", "value"), [(0, 2**63), (8, 2**64 - 1), (8, 10**6), (28, 9)])
def test_a_row_of_the_index_that_lies_fails_alone(field, value, nested, back, extract):
    form = "<I" if field == 28 else "<Q"
    TailEditor(nested).put("rows", ROW.itemsize + field, form, value).save()
    ended = extract(nested, back)
    assert ended.status == 1, ended.err
    assert "Traceback" not in ended.err
    assert sorted(files_of(back)) == ["a.txt", "sub/deep/c.txt"]


def test_many_failures_are_counted_and_the_first_shown(tmp_path, back, extract):
    path = encode(tmp_path / "source", {f"{n:03}.txt": b"x" for n in range(25)})
    with h5py.File(path, "r+") as h5:
        for n in range(25):
            h5.move(f"{n:03}.txt", f"../{n:03}.txt")
    ended = extract(path, back)
    assert ended.status == 1
    assert ended.out == f"{back}: 0 files written, 0.00 MB, 25 failed\n"
    lines = ended.err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and 15 more failed"


# The flags

COMMON = {"path_output", "overwrite", "quiet"}
OF_CONVERSION = [
    "--path_images=images",
    "--ext=png",
    "--custom_prune_func",
    "--follow_links",
    "--hidden_folders",
    "--reader=imageio",
    "--custom_read_func",
    "--path_functions=my_functions.py",
    "--max_pixels=9",
    "--on_error=stop",
    "--store=encoded",
    "--compression=gzip",
    "--skip_decode_check",
    "--resize=9",
    "--resize_mode=crop",
    "--resize_filter=area",
    "--quality=9",
    "--workers=2",
    "--dry_run",
    "--restart",
    "--file_timeout=9",
    "--update",
    "--verify",
    "--rebuild_index",
    "--shard=1/2",
    "--dask=tcp://host:1",
    "--merge=a.h5",
    "--contact_sheet=s.png",
    "--contact_masks=images/=masks/",
]


def test_a_flag_of_converting_is_refused_beside_extract(nested, back, extract, tmp_path):
    for flag in OF_CONVERSION:
        with case(flag):
            before = everything_below(tmp_path)
            assert_refused(extract(nested, back, flag), flag.partition("=")[0], "--extract")
            assert everything_below(tmp_path) == before


def test_the_flags_of_the_help_are_those_tested_here(capfd):
    text = run_here(capfd, "--help").out
    flags = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    tested = {flag[2:].partition("=")[0] for flag in OF_CONVERSION}
    assert flags == tested | COMMON | {"extract"}
    sections = re.split(r"^(?=\S.*:$)", text, flags=re.MULTILINE)
    of_every_mode = [section for section in sections if section.startswith("every mode")]
    assert set(re.findall(r"^  --(\w+)", of_every_mode[0], re.MULTILINE)) == COMMON - {"overwrite"}


def test_extract_needs_the_file_to_extract(back, capfd):
    with pytest.raises(SystemExit) as ended:
        main([f"--extract={back}"])
    assert ended.value.code == 2
    assert "--path_output" in capfd.readouterr().err
    assert not back.exists()


def test_quiet_and_overwrite_go_with_extract(nested, back, extract):
    ended = extract(nested, back, "--quiet", "--overwrite")
    assert (ended.status, ended.err) == (0, "")
    assert "3 files written" in ended.out


# What interrupts


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("store", ["encoded", "array"])
def test_a_full_disk_leaves_no_half_file(store, tmp_path, back):
    files = {f"{n}.txt": bytes([n]) * (900_000 if n == 3 else 1000) for n in range(6)}
    if store == "encoded":
        path = encode(tmp_path / "source", files)
    else:
        arrays = {key: np.frombuffer(data, np.uint8) for key, data in files.items()}
        path = write_h5(tmp_path / "array.h5", arrays)
    ended = run(
        extract_command(path, back),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert ended.status == 1, ended.err  # it began
    (line,) = [line for line in ended.err.splitlines() if "could not be written" in line]
    assert str(back) in line
    assert "after 3 of" in line
    assert "Traceback" not in ended.err
    suffix = "" if store == "encoded" else ".npy"
    assert sorted(files_of(back)) == [f"{n}.txt{suffix}" for n in range(3)]
    if store == "encoded":
        assert_whole(back, files)
    if store == "encoded":
        (back / "3.txt").write_bytes(files["3.txt"])  # an older one
        ended = run(
            extract_command(path, back, "--overwrite"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        )
        assert ended.status == 1
        assert list(assert_whole(back, files)) == [f"{n}.txt" for n in range(4)]
    again = run(extract_command(path, back, "--overwrite"))
    assert again.status == 0, again.err
    assert len(files_of(back)) == 6


# Extracts again and again, each time with Ctrl-C one step of extract.py later.
INTERRUPTING = """
import os, pathlib, shutil, signal, sys
sys.path.insert(0, {root!r})
from converter.cli import main

path, source, back, *flags = sys.argv[1:]
wanted = {{file.name: file.read_bytes() for file in pathlib.Path(source).rglob("*.txt")}}


def run_and_interrupt_at(step):
    def trace(frame, event, argument):
        nonlocal step
        if not frame.f_code.co_filename.endswith("extract.py"):
            return None
        step -= 1
        if step == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return trace

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.settrace(trace)
    try:
        return main(["--path_output=" + path, "--extract=" + back, *flags])
    finally:
        sys.settrace(None)


statuses = set()
for step in range(1, 5000):
    shutil.rmtree(back, ignore_errors=True)
    if flags:
        shutil.copytree(source, back)
    statuses.add(run_and_interrupt_at(step))
    for file in pathlib.Path(back).rglob("*.txt"):
        if file.read_bytes() != wanted[file.name]:
            sys.exit(f"at step {{step}} {{file}} has {{file.stat().st_size}} bytes")
    if 0 in statuses:
        break
assert step > 100 and statuses == {{0, 130}}, (step, statuses)
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_ctrl_c_at_any_step_leaves_no_half_file(flags, tmp_path, back):
    files = {f"sub/{n}.txt": bytes([65 + n]) * 5000 for n in range(3)}
    path = encode(tmp_path / "source", files)
    driver = tmp_path / "driver.py"
    driver.write_text(INTERRUPTING.format(root=str(ROOT)))
    ended = run([sys.executable, *map(str, (driver, path, tmp_path / "source", back)), *flags])
    assert ended.status == 0, ended.err[-500:]
    assert "Traceback" not in ended.err


# Sends a signal just before a file gets its name.
SIGNALLED = """
import os, pathlib, signal, sys
sys.path.insert(0, {root!r})
from converter.cli import main

real = pathlib.Path.replace

def signal_and_replace(self, target):
    if target.name == "3.txt":
        os.kill(os.getpid(), signal.{signal})
    return real(self, target)

pathlib.Path.replace = signal_and_replace
sys.exit(main())
"""


@pytest.mark.everyday(1)
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_it_in_one_sentence(name, tmp_path, back):
    files = {f"{n}.txt": bytes([65 + n]) * 5000 for n in range(6)}
    path = encode(tmp_path / "source", files)
    driver = write_functions(tmp_path / "driver.py", SIGNALLED.format(root=str(ROOT), signal=name))
    ended = run([sys.executable, str(driver), *extract_command(path, back)[2:]])
    assert ended.status == 128 + getattr(signal, name), ended.err
    assert ended.err == f"converter: interrupted, {back} holds a part of the files\n"
    assert ended.out == ""
    assert 3 <= len(assert_whole(back, files)) <= 4


SLOW = """
import sys, time
sys.path.insert(0, {root!r})
from converter.loader import h5folder
from converter.cli import main

read_bytes = h5folder.H5Folder.read_bytes

def slowly(*arguments):
    time.sleep(0.02)
    return read_bytes(*arguments)

h5folder.H5Folder.read_bytes = slowly
sys.exit(main())
"""


@pytest.mark.slow
def test_ctrl_c_says_that_a_part_is_there(tmp_path, back):
    files = {f"{n:03}.txt": bytes([n]) * 100_000 for n in range(200)}
    path = encode(tmp_path / "source", files)
    driver = write_functions(tmp_path / "driver.py", SLOW.format(root=str(ROOT)))
    process = start([sys.executable, str(driver), *extract_command(path, back)[2:]])
    wait_until((back / "002.txt").exists)
    for _ in range(3):  # impatiently
        os.killpg(process.pid, signal.SIGINT)
    ended = finish(process)
    assert ended.status == 130
    assert ended.err == f"converter: interrupted, {back} holds a part of the files\n"
    assert 2 < len(assert_whole(back, files)) < 200
