"""timm networks whose head sees the last stages, too, beside the last features: ``head_stages=N``.

The features of the last N stages, averaged over the picture and divided by their root mean square
(their scales differ, and a head that is trained further has one learning rate for all), stand
beside the network's own. Published weights fit as before, but for the head. From few pictures a
head learns more with them: the last features were made to tell ImageNet's classes apart, earlier
ones keep what else there is to see (figures: docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fieldmark.errors import ConfigError

ARGUMENT = "head_stages"
EPSILON = 1e-6


class _Stages:
    """What a network of timm is given in front of its own class."""

    head_stages: int

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, 3, H, W] to [B, K]."""
        network: Any = self
        last, stages = network.forward_intermediates(x, indices=self.head_stages)
        own = network.forward_head(last, pre_logits=True)
        seen = torch.cat([own, *(_scaled(stage.mean((2, 3))) for stage in stages)], dim=1)
        logits: torch.Tensor = network.get_classifier()(seen)
        return logits


def _scaled(features: torch.Tensor) -> torch.Tensor:
    """To a root mean square of 1. Shape: [B, C]."""
    return features * (features.square().mean(1, keepdim=True) + EPSILON).rsqrt()


def attach(module: nn.Module, count: object, *, spec: str, num_classes: int, size: int) -> None:
    """Have the network's head see the last stages, too. The head is a new one.

    Args:
        module: A network of timm.
        count: Number of stages.
        spec: What messages call the network.
        num_classes: Classes.
        size: Input height and width.

    Raises:
        ConfigError: if the network does not give its stages, has fewer, or another head than one
            linear layer.
    """
    network: Any = module
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ConfigError(f"model {spec!r}: {ARGUMENT} is {count!r}; accepted is 1 or more")
    head = network.get_classifier() if hasattr(network, "get_classifier") else None
    if not isinstance(head, nn.Linear) or not hasattr(network, "forward_intermediates"):
        raise ConfigError(
            f"model {spec!r}: timm gives no stages of this network, or its head is not one linear "
            f"layer; leave out {ARGUMENT}"
        )
    width = head.in_features + sum(_widths(network, count, spec=spec, size=size))
    fresh = nn.Linear(width, num_classes, device=head.weight.device, dtype=head.weight.dtype)
    module.set_submodule(next(n for n, part in module.named_modules() if part is head), fresh)
    module.__class__ = type(type(module).__name__, (_Stages, type(module)), {})
    network.head_stages = count


def _widths(network: Any, count: int, *, spec: str, size: int) -> list[int]:
    """The number of features of each of the last stages, found by one black picture."""
    was, example = network.training, next(network.parameters())
    try:
        with torch.no_grad():
            picture = torch.zeros(1, 3, size, size, device=example.device, dtype=example.dtype)
            _, stages = network.eval().forward_intermediates(picture, indices=count)
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model {spec!r}: its last {count} stages cannot be had at {size} px ({error}); "
            f"choose fewer, or leave out {ARGUMENT}"
        ) from None
    finally:
        network.train(was)
    return [stage.shape[1] for stage in stages]
