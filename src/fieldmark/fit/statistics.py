"""Running statistics of batch norms, estimated anew from training pictures before every scoring.

In training a batch norm uses the statistics of its batch; scores use a moving average of them. The
average lags behind the weights: with Keras's momentum of 0.99 it takes some 500 steps to arrive,
and a small folder has nine an epoch. So training says 0.93 while validation is at chance
(docs/log.md). Estimated anew they are those of the weights, also of averaged ones, and of pictures
as scores see them: neither augmented nor mixed.

Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3 ("precise" statistics).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fieldmark.errors import DivergedError

PICTURES = 1024
"""Training pictures that the statistics are estimated on, at most."""


def moving(module: nn.Module) -> list[str]:
    """Name the batch norms whose running statistics training moves; frozen ones are not."""
    return [
        name
        for name, child in module.named_modules()
        if isinstance(child, _BatchNorm) and child.training and child.running_mean is not None
    ]


@torch.no_grad()
def estimate(module: nn.Module, names: Iterable[str], images: Iterable[torch.Tensor]) -> None:
    """Set the running statistics of these batch norms to the mean over batches of pictures.

    Everything else of the network stays as it is, and computes as it does in scores: without
    dropout, and frozen norms with the statistics that they have. The result depends on the weights
    and pictures only, so it may be interrupted and done again.

    Args:
        module: The network.
        names: Its batch norms (:func:`moving`).
        images: Batches as the network sees them: float32 [B, 3, S, S], in mixed order of classes.

    Raises:
        DivergedError: if they are not finite numbers.
    """
    layers = [module.get_submodule(name) for name in names]
    norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
    modes = {child: child.training for child in module.modules()}
    momenta = [norm.momentum for norm in norms]
    module.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches, each counting the same
            norm.training = True
        for batch in images:
            module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for child, mode in modes.items():
            child.training = mode
    for norm in norms:
        assert norm.running_mean is not None and norm.running_var is not None
        if not torch.isfinite(norm.running_mean + norm.running_var).all():
            raise DivergedError(
                "the statistics of a batch norm are not finite numbers: the weights grew too large"
            )
