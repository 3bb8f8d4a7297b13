"""Know the Dask cluster behind an executor."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

from converter import __version__
from converter.errors import ConverterError, StoppedError, describe

SECONDS_TO_CONNECT = 10
#: A function of this package could be asked only where the package is.
VERSION_EXPRESSION = "__import__('converter').__version__"


@contextmanager
def dask_executor(address: str, *, seconds: float = SECONDS_TO_CONNECT) -> Iterator[Executor]:
    """Give an executor of the workers of the scheduler at ``address`` (tcp://HOST:PORT).

    Raises ConverterError where it cannot be reached within so many seconds.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ConverterError("--dask needs Dask: pip install distributed") from error
    if not re.fullmatch(r"(tcp|tls|ws|wss)://[^/]+:[0-9]+", address):
        raise ConverterError(f"--dask={address} is no address of a scheduler: give tcp://HOST:PORT")
    try:
        client = Client(  # type: ignore[no-untyped-call]
            address, timeout=seconds, set_as_default=False, direct_to_workers=True
        )
    except (OSError, ValueError, TimeoutError) as error:
        raise ConverterError(
            f"no Dask scheduler answers at {address} ({describe(error)}): start one with `dask "
            "scheduler`, and workers with `dask worker`"
        ) from error
    with client:
        yield client.get_executor(pure=False)  # type: ignore[no-untyped-call]


class Cluster:
    """What is behind an executor that is Dask's."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._missed: float | None = None  # when it was first seen that there are no workers

    def check_versions(self) -> None:
        """Raise ConverterError where there are no workers, or some that cannot do the work.

        The scheduler too must have this package: it reads what tasks are made of.
        """
        if not self._workers():
            raise ConverterError(
                f"the Dask scheduler at {self._address} has no workers: start some with `dask "
                f"worker {self._address}`"
            )
        found = {"the Dask scheduler": self._ask_scheduler()}
        answers = self._client.run(eval, VERSION_EXPRESSION, on_error="return")
        found |= {f"the Dask worker {name}": answer for name, answer in answers.items()}
        for place, version in found.items():
            if version != __version__:
                has = (
                    f"cannot import the package converter ({describe(version)})"
                    if isinstance(version, BaseException)
                    else f"has version {version} of the package converter"
                )
                raise ConverterError(
                    f"{place} {has}: install the one used here, {__version__}, for the scheduler "
                    "and all workers"
                )

    def check_workers(self, patience: float) -> None:
        """Raise StoppedError where there have been no workers for ``patience`` seconds."""
        if self._workers():
            self._missed = None
        elif self._missed is None:
            self._missed = time.monotonic()
        elif time.monotonic() - self._missed > patience:
            raise StoppedError(
                f"the Dask scheduler at {self._address} has had no workers for "
                f"{patience:g} s: start some with `dask worker {self._address}`, and "
                "repeat the command"
            )

    def _ask_scheduler(self) -> str | Exception:
        try:
            return str(self._client.run_on_scheduler(eval, VERSION_EXPRESSION))
        except Exception as error:
            return error

    def count_threads(self) -> int:
        """Return how many tasks the workers do at once."""
        return sum(int(worker["nthreads"]) for worker in self._workers().values())

    @property
    def _address(self) -> str:
        return str(self._client.scheduler.address)

    def _workers(self) -> dict[str, Any]:
        return dict(self._client.scheduler_info(n_workers=-1)["workers"])


def cluster_of(executor: Executor) -> Cluster | None:
    """Return Dask's cluster behind an executor; None for an executor of another kind."""
    if type(executor).__module__.partition(".")[0] != "distributed":
        return None
    client = getattr(executor, "_client", None)  # where `Client.get_executor` puts it
    return None if client is None else Cluster(client)
