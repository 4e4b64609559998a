"""Names of devices, checked without torch."""

from __future__ import annotations

from fieldmark.errors import ConfigError

DEVICES = "auto, cpu, cuda, cuda:N, mps"
"""The names that are known."""


def check_device(device: object) -> None:
    """Refuse what is no device's name, whether this machine has the device or not.

    Raises:
        ConfigError: naming those that are known.
    """
    kind, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    plain = kind in ("auto", "cpu", "cuda", "mps") and device == kind
    numbered = kind == "cuda" and index.isascii() and index.isdecimal() and len(index) <= 4
    if not (plain or numbered):
        raise ConfigError(f"no device {device!r} (known: {DEVICES})")
