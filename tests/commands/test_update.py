"""An updated file is the file a fresh conversion gives, and what did not change is not read."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter.files import Handle
from converter.writer import provenance
from converter.writer.reuse import FAILURES_AT_ONCE
from helpers.check import assert_refused, assert_same, everything_below, failures, stored
from helpers.damage import cut_in_half, flip, parts_of, payload_of, without_sources
from helpers.images import colours, save, save_jpegs
from helpers.run import Finished, command, read_with, run, write_functions
from helpers.seams import pretend_free

LONG_AGO_NS = 1_500_000_000_123_456_789
NEW_FILES = FAILURES_AT_ONCE + 50  # of which the first go into the journal
NAMES = ["a.jpg", "b.jpg", "sub/c.jpg", "sub/deep/d.jpg", "z/e.jpg"]

READER = """
from pathlib import Path
import numpy as np

def my_read(path_sample):
    with open(Path(__file__).with_name("read.log"), "a") as log:
        log.write(Path(path_sample).name + "\\n")
    return np.load(path_sample)
"""

#: Ends the process that reads m.npy, as a crash would, while a file "kill" lies beside it.
DEADLY_READER = """
import os
import signal
from pathlib import Path
import numpy as np

def my_read(path_sample):
    if path_sample.endswith("m.npy") and Path(__file__).with_name("kill").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return np.load(path_sample)
"""

PRUNER = """
def my_prune(filename_str, ext_str):
    return filename_str.endswith(ext_str) and "skip" not in filename_str
"""


def settle(folder: Path, mtime_ns: int = LONG_AGO_NS) -> None:
    """Give all files one time long ago: what is written from now on has another."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(mtime_ns, mtime_ns))


@pytest.fixture
def album(folder) -> Path:
    save_jpegs(folder, NAMES)
    settle(folder)
    return folder


@pytest.fixture
def assert_as_fresh(convert, tmp_path) -> Callable[..., None]:
    """Compare a file and its list of failures with those of a fresh conversion."""

    def assert_as_fresh(folder: Path, output: Path, *flags: str) -> None:
        fresh = tmp_path / "fresh" / output.name
        ended = convert(folder, fresh, *flags, "--overwrite")
        assert ended.status in (0, 1), ended.err
        assert output.read_bytes() == fresh.read_bytes()
        assert failures(output) == failures(fresh)
        names = {output.name, output.name + ".failures.csv"}
        assert {path.name for path in output.parent.iterdir()} <= names

    return assert_as_fresh


def look(path: Path) -> tuple[bytes, int, int]:
    """Return a file's bytes, time and inode."""
    status = path.stat()
    return path.read_bytes(), status.st_mtime_ns, status.st_ino


def changes(ended: Finished) -> dict[str, int]:
    """Return what an update says it found."""
    match = re.search(r"^(\d+) added, (\d+) changed, (\d+) removed, (\d+) kept$", ended.out, re.M)
    assert match, ended.out
    return dict(zip(("added", "changed", "removed", "kept"), map(int, match.groups()), strict=True))


def assert_changes(
    ended: Finished, *, added: int = 0, changed: int = 0, removed: int = 0, kept: int = 0
) -> None:
    assert changes(ended) == {"added": added, "changed": changed, "removed": removed, "kept": kept}


def write_arrays(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array)


def numbers(seed: int, shape: tuple[int, ...] = (5, 6), dtype: str = "u1") -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def reading(path: Path, text: str = READER) -> tuple[str, ...]:
    """Write functions; return the flags that have .npy files read by them."""
    functions = write_functions(path / "np_functions.py", text)
    return (*read_with(functions), "--ext=npy")


# What an update does


WAYS = {
    "array": (),
    "one worker": ("--workers=1",),
    "three workers": ("--workers=3",),
    "a worker that is watched": ("--workers=1", "--file_timeout=60"),
    "none": ("--compression=none",),
    "gzip": ("--compression=gzip:6",),
    "encoded": ("--store=encoded",),
    "encoded, unchecked": ("--store=encoded", "--skip_decode_check"),
    "opencv": ("--reader=opencv",),
}
NOT_RECORDED = ("--workers", "--file_timeout")


@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS)
def test_new_changed_and_removed_files_give_what_a_fresh_conversion_gives(
    flags, album, output, convert, update, assert_as_fresh
):
    if "--reader=opencv" in flags:
        pytest.importorskip("cv2")
    convert(album, output, *flags)
    save(album / "aa.jpg", colours(10))
    save(album / "new/n.jpg", colours(11, (40, 9, 3)))
    save(album / "sub/c.jpg", colours(12, (21, 31, 3)))
    (album / "b.jpg").unlink()
    ended = update(album, output, *(flag for flag in flags if flag.startswith(NOT_RECORDED)))
    assert ended.status == 0, ended.err
    assert_changes(ended, added=2, changed=1, removed=1, kept=3)
    assert f"{output}: 6 stored, 0 failed" in ended.out
    assert_as_fresh(album, output, *flags)


def test_what_did_not_change_is_not_read(folder, output, tmp_path, convert, update):
    write_arrays(folder, {f"{name}.npy": numbers(n) for n, name in enumerate("abcd")})
    settle(folder)
    flags = reading(tmp_path)
    assert convert(folder, output, *flags).status == 0
    log = tmp_path / "read.log"
    log.unlink()
    write_arrays(folder, {"b.npy": numbers(9), "e.npy": numbers(10)})
    (folder / "c.npy").unlink()
    ended = update(folder, output, flags[1])
    assert_changes(ended, added=1, changed=1, removed=1, kept=2)
    assert {*log.read_text().split()} == {"b.npy", "e.npy"}
    log.unlink()
    assert_changes(update(folder, output, flags[1]), kept=4)
    assert not log.exists()


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
def test_where_nothing_changed_nothing_is_written(workers, album, output, convert, update):
    convert(album, output)
    before = look(output)
    ended = update(album, output, workers)
    assert ended.status == 0
    assert ended.err == ""
    assert_changes(ended, kept=5)
    assert f"{output}: nothing changed, 5 files, nothing written" in ended.out
    assert look(output) == before
    assert os.listdir(output.parent) == ["OUT.h5"]


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
def test_where_nothing_changed_failures_are_reported_all_the_same(
    workers, album, output, convert, update
):
    (album / "a1.jpg").write_bytes(b"none")
    (album / "zz.jpg").write_bytes(b"")
    assert convert(album, output).status == 1
    before, listed = look(output), failures(output)
    assert set(listed) == {"a1.jpg", "zz.jpg"}
    ended = update(album, output, workers)
    assert ended.status == 1
    assert_changes(ended, kept=5)
    for name, reason in listed.items():
        assert f"{name}: {reason}\n" in ended.err
    assert f"{output}: nothing changed, 5 files" in ended.out
    assert look(output) == before
    assert failures(output) == listed
    assert sorted(os.listdir(output.parent)) == ["OUT.h5", "OUT.h5.failures.csv"]


def test_a_file_that_failed_and_was_repaired_is_stored(
    album, output, convert, update, assert_as_fresh
):
    (album / "bad.jpg").write_bytes(b"none")
    convert(album, output)
    assert set(failures(output)) == {"bad.jpg"}
    save(album / "bad.jpg", colours(20))
    ended = update(album, output)
    assert ended.status == 0, ended.err
    assert_changes(ended, added=1, kept=5)
    assert not output.with_name("OUT.h5.failures.csv").exists()
    assert "bad.jpg" in stored(output)
    assert_as_fresh(album, output)


def test_a_file_that_failed_is_tried_again_though_it_did_not_change(
    folder, output, tmp_path, convert, update, assert_as_fresh
):
    """What a reader needs may have been missing: a network, a second file."""
    write_arrays(folder, {"a.npy": numbers(1), "b.npy": numbers(2)})
    settle(folder)
    text = """
    from pathlib import Path
    import numpy as np

    def my_read(path_sample):
        if path_sample.endswith("b.npy"):
            Path(__file__).with_name("needed").read_bytes()
        return np.load(path_sample)
    """
    flags = reading(tmp_path, text)
    assert convert(folder, output, *flags).status == 1
    assert update(folder, output, flags[1]).status == 1
    (tmp_path / "needed").write_bytes(b"")
    ended = update(folder, output, flags[1])
    assert ended.status == 0
    assert_changes(ended, added=1, kept=1)
    assert_as_fresh(folder, output, *flags)


def test_a_good_file_that_was_broken_is_dropped_and_reported(
    album, output, convert, update, assert_as_fresh
):
    convert(album, output)
    (album / "sub/c.jpg").write_bytes(b"broken")
    ended = update(album, output)
    assert ended.status == 1
    assert "sub/c.jpg: " in ended.err
    assert_changes(ended, removed=1, kept=4)
    assert "sub/c.jpg" not in stored(output)
    assert set(failures(output)) == {"sub/c.jpg"}
    assert_as_fresh(album, output)


def test_where_all_files_fail_the_old_file_stays(album, output, convert, update):
    convert(album, output)
    before = look(output)
    for name in NAMES:
        (album / name).write_bytes(b"broken")
    ended = update(album, output)
    assert ended.status == 1
    assert "none of the 5 files could be read" in ended.err
    assert f"{output} is as it was" in ended.err
    assert look(output) == before


def test_at_the_first_failure_the_old_file_stays_when_asked_for(album, output, convert, update):
    convert(album, output)
    before = look(output)
    (album / "sub/c.jpg").write_bytes(b"broken")
    (album / "b.jpg").unlink()
    ended = update(album, output, "--on_error=stop")
    assert ended.status == 1
    assert "sub/c.jpg: " in ended.err
    assert look(output) == before


def test_at_a_failure_there_was_before_it_stops_too_when_asked_for(album, output, convert, update):
    (album / "bad.jpg").write_bytes(b"none")
    convert(album, output)
    before = look(output)
    ended = update(album, output, "--on_error=stop")
    assert ended.status == 1
    assert "bad.jpg: " in ended.err
    assert look(output) == before


def test_after_other_times_alone_files_are_read_again(
    album, output, convert, update, assert_as_fresh
):
    convert(album, output)
    before = output.read_bytes()
    begin = parts_of(output)["sources"].begin
    for name in ("a.jpg", "z/e.jpg"):
        os.utime(album / name, ns=(LONG_AGO_NS, LONG_AGO_NS + 1))
    ended = update(album, output)
    assert ended.status == 0
    assert_changes(ended, changed=2, kept=3)
    assert output.read_bytes() != before
    assert output.read_bytes()[:begin] == before[:begin]
    assert_as_fresh(album, output)
    assert_changes(update(album, output), kept=5)


def test_copies_of_a_folder_with_other_times_differ_in_the_sources_alone(
    album, output, tmp_path, convert
):
    copy = tmp_path / "copy"
    shutil.copytree(album, copy)
    settle(copy, LONG_AGO_NS + 10**9)
    other = output.with_name("OTHER.h5")
    convert(album, output)
    convert(copy, other)
    assert output.read_bytes() != other.read_bytes()
    assert without_sources(output) == without_sources(other)


def test_a_time_before_1970_and_one_far_ahead_are_kept(album, output, convert, update):
    os.utime(album / "a.jpg", ns=(-1_000_000_001, -1_000_000_001))
    os.utime(album / "b.jpg", ns=(2**33 * 10**9, 2**33 * 10**9))
    convert(album, output)
    assert_changes(update(album, output), kept=5)


def test_the_same_bytes_under_another_size_of_file_are_read_again(album, output, convert, update):
    """The time alone does not tell: tools such as rsync and unzip set it."""
    convert(album, output)
    with (album / "a.jpg").open("ab") as file:
        file.write(b"behind the end of the image")
    settle(album)
    assert_changes(update(album, output), changed=1, kept=4)


def test_files_renamed_and_moved_between_folders_are_found_under_their_new_names(
    album, output, convert, update, assert_as_fresh
):
    convert(album, output)
    before = stored(output)
    (album / "a.jpg").rename(album / "renamed.jpg")
    (album / "moved").mkdir()
    (album / "sub/c.jpg").rename(album / "moved/c.jpg")
    (album / "sub/deep/d.jpg").rename(album / "d.jpg")
    (album / "z").rename(album / "y")
    ended = update(album, output)
    assert_changes(ended, added=4, removed=4, kept=1)
    now = stored(output)
    assert sorted(now) == ["b.jpg", "d.jpg", "moved/c.jpg", "renamed.jpg", "y/e.jpg"]
    assert_same(now["renamed.jpg"], before["a.jpg"])
    assert_same(now["d.jpg"], before["sub/deep/d.jpg"])
    assert_as_fresh(album, output)


def test_two_files_that_change_names_are_not_mistaken_for_each_other(
    album, output, convert, update, assert_as_fresh
):
    """Same sizes, same times: then names decide, as they do for make and rsync."""
    save(album / "x.jpg", colours(30))
    save(album / "y.jpg", colours(31, (10, 10, 3)))
    settle(album)
    convert(album, output)
    for old, new in (("x.jpg", "t"), ("y.jpg", "x.jpg"), ("t", "y.jpg")):
        (album / old).rename(album / new)
    assert_changes(update(album, output), changed=2, kept=5)
    assert_as_fresh(album, output)


def test_a_file_may_become_a_folder_and_a_folder_a_file(
    album, output, convert, update, assert_as_fresh
):
    save_jpegs(album, ["x.jpg", "y.jpg/inner.jpg"])
    convert(album, output)
    (album / "x.jpg").unlink()
    shutil.rmtree(album / "y.jpg")
    save_jpegs(album, ["x.jpg/inner.jpg", "y.jpg"])
    ended = update(album, output)
    assert ended.status == 0, ended.err
    assert_changes(ended, added=2, removed=2, kept=5)
    assert_as_fresh(album, output)


def test_a_folder_that_lost_its_files_is_gone(album, output, convert, update, assert_as_fresh):
    convert(album, output)
    shutil.rmtree(album / "sub/deep")
    (album / "z/e.jpg").unlink()  # the empty folder stays
    assert_changes(update(album, output), removed=2, kept=3)
    with h5py.File(output) as file:
        assert "z" not in file
        assert "sub/deep" not in file
    assert_as_fresh(album, output)


def test_a_folder_that_lost_all_its_files_is_refused(album, output, convert, update, tmp_path):
    convert(album, output)
    for name in NAMES:
        (album / name).unlink()
    before = everything_below(tmp_path)
    assert_refused(update(album, output), "no .jpg files", str(album))
    assert everything_below(tmp_path) == before


def test_a_folder_that_has_none_of_the_files_is_refused(album, output, convert, update, tmp_path):
    convert(album, output)
    other = save_jpegs(tmp_path / "other", ["x.jpg", "sub/y.jpg"])
    before = everything_below(tmp_path)
    assert_refused(update(other, output), str(other), "none of the 5 files", "--path_images")
    assert everything_below(tmp_path) == before
    shutil.copy(album / "a.jpg", other)
    assert_changes(update(other, output), added=2, removed=4, changed=1)


def test_removed_files_alone_make_the_file_smaller(album, output, convert, update, assert_as_fresh):
    convert(album, output)
    before = output.stat().st_size
    (album / "a.jpg").unlink()
    assert_changes(update(album, output), removed=1, kept=4)
    assert output.stat().st_size < before
    assert_as_fresh(album, output)


def test_of_the_last_sample_alone_the_rest_still_goes(
    album, output, convert, update, assert_as_fresh
):
    """All that is kept lies in its place, and yet the file must become shorter."""
    convert(album, output)
    (album / "z/e.jpg").unlink()
    assert_changes(update(album, output), removed=1, kept=4)
    assert_as_fresh(album, output)


ARRAYS = {
    "scalar.npy": np.array(5, "<i4"),
    "none.npy": np.empty((0, 3), "f8"),
    "smooth.npy": (np.arange(1_500_000) // 7).astype("<u2").reshape(1000, 1500),
    "large.npy": (np.arange(4_000_000) // 5).astype(">u4").reshape(2, 2000, 1000),
    "noise.npy": numbers(1, (700, 900), "f4"),
    "fields.npy": np.array([(1, 2.5, b"ab")] * 5, [("a", "<i4"), ("b", ">f8"), ("c", "S3")]),
    "flags.npy": np.array([True, False, True]),
    "complex.npy": np.arange(6).astype("c16"),
}


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
@pytest.mark.parametrize("compression", ["auto", "none", "gzip:1", "zstd:1", "blosc2"])
def test_arrays_of_all_kinds_are_kept_as_they_are(
    compression, workers, folder, output, tmp_path, convert, update, assert_as_fresh
):
    if compression.startswith(("zstd", "blosc2")):
        pytest.importorskip({"z": "zstandard", "b": "blosc2"}[compression[0]])
    write_arrays(folder, {f"{place}/{name}": a for place in "bd" for name, a in ARRAYS.items()})
    settle(folder)
    flags = (*reading(tmp_path), f"--compression={compression}")
    assert convert(folder, output, *flags).status == 0
    write_arrays(folder, {f"{place}/{name}": a for place in "ac" for name, a in ARRAYS.items()})
    (folder / "b/large.npy").unlink()
    ended = update(folder, output, flags[1], workers)
    assert ended.status == 0, ended.err
    assert_changes(ended, added=16, removed=1, kept=15)
    assert_as_fresh(folder, output, *flags)
    read = H5Folder(output, verify=True)
    for key in read:
        expected = ARRAYS[key.rpartition("/")[2]]
        assert read[key].dtype == expected.dtype
        np.testing.assert_array_equal(read[key], expected)


def test_texts_and_bytes_of_my_read_are_kept(
    folder, output, tmp_path, convert, update, assert_as_fresh
):
    for name in "abc":
        (folder / f"{name}.txt").write_text(name * 10_000, encoding="utf-8")
        (folder / f"{name}.bin").write_bytes(name.encode() * 7)
    (folder / "empty.txt").write_text("")
    settle(folder)
    text = """
    def my_read(path_sample):
        if path_sample.endswith(".txt"):
            return open(path_sample, encoding="utf-8").read()
        return open(path_sample, "rb").read()
    """
    flags = (*reading(tmp_path, text)[:2], "--ext=txt,bin")
    assert convert(folder, output, *flags).status == 0
    (folder / "b.txt").unlink()
    (folder / "d.txt").write_text("new")
    assert_changes(update(folder, output, flags[1]), added=1, removed=1, kept=6)
    assert_as_fresh(folder, output, *flags)


@pytest.mark.slow
def test_an_image_in_many_samples_is_updated_many_times(
    folder, output, tmp_path, convert, update, assert_as_fresh
):
    """More samples than a batch holds, kept and fresh ones in turns."""
    write_arrays(folder, {f"{n:04}.npy": numbers(n) for n in range(1200)})
    settle(folder)
    flags = (*reading(tmp_path), "--compression=none")
    convert(folder, output, *flags)
    for round_ in range(3):
        random = np.random.default_rng(round_)
        for n in random.choice(1200, 300, replace=False).tolist():
            path = folder / f"{n:04}.npy"
            if path.exists() and n % 3 == 0:
                path.unlink()
            else:
                write_arrays(folder, {path.name: numbers(2000 + n, (round_ + 1, 7))})
                os.utime(path, ns=(round_, round_))
        ended = update(folder, output, flags[1], f"--workers={1 + round_}")
        assert ended.status == 0, ended.err
        assert_as_fresh(folder, output, *flags)


def test_palettes_and_frames_are_converted_as_before(
    folder, output, convert, update, assert_as_fresh
):
    import PIL.Image

    image = PIL.Image.fromarray(colours()).convert("P")
    image.save(folder / "p.png")
    save(folder / "a.png", colours(1))
    settle(folder)
    convert(folder, output, "--ext=png")
    save(folder / "b.png", colours(2))
    assert_changes(update(folder, output), added=1, kept=2)
    assert_as_fresh(folder, output, "--ext=png")


def test_an_output_within_the_folder_is_no_sample_of_its_own(
    folder, tmp_path, convert, update, assert_as_fresh
):
    write_arrays(folder, {"a.npy": numbers(1)})
    settle(folder)
    output = folder / "OUT.h5"
    text = 'def my_read(path_sample): return open(path_sample, "rb").read()'
    flags = (*reading(tmp_path, text)[:2], "--ext=npy,h5,csv,partial,journal")
    assert convert(folder, output, *flags).status == 0
    assert_changes(update(folder, output, flags[1]), kept=1)
    write_arrays(folder, {"b.npy": numbers(2)})
    assert_changes(update(folder, output, flags[1]), added=1, kept=1)
    assert sorted(stored(output)) == ["a.npy", "b.npy"]


def test_who_has_the_old_file_open_reads_on_in_it(album, output, convert, update):
    convert(album, output)
    before = stored(output)
    folder = H5Folder(output)
    assert len(folder) == 5
    save(album / "a.jpg", colours(50, (60, 70, 3)))
    (album / "b.jpg").unlink()
    assert update(album, output).status == 0
    for name in NAMES:
        assert_same(folder[name], before[name])
    assert sorted(H5Folder(output)) == sorted({*NAMES} - {"b.jpg"})


# Options


def test_flags_not_typed_are_those_of_the_file(
    folder, output, tmp_path, convert, update, assert_as_fresh
):
    elsewhere = tmp_path / "elsewhere"
    save_jpegs(elsewhere, ["linked.jpg"])
    save(folder / "a.png", colours(1))
    save(folder / "large.png", colours(2, (90, 90, 3)))
    save_jpegs(folder, ["b.jpg", "c.jpeg"])
    (folder / "link").symlink_to(elsewhere)
    settle(folder)
    settle(elsewhere)
    flags = ("--ext=png,jpg", "--store=encoded", "--max_pixels=5000", "--follow_links")
    assert convert(folder, output, *flags).status == 1
    save(folder / "d.png", colours(3))
    ended = update(folder, output)
    assert ended.status == 1
    assert_changes(ended, added=1, kept=3)
    assert set(failures(output)) == {"large.png"}
    assert sorted(stored(output)) == ["a.png", "b.jpg", "d.png", "link/linked.jpg"]
    assert_as_fresh(folder, output, *flags)


EQUAL_FLAGS = [
    (("--ext=jpg",), ("--ext=jpg",)),
    (("--ext=jpg",), ("--ext=.JPG",)),
    (("--ext=jpg,png",), ("--ext=png, jpg",)),
    (("--ext=jpg",), ("--ext=jpg,jpg",)),
    (("--ext=jpg,",), ("--ext=jpg",)),
    ((), ("--ext=jpg",)),
    ((), ("--store=array",)),
    ((), ("--compression=auto",)),
    (("--compression=gzip",), ("--compression=gzip:2",)),
    (("--compression=gzip:2",), ("--compression=gzip",)),
    (("--reader=imageio",), ()),
    (("--reader=imageio",), ("--reader=imageio",)),
    ((), ("--reader=imageio",)),
    (("--store=encoded", "--skip_decode_check"), ("--store=encoded", "--skip_decode_check")),
    (("--max_pixels=100000",), ("--max_pixels=100000",)),
    (("--follow_links",), ("--follow_links",)),
    ((), ("--workers=2", "--on_error=stop", "--quiet", "--file_timeout=60", "--restart")),
]


@pytest.mark.parametrize(("made", "typed"), EQUAL_FLAGS, ids=str)
def test_flags_that_say_what_the_file_says_are_accepted(
    made, typed, album, output, convert, update, assert_as_fresh
):
    assert convert(album, output, *made).status == 0
    assert_changes(update(album, output, *typed), kept=5)
    save(album / "new.jpg", colours(8))
    ended = update(album, output, *typed)
    assert ended.status == 0, ended.err
    assert_changes(ended, added=1, kept=5)
    assert_as_fresh(album, output, *made)


DIFFERENT_FLAGS = [
    ((), "--ext=png", "--ext=jpg"),
    ((), "--ext=jpg,png", "--ext=jpg"),
    (("--ext=jpg,png",), "--ext=jpg", "--ext=jpg,png"),
    ((), "--store=encoded", "--store=array"),
    (("--store=encoded",), "--store=array", "--store=encoded"),
    ((), "--compression=none", "--compression=auto"),
    (("--compression=gzip",), "--compression=gzip:3", "--compression=gzip:2"),
    ((), "--max_pixels=100000", "no --max_pixels"),
    (("--max_pixels=100000",), "--max_pixels=100001", "--max_pixels=100000"),
    ((), "--follow_links", "no --follow_links"),
    ((), "--skip_decode_check", "no --skip_decode_check"),
    ((), "--reader=opencv", "--reader=imageio"),
    ((), "--custom_read_func", "no --custom_read_func"),
    ((), "--custom_prune_func", "no --custom_prune_func"),
]


@pytest.mark.parametrize(("made", "typed", "named"), DIFFERENT_FLAGS, ids=str)
def test_flags_that_differ_from_the_files_are_refused(
    made, typed, named, album, output, convert, update, tmp_path
):
    assert convert(album, output, *made).status == 0
    save(album / "new.jpg", colours(8))
    before = everything_below(tmp_path)
    ended = update(album, output, typed)
    said = named if "reader" not in typed else "--reader"
    assert_refused(ended, str(output), said, typed, "--overwrite")
    assert everything_below(tmp_path) == before


MODES = [
    ("--overwrite",),
    ("--dry_run",),
    ("--rebuild_index",),
    ("--verify",),
    ("--extract=back",),
]


@pytest.mark.parametrize("flags", MODES, ids=str)
def test_flags_of_other_modes_are_refused(flags, album, output, convert, update, tmp_path):
    convert(album, output)
    before = everything_below(tmp_path)
    assert_refused(update(album, output, *flags), flags[0].partition("=")[0], "--update")
    assert everything_below(tmp_path) == before


def test_without_a_folder_it_says_what_is_missing(output):
    import sys

    from helpers.run import ROOT

    ended = run([sys.executable, str(ROOT / "converter"), "--update", f"--path_output={output}"])
    assert_refused(ended, "--path_images")


# my_read and my_prune


def test_my_prune_decides_anew_and_keeps_what_it_keeps(
    album, output, tmp_path, convert, update, assert_as_fresh
):
    save_jpegs(album, ["skip_1.jpg", "odd.JPG"])
    settle(album)
    functions = write_functions(tmp_path / "prune_functions.py", PRUNER)
    flags = ("--custom_prune_func", f"--path_functions={functions}", "--ext=.jpg")
    assert convert(album, output, *flags).status == 0
    assert sorted(stored(output)) == NAMES
    save_jpegs(album, ["skip_2.jpg", "new.jpg"])
    (album / "a.jpg").rename(album / "a_skip.jpg")
    ended = update(album, output, flags[1])
    assert ended.status == 0, ended.err
    assert_changes(ended, added=1, removed=1, kept=4)
    assert_as_fresh(album, output, *flags)


@pytest.mark.parametrize("typed", ["--ext=jpg", "--ext=.JPG", "--ext=.jpg,"])
def test_what_my_prune_gets_as_ext_counts_letter_by_letter(
    typed, album, output, tmp_path, convert, update
):
    functions = write_functions(tmp_path / "prune_functions.py", PRUNER)
    flags = ("--custom_prune_func", f"--path_functions={functions}", "--ext=.jpg")
    assert convert(album, output, *flags).status == 0
    assert_changes(update(album, output, *flags), kept=5)
    assert_refused(update(album, output, flags[1], typed), "--ext=.jpg", typed)


def test_the_same_functions_under_another_name_are_accepted(
    folder, output, tmp_path, convert, update
):
    write_arrays(folder, {"a.npy": numbers(1)})
    settle(folder)
    flags = reading(tmp_path)
    convert(folder, output, *flags)
    other = tmp_path / "other_functions.py"
    shutil.copy(tmp_path / "np_functions.py", other)
    assert_changes(update(folder, output, f"--path_functions={other}"), kept=1)


@pytest.mark.parametrize("which", ["my_read", "my_prune"])
def test_other_functions_are_refused(which, album, output, tmp_path, convert, update):
    text = PRUNER + "\nimport imageio.v3\ndef my_read(path): return imageio.v3.imread(path)\n"
    functions = write_functions(tmp_path / "two_functions.py", text)
    flag = {"my_read": "--custom_read_func", "my_prune": "--custom_prune_func"}[which]
    assert convert(album, output, flag, f"--path_functions={functions}").status == 0
    functions.write_text(text + "# a comment\n", encoding="utf-8")
    save(album / "new.jpg", colours(8))
    before = everything_below(tmp_path)
    ended = update(album, output, f"--path_functions={functions}")
    assert_refused(ended, str(output), which, str(functions), "--overwrite")
    assert everything_below(tmp_path) == before


def test_functions_that_are_gone_are_named(album, output, tmp_path, convert, update):
    functions = write_functions(tmp_path / "one_functions.py", PRUNER)
    flags = ("--custom_prune_func", f"--path_functions={functions}")
    convert(album, output, *flags)
    functions.unlink()
    assert_refused(update(album, output, flags[1]), str(functions))


def test_functions_of_no_use_are_refused(album, output, tmp_path, convert, update):
    convert(album, output)
    functions = write_functions(tmp_path / "one_functions.py", PRUNER)
    ended = update(album, output, f"--path_functions={functions}")
    assert_refused(ended, "--path_functions needs --custom_read_func")


# The packages it was made with


def test_a_file_made_with_other_packages_is_read_anew(
    folder, output, tmp_path, convert, update, assert_as_fresh, monkeypatch
):
    """A package of another version may decode otherwise: the file would be of both."""
    write_arrays(folder, {f"{name}.npy": numbers(n) for n, name in enumerate("abc")})
    settle(folder)
    flags, log = reading(tmp_path), tmp_path / "read.log"
    versions = provenance.package_versions
    with monkeypatch.context() as patch:
        patch.setattr(
            provenance, "package_versions", lambda names: {**versions(names), "numpy": "1.0"}
        )
        assert convert(folder, output, *flags).status == 0
    log.unlink()
    ended = update(folder, output, flags[1])
    assert ended.status == 0, ended.err
    assert {*log.read_text().split()} == {"a.npy", "b.npy", "c.npy"}
    assert f"nothing of {output} can be kept, because it was made with numpy 1.0" in ended.err
    assert_as_fresh(folder, output, *flags)


# Broken off, and full disks


@pytest.fixture
def deadly(folder, output, tmp_path, convert) -> tuple[str, ...]:
    """A converted folder with 300 files to keep, and changes amid which the reader dies."""
    write_arrays(folder, {f"k{n:04}.npy": numbers(n) for n in range(300)})
    write_arrays(folder, {"c.npy": numbers(400), "x.npy": numbers(500)})
    settle(folder)
    flags = reading(tmp_path, DEADLY_READER)
    assert convert(folder, output, *flags).status == 0
    write_arrays(folder, {"a.npy": numbers(401), "m.npy": numbers(402), "x.npy": numbers(403)})
    write_arrays(folder, {f"b{n:04}.npy": numbers(n) for n in range(NEW_FILES)})
    (folder / "c.npy").unlink()
    (tmp_path / "kill").write_bytes(b"")
    return flags


def kill_update(folder: Path, output: Path, functions: str) -> None:
    """Run an update that is killed when it has come half-way; the old file stays."""
    before = look(output)
    ended = run(command(folder, output, "--update", "--workers=1", functions))
    assert ended.status == -signal.SIGKILL, ended
    assert look(output) == before
    assert len(H5Folder(output)) == 302
    assert output.with_name("OUT.h5.partial").stat().st_size > FAILURES_AT_ONCE


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
def test_an_update_that_was_killed_goes_on_when_repeated(
    workers, deadly, folder, output, tmp_path, update, assert_as_fresh
):
    kill_update(folder, output, deadly[1])
    (tmp_path / "kill").unlink()
    ended = update(folder, output, deadly[1], workers)
    assert ended.status == 0, ended.err
    assert "are kept from the interrupted run" in ended.err
    assert_as_fresh(folder, output, *deadly)


@pytest.mark.slow
def test_between_two_updates_the_folder_may_change_again(
    deadly, folder, output, tmp_path, update, assert_as_fresh
):
    kill_update(folder, output, deadly[1])
    (tmp_path / "kill").unlink()
    write_arrays(folder, {"b.npy": numbers(7), "k0100.npy": numbers(8), "c.npy": numbers(9)})
    (folder / "k0000.npy").unlink()
    (folder / "a.npy").unlink()
    before = look(output.with_name("OUT.h5.partial"))
    ended = update(folder, output, deadly[1])
    assert ended.status == 2
    assert "a.npy is gone since the run was interrupted, so only 0 of the" in ended.err
    assert look(output.with_name("OUT.h5.partial")) == before
    assert update(folder, output, deadly[1], "--restart").status == 0
    assert_as_fresh(folder, output, *deadly)


@pytest.mark.slow
def test_after_a_kill_the_folder_may_be_as_it_was_before(
    deadly, folder, output, tmp_path, convert, update, assert_as_fresh
):
    kill_update(folder, output, deadly[1])
    for name in ("a.npy", "m.npy", *(f"b{n:04}.npy" for n in range(NEW_FILES))):
        (folder / name).unlink()
    write_arrays(folder, {"c.npy": numbers(400), "x.npy": numbers(500)})
    for name in ("c.npy", "x.npy"):
        os.utime(folder / name, ns=(LONG_AGO_NS, LONG_AGO_NS))
    assert update(folder, output, deadly[1]).status == 2
    ended = update(folder, output, deadly[1], "--restart")
    assert ended.status == 0, ended.err
    assert_changes(ended, kept=302)
    assert_as_fresh(folder, output, *deadly)


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
def test_what_a_run_that_came_to_nothing_left_is_removed(
    workers, deadly, folder, output, tmp_path, update
):
    for path in folder.glob("b*.npy"):  # then nothing is written before it dies
        path.unlink()
    assert run(command(folder, output, "--update", "--workers=1", deadly[1])).status < 0
    assert output.with_name("OUT.h5.partial").exists()
    for name in ("a.npy", "m.npy"):
        (folder / name).unlink()
    write_arrays(folder, {"c.npy": numbers(400), "x.npy": numbers(500)})
    settle(folder)
    ended = update(folder, output, deadly[1], workers)
    assert_changes(ended, kept=302)
    assert "nothing changed" in ended.out
    assert os.listdir(output.parent) == ["OUT.h5"]


@pytest.mark.slow
def test_an_update_killed_twice_still_comes_to_its_end(
    deadly, folder, output, tmp_path, update, assert_as_fresh
):
    kill_update(folder, output, deadly[1])
    (folder / "k0007.npy").unlink()  # what is kept no longer lies in its place
    kill_update(folder, output, deadly[1])
    (tmp_path / "kill").unlink()
    assert update(folder, output, deadly[1]).status == 0
    assert_as_fresh(folder, output, *deadly)


@pytest.mark.slow
def test_it_begins_anew_when_asked_for(deadly, folder, output, tmp_path, update, assert_as_fresh):
    kill_update(folder, output, deadly[1])
    (tmp_path / "kill").unlink()
    ended = update(folder, output, deadly[1], "--restart")
    assert ended.status == 0
    assert "kept from the interrupted" not in ended.err
    assert_changes(ended, added=2 + NEW_FILES, changed=1, removed=1, kept=300)
    assert_as_fresh(folder, output, *deadly)


@pytest.mark.slow
def test_a_conversion_that_was_killed_can_be_followed_by_an_update(
    deadly, folder, output, tmp_path, convert, update, assert_as_fresh
):
    """What --overwrite had begun is of the same kind."""
    before = look(output)
    ended = run(command(folder, output, "--overwrite", "--workers=1", *deadly))
    assert ended.status == -signal.SIGKILL
    assert look(output) == before
    (tmp_path / "kill").unlink()
    assert update(folder, output, deadly[1]).status == 0
    assert_as_fresh(folder, output, *deadly)


def test_a_disk_too_small_for_the_new_file_is_refused(
    album, output, convert, update, tmp_path, monkeypatch
):
    convert(album, output)
    save(album / "new.jpg", colours(8))
    before = everything_below(tmp_path)
    pretend_free(monkeypatch, 5000)
    assert_refused(update(album, output), str(output), "MB are free", "--path_output")
    assert everything_below(tmp_path) == before


def test_a_small_disk_is_no_matter_where_nothing_changed(
    album, output, convert, update, monkeypatch
):
    convert(album, output)
    pretend_free(monkeypatch, 0)
    assert_changes(update(album, output), kept=5)


def test_of_what_is_kept_the_size_is_known(
    folder, output, tmp_path, convert, update, assert_as_fresh, monkeypatch
):
    """One large file is kept, a hundred small ones are new: the mean tells nothing."""
    write_arrays(folder, {"large.npy": numbers(1, (1000, 1000))})
    settle(folder)
    flags = (*reading(tmp_path), "--compression=none")
    convert(folder, output, *flags)
    write_arrays(folder, {f"{n:03}.npy": numbers(n) for n in range(100)})
    with monkeypatch.context() as patch:
        pretend_free(patch, 5_000_000)
        ended = update(folder, output, flags[1])
    assert ended.status == 0, ended.err
    assert_as_fresh(folder, output, *flags)


def test_large_files_beside_many_small_kept_ones_are_counted(
    folder, output, tmp_path, convert, update, monkeypatch
):
    write_arrays(folder, {f"{n:03}.npy": numbers(n) for n in range(100)})
    settle(folder)
    flags = (*reading(tmp_path), "--compression=none")
    convert(folder, output, *flags)
    write_arrays(folder, {f"large{n}.npy": numbers(1, (1000, 1000)) for n in range(4)})
    before = everything_below(output.parent)
    pretend_free(monkeypatch, 2_000_000)
    ended = update(folder, output, flags[1])
    assert ended.status == 2
    assert "would take about 4 MB, but only 2 MB are free" in ended.err
    assert everything_below(output.parent) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="limits a process by rlimit")
def test_a_disk_that_fills_up_leaves_the_old_file(album, output, convert, assert_as_fresh, update):
    convert(album, output, "--compression=none")
    save(album / "new.jpg", colours(8, (300, 400, 3)))
    before = look(output)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    ended = run(command(album, output, "--update", "--workers=1"), preexec_fn=limit)
    assert ended.status == 1
    assert "could not be written" in ended.err
    assert "Traceback" not in ended.err
    assert look(output) == before
    assert update(album, output).status == 0
    assert_as_fresh(album, output, "--compression=none")


# Files that cannot be updated, or are damaged


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
def test_a_damaged_payload_is_read_again(
    workers, compression, album, output, convert, update, assert_as_fresh
):
    flags = (f"--compression={compression}",)
    convert(album, output, *flags)
    good = output.read_bytes()
    part = payload_of(output, "sub/c.jpg")
    flip(output, (part.begin + part.end) // 2, 3)
    ended = update(album, output, workers)
    assert ended.status == 0, ended.err
    assert f"1 of the files kept were damaged in {output}: they were read again" in ended.err
    assert_changes(ended, kept=5)  # of the files none has changed
    assert output.read_bytes() == good
    assert_as_fresh(album, output, *flags)


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=3"])
def test_damaged_payloads_among_changed_files_are_read_again(
    workers, folder, output, tmp_path, convert, update, assert_as_fresh
):
    """Also the first and the last, two in a row, and one whose source now fails."""
    flags = reading(tmp_path)
    arrays = {f"{number:03d}.npy": numbers(number) for number in range(0, 120, 2)}
    write_arrays(folder, arrays)
    settle(folder)
    convert(folder, output, *flags)
    for number in (0, 50, 52, 60, 118):
        flip(output, payload_of(output, f"{number:03d}.npy").begin)
    (folder / "060.npy").write_bytes(bytes((folder / "060.npy").stat().st_size))
    write_arrays(folder, {f"{number:03d}.npy": numbers(number) for number in range(1, 120, 2)})
    settle(folder)
    (tmp_path / "read.log").unlink()
    ended = update(folder, output, workers, *flags)
    assert ended.status == 1
    assert f"5 of the files kept were damaged in {output}: they were read again" in ended.err
    assert_changes(ended, added=60, removed=1, kept=59)
    read = (tmp_path / "read.log").read_text().split()
    assert sorted(read) == sorted({*read}) and len(read) == 65  # each once
    assert_as_fresh(folder, output, *flags)


def test_what_is_kept_is_read_once_and_neighbours_together(
    album, output, convert, update, assert_as_fresh, monkeypatch
):
    convert(album, output, "--compression=none")
    real, found = Handle.read_into, []

    def read_into(handle: Handle, target: memoryview, offset: int) -> None:
        found.append((offset, memoryview(target).nbytes))
        real(handle, target, offset)

    monkeypatch.setattr(Handle, "read_into", read_into)
    save_jpegs(album, ["c.jpg"])
    (album / "b.jpg").unlink()
    payloads = {name: payload_of(output, name) for name in NAMES}
    found.clear()
    assert_changes(update(album, output), added=1, removed=1, kept=4)
    begins = [payload.begin for payload in payloads.values()]
    reads = [(offset, nbytes) for offset, nbytes in found if begins[0] <= offset <= begins[-1]]
    assert [offset for offset, _ in reads] == [begins[0], begins[2]]
    assert sum(nbytes for _, nbytes in reads) < payloads["z/e.jpg"].end
    assert_as_fresh(album, output, "--compression=none")


def test_a_damaged_payload_whose_source_is_gone_is_no_matter(
    album, output, convert, update, assert_as_fresh
):
    convert(album, output)
    flip(output, payload_of(output, "b.jpg").begin)
    (album / "b.jpg").unlink()
    ended = update(album, output)
    assert ended.status == 0
    assert ended.err == ""
    assert_as_fresh(album, output)


@pytest.mark.parametrize("part", ["rows", "paths", "layouts", "buckets", "slots", "footer"])
def test_a_damaged_index_is_refused(part, album, output, convert, update, tmp_path):
    convert(album, output)
    flip(output, parts_of(output)[part].begin)
    before = everything_below(tmp_path)
    ended = update(album, output)
    assert_refused(ended, str(output), "index", "convert")
    assert everything_below(tmp_path) == before


def test_damaged_sources_are_refused(album, output, convert, update, tmp_path):
    convert(album, output)
    flip(output, parts_of(output)["sources"].begin + 3)
    before = everything_below(tmp_path)
    assert_refused(update(album, output), str(output), "sizes and times", "--overwrite")
    assert everything_below(tmp_path) == before


def test_a_file_without_an_index_is_refused(album, output, convert, update, tmp_path):
    convert(album, output)
    with h5py.File(output, "r+") as file:
        file.attrs["note"] = "touched"
    before = everything_below(tmp_path)
    assert_refused(update(album, output), str(output), "has no index", "--overwrite")
    assert everything_below(tmp_path) == before


def test_a_file_whose_index_was_rebuilt_does_not_know_its_sources(
    album, output, convert, update, tmp_path
):
    from converter.callbacks import Callbacks
    from converter.commands.rebuild_index import rebuild_index

    convert(album, output)
    with h5py.File(output, "r+") as file:
        file.attrs["note"] = "touched"
    assert rebuild_index(output, Callbacks()) == 5
    before = everything_below(tmp_path)
    assert_refused(update(album, output), str(output), "sizes and times", "--overwrite")
    assert everything_below(tmp_path) == before


def make_other(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a.jpg"] = np.arange(5)


def make_strange(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"store": "array", "reader": "imageio", "options": "[]"})
        file["a.jpg"] = np.arange(5)


NO_FILES = {
    "nothing": (lambda path: path.unlink(), "drop --update to make it"),
    "empty": (lambda path: path.write_bytes(b""), "--overwrite"),
    "text": (lambda path: path.write_bytes(b"a text" * 100), "--overwrite"),
    "truncated": (cut_in_half, "--overwrite"),
    "foreign": (make_other, "--overwrite"),
    "strange": (make_strange, "--overwrite"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "folder"),
}


@pytest.mark.parametrize(("make", "words"), NO_FILES.values(), ids=NO_FILES)
def test_what_the_converter_did_not_make_is_refused(
    make, words, album, output, convert, update, tmp_path
):
    convert(album, output)
    make(output)
    before = everything_below(tmp_path)
    ended = update(album, output)
    assert_refused(ended, str(output), words)
    assert re.search(r"0x[0-9a-f]+|errno = |time = ", ended.err) is None
    assert everything_below(tmp_path) == before


@pytest.mark.slow
def test_work_left_over_stays_where_an_update_is_refused(deadly, folder, output, update, tmp_path):
    kill_update(folder, output, deadly[1])
    flip(output, parts_of(output)["rows"].begin)
    before = everything_below(output.parent)
    ended = update(folder, output, deadly[1])
    assert ended.status == 2
    assert f"the index of {output} is damaged" in ended.err
    assert everything_below(output.parent) == before


def test_other_runs_are_not_disturbed(album, output, convert, update):
    fcntl = pytest.importorskip("fcntl")
    convert(album, output)
    save(album / "new.jpg", colours(8))
    before = look(output)
    with output.with_name("OUT.h5.partial").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert_refused(update(album, output), "is being written by another run")
    assert look(output) == before
