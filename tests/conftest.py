"""Fixtures, and the option ``--corpus FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from converter.cli import main
from helpers.world import Finished

EVERYDAY = "not slow"  # as addopts of pyproject.toml says
SLOW_HALF = "python -m pytest -n auto -m slow"
MOST_CELLS = 4  # of one parametrised test in the everyday half
corpus_lines = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[corpus_lines] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what came of the files of ``--corpus``, and how to run the tests left out."""
    config = terminalreporter.config
    if config.getoption("--corpus"):
        for line in config.stash[corpus_lines]:
            terminalreporter.write_line(line)
    if config.getoption("markexpr") == EVERYDAY:
        terminalreporter.write_line(f"the slow half: {SLOW_HALF}")


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow all but a few cells of each test with many, evenly spread over them.

    A test that is marked ``every_cell`` keeps them all in the everyday half.
    """
    cells: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        is_whole = item.get_closest_marker("slow") or item.get_closest_marker("every_cell")
        if hasattr(item, "callspec") and not is_whole:
            function = item.nodeid.partition("[")[0]
            cells.setdefault((item.path, function), []).append(item)
    for found in cells.values():
        count = len(found)
        kept = {round(n * (count - 1) / (MOST_CELLS - 1)) for n in range(MOST_CELLS)}
        for number, item in enumerate(found):
            if count > MOST_CELLS and number not in kept:
                item.add_marker(pytest.mark.slow)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--corpus",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="convert this folder too, and check every file of it; may be given several times",
    )


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Undo what a run within this process changes in it."""
    modules, path, limit = set(sys.modules), list(sys.path), PIL.Image.MAX_IMAGE_PIXELS
    functions = sys.modules.get("my_functions")
    yield
    sys.path[:] = path
    PIL.Image.MAX_IMAGE_PIXELS = limit
    for name in set(sys.modules) - modules:
        if name.endswith("functions"):
            del sys.modules[name]
    if functions is not None:
        sys.modules["my_functions"] = functions


@pytest.fixture
def convert(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run the command line within this process, without worker processes."""

    def convert(folder: Path, output: Path, *flags: str) -> Finished:
        has_own = any(flag.startswith(("--workers", "--dask")) for flag in flags)
        workers = [] if has_own else ["--workers=1"]
        try:
            status = main([f"--path_images={folder}", f"--path_output={output}", *workers, *flags])
        except SystemExit as error:  # as argparse ends
            status = int(error.code or 0)
        out, err = capfd.readouterr()
        return Finished(status, out, err)

    return convert


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder to convert."""
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the HDF5 file is to be; its folder is there and empty."""
    path = tmp_path / "out" / "OUT.h5"
    path.parent.mkdir()
    return path
