"""Reader processes give the batches of threads, and end with whoever started them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.cropping.crops import CenterCrop, RandomCrop
from converter.errors import LoadError
from converter.training.loader import H5Loader
from helpers.arrays import equal_samples, make_h5
from helpers.run import ROOT

COUNT = 20


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_h5(tmp_path_factory.mktemp("equal"), equal_samples(COUNT, (12, 14, 3)))


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random = np.random.default_rng(1)
    shapes = [(4 + n % 3, 5, *((3,) if n % 2 else ())) for n in range(COUNT)]
    samples = {f"{n:02}.npy": random.integers(0, 99, shape) for n, shape in enumerate(shapes)}
    return make_h5(tmp_path_factory.mktemp("unequal"), samples)


def halved(rng: np.random.Generator, image: np.ndarray, **masks: np.ndarray) -> dict[str, Any]:
    image = (image.astype("f4") + rng.random()) / 2
    return {"image": image, **masks}


def same_key(key: str) -> str:
    return key


def ends_process(rng: np.random.Generator, image: np.ndarray) -> dict[str, Any]:
    os._exit(3)


def fails(rng: np.random.Generator, image: np.ndarray) -> dict[str, Any]:
    raise FloatingPointError("it fails")


def as_bytes(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: as_bytes(part) for name, part in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [as_bytes(part) for part in batch]
    return batch.shape, batch.dtype, batch.tobytes()


def process_ids(loader: H5Loader) -> list[int]:
    assert loader._in_processes is not None
    return [process.pid for process in loader._in_processes._processes]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    of_other_tests = set(children())
    yield
    gc.collect()
    assert not [pid for pid in set(children()) - of_other_tests if is_alive(pid)]


def children() -> list[int]:
    """Return the child processes, but for that of multiprocessing which counts its resources."""
    ids = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [
        int(pid) for pid in ids
        if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]  # fmt: skip


CASES: dict[str, dict[str, Any]] = {
    "crop": {"crop": RandomCrop(6), "hflip": 0.5, "labels": "folder"},
    "plain": {"masks": {"mask": same_key}, "positions": True},
    "transform": {"transform": halved, "masks": {"mask": same_key}, "drop_last": False},
}


@pytest.mark.slow
@pytest.mark.everyday(1)
@pytest.mark.parametrize("processes", [2, 1, 3])
@pytest.mark.parametrize("case", CASES)
def test_processes_give_the_batches_of_threads(path: Path, case: str, processes: int) -> None:
    threads = H5Loader(path, batch_size=7, threads=1, **CASES[case])
    loader = H5Loader(path, batch_size=7, processes=processes, **CASES[case])
    for _ in range(3):
        for one, other in zip(threads, loader, strict=True):
            assert as_bytes(one) == as_bytes(other)
    assert loader.state_dict() == threads.state_dict()


@pytest.mark.slow
def test_unequal_arrays_come_as_a_list(unequal: Path) -> None:
    threads = H5Loader(unequal, batch_size=3, threads=1)
    loader = H5Loader(unequal, batch_size=3, processes=2)
    for _ in range(2):
        for one, other in zip(threads, loader, strict=True):
            assert as_bytes(one) == as_bytes(other)


@pytest.mark.slow
def test_rows_of_two_processes_that_differ_are_an_error(unequal: Path) -> None:
    loader = H5Loader(unequal, batch_size=2, processes=2, crop=CenterCrop(2), order="stored")
    with pytest.raises(LoadError, match=r"'01.npy' .* 3 channels.*'00.npy'.*channels=3"):
        list(loader)


@pytest.mark.slow
def test_memory_is_shared_and_grows_only_as_batches_are_kept(path: Path) -> None:
    loader = H5Loader(path, batch_size=4, processes=1, crop=RandomCrop(6))
    for _ in range(10):
        for _batch in loader:
            pass
    (buffers,) = loader._in_processes._buffers.values()
    flat = buffers.count
    assert flat <= 2 + 2
    kept = list(loader)
    copies = [batch.copy() for batch in kept]
    for _ in range(3):
        for _batch in loader:
            pass
    assert all(np.array_equal(*pair) for pair in zip(kept, copies, strict=True))
    assert buffers.count <= flat + len(kept)
    del _batch


@pytest.mark.slow
def test_batches_outlive_the_loader(path: Path) -> None:
    loader = H5Loader(path, batch_size=4, processes=2, crop=RandomCrop(6))
    kept = list(loader) + list(loader)
    copies = [batch.copy() for batch in kept]
    del loader
    gc.collect()
    assert all(np.array_equal(*pair) for pair in zip(kept, copies, strict=True))


@pytest.mark.slow
def test_processes_end_with_the_loader_and_serve_many_epochs(path: Path) -> None:
    loader = H5Loader(path, batch_size=4, processes=2, crop=RandomCrop(6))
    for _ in loader:
        break
    ids = process_ids(loader)
    assert len(list(loader)) == 5
    assert process_ids(loader) == ids
    descriptors = len(os.listdir("/proc/self/fd"))
    del loader
    assert not any(map(is_alive, ids))
    assert len(os.listdir("/proc/self/fd")) < descriptors


@pytest.mark.slow
def test_a_killed_process_is_an_error_and_the_next_epoch_starts_others(path: Path) -> None:
    loader = H5Loader(path, batch_size=2, processes=2, crop=RandomCrop(6))
    iterator = iter(loader)
    next(iterator)
    os.kill(process_ids(loader)[1], signal.SIGKILL)
    with pytest.raises(LoadError, match=r"ended by signal 9 .SIGKILL.: look whether memory"):
        list(iterator)
    assert len(list(loader)) == 10


@pytest.mark.slow
def test_a_process_that_ends_by_itself_is_an_error(path: Path) -> None:
    loader = H5Loader(path, batch_size=2, processes=1, transform=ends_process)
    with pytest.raises(LoadError, match="ended with status 3"):
        list(loader)


@pytest.mark.slow
def test_an_exception_in_a_transform_names_the_key(path: Path) -> None:
    loader = H5Loader(path, batch_size=2, processes=2, transform=fails, order="stored")
    iterator = iter(loader)
    for _ in range(2):
        with pytest.raises(LoadError, match=r"'a/00\d\d.npy' .*FloatingPointError: it fails"):
            next(iterator)


@pytest.mark.slow
def test_what_cannot_be_pickled_is_refused(path: Path) -> None:
    loader = H5Loader(
        path, batch_size=2, processes=1, transform=lambda rng, image: {"image": image}
    )
    with pytest.raises(ValueError, match="top of a module"):
        iter(loader).__next__()


SCRIPT = """
import os, signal, sys, time
from converter.training.loader import H5Loader
from converter.cropping.crops import RandomCrop
def work():
    loader = H5Loader(sys.argv[1], batch_size=2, crop=RandomCrop(6), processes=2)
    iterator = iter(loader)
    first = next(iterator)
    ids = [process.pid for process in loader._in_processes._processes]
    print(*ids, flush=True)
    return loader, iterator, ids, first
"""


def run_script(folder: Path, path: Path, more: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(SCRIPT + more)
    return subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("os.kill(os.getpid(), signal.SIGKILL)", -9), ("os._exit(4)", 4)],
)
def test_no_process_is_left_however_the_script_ends(
    path: Path, tmp_path: Path, end: str, status: int
) -> None:
    more = f"if __name__ == '__main__':\n    kept = work()\n    {end or 'pass'}\n"
    ended = run_script(tmp_path, path, more)
    assert ended.returncode == status, ended.stderr
    ids = list(map(int, ended.stdout.split()))
    for _ in range(300):
        if not any(Path(f"/proc/{pid}").exists() for pid in ids):
            break
        time.sleep(0.02)
    assert len(ids) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in ids)
    assert not ended.stderr


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_so(path: Path, tmp_path: Path) -> None:
    ended = run_script(tmp_path, path, "work()\n")
    assert ended.returncode == 1
    assert '__name__ == "__main__"' in ended.stderr.splitlines()[-1]


@pytest.mark.slow
def test_ctrl_c_ends_the_loop_and_the_processes_in_silence(path: Path, tmp_path: Path) -> None:
    more = (
        "if __name__ == '__main__':\n"
        "    kept = work()\n"
        "    try:\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "        time.sleep(5)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', len(list(kept[1])))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + more)
    ended = subprocess.run(
        [sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    assert ended.stdout.splitlines()[1:] == ["interrupted 9"], ended.stderr
    assert not ended.stderr


@pytest.mark.slow
def test_a_forked_child_keeps_its_batch_and_starts_processes_of_its_own(
    path: Path, tmp_path: Path
) -> None:
    more = (
        "if __name__ == '__main__':\n"
        "    import zlib\n"
        "    loader, iterator, ids, first = work()\n"
        "    list(loader)\n"
        "    held = next(it := iter(loader))\n"
        "    before = zlib.crc32(held)\n"
        "    ready, go = os.pipe()\n"
        "    if (child := os.fork()) == 0:\n"
        "        os.read(ready, 1)\n"
        "        assert zlib.crc32(held) == before\n"
        "        print('same', len(list(it)), flush=True)\n"
        "        sys.exit()\n"
        "    del held\n"
        "    for _ in range(3): list(loader)\n"
        "    os.write(go, b'x')\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    print('parent', len(list(loader)))\n"
    )
    ended = run_script(tmp_path, path, more)
    assert ended.stdout.splitlines()[1:] == ["same 9", "parent 10"], ended.stderr
