"""Scores of a run on a split of its data or on another folder."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fieldmark.data import check_only, find
from fieldmark.data.batches import Batches, scoring_batches
from fieldmark.data.dataset import Dataset
from fieldmark.errors import ConfigError, DataError, RunError
from fieldmark.fit.optimizers import penalty, regularized
from fieldmark.jobs import explain, outside
from fieldmark.jobs.predict import finite_outputs
from fieldmark.machine.cores import threads_for
from fieldmark.machine.device import choose
from fieldmark.machine.process import keep_heap
from fieldmark.names import shown
from fieldmark.pages import figures
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture
from fieldmark.progress import Progress, Silent
from fieldmark.runs import gallery, manifest, predictions
from fieldmark.runs import scores as run_scores
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.gallery import Gallery, Item
from fieldmark.runs.model import Model, ModelInfo
from fieldmark.runs.predictions import Answer
from fieldmark.runs.scores import Evaluation
from fieldmark.scoring.metrics import scores, softmax, sureness
from fieldmark.scoring.named import Named
from fieldmark.scoring.named import build as build_metrics
from fieldmark.scoring.scorer import Scorer
from fieldmark.seeding import F64
from fieldmark.settings.config import DataFacts, TrainConfig

GRID = 16
"""Pictures in predictions.png."""
GALLERY = 24
"""Mistakes, and as many correct ones at most, kept with a small picture for the report."""
THUMB = 128


def score(model: Model, parts: Mapping[str, Batches], progress: Progress) -> dict[str, F64]:
    """Logits of every picture of each split.

    Shape:
        [N, K] each
    """
    device = str(next(model.module.parameters()).device)
    network = Scorer(model.module, spec=model.info.input, device=device)
    scored = {}
    for name, batches in parts.items():
        told = partial(progress.count, f"scoring {name}", total=len(batches.part))
        images = (batch.images for batch in batches.in_order())
        found = finite_outputs(model.info, partial(network.over, images, progress=told))
        scored[name] = found.numpy().astype(np.float64)
    return scored


def evaluation(
    info: ModelInfo,
    dataset: Dataset,
    scored: Mapping[str, F64],
    metrics: Sequence[Named] = (),
    l2_penalty: float | None = None,
) -> Evaluation:
    """Scores of each split that has logits; the figures that were asked for under ``metrics``."""
    return Evaluation(
        parts={
            part: scores(
                values,
                dataset.parts[part].labels,
                part=part,
                class_names=info.class_names,
                temperature=info.temperature,
                metrics={
                    each.name: each(
                        values, dataset.parts[part].labels, temperature=info.temperature
                    )
                    for each in metrics
                }
                or None,
                l2_penalty=l2_penalty,
            )
            for part, values in scored.items()
        }
    )


def write(
    run: RunDirectory,
    model: Model,
    dataset: Dataset,
    scored: Mapping[str, F64],
    metrics: Sequence[Named] = (),
    l2_penalty: float | None = None,
) -> Evaluation:
    """Write ``evaluation.json``, ``predictions.csv``, the gallery and ``predictions.png``."""
    info = model.info
    result = evaluation(info, dataset, scored, metrics, l2_penalty)
    run_scores.write(run, result)
    predictions.write(run, answers(info, dataset, scored))
    part = "test" if "test" in scored else "val"
    gallery.write(run, _gallery(model, dataset, part, scored[part]))
    run.write("predictions.png", _grid(info, dataset, part, scored[part]))
    return result


def l2_penalty(model: Model, config: TrainConfig) -> float | None:
    """What the setting ``l2`` adds to the loss; None without it, or if some of it was frozen."""
    frozen = config.freeze or config.train_from or config.freeze_after not in ("", "none")
    if not config.l2 or frozen:
        return None
    return float(penalty(regularized(model.module, model.head), config.l2))


def _grid(info: ModelInfo, dataset: Dataset, name: str, values: F64) -> bytes:
    """Some of a split's pictures with their answers: evenly spaced, so neither best nor worst."""
    part = dataset.parts[name]
    chosen = np.linspace(0, len(part) - 1, min(GRID, len(part))).round().astype(int)
    probs = softmax(values[chosen], info.temperature)
    return figures.predictions(
        [dataset.read(part.keys[i]) for i in chosen],
        [
            (info.class_names[part.labels[i]], info.class_names[p.argmax()], float(p.max()))
            for i, p in zip(chosen, probs, strict=True)
        ],
        heading=f"{shown(dataset.name)}: {len(chosen)} of the {len(part)} {name} pictures, "
        "evenly spaced",
    )


def answers(info: ModelInfo, dataset: Dataset, scored: Mapping[str, F64]) -> Iterator[Answer]:
    """What each picture is, what was predicted, and how sure."""
    for name, values in scored.items():
        part = dataset.parts[name]
        _, top, true = sureness(values, part.labels, info.temperature)
        for i, predicted in enumerate(values.argmax(axis=1)):
            yield Answer(
                part=name,
                file=part.keys[i],
                label=info.class_names[part.labels[i]],
                predicted=info.class_names[predicted],
                prob=float(top[i]),
                label_prob=float(true[i]),
                correct=bool(predicted == part.labels[i]),
            )


def _gallery(model: Model, dataset: Dataset, name: str, values: F64) -> Gallery:
    """The surest mistakes, and for some classes the picture nearest to the class's usual score.

    Mistakes come with a heat map of what spoke for the wrong answer, where the network has one.
    """
    info = model.info
    part = dataset.parts[name]
    predicted, top, true = sureness(values, part.labels, info.temperature)
    wrong = np.flatnonzero(predicted != part.labels)
    mistakes = wrong[np.argsort(-top[wrong], kind="stable")][:GALLERY]
    correct = []
    for label in np.unique(part.labels):
        right = np.flatnonzero((predicted == part.labels) & (part.labels == label))
        if len(right):
            correct.append(right[np.argsort(top[right], kind="stable")[len(right) // 2]])

    def item(i: int, heat: str | None = None) -> Item:
        return Item(
            file=part.keys[i],
            label=info.class_names[part.labels[i]],
            predicted=info.class_names[predicted[i]],
            prob=float(top[i]),
            label_prob=float(true[i]),
            mime="image/jpeg",
            thumb=_thumbnail(dataset.read(part.keys[i])),
            heat=heat,
        )

    heats = _heats(model, (dataset.read(part.keys[i]) for i in mistakes), predicted[mistakes])
    return Gallery(
        part=name,
        mistakes=tuple(item(int(i), heat) for i, heat in zip(mistakes, heats, strict=True)),
        correct=tuple(item(int(i)) for i in correct[:GALLERY]),
    )


def _heats(model: Model, pictures: Iterable[U8], labels: npt.NDArray[np.int64]) -> list[str]:
    """A small picture of each heat map; empty strings for a network that has none."""
    spec, chosen = model.info.input, map(int, labels)
    try:
        drawn = explain.explained(model.module, pictures, chosen, spec=spec, side=THUMB)
        return [_thumbnail(picture) for picture in drawn]
    except ConfigError:
        return [""] * len(labels)


def _thumbnail(image: U8) -> str:
    """A small JPEG in base64; tiny pictures are enlarged so that their pixels show."""
    picture = Image.fromarray(image)
    if max(picture.size) > THUMB:
        picture.thumbnail((THUMB, THUMB))
    factor = max(1, THUMB // max(picture.size))
    picture = picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def evaluate(
    run: RunDirectory,
    *,
    data: str | None = None,
    device: str = "auto",
    limits: PictureLimits | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a run's best weights again, or on other pictures.

    Without ``data``, the run's own validation and test pictures are scored and the run's files are
    written anew. With it, the pictures found there are scored (their test split, if they have
    splits), and ``evaluation-NAME.json`` and ``predictions-NAME.csv`` are written beside.
    The limits of the pictures are the run's own, or others.

    Raises:
        RunError: if the run has no weights, or its pictures changed.
        ConfigError: if another process writes the run.
        DataError: if the other pictures cannot be used or have classes the run does not know.
    """
    with run.writing():
        return _evaluate(run, data, device, progress or Silent(), limits or run.limits())


def _evaluate(
    run: RunDirectory, data: str | None, device: str, progress: Progress, limits: PictureLimits
) -> Evaluation:
    resolved = outside.check_run(run, ["networks", "metrics"])
    config, info = resolved.config, run.model_info()
    metrics = build_metrics(resolved.metrics)
    if data is None:
        if run.has("import.json"):
            raise RunError(
                f"{run.path} was imported and has no pictures of its own; "
                "score it on some with --data DIR"
            )
        dataset, name = own_data(run, limits), ""
    else:
        dataset, name = _other_data(run, info, data, limits, config, progress)
    other = run.weights_file() != "model.safetensors"
    if other:
        name = "-".join(filter(None, (name, run.which)))
    keep_heap()
    where = choose(device, "f32")
    model = run.load_model(device=where.name)
    parts = {
        part: scoring_batches(
            dataset.parts[part],
            dataset.read,
            spec=info.input,
            threads=threads_for(config.threads),
            device=where.torch_device,
        )
        for part in ("val", "test")
        if part in dataset.parts
    }
    for text in dict.fromkeys(run.notes):
        progress.warn(text)
    scored = score(model, parts, progress)
    if data is None and not other:
        return write(run, model, dataset, scored, metrics, l2_penalty(model, config))
    result = evaluation(info, dataset, scored, metrics, l2_penalty(model, config))
    known = 0 if data is None or run.has("import.json") else _trained_on(run, dataset)
    if known:
        test = dataclasses.replace(result.parts["test"], trained_on=known)
        result = dataclasses.replace(result, parts={"test": test})
        progress.warn(
            f"{known} of these {test.n} pictures are among those that {run.path} was trained on, "
            "so this is no test: new pictures will come out worse"
        )
    run_scores.write(run, result, data=name)
    predictions.write(run, answers(info, dataset, scored), data=name)
    return result


def _trained_on(run: RunDirectory, dataset: Dataset) -> int:
    """How many of the pictures are, by their content, training pictures of the run."""
    trained = {digest for _, _, digest in manifest.read(run).parts["train"]}
    return sum(digest in trained for digest in dataset.parts["test"].digests)


def own_data(run: RunDirectory, limits: PictureLimits | None = None) -> Dataset:
    """The run's data set as its manifest has it; each picture is checked against its identity.

    The limits of the pictures are the run's own, or others.

    Raises:
        RunError: if the pictures are not where they were.
    """
    outside.check_reader(run)
    stored = manifest.read(run)
    names, there = run.model_info().class_names, stored.class_names
    if there != names:
        raise RunError(
            f"{run.path / 'data.json'} has other classes than the model, or another order of them: "
            f"{', '.join(map(shown, there[:8]))}; the model's are "
            f"{', '.join(map(shown, names[:8]))}"
        )
    found, limits = find(manifest.locate(run, stored)), limits or run.limits()
    parts = stored.splits()
    digests = {
        k: d for part in parts.values() for k, d in zip(part.keys, part.digests, strict=True)
    }
    there_are = {entry.key for entry in found.entries}

    def read(key: str) -> U8:
        if key not in there_are:  # and is not looked for: a stranger's manifest may name any file
            raise RunError(
                f"{shown(key)} can no longer be read: {run.path / 'data.json'} has it, and "
                f"{shown(found.name)} has no such picture; put it back"
            )
        try:
            picture = found.load(key).decode(limits)
        except (BadPicture, KeyError) as error:
            raise RunError(f"{shown(key)} can no longer be read: {error}") from None
        if picture.identity != digests[key]:
            raise RunError(f"{shown(key)} changed since {run.path} was trained; put it back")
        return picture.pixels

    labels = stored.counts["train"]
    return Dataset(
        name=stored.name,
        class_names=there,
        parts=parts,
        read=read,
        facts=DataFacts(
            num_classes=len(there),
            num_train=len(parts["train"]),
            smallest_class=min(labels),
            largest_class=max(labels),
            median_side=0,
        ),
        fingerprint=stored.fingerprint,
    )


def _other_data(
    run: RunDirectory,
    info: ModelInfo,
    data: str,
    limits: PictureLimits,
    config: TrainConfig,
    progress: Progress,
) -> tuple[Dataset, str]:
    """Read other pictures and put their labels into the run's order of classes."""
    found = find(data)
    unknown = [name for name in found.class_names if name not in info.class_names]
    if unknown:
        raise DataError(
            f"{shown(found.name)} has classes that {run.path} does not know: "
            f"{', '.join(map(shown, unknown[:5]))} (it knows "
            f"{', '.join(map(shown, info.class_names[:8]))}"
            + (" ...)" if len(info.class_names) > 8 else ")")
        )
    place = [info.class_names.index(name) for name in found.class_names]
    has_test = any(e.part == "test" for e in found.entries)
    entries = tuple(
        dataclasses.replace(e, label=place[e.label], part="test")
        for e in found.entries
        if not has_test or e.part == "test"
    )
    found = dataclasses.replace(found, entries=entries, class_names=info.class_names)
    dataset = check_only(
        found,
        dataclasses.replace(config, **dataclasses.asdict(limits)),
        threads=threads_for(config.threads),
        progress=lambda done, total: progress.count("reading pictures", done, total),
    )
    for text in dataset.warnings:
        progress.warn(text)
    return dataset, re.sub(r"[^\w.-]+", "-", found.name).strip("-.") or "data"


def summary(result: Mapping[str, Any]) -> str:
    """A split's accuracy in one line, with n and interval."""
    top5 = "" if result["top5"] is None else f", top-5 {result['top5']:.4f}"
    added = result.get("l2_penalty")
    l2 = "" if added is None else f" ({result['loss'] + added:.4f} with the L2 penalty)"
    return (
        f"accuracy {result['accuracy']:.4f} (n = {result['n']}, 95 % interval "
        f"{result['low']:.4f} to {result['high']:.4f}){top5}, loss {result['loss']:.4f}{l2}, "
        f"calibration error {result['ece']:.4f}"
        + "".join(
            f", {name} {'-' if value is None else format(value, '.4f')}"
            for name, value in result.get("metrics", {}).items()
        )
    )
