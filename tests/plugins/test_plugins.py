"""How names of plugins are found: built-in ones first, nothing imported before it is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fieldmark import augment, cli, models, plugins
from fieldmark.errors import ConfigError, DataError, RunError
from fieldmark.plugins import Need, Plugin, check_needs, read_needs
from fieldmark.settings.spec import Spec, lookup
from tests.plugins.conftest import Sites, put

CODE = '''
from fieldmark.augment.ops import Change
from fieldmark.plugins import Plugin

def {name}():
    """Leave the pictures as they are."""
    return Change(0, lambda images, draws: images)

plugin = Plugin(augmentations={{"{name}": {name}}})
'''


def install(site: Path, module: str, code: str, *, version: str = "1.0") -> Path:
    """A package with one module and an entry point to its ``plugin``."""
    package = module.replace("_", "-")
    put(site, package=package, version=version, point=f"{package} = {module}:plugin")
    (site / f"{module}.py").write_text(code, encoding="utf-8")
    return site


def test_a_built_in_name_imports_no_plugin(use: Sites, tmp_path: Path) -> None:
    use(install(tmp_path, "plugin_tint", CODE.format(name="tint")))
    augment.build("flip_lr|pad_crop(2)")
    models.check("small_cnn")
    assert not plugins.any_loaded() and "plugin_tint" not in sys.modules
    assert [str(each) for each in plugins.installed()] == ["plugin-tint 1.0"]
    assert "plugin_tint" not in sys.modules  # it is found without it
    assert len(augment.build("tint|flip_lr").steps) == 2
    assert "plugin_tint" in sys.modules


def test_did_you_mean_knows_plugins_names(use: Sites, tmp_path: Path) -> None:
    use(install(tmp_path, "plugin_tint", CODE.format(name="colour_cast")))
    with pytest.raises(ConfigError, match="did you mean 'colour_cast'"):
        augment.build("color_cast")
    with pytest.raises(ConfigError, match=r"known: .*flip_lr.*, colour_cast"):
        augment.build("nothing_like_it")


def test_a_plugin_must_not_hide_names(use: Sites, tmp_path: Path, capsys: Any) -> None:
    code = CODE.format(name="tint").replace('{"tint": tint}', '{"tint": tint, "flip_lr": tint}')
    use(install(tmp_path, "plugin_hiding", code))
    augment.build("flip_lr")  # ours, and the plugin is not looked at
    with pytest.raises(ConfigError, match=r"plugin-hiding 1\.0 .*'flip_lr'.*fieldmark's own"):
        augment.build("tint")
    with pytest.raises(SystemExit):
        cli.main(["plugins"])
    assert "cannot be used: the plugin plugin-hiding 1.0" in capsys.readouterr().out


def test_two_plugins_must_not_have_one_name(use: Sites, tmp_path: Path) -> None:
    for module in ("plugin_a", "plugin_b"):
        install(tmp_path, module, CODE.format(name="tint"))
    use(tmp_path)
    with pytest.raises(ConfigError, match=r"of plugin-a 1\.0 and of plugin-b 1\.0; uninstall one"):
        augment.build("tint")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("plugin = 3", "is a int, not a fieldmark Plugin"),
        ("pass", "AttributeError"),
        (
            "from fieldmark.plugins import Plugin\nplugin = Plugin(networks={'os:system': len})",
            "'os:system'; letters",
        ),
    ],
)
def test_a_broken_plugin_breaks_nothing_else(
    use: Sites, tmp_path: Path, capsys: Any, code: str, says: str
) -> None:
    install(tmp_path, "plugin_broken", code)
    use(install(tmp_path, "plugin_tint", CODE.format(name="tint")))
    assert len(augment.build("tint|flip_lr").steps) == 2
    with pytest.raises(ConfigError, match=r"not loaded: the plugin plugin-broken 1\.0") as caught:
        augment.build("tinnt")
    assert says in str(caught.value)
    with pytest.raises(SystemExit) as stop:
        cli.main(["plugins"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and says in out and "augmentations  tint" in out
    need = Need("plugin-broken", "1.0", "plugin-broken", (("networks", "x"),))
    with pytest.raises(RunError, match="cannot be loaded"):
        check_needs([need], where="here")


@pytest.mark.parametrize("table", [{"a b": len}, {"timm/x": len}, {"python:x": len}, {"": len}])
def test_names_that_a_plugin_must_not_have(table: dict[str, Callable[..., Any]]) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        Plugin(networks=table)


def test_every_kind_is_asked_for_by_its_settings_word(use: Sites) -> None:
    for what, kind in (("model", "networks"), ("augment", "augmentations"), ("loss", "losses")):
        assert plugins.kind_of(what) == kind
    with pytest.raises(ConfigError, match="no thing 'x'"):
        lookup(Spec("x"), {"y": 1}, what="thing")


@pytest.mark.parametrize(
    "value",
    [
        {},
        [3],
        [{"package": "a"}],
        [{"package": "a; rm", "version": "1", "plugin": "a", "names": {"networks": ["x"]}}],
        [{"package": "a", "version": "1 2", "plugin": "a", "names": {"networks": ["x"]}}],
        [{"package": "a", "version": "1", "plugin": "a", "names": {"nets": ["x"]}}],
        [{"package": "a", "version": "1", "plugin": "a", "names": {"networks": ["x\x1b[2J"]}}],
        [{"package": "a", "version": "1", "plugin": "a", "names": {}}],
        [{"package": ["a"], "version": "1", "plugin": "a", "names": {"networks": "x"}}],
    ],
)
def test_records_are_read_strictly(value: object) -> None:
    with pytest.raises(RunError, match=r"config\.json: plugins is not what a run writes"):
        read_needs(value, where="config.json")


def test_a_record_survives_being_written() -> None:
    need = Need("a-b", "1.0+local", "x", (("losses", "l"), ("networks", "n")))
    assert read_needs([need.to_json()], where="c") == (need,)


def test_a_folder_wins_over_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldmark.data import readers

    monkeypatch.chdir(tmp_path)
    assert readers.split("labels_csv:a.csv") == ("labels_csv", "a.csv")
    if os.name == "nt":
        pytest.skip("no folder has a colon in its name")
    (tmp_path / "labels_csv:a.csv").mkdir()
    for data in ("labels_csv:a.csv", "./x:y", "C:\\photos", "https://a/b", "digits", "a/b:c"):
        assert readers.split(data) == ("", data)


def test_an_unknown_reader_is_said_beside_the_missing_folder(use: Sites, versions: Any) -> None:
    from fieldmark.data import find

    use(versions["0.1.0"])
    with pytest.raises(DataError, match="no reader 'labels_cvs'; did you mean 'labels_csv'"):
        find("labels_cvs:x.csv")
    with pytest.raises(DataError, match="cannot read"):
        find("labels_csv:no_such.csv")
