"""Checkpoints: one file that holds everything, the one before it, and which of them to go on from.

``last.ckpt`` is written anew each time; what it was becomes ``previous.ckpt`` once the new one is
on the disk and read back. Whatever happens in between, one of the two is whole, and each says by a
checksum whether it is.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldmark.errors import RunError
from fieldmark.files.checksum import check_tail, tail
from fieldmark.files.json_text import FORMAT, check_format
from fieldmark.files.writing import write_atomic

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


@dataclass(frozen=True)
class Checkpoint:
    """What was read."""

    path: Path
    state: dict[str, Any]
    passed_over: tuple[str, ...] = ()
    """Why each newer one could not be taken."""

    def make_last(self) -> None:
        """Put it in the place of a damaged newer one.

        Else the next save would make that the previous one, and this would be lost.
        """
        self.path.replace(self.path.with_name(LAST))


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write ``last.ckpt``; tensors and plain values only.

    Raises:
        ResourceError: if the disk refuses; the checkpoints that were there are still there.
    """
    import torch

    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    buffer.write(tail(buffer.getbuffer()))
    write_atomic(folder / LAST, buffer.getbuffer(), keep=folder / PREVIOUS)


def newest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole; None if there is none, whole or not.

    Raises:
        RunError: if all that there are are damaged, or the newest whole one is of another version.
    """
    problems: list[str] = []
    for path in (folder / LAST, folder / PREVIOUS):
        try:
            check_tail(path)
        except FileNotFoundError:
            if path.name == LAST:
                problems.append(f"{path} is missing")
        except OSError as error:
            problems.append(f"{path} cannot be read: {error.strerror or error}")
        except RunError as error:
            problems.append(str(error))
        else:
            return Checkpoint(path, _read(path), tuple(problems))
    if problems == [f"{folder / LAST} is missing"]:
        return None
    raise RunError(f"no usable checkpoint: {'; '.join(problems)}; train anew")


def _read(path: Path) -> dict[str, Any]:
    """Read a file whose checksum fits; what is in it may still be anything.

    Raises:
        RunError: if it is not a checkpoint of this version.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} cannot be read: {why}") from None
    if not isinstance(state, dict):
        raise RunError(f"{path} is not a checkpoint; this version of fieldmark reads its own only")
    check_format(state.get("format"), where=str(path))
    return state
