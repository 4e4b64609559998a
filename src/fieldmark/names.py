"""Names of files and classes as they may be shown on a screen, in a log or in a message.

A name may hold sequences that a terminal obeys, marks that turn the text around, and letters that
cannot be seen. None of them gets through here.
"""

from __future__ import annotations

import unicodedata

# Left and right marks, embeddings, overrides and isolates: they reorder the text around them.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# They take no room: two names look the same. Joiners are not among them, which scripts need.
_UNSEEN = frozenset("\u00ad\u180e\u200b\u2060\u2061\u2062\u2063\u2064\ufeff\ufff9\ufffa\ufffb")
_ESCAPED = frozenset({"Cc", "Cs", "Zl", "Zp"})


def shown(name: str) -> str:
    r"""Return the name with all that is not plain text in it written as escapes.

    That is control characters, marks of direction, letters that cannot be seen, and bytes of a file
    name that are no UTF-8 (Python's surrogateescape), which become ``\xff``. Everything else, of
    any script, stays as it is; the result can always be encoded as UTF-8.
    """
    if name.isprintable():
        return name
    return "".join(map(_shown_character, name))


def on_screen(text: str) -> str:
    """Return a text of several lines, each as :func:`shown`, so that names in it are inert."""
    return "\n".join(map(shown, text.split("\n")))


def _shown_character(character: str) -> str:
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character in _BIDI or character in _UNSEEN or unicodedata.category(character) in _ESCAPED:
        return character.encode("unicode_escape").decode("ascii")
    return character
