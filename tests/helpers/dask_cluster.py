"""Start a Dask scheduler and its workers, each as a user does."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from helpers.run import ROOT, start, wait_until

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
        import distributed  # optional

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
