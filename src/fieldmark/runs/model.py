"""The model in a run: weights that carry their own description, and the network built of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fieldmark.errors import ConfigError, RunError
from fieldmark.files.checksum import BLANK, FIELD, check_seal, seal
from fieldmark.files.json_text import FORMAT, check_format, encode_json, read_object
from fieldmark.files.typed import STRICT, Count, Number, Text, read_typed
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

    __pydantic_config__ = STRICT

    epoch: Count
    """0 is the probe, or a model that was imported."""
    metric: Text
    """The figure that chose the epoch; ``last`` or ``imported`` where none did."""
    value: Number | None = None
    """Its value; None where none chose."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        value = {} if self.metric == "imported" else {"value": self.value}
        return {"epoch": self.epoch, "metric": self.metric, **value}


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What ``model.safetensors`` says of itself."""

    __pydantic_config__ = STRICT

    model: Text
    """Spec string that builds the network."""
    input: InputSpec
    class_names: tuple[Text, ...]
    temperature: Number
    """Logits are divided by it before softmax; fitted on the validation part."""
    selected: Selected
    weights: Text
    """What training started from."""
    num_params: Count
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
        remedy = "put back the file as it was"
        try:
            needs = read_needs(value.pop("plugins", []), where=where)
            info: ModelInfo = read_typed(cls, value, where=where, remedy=remedy)
        except ConfigError as error:
            raise RunError(f"{where}: input: {error}; {remedy}") from None
        info = dataclasses.replace(info, plugins=needs)
        if not 0 < len(set(info.class_names)) == len(info.class_names):
            raise RunError(f"{where}: class_names is empty, or a name stands twice; {remedy}")
        if info.temperature <= 0:
            raise RunError(f"{where}: temperature is {info.temperature}, not above 0; {remedy}")
        return info


@dataclass
class Model:
    """A network ready to use, with what it needs to know."""

    module: torch.nn.Module
    info: ModelInfo
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
    """What the header of a model says; its checksum is not looked at."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("fieldmark")
    except (SafetensorError, OSError) as error:
        raise RunError(f"cannot read {path}: {error}") from None
    if header is None:
        raise RunError(f"{path} was not written by fieldmark")
    return ModelInfo.from_json(header, where=str(path))
