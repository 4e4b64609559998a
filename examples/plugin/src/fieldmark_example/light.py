"""Light from one side, as under a microscope or beside a window."""

import numpy as np
import torch

from fieldmark.augment.ops import Change, check, column
from fieldmark.seeding import F64


def uneven_light(strength: float = 0.3) -> Change:
    """Make one side of the picture brighter and the other darker, in a random direction."""
    check("strength", strength, 0, 1)

    def apply(images: torch.Tensor, draws: F64) -> torch.Tensor:
        # A step never draws: it is given two numbers in [0, 1) that belong to each picture.
        angle, amount = 2 * np.pi * draws[:, 0], strength * draws[:, 1]
        y = torch.linspace(-1, 1, images.shape[2], device=images.device).view(1, 1, -1, 1)
        x = torch.linspace(-1, 1, images.shape[3], device=images.device).view(1, 1, 1, -1)
        across = column(np.cos(angle) * amount, images) * x
        down = column(np.sin(angle) * amount, images) * y
        return (images * (1 + across + down)).clamp(0, 255)

    return Change(num_draws=2, apply=apply)
