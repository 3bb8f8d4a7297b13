"""my_read is called once for each file; what is read in no time may be read twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from converter.samples import BASE_NBYTES
from converter.sources import images
from helpers.check import stored
from helpers.images import noise, save
from helpers.run import command, run, write_functions

READER = """
import os
import numpy as np

def my_read(path):
    with open(__file__ + ".log", "a") as log:
        log.write(os.path.basename(path) + "\\n")
    text = open(path).read()
    if text == "bad":
        raise ValueError("no number")
    return np.full({shape}, int(text), {dtype!r})
"""


def calls(functions: Path) -> Counter[str]:
    log = functions.with_name(functions.name + ".log")
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return Counter(lines)


@pytest.mark.slow
@pytest.mark.everyday(2)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("files", "shape", "dtype"),
    [(1, (), "u1"), (3, (5,), "<u2"), (12, (3, 4), "u1"), (400, (2,), "u1"), (9, (5 << 20,), "f4")],
)
def test_each_file_is_read_once(
    folder: Path, output: Path, tmp_path: Path, files: int, shape: tuple, dtype: str, workers: int
) -> None:
    names = [f"{n:03}.txt" for n in range(files)]
    for number, name in enumerate(names):
        (folder / name).write_text("bad" if number % 5 == 4 else str(number % 250))
    functions = write_functions(tmp_path / "f.py", READER.format(shape=shape, dtype=dtype))
    flags = ["--ext=txt", "--custom_read_func", f"--path_functions={functions}",
             f"--workers={workers}", "--compression=none"]  # fmt: skip
    ended = run(command(folder, output, *flags))
    assert ended.status == (files > 4), ended.err
    assert calls(functions) == Counter(names)
    good = [n for n in range(files) if n % 5 != 4]
    found = stored(output)
    assert list(found) == [names[n] for n in good]
    for number in good:
        array = found[names[number]]
        assert array.dtype == dtype and array.shape == shape
        assert (array == number % 250).all()
    again = run(command(folder, output.with_name("b.h5"), *flags, "--quiet"))
    assert again.status == ended.status
    assert output.read_bytes() == output.with_name("b.h5").read_bytes()


@pytest.mark.slow
def test_an_update_reads_once_what_failed_and_what_is_new(
    folder: Path, output: Path, tmp_path: Path
) -> None:
    for number in range(30):
        (folder / f"{number:03}.txt").write_text("bad" if number % 5 == 4 else "7")
    functions = write_functions(tmp_path / "f.py", READER.format(shape=(2,), dtype="u1"))
    flags = ["--ext=txt", "--custom_read_func", f"--path_functions={functions}", "--workers=1"]
    run(command(folder, output, *flags))
    calls(functions)
    (folder / "004.txt").write_text("8")
    (folder / "a.txt").write_text("9")
    ended = run(command(folder, output, *flags, "--update"))
    assert ended.status == 1, ended.err
    assert set(calls(functions).values()) == {1}
    assert stored(output)["a.txt"].tolist() == [9, 9]


def test_a_run_in_one_process_imports_the_functions_once(
    folder: Path, output: Path, tmp_path: Path
) -> None:
    """They may load a model."""
    for number in range(300):
        (folder / f"{number:03}.txt").write_text("7")
    text = "with open(__file__ + '.imports', 'a') as log: log.write('x')\n"
    functions = write_functions(tmp_path / "f.py", text + READER.format(shape=(2,), dtype="u1"))
    flags = ["--ext=txt", "--custom_read_func", f"--path_functions={functions}", "--workers=1"]
    assert run(command(folder, output, *flags)).status == 0
    assert (tmp_path / "f.py.imports").read_text() == "x"


@pytest.mark.parametrize(("flag", "reads"), [("--skip_decode_check", [2, 1]), ("--quiet", [1, 1])])
def test_files_that_are_not_decoded_are_read_again_unless_they_are_large(
    folder: Path, output: Path, convert, monkeypatch, flag: str, reads: list[int]
) -> None:
    """Batches would be cut for each that is kept, which takes longer than to read it."""
    for name, side in (("a.bmp", 200), ("b.bmp", 1300)):
        save(folder / name, noise(0, (side, side, 3)))
    assert (folder / "b.bmp").stat().st_size > BASE_NBYTES
    read, counted = images.read_into, Counter()

    def count(path: str, allocate) -> memoryview:
        counted[path] += 1
        return read(path, allocate)

    monkeypatch.setattr(images, "read_into", count)
    convert(folder, output, "--store=encoded", "--ext=bmp", "--workers=1", flag)
    assert list(counted.values()) == reads
