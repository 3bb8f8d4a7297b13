"""Keys and positions are taken as label tables and samplers give them."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import converter
from converter import H5Folder
from helpers.images import save_jpegs

NAMES = ["0.jpg", "1.jpg", "sub/2.jpg"]


@pytest.fixture
def file(folder: Path, output: Path) -> Path:
    converter.convert(save_jpegs(folder, NAMES), output, workers=1)
    return output


class Column:
    """What a column of a table is to others: it can be made an array."""

    ndim = 1

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self._values, object)


def columns() -> list[Any]:
    found: list[Any] = [
        ["0.jpg", "sub/2.jpg"],
        ("0.jpg", "sub/2.jpg"),
        [np.str_("0.jpg"), "sub/2.jpg"],
        ["0.jpg", np.int64(2)],
        np.array(["0.jpg", "sub/2.jpg"]),
        np.array(["0.jpg", "sub/2.jpg"], object),
        np.array([b"0.jpg", b"sub/2.jpg"]),
        np.array([0, 2], object),
        np.array([0, 2], np.uint8),
        [0, -1],
        range(0, 4, 2),
        Column(["0.jpg", "sub/2.jpg"]),
        Column([0, 2]),
        slice(None, None, 2),
    ]
    try:
        import pandas
    except ImportError:
        return found
    table = pandas.DataFrame({"path": ["0.jpg", "x", "sub/2.jpg"], "n": [0, 1, 2]})
    table = table[table["path"] != "x"]
    paths = table["path"]
    others = [paths.values, paths.astype("category"), paths.astype("string"), pandas.Index(paths)]
    return [*found, paths, table["n"], *others]


@pytest.mark.parametrize("number", range(len(columns())))
def test_a_column_of_keys_is_a_batch(file: Path, number: int) -> None:
    keys = columns()[number]
    with H5Folder(file) as folder:
        expected = np.stack([folder["0.jpg"], folder["sub/2.jpg"]])
        assert np.array_equal(folder.read_batch(keys), expected)
        assert np.array_equal(folder[keys], expected)


def test_one_key_of_numpy_is_one_array(file: Path) -> None:
    with H5Folder(file) as folder:
        for key in (np.str_("1.jpg"), np.array("1.jpg"), np.int64(1), np.array(1), b"1.jpg"):
            assert np.array_equal(folder[key], folder["1.jpg"])
        assert folder[np.array([1])].shape == (1, *folder[1].shape)


@pytest.mark.parametrize(
    "wrong", [np.array([True, False]), np.array([0.5]), np.zeros((2, 2), int), [0.5], [None]]
)
def test_what_is_no_key_is_refused(file: Path, wrong: Any) -> None:
    with H5Folder(file) as folder, pytest.raises(TypeError, match="int"):
        folder.read_batch(wrong)


def test_an_unknown_key_in_a_column_is_named(file: Path) -> None:
    with H5Folder(file) as folder, pytest.raises(KeyError, match=r"no '3.jpg' in .*did you mean"):
        folder[np.array(["0.jpg", "3.jpg"], object)]


@pytest.mark.parametrize(("stored", "asked"), [("NFD", "NFC"), ("NFC", "NFD"), ("mixed", "NFC")])
def test_a_key_in_another_unicode_form_is_told_so(
    folder: Path, output: Path, stored: Any, asked: Any
) -> None:
    name = "Zoë/Ångström é.jpg"
    if stored == "mixed":
        kept = unicodedata.normalize("NFD", "Zoë/") + unicodedata.normalize("NFC", name[4:])
    else:
        kept = unicodedata.normalize(stored, name)
    converter.convert(save_jpegs(folder, [kept, "Zoe/x.jpg"]), output, workers=1)
    if list(H5Folder(output))[-1] != kept and kept not in H5Folder(output):
        pytest.skip("the file system changes names")
    key = unicodedata.normalize(asked, name)
    with H5Folder(output) as samples:
        for ask in (lambda: samples[key], lambda: samples.read_batch([key, "Zoe/x.jpg"])):
            with pytest.raises(KeyError, match="other Unicode characters for its accents"):
                ask()
