"""Linux's own word on whether a file was opened, by any process in whatever language."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path


class OpenWatch:
    """Tells whether anything opened a file of a folder, or the one file it was given."""

    _OPEN, _FOLDER = 0x20, 0x40000000

    def __init__(self, path: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK)
        if libc.inotify_add_watch(self._descriptor, os.fsencode(path), self._OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def count(self) -> int:
        """Openings of files in it."""
        try:
            events = os.read(self._descriptor, 2**16)
        except BlockingIOError:
            return 0
        found, at = 0, 0
        while at < len(events):
            _, mask, _, size = struct.unpack_from("iIII", events, at)
            found += not mask & self._FOLDER
            at += 16 + size
        return found

    def close(self) -> None:
        os.close(self._descriptor)
