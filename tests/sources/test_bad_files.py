"""Files and folders that cannot be read are named with a reason; the rest is stored."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pytest

from helpers.check import assert_same, failures, names_kept, stored
from helpers.images import as_pillow_reads, colours, save, save_jpegs
from helpers.run import (
    command,
    finish,
    read_with,
    run,
    start,
    wait_until,
    without_root_rights,
    write_functions,
)

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX file system")


@pytest.fixture(params=[1, 2], ids=["alone", "pool"])
def workers(request) -> str:
    return f"--workers={request.param}"


def truncated_jpeg() -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(colours(3, (100, 100, 3))).save(file, "JPEG")
    return file.getvalue()[:-800]


def test_broken_images_are_named_with_their_reasons_and_the_rest_is_stored(
    folder, output, convert, workers
):
    save_jpegs(folder, ["a.jpg", "m.jpg", "z.jpg"])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes(truncated_jpeg())
    (folder / "text.jpg").write_text("not an image at all")
    (folder / "zeros.jpg").write_bytes(bytes(1000))
    (folder / "signature_only.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:60])
    ended = convert(folder, output, "--ext=jpg,png", workers)
    assert ended.status == 1
    bad = {
        "empty.jpg",
        "truncated.jpg",
        "text.jpg",
        "zeros.jpg",
        "signature_only.jpg",
        "cut.png",
    }
    assert set(failures(output)) == bad
    assert all(reason and str(folder) not in reason for reason in failures(output).values())
    assert "truncated" in failures(output)["truncated.jpg"]
    assert "not an image" in failures(output)["text.jpg"]
    for name in bad:
        assert f"{name}: {failures(output)[name]}" in ended.err
    assert "3 stored, 6 failed" in ended.out
    assert str(output) + ".failures.csv" in ended.out
    found = stored(output)
    assert set(found) == {"a.jpg", "m.jpg", "z.jpg"}
    for key, array in found.items():
        assert_same(array, as_pillow_reads(folder / key))


@pytest.mark.everyday(1)
@posix_only
def test_what_is_no_regular_file_is_named_and_never_waited_for(folder, tmp_path, workers):
    output = tmp_path / "OUT.h5"
    save_jpegs(folder, ["a.jpg", "z.jpg"])
    os.mkfifo(folder / "fifo.jpg")
    (folder / "broken_link.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    before = os.getcwd()
    os.chdir(folder)  # a socket's path must be short
    try:
        listener.bind("socket.jpg")
    finally:
        os.chdir(before)
    ended = run(command(folder, output, workers))
    listener.close()
    assert ended.status == 1
    reasons = failures(output)
    assert set(reasons) == {
        "fifo.jpg",
        "broken_link.jpg",
        "loop.jpg",
        "device.jpg",
        "socket.jpg",
    }
    assert "not a regular file" in reasons["fifo.jpg"]
    assert "not a regular file" in reasons["socket.jpg"]
    assert "not a regular file" in reasons["device.jpg"]
    assert "nowhere.jpg" in reasons["broken_link.jpg"]
    assert set(stored(output)) == {"a.jpg", "z.jpg"}


@pytest.mark.slow
@posix_only
def test_a_fifo_is_not_waited_for_by_my_read_either(folder, output, tmp_path, workers):
    (folder / "a.json").write_text("[1, 2]")
    os.mkfifo(folder / "b.json")
    ended = run(command(folder, output, workers, "--ext=json", "--custom_read_func"))
    assert ended.status == 1
    assert "not a regular file" in failures(output)["b.json"]
    assert_same(stored(output)["a.json"], np.array([1, 2]))


@posix_only
def test_links_to_files_are_followed(folder, output, convert, tmp_path):
    save(tmp_path / "elsewhere.jpg")
    (folder / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert convert(folder, output).status == 0
    assert_same(stored(output)["link.jpg"], as_pillow_reads(tmp_path / "elsewhere.jpg"))


def test_a_folder_named_like_an_image_is_walked(folder, output, convert):
    save_jpegs(folder, ["x.jpg/y.jpg", "x.jpg/z.jpg/w.jpg"])
    assert convert(folder, output).status == 0
    assert set(stored(output)) == {"x.jpg/y.jpg", "x.jpg/z.jpg/w.jpg"}


def test_files_that_vanish_meanwhile_are_named(folder, output, convert, tmp_path, workers):
    save_jpegs(folder, ["a.jpg", "b.jpg", "c.jpg"])
    functions = write_functions(
        tmp_path / "deleting_functions.py",
        f"""
        import os
        def my_prune(filename_str, ext_str):
            if filename_str == "b.jpg":
                os.remove(os.path.join({str(folder)!r}, filename_str))
            return True
        """,
    )
    ended = convert(folder, output, "--custom_prune_func", f"--path_functions={functions}", workers)
    assert ended.status == 1
    assert failures(output) == {"b.jpg": "it was removed while converting"}
    assert set(stored(output)) == {"a.jpg", "c.jpg"}


@pytest.mark.everyday(1)
def test_files_that_vanish_between_the_look_and_the_reading_are_named(
    folder, output, tmp_path, workers
):
    for name in ("a", "b", "c"):
        (folder / f"{name}.num").write_bytes(b"1")
    functions = write_functions(
        tmp_path / "deleting_functions.py",
        """
        import os
        def my_read(path_sample):
            if path_sample.endswith("b.num"):
                os.remove(path_sample)
            return int(open(path_sample).read())
        """,
    )
    flags = ("--ext=num", *read_with(functions))
    ended = run(command(folder, output, workers, *flags))
    assert ended.status == 1
    assert set(failures(output)) == {"b.num"}
    assert set(stored(output)) == {"a.num", "c.num"}


@pytest.mark.slow
@pytest.mark.everyday(1)
def test_folders_that_vanish_meanwhile_are_named(folder, output, tmp_path, workers):
    save_jpegs(folder, ["a.jpg", "deep/b.jpg", "z/c.jpg"])
    functions = write_functions(
        tmp_path / "deleting_functions.py",
        f"""
        import shutil
        def my_prune(filename_str, ext_str):
            if filename_str == "a.jpg":
                shutil.rmtree({str(folder / "deep")!r})
            return True
        """,
    )
    for number, flags in enumerate([(), ("--follow_links",)]):
        path = output.with_name(f"{number}.h5")
        save_jpegs(folder, ["deep/b.jpg"])
        ended = run(
            command(
                folder,
                path,
                workers,
                "--custom_prune_func",
                f"--path_functions={functions}",
                *flags,
            )
        )
        assert ended.status == 1, ended.err
        assert "Traceback" not in ended.err
        assert [key for key in failures(path) if key.startswith("deep/")]
        assert set(stored(path)) == {"a.jpg", "z/c.jpg"}


@pytest.mark.everyday(1)
@posix_only
def test_unreadable_files_and_folders_are_named_and_the_rest_is_stored(
    folder, output, tmp_path, workers
):
    save_jpegs(folder, ["a.jpg", "secret.jpg", "closed/b.jpg", "listed/c.jpg", "z/d.jpg"])
    (folder / "secret.jpg").chmod(0)
    (folder / "closed").chmod(0)
    (folder / "listed").chmod(0o444)  # names, but no files
    try:
        for number, flags in enumerate([(), ("--follow_links",)]):
            path = output.with_name(f"{number}.h5")
            ended = run(command(folder, path, workers, *flags), preexec_fn=without_root_rights)
            assert ended.status == 1, ended.err
            assert "Traceback" not in ended.err
            reasons = failures(path)
            assert "Permission denied" in reasons["secret.jpg"]
            assert "Permission denied" in reasons["closed/"]
            assert any(
                key.startswith("listed/") and "Permission denied" in reason
                for key, reason in reasons.items()
            )
            assert len(reasons) == 3
            assert set(stored(path)) == {"a.jpg", "z/d.jpg"}
    finally:
        (folder / "closed").chmod(0o755)
        (folder / "listed").chmod(0o755)


@pytest.mark.everyday(1)
@posix_only
def test_names_that_are_not_utf_8_are_named_and_the_rest_is_stored(folder, output, workers):
    save_jpegs(folder, ["a.jpg", "ok/b.jpg"])
    save(folder / os.fsdecode(b"bad\xff.jpg"))
    save(folder / os.fsdecode(b"folder\xe9") / "c.jpg")
    ended = run(command(folder, output, workers))
    assert ended.status == 1
    why = "the name is not valid UTF-8, which HDF5 needs: rename it"
    assert failures(output) == {r"bad\udcff.jpg": why, r"folder\udce9/c.jpg": why}
    assert r"bad\udcff.jpg: the name is not valid UTF-8" in ended.err
    assert set(stored(output)) == {"a.jpg", "ok/b.jpg"}


@posix_only
def test_a_thousand_names_that_are_not_utf_8_do_not_end_the_run(folder, output, convert):
    for number in range(1000):
        (folder / os.fsdecode(b"%d\xff.jpg" % number)).write_bytes(b"")
    save_jpegs(folder, ["good.jpg"])
    assert convert(folder, output).status == 1
    assert list(stored(output)) == ["good.jpg"]
    assert len(failures(output)) == 1000


ODD_NAMES = [
    " leading space.jpg",
    "two\nlines.jpg",
    "tab\there.jpg",
    "quotes'\".jpg",
    "hash#and,comma;.jpg",
    "back\\slash.jpg",
    "star*question?.jpg",
    "[brackets](round).jpg",
    "percent%20.jpg",
    "-dash.jpg",
    "..two dots.jpg",
    "...jpg",
    "jpg.jpg",
    "ünïcödé 図 🎉.jpg",
    "cafe\u0301.jpg",
    "caf\u00e9.jpg",
    "\x1b[31mred.jpg",
    "a.jpg/a.jpg",
    "~/home.jpg",
    "$HOME/x.jpg",
    "n" * 251 + ".jpg",
    "CON.jpg",
    "UPPER.JPG",
    "upper.jpg",
]


@pytest.mark.everyday(1)
@posix_only
def test_odd_names_are_stored_under_these_names(folder, output, workers):
    save_jpegs(folder, ODD_NAMES)
    ended = run(command(folder, output, workers))
    assert ended.status == 0, ended.err
    found = stored(output)
    assert sorted(found) == sorted(ODD_NAMES)
    for key, array in found.items():
        assert_same(array, as_pillow_reads(folder / key))


@pytest.mark.everyday(1)
@posix_only
def test_odd_names_of_failures_come_back_from_the_list(folder, output, workers):
    for name in ODD_NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    save_jpegs(folder, ["good.jpg"])
    ended = run(command(folder, output, workers))
    assert ended.status == 1
    assert sorted(failures(output)) == sorted(ODD_NAMES)


@pytest.mark.everyday(1)
@posix_only
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_names_that_the_terminal_cannot_show_end_no_run(encoding, tmp_path):
    folder, output = tmp_path / "図", tmp_path / "出力.h5"
    save_jpegs(folder, ["図.jpg", "a.jpg"])
    (folder / "空.jpg").write_bytes(b"")
    (folder / "x.図").write_bytes(b"")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    ended = run(command(folder, output), env=environment)
    assert ended.status == 1
    assert "Traceback" not in ended.err
    assert "2 stored, 1 failed" in ended.out
    assert set(stored(output)) == {"図.jpg", "a.jpg"}


@pytest.mark.slow
@posix_only
def test_an_output_whose_name_is_not_utf_8_is_made(folder, tmp_path):
    save_jpegs(folder, ["a.jpg"])
    output = tmp_path / os.fsdecode(b"out\xff.h5")
    ended = run(command(folder, output))
    assert "Traceback" not in ended.err
    assert ended.status == 0
    assert output.stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("depth", [200, 1500])
def test_deep_folders_are_stored(depth, folder, output, workers):
    """Made and removed from within: a path of more than 4096 bytes cannot be named."""
    script = f"""
import os, shutil, sys
os.chdir({str(folder)!r})
for _ in range({depth}):
    os.mkdir("d")
    os.chdir("d")
shutil.copy({str(folder.parent / "x.jpg")!r}, "x.jpg")
"""
    save(folder.parent / "x.jpg")
    subprocess.run([sys.executable, "-c", script], check=True)
    ended = run(command(folder, output, workers))
    assert "Traceback" not in ended.err
    assert ended.status == 0, ended.err
    assert list(stored_keys(output)) == ["d/" * depth + "x.jpg"]
    subprocess.run(["rm", "-rf", str(folder / "d")], check=True)


def stored_keys(output: Path) -> list[str]:
    with h5py.File(output) as file:
        keys, group = [], file
        while True:
            (name,) = group
            keys.append(name)
            group = group[name]
            if isinstance(group, h5py.Dataset):
                return ["/".join(keys)]


@pytest.mark.everyday(1)
@posix_only
def test_a_path_longer_than_the_system_allows_is_named_and_the_rest_is_stored(
    folder, output, workers
):
    script = f"""
import os
os.chdir({str(folder)!r})
for _ in range(25):
    os.mkdir("d" * 200)
    os.chdir("d" * 200)
open("x.jpg", "w").close()
"""
    save_jpegs(folder, ["a.jpg"])
    subprocess.run([sys.executable, "-c", script], check=True)
    ended = run(command(folder, output, workers))
    assert "Traceback" not in ended.err
    assert ended.status == 1
    assert list(stored(output)) == ["a.jpg"]
    assert len(failures(output)) == 1
    assert "File name too long" in next(iter(failures(output).values()))
    subprocess.run(["rm", "-rf", str(folder / ("d" * 200))], check=True)


def test_files_of_macos_beside_the_images_are_left_out(folder, output, convert):
    save_jpegs(folder, ["x.jpg"])
    (folder / "._x.jpg").write_bytes(b"\0\5\x16\7")
    ended = convert(folder, output)
    assert ended.status == 0
    assert list(stored(output)) == ["x.jpg"]
    assert "left out: 1 with names ._* (macOS)" in ended.out


@posix_only
def test_linked_folders_are_counted_and_entered_only_when_asked(folder, output, convert, tmp_path):
    save_jpegs(folder, ["a.jpg", "real/b.jpg"])
    save_jpegs(tmp_path / "elsewhere", ["c.jpg", "deeper/d.jpg"])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "zz_inner").symlink_to("real")
    ended = convert(folder, output)
    assert ended.status == 0
    assert set(stored(output)) == {"a.jpg", "real/b.jpg"}
    assert "3 linked folders not entered (--follow_links)" in ended.out
    ended = convert(folder, output, "--follow_links", "--overwrite")
    assert ended.status == 0
    assert set(stored(output)) == {"a.jpg", "real/b.jpg", "again/c.jpg", "again/deeper/d.jpg"}


@posix_only
def test_loops_of_links_end(folder, output, convert):
    save_jpegs(folder, ["a.jpg", "sub/b.jpg"])
    (folder / "sub" / "up").symlink_to("..")
    (folder / "self").symlink_to(".")
    (folder / "sub" / "sub").symlink_to(folder / "sub")
    (folder / "knot").symlink_to("knot")
    assert convert(folder, output).status == 0
    assert set(stored(output)) == {"a.jpg", "sub/b.jpg"}
    convert(folder, output, "--follow_links", "--overwrite")
    assert set(stored(output)) == {"a.jpg", "sub/b.jpg"}


def test_on_error_stop_ends_at_the_first_failure_without_output(folder, output, convert, workers):
    save_jpegs(folder, ["a.jpg", "c.jpg", "z.jpg"])
    (folder / "b.jpg").write_bytes(b"")
    (folder / "d.jpg").write_bytes(b"")
    output.write_bytes(b"an older one")
    ended = convert(folder, output, "--on_error=stop", "--overwrite", workers)
    assert ended.status == 1
    assert "b.jpg: " in ended.err
    assert "d.jpg" not in ended.err
    assert "--on_error=stop" in ended.err
    assert output.read_bytes() == b"an older one"
    assert set(os.listdir(output.parent)) == {"OUT.h5", *names_kept(ended, output)}


def test_on_error_stop_stores_everything_when_nothing_fails(folder, output, convert, workers):
    save_jpegs(folder, ["a.jpg", "b.jpg"])
    assert convert(folder, output, "--on_error=stop", workers).status == 0
    assert set(stored(output)) == {"a.jpg", "b.jpg"}


@pytest.mark.everyday(1)
def test_when_the_first_thousand_files_fail_the_run_stops_with_a_hint(
    folder, output, convert, workers
):
    for number in range(1100):
        (folder / f"{number:04}.jpg").write_text("no image")
    save_jpegs(folder, ["zzz.jpg"])
    ended = convert(folder, output, workers)
    assert ended.status == 1
    assert "none of the first 1000 files could be read" in ended.err
    assert "0000.jpg" in ended.err
    assert failures(output)["0000.jpg"] in ended.err
    assert "--custom_read_func" in ended.err
    assert len(failures(output)) == 1000
    assert os.listdir(output.parent) == ["OUT.h5.failures.csv"]


@pytest.mark.everyday(1)
def test_when_one_of_the_first_thousand_files_is_stored_the_run_goes_on(
    folder, output, convert, workers
):
    for number in range(1100):
        (folder / f"{number:04}.jpg").write_text("no image")
    save_jpegs(folder, ["0500.jpg"])
    assert convert(folder, output, workers).status == 1
    assert list(stored(output)) == ["0500.jpg"]
    assert len(failures(output)) == 1099


def test_when_nothing_is_stored_an_older_output_stays(folder, output, convert, workers):
    (folder / "a.jpg").write_text("no image")
    (folder / "b.jpg").write_text("no image")
    output.write_bytes(b"an older one")
    ended = convert(folder, output, "--overwrite", workers)
    assert ended.status == 1
    assert "none of the 2 files could be read" in ended.err
    assert "--custom_read_func" in ended.err
    assert output.read_bytes() == b"an older one"
    assert set(failures(output)) == {"a.jpg", "b.jpg"}
    assert sorted(os.listdir(output.parent)) == ["OUT.h5", "OUT.h5.failures.csv"]


def test_a_stale_list_of_failures_is_removed(folder, output, convert):
    save_jpegs(folder, ["a.jpg"])
    (folder / "b.jpg").write_bytes(b"")
    assert convert(folder, output).status == 1
    assert set(failures(output)) == {"b.jpg"}
    (folder / "b.jpg").unlink()
    assert convert(folder, output, "--overwrite").status == 0
    assert os.listdir(output.parent) == ["OUT.h5"]


def test_only_the_first_ten_failures_are_shown(folder, output, convert, workers):
    save_jpegs(folder, ["zz.jpg"])
    for number in range(13):
        (folder / f"{number:02}.jpg").write_bytes(b"")
    ended = convert(folder, output, workers)
    assert [f"{number:02}.jpg: " in ended.err for number in range(13)] == [True] * 10 + [False] * 3
    assert "3 more" in ended.err
    assert len(failures(output)) == 13


@pytest.mark.slow
def test_a_second_run_on_the_same_output_is_refused(folder, output, tmp_path):
    for number in range(20):
        (folder / f"{number}.num").write_bytes(b"x")
    functions = write_functions(
        tmp_path / "slow_functions.py",
        """
        import time
        def my_read(path_sample):
            time.sleep(0.15)
            return 1
        """,
    )
    flags = ("--ext=num", *read_with(functions))
    first = start(command(folder, output, "--workers=1", *flags))
    wait_until(output.with_name("OUT.h5.partial").exists)
    second = run(command(folder, output, "--workers=1", *flags))
    assert second.status == 2
    assert "is being written by another run" in second.err
    assert "Traceback" not in second.err
    assert finish(first).status == 0
    assert len(stored(output)) == 20
    assert os.listdir(output.parent) == ["OUT.h5"]
