"""A process that decodes pictures for another: ``python -m fieldmark.pictures.worker SECONDS``.

It reads requests (``isolated.request``) from its standard input, writes answers to its standard
output, and ends when its input does. Its memory is limited to what the largest allowed picture may
need; a picture that takes more than ``SECONDS`` of computing ends it.

An answer is a JSON object, then the arrays whose ``shapes`` it names: the picture, and the preview
if one was wanted. For a bad picture there are no arrays, and ``bad`` says why.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import AvifImagePlugin, Image

from fieldmark.pictures.decode import decode_here
from fieldmark.pictures.inputs import InputSpec, Pixels, shrunk
from fieldmark.pictures.isolated import LENGTH, READY
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture

try:
    import resource
except ImportError:  # Windows: time is limited, memory is not
    resource = None  # type: ignore[assignment]

_MEMORY, _MEMORY_OF_A_PIXEL = 2**29, 32
"""Bytes of address space for the program, the largest file, and 32-bit samples while decoding."""


def work(source: BinaryIO, sink: BinaryIO, seconds: float) -> None:
    """Answer requests until the input ends."""
    sink.write(READY)
    sink.flush()
    while head := source.read(LENGTH.size):
        wanted = json.loads(source.read(*LENGTH.unpack(head)))
        limits = PictureLimits(**wanted["limits"])
        _limit_memory(_MEMORY + _MEMORY_OF_A_PIXEL * limits.max_pixels)
        _limit_time(seconds)
        try:
            facts, arrays = _decoded(source.read(wanted["bytes"]), limits, wanted)
        except BadPicture as bad:
            facts, arrays = {"bad": [bad.reason, bad.detail]}, []
        except MemoryError:
            facts, arrays = {"bad": ["cannot be read", "not enough memory"]}, []
        _answer(sink, facts, *arrays)
        _limit_time(0)


def _decoded(
    data: bytes, limits: PictureLimits, wanted: dict[str, Any]
) -> tuple[dict[str, object], list[Pixels]]:
    found = decode_here(data, limits)
    arrays: list[Pixels] = [found.pixels]
    if wanted["fit"] is not None:
        arrays = [InputSpec.from_json(wanted["fit"]).pixels(found.pixels)]
    if wanted["preview"]:
        arrays.append(shrunk(found.pixels, wanted["preview"]))
    facts = {"notes": found.notes, "side": found.side, "orientation": found.orientation}
    return {**facts, "deep": found.deep}, arrays


def _answer(sink: BinaryIO, facts: dict[str, object], *arrays: Pixels) -> None:
    described = {"shapes": [a.shape for a in arrays], "types": [a.dtype.name for a in arrays]}
    head = json.dumps({**facts, **described}).encode()
    sink.write(LENGTH.pack(len(head)) + head)
    for array in arrays:
        sink.write(np.ascontiguousarray(array).reshape(-1).data)
    sink.flush()


@functools.lru_cache(1)
def _limit_memory(nbytes: int) -> None:
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):  # a system that has no such limit
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            soft = nbytes if most == resource.RLIM_INFINITY else min(nbytes, most)
            resource.setrlimit(resource.RLIMIT_AS, (soft, most))


def _limit_time(seconds: float) -> None:
    """End this process after so many seconds of computing; 0 means never.

    After four times as many seconds by the clock it ends, too, in case its parent is gone.
    """
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_PROF, seconds)
        signal.setitimer(signal.ITIMER_REAL, 4 * seconds)


def main() -> None:
    """Decode for the process that started this one."""
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would contain pictures
    with contextlib.suppress(OSError):  # where memory runs out, Linux takes this process first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    Image.MAX_IMAGE_PIXELS = None  # the limit is in PictureLimits
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # there is a process for each processor
    sink = os.fdopen(os.dup(1), "wb")
    # What libraries print about a broken file is no answer, and belongs in no log.
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    with contextlib.suppress(BrokenPipeError):
        work(sys.stdin.buffer, sink, float(sys.argv[1]))


if __name__ == "__main__":
    main()
