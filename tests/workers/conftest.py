"""Dask clusters, for the tests that take one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helpers.dask_cluster import SECONDS_TO_START, Cluster
from helpers.run import ROOT, wait_until


@pytest.fixture(scope="module")
def make_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Start schedulers, which end with the module, and their workers with them."""
    pytest.importorskip("distributed")
    if sys.platform != "linux":
        pytest.skip("kills process groups")
    made: list[Cluster] = []

    def make(path: Path | None = ROOT) -> Cluster:
        made.append(Cluster(tmp_path_factory.mktemp("dask"), path))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


@pytest.fixture(scope="module")
def lasting_cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    cluster = make_cluster()
    cluster.work("--nanny")
    return cluster


@pytest.fixture
def cluster(lasting_cluster: Cluster) -> Cluster:
    """Two workers; their nannies have started anew what a test before killed."""
    wait_until(lambda: lasting_cluster.workers() == 2, seconds=SECONDS_TO_START)
    assert lasting_cluster.workers() == 2, lasting_cluster.log()
    return lasting_cluster
