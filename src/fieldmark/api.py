"""The Python interface: ``train`` and ``load`` return a ``Run``, whose methods do the rest.

Modules for training, scoring and drawing are imported when first used: predicting needs none of
them, and importing matplotlib alone takes a third of the time of torch.
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from fieldmark.console import watcher
from fieldmark.errors import ConfigError, DataError, RunError, did_you_mean, worded
from fieldmark.files.typed import plain
from fieldmark.files.writing import write_atomic
from fieldmark.jobs import given, predict
from fieldmark.jobs.given import Item
from fieldmark.jobs.predict import Prediction
from fieldmark.machine.cores import threads_for
from fieldmark.machine.device import choose
from fieldmark.machine.process import Lock, keep_heap, trim_heap
from fieldmark.pictures.picture import BadPicture
from fieldmark.plugins import handing
from fieldmark.plugins.handed import Handed
from fieldmark.progress import Progress
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model
from fieldmark.settings.config import TrainConfig, read_config

if TYPE_CHECKING:
    from fieldmark.pages.comparison import Comparison
    from fieldmark.pages.tuning import Tuning

Path_ = str | os.PathLike[str]
_loading = Lock()


class Run:
    """A trained classifier in its run directory."""

    def __init__(self, directory: RunDirectory, handed: Handed | None = None) -> None:
        self._directory = directory
        self._handed: Handed = handed or {}
        self._loaded: Model | None = None

    @property
    def path(self) -> Path:
        """The run directory."""
        return self._directory.path

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the network's outputs."""
        return self._directory.model_info().class_names

    @cached_property
    def config(self) -> TrainConfig:
        """The settings that decided the run."""
        return self._directory.config()

    @property
    def selected(self) -> dict[str, Any]:
        """The epoch whose weights are used, with the metric and the value that selected it."""
        return self._directory.model_info().selected.to_json()

    @property
    def history(self) -> list[dict[str, Any]]:
        """One record per epoch."""
        from fieldmark.runs import history

        return [history.plain_record(record) for record in history.read(self._directory)]

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """The scores that the run stored: of ``val`` and, if there is one, of ``test``."""
        from fieldmark.runs import scores

        parts: dict[str, dict[str, Any]] = plain(scores.read(self._directory).parts)
        return parts

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What the doctor of the training found; none where nothing is wrong, or nobody looked."""
        from fieldmark.runs import doctor

        found = doctor.read(self._directory)
        return (
            [] if found is None else [{**plain(f), "next": worded(f.next)} for f in found.findings]
        )

    def evaluate(
        self,
        data: Path_ | Any | None = None,
        *,
        device: str = "auto",
        max_pixels: int = 0,
        progress: bool | Progress = True,
    ) -> dict[str, dict[str, Any]]:
        """Score the run's weights on its own or on other pictures; returns the scores by split.

        Other pictures are given as to :func:`train`, with their labels. Pictures of more than
        ``max_pixels`` are left out; 0 is the run's own number.

        Raises:
            FieldmarkError: see ``fieldmark.errors``.
        """
        from fieldmark.jobs import evaluate

        text, pictures = (None, {}) if data is None else _data(data)
        with watcher(progress) as watching, handing({**self._handed, **pictures}):
            found = evaluate.evaluate(
                self._directory,
                data=text,
                device=device,
                limits=self._directory.limits(max_pixels),
                progress=watching,
            )
        parts: dict[str, dict[str, Any]] = plain(found.parts)
        return parts

    def predict(
        self,
        pictures: Item | Sequence[Item],
        *,
        top: int = 5,
        device: str = "auto",
        engine: str = "auto",
        max_pixels: int = 0,
        progress: bool | Progress = False,
    ) -> list[Prediction]:
        """Classify files, folders, patterns, bytes, PIL images, arrays; one prediction for each.

        Args:
            pictures: One or many: files, folders, patterns, bytes of a picture file, streams
                opened for bytes, PIL images, arrays ([H, W], [H, W, C], [B, H, W, C]) or tensors
                (also [C, H, W], [B, C, H, W]); uint8, uint16 for 0..65535, or floats in 0..1.
            top: How many of the likeliest classes to report.
            device: auto, cpu, cuda, cuda:N or mps.
            engine: torch; openvino; or auto: OpenVINO after 500 pictures of 224 px (or as many
                pixels), if it is installed, agrees with torch and is faster.
            max_pixels: Largest number of pixels of a picture; 0 as in training.
            progress: Whether to show progress, or an object that receives it.

        Raises:
            DataError: if nothing was given, or what is no picture.
        """
        items = given.listed(pictures)
        predict.check_top(top)
        model = self._model if device == "auto" else self._load(device)
        config = self.config
        if config.model != model.info.model:
            raise RunError(
                f"{self.path / 'config.json'} says that the network is {config.model}, its weights "
                f"that it is {model.info.model}; one of them was changed"
            )
        told = len(model.notes)
        with watcher(progress) as watching:
            for text in dict.fromkeys(self._directory.notes):
                watching.warn(text)
            found = predict.predict(
                model,
                items,
                top=top,
                limits=self._directory.limits(max_pixels),
                threads=threads_for(config.threads),
                engine=engine,
                progress=lambda done, total: watching.count("reading pictures", done, total),
            )
            for note in model.notes[told:]:
                watching.say(note)
            return found

    def explain(
        self, picture: Item, *, label: str | None = None, device: str = "auto", max_pixels: int = 0
    ) -> Image.Image:
        """Draw a heat map over a picture: what in it led to a class, by default the likeliest.

        Args:
            picture: As for :meth:`predict`.
            label: Name of the class.
            device: Where to compute: auto, cpu, cuda, cuda:N or mps.
            max_pixels: Largest number of pixels of the picture; 0 as in training.

        Raises:
            DataError: if the picture cannot be used.
            ConfigError: if there is no such class, or the network allows no heat maps.
        """
        items = list(given.expanded([picture]))
        if len(items) != 1:
            raise DataError(
                f"{len(items)} pictures were given; heat maps are made of one at a time"
            )
        ((_, item),) = items
        if label is None:
            (found,) = self.predict(item, top=1, device=device, max_pixels=max_pixels)
            if found.error:
                raise DataError(f"{found.file} cannot be used: {found.error}")
            label = found.label
        if label not in self.class_names:
            raise ConfigError(
                f"no class {label!r}{did_you_mean(label, self.class_names)} "
                f"(known: {', '.join(self.class_names)})"
            )
        from fieldmark.jobs import explain

        model = self._model if device == "auto" else self._load(device)
        try:
            pixels, _ = given.pixels(item, self._directory.limits(max_pixels))
        except BadPicture as bad:
            raise DataError(f"the picture cannot be used: {bad}") from None
        drawn = explain.explained(
            model.module,
            [pixels],
            [self.class_names.index(label)],
            spec=model.info.input,
            side=explain.DRAWN_SIDE,
        )
        return Image.fromarray(next(drawn))

    def write_heat_maps(
        self,
        found: Sequence[Prediction],
        out: Path_,
        *,
        device: str = "auto",
        max_pixels: int = 0,
    ) -> list[Path]:
        """Write a heat map of each classified file to a folder; returns their paths.

        They are numbered in the order of the predictions, as two files may have the same name.
        """
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for number, answer in enumerate(found, 1):
            if answer.error:
                continue
            buffer = io.BytesIO()
            drawn = self.explain(
                answer.file, label=answer.label, device=device, max_pixels=max_pixels
            )
            drawn.save(buffer, "PNG")
            stem = re.sub(r"[^\w.-]+", "-", Path(answer.file).stem)[:80]
            written.append(folder / f"{number:04d}-{stem}.png")
            write_atomic(written[-1], buffer.getvalue())
        return written

    def report(self) -> Path:
        """Write ``report.html`` and its figures again; returns the path of the page."""
        from fieldmark.pages import report

        report.write_figures(self.path)
        return report.report([self.path])

    def export(
        self,
        out: Path_ | None = None,
        *,
        to: str = "onnx",
        int8: bool = False,
        fp16: bool = False,
        progress: bool | Progress = False,
    ) -> Path:
        """Write the model for another program, if its predictions are the run's; returns its path.

        Args:
            out: File or folder; default is ``model`` with the format's ending, in the run.
            to: ``onnx``, ``openvino``, ``timm``, ``keras``, or a plugin's format.
            int8: Use 8-bit numbers; ONNX and OpenVINO only.
            fp16: Use 16-bit numbers; ONNX and OpenVINO only.
            progress: Whether to show progress, or an object that receives it.

        Raises:
            FieldmarkError: if there is no such format, if it does not have this network, or if
                predictions differ from the run's.
        """
        from fieldmark import export

        place = None if out is None else Path(out)
        with watcher(progress) as watching, handing(self._handed):
            made = export.export(
                self.path,
                place,
                to=to,
                int8=int8,
                fp16=fp16,
                which=self._directory.which,
                allow_plugin_version=self._directory.allow_plugin_version,
                progress=watching,
            )
        return made.path

    @property
    def _model(self) -> Model:
        """The network on the best device, loaded once, whichever thread asks first."""
        with _loading:
            if self._loaded is None:
                self._loaded = self._load("auto")
            return self._loaded

    def _load(self, device: str) -> Model:
        keep_heap()
        with handing(self._handed):
            return self._directory.load_model(device=choose(device, "f32").name)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the scores and the figures."""
        from fieldmark.jobs import evaluate

        lines = [f"<b>{html.escape(self.path.name)}</b>"]
        if self._directory.has("evaluation.json"):
            lines += [
                f"{part}: {html.escape(evaluate.summary(result))}"
                for part, result in self.scores.items()
            ]
        for name in ("curves.png", "confusion.png"):
            if self._directory.has(name):
                data = base64.b64encode((self.path / name).read_bytes()).decode("ascii")
                lines.append(f'<img alt="{name}" src="data:image/png;base64,{data}">')
        return "<br>".join(lines)


def train(
    data: Path_ | Any,
    *,
    recipe: str = "auto",
    config: TrainConfig | Path_ | None = None,
    from_run: Path_ | None = None,
    out: Path_ | None = None,
    minutes: float | None = None,
    progress: bool | Progress = True,
    **settings: Any,
) -> Run:
    """Train a classifier on a folder of pictures, score it, and return its run.

        run = fieldmark.train("photos/", model="timm/resnet18", epochs=10)

    Args:
        data: ``digits``, ``cifar10``, ``cifar100``, a folder, or a table of pictures and labels; or
            the pictures themselves: ``(X, y)``, a list of (picture, label), a data set of such
            pairs (torch, torchvision, Hugging Face), a DataFrame, or a dict of these by split.
        recipe: Name of a recipe; ``auto`` tries candidates on train and val and trains the best,
            where no setting decides what is learnt (``docs/settings.md``).
        config: Settings in place of a recipe; or the path of a ``config.json``.
        from_run: A run to train further, in place of a recipe: its settings, weights and order of
            classes; the optimizer begins anew, and new classes are allowed.
        out: The run directory; default is a new one under ``runs/``.
        minutes: Wall time for everything: the best that can be found in it. With a recipe or
            settings that decide what is trained, training is shortened where it would take longer.
        progress: Whether to show progress, or an object that receives it.
        settings: Fields of ``TrainConfig``; they override the recipe's. In place of a name,
            ``model``, ``augment``, ``optimizer``, ``loss``, ``callbacks`` and ``metrics`` take an
            object of yours, the last two a list of them: see ``docs/plugins.md``.

    Raises:
        FieldmarkError: see ``fieldmark.errors``.
    """
    from fieldmark.jobs import train as training
    from fieldmark.jobs.handed import separate
    from fieldmark.jobs.request import TrainRequest

    text, pictures = _data(data)
    settings, objects = separate(settings)
    handed = {**objects, **pictures}
    if config is not None and not isinstance(config, TrainConfig):
        config = read_config(_path(config, "config"))
    request = TrainRequest(
        data=text,
        recipe=recipe,
        base=config,
        settings=settings,
        from_run=None if from_run is None else _path(from_run, "from_run"),
        out=None if out is None else _path(out, "out"),
        minutes=minutes,
    )
    with watcher(progress) as watching, handing(handed):
        directory = training.train(request, progress=watching)
    trim_heap()
    return Run(directory, handed)


def resume(
    run: Path_,
    *,
    data: Path_ | Any | None = None,
    allow_data_change: bool = False,
    allow_plugin_version: bool = False,
    progress: bool | Progress = True,
    **handed: Any,
) -> Run:
    """Continue a run where it stopped; the result is that of a run that never stopped.

    Args:
        run: The run directory.
        data: Where the pictures are now, if they were moved; or the pictures, where ``train`` was
            given them.
        allow_data_change: Continue although pictures were added, removed or changed; the run
            records it.
        allow_plugin_version: Use other versions of plugins than the run began with.
        progress: Whether to show progress, or an object that receives it.
        handed: The objects that ``train`` was given in place of names, by the same keywords.

    Raises:
        FieldmarkError: see ``fieldmark.errors``.
    """
    from fieldmark.jobs import train as training
    from fieldmark.jobs.handed import again

    text, pictures = (None, {}) if data is None else _data(data)
    objects = {**again(handed), **pictures}
    with watcher(progress) as watching, handing(objects):
        directory = training.resume(
            _path(run, "run"),
            data=text,
            allow_data_change=allow_data_change,
            allow_plugin_version=allow_plugin_version,
            progress=watching,
        )
    trim_heap()
    return Run(directory, objects)


def load(
    run: Path_, *, which: str = "auto", allow_plugin_version: bool = False, **handed: Any
) -> Run:
    """Open a run directory.

    Args:
        run: The run directory.
        which: Epoch whose weights are used: ``auto`` (the one that the run scored, which the
            setting ``keep`` decided), ``best`` or ``last``.
        allow_plugin_version: Use other versions of plugins than the run was made with.
        handed: ``model`` and ``metrics``, where ``train`` was given objects for them.

    Raises:
        RunError: if it is not a run directory.
    """
    objects: Handed = {}
    if handed:
        from fieldmark.jobs.handed import again

        objects = again(handed)
    directory = RunDirectory.open(
        _path(run, "run"), allow_plugin_version=allow_plugin_version, which=which
    )
    return Run(directory, objects)


def _path(value: object, name: str) -> Path:
    """A path that a program gave, ``~`` for its home.

    Raises:
        ConfigError: if it is none.
    """
    try:
        return Path(_text(value, name)).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ConfigError(f"{name} is {value!r}: {error}") from None


def _data(value: object) -> tuple[str, Handed]:
    """The text that stands for labelled pictures, and what a program handed over as such.

    Raises:
        FieldmarkError: if they are neither a path nor pictures with labels.
    """
    if isinstance(value, str | os.PathLike):
        return _text(value, "data"), {}
    from fieldmark.jobs.given_data import handed_data

    return handed_data(value)


def _text(value: object, name: str) -> str:
    """A path or name that a program gave, as text.

    Raises:
        ConfigError: if it is none.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        what = repr(value)
        told = what if len(what) <= 80 else f"a {type(value).__name__}"
        raise ConfigError(f"{name} is {told}; the path of a file or folder is accepted")
    return text


def compare(
    data: Path_,
    models: Sequence[str] = (),
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 3,
    recipe: str = "auto",
    out: Path_ | None = None,
    progress: bool | Progress = True,
    **settings: Any,
) -> Comparison:
    """Train networks or settings with several seeds; test which is better, if any.

        result = fieldmark.compare("photos/", ["timm/resnet18", "timm/resnet34"])
        result = fieldmark.compare("photos/", vary={"lr": [0.01, 0.001], "l2": [0.0, 0.0005]})
        result.table()

    Args:
        data: ``digits``, ``cifar10``, ``cifar100``, or a folder.
        models: Two or more networks; with ``vary`` also one. Empty for those that the recipe
            compares, and with ``vary`` for the recipe's or the setting ``model``.
        vary: Settings, each with two or more values; with the networks they span a grid.
        seeds: How often each candidate is trained, with seeds 0, 1, ...
        recipe: Name of a recipe for all of them; ``auto`` chooses one by the pictures.
        out: Folder of the comparison; the same call with the same folder continues it.
        progress: Whether to show progress, or an object that receives it.
        settings: Fields of ``TrainConfig`` for all of them; they override the recipe's. ``seed`` is
            none of them, nor is ``model`` where ``models`` or no ``vary`` is given.

    Raises:
        FieldmarkError: see ``fieldmark.errors``.
    """
    from fieldmark.jobs import compare as comparing
    from fieldmark.settings import recipes

    if not models and recipe != "auto" and "model" not in settings:
        models = recipes.COMPARED.get(recipes.find(recipe), ())
    with watcher(progress) as watching:
        return comparing.compare(
            _text(data, "data"),
            models,
            vary=vary,
            seeds=seeds,
            recipe=recipe,
            settings=settings,
            out=None if out is None else _path(out, "out"),
            progress=watching,
        )


def tune(
    data: Path_,
    over: Mapping[str, Any] | None = None,
    *,
    minutes: float = 60.0,
    trials: int = 0,
    recipe: str = "auto",
    out: Path_ | None = None,
    progress: bool | Progress = True,
    **settings: Any,
) -> Tuning:
    """Search for settings that validate better than the recipe's, and train a run with the best.

        found = fieldmark.tune("photos/", {"lr": "0.001..0.1", "augment": ["none", "flip_lr"]})
        run = fieldmark.load(found.run)

    Args:
        data: ``digits``, ``cifar10``, ``cifar100``, or a folder.
        over: What is searched: for each setting a range ``"LOW..HIGH"``, or a list of values;
            default is a space around the recipe's settings (``docs/tuning.md``).
        minutes: Wall time for everything.
        trials: Largest number of trials; 0 for as many as there is time for.
        recipe: Name of a recipe; ``auto`` chooses one by the pictures.
        out: Folder of the search; the same call with the same folder continues it.
        progress: Whether to show progress, or an object that receives it.
        settings: Fields of ``TrainConfig`` for all trials; they override the recipe's.

    Raises:
        FieldmarkError: see ``fieldmark.errors``; without the extra ``tune`` a
            ``MissingExtraError``.
    """
    from fieldmark.jobs import tune as searching

    with watcher(progress) as watching:
        return searching.tune(
            _text(data, "data"),
            over=over,
            minutes=minutes,
            most=trials,
            recipe=recipe,
            settings=settings,
            out=None if out is None else _path(out, "out"),
            progress=watching,
        )


def import_keras(
    file: Path_,
    *,
    model: str = "",
    classes: Sequence[str] = (),
    out: Path_ | None = None,
    preprocess: str = "auto",
    interpolation: str = "auto",
    mean_picture: Path_ | None = None,
    size: int = 0,
) -> Run:
    """Make a run from a Keras file, to predict, evaluate and export. Runs no code in the file.

    The arguments are those of ``fieldmark.jobs.import_keras.import_keras``.

    Raises:
        FieldmarkError: see ``fieldmark.errors``.
    """
    from fieldmark.jobs import import_keras as importing

    return Run(
        importing.import_keras(
            _path(file, "file"),
            model=model,
            classes=classes,
            out=None if out is None else _path(out, "out"),
            preprocess=preprocess,
            interpolation=interpolation,
            mean_picture=None if mean_picture is None else Path(mean_picture),
            size=size,
        )
    )
