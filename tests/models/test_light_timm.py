"""timm comes without torch's compiler, and the compiler is whole when somebody wants it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import torch
from fieldmark.models.light_timm import library

timm = library()
assert library() is timm
loaded = {"torch._dynamo", "sympy", "torch._inductor"} & set(sys.modules)
assert not loaded, loaded
network = timm.create_model("resnet18", num_classes=3).eval()
assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)

import torchvision.ops

pooled = torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [torch.tensor([[0.0, 0, 4, 4]])], 2)
assert pooled.shape == (1, 1, 2, 2)
align = sys.modules["torchvision.ops.roi_align"]
assert align.is_compile_supported("cpu") in (True, False)

import torch._dynamo
import torch._dynamo.utils

assert torch._dynamo.__file__.endswith("__init__.py")
assert torch._dynamo.utils.is_compile_supported is not align.is_compile_supported
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
print("whole")
"""

WANTS_MORE = """
import sys
from types import ModuleType
from fieldmark.models import light_timm

utils = light_timm._StandIn(light_timm._NAME)
sys.modules[light_timm._PARENT] = light_timm._StandIn(light_timm._PARENT)
sys.modules[light_timm._NAME] = utils
from torch._dynamo.utils import counters  # what a later torchvision might come to want

assert type(sys.modules["torch._dynamo.utils"]) is ModuleType
assert counters is sys.modules["torch._dynamo.utils"].counters
print("whole")
"""


def whole(code: str) -> None:
    words = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.stdout.strip() == "whole", ran.stderr


def test_timm_is_imported_without_the_compiler_which_stays_usable() -> None:
    whole(CODE)


def test_a_name_that_no_stand_in_has_loads_the_true_module() -> None:
    whole(WANTS_MORE)
