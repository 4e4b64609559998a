"""Dividing pictures into train, val and test: stratified, by content, the same every time.

A picture's split follows from the seed and from its own pixels: not from its name, not from the
order of the files, and little from the other pictures. Pictures with equal pixels stay together, so
copies are never in two splits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fieldmark.seeding import mix, stream


def stratified(
    labels: npt.NDArray[np.int64],
    ids: npt.NDArray[np.uint64],
    *,
    shares: Sequence[float],
    seed: int,
) -> npt.NDArray[np.int64]:
    """Give every picture a split: 0 for the first share, 1 for the second, ...

    Each class is divided by itself. The first split (training) gets at least one picture of each
    class; every other split with a share gets at least one where the class has enough, the earlier
    splits first.

    Shape:
        labels and ids [N] to [N].
    """
    order = mix(seed, stream("split"), ids)
    parts = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(order[members], kind="stable")]
        groups = np.split(members, np.flatnonzero(np.diff(order[members])) + 1)
        for index, part in _assign([len(g) for g in groups], shares).items():
            parts[groups[index]] = part
    return parts


def _assign(sizes: list[int], shares: Sequence[float]) -> dict[int, int]:
    """Give groups of equal pictures to later splits until each has its share; the rest train."""
    n, given, taken = sum(sizes), {}, 0
    for part in range(len(shares) - 1, 0, -1):
        wanted = round(n * shares[part]) or int(shares[part] > 0)
        kept = 1 + sum(share > 0 for share in shares[1:part])  # one for each earlier split
        got = 0
        while got < wanted and taken < len(sizes) - kept:
            given[taken] = part
            got += sizes[taken]
            taken += 1
    return given
