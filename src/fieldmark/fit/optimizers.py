"""Optimizers, parameter groups and the L2 penalty."""

from __future__ import annotations

import functools
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fieldmark.errors import ConfigError, did_you_mean
from fieldmark.fit.recording import Recorder, Tensors
from fieldmark.machine.device import capabilities, cuda_bf16
from fieldmark.settings.resolved import FreezeAfter
from fieldmark.settings.spec import Spec, call, lookup, parse

Groups = Iterable[dict[str, Any]]


def _unmarked(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of torch's optimizers without the marks by which it imports torch's compiler.

    torch marks what is not to be compiled, and a marked method imports the compiler when it is
    first called, which takes seconds. Only the network is ever compiled here.
    """
    unmarked: Callable[..., Any] = inspect.unwrap(method)
    return unmarked


class _Light(torch.optim.Optimizer):
    """Optimizer that does not import torch's compiler; :func:`_unmarked` says why it would."""

    add_param_group = _unmarked(torch.optim.Optimizer.add_param_group)
    load_state_dict = _unmarked(torch.optim.Optimizer.load_state_dict)
    state_dict = _unmarked(torch.optim.Optimizer.state_dict)
    zero_grad = _unmarked(torch.optim.Optimizer.zero_grad)


class Adam(_Light, torch.optim.Adam):
    """torch's Adam."""

    step = torch.no_grad()(_unmarked(torch.optim.Adam.step))


class AdamW(_Light, torch.optim.AdamW):
    """torch's AdamW."""

    step = torch.no_grad()(_unmarked(torch.optim.AdamW.step))


def sgd(groups: Groups, momentum: float = 0.9, nesterov: bool = False) -> torch.optim.Optimizer:
    """Stochastic gradient descent; weight decay is added to the gradient (coupled)."""
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum is {momentum}; 0 up to below 1 is accepted")
    return SGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov, fused=True)


def adam(
    groups: Groups, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam; weight decay is added to the gradient (coupled)."""
    return Adam(groups, lr=0.0, betas=(beta1, beta2), eps=eps, fused=True)


def adamw(
    groups: Groups, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay."""
    return AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=eps, fused=True)


def keras_sgd(
    groups: Groups, momentum: float = 0.0, nesterov: bool = False
) -> torch.optim.Optimizer:
    """Keras's SGD: the learning rate is inside the velocity; weight decay is decoupled.

    ``v = momentum * v - lr * g``, then ``w += v`` (nesterov: ``w += momentum * v - lr * g``). With
    a constant rate that equals ``sgd``; when the rate changes, earlier gradients in the velocity
    keep the rate that they came with. Keras's ``kernel_regularizer`` is the setting ``l2``, not the
    weight decay.
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


def muon(
    groups: Groups,
    kernel_lr: float = 0.1,
    kernel_momentum: float = 0.6,
    momentum: float = 0.85,
    iterations: int = 3,
    hold_norms: bool = True,
) -> torch.optim.Optimizer:
    """Muon for kernels outside the head: steps with all directions equal; SGD for the rest.

    Args:
        groups: Parameter groups, from the caller.
        kernel_lr: Learning rate of these kernels, as a factor of the other parameters' rate.
        kernel_momentum: Nesterov momentum of these kernels.
        momentum: Nesterov momentum of the other parameters.
        iterations: Newton-Schulz iterations; more make the directions more equal.
        hold_norms: Hold each kernel's norm at the root of its number of outputs, in place of weight
            decay; for kernels that a norm follows.
    """
    for name, value in (("momentum", momentum), ("kernel_momentum", kernel_momentum)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; 0 up to below 1 is accepted")
    if not 0 < kernel_lr <= 1000:
        raise ValueError(f"kernel_lr is {kernel_lr}; above 0 and up to 1000 is accepted")
    if not 1 <= iterations <= 20:
        raise ValueError(f"iterations is {iterations}; 1 to 20 is accepted")
    return Muon(
        groups,
        kernel_lr=kernel_lr,
        kernel_momentum=kernel_momentum,
        momentum=momentum,
        iterations=iterations,
        hold_norms=hold_norms,
    )


class Muon(_Light):
    """Orthogonalised momentum for kernels, Nesterov SGD for the rest; :func:`muon` says more.

    A group whose ``kernels`` is true gets Muon's steps. Its weight decay is decoupled and, with
    ``hold_norms``, without effect; that of the other groups is added to the gradient.

    Source: K. Jordan et al., Muon, 2024, in the form of airbench94_muon.
    """

    def __init__(self, groups: Groups, **settings: float) -> None:
        defaults = {"lr": 0.0, "weight_decay": 0.0, "kernels": False, **settings}
        super().__init__(groups, defaults)
        self._recorder = Recorder()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # copied or loaded: its velocities are other tensors
        self._recorder = Recorder()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters that have a gradient; there are no closures here."""
        assert closure is None
        for group in self.param_groups:
            weights: list[torch.Tensor] = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            lr, gradients = group["lr"], _gradients(weights)
            work = partial(self._moves, group, weights)
            if weights[0].device.type == "cuda":
                moves = self._recorder(tuple(map(id, weights)), work, gradients)
            else:
                moves = work(*gradients)
            if group["kernels"]:
                lr *= group["kernel_lr"]
                if group["weight_decay"] and not group["hold_norms"]:
                    torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            torch._foreach_add_(weights, [move for move in moves if move is not None], alpha=-lr)

    def _moves(
        self, group: dict[str, Any], weights: list[torch.Tensor], *gradients: torch.Tensor
    ) -> Tensors:
        """Update the velocities; return the weights' steps. Kernels may get their norm back."""
        given: list[torch.Tensor] = list(gradients)
        if not group["kernels"]:
            if group["weight_decay"]:
                given = list(torch._foreach_add(given, weights, alpha=group["weight_decay"]))
            return [*self._nesterov(weights, given, group["momentum"])]
        moves = self._nesterov(weights, given, group["kernel_momentum"])
        if group["hold_norms"]:
            for weight in weights:
                weight.mul_(len(weight) ** 0.5 / (weight.norm() + _TINY))
        # One after the other: on a processor that is faster than those of equal shape together.
        return [orthogonalized(move, group["iterations"]) for move in moves]

    def _nesterov(
        self, weights: list[torch.Tensor], gradients: list[torch.Tensor], momentum: float
    ) -> list[torch.Tensor]:
        """Update the velocities; return the directions of Nesterov's momentum."""
        velocities = [_velocity(self.state[p], p) for p in weights]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        return list(torch._foreach_add(gradients, velocities, alpha=momentum))


def orthogonalized(kernel: torch.Tensor, iterations: int) -> torch.Tensor:
    """Bring the singular values of a kernel, seen as a matrix of outputs x rest, near to 1.

    Quintic Newton-Schulz iterations, with coefficients that grow small singular values fast and
    leave all somewhere from 0.7 to 1.2. An iteration multiplies the matrix by a polynomial of its
    Gram matrix, and polynomials commute. So the polynomials of a few iterations are multiplied
    first, and the matrix, which has nine times as many columns as rows where a 3x3 convolution
    keeps the channels, only once by their product. It computes in bf16 where the hardware has it:
    that is four times as fast on a processor, and its rounding, up to a tenth of a singular value,
    is smaller than the spread that the iterations leave.

    Shape:
        [outputs, ...] to the same, float32.
    """
    # The order of columns does not matter, so they keep the kernel's order in memory.
    laid = (0, *sorted(range(1, kernel.ndim), key=kernel.stride, reverse=True))
    there = kernel.permute(laid)
    matrix = there.flatten(1)
    wide = matrix.shape[0] <= matrix.shape[1]  # the products are taken on the smaller side
    x = (matrix if wide else matrix.T) / (matrix.norm() + _TINY)
    x = x.to(torch.bfloat16 if _fast_bf16(kernel.device) else torch.float32)
    for done in range(0, iterations, _AT_A_TIME):
        if done:
            x = x / 1.2  # rounding has left some values above that, and from 1.4 on they grow
        gram = x @ x.T
        product = polynomial = _polynomial(gram)
        for _ in range(min(_AT_A_TIME, iterations - done) - 1):
            gram = polynomial @ gram @ polynomial
            polynomial = _polynomial(gram)
            product = polynomial @ product
        x = product @ x
    result: torch.Tensor = (x if wide else x.T).reshape(there.shape)
    return result.to(kernel.dtype).permute([laid.index(dim) for dim in range(kernel.ndim)])


_AT_A_TIME = 3
"""Iterations on the Gram matrix alone; each further one makes its rounding errors 12 times larger.
"""


def _polynomial(gram: torch.Tensor) -> torch.Tensor:
    """Compute the factor by which an iteration multiplies a matrix with this Gram matrix."""
    polynomial = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    polynomial.diagonal().add_(3.4445)
    return polynomial


_TINY = 1e-7
"""Number added to norms, so that a gradient of zeros is not divided by zero."""


@functools.cache
def _fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bf16 are fast on the device."""
    if device.type == "cpu":
        return bool(capabilities().get("avx512_bf16"))
    return cuda_bf16(str(device))


class SGD(_Light, torch.optim.SGD):
    """torch's SGD, which also works where some parameters of a group begin to train later.

    torch's fused kernel needs a velocity of every parameter or of none. A first velocity of zero
    gives the same step as no velocity.
    """

    _step = torch.no_grad()(_unmarked(torch.optim.SGD.step))

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Give parameters that begin late a velocity of zero, then take the step."""
        for group in self.param_groups:
            if group["momentum"]:
                trained = [p for p in group["params"] if p.grad is not None]
                late = [p for p in trained if self.state[p].get("momentum_buffer") is None]
                if len(late) < len(trained):
                    for p in late:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        self._step(closure)


class KerasSGD(_Light):
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
            velocities = [_velocity(self.state[p], p) for p in weights]
            torch._foreach_mul_(velocities, momentum)
            torch._foreach_add_(velocities, gradients, alpha=-lr)
            if group["nesterov"]:
                torch._foreach_add_(weights, velocities, alpha=momentum)
                torch._foreach_add_(weights, gradients, alpha=-lr)
            else:
                torch._foreach_add_(weights, velocities)


def _gradients(weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [w.grad for w in weights if w.grad is not None]


def _velocity(state: dict[str, Any], parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter's velocity in its state; it begins at zero."""
    if "velocity" not in state:
        state["velocity"] = torch.zeros_like(parameter)
    velocity: torch.Tensor = state["velocity"]
    return velocity


class KerasAdam(AdamW):
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
                # train at the same step: those that are frozen at first have their own group.
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
    "muon": muon,
}


def build(
    optimizer: str | Spec,
    module: nn.Module,
    *,
    head: str,
    weight_decay: float,
    backbone_lr: float = 1.0,
    bias_lr: float = 1.0,
) -> torch.optim.Optimizer:
    """Build the optimizer with up to four groups: head or backbone, kernels or not.

    Weight decay applies to kernels only, not to biases and norms' parameters (all with one
    dimension). Each group has a ``factor``, by which :func:`set_lr` multiplies the learning rate.

    Raises:
        ConfigError: if there is no such optimizer, or its arguments do not fit.
    """
    spec = parse(optimizer, what="optimizer")
    factory = lookup(spec, OPTIMIZERS, what="optimizer")
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        groups.setdefault((_in(head, name), parameter.ndim > 1), []).append(parameter)
    described = [
        {
            "params": parameters,
            "weight_decay": weight_decay if kernels else 0.0,
            "factor": (1.0 if in_head else backbone_lr) * (1.0 if kernels else bias_lr),
            "kernels": kernels and not in_head,
        }
        for (in_head, kernels), parameters in groups.items()
    ]
    return call(spec, factory, described, what="optimizer")


class NoOptimizer(torch.optim.Optimizer):
    """Optimizer of a training without steps."""

    def __init__(self) -> None:
        self.param_groups, self.state, self.defaults = [], defaultdict(dict), {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore nothing."""


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group: ``lr`` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def set_trainable(
    module: nn.Module,
    *,
    head: str,
    head_only: bool,
    first: str = "",
    freeze_norms: bool = False,
) -> None:
    """Freeze modules, with norms' running statistics and dropout; let the others train.

    With ``head_only`` everything but the head is frozen; with ``first``, the name of a module,
    everything that the network lists before it, so that no gradient has to go further back. With
    ``freeze_norms`` batch norms compute with the statistics that they have, while their scales and
    offsets train.
    """
    frozen: set[str] = set()
    if head_only:
        every = (*module.named_parameters(), *module.named_modules())
        frozen = {name for name, _ in every if name and not _in(head, name)}
    elif first:
        frozen = listed_before(first, module)
    module.train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, child in module.named_modules():
        if name in frozen or (freeze_norms and isinstance(child, _BatchNorm)):
            child.training = False


def listed_before(first: str, module: nn.Module) -> set[str]:
    """Return the names of the modules and parameters that come before the module ``first``.

    A module that contains it does not come before it, but that module's own parameters (such as
    position embeddings) do.
    """
    names = [name for name, _ in module.named_modules()]
    containers = {name for name in names if name == "" or first.startswith(name + ".")}
    early = set(names[: names.index(first)]) - containers
    owners = early | containers
    return early | {n for n, _ in module.named_parameters() if n.rpartition(".")[0] in owners}


def check_freezing(parts: Sequence[FreezeAfter], module: nn.Module, *, head: str) -> None:
    """Refuse to freeze a part that the network lacks, or that contains the head.

    The first layers settle early. Frozen, they need no gradient, nor do the layers before them.

    Raises:
        ConfigError: naming the part.
    """
    for part in parts:
        what = f"freeze_after {part.part}@{part.epochs}"
        names = [n for n, child in module.named_modules() if n and list(child.parameters())]
        if part.part not in names:
            raise ConfigError(
                f"{what}: the network has no part {part.part!r} with weights"
                f"{did_you_mean(part.part, names)} (known: {', '.join(names[:12])}"
                f"{', ...' if len(names) > 12 else ''})"
            )
        if _in(part.part, head):
            raise ConfigError(f"{what}: {part.part!r} has the head, which always trains")


def freeze(module: nn.Module, name: str) -> None:
    """Stop a part of the network from training: its parameters and running statistics."""
    module.get_submodule(name).requires_grad_(False).eval()


def regularized(module: nn.Module, head: str) -> list[nn.Parameter]:
    """Return the kernels with an L2 penalty: more than one dimension, and not in the head."""
    return [p for n, p in module.named_parameters() if p.ndim > 1 and not _in(head, n)]


@torch.no_grad()
def penalty(parameters: Sequence[nn.Parameter], l2: float) -> torch.Tensor:
    """Compute what Keras's ``kernel_regularizer=l2(...)`` adds to the loss: l2 * sum of squares.

    Frozen parameters do not count, as in Keras. The value is for the record and has no graph;
    :func:`add_l2_gradient` adds the gradient.

    Shape:
        float32 [] on the parameters' device.
    """
    trained: list[torch.Tensor] = [p for p in parameters if p.requires_grad]
    if not trained:
        return torch.zeros((), device=parameters[0].device if parameters else None)
    return l2 * torch.stack(torch._foreach_norm(trained)).square().sum()


@torch.no_grad()
def add_l2_gradient(parameters: Sequence[nn.Parameter], l2: float) -> None:
    """Add the gradient of :func:`penalty` to the present gradients, in place.

    Call it after the last ``backward`` of a step and before clipping: Keras clips the gradient of
    the whole loss.
    """
    pairs = [(p.grad, p) for p in parameters if p.grad is not None]
    if pairs:
        gradients, weights = map(list, zip(*pairs, strict=True))
        torch._foreach_add_(gradients, weights, alpha=2 * l2)


def _in(head: str, name: str) -> bool:
    """Whether the module or parameter with this name is the head or within it."""
    return name == head or name.startswith(head + ".")
