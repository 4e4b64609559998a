"""The model in a run: weights that carry their own description, and the network built of them."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fieldmark.errors import ConfigError, RunError
from fieldmark.files import lfs
from fieldmark.files.checksum import BLANK, FIELD, check_seal, seal
from fieldmark.files.json_text import FORMAT, check_format, encode_json, read_object
from fieldmark.names import shown
from fieldmark.pictures.inputs import InputSpec
from fieldmark.plugins import Need, read_needs

if TYPE_CHECKING:
    import torch


class Score(Protocol):
    """From uint8 pictures [B, 3, S, S] to logits [B, K]."""

    notes: list[str]

    def __call__(self, images: torch.Tensor, /) -> torch.Tensor:
        """Score a batch."""


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What made these weights the run's."""

    epoch: int
    """0 is the probe, or a model that was imported."""
    metric: str
    """The figure that chose the epoch; ``last`` or ``imported`` where none did."""
    value: float | None = None
    """Its value; None where none chose."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        value = {} if self.metric == "imported" else {"value": self.value}
        return {"epoch": self.epoch, "metric": self.metric, **value}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What ``model.safetensors`` says of itself."""

    model: str
    """Spec string that builds the network."""
    input: InputSpec
    class_names: tuple[str, ...]
    temperature: float
    """Logits are divided by it before softmax; estimated on the validation split."""
    selected: Selected
    weights: str
    """What training started from."""
    num_params: int
    plugins: tuple[Need, ...] = ()
    """What the network needs of other packages."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        needs = {"plugins": [need.to_json() for need in self.plugins]} if self.plugins else {}
        return {
            "format": FORMAT,
            "model": self.model,
            "input": self.input.to_json(),
            "class_names": list(self.class_names),
            "temperature": self.temperature,
            "selected": self.selected.to_json(),
            "weights": self.weights,
            "num_params": self.num_params,
            **needs,
        }

    @classmethod
    def from_json(cls, text: str, *, where: str) -> ModelInfo:
        """Read what :meth:`to_json` wrote.

        Raises:
            RunError: if it is something else.
        """
        value = read_object(text, where=where)
        check_format(value.pop("format", None), where=where)
        value.pop(FIELD, None)
        try:
            needs = read_needs(value.pop("plugins", []), where=where)
            _check_fields(value, _KINDS)
            info = cls(
                **{
                    **value,
                    "input": _input_of(value["input"]),
                    "class_names": _names_of(value["class_names"]),
                    "temperature": _temperature_of(value["temperature"]),
                    "selected": _selected_of(value["selected"]),
                    "plugins": needs,
                }
            )
        except (ValueError, OverflowError) as error:
            raise RunError(f"{where}: {error}; put back the file as it was") from None
        return info


# Checked without pydantic: the programs that use an exported file need not have it.
_NUMBER = (float, int)
_KINDS: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "input": (dict,),
    "class_names": (list,),
    "temperature": _NUMBER,
    "selected": (dict,),
    "weights": (str,),
    "num_params": (int,),
}
_INPUT: dict[str, tuple[type, ...]] = {
    "size": (int,),
    "mean": (list,),
    "std": (list,),
    "interpolation": (str,),
    "resize": (str,),
    "crop": _NUMBER,
    "views": (str,),
    "decode_side": (int,),
    "range": (str,),
}
_SELECTED: dict[str, tuple[type, ...]] = {
    "epoch": (int,),
    "metric": (str,),
    "value": (*_NUMBER, type(None)),
}
_WORDS = {str: "a text", int: "a whole number", float: "a number", dict: "an object"}


def _check_fields(
    value: Mapping[str, Any],
    kinds: Mapping[str, tuple[type, ...]],
    *,
    of: str = "",
    optional: Collection[str] = (),
) -> None:
    """Make sure that an object has these fields, of these kinds, and no others.

    Raises:
        ValueError: naming the field.
    """
    for name, accepted in kinds.items():
        if name not in value:
            if name not in optional:
                raise ValueError(f"{of or 'it'} lacks {name}")
        elif type(value[name]) not in accepted:
            words = _WORDS.get(accepted[0], "a list")
            path = f"{of}.{name}" if of else name
            raise ValueError(f"{path} is {reprlib.repr(value[name])}, but must be {words}")
    for name in value:
        if name not in kinds:
            raise ValueError(f"{of + '.' if of else ''}{shown(name)} is unknown")


def _input_of(value: Mapping[str, Any]) -> InputSpec:
    """The input of a description; what later versions added has its default."""
    _check_fields(value, _INPUT, of="input", optional=_INPUT.keys() - {"size"})
    for name in ("mean", "std"):
        if not all(type(number) in _NUMBER for number in value.get(name, ())):
            raise ValueError(f"input.{name} is {reprlib.repr(value[name])}, but must be numbers")
    _check_range("input.mean", value.get("mean", ()), -_LARGEST, _LARGEST)
    _check_range("input.std", value.get("std", ()), _SMALLEST, _LARGEST)
    _check_range("input.crop", [value.get("crop", 1)], 0.01, 1)
    try:
        return InputSpec.from_json(dict(value))
    except ConfigError as error:
        raise ValueError(f"input: {error}") from None


def _names_of(value: Sequence[object]) -> tuple[str, ...]:
    names = tuple(name for name in value if isinstance(name, str))
    if len(names) < len(value) or not 0 < len(set(names)) == len(names):
        raise ValueError("class_names is empty, has one twice, or one that is no text")
    return names


_SMALLEST, _LARGEST = 1e-6, 1e6
"""What a deviation, a mean and a temperature may be: within it, no pixel becomes infinite."""


def _check_range(name: str, values: Iterable[float], low: float, high: float) -> None:
    """Make sure that numbers are within a range.

    Raises:
        ValueError: naming the field.
    """
    for value in values:
        if not low <= value <= high:
            raise ValueError(f"{name} has {value}, but must be {low:g} to {high:g}")


def _temperature_of(value: float) -> float:
    _check_range("temperature", [value], _SMALLEST, _LARGEST)
    return float(value)


def _selected_of(value: Mapping[str, Any]) -> Selected:
    _check_fields(value, _SELECTED, of="selected", optional=("value",))
    return Selected(**value)


@dataclass
class Model:
    """A network ready to use, with what it needs to know."""

    module: torch.nn.Module
    info: ModelInfo
    head: str = "head"
    """Name of the part that makes the logits."""
    scorers: dict[str, Score] = field(default_factory=dict)
    """The network made ready for scoring by each engine that was wanted."""

    @property
    def notes(self) -> list[str]:
        """What is worth telling about how the network came to be used."""
        return [note for score in self.scorers.values() for note in score.notes]


def encode_model(state: Mapping[str, torch.Tensor], info: ModelInfo) -> bytes:
    """Weights with their description and checksum in the header: a safetensors file."""
    from safetensors.torch import save

    header = encode_json({FIELD: BLANK, **info.to_json()}, indent=None).decode()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return seal(save(tensors, metadata={"fieldmark": header}))


def same_weights(path: Path, data: bytes) -> bool:
    """Whether a file is whole, and differs from these bytes in its temperature at most."""
    try:
        check_seal(path)
        return _but_temperature(path.read_bytes()) == _but_temperature(data)
    except (OSError, RunError):
        return False


def _but_temperature(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """A model's table of tensors, its description and its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    table = read_object(data[8:end].decode(), where="a model")
    description = read_object(table.pop("__metadata__")["fieldmark"], where="a model")
    for key in ("temperature", FIELD):
        description.pop(key, None)
    return table, description, data[end:]


def description_of(path: Path) -> ModelInfo:
    """What the header of a model says; its checksum is not looked at.

    Raises:
        RunError: if it has none, or one that cannot be used.
    """
    from safetensors import SafetensorError

    try:
        header = _header(path)
    except (SafetensorError, OSError) as error:
        raise RunError(f"cannot read {path}: {_why(path, error)}") from None
    if header is None:
        raise RunError(f"{path} was not written by fieldmark")
    return ModelInfo.from_json(header, where=str(path))


def described(path: Path) -> ModelInfo | None:
    """What weights say of themselves: a run's model, or a run directory; None if others wrote them.

    Raises:
        RunError: if it is a run's model whose description cannot be used, or a Git LFS pointer.
    """
    from safetensors import SafetensorError

    path = path / "model.safetensors" if path.is_dir() else path
    if path.is_file() and _is_pointer(path):
        raise RunError(f"{path} is {lfs.ADVICE}")
    try:
        header = _header(path) if path.is_file() else None
    except (SafetensorError, OSError):
        return None
    return None if header is None else ModelInfo.from_json(header, where=str(path))


def _header(path: Path) -> str | None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        header: str | None = (file.metadata() or {}).get("fieldmark")
        return header


def _why(path: Path, error: Exception) -> str:
    return f"it is {lfs.ADVICE}" if _is_pointer(path) else str(error)


def _is_pointer(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return lfs.is_pointer(file.read(64))
    return False
