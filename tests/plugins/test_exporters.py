"""A plugin's exporter goes through the same check as ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fieldmark
from fieldmark.errors import ConfigError, WeightsError
from tests.plugins.conftest import Sites
from tests.plugins.test_plugins import install

CODE = '''
import numpy as np
import torch
from fieldmark.plugins import Plugin

def weights(model, folder):
    """The bare weights."""
    torch.save(model.module.state_dict(), folder / "weights.pt")
    (folder / "classes.txt").write_text("\\\\n".join(model.info.class_names))
    def score(pictures):
        fitted = torch.from_numpy(np.stack([model.info.input.pixels(p) for p in pictures]))
        with torch.no_grad():
            logits = model.module(model.info.input.normalize(fitted))
        return torch.softmax(logits / model.info.temperature, 1).double().numpy()
    return score

def turned(model, folder):
    """The wrong way round."""
    score = weights(model, folder)
    return lambda pictures: score(pictures)[:, ::-1]

plugin = Plugin(exporters={"weights": weights, "turned": turned})
'''.replace("\\\\n", "\\n")


def test_it_is_checked_against_the_run(
    plain: Path, use: Sites, tmp_path: Path, capsys: Any
) -> None:
    use(install(tmp_path / "site", "plugin_weights", CODE))
    run = fieldmark.load(plain)
    made = run.export(tmp_path / "out", to="weights")
    assert set(torch.load(made / "weights.pt", weights_only=True)) >= {"head.weight"}
    with pytest.raises(WeightsError, match="does not predict as the run does"):
        run.export(tmp_path / "wrong", to="turned")
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(ConfigError, match="did you mean 'weights'"):
        run.export(to="weihgts")
    with pytest.raises(ConfigError, match="no effect on weights"):
        run.export(to="weights", int8=True)
