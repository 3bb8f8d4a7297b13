"""Name all files beside the output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MARK_NBYTES = 16


@dataclass(frozen=True)
class Paths:
    """The names of an output and of the files of a run beside it."""

    output: Path

    @property
    def partial(self) -> Path:
        """Return the name the file has while it is being written."""
        return _with(self.output, ".partial")

    @property
    def journal(self) -> Path:
        """Return the name of the journal of that file."""
        return _with(self.output, ".partial.journal")

    def all(self) -> tuple[Path, Path]:
        """Return all but the output."""
        return self.partial, self.journal


def read_mark(path: Path) -> str:
    """Return the mark at the beginning of an unfinished file; empty where there is no file."""
    try:
        with open(path, "rb") as file:
            return file.read(MARK_NBYTES).hex()
    except FileNotFoundError:
        return ""


def _with(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def path_of_failures(path_output: Path) -> Path:
    return path_output.with_name(path_output.name + ".failures.csv")


def paths_of_failures(path_output: Path) -> tuple[Path, Path]:
    """Return the name of the list of failures, and the one it has while it is being written."""
    path = path_of_failures(path_output)
    return path, path.with_name(path.name + ".partial")
