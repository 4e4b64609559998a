"""The model in a run: weights that carry their own description, and the network built of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fieldmark.errors import ConfigError, RunError
from fieldmark.files.checksum import BLANK, FIELD, check_seal, seal
from fieldmark.files.json_text import FORMAT, check_format, encode_json, read_object
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
class ModelInfo:
    """What ``model.safetensors`` says of itself."""

    model: str
    """Spec string that builds the network."""
    input: InputSpec
    class_names: tuple[str, ...]
    temperature: float
    """Logits are divided by it before softmax; fitted on the validation part."""
    selected: Mapping[str, Any]
    """epoch, metric and value that made these weights the best; or "last" and no value."""
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
            "selected": dict(self.selected),
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
            value["input"] = InputSpec.from_json(value["input"])
            value["class_names"] = tuple(value["class_names"])
            value["temperature"] = float(value["temperature"])
            value["plugins"] = read_needs(value.get("plugins", []), where=where)
            info = cls(**value)
        except (TypeError, KeyError, ValueError, AttributeError, ConfigError) as error:
            raise RunError(f"{where} is not a model description: {error}") from None
        if (
            not isinstance(info.model, str)
            or not isinstance(info.input.size, int)
            or not 0 < info.temperature < math.inf
            or not isinstance(info.selected, dict)
            or not all(isinstance(name, str) for name in info.class_names)
            or not 0 < len(set(info.class_names)) == len(info.class_names)
        ):
            raise RunError(f"{where} is not a model description: a value is of the wrong kind")
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
