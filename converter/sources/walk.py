"""Decide which files go in, and under which name. Reads no file contents."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, overload

DEEPEST_FOLDER = 10_000  # a path has 4096 bytes on Linux
MOST_EXTENSIONS_COUNTED = 1000  # a folder may hold a million different ones


class Failure(NamedTuple):
    """A sample that was not stored, and why."""

    key: str
    reason: str


class KeyList(Sequence[str]):
    """Keys in plan order, as one block of UTF-8: 8 bytes a key beside its name."""

    def __init__(self) -> None:
        self._names = bytearray()
        self._ends = array("Q", [0])

    def append(self, key: bytes) -> None:
        self._names += key
        self._ends.append(len(self._names))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def digest(self) -> str:
        """Return what tells these keys from any others: a SHA-256."""
        found = hashlib.sha256(self._names)
        found.update(self._ends.tobytes())
        return found.hexdigest()

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> list[str]: ...
    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        if not 0 <= item < len(self):
            raise IndexError(item)
        return self._names[self._ends[item] : self._ends[item + 1]].decode()


@dataclass
class Plan:
    """What a walk found: the keys to read, and everything that was left out."""

    root: Path
    keys: KeyList = field(default_factory=KeyList)
    left_out: Counter[str] = field(default_factory=Counter)
    linked_folders: int = 0
    failures: list[Failure] = field(default_factory=list)
    folders: int = 0  # those that hold keys
    shard: dict[str, int | str] | None = None  # which part of a whole it is

    def part(self, number: int, count: int) -> Plan:
        """Return the ``number``-th of ``count`` equal parts; the first has all failures."""
        total = len(self.keys)
        begin, end = (number - 1) * total // count, number * total // count
        keys = KeyList()
        for key in self.keys[begin:end]:
            keys.append(key.encode())
        shard: dict[str, int | str] = {
            "number": number,
            "of": count,
            "files": total,
            "keys": self.keys.digest(),
        }
        failures = self.failures if number == 1 else []
        return replace(self, keys=keys, failures=failures, shard=shard)

    def shard_attribute(self) -> dict[str, str]:
        """Return the root attribute that tells which part it is; none of a whole."""
        return {} if self.shard is None else {"shard": json.dumps(self.shard, sort_keys=True)}

    def path(self, key: str) -> str:
        """Return where a sample's file is."""
        return os.path.join(self.root, *key.split("/")) if os.sep != "/" else f"{self.root}/{key}"


def make_plan(
    root: Path,
    *,
    keep: Callable[[str], bool],
    follow_links: bool = False,
    ignore: Collection[Path] = (),
) -> Plan:
    """List the files below ``root`` that ``keep(file_name)`` wants, in a fixed order.

    A folder's own files come first, by name, then its folders, by name: the same order on
    every machine. Files in ``ignore`` (the output and what belongs to it) are passed over.
    Folders that cannot be listed and names that are not UTF-8 become failures.
    """
    plan = Plan(root)
    # os.walk calls itself for each level before Python 3.12
    sys.setrecursionlimit(max(sys.getrecursionlimit(), DEEPEST_FOLDER))
    ignored_names = {path.name for path in ignore}
    ignored = {os.path.realpath(path) for path in ignore}
    for folder, prefix, names in _walk(plan, follow_links):
        before = len(plan.keys)
        for name in names:
            if name in ignored_names and os.path.realpath(os.path.join(folder, name)) in ignored:
                continue
            if not keep(name):
                _count_extension(plan.left_out, name)
                continue
            key = prefix + name
            try:
                plan.keys.append(key.encode())
            except UnicodeEncodeError:
                plan.failures.append(
                    Failure(key, "the name is not valid UTF-8, which HDF5 needs: rename it")
                )
        plan.folders += len(plan.keys) > before
    return plan


def _walk(plan: Plan, follow_links: bool) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (folder, key prefix, sorted file names), each real folder once."""
    root = str(plan.root)
    seen: set[tuple[int, int]] = set()

    def on_error(error: OSError) -> None:
        key = _key(str(error.filename), root)
        plan.failures.append(Failure(key + "/", f"the folder cannot be listed: {error.strerror}"))

    for folder, folders, names in os.walk(root, onerror=on_error, followlinks=follow_links):
        if follow_links:
            identity = _identity(folder)
            if identity in seen:
                folders.clear()
                continue
            seen.add(identity)
        else:
            plan.linked_folders += sum(os.path.islink(os.path.join(folder, f)) for f in folders)
        folders.sort()  # in place: os.walk then descends in this order
        names.sort()
        yield folder, "" if folder == root else _key(folder, root) + "/", names


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _key(path: str, root: str) -> str:
    return "." if path == root else os.path.relpath(path, root).replace(os.sep, "/")


def _count_extension(left_out: Counter[str], name: str) -> None:
    stem, dot, extension = name.rpartition(".")
    label = "." + extension if dot and stem else "without extension"
    label = label.encode(errors="backslashreplace").decode()
    if label not in left_out and len(left_out) >= MOST_EXTENSIONS_COUNTED:
        label = "other extensions"
    left_out[label] += 1
