"""A damaged or forged payload is refused, or reads right; it never crashes."""

from __future__ import annotations

import ast
import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from converter import H5Folder
from converter.errors import LoadError
from helpers.arrays import make_h5, smooth
from helpers.check import assert_same
from helpers.damage import TailEditor, payload_bytes, payload_of, put_payload
from helpers.run import ROOT, run

hdf5plugin = pytest.importorskip("hdf5plugin", reason="h5py is the judge of what is written")
zstandard = pytest.importorskip("zstandard")
blosc2 = pytest.importorskip("blosc2")


WAYS_TO_READ = (
    lambda folder: folder["a.npy"],
    lambda folder: folder.read("a.npy", np.s_[1:3]),
    lambda folder: folder.read("a.npy", np.s_[-1:]),
    lambda folder: folder.read_batch(["a.npy", "a.npy"]),
)


def assert_does_not_read(path: Path, read: Callable, match: str, what: str) -> None:
    """Check for a LoadError; ``what`` shows when it is missing."""
    try:
        read(H5Folder(path))
    except LoadError as error:
        assert re.search(match, str(error)), (what, error)
    else:
        raise AssertionError(f"{what} is read")


READ_DAMAGED = """
import sys
import numpy as np
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from converter import H5Folder
from converter.errors import LoadError

path, offset, nbytes, count = Path(sys.argv[3]), *map(int, sys.argv[4:])
wanted = H5Folder(path)["a.npy"]
original = path.read_bytes()
generator = np.random.default_rng(0)
outcomes = {"refused": 0, "right": 0, "wrong": 0}
for number in range(count):
    content = bytearray(original)
    for place in generator.integers(0, nbytes, 1 + number % 3):
        content[offset + place] ^= 1 << generator.integers(8)
    path.write_bytes(content)
    folder = H5Folder(path)
    for read, cut in (
        (lambda: folder["a.npy"], ...),
        (lambda: folder.read("a.npy", np.s_[5:7]), np.s_[5:7]),
        (lambda: folder.read_batch(["a.npy"]), np.s_[np.newaxis]),
    ):
        try:
            got = read()
        except LoadError as error:
            assert str(error).startswith(f"'a.npy' in {path} "), error
            assert str(error).endswith(": convert it again"), error
            outcomes["refused"] += 1
        else:
            outcomes["right" if np.array_equal(got, wanted[cut]) else "wrong"] += 1
path.write_bytes(original)
print(outcomes)
"""


@pytest.mark.everyday(2)
@pytest.mark.parametrize(
    ("kind", "compression"),
    [
        *((kind, name) for kind in ("smooth", "zeros", "colours") for name in ("zstd", "blosc2")),
        ("smooth", "zstd:19"),
        ("smooth", "blosc2:9"),
        ("smooth", "gzip"),
    ],
)
def test_a_damaged_payload_is_refused_or_reads_right(compression, kind, tmp_path):
    """In a process of its own, which must not crash."""
    arrays = {
        "smooth": smooth((200, 300)),
        "zeros": np.zeros((300, 400), np.uint8),
        "colours": smooth((90, 100, 3), "u1"),
    }
    path = make_h5(tmp_path, {"a.npy": arrays[kind]}, compression=compression)
    offset, end = payload_of(path, "a.npy")
    nbytes = end - offset
    program = [sys.executable, "-c", READ_DAMAGED, str(ROOT), str(ROOT / "tests"), str(path)]
    ended = run([*program, str(offset), str(nbytes), "100"])
    assert ended.status == 0, ended.err
    outcomes = ast.literal_eval(ended.out)
    assert outcomes["wrong"] == 0
    if compression.startswith(("blosc2", "zstd")):
        assert outcomes == {"refused": 300, "right": 0, "wrong": 0}
    else:  # a few bits of a header mean nothing
        assert outcomes["refused"] > 200


CHECKSUM_DIFFERS = "is damaged (its checksum differs): convert it again"


@pytest.mark.parametrize("decoders", [True, False])
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_the_checksum_in_the_index_is_compared_unasked(
    compression, decoders, tmp_path, monkeypatch
):
    """Without the package that decodes, HDF5's plugin would give other values in silence."""
    path = make_h5(tmp_path, {"a.npy": smooth((200, 300))}, compression=compression)
    if not decoders:
        monkeypatch.setitem(sys.modules, "zstandard", None)
        monkeypatch.setitem(sys.modules, "blosc2", None)
    offset, end = payload_of(path, "a.npy")
    nbytes = end - offset
    content = bytearray(path.read_bytes())
    content[offset + nbytes // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(LoadError) as error:
        H5Folder(path)["a.npy"]
    assert str(error.value) == f"'a.npy' in {path} {CHECKSUM_DIFFERS}"


def test_zstd_frames_have_no_checksum_of_their_own(tmp_path):
    path = make_h5(tmp_path, {"a.npy": smooth((200, 300))}, compression="zstd")
    frame = payload_bytes(path, "a.npy")
    assert not zstandard.get_frame_parameters(frame).has_checksum


@pytest.mark.parametrize("has_checksum", [True, False])
def test_a_zstd_frame_reads_right_with_and_without_its_checksum(has_checksum, tmp_path):
    """Files of version 1 have one."""
    path = make_h5(tmp_path, {"a.npy": smooth((90_000,), "u1")}, compression="zstd")
    frame = zstandard.ZstdCompressor(write_checksum=has_checksum).compress(bytes(90_000))
    put_payload(path, frame)
    for read in (
        lambda folder: folder["a.npy"],
        lambda folder: folder.read("a.npy", np.s_[:]),
        lambda folder: folder.read_batch(["a.npy", "a.npy"])[1],
    ):
        for verify in (False, True):
            assert_same(read(H5Folder(path, verify=verify)), np.zeros(90_000, "u1"))


READ_ANY = """
import sys
from converter import H5Folder
from converter.errors import LoadError
for line in sys.stdin:
    path = line.rstrip()
    try:
        array = H5Folder(path)["a.npy"]
        print("read", array.shape, array.sum(), flush=True)
    except LoadError as error:
        print(error, flush=True)
"""


@pytest.mark.everyday(1)
@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_a_payload_cut_short_is_refused(compression, tmp_path):
    """Or reads right, where only bytes behind the data are missing.

    The index agrees with what is left of it, checksum and all.
    """
    array = smooth((200, 300))
    right = f"read (200, 300) {array.sum()}"
    path = make_h5(tmp_path, {"a.npy": array}, compression=compression)
    whole = payload_bytes(path, "a.npy")
    original, cut = path.read_bytes(), []
    for length in {*range(1, 20), *range(20, len(whole), len(whole) // 60), len(whole) - 1}:
        path.write_bytes(original)
        cut.append(put_payload(path, whole[:length]).rename(tmp_path / f"{length}.h5"))
        path.write_bytes(original)
        if compression == "blosc2" and length > 24:  # and the frame says so as well
            payload = whole[:16] + struct.pack(">Q", length) + whole[24:length]
            cut.append(put_payload(path, payload).rename(tmp_path / f"{length}_.h5"))
    lines = read_each(cut)
    for line, path in zip(lines, cut, strict=True):
        if line != right:
            impossible = f"index of {path} gives 'a.npy' impossible extents"
            assert f"'a.npy' in {path} " in line or impossible in line
            assert line.endswith("convert it again")
    assert lines.count(right) < 5


def read_each(paths: list[Path]) -> list[str]:
    """Read each file in one other process, which must not crash; return what came of them."""
    ended = subprocess.run(
        [sys.executable, "-c", READ_ANY], input="".join(f"{path}\n" for path in paths),
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.slow
def test_a_forged_blosc2_payload_never_crashes(tmp_path):
    """With a checksum that is right, as only somebody who means harm would give it."""
    path = make_h5(tmp_path, {"a.npy": smooth((200, 300))}, compression="blosc2")
    whole, original, forged = payload_bytes(path, "a.npy"), path.read_bytes(), []
    generator = np.random.default_rng(1)
    for number in range(200):
        payload = bytearray(whole)
        for place in generator.integers(0, 140 if number % 2 else len(whole), 1 + number % 4):
            payload[place] = generator.choice([0, 1, 127, 128, 255, generator.integers(256)])
        path.write_bytes(original)
        forged.append(put_payload(path, bytes(payload)).rename(tmp_path / f"{number}.h5"))
    lines = read_each(forged)
    assert len(lines) == 200
    refused = [line for line in lines if not line.startswith("read (200, 300) ")]
    assert len(refused) > 50
    for line in refused:
        assert re.fullmatch(r"'a.npy' in \S+ has a chunk that .+: convert it again", line)


def zstd_frames(nbytes: int) -> dict[str, bytes]:
    """Return frames of which none holds ``nbytes`` zeros as it should."""
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    right = compressor.compress(bytes(nbytes))
    size = struct.pack("<I", nbytes)
    assert right.count(size) == 1  # the content size of the frame's header
    return {
        "one byte less": compressor.compress(bytes(nbytes - 1)),
        "one byte more": compressor.compress(bytes(nbytes + 1)),
        "64 MiB": compressor.compress(bytes(64 << 20)),
        "nothing": compressor.compress(b""),
        "without a size": unsized.compress(bytes(nbytes)),
        "claims more": right.replace(size, struct.pack("<I", nbytes + 1)),
        "claims less": right.replace(size, struct.pack("<I", nbytes - 1)),
        "claims 4 GiB": right.replace(size, b"\xff\xff\xff\xff"),
        "64 MiB that claim to fit": compressor.compress(bytes(64 << 20)).replace(
            struct.pack("<I", 64 << 20), size
        ),
        "two frames": right + compressor.compress(bytes(nbytes)),
        "half in each of two frames": 2 * compressor.compress(bytes(nbytes // 2)),
        "garbage behind": right + b"garbage",
        "no frame": b"garbage",
        "an empty skippable frame": b"\x50\x2a\x4d\x18\0\0\0\0",
    }


@pytest.mark.parametrize("dtype", ["u1", "<u4", ">f8"])
def test_a_zstd_frame_of_another_size_is_refused(dtype, tmp_path):
    noise = np.random.default_rng(0).integers(0, 7, 120_000).astype("u1").view(dtype)
    path = make_h5(tmp_path, {"a.npy": noise}, compression="zstd")
    original = path.read_bytes()
    reason = r"has a chunk that (inflates to another size|does not inflate \(.*\))"
    match = rf"^'a.npy' in {path} {reason}: convert it again$"
    for name, frame in zstd_frames(120_000).items():
        path.write_bytes(original)
        put_payload(path, frame)
        for read in WAYS_TO_READ:
            assert_does_not_read(path, read, match, name)


def blosc2_frames(nbytes: int) -> dict[str, bytes]:
    """Return frames of which none holds ``nbytes`` zeros as it should."""

    def frame(*sizes: int) -> bytes:
        chunk = blosc2.SChunk(chunksize=sizes[0], contiguous=True)
        for size in sizes:
            chunk.append_data(np.zeros(size, np.uint8))
        return chunk.to_cframe()

    right = frame(nbytes)
    return {
        "one byte less": frame(nbytes - 1),
        "one byte more": frame(nbytes + 1),
        "1 GiB": frame(1 << 30),
        "two chunks": frame(nbytes, nbytes),
        "half in each of two chunks": frame(nbytes // 2, nbytes // 2),
        "claims more": right.replace(struct.pack(">Q", nbytes), struct.pack(">Q", nbytes + 1)),
        "garbage behind": right + b"garbage",
        "no frame": b"garbage" * 30,
        "a bare chunk": blosc2.compress2(np.zeros(nbytes, np.uint8)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["u1", ">f8"])
def test_a_blosc2_frame_of_another_size_is_refused(dtype, tmp_path):
    noise = np.random.default_rng(0).integers(0, 7, 120_000).astype("u1").view(dtype)
    path = make_h5(tmp_path, {"a.npy": noise}, compression="blosc2")
    original = path.read_bytes()
    reason = r"has a chunk that (is no Blosc2 frame|inflates to another size|does not inflate.*)"
    match = rf"^'a.npy' in {path} {reason}: convert it again$"
    for name, frame in blosc2_frames(120_000).items():
        path.write_bytes(original)
        put_payload(path, frame)
        for read in WAYS_TO_READ:
            assert_does_not_read(path, read, match, name)


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_a_right_payload_put_there_by_hand_reads_right(compression, tmp_path):
    """What the tests above rely on; of another maker's settings too."""
    noise = np.random.default_rng(0).integers(0, 7, 120_000).astype("u1")
    path = make_h5(tmp_path, {"a.npy": noise}, compression=compression)
    put_payload(path, payload_bytes(path, "a.npy"))
    assert_same(H5Folder(path)["a.npy"], noise)
    if compression == "zstd":
        zeros = zstandard.ZstdCompressor(level=1).compress(bytes(120_000))
    else:
        frame = blosc2.SChunk(chunksize=120_000, contiguous=True)
        frame.append_data(np.zeros(120_000, np.uint8))
        zeros = frame.to_cframe()
    put_payload(path, zeros)
    assert_same(H5Folder(path)["a.npy"], np.zeros(120_000, np.uint8))


HOSTILE = {
    "an exabyte": {"shape": [2**30, 2**30], "chunks": [2**30, 2**30]},
    "an exabyte in one row": {"shape": [2**60], "chunks": [2**60]},
    "an exabyte in chunks": {"shape": [2**30, 2**30], "chunks": [1, 2**10]},
    "a terabyte": {"shape": [2**20, 2**20], "chunks": [2**20, 2**20]},
    "many chunks": {"shape": [2**40], "chunks": [1]},
    "wide items": {"dtype": "|V999999999", "shape": [10**6], "chunks": [10**6]},
    "wide items in chunks": {"dtype": "|V999999999", "shape": [10**6], "chunks": [1]},
    "one more": {"shape": [200, 301], "chunks": [200, 301]},
    "one less": {"shape": [200, 299], "chunks": [200, 299]},
    "overflow": {"shape": [2**62, 8], "chunks": [2**62, 8]},
    "chunks of nothing": {"shape": [200, 300], "chunks": [0, 300]},
    "chunks larger than it": {"shape": [200, 300], "chunks": [200, 2**40]},
    "no chunks": {"shape": [200, 300], "chunks": None},
}


@pytest.mark.parametrize("filters", [[[32015, [3]]], [[2, [1]], [32015, [3]]], [[32026, []]]])
def test_a_layout_that_claims_what_cannot_be_is_refused(filters, tmp_path):
    name = "blosc2" if filters == [[32026, []]] else "zstd"
    array = np.random.default_rng(0).integers(0, 2, (200, 300), np.uint8)
    path = make_h5(tmp_path, {"a.npy": array}, compression=name)
    original = path.read_bytes()
    for what, claim in HOSTILE.items():
        layout = {"dtype": "|u1", "content": "array", "filters": filters, **claim}
        if layout["dtype"] != "|u1" and len(filters) == 2:
            layout["filters"] = [[2, [999999999]], filters[1]]
        path.write_bytes(original)
        TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
        for read in WAYS_TO_READ:
            assert_does_not_read(path, read, re.escape(str(path)), what)


@pytest.mark.parametrize("compression", ["zstd", "blosc2"])
def test_of_filters_in_another_order_hdf5_s_word_counts(compression, tmp_path):
    array = smooth((200, 300))
    path = make_h5(tmp_path, {"a.npy": array}, compression=compression)
    original = path.read_bytes()
    for filters in (
        [[32015, [3]], [2, [2]]],
        [[2, [4]], [32015, [3]]],
        [[2, [2]], [32026, []]],
        [[32015, [3]], [32015, [3]]],
        [[32015, [3]], [1, [2]]],
        [[32026, []], [32026, []]],
    ):
        layout = {
            "dtype": "<u2", "content": "array", "shape": [200, 300], "chunks": [200, 300],
            "filters": filters,
        }  # fmt: skip
        path.write_bytes(original)
        TailEditor(path).replace_layouts(json.dumps(layout).encode()).save()
        assert_same(H5Folder(path)["a.npy"], array)
