"""Counts for Prometheus, in its text format, of which the server needs only a few lines."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counters:
    """Counts since the server was started. Used on the event loop only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.pictures: Counter[str] = Counter()
        self._seconds: Counter[float] = Counter()
        self._sum = 0.0

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request; the path is one of the server's own, so their number is bounded."""
        self.requests[path, status] += 1
        if path == "/predict":
            self._sum += seconds
            self._seconds[next((b for b in BUCKETS if seconds <= b), float("inf"))] += 1

    def text(self, gauges: Iterable[tuple[str, str, str, float]]) -> str:
        """Write all counts, and the caller's values: name, type, help, value."""
        lines = _head("requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'fieldmark_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += _head("pictures_total", "counter", "Pictures by outcome.")
        for outcome, count in sorted(self.pictures.items()):
            lines.append(f'fieldmark_pictures_total{{outcome="{outcome}"}} {count}')
        lines += _head("predict_seconds", "histogram", "Time to answer /predict.")
        below = 0
        for bound in (*BUCKETS, float("inf")):
            below += self._seconds[bound]
            name = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'fieldmark_predict_seconds_bucket{{le="{name}"}} {below}')
        lines.append(f"fieldmark_predict_seconds_sum {self._sum:.6f}")
        lines.append(f"fieldmark_predict_seconds_count {below}")
        for name, kind, about, value in gauges:
            lines += [*_head(name, kind, about), f"fieldmark_{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP fieldmark_{name} {about}", f"# TYPE fieldmark_{name} {kind}"]


def resident_bytes() -> int:
    """Resident memory of this process in bytes, where the system tells (Linux); 0 elsewhere."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - no path to speak of
        return int(file.read().split()[1]) * 4096
