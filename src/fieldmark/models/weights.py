"""Weights from files: read without running code, fitted to a network, with what differs said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from fieldmark.errors import WeightsError

_MAX_BYTES = 16 * 2**30
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from .pth/.pt/.bin with ``weights_only``.

    A run directory gives its best weights.

    Raises:
        WeightsError: if the file is missing, too large, damaged, or holds anything but tensors.
    """
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise WeightsError(f"{path} is larger than {_MAX_BYTES >> 30} GiB")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _tensors(load_file(path), path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}") from None
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as plain tensors ({_first_line(error)}). Files that need code "
            "to be run are refused; convert it to .safetensors where you trust it"
        ) from None
    return _tensors(value, path)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _tensors(value: object, path: Path) -> dict[str, torch.Tensor]:
    """Unwrap the usual nestings and prefixes of a checkpoint."""
    for wrapper in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
            break
    if not isinstance(value, Mapping):
        raise WeightsError(f"{path} holds a {type(value).__name__}, not named tensors")
    state = {str(k): v for k, v in value.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors")
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): v for key, v in state.items()}
    return state


def fit_weights(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, head: str, source: str
) -> list[str]:
    """Load weights into a network; only the head may differ, and then keeps its fresh values.

    Returns:
        What to tell the user.

    Raises:
        WeightsError: with the differences, if anything else does not fit.
    """
    own = module.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if k in own}
    clash = [k for k, shape in shapes.items() if shape != tuple(own[k].shape)]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    foreign = [k for k in clash + missing + extra if not _in_head(k, head)]
    if foreign:
        raise WeightsError(_difference(source, own, state, foreign))
    unfit = set(clash + missing)
    fitting = {k: v for k, v in state.items() if k in own and k not in unfit}
    for name, value in fitting.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{source}: {name} has values that are not finite numbers")
    module.load_state_dict(fitting, strict=False)
    if not unfit:
        return []
    zero_head(module, head)
    return [f"the head ({head}) is for other classes and starts fresh; everything else was loaded"]


def zero_head(module: nn.Module, head: str) -> None:
    """Start a fresh head on pretrained features from zero, so that every class is equally likely.

    timm's EfficientNets draw the head from +-1/sqrt(classes), which for five classes gives first
    logits of several units: fine-tuning 355 pictures then spent 14 epochs unlearning them (76 % on
    the flowers' test part, against 89 % of a linear probe on the same features; docs/log.md).
    """
    layer = module.get_submodule(head)
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _in_head(key: str, head: str) -> bool:
    return key == head or key.startswith(head + ".")


def _difference(
    source: str,
    own: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    foreign: list[str],
) -> str:
    lines = []
    for key in foreign[:6]:
        here = str(tuple(own[key].shape)) if key in own else "nothing"
        there = str(tuple(state[key].shape)) if key in state else "nothing"
        lines.append(f"  {key}: the network has {here}, the file {there}")
    if len(foreign) > 6:
        lines.append(f"  and {len(foreign) - 6} more")
    fits = sum(1 for k in own if k in state and own[k].shape == state[k].shape)
    return (
        f"{source} does not fit the network: {fits} of its {len(own)} tensors match\n"
        + "\n".join(lines)
        + "\nName the network that the file was made with, by --model"
    )
