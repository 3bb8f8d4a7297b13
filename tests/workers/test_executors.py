"""Files read and encoded by an executor, and written by the caller's process alone."""

from __future__ import annotations

import dataclasses
import filecmp
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from converter import __version__
from converter import convert as convert_folder
from converter.codecs.compression import NONE
from converter.errors import ConverterError, StoppedError
from converter.samples import Encoded
from converter.sources.readers import Settings
from converter.workers import dask
from converter.workers.executor import ATTEMPTS_ALONE, MOST_TASKS_AHEAD, ExecutorRun
from helpers.check import failures, stored
from helpers.dask_cluster import Cluster
from helpers.images import save_jpegs
from helpers.run import FUNCTIONS, ROOT, Finished, run, write_functions

BACKENDS = [
    "threads",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("processes", "dask", "dask threads")),
]
NAMES = ["b.jpg", "z.jpg", *(f"a/{n:03}.jpg" for n in range(40)), "c/d/e.jpg"]


def left(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


def convert_both(folder: Path, output: Path, executor: Any, **options: Any) -> Any:
    """Convert with the executor, and assert that a local run makes the same bytes."""
    report = convert_folder(folder, output, executor=executor, **options)
    local = output.with_name("local.h5")
    convert_folder(folder, local, workers=1, **options)
    assert filecmp.cmp(output, local, shallow=False)
    assert failures(output) == failures(local)
    return report


def write_numbers(folder: Path, count: int, *, numbers: int = 1) -> None:
    for n in range(count):
        (folder / f"{n:03}.num").write_text(f"{n} {numbers}")


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    return write_functions(
        tmp_path / "functions.py",
        """
        import numpy

        def my_read(path_sample):
            number, count = map(int, open(path_sample).read().split())
            return numpy.full(count, number, "<i4")
        """,
    )


def read_numbers(functions: Path) -> dict[str, Any]:
    return {"ext": "num", "custom_read_func": True, "path_functions": functions,
            "compression": "none"}  # fmt: skip


# --- of any executor


@pytest.fixture(scope="module")
def threaded_cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """One worker of four threads."""
    cluster = make_cluster()
    cluster.work("--no-nanny", count=1, threads=4)
    return cluster


@pytest.fixture(params=BACKENDS)
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    if request.param == "threads":
        with ThreadPoolExecutor(4) as executor:
            yield executor
    elif request.param == "processes":
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as executor:
            yield executor
    else:
        name = "cluster" if request.param == "dask" else "threaded_cluster"
        cluster = request.getfixturevalue(name)
        from distributed import Client

        with Client(cluster.address, set_as_default=False) as client:
            yield client.get_executor()


@pytest.mark.parametrize(
    "options",
    [{}, {"store": "encoded"}, {"compression": "gzip"}, {"shard": "2/3"}],
    ids=str,
)
def test_it_makes_the_same_bytes(
    options: dict[str, Any], executor: Executor, folder: Path, output: Path
) -> None:
    names = [*NAMES, *(f"many/{n:03}.jpg" for n in range(161))]
    save_jpegs(folder, names)
    (folder / "a/005.jpg").write_bytes(b"no image")
    report = convert_both(folder, output, executor, **options)
    assert report.stored + report.failed == len(names) // (3 if "shard" in options else 1)


def test_functions_make_the_same_bytes_and_a_later_edit_reaches_workers(
    executor: Executor, folder: Path, output: Path, tmp_path: Path
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        """
        def my_read(path_sample):
            number = int(open(path_sample).read().split()[0])
            if number == 13:
                raise ValueError("thirteen")
            return [number + 0.5] * number
        """,
    )
    write_numbers(folder, 60)
    report = convert_both(folder, output, executor, **read_numbers(functions))
    assert (report.stored, report.failed) == (59, 1)
    assert "thirteen" in failures(output)["013.num"]
    write_functions(functions, "def my_read(path_sample): return 2.5")
    convert_both(folder, output, executor, overwrite=True, **read_numbers(functions))
    assert {float(value) for value in stored(output).values()} == {2.5}


def test_files_that_changed_are_read_anew(
    executor: Executor, folder: Path, output: Path, functions: Path
) -> None:
    """Dask takes equal calls of pure functions for one."""
    for numbers in (1, 2):
        write_numbers(folder, 20, numbers=numbers)
        options = {"overwrite": True, **read_numbers(functions)}
        convert_folder(folder, output, executor=executor, **options)
        assert {len(value) for value in stored(output).values()} == {numbers}


def test_functions_import_what_lies_beside_them(
    executor: Executor, folder: Path, output: Path, tmp_path: Path
) -> None:
    write_numbers(folder, 20)
    (tmp_path / "benchmark.py").write_text("number = 4")
    functions = write_functions(
        tmp_path / "functions.py",
        """
        import benchmark

        def my_read(path_sample):
            return benchmark.number
        """,
    )
    finders = len(sys.meta_path)
    convert_folder(folder, output, executor=executor, **read_numbers(functions))
    assert {int(value) for value in stored(output).values()} == {4}
    assert len(sys.meta_path) <= finders + 1


def test_threads_of_a_worker_each_have_a_reader_of_their_own(
    executor: Executor, folder: Path, output: Path, tmp_path: Path
) -> None:
    """State that my_read keeps at the top of its module is of one thread."""
    functions = write_functions(
        tmp_path / "functions.py",
        """
        state = []

        def my_read(path_sample):
            state.append(path_sample)
            number = int(open(path_sample).read().split()[0])
            assert state.pop() == path_sample
            return number
        """,
    )
    write_numbers(folder, 300)
    report = convert_both(folder, output, executor, **read_numbers(functions))
    assert report.failed == 0


def test_a_failure_stops_what_is_on_its_way(executor: Executor, folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES)
    (folder / "a/002.jpg").write_bytes(b"no image")
    with pytest.raises(StoppedError, match=r"a/002\.jpg"):
        convert_folder(folder, output, executor=executor, on_error="stop")
    assert "OUT.h5" not in left(output)


# --- how work is given out


class Here(Executor):
    """Runs each task as it is given out, and counts what was not yet fetched."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.waiting = self.most_waiting = self.nbytes = self.most_nbytes = 0

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        self.calls.append(args[-1])
        future: Future = Future()
        try:
            answer = self.answer(function, *args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
            return future
        future.set_result(answer)
        self._count(1, answer.payload.nbytes)
        get, fetched = future.result, []

        def result(timeout: float | None = None) -> Any:
            if not fetched:
                fetched.append(True)
                self._count(-1, -answer.payload.nbytes)
            return get(timeout)

        future.result = result  # type: ignore[method-assign]
        return future

    def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    def _count(self, tasks: int, nbytes: int) -> None:
        self.waiting += tasks
        self.nbytes += nbytes
        self.most_waiting = max(self.most_waiting, self.waiting)
        self.most_nbytes = max(self.most_nbytes, self.nbytes)


def test_progress_and_notices_come_as_of_a_local_run(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES)
    seen: list[Any] = []
    convert_folder(folder, output, executor=Here(), progress=seen.append)
    assert seen


def test_the_caller_alone_writes(folder: Path, output: Path) -> None:
    """Workers that see the folder read-only, and nothing of the output, are enough."""
    save_jpegs(folder, NAMES)
    threads = set()

    class Noting(Here):
        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            before = left(output), output.with_name("OUT.h5.partial").stat().st_size
            found = super().answer(function, *args, **kwargs)
            assert (left(output), output.with_name("OUT.h5.partial").stat().st_size) == before
            threads.add(threading.get_ident())
            return found

    convert_folder(folder, output, executor=Noting())
    assert sorted(stored(output)) == sorted(NAMES)


# --- what is on its way


def test_tasks_on_their_way_are_bounded_in_number(
    folder: Path, output: Path, functions: Path
) -> None:
    write_numbers(folder, 400)
    executor = Here()
    convert_both(folder, output, executor, **read_numbers(functions))
    assert executor.most_waiting <= MOST_TASKS_AHEAD
    assert sum(map(len, executor.calls)) >= 400
    assert executor.waiting == 0


@pytest.mark.slow
@pytest.mark.parametrize("small", [0, 100])
def test_bytes_on_their_way_are_bounded(small: int, folder: Path, functions: Path) -> None:
    """Of large files too, also behind many small ones."""
    write_numbers(folder, small)
    (folder / "x").mkdir()
    write_numbers(folder / "x", 40, numbers=1_500_000)  # of 6 MB
    keys = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.num"))]
    executor = Here()
    job = Settings(str(folder), compression=NONE, path_functions=functions)
    batches = ExecutorRun(executor, job, most_nbytes=24 << 20).run(keys)
    results = [result for batch in batches for result in batch.results]
    assert executor.most_nbytes <= 2 * (24 << 20)
    assert [result.key for result in results] == keys
    assert all(isinstance(result, Encoded) for result in results)


def test_an_answer_of_a_part_of_its_task_is_gone_on_with(
    folder: Path, output: Path, functions: Path
) -> None:
    write_numbers(folder, 30, numbers=400_000)  # of 1.6 MB, three to an answer
    convert_both(folder, output, Here(), **read_numbers(functions))


# --- what goes wrong


class Failing(Here):
    """Tasks with one of these files fail as a whole."""

    def __init__(self, error: Callable[[], BaseException], *keys: str) -> None:
        super().__init__()
        self.error, self.keys = error, keys

    def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.keys or set(args[-1]) & set(self.keys):
            raise self.error()
        return super().answer(function, *args, **kwargs)


class KilledWorkerError(Exception):
    """As Dask has one."""


@pytest.mark.parametrize("error", [KilledWorkerError, OSError, MemoryError, EOFError, ValueError])
def test_a_file_that_kills_workers_is_a_failure_and_no_other(
    error: type[Exception], folder: Path, output: Path
) -> None:
    save_jpegs(folder, NAMES)
    executor = Failing(lambda: error("lost"), "a/007.jpg", "a/030.jpg")
    report = convert_folder(folder, output, executor=executor)
    assert report.failed == 2
    found = failures(output)
    assert sorted(found) == ["a/007.jpg", "a/030.jpg"]
    assert all("worker" in reason and "lost" in reason for reason in found.values())
    assert sorted(stored(output)) == sorted({*NAMES} - {*found})


@pytest.mark.slow
def test_nothing_is_written_any_more_when_a_run_has_ended(
    folder: Path, output: Path, functions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one may be writing to the same place by then."""
    begun, ended, write = [], [], os.pwrite

    def slowly(descriptor: int, data: memoryview, offset: int) -> int:
        begun.append(offset)
        time.sleep(0.1)
        count = write(descriptor, data, offset)
        ended.append(offset)
        return count

    monkeypatch.setattr(os, "pwrite", slowly)
    write_numbers(folder, 6, numbers=400_000)
    (folder / "z.num").write_text("no number")
    options = {"executor": Here(), "on_error": "stop", **read_numbers(functions)}
    with pytest.raises(StoppedError, match=r"z\.num"):
        convert_folder(folder, output, **options)
    assert begun
    assert sorted(ended) == sorted(begun)


def test_workers_are_missed_from_when_they_are_first_not_seen() -> None:
    """A look may come long after the one before, while this process was writing."""
    workers = {"tcp://one:1": {"nthreads": 1}}
    client = SimpleNamespace(
        scheduler=SimpleNamespace(address="tcp://host:8786"),
        scheduler_info=lambda n_workers: {"workers": workers},
    )
    known = dask.Cluster(client)
    known.check_workers(0.2)
    time.sleep(0.3)
    workers.clear()
    known.check_workers(0.2)
    time.sleep(0.3)
    with pytest.raises(StoppedError, match="has had no workers"):
        known.check_workers(0.2)


def test_a_file_that_is_blamed_for_another_is_read_after_all(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES)

    class Blaming(Here):
        blamed = 0

        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if "a/003.jpg" in args[-1] and self.blamed < ATTEMPTS_ALONE:
                self.blamed += 1  # among others first, then alone
                raise OSError("the worker died")
            return super().answer(function, *args, **kwargs)

    convert_both(folder, output, Blaming())


def test_the_order_is_kept_when_a_task_is_given_out_file_by_file(
    folder: Path, output: Path
) -> None:
    save_jpegs(folder, NAMES)
    lost: list[int] = []

    class Once(Here):
        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args[-1]) > 1 and not lost:
                lost.append(len(args[-1]))
                raise KilledWorkerError
            return super().answer(function, *args, **kwargs)

    convert_both(folder, output, Once())
    assert lost


def test_when_every_task_fails_there_is_no_file(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES)
    with pytest.raises(StoppedError, match="none of the 43 files"):
        convert_folder(folder, output, executor=Failing(lambda: OSError("lost")))
    assert "OUT.h5" not in left(output)


@pytest.mark.parametrize("error", [BrokenExecutor, RuntimeError])
def test_an_executor_that_takes_no_more_work_ends_the_run(
    error: type[Exception], folder: Path, output: Path
) -> None:
    save_jpegs(folder, NAMES)

    class Refusing(Here):
        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
            if len(self.calls) == 2:
                raise error("cannot schedule")
            return super().submit(function, *args, **kwargs)

    with pytest.raises(StoppedError, match="cannot schedule"):
        convert_folder(folder, output, executor=Refusing())
    assert "OUT.h5" not in left(output)


def test_an_executor_that_was_shut_down_ends_the_run(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES)
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(StoppedError, match="start it anew"):
        convert_folder(folder, output, executor=executor)


def test_a_run_that_was_broken_off_is_gone_on_with(
    folder: Path, output: Path, functions: Path
) -> None:
    write_numbers(folder, 40, numbers=400_000)

    class Breaking(Here):
        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if "030.num" in args[-1]:
                raise BrokenExecutor("broken")
            return super().answer(function, *args, **kwargs)

    notices: list[str] = []
    with pytest.raises(StoppedError, match="broken"):
        convert_folder(folder, output, executor=Breaking(), notice=notices.append,
                       **read_numbers(functions))  # fmt: skip
    executor = Here()
    convert_both(folder, output, executor, **read_numbers(functions))
    if any("are kept" in text for text in notices):
        assert "000.num" not in {key for call in executor.calls for key in call}


def test_a_broken_pool_of_processes_ends_the_run(
    folder: Path, output: Path, tmp_path: Path
) -> None:
    deadly = write_functions(
        tmp_path / "functions.py",
        """
        import os

        def my_read(path_sample):
            if path_sample.endswith("031.num"):
                os._exit(3)
            return 1
        """,
    )
    write_numbers(folder, 40)
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as executor,
        pytest.raises(StoppedError, match="start it anew"),
    ):
        convert_folder(folder, output, executor=executor, **read_numbers(deadly))
    assert "OUT.h5" not in left(output)


@pytest.mark.parametrize("error", [ImportError, ModuleNotFoundError])
def test_a_worker_without_the_package_is_said(
    error: type[Exception], folder: Path, output: Path
) -> None:
    save_jpegs(folder, NAMES)
    executor = Failing(lambda: error("No module named 'converter'"))
    with pytest.raises(StoppedError, match="install the converter"):
        convert_folder(folder, output, executor=executor)
    assert len(executor.calls) <= MOST_TASKS_AHEAD


def test_a_worker_with_another_version_is_said(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES)

    class Newer(Here):
        """As seen by version 0.0.1."""

        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            _, *rest = args
            return function("0.0.1", *rest)

    with pytest.raises(StoppedError, match=rf"has version {__version__} .* and this is 0\.0\.1"):
        convert_folder(folder, output, executor=Newer())
    assert "OUT.h5" not in left(output)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_ends_the_run_and_what_is_written_is_kept(folder: Path, output: Path) -> None:
    random = np.random.default_rng(0)
    for n in range(300):
        np.save(folder / f"{n:03}.npy", random.integers(0, 256, 50_000, np.uint8))
    functions = str(FUNCTIONS / "load_npy.py")
    options = {"ext": "npy", "custom_read_func": True, "path_functions": functions}
    code = f"""
import resource, sys
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, {str(ROOT)!r})
import converter
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, resource.RLIM_INFINITY))
try:
    with ThreadPoolExecutor(2) as executor:
        converter.convert({str(folder)!r}, {str(output)!r}, executor=executor, **{options!r})
except converter.StoppedError as error:
    print(error)
"""
    ended = run([sys.executable, "-c", code])
    assert ended.status == 0, ended.err
    assert "could not be written" in ended.out
    assert not output.exists()
    notices: list[str] = []
    options["path_functions"] = functions
    convert_folder(folder, output, workers=1, notice=notices.append, **options)
    (kept,) = [notice for notice in notices if "are kept" in notice]
    assert int(kept.split()[0]) > 50
    local = output.with_name("local.h5")
    convert_folder(folder, local, workers=1, **options)
    assert filecmp.cmp(output, local, shallow=False)


def test_a_worker_without_the_folder_is_said(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES)

    class Elsewhere(Here):
        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            version, settings, *rest = args
            moved = dataclasses.replace(settings, root=f"{settings.root} of another machine")
            return function(version, moved, *rest)

    with pytest.raises(StoppedError, match="under that path"):
        convert_folder(folder, output, executor=Elsewhere())
    assert "OUT.h5" not in left(output)


@pytest.mark.parametrize("what", ["tcp://here:1", 3, object()], ids=["text", "number", "object"])
def test_what_is_no_executor_is_refused(what: Any, folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES[:1])
    with pytest.raises(ConverterError, match="executor"):
        convert_folder(folder, output, executor=what)
    assert left(output) == []


def test_dask_without_the_package_says_what_to_install(
    folder: Path,
    output: Path,
    convert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_jpegs(folder, NAMES[:1])
    monkeypatch.setitem(sys.modules, "distributed", None)
    ended = convert(folder, output, "--dask=tcp://127.0.0.1:8786")
    assert ended.status == 2
    assert "pip install distributed" in ended.err
    assert left(output) == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--workers=2", "--workers does not go with --dask"),
        ("--dry_run", "--dask does not go with --dry_run"),
    ],
)
def test_a_flag_that_dask_leaves_without_effect_is_refused(
    flag: str, said: str, folder: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    save_jpegs(folder, NAMES[:1])
    ended = convert(folder, output, "--dask=tcp://127.0.0.1:8786", flag)
    assert ended.status == 2
    assert said in ended.err
    assert left(output) == []


def test_workers_beside_an_executor_are_refused(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES[:1])
    with pytest.raises(ConverterError, match="an executor has its own workers"):
        convert_folder(folder, output, executor=Here(), workers=2)


def test_the_package_is_imported_without_dask() -> None:
    script = "import sys, converter; converter.convert; print('distributed' in sys.modules)"
    ended = run([sys.executable, "-c", script], cwd=ROOT)
    assert ended.out.strip() == "False", ended


def test_a_time_limit_is_refused(folder: Path, output: Path) -> None:
    save_jpegs(folder, NAMES[:1])
    with pytest.raises(ConverterError, match="file_timeout"):
        convert_folder(folder, output, executor=Here(), file_timeout=1.0)
    assert left(output) == []


# --- my_functions.py


class Elsewhere(Here):
    """A worker that does not see the caller's functions."""

    def __init__(self, functions: Path) -> None:
        super().__init__()
        self.functions = functions

    def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        hidden = self.functions.with_name("hidden")
        self.functions.rename(hidden)
        try:
            return super().answer(function, *args, **kwargs)
        finally:
            hidden.rename(self.functions)


def test_the_functions_are_sent_along(folder: Path, output: Path, functions: Path) -> None:
    write_numbers(folder, 20)
    convert_both(folder, output, Elsewhere(functions), **read_numbers(functions))
    assert stored(output)["011.num"].tolist() == [11]


def test_functions_that_a_worker_cannot_import_end_the_run(
    folder: Path, output: Path, tmp_path: Path
) -> None:
    write_numbers(folder, 20)
    (tmp_path / "helper_of_functions.py").write_text("number = 4")
    functions = write_functions(
        tmp_path / "functions.py",
        """
        import helper_of_functions

        def my_read(path_sample):
            return helper_of_functions.number
        """,
    )

    class Bare(Here):
        """A worker on another machine, which has not the file beside the functions."""

        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            for name in [name for name in sys.modules if name.endswith("_functions")]:
                del sys.modules[name]  # my_functions too
            os.rename(tmp_path / "helper_of_functions.py", tmp_path / "elsewhere")
            try:
                return super().answer(function, *args, **kwargs)
            finally:
                os.rename(tmp_path / "elsewhere", tmp_path / "helper_of_functions.py")

    with pytest.raises(StoppedError, match="helper_of_functions"):
        convert_folder(folder, output, executor=Bare(), **read_numbers(functions))


def test_sys_path_of_a_worker_stays_as_it_was(folder: Path, output: Path, functions: Path) -> None:
    write_numbers(folder, 5)
    found = []

    class Looking(Here):
        def answer(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            before = list(sys.path)
            answer = super().answer(function, *args, **kwargs)
            found.append(before == sys.path)
            return answer

    convert_folder(folder, output, executor=Looking(), **read_numbers(functions))
    assert all(found)
