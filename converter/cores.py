"""Count the cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cores this process may use: affinity, cut by the container's CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota = _quota_v2(cgroup_root) or _quota_v1(cgroup_root)
    return max(1, min(allowed, math.ceil(quota)) if quota else allowed)


def _quota_v2(root: Path) -> float | None:
    """Read ``cpu.max``: "QUOTA PERIOD" in microseconds, or "max PERIOD" (kernel, cgroup-v2)."""
    words = _read(root / "cpu.max").split()
    if len(words) == 2 and words[0].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    return None


def _quota_v1(root: Path) -> float | None:
    quota = _read(root / "cpu" / "cpu.cfs_quota_us").strip()
    period = _read(root / "cpu" / "cpu.cfs_period_us").strip()
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
