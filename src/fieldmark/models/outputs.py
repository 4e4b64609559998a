"""Logits of networks from elsewhere, a plugin or the caller: what makes them, and a check."""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.errors import ConfigError


def head_of(module: nn.Module) -> str:
    """The part that makes the logits: ``head`` where there is one, else the last linear layer.

    Raises:
        ConfigError: if there is no linear layer.
    """
    if isinstance(getattr(module, "head", None), nn.Module):
        return "head"
    found: list[str] = [
        name for name, part in module.named_modules() if isinstance(part, nn.Linear) and name
    ]
    if not found:
        raise ConfigError(
            f"{type(module).__name__} has no part called head and no linear layer, so it is not "
            "known what makes its logits; give it a submodule called head"
        )
    return found[-1]


def check_outputs(module: nn.Module, *, spec: str, num_classes: int, size: int) -> None:
    """Show the network one black picture, and make sure that it answers with a logit a class.

    Raises:
        ConfigError: if it does not take pictures of this size, or gives something else.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        return  # it is only counted, and values would be needed
    training = module.training
    try:
        with torch.no_grad():
            logits = module.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model {spec!r} cannot take a float picture [1, 3, {size}, {size}]: {error}; "
            "choose another --size"
        ) from error
    finally:
        module.train(training)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise ConfigError(
            f"model {spec!r} gives {shape} for one picture; logits (1, {num_classes}) are needed, "
            "one for each class"
        )
