"""Progress on a terminal, in a notebook, or as lines in a file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

from fieldmark.errors import worded
from fieldmark.names import on_screen
from fieldmark.progress import Progress, Silent

SHOW_AFTER = 0.5
"""Seconds after which a count is shown as a progress bar."""


class Terminal:
    """Prints lines, and on a terminal or in a notebook a progress bar with the time left."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        from rich.console import Console

        self._gone = False
        self._console = Console(
            file=stream,
            markup=False,
            highlight=False,
            emoji=False,
            soft_wrap=True,
            width=None if has_width() else 80,
        )
        # Else rich ends the program where a pipe is closed.
        self._console.on_broken_pipe = self._leave  # type: ignore[method-assign]
        self._live = self._console.is_terminal or self._console.is_jupyter
        self._bars: Any = None
        self._task: Any = None
        self._what = ""
        self._since = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self._print(worded(text))

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._print("warning: " + worded(text), style="yellow")

    def count(self, what: str, done: int, total: int) -> None:
        """Move the progress bar; does nothing without a terminal or notebook."""
        if not self._live or self._gone:
            return
        if what != self._what:
            self._close()
            self._what, self._since = what, time.monotonic()
        if self._bars is None and time.monotonic() - self._since > SHOW_AFTER:
            self._open(what)
        if self._bars is not None:
            self._try(lambda: self._bars.update(self._task, completed=done, total=total))
            if done >= total:
                self._close()

    def epoch(self, record: Any, epochs: int) -> None:
        """Print the line of an epoch."""
        from fieldmark.jobs.running import line

        self._close()
        self._print(line(record, epochs), style="bold" if record.best else "")

    def close(self) -> None:
        """Remove the progress bar."""
        self._close()

    def _print(self, text: str, style: str = "") -> None:
        # A character that the console cannot show is escaped.
        encoding = getattr(self._console.file, "encoding", None) or "utf-8"
        text = on_screen(text).encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._console.print(text, style=style))

    def _try(self, printing: Callable[[], None]) -> None:
        """Print; whoever has stopped reading does not stop the work.

        A pipe that is closed, a stream that the program has closed, a disk that is full: from then
        on nothing is printed.
        """
        if self._gone:
            return
        try:
            printing()
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not getattr(self._console.file, "closed", False):
                raise
            self._leave()

    def _leave(self) -> None:
        """Print no more."""
        self._gone = True
        discard(self._console.file)

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
        self._try(self._bars.start)

    def _close(self) -> None:
        if self._bars is not None:
            self._try(self._bars.stop)
        self._bars = None
        self._what = ""


def discard(stream: IO[str]) -> None:
    """Have all that is still printed go nowhere: what Python flushes at its end is no error."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def has_width() -> bool:
    """Whether the environment says nothing of the terminal's width, or what can be."""
    columns = os.environ.get("COLUMNS", "")
    return not columns.isdigit() or (columns.isascii() and 0 < int(columns[:9]) < 100_000)


@contextlib.contextmanager
def watcher(progress: bool | Progress, *, stream: IO[str] | None = None) -> Iterator[Progress]:
    """Yield the caller's progress object; a terminal for True; a silent one for False."""
    if progress is False:
        yield Silent()
        return
    if progress is not True:
        yield progress
        return
    stream = stream or sys.stdout
    if stream is None or getattr(stream, "closed", False):  # a program without a terminal
        yield Silent()
        return
    terminal = Terminal(stream)
    try:
        yield terminal
    finally:
        terminal.close()
