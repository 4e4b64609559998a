"""Settings are read once, into values that the job keeps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from fieldmark.errors import ConfigError
from fieldmark.settings import config as config_module
from fieldmark.settings import resolved as module
from fieldmark.settings import spec as spec_module
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.resolved import FreezeAfter, Hardest, Resolved, Stage
from fieldmark.settings.spec import Spec
from fieldmark.settings.weights import WeightsFrom
from tests.making import encode, scene


def test_every_spec_string_becomes_a_value() -> None:
    found = Resolved.of(
        TrainConfig(
            model="cifar_resnet(depth=8)",
            weights="some/file.pth",
            optimizer="adam(beta1=0.8)",
            schedule="cosine(0.1)",
            augment="pad_crop(4)|flip_lr",
            mix="none",
            callbacks="early_stopping(patience=3)",
            progressive="24@0.5",
            hardest="0.75@3",
            freeze_after="stem@2",
        )
    )
    assert found.model == Spec("cifar_resnet", kwargs=(("depth", 8),))
    assert found.weights == WeightsFrom("file", Path("some/file.pth"))
    assert found.optimizer == Spec("adam", kwargs=(("beta1", 0.8),))
    assert found.schedule == Spec("cosine", (0.1,))
    assert found.augment == (Spec("pad_crop", (4,)), Spec("flip_lr"))
    assert found.mix == ()
    assert found.callbacks == (Spec("early_stopping", kwargs=(("patience", 3),)),)
    assert found.progressive == (Stage(0.5, 24),)
    assert found.hardest == Hardest(0.75, 3)
    assert found.freeze_after == (FreezeAfter("stem", 2),)


@pytest.mark.parametrize("name", [*module.READERS])
def test_every_reader_is_of_a_setting_and_refuses_what_is_not_of_its_form(name: str) -> None:
    assert isinstance(getattr(TrainConfig(), name), str)
    if name == "weights":  # any text may be a file's name
        return
    with pytest.raises(ConfigError, match=r"\)\)\("):
        Resolved.of(TrainConfig(**{name: "))("}))


def test_the_names_of_weights_are_not_files() -> None:
    for name in ("auto", "none", "hub", "imagenet"):
        assert WeightsFrom.read(name) == WeightsFrom(name)
    assert WeightsFrom.read(WeightsFrom("hub")) == WeightsFrom("hub")
    assert WeightsFrom.read("~/a.h5").file == Path("~/a.h5").expanduser()


GIVEN: dict[str, Any] = {
    "model": "small_cnn(width=3)",
    "optimizer": "sgd(momentum=0.5)",
    "schedule": "cosine(0.125)",
    "augment": "pad_crop(1)|flip_lr",
    "callbacks": "early_stopping(patience=7)",
    "progressive": "6@0.375",
    "hardest": "0.875@1",
    "freeze_after": "blocks.0@1",
    "split": "0.55/0.2/0.25",
    "save_every": "7 steps",
    "size": 8,
    "epochs": 2,
    "batch_size": 4,
    "threads": 1,
    "device": "cpu",
}


def test_a_run_reads_each_of_its_spec_strings_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the request to the finished run; the model's file, which says its own, apart."""
    for width, name in enumerate(("ant", "bee"), start=9):
        (tmp_path / "set" / name).mkdir(parents=True)
        for n in range(12):
            file = tmp_path / "set" / name / f"{n}.png"
            file.write_bytes(encode(scene(9 + n, width), "PNG"))
    read: Counter[str] = Counter()

    def counted(function: Any) -> Any:
        def counting(text: Any, *rest: Any, **named: Any) -> Any:
            read[text] += 1
            return function(text, *rest, **named)

        return counting

    monkeypatch.setattr(spec_module, "_parse", counted(spec_module._parse))
    for name in ("progressive", "hardest", "freeze_after", "weights"):
        monkeypatch.setitem(module.READERS, name, counted(module.READERS[name]))
    for function in (config_module.split_shares, config_module.save_interval):
        function.cache_clear()
    run = fieldmark.train(
        tmp_path / "set", recipe="tiny", out=tmp_path / "run", progress=False, **GIVEN
    )
    of_config = {name for name in GIVEN if isinstance(GIVEN[name], str)} - {"device"}
    for name in of_config - {"split", "save_every", "model"}:
        for part in GIVEN[name].split("|"):
            assert read[part] == 1, (name, part, read)
    assert read["none"] == 1  # weights: of the recipe tiny
    assert read[run.config.model] == 2, "once from the request, once from model.safetensors"
    assert set(read.values()) == {1, 2}
    for function in (config_module.split_shares, config_module.save_interval):
        texts = {config_module.TrainConfig().split, GIVEN["split"]}
        assert function.cache_info().misses <= len(texts)
    for again in (lambda: fieldmark.resume(run.path, progress=False), run.evaluate):
        read.clear()
        again()
        for name in of_config - {"split", "save_every", "model"}:
            for part in GIVEN[name].split("|"):
                assert read[part] == 1, (name, part, read)
