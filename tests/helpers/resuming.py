"""A conversion of small files of every kind, that can be broken off at any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from helpers.run import Finished, write_functions

#: What a sample becomes is decided by its file: ``KIND:SEED``. Reading is noted in reads.log.
READER = """
import os
import signal
import time
import numpy as np

HERE = os.path.dirname(__file__)


def my_read(path_sample):
    name = os.path.basename(path_sample)
    with open(os.environ.get("READS", HERE + "/reads.log"), "a") as log:  # of any process
        log.write(name + "\\n")
    break_off(name)
    with open(path_sample) as file:
        kind, _, seed = file.read().partition(":")
    return sample(kind, int(seed))


def break_off(name):
    try:
        with open(os.path.join(HERE, "break_off")) as file:
            way, at, once = file.read().split()
    except FileNotFoundError:
        return
    if at != name or not os.path.exists(os.path.join(HERE, "out", "OUT.h5" + once)):
        return
    if way == "ctrl_c":
        raise KeyboardInterrupt
    if way == "kill":
        os.killpg(0, signal.SIGKILL)
    if way == "wait":
        while os.path.exists(os.path.join(HERE, "break_off")):
            time.sleep(0.01)
        return
    raise ValueError("this file breaks it off")


def sample(kind, seed):
    if kind == "photo":
        return photo(seed)
    random = np.random.default_rng(seed)
    if kind == "small":
        return random.integers(0, 256, 100, dtype=np.uint8)
    if kind == "text":
        return f"é {seed}" * (seed % 5)
    if kind == "empty":
        return np.empty((0, seed % 4), np.float32)
    if kind == "scalar":
        return seed
    if kind == "mask":
        return np.repeat(random.integers(0, 256, 400, dtype=np.uint8), 8).reshape(40, -1)
    if kind == "chunks":
        return np.repeat(random.integers(0, 99, (5, 1000), dtype=np.uint16), 900, axis=1)
    if kind == "large":
        return random.integers(0, 256, 600_000, dtype=np.uint8)
    raise ValueError(f"no kind {kind!r}")
"""
BEGUN = ".partial.journal"
KINDS = ("small", "text", "large", "empty", "mask", "scalar")


class Conversion:
    """A folder of ``*.num`` files, the file made of it, and what was read meanwhile.

    Parameters
    ----------
    tmp_path
        Where everything is.
    convert
        Runs the command line within this process, as the fixture of that name does.
    """

    def __init__(self, tmp_path: Path, convert: Callable[..., Finished]) -> None:
        self.tmp_path = tmp_path
        self.folder = tmp_path / "images"
        self.output = tmp_path / "out" / "OUT.h5"
        self.folder.mkdir(exist_ok=True)
        self.output.parent.mkdir(exist_ok=True)
        self.functions = write_functions(tmp_path / "resumed_functions.py", READER)
        self._convert = convert
        self.log = tmp_path / "reads.log"

    @property
    def flags(self) -> tuple[str, ...]:
        return "--ext=num", "--custom_read_func", f"--path_functions={self.functions}"

    @property
    def partial(self) -> Path:
        return self.output.with_name("OUT.h5.partial")

    @property
    def journal(self) -> Path:
        return self.output.with_name("OUT.h5.partial.journal")

    @property
    def names(self) -> list[str]:
        """All files, in plan order."""
        return sorted(os.listdir(self.folder))

    def add(self, count: int, kinds: tuple[str, ...] = KINDS) -> Conversion:
        """Add files of all kinds, ``0000.num`` and so on; a few large ones among them."""
        for number in range(count):
            self.put(f"{number:04}.num", kinds[number % len(kinds)], number)
        return self

    def put(self, name: str, kind: str, seed: int) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{kind}:{seed}")

    def run(self, *flags: str, output: Path | None = None) -> Finished:
        return self._convert(self.folder, output or self.output, *self.flags, *flags)

    def break_off(self, at: str, *flags: str, way: str = "ctrl_c", once: str = BEGUN) -> Finished:
        """Run until ``at`` is to be read; see `mark`."""
        marker = self.mark(at, way, once)
        more = ("--on_error=stop",) if way == "stop" else ()
        ended = self.run(*flags, *more)
        marker.unlink()
        assert ended.status == (1 if way == "stop" else 130), ended
        return ended

    def mark(self, at: str, way: str, once: str = BEGUN) -> Path:
        """Have the reading of a file end the run (ctrl_c, kill, stop), or wait for the mark's end.

        Only ``once`` there is a file of such an ending: before, it is read for an estimate.
        Return the mark.
        """
        marker = self.tmp_path / "break_off"
        marker.write_text(f"{way} {at} {once}")
        return marker

    def has_read(self, name: str) -> bool:
        return self.log.exists() and name in self.log.read_text().split()

    def reads(self) -> list[str]:
        """Return the names read since this was last asked, in the order they were read."""
        if not self.log.exists():
            return []
        names = self.log.read_text().split()
        self.log.unlink()
        return names

    def assert_as_uninterrupted(self, *flags: str, ended: Finished | None = None) -> None:
        """Compare with the file an uninterrupted run makes; nothing else may be left."""
        noted = self.log.read_text() if self.log.exists() else ""
        whole = self.tmp_path / "whole" / "OUT.h5"
        whole.parent.mkdir(exist_ok=True)
        again = self.run("--overwrite", *flags, output=whole)
        self.log.write_text(noted)
        assert files_in(self.output.parent) == files_in(whole.parent)
        if ended is not None:
            assert ended.status == again.status
            assert counts(ended) == counts(again)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def counts(ended: Finished) -> str:
    """Return what a run says of the number of files."""
    found = re.search(r"\d+ stored, \d+ failed", ended.out)
    assert found, ended
    return found[0]


def kept(ended: Finished) -> int:
    """Return how many files a run that is broken off says it keeps; 0 where it does not."""
    found = re.search(r"converter: (\d+) of \d+ files are kept in ", ended.err)
    return int(found[1]) if found else 0


def taken_over(ended: Finished) -> int:
    """Return how many files a run says it need not read."""
    found = re.findall(
        r"converter: (\d+) of \d+ files are kept from the interrupted run", ended.err
    )
    return sum(map(int, found))
