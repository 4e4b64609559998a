# Names are bytes here, and paths what the system calls see, so that pathlib is no help.
# ruff: noqa: PTH100, PTH115, PTH118, PTH123, PTH208
"""A process with everything imported, which forks a child for each command it is asked to run.

Importing torch takes seconds, and an audit hook cannot be taken out again: the children have the
first for nothing and take the second with them. A request is one line of JSON on standard input,
the answer one on standard output. Linux only.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.drawing import undrawn
from tests.warming import import_what

MEMORY = 4 * 2**30
"""Address space that a command may take beyond what the imports have."""
FILE = 2**30
"""Bytes that one file may get."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
}
"""Events that change the file system: where the path is in their arguments, and its folder's fd."""
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen")
_NETWORK = (
    *("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo"),
    *("socket.gethostbyname", "socket.gethostbyaddr"),
)
_OUR_MODULES = ("fieldmark.", "multiprocessing.")


class Watch:
    """The audit hook: writes a line for all that a command must not do."""

    def __init__(self, descriptor: int, writable: list[str], *, network: bool) -> None:
        self.descriptor = descriptor
        self.writable = [os.path.realpath(path) for path in writable]
        self.network = network

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(path, int) and path is not None and (flags or 0) & _WRITING:
                self._written(event, path, None)
        elif event in _PATHS:
            for place, folder in _PATHS[event]:
                self._written(event, arguments[place], folder and arguments[folder])
        elif event in _STARTS:
            if not _is_ours(event, arguments):
                self._tell(f"started: {event} {arguments[:2]!r}")
        elif event in _NETWORK and not self.network:
            address = arguments[1] if len(arguments) > 1 else arguments[0]
            if not isinstance(address, str | bytes) or event == "socket.getaddrinfo":
                self._tell(f"network: {event} {address!r}")

    def _written(self, event: str, path: Any, folder: Any) -> None:
        if isinstance(path, int):
            return
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0:
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        # Links in the folders count, a link in the last place is what is removed or renamed.
        head, tail = os.path.split(os.path.abspath(name))
        name = os.path.join(os.path.realpath(head), tail)
        if event == "os.mkdir" and os.path.lexists(name):
            return  # mkdir(exist_ok=True), which makes nothing
        inside = any(name == top or name.startswith(top + os.sep) for top in self.writable)
        if not inside and name != os.devnull:
            self._tell(f"written: {event} {name!r}")

    def _tell(self, text: str) -> None:
        os.write(self.descriptor, text.encode("utf-8", "backslashreplace") + b"\n")


def _is_ours(event: str, arguments: tuple[Any, ...]) -> bool:
    """The package's own decoding processes, and the question which commit a folder is at."""
    if event != "subprocess.Popen":
        return False
    words = [os.fsdecode(word) for word in arguments[1]]
    python = words[0] == sys.executable and any(
        word.startswith(_OUR_MODULES) or "multiprocessing" in word for word in words
    )
    return python or words == ["git", "rev-parse", "HEAD"]


def _child(request: dict[str, Any], trace: int) -> int:
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    for stream, number in (("stdout", 1), ("stderr", 2)):
        handle = os.open(request[stream], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, number)
        os.close(handle)
        raw = io.FileIO(number, "wb", closefd=False)
        text = io.TextIOWrapper(io.BufferedWriter(raw), encoding=request["encoding"])
        setattr(sys, stream, text)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _publish(request.get("published", {}))
    from fieldmark.cli import main

    sys.argv = ["fieldmark", *request["argv"]]
    sys.addaudithook(Watch(trace, request["writable"], network=request["network"]))
    try:
        with contextlib.nullcontext() if request["drawn"] else undrawn():
            main(request["argv"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
        code = 99
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _publish(archives: dict[str, dict[str, Any]]) -> None:
    """Take an archive in the cache for the published one: the way in for archives goes by hash."""
    from fieldmark.data.cifar_download import DOWNLOADS
    from fieldmark.files.download import Download

    for name, facts in archives.items():
        DOWNLOADS[name] = Download(**facts)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    before = _peak_of(os.getpid())
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 97
        try:
            code = _child(request, writing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], request["seconds"])
    os.close(handle)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    left = _leftovers(child)
    try:
        trace = os.read(reading, 2**16).decode()
    except BlockingIOError:
        trace = ""
    os.close(reading)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "hung": not ended,
        "worked": usage.ru_utime + usage.ru_stime,
        "grown": max(0, usage.ru_maxrss - before) * 1024,
        "trace": trace.splitlines() + (["left: a process that goes on"] if left else []),
    }


def _peak_of(process: int) -> int:
    """Kilobytes that the process has in memory, which its child begins with."""
    with open(f"/proc/{process}/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def _leftovers(group: int) -> bool:
    """Whether processes of a command outlive it by more than two seconds; they are ended then."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    return True


def _warm() -> None:
    """Import what commands import, and do once what is slow once."""
    import platform

    import h5py
    import torch

    from fieldmark.models.light_timm import library
    from fieldmark.pages import figures

    assert h5py.version
    library()
    platform.processor()  # h5py asks for it, which starts a process
    torch.set_num_threads(1)
    figures.curves([("warm", [])])
    with tempfile.TemporaryDirectory() as folder:
        import_what(lambda: _commands(Path(folder)), Path(folder) / "modules")


def _commands(folder: Path) -> None:
    """Train, predict, report and export once."""
    import numpy as np
    from PIL import Image

    from fieldmark.cli import main as main_of_cli

    rng = np.random.default_rng(0)
    for number in range(24):
        place = folder / "pictures" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
            place / f"{number}.png"
        )
    run, pictures = str(folder / "run"), str(folder / "pictures")
    settings = ["--model", "small_cnn(width=2)", "--size", "8", "--epochs", "1", "--threads", "1"]
    with undrawn(), (folder / "told").open("w") as told, contextlib.redirect_stdout(told):
        for words in (
            ["train", pictures, *settings, "--device", "cpu", "--out", run],
            ["predict", run, pictures, "--json"],
            ["report", run],
            ["export", run, "--to", "keras"],
        ):
            with contextlib.suppress(SystemExit), contextlib.redirect_stderr(told):
                main_of_cli(words)
        assert (folder / "run" / "report.html").is_file()


def main() -> None:
    _warm()
    threads = len(os.listdir("/proc/self/task"))
    sys.stdout.write(json.dumps({"threads": threads}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
