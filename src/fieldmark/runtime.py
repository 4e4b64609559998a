"""Answers from an exported ONNX file, without torch: NumPy, Pillow and ONNX Runtime are enough.

    from fieldmark import runtime

    classifier = runtime.load("model.onnx")
    classifier.predict("new/*.jpg")

The file was written by ``fieldmark export``, which made sure that it answers as its run does. It
holds the network, the fitting of pictures, the class names and where it comes from. Pictures are
decoded here by the same decoder as everywhere. A file that is anything else is refused before ONNX
Runtime sees it: see :func:`check_bytes`.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldmark.errors import MissingExtraError, ResourceError, RunError
from fieldmark.files import lfs
from fieldmark.files.json_text import FORMAT
from fieldmark.jobs.given import Item, listed
from fieldmark.jobs.predict import Prediction, answers
from fieldmark.machine import memory
from fieldmark.machine.cores import threads_for
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8
from fieldmark.runs.model import ModelInfo
from fieldmark.seeding import F64

INPUT, OUTPUT, NAMES = "picture", "probabilities", "class_names"
"""Input and outputs of every exported graph."""
KEY, EXPORT_KEY = "fieldmark", "fieldmark_export"
"""Metadata: the model's description as in a run, and how it was exported."""

MAX_BYTES = 2**31 - 1
"""What a protocol buffer may have."""
_MANY_PIXELS = 4_000_000
_MAX_DEPTH = 16
MAX_NODES = 50_000
"""The largest export has a few thousand."""
MAX_MEMORY = 8 * 2**30
"""Bytes that all models of a process together may compute in; less where less is free."""
SECONDS = 60.0
"""Longest time that a model may take for one picture, and again for every ten more."""


class Classifier:
    """An exported model, ready to answer. Safe to use from several threads."""

    def __init__(
        self, session: Any, info: ModelInfo, exported: dict[str, Any], *, threads: int, where: str
    ):
        self._session = session
        self._threads = threads
        self._where = where
        self.info = info
        """What the run said of its model."""
        self.exported = exported
        """How the file was made: version, digest of the run's settings, precision, limits."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        return self.info.class_names

    @property
    def input(self) -> InputSpec:
        """How the graph fits pictures."""
        return self.info.input

    @property
    def limits(self) -> PictureLimits:
        """The limits within which pictures are decoded for it."""
        return self.input.limits(int(self.exported["max_pixels"]))

    def predict(
        self,
        pictures: Item | Sequence[Item],
        *,
        top: int = 5,
        max_pixels: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Prediction]:
        """Classify pictures, given as for ``Run.predict``; one answer or reason for each.

        Raises:
            DataError: if nothing was given, or an array is not a picture.
            RunError: if the model cannot be computed, or gives something else than probabilities.
        """
        return answers(
            listed(pictures),
            resize=lambda picture: picture,
            score=self.probabilities,
            class_names=self.class_names,
            top=top,
            limits=self.limits.or_more(max_pixels),
            threads=self._threads,
            block=2 * self._threads,
            progress=progress,
        )

    def probabilities(self, pictures: Sequence[U8]) -> F64:
        """The calibrated probability of every class; pictures of one size are scored together.

        Shape:
            N of uint8 [H, W, 3] to [N, K].
        """
        found = np.empty((len(pictures), len(self.class_names)))
        places: dict[tuple[int, ...], list[int]] = {}
        for place, picture in enumerate(pictures):
            places.setdefault(picture.shape, []).append(place)
        for which in places.values():
            found[which] = self._run(np.stack([pictures[i] for i in which]))
        return found

    def _run(self, batch: U8) -> npt.NDArray[np.float32]:
        """Compute a batch, in halves where memory does not suffice for all of it.

        Shape:
            uint8 [B, H, W, 3] to float32 [B, K].

        Raises:
            RunError: if it cannot be computed, or the answers are no probabilities.
        """
        options = onnx_runtime().RunOptions()
        if batch[..., 0].size > _MANY_PIXELS:  # give back what one large picture needed
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        seconds = SECONDS * (1 + len(batch) / 10)
        late = threading.Timer(seconds, setattr, (options, "terminate", True))
        late.daemon = True
        late.start()
        try:
            result: npt.NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: batch}, options)[
                0
            ]
        except Exception as error:  # ONNX Runtime's own classes share no ancestor but this
            why = " ".join(str(error).split())
            if len(batch) > 1 and not options.terminate and _is_memory(why):
                half = len(batch) // 2
                return np.concatenate([self._run(batch[:half]), self._run(batch[half:])])
            what = f"takes more than {seconds:g} s" if options.terminate else why[-200:]
            raise RunError(f"{self._where} cannot be computed: {what}") from None
        finally:
            late.cancel()
        if result.shape != (len(batch), len(self.class_names)):
            raise RunError(f"{self._where} gives no probability of every class: {result.shape}")
        if not (np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1 + _ROUNDING):
            raise RunError(
                f"{self._where} gives numbers that are no probabilities, such as "
                f"{result.ravel()[np.argmax(~(np.abs(result.ravel()) <= 1))]}; export the run again"
            )
        return result


_ROUNDING = 1e-2


def _is_memory(text: str) -> bool:
    return any(word in text.lower() for word in ("memory", "bad_alloc", "allocat"))


def load(path: str | os.PathLike[str], *, threads: int = 0) -> Classifier:
    """Open a file that ``fieldmark export --to onnx`` wrote.

    Args:
        path: The file.
        threads: To read and compute with; 0 for as many as there are cores.

    Raises:
        RunError: if it is not such a file, or not a safe one.
        ResourceError: if it cannot be read.
        MissingExtraError: if ONNX Runtime is not installed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"{path} has more than 2 GB; exported files have less")
        data = path.read_bytes()
    except OSError as error:
        raise ResourceError(f"cannot read {path}: {error.strerror or error}") from None
    return open_bytes(data, where=str(path), threads=threads)


def onnx_runtime() -> Any:
    """ONNX Runtime's module; the one way in, because importing it is what reports on its user.

    Raises:
        MissingExtraError: if it is not installed.
    """
    # Read once, at its import: else it leaves an identifier in the user's folders and reports.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module("onnxruntime")
    except ImportError:
        raise MissingExtraError(
            "ONNX files need ONNX Runtime; install it with: pip install onnxruntime"
        ) from None


def open_bytes(data: bytes, *, where: str, threads: int = 0) -> Classifier:
    """Open the content of such a file; ``where`` is what messages call it.

    Raises:
        RunError: if it is not such a file, or not a safe one.
        MissingExtraError: if ONNX Runtime is not installed.
    """
    if lfs.is_pointer(data[:64]):
        raise RunError(f"{where} is {lfs.ADVICE}")
    onnxruntime = onnx_runtime()
    metadata = check_bytes(data, where=where)
    if KEY not in metadata or EXPORT_KEY not in metadata:
        raise RunError(f"{where} was not written by `fieldmark export --to onnx`")
    info = ModelInfo.from_json(metadata[KEY], where=where)
    exported = _exported(metadata[EXPORT_KEY], where=where)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = count = threads_for(threads)
    options.log_severity_level = 4
    _limit_memory(onnxruntime)
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        session = onnxruntime.InferenceSession(
            data,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],  # which could not be stopped
        )
        inputs = [(i.name, i.type, i.shape[-1]) for i in session.get_inputs()]
        outputs = {o.name: (o.type, o.shape[-1]) for o in session.get_outputs()}
    except Exception as error:  # ONNX Runtime's own classes share no ancestor but this
        why = " ".join(str(error).split())[:200]
        raise RunError(f"{where} cannot be used by ONNX Runtime: {why}") from None
    answer = ("tensor(float)", len(info.class_names))
    if inputs != [(INPUT, "tensor(uint8)", 3)] or outputs.get(OUTPUT) != answer:
        raise RunError(f"{where} does not take pictures and give a probability of every class")
    classifier = Classifier(session, info, exported, threads=count, where=where)
    classifier.probabilities([np.full((16, 16, 3), 128, np.uint8)])  # refused now, or never
    return classifier


@functools.cache
def _limit_memory(onnxruntime: Any) -> None:
    """Limit what models may compute in; without effect where the process has done so already."""
    most = max(2**28, min(MAX_MEMORY, memory.free() * 3 // 4))
    kinds = onnxruntime.OrtAllocatorType, onnxruntime.OrtMemType
    place = onnxruntime.OrtMemoryInfo("Cpu", kinds[0].ORT_ARENA_ALLOCATOR, 0, kinds[1].DEFAULT)
    with contextlib.suppress(RuntimeError):
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(most, -1, -1, -1))


def _exported(text: str, *, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if value["format"] == FORMAT and int(value["max_pixels"]) > 0:
            return dict(value)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    raise RunError(f"{where} was exported by another version; this one reads format {FORMAT}")


# The parts of an ONNX file that are looked into: of each kind of message, the fields that are
# messages again. The numbers are those of onnx.proto.
_INSIDE = {
    "model": {7: "graph", 8: "opset", 14: "entry", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
}
_MANY_FIELDS = 5_000_000
_LOOPS = frozenset({"Loop", "Scan", "SequenceMap"})
_TOP = 2
"""How deep the operators of the outermost graph are."""
_TEXT = 8
"""The number of the type of texts."""
_REFUSED = {
    "training": "training steps",
    "function": "functions of its own",
    "sparse": "sparse tensors",
}


def check_bytes(data: bytes, *, where: str) -> dict[str, str]:
    """Look through an ONNX file for what no exported file has; returns its metadata.

    That is: weights in other files (which would be read from wherever the file says), operators
    that are not ONNX's own, functions, loops, training steps, tensors of texts, and tensors that
    claim to be larger than the file. ONNX's own reader is not needed for it and may not be
    installed.

    Raises:
        RunError: naming what was found, or that it is no ONNX file.
    """
    metadata: dict[str, str] = {}
    nodes = fields = 0

    def check(kind: str, message: memoryview, depth: int) -> None:
        nonlocal nodes, fields
        nodes += kind == "node"
        if nodes > MAX_NODES:
            raise RunError(f"{where} has more than {MAX_NODES} operators; exported files have less")
        if kind in _REFUSED:
            raise RunError(f"{where} has {_REFUSED[kind]}, which exported files do not have")
        if depth > _MAX_DEPTH:
            raise RunError(f"{where} has graphs in graphs in graphs; exported files do not")
        inside = _INSIDE.get(kind, {})
        elements, text = 1, {}
        for field, value in _fields(message):
            fields += 1
            if fields > _MANY_FIELDS:
                raise RunError(f"{where} has millions of parts; exported files have far less")
            if field in inside and isinstance(value, memoryview):
                check(inside[field], value, depth + 1)
            elif kind in ("opset", "entry", "node") and isinstance(value, memoryview):
                text[field] = bytes(value).decode("utf-8")
            elif kind == "tensor" and (field == 13 or (field == 14 and value != 0)):
                raise RunError(f"{where} keeps weights in other files; exported files hold theirs")
            elif kind == "tensor" and field == 2 and value == _TEXT:
                raise RunError(f"{where} computes with texts, which exported files do not")
            elif kind == "tensor" and field == 1:
                elements *= math.prod(_whole_numbers(value))
                if elements > 2 * len(data):  # two to a byte is the most there is
                    raise RunError(
                        f"{where} has a tensor of {elements} numbers in {len(data)} bytes"
                    )
        domain = text.get({"opset": 1, "node": 7}.get(kind, 0), "")
        if domain not in ("", "ai.onnx"):
            raise RunError(
                f"{where} has operators of {domain!r}; exported files have only ONNX's own"
            )
        if kind == "node":
            _check_node(message, text.get(4, ""), where=where, top=depth == _TOP)
        if kind == "entry":
            metadata[text.get(1, "")] = text.get(2, "")

    try:
        check("model", memoryview(data), 0)
    except (ValueError, IndexError, RecursionError):
        raise RunError(f"{where} is not an ONNX file, or a damaged one") from None
    return metadata


def _check_node(message: memoryview, operator: str, *, where: str, top: bool) -> None:
    """Refuse loops, which may never end, and texts, whose memory nothing limits.

    The class names are the one text that exported files have; nothing is computed with them.

    Raises:
        RunError: naming the operator.
    """
    if operator in _LOOPS:
        raise RunError(f"{where} has the operator {operator}; exported files have no loops")
    fields = [
        (field, bytes(value)) for field, value in _fields(message) if isinstance(value, memoryview)
    ]
    texts = operator.startswith("String") or (1, NAMES.encode()) in fields
    if operator == "Constant":
        holds_texts = any(
            field == 5 and _name_of(value).startswith(b"value_string") for field, value in fields
        )
        outputs = [value for field, value in fields if field == 2]
        texts |= holds_texts and not (top and outputs == [NAMES.encode()])
    if texts:
        raise RunError(f"{where} computes with texts, which exported files do not")


def _name_of(attribute: bytes) -> bytes:
    names = [value for field, value in _fields(memoryview(attribute)) if field == 1]
    return bytes(names[-1]) if names and isinstance(names[-1], memoryview) else b""


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protocol buffer: their numbers, and a number or bytes.

    Raises:
        ValueError: if it is none.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            number, at = _varint(message, at)
            yield field, number
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError("no such wire type")
        if size > len(message) - at:
            raise ValueError("cut off")
        yield field, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("a number without end")


def _whole_numbers(value: int | memoryview) -> list[int]:
    """A field of numbers that may have been packed into one."""
    if isinstance(value, int):
        return [value]
    if len(value) > 1000:
        raise ValueError("a tensor of very many dimensions")
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found
