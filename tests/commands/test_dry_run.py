"""``--dry_run`` says what each store and compression would come to, and writes nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from converter.callbacks import Callbacks
from converter.commands.dry_run import advise
from converter.commands.request import request_of
from converter.messages import advice_lines
from helpers.check import everything_below
from helpers.images import colours, save
from helpers.run import Finished, read_with, write_functions
from helpers.seams import pretend_free

#: What the size may be wrong by; beside it, that it is printed in hundredths of a megabyte.
SHARE, ROUNDING = 0.15, 0.005
PLAIN = [("array", "auto"), ("array", "none"), ("array", "gzip:2")]
PLUGGED = [("array", "zstd:6"), ("array", "blosc2:1")]
ENCODED = ("encoded", "auto")
PACKAGES = {"zstd": "zstandard", "blosc2": "blosc2"}

pytest.importorskip("zstandard")
pytest.importorskip("blosc2")


class Row(NamedTuple):
    """A line of the table; ``megabytes`` is None where it was not tried."""

    megabytes: float | None
    ratio: float | None
    remarks: tuple[str, ...]


def table(ended: Finished) -> dict[tuple[str, str], Row]:
    """Return the rows of the table under store and compression."""
    lines = ended.out.splitlines()
    (head,) = [n for n, line in enumerate(lines) if line.split()[:2] == ["store", "compression"]]
    assert lines[head - 1] == ""
    rows = {}
    for line in lines[head + 1 : lines.index("", head)]:
        found = re.fullmatch(
            r"  (array|encoded) +(\S+) +(?:([\d,]+\.\d\d) MB +(\d+\.\d\d)|not tried)  +(.+)", line
        )
        assert found, line
        store, compression, size, ratio, remarks = found.groups()
        assert (store, compression) not in rows
        rows[store, compression] = Row(
            float(size.replace(",", "")) if size else None,
            float(ratio) if ratio else None,
            tuple(remarks.split("; ")),
        )
    return rows


def advised(folder: Path, output: Path, **bounds: float) -> Finished:
    """Return what --dry_run prints, within bounds of its survey."""
    request = request_of(folder, output, {"ext": "jpg,png", "workers": 1})
    lines = advice_lines(request, advise(request, Callbacks(), **bounds))
    return Finished(0, "\n".join(lines), "")


def is_close(row: Row, real: float, *, share: float = SHARE) -> bool:
    assert row.megabytes is not None
    return abs(row.megabytes - real) <= share * real + ROUNDING


def marked(rows: dict[tuple[str, str], Row], mark: str) -> list[tuple[str, str]]:
    return [choice for choice, row in rows.items() if mark in row.remarks]


def photo(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return a smooth image with the noise of a sensor."""
    noise = np.random.default_rng(seed).integers(-6, 7, shape)
    return (colours(seed, shape) + noise).clip(0, 255).astype(np.uint8)


def mask(seed: int, shape: tuple[int, int]) -> np.ndarray:
    """Return a few rectangles."""
    array, generator = np.zeros(shape, np.uint8), np.random.default_rng(seed)
    for number in range(1, 4):
        top, left = generator.integers(0, 60, 2)
        height, width = generator.integers(9, 60, 2)
        array[top : top + height, left : left + width] = 80 * number
    return array


def save_mixed(folder: Path) -> None:
    for seed in range(24):
        save(folder / "photos" / f"{seed % 3}" / f"{seed}.jpg", photo(seed, (90 + seed, 120, 3)))
        save(folder / "masks" / f"{seed}.png", mask(seed, (120, 160)))
        save(folder / "icons" / "a" / "b" / f"{seed}.png", photo(seed, (8, 8, 3)))


def save_photos(folder: Path) -> None:
    for seed in range(30):
        save(folder / f"{seed}.jpg", photo(seed, (100 + seed % 7, 150, 3)), quality=85)


def save_icons(folder: Path) -> None:
    for seed in range(400):
        save(folder / f"{seed % 20}" / f"icon_{seed:06}.png", photo(seed, (4, 4, 3)))


def save_icons_in_folders_of_their_own(folder: Path) -> None:
    for seed in range(300):
        save(folder / f"{seed:06}" / "icon.png", photo(seed, (4, 4, 3)))


def save_masks(folder: Path) -> None:
    for seed in range(60):
        save(folder / "a" / "b" / "c" / f"{seed}.png", mask(seed, (300, 400)))


def save_few_large_among_small(folder: Path) -> None:
    for seed in range(60):
        save(folder / "small" / f"{seed}.png", photo(seed, (16, 16, 3)))
    for seed in range(3):
        save(folder / "large" / f"{seed}.png", photo(seed, (400, 500, 3)))


def save_deep(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for seed in range(20):
        noise = generator.integers(0, 30, (100, 120))
        save(folder / f"{seed}.png", (noise + 40 * seed).astype(np.uint16))


FOLDERS = {
    "mixed": save_mixed,
    "photos": save_photos,
    "icons": save_icons,
    "icons_in_folders_of_their_own": save_icons_in_folders_of_their_own,
    "masks": save_masks,
    "few_large_among_small": save_few_large_among_small,
    "deep": save_deep,
}
BOTH = "--ext=jpg,png"


def real_megabytes(folder, output, convert, choice: tuple[str, str], *flags: str) -> float:
    flags = (*flags, f"--store={choice[0]}", f"--compression={choice[1]}", "--overwrite")
    ended = convert(folder, output, *flags)
    assert ended.status in (0, 1), ended.err
    return output.stat().st_size / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", FOLDERS)
def test_each_size_is_that_of_the_real_conversion(kind, folder, output, convert):
    FOLDERS[kind](folder)
    rows = table(convert(folder, output, BOTH, "--dry_run"))
    assert [*rows] == [*PLAIN, *PLUGGED, ENCODED]
    source = sum(path.stat().st_size for path in folder.rglob("*.*g")) / 1e6
    for choice, row in rows.items():
        real = real_megabytes(folder, output, convert, choice, BOTH)
        assert is_close(row, real), (choice, row.megabytes, real)
        assert row.ratio == pytest.approx(row.megabytes / source, abs=0.005 + ROUNDING / source)


@pytest.mark.everyday(1)
@pytest.mark.parametrize("kind", ["mixed", "photos", "few_large_among_small"])
def test_a_sample_is_enough(kind, folder, output, convert):
    """As of a folder of more files than are looked at."""
    FOLDERS[kind](folder)
    ended = advised(folder, output, most_files=25)
    assert "judged from 25 files (0 of which could not be read)" in ended.out
    for choice, row in table(ended).items():
        real = real_megabytes(folder, output, convert, choice, BOTH)
        assert is_close(row, real, share=0.4), (choice, row.megabytes, real)


@pytest.mark.slow
def test_a_survey_that_takes_too_long_ends_early(folder, output, convert):
    save_icons(folder)
    ended = advised(folder, output, most_seconds=-1.0)
    looked_at = int(
        re.search(r"judged from (\d+) files \(0 of which could not be read\)", ended.out)[1]
    )
    assert 64 <= looked_at < 400
    for choice, row in table(ended).items():
        real = real_megabytes(folder, output, convert, choice, BOTH)
        assert is_close(row, real), (choice, row.megabytes, real)


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_nothing_is_written(workers, folder, tmp_path, convert):
    save_mixed(folder)
    (folder / "bad.png").write_bytes(b"")
    before = everything_below(tmp_path)
    ended = convert(folder, tmp_path / "new" / "folder" / "OUT.h5", BOTH, workers, "--dry_run")
    assert ended.status == 0
    assert ended.err == ""
    assert everything_below(tmp_path) == before


def test_an_older_output_stays_as_it_is(folder, output, tmp_path, convert):
    save(folder / "a.jpg")
    output.write_bytes(b"an older one")
    before = everything_below(tmp_path)
    assert table(convert(folder, output, "--dry_run"))
    assert table(convert(folder, output, "--dry_run", "--overwrite"))
    assert everything_below(tmp_path) == before


def test_workers_come_to_the_same_table(folder, output, convert):
    save_mixed(folder)
    (folder / "bad.png").write_bytes(b"")
    one = convert(folder, output, BOTH, "--workers=1", "--dry_run")
    two = convert(folder, output, BOTH, "--workers=2", "--dry_run")
    assert table(one) == table(two)
    assert one.out.splitlines()[1:] == two.out.splitlines()[1:]  # the first tells the free space


def test_the_smallest_are_marked_and_named_below(folder, output, convert):
    save_mixed(folder)
    ended = convert(folder, output, BOTH, "--dry_run")
    rows = table(ended)
    for mark, choices in {"smallest": [*rows], "smallest for h5py alone": PLAIN}.items():
        (best,) = marked(rows, mark)
        assert rows[best].megabytes == min(rows[choice].megabytes for choice in choices)
        assert best in choices
    last, plain = ended.out.splitlines()[-2:]
    assert last == "smallest: --store=encoded --compression=auto"
    (best,) = marked(rows, "smallest for h5py alone")
    assert plain == f"smallest that h5py alone reads as arrays: --compression={best[1]}"


def test_what_is_needed_to_read_it_is_said(folder, output, convert):
    save(folder / "a.jpg")
    rows = table(convert(folder, output, "--dry_run"))
    for choice in PLAIN:
        assert rows[choice].remarks[0] == "h5py alone"
    for choice in PLUGGED:
        assert rows[choice].remarks[0] == "h5py, hdf5plugin"
    assert rows[ENCODED].remarks[0] == "h5py, pillow to decode"


@pytest.mark.everyday(1)
@pytest.mark.parametrize(
    ("flags", "own", "is_new"),
    [
        ((), ("array", "auto"), False),
        (("--compression=none",), ("array", "none"), False),
        (("--compression=gzip",), ("array", "gzip:2"), False),
        (("--compression=gzip:2",), ("array", "gzip:2"), False),
        (("--compression=gzip:9",), ("array", "gzip:9"), True),
        (("--compression=zstd:19",), ("array", "zstd:19"), True),
        (("--compression=blosc2:9",), ("array", "blosc2:9"), True),
        (("--store=encoded",), ("encoded", "auto"), False),
        (("--store=encoded", "--compression=zstd"), ("encoded", "zstd:6"), True),
        (("--store=encoded", "--compression=none"), ("encoded", "none"), True),
    ],
)
def test_this_command_is_among_them_and_marked(flags, own, is_new, folder, output, convert):
    save_masks(folder)
    rows = table(convert(folder, output, BOTH, "--dry_run", *flags))
    assert marked(rows, "this command") == [own]
    assert [*rows] == [*PLAIN, *PLUGGED, ENCODED, *([own] if is_new else [])]
    real = real_megabytes(folder, output, convert, own, BOTH)
    assert is_close(rows[own], real), (rows[own].megabytes, real)


def test_how_many_arrays_auto_compresses_is_said(folder, output, convert):
    save_mixed(folder)
    lines = convert(folder, output, BOTH, "--dry_run").out.splitlines()
    assert "auto compresses 24 of the 72 arrays by gzip, and stores 48 as they are" in lines


@pytest.mark.everyday(1)
@pytest.mark.parametrize("missing", [["zstd"], ["blosc2"], ["zstd", "blosc2"]])
@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_what_needs_a_missing_package_is_not_tried(
    missing, workers, folder, output, convert, monkeypatch
):
    save_mixed(folder)
    before = table(convert(folder, output, BOTH, "--dry_run"))
    for name in missing:
        monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    ended = convert(folder, output, BOTH, workers, "--dry_run")
    assert ended.status == 0
    rows = table(ended)
    for name in missing:
        row = rows.pop(("array", name))
        assert row == Row(None, None, (f"pip install {PACKAGES[name]}",))
    left = [choice for choice in before if choice[1].partition(":")[0] not in missing]
    assert [*rows] == left
    for choice in left:
        assert rows[choice].megabytes == before[choice].megabytes


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_arrays_of_my_read_are_compared_and_the_files_themselves_are_not(
    workers, folder, output, tmp_path, convert
):
    for number in range(30):
        (folder / f"{number}.num").write_bytes(b"x" * 100)
    functions = write_functions(
        tmp_path / "my_functions.py",
        """
        import os
        import numpy as np
        def my_read(path_sample):
            number = int(os.path.basename(path_sample).split(".")[0])
            if number % 3 == 0:
                return f"text {number} " * 900
            return (np.arange(20_000) // 9 + number).astype("<u4")
        """,
    )
    flags = ("--ext=num", *read_with(functions))
    ended = convert(folder, output, "--dry_run", workers, *flags)
    assert ended.status == 0
    assert ended.err == f"converter: my_read from {functions}\n"
    rows = table(ended)
    assert [*rows] == [*PLAIN, *PLUGGED]
    assert not output.exists()
    for choice, row in rows.items():
        real = real_megabytes(folder, output, convert, choice, *flags)
        assert is_close(row, real), (choice, row.megabytes, real)


@pytest.mark.slow
def test_arrays_of_opencv_are_compared_and_the_files_themselves_are_not(folder, output, convert):
    pytest.importorskip("cv2")
    save_masks(folder)
    flags = (BOTH, "--reader=opencv")
    rows = table(convert(folder, output, "--dry_run", *flags))
    assert [*rows] == [*PLAIN, *PLUGGED]
    assert rows["array", "none"].megabytes == pytest.approx(60 * 300 * 400 * 3 / 1e6, rel=0.01)
    for choice, row in rows.items():
        real = real_megabytes(folder, output, convert, choice, *flags)
        assert is_close(row, real), (choice, row.megabytes, real)


def test_files_that_fail_are_counted_and_take_no_space(folder, output, convert):
    save_photos(folder)
    for number in range(15):
        (folder / f"bad_{number}.jpg").write_bytes(b"no image")
    ended = convert(folder, output, "--dry_run")
    assert ended.status == 0
    assert "judged from 45 files (15 of which could not be read)" in ended.out
    for choice, row in table(ended).items():
        real = real_megabytes(folder, output, convert, choice)
        assert is_close(row, real), (choice, row.megabytes, real)


@pytest.mark.parametrize("workers", ["--workers=1", "--workers=2"])
def test_where_all_files_fail_it_says_so(workers, folder, output, tmp_path, convert):
    for number in range(5):
        (folder / f"{number}.jpg").write_text("no image")
    (folder / "note.txt").write_text("x")
    before = everything_below(tmp_path)
    ended = convert(folder, output, "--dry_run", workers)
    assert ended.status == 0
    assert ended.out.splitlines()[1:] == [
        "left out: 1 .txt",
        "none of the 5 files that were tried could be read",
    ]
    assert everything_below(tmp_path) == before


def test_files_that_are_stored_without_a_look_are_counted(folder, output, convert):
    """They are stored whatever they are, so that the dry run must not ask for images."""
    for number in range(12):
        (folder / f"{number}.txt").write_text("no image " * 2000)
    flags = ("--ext=txt", "--store=encoded", "--skip_decode_check")
    ended = convert(folder, output, "--dry_run", *flags)
    assert "(0 of which could not be read)" in ended.out
    row = table(ended)[ENCODED]
    real = real_megabytes(folder, output, convert, ENCODED, *flags)
    assert is_close(row, real), (row.megabytes, real)


def test_empty_files_that_my_read_makes_arrays_of_have_no_ratio(folder, output, tmp_path, convert):
    for number in range(4):
        (folder / f"{number}.num").write_bytes(b"")
    functions = write_functions(
        tmp_path / "my_functions.py",
        "import numpy as np\ndef my_read(path): return np.arange(20_000)",
    )
    flags = ("--ext=num", *read_with(functions))
    ended = convert(folder, output, "--dry_run", *flags)
    assert ended.status == 0
    rows = table(ended)
    assert {row.ratio for row in rows.values()} == {0.0}
    assert 0.64 < rows["array", "none"].megabytes < 0.66


def test_the_first_line_tells_the_files_their_size_and_the_free_space(folder, output, convert):
    save_mixed(folder)
    (folder / "linked").symlink_to(folder / "masks")
    (folder / "note.txt").write_text("x")
    source = sum(path.stat().st_size for path in folder.rglob("*.*g")) / 1e6
    lines = convert(folder, output, BOTH, "--dry_run").out.splitlines()
    assert re.fullmatch(
        rf"72 files below {folder}, {source:.2f} MB; [\d,]+\.\d\d MB free for {output}", lines[0]
    )
    assert lines[1] == "left out: 1 .txt"
    assert lines[2] == "1 linked folders not entered (--follow_links)"
    assert lines[3] == (
        f"{output} would be about this large, judged from 72 files (0 of which could not be read):"
    )


def test_names_that_cannot_be_stored_are_counted(folder, output, convert):
    save(folder / "a.jpg")
    try:
        (folder / "\udcff.jpg").write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such name")
    lines = convert(folder, output, "--dry_run").out.splitlines()
    assert lines[1] == "1 names or folders cannot be read"


def test_what_would_not_fit_can_still_be_compared(folder, output, convert, monkeypatch):
    """The table is what helps then."""
    save_photos(folder)
    pretend_free(monkeypatch, 1000)
    ended = convert(folder, output, "--dry_run")
    assert ended.status == 0
    assert "; 0.00 MB free for " in ended.out
    assert table(ended)
    ended = convert(folder, output)
    assert ended.status == 2
    assert "--store=encoded" in ended.err
    assert "--dry_run compares" in ended.err
