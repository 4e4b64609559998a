"""Imports all that commands need before forking: a child then takes no time to import it.

Linux only, and only in a process with one thread, which is what makes forking it safe.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path


def import_what(work: Callable[[], None], listing: Path) -> None:
    """Import what a piece of work imports, without doing it here.

    Args:
        work: Is done once in a forked child, so that it leaves no state in this process.
        listing: A file for the names of the modules.

    Raises:
        RuntimeError: if the work fails.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            listing.write_text("\n".join(sys.modules), encoding="utf-8")
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the work that shows what to import failed")
    for name in listing.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
            __import__(name)
    gc.collect()
    gc.freeze()  # a collection in a child would touch, and so copy, every page
