"""A stranger's run imports nothing by name: whatever it names, exit 4 and no import of it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fieldmark.plugins import Need
from fieldmark.runs import checkpoint
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import description_of

NAMES = ("os:system", "antigravity", "python:os.system")
SETTINGS = {"model": "{}", "augment": "flip_lr|{}", "optimizer": "{}"}

WATCH = """
import contextlib, io, json, sys
from fieldmark.cli import main

seen = []
sys.addaudithook(lambda event, args: seen.append((event, str(args[0]))) if event in (
    "import", "os.system", "subprocess.Popen") else None)
told = []
for words in json.loads(sys.argv[1]):
    seen.clear()
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(words)
            code = 0
        except SystemExit as stop:
            code = stop.code
    bad = [s for s in seen if s[0] == "os.system" or s[1].partition(".")[0] in (
        "antigravity", "this", "hypothesis", "stranger")]
    told.append((code, errors.getvalue(), bad))
print("TOLD" + json.dumps(told))
"""


def forged(plain: Path, out: Path, changes: dict[str, Any], *, header: str = "") -> Path:
    """A copy whose settings, checkpoint and, with ``header``, weights agree on a lie."""
    shutil.copytree(plain, out)
    run = RunDirectory(out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **changes}))
    found = checkpoint.newest(out)
    assert found is not None
    plugins = {"plugins": changes["plugins"]} if "plugins" in changes else {}
    settings = {k: v for k, v in changes.items() if k != "plugins"}
    state = {**found.state, "config": {**found.state["config"], **settings}, **plugins}
    state.pop("format")
    checkpoint.save(out, state)
    if header:
        path = out / "model.safetensors"
        needs = tuple(
            Need(n["package"], n["version"], n["plugin"], (("networks", header),))
            for n in changes.get("plugins", ())
        )
        info = dataclasses.replace(description_of(path), model=header, plugins=needs)
        run.save_model(load_file(path), info)
    return out


def watched(commands: list[list[str]]) -> list[tuple[int, str, list[Any]]]:
    """Exit codes, messages, and what was imported or run that must not be; in one new process."""
    result = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    line = next((s for s in result.stdout.splitlines() if s.startswith("TOLD")), "")
    assert line, result.stdout + result.stderr
    return [(code, error, bad) for code, error, bad in json.loads(line[4:])]


def test_nothing_is_imported_by_a_runs_names(plain: Path, photos: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    shutil.copytree(plain.parent / "data", tmp_path / "data")  # so that nothing else is missing
    picture = str(photos / "1.png")
    commands: list[tuple[str, list[str]]] = []
    for number, (name, setting) in enumerate(itertools.product(NAMES, SETTINGS)):
        header = name if setting == "model" else ""
        changes = {setting: SETTINGS[setting].format(name)}
        run = str(forged(plain, tmp_path / str(number), changes, header=header))
        commands.append((name, ["resume", run]))
        if header or not name.startswith("python:"):  # what is not needed need not be handed over
            commands.append((name, ["evaluate", run]))
        if header:
            commands += [(name, ["predict", run, picture]), (name, ["export", run, "--to", "onnx"])]
    for name in ("antigravity", "hypothesis"):  # the second is installed, and no plugin
        names = {"networks": [name]}
        record = {"package": name, "version": "1.0", "plugin": name, "names": names}
        added = {"model": name, "plugins": [record]}
        run = str(forged(plain, tmp_path / name, added, header=name))
        commands += [(name, ["resume", run]), (name, ["predict", run, picture])]
    told = watched([words for _, words in commands])
    wrong = [
        (words, seen)
        for (name, words), seen in zip(commands, told, strict=True)
        if seen[0] != 4 or name not in seen[1] or seen[2]
    ]
    assert wrong == []


def test_settings_alone_that_were_changed_are_refused(
    plain: Path, photos: Path, tmp_path: Path, capsys: Any
) -> None:
    from fieldmark import cli

    run = forged(plain, tmp_path / "run", {"model": "antigravity"})
    for words in (["predict", str(run), str(photos / "1.png")], ["resume", str(run)]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 4
        assert "antigravity" in capsys.readouterr().err
