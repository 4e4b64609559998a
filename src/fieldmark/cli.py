"""The command line: turns flags into one library call and prints its result. Decides nothing.

torch is imported only when a command needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter, Token

from fieldmark.console import discard, has_width
from fieldmark.errors import ConfigError, FieldmarkError, for_the_command_line
from fieldmark.files.json_text import numbers_or_null
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine.process import spin_less
from fieldmark.names import on_screen, shown
from fieldmark.settings.config import GROUPS, TrainConfig, field_docs, read_config
from fieldmark.settings.space import span
from fieldmark.settings.varied import flag, grouped
from fieldmark.version import __version__

if TYPE_CHECKING:
    from fieldmark.api import Run
    from fieldmark.jobs.predict import Prediction

app = App(
    name="fieldmark",
    version=__version__,
    help="Turn a folder of labelled pictures into an image classifier.",
    help_format="plaintext",
    group_parameters=Group("Flags", sort_key=0),
)

_GROUPS = {name: Group(name, sort_key=place) for place, name in enumerate(GROUPS)}
_MOST_USED, *_ = _GROUPS.values()
_OTHER = Group("Other flags of the command", sort_key=0.5)
"""Where a command has settings: after the most used flags and before the rest of the settings."""
_KINDS: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


def _settings_class(*without: str) -> type:
    """A dataclass of TrainConfig's fields, all optional: those given override the recipe's."""
    docs = field_docs()
    kinds = {field.name: _KINDS[str(field.type)] for field in dataclasses.fields(TrainConfig)}
    made = dataclasses.make_dataclass(
        "Settings",
        [
            (
                name,
                Annotated[
                    kinds[name] | None,
                    Parameter(help=docs[name], show_default=False, group=_GROUPS[group]),
                ],
                None,
            )
            for group, names in GROUPS.items()
            for name in names
            if name not in without
        ],
        kw_only=True,
        frozen=True,
    )
    made.__module__ = __name__  # cyclopts takes a class of the module "types" for a plain value
    return made


Settings: Any = Annotated[_settings_class(), Parameter(name="*")]
_NOTHING = Settings.__origin__()
SharedSettings: Any = Annotated[_settings_class("seed"), Parameter(name="*")]
_NOTHING_SHARED = SharedSettings.__origin__()


def _setting(name: str, text: str) -> Any:
    """A setting's value from a word, read and refused as its flag would."""
    given: Any = App(result_action="return_value")
    given.default(_only_settings)
    found = given([f"{flag(name)}={text}"], exit_on_error=False, print_error=False)
    return getattr(found, name)


def _only_settings(*, settings: Settings = _NOTHING) -> Any:
    return settings


def _by_use(kind: object, tokens: Sequence[Token]) -> tuple[tuple[str, ...], ...]:
    """The words of each use of a flag that may be used several times."""
    groups: list[list[str]] = []
    for token in tokens:
        if token.index == 0:
            groups.append([])
        groups[-1].append(token.value)
    return tuple(map(tuple, groups))


Json = Annotated[
    bool,
    Parameter(
        negative="",
        show_default=False,
        help="Print one JSON value on stdout, and everything else on stderr.",
    ),
]
Pictures = Annotated[
    str,
    Parameter(
        help="digits, cifar10, cifar100, a folder of pictures, a table of pictures and labels "
        "(CSV, JSON lines), or READER:ARGUMENT for a plugin's reader."
    ),
]
Recipe = Annotated[
    str,
    Parameter(
        help="Settings to start from: auto (candidates are tried on train and val, where no "
        "setting decides what is learnt), or a name from `fieldmark recipes`.",
        group=_MOST_USED,
    ),
]
RUN_HELP = "Run directory to create; default is a new one under runs/."
RunPath = Annotated[Path, Parameter(help="A run directory.")]
DeviceName = Annotated[str, Parameter(help=field_docs()["device"])]
MaxPixels = Annotated[
    int,
    Parameter(help="Largest number of pixels of a picture; 0 is the run's own."),
]
AllowPluginVersion = Annotated[
    bool,
    Parameter(
        negative="",
        show_default=False,
        help="Use other versions of plugins than the run was made with.",
    ),
]


Which = Annotated[
    str,
    Parameter(
        help="Epoch whose weights are used: best, last, or auto, which is the one that the run "
        "scored (setting keep)."
    ),
]


@app.command(group_parameters=_OTHER)
def train(
    data: Pictures,
    /,
    *,
    recipe: Recipe = "auto",
    out: Annotated[Path | None, Parameter(help=RUN_HELP, group=_MOST_USED)] = None,
    config: Annotated[
        Path | None,
        Parameter(help="Settings of an earlier run (its config.json), in place of a recipe."),
    ] = None,
    from_run: Annotated[
        Path | None,
        Parameter(
            name="--from",
            help="A run to train further, in place of a recipe: its settings, weights and order of "
            "classes; the optimizer begins anew, and new classes are allowed.",
        ),
    ] = None,
    preview: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Write preview.png, training pictures before and after augmentation, and stop.",
        ),
    ] = False,
    find_lr: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Try learning rates, plot the loss over them, and stop.",
        ),
    ] = False,
    minutes: Annotated[
        float | None,
        Parameter(
            help="Wall time for everything: the best that can be found in it. With a recipe or "
            "settings that decide what is trained, training is shortened where it would take "
            "longer.",
            group=_MOST_USED,
        ),
    ] = None,
    json: Json = False,
    settings: Settings = _NOTHING,
) -> None:
    """Train a classifier on a folder of pictures, score it, and write a report."""
    given = _given(settings)
    base = None if config is None else read_config(config)
    if preview and find_lr:
        raise ConfigError("--preview and --find-lr both stop before training; give one of them")
    if minutes is not None and (preview or find_lr):
        raise ConfigError("--minutes is for training; --preview and --find-lr stop before it")
    if preview or find_lr:
        request = TrainRequest(
            data=data, recipe=recipe, base=base, settings=given, from_run=from_run, out=out
        )
        _before_training(request, find=find_lr, as_json=json)
        return
    from fieldmark import api

    with _watching(json) as watching:
        run = api.train(
            data,
            recipe=recipe,
            config=base,
            from_run=from_run,
            out=out,
            minutes=minutes,
            progress=watching,
            **given,
        )
    _conclude(run, as_json=json)


def _given(settings: Any) -> dict[str, Any]:
    """The settings that were given as flags."""
    return {key: value for key, value in dataclasses.asdict(settings).items() if value is not None}


def _before_training(request: TrainRequest, *, find: bool, as_json: bool) -> None:
    from fieldmark.jobs import train as training

    with _watching(as_json) as watching:
        if find:
            rate, path = training.find_lr(request, progress=watching)
            _print({"lr": rate, "file": str(path)}, f"try --lr {rate:.2g}; see {path}", as_json)
        else:
            path = training.look(request, progress=watching)
            _print({"file": str(path)}, f"wrote {path}", as_json)


@app.command
def resume(
    run: RunPath,
    /,
    *,
    data: Annotated[
        str | None, Parameter(help="Where the pictures are now, if they were moved.")
    ] = None,
    allow_data_change: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Continue although pictures were added, removed or changed; the run records it.",
        ),
    ] = False,
    allow_plugin_version: AllowPluginVersion = False,
    json: Json = False,
) -> None:
    """Continue a run where it stopped; the result is that of a run that never stopped."""
    from fieldmark import api

    with _watching(json) as watching:
        resumed = api.resume(
            run,
            data=data,
            allow_data_change=allow_data_change,
            allow_plugin_version=allow_plugin_version,
            progress=watching,
        )
    _conclude(resumed, as_json=json)


@app.command
def evaluate(
    run: RunPath,
    /,
    *,
    data: Annotated[str | None, Parameter(help="Other pictures with the run's classes.")] = None,
    which: Which = "auto",
    device: DeviceName = "auto",
    max_pixels: MaxPixels = 0,
    allow_plugin_version: AllowPluginVersion = False,
    json: Json = False,
) -> None:
    """Score a run: accuracy with its interval, top-5, loss, and figures of every class."""
    from fieldmark import api

    with _watching(json) as watching:
        opened = api.load(run, which=which, allow_plugin_version=allow_plugin_version)
        parts = opened.evaluate(data, device=device, max_pixels=max_pixels, progress=watching)
    part = "test" if "test" in parts else "val"
    keys = ("accuracy", "n", "low", "high", "top5", "loss", "per_class")
    further: dict[str, Any] = {
        key: parts[part][key] for key in ("metrics", "trained_on") if key in parts[part]
    }
    _print(
        {"part": part, **{key: parts[part][key] for key in keys}, **further},
        "\n".join([_summary(parts), "", _class_table(parts[part])]),
        json,
    )


@app.command
def predict(
    run: Annotated[Path, Parameter(help="A run directory, or an ONNX file of `export`.")],
    pictures: Annotated[list[str], Parameter(help="Files, folders or patterns such as '*.jpg'.")],
    /,
    *,
    top: Annotated[int, Parameter(help="How many of the likeliest classes to report.")] = 5,
    csv: Annotated[Path | None, Parameter(help="CSV file to write the predictions to.")] = None,
    explain: Annotated[
        Path | None,
        Parameter(
            help="Folder to write heat maps to: what in a picture led to its class. "
            "Not for ONNX files."
        ),
    ] = None,
    which: Which = "auto",
    device: DeviceName = "auto",
    engine: Annotated[
        str,
        Parameter(
            help="torch, openvino, or auto: OpenVINO after 500 pictures of 224 px (or as many "
            "pixels), if it is installed, agrees with torch and is faster."
        ),
    ] = "auto",
    max_pixels: MaxPixels = 0,
    allow_plugin_version: AllowPluginVersion = False,
    json: Json = False,
) -> None:
    """Classify pictures: for each its class, or why it could not be classified."""
    if top < 1:
        raise ConfigError(f"top is {top}; at least 1 is accepted")
    from fieldmark.files.csv_text import encode_csv
    from fieldmark.files.writing import write_atomic

    with _watching(json) as watching:
        if run.suffix == ".onnx":
            if which != "auto":
                raise ConfigError(
                    f"--which {which}: an ONNX file has one epoch's weights; leave it out"
                )
            _check_onnx(device=device, engine=engine, explain=explain)
            from fieldmark import runtime

            found = runtime.load(run).predict(list(pictures), top=top, max_pixels=max_pixels)
        else:
            from fieldmark import api

            opened = api.load(run, which=which, allow_plugin_version=allow_plugin_version)
            found = opened.predict(
                list(pictures),
                top=top,
                device=device,
                engine=engine,
                max_pixels=max_pixels,
                progress=watching,
            )
            if explain is not None:
                opened.write_heat_maps(found, explain, device=device, max_pixels=max_pixels)
    if csv is not None:
        _spare_pictures(csv, found)
        rows = [(p.file, p.label, "" if p.error else f"{p.prob:.8f}", p.error) for p in found]
        csv.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(csv, encode_csv(("file", "label", "prob", "error"), rows))
    _print([p.to_json() for p in found], _prediction_table(found), json)


def _spare_pictures(csv: Path, found: Sequence[Prediction]) -> None:
    """Refuse to write over a picture that was just classified."""
    if csv.is_file() and any(Path(p.file).exists() and csv.samefile(p.file) for p in found):
        raise ConfigError(
            f"--csv {csv} is one of the pictures, which stay as they are; name another file"
        )


def _check_onnx(*, device: str, engine: str, explain: Path | None) -> None:
    if device not in ("auto", "cpu"):
        raise ConfigError(f"--device is {device}; ONNX files are computed on the processor, cpu")
    if engine != "auto":
        raise ConfigError(f"--engine is {engine}; an ONNX file is computed by ONNX Runtime")
    if explain is not None:
        raise ConfigError("--explain needs the run; an ONNX file gives probabilities only")


@app.command(group_parameters=_OTHER)
def compare(
    data: Pictures,
    /,
    *,
    models: Annotated[
        tuple[str, ...],
        Parameter(
            help="Two or more networks; default is those that the recipe compares. With --vary "
            "also one, or none for the recipe's.",
            consume_multiple=True,
            negative="",
            show_default=False,
            group=_MOST_USED,
        ),
    ] = (),
    vary: Annotated[
        tuple[tuple[str, ...], ...],
        Parameter(
            help="A setting and the values to compare: --vary lr 0.01 0.001. Given several times, "
            "every combination is compared, with every network.",
            consume_multiple=True,
            negative="",
            show_default=False,
            converter=_by_use,
            group=_MOST_USED,
        ),
    ] = (),
    seeds: Annotated[
        int,
        Parameter(
            help="How often each candidate is trained, with seeds 0, 1, ...", group=_MOST_USED
        ),
    ] = 3,
    recipe: Recipe = "auto",
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder of the comparison; the same command with the same folder continues it.",
            group=_MOST_USED,
        ),
    ] = None,
    json: Json = False,
    settings: SharedSettings = _NOTHING_SHARED,
) -> None:
    """Train networks, settings or both with several seeds; test which is better, if any."""
    from fieldmark import api

    with _watching(json) as watching:
        result = api.compare(
            data,
            models,
            vary=grouped(vary, _setting, by="--vary"),
            seeds=seeds,
            recipe=recipe,
            out=out,
            progress=watching,
            **_given(settings),
        )
    page = f"page: {result.path / 'compare.html'}"
    value = {"folder": str(result.path), **result.to_json()}
    _print(value, "\n".join([*result.table(), page]), json)


@app.command(group_parameters=_OTHER)
def tune(
    data: Pictures,
    /,
    *,
    minutes: Annotated[
        float, Parameter(help="Wall time for everything, in minutes.", group=_MOST_USED)
    ] = 60.0,
    over: Annotated[
        tuple[tuple[str, ...], ...],
        Parameter(
            help="A setting and what to search: --over lr 0.001..0.1, or values such as --over "
            "optimizer adam sgd. Can be given several times; default is a space around the "
            "recipe's settings.",
            consume_multiple=True,
            negative="",
            show_default=False,
            converter=_by_use,
            group=_MOST_USED,
        ),
    ] = (),
    trials: Annotated[
        int,
        Parameter(
            help="Largest number of trials; 0 for as many as there is time for.", group=_MOST_USED
        ),
    ] = 0,
    recipe: Recipe = "auto",
    out: Annotated[
        Path | None,
        Parameter(
            help="Folder of the search; the same command with the same folder continues it.",
            group=_MOST_USED,
        ),
    ] = None,
    json: Json = False,
    settings: Settings = _NOTHING,
) -> None:
    """Search for better settings on validation, and train a run with the best."""
    from fieldmark import api

    with _watching(json) as watching:
        result = api.tune(
            data,
            grouped(over, _searched, by="--over"),
            minutes=minutes,
            trials=trials,
            recipe=recipe,
            out=out,
            progress=watching,
            **_given(settings),
        )
    told = [*result.table(), f"run: {result.run}", f"page: {result.path / 'tune.html'}"]
    _print({"folder": str(result.path), **result.to_json()}, "\n".join(told), json)


def _searched(name: str, text: str) -> Any:
    """A range, or a value, of a setting that is searched."""
    return span(name, text) or _setting(name, text)


@app.command
def import_keras(
    file: Annotated[Path, Parameter(help=".h5, .weights.h5 or .keras.")],
    /,
    *,
    model: Annotated[
        str, Parameter(help="The network of these weights; not needed for files from `export`.")
    ] = "",
    classes: Annotated[
        tuple[str, ...],
        Parameter(
            help="Class names in the order of the outputs, or a text file with one per line, or a "
            "folder whose subfolders, sorted, are the classes.",
            consume_multiple=True,
            negative="",
            show_default=False,
        ),
    ] = (),
    out: Annotated[Path | None, Parameter(help=RUN_HELP)] = None,
    preprocess: Annotated[
        str,
        Parameter(
            help="How pixels were scaled: caffe, tf, torch, scale (1/255) or none; auto is what "
            "the file's first layers do, else what the network expects."
        ),
    ] = "auto",
    interpolation: Annotated[
        str,
        Parameter(
            help="How pictures were resized: nearest (Keras's load_img, flow_from_directory), "
            "keras_bilinear (tf.image.resize, image_dataset_from_directory), bilinear, bicubic or "
            "lanczos; auto is what `export` wrote down, else nearest."
        ),
    ] = "auto",
    mean_picture: Annotated[
        Path | None,
        Parameter(help="A .npy file with the mean picture [H, W, 3] that the script subtracted."),
    ] = None,
    size: Annotated[
        int, Parameter(help="Input size in pixels; 0 is the file's, else the network's.")
    ] = 0,
    json: Json = False,
) -> None:
    """Make a run from a Keras file, for predict, evaluate and export. Runs no code in the file."""
    from fieldmark import api

    run = api.import_keras(
        file,
        model=model,
        classes=classes,
        out=out,
        preprocess=preprocess,
        interpolation=interpolation,
        mean_picture=mean_picture,
        size=size,
    )
    told = (run.path / "log.txt").read_text(encoding="utf-8").rstrip()
    value = {"run": str(run.path), "model": run.config.model, "classes": list(run.class_names)}
    _print(value, f"{told}\nrun: {run.path}", json)


@app.command
def export(
    run: RunPath,
    /,
    *,
    to: Annotated[str, Parameter(help="Format: onnx, openvino, timm, keras, or a plugin's.")],
    out: Annotated[
        Path | None, Parameter(help="File or folder to write; default is in the run.")
    ] = None,
    int8: Annotated[
        bool,
        Parameter(
            negative="",
            show_default=False,
            help="Use 8-bit numbers, calibrated on training pictures; ONNX and OpenVINO only.",
        ),
    ] = False,
    fp16: Annotated[
        bool,
        Parameter(
            negative="", show_default=False, help="Use 16-bit numbers; ONNX and OpenVINO only."
        ),
    ] = False,
    which: Which = "auto",
    allow_plugin_version: AllowPluginVersion = False,
    json: Json = False,
) -> None:
    """Write a run's model for another program; refused if predictions differ from the run's."""
    from fieldmark import export as exporting

    with _watching(json) as watching:
        made = exporting.export(
            run,
            out,
            to=to,
            int8=int8,
            fp16=fp16,
            which=which,
            allow_plugin_version=allow_plugin_version,
            progress=watching,
        )
    check = made.verdict
    lines = [*(check.lines() if check else []), f"wrote {made.path}"]
    value = {"file": str(made.path), "check": check.to_json() if check else None}
    _print(value, "\n".join(lines), json)


@app.command
def serve(
    model: Annotated[Path, Parameter(help="A run directory, or an ONNX file of `export`.")],
    /,
    *,
    host: Annotated[
        str, Parameter(help="Address to listen on; any but this machine's own needs --token.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port; 0 for any free one.")] = 8000,
    token: Annotated[
        str,
        Parameter(
            help="What clients must send as 'Authorization: Bearer TOKEN'. Better set by the "
            "environment variable: flags can be seen by every user of the machine.",
            env_var="FIELDMARK_TOKEN",
            show_default=False,
        ),
    ] = "",
    allow_host: Annotated[
        tuple[str, ...],
        Parameter(
            help="Further host names under which clients reach the server.",
            consume_multiple=True,
            negative="",
            show_default=False,
        ),
    ] = (),
    batch: Annotated[int, Parameter(help="Largest number of pictures scored at once.")] = 32,
    queue: Annotated[
        int,
        Parameter(help="Largest number of pictures in the server; more are refused with 429."),
    ] = 64,
    root_path: Annotated[
        str,
        Parameter(
            help="Path under which a proxy serves it, such as /flowers, whether the proxy takes "
            "it off or not.",
            show_default=False,
        ),
    ] = "",
    device: DeviceName = "auto",
    max_pixels: MaxPixels = 0,
    allow_plugin_version: AllowPluginVersion = False,
) -> None:
    """Serve predictions over HTTP, with an upload page, until Ctrl-C."""
    from fieldmark.serve.start import serve as serving

    serving(
        model,
        host=host,
        port=port,
        token=token,
        allow_hosts=allow_host,
        batch=batch,
        queue=queue,
        root_path=root_path,
        device=device,
        max_pixels=max_pixels,
        allow_plugin_version=allow_plugin_version,
        say=_write,
    )


@app.command
def report(
    runs: Annotated[list[Path], Parameter(help="Run directories; several are put on one page.")],
    /,
    *,
    out: Annotated[
        Path | None,
        Parameter(
            help="File to write; default is report.html in the run, or in the current folder "
            "for several runs."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a page with curves, confusion matrix, mistakes and settings of one or more runs."""
    from fieldmark.pages import report as reporting
    from fieldmark.runs.directory import RunDirectory

    opened = [RunDirectory.open(run) for run in runs]
    for run in opened:  # without taking their locks, so that it works while they train
        reporting.write_figures(run.path)
    page = reporting.report([run.path for run in opened], out=out)
    _print({"file": str(page)}, f"wrote {page}", json)


@app.command
def models(
    pattern: Annotated[
        str,
        Parameter(help="A network, or part of its name; timm/NAME for the networks of timm."),
    ] = "",
    /,
    *,
    num_classes: Annotated[
        int, Parameter(help="Classes to count with; 0 is the network's usual number.")
    ] = 0,
    size: Annotated[int, Parameter(help="Input size in pixels; 0 is the network's own.")] = 0,
    json: Json = False,
) -> None:
    """List networks with their parameters, or the layers of a single one."""
    from fieldmark import models as networks
    from fieldmark.models import summary

    for name, value in (("--num-classes", num_classes), ("--size", size)):
        if value < 0:
            raise ConfigError(f"{name} is {value}; 0 (the usual one) or more is accepted")
    if networks.exists(pattern):
        found = summary.summarize(pattern, num_classes=num_classes, size=size)
        _print(found.to_json(), "\n".join(found.lines()), json)
        return
    if num_classes or size:
        raise ConfigError(
            f"--num-classes and --size are for a single network, and {pattern!r} is not one; "
            "`fieldmark models` lists them"
        )
    rows: list[dict[str, Any]]
    if pattern.startswith("timm/"):
        listed = networks.listing(pattern)
        rows = [{"spec": name, "about": about} for name, about in listed.items()]
        text = "\n".join(f"{row['spec']:42} {row['about']}" for row in rows)
    else:
        rows = summary.table(pattern)
        text = "\n".join(map(_model_row, rows))
    hint = "\ntimm/NAME is any network of timm: `fieldmark models timm/resnet` lists some"
    _print(rows, (text or f"nothing matches {pattern!r}") + ("" if pattern else hint), json)


def _model_row(row: dict[str, Any]) -> str:
    return (
        f"{row['spec']:36} {row['parameters']:>12,} parameters, {row['classes']:4} classes, "
        f"{row['size']:3} px  {row['about']}"
    )


@app.command
def recipes(
    pattern: Annotated[str, Parameter(help="Part of a name.")] = "", /, *, json: Json = False
) -> None:
    """List the recipes."""
    from fieldmark.settings.recipes import listing

    found = listing(pattern)
    text = "\n".join(f"{name:16} {about}" for name, about in found.items())
    _print(found, text or f"nothing matches {pattern!r}", json)


@app.command
def plugins(*, json: Json = False) -> None:
    """List the plugins that are installed and what each adds."""
    from fieldmark.plugins import installed

    if not installed():
        _print([], "no plugins are installed; docs/plugins.md says how one is written", json)
        return
    from fieldmark.export import FORMATS
    from fieldmark.jobs.outside import described

    rows = described(FORMATS)
    _print(rows, "\n".join(line for row in rows for line in _plugin_lines(row)), json)


def _plugin_lines(row: dict[str, Any]) -> list[str]:
    lines = [f"{row['package']} {row['version']} ({row['plugin']})"]
    lines += [f"  {kind:14} {', '.join(names)}" for kind, names in row["adds"].items()]
    return [*lines, f"  cannot be used: {row['trouble']}"] if row["trouble"] else lines


@app.command
def cache(
    *,
    prune: Annotated[
        float | None,
        Parameter(
            help="Remove the least recently used until this many GB are left; 0 removes all."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show how much disk space decoded pictures take, or remove them."""
    from fieldmark.data.disk import Disk
    from fieldmark.data.store import disk_folder

    if prune is not None and not 0 <= prune < float("inf"):
        raise ConfigError(f"prune is {prune}; a number of GB from 0 (remove all) is accepted")
    folder = disk_folder()
    disk = Disk(folder, 0)
    used = disk.usage() if prune is None else disk.prune(int(prune * 1e9))
    value = {"folder": str(folder), "pictures": used.pictures, "bytes": used.nbytes}
    _print(value, f"{used.pictures} pictures, {used.nbytes / 1e9:.3f} GB in {folder}", json)


def _watching(as_json: bool) -> Any:
    from fieldmark.console import watcher

    return watcher(True, stream=sys.stderr if as_json else sys.stdout)


def _print(value: object, text: str, as_json: bool) -> None:
    """Print the JSON object on stdout, or the text."""
    if not as_json:
        _write(on_screen(text))
        return
    whole = json.dumps(numbers_or_null(value), ensure_ascii=False, allow_nan=False)
    if not whole.isprintable():  # only in strings, where an escape has the same meaning
        whole = "".join(c if shown(c) == c else json.dumps(c)[1:-1] for c in whole)
    _write(whole)


def _write(text: str) -> None:
    """Print on stdout, if there is one; that nobody reads it any more is no error."""
    if sys.stdout is None or sys.stdout.closed:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)


_SCORE_KEYS = ("accuracy", "n", "low", "high", "loss")


def _conclude(run: Run, *, as_json: bool) -> None:
    """Print the result of training."""
    history, scores = run.history, run.scores
    selected = run.selected
    value: dict[str, Any] = {
        "run": str(run.path),
        "epochs": sum(record["epoch"] > 0 for record in history),
        "steps": history[-1]["step"],
        "seconds": round(sum(record["seconds"] for record in history), 3),
        "best": selected,
    }
    for part, result in scores.items():
        value[part] = {key: result[key] for key in _SCORE_KEYS}
        if "metrics" in result:
            value[part]["metrics"] = result["metrics"]
    if selected["metric"] == "last":
        best = f"the last epoch, {selected['epoch']}, is kept"
    else:
        which = f"best epoch {selected['epoch']}" if selected["epoch"] else "the probe is best"
        best = f"{which}, by {selected['metric']} {selected['value']:.4f}"
    text = "\n".join([best, _summary(scores), f"report: {run.path / 'report.html'}"])
    _print(value, text, as_json)


def _summary(parts: dict[str, dict[str, Any]]) -> str:
    from fieldmark.jobs.evaluate import summary

    return "\n".join(
        f"{'not a test' if result.get('trained_on') else part}: {summary(result)}"
        for part, result in parts.items()
    )


def _class_table(result: dict[str, Any]) -> str:
    def cell(value: float | None) -> str:
        return "     -" if value is None else f"{value:6.3f}"

    lines = ["     n  precision  recall      f1  class"]
    lines += [
        f"{row['n']:6d}     {cell(row['precision'])}  {cell(row['recall'])}  {cell(row['f1'])}  "
        f"{shown(row['name'])}"
        for row in result["per_class"]
    ]
    return "\n".join(lines)


def _prediction_table(found: Sequence[Any]) -> str:
    lines = []
    for p in found:
        if p.error:
            lines.append(f"{shown(p.file)}: cannot be used: {p.error}")
        else:
            rest = ", ".join(f"{shown(label)} {prob:.3f}" for label, prob in p.top[1:3])
            lines.append(
                f"{shown(p.file)}: {shown(p.label)} {p.prob:.3f}"
                + (f" ({rest})" if rest else "")
                + (f"; {p.note}" if p.note else "")
            )
    bad = sum(1 for p in found if p.error)
    if bad:
        lines.append(
            f"{len(found) - bad} of {len(found)} pictures classified, {bad} could not be used"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    spin_less()
    _have_streams()
    quiet: Any = {"exit_on_error": False, "print_error": False, "result_action": "return_value"}
    code = _run(lambda: app(argv, **quiet))
    for stream in (sys.stdout, sys.stderr):  # what Python would do at its end, and tell of
        try:
            stream.flush()
        except BrokenPipeError:
            discard(stream)
        except (OSError, ValueError):
            pass
    sys.exit(code)


def _run(command: Callable[[], object]) -> int:
    """Exit codes: 0 done, 2 usage, 3 data, 4 model, 5 diverged, 6 environment, 128 + the signal."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # for consoles that cannot show every character
            stream.reconfigure(errors="backslashreplace")
    with for_the_command_line():
        return _answer_to(command)


def _answer_to(command: Callable[[], object]) -> int:
    try:
        command()
    except CycloptsError as error:
        return _complain(f"{error} See `fieldmark --help`, or --help after a command.", 2)
    except FieldmarkError as error:
        return _complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _complain("stopped before anything was started", 130)
    except BrokenPipeError:
        return 0
    except SystemExit as stop:  # rich ends the program where the help is not read to its end
        if isinstance(stop.__context__, BrokenPipeError):
            return 0
        raise
    except MemoryError:
        return _complain(_NO_MEMORY, 6)
    except RuntimeError as error:
        from fieldmark.machine.memory import is_exhausted

        if str(error) == "can't start new thread":
            return _complain("the system gives no more threads or memory; try --threads 1", 6)
        if not is_exhausted(error):
            raise
        return _complain(f"{_NO_MEMORY} ({str(error).splitlines()[0][:120]})", 6)
    except OSError as error:
        if os.environ.get("FIELDMARK_DEBUG"):
            traceback.print_exc()
        name = f" ({error.filename})" if error.filename else ""
        return _complain(f"the system refused: {error.strerror or error}{name}", 6)
    return 0


def _have_streams() -> None:
    """Have streams where Python was started without them, and a width that can be one.

    Without them the next file that is opened would be the standard output.
    """
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    if not has_width():
        del os.environ["COLUMNS"]


_NO_MEMORY = "out of memory; try a smaller --batch-size or --size"


def _complain(text: str, code: int) -> int:
    try:
        if os.environ.get("FIELDMARK_DEBUG"):
            traceback.print_exc()
        sys.stderr.write(("" if code > 128 else "error: ") + on_screen(text) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, or there is none
        pass
    return code
