"""Progress on a terminal, in a notebook, or as lines in a file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

from fieldmark.names import on_screen
from fieldmark.progress import Progress, Silent

SHOW_AFTER = 0.5
"""Seconds after which a count is shown as a progress bar."""


class Terminal:
    """Prints lines, and on a terminal or in a notebook a progress bar with the time left."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console

        self._console = Console(
            file=stream, markup=False, highlight=False, emoji=False, soft_wrap=True
        )
        self._live = self._console.is_terminal or self._console.is_jupyter
        self._bars: Any = None
        self._task: Any = None
        self._what = ""
        self._since = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._print("warning: " + text, style="yellow")

    def count(self, what: str, done: int, total: int) -> None:
        """Move the progress bar; does nothing without a terminal or notebook."""
        if not self._live:
            return
        if what != self._what:
            self._close()
            self._what, self._since = what, time.monotonic()
        if self._bars is None and time.monotonic() - self._since > SHOW_AFTER:
            self._open(what)
        if self._bars is not None:
            self._bars.update(self._task, completed=done, total=total)
            if done >= total:
                self._close()

    def epoch(self, record: Any, epochs: int) -> None:
        """Print the line of an epoch."""
        from fieldmark.jobs.train import line

        self._close()
        self._print(line(record, epochs), style="bold" if record.best else "")

    def close(self) -> None:
        """Remove the progress bar."""
        self._close()

    def _print(self, text: str, style: str = "") -> None:
        # A character that the console cannot show is escaped.
        encoding = getattr(self._console.file, "encoding", None) or "utf-8"
        text = on_screen(text)
        self._console.print(text.encode(encoding, "backslashreplace").decode(encoding), style=style)

    def _open(self, what: str) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._bars.add_task(what, total=None)
        self._bars.start()

    def _close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._what = ""


@contextlib.contextmanager
def watcher(progress: bool | Progress, *, stream: IO[str] | None = None) -> Iterator[Progress]:
    """Yield the caller's progress object; a terminal for True; a silent one for False."""
    if progress is False:
        yield Silent()
        return
    if progress is not True:
        yield progress
        return
    terminal = Terminal(stream or sys.stdout)
    try:
        yield terminal
    finally:
        terminal.close()
