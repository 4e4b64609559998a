"""Cross entropy for hard or mixed labels, other losses by name, smoothing and class weights.

A loss is a function of logits [B, K] and the classes' shares in each target [B, K] (of one class
without mixing and smoothing), then the spec's arguments, to each picture's loss [B]. It must be one
that torch differentiates. Validation tells the cross entropy whatever is trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fieldmark.errors import ConfigError
from fieldmark.settings.spec import Spec, bind, lookup

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits [B, K] and float32 shares of classes [B, K] to losses [B]."""


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the predicted distribution and the target's."""
    return F.cross_entropy(logits, targets, reduction="none")


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"cross_entropy": cross_entropy}
"""The words of ``--loss``."""


def build(spec: Spec) -> Loss | None:
    """The loss of a spec; None for cross entropy, which :func:`loss_sum` computes in one go.

    Raises:
        ConfigError: if there is no such loss, or its arguments do not fit.
    """
    function = lookup(spec, LOSSES, what="loss")
    bound = bind(spec, function, what="loss", given=2)
    if function is cross_entropy:
        return None
    return partial(_called, function, bound.args, bound.kwargs, str(spec))


def _called(
    function: Callable[..., torch.Tensor],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    name: str,
    logits: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    losses = function(logits, targets, *args, **kwargs)
    if not isinstance(losses, torch.Tensor) or losses.shape != logits.shape[:1]:
        shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise ConfigError(
            f"loss {name!r} gives {shape} for {len(logits)} pictures; one number for each is "
            f"needed, [{len(logits)}], not their mean"
        )
    return losses


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Shape: [B] to float32 [B, num_classes]."""
    return F.one_hot(labels, num_classes).to(torch.float32)


def loss_sum(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
    loss: Loss | None = None,
) -> torch.Tensor:
    """Summed loss; None is cross entropy. Class weights count by each target's shares.

    Shape:
        logits [B, K]; targets labels [B] or shares of classes [B, K].
    """
    if loss is not None:
        classes = logits.shape[1]
        shares = targets if targets.ndim > 1 else one_hot(targets, classes)
        losses = loss(logits, shares * (1 - smoothing) + smoothing / classes)
        return (losses if weights is None else losses * (shares @ weights)).sum()
    return F.cross_entropy(
        logits, targets, weight=weights, label_smoothing=smoothing, reduction="sum"
    )


def class_weights(
    text: str, counts: npt.NDArray[np.int64], class_names: tuple[str, ...]
) -> torch.Tensor | None:
    """Compute the weights for the setting class_weights; their mean over training pictures is 1.

    Shape:
        counts [K] to float32 [K], or None for ``none``.

    Raises:
        ConfigError: if it is not ``none``, ``balanced`` or one positive number a class.
    """
    if text == "none":
        return None
    if text == "balanced":
        values = 1.0 / counts.astype(np.float64)
    else:
        try:
            values = np.array([float(part) for part in text.split(",")])
        except ValueError:
            values = np.array([])
        if len(values) != len(counts) or not (np.isfinite(values).all() and (values > 0).all()):
            raise ConfigError(
                f"class_weights is {text!r}; none, balanced, or {len(counts)} positive numbers "
                f"separated by commas are accepted, in the order {', '.join(class_names[:8])}"
                + (" ..." if len(class_names) > 8 else "")
            )
    values = values * counts.sum() / (values * counts).sum()
    return torch.tensor(values, dtype=torch.float32)
