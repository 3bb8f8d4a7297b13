"""Make small folders of files, run the converter on them, and read back what it made."""

from __future__ import annotations

import csv
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import imageio.v3 as iio
import numpy as np
import PIL.Image

ROOT = Path(__file__).resolve().parents[2]
SECONDS_BEFORE_HANG = 90
CAPABILITIES_OF_ROOT = (1, 2)  # DAC_OVERRIDE, DAC_READ_SEARCH: see capabilities(7)
PR_CAPBSET_DROP = 24


class Finished(NamedTuple):
    """How a run ended, and what it said."""

    status: int
    out: str
    err: str


def command(folder: Path, output: Path, *flags: str) -> list[str]:
    """Return the command line of a run in a process of its own."""
    program = [sys.executable, str(ROOT / "converter")]
    return [*program, f"--path_images={folder}", f"--path_output={output}", *flags]


def start(arguments: list[str], **options: Any) -> subprocess.Popen:
    """Start a process that leads a process group of its own."""
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen(
        arguments,
        encoding="utf-8",
        errors="surrogateescape",
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen, *, seconds: float = SECONDS_BEFORE_HANG) -> Finished:
    """Wait for the end of a run. One that hangs is killed, and raises TimeoutExpired."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return Finished(process.returncode, out or "", err or "")


def run(arguments: list[str], **options: Any) -> Finished:
    """Run to the end, in a process group of its own."""
    return finish(start(arguments, **options))


def processes_of(group: int) -> list[int]:
    """Return the live processes of a process group."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # gone meanwhile
                continue
            state, _, group_of_it = fields[:3]
            if int(group_of_it) == group and state not in "ZX":
                found.append(int(folder.name))
    return found


def processes_left(group: int, *, seconds: float = 15) -> list[int]:
    """Return the processes of a group that are still there after a while."""
    wait_until(lambda: not processes_of(group), seconds=seconds)
    return processes_of(group)


def children_of(parent: int) -> list[int]:
    """Return the live child processes of a process."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] not in "ZX":
                found.append(int(folder.name))
    return sorted(found)


def wait_until(condition: Callable[[], Any], *, seconds: float = 30) -> None:
    """Wait for a condition, at most this long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


def without_root_rights() -> None:
    """Hold this process to file permissions, also when root runs it; for ``preexec_fn``."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for number in CAPABILITIES_OF_ROOT:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)


def colours(seed: int = 0, shape: tuple[int, ...] = (20, 30, 3)) -> np.ndarray:
    """Return smooth random colours, such as a photo has."""
    noise = np.random.default_rng(seed).integers(0, 256, shape)
    return (np.cumsum(noise, axis=1) // 7 % 256).astype(np.uint8)


def save(path: Path, array: np.ndarray | None = None, **options: Any) -> Path:
    """Save an image with Pillow, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(colours() if array is None else array).save(path, **options)
    return path


def save_jpegs(folder: Path, names: list[str]) -> Path:
    """Save a small JPEG, each another one, under each name below a folder."""
    for number, name in enumerate(names):
        save(folder / name, colours(number), format="JPEG")
    return folder


def write_functions(path: Path, text: str) -> Path:
    """Write a file of functions such as my_functions.py."""
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def as_pillow_reads(path: Path) -> np.ndarray:
    return iio.imread(path, plugin="pillow")


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


def assert_same(array: Any, expected: Any) -> None:
    """Compare dtype, shape and every bit."""
    array, expected = np.asarray(array), np.asarray(expected)
    assert array.dtype == expected.dtype
    assert array.shape == expected.shape
    assert array.tobytes() == expected.tobytes()
