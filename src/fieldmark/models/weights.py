"""Weights from files: read without running code, loaded into a network, differences reported."""

from __future__ import annotations

import contextlib
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fieldmark.errors import WeightsError

_MAX_BYTES = 16 * 2**30
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from .safetensors, or from .pth/.pt/.bin with ``weights_only``.

    For a run directory, its best weights are read.

    Raises:
        WeightsError: if the file is missing, too large, damaged, or holds anything but tensors.
    """
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise WeightsError(f"{path} is larger than {_MAX_BYTES >> 30} GiB")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return _tensors(load_file(path), path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}") from None
    _check_archive(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as plain tensors ({_first_line(error)}). Files that need code "
            "to be run are refused; convert it to .safetensors where you trust it"
        ) from None
    return _tensors(value, path)


def _check_archive(path: Path) -> None:
    """Check that a checkpoint, if it is a zip, is undamaged and as ``torch.save`` writes it.

    torch would unpack a member of any size, use either of two with the same name, and not compare
    checksums.

    Raises:
        WeightsError: naming the member.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":  # written before torch 1.6, or no checkpoint at all
            return
    try:
        with zipfile.ZipFile(path) as archive:
            seen: set[str] = set()
            for member in archive.infolist():
                if member.filename in seen:
                    raise WeightsError(f"{path} holds {member.filename!r} twice; save it anew")
                seen.add(member.filename)
                if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                    raise WeightsError(
                        f"{path} holds {member.filename!r} compressed or encrypted, as torch.save "
                        "never does; save it anew with torch.save, or as .safetensors"
                    )
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, LookupError, NotImplementedError) as error:
        raise WeightsError(
            f"{path} cannot be read as plain tensors ({_first_line(error)}); it is damaged: "
            "get it again"
        ) from None
    if damaged is not None:
        raise WeightsError(
            f"{path} cannot be read as plain tensors ({damaged!r} has another checksum than it was "
            "stored with); it is damaged: get it again"
        )


def _first_line(error: Exception) -> str:
    """Return what is wrong, without torch's advice to load the file all the same."""
    text = str(error).strip()
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        return f"it asks for the code of {asked[1][:80]}"
    return text.splitlines()[0].partition(". ")[0][:200] if text else type(error).__name__


def _tensors(value: object, path: Path) -> dict[str, torch.Tensor]:
    """Unwrap the usual nestings and prefixes of a checkpoint."""
    for wrapper in _WRAPPERS:
        if isinstance(value, Mapping) and isinstance(value.get(wrapper), Mapping):
            value = value[wrapper]
            break
    if not isinstance(value, Mapping):
        raise WeightsError(f"{path} holds a {type(value).__name__}, not named tensors")
    state = {str(k): v for k, v in value.items() if isinstance(v, torch.Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors")
    for key, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout}, {tensor.device}"
            raise WeightsError(
                f"{path}: {key} is not a plain tensor ({kind}); save it as a dense one on the cpu"
            )
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): v for key, v in state.items()}
    return state


def load_weights(
    module: nn.Module, state: Mapping[str, torch.Tensor], *, head: str, source: str
) -> list[str]:
    """Load weights into a network; only the head may differ, and then keeps its initial values.

    Returns:
        Notes for the user.

    Raises:
        WeightsError: with the differences, if anything else does not fit.
    """
    own = module.state_dict()
    shapes = {k: tuple(v.shape) for k, v in state.items() if k in own}
    clash = [k for k, shape in shapes.items() if shape != tuple(own[k].shape)]
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    foreign = [k for k in clash + missing + extra if not _in_head(k, head)]
    if foreign:
        raise WeightsError(_difference(source, own, state, foreign))
    unfit = set(clash + missing)
    fitting = {k: v for k, v in state.items() if k in own and k not in unfit}
    for name, value in fitting.items():
        if own[name].is_floating_point() and not value.is_floating_point():
            raise WeightsError(
                f"{source}: {name} has values of {value.dtype}, and the network's are "
                f"{own[name].dtype}; convert them to floating point first"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise WeightsError(f"{source}: {name} has values that are not finite numbers")
    module.load_state_dict(fitting, strict=False)
    if not unfit:
        return []
    zero_head(module, head)
    return [f"the head ({head}) is for other classes and starts fresh; everything else was loaded"]


@contextlib.contextmanager
def no_larger_than(state: Mapping[str, torch.Tensor], *, source: str) -> Iterator[None]:
    """Limit the size of a network built in the block by the size of the weights it is for.

    A stranger's file may name a network of gigabytes. Networks may build parts that they replace or
    prune, so the limit is four times as many numbers as in the file, and 50 million more.

    Raises:
        WeightsError: before the network's memory is touched.
    """
    left = 4 * sum(tensor.numel() for tensor in state.values()) + 50_000_000
    here = threading.get_ident()

    def count(_module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if parameter is not None and threading.get_ident() == here:
            left -= parameter.numel()
            if left < 0:
                raise WeightsError(
                    f"{source} does not fit the network that it names, which is far larger "
                    f"({name} alone has {parameter.numel():,} numbers)"
                )

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def zero_head(module: nn.Module, head: str) -> None:
    """Set a new head on pretrained features to zero, so that every class is equally likely.

    timm's EfficientNets draw the head from +-1/sqrt(classes), which for five classes gives first
    logits of several units: fine-tuning 355 pictures then spent 14 epochs unlearning them (76 % on
    the flowers' test split, against 89 % of a linear probe on the same features; docs/log.md).
    """
    layer = module.get_submodule(head)
    if isinstance(layer, nn.Linear | nn.Conv2d):
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _in_head(key: str, head: str) -> bool:
    return key == head or key.startswith(head + ".")


def _difference(
    source: str,
    own: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    foreign: list[str],
) -> str:
    lines = []
    for key in foreign[:6]:
        here = str(tuple(own[key].shape)) if key in own else "nothing"
        there = str(tuple(state[key].shape)) if key in state else "nothing"
        lines.append(f"  {key}: the network has {here}, the file {there}")
    if len(foreign) > 6:
        lines.append(f"  and {len(foreign) - 6} more")
    fits = sum(1 for k in own if k in state and own[k].shape == state[k].shape)
    return (
        f"{source} does not fit the network: {fits} of its {len(own)} tensors match\n"
        + "\n".join(lines)
        + "\nName the network that the file was made with, by --model"
    )
