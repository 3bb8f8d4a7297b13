"""Hidden folders, and those that systems make, go in only when they are asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

import converter
from helpers.check import stored
from helpers.images import save_jpegs
from helpers.run import ROOT, Finished, run, write_functions

HIDDEN = [".ipynb_checkpoints", ".Trash-1000/files", "@eaDir/1.jpg", "__MACOSX", "lost+found",
          "$Recycle.Bin", "deep/System Volume Information"]  # fmt: skip
SEEN = ["1.jpg", "cat/2.jpg", "deep/.3.jpg", "macosx/4.jpg"]


@pytest.fixture
def photos(folder: Path) -> Path:
    return save_jpegs(folder, SEEN + [f"{name}/0.jpg" for name in HIDDEN])


def test_hidden_folders_are_left_out_and_counted(
    photos: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    ended = convert(photos, output)
    assert ended.status == 0
    assert sorted(stored(output)) == sorted(SEEN)
    assert "7 hidden folders not entered (--hidden_folders): " in ended.out
    assert "1 .Trash-1000" in ended.out
    assert "7 hidden folders not entered" in convert(photos, output.with_name("x"), "--dry_run").out


def test_a_flag_enters_hidden_folders(
    photos: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    ended = convert(photos, output, "--hidden_folders")
    assert len(stored(output)) == len(SEEN) + len(HIDDEN)
    assert "hidden folders" not in ended.out
    assert converter.convert(photos, output.with_name("b.h5"), hidden_folders=True).stored == 11


def test_the_walked_folder_may_be_hidden_itself(
    tmp_path: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    folder = save_jpegs(tmp_path / ".hidden" / "__MACOSX", ["a.jpg", ".in/b.jpg"])
    assert convert(folder, output).status == 0
    assert list(stored(output)) == ["a.jpg"]


def test_my_prune_is_not_asked_about_hidden_folders(
    photos: Path, output: Path, convert: Callable[..., Finished], tmp_path: Path
) -> None:
    functions = write_functions(tmp_path / "f.py", "def my_prune(name, ext): return True")
    convert(photos, output, "--custom_prune_func", f"--path_functions={functions}")
    assert sorted(stored(output)) == sorted(SEEN)


def test_a_folder_with_hidden_folders_alone_says_so(
    folder: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    save_jpegs(folder, [".cache/a.jpg"])
    ended = convert(folder, output)
    assert ended.status == 2
    assert "outside of hidden folders (.cache; --hidden_folders enters them)" in ended.err


def test_files_of_macos_are_counted_by_themselves(
    folder: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    save_jpegs(folder, ["a.jpg", "._a.jpg"])
    assert "left out: 1 with names ._* (macOS)" in convert(folder, output).out


@pytest.mark.parametrize("flags", [[], ["--hidden_folders"]])
def test_the_choice_is_recorded_and_an_update_keeps_to_it(
    photos: Path, output: Path, convert: Callable[..., Finished], flags: list[str]
) -> None:
    convert(photos, output, *flags)
    before = set(stored(output))
    with h5py.File(output) as file:
        assert json.loads(file.attrs["options"])["hidden_folders"] is bool(flags)
    save_jpegs(photos, ["new.jpg", ".new/new.jpg"])
    ended = convert(photos, output, "--update")
    assert ended.status == 0
    assert "hidden folders: they are entered again" not in ended.err
    new = {"new.jpg", ".new/new.jpg"} if flags else {"new.jpg"}
    assert set(stored(output)) == before | new


def test_an_update_does_not_change_the_choice(
    photos: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    convert(photos, output)
    ended = convert(photos, output, "--update", "--hidden_folders")
    assert ended.status == 2
    assert "was made with no --hidden_folders" in ended.err


def test_an_older_file_is_updated_with_hidden_folders_in_and_says_so(
    photos: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    convert(photos, output, "--hidden_folders")
    recorded, content = b'"hidden_folders": true, ', output.read_bytes()
    assert content.count(recorded) == 1
    output.write_bytes(content.replace(recorded, b" " * len(recorded)))
    before = set(stored(output))
    save_jpegs(photos, [".new/new.jpg"])
    ended = convert(photos, output, "--update")
    assert ended.status == 0
    assert "entered hidden folders: they are entered again" in ended.err
    assert set(stored(output)) == before | {".new/new.jpg"}
    assert "they are entered again" not in convert(photos, output, "--update").err


def test_shards_of_another_choice_are_not_joined(
    photos: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    parts = [output.with_name(f"{k}.h5") for k in (1, 2)]
    convert(photos, parts[0], "--shard=1/2")
    convert(photos, parts[1], "--shard=2/2", "--hidden_folders")
    program = [sys.executable, str(ROOT / "converter"), "--merge"]
    ended = run([*program, str(parts[0]), str(parts[1]), f"--path_output={output}"])
    assert ended.status == 2
    assert "hidden_folders" in ended.err
