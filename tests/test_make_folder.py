"""The script that makes large folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from helpers.run import run
from make_folder import FILES_IN_FOLDER, main


def test_it_makes_that_many_equal_lists_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert main([str(folder), "--count=250"]) == 0
    files = sorted(folder.iterdir())
    assert len(files) == 250
    assert len({len(json.loads(file.read_text())) for file in files}) == 1
    assert all(90 <= file.stat().st_size <= 130 for file in files)
    assert len({file.read_bytes() for file in files}) == 250


def test_it_makes_a_hundred_in_each_nested_folder(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new"), "--count=250", "--nested"]) == 0
    folders: dict[Path, int] = {}
    for file in (tmp_path / "new").rglob("*.json"):
        folders[file.parent] = folders.get(file.parent, 0) + 1
    assert sorted(folders.values()) == [50, FILES_IN_FOLDER, FILES_IN_FOLDER]


def test_it_makes_small_jpegs(tmp_path: Path) -> None:
    assert main([str(tmp_path / "new"), "--count=3", "--jpeg"]) == 0
    files = list((tmp_path / "new").iterdir())
    assert len(files) == 3
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.size) == ("JPEG", (32, 32))


def test_it_makes_the_same_twice(tmp_path: Path) -> None:
    for name in ("a", "b"):
        main([str(tmp_path / name), "--count=5"])
    contents = [[f.read_bytes() for f in sorted((tmp_path / n).iterdir())] for n in ("a", "b")]
    assert contents[0] == contents[1]


def test_it_leaves_a_folder_with_something_in_it_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="not empty"):
        main([str(tmp_path), "--count=1"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_it_is_a_script(tmp_path: Path) -> None:
    script = Path(__file__).with_name("make_folder.py")
    ended = run([sys.executable, str(script), str(tmp_path / "new"), "--count=2", "--jpeg"])
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "new").iterdir())) == 2
