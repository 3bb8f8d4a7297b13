"""Look at what a run made and said, and compare."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from helpers.run import Finished


def stored(output: Path) -> dict[str, Any]:
    """Return every dataset of a file under its whole name."""
    found: dict[str, Any] = {}
    with h5py.File(output) as file:

        def take(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        file.visititems(take)
    return found


def failures(output: Path) -> dict[str, str]:
    """Return the reasons in the list of failures, under their paths; empty without a list."""
    path = output.with_name(output.name + ".failures.csv")
    if not path.exists():
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert len({path for path, _ in rows[1:]}) == len(rows) - 1
    return dict(rows[1:])


def names_kept(ended: Finished, output: Path) -> set[str]:
    """Return the names a run that was broken off leaves beside its output; none if it kept none."""
    partial = output.with_name(output.name + ".partial")
    if f" files are kept in {partial} (" not in ended.err:
        return set()
    return {partial.name, partial.name + ".journal"}


def everything_below(folder: Path) -> dict[str, Any]:
    """Return each path below a folder, with the contents of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder under their keys."""
    return {key: data for key, data in everything_below(folder).items() if data is not None}


def filters_of(dataset: h5py.Dataset) -> list[tuple[int, tuple[int, ...]]]:
    """Return the filters of a dataset, each with its values."""
    pipeline = dataset.id.get_create_plist()
    found = [pipeline.get_filter(n) for n in range(pipeline.get_nfilters())]
    return [(number, tuple(values)) for number, _, values, _ in found]


def assert_same(array: Any, expected: Any) -> None:
    """Compare dtype, shape, and every bit that holds a value: of a bool its truth."""
    array, expected = np.asarray(array), np.asarray(expected)
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    if array.dtype.names or array.dtype.char in "?gG":  # these have bits that hold none
        np.testing.assert_array_equal(array, expected)
    else:
        assert array.tobytes() == expected.tobytes()


def assert_refused(ended: Finished, *words: str, status: int = 2) -> None:
    """Check for one sentence with these words, behind at most the name of the functions."""
    assert ended.status == status, ended.err
    assert ended.out == ""
    lines = [line for line in ended.err.strip().splitlines() if not is_note(line)]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("converter: ")
    for word in words:
        assert word in lines[0]


@contextmanager
def case(*what: Any) -> Iterator[None]:
    """Name the case that a loop is at when it fails."""
    try:
        yield
    except BaseException:
        print("failed for", *map(repr, what))  # pytest shows what is printed
        raise


def is_note(line: str) -> bool:
    """Say whether a line only names the functions a run takes."""
    return line.startswith(("converter: my_read from ", "converter: my_prune from "))
