"""``head_stages``: the head of a timm network sees the last stages; figures from timm itself."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import fieldmark
import fieldmark.runtime
from fieldmark import models
from fieldmark.errors import ConfigError
from fieldmark.fit.probe import find_head
from tests.making import bright_halves

PLAIN = "test_resnet"
SPEC = f"timm/{PLAIN}(head_stages=2)"


@pytest.mark.parametrize("name", [PLAIN, "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_head_sees_what_the_stages_give(name: str, count: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.create(f"timm/{name}(head_stages={count})", num_classes=3, weights="none")
        pictures = torch.randn(2, 3, 160, 160)
    plain = timm.create_model(name, num_classes=3).eval()
    plain.load_state_dict(
        {k: v for k, v in network.module.state_dict().items() if not k.startswith(network.head)},
        strict=False,
    )
    plain.reset_classifier(0)
    stages: list[torch.Tensor] = []
    for entry in plain.feature_info[-count:]:
        part = plain.get_submodule(entry["module"])
        part.register_forward_hook(lambda module, given, result: stages.append(result))
    seen: list[torch.Tensor] = []
    head = find_head(network.module, network.head)
    head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        network.module.eval()(pictures)
        wanted = [plain(pictures)]
        for each in stages:
            mean = each.mean((2, 3))
            wanted.append(torch.nn.functional.rms_norm(mean, mean.shape[1:], eps=1e-6))
    torch.testing.assert_close(seen[0], torch.cat(wanted, 1))


def test_published_weights_fit_but_for_the_head(tmp_path: Path) -> None:
    plain = timm.create_model(PLAIN, num_classes=1000)
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    network = models.create(SPEC, num_classes=1000, weights=str(tmp_path / "weights.safetensors"))
    own = network.module.state_dict()
    for name, value in plain.state_dict().items():
        if not name.startswith(network.head):
            assert torch.equal(own[name], value), name
    assert not own[f"{network.head}.weight"].any()
    assert any("starts fresh" in note for note in network.notes)


def test_it_is_copied_whole_and_still_a_network_of_timm() -> None:
    network = models.create(SPEC, num_classes=3, weights="none")
    other = copy.deepcopy(network.module).eval()
    pictures = torch.randn(2, 3, 64, 64)
    assert torch.equal(other(pictures), network.module.eval()(pictures))
    assert models.first_of(network, "last_stage") == "layer4"
    assert type(network.module).__name__ == "ResNet"
    assert set(other.state_dict()) == set(timm.create_model(PLAIN).state_dict())


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (f"timm/{PLAIN}(head_stages=0)", "accepted is 1 or more"),
        (f"timm/{PLAIN}(head_stages='all')", "accepted is 1 or more"),
        (f"timm/{PLAIN}(head_stages=True)", "accepted is 1 or more"),
        (f"timm/{PLAIN}(head_stages=99)", "last 99 stages"),
        ("timm/deit_tiny_distilled_patch16_224(head_stages=2)", "not one linear layer"),
    ],
)
def test_what_cannot_be_had(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        models.create(spec, num_classes=3, weights="none")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[fieldmark.Run, Path]:
    """A run of a network with such a head, and its pictures."""
    place = tmp_path_factory.mktemp("stages")
    pictures = bright_halves(place / "pictures")
    run = fieldmark.train(
        pictures, out=place / "run", model=SPEC, weights="none", size=32, epochs=1, progress=False
    )
    return run, pictures


def test_the_run_answers_everywhere_alike(
    trained: tuple[fieldmark.Run, Path], tmp_path: Path
) -> None:
    run, pictures = trained
    files = sorted((pictures / "test").rglob("*.png"))[:4]
    mine = run.predict(files)
    there = fieldmark.runtime.load(run.export(tmp_path / "model.onnx")).predict(files)
    for one, other in zip(mine, there, strict=True):
        assert one.prob == pytest.approx(other.prob, abs=1e-4)
    assert run.explain(files[0]).size
    with pytest.raises(ConfigError, match="--model timm/test_resnet can go to timm"):
        run.export(tmp_path / "folder", to="timm")


def test_training_goes_on_from_it(trained: tuple[fieldmark.Run, Path], tmp_path: Path) -> None:
    run, pictures = trained
    longer = fieldmark.train(
        pictures, from_run=run.path, out=tmp_path / "more", epochs=1, progress=False
    )
    assert longer.config.model == SPEC
