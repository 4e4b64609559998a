"""The folder for what is worth keeping between runs, and may be deleted at any time."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fieldmark.errors import ResourceError


def cache_dir() -> Path:
    """The folder for downloads: $FIELDMARK_CACHE, else the system's place for caches."""
    own = os.environ.get("FIELDMARK_CACHE", "")
    if own:
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "fieldmark"
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the XDG rules have relative paths ignored
        return shared / "fieldmark"
    try:
        return Path.home() / ".cache" / "fieldmark"
    except RuntimeError:  # no HOME, and a user the system has no name for, as in containers
        return _of_this_process()


@functools.cache
def _of_this_process() -> Path:
    """Make a private folder that is removed when this process ends.

    A shared place such as the folder for temporary files would let other users put files there.
    """
    folder = tempfile.mkdtemp(prefix="fieldmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn the file system's errors into a ResourceError that says what to do."""
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise ResourceError(
            f"cannot write to {folder}: {what or error}; what arrived so far is kept. Make "
            "room, or name another folder with FIELDMARK_CACHE"
        ) from None
