"""What processes hold, and which are still there; from /proc."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def held(pid: int) -> dict[str, int]:
    """What a process holds: memory in KiB, open files, threads, processes that it began."""
    text = Path(f"/proc/{pid}/status").read_text()
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {
        "rss_kib": int(facts["VmRSS"].split()[0]),
        "open_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(facts["Threads"]),
        "children": len(_children(pid)),
    }


def left_of(session: int, *, seconds: float = 1.0) -> list[int]:
    """Processes of a session that are still there after so long."""
    end = time.monotonic() + seconds
    while alive := [int(p.name) for p in Path("/proc").glob("[0-9]*") if _session(p) == session]:
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    return alive


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _session(process: Path) -> int:
    """The session of a process in /proc; 0 if it is gone or a zombie."""
    try:
        after_name = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if after_name[0] == "Z" else int(after_name[3])
