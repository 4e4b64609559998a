"""Checkpoints with more in them than tensors, read without importing or running what they name.

A pickle names classes and functions, and says what to call. Here every class that it names becomes
an empty one of the same name, which keeps what the pickle says of its objects and has no code.
Called are only the functions of :data:`_CALLS`: those that ``torch.save`` needs for tensors,
and containers. A pickle that asks for any other call is refused. So settings of whatever class
(``argparse.Namespace``, OmegaConf, a program's own) do no harm and are no obstacle, and of a
network that was saved whole the tensors are left.

This is a pickle module for ``torch.load``, which wants ``Unpickler`` and ``load``. The
unpickler is Python's own that is written in Python: the other one sets memory aside for as many
objects as a pickle claims to remember.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

import numpy as np
import torch


class Inert:
    """An object of a class that was not imported: its state, items and elements, as pickled."""

    path: ClassVar[str] = ""
    """Module and name of the class."""
    state: Any
    items: dict[Any, Any]
    elements: list[Any]

    def __new__(cls, *_args: object, **_named: object) -> Inert:
        """Make an empty object, whatever the arguments."""
        made = object.__new__(cls)
        made.state, made.items, made.elements = None, {}, []
        return made

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, value: object) -> None:
        """Take an element of a list."""
        self.elements.append(value)

    def attributes(self) -> Mapping[Any, Any]:
        """What the object's attributes were; without those in slots."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        return state if isinstance(state, Mapping) else {}


class _DataType(Inert):
    """A ``numpy.dtype``; its state has the order of bytes."""

    code: str = ""

    def dtype(self) -> np.dtype[Any] | None:
        """The type, if it is one of plain numbers; else None."""
        found = np.dtype(self.code)
        if found.kind not in "biuf":
            return None
        swapped = isinstance(self.state, tuple) and self.state[1:2] == (">",)
        return found.newbyteorder(">") if swapped else found


class _Array(Inert):
    """A ``numpy.ndarray``."""

    def tensor(self) -> torch.Tensor | None:
        """Its values; None if it is not one of plain numbers.

        Raises:
            ValueError: if they are not as many as it says.
        """
        if not (isinstance(self.state, tuple) and len(self.state) == 5):
            return None
        _, shape, kind, in_columns, raw = self.state
        number = kind.dtype() if isinstance(kind, _DataType) else None
        if number is None or not isinstance(raw, bytes):
            return None
        array = np.frombuffer(raw, number).reshape(shape, order="F" if in_columns else "C")
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


class _Call:
    """A function that a pickle may call. No function itself: a pickle could change one's state."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run


def _tensor(
    storage: object, offset: int, size: Any, stride: Any, *more: Any, metadata: Any = None
) -> Any:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("a tensor without storage")
    metadata = more[2] if len(more) > 2 else metadata
    rebuild: Any = torch._utils._rebuild_tensor_v2
    return rebuild(storage, offset, size, stride, False, {}, metadata)


def _subclassed(function: object, _kind: object, arguments: object, _state: object) -> Any:
    """A tensor of a class of its own becomes a plain one."""
    if not isinstance(function, _Call) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("a tensor that is made in no known way")
    return function.run(*arguments)


def _data_type(code: object, *_more: object) -> _DataType:
    made = _DataType.__new__(_DataType)
    assert isinstance(made, _DataType)
    made.code = str(code)
    return made


def _scalar(kind: object, raw: object) -> Any:
    if not isinstance(kind, _DataType) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("a number of NumPy without a value")
    number = kind.dtype()
    return _inert() if number is None else np.frombuffer(raw, number)[0].item()


def _from_buffer(raw: object, kind: object, shape: object, order: object = "C") -> Inert:
    """An array of NumPy in the newest protocol."""
    made = _Array.__new__(_Array)
    raw = bytes(raw) if isinstance(raw, bytes | bytearray) else None
    made.state = (1, shape, kind, order == "F", raw)
    return made


def _storage(data: object) -> object:
    """A storage in a pickle that ``torch.save`` did not write; it holds one that it did."""
    if not isinstance(data, bytes) or data.startswith(b"PK"):  # which might be a program
        raise pickle.UnpicklingError("it asks for GLOBAL torch.storage._load_from_bytes")
    this = sys.modules[__name__]
    return torch.load(io.BytesIO(data), map_location="cpu", pickle_module=this, weights_only=False)


def _encoded(text: str, _coding: object = "") -> bytes:
    return text.encode("latin1")


def _bytes(value: object = b"", *_coding: object) -> bytes:
    if isinstance(value, str):
        return value.encode("latin1")
    return value if isinstance(value, bytes) else b""


def _pairs(value: object = ()) -> dict[Any, Any]:
    return dict(value) if isinstance(value, list | tuple | dict) else {}


def _listed(value: object = (), *_size: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []


def _reconstructed(kind: object, *_state: object) -> Any:
    """An object of the oldest protocols."""
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise pickle.UnpicklingError("an object of no class")
    return kind.__new__(kind)


def _inert(*_arguments: object) -> Inert:
    """A value of which nothing is needed: a path, a date, a device."""
    return Inert.__new__(Inert)


_BUILTINS = ("builtins", "__builtin__")
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_CALLS: dict[str, _Call] = {
    name: _Call(run)
    for names, run in (
        (["torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"], _tensor),
        (["torch._utils._rebuild_parameter"], lambda data, *_: data),
        (["torch._utils._rebuild_parameter_with_state"], lambda data, *_: data),
        (["torch._tensor._rebuild_from_type_v2"], _subclassed),
        (["torch.Size", *(f"{top}.tuple" for top in _BUILTINS)], lambda *a: tuple(_listed(*a))),
        (["collections.OrderedDict", "collections.Counter"], _pairs),
        (["collections.defaultdict"], lambda *_: {}),
        ([f"{top}.dict" for top in _BUILTINS], _pairs),
        (["collections.deque", *(f"{top}.list" for top in _BUILTINS)], _listed),
        ([f"{top}.{kind}" for top in _BUILTINS for kind in ("set", "frozenset")], _listed),
        ([f"{top}.{kind}" for top in _BUILTINS for kind in ("bytes", "bytearray")], _bytes),
        (["_codecs.encode"], _encoded),
        (["copyreg._reconstructor", "copy_reg._reconstructor"], _reconstructed),
        (["numpy.dtype"], _data_type),
        (["torch.storage._load_from_bytes"], _storage),
        (["numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"], _from_buffer),
        ([f"{top}._reconstruct" for top in _NUMPY], lambda *_: _Array.__new__(_Array)),
        ([f"{top}.scalar" for top in _NUMPY], _scalar),
        (
            [f"{top}.{k}" for top in _BUILTINS for k in ("complex", "slice", "range", "xrange")],
            _inert,
        ),
        (["torch.device", "torch.Generator", "torch._C.Generator"], _inert),
        (["types.SimpleNamespace", "uuid.UUID", "logging.getLogger", "re._compile"], _inert),
        ([f"datetime.{k}" for k in ("datetime", "date", "time", "timedelta", "timezone")], _inert),
        (["decimal.Decimal", "fractions.Fraction", "functools.partial"], _inert),
        (
            [
                f"{top}.{kind}"
                for top in ("pathlib", "pathlib._local")
                for pure in ("", "Pure")
                for kind in (f"{pure}Path", f"{pure}PosixPath", f"{pure}WindowsPath")
            ],
            _inert,
        ),
    )
    for name in names
}


class Unpickler(pickle._Unpickler):
    """Python's unpickler with classes that have no code, and a closed list of calls."""

    stack: list[Any]
    append: Callable[[Any], None]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The call of that name, or an empty class; nothing is imported."""
        path = f"{module}.{name}"
        if path == "torch.storage.UntypedStorage":
            return torch.UntypedStorage  # which persistent_load compares with; never called
        if path.startswith("numpy.random."):  # the state of generators
            return _Call(_inert)
        return _CALLS.get(path) or type(name, (Inert,), {"path": path})

    def load_reduce(self) -> None:
        """Call, if it is allowed."""
        arguments, function = self.stack.pop(), self.stack[-1]
        if _is_member(function, arguments):
            self.stack[-1] = function.__new__(function)
            return
        if not isinstance(function, _Call) or not isinstance(arguments, tuple):
            raise _refused(function)
        self.stack[-1] = function.run(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        """Make an empty object."""
        _arguments, kind = self.stack.pop(), self.stack[-1]
        self._make(kind)

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        """Make an empty object; the arguments by name are left, too."""
        self.stack.pop()
        self.load_newobj()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _make(self, kind: object) -> None:
        if isinstance(kind, _Call):  # a class of containers, such as OrderedDict
            self.stack[-1] = kind.run()
        elif isinstance(kind, type) and issubclass(kind, Inert):
            self.stack[-1] = kind.__new__(kind)
        else:
            raise _refused(kind)

    def _instantiate(self, kind: object, _arguments: object) -> None:
        """Refuse what the oldest protocol writes for calls."""
        raise _refused(kind)

    def load_build(self) -> None:
        """Keep an object's state; that of containers is left out."""
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Inert):
            made.__setstate__(state)
        elif not isinstance(made, dict | list):
            raise pickle.UnpicklingError(f"it changes a {type(made).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_binpersid(self) -> None:
        """Fetch a storage; of a class saved with its source only the class is taken."""
        wanted = self.stack.pop()
        kind = wanted[0] if isinstance(wanted, tuple) and wanted else None
        if kind in ("module", b"module") and len(wanted) > 1:
            self.append(wanted[1])
        elif kind in ("storage", b"storage"):
            self.append(self.persistent_load(wanted))
        else:
            raise pickle.UnpicklingError("it asks for something that is no tensor")

    dispatch[pickle.BINPERSID[0]] = load_binpersid


def load(file: IO[bytes], **named: Any) -> Any:
    """Read one pickle."""
    return Unpickler(file, **named).load()


def _is_member(kind: object, arguments: object) -> bool:
    """Whether a call looks like that of an enumeration's member, such as ``Mode("train")``.

    Nothing is called for it. Of Python's own modules no class is asked for in this way.
    """
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        return False
    module, _, name = kind.path.rpartition(".")
    of_python = module.partition(".")[0] in sys.stdlib_module_names - {"__main__"}
    value = arguments[0] if isinstance(arguments, tuple) and len(arguments) == 1 else None
    return name.lstrip("_")[:1].isupper() and not of_python and isinstance(value, str | int | float)


def _refused(asked: object) -> pickle.UnpicklingError:
    path = asked.path if isinstance(asked, type) and issubclass(asked, Inert) else ""
    what = f"GLOBAL {path}" if path else f"a call of a {type(asked).__name__}"
    return pickle.UnpicklingError(f"it asks for {what}")


def parts_of_network(value: Inert) -> tuple[Mapping[Any, Any], Mapping[Any, Any]] | None:
    """A network's own tensors and the networks in it, by name, if the object was one; else None."""
    attributes = value.attributes()
    parameters, buffers, inside = (
        attributes.get(name) for name in ("_parameters", "_buffers", "_modules")
    )
    if not (
        isinstance(parameters, Mapping)
        and isinstance(buffers, Mapping)
        and isinstance(inside, Mapping)
    ):
        return None
    left_out = attributes.get("_non_persistent_buffers_set") or ()
    kept = {name: each for name, each in buffers.items() if name not in left_out}
    return {**parameters, **kept}, inside


def tensor_of(value: object) -> torch.Tensor | None:
    """The tensor that a value of a checkpoint is: torch's or NumPy's; else None.

    Raises:
        ValueError: if an array's values cannot be read.
    """
    if isinstance(value, _Array):
        return value.tensor()
    return value if isinstance(value, torch.Tensor) else None
