"""A folder converted in parts, the parts joined, and the parts read as one."""

from __future__ import annotations

import filecmp
import json
import os
import pickle
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from converter import H5Folder
from converter import convert as convert_folder
from converter.cli import main
from converter.commands.convert import FILES_BEFORE_GIVING_UP
from converter.errors import ConverterError, LoadError
from converter.writer import large_reads
from converter.writer.payloads import UNCACHED
from helpers.check import assert_refused, assert_same, everything_below, failures, stored
from helpers.images import save, save_jpegs
from helpers.run import (
    ROOT,
    Finished,
    command,
    finish,
    read_with,
    run,
    start,
    wait_until,
    without_root_rights,
    write_functions,
)

FLAT = [f"{n:03}.jpg" for n in range(7)]
NESTED = [
    "a.jpg",
    "z.jpg",
    "a/1.jpg",
    "a/2.jpg",
    "a/b/3.jpg",
    "a.b/4.jpg",
    "c/d/e/5.jpg",
    "c/6.jpg",
]
READER = """
import numpy

def my_read(path_sample):
    text = open(path_sample, encoding="utf-8").read()
    return text if path_sample.endswith(".txt") else numpy.fromstring(text, sep=" ")
"""

Joined = Callable[..., Finished]


@pytest.fixture
def join(capfd: pytest.CaptureFixture[str]) -> Joined:
    """Run --merge within this process."""

    def join(paths: Sequence[Path], output: Path, *flags: str) -> Finished:
        try:
            status = main(["--merge", *map(str, paths), f"--path_output={output}", *flags])
        except SystemExit as error:
            status = int(error.code or 0)
        out, err = capfd.readouterr()
        return Finished(status, out, err)

    return join


def make_shards(folder: Path, output: Path, count: int, **options: object) -> list[Path]:
    """Convert every part of a folder beside the output."""
    paths = []
    for number in range(1, count + 1):
        path = output.parent / f"part{number}.h5"
        options.setdefault("workers", 1)
        convert_folder(folder, path, shard=f"{number}/{count}", **options)
        paths.append(path)
    return paths


def make_parts(tmp_path: Path, groups: dict[str, list[str]], **options: object) -> list[Path]:
    """Convert folders that are no shards, one for each group of keys."""
    whole = {key: n for n, key in enumerate(sorted(k for keys in groups.values() for k in keys))}
    paths = []
    for name, keys in groups.items():
        for key in keys:
            path = tmp_path / name / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps([whole[key]] * 5))
            os.utime(path, (1_000_000, 1_000_000))
        options.setdefault("workers", 1)
        path = tmp_path / f"{name}.h5"
        convert_folder(tmp_path / name, path, ext="json", custom_read_func=True,
                       path_functions=ROOT / "my_functions.py", **options)  # fmt: skip
        paths.append(path)
    return paths


def left(output: Path) -> list[str]:
    """Return what lies beside the output, the parts left out."""
    return sorted(p.name for p in output.parent.iterdir() if not p.name.startswith("part"))


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="no preadv")
def test_parts_that_are_large_together_are_read_past_the_page_cache(
    folder: Path, output: Path, join: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_shards(save_jpegs(folder, FLAT), output, 2)
    largest = max(path.stat().st_size for path in parts)
    real, uncached = os.preadv, []

    def preadv(descriptor: int, some: list[memoryview], offset: int, flags: int = 0) -> int:
        uncached.append(flags == UNCACHED)
        return real(descriptor, some, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(large_reads, "SMALLEST_NBYTES", 0)
    monkeypatch.setattr(large_reads, "knows_uncached", lambda: True)
    monkeypatch.setattr(large_reads, "is_large", lambda nbytes: nbytes > largest)
    assert join(parts, output).status == 0
    assert uncached.count(True) == 2
    assert len(stored(output)) == len(FLAT)


def shard_of(path: Path) -> dict[str, object]:
    with h5py.File(path) as file:
        return json.loads(file.attrs["shard"])


# --- shards


@pytest.mark.parametrize("count", [1, 2, 3, 7, 11])
@pytest.mark.parametrize("names", [FLAT, NESTED], ids=["flat", "nested"])
def test_joined_shards_are_the_bytes_of_one_conversion(
    names: list[str], count: int, folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, names)
    parts = make_shards(folder, output, count)
    keys = [key for path in parts for key in H5Folder(path)]
    assert sorted(keys) == sorted(names)
    sizes = [len(H5Folder(path)) for path in parts]
    assert max(sizes) - min(sizes) <= 1
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1)
    assert keys == list(H5Folder(whole))
    ended = join(parts[::-1], output)
    assert ended.status == 0, ended.err
    assert f"{len(names)} files joined" in ended.out
    assert filecmp.cmp(output, whole, shallow=False)
    assert left(output) == ["OUT.h5", "whole.h5"]


def test_shards_with_and_without_compressed_arrays_are_joined_to_the_same_bytes(
    folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, ["a.jpg", "b.jpg"])
    save(folder / "c.png", np.zeros((100, 200), np.uint8))
    save(folder / "d.png", np.zeros((100, 200), np.uint8))
    parts = make_shards(folder, output, 2, ext="jpg,png")
    formats = []
    for path in parts:
        with h5py.File(path) as file:
            formats.append(file.attrs["format"])
    assert formats == ["data2h5 1", "data2h5 1.1"]
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1, ext="jpg,png")
    assert join(parts, output).status == 0
    assert filecmp.cmp(output, whole, shallow=False)


@pytest.mark.parametrize(
    "options",
    [
        {"store": "encoded"},
        {"store": "encoded", "skip_decode_check": True},
        {"compression": "gzip:4"},
        {"compression": "none"},
        {"workers": 2},
    ],
    ids=str,
)
def test_joined_shards_are_the_bytes_of_one_conversion_under_any_option(
    options: dict[str, object], folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, NESTED)
    parts = make_shards(folder, output, 3, **options)
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, **{"workers": 1, **options})
    assert join([parts[1], parts[2], parts[0]], output).status == 0
    assert filecmp.cmp(output, whole, shallow=False)


def test_arrays_of_several_chunks_are_joined_without_decoding(
    folder: Path, output: Path, tmp_path: Path, join: Joined
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        """
        import numpy

        def my_read(path_sample):
            number = int(open(path_sample).read())
            return (numpy.arange(3_000_000, dtype="<u4") // 50 + number).reshape(3000, 1000)
        """,
    )
    for n in range(3):
        (folder / f"{n}.num").write_text(str(n))
    options = {"ext": "num", "custom_read_func": True, "path_functions": functions,
               "compression": "gzip"}  # fmt: skip
    parts = make_shards(folder, output, 2, **options)
    with h5py.File(parts[0]) as file:
        assert file["0.num"].id.get_num_chunks() > 1
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1, **options)
    functions.write_text("def my_read(path_sample): raise ValueError('not to be called')")
    assert join(parts, output).status == 0
    assert filecmp.cmp(output, whole, shallow=False)


def test_texts_of_my_read_are_joined(
    folder: Path, output: Path, tmp_path: Path, join: Joined
) -> None:
    functions = write_functions(tmp_path / "functions.py", READER)
    for n in range(5):
        (folder / f"{n}.txt").write_text("ä" * n + "text")
        (folder / f"{n}.num").write_text("1 2 3" + " 4" * n)
    options = {"ext": "txt,num", "custom_read_func": True, "path_functions": functions}
    parts = make_shards(folder, output, 4, **options)
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1, **options)
    assert join(parts, output).status == 0
    assert filecmp.cmp(output, whole, shallow=False)


def test_a_file_that_fails_does_so_in_its_own_shard(
    folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    (folder / "004.jpg").write_bytes(b"no image")
    parts = make_shards(folder, output, 3)
    assert [list(failures(path)) for path in parts] == [[], [], ["004.jpg"]]
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1)
    assert join(parts, output).status == 0
    assert filecmp.cmp(output, whole, shallow=False)


def test_a_shard_of_nothing_but_failures_is_an_empty_file(
    folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT[:4])
    for name in FLAT[2:4]:
        (folder / name).write_bytes(b"no image")
    parts = make_shards(folder, output, 2)
    assert len(H5Folder(parts[1])) == 0
    assert len(failures(parts[1])) == 2
    assert join(parts, output).status == 0
    assert list(stored(output)) == FLAT[:2]


def test_a_shard_that_begins_with_many_failures_is_made_all_the_same(
    folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, ["a.jpg", "z.jpg"])
    for n in range(2 * FILES_BEFORE_GIVING_UP + 2):
        (folder / f"b{n:04}.jpg").write_bytes(b"no image")
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1)
    parts = make_shards(folder, output, 2)
    assert join(parts, output).status == 0
    assert filecmp.cmp(output, whole, shallow=False)


def test_shards_of_nothing_but_failures_do_not_join_to_a_file_without_samples(
    folder: Path, output: Path, join: Joined
) -> None:
    for name in FLAT:
        (folder / name).write_bytes(b"no image")
    parts = make_shards(folder, output, 2)
    ended = join(parts, output)
    assert ended.status != 0  # as a conversion of the whole ends
    assert not output.exists()


def test_more_shards_than_files_leave_some_empty_and_readable(folder: Path, output: Path) -> None:
    save_jpegs(folder, FLAT[:2])
    parts = make_shards(folder, output, 5)
    assert sorted(len(H5Folder(path)) for path in parts) == [0, 0, 0, 1, 1]
    empty = next(path for path in parts if not len(H5Folder(path)))
    assert list(H5Folder(empty)) == []
    with h5py.File(empty) as file:
        assert list(file) == []
        assert json.loads(file.attrs["shard"])["of"] == 5
    assert main(["--verify", f"--path_output={empty}", "--quiet"]) == 0


def test_shards_are_the_same_however_the_folder_came_to_be(tmp_path: Path) -> None:
    keys = []
    for name, order in (("one", NESTED), ("two", NESTED[::-1])):
        save_jpegs(tmp_path / name, order)
        parts = make_shards(tmp_path / name, tmp_path / f"{name}_out" / "OUT.h5", 3)
        keys.append([list(H5Folder(path)) for path in parts])
        keys.append([shard_of(path)["keys"] for path in parts])
    assert keys[:2] == keys[2:]


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_name_that_cannot_be_stored_is_a_failure_of_the_first_shard_alone(
    folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    with open(os.path.join(os.fsencode(folder), b"\xff.jpg"), "wb"):
        pass
    parts = make_shards(folder, output, 3)
    assert [len(failures(path)) for path in parts] == [1, 0, 0]
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1)
    target = output.parent / "new" / "folder" / "OUT.h5"
    assert join(parts, target).status == 0
    assert filecmp.cmp(target, whole, shallow=False)


def test_a_shard_says_which_part_of_what_it_is(folder: Path, output: Path) -> None:
    save_jpegs(folder, FLAT)
    first, second = (shard_of(path) for path in make_shards(folder, output, 2))
    assert (first["number"], first["of"], first["files"]) == (1, 2, 7)
    assert {**first, "number": 2} == second


@pytest.mark.parametrize(
    "text", ["5/4", "0/4", "1/0", "-1/4", "1", "/", "1/", "/2", "a/b", "1/2/3", "1.0/2", "", " 1/2"]
)
def test_what_is_no_part_of_a_whole_is_refused(
    text: str, folder: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    save_jpegs(folder, FLAT[:1])
    ended = convert(folder, output, f"--shard={text}")
    assert ended.status == 2
    assert "K/N" in ended.err
    assert len(ended.err.splitlines()) == 1
    with pytest.raises(ConverterError, match="K/N"):
        convert_folder(folder, output, shard=text)
    assert left(output) == []


def test_the_dry_run_of_a_shard_is_of_its_files(
    folder: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    save_jpegs(folder, FLAT)
    ended = convert(folder, output, "--shard=2/2", "--dry_run")
    assert ended.status == 0, ended.err
    assert "4 files below" in ended.out
    assert left(output) == []


def test_the_dry_run_of_an_empty_shard_ends_well(
    folder: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    save_jpegs(folder, FLAT[:1])
    ended = convert(folder, output, "--shard=1/3", "--dry_run")
    assert ended.status in (0, 2)
    assert "Traceback" not in ended.err


def test_a_shard_is_not_updated(folder: Path, output: Path, capfd: pytest.CaptureFixture) -> None:
    save_jpegs(folder, FLAT)
    part = make_shards(folder, output, 2)[0]
    before = part.read_bytes()
    assert main(["--update", f"--path_images={folder}", f"--path_output={part}"]) == 2
    assert "shards cannot be updated" in capfd.readouterr().err
    assert part.read_bytes() == before


def test_a_joined_file_is_updated_as_one_conversion_is(
    folder: Path, output: Path, join: Joined, capfd: pytest.CaptureFixture
) -> None:
    save_jpegs(folder, FLAT)
    join(make_shards(folder, output, 2), output)
    update = ["--update", f"--path_images={folder}", f"--path_output={output}", "--workers=1"]
    assert main(update) == 0
    assert "nothing changed" in capfd.readouterr().out
    save_jpegs(folder, ["new.jpg"])
    assert main(update) == 0
    assert sorted(stored(output)) == [*FLAT, "new.jpg"]


@pytest.mark.slow
def test_a_shard_is_verified_against_its_part_of_the_folder(
    folder: Path, output: Path, capfd: pytest.CaptureFixture
) -> None:
    save_jpegs(folder, FLAT)
    for part in make_shards(folder, output, 9):
        verify = ["--verify", f"--path_images={folder}", f"--path_output={part}", "--workers=1"]
        assert main(verify) == 0, capfd.readouterr()


@pytest.mark.slow
def test_a_shard_that_was_killed_is_gone_on_with(
    folder: Path, output: Path, tmp_path: Path, join: Joined
) -> None:
    """The second run makes the same bytes as one that was not killed."""
    functions = write_functions(
        tmp_path / "functions.py",
        f"""
        import os, signal

        def my_read(path_sample):
            if path_sample.endswith("39.num") and not os.path.exists({str(tmp_path / "go")!r}):
                os.kill(os.getpid(), signal.SIGKILL)
            return [float(open(path_sample).read())] * 100_000
        """,
    )
    for n in range(60):
        (folder / f"{n:02}.num").write_text(str(n))
    flags = ["--ext=num", *read_with(functions), "--workers=1",
             "--compression=none", "--quiet"]  # fmt: skip
    parts = [output.with_name(f"part{n}.h5") for n in (1, 2)]
    assert run(command(folder, parts[0], *flags, "--shard=1/2")).status == 0
    assert run(command(folder, parts[1], *flags, "--shard=2/2")).status == -signal.SIGKILL
    assert parts[1].with_name("part2.h5.partial").exists()
    ended = join(parts, output)
    assert ended.status == 2
    assert "part2.h5" in ended.err
    (tmp_path / "go").touch()
    ended = run(command(folder, parts[1], *flags, "--shard=2/2"))
    assert ended.status == 0, ended.err
    whole = output.with_name("whole.h5")
    assert run(command(folder, whole, *flags)).status == 0
    assert join(parts, output).status == 0
    assert filecmp.cmp(output, whole, shallow=False)


# --- merge: what is refused


def assert_refused_and_untouched(
    ended: Finished, output: Path, *texts: str, before: bytes | None = None
) -> None:
    assert_refused(ended, *texts)
    if before is None:
        assert left(output) == []
    else:
        assert output.read_bytes() == before


def test_missing_shards_are_named(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 4)
    assert_refused_and_untouched(join([parts[0], parts[2]], output), output, "2/4", "4/4")
    assert_refused_and_untouched(join([parts[2]], output), output, "1/4, 2/4, 4/4")


@pytest.mark.slow
def test_a_shard_of_a_thousand_million_says_what_is_missing_without_a_list_of_them(
    folder: Path, output: Path
) -> None:
    save_jpegs(folder, FLAT[:1])
    part = output.with_name("part.h5")
    convert_folder(folder, part, shard="1000000000/1000000000", workers=1)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    program = [sys.executable, str(ROOT / "converter"), "--merge", str(part)]
    process = start([*program, f"--path_output={output}"], preexec_fn=limit)
    assert_refused_and_untouched(finish(process), output, "missing")


def test_a_doubled_shard_is_named(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    copy = shutil.copy(parts[0], output.with_name("part1b.h5"))
    assert_refused_and_untouched(
        join([*parts, Path(copy)], output), output, str(parts[0]), str(copy), "1 of 2"
    )


def test_a_file_named_twice_is_refused(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    assert_refused_and_untouched(join([*parts, parts[1]], output), output, str(parts[1]), "twice")
    whole = output.with_name("part.h5")
    convert_folder(folder, whole, workers=1)
    link = output.with_name("part_link.h5")
    link.symlink_to(whole)
    assert_refused_and_untouched(join([whole, link], output), output, str(whole), str(link))


def test_shards_of_different_options_are_refused(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2, compression="none")
    convert_folder(folder, parts[1], shard="2/2", compression="gzip", workers=1, overwrite=True)
    assert_refused_and_untouched(join(parts, output), output, *map(str, parts), "gzip", "none")


def test_shards_of_a_folder_that_changed_are_refused(
    folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    save_jpegs(folder, ["new.jpg"])
    convert_folder(folder, parts[1], shard="2/2", workers=1, overwrite=True)
    assert_refused_and_untouched(join(parts, output), output, *map(str, parts), "changed")


def test_shards_of_different_counts_are_refused(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    third = output.with_name("part3.h5")
    convert_folder(folder, third, shard="3/3", workers=1)
    assert_refused_and_untouched(join([*parts, third], output), output, str(third))


@pytest.mark.parametrize("is_first", [True, False])
def test_a_shard_and_a_whole_file_are_refused(
    is_first: bool, folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    whole = output.with_name("part_whole.h5")
    convert_folder(folder, whole, workers=1)
    paths = [whole, *parts] if is_first else [*parts, whole]
    assert_refused_and_untouched(join(paths, output), output, str(whole), "is not a shard")


def test_a_missing_file_is_named(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    missing = output.with_name("part_missing.h5")
    assert_refused_and_untouched(join([*parts, missing], output), output, f"no file {missing}")
    assert_refused_and_untouched(join([*parts, output.parent], output), output, str(output.parent))


@pytest.mark.parametrize("content", ["empty", "text", "h5py", "cut"])
def test_a_file_without_an_index_is_named(
    content: str, folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    bad = parts[1]
    if content == "h5py":
        with h5py.File(bad, "w") as file:
            file["a"] = [1]
    else:
        whole = bad.read_bytes()
        contents = {"empty": b"", "text": b"x" * 9999, "cut": whole[: len(whole) // 2]}
        bad.write_bytes(contents[content])
    assert_refused_and_untouched(join(parts, output), output, str(bad))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="drops rights with Linux's prctl")
def test_a_file_that_may_not_be_read_is_named(folder: Path, output: Path) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    parts[1].chmod(0)
    program = [sys.executable, str(ROOT / "converter"), "--merge", *map(str, parts)]
    ended = run([*program, f"--path_output={output}"], preexec_fn=without_root_rights)
    assert_refused_and_untouched(ended, output, str(parts[1]))


def test_an_output_that_exists_is_replaced_only_when_asked(
    folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    output.write_bytes(b"mine")
    assert_refused_and_untouched(join(parts, output), output, "--overwrite", before=b"mine")
    assert join(parts, output, "--overwrite").status == 0
    assert sorted(stored(output)) == FLAT


def test_an_input_is_never_the_output(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    before = parts[0].read_bytes()
    link = output.with_name("part_link.h5")
    link.symlink_to(parts[0])
    for target in (parts[0], link):
        ended = join(parts, target, "--overwrite")
        assert_refused_and_untouched(ended, parts[0], str(target), "to join", before=before)


def test_a_folder_is_never_the_output(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    ended = join(parts, output.parent, "--overwrite")
    assert_refused_and_untouched(ended, output, "is a folder")


def test_flags_of_a_conversion_are_refused(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT[:2])
    parts = make_shards(folder, output, 2)
    for flag in ("--compression=gzip", f"--path_images={folder}", "--shard=1/2", "--workers=2"):
        assert_refused_and_untouched(join(parts, output, flag), output, flag.partition("=")[0])


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_payload_is_named_and_nothing_is_left(
    which: int, folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2, compression="none")
    data = H5Folder(parts[which])[0].tobytes()
    content = bytearray(parts[which].read_bytes())
    content[content.index(data) + 5] ^= 1
    parts[which].write_bytes(content)
    ended = join(parts, output)
    assert ended.status == 1
    assert "damaged" in ended.err
    assert str(parts[which]) in ended.err
    assert repr(H5Folder(parts[which]).key_at(0)) in ended.err
    assert left(output) == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits files as Linux does")
def test_a_full_disk_leaves_nothing(folder: Path, output: Path) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2, compression="none")
    whole = output.with_name("part_whole.h5")
    convert_folder(folder, whole, compression="none", workers=1)
    nbytes = whole.stat().st_size
    program = [sys.executable, str(ROOT / "converter"), "--merge", *map(str, parts), "--quiet"]
    target = output.parent / "new" / "OUT.h5"
    for limit in (0, nbytes // 3, nbytes - 100):

        def hold(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        ended = run([*program, f"--path_output={target}"], preexec_fn=hold)
        assert ended.status == 1, ended
        assert "Traceback" not in ended.err
        assert str(target) in ended.err
        assert left(output) == []


def kill_conversion(folder: Path, output: Path, functions: Path) -> None:
    """Have a conversion killed at its last file."""
    write_functions(
        functions,
        """
        import os, signal

        def my_read(path_sample):
            if path_sample.endswith("39.num"):
                os.kill(os.getpid(), signal.SIGKILL)
            return [1.0] * 100_000
        """,
    )
    for n in range(40):
        (folder / f"{n:02}.num").write_text(str(n))
    flags = ["--ext=num", *read_with(functions), "--workers=1",
             "--compression=none", "--quiet"]  # fmt: skip
    assert run(command(folder, output, *flags)).status == -signal.SIGKILL


@pytest.mark.everyday(1)
def test_a_conversion_that_can_be_resumed_is_not_destroyed(
    folder: Path, output: Path, tmp_path: Path, join: Joined
) -> None:
    kill_conversion(folder, output, tmp_path / "functions.py")
    kept = {p: p.read_bytes() for p in output.parent.iterdir()}
    assert len(kept) == 2
    images = tmp_path / "images2"
    images.mkdir()
    parts = make_shards(save_jpegs(images, FLAT), tmp_path / "x", 2)
    for flag in ([], ["--overwrite"]):
        ended = join(parts, output, *flag)
        assert ended.status == 2
        assert f"{output}.partial" in ended.err
        assert {p: p.read_bytes() for p in output.parent.iterdir()} == kept


@pytest.mark.slow
@pytest.mark.parametrize("then", ["join", "convert"])
def test_joining_that_was_killed_does_not_stand_in_the_way(
    then: str, folder: Path, output: Path, join: Joined
) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    whole = output.with_name("whole.h5")
    convert_folder(folder, whole, workers=1)
    script = """
import os, signal, sys
from converter.cli import main
from converter.writer.stored import StoredSamples

batches, calls = StoredSamples.batches, []

def killing(file, positions):
    for batch in batches(file, positions):
        if calls:
            os.kill(os.getpid(), signal.SIGKILL)
        calls.append(1)
        yield batch

StoredSamples.batches = killing
main(sys.argv[1:])
"""
    arguments = ["--merge", *map(str, parts), f"--path_output={output}", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = run([sys.executable, "-c", script, *arguments], env=environment)
    assert ended.status == -signal.SIGKILL, ended
    assert not output.exists()
    if then == "join":
        assert join(parts, output).status == 0
    else:
        convert_folder(folder, output, workers=1)
    assert filecmp.cmp(output, whole, shallow=False)
    assert left(output) == ["OUT.h5", "whole.h5"]


@pytest.mark.slow
def test_a_conversion_that_is_running_is_not_disturbed(
    folder: Path, output: Path, tmp_path: Path, join: Joined
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        f"""
        import os, time

        def my_read(path_sample):
            while not os.path.exists({str(tmp_path / "go")!r}):
                time.sleep(0.01)
            return 1.0
        """,
    )
    (folder / "1.num").touch()
    images = tmp_path / "images2"
    images.mkdir()
    parts = make_shards(save_jpegs(images, FLAT), tmp_path / "x", 2)
    flags = ["--ext=num", *read_with(functions), "--workers=1"]
    process = start(command(folder, output, *flags))
    wait_until(lambda: output.with_name("OUT.h5.partial").exists())
    ended = join(parts, output)
    (tmp_path / "go").touch()
    assert finish(process).status == 0
    assert ended.status == 2
    assert "OUT.h5" in ended.err
    assert list(stored(output)) == ["1.num"]


# --- merge of files that are no shards


def test_files_of_interleaving_folders_join_as_if_all_lay_in_one(
    tmp_path: Path, output: Path, join: Joined
) -> None:
    one = ["b.json", "x/1.json", "x/3.json", "x/y/5.json", "z/1.json"]
    two = ["a.json", "c.json", "x/2.json", "x/y/4.json", "w/1.json"]
    parts = make_parts(tmp_path, {"one": one, "two": two})
    whole = make_parts(tmp_path, {"whole": [*one, *two]})[0]
    for paths in (parts, parts[::-1]):
        assert join(paths, output, "--overwrite").status == 0
        assert filecmp.cmp(output, whole, shallow=False)


def test_one_file_is_joined_to_itself(tmp_path: Path, output: Path, join: Joined) -> None:
    [part] = make_parts(tmp_path, {"one": ["a.json", "b/c.json"]})
    assert join([part], output).status == 0
    assert filecmp.cmp(output, part, shallow=False)


def test_joined_files_are_joined_again(tmp_path: Path, output: Path, join: Joined) -> None:
    parts = make_parts(tmp_path, {"one": ["a.json"], "two": ["b.json"], "three": ["c.json"]})
    half = tmp_path / "half.h5"
    assert join(parts[:2], half).status == 0
    assert join([parts[2], half], output).status == 0
    whole = make_parts(tmp_path, {"whole": ["a.json", "b.json", "c.json"]})[0]
    assert filecmp.cmp(output, whole, shallow=False)


def test_files_that_were_updated_join_as_if_all_lay_in_one(
    tmp_path: Path, output: Path, join: Joined
) -> None:
    parts = make_parts(tmp_path, {"one": ["b.json", "d.json"], "two": ["c.json", "e.json"]})
    for name, key in (("one", "a.json"), ("two", "x/f.json")):
        new = tmp_path / name / key
        new.parent.mkdir(exist_ok=True)
        new.write_text("[7]")
        update = ["--update", f"--path_images={tmp_path / name}", "--workers=1", "--quiet"]
        functions = f"--path_functions={ROOT / 'my_functions.py'}"
        assert main([*update, f"--path_output={tmp_path / name}.h5", functions]) == 0
    assert join(parts, output).status == 0
    assert list(H5Folder(output)) == ["a.json", "b.json", "c.json", "d.json", "e.json", "x/f.json"]
    assert main(["--verify", f"--path_output={output}", "--quiet"]) == 0


def test_a_name_in_two_files_is_refused_with_both(
    tmp_path: Path, output: Path, join: Joined
) -> None:
    parts = make_parts(tmp_path, {"one": ["a/1.json", "b.json"], "two": ["a/1.json", "c.json"]})
    ended = join(parts, output)
    assert ended.status == 2, ended
    for text in ("'a/1.json'", *map(str, parts)):
        assert text in ended.err
    assert left(output) == []


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("below", ["a.json/1.json", "a.json/x/y/1.json"])
def test_a_name_that_is_a_file_in_one_and_a_folder_in_another_is_refused(
    below: str, order: int, tmp_path: Path, output: Path, join: Joined
) -> None:
    parts = make_parts(tmp_path, {"one": ["a.json", "b.json"], "two": [below, "c.json"]})
    ended = join(parts[::order], output)
    assert ended.status == 2
    assert "'a.json'" in ended.err
    assert str(parts[0]) in ended.err
    assert left(output) == []


# --- reading several as one


@pytest.fixture
def several(tmp_path: Path) -> Iterator[tuple[H5Folder, H5Folder]]:
    """Three shards of which one is empty, and the same samples in one file."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = ["b.jpg", "a/1.jpg", "a/2.jpg", "c/3.jpg"]
    save_jpegs(folder, names)
    parts = make_shards(folder, tmp_path / "OUT.h5", 5)
    whole = tmp_path / "whole.h5"
    convert_folder(folder, whole, workers=1)
    with H5Folder(parts) as read, H5Folder(whole) as expected:
        yield read, expected


def assert_reads_alike(read: H5Folder, expected: H5Folder) -> None:
    count = len(expected)
    assert len(read) == count
    keys = list(read)
    assert keys == list(expected)
    for n, key in enumerate(keys):
        assert key in read
        assert read.key_at(n) == read.key_at(n - count) == key
        for found in (read[key], read[n], read[n - count], read.get(key), read.read(key)):
            assert_same(found, expected[key])
        assert_same(read.read(key, np.s_[3:9, ::2]), expected.read(key, np.s_[3:9, ::2]))
    for order in (keys, keys[::-1], [0, -1, 1, 0], np.arange(count), [keys[-1], 0]):
        assert_same(read.read_batch(order), expected.read_batch(order))


def test_shards_read_as_one_folder(several: tuple[H5Folder, H5Folder]) -> None:
    read, expected = several
    assert_reads_alike(read, expected)
    assert not read.is_encoded
    assert read.read_batch([]) == []
    assert read.get("none") is None
    assert "none" not in read
    assert 5 not in read


def test_what_is_not_there_is_said_as_of_one_file(several: tuple[H5Folder, H5Folder]) -> None:
    read, _ = several
    with pytest.raises(KeyError, match=r"a/1\.jpg"):
        read["1.jpg"]
    with pytest.raises(KeyError, match="none"):
        read.read_batch(["b.jpg", "none"])
    for position in (4, -5):
        with pytest.raises(IndexError):
            read[position]
        with pytest.raises(IndexError):
            read.read_batch([0, position])
        with pytest.raises(IndexError):
            read.key_at(position)
    with pytest.raises(LoadError, match="encoded"):
        read.read_bytes(0)


def test_shards_are_read_through_a_cache(several: tuple[H5Folder, H5Folder]) -> None:
    read, expected = several
    for options in ({"cache_nbytes": 1 << 20}, {"verify": True}, {"threads": 2}):
        with H5Folder(read.paths, **options) as other:
            assert_reads_alike(other, expected)
            assert_reads_alike(other, expected)
            other[0][:] = 0  # belongs to the caller
            assert_same(other[0], expected[0])


def test_shards_are_read_in_other_processes(several: tuple[H5Folder, H5Folder]) -> None:
    read, expected = several
    read[0]
    assert_reads_alike(pickle.loads(pickle.dumps(read)), expected)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            assert_reads_alike(read, expected)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_shard_that_was_replaced_is_noticed(several: tuple[H5Folder, H5Folder]) -> None:
    read, _ = several
    read[0]
    copy = pickle.dumps(read)
    path = Path(read.paths[1])
    content = path.read_bytes()
    path.unlink()
    path.with_name("hold").write_bytes(content)
    convert_folder(path.parent / "images", path, shard="3/5", workers=1)
    with pytest.raises(LoadError, match="replaced"):
        pickle.loads(copy)[0]


def test_closed_shards_are_not_read(several: tuple[H5Folder, H5Folder]) -> None:
    read, _ = several
    read[0]
    read.close()
    with pytest.raises(LoadError, match="closed"):
        read[0]


def test_a_missing_shard_is_named_when_read(several: tuple[H5Folder, H5Folder]) -> None:
    read, _ = several
    with pytest.raises(OSError, match="gone"):
        H5Folder([*read.paths, "/nowhere/gone.h5"])[0]


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="path"):
        H5Folder([])


def test_only_empty_shards_read_as_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    save_jpegs(folder, ["a.jpg"])
    parts = make_shards(folder, tmp_path / "OUT.h5", 3)
    with H5Folder([path for path in parts if not len(H5Folder(path))]) as read:
        assert len(read) == 0
        assert list(read) == []
        assert "a.jpg" not in read
        with pytest.raises(KeyError):
            read["a.jpg"]
        with pytest.raises(IndexError):
            read[0]


def test_files_in_any_order_keep_theirs(tmp_path: Path) -> None:
    parts = make_parts(tmp_path, {"one": ["b.json", "d/1.json"], "two": ["a.json", "c.json"]})
    with H5Folder(parts) as read:
        assert list(read) == ["b.json", "d/1.json", "a.json", "c.json"]
        for n, key in enumerate(read):
            assert_same(read[key], read[n])
        assert_same(read.read_batch(["c.json", "b.json"]), np.stack([read[3], read[0]]))


@pytest.mark.parametrize("keys", [["a.json", "c.json"], ["b.json"]])
def test_a_name_in_two_files_is_refused_when_read(keys: list[str], tmp_path: Path) -> None:
    parts = make_parts(tmp_path, {"one": ["a.json", "b.json"], "two": keys})
    with pytest.raises(LoadError, match="in common") as error:
        len(H5Folder(parts))
    assert str(parts[0]) in str(error.value)
    assert str(parts[1]) in str(error.value)


def test_the_same_file_twice_is_refused_when_read(tmp_path: Path) -> None:
    [part] = make_parts(tmp_path, {"one": ["a.json", "b.json"]})
    with pytest.raises(LoadError, match="in common"):
        len(H5Folder([part, part]))


def test_a_foreign_file_is_read_among_others(tmp_path: Path) -> None:
    [part] = make_parts(tmp_path, {"one": ["b.json", "c/d.json"]})
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["a"] = np.arange(4)
        file["c/x"] = np.arange(5.0)
    for paths in ([part, foreign], [foreign, part]):
        with H5Folder(paths) as read:
            assert sorted(read) == ["a", "b.json", "c/d.json", "c/x"]
            for n, key in enumerate(list(read)):
                assert_same(read[key], read[n])
                assert read.key_at(n) == key
            assert_same(read["c/x"], np.arange(5.0))
            batch = read.read_batch(["c/x", "b.json", "a"])
            assert [len(array) for array in batch] == [5, 5, 4]
            assert_same(batch[0], np.arange(5.0))
    with h5py.File(foreign, "a") as file:
        file["b.json"] = 1
    with pytest.raises(LoadError, match="in common"):
        len(H5Folder([part, foreign]))


def test_encoded_files_are_read_among_arrays(tmp_path: Path) -> None:
    parts = []
    for name, store in (("one", "encoded"), ("two", "array")):
        save_jpegs(tmp_path / name, [f"{name}/1.jpg", f"{name}/2.jpg"])
        parts.append(tmp_path / f"{name}.h5")
        convert_folder(tmp_path / name, parts[-1], store=store, workers=1)
    with H5Folder(parts) as read:
        assert read.is_encoded
        assert_same(read["one/1.jpg"], read["two/1.jpg"])
        batch = read.read_batch(["two/2.jpg", "one/1.jpg", "two/1.jpg", "one/2.jpg"])
        assert isinstance(batch, np.ndarray)
        assert_same(batch[0], batch[3])
        assert_same(batch[1], batch[2])
        assert_same(read.read("one/1.jpg", np.s_[2]), read["one/1.jpg"][2])
        content = (tmp_path / "one/one/1.jpg").read_bytes()
        assert read.read_bytes("one/1.jpg") == content
        with pytest.raises(LoadError, match="is an array, not an original file"):
            read.read_bytes("two/1.jpg")


def test_encoded_and_array_files_are_not_joined(tmp_path: Path, output: Path, join: Joined) -> None:
    parts = []
    for name, store in (("one", "encoded"), ("two", "array")):
        save_jpegs(tmp_path / name, [f"{name}.jpg"])
        parts.append(tmp_path / f"{name}.h5")
        convert_folder(tmp_path / name, parts[-1], store=store, workers=1)
    assert_refused_and_untouched(join(parts, output), output, "encoded", *map(str, parts))


def test_joining_changes_no_part(folder: Path, output: Path, join: Joined) -> None:
    save_jpegs(folder, FLAT)
    parts = make_shards(folder, output, 2)
    before = everything_below(output.parent)
    assert join(parts, output).status == 0
    after = everything_below(output.parent)
    del after["OUT.h5"]
    assert after == before
