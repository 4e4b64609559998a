"""Checksums inside the files of checkpoints and models: each file shows by itself that it is whole.

A checkpoint ends in a line with the SHA-256 of everything before it. A safetensors file may have
nothing after its tensors, so a model has the checksum inside its description: the SHA-256 of the
file with zeros in the checksum's place. Either covers every bit of the file. A checksum finds
damage; it does not stop a forger, who would write a new one.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from fieldmark.errors import RunError

BLANK = "0" * 64
"""Placeholder in a model's description, where :func:`seal` writes the checksum."""
FIELD = "sha256"
"""Key of the checksum in a model's description."""

_TAIL = re.compile(rb"\nfieldmark sha256 ([0-9a-f]{64})\n")
_TAIL_LENGTH = len("\nfieldmark sha256 " + BLANK + "\n")
_IN_HEADER = re.compile(rb'\\"sha256\\": ?\\"([0-9a-f]{64})\\"')
_MAX_HEADER = 100_000_000  # the safetensors library's own limit
_CHUNK = 1 << 20


def tail(data: bytes | memoryview) -> bytes:
    """The line with the checksum that goes after the content."""
    return f"\nfieldmark sha256 {hashlib.sha256(data).hexdigest()}\n".encode()


def check_tail(path: Path) -> None:
    """Check a file that ends in its :func:`tail`.

    Raises:
        RunError: if it is cut short or damaged.
        OSError: if it cannot be read.
    """
    length = path.stat().st_size - _TAIL_LENGTH
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while length > 0 and (chunk := file.read(min(_CHUNK, length))):
            hasher.update(chunk)
            length -= len(chunk)
        found = _TAIL.fullmatch(file.read(_TAIL_LENGTH + 1))
    if length != 0 or found is None:
        raise RunError(f"{path} is cut short, or no checkpoint of this version: it has no checksum")
    if found[1].decode() != hasher.hexdigest():
        raise RunError(f"{path} is damaged: its checksum does not fit its content")


def seal(data: bytes) -> bytes:
    """Return a safetensors file with the checksum in place of ``BLANK`` in its description."""
    start, end = _place(data)
    if data[start:end] != BLANK.encode():
        raise ValueError("the place for the checksum is not blank")
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[end:]


def check_seal(path: Path) -> str:
    """Check a file that :func:`seal` made; returns its checksum.

    Raises:
        RunError: if it is cut short, damaged, or has no checksum.
        OSError: if it cannot be read.
    """
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        head = file.read(8)
        header = head + file.read(min(int.from_bytes(head, "little"), _MAX_HEADER))
        try:
            start, end = _place(header)
        except ValueError:
            raise RunError(
                f"{path} was not written by fieldmark, or its header is damaged: it has no checksum"
            ) from None
        hasher.update(header[:start] + BLANK.encode() + header[end:])
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    written = header[start:end].decode()
    if written != hasher.hexdigest():
        raise RunError(f"{path} is damaged: its checksum does not fit its content")
    return written


def _place(data: bytes) -> tuple[int, int]:
    """Find the checksum in the header of a safetensors file.

    Raises:
        ValueError: if there is none.
    """
    found = _IN_HEADER.search(data, 8, 8 + int.from_bytes(data[:8], "little"))
    if found is None:
        raise ValueError("no checksum in the header")
    return found.span(1)
