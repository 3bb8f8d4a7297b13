"""Files whose zstd frames have a checksum of their own: version 1 of their payloads."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter.cli import main
from converter.codecs import zstd
from helpers.arrays import make_h5, smooth
from helpers.check import assert_same
from helpers.run import read_with

pytest.importorskip("hdf5plugin")
zstandard = pytest.importorskip("zstandard")

ARRAYS = {"a.npy": smooth((200, 300)), "b/c.npy": smooth((50, 60, 3), "u1")}


def make_old(folder: Path, samples: dict[str, np.ndarray]) -> Path:
    """Make a file as version 1 did."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zstd, "PAYLOAD_VERSION", 1)
        patch.setattr(
            zstd,
            "_compressor",
            lambda level: zstandard.ZstdCompressor(level=level, write_checksum=True),
        )
        return make_h5(folder, samples, compression="zstd")


def format_of(path: Path) -> str:
    with h5py.File(path) as file:
        return file.attrs["format"]


def has_checksum(path: Path, key: str) -> bool:
    with h5py.File(path) as file:
        frame = file[key].id.read_direct_chunk((0,) * file[key].ndim)[1]
    return zstandard.get_frame_parameters(frame).has_checksum


@pytest.mark.parametrize(
    ("compression", "version"),
    [
        ("auto", "1.1"),
        ("none", "1"),
        ("gzip", "1.1"),
        ("zstd", "2.1"),
        ("zstd:3", "2.1"),
        ("blosc2", "1.1"),
    ],
)
def test_the_format_of_zstd_alone_is_another(compression, version, tmp_path):
    assert format_of(make_h5(tmp_path, ARRAYS, compression=compression)) == f"data2h5 {version}"


def test_an_old_file_is_read_and_good(tmp_path, capfd):
    path = make_old(tmp_path, ARRAYS)
    assert format_of(path) == "data2h5 1.1"
    assert has_checksum(path, "a.npy")
    with h5py.File(path) as file:
        for key, array in ARRAYS.items():
            assert_same(H5Folder(path)[key], array)
            assert_same(H5Folder(path, verify=True)[key], array)
            assert_same(H5Folder(path).read_batch([key, key])[1], array)
            assert_same(file[key][()], array)
    assert main(["--verify", f"--path_output={path}"]) == 0
    assert "2 of 2 files good" in capfd.readouterr().out


def test_an_update_of_an_old_file_reads_its_samples_anew_and_says_so(tmp_path, capfd):
    path = make_old(tmp_path, ARRAYS)
    function = read_with("load_npy.py")[1]
    flags = [f"--path_images={tmp_path / 'source'}", f"--path_output={path}", "--workers=1"]
    update = ["--update", *flags, function]
    assert main(update) == 0
    assert (
        f"nothing of {path} can be kept, because format was data2h5 1 and is data2h5 2"
        in capfd.readouterr().err
    )
    updated = path.read_bytes()
    assert not has_checksum(path, "a.npy")
    assert main(update) == 0
    assert "nothing changed" in capfd.readouterr().out
    fresh = ["--compression=zstd", "--ext=npy,txt", "--overwrite", *read_with("load_npy.py")]
    assert main([*flags, *fresh]) == 0
    assert path.read_bytes() == updated


def test_old_and_new_files_are_not_merged(tmp_path, capfd):
    old = make_old(tmp_path / "old", {"a.npy": ARRAYS["a.npy"]})
    new = make_h5(tmp_path / "new", {"b.npy": ARRAYS["a.npy"]}, compression="zstd")
    output = tmp_path / "both.h5"
    assert main(["--merge", str(old), str(new), f"--path_output={output}"]) == 2
    assert (
        f"{new} and {old} were made with different options: format is data2h5 2 and data2h5 1"
        in capfd.readouterr().err
    )
    assert not output.exists()
    newer = make_h5(tmp_path / "newer", {"c.npy": ARRAYS["a.npy"]}, compression="zstd")
    assert main(["--merge", str(newer), str(new), f"--path_output={output}"]) == 0
