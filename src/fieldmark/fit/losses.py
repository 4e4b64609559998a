"""Cross entropy for hard or mixed labels, smoothing and class weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from fieldmark.errors import ConfigError


def one_hot(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Shape: [B] to float32 [B, num_classes]."""
    return F.one_hot(labels, num_classes).to(torch.float32)


def loss_sum(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    smoothing: float = 0.0,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Summed cross entropy.

    Shape:
        logits [B, K]; targets labels [B] or shares of classes [B, K].
    """
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
