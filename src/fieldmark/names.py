"""Names of files and classes as they may be shown on a screen, in a log or in a message."""

from __future__ import annotations

import unicodedata

# Left and right marks, embeddings, overrides and isolates: they reorder the text around them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ESCAPED = frozenset({"Cc", "Cs", "Zl", "Zp"})


def shown(name: str) -> str:
    r"""Return the name with control characters, bidi overrides and undecodable bytes escaped.

    Bytes of a file name that are no UTF-8 (Python's surrogateescape) become ``\xff``. Everything
    else, of any script, stays as it is; the result can always be encoded as UTF-8.
    """
    if name.isprintable():
        return name
    return "".join(map(_shown_character, name))


def _shown_character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in _BIDI or unicodedata.category(character) in _ESCAPED:
        return character.encode("unicode_escape").decode("ascii")
    return character
