"""What a run uses that is not fieldmark's own: which plugins, and whether they are here again.

A stranger's run may name anything. Each name in it has to be built in, of a plugin that the run
records and that is installed, or of an object that the caller hands over; nothing is imported by
a name otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fieldmark import augment, models, plugins
from fieldmark.data.readers import reader_of
from fieldmark.errors import ConfigError, RunError
from fieldmark.fit import callbacks, losses, optimizers, schedules
from fieldmark.plugins import KINDS, Need, check_needs, needs_of
from fieldmark.plugins.installed import problems
from fieldmark.plugins.needs import only, recorded
from fieldmark.runs import manifest
from fieldmark.runs.directory import RunDirectory
from fieldmark.scoring import named
from fieldmark.settings.recipes import RECIPES
from fieldmark.settings.resolved import Resolved

SETTINGS = {
    "networks": "model",
    "augmentations": "augment",
    "mixes": "mix",
    "schedules": "schedule",
    "optimizers": "optimizer",
    "losses": "loss",
    "callbacks": "callbacks",
    "metrics": "metrics",
}
"""The setting that holds names of each kind."""


def built_in() -> dict[str, Iterable[str]]:
    """The names that are built in, by kind."""
    return {
        "networks": models.MODELS,
        "augmentations": augment.AUGMENTS,
        "mixes": augment.MIXES,
        "recipes": RECIPES,
        "schedules": schedules.SCHEDULES,
        "optimizers": optimizers.OPTIMIZERS,
        "losses": losses.LOSSES,
        "callbacks": callbacks.CALLBACKS,
        "metrics": named.METRICS,
    }


def names_in(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Every name in the settings that is not built in, with its kind."""
    tables = built_in()
    for kind, setting in SETTINGS.items():
        specs = getattr(resolved, setting)
        for spec in specs if isinstance(specs, tuple) else (specs,):
            if spec is None or spec.name in tables[kind]:
                continue
            if kind != "networks" or not spec.name.startswith("timm/"):
                yield kind, spec.name


def needs(resolved: Resolved, data: str) -> tuple[Need, ...]:
    """The plugins that a run with these settings and pictures uses."""
    if not plugins.any_loaded():
        return ()
    reader = reader_of(data)
    return needs_of([*names_in(resolved), *([("readers", reader)] if reader else [])])


def check_run(run: RunDirectory, kinds: Iterable[str] = SETTINGS) -> Resolved:
    """Read a run's settings, and make sure that what they name can be used.

    Args:
        run: The run.
        kinds: What is going to be used of it; other names are only required to be recorded.

    Raises:
        RunError: naming what is missing, and what to do.
    """
    where = str(run.path / "config.json")
    known = recorded(run.needs())
    try:
        resolved = Resolved.of(run.config())
    except ConfigError as error:
        raise RunError(f"{where}: {error}") from None
    kinds = set(kinds)
    for kind, name in names_in(resolved):
        if plugins.is_handed(name):
            if kind in kinds and name not in plugins.names(KINDS[kind]):
                raise RunError(missing(where, kind, name))
        elif name not in known.get(kind, ()):
            raise RunError(
                f"{where} names the {KINDS[kind]} {name!r}, which is none of fieldmark's and of no "
                "plugin that the run records; it was changed, or made by another version"
            )
    _check_needs(run, kinds)
    return resolved


def check_reader(run: RunDirectory) -> None:
    """Make sure that a run's own pictures can be read, if a plugin's reader gave them.

    Raises:
        RunError: naming what is missing, and what to do.
    """
    _check_needs(run, {"readers"})
    used = reader_of(manifest.read(run).path)
    if used and used not in recorded(run.needs()).get("readers", ()):
        raise RunError(
            f"{run.path / 'data.json'} names the reader {used!r}, which is of no plugin that "
            "the run records; say where the pictures are with --data"
        )


def _check_needs(run: RunDirectory, kinds: set[str]) -> None:
    run.notes += check_needs(
        only(run.needs(), kinds),
        where=str(run.path / "config.json"),
        allow_version=run.allow_plugin_version,
    )


def described(formats: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The installed plugins as plain values: where from, what each adds, what is wrong with it.

    ``formats`` are those that ``export``, which lies above, writes by itself.
    """
    return [
        {
            "package": each.installed.package,
            "version": each.installed.version,
            "plugin": each.installed.name,
            "adds": {k: list(each.plugin.table(k)) for k in KINDS if each.plugin.table(k)},
            "trouble": trouble,
        }
        for each, trouble in problems({**built_in(), "exporters": formats})
    ]


def check_recorded(run: RunDirectory, saved: Mapping[str, Any]) -> None:
    """Make sure that ``config.json`` and the checkpoint need the same plugins.

    Raises:
        RunError: if they do not.
    """
    needed = [need.to_json() for need in run.needs()]
    if saved.get("plugins", []) != needed:
        raise RunError(
            f"{run.path / 'config.json'} records other plugins than the checkpoint; put back the "
            "file as it was, or train anew"
        )


def missing(where: str, kind: str, name: str) -> str:
    """What to say of an object that has to be handed over again."""
    setting = SETTINGS[kind]
    given = plugins.names(KINDS[kind])
    told = f" ({', '.join(given)} was handed over)" if given else ""
    calls = f"fieldmark.resume(RUN, {setting}=...)"
    if kind in ("networks", "metrics"):
        calls = f"fieldmark.load(RUN, {setting}=...) or {calls}"
    return (
        f"{where} needs the {KINDS[kind]} {name!r}, an object that a Python program handed over "
        f"to fieldmark.train and that a name cannot bring back{told}; hand it over again: {calls}"
    )
