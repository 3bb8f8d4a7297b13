"""The script that makes photos."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import photos
from helpers.run import run


@pytest.mark.slow
def test_photos_are_as_large_as_those_of_imagenet(tmp_path: Path) -> None:
    photos.make_photos(tmp_path, 20)
    files = sorted(tmp_path.rglob("*.jpg"))
    assert len(files) == 20
    for file in files:
        with Image.open(file) as image:
            assert (image.format, image.size, image.mode) == ("JPEG", (500, 375), "RGB")
    assert 95_000 < np.mean([file.stat().st_size for file in files]) < 125_000


def test_the_same_command_makes_the_same_photos(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photos.make_photos(tmp_path / name, 3, many_shapes=True)
    contents = [[f.read_bytes() for f in sorted((tmp_path / n).rglob("*.jpg"))] for n in "ab"]
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 3


def test_there_are_as_many_shapes_among_a_thousand_photos_as_in_imagenet() -> None:
    shapes = [photos._shape(np.random.default_rng([1, number])) for number in range(1000)]
    assert 350 < len(set(shapes)) < 450


def test_each_photo_has_a_mask_of_its_shape(tmp_path: Path) -> None:
    photos.make_photos(tmp_path, 3, many_shapes=True, masks=True)
    for file in sorted((tmp_path / "images").rglob("*.jpg")):
        mask = tmp_path / "masks" / file.relative_to(tmp_path / "images").with_suffix(".png")
        with Image.open(file) as photo, Image.open(mask) as classes:
            assert (classes.size, classes.mode) == (photo.size, "L")
            assert len(np.unique(np.asarray(classes))) > 1


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(SystemExit, match="not empty"):
        photos.main([str(tmp_path), "--count=1"])
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_it_runs_as_a_script(tmp_path: Path) -> None:
    ended = run([sys.executable, photos.__file__, str(tmp_path / "new"), "--count=2"])
    assert ended.status == 0, ended.err
    assert len(list((tmp_path / "new").rglob("*.jpg"))) == 2
