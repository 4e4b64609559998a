"""From what a reader found to a checked data set: every picture is opened once before training.

Opening all of them first costs one pass. It finds the bad files before any time is spent, each
picture's identity (a hash of its content, which decides its split and all its random draws),
copies in different splits, and sizes; and it keeps the decoded pictures, so that no epoch decodes
one again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from fieldmark.data.dataset import BadFile, Dataset, Entry, Found, Part
from fieldmark.data.split import stratified
from fieldmark.data.store import Pictures
from fieldmark.errors import DataError
from fieldmark.names import shown
from fieldmark.pictures import samples
from fieldmark.pictures.decode import DAMAGED
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture, Deep
from fieldmark.progress import OnProgress
from fieldmark.seeding import permutation, stream
from fieldmark.settings.config import PARTS, DataFacts, TrainConfig, split_shares

TINY = 64
"""Pixels of the shorter side up to which a picture is opened by the interpreter rather than by the
decoder. Threads then only take the interpreter from each other: 10,000 pictures of 32 px took 0.85
s with one, 1.15 s with two and 2.5 s with sixteen (``docs/log.md``)."""


@dataclass(frozen=True)
class _Seen:
    """What is known of a picture once it was opened."""

    identity: str
    side: int
    notes: tuple[str, ...]
    deep: Deep | None


@dataclass(frozen=True)
class Opened:
    """Pictures that were all opened once, and are not divided into splits yet."""

    found: Found
    pictures: Pictures
    seen: Mapping[str, _Seen]
    bad: list[BadFile]

    def divide(self, config: TrainConfig, *, at_end: bool = False) -> Dataset:
        """Divide them into splits, as ``split``, ``split_seed`` and ``whole_batches`` say.

        With ``at_end``, ``whole_batches`` leaves out the last pictures, as runs of format 1 did
        before it drew them: such runs are resumed with it.

        Raises:
            DataError: if too few are left, or ``fail_on_leak`` is set and copies lie in two splits.
        """
        found, seen = self.found, self.seen
        entries = [e for e in found.entries if e.key in seen]
        parts, notes = _divide(found, entries, seen, config)
        warnings = _leaks(parts, fail=config.fail_on_leak)
        if config.whole_batches:
            notes.append(_whole_batches(parts, config, at_end=at_end))
        if len(parts["val"]) == 0:
            parts["val"] = parts["test"]
            if config.keep != "last":
                warnings.append(
                    "the test split validates every epoch and so chooses the one it is scored by: "
                    "its figures flatter (split with a val share of 0)"
                )
            elif config.val_decides:
                warnings.append(
                    "the test split validates every epoch, and callbacks decide by it when the "
                    "rate falls or training ends: its figures flatter (split with a val share of 0)"
                )
            else:
                notes.append(
                    "the test split validates every epoch (split with a val share of 0); the last "
                    "epoch is kept, so it chooses none"
                )
        warnings += _thin_classes(parts, found.class_names, balanced=config.balance)
        return _dataset(found, parts, self.pictures, seen, self.bad, notes, warnings, config.range)


def open_pictures(
    found: Found, config: TrainConfig, *, threads: int, progress: OnProgress | None = None
) -> Opened:
    """Open every picture, and leave out the bad ones.

    Raises:
        DataError: if too many pictures are bad.
    """
    return Opened(found, *_open_and_judge(found, config, threads, progress))


def check_only(
    found: Found, config: TrainConfig, *, threads: int, progress: OnProgress | None = None
) -> Dataset:
    """Open pictures that are to be scored: all of them are the test split.

    Raises:
        DataError: if too many pictures are bad.
    """
    pictures, seen, bad = _open_and_judge(found, config, threads, progress)
    entries = [e for e in found.entries if e.key in seen]
    labels = np.array([e.label for e in entries], dtype=np.int64)
    digests = [seen[e.key].identity for e in entries]
    parts = {"test": _part(np.arange(len(entries)), entries, labels, digests)}
    return _dataset(found, parts, pictures, seen, bad, [], [], config.range)


def _open_and_judge(
    found: Found, config: TrainConfig, threads: int, progress: OnProgress | None
) -> tuple[Pictures, dict[str, _Seen], list[BadFile]]:
    """Open everything; stop when more pictures are bad than allowed."""
    limits = PictureLimits.of(config, size=config.size)
    pictures = Pictures.of(found.load, config, limits=limits)
    seen: dict[str, _Seen] = {}
    bad: list[BadFile] = []
    for key, result in _open_all(found.entries, pictures, threads, progress):
        if isinstance(result, BadPicture):
            bad.append(BadFile(key, result.reason, result.detail))
        else:
            seen[key] = result
    bad.sort(key=lambda b: b.key)
    _judge_bad(found, bad, config.on_bad)
    return pictures, seen, bad


def _dataset(
    found: Found,
    parts: Mapping[str, Part],
    pictures: Pictures,
    seen: Mapping[str, _Seen],
    bad: list[BadFile],
    notes: list[str],
    warnings: list[str],
    scale: str,
) -> Dataset:
    """Make the data set from the splits and the facts."""
    main = parts.get("train", parts.get("test"))
    assert main is not None
    scale, about_scale, mixed = _scale([seen[key] for key in main.keys], scale)
    about_files, damaged = _unusual(seen, scale)
    counts = main.counts(len(found.class_names))
    left_out = (
        [f"left out because they cannot be used: {len(bad)} ({_reasons(bad)})"] if bad else []
    )
    if pictures.disk is not None and pictures.disk.warning:
        left_out.append(
            f"some pictures are decoded in every epoch: {pictures.disk.warning}; raise --memory-gb "
            "or --disk-gb, make room (fieldmark cache --prune 0), or choose --disk-gb 0"
        )
    return Dataset(
        name=found.name,
        class_names=found.class_names,
        parts=parts,
        read=pictures,
        facts=DataFacts(
            num_classes=len(found.class_names),
            num_train=len(main),
            smallest_class=int(counts.min()),
            largest_class=int(counts.max()),
            median_side=int(np.median([seen[k].side for k in main.keys])),
        ),
        fingerprint=fingerprint(parts),
        bad=tuple(bad),
        scale=scale,
        notes=(*found.notes, *notes, *about_scale, *about_files),
        warnings=(*found.warnings, *warnings, *mixed, *damaged, *left_out),
    )


def _scale(pictures: list[_Seen], scale: str) -> tuple[str, list[str], list[str]]:
    """Choose the scale of samples of more than 8 bits; return it, a note and warnings."""
    deep = [each.deep for each in pictures if each.deep is not None]
    if not deep:
        return ("type" if scale == "data" else scale), [], []
    few = 2 * len(deep) <= len(pictures)
    why = "as --range says"
    if scale == "data":
        scale = "type" if few else samples.chosen(deep)
        why = "of its type, as most pictures have 8 bits" if few else "from the training pictures"
    kinds = Counter(each.kind for each in deep)
    counts = ", ".join(f"{kind} in {n} pictures" for kind, n in kinds.most_common())
    words = {"type": "the range", "picture": "each picture's own range"}
    black = words.get(scale) or "{} is black and {} white".format(*scale.split(","))
    note = f"samples of {counts}: {black}, {why}; --range LOW,HIGH chooses another"
    warnings = []
    if len(deep) < len(pictures):
        warnings.append(
            f"{len(deep)} of {len(pictures)} pictures have samples of more than 8 bits, and only "
            f"these are scaled ({black}); compare a few, and choose --range LOW,HIGH"
        )
    if len(kinds) > 1:
        warnings.append(f"different kinds of samples have one scale: {counts} ({black})")
    return scale, [note], warnings


def _unusual(seen: Mapping[str, _Seen], scale: str) -> tuple[list[str], list[str]]:
    """One line for each kind of note on files: notes, and warnings where pixels are missing."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(seen):
        for note in seen[key].notes:
            if note.startswith(samples.OFF_SCALE) and scale != "type":
                continue  # they were opened before the scale was chosen
            kind = re.sub(r"[\d.]+%?", "", note.partition(" (")[0].partition(":")[0])
            kinds.setdefault(kind, []).append((key, note))
    notes: list[str] = []
    warnings: list[str] = []
    for kind, found in kinds.items():
        key, note = found[0]
        more = f"; and {len(found) - 1} more" if len(found) > 1 else ""
        damaged = kind.startswith(DAMAGED)
        word = "damaged" if damaged else "unusual"
        text = f"used, but {word}: {len(found)} ({shown(key)}: {note}{more})"
        (warnings if damaged else notes).append(text)
    return notes, warnings


def decoded_for(dataset: Dataset, limits: PictureLimits) -> Dataset:
    """Return the data set with its JPEGs decoded as other limits ask."""
    if not isinstance(dataset.read, Pictures):  # the pictures are those of a finished run
        return dataset
    return dataclasses.replace(dataset, read=dataset.read.at(limits))


def _open_all(
    entries: tuple[Entry, ...],
    pictures: Pictures,
    threads: int,
    progress: OnProgress | None,
) -> Iterator[tuple[str, _Seen | BadPicture]]:
    """Open all pictures in threads (decoders release the interpreter's lock); order is not kept.

    Threads get blocks of pictures, and few blocks at a time, so that an interrupt is answered at
    once and a million entries need no million futures. Tiny pictures are one block.
    """

    def open_block(block: tuple[Entry, ...]) -> list[tuple[str, _Seen | BadPicture]]:
        return [(entry.key, _open(entry.key, pictures)) for entry in block]

    size, most = max(1, min(64, len(entries) // (8 * threads))), 4 * threads
    blocks = (entries[i : i + size] for i in range(0, len(entries), size))
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="scan") as pool:
        waiting: set[Future[list[tuple[str, _Seen | BadPicture]]]] = set()
        try:
            for block in blocks:
                waiting.add(pool.submit(open_block, block))
                while len(waiting) >= most:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in finished:
                        results = future.result()
                        yield from results
                        done += size
                        most = 1 if _are_tiny(results) else 4 * threads
                    if progress is not None:
                        progress(min(done, len(entries)), len(entries))
            for future in waiting:
                yield from future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if progress is not None:
        progress(len(entries), len(entries))


def _open(key: str, pictures: Pictures) -> _Seen | BadPicture:
    try:
        picture = pictures.picture(key)
    except BadPicture as bad:
        return bad
    return _Seen(picture.identity, picture.side, picture.notes, picture.deep)


def _are_tiny(results: list[tuple[str, _Seen | BadPicture]]) -> bool:
    return all(isinstance(each, _Seen) and each.side <= TINY for _, each in results)


def _reasons(bad: list[BadFile]) -> str:
    counts = Counter(b.reason for b in bad)
    return ", ".join(f"{reason} {n}" for reason, n in counts.most_common())


def _told(bad: BadFile) -> str:
    return f"{bad.reason} ({shown(bad.detail)})" if bad.detail else bad.reason


def _judge_bad(found: Found, bad: list[BadFile], on_bad: str) -> None:
    """Raise a DataError when more pictures are bad than the user allows."""
    n = len(found.entries)
    limit = {"stop": 0, "exclude": n - 1, "limit": max(10, n // 100)}[on_bad]
    if len(bad) <= limit and len(bad) < n:
        return
    examples = "\n".join(f"  {shown(b.key)}: {_told(b)}" for b in bad[:5])
    more = f"\n  and {len(bad) - 5} more" if len(bad) > 5 else ""
    remedy = (
        "no picture is left"
        if len(bad) == n
        else f"--on-bad {on_bad} allows {limit}; mend or remove them, "
        "or leave them all out with --on-bad exclude"
    )
    raise DataError(
        f"{len(bad)} of {n} pictures in {shown(found.name)} cannot be used "
        f"({_reasons(bad)}); {remedy}\n{examples}{more}"
    )


def _divide(
    found: Found, entries: list[Entry], seen: Mapping[str, _Seen], config: TrainConfig
) -> tuple[dict[str, Part], list[str]]:
    """Take the data set's own splits, and divide off those that it lacks."""
    labels = np.array([e.label for e in entries], dtype=np.int64)
    digests = [seen[e.key].identity for e in entries]
    ids = np.array([int(d[:16], 16) for d in digests], dtype=np.uint64)
    train_share, val_share, test_share = split_shares(config.split)
    own = {e.part for e in entries}
    place = np.array([-1 if e.part is None else PARTS.index(e.part) for e in entries])
    notes = []
    if own == {None}:
        place = stratified(
            labels, ids, shares=(train_share, val_share, test_share), seed=config.split_seed
        )
        notes.append(f"divided by class into {'/'.join(PARTS)} with split {config.split}")
    elif "val" not in own and val_share > 0:
        train = np.flatnonzero(place == 0)
        share = val_share / (train_share + val_share)
        shares = (1 - share, share)
        cut = stratified(labels[train], ids[train], shares=shares, seed=config.split_seed)
        place[train] = cut
        notes.append(f"no val split: {share:.1%} of train is kept for validation")
    parts = {
        name: _part(np.flatnonzero(place == i), entries, labels, digests)
        for i, name in enumerate(PARTS)
    }
    held_out = len(parts["val"]) > 0
    if len(parts["test"]) == 0:
        del parts["test"]
        chose = "" if config.keep == "last" else ", which chose the epoch"
        notes.append(f"no test split: the final score will be validation's{chose}")
    elif val_share == 0 and "val" not in own:
        held_out = True
    if len(parts["train"]) == 0 or not held_out:
        raise DataError(
            f"{shown(found.name)} has {len(entries)} usable pictures, too few to train with and "
            "keep some for validation; at least two of each class are needed"
        )
    empty = parts["train"].counts(len(found.class_names)) == 0
    if empty.any():
        names = ", ".join(shown(found.class_names[i]) for i in np.flatnonzero(empty)[:5])
        raise DataError(
            f"no usable training picture of class {names}; add some or remove the class"
        )
    return parts, notes


def _whole_batches(parts: dict[str, Part], config: TrainConfig, *, at_end: bool) -> str:
    """Leave out pictures of val and test, drawn at random, so that the rest fills whole batches.

    Raises:
        DataError: if that leaves nothing.
    """
    said, size = [], config.batch_size
    for name in PARTS[1:]:
        part = parts.get(name)
        if part is None or (name == "val" and len(part) == 0):
            continue
        n = len(part) // size * size
        if n == 0:
            raise DataError(
                f"the {name} split has {len(part)} pictures, less than one batch of {size}; choose "
                "a smaller --batch-size or score all with --no-whole-batches"
            )
        said.append(f"{len(part) - n} of {name}")
        order = permutation(part.ids, config.split_seed, stream("whole batches"))
        kept = np.arange(n) if at_end else np.sort(order[:n])
        parts[name] = part.take(kept)
    return f"whole batches of {size} only are scored; left out: {', '.join(said)}"


def _part(
    members: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    entries: list[Entry],
    labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    digests: list[str],
) -> Part:
    return Part(
        keys=tuple(entries[i].key for i in members),
        labels=labels[members],
        digests=tuple(digests[i] for i in members),
    )


def _leaks(parts: Mapping[str, Part], *, fail: bool) -> list[str]:
    """Find copies of a picture in two splits, or in two classes."""
    homes: dict[str, list[tuple[str, int]]] = {}
    for name, part in parts.items():
        for i, key in enumerate(part.digests):
            homes.setdefault(key, []).append((name, i))
    across, twice = [], []
    for places in homes.values():
        if len(places) < 2:
            continue
        first = places[0]
        for other in places[1:]:
            if other[0] != first[0]:
                across.append((first, other))
            if parts[other[0]].labels[other[1]] != parts[first[0]].labels[first[1]]:
                twice.append((first, other))

    def pairs(which: list[tuple[tuple[str, int], tuple[str, int]]]) -> str:
        texts = [" = ".join(shown(parts[p].keys[i]) for p, i in pair) for pair in which[:3]]
        return "; ".join(texts) + (f"; and {len(which) - 3} more" if len(which) > 3 else "")

    warnings = []
    if across:
        text = f"in two splits, so that scores will be too good: {len(across)} ({pairs(across)})"
        if fail:
            raise DataError(text + ". Remove the copies, or leave out --fail-on-leak")
        warnings.append(text)
    if twice:
        warnings.append(f"labelled two ways: {len(twice)} ({pairs(twice)})")
    return warnings


def _thin_classes(
    parts: Mapping[str, Part], class_names: tuple[str, ...], *, balanced: bool
) -> list[str]:
    """Warn of classes that cannot be judged, and of very unequal ones."""
    warnings = []
    for name in ("val", "test"):
        if name in parts:
            empty = np.flatnonzero(parts[name].counts(len(class_names)) == 0)
            if len(empty):
                names = ", ".join(shown(class_names[i]) for i in empty[:8])
                more = f" and {len(empty) - 8} more" if len(empty) > 8 else ""
                warnings.append(f"no {name} picture of {names}{more}: nothing can be said of them")
    counts = parts["train"].counts(len(class_names))
    low, high = int(counts.argmin()), int(counts.argmax())
    if counts[high] >= 5 * counts[low] and not balanced:
        warnings.append(
            f"classes are unequal: {counts[high]} training pictures of {shown(class_names[high])}, "
            f"{counts[low]} of {shown(class_names[low])}; --balance draws them equally often"
        )
    return warnings


def fingerprint(parts: Mapping[str, Part]) -> str:
    """Hash all splits: which pictures they have, and with which labels."""
    hasher = hashlib.sha256()
    for name in PARTS:
        part = parts.get(name)
        if part is not None:
            rows = zip(part.digests, part.labels.tolist(), part.keys, strict=True)
            for row in sorted(rows):
                hasher.update(repr((name, *row)).encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()
