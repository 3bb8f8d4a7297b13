"""Fixtures, and the option ``--corpus FOLDER``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.run import Finished, end_all, run_here

EVERYDAY = "not slow"  # as addopts of pyproject.toml says
SLOW_HALF = "python -m pytest -n auto -m slow"
CELLS = 1  # of one parametrised test in the everyday half
SECONDS_IN_TEST = 600  # more than any process it starts may take
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


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import files that are slow as a whole: that of PyTorch takes seconds."""
    if config.getoption("markexpr") == EVERYDAY and collection_path.suffix == ".py":
        is_slow = "\npytestmark = pytest.mark.slow\n" in collection_path.read_text("utf-8")
        return is_slow or None
    return None


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is not of the everyday half as slow.

    A parametrised test has a few of its cells there, as many as its mark says: they are spread
    evenly over all. Of a file that is mostly slow it has the tests that are marked.
    """
    cells: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            cells.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for found in cells.values():
        everyday = found[0].get_closest_marker("everyday")
        count = len(found)
        if everyday is None:
            most = 0 if found[0].get_closest_marker("mostly_slow") else CELLS
        else:
            most = everyday.args[0] if everyday.args else count
        kept = {int((n + 0.5) * count / most - 0.5) for n in range(most)}
        for number, item in enumerate(found):
            if number not in kept and count > most:
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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let no test take for ever.

    Not by faulthandler: its thread hangs the workers with a time limit that are forked from here.
    """
    if not hasattr(signal, "SIGALRM") or item.config.getoption("--corpus"):
        return (yield)

    def late(*_: object) -> None:
        raise TimeoutError(f"{item.nodeid} takes longer than {SECONDS_IN_TEST} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS_IN_TEST)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _no_process_left() -> Iterator[None]:
    """End what a test has started and, because it failed, not waited for."""
    yield
    end_all()


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
        return run_here(
            capfd, f"--path_images={folder}", f"--path_output={output}", *workers, *flags
        )

    return convert


@pytest.fixture
def verify(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run --verify within this process, without worker processes."""

    def verify(path: Path, *flags: str) -> Finished:
        workers = [] if any(flag.startswith("--workers") for flag in flags) else ["--workers=1"]
        return run_here(capfd, "--verify", f"--path_output={path}", *workers, *flags)

    return verify


@pytest.fixture
def update(convert: Callable[..., Finished]) -> Callable[..., Finished]:
    """Run an update within this process."""
    return lambda folder, output, *flags: convert(folder, output, "--update", *flags)


@pytest.fixture
def extract(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run --extract within this process."""

    def extract(path: Path, folder: Path | str, *flags: str) -> Finished:
        return run_here(capfd, f"--path_output={path}", f"--extract={folder}", *flags)

    return extract


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
