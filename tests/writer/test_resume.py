"""A run that was broken off is gone on with: nothing is read twice, the result is the same."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import struct
import zlib
from collections import Counter

import pytest

from converter.files import Handle
from converter.writer.journal import VERSION, Journal, read_head, read_lines, read_rows
from converter.writer.paths import Paths
from helpers.check import case, everything_below, failures
from helpers.damage import flip
from helpers.images import colours, save
from helpers.resuming import KINDS, Conversion, counts, files_in, kept, taken_over
from helpers.run import command, finish, processes_left, run, start, wait_until, without_root_rights
from helpers.seams import forget_estimate, make_tasks_small, pretend_installed

FILES_IN_TASK = 4
NAMES = ("partial", "journal")


@pytest.fixture(autouse=True)
def _small_tasks(monkeypatch):
    """Record often: tasks of this process are of so few files."""
    make_tasks_small(monkeypatch, FILES_IN_TASK)
    # Files that the estimate has read would not be read, and end no run, where a test says so.
    forget_estimate(monkeypatch)


@pytest.fixture
def conversion(tmp_path, convert) -> Conversion:
    """30 files of all kinds, and two of several chunks."""
    made = Conversion(tmp_path, convert).add(30)
    made.put("0007.num", "chunks", 7)
    made.put("0025.num", "chunks", 25)
    return made


@pytest.fixture
def halfway(conversion) -> Conversion:
    """The same, broken off at the 22nd file: 20 are kept."""
    ended = conversion.break_off("0021.num")
    assert kept(ended) == 20
    conversion.reads()
    return conversion


KEPT, NOT_KEPT = [[f"{n:04}.num" for n in r] for r in (range(20), range(20, 30))]


def recorded_in(conversion: Conversion) -> set[str]:
    """Return the names a journal has."""
    return {row.key for row in read_rows(conversion.journal) if row.layout is not None}


# What is kept, and what is said of it


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_goes_on_where_the_one_before_was_broken_off(workers, conversion):
    flags = (f"--workers={workers}",)
    ended = conversion.break_off("0021.num", *flags, way="stop")
    count = kept(ended)
    assert 0 < count < 30
    assert set(os.listdir(conversion.output.parent)) == {"OUT.h5.partial", "OUT.h5.partial.journal"}
    recorded = recorded_in(conversion)
    assert len(recorded) == count
    inode = conversion.partial.stat().st_ino
    conversion.reads()
    again = conversion.run(*flags)
    assert again.status == 0
    stay = {name for name in recorded if name < "0021.num"}  # which can be read this time
    assert taken_over(again) == len(stay)
    assert counts(again) == "30 stored, 0 failed"
    read = Counter(conversion.reads())
    assert set(read) == set(conversion.names) - stay
    assert max(read.values()) <= 2  # the one it was broken off at: can it be read now?
    conversion.assert_as_uninterrupted()
    if not any(key > "0021.num" for key in recorded):
        assert conversion.output.stat().st_ino == inode  # kept in place


def test_what_is_kept_is_not_written_anew(halfway):
    inode = halfway.partial.stat().st_ino
    halfway.run()
    assert halfway.reads() == NOT_KEPT
    assert halfway.output.stat().st_ino == inode
    halfway.assert_as_uninterrupted()


@pytest.fixture
def read_of_partial(monkeypatch) -> list[int]:
    """How many bytes each access to the unfinished file has read."""
    real, found = Handle.read_into, []

    def read_into(handle: Handle, target: memoryview, offset: int) -> None:
        if handle.path.endswith(".partial"):
            found.append(memoryview(target).nbytes)
        real(handle, target, offset)

    monkeypatch.setattr(Handle, "read_into", read_into)
    return found


def test_what_is_kept_is_read_once_and_many_at_a_time(halfway, read_of_partial):
    nbytes = halfway.partial.stat().st_size
    assert halfway.run().status == 0
    assert len(read_of_partial) == 1
    assert nbytes - 100 < sum(read_of_partial) <= nbytes
    halfway.assert_as_uninterrupted()


def test_what_is_kept_is_read_once_where_a_file_failed_that_can_be_read_now(
    conversion, read_of_partial
):
    content = (conversion.folder / "0021.num").read_bytes()
    (conversion.folder / "0021.num").write_text("none:0")
    ended = conversion.break_off("0027.num")
    (conversion.folder / "0021.num").write_bytes(content)
    nbytes = conversion.partial.stat().st_size
    again = conversion.run()
    assert kept(ended) > taken_over(again) == 21
    assert "0021.num failed before and can be read now" in again.err
    assert sum(read_of_partial) <= nbytes
    conversion.assert_as_uninterrupted()


def test_a_run_that_is_broken_off_says_what_is_kept_and_what_it_needs(conversion):
    ended = conversion.break_off("0021.num")
    lines = [line for line in ended.err.splitlines() if "are kept in" in line]
    assert len(lines) == 1
    found = re.fullmatch(
        r"converter: 20 of 30 files are kept in (.+) \(([\d.,]+) MB\): to resume, repeat "
        r"the command; it needs about ([\d.,]+) MB more \(--restart starts over\)",
        lines[0],
    )
    assert found, lines
    assert found[1] == str(conversion.partial)
    assert float(found[2]) == round(conversion.partial.stat().st_size / 1e6, 1) > 0
    assert float(found[3]) == pytest.approx(float(found[2]) / 2, abs=0.1)
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err


def test_a_run_that_has_recorded_nothing_leaves_nothing_and_says_nothing(conversion):
    ended = conversion.break_off("0002.num")
    assert "kept" not in ended.err
    assert not os.listdir(conversion.output.parent)


def test_the_folders_made_for_an_output_stay_where_something_is_kept(conversion, convert):
    output = conversion.tmp_path / "new" / "deep" / "OUT.h5"
    (conversion.folder / "0021.num").write_text("none:0")
    flags = (*conversion.flags, "--on_error=stop")
    assert convert(conversion.folder, output, *flags).status == 1
    assert sorted(os.listdir(output.parent)) == ["OUT.h5.partial", "OUT.h5.partial.journal"]
    conversion.put("0021.num", "small", 21)
    assert convert(conversion.folder, output, *flags).status == 0
    assert os.listdir(output.parent) == ["OUT.h5"]


def test_on_error_stop_keeps_what_was_stored_and_stops_at_the_same_file_again(conversion):
    (conversion.folder / "0021.num").write_text("none:0")
    for _ in range(3):
        ended = conversion.run("--on_error=stop")
        assert ended.status == 1
        assert "0021.num: ValueError: no kind 'none' (stopped at the first failure" in ended.err
        assert kept(ended) == 21  # what comes before it
    assert Counter(conversion.reads())["0000.num"] <= 2  # once for the estimate
    ended = conversion.run()
    assert ended.status == 1
    assert set(conversion.reads()) == {f"{n:04}.num" for n in range(21, 30)}
    conversion.assert_as_uninterrupted(ended=ended)


def test_a_run_may_be_broken_off_again_and_again(conversion):
    """Three times, each time later; then a last one has only the rest to read."""
    read = Counter()
    for at, count in (("0009.num", 8), ("0017.num", 16), ("0027.num", 24)):
        assert kept(conversion.break_off(at)) == count
        read += Counter(conversion.reads())
    assert taken_over(conversion.run()) == 24
    read += Counter(conversion.reads())
    conversion.assert_as_uninterrupted()
    # The first run reads 4 for its estimate; each broken off has read at most a task in vain.
    assert read.total() <= 30 + 4 + 3 * FILES_IN_TASK


def test_a_resumed_run_that_is_broken_off_at_once_keeps_what_was_kept(halfway):
    for _ in range(3):
        ended = halfway.break_off("0020.num")
        assert kept(ended) == 20
        assert sorted(os.listdir(halfway.output.parent)) == [
            "OUT.h5.partial",
            "OUT.h5.partial.journal",
        ]
    assert halfway.reads() == ["0020.num"] * 3
    assert taken_over(halfway.run()) == 20
    assert halfway.reads() == NOT_KEPT
    halfway.assert_as_uninterrupted()


def test_restart_begins_anew(halfway):
    ended = halfway.run("--restart")
    assert ended.status == 0
    assert "kept" not in ended.err
    assert set(halfway.reads()) == {*KEPT, *NOT_KEPT}
    halfway.assert_as_uninterrupted()


def test_restart_begins_anew_where_nothing_was_broken_off(conversion):
    assert conversion.run("--restart").status == 0
    conversion.assert_as_uninterrupted()


def test_overwrite_concerns_the_finished_file_only(conversion):
    conversion.output.write_bytes(b"an older one")
    assert kept(conversion.break_off("0021.num", "--overwrite")) == 20
    assert conversion.output.read_bytes() == b"an older one"
    conversion.reads()
    before = everything_below(conversion.output.parent)
    refused = conversion.run()
    assert refused.status == 2
    assert "exists: name another file, or add --overwrite" in refused.err
    assert everything_below(conversion.output.parent) == before
    ended = conversion.run("--overwrite")
    assert taken_over(ended) == 20
    assert conversion.reads() == NOT_KEPT
    conversion.assert_as_uninterrupted()


def test_the_list_of_failures_is_that_of_an_uninterrupted_run(conversion):
    for name in ("0003.num", "0011.num", "0027.num"):
        (conversion.folder / name).write_text("none:0")
    ended = conversion.break_off("0021.num")
    assert kept(ended) == 18
    assert set(os.listdir(conversion.output.parent)) == {"OUT.h5.partial", "OUT.h5.partial.journal"}
    conversion.reads()
    inode = conversion.partial.stat().st_ino
    ended = conversion.run()
    assert ended.status == 1
    assert set(failures(conversion.output)) == {"0003.num", "0011.num", "0027.num"}
    assert set(conversion.reads()) == {"0003.num", "0011.num", *NOT_KEPT}
    assert conversion.output.stat().st_ino == inode
    conversion.assert_as_uninterrupted(ended=ended)


@pytest.mark.everyday(2)
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd", "blosc2"])
def test_every_compression_is_gone_on_with(compression, conversion):
    flags = (f"--compression={compression}",)
    assert kept(conversion.break_off("0021.num", *flags)) == 20
    conversion.reads()
    assert taken_over(conversion.run(*flags)) == 20
    assert conversion.reads() == NOT_KEPT
    conversion.assert_as_uninterrupted(*flags)


@pytest.mark.parametrize("kind", [*KINDS, "chunks"])
def test_samples_of_one_kind_alone_are_gone_on_with(kind, tmp_path, convert):
    conversion = Conversion(tmp_path, convert).add(12, (kind,))
    assert kept(conversion.break_off("0009.num")) == 8
    conversion.reads()
    inode = conversion.partial.stat().st_ino
    assert taken_over(conversion.run()) == 8
    assert conversion.reads() == [f"{n:04}.num" for n in range(8, 12)]
    conversion.assert_as_uninterrupted()
    assert conversion.output.stat().st_ino == inode


@pytest.mark.parametrize("flags", [(), ("--skip_decode_check",), ("--compression=gzip",)])
def test_files_that_are_kept_as_they_are_are_gone_on_with(flags, folder, output, convert, tmp_path):
    for number in range(12):
        save(folder / f"{number:02}.jpg", colours(number))
    good = (folder / "10.jpg").read_bytes()
    (folder / "10.jpg").unlink()  # a failure with and without a look into it
    (folder / "10.jpg").symlink_to("nowhere")
    flags = ("--store=encoded", *flags)
    assert kept(convert(folder, output, *flags, "--on_error=stop")) == 10
    ended = convert(folder, output, *flags)
    assert taken_over(ended) == 10
    assert counts(ended) == "11 stored, 1 failed"
    assert kept(convert(folder, output, *flags, "--overwrite", "--on_error=stop")) == 10
    (folder / "10.jpg").unlink()
    (folder / "10.jpg").write_bytes(good)
    ended = convert(folder, output, *flags, "--overwrite")
    assert taken_over(ended) == 10
    assert "10.jpg" not in ended.err  # nothing was kept behind it
    convert(folder, tmp_path / "whole" / "OUT.h5", *flags)
    assert files_in(output.parent) == files_in(tmp_path / "whole")


# Another folder than before


def change_size(conversion: Conversion) -> None:
    conversion.put("0005.num", "small", 1005)


def change_time(conversion: Conversion) -> None:
    """The same size, other contents, a nanosecond later."""
    path = conversion.folder / "0005.num"
    time = path.stat().st_mtime_ns
    assert path.read_text() == "scalar:5"
    path.write_text("scalar:6")
    os.utime(path, ns=(time + 1, time + 1))


def touch_backwards(conversion: Conversion) -> None:
    os.utime(conversion.folder / "0005.num", (0, 0))


def gone(name: str):
    return lambda conversion: (conversion.folder / name).unlink()


#: What becomes of the folder; the file that ends what is kept, and why; how much is; what is read.
CHANGES = {
    "nothing": (lambda c: None, None, 20, []),
    "a_size": (lambda c: c.put("0018.num", "small", 1005), "0018.num has changed", 18, KEPT[18:]),
    "an_older_time": (
        lambda c: os.utime(c.folder / "0018.num", (0, 0)),
        "0018.num has changed",
        18,
        KEPT[18:],
    ),
    "one_new_among_those_kept": (
        lambda c: c.put("0018a.num", "mask", 9),
        "0018a.num is new",
        19,
        ["0018a.num", "0019.num"],
    ),
    "one_new_behind_those_kept": (
        lambda c: c.put("0019a.num", "text", 9),
        None,
        20,
        ["0019a.num"],
    ),
    "one_new_behind_all": (lambda c: c.put("z/z.num", "large", 9), None, 20, ["z.num"]),
    "one_gone": (gone("0018.num"), "0018.num is gone", 18, ["0019.num"]),
    "the_last_kept_gone": (gone("0019.num"), None, 19, []),
    "the_last_kept_changed": (
        lambda c: c.put("0019.num", "chunks", 9),
        "0019.num has changed",
        19,
        ["0019.num"],
    ),
}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_meanwhile_is_converted_as_it_is_now(change, workers, halfway):
    make, end, count, to_read = CHANGES[change]
    make(halfway)
    ended = halfway.run(f"--workers={workers}")
    assert ended.status == 0, ended
    assert taken_over(ended) == count
    assert "damaged" not in ended.err
    if end is None:
        assert "are read again" not in ended.err
    else:
        again = len(set(to_read) & set(KEPT))
        said = f"{end} since the run was interrupted: {again} of the samples stored are read again"
        assert said in ended.err
    assert Counter(halfway.reads()) == Counter([*to_read, *NOT_KEPT])
    halfway.assert_as_uninterrupted(ended=ended)


#: Changes after which too little would stay; the file that is named, and how much would stay.
LARGE_CHANGES = {
    "a_size": (change_size, "0005.num has changed", 5),
    "a_time": (change_time, "0005.num has changed", 5),
    "an_older_time": (touch_backwards, "0005.num has changed", 5),
    "just_too_much": (lambda c: c.put("0017.num", "small", 9), "0017.num has changed", 17),
    "one_new_before_all": (lambda c: c.put("!.num", "small", 99), "!.num is new", 0),
    "one_new_among_those_kept": (lambda c: c.put("0005a.num", "mask", 9), "0005a.num is new", 6),
    "the_first_gone": (gone("0000.num"), "0000.num is gone", 0),
    "one_of_many_chunks_gone": (gone("0007.num"), "0007.num is gone", 7),
    "one_renamed": (
        lambda c: (c.folder / "0004.num").rename(c.folder / "0012a.num"),
        "0004.num is gone",
        4,
    ),
    "all_kept_gone": (lambda c: [gone(n)(c) for n in KEPT], "0000.num is gone", 0),
    "all_kept_changed": (
        lambda c: [c.put(n, "small", 5000) for n in KEPT],
        "0000.num has changed",
        0,
    ),
    "a_file_in_the_place_of_an_empty_one": (
        lambda c: c.put("0003.num", "large", 3),
        "0003.num has changed",
        3,
    ),
}


@pytest.mark.parametrize("change", LARGE_CHANGES)
def test_where_little_would_stay_the_run_stops_before_it_touches_anything(change, halfway):
    make, end, count = LARGE_CHANGES[change]
    make(halfway)
    assert_stops(halfway, f"{end} since the run was interrupted", count)
    ended = halfway.run("--restart")
    assert ended.status == 0
    halfway.assert_as_uninterrupted(ended=ended)


def assert_stops(conversion: Conversion, why: str, count: int, recorded: int = 20) -> None:
    before = everything_below(conversion.output.parent)
    ended = conversion.run()
    assert ended.status == 2
    said = (
        f"converter: {why}, so only {count} of the {recorded} samples stored in "
        f"{conversion.partial} could be kept: undo that change, or start over with --restart"
    )
    assert said in ended.err.splitlines()
    assert everything_below(conversion.output.parent) == before


def test_who_undoes_a_change_resumes_as_if_nothing_had_been(halfway):
    before = (halfway.folder / "0005.num").stat()
    touch_backwards(halfway)
    assert_stops(halfway, "0005.num has changed since the run was interrupted", 5)
    os.utime(halfway.folder / "0005.num", ns=(before.st_atime_ns, before.st_mtime_ns))
    ended = halfway.run()
    assert taken_over(ended) == 20
    assert halfway.reads() == NOT_KEPT
    halfway.assert_as_uninterrupted(ended=ended)


def test_what_is_recorded_after_a_cut_in_the_middle_of_a_batch_is_of_use(halfway):
    """Of the batch 16 to 19 two samples stay; the journal says so, and goes on from there."""
    halfway.put("0018.num", "chunks", 18)
    ended = halfway.break_off("0019.num")
    assert kept(ended) == 18
    assert recorded_in(halfway) == set(KEPT[:18])
    assert kept(halfway.break_off("0027.num")) == 26
    assert recorded_in(halfway) == {*KEPT, *NOT_KEPT[:6]}
    halfway.reads()
    ended = halfway.run()
    assert taken_over(ended) == 26
    assert halfway.reads() == NOT_KEPT[6:]
    halfway.assert_as_uninterrupted(ended=ended)


def test_a_file_that_failed_before_and_can_be_read_now_ends_what_is_kept(conversion):
    for name in ("0003.num", "0018.num"):
        (conversion.folder / name).write_text("none:0")
    assert kept(conversion.break_off("0021.num")) == 18
    conversion.put("0018.num", "chunks", 3)
    conversion.reads()
    ended = conversion.run()
    assert taken_over(ended) == 17
    said = "0018.num failed before and can be read now: 1 of the samples stored are read again"
    assert said in ended.err
    assert counts(ended) == "29 stored, 1 failed"
    assert set(failures(conversion.output)) == {"0003.num"}
    read = Counter(conversion.reads())
    assert set(read) == {"0003.num", *KEPT[18:], *NOT_KEPT}
    assert {name for name, times in read.items() if times > 1} == {"0018.num"}
    conversion.assert_as_uninterrupted(ended=ended)


def test_a_file_that_failed_early_and_can_be_read_now_stops_the_run(conversion):
    (conversion.folder / "0003.num").write_text("none:0")
    assert kept(conversion.break_off("0021.num")) == 19
    conversion.put("0003.num", "chunks", 3)
    assert_stops(conversion, "0003.num failed before and can be read now", 3, 19)
    ended = conversion.run("--restart")
    conversion.assert_as_uninterrupted(ended=ended)


def test_a_file_that_failed_before_and_is_gone_is_missed_by_nobody(conversion):
    (conversion.folder / "0003.num").write_text("none:0")
    assert kept(conversion.break_off("0021.num")) == 19
    (conversion.folder / "0003.num").unlink()
    conversion.reads()
    ended = conversion.run()
    assert taken_over(ended) == 19
    assert conversion.reads() == NOT_KEPT
    conversion.assert_as_uninterrupted(ended=ended)


# Another way to convert


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--compression=gzip:9",), 'compression was "auto" and is "gzip:9"'),
        (("--max_pixels=1000",), "max_pixels was null and is 1000"),
    ],
)
def test_other_options_make_what_was_kept_useless(flags, why, halfway):
    ended = halfway.run(*flags)
    assert ended.status == 0
    said = f"{halfway.partial} cannot be resumed, because {why}: the run starts over"
    assert said in ended.err
    assert not taken_over(ended)
    halfway.assert_as_uninterrupted(*flags)


def test_options_that_say_how_to_go_about_it_change_nothing(halfway):
    ended = halfway.run(
        "--workers=2", "--on_error=stop", "--file_timeout=60", "--quiet", "--follow_links"
    )
    assert ended.status == 0
    assert taken_over(ended) == 20
    assert set(halfway.reads()) == set(NOT_KEPT)
    halfway.assert_as_uninterrupted("--follow_links")


def test_another_selection_of_files_keeps_what_comes_before_the_first_new_one(halfway):
    (halfway.folder / "0018a.more").write_text("small:4")
    ended = halfway.run("--ext=num,more")
    assert taken_over(ended) == 19
    assert halfway.reads() == ["0018a.more", "0019.num", *NOT_KEPT]
    halfway.assert_as_uninterrupted("--ext=num,more")


def test_other_functions_make_what_was_kept_useless(halfway):
    halfway.functions.write_text(halfway.functions.read_text() + "\n# another line\n")
    ended = halfway.run()
    assert ended.status == 0
    assert "cannot be resumed, because my_read_sha256 was " in ended.err
    assert "the run starts over" in ended.err
    assert set(halfway.reads()) == {*KEPT, *NOT_KEPT}
    halfway.assert_as_uninterrupted()


def test_another_folder_makes_what_was_kept_useless(halfway, convert):
    other = halfway.tmp_path / "other"
    shutil.copytree(halfway.folder, other)  # with the same names, sizes and times
    ended = convert(other, halfway.output, *halfway.flags)
    assert ended.status == 0
    assert f"cannot be resumed, because it is of the folder {halfway.folder}: the run" in ended.err
    assert set(halfway.reads()) == {*KEPT, *NOT_KEPT}
    halfway.assert_as_uninterrupted()


def test_the_same_folder_by_another_name_is_the_same_folder(halfway, convert):
    link = halfway.tmp_path / "link"
    link.symlink_to(halfway.folder, target_is_directory=True)
    assert taken_over(convert(link, halfway.output, *halfway.flags)) == 20
    assert halfway.reads() == NOT_KEPT
    halfway.assert_as_uninterrupted()


def test_other_versions_of_the_packages_make_what_was_kept_useless(halfway, monkeypatch):
    pretend_installed(monkeypatch, {"numpy": "99"})
    ended = halfway.run()
    assert ended.status == 0
    assert "cannot be resumed, because it was made with " in ended.err
    halfway.assert_as_uninterrupted()


def test_another_store_and_another_reader_make_what_was_kept_useless(folder, output, convert):
    pytest.importorskip("cv2")
    for number in range(12):
        save(folder / f"{number:02}.jpg", colours(number))
    (folder / "09.jpg").write_bytes(b"")
    assert kept(convert(folder, output, "--on_error=stop")) == 9
    for flag, why in (
        ("--store=encoded", "store was array and is encoded"),
        ("--reader=opencv", "reader was imageio and is opencv"),
    ):
        before = everything_below(output.parent)
        ended = convert(folder, output, flag)
        assert f"cannot be resumed, because {why}: the run starts over" in ended.err
        assert counts(ended) == "11 stored, 1 failed"
        output.unlink()
        for name, content in before.items():
            (output.parent / name).write_bytes(content)


# Damage


def payload_places(conversion: Conversion) -> dict[str, tuple[int, int]]:
    """Return offset and size of the payload of each sample that is kept, in one piece."""
    return {
        row.key: (row.extents[0][0], row.extents[0][1])
        for row in read_rows(conversion.journal)
        if len(row.extents) == 1
    }


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["0000.num", "0002.num", "0008.num", "0018.num"])
def test_a_damaged_payload_and_what_is_behind_it_is_read_again(name, workers, halfway):
    offset, nbytes = payload_places(halfway)[name]
    flip(halfway.partial, offset + nbytes - 1)
    ended = halfway.run(f"--workers={workers}")
    assert ended.status == 0
    place = KEPT.index(name)
    said = f"{name} is damaged in the unfinished file: {20 - place} of the samples stored are read"
    assert said in ended.err
    assert taken_over(ended) == place
    assert set(halfway.reads()) == {*KEPT[place:], *NOT_KEPT}
    halfway.assert_as_uninterrupted()


def test_a_damaged_chunk_of_several_is_read_again(halfway):
    places = payload_places(halfway)
    begin = sum(places["0006.num"])
    flip(halfway.partial, begin + 400)  # behind the header of 0006, in the first chunk
    ended = halfway.run()
    assert "0007.num is damaged in the unfinished file: 13 of the samples" in ended.err
    assert set(halfway.reads()) == {*KEPT[7:], *NOT_KEPT}
    halfway.assert_as_uninterrupted()


def test_damage_to_hdf5s_structures_is_mended(halfway):
    """They are made anew: nothing need be read for that."""
    for offset, nbytes in payload_places(halfway).values():
        if nbytes == 100:
            flip(halfway.partial, offset + nbytes + 5)
    ended = halfway.run()
    assert ended.status == 0
    assert "damaged" not in ended.err
    assert halfway.reads() == NOT_KEPT
    halfway.assert_as_uninterrupted()


def test_structures_that_cannot_be_mended_stop_the_run(halfway, monkeypatch):
    """Nothing is lost: the next run mends them."""
    offset, nbytes = payload_places(halfway)["0000.num"]
    flip(halfway.partial, offset + nbytes + 5)

    def pwrite(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as context:
        context.setattr(os, "pwrite", pwrite)
        ended = halfway.run()
    assert ended.status == 2
    assert ended.err.splitlines()[-1] == (
        f"converter: {halfway.partial} is damaged, and could not be mended (Input/output error): "
        "free space, or start over with --restart"
    )
    assert halfway.run().status == 0
    halfway.assert_as_uninterrupted()


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.9, 0.999])
def test_a_partial_file_that_lost_its_end_is_gone_on_with(share, halfway):
    """As after a power failure: the journal reached the disk, what it tells of did not."""
    os.truncate(halfway.partial, int(halfway.partial.stat().st_size * share))
    ended = halfway.run()
    assert ended.status == 0, ended
    halfway.assert_as_uninterrupted()
    assert share < 0.5 or set(halfway.reads()) < {*KEPT, *NOT_KEPT}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_partial_file_with_a_hole_is_gone_on_with(share, halfway):
    size = halfway.partial.stat().st_size
    with open(halfway.partial, "r+b") as file:
        file.truncate(int(size * share))
        file.truncate(size)
    ended = halfway.run()
    assert ended.status == 0
    assert "is damaged in the unfinished file: " in ended.err
    halfway.assert_as_uninterrupted()


def damaged(journal: bytes, damage: str, at: int) -> bytes:
    if damage == "cut":
        return journal[:at]
    return journal[:at] + bytes([journal[at] ^ 1]) + journal[at + 1 :]


@pytest.fixture
def four_kept(tmp_path, convert, monkeypatch) -> Conversion:
    """Six samples, four of them kept, in blocks of one."""
    make_tasks_small(monkeypatch, 1)
    conversion = Conversion(tmp_path, convert)
    for number, kind in enumerate(("small", "empty", "text", "chunks", "scalar", "small")):
        conversion.put(f"{number}.num", kind, number)
    assert kept(conversion.break_off("4.num")) == 4
    return conversion


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_journal_damaged_anywhere_is_believed_up_to_the_damage(damage, four_kept):
    """At every place: what is read of it are the rows before, and never another one."""
    path = four_kept.journal
    journal, head, rows = path.read_bytes(), read_head(path), list(read_rows(path))
    ends = [end for end, _ in read_lines(path)]
    assert len(ends) == len(rows) + 1 == 5
    for at in range(len(journal)):
        path.write_bytes(damaged(journal, damage, at))
        with case(at):
            assert read_head(path) == (head if at >= ends[0] else None)
            believed = sum(end <= at for end in ends[1:])
            assert at < ends[0] or list(read_rows(path)) == rows[:believed]


def test_a_journal_that_is_resumed_holds_nothing_behind_the_rows_that_stay(four_kept):
    """Whatever is appended follows the last row that stays, also where the journal was longer."""
    path = four_kept.journal
    rows = list(read_rows(path))
    for count in (2, 0):
        journal = Journal.resume(path, count)
        assert list(read_rows(path)) == rows[:count]
        journal.append(rows[3:])
        journal.close()
        assert list(read_rows(path)) == [*rows[:count], *rows[3:]]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_journal_damaged_anywhere_is_gone_on_with(damage, four_kept):
    """At some places, and around the end of each line."""
    conversion = four_kept
    left = everything_below(conversion.output.parent)
    journal = left["OUT.h5.partial.journal"]
    ends = [end for end, _ in read_lines(conversion.journal)]
    whole = conversion.tmp_path / "whole.h5"
    conversion.run(output=whole)
    expected = whole.read_bytes()
    known = []
    around = {end + more for end in ends for more in (-2, -1, 0)}
    for at in sorted({*range(0, len(journal), 29), *around} & set(range(len(journal)))):
        for name, content in left.items():
            (conversion.output.parent / name).write_bytes(content)
        conversion.journal.write_bytes(damaged(journal, damage, at))
        ended = conversion.run()
        assert ended.status == 0, (at, ended)
        assert os.listdir(conversion.output.parent) == ["OUT.h5"], at
        assert conversion.output.read_bytes() == expected, at
        begins_anew = (
            f"{conversion.partial} cannot be resumed, because no journal says what it holds"
            in ended.err
        )
        assert begins_anew == (at < ends[0]), at
        assert "Traceback" not in ended.err
        known.append(taken_over(ended))
        conversion.output.unlink()
    assert min(known) == 0
    assert max(known) == 3


@pytest.mark.parametrize("garbage", [b"", b"garbage", bytes(5000), b"HEAD" * 100])
def test_a_journal_that_is_none_is_begun_anew(garbage, halfway):
    halfway.journal.write_bytes(garbage)
    ended = halfway.run()
    assert ended.status == 0
    why = "no journal says what it holds"
    assert f"{halfway.partial} cannot be resumed, because {why}: the run starts over" in ended.err
    halfway.assert_as_uninterrupted()


def test_a_missing_journal_is_begun_anew(halfway):
    halfway.journal.unlink()
    ended = halfway.run()
    assert ended.status == 0
    why = "no journal says what it holds"
    assert f"{halfway.partial} cannot be resumed, because {why}: the run starts over" in ended.err
    halfway.assert_as_uninterrupted()


def test_garbage_behind_a_journal_is_passed_over(halfway):
    with open(halfway.journal, "ab") as file:
        file.write(b"ROWS" + bytes(100))
    assert taken_over(halfway.run()) == 20
    halfway.assert_as_uninterrupted()


def assert_not_resumed(conversion: Conversion, sentence: str) -> None:
    """The run is refused with one sentence and nothing is touched; --restart is a way out."""
    before = everything_below(conversion.output.parent)
    ended = conversion.run()
    assert ended.status == 2
    lines = [line for line in ended.err.splitlines() if "my_read from" not in line]
    assert lines == ["converter: " + sentence]
    assert everything_below(conversion.output.parent) == before
    ended = conversion.run("--restart")
    assert ended.status == 0
    assert set(conversion.reads()) == {*KEPT, *NOT_KEPT}
    conversion.assert_as_uninterrupted()


def test_a_journal_of_another_output_is_refused(halfway):
    other = Paths(halfway.output.with_name("OTHER.h5"))
    halfway.run(output=other.output)
    other.output.unlink()
    marker = halfway.mark("0021.num", "stop", once=".partial")
    assert halfway.run("--on_error=stop", output=other.output).status == 1
    marker.unlink()
    halfway.reads()
    other.partial.replace(halfway.partial)
    other.journal.replace(halfway.journal)
    assert_not_resumed(
        halfway,
        f"{halfway.journal} belongs to OTHER.h5, not to OUT.h5: move it away, or start over with "
        "--restart",
    )


def test_a_journal_of_another_partial_file_is_refused(halfway):
    kept_journal = halfway.journal.read_bytes()
    halfway.break_off("0013.num", "--restart")
    halfway.reads()
    halfway.journal.write_bytes(kept_journal)
    assert_not_resumed(
        halfway,
        f"{halfway.journal} does not belong to {halfway.partial}: move both away, or start over "
        "with --restart",
    )


def test_a_partial_file_of_something_else_is_refused_with_its_journal(halfway):
    halfway.partial.write_bytes(b"something else, and longer than a mark")
    assert_not_resumed(
        halfway,
        f"{halfway.journal} does not belong to {halfway.partial}: move both away, or start over "
        "with --restart",
    )


def test_a_journal_of_another_version_is_refused(halfway):
    line, rest = halfway.journal.read_bytes().split(b"\n", 1)
    head = line.partition(b'"head":')[2][:-1]
    other = head.replace(b'"version":%d' % VERSION, b'"version":99')
    assert other != head
    line = b'{"crc":%d,"head":%s}\n' % (zlib.crc32(other), other)
    halfway.journal.write_bytes(line + rest)
    assert_not_resumed(
        halfway,
        f"{halfway.journal} is the journal of another version of the converter: resume with "
        "that version, or start over with --restart",
    )


def test_a_journal_as_the_first_version_wrote_it_is_refused(halfway):
    body = b'{"version": 1, "output": "OUT.h5", "mark": "", "root": "/", "manner": {}}'
    halfway.journal.write_bytes(struct.pack("<4sIQ", b"HEAD", 0x0A0A, len(body)) + body)
    assert_not_resumed(
        halfway,
        f"{halfway.journal} is the journal of another version of the converter: resume with that "
        "version, or start over with --restart",
    )


def test_a_journal_that_cannot_be_read_is_refused(halfway):
    halfway.journal.unlink()
    halfway.journal.mkdir()
    before = everything_below(halfway.output.parent)
    ended = halfway.run()
    assert ended.status == 2
    assert f"{halfway.journal} cannot be read (Is a directory): remove it" in ended.err
    assert everything_below(halfway.output.parent) == before


# Leftovers


def test_any_of_the_files_left_may_be_missing(halfway):
    """Whatever moment a run is killed at leaves them, or the user."""
    left = everything_below(halfway.output.parent)
    paths = Paths(halfway.output)
    whole = halfway.tmp_path / "whole.h5"
    halfway.run(output=whole)
    for chosen in ((), ("partial",), ("journal",), NAMES):
        for path in halfway.output.parent.iterdir():
            path.unlink()
        for name in chosen:
            path = getattr(paths, name)
            path.write_bytes(left[path.name])
        halfway.reads()
        ended = halfway.run()
        assert ended.status == 0, chosen
        assert "Traceback" not in ended.err
        assert set(halfway.reads()) >= {*([] if chosen == NAMES else KEPT), *NOT_KEPT}
        assert os.listdir(halfway.output.parent) == ["OUT.h5"], chosen
        assert halfway.output.read_bytes() == whole.read_bytes(), chosen


@pytest.mark.parametrize("content", [b"", b"x", b"\x83r\xe1\x99" * 4, bytes(range(256)) * 12])
@pytest.mark.parametrize("name", NAMES)
def test_garbage_under_any_of_the_names_is_removed(name, content, conversion):
    getattr(Paths(conversion.output), name).write_bytes(content)
    assert conversion.run().status == 0
    conversion.assert_as_uninterrupted()


def test_what_is_left_is_no_sample_of_a_folder_that_holds_the_output(tmp_path, convert):
    conversion = Conversion(tmp_path, convert).add(12)
    conversion.functions.write_text(
        conversion.functions.read_text()
        + "\ndef my_prune(filename_str, ext_str):\n    return True\n"
    )
    conversion.output = conversion.folder / "OUT.h5"
    (conversion.folder / "0003.num").write_text("none:0")
    (conversion.folder / "0009.num").write_text("none:0")
    ended = conversion.run("--custom_prune_func")
    assert ended.status == 1
    first = conversion.output.read_bytes()
    for path in Paths(conversion.output).all():
        path.write_bytes(b"")
    (conversion.folder / "OUT.h5.failures.csv.partial").write_bytes(b"of a run that was killed")
    ended = conversion.run("--custom_prune_func", "--overwrite")
    assert counts(ended) == "10 stored, 2 failed"
    assert conversion.output.read_bytes() == first
    assert sorted(os.listdir(conversion.folder)) == sorted(
        [*(f"{n:04}.num" for n in range(12)), "OUT.h5", "OUT.h5.failures.csv"]
    )


def test_the_list_of_failures_of_a_killed_run_does_not_stay(halfway):
    """Nothing fails any more: nothing takes the place of that list."""
    leftover = halfway.output.with_name("OUT.h5.failures.csv.partial")
    leftover.write_bytes(b"path,reason\r\n0003.num,it fai")
    assert halfway.run().status == 0
    halfway.assert_as_uninterrupted()


# Signals, and several runs at once


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_run_is_gone_on_with(workers, tmp_path, convert):
    """The file it reads kills the whole process group."""
    conversion = Conversion(tmp_path, convert).add(60, ("large",))
    marker = conversion.mark("0047.num", "kill")
    flags = (*conversion.flags, f"--workers={workers}")
    recorded: set[str] = set()
    for _ in range(10):  # until some of it was written before
        process = start(command(conversion.folder, conversion.output, *flags))
        assert finish(process).status == -signal.SIGKILL
        assert not processes_left(process.pid)
        assert not conversion.output.exists()
        recorded = recorded_in(conversion)
        if recorded:
            break
    assert recorded
    marker.unlink()
    conversion.reads()
    ended = conversion.run(f"--workers={workers}")
    assert taken_over(ended) == len(recorded)
    assert Counter(conversion.reads()) == Counter(set(conversion.names) - recorded)
    conversion.assert_as_uninterrupted(ended=ended)


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("workers", [1, 3])
def test_a_signal_to_end_keeps_what_was_done_and_says_so(
    workers, number, status, tmp_path, convert
):
    conversion = Conversion(tmp_path, convert).add(60, ("large",))
    marker = conversion.mark("0047.num", "wait")
    flags = (*conversion.flags, f"--workers={workers}")
    process = start(command(conversion.folder, conversion.output, *flags))
    wait_until(lambda: conversion.has_read("0047.num"))
    process.send_signal(number)
    ended = finish(process)
    marker.unlink()
    assert ended.status == status
    assert f"interrupted, {conversion.output} was not made" in ended.err
    assert "Traceback" not in ended.err
    assert not processes_left(process.pid)
    recorded = recorded_in(conversion)
    assert kept(ended) == len(recorded) > 0
    conversion.reads()
    ended = conversion.run(f"--workers={workers}")
    assert taken_over(ended) == len(recorded)
    assert Counter(conversion.reads()) == Counter(set(conversion.names) - recorded)
    conversion.assert_as_uninterrupted(ended=ended)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("is_resumed", [False, True])
@pytest.mark.parametrize("flags", [(), ("--restart",), ("--overwrite",)])
def test_a_second_run_at_the_same_time_is_refused_and_harms_nothing(flags, is_resumed, conversion):
    if is_resumed:
        conversion.break_off("0021.num")
    marker = conversion.mark("0027.num", "wait")
    conversion.reads()
    process = start(command(conversion.folder, conversion.output, *conversion.flags, "--workers=1"))
    wait_until(lambda: conversion.has_read("0027.num"))
    before = everything_below(conversion.output.parent)
    second = conversion.run(*flags)
    assert second.status == 2
    assert f"{conversion.partial} is being written by another run: wait for it" in second.err
    assert everything_below(conversion.output.parent) == before
    marker.unlink()
    assert finish(process).status == 0
    conversion.assert_as_uninterrupted()


# Trouble with folders


@pytest.mark.slow
def test_a_source_folder_that_became_unreadable_meanwhile_keeps_what_was_done(halfway):
    """Its files are failures of this run; when it can be read again, they are stored."""
    halfway.put("zz/1.num", "small", 1)
    (halfway.folder / "zz").chmod(0)
    flags = (*halfway.flags, "--workers=1")
    arguments = command(halfway.folder, halfway.output, *flags)
    ended = run(arguments, preexec_fn=without_root_rights)
    (halfway.folder / "zz").chmod(0o755)
    assert ended.status == 1
    assert taken_over(ended) == 20
    assert failures(halfway.output) == {"zz/": "the folder cannot be listed: Permission denied"}


@pytest.mark.slow
def test_an_output_folder_that_may_not_be_written_to_is_refused_and_keeps_all(halfway):
    halfway.output.parent.chmod(0o555)
    before = everything_below(halfway.output.parent)
    arguments = command(halfway.folder, halfway.output, *halfway.flags)
    ended = run(arguments, preexec_fn=without_root_rights)
    assert everything_below(halfway.output.parent) == before
    halfway.output.parent.chmod(0o755)
    assert ended.status == 2
    assert "you have no permission to write to" in ended.err
    assert taken_over(halfway.run()) == 20
    halfway.assert_as_uninterrupted()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["partial", "journal"])
def test_what_was_kept_but_may_not_be_read_is_named(name, halfway):
    path = getattr(Paths(halfway.output), name)
    path.chmod(0)
    arguments = command(halfway.folder, halfway.output, *halfway.flags)
    ended = run(arguments, preexec_fn=without_root_rights)
    path.chmod(0o644)
    assert ended.status in (1, 2)
    assert "Permission denied" in ended.err
    assert "Traceback" not in ended.err
    assert taken_over(halfway.run()) == 20
    halfway.assert_as_uninterrupted()


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("at", ["0001.num", "0021.num"])
def test_an_output_folder_that_is_removed_meanwhile_gives_one_sentence(at, workers, conversion):
    marker = conversion.mark(at, "wait")
    flags = (*conversion.flags, f"--workers={workers}")
    process = start(command(conversion.folder, conversion.output, *flags))
    wait_until(lambda: conversion.has_read(at) and conversion.journal.exists())
    shutil.rmtree(conversion.output.parent)
    marker.unlink()
    ended = finish(process)
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert f"{conversion.output} could not be written (No such file or directory)" in ended.err
    assert "are kept in" not in ended.err  # nothing is
    assert not conversion.output.parent.exists()
    assert not processes_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["0001.num", "0021.num"])
def test_an_output_folder_that_becomes_read_only_meanwhile_gives_one_sentence(at, conversion):
    """The finished file cannot get its name; when it may, nothing need be read for that."""
    marker = conversion.mark(at, "wait")
    flags = (*conversion.flags, "--workers=1")
    arguments = command(conversion.folder, conversion.output, *flags)
    process = start(arguments, preexec_fn=without_root_rights)
    wait_until(lambda: conversion.has_read(at) and conversion.journal.exists())
    conversion.output.parent.chmod(0o555)
    marker.unlink()
    ended = finish(process)
    conversion.output.parent.chmod(0o755)
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert f"{conversion.output} could not be written (Permission denied)" in ended.err
    assert kept(ended) == 30
    conversion.reads()
    ended = conversion.run()
    assert taken_over(ended) == 30
    assert conversion.reads() == []
    conversion.assert_as_uninterrupted(ended=ended)


@pytest.mark.slow
def test_an_output_folder_that_becomes_read_only_before_a_run_fails_gives_one_sentence(conversion):
    """What nothing is kept in cannot be removed then: that is not a second failure."""
    for name in conversion.names:
        (conversion.folder / name).write_text("none:0")
    marker = conversion.mark("0021.num", "wait")
    arguments = command(conversion.folder, conversion.output, *conversion.flags, "--workers=1")
    process = start(arguments, preexec_fn=without_root_rights)
    wait_until(lambda: conversion.has_read("0021.num") and conversion.journal.exists())
    conversion.output.parent.chmod(0o555)
    marker.unlink()
    ended = finish(process)
    conversion.output.parent.chmod(0o755)
    assert ended.status == 1
    assert "Traceback" not in ended.err
    conversion.add(30)
    assert conversion.run().status == 0
    conversion.assert_as_uninterrupted()
