"""What a user gets from one command: names, values, counts, and an exit status."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import imageio.v3 as iio
import numpy as np
import PIL.Image
import pytest

from converter import convert as convert_folder
from converter.callbacks import Callbacks
from converter.commands.convert import run_request
from converter.commands.request import request_of
from converter.progress import ProgressBar
from helpers.check import assert_same, case, everything_below, failures, stored
from helpers.images import as_pillow_reads, colours, save, save_jpegs
from helpers.run import FUNCTIONS, ROOT, command, read_with, run, write_functions


@pytest.fixture(params=["--workers=1", "--workers=2"])
def workers(request) -> str:
    return request.param


def test_every_image_is_stored_under_its_relative_path_as_imageio_reads_it(
    folder, output, convert, workers
):
    names = ["foo/boo/goo/image_0001.jpg", "foo/image_0001.jpg", "image_0001.jpg", "foo/é 1.jpg"]
    save_jpegs(folder, names)
    ended = convert(folder, output, workers)
    assert ended.status == 0, ended.err
    found = stored(output)
    assert sorted(found) == sorted(names)
    for name in names:
        assert_same(found[name], iio.imread(folder / name))
    with h5py.File(output) as file:
        array = file["foo/boo/goo/image_0001.jpg"][:]
    assert array.dtype == np.uint8
    assert array.shape == (20, 30, 3)
    assert sorted(os.listdir(output.parent)) == ["OUT.h5"]


def test_the_extension_is_jpg_by_default(folder, output, convert):
    save_jpegs(folder, ["a.jpg", "b.jpeg", "c.jpg.txt", "d.jpgx", "ejpg"])
    convert(folder, output)
    assert list(stored(output)) == ["a.jpg"]


MATCHES = [
    ("jpg", "x.jpg", True),
    ("jpg", "x.JPG", True),
    ("jpg", "x.jPg", True),
    ("JPG", "x.jpg", True),
    (".jpg", "x.jpg", True),
    (".JPG", "x.jpg", True),
    ("jpg", ".jpg", False),
    ("jpg", "..jpg", True),
    ("jpg", ".x.jpg", True),
    ("jpg", "xjpg", False),
    ("jpg", "jpg", False),
    ("jpg", "x.jpg.bak", False),
    ("g", "x.png", False),
    ("g", "x.g", True),
    ("nii.gz", "scan.nii.gz", True),
    ("nii.gz", "scan.NII.GZ", True),
    ("nii.gz", "scan.gz", False),
    ("nii.gz", "nii.gz", False),
    ("nii.gz", ".nii.gz", False),
    ("gz", ".nii.gz", True),
    ("gz", "scan.nii.gz", True),
    ("jpg,jpeg,png", "x.jpg", True),
    ("jpg,jpeg,png", "x.jpeg", True),
    ("jpg,jpeg,png", "x.PNG", True),
    ("jpg,jpeg,png", "x.gif", False),
    (".jpg,.png", "x.png", True),
    ("jpg, png", "x.png", True),
    (" jpg ", "x.jpg", True),
    ("jpg,,png,", "x.png", True),
    ("jpg,jpg", "x.jpg", True),
    ("gz,nii.gz", ".nii.gz", True),
    ("tar.gz", "a.tar.gz", True),
    ("j.p", "x.jxp", False),
    ("*", "x.jpg", False),
    ("ÄÖ", "x.äö", True),
    ("jpg", "._x.jpg", False),
    ("jpg", "_.x.jpg", True),
]


def test_a_name_matches_when_it_ends_in_the_extension_with_something_before_it(convert, tmp_path):
    functions = FUNCTIONS / "one.py"
    for number, (extension, name, matches) in enumerate(MATCHES):
        with case(extension, name):
            folder, output = tmp_path / f"{number}", tmp_path / f"{number}.h5"
            folder.mkdir()
            (folder / name).write_bytes(b"x")
            flags = (f"--ext={extension}", *read_with(functions))
            ended = convert(folder, output, *flags)
            if matches:
                assert ended.status == 0, ended.err
                assert list(stored(output)) == [name]
            else:
                assert ended.status == 2
                assert not output.exists()


def test_what_was_left_out_is_counted_by_extension(folder, output, convert, workers):
    save_jpegs(folder, ["a.jpg", "sub/b.JPG"])
    for name in ("c.txt", "sub/d.txt", "e.md", "README", ".hidden", "f.tar.gz"):
        (folder / name).write_bytes(b"")
    ended = convert(folder, output, workers)
    assert ended.status == 0
    line = next(line for line in ended.out.splitlines() if line.startswith("left out: "))
    counts = set(line.removeprefix("left out: ").split(", "))
    assert counts == {"2 .txt", "1 .md", "2 without extension", "1 .gz"}


def test_the_report_counts_files_bytes_seconds_and_their_ratio(folder, output, convert, workers):
    save_jpegs(folder, [f"{number}.jpg" for number in range(5)])
    (folder / "bad.jpg").write_bytes(b"")
    ended = convert(folder, output, workers)
    assert ended.status == 1
    assert "5 stored, 1 failed" in ended.out
    source = sum((folder / name).stat().st_size for name in os.listdir(folder))
    made = output.stat().st_size
    assert f"source {source / 1e6:.2f} MB, HDF5 {made / 1e6:.2f} MB" in ended.out
    assert f"ratio {made / source:.2f}" in ended.out
    assert re.search(
        r"^\d+\.\d\d s, \d+ files/s, \d+\.\d\d s of it waiting for the disk \(fsync\)$",
        ended.out,
        re.MULTILINE,
    )


def test_palette_and_multi_frame_files_are_counted(folder, output, convert, workers):
    save_jpegs(folder, ["a.jpg"])
    save(folder / "plain.png")
    for number in range(2):
        image = PIL.Image.fromarray(colours(number)).quantize(16)
        image.save(folder / f"palette{number}.png")
    frames = [PIL.Image.fromarray(colours(number)) for number in range(4)]
    frames[0].save(folder / "moving.png", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tif", save_all=True, append_images=frames[1:])
    save(folder / "page.tif")
    ended = convert(folder, output, "--ext=jpg,png,tif", workers)
    assert ended.status == 0, ended.err
    assert "2 palette images expanded" in ended.out
    assert "2 files with several frames or pages" in ended.out


def test_nothing_is_said_of_what_there_was_none(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    ended = convert(folder, output)
    for word in ("palette", "frames", "left out", "linked", "failures"):
        assert word not in ended.out


def test_an_output_twice_as_large_is_announced_with_the_cure(folder, output, convert):
    for number in range(3):
        save(folder / f"{number}.jpg", colours(number, (300, 400, 3)), quality=5)
    ended = convert(folder, output)
    assert ended.status == 0
    assert re.search(r"will take about [\d.]+ MB, \d+\.\d times the source", ended.err)
    assert "--compression=gzip" in ended.err
    ended = convert(folder, output, "--compression=gzip", "--overwrite")
    assert "try --compression=gzip" not in ended.err


def test_an_output_as_large_as_the_source_is_not_announced(folder, output, convert):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    save(folder / "a.png", noise)
    ended = convert(folder, output, "--ext=png")
    assert ended.status == 0
    assert "times the source" not in ended.err


def test_overwrite_replaces_an_older_output(folder, output, convert, workers):
    save_jpegs(folder, ["a.jpg"])
    output.write_bytes(b"an older one")
    assert convert(folder, output, workers).status == 2
    assert output.read_bytes() == b"an older one"
    assert convert(folder, output, "--overwrite", workers).status == 0
    assert list(stored(output)) == ["a.jpg"]


def test_overwrite_keeps_the_older_output_until_the_new_one_is_complete(
    folder, output, convert, tmp_path
):
    save_jpegs(folder, ["a.jpg", "b.jpg"])
    output.write_bytes(b"an older one")
    functions = write_functions(
        tmp_path / "looking_functions.py",
        f"""
        def my_read(path_sample):
            return open({str(output)!r}, "rb").read()
        """,
    )
    flags = ("--overwrite", *read_with(functions))
    assert convert(folder, output, *flags).status == 0
    assert {array.tobytes() for array in stored(output).values()} == {b"an older one"}


def test_overwrite_without_an_older_output_is_no_error(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    assert convert(folder, output, "--overwrite").status == 0


@pytest.mark.everyday(1)
def test_a_dry_run_says_what_would_be_and_writes_nothing(folder, output, convert, workers):
    for number in range(20):
        save(folder / f"{number:02}.jpg", colours(number, (200, 300, 3)))
    (folder / "note.txt").write_text("x")
    (folder / "bad.jpg").write_bytes(b"")
    before = everything_below(folder.parent)
    ended = convert(folder, output, "--dry_run", workers)
    assert ended.status == 0
    assert everything_below(folder.parent) == before
    assert "21 files" in ended.out
    assert "1 .txt" in ended.out
    assert re.search(rf"; [\d,]+\.\d+ MB free for {output}$", ended.out, re.MULTILINE)
    assert "judged from 21 files (1 of which could not be read)" in ended.out
    source = sum(path.stat().st_size for path in folder.glob("*.jpg"))
    said_source = float(re.search(r"^21 files below .+, ([\d,.]+) MB; ", ended.out)[1])
    assert said_source == pytest.approx(source / 1e6, abs=0.006)
    assert convert(folder, output, workers).status == 1
    (row,) = [line for line in ended.out.splitlines() if "this command" in line]
    said_output = float(re.search(r"([\d,.]+) MB", row)[1])
    assert said_output == pytest.approx(output.stat().st_size / 1e6, rel=0.1)


def test_a_dry_run_makes_no_folder(folder, tmp_path, convert):
    save_jpegs(folder, ["a.jpg"])
    assert convert(folder, tmp_path / "new" / "OUT.h5", "--dry_run").status == 0
    assert not (tmp_path / "new").exists()


def test_a_dry_run_of_files_that_cannot_be_read_says_so(folder, output, convert):
    (folder / "a.jpg").write_text("no image")
    ended = convert(folder, output, "--dry_run")
    assert ended.out.splitlines()[-1] == "none of the 1 files that were tried could be read"
    assert not os.listdir(output.parent)


def test_the_folder_of_the_output_is_made(folder, tmp_path, convert):
    save_jpegs(folder, ["a.jpg"])
    output = tmp_path / "new" / "deep" / "OUT.h5"
    assert convert(folder, output).status == 0
    assert list(stored(output)) == ["a.jpg"]


@pytest.mark.slow
def test_an_output_inside_the_folder_is_never_taken_as_input(folder, tmp_path, workers):
    save_jpegs(folder, ["a.jpg"])
    (folder / "other.h5").write_bytes(b"x")
    (folder / "bad.h5").write_bytes(b"bad")
    output = folder / "sub" / "OUT.h5"
    functions = write_functions(
        tmp_path / "byte_functions.py",
        """
        def my_read(path_sample):
            data = open(path_sample, "rb").read()
            if data == b"bad":
                raise ValueError("bad")
            return data
        """,
    )
    flags = ("--ext=h5,csv,partial", *read_with(functions))
    for extra in ([], ["--overwrite"], ["--overwrite"]):
        ended = run(command(folder, output, workers, *flags, *extra))
        assert ended.status == 1, ended.err
        assert list(stored(output)) == ["other.h5"]
        assert set(failures(output)) == {"bad.h5"}


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("output_name", ["OUT.jpg", "sub/../OUT.jpg", "./OUT.jpg"])
def test_an_output_with_the_extension_of_the_images_is_not_taken_as_input(
    output_name, folder, monkeypatch
):
    save_jpegs(folder, ["a.jpg", "sub/b.jpg", "sub/OUT.jpg"])
    for extra in ([], ["--overwrite"]):
        ended = run(command(Path("."), Path(output_name), *extra), cwd=folder)
        assert ended.status == 0, ended.err
        assert set(stored(folder / "OUT.jpg")) == {"a.jpg", "sub/b.jpg", "sub/OUT.jpg"}


@pytest.mark.slow
def test_an_output_in_the_folder_through_a_link_is_not_taken_as_input(folder, tmp_path):
    save_jpegs(folder, ["a.jpg"])
    (tmp_path / "link").symlink_to(folder)
    for extra in ([], ["--overwrite"]):
        ended = run(command(folder, tmp_path / "link" / "OUT.jpg", *extra))
        assert ended.status == 0, ended.err
        assert list(stored(folder / "OUT.jpg")) == ["a.jpg"]


def test_a_folder_that_is_a_link_is_walked(folder, output, tmp_path, convert):
    save_jpegs(folder, ["a.jpg", "sub/b.jpg"])
    (tmp_path / "link").symlink_to(folder)
    assert convert(tmp_path / "link", output).status == 0
    assert set(stored(output)) == {"a.jpg", "sub/b.jpg"}


# Ways to start


@pytest.fixture
def started(folder, output):
    """Check a way to start: program, and the folder to start it from."""
    save_jpegs(folder, ["a.jpg", "sub/b.jpg"])

    def started(program: list[str], cwd: Path, **options) -> None:
        flags = [f"--path_images={folder}", f"--path_output={output}", "--ext=jpg", "--workers=2"]
        ended = run([sys.executable, *program, *flags], cwd=cwd, **options)
        assert ended.status == 0, ended.err
        assert set(stored(output)) == {"a.jpg", "sub/b.jpg"}

    return started


def test_it_starts_as_python_converter(started):
    started(["converter"], ROOT)


def test_it_starts_as_python_m_converter(started):
    started(["-m", "converter"], ROOT)


@pytest.mark.slow
def test_it_starts_by_its_absolute_path_from_any_folder(started, tmp_path):
    started([str(ROOT / "converter")], tmp_path)


@pytest.mark.slow
def test_it_starts_by_a_relative_path(started, tmp_path):
    started([os.path.relpath(ROOT / "converter", tmp_path)], tmp_path)


@pytest.mark.slow
def test_it_starts_by_the_path_of_main(started, tmp_path):
    started([str(ROOT / "converter" / "__main__.py")], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["queue.py", "report.py", "plan.py", "index.py", "cli.py"])
def test_it_starts_where_files_of_the_same_names_lie(name, started, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / name).write_text("raise SystemExit('not this one')")
    started([str(ROOT / "converter")], tmp_path / "here")


@pytest.mark.slow
def test_paths_may_be_relative_and_contain_spaces(tmp_path):
    save_jpegs(tmp_path / "my images", ["a.jpg"])
    ended = run(command(Path("my images"), Path("my out.h5")), cwd=tmp_path)
    assert ended.status == 0, ended.err
    assert list(stored(tmp_path / "my out.h5")) == ["a.jpg"]


def test_flags_may_be_given_with_a_space(folder, output):
    save_jpegs(folder, ["a.JPEG"])
    program = [sys.executable, str(ROOT / "converter")]
    flags = ["--path_images", folder, "--path_output", output, "--ext", "jpeg", "--workers", "2"]
    assert run([*program, *map(str, flags)]).status == 0
    assert list(stored(output)) == ["a.JPEG"]


def test_help_names_every_flag():
    ended = run([sys.executable, str(ROOT / "converter"), "--help"])
    assert ended.status == 0
    flags = set(re.findall(r"^  (--\w+)", ended.out, re.MULTILINE))
    assert flags == {
        "--path_output",
        "--shard",
        "--merge",
        "--dask",
        "--overwrite",
        "--quiet",
        "--path_images",
        "--ext",
        "--custom_prune_func",
        "--follow_links",
        "--hidden_folders",
        "--reader",
        "--custom_read_func",
        "--path_functions",
        "--max_pixels",
        "--on_error",
        "--store",
        "--compression",
        "--resize",
        "--resize_mode",
        "--resize_filter",
        "--quality",
        "--skip_decode_check",
        "--workers",
        "--file_timeout",
        "--restart",
        "--dry_run",
        "--update",
        "--verify",
        "--rebuild_index",
        "--extract",
        "--contact_sheet",
        "--contact_masks",
    }


def test_the_package_gives_the_default_reader(folder):
    path = save(folder / "a.jpg")
    from converter import read_image

    assert_same(read_image(path), as_pillow_reads(path))
    assert_same(read_image(str(path)), as_pillow_reads(path))


# Workers


def test_one_worker_means_no_other_process(folder, output, convert, tmp_path):
    save_jpegs(folder, [f"{number}.jpg" for number in range(30)])
    functions = write_functions(
        tmp_path / "process_functions.py", "import os\ndef my_read(path): return os.getpid()\n"
    )
    flags = read_with(functions)
    convert(folder, output, "--workers=1", *flags)
    assert {int(array) for array in stored(output).values()} == {os.getpid()}
    convert(folder, output, "--workers=3", "--overwrite", *flags)
    assert os.getpid() not in {int(array) for array in stored(output).values()}


def test_by_default_there_are_as_many_workers_as_cores(tmp_path, monkeypatch):
    from converter.threads import usable_cores

    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores(tmp_path) == 6
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == 6
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cores(tmp_path) == 3
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == 6
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    assert usable_cores(tmp_path) == 4


def test_more_workers_than_files_are_no_error(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    assert convert(folder, output, "--workers=6").status == 0


@pytest.mark.slow
def test_a_slow_file_and_one_larger_than_any_slot_keep_their_places(folder, output, tmp_path):
    for number in range(60):
        (folder / f"{number:02}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "slow_functions.py",
        """
        import os, time
        import numpy as np
        def my_read(path_sample):
            number = int(os.path.basename(path_sample)[:2])
            if number in (0, 20):
                time.sleep(0.7)
            if number in (20, 21, 40, 59):
                return np.random.default_rng(number).integers(0, 256, 30_000_000, dtype=np.uint8)
            return np.random.default_rng(number).integers(0, 256, 1_500_000, dtype=np.uint8)
        """,
    )
    flags = ("--ext=num", *read_with(functions), "--workers=2")
    ended = run(command(folder, output, *flags))
    assert ended.status == 0, ended.err
    with h5py.File(output) as file:
        for number in range(60):
            size = 30_000_000 if number in (20, 21, 40, 59) else 1_500_000
            expected = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
            assert_same(file[f"{number:02}.num"][()], expected)


# Progress


def test_plain_lines_of_progress_say_files_rates_time_left_and_failures(
    folder, output, capfd, workers
):
    save_jpegs(folder, [f"{number}.jpg" for number in range(20)])
    (folder / "bad.jpg").write_bytes(b"")
    request = request_of(folder, output, {"workers": int(workers[-1])})
    with ProgressBar(quiet=False, seconds=0.0) as bar:
        run_request(request, Callbacks(progress=bar.show, is_fresh=True))
    lines = [line for line in capfd.readouterr().err.splitlines() if "files/s" in line]
    assert lines
    for line in lines:
        assert re.search(r"\d+ of 21 files, \d+ files/s, \d+ MB/s, \d+ s left, [01] failed", line)
    assert "21 of 21 files" in lines[-1]
    assert "1 failed" in lines[-1]


def test_quiet_shows_no_progress(folder, output, capfd):
    save_jpegs(folder, [f"{number}.jpg" for number in range(20)])
    with ProgressBar(quiet=True, seconds=0.0) as bar:
        convert_folder(folder, output, workers=1, progress=bar.show)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_a_short_run_without_a_terminal_shows_no_progress(folder, output):
    save_jpegs(folder, ["a.jpg"])
    ended = run(command(folder, output))
    assert "files/s" not in ended.err


def run_in_terminal(arguments: list[str], *, seconds: float = 60) -> tuple[int, str]:
    """Run with stderr on a terminal; return the status and what it showed."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = io.BytesIO()
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        shown.write(data)
    os.close(ours)
    return process.wait(seconds), shown.getvalue().decode(errors="replace")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_on_a_terminal_a_bar_shows_files_rates_time_left_and_failures(folder, output, tmp_path):
    for number in range(40):
        (folder / f"{number:02}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "slow_functions.py",
        """
        import time
        def my_read(path_sample):
            time.sleep(0.05)
            if "00" in path_sample.rpartition("/")[2]:
                raise ValueError
            return 1
        """,
    )
    flags = ("--ext=num", *read_with(functions), "--workers=2")
    status, shown = run_in_terminal(command(folder, output, *flags))
    assert status == 1
    assert re.search(r"\d+/40", shown)
    assert "files/s" in shown
    assert "MB/s" in shown
    assert "1 failed" in shown
    status, shown = run_in_terminal(command(folder, output, *flags, "--quiet", "--overwrite"))
    assert "/40" not in shown


def test_results_go_to_stdout_and_failures_to_stderr(folder, output):
    save_jpegs(folder, ["a.jpg"])
    (folder / "bad.jpg").write_bytes(b"")
    ended = run(command(folder, output))
    assert "1 stored" in ended.out
    assert "bad.jpg: " in ended.err
    assert "bad.jpg: " not in ended.out


@pytest.mark.slow
def test_a_reader_of_stdout_that_has_gone_away_changes_no_file(folder, output):
    save_jpegs(folder, ["a.jpg"])
    ours, theirs = os.pipe()
    os.close(ours)
    process = subprocess.run(
        command(folder, output), stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60
    )
    os.close(theirs)
    assert list(stored(output)) == ["a.jpg"]
    assert "Traceback" not in process.stderr


def test_a_file_that_prints_in_my_read_does_not_disturb_the_workers(folder, output, tmp_path):
    for number in range(10):
        (folder / f"{number}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "printing_functions.py",
        """
        import os, sys
        def my_read(path_sample):
            print("noise")
            os.write(1, b"noise")
            sys.stdin.read()
            return 1
        """,
    )
    flags = ("--ext=num", *read_with(functions), "--workers=2")
    ended = run(command(folder, output, *flags), stdin=subprocess.DEVNULL)
    assert ended.status == 0, ended.err
    assert len(stored(output)) == 10


def test_the_output_has_the_permissions_of_a_new_file(folder, output, tmp_path, convert):
    save_jpegs(folder, ["a.jpg"])
    (tmp_path / "new").write_bytes(b"")
    convert(folder, output)
    assert output.stat().st_mode == (tmp_path / "new").stat().st_mode


def test_the_sources_are_not_touched(folder, output, convert):
    save_jpegs(folder, ["a.jpg", "sub/b.jpg"])
    for path in folder.rglob("*.jpg"):
        path.chmod(0o444)
    before = everything_below(folder)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    time.sleep(0.01)
    convert(folder, output)
    assert everything_below(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times
