"""How much of a JPEG is lost, where its decoder warned: its compressed data read bit by bit.

Decoders (libjpeg) go on behind damaged data and only warn; they do not say how many pixels it
cost. Here the Huffman codes are read again, without making pixels, until something cannot be: no
such code, more than 64 coefficients in a block, a brightness beyond black or white. What follows
it, up to the next restart marker, is lost.

Codes fall into step again a little behind missing or changed bytes, and then all is moved and has
another brightness, though no code is wrong. Then the number of blocks is. What tells this from a
file that only lacks its end, or has bytes of something else before it, is how the data end: whole
data end with a block and with bits of 1 up to the next byte. Where they do and the number is wrong,
something is missing or changed nobody knows where, and all up to the restart marker counts as lost.

Only the few files that a decoder warns of get here; it takes a second or two for each megabyte.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

MOST_BYTES = 2**22
"""Larger files are not read again."""

_CHUNK = 2**17
"""Bytes that are looked up at once."""
_ROOM = 4096
"""Bytes that one unit (up to ten blocks) cannot be longer than."""
_BLOCK = 512
"""Bytes that one block cannot be longer than."""
_MANY = 2**40
ZEROS = bytes(32)
"""A run that no encoder makes, unless its shortest code ends a block: a sector that was lost."""
_END = re.compile(rb"\xff+[^\x00\xff]")
_RESTARTS = range(0xD0, 0xD8)
_END_OF_BLOCK, _NO_CODE = 128, 65
"""What is added to the number of a coefficient for a code that ends a block, and for none."""


class Loss(NamedTuple):
    """What the compressed data of a JPEG lack."""

    share: float
    """Share of the picture, 0 to 1."""
    certain: bool
    """Whether every scan could be read, so that no more is lost."""


_Numbers = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
_Details = tuple[_Numbers, _Numbers]


@dataclass(frozen=True)
class _Codes:
    """A Huffman table, looked up by the next 16 bits."""

    symbols: bytes
    """65,536 symbols."""
    lengths: _Numbers
    """Bits of each code; 0 where there is no such code."""

    @functools.cached_property
    def sizes(self) -> _Numbers:
        """Bits of a brightness that follow a code; 255 where there is no such code."""
        symbols = np.frombuffer(self.symbols, np.uint8)
        return np.where(self.lengths > 0, symbols, 255).astype(np.uint8)

    @functools.cached_property
    def sequential(self) -> _Details:
        """Details of blocks that are sent as a whole."""
        return _details(self, 0)

    @functools.cached_property
    def progressive(self) -> _Details:
        """Details of blocks that are sent in several scans."""
        return _details(self, 14)


@dataclass
class _Component:
    across: int
    down: int
    table: int


@dataclass
class _Frame:
    progressive: bool
    height: int
    width: int
    components: dict[int, _Component]
    steps: dict[int, int] = field(default_factory=dict)
    """Quantisation step of the brightness by table."""
    codes: dict[int, _Codes] = field(default_factory=dict)
    """Huffman tables by class and number."""
    interval: int = 0
    """Units between two restart markers; 0: there are none."""

    def units(self, scan: list[int]) -> int:
        """Number of units that a scan of these components has."""
        widest = max(c.across for c in self.components.values())
        tallest = max(c.down for c in self.components.values())
        if len(scan) > 1:
            return -(-self.width // (8 * widest)) * -(-self.height // (8 * tallest))
        one = self.components[scan[0]]
        width, height = -(-self.width * one.across // widest), -(-self.height * one.down // tallest)
        return -(-width // 8) * -(-height // 8)


class _Scan(NamedTuple):
    components: list[tuple[int, int]]
    """Number of each component, and of its tables."""
    first: int
    last: int
    before: int
    """Bits that an earlier scan has not sent; 0 where this is the first."""


def loss(data: bytes) -> Loss | None:
    """Read a JPEG's compressed data and find what is lost.

    Returns:
        None for a kind of JPEG that this module cannot read, or one that is very large.
    """
    if len(data) > MOST_BYTES:
        return None
    try:
        shares = [*_scans(data)]
    except (IndexError, KeyError, ValueError, ZeroDivisionError):
        return None
    if not shares:
        return None
    known = [share for share in shares if share is not None]
    return Loss(min(1.0, max(known, default=0.0)), len(known) == len(shares))


def _scans(data: bytes) -> Iterator[float | None]:
    """Yield the lost share of each scan; None for one that cannot be read."""
    frame: _Frame | None = None
    held = _Frame(False, 0, 0, {})  # tables that come before the frame
    at = 2
    while found := _END.search(data, at):
        at, marker = found.end(), data[found.end() - 1]
        if marker == 0xD9:
            return
        if marker in (0x01, 0xD8) or marker in _RESTARTS:
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        body, at = data[at + 2 : at + size], at + max(size, 2)
        if marker in (0xC0, 0xC1, 0xC2):
            frame = held = _frame(marker, body, held)
        elif 0xC3 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            raise ValueError("another kind of JPEG")
        elif marker == 0xC4:
            _read_codes(body, held)
        elif marker == 0xDB:
            _read_steps(body, held)
        elif marker == 0xDD:
            held.interval = int.from_bytes(body[:2], "big")
        elif marker == 0xDA:
            if frame is None:
                raise ValueError("a scan without a frame")
            pieces, at = _pieces(data, at, restarts=frame.interval > 0)
            yield _lost(frame, _scan(body), pieces)


def _frame(marker: int, body: bytes, held: _Frame) -> _Frame:
    if held.components or body[0] != 8:
        raise ValueError("a second frame, or more than 8 bits")
    parts = [body[6 + 3 * i : 9 + 3 * i] for i in range(body[5])]
    return _Frame(
        marker == 0xC2,
        int.from_bytes(body[1:3], "big"),
        int.from_bytes(body[3:5], "big"),
        {number: _Component(shape >> 4, shape & 15, table) for number, shape, table in parts},
        held.steps,
        held.codes,
        held.interval,
    )


def _read_steps(body: bytes, frame: _Frame) -> None:
    at = 0
    while at < len(body):
        wide = body[at] >> 4 > 0
        frame.steps[body[at] & 15] = (
            int.from_bytes(body[at + 1 : at + 3], "big") if wide else body[at + 1]
        )
        at += 129 if wide else 65


def _read_codes(body: bytes, frame: _Frame) -> None:
    at = 0
    while at < len(body):
        symbols, lengths = bytearray(2**16), np.zeros(2**16, np.uint8)
        place, code = at + 17, 0
        for bits in range(1, 17):
            for _ in range(body[at + bits]):
                span = 2 ** (16 - bits)
                start = code * span
                if start + span > 2**16:
                    raise ValueError("more codes than there can be")
                symbols[start : start + span] = body[place : place + 1] * span
                lengths[start : start + span] = bits
                place, code = place + 1, code + 1
            code *= 2
        frame.codes[body[at]] = _Codes(bytes(symbols), lengths)
        at = place


def _scan(body: bytes) -> _Scan:
    n = body[0]
    first, last, bits = body[1 + 2 * n : 4 + 2 * n]
    return _Scan([(body[1 + 2 * i], body[2 + 2 * i]) for i in range(n)], first, last, bits >> 4)


def _pieces(data: bytes, at: int, *, restarts: bool) -> tuple[list[tuple[int, bytes]], int]:
    """Cut a scan's data at restart markers: each piece with its marker's number, and the end."""
    pieces, number, start = [], -1, at
    while True:
        found = _END.search(data, at)
        end = found.start() if found else len(data)
        pieces.append((number, data[start:end].replace(b"\xff\0", b"\xff")))
        marker = data[found.end() - 1] if found else 0
        if not found or not restarts or marker not in _RESTARTS:
            return pieces, end
        number, at = marker - 0xD0, found.end()
        start = at


def _lost(frame: _Frame, scan: _Scan, pieces: list[tuple[int, bytes]]) -> float | None:
    """Return the share of a scan's units that are lost; None if it cannot be read."""
    units = frame.units([number for number, _ in scan.components])
    if frame.progressive and scan.before and scan.first:
        return None  # what it says depends on all that was sent before
    interval = frame.interval or units
    good = spare = due = 0
    for number, piece in pieces:
        if number >= 0:
            skipped = (number - (due - 1)) % 8
            if skipped > 2:
                break
            due += skipped
        here = min(interval, units - due * interval)
        due += 1
        if here <= 0:  # of another picture, or of this one a second time
            spare += interval
            continue
        read, rest = _read(frame, scan, _without_zeros(frame, scan, piece), here)
        good += read
        spare += rest * here // max(1, len(piece))
    return 1 - good / units + spare / units


def _without_zeros(frame: _Frame, scan: _Scan, piece: bytes) -> bytes:
    """Cut the data where they were never written, and only zeros are left of them."""
    at = piece.find(ZEROS)
    if at < 0 or scan.before:
        return piece
    shortest = {frame.codes[_table(scan, tables)].symbols[0] for _, tables in scan.components}
    ends = all(symbol & 15 == 0 and symbol < 0xF0 for symbol in shortest)
    return piece if ends else piece[:at]


def _table(scan: _Scan, tables: int) -> int:
    """Number of the Huffman table of most of a scan's symbols."""
    return 16 + (tables & 15) if scan.last else tables >> 4


class _Bits:
    """Compressed data that are looked up at every bit."""

    def __init__(self, piece: bytes) -> None:
        self.piece = piece
        self.length = 8 * len(piece)
        self.start = 0
        """The bit that the windows begin with."""

    def window(self, at: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
        """Return the next 16 bits at each bit from about ``at`` on."""
        first = at // 8
        self.start = 8 * first
        some = self.piece[first : first + _CHUNK + _ROOM]
        padded = np.frombuffer(some + bytes(_BLOCK + 2), np.uint8).astype(np.uint32)
        words = padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
        shifts = np.arange(8, 0, -1, dtype=np.uint32)
        return (words[:, None] >> shifts & 0xFFFF).astype(np.uint16).reshape(-1)


def _read(frame: _Frame, scan: _Scan, piece: bytes, units: int) -> tuple[int, int]:
    """Read a piece's codes; return how many units are whole, and how many bytes are left over."""
    bits = _Bits(piece)
    if frame.progressive and scan.before:
        blocks = sum(_blocks(frame, scan, number) for number, _ in scan.components)
        good = min(units, bits.length // blocks)
        at = good * blocks
    else:
        read = _read_details if frame.progressive and scan.first else _read_blocks
        good, at, last = read(frame, scan, bits, units, at=0)
        if good < units and _ends(piece, last):
            return 0, 0
        if good == units and len(piece) - at // 8 > 1:
            *_, last = read(frame, scan, bits, _MANY, at=at)
            if last > at and _ends(piece, last):
                return 0, 0
    rest = piece[-(-at // 8) :] if good == units else b""
    return good, 0 if len(set(rest)) == 1 else len(rest)


def _ends(piece: bytes, at: int) -> bool:
    """Whether whole data could end here: only bits of 1 follow, up to the end of the byte."""
    left = 8 * len(piece) - at
    return 0 <= left < 8 and (not left or piece[-1] & (1 << left) - 1 == (1 << left) - 1)


def _blocks(frame: _Frame, scan: _Scan, number: int) -> int:
    one = frame.components[number]
    return one.across * one.down if len(scan.components) > 1 else 1


def _read_blocks(
    frame: _Frame, scan: _Scan, bits: _Bits, units: int, *, at: int
) -> tuple[int, int, int]:
    """Read whole blocks, or only their brightness in the first scan of a progressive JPEG.

    Returns:
        The number of good units, the bits where the last of them ends, and the last whole block.
    """
    unit, levels = [], {}
    for number, tables in scan.components:
        step = max(1, frame.steps.get(frame.components[number].table, 1))
        levels[number] = 0
        # Twice the range, as encoders may exceed it a little; the first scan may send fewer bits.
        most = 1024 // step + 2 + 1024 // (4 * step)
        unit += [(number, tables, most)] * _blocks(frame, scan, number)
    only_first = frame.progressive
    good, block = 0, at
    while good < units:
        window = bits.window(at)
        base, raw = bits.start, window.data
        ready = {tables: _looked_up(frame, tables, window, only_first) for _, tables, _ in unit}
        blocks = [(number, *ready[tables], most) for number, tables, most in unit]
        end = bits.length - base
        p, far = at - base, 8 * _CHUNK
        while good < units and p < far:
            for number, code, size, run, step_, most in blocks:
                s = size[p]
                p += code[p]
                if s:
                    if s > 15:
                        return good, at, block
                    value = raw[p] >> (16 - s)
                    if not value >> (s - 1):
                        value -= (1 << s) - 1
                    p += s
                    levels[number] += value
                    if not -most <= levels[number] <= most:
                        return good, at, block
                if run:
                    k = 1
                    while k < 64:
                        k += run[p]
                        p += step_[p]
                    if 64 < k < _END_OF_BLOCK:
                        return good, at, block
                if p > end:
                    return good, at, block
                block = base + p
            good += 1
            at = base + p
    return good, at, block


def _looked_up(
    frame: _Frame,
    tables: int,
    window: np.ndarray[tuple[int, ...], np.dtype[np.uint16]],
    only_first: bool,
) -> tuple[bytes, bytes, bytes, bytes]:
    """For each bit: length of the brightness's code, size of its value, coefficients, bits."""
    first = frame.codes[tables >> 4]
    code, size = first.lengths[window].tobytes(), first.sizes[window].tobytes()
    if only_first:
        return code, size, b"", b""
    runs, steps = frame.codes[16 + (tables & 15)].sequential
    return code, size, runs[window].tobytes(), steps[window].tobytes()


def _details(codes: _Codes, most: int) -> _Details:
    """For each 16 bits: how many coefficients a code goes on, and how many bits.

    A code that ends ``2 ** n`` blocks and more, with n up to ``most``, goes on by 128 + n.
    """
    symbols = np.frombuffer(codes.symbols, np.uint8)
    run, size = symbols >> 4, symbols & 15
    ends = (size == 0) & (run < 15)
    runs = np.where(ends, _END_OF_BLOCK + np.minimum(run, most), run + 1)
    steps = codes.lengths + np.where(ends, np.minimum(run, most), size)
    none = codes.lengths == 0
    runs[none], steps[none] = _NO_CODE, 1
    return runs.astype(np.uint8), steps.astype(np.uint8)


def _read_details(
    frame: _Frame, scan: _Scan, bits: _Bits, units: int, *, at: int
) -> tuple[int, int, int]:
    """Read the first scan of some coefficients of a progressive JPEG, as :func:`_read_blocks`."""
    runs, steps = frame.codes[_table(scan, scan.components[0][1])].progressive
    good = 0
    while good < units:
        window = bits.window(at)
        base, raw = bits.start, window.data
        run, step = runs[window].tobytes(), steps[window].tobytes()
        end, last = bits.length - base, scan.last
        p, far = at - base, 8 * _CHUNK
        while good < units and p < far:
            k = scan.first
            while k <= last:
                r = run[p]
                p += step[p]
                k += r
            blocks = 1
            if r >= _END_OF_BLOCK:
                n = r - _END_OF_BLOCK
                blocks = (1 << n) + (raw[p - n] >> (16 - n) if n else 0)
            elif k > last + 1:
                return good, at, at
            if p > end or good + blocks > units:
                return good, at, at
            good += blocks
            at = base + p
    return good, at, at
