"""A network of timm by itself: seconds to build it, load a run's weights and answer once."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file


def main(run: str, model: str) -> float:
    """Everything is imported before the clock starts."""
    start = time.perf_counter()
    state = load_file(Path(run) / "model.safetensors")
    module = timm.create_model(model.removeprefix("timm/"), num_classes=2).eval()
    module.load_state_dict(state)
    with torch.inference_mode():
        module(torch.zeros(1, 3, 224, 224))
    return time.perf_counter() - start


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2]))
