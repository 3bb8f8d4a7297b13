"""What can become of a Dask cluster; tests of any executor are in test_executors."""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converter import ConverterError, StoppedError, __version__
from converter import convert as convert_folder
from converter.sources.readers import Settings
from converter.workers.dask import dask_executor
from converter.workers.executor import ExecutorRun
from helpers.check import failures, stored
from helpers.dask_cluster import SECONDS_TO_START, Cluster, free_port
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

distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lasting_scheduler(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


@pytest.fixture
def scheduler(lasting_scheduler: Cluster) -> Iterator[Cluster]:
    """A scheduler without workers; those of a test end with it."""
    yield lasting_scheduler
    lasting_scheduler.end_workers()


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
) -> None:
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
    job = Settings(str(folder), path_functions=functions)
    with distributed.Client(scheduler.address, set_as_default=False) as client:
        executor = client.get_executor(pure=False)
        batches = ExecutorRun(executor, job, patience=3).run(sorted(os.listdir(folder)))
        with pytest.raises(StoppedError, match="has had no workers for 3 s: start some"):
            deque(batches)
        scheduler.work("--no-nanny", count=1)
        convert_folder(folder, output, executor=executor, **options)
    assert_same_as_local(folder, output, **options)


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


@pytest.mark.parametrize("address", ["nonsense", "", "udp://x:1"])
def test_what_is_no_address_is_refused(
    address: str, folder: Path, output: Path, convert: Callable[..., Finished]
) -> None:
    save_jpegs(folder, ["a.jpg"])
    ended = convert(folder, output, f"--dask={address}", "--quiet")
    assert ended.status == 2, ended
    assert "Dask scheduler" in ended.err or "--dask" in ended.err
    assert "Traceback" not in ended.err
    assert list(output.parent.iterdir()) == []


def test_a_scheduler_that_does_not_answer_is_said() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        pytest.raises(ConverterError, match=f"no Dask scheduler answers at {address}"),
        dask_executor(address, seconds=1),
    ):
        raise AssertionError("nobody answers there")
