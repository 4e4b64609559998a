"""Load a running server on this machine with more and more clients, and print what it held.

    python scripts/load_test.py http://127.0.0.1:8000 picture.jpg --clients 1 8 64 500

Each client sends the picture again as soon as it has an answer, and after a 429 it waits as long
as the server says. The test stops by itself, refuses addresses of other machines, and ends with
code 1 if there was a 5xx, a connection that failed, or memory that did not come back within 10 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from fieldmark.serve.start import is_loopback


@dataclass
class Load:
    """What one number of clients saw."""

    clients: int
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    failed: int = 0
    times: list[float] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Seconds within which this share of the answers came."""
        return sorted(self.times)[int(share * (len(self.times) - 1))] if self.times else 0.0

    def row(self) -> dict[str, float]:
        """One line of the table."""
        return {
            "clients": self.clients,
            "answers_per_second": round(self.statuses[200] / self.seconds, 2),
            "p50_ms": round(1000 * self.percentile(0.5), 1),
            "p99_ms": round(1000 * self.percentile(0.99), 1),
            "ok": self.statuses[200],
            "busy_429": self.statuses[429],
            "server_errors_5xx": sum(n for s, n in self.statuses.items() if s >= 500),
            "other": sum(n for s, n in self.statuses.items() if s not in (200, 429) and s < 500),
            "failed": self.failed,
        }


async def load(
    url: str, data: bytes, clients: int, seconds: float, headers: dict[str, str]
) -> Load:
    """Run this many clients for so long."""
    found = Load(clients)
    start = time.monotonic()
    end = start + seconds

    async def client(number: int) -> None:
        await asyncio.sleep(min(1.0, seconds / 10) * number / clients)
        # Each has a connection of its own: a pool of hundreds takes more time than the server.
        async with httpx.AsyncClient(timeout=30, verify=False) as http:  # noqa: S501 - loopback
            while (begun := time.monotonic()) < end:
                try:
                    answer = await http.post(f"{url}/predict", content=data, headers=headers)
                except httpx.HTTPError:
                    found.failed += 1
                    continue
                found.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    found.times.append(time.monotonic() - begun)
                elif answer.status_code == 429:
                    await asyncio.sleep(float(answer.headers.get("retry-after", 1)))

    await asyncio.gather(*(client(number) for number in range(clients)))
    found.seconds = time.monotonic() - start
    return found


def resident(url: str, headers: dict[str, str]) -> float:
    """The server's memory in MB, as it says itself."""
    text = httpx.get(f"{url}/metrics", headers=headers, timeout=30).text
    found = re.search(r"^fieldmark_resident_bytes (\S+)$", text, re.MULTILINE)
    return float(found.group(1)) / 2**20 if found else 0.0


def main(argv: list[str] | None = None) -> int:
    """Run the test; 0 if the server held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64, 500])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--token", default="")
    given = parser.parse_args(argv)
    url = given.url.rstrip("/")
    if not is_loopback(urlsplit(url).hostname or ""):
        parser.error("only servers on this machine are loaded")
    if not (0 < given.seconds <= 600 and all(0 < n <= 1000 for n in given.clients)):
        parser.error("at most 600 seconds and 1000 clients")
    headers = {"content-type": "application/octet-stream"}
    if given.token:
        headers["authorization"] = f"Bearer {given.token}"
    data = given.picture.read_bytes()
    asyncio.run(load(url, data, 8, 3.0, headers))  # what is only allocated once is so now
    before = resident(url, headers)
    rows = []
    for clients in given.clients:
        rows.append(asyncio.run(load(url, data, clients, given.seconds, headers)).row())
        print(json.dumps(rows[-1]), flush=True)
    time.sleep(2)
    after = resident(url, headers)
    print(
        json.dumps({"resident_mb_before": round(before, 1), "resident_mb_after": round(after, 1)})
    )
    bad = sum(row["server_errors_5xx"] + row["failed"] + row["other"] for row in rows)
    return 1 if bad or after > 1.1 * before else 0


if __name__ == "__main__":
    sys.exit(main())
