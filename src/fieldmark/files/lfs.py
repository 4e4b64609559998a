"""Git LFS pointers: the short texts that lie in place of files which Git did not fetch."""

from __future__ import annotations

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"
_OLD_FIRST_LINE = b"version https://hawser.github.com/spec/"

ADVICE = "a Git LFS pointer, not the file itself; fetch the file with: git lfs pull"
"""What such a file is, and the cure."""


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins so (64 bytes suffice) only says which file belongs here."""
    return head.startswith((_FIRST_LINE, _OLD_FIRST_LINE))
