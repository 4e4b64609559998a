"""Batches of pixels: which pictures, in which order, augmented how. Threads only work ahead.

An epoch's batches are a pure function of (pictures, seed, epoch); the number of threads decides
when they are made, never what they are.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch

from fieldmark.augment import Pipeline, build
from fieldmark.augment.ops import put
from fieldmark.data.dataset import Part
from fieldmark.data.store import Memory, Pictures
from fieldmark.pictures.inputs import InputSpec, Pixels
from fieldmark.pictures.picture import U8
from fieldmark.seeding import I64, U64, Bools, mix, permutation, stream

PROCESSOR = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Pixels and labels of one step."""

    images: torch.Tensor
    """[B, 3, S, S] in 0..255, as resized, or float32 after augmentation. Never write to it: it may
    be the memory that keeps pictures for the next epochs."""
    labels: torch.Tensor
    """[B] int64"""
    indices: I64
    """[B] places in the split."""
    waited: float = 0.0
    """Seconds the consumer waited for this batch."""


def steps_per_epoch(pictures: int, batch_size: int, *, last: str) -> int:
    """Number of batches that so many pictures make; ``last`` says what becomes of the remainder."""
    whole, rest = divmod(pictures, batch_size)
    return whole + (rest > 0 and (last != "drop" or whole == 0))


class Batches:
    """Makes the batches of one split.

    Pictures that every epoch resizes to the input in the same way are kept resized, as far as the
    memory budget allows that they share with decoded ones. If all of them have room on the GPU,
    they are kept there and batches are made there. ``fast`` resizes them by a quicker kernel, for
    training only (``inputs``).
    """

    def __init__(
        self,
        part: Part,
        read: Callable[[str], U8],
        *,
        spec: InputSpec,
        augment: Pipeline,
        batch_size: int,
        seed: int,
        balance: bool = False,
        last: str = "even",
        threads: int = 1,
        fast: bool = False,
        device: torch.device = PROCESSOR,
    ) -> None:
        self.part = part
        self.spec = spec
        self._read = read
        self._augment = augment
        self._batch_size = batch_size
        self._seed = seed
        self._balance = balance
        self._last = last
        self._threads = threads
        self._fast = fast
        self._ids = part.ids
        self._labels = torch.from_numpy(part.labels)
        self._device = device
        self._resident: torch.Tensor | None = None
        """[N, 3, S, S], all resized pictures on the device, in the split's order."""
        self._settles = augment.deterministic_picture and _has_room(part, spec, device)
        self._held: _Held | None = None
        if augment.deterministic_picture and not self._settles:
            self._held = _Held(part, spec, read)
            weakref.finalize(self, self._held.give_back)

    def __len__(self) -> int:
        """Number of batches (steps) in an epoch of all pictures; at least one."""
        return self.steps(len(self.part))

    def steps(self, pictures: int) -> int:
        """Number of batches in an epoch of so many of the pictures."""
        return steps_per_epoch(pictures, self._batch_size, last=self._last)

    def epoch(
        self, epoch: int, *, start: int = 0, only: Bools | None = None
    ) -> Generator[Batch, None, None]:
        """Make the batches of an epoch in training order, from batch ``start`` on.

        ``only`` says for each picture of the split if the epoch has it (not with balance). With
        ``last="even"`` batches differ by one picture at most, so that none is tiny; "keep" has a
        smaller last one, "drop" leaves it out.
        """
        indices, identities = self._balanced(epoch) if self._balance else self._shuffled(epoch)
        if only is not None:
            here = only[indices]
            indices, identities = indices[here], identities[here]
        steps = self.steps(len(indices))
        even = self._last == "even"
        where = steps if even else np.arange(1, steps + 1) * self._batch_size
        sizes = [len(piece) for piece in np.array_split(indices, where)][:steps]
        groups = self._grouped(sizes[start:])
        ends = np.cumsum([sum(sizes[:start]), *map(sum, groups)])
        tasks = [
            partial(self._make, indices[a:b], identities[a:b], epoch) for a, b in pairwise(ends)
        ]
        return self._ahead(tasks, groups)

    def in_order(self) -> Generator[Batch, None, None]:
        """Make batches of every picture once, in the split's order, without augmentation."""
        tasks = self._blocks()
        return self._ahead(tasks, [[self._batch_size]] * len(tasks))

    def _blocks(self) -> list[Callable[[], Batch]]:
        starts = range(0, len(self.part), self._batch_size)
        blocks = [np.arange(s, min(s + self._batch_size, len(self.part))) for s in starts]
        return [partial(self._make, i, None, 0) for i in blocks]

    def _grouped(self, sizes: list[int]) -> list[list[int]]:
        """Group the sizes of batches made at once: one, or on a GPU as many as keep it busy."""
        pictures = AT_ONCE // (3 * self.spec.size**2) if self._settles else 0
        many = max(1, pictures // self._batch_size)
        return [sizes[i : i + many] for i in range(0, len(sizes), many)]

    def _shuffled(self, epoch: int) -> tuple[I64, U64]:
        order = permutation(self._ids, self._seed, stream("order"), epoch)
        return order, self._ids[order]

    def _balanced(self, epoch: int) -> tuple[I64, U64]:
        """Pick as many pictures as there are, every class equally often.

        Each class goes through its pictures in a new order whenever it has shown them all, across
        epochs, so that no picture comes a third time before every other came a second time. Picks
        that do not divide evenly go to the classes in turn.
        """
        classes = np.unique(self.part.labels)
        indices, repeats = [], []
        for column, label in enumerate(classes):
            members = np.flatnonzero(self.part.labels == label)
            first, last = (
                -(-(e * len(self.part) - column) // len(classes)) for e in (epoch, epoch + 1)
            )  # of all picks since the start, this class has every len(classes)-th
            turn, place = np.divmod(np.arange(first, last), len(members))
            orders = {
                t: members[permutation(self._ids[members], self._seed, stream("balance"), int(t))]
                for t in np.unique(turn)
            }
            indices.append(
                np.array([orders[t][p] for t, p in zip(turn, place, strict=True)], dtype=np.int64)
            )
            repeats.append(turn.astype(np.uint64))
        flat = np.concatenate(indices)
        identities = mix(self._ids[flat], np.concatenate(repeats))
        order = np.argsort(mix(self._seed, stream("balance order"), epoch, identities))
        return flat[order], identities[order]

    def _make(self, indices: I64, identities: U64 | None, epoch: int) -> Batch:
        """Read, resize and augment the pictures of one batch."""
        labels = self._labels[torch.from_numpy(indices)]
        if self._resident is None:
            images = self._resized(indices, identities, epoch)
        else:
            images = self._resident.index_select(0, put(indices, self._device))
            labels = put(labels.numpy(), self._device)
        if identities is not None:
            images = self._augment.batch(
                images, seed=self._seed, epoch=epoch, identities=identities
            )
        if self._device.type == "cuda" and not labels.is_cuda:  # which copies from nowhere else
            images, labels = images.pin_memory(), labels.pin_memory()  # without waiting
        return Batch(images, labels, indices)

    def _settle(self) -> None:
        """Copy all pictures, resized, to the GPU, if it keeps them."""
        if not self._settles or self._resident is not None:
            return
        size = self.spec.size
        kind = torch.from_numpy(np.empty(0, self.spec.number_type)).dtype
        resident = torch.empty((len(self.part), 3, size, size), dtype=kind, device=self._device)
        with closing(self._in_threads(self._blocks())) as blocks:
            for block in blocks:
                here = slice(block.indices[0], block.indices[-1] + 1)
                resident[here].copy_(block.images, non_blocking=True)
        self._resident = resident

    def _resized(self, indices: I64, identities: U64 | None, epoch: int) -> torch.Tensor:
        """Return pictures resized to the input: kept ones in one go, the others one by one."""
        held = self._held
        rows = None if held is None else held.find(indices)
        if held is not None and rows is not None:
            if (rows >= 0).all():
                return torch.from_numpy(held.images.take(rows, axis=0))
            if (here := held.reserve(indices)) is not None:
                # Resized where they stay, and the batch is a view of that: memory that is touched
                # for the first time costs as much as resizing.
                for place, index in enumerate(indices):
                    held.images[here.start + place] = self._resize_one(index, None, epoch, place)
                held.publish(indices, here)
                return torch.from_numpy(held.images[here])
        shape = (len(indices), 3, self.spec.size, self.spec.size)
        images = np.empty(shape, dtype=self.spec.number_type)
        for place, index in enumerate(indices):
            if held is None or rows is None:
                images[place] = self._resize_one(index, identities, epoch, place)
            elif rows[place] >= 0:
                images[place] = held.images[rows[place]]
            else:
                images[place] = self._resize_one(index, None, epoch, place)
                held.keep(index, images[place])
        return torch.from_numpy(images)

    def _resize_one(self, index: int, identities: U64 | None, epoch: int, place: int) -> Pixels:
        image = self._read(self.part.keys[index])
        if identities is None:
            return self.spec.pixels(image, fast=self._fast)
        return self._augment.picture(
            image,
            spec=self.spec,
            seed=self._seed,
            epoch=epoch,
            identity=int(identities[place]),
            fast=self._fast,
        )

    def _ahead(
        self, tasks: Sequence[Callable[[], Batch]], sizes: Sequence[Sequence[int]]
    ) -> Generator[Batch, None, None]:
        """Yield in order what the tasks make, each result cut into batches of those sizes."""
        start = time.perf_counter()
        self._settle()
        spent = time.perf_counter() - start
        with closing(self._in_threads(tasks)) as made:
            for many, cuts in zip(made, sizes, strict=True):
                waited, end = many.waited + spent, 0
                for size in cuts:
                    here = slice(end, end := end + size)
                    yield Batch(many.images[here], many.labels[here], many.indices[here], waited)
                    waited = 0.0
                spent = 0.0

    def _in_threads(self, tasks: Sequence[Callable[[], Batch]]) -> Generator[Batch, None, None]:
        """Run tasks a little ahead of the consumer."""
        # On a GPU a batch is a few launches, which threads would only take from each other.
        threads = self._threads if self._resident is None else 1
        pool = ThreadPoolExecutor(
            threads, thread_name_prefix="batches", initializer=_single_threaded
        )
        waiting: deque[Future[Batch]] = deque()
        stopped = False
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > threads + 1:
                    yield _timed(waiting.popleft())
            while waiting:
                yield _timed(waiting.popleft())
        except KeyboardInterrupt:  # saving comes first; the threads end by themselves
            stopped = True
            raise
        finally:
            pool.shutdown(wait=not stopped, cancel_futures=True)


SCORING_BATCH, SCORING_BATCH_GPU = 64, 512


def scoring_batches(
    part: Part,
    read: Callable[[str], U8],
    *,
    spec: InputSpec,
    threads: int,
    device: torch.device = PROCESSOR,
) -> Batches:
    """Make the batches of a split in order and without augmentation, as every score uses them."""
    return Batches(
        part,
        read,
        spec=spec,
        augment=build("none"),
        batch_size=SCORING_BATCH if device.type == "cpu" else SCORING_BATCH_GPU,
        seed=0,
        threads=threads,
        device=device,
    )


AT_ONCE = 2**25
"""Number of pixel values that a GPU augments at once."""
RESIDENT = 0.25
"""Share of a GPU's free memory that the pictures of a split may take."""


def _has_room(part: Part, spec: InputSpec, device: torch.device) -> bool:
    """Whether the device is a GPU with room for the split's resized pictures."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return len(part) * _row_bytes(spec) <= RESIDENT * free


def _row_bytes(spec: InputSpec) -> int:
    """Bytes of a resized picture."""
    return 3 * spec.size**2 * spec.number_type.itemsize


_ABSENT, _RESERVED = -1, -2


class _Held:
    """Resized pictures of a split, as many as the memory budget allows. Thread-safe."""

    def __init__(self, part: Part, spec: InputSpec, read: Callable[[str], U8]) -> None:
        self._keys = part.keys
        self._pictures = read if isinstance(read, Pictures) else None
        self._memory = read.memory if isinstance(read, Pictures) else Memory.of(0.0)
        self._row_bytes = _row_bytes(spec)
        rows = min(len(part), self._memory.budget // self._row_bytes)
        # The system gives this memory as it is written to.
        self.images: Pixels = np.empty((rows, 3, spec.size, spec.size), dtype=spec.number_type)
        self._row = np.full(len(part), _ABSENT, dtype=np.int64)
        """Row of each picture; below 0 for those not held: ``_ABSENT``, or soon to be held."""
        self._used = 0
        self._lock = threading.Lock()

    def find(self, indices: I64) -> I64:
        """Rows [B] of pictures; below 0 for those that are not held."""
        return self._row[indices]

    def reserve(self, indices: I64) -> slice | None:
        """Reserve rows for a batch of which nothing is held; None if memory is too short for all.

        Then decoded pictures have to give way one by one.
        """
        number = len(indices)
        with self._lock:
            here = slice(self._used, self._used + number)
            if here.stop > len(self.images) or (self._row[indices] != _ABSENT).any():
                return None
            if len(np.unique(indices)) < number or not self._memory.take(number * self._row_bytes):
                return None
            self._row[indices] = _RESERVED
            self._used = here.stop
            return here

    def publish(self, indices: I64, here: slice) -> None:
        """Let other threads read the rows: their pictures are written."""
        self._row[indices] = np.arange(here.start, here.stop)

    def keep(self, index: int, pixels: Pixels) -> None:
        """Hold a resized picture if there is room, in place of the decoded one if need be."""
        with self._lock:
            if self._row[index] != _ABSENT or self._used == len(self.images):
                return
            if not self._take(self._keys[index]):
                return
            self.images[self._used] = pixels
            self._row[index] = self._used  # last: from now on others read it
            self._used += 1

    def give_back(self) -> None:
        """Give the memory back and hold nothing any more."""
        self._memory.give(self._used * self._row_bytes)
        self._used = 0

    def _take(self, key: str) -> bool:
        if self._pictures is None:
            return self._memory.take(self._row_bytes)
        return self._pictures.make_room(key, self._row_bytes)


def _timed(future: Future[Batch]) -> Batch:
    start = time.perf_counter()
    batch = future.result()
    return Batch(batch.images, batch.labels, batch.indices, time.perf_counter() - start)


def _single_threaded() -> None:
    """Reading threads compute with one thread each: the processor belongs to the training step."""
    torch.set_num_threads(1)
