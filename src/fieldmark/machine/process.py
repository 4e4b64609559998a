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
can set ``GOMP_SPINCOUNT``. They do not survive a fork, either: :func:`outlive_forks`. Measurements:
``docs/log.md``.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading

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


def give_back() -> None:
    """Give free memory back to the system, whether the heap is kept or not."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def spin_less() -> None:
    """Let OpenMP's waiting threads sleep sooner, unless the environment says how they wait."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


class Lock:
    """A lock that a forked process finds free, whoever held it when the process was forked.

    The same thread may take it again.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@functools.cache
def outlive_forks() -> None:
    """Let a process that is forked after torch has computed compute, too: with one thread.

    OpenMP's threads do not survive a fork, and a child that waits for them waits for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_one_thread)


def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


def _glibc() -> ctypes.CDLL | None:
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # another C library does not know the name
        return None
    return ctypes.CDLL(None) if version.startswith("glibc") else None
