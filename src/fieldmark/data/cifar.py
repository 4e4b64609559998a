"""CIFAR-10 and CIFAR-100 as published: folders of Python pickles, read without running any.

Python's own unpickler calls what a file names and allocates what a file declares. This module
carries out the few operations of CIFAR files itself, over the list that ``pickletools.genops``
parses: it imports nothing, calls nothing, and needs memory in proportion to the file.
"""

from __future__ import annotations

import math
import os
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldmark.data.dataset import Entry, Found
from fieldmark.errors import DataError
from fieldmark.pictures.picture import U8, BadPicture, InMemory
from fieldmark.seeding import I64

MAX_FILE_BYTES = 512 * 1024**2
"""Size above which a batch is refused unread; the largest published one has 155 MB."""

PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """One of the two published data sets."""

    title: str
    folder: str
    """Name of the folder inside the published archive."""
    batches: dict[str, str]
    """From file name to split."""
    meta: str
    names_key: str
    labels_key: str
    class_names: tuple[str, ...]
    """Class names where the meta file is missing."""


_CIFAR10 = _Layout(
    title="CIFAR-10",
    folder="cifar-10-batches-py",
    batches={**{f"data_batch_{i}": "train" for i in range(1, 6)}, "test_batch": "test"},
    meta="batches.meta",
    names_key="label_names",
    labels_key="labels",
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
)
_CIFAR100 = _Layout(
    title="CIFAR-100",
    folder="cifar-100-python",
    batches={"train": "train", "test": "test"},
    meta="meta",
    names_key="fine_label_names",
    labels_key="fine_labels",
    class_names=tuple(f"class {i:02d}" for i in range(100)),
)


def is_cifar(path: Path) -> bool:
    """Whether a folder holds CIFAR batches, or one of the published folders does so inside it."""
    return bool(_places(path))


def read_cifar(path: Path) -> Found:
    """Read CIFAR-10, or CIFAR-100 with its fine labels, into memory.

    Batches may hold any number of pictures, so that a data set packed in this format works too.

    Raises:
        DataError: naming the file, if one is missing, is damaged, or holds anything else.
    """
    places = _places(path)
    if len(places) != 1:
        found = " and ".join(str(folder) for folder, _ in places) or "neither"
        raise DataError(
            f"{path} must hold the Python version of CIFAR-10 ({', '.join(_CIFAR10.batches)}) or "
            f"of CIFAR-100 ({', '.join(_CIFAR100.batches)}); found: {found}"
        )
    folder, layout = places[0]
    missing = [name for name in layout.batches if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}; {layout.title} consists of "
            f"{', '.join(layout.batches)}: copy the whole folder {layout.folder}"
        )
    names, notes = _class_names(folder / layout.meta, layout=layout)
    order = sorted(names)  # the same class order as for a folder of pictures
    rank = np.array([order.index(name) for name in names], dtype=np.int64)
    pixels: dict[str, U8] = {}
    entries: list[Entry] = []
    for name, part in layout.batches.items():
        pixels[name], labels = _read_batch(folder / name, layout=layout)
        width = max(5, len(str(len(labels) - 1)))
        entries.extend(
            Entry(f"{name}/{i:0{width}d}", label, part)
            for i, label in enumerate(rank[labels].tolist())
        )
    rows = {entry.key: int(entry.key.rpartition("/")[2]) for entry in entries}

    def load(key: str) -> InMemory:
        if key not in rows:
            raise BadPicture("no such picture", key)
        planes = pixels[key.partition("/")[0]][rows[key]].reshape(3, 32, 32)
        return InMemory(np.ascontiguousarray(planes.transpose(1, 2, 0)))  # [32, 32, 3]

    return Found(
        name=path.resolve().name,
        class_names=tuple(order),
        entries=tuple(sorted(entries, key=lambda entry: entry.key)),
        load=load,
        notes=(f"{folder.name} is {layout.title} in Python batches", *notes),
    )


def _places(path: Path) -> list[tuple[Path, _Layout]]:
    """Find the folders that hold CIFAR: the path itself, else the published folders inside it."""
    here = [(path, layout) for layout in (_CIFAR10, _CIFAR100) if _looks_like(path, layout)]
    return here or [
        (path / layout.folder, layout)
        for layout in (_CIFAR10, _CIFAR100)
        if _looks_like(path / layout.folder, layout)
    ]


def _looks_like(folder: Path, layout: _Layout) -> bool:
    present = sum((folder / name).is_file() for name in (*layout.batches, layout.meta))
    # One of CIFAR-10's names is telling; "train", "test" or "meta" alone could be anything.
    return present >= (1 if layout is _CIFAR10 else 2)


def _class_names(meta: Path, *, layout: _Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the class names in the file's order, and notes about them."""
    if not meta.is_file():
        kind = "published" if layout is _CIFAR10 else "numbered"
        return layout.class_names, (f"no {meta.name}: {kind} class names are used",)
    names = _field(_read_pickle(meta), layout.names_key, file=meta)
    wanted = len(layout.class_names)
    if not isinstance(names, list) or len(names) != wanted:
        size = f"{len(names)} names" if isinstance(names, list) else "no list"
        raise DataError(f"{meta}: {layout.names_key} has {size}; {wanted} names are accepted")
    texts = tuple(_text(name) for name in names)
    if len(set(texts)) != wanted or not all(text and text.strip() for text in texts):
        raise DataError(f"{meta}: {layout.names_key} must be {wanted} different texts, none empty")
    return tuple(text for text in texts if text), ()


def _read_batch(file: Path, *, layout: _Layout) -> tuple[U8, I64]:
    """Read and check the pixels [N, 3072] and labels [N] of one batch."""
    batch = _read_pickle(file)
    data = _field(batch, "data", file=file)
    labels = _labels(_field(batch, layout.labels_key, file=file), file=file, layout=layout)
    if not isinstance(data, np.ndarray):
        raise DataError(f"{file}: data is no array; uint8 [N, {PIXELS}] is accepted")
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != PIXELS or not len(data):
        raise DataError(
            f"{file}: data is {data.dtype} {list(data.shape)}; "
            f"uint8 [N, {PIXELS}] with N at least 1 is accepted"
        )
    if len(data) != len(labels):
        raise DataError(
            f"{file}: data has {len(data)} pictures and {layout.labels_key} has {len(labels)}; "
            "as many labels as pictures are accepted"
        )
    return data, labels


def _labels(values: object, *, file: Path, layout: _Layout) -> I64:
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu" and values.ndim == 1:
        values = values.tolist()
    top = len(layout.class_names) - 1
    accepted = f"a list of whole numbers 0 to {top} is accepted"
    if not isinstance(values, list):
        raise DataError(f"{file}: {layout.labels_key} is no list of whole numbers; {accepted}")
    for row, value in enumerate(values):
        # type() and not isinstance(): True is an int, and as a label a mistake
        if type(value) is not int:
            kind = type(value).__name__
            raise DataError(f"{file}: {layout.labels_key}[{row}] is a {kind}; {accepted}")
        if not 0 <= value <= top:
            shown = value if abs(value) < 10**9 else "huge"  # str() of a huge number can fail
            raise DataError(f"{file}: {layout.labels_key}[{row}] is {shown}; {accepted}")
    return np.array(values, dtype=np.int64)


def _field(value: dict[str, object], key: str, *, file: Path) -> object:
    if key not in value:
        has = ", ".join(sorted(value)[:8])[:200] or "nothing"
        raise DataError(f"{file} lacks {key!r}; it has {has}")
    return value[key]


def _text(value: object) -> str | None:
    """Return a text that Python 3 (str) or Python 2 (bytes) wrote; None for anything else."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None


def _read_pickle(file: Path) -> dict[str, object]:
    """Read a file that is a pickled dictionary of texts, numbers, lists and arrays.

    Raises:
        DataError: naming the file, if it is anything else.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise DataError(
                    f"{file} has {size} bytes; at most {MAX_FILE_BYTES // 1024**2} MB are accepted"
                )
            raw = stream.read(size)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    try:
        value = _unpickle(raw)
    except (DataError, ValueError, LookupError) as error:
        raise DataError(
            f"{file} is not a batch that can be read: {str(error)[:200]}. Accepted are the "
            "published CIFAR files, and dictionaries of lists and numpy arrays pickled likewise"
        ) from None
    texts = {_text(key): item for key, item in value.items()}
    return {key: item for key, item in texts.items() if key is not None}


def _unpickle(raw: bytes) -> dict[object, object]:
    machine = _Machine()
    # A published batch has one operation for about 400 bytes. A file of nothing but one-byte
    # operations, each making an object of 64 bytes and more, would fill the memory.
    limit = 10_000 + len(raw) // 100
    for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
        if count > limit:
            raise DataError(f"it has more than {limit} operations for {len(raw)} bytes")
        if opcode.name == "STOP":
            break
        machine.step(opcode.name, argument)
    value = machine.pop()
    if not isinstance(value, dict):
        raise DataError("it holds no dictionary")
    return value


@dataclass(frozen=True)
class _Function:
    """Stands for a function or class that a pickle may name; it is never imported."""

    name: str


@dataclass
class _Kind:
    """Stands for a numpy dtype, whose byte order comes after it in the pickle."""

    code: str
    order: str = "="

    def numpy(self) -> np.dtype[Any]:
        """Return the dtype; only plain numbers are allowed."""
        if self.code not in _NUMBERS or self.order not in ("=", "<", ">", "|"):
            raise DataError(
                f"an array of {self.order[:1]}{self.code[:20]}, which is no plain number"
            )
        return np.dtype(self.order + self.code)


@dataclass
class _Array:
    """Stands for a numpy array whose content comes later in the pickle."""

    values: npt.NDArray[Any] | None = None


_NUMBERS = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
_NUMPY = ("numpy.core", "numpy._core")  # before and since numpy 2
_FUNCTIONS = {
    ("numpy", "ndarray"): _Function("ndarray"),
    ("numpy", "dtype"): _Function("dtype"),
    ("_codecs", "encode"): _Function("encode"),  # how Python 3 writes bytes for Python 2
    ("builtins", "bytes"): _Function("bytes"),
    ("__builtin__", "bytes"): _Function("bytes"),
    **{(f"{top}.multiarray", "_reconstruct"): _Function("reconstruct") for top in _NUMPY},
    **{(f"{top}.multiarray", "scalar"): _Function("scalar") for top in _NUMPY},
    **{(f"{top}.numeric", "_frombuffer"): _Function("frombuffer") for top in _NUMPY},
}
_PY2_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MARK = object()


class _Machine:
    """The stack and memo of a pickle; every operation adds at most one object."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}  # a dict: a list would be as long as the largest number

    def step(self, name: str, argument: Any) -> None:
        """Carry out one operation."""
        push = self.stack.append
        if name in _VALUES:
            push(argument)
        elif name in _PY2_TEXTS:
            push(argument.encode("latin-1"))  # genops decoded it so
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        else:
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        push, pop = self.stack.append, self.pop
        match name:
            case "MARK":
                push(_MARK)
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "BYTEARRAY8":
                push(bytes(argument))
            case "LIST":
                push(self.pop_items())
            case "TUPLE":
                push(tuple(self.pop_items()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple([pop() for _ in range(int(name[-1]))][::-1]))
            case "DICT":
                push(_fill({}, self.pop_items()))
            case "SETITEM":
                item, key = pop(), pop()
                _fill(self.stack[-1], [key, item])
            case "SETITEMS":
                items = self.pop_items()
                _fill(self.stack[-1], items)
            case "APPEND":
                item = pop()
                _extend(self.stack[-1], [item])
            case "APPENDS":
                items = self.pop_items()
                _extend(self.stack[-1], items)
            case "GLOBAL":
                push(_function(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                push(_function(module, attribute))
            case "REDUCE":
                arguments, function = pop(), pop()
                push(_call(function, arguments))
            case "BUILD":
                state = pop()
                _set_state(self.stack[-1], state)
            case _:
                raise DataError(f"it uses the operation {name}, which no CIFAR file needs")

    def pop(self) -> Any:
        """Take the top of the stack, which must not be a mark."""
        value = self.stack.pop()
        if value is _MARK:
            raise DataError("its operations do not fit together")
        return value

    def pop_items(self) -> list[Any]:
        """Take everything above the last mark, and drop the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise DataError("its operations do not fit together")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items


def _set_state(old: object, state: object) -> None:
    """Give an array or a dtype its state."""
    match old, state:
        case _Array(), (_, tuple(shape), _Kind() as kind, bool(fortran), bytes(raw)):
            old.values = _array(raw, kind=kind, shape=shape, order="F" if fortran else "C")
        case _Kind(), (_, order, *_):
            old.order = _word(order)
        case _:
            raise DataError("it sets the state of something that is no array of numbers")


def _fill(target: object, items: list[Any]) -> object:
    if not isinstance(target, dict) or len(items) % 2:
        raise DataError("its operations do not fit together")
    for key, item in zip(items[::2], items[1::2], strict=True):
        # hash() of a deeply nested tuple recurses in C without a limit
        if not isinstance(key, (str, bytes, int)):
            raise DataError("a dictionary has keys other than texts")
        target[key] = _finished(item)
    return target


def _extend(target: object, items: list[Any]) -> None:
    if not isinstance(target, list):
        raise DataError("its operations do not fit together")
    target.extend(items)


def _function(module: object, name: object) -> _Function:
    if not isinstance(module, str) or not isinstance(name, str):
        raise DataError("it names a function by something other than a text")
    if (module, name) not in _FUNCTIONS:
        raise DataError(
            f"it asks for {module[:60]}.{name[:60]}, which no CIFAR file needs; it was not run"
        )
    return _FUNCTIONS[module, name]


def _call(function: object, arguments: object) -> object:
    """Return what the named function would return for the arguments that CIFAR files use."""
    match function, arguments:
        case _Function("reconstruct"), (_Function("ndarray"), *_):
            return _Array()
        case _Function("dtype"), (code, *_):
            return _Kind(_word(code))
        case _Function("encode"), (str(text), "latin1" | "latin-1"):
            return text.encode("latin-1")
        case _Function("bytes"), ():
            return b""
        case _Function("scalar"), (_Kind() as kind, bytes(raw)):
            return _array(raw, kind=kind, shape=(), order="C").item()
        case _Function("frombuffer"), (bytes(raw), _Kind() as kind, tuple(shape), order, *_):
            return _Array(_array(raw, kind=kind, shape=shape, order=_word(order)))
        case _Function(name), _:
            raise DataError(f"it gives {name} arguments that no CIFAR file has")
        case _:
            raise DataError("it calls something that is no function")


def _array(raw: bytes, *, kind: _Kind, shape: tuple[object, ...], order: str) -> npt.NDArray[Any]:
    """Make a read-only array of the bytes; type and shape must give exactly their number."""
    dtype = kind.numpy()
    sides = [side for side in shape if type(side) is int and 0 <= side <= MAX_FILE_BYTES]
    if len(sides) != len(shape) or len(sides) > 2 or order not in ("C", "F"):
        raise DataError("an array's shape does not fit its content")
    if math.prod(sides) * dtype.itemsize != len(raw):
        raise DataError(f"an array {sides} of {dtype} cannot have {len(raw)} bytes")
    fortran = order == "F"
    flat = np.frombuffer(raw, dtype=dtype) if raw else np.empty(0, dtype=dtype)
    return flat.reshape(sides[::-1]).T if fortran else flat.reshape(sides)


def _word(value: object) -> str:
    text = _text(value)
    if text is None:
        raise DataError("an array's number type is no text")
    return text


def _finished(value: object) -> object:
    """Turn the stand-in for an array into an array."""
    if isinstance(value, _Array):
        if value.values is None:
            raise DataError("an array without content")
        return value.values
    return value
