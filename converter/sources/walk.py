"""Decide which files go in, and under which keys. Reads no file contents."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from converter.samples import Failure, Plan

DEEPEST_FOLDER = 10_000  # a path has 4096 bytes on Linux
MOST_EXTENSIONS_COUNTED = 1000  # a folder may hold a million different ones
#: Folders that systems and file servers make themselves, in lower case: thumbnails, bins,
#: snapshots, repairs.
SYSTEM_FOLDERS = frozenset(
    (
        "$recycle.bin", "recycler", "system volume information",  # Windows
        "__macosx", "network trash folder", "temporary items",  # macOS
        "lost+found",  # Linux
        "@eadir", "#recycle", "#snapshot", "@tmp",  # Synology
        "@recycle", "@recently-snapshot", ".@__thumb",  # QNAP
    )
)  # fmt: skip
APPLE_DOUBLE = "._"  # macOS writes such a file beside each one on a foreign disk


def make_plan(
    root: Path,
    *,
    keep: Callable[[str], bool],
    follow_links: bool = False,
    hidden_folders: bool = False,
    ignore: Collection[Path] = (),
) -> Plan:
    """List the files below ``root`` that ``keep(file_name)`` wants, in a fixed order.

    A folder's own files come first, by name, then its folders, by name: the same order on
    every machine. Files in ``ignore`` (the output and what belongs to it) are left out.
    Folders that cannot be listed and names that are not UTF-8 become failures. Hidden folders
    are entered only with ``hidden_folders``; ``root`` may be one.
    """
    plan = Plan(root)
    # os.walk calls itself for each level before Python 3.12
    sys.setrecursionlimit(max(sys.getrecursionlimit(), DEEPEST_FOLDER))
    ignored_names = {path.name for path in ignore}
    ignored = {os.path.realpath(path) for path in ignore}
    for folder, prefix, names in _walk(plan, follow_links, hidden_folders):
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


def _walk(
    plan: Plan, follow_links: bool, hidden_folders: bool
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (folder, key prefix, sorted file names), each real folder once."""
    root = str(plan.root)
    seen: set[tuple[int, int]] = set()

    def on_error(error: OSError) -> None:
        key = _key(str(error.filename), root)
        plan.failures.append(Failure(key + "/", f"the folder cannot be listed: {error.strerror}"))

    for folder, folders, names in os.walk(root, onerror=on_error, followlinks=follow_links):
        if follow_links:
            status = os.stat(folder)
            identity = status.st_dev, status.st_ino
            if identity in seen:
                folders.clear()
                continue
            seen.add(identity)
        if not hidden_folders:
            for name in filter(is_hidden_folder, folders):
                _count(plan.hidden_folders, name, "other hidden folders")
            folders[:] = [name for name in folders if not is_hidden_folder(name)]
        if not follow_links:
            plan.linked_folders += sum(os.path.islink(os.path.join(folder, f)) for f in folders)
        folders.sort()  # in place: os.walk then descends in this order
        names.sort()
        yield folder, "" if folder == root else _key(folder, root) + "/", names


def is_hidden_folder(name: str) -> bool:
    """Tell whether a folder is hidden, or one that systems make: users do not expect its files."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _key(path: str, root: str) -> str:
    return "." if path == root else os.path.relpath(path, root).replace(os.sep, "/")


def _count_extension(left_out: Counter[str], name: str) -> None:
    stem, dot, extension = name.rpartition(".")
    label = "." + extension if dot and stem else "without extension"
    if name.startswith(APPLE_DOUBLE):
        label = "with names ._* (macOS)"
    _count(left_out, label, "other extensions")


def _count(counter: Counter[str], label: str, others: str) -> None:
    """Count under a label that can be printed, or under ``others`` where there are too many."""
    label = label.encode(errors="backslashreplace").decode()
    if label not in counter and len(counter) >= MOST_EXTENSIONS_COUNTED:
        label = others
    counter[label] += 1


def keep_extensions(extensions: tuple[str, ...]) -> Callable[[str], bool]:
    """Return the default prune: names ending in one of these, but not macOS's ``._`` files."""
    endings = tuple("." + extension for extension in extensions)

    def keep(name: str) -> bool:
        lowered = name.lower()
        if not lowered.endswith(endings) or name.startswith(APPLE_DOUBLE):
            return False
        # .gz has no extension, but .tar.gz has the extension gz
        return lowered not in endings or any(
            lowered.endswith(end) and len(lowered) > len(end) for end in endings
        )

    return keep
