"""Optimizers and parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from fieldmark.spec import call, lookup, parse

Groups = Iterable[dict[str, Any]]


def sgd(groups: Groups, momentum: float = 0.9, nesterov: bool = False) -> torch.optim.Optimizer:
    """Stochastic gradient descent; weight decay is added to the gradient (coupled)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; 0 up to below 1 is accepted")
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)


def adam(
    groups: Groups, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam; weight decay is added to the gradient (coupled)."""
    return torch.optim.Adam(groups, lr=0.0, betas=(beta1, beta2), eps=eps, fused=True)


def adamw(
    groups: Groups, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=eps, fused=True)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
}


def build(
    text: str, module: nn.Module, *, head: str, weight_decay: float, backbone_lr: float
) -> torch.optim.Optimizer:
    """Build the optimizer with up to four groups: head or backbone, decayed or not.

    Norms' parameters and biases (everything of one dimension) are not decayed. Each group carries
    ``factor``: its share of the learning rate, which the loop multiplies in.

    Raises:
        ConfigError: if there is no such optimizer, or its arguments do not fit.
    """
    spec = parse(text, what="optimizer")
    factory = lookup(spec, OPTIMIZERS, what="optimizer")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        in_head = name == head or name.startswith(head + ".")
        groups.setdefault((in_head, parameter.ndim > 1), []).append(parameter)
    described = [
        {
            "params": parameters,
            "weight_decay": weight_decay if decayed else 0.0,
            "factor": 1.0 if in_head else backbone_lr,
        }
        for (in_head, decayed), parameters in groups.items()
    ]
    return call(spec, factory, described, what="optimizer")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to its share."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def set_trainable(module: nn.Module, *, head: str, head_only: bool) -> None:
    """Freeze everything but the head, norms' running statistics too, or let everything train."""
    module.train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not head_only or name == head or name.startswith(head + "."))
    if head_only:
        for name, child in module.named_modules():
            if not (name == head or name.startswith(head + ".") or name == ""):
                child.training = False
