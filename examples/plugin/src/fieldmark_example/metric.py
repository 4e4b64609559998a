"""How far off the answers are where classes have an order, such as grades."""

import numpy as np

from fieldmark.scoring.metrics import confusion
from fieldmark.seeding import F64, I64


def quadratic_kappa(probs: F64, labels: I64) -> float:
    """Cohen's kappa with quadratic weights: 1 if all is right, 0 if it is no better than chance."""
    counts = confusion(labels, probs.argmax(axis=1), probs.shape[1]).astype(np.float64)
    places = np.arange(len(counts))
    weights = (places[:, None] - places) ** 2
    chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    expected = float((weights * chance).sum())
    return 1.0 - float((weights * counts).sum()) / expected if expected else 1.0
