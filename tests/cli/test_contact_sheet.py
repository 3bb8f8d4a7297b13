"""--contact_sheet draws samples of a finished file as people would see them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from helpers.check import assert_refused
from helpers.images import colours, noise, save, save_frames, save_tiff
from helpers.run import Finished, read_with, run_here, write_functions

Command = Callable[..., Finished]

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (30, 60, 210)
TILE, GAP, TOP = 160, 8, 30


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    return tmp_path / "sheet.png"


def plain(colour: tuple[int, ...], shape: tuple[int, int] = (160, 160)) -> np.ndarray:
    return np.full((*shape, len(colour)), colour, np.uint8)


def middle_of(sheet: Path, number: int) -> tuple[int, ...]:
    """Return the colour in the middle of a tile of the first row."""
    with PIL.Image.open(sheet) as image:
        x = GAP + number * (TILE + GAP) + TILE // 2
        return image.convert("RGB").getpixel((x, TOP + TILE // 2))  # type: ignore[return-value]


def draw(run_command: Command, output: Path, sheet: Path, *flags: str) -> Finished:
    return run_command(f"--path_output={output}", f"--contact_sheet={sheet}", *flags)


@pytest.fixture
def run_command(capfd: pytest.CaptureFixture[str]) -> Command:
    def run_command(*arguments: str) -> Finished:
        return run_here(capfd, *arguments)

    return run_command


@pytest.fixture
def coloured(folder: Path) -> Path:
    for name, colour in (("1 red", RED), ("2 green", GREEN), ("3 blue", BLUE)):
        save(folder / f"{name}.png", plain(colour))
    return folder


def test_a_sheet_is_drawn_of_a_finished_file(
    coloured: Path, output: Path, sheet: Path, convert: Command, run_command: Command
) -> None:
    convert(coloured, output, "--ext=png")
    ended = draw(run_command, output, sheet)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == f"{sheet}: 3 of 3 samples drawn\n"
    assert [middle_of(sheet, n) for n in range(3)] == [RED, GREEN, BLUE]


def test_the_same_file_gives_the_same_sheet(
    coloured: Path, output: Path, sheet: Path, convert: Command, run_command: Command
) -> None:
    convert(coloured, output, "--ext=png")
    draw(run_command, output, sheet)
    first = sheet.read_bytes()
    assert draw(run_command, output, sheet).status == 0  # a sheet is replaced
    assert sheet.read_bytes() == first
    assert {path.name for path in sheet.parent.iterdir()} == {"images", "out", "sheet.png"}


def test_sixty_samples_are_spread_over_all(
    folder: Path, output: Path, sheet: Path, convert: Command
) -> None:
    for number in range(600):
        value = 50 + number // 4
        save(folder / f"{number:03}.png", plain((value, value, value), (4, 4)))
    ended = convert(folder, output, "--ext=png", f"--contact_sheet={sheet}")
    assert f"{sheet}: 60 of 600 samples drawn" in ended.out
    assert [middle_of(sheet, n)[0] for n in range(10)] == [50 + 10 * n // 4 for n in range(10)]


def test_opencv_s_colours_are_turned_round(
    coloured: Path, output: Path, sheet: Path, convert: Command
) -> None:
    pytest.importorskip("cv2")
    flags = ("--ext=png", "--reader=opencv", f"--contact_sheet={sheet}")
    assert convert(coloured, output, *flags).status == 0
    assert [middle_of(sheet, n) for n in range(3)] == [RED, GREEN, BLUE]


def test_whole_files_are_decoded(
    coloured: Path, output: Path, sheet: Path, convert: Command
) -> None:
    flags = ("--ext=png", "--store=encoded", f"--contact_sheet={sheet}")
    assert convert(coloured, output, *flags).status == 0
    assert middle_of(sheet, 1) == GREEN


def test_it_is_drawn_after_an_update_and_after_a_merge(
    coloured: Path, output: Path, sheet: Path, convert: Command, run_command: Command
) -> None:
    parts = [output.with_name(f"{n}.h5") for n in (1, 2)]
    for n, part in enumerate(parts, 1):
        convert(coloured, part, "--ext=png", f"--shard={n}/2")
    ended = draw(run_command, output, sheet, "--merge", *map(str, parts))
    assert f"{sheet}: 3 of 3 samples drawn" in ended.out
    (coloured / "1 red.png").unlink()
    ended = convert(coloured, output, "--update", f"--contact_sheet={sheet}")
    assert f"{sheet}: 2 of 2 samples drawn" in ended.out
    assert [middle_of(sheet, n) for n in range(2)] == [GREEN, BLUE]


def test_all_kinds_of_arrays_are_drawn_or_named(
    folder: Path, output: Path, sheet: Path, convert: Command, tmp_path: Path
) -> None:
    halves = np.repeat(np.array([[0, 1]]), 80, axis=1)[:, [*range(160)]].repeat(160, axis=0)
    save_tiff(folder / "a float.tif", np.where(halves, np.nan, 7.5).astype("f4"))
    save(folder / "b deep.png", np.full((160, 160), 900, np.uint16))
    save(folder / "c bits.png", np.ones((160, 160), bool))
    save(folder / "d classes.png", np.full((160, 160), 1, np.uint8))
    save(folder / "e clear.png", plain((*RED, 0)))
    PIL.Image.new("CMYK", (160, 160), (0, 255, 255, 0)).save(folder / "f print.jpg", quality=100)
    save_frames(folder / "g frames.gif")
    save(folder / "h gray.png", np.full((160, 160), 77, np.uint8))
    flags = ("--ext=png,tif,jpg,gif", f"--contact_sheet={sheet}")
    ended = convert(folder, output, *flags)
    assert ended.status == 0, ended.err
    found = [middle_of(sheet, n) for n in range(8)]
    assert found[0] == found[1] == (0, 0, 0)
    assert found[2] == (255, 255, 255)
    assert max(found[3]) > 200 and min(found[3]) < 60
    assert found[4] == (225, 225, 225)
    assert found[5][0] > 200 and found[5][1] < 60
    assert found[7] == (77, 77, 77)


def test_what_is_no_picture_has_its_shape_as_text(
    folder: Path, output: Path, sheet: Path, convert: Command, tmp_path: Path
) -> None:
    values = {
        "text": "'a text'",
        "number": "5",
        "empty": "numpy.empty((0, 4))",
        "list": "numpy.arange(9)",
        "thin": "numpy.zeros((2, 1000))",
        "complex": "numpy.ones((30, 30), complex)",
        "fields": "numpy.zeros((30, 30), [('a', 'i4')])",
        "deep": "numpy.zeros((2, 2, 2, 2, 2), 'u1')",
    }
    for name in values:
        (folder / f"{name}.x").write_text("x")
    functions = write_functions(
        tmp_path / "functions.py",
        "import numpy, pathlib\ndef my_read(path):\n    return eval("
        f"{values!r}[pathlib.Path(path).stem])\n",
    )
    flags = ("--ext=x", *read_with(functions), f"--contact_sheet={sheet}")
    ended = convert(folder, output, *flags)
    assert ended.status == 0, ended.err
    assert f"{sheet}: {len(values)} of {len(values)} samples drawn" in ended.out
    with PIL.Image.open(sheet) as image:
        assert len({colour for _, colour in image.getcolors(1 << 20) or []}) > 2


@pytest.fixture
def with_masks(folder: Path) -> Path:
    mask = np.zeros((160, 160), np.uint8)
    mask[:, 40:120] = 255
    for name in ("a", "b", "c"):
        save(folder / "train" / "images" / f"{name}.jpg", plain(BLUE), quality=100)
    save(folder / "train" / "masks" / "a.png", mask)
    save(folder / "train" / "masks" / "b.png", mask[:100])
    return folder


def test_masks_are_drawn_over_their_photos(
    with_masks: Path, output: Path, sheet: Path, convert: Command
) -> None:
    flags = ("--ext=jpg,png", f"--contact_sheet={sheet}", "--contact_masks=images/=masks/")
    ended = convert(with_masks, output, *flags)
    assert f"{sheet}: 2 of 2 samples drawn\n1 of them cannot be read" in ended.out
    assert middle_of(sheet, 0)[0] > 120
    assert abs(middle_of(sheet, 1)[0] - BLUE[0]) < 8
    with PIL.Image.open(sheet) as image:
        beside = np.array(image)[TOP + 80, GAP + 20]
    assert np.abs(beside.astype(int) - BLUE).max() < 8


def test_masks_that_no_photo_has_are_refused(
    with_masks: Path, output: Path, sheet: Path, convert: Command, run_command: Command
) -> None:
    convert(with_masks, output, "--ext=jpg,png")
    ended = draw(run_command, output, sheet, "--contact_masks=photos/=masks/")
    assert_refused(ended, "--contact_masks=photos/=masks/")
    assert not sheet.exists()


def test_a_damaged_sample_is_named_and_the_rest_is_drawn(
    coloured: Path, output: Path, sheet: Path, convert: Command, run_command: Command
) -> None:
    for number in range(3):
        save(coloured / f"4 noise {number}.png", noise(number, (50, 50, 3)))
    convert(coloured, output, "--ext=png", "--compression=none")
    content = bytearray(output.read_bytes())
    content[1000] ^= 1
    output.write_bytes(content)
    ended = draw(run_command, output, sheet)
    assert "1 of them cannot be read" in ended.out
    assert middle_of(sheet, 1) == GREEN


def test_the_damaged_or_missing_file_is_named(
    tmp_path: Path, sheet: Path, run_command: Command
) -> None:
    assert_refused(draw(run_command, tmp_path / "no.h5", sheet), "no file", "no.h5")
    (tmp_path / "none.h5").write_bytes(b"x" * 1000)
    assert_refused(draw(run_command, tmp_path / "none.h5", sheet), "none.h5", status=1)
    assert not sheet.exists()


REFUSED = {
    "another ending": (["--contact_sheet=SHEET.jpg"], "must end in .png"),
    "no folder": (["--contact_sheet=nowhere/SHEET.png"], "no folder"),
    "another file": (["--contact_sheet=mine.png"], "is no contact sheet"),
    "in the folder": (["--contact_sheet=images/s.png"], "is in the folder to convert"),
    "masks alone": (["--contact_masks=a=b"], "--contact_masks needs --contact_sheet"),
    "no rule": (["--contact_sheet=s.png", "--contact_masks=images"], "must be PHOTOS=MASKS"),
    "dry run": (["--contact_sheet=s.png", "--dry_run"], "--dry_run"),
}


@pytest.mark.everyday
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_before_anything_is_made(
    case: str, coloured: Path, output: Path, tmp_path: Path, convert: Command
) -> None:
    flags, words = REFUSED[case]
    mine = save(tmp_path / "mine.png", colours())
    before = mine.read_bytes()
    os.chdir(tmp_path)
    assert_refused(convert(coloured, output, "--ext=png", *flags), words)
    assert not output.exists()
    assert mine.read_bytes() == before


def test_masks_without_a_sheet_or_a_folder_say_that_the_sheet_is_missing(
    run_command: Command,
) -> None:
    ended = run_command("--contact_masks=images/=masks/")
    assert_refused(ended, "--contact_masks needs --contact_sheet")
    assert "--path_images" not in ended.err


def test_verifying_draws_nothing(
    coloured: Path, output: Path, sheet: Path, convert: Command, run_command: Command
) -> None:
    convert(coloured, output, "--ext=png")
    assert_refused(draw(run_command, output, sheet, "--verify"), "--contact_sheet changes nothing")
