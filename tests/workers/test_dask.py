"""Files read and encoded by the workers of a real Dask scheduler, over TCP."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import converter.workers.dask
import converter.workers.executor
from converter import StoppedError, __version__
from converter import convert as convert_folder
from helpers.check import failures, stored
from helpers.images import save_jpegs
from helpers.run import (
    ROOT,
    Finished,
    command,
    finish,
    read_with,
    run,
    start,
    wait_until,
    write_functions,
)
from helpers.seams import make_tasks_small

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow
if sys.platform != "linux":
    pytest.skip("kills process groups", allow_module_level=True)
SECONDS_TO_START = 120


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Cluster:
    """`dask scheduler`, and workers started as `dask worker`."""

    def __init__(self, logs: Path, path: Path | None = ROOT) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self._logs = logs
        self.processes: list[subprocess.Popen] = []
        host, port = self.address.removeprefix("tcp://").split(":")
        flags = ["--no-dashboard", "--dashboard-address=:0"]
        listening = (f"--host={host}", f"--port={port}")
        self.scheduler = self._start("scheduler", *listening, *flags, path=path)
        wait_until(self._answers, seconds=SECONDS_TO_START)

    def work(
        self, *flags: str, count: int = 2, threads: int = 1, path: Path | None = ROOT
    ) -> list[subprocess.Popen]:
        """Start workers that import from ``path``; wait until the scheduler knows them."""
        flags = (*flags, f"--nthreads={threads}", "--no-dashboard", "--dashboard-address=:0")
        known = self.workers()
        started = [self._start("worker", self.address, *flags, path=path) for _ in range(count)]
        wait_until(lambda: self.workers() >= known + count, seconds=SECONDS_TO_START)
        assert self.workers() == known + count, self.log()
        return started

    def workers(self) -> int:
        with distributed.Client(self.address, set_as_default=False, timeout=30) as client:
            return len(client.scheduler_info(n_workers=-1)["workers"])

    def log(self) -> str:
        return "".join(path.read_text() for path in self._logs.glob("*.log"))

    def end(self) -> None:
        self.end_workers()
        self._end_last()

    def end_workers(self) -> None:
        """End all but the scheduler, and wait until it knows."""
        while len(self.processes) > 1:
            self._end_last()
        if self.scheduler.poll() is None:
            wait_until(lambda: not self.workers())
            assert not self.workers(), self.log()

    def _end_last(self) -> None:
        process = self.processes.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _answers(self) -> bool:
        host, port = self.address.removeprefix("tcp://").split(":")
        with socket.socket() as asking:
            return asking.connect_ex((host, int(port))) == 0

    def _start(self, what: str, *arguments: str, path: Path | None = None) -> subprocess.Popen:
        environment = {
            **os.environ,
            "PYTHONPATH": str(path or ""),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        }
        environment.pop("PYTEST_CURRENT_TEST", None)
        with open(self._logs / f"{what}{len(self.processes)}.log", "w") as log:
            process = start(
                [sys.executable, "-m", "dask", what, *arguments],
                outlives_test=True,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self._logs,
            )
        self.processes.append(process)
        return process


@pytest.fixture
def make_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Make clusters of one test: of a scheduler that is killed, or lacks the package."""
    made: list[Cluster] = []

    def make(path: Path | None = ROOT) -> Cluster:
        made.append(Cluster(tmp_path_factory.mktemp("dask"), path))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


@pytest.fixture(scope="module")
def lasting_scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    yield cluster
    cluster.end()


@pytest.fixture
def scheduler(lasting_scheduler: Cluster) -> Iterator[Cluster]:
    """A scheduler without workers; those of a test end with it."""
    yield lasting_scheduler
    lasting_scheduler.end_workers()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers, each restarted by its nanny when it dies."""
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        cluster.work("--nanny")
        yield cluster
    finally:
        cluster.end()


def assert_same_as_local(folder: Path, output: Path, **options: Any) -> None:
    local = output.with_name("local.h5")
    convert_folder(folder, local, workers=1, **options)
    assert filecmp.cmp(output, local, shallow=False)


def test_the_command_line_makes_the_same_bytes(
    cluster: Cluster, folder: Path, output: Path
) -> None:
    save_jpegs(folder, [f"{n % 3}/{n:03}.jpg" for n in range(60)])
    (folder / "0/000.jpg").write_bytes(b"no image")
    ended = run(command(folder, output, f"--dask={cluster.address}", "--quiet"))
    assert ended.status == 1, ended.err
    assert list(failures(output)) == ["0/000.jpg"]
    assert "Traceback" not in ended.err
    assert_same_as_local(folder, output)


def test_an_executor_of_a_client_makes_the_same_bytes(
    cluster: Cluster, folder: Path, output: Path, tmp_path: Path
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        "def my_read(path_sample): return [1.5] * len(open(path_sample).read())",
    )
    for n in range(50):
        (folder / f"{n:03}.num").write_text("x" * n)
    options = {"ext": "num", "custom_read_func": True, "path_functions": functions}
    with distributed.Client(cluster.address, set_as_default=False) as client:
        executor = client.get_executor()
        convert_folder(folder, output, executor=executor, **options)
        assert_same_as_local(folder, output, **options)
        functions.write_text("def my_read(path_sample): return 7")
        convert_folder(folder, output, executor=executor, overwrite=True, **options)
    assert {int(value) for value in stored(output).values()} == {7}


def test_files_that_changed_are_read_anew_by_the_same_executor(
    cluster: Cluster, folder: Path, output: Path
) -> None:
    """Dask takes equal calls of pure functions for one."""
    for n in range(20):
        (folder / f"{n:03}.json").write_text("[1]")
    options = {"ext": "json", "custom_read_func": True, "path_functions": ROOT / "my_functions.py"}
    with distributed.Client(cluster.address, set_as_default=False) as client:
        executor = client.get_executor()
        for number in (1, 2):
            for n in range(20):
                (folder / f"{n:03}.json").write_text(f"[{number}]")
            convert_folder(folder, output, executor=executor, overwrite=True, **options)
            assert {int(value[0]) for value in stored(output).values()} == {number}


def start_busy(
    cluster: Cluster, folder: Path, output: Path, tmp_path: Path, *, seconds: float
) -> subprocess.Popen[str]:
    """Start to convert 400 files that take so long each; return when workers are at them."""
    functions = write_functions(
        tmp_path / "functions.py",
        f"""
        import pathlib, time

        def my_read(path_sample):
            pathlib.Path({str(tmp_path / "busy")!r}).touch()
            time.sleep({seconds})
            return 1
        """,
    )
    for n in range(400):
        (folder / f"{n:03}.num").touch()
    flags = ["--ext=num", *read_with(functions), "--quiet"]
    process = start(command(folder, output, *flags, f"--dask={cluster.address}"))
    wait_until((tmp_path / "busy").exists, seconds=SECONDS_TO_START)
    return process


def test_ctrl_c_ends_the_run_and_not_the_workers(
    cluster: Cluster, folder: Path, output: Path, tmp_path: Path
) -> None:
    process = start_busy(cluster, folder, output, tmp_path, seconds=0.05)
    os.kill(process.pid, signal.SIGINT)
    ended = finish(process)
    assert ended.status == 128 + signal.SIGINT, ended
    assert "interrupted" in ended.err
    assert "Traceback" not in ended.err
    assert not output.exists()
    assert cluster.workers() == 2


def test_a_file_that_kills_workers_is_a_failure(
    cluster: Cluster, folder: Path, output: Path, tmp_path: Path
) -> None:
    functions = write_functions(
        tmp_path / "functions.py",
        """
        import faulthandler, os
        faulthandler.disable()

        def my_read(path_sample):
            if path_sample.endswith("007.num"):
                os.abort()
            return 1
        """,
    )
    for n in range(12):
        (folder / f"{n:03}.num").touch()
    flags = ["--ext=num", *read_with(functions), "--quiet"]
    process = start(command(folder, output, *flags, f"--dask={cluster.address}"))
    ended = finish(process, seconds=300)
    assert ended.status == 1, ended.err
    assert list(failures(output)) == ["007.num"], failures(output)
    assert "worker" in failures(output)["007.num"]
    assert len(stored(output)) == 11


def test_a_worker_without_the_folder_is_said(cluster: Cluster, folder: Path, output: Path) -> None:
    """The run has a mount of its own, which the workers do not see."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    unshare = ["unshare", "--mount"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    hidden = folder / "hidden"
    save_jpegs(folder / "real", [f"{n:03}.jpg" for n in range(10)])
    hidden.mkdir()
    (hidden / "empty").mkdir()
    script = f'mount --bind "{folder}/real" "{hidden}/empty" || exit 77; exec "$@"'
    (folder / "real/inner").mkdir()
    save_jpegs(folder / "real/inner", ["a.jpg"])
    arguments = command(hidden / "empty/inner", output, f"--dask={cluster.address}", "--quiet")
    ended = run([*unshare, "sh", "-c", script, "sh", *arguments])
    if ended.status == 77 or "unshare" in ended.err:
        pytest.skip("mounting is not permitted here")
    assert ended.status == 1, ended
    assert "sees no folder" in ended.err
    assert list(output.parent.iterdir()) == []


def test_files_of_a_worker_that_is_killed_are_read_elsewhere(
    scheduler: Cluster, folder: Path, output: Path, tmp_path: Path
) -> None:
    victim, _ = scheduler.work("--no-nanny")
    functions = write_functions(
        tmp_path / "functions.py",
        f"""
        import os, pathlib, time

        def my_read(path_sample):
            mark = pathlib.Path({str(tmp_path)!r}, f"pid{{os.getpid()}}")
            mark.touch()
            while not os.path.exists({str(tmp_path / "go")!r}):
                time.sleep(0.01)
            return int(os.path.basename(path_sample)[:3])
        """,
    )
    for n in range(100):
        (folder / f"{n:03}.num").touch()
    flags = ["--ext=num", *read_with(functions), "--quiet"]
    process = start(command(folder, output, *flags, f"--dask={scheduler.address}"))
    wait_until(lambda: len(list(tmp_path.glob("pid*"))) == 2, seconds=SECONDS_TO_START)
    os.kill(victim.pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    ended = finish(process, seconds=300)
    assert ended.status == 0, ended.err
    assert len(stored(output)) == 100
    options = {"ext": "num", "custom_read_func": True, "path_functions": functions}
    assert_same_as_local(folder, output, **options)


def test_without_workers_a_run_ends_after_a_while(
    scheduler: Cluster,
    folder: Path,
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(converter.workers.dask, "SECONDS_WITHOUT_WORKERS", 3)
    monkeypatch.setattr(converter.workers.executor, "SECONDS_BETWEEN_LOOKS", 0.1)
    make_tasks_small(monkeypatch, 1)
    scheduler.work("--no-nanny", count=1)
    functions = write_functions(
        tmp_path / "functions.py",
        f"""
        import os, signal
        from pathlib import Path

        def my_read(path_sample):
            if "040" in path_sample and not Path({str(tmp_path / "killed")!r}).exists():
                Path({str(tmp_path / "killed")!r}).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return int(os.path.basename(path_sample)[:3])
        """,
    )
    for n in range(100):
        (folder / f"{n:03}.num").touch()
    options = {"ext": "num", "custom_read_func": True, "path_functions": functions}
    with distributed.Client(scheduler.address, set_as_default=False) as client:
        executor = client.get_executor(pure=False)
        with pytest.raises(StoppedError, match="has had no workers for 3 s: start some"):
            convert_folder(folder, output, executor=executor, **options)
        assert not output.exists()
        scheduler.work("--no-nanny", count=1)
        convert_folder(folder, output, executor=executor, **options)
    assert_same_as_local(folder, output, **options)


def test_workers_of_several_threads_make_the_same_bytes(
    scheduler: Cluster, folder: Path, output: Path
) -> None:
    scheduler.work("--no-nanny", count=1, threads=4)
    save_jpegs(folder, [f"{n % 3}/{n:03}.jpg" for n in range(200)])
    ended = run(command(folder, output, f"--dask={scheduler.address}", "--quiet"))
    assert ended.status == 0, ended.err
    assert_same_as_local(folder, output)


def test_a_scheduler_that_is_killed_ends_the_run(
    make_cluster: Callable[..., Cluster], folder: Path, output: Path, tmp_path: Path
) -> None:
    cluster = make_cluster()
    cluster.work("--no-nanny", count=1)
    process = start_busy(cluster, folder, output, tmp_path, seconds=0.2)
    os.kill(cluster.scheduler.pid, signal.SIGKILL)
    ended = finish(process, seconds=200)
    assert ended.status == 1, ended
    assert any(line.startswith("converter: the executor") for line in ended.err.splitlines())
    assert not output.exists()


def test_a_scheduler_without_workers_is_said(
    scheduler: Cluster, folder: Path, output: Path
) -> None:
    save_jpegs(folder, ["a.jpg"])
    ended = run(command(folder, output, f"--dask={scheduler.address}", "--quiet"))
    assert ended.status == 2, ended
    assert "has no workers" in ended.err
    assert list(output.parent.iterdir()) == []


def test_a_scheduler_without_the_package_is_said(
    make_cluster: Callable[..., Cluster], folder: Path, output: Path, tmp_path: Path
) -> None:
    if run([sys.executable, "-c", "import converter"], cwd=tmp_path).status == 0:
        pytest.skip("the converter is installed here, so the scheduler has it")
    save_jpegs(folder, [f"{n:03}.jpg" for n in range(10)])
    cluster = make_cluster(None)
    cluster.work("--no-nanny", count=1)
    ended = run(command(folder, output, f"--dask={cluster.address}", "--quiet"))
    assert ended.status == 2, ended
    assert "the Dask scheduler cannot import the package converter" in ended.err
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("version", ["0.0.1", None])
def test_a_worker_with_another_version_or_none_is_said(
    version: str | None,
    scheduler: Cluster,
    folder: Path,
    output: Path,
    tmp_path: Path,
) -> None:
    save_jpegs(folder, [f"{n:03}.jpg" for n in range(10)])
    installed = tmp_path / "installed"
    installed.mkdir()
    if version is not None:
        shutil.copytree(ROOT / "converter", installed / "converter")
        init = installed / "converter" / "__init__.py"
        init.write_text(init.read_text().replace(__version__, version))
    elif run([sys.executable, "-c", "import converter"], cwd=tmp_path).status == 0:
        pytest.skip("the converter is installed here, so every worker has it")
    scheduler.work("--no-nanny", count=1, path=installed)
    ended = run(command(folder, output, f"--dask={scheduler.address}", "--quiet"))
    assert ended.status == 2, ended
    said = [line for line in ended.err.splitlines() if line.startswith("converter: ")]
    assert "install the" in said[-1]
    assert __version__ in said[-1]
    if version is not None:
        assert version in said[-1]
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "nonsense", "", "udp://x:1"])
def test_a_scheduler_that_does_not_answer_is_said(
    address: str,
    folder: Path,
    output: Path,
    convert: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(converter.workers.dask, "SECONDS_TO_CONNECT", 1)
    save_jpegs(folder, ["a.jpg"])
    ended = convert(folder, output, f"--dask={address.format(port=free_port())}", "--quiet")
    assert ended.status == 2, ended
    assert "Dask scheduler" in ended.err or "--dask" in ended.err
    assert "Traceback" not in ended.err
    assert list(output.parent.iterdir()) == []
