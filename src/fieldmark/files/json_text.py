"""JSON files of a run: written as UTF-8, read strictly, with a format number."""

from __future__ import annotations

import json
import math
from typing import Any

from fieldmark.errors import RunError

FORMAT = 1
"""Version of ``config.json``, ``data.json``, ``model.json`` and ``last.ckpt``."""


def check_format(found: object, *, where: str) -> None:
    """Refuse a file whose format is not :data:`FORMAT`.

    Raises:
        RunError: naming both formats.
    """
    if type(found) is int and found == FORMAT:
        return
    newer = type(found) is int and found > FORMAT
    raise RunError(
        f"{where} has format {found!r}; this version of fieldmark reads format {FORMAT}"
        + ("; a newer fieldmark made it, and is needed to use it" if newer else "")
    )


def read_object(text: str, *, where: str) -> dict[str, Any]:
    """Parse a JSON object strictly: no NaN, no duplicate keys.

    Raises:
        RunError: naming the file.
    """
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RunError(f"{where} is not a JSON object")
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON value")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value


def numbers_or_null(value: Any) -> Any:
    """The value with None for numbers that JSON does not have: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: numbers_or_null(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [numbers_or_null(each) for each in value]
    return value


def encode_json(value: object, *, indent: int | None = 2) -> bytes:
    """Encode JSON as UTF-8; names that are not Unicode (lone surrogates) become escapes."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        return (text + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value, indent=indent, allow_nan=False) + "\n").encode()
