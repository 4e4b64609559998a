"""The command line in a fresh process, watched: what it connects to, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

WATCH = '''
"""Imported by Python at its start: writes down every look at the network."""

import os
import sys

_EVENTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
           "socket.sendmsg", "socket.gethostbyaddr", "urllib.Request", "http.client.connect")


def _watch(event, args):
    if event in _EVENTS:
        handle = os.open(os.environ["WATCHED_NETWORK"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(handle, f"{event} {args[1:]!r}\\n".encode())
        os.close(handle)


def _nobody(*_):
    raise KeyError("this user is not in the list of users")


sys.addaudithook(_watch)
if os.environ.get("WATCHED_NO_USER"):  # as in a container that runs under any number
    import pwd

    pwd.getpwuid = pwd.getpwnam = _nobody
'''


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command did."""

    code: int
    out: bytes
    err: bytes
    network: str
    """Every look at the network, a line each."""


def command(
    words: Sequence[str],
    *,
    env: Mapping[str, str | None],
    folder: Path,
    cwd: Path | None = None,
    wrapped: Sequence[str] = (),
) -> Done:
    """Run ``python -m fieldmark`` and watch it.

    Args:
        words: What follows ``fieldmark``.
        env: Variables over the present ones; None takes one away.
        folder: For what watches.
        cwd: The folder it is given in.
        wrapped: A command that it is run by, such as ``unshare``.
    """
    hook, network = folder / "hook", folder / "network.txt"
    hook.mkdir(parents=True, exist_ok=True)
    (hook / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    network.unlink(missing_ok=True)
    inherited = os.environ.get("PYTHONPATH", "")
    wanted: dict[str, str | None] = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(hook), inherited] if inherited else [str(hook)]),
        "WATCHED_NETWORK": str(network),
        "HF_HUB_OFFLINE": None,  # offline by itself, and not because it is told to be
        **env,
    }
    done = subprocess.run(
        [*wrapped, sys.executable, "-m", "fieldmark", *words],
        env={key: value for key, value in wanted.items() if value is not None},
        cwd=cwd,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=False,
    )
    seen = network.read_text(encoding="utf-8") if network.exists() else ""
    return Done(done.returncode, done.stdout, done.stderr, seen)


def mounted_read_only(folder: Path) -> list[str]:
    """A command that runs another, for which the folder is read-only; empty if that cannot be."""
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    words = ["unshare", "-rm", "sh", "-c", script, str(folder)]
    if shutil.which("unshare") is None:
        return []
    works = subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if works else []
