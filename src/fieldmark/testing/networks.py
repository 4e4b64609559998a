"""The contract of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fieldmark.models import Family, as_family
from fieldmark.models.outputs import head_of
from fieldmark.testing.promises import check_described, require, untouched


def check_network(
    network: Family | Callable[..., nn.Module], *, size: int = 0, num_classes: int = 7
) -> None:
    """Check a network: built by its arguments and torch's seed alone, one logit a class.

    Args:
        network: A ``Family``, or a function from the number of classes to a module.
        size: Height and width of the pictures; 0 for the family's own.
        num_classes: Classes to build it for.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    family = as_family(network)
    check_described(family.build, given=1)
    with torch.random.fork_rng(devices=[]):
        first, again, other = (_built(family, num_classes, seed) for seed in (1, 1, 2))
        _check_weights(first, again, other)
        side = size or family.input.size
        bytes_ = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8)
        images = family.input.normalize(bytes_)
        _check_logits(first, other, images, num_classes)
        _check_training(first, images, family.head or head_of(first))


def _built(family: Family, num_classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with untouched("building it", torch_too=False):
        module = family.build(num_classes)
    require(isinstance(module, nn.Module), f"it builds a {type(module).__name__}, not a module")
    return module


def _check_weights(first: nn.Module, again: nn.Module, other: nn.Module) -> None:
    """The same seed gives the same values, and a state dict carries all of them over."""
    states = first.state_dict(), again.state_dict()
    require(list(states[0]) == list(states[1]), "its state dict has other keys each time")
    changed = [k for k in states[0] if not torch.equal(states[0][k], states[1][k])]
    require(not changed, f"one seed gives other values each time, of {', '.join(changed[:3])}")
    other.load_state_dict(states[0], strict=True)


def _check_logits(
    first: nn.Module, loaded: nn.Module, images: torch.Tensor, num_classes: int
) -> None:
    first.eval()
    loaded.eval()
    with torch.no_grad(), untouched("scoring with it"):
        logits = first(images)
        same = loaded(images)
        alone = torch.cat([first(images[i : i + 1]) for i in range(len(images))])
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    wanted = (len(images), num_classes)
    require(shape == wanted, f"it gives {shape} for {len(images)} pictures, not logits {wanted}")
    require(logits.dtype == torch.float32, f"its logits are {logits.dtype}, not float32")
    require(torch.isfinite(logits).all(), "its logits are not finite numbers")
    require(_close(logits, same), "its state dict does not hold all that it is")
    require(_close(logits, alone), "a picture's logits depend on others in its batch")


def _close(logits: torch.Tensor, others: torch.Tensor) -> bool:
    return torch.allclose(logits, others, rtol=1e-4, atol=1e-5)


def _check_training(module: nn.Module, images: torch.Tensor, head: str) -> None:
    """Every parameter trains, and the head is where the family says."""
    names = [name for name, _ in module.named_parameters()]
    require(
        any(name.startswith(head + ".") for name in names), f"no parameter lies in its head {head}"
    )
    module.train()
    with untouched("a training step", torch_too=False):
        module(images).square().sum().backward()
    still = [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None]
    require(not still, f"no gradient reaches {', '.join(still[:3])}")
