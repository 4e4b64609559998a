"""Besiege a server on this machine in four ways, and see how another client fares meanwhile.

    python scripts/siege.py RUN --seconds 60 --summary docs/reliability/siege.json

1,024 clients that read no answer, 1,024 that send a byte a second, 64 that send the head of a POST
and no body, and decoding processes that are killed 20 times. Meanwhile another client sends a
picture and asks for ``/health``, again and again: each is answered within two seconds, or gets 429.
After each the server's memory is back within 10 %. Ends with code 1 if any of that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

SIEGES = ("calm", "readers", "senders", "bodiless", "killed")
"""The first is none: how the other client fares on this machine as it is."""
MANY, FEW, KILLS = 1024, 64, 20
WITHIN = 2.0
"""Seconds in which another client is answered."""
HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


# --- those who besiege, in a process of their own ----------------------------------------------


async def besiege(kind: str, port: int, seconds: float) -> int:
    """Keep the clients of one kind connected for so long; returns how often one was cut off."""
    end = time.monotonic() + seconds
    count = FEW if kind == "bodiless" else MANY
    act = {"readers": _read_nothing, "senders": _send_slowly, "bodiless": _send_no_body}[kind]
    cut = 0

    async def client(number: int) -> None:
        nonlocal cut
        await asyncio.sleep(2 * number / count)
        while time.monotonic() < end:
            plain = socket.socket()
            plain.setblocking(False)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with contextlib.suppress(OSError), contextlib.closing(plain):
                await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", port))
                await act(plain, end)
            cut += time.monotonic() < end
            await asyncio.sleep(0.1)

    await asyncio.gather(*(client(number) for number in range(count)))
    return cut


async def _read_nothing(plain: socket.socket, end: float) -> None:
    wish = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
    while time.monotonic() < end:  # as soon as it was cut off, sending fails
        with contextlib.suppress(BlockingIOError):
            plain.send(wish)
        await asyncio.sleep(0.5)


async def _send_slowly(plain: socket.socket, end: float) -> None:
    plain.send(HEAD + b"Content-Length: 100000\r\n\r\n")
    while time.monotonic() < end:
        plain.send(b"x")
        await asyncio.sleep(1)


async def _send_no_body(plain: socket.socket, end: float) -> None:
    plain.send(HEAD + b"Content-Length: 100000\r\n\r\n")
    while time.monotonic() < end:
        await asyncio.sleep(0.25)
        with contextlib.suppress(BlockingIOError):
            if not plain.recv(65536):
                return


def decoders(server: int) -> list[int]:
    """The processes that a server has started."""
    found = []
    for task in Path(f"/proc/{server}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text(encoding="ascii").split())
    return found


async def kill_decoders(server: int, seconds: float) -> int:
    """Kill all of them, again and again, also while they start; returns how many were killed."""
    killed = 0
    for number in range(KILLS):
        for pid in decoders(server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        # Every second time so soon that the successors have not begun to work.
        await asyncio.sleep(seconds / KILLS * (0.1 if number % 2 else 1.9))
    return killed


# --- the other client ----------------------------------------------------------------------------


class Other:
    """A client like any other: what it got, and how long each answer took."""

    def __init__(self, port: int, picture: bytes) -> None:
        self._url, self._picture = f"http://127.0.0.1:{port}", picture
        self.statuses: dict[str, Counter[str]] = {"/predict": Counter(), "/health": Counter()}
        self.longest = {"/predict": 0.0, "/health": 0.0}

    async def ask(self, seconds: float) -> None:
        """Ask for so long, each time on a new connection."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for path in self.statuses:
                began = time.monotonic()
                try:
                    async with httpx.AsyncClient(timeout=30) as http:
                        if path == "/health":
                            answer = await http.get(self._url + path)
                        else:
                            kind = {"content-type": "image/png"}
                            answer = await http.post(
                                self._url + path, content=self._picture, headers=kind
                            )
                    self.statuses[path][str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    self.statuses[path][type(error).__name__] += 1
                self.longest[path] = max(self.longest[path], time.monotonic() - began)
            await asyncio.sleep(0.2)

    def row(self) -> dict[str, Any]:
        """What it saw."""
        return {
            "answers": {path: dict(found) for path, found in self.statuses.items()},
            "longest_seconds": {path: round(found, 2) for path, found in self.longest.items()},
        }

    @property
    def well(self) -> bool:
        """Whether it fared as is promised."""
        fine = all(set(found) <= {"200", "429"} for found in self.statuses.values())
        return fine and set(self.statuses["/health"]) == {"200"} and self.slowest <= WITHIN

    @property
    def slowest(self) -> float:
        """Seconds of the slowest answer."""
        return max(self.longest.values())


def resident(server: int) -> float:
    """Memory of the server's process in MiB."""
    status = Path(f"/proc/{server}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def siege(kind: str, process: subprocess.Popen[str], port: int, seconds: float) -> dict[str, Any]:
    """One kind of siege; its row of the table."""
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), (200, 30, 30)).save(buffer, "PNG")
    asyncio.run(Other(port, buffer.getvalue()).ask(3.0))  # what is only allocated once is so now
    before, other = resident(process.pid), Other(port, buffer.getvalue())
    words = [sys.executable, __file__, "--besiege", kind, str(port), str(process.pid), str(seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as attack:
        asyncio.run(other.ask(seconds))
        told, _ = attack.communicate()
    time.sleep(5)
    after = resident(process.pid)
    ready = httpx.get(f"http://127.0.0.1:{port}/ready", timeout=10).status_code
    well = other.well and after <= 1.1 * before and ready == 200 and process.poll() is None
    return {
        "siege": kind,
        "seconds": seconds,
        "cut_off_or_killed": int(told or 0),
        **other.row(),
        "resident_mib": {"before": round(before, 1), "after": round(after, 1)},
        "ready_after": ready,
        "well": well,
    }


def main(argv: list[str] | None = None) -> int:
    """Besiege a server that this starts; 1 if it did not hold."""
    if sys.argv[1:2] == ["--besiege"]:
        kind, port, server, seconds = sys.argv[2:]
        if kind == "calm":
            print(0)
        elif kind == "killed":
            print(asyncio.run(kill_decoders(int(server), float(seconds))))
        else:
            print(asyncio.run(besiege(kind, int(port), float(seconds))))
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run directory or an ONNX file")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--sieges", nargs="+", default=SIEGES, choices=SIEGES)
    parser.add_argument("--summary", type=Path, help="file for the result")
    given = parser.parse_args(argv)
    words = [sys.executable, "-m", "fieldmark", "serve", given.run, "--port", "0"]
    log = subprocess.PIPE
    with subprocess.Popen(words, stdout=log, stderr=log, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            said = process.stdout.readline()
            port = int(said.split()[3].rpartition(":")[2])
            rows = []
            for kind in given.sieges:
                rows.append(siege(kind, process, port, given.seconds))
                print(json.dumps(rows[-1]), flush=True)
        finally:
            began = time.monotonic()
            process.terminate()
            code = process.wait(30)
        stopped = time.monotonic() - began
        lines = len(process.stderr.read().splitlines())
    found = {
        "rows": rows,
        "exit_code": code,
        "stopped_in_seconds": round(stopped, 1),
        "lines_in_the_log": lines,
    }
    print(json.dumps(found | {"rows": len(rows)}))
    if given.summary:
        given.summary.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(not all(row["well"] for row in rows) or code != 0 or stopped > 10)


if __name__ == "__main__":
    sys.exit(main())
