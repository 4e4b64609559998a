"""What a result says of the machine: hardware and versions, no name of a host or a person.

Results of one kind of machine do not stand for another's: a processor that multiplies bf16 does it
much faster than f32, one that does not emulates it much slower.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

PACKAGES = (
    "fieldmark",
    "torch",
    "torchvision",
    "timm",
    "scikit-learn",
    "numpy",
    "pillow",
    "simplejpeg",
    "opencv-python-headless",
    "keras",
    "tensorflow-cpu",
    "tensorflow",
    "fastai",
    "ultralytics",
    "onnxruntime",
    "openvino",
)


KINDS = {
    "avx2": "AVX2",
    "avx512": "AVX-512 without bf16",
    "avx512-bf16": "AVX-512 with bf16",
    "amx": "AMX",
    "gpu": "GPU",
    "other": "another kind",
}
"""Kinds of machine, as files are called and as pages say it: by what computes fastest there."""

Need = Literal["bf16", "processor"]


def kind() -> str:
    """The kind of this machine: a key of :data:`KINDS`.

    A GPU counts, because Fieldmark uses it; hidden by CUDA_VISIBLE_DEVICES= it does not.
    """
    import torch

    from fieldmark.machine.device import capabilities

    if torch.cuda.is_available():
        return "gpu"
    has = capabilities()
    for name, wanted in (
        ("amx", "amx_bf16"),
        ("avx512-bf16", "avx512_bf16"),
        ("avx512", "avx512_f"),
        ("avx2", "avx2"),
    ):
        if has.get(wanted):
            return name
    return "other"


def lacks(needs: Iterable[Need]) -> str:
    """Why something cannot be measured on this machine; nothing if it can.

    ``bf16`` needs a device that multiplies it; ``processor`` is measured on the processor alone,
    where a GPU that Fieldmark would use is in the way.
    """
    for need in needs:
        if need == "bf16" and not _has_bf16():
            return (
                f"{processor()} does not multiply bf16 ({KINDS[kind()]}); emulated it says nothing"
            )
        if need == "processor" and kind() == "gpu":
            return "measured on the processor; hide the GPU with CUDA_VISIBLE_DEVICES="
    return ""


def _has_bf16() -> bool:
    from fieldmark.machine.device import cuda_bf16
    from fieldmark.machine.tune import has_bf16

    return cuda_bf16("cuda:0") if kind() == "gpu" else has_bf16()


def machine() -> dict[str, Any]:
    """Kind, processor, cores that may be used, memory, system."""
    return {
        "kind": kind(),
        **({"gpu": _gpu()} if kind() == "gpu" else {}),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Versions of everything that is measured and installed here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The commit of Fieldmark's source; empty where that is in no repository."""
    spec = importlib.util.find_spec("fieldmark")
    folder = Path(str(spec and spec.origin)).parent
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - the user's own git
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name(0)


def processor() -> str:
    """The model's name, as the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()
