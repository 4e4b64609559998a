"""Imports timm without torch's compiler, which timm does not need and which takes longer to load.

During the import, torchvision wants one function of ``torch._dynamo.utils``, for a pooling of
regions that no classifier has, and timm marks one method with ``torch._dynamo.disable``. For these
two names the whole compiler is loaded, with sympy and triton: 1.2 of the 1.7 s that importing timm
takes (``docs/log.md``). So stand-ins replace the two modules during the import. They have the two
names, in a form that loads the true module when it is called, and pass any other name on to the
true module. So other versions of torchvision or timm work as well; at worst they load slowly.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch._compile import _disable_dynamo

_PARENT, _NAME = "torch._dynamo", "torch._dynamo.utils"
_lock = threading.Lock()


class _StandIn(ModuleType):
    """Stands in for a module, and imports it when a name is wanted that the stand-in lacks."""

    def __init__(self, name: str, **given: Callable[..., Any]) -> None:
        super().__init__(name)
        vars(self).update(given, __path__=[])  # a path, so that it counts as a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_true_module(self.__name__), name)


def _is_compile_supported(device_type: str) -> bool:
    return bool(_true_module(_NAME).is_compile_supported(device_type))


def _disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """Mark a function as not to be compiled, in the way that torch does during its own start."""
    del reason
    return _disable_dynamo(fn, recursive)


def library() -> ModuleType:
    """Import and return the module ``timm``."""
    with _lock:
        if "timm" not in sys.modules and _PARENT not in sys.modules:
            sys.modules[_PARENT] = _StandIn(_PARENT, disable=_disable)
            sys.modules[_NAME] = _StandIn(_NAME, is_compile_supported=_is_compile_supported)
            try:
                return importlib.import_module("timm")
            finally:
                _take_away()
    return importlib.import_module("timm")


def _true_module(name: str) -> ModuleType:
    _take_away()
    return importlib.import_module(name)


def _take_away() -> None:
    for name in (_NAME, _PARENT):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
