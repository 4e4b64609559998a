"""Pieces that the pages share: templates, embedded figures, numbers formatted for people."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fieldmark.names import shown

_THIN = "\u202f"  # a percent sign never stands alone on the next line


def embedded(png: bytes, alt: str) -> dict[str, Any]:
    """Prepare a figure for the template's ``chart``."""
    width, height = png_size(png)
    return {
        "base64": base64.b64encode(png).decode(),
        "width": width,
        "height": height,
        "alt": alt,
    }


def png_size(png: bytes) -> tuple[int, int]:
    """Read width and height of a PNG from its header."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def plain(value: object) -> str:
    """Write a JSON value as a person would."""
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(inner)}" for key, inner in value.items())
    if value is None:
        return "–"
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def templates() -> jinja2.Environment:
    """Load the pages' templates; they escape every value unless a template says otherwise."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_inert,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        short=_short,
        plain=plain,
        percent=percent,
        duration=duration,
        percent0=percent0,
        number=number,
        whole=whole,
        csp_hash=_csp_hash,
    )
    return environment


def _inert(value: object) -> object:
    """Escape control characters and broken Unicode, which a UTF-8 page cannot hold."""
    return shown(value) if type(value) is str else value


def _short(text: str) -> str:
    """Shorten a name where many are side by side; the table of classes has the full one."""
    text = shown(text)
    return text if len(text) <= 48 else f"{text[:30]}…{text[-16:]}"


def _csp_hash(text: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
    return Markup("sha256-" + digest)  # noqa: S704 - base64 of our own style sheet


def percent(value: float | None) -> str:
    """Write a percentage with one decimal, and more where it would be rounded up to 100 %."""
    if value is None or math.isnan(value):
        return "–"
    digits = 1
    while digits < 4 and value < 1 and round(100 * value, digits) >= 100:
        digits += 1
    return f"{100 * value:.{digits}f}{_THIN}%"


def percent0(value: float | None) -> str:
    """Write a percentage without decimals; empty for an unknown value."""
    if value is None or math.isnan(value):
        return ""
    return f"{100 * value:.0f}{_THIN}%" if value <= 0.99 else percent(value)


def number(value: float | None) -> str:
    """Write a number with four digits; a dash for an unknown value."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def whole(value: int | None) -> str:
    """Write a whole number with commas; a dash for an unknown value."""
    return "–" if value is None else f"{value:,}"


def duration(seconds: float) -> str:
    """Write a duration in seconds, minutes or hours, as a person would say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
