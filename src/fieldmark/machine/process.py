"""Settings of the process itself: freed memory is kept, and waiting threads sleep sooner.

**The heap.** glibc gives large blocks back to the kernel as soon as they are free, and every step
of training faults them in again, a page at a time. :func:`keep_heap` tells glibc to keep them, and
asks torch for huge pages where the kernel grants them on request. No result changes.
The price is memory: a process holds on to its peak until :func:`trim_heap`, which training calls at
its end, gives the free pages back. The setting itself stays until the process ends, also for the
program that uses Fieldmark as a library; ``FIELDMARK_HEAP=system`` in the environment leaves the
heap alone. Where the C library is not glibc (musl, macOS, Windows), these functions do nothing.

**The threads.** OpenMP's threads spin at the end of each operation until all are there, by default
for about a millisecond. When another program has one of the processors, spinning takes time from
the very thread that the others wait for. :func:`spin_less` lets them sleep sooner. It has to be
called before torch is imported, so the command line calls it; a program that imports torch itself
can set ``GOMP_SPINCOUNT``. Measurements: ``docs/log.md``.
"""

from __future__ import annotations

import ctypes
import functools
import os

from fieldmark.errors import ConfigError

HEAP = "FIELDMARK_HEAP"
"""Name of the environment variable, whose value is keep (the default) or system."""

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_OWN_MAPPING = 2**30
"""Blocks from this size on are mapped by themselves and given back when freed."""
_OWN_MAPPING_OLD = 2**25
"""Largest threshold that glibc before 2.35 accepts."""
_SPINS = "10000"


@functools.cache
def keep_heap() -> bool:
    """Keep freed memory in the process and use huge pages; once, before tensors are made.

    Returns:
        Whether the heap is kept.

    Raises:
        ConfigError: if ``FIELDMARK_HEAP`` is neither keep nor system.
    """
    wanted = os.environ.get(HEAP, "keep")
    if wanted not in ("keep", "system"):
        raise ConfigError(f"the environment variable {HEAP} is {wanted!r} (known: keep, system)")
    libc = _glibc()
    if wanted == "system" or libc is None:
        return False
    # torch reads it when it first allocates; what the user set stays.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mapped = libc.mallopt(_MMAP_THRESHOLD, _OWN_MAPPING) or libc.mallopt(
        _MMAP_THRESHOLD, _OWN_MAPPING_OLD
    )
    return bool(mapped and libc.mallopt(_TRIM_THRESHOLD, -1))  # -1: never trim by itself


def trim_heap() -> None:
    """Give the free memory of a kept heap back to the system."""
    libc = _glibc()
    if libc is not None and keep_heap():
        libc.malloc_trim(0)


def spin_less() -> None:
    """Let OpenMP's waiting threads sleep sooner, unless the environment says how they wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def _glibc() -> ctypes.CDLL | None:
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # another C library does not know the name
        return None
    return ctypes.CDLL(None) if version.startswith("glibc") else None
