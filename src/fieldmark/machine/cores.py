"""How many processors this process may use: often fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = _CGROUP) -> int:
    """Processors that the system schedules this process on, within a container's quota.

    A container with two processors' time on a machine of 64 sees all 64. With 64 threads, most
    would be stopped at any moment while the others wait for them.
    """
    if hasattr(os, "sched_getaffinity"):
        scheduled = len(os.sched_getaffinity(0))
    else:
        scheduled = os.cpu_count() or 1
    quota = _quota(cgroup)
    return scheduled if quota is None else max(1, min(scheduled, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Processor time that the control group may use, in processors; None without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # v2, v1
        try:
            words = " ".join((cgroup / file).read_text(encoding="ascii") for file in files).split()
            quota, period = map(float, words)
        except (OSError, ValueError):  # no such file, or "max" for no limit
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def threads_for(wanted: int) -> int:
    """Number of threads for a setting; 0 means one for each core that this process may use."""
    return wanted or cores()
