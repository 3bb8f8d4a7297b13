"""Paths are taken as a shell would take them, and do not change with the current folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import converter
from converter import ConverterError, H5Folder, read_image
from helpers.check import stored
from helpers.images import save_jpegs
from helpers.run import ROOT, command, run, write_functions


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and a current folder elsewhere."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(here)
    return home


@pytest.mark.slow
def test_a_tilde_is_the_home_folder_in_every_flag(home: Path) -> None:
    save_jpegs(home / "photos", ["a.jpg"])
    write_functions(home / "read.py", "def my_read(path): return [1]")
    flags = ["--custom_read_func", "--path_functions=~/read.py", "--workers=1"]
    assert run(command("~/photos", "~/new/a.h5", *flags)).status == 0
    assert run(command("~/photos", "~/new/b.h5", "--workers=1")).status == 0
    program = [sys.executable, str(ROOT / "converter")]
    assert run([*program, "--verify", "--path_output=~/new/b.h5", "--quiet"]).status == 0
    assert run([*program, "--update", "--path_output", "~/new/b.h5", "--path_images", "~/photos",
                "--workers=1"]).status == 0  # fmt: skip
    assert run([*program, "--extract=~/back", "--path_output=~/new/b.h5"]).status == 0
    assert run([*program, "--merge", "~/new/b.h5", "--path_output=~/new/c.h5"]).status == 0
    assert (home / "back" / "a.jpg.npy").is_file()
    assert {path.name for path in (home / "new").iterdir()} == {"a.h5", "b.h5", "c.h5"}
    assert os.listdir(".") == []


def test_a_tilde_is_the_home_folder_from_python(home: Path) -> None:
    save_jpegs(home / "photos", ["a.jpg"])
    converter.convert("~/photos", Path("~/a.h5"), workers=1)
    assert np.array_equal(H5Folder("~/a.h5")["a.jpg"], read_image("~/photos/a.jpg"))
    assert os.listdir(".") == []


def test_a_folder_called_tilde_is_taken_where_it_is_there(home: Path) -> None:
    save_jpegs(Path("~old"), ["a.jpg"])
    converter.convert("~old", "~x.h5", workers=1)
    assert list(stored(Path("~x.h5"))) == ["a.jpg"]
    with pytest.raises(ConverterError, match=r"user who does not exist: write \./~nobody-here/a"):
        converter.convert("~old", "~nobody-here/a.h5", workers=1)


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    "url", ["s3://bucket/a.h5", "gs://bucket/a.h5", "HTTPS://host/a.h5", "file:///tmp/a.h5"]
)
def test_a_url_is_refused_wherever_a_path_is_taken(home: Path, url: str) -> None:
    save_jpegs(Path("photos"), ["a.jpg"])
    for call in (
        lambda: H5Folder(url),
        lambda: H5Folder(["a.h5", url]),
        lambda: read_image(url),
        lambda: converter.convert("photos", url),
        lambda: converter.convert("photos", Path(url)),
        lambda: converter.convert(url, "a.h5"),
        lambda: converter.convert("photos", "a.h5", path_functions=url, custom_read_func=True),
    ):
        with pytest.raises(ConverterError, match="is a URL"):
            call()
    for flags in (
        [f"--path_output={url}", "--path_images=photos"],
        ["--path_output=a.h5", "--path_images", url],
        ["--path_output=a.h5", "--merge", "b.h5", url],
        ["--path_output=a.h5", f"--extract={url}"],
        ["--path_output=a.h5", "--path_images=photos", f"--path_functions={url}"],
    ):
        ended = run([sys.executable, str(ROOT / "converter"), *flags])
        assert ended.status == 2
        assert f"{url} is a URL" in ended.err
    assert os.listdir(".") == ["photos"]


@pytest.mark.everyday(1)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_reader_may_change_the_current_folder(tmp_path: Path, workers: int) -> None:
    for name in ("d/a/1.txt", "d/b/2.txt", "d/3.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    write_functions(
        tmp_path / "my_functions.py",
        """
        import os

        def my_read(path):
            os.chdir(os.path.dirname(path))
            return open(os.path.basename(path)).read()
        """,
    )
    flags = ["--path_images=d", "--path_output=o.h5", "--ext=txt", "--custom_read_func"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "converter"), *flags, f"--workers={workers}"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert set(stored(tmp_path / "o.h5")) == {"a/1.txt", "b/2.txt", "3.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"d", "my_functions.py", "o.h5"}
    assert sorted(path.name for path in (tmp_path / "d").rglob("*.txt*")) == [
        "1.txt", "2.txt", "3.txt",
    ]  # fmt: skip
