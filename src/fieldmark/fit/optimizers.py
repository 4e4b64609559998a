"""Optimizers, parameter groups and the L2 penalty."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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


def keras_sgd(
    groups: Groups, momentum: float = 0.0, nesterov: bool = False
) -> torch.optim.Optimizer:
    """Keras's SGD: the learning rate is inside the velocity; weight decay is decoupled.

    ``v = momentum * v - lr * g``, then ``w += v`` (nesterov: ``w += momentum * v - lr * g``). With
    a constant rate that is ``sgd``; when the rate changes, the steps before keep the rate that they
    were taken with. Keras's ``kernel_regularizer`` is the setting ``l2``, not the weight decay.
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; 0 up to below 1 is accepted")
    if nesterov and momentum == 0:
        raise ValueError("nesterov=True has no effect with momentum=0; give a momentum above 0")
    return KerasSGD(groups, momentum=momentum, nesterov=nesterov)


def keras_adam(
    groups: Groups, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-7
) -> torch.optim.Optimizer:
    """Keras's Adam: epsilon counts before the bias correction; weight decay is decoupled.

    ``w -= lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)``. Keras's
    ``kernel_regularizer`` is the setting ``l2``, not the weight decay.
    """
    return KerasAdam(groups, lr=0.0, betas=(beta1, beta2), eps=eps, fused=True)


class KerasSGD(torch.optim.Optimizer):
    """SGD with the learning rate inside the velocity; :func:`keras_sgd` says more.

    Source: Keras's ``optimizers.SGD``, and ``weight_decay`` of its optimizers.
    """

    def __init__(self, groups: Groups, *, momentum: float, nesterov: bool) -> None:
        defaults = {"lr": 0.0, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters that have a gradient; there are no closures here."""
        assert closure is None
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            gradients = [p.grad for p in weights]
            lr, momentum = group["lr"], group["momentum"]
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            if momentum == 0:
                torch._foreach_add_(weights, gradients, alpha=-lr)
                continue
            velocities = [self._velocity(p) for p in weights]
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, gradients, alpha=-lr)
            if group["nesterov"]:
                torch._foreach_add_(weights, velocities, alpha=momentum)
                torch._foreach_add_(weights, gradients, alpha=-lr)
            else:
                torch._foreach_add_(weights, velocities)

    def _velocity(self, parameter: nn.Parameter) -> torch.Tensor:
        state = self.state[parameter]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(parameter)
        velocity: torch.Tensor = state["velocity"]
        return velocity


class KerasAdam(torch.optim.AdamW):
    """torch's AdamW with the epsilon that gives Keras's step; :func:`keras_adam` says more.

    torch adds epsilon to ``sqrt(v / (1 - beta2**t))``. Keras's ``sqrt(v) + eps`` is that with
    ``eps / sqrt(1 - beta2**t)``, so a new epsilon before every step keeps torch's fused kernel.

    Source: Keras's ``optimizers.Adam``, and ``weight_decay`` of its optimizers.
    """

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Set every group's epsilon for its step number, then take the step."""
        for group in self.param_groups:
            if any(p.grad is not None for p in group["params"]):
                # torch's own count is a tensor on the device, which a step must not wait for. This
                # one is in the group, and so in the checkpoint. All parameters of a group start to
                # train at the same step: what is frozen at first is a group of its own.
                group["steps"] = group.get("steps", 0) + 1
                correction = 1 - group["betas"][1] ** group["steps"]
                group["eps"] = self.defaults["eps"] / math.sqrt(correction)
        super().step(closure)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "keras_sgd": keras_sgd,
    "keras_adam": keras_adam,
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
        groups.setdefault((_in(head, name), parameter.ndim > 1), []).append(parameter)
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
        parameter.requires_grad_(not head_only or _in(head, name))
    if head_only:
        for name, child in module.named_modules():
            if not (_in(head, name) or name == ""):
                child.training = False


def regularized(module: nn.Module, head: str) -> list[nn.Parameter]:
    """The kernels that the L2 penalty is on: more than one dimension, and not of the head."""
    return [p for n, p in module.named_parameters() if p.ndim > 1 and not _in(head, n)]


@torch.no_grad()
def penalty(parameters: Sequence[nn.Parameter], l2: float) -> torch.Tensor:
    """What Keras's ``kernel_regularizer=l2(...)`` adds to the loss: l2 times the sum of squares.

    Frozen parameters do not count, as in Keras. The value is for the record and has no graph; the
    gradient is :func:`add_l2_gradient`'s.

    Shape:
        float32 [] on the parameters' device.
    """
    trained: list[torch.Tensor] = [p for p in parameters if p.requires_grad]
    if not trained:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    return l2 * torch.stack(torch._foreach_norm(trained)).square().sum()


@torch.no_grad()
def add_l2_gradient(parameters: Sequence[nn.Parameter], l2: float) -> None:
    """Add the gradient of :func:`penalty` to the gradients there are, in place.

    It belongs after the last ``backward`` of a step and before clipping: Keras clips the gradient
    of the whole loss.
    """
    pairs = [(p.grad, p) for p in parameters if p.grad is not None]
    if pairs:
        gradients, weights = map(list, zip(*pairs, strict=True))
        torch._foreach_add_(gradients, weights, alpha=2 * l2)


def _in(head: str, name: str) -> bool:
    """Whether a module or parameter of that name is the head or within it."""
    return name == head or name.startswith(head + ".")
