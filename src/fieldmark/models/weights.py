"""Weights from files: read without running code, loaded into a network, differences reported."""

from __future__ import annotations

import contextlib
import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fieldmark.errors import RunError, WeightsError
from fieldmark.files import lfs
from fieldmark.models import inert
from fieldmark.models.layouts import Fit, fits, in_head, tensors_in
from fieldmark.names import shown
from fieldmark.pictures.formats import guess

_MAX_BYTES = 16 * 2**30
_REFUSED = (
    "Files that need code to be run are refused; where you trust it, load it with the program that "
    "made it and save the weights alone: torch.save(model.state_dict(), FILE), or as .safetensors"
)


_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
"""The number with which ``torch.save`` began files before 1.6."""


@dataclass(frozen=True)
class HeadClasses:
    """Which classes a network's outputs are for, and which those of a file were for."""

    now: tuple[str, ...]
    then: tuple[str, ...] | None
    """None if the file does not say."""


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read all named tensors of a file: safetensors, or what torch.save or pickle wrote.

    What it is is found by its content. For a run directory, its best weights are read. Names of
    nested dictionaries come first, such as ``state_dict/conv.weight``: :func:`load_weights` finds
    the network's among them.

    Raises:
        WeightsError: if the file is missing, too large or damaged, needs code, or has no tensors.
    """
    path = weights_file(path)
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise WeightsError(f"{path} is larger than {_MAX_BYTES >> 30} GiB")
    with path.open("rb") as file:
        head = file.read(64)
    by_content = head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size
    if path.suffix == ".safetensors" or by_content:
        return _read_safetensors(path, head)
    _check_kind(path, head)
    _check_archive(path)
    value = _read_pickle(path)
    try:
        state = tensors_in(value)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} cannot be read as plain tensors ({error})") from None
    if not state:
        if not isinstance(value, Mapping):
            raise WeightsError(f"{path} holds a {type(value).__name__}, not named tensors")
        names = ", ".join(shown(str(name)) for name in list(value)[:8])
        raise WeightsError(f"{path} holds no tensors" + (f" (it has: {names})" if names else ""))
    return state


def weights_file(path: Path) -> Path:
    """Return the file of weights: the path itself or, for a run directory, its best weights.

    Raises:
        WeightsError: if there is none, or a Git LFS pointer in its place.
    """
    folder, path = path, path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        others = _weights_in(folder)
        told = f"; name one of the files in it: {_listed(others)}" if others else ""
        raise WeightsError(f"no weights file at {path}{told}")
    with path.open("rb") as file:
        if lfs.is_pointer(file.read(64)):
            raise WeightsError(f"{path} is {lfs.ADVICE}")
    return path


def _weights_in(folder: Path) -> list[str]:
    """Names of the files in a folder that may be weights."""
    kinds = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".h5", ".keras")
    if not folder.is_dir():
        return []
    return sorted(file.name for file in folder.iterdir() if file.suffix in kinds)


def _read_safetensors(path: Path, head: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        advice = "; it looks like a file of torch.save: call it .pth" if _is_zip(head) else ""
        raise WeightsError(f"{path} is not a safetensors file: {error}{advice}") from None
    if not state:
        raise WeightsError(f"{path} holds no tensors")
    return state


def _check_kind(path: Path, head: bytes) -> None:
    """Refuse files that are known to be something else, with what they are.

    Raises:
        WeightsError: naming it.
    """
    kinds = {
        b"\x89HDF": "an HDF5 file; if it is Keras's, call it .h5",
        b"\x1f\x8b": "compressed (gzip); unpack it first",
        b"7z\xbc\xaf": "a 7z archive; unpack it first",
        b"GGUF": "a GGUF file of a language model",
    }
    found = next((what for magic, what in kinds.items() if head.startswith(magic)), "")
    if not head:
        found = "an empty file; get it again"
    elif guess(head) == "an HTML page":
        found = "an HTML page, not the file itself; download it again, with a browser if need be"
    elif path.name.endswith(".index.json"):
        found = "only the list of a model's files; name one file that holds all weights"
    if found:
        raise WeightsError(f"{path} cannot be read as plain tensors: it is {found}")


def _is_zip(head: bytes) -> bool:
    return head.startswith(b"PK\3\4")


def _read_pickle(path: Path) -> object:
    """Read a pickle: by torch's own safe way, or without what that cannot make.

    Raises:
        WeightsError: if it is damaged, or asks for a call.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if not _is_zip(head) and _MAGIC not in head:  # written by pickle.dump
                file.seek(0)
                return inert.load(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols of pickle
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:  # settings or a network beside tensors, or a bad file
                return torch.load(path, map_location="cpu", pickle_module=inert, weights_only=False)
    except Exception as error:
        raise WeightsError(
            f"{path} cannot be read as plain tensors ({_first_line(error)}). {_REFUSED}"
        ) from None


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
            _check_members(path, archive.infolist())
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


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Check what a zip holds, without reading it.

    Raises:
        WeightsError: if it is something else than ``torch.save`` writes.
    """
    inside = {member.filename.rpartition("/")[2] for member in members}
    if "constants.pkl" in inside or "data.pkl" not in inside:
        what = "a TorchScript program" if "constants.pkl" in inside else "a zip archive"
        raise WeightsError(
            f"{path} cannot be read as plain tensors: it is {what}, not a checkpoint; "
            "save the weights alone: torch.save(model.state_dict(), FILE)"
        )
    seen: set[str] = set()
    for member in members:
        if member.filename in seen:
            raise WeightsError(f"{path} holds {member.filename!r} twice; save it anew")
        seen.add(member.filename)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise WeightsError(
                f"{path} holds {member.filename!r} compressed or encrypted, as torch.save "
                "never does; save it anew with torch.save, or as .safetensors"
            )


def _first_line(error: Exception) -> str:
    """Return what is wrong, without torch's advice to load the file all the same."""
    text = str(error).strip()
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        return f"it asks for the code of {asked[1][:80]}"
    first = text.splitlines()[0].partition(". ")[0] if text else type(error).__name__
    return shown(first[:200])


def load_weights(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    *,
    head: str,
    source: str,
    classes: HeadClasses | None = None,
) -> list[str]:
    """Load weights into a network; only the head may differ, and then keeps its initial values.

    Args:
        module: The network.
        state: What :func:`read_weights` found.
        head: Prefix of the head's parameters.
        source: What messages call the file.
        classes: Which classes the outputs are for. The head's rows go to classes of the same name.

    Returns:
        Notes for the user.

    Raises:
        WeightsError: with the differences, if anything else does not fit.
    """
    own = module.state_dict()
    found = fits(own, state, head=head)
    fit = found[0]
    if fit.foreign:
        raise WeightsError(_difference(source, own, fit))
    fitting = {k: v for k, v in fit.state.items() if k in own and k not in fit.unfit}
    for name, value in fitting.items():
        _check_values(source, name, value, own[name])
    notes = _notes(source, found)
    rows = _rows_by_name(module, head, fit, classes)
    if _are_strangers(classes):
        fitting = {k: v for k, v in fitting.items() if not in_head(k, head)}
    module.load_state_dict({**fitting, **rows}, strict=False)
    if rows:
        assert classes is not None
        assert classes.then is not None
        new = [name for name in classes.now if name not in classes.then]
        fresh = f"; {_listed(new)} start at zero" if new else ""
        return [*notes, f"the head's rows went to the classes of the same names{fresh}"]
    if _are_strangers(classes) or fit.unfit:
        zero_head(module, head)
        why = "is for other classes"
        if fit.missing:
            others = [key for key in fit.extra if in_head(key, head)]
            why = "is of another kind in the file" if others else "is not in the file"
        return [*notes, f"the head ({head}) {why} and starts fresh; everything else was loaded"]
    if classes is not None and classes.then is None:
        notes.append(
            f"{source} does not say which classes its head is for: its outputs are taken to be "
            f"{_listed(classes.now)}, in this order"
        )
    return notes


def _check_values(source: str, name: str, value: torch.Tensor, wanted: torch.Tensor) -> None:
    """Refuse a tensor that cannot be copied into the network's.

    Raises:
        WeightsError: naming it.
    """
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        kind = "quantized" if value.is_quantized else f"{value.layout}, {value.device}"
        raise WeightsError(
            f"{source}: {name} is not a plain tensor ({kind}); save it as a dense one on the cpu"
        )
    if wanted.is_floating_point() and not value.is_floating_point():
        raise WeightsError(
            f"{source}: {name} has values of {value.dtype}, and the network's are "
            f"{wanted.dtype}; convert them to floating point first"
        )
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise WeightsError(f"{source}: {name} has values that are not finite numbers")


def _notes(source: str, found: Sequence[Fit]) -> list[str]:
    """Say which of several sets was taken, and what was left out."""
    fit, *others = found
    names = [shown(each.where) for each in others if not _are_equal(fit.state, each.state)]
    if names:
        taken = shown(fit.where) or "the outermost"
        return [
            f"{source} holds several sets of weights that fit: took {taken}, not {_listed(names)}"
        ]
    twins = tuple(each.prefix for each in others)
    unused = [name for name in fit.unused if not (twins and name.startswith(twins))]
    if unused:
        return [f"left out of {source}, as no part of the network: {_listed(unused)}"]
    return []


def _are_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value is other[name] or torch.equal(value, other[name]) for name, value in one.items()
    )


def _are_strangers(classes: HeadClasses | None) -> bool:
    """Whether the file's head is known to be for other classes, or for these in another order."""
    return classes is not None and classes.then is not None and classes.then != classes.now


def _rows_by_name(
    module: nn.Module, head: str, fit: Fit, classes: HeadClasses | None
) -> dict[str, torch.Tensor]:
    """The head's tensors for these classes, with the rows of those that the file has, too."""
    if classes is None or classes.then is None or not _are_strangers(classes):
        return {}
    then = {name: row for row, name in enumerate(classes.then)}
    shared = [(row, then[name]) for row, name in enumerate(classes.now) if name in then]
    layer = module.get_submodule(head) if head else None
    if not shared or not isinstance(layer, nn.Linear | nn.Conv2d):
        return {}
    rows: dict[str, torch.Tensor] = {}
    for name, own in layer.state_dict().items():
        theirs = fit.state.get(f"{head}.{name}")
        if theirs is None or theirs.shape != (len(then), *own.shape[1:]):
            return {}
        _check_values("the weights", f"{head}.{name}", theirs, own)
        values = torch.zeros_like(own)
        for row, place in shared:
            values[row] = theirs[place]
        rows[f"{head}.{name}"] = values
    return rows


def check_finite(state: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Refuse a model with weights that are no finite numbers: its answers would be none.

    Raises:
        RunError: naming the tensor.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise RunError(
                f"{source}: {shown(name)} has values that are not finite numbers, so that the "
                "answers would be none; use another checkpoint, or train again"
            )


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


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(shown(name) for name in names[:5]) + more


def _difference(source: str, own: Mapping[str, torch.Tensor], fit: Fit) -> str:
    lines = []
    for key in fit.foreign[:6]:
        here = str(tuple(own[key].shape)) if key in own else "nothing"
        there = str(tuple(fit.state[key].shape)) if key in fit.state else "nothing"
        lines.append(f"  {shown(key)}: the network has {here}, the file {there}")
    if len(fit.foreign) > 6:
        lines.append(f"  and {len(fit.foreign) - 6} more")
    beside = [*fit.extra, *fit.unused]
    if beside and set(beside[:6]) - set(fit.foreign[:6]):
        shapes = {**fit.beside, **fit.state}
        named = ", ".join(f"{shown(key)} {tuple(shapes[key].shape)}" for key in beside[:6])
        more = f" and {len(beside) - 6} more" if len(beside) > 6 else ""
        lines.append(f"  only the file has: {named}{more}")
    where = f" (in {shown(fit.where)})" if fit.where else ""
    return (
        f"{source} does not fit the network: {fit.matched} of its {len(own)} tensors match{where}\n"
        + "\n".join(lines)
        + "\nName the network that the file was made with, by --model; if it is named already, "
        "save the file with the network's own names for its tensors"
    )
