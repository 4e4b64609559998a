"""The run directory: its layout, atomic writes, and the model inside it.

    runs/NAME/
      config.json        TrainConfig              environment.json  versions, device
      data.json          classes, parts, digests  metrics.jsonl     one EpochRecord a line
      last.ckpt          all that training changes, and the best weights
      previous.ckpt      the checkpoint before it
      results.csv        metrics.jsonl for a spreadsheet
      incidents.json     what went wrong in training and was mended
      model.safetensors  the weights that are scored and used, by default the best epoch's, and in
                         their header all that is needed to use them
      model.json         that header, for reading
      final.safetensors  the last epoch's; with keep=last instead best.safetensors, the best one's
      evaluation.json    scores                   predictions.csv   one row a picture
      gallery.json       worst mistakes, good examples
      choice.json        what was tried before training, where the recipe was open
      budget.json        the time it was given (--minutes), and how much it used
      doctor.json        what is wrong with the training, if anything
      preview.png  curves.png  confusion.png  predictions.png
      report.html  bad_files.csv  log.txt

Every file is written by ``writing.write_atomic``, so a reader sees the old file or the new one and
never half of one. ``model.safetensors`` describes itself, and ``last.ckpt`` holds all that training
goes on from, the best weights too: no two files have to agree. Both carry a checksum. ``.lock`` is
there while a process writes the run. A link in the place of one of these files is replaced by the
file, or refused (``.lock``, ``log.txt``): nothing is written to where it leads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fieldmark.errors import ConfigError, ResourceError, RunError
from fieldmark.files.checksum import check_seal
from fieldmark.files.json_text import FORMAT, check_format, encode_json, read_object
from fieldmark.files.lock import FILE as LOCK
from fieldmark.files.lock import only_writer
from fieldmark.files.typed import plain, read_typed
from fieldmark.files.writing import open_own, remove_left, write_atomic
from fieldmark.pictures.limits import PictureLimits
from fieldmark.plugins import Need, check_needs
from fieldmark.runs import checkpoint
from fieldmark.runs.model import Model, ModelInfo, description_of, encode_model, same_weights
from fieldmark.settings.config import TrainConfig, needs_in

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

LOG = "log.txt"
MODEL_FILES = ("model.safetensors", "best.safetensors")
"""Weights that training writes as it goes; checkpoints hold them too."""
WHICH = ("auto", "best", "last")
_EARLY = (
    *(
        "preview.png",
        "budget.json",
        "choice.json",
        "data.json",
        "bad_files.csv",
        "environment.json",
        LOG,
    ),
    *(checkpoint.LAST, checkpoint.PREVIOUS, LOCK),
)
"""What a run writes before ``config.json``, which makes it one that can be resumed."""


class RunDirectory:
    """One run's folder."""

    def __init__(
        self, path: Path, *, allow_plugin_version: bool = False, which: str = "auto"
    ) -> None:
        if which not in WHICH:
            raise ConfigError(f"which is {which!r}; {', '.join(WHICH)} are accepted")
        self.path = path
        self.which = which
        """Which weights are used: ``auto`` (those the run scored), ``best`` or ``last``."""
        self.allow_plugin_version = allow_plugin_version
        """Whether other versions of plugins may be used than it was made with."""
        self.notes: list[str] = []
        """What is to be told of how it was opened."""

    @classmethod
    def create(cls, out: Path | None, *, name: str) -> RunDirectory:
        """Make a new folder: ``out``, or ``runs/NAME`` with a number when that is taken.

        Raises:
            ConfigError: if ``out`` is there already and not empty.
            ResourceError: if it cannot be made.
        """
        try:
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                run = cls(out)
                run.clear_unbegun()
                run.check_empty()
                return run
            number = 1
            while True:
                path = Path("runs") / (name if number == 1 else f"{name}-{number}")
                try:
                    path.mkdir(parents=True)
                except FileExistsError:
                    number += 1
                    continue
                return cls(path)
        except OSError as error:
            raise ResourceError(
                f"cannot make the run directory {out or 'runs/' + name}: "
                f"{error.strerror or error}; choose a writable place with --out"
            ) from error

    @classmethod
    def open(
        cls, path: Path, *, allow_plugin_version: bool = False, which: str = "auto"
    ) -> RunDirectory:
        """Open an existing run.

        Args:
            path: Its folder.
            allow_plugin_version: Use other versions of plugins than it was made with.
            which: Epoch whose weights are used: ``auto`` (the one that the run scored, which the
                setting ``keep`` decided), ``best`` or ``last``.

        Raises:
            RunError: if the folder is not a run.
            ConfigError: if ``which`` is none of these.
        """
        if not (path / "config.json").is_file():
            what = "is not there"
            if path.exists():
                what = "is not a run directory (no config.json in it)"
            if cls(path)._is_unbegun():
                raise RunError(
                    f"{path} was stopped before it could be resumed: train anew, with the "
                    "same --out if you like"
                )
            raise RunError(f"{path} {what}; `fieldmark train` makes one, by default under runs/")
        return cls(path, allow_plugin_version=allow_plugin_version, which=which)

    @contextlib.contextmanager
    def or_nothing(self) -> Iterator[None]:
        """Remove the new directory again if what is done in the block does not come to its end."""
        try:
            yield
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def check_empty(self) -> None:
        """Refuse to overwrite anything.

        Raises:
            ConfigError: if something but a lock is in the folder.
        """
        if any(file.name != LOCK for file in self.path.iterdir()):
            raise ConfigError(
                f"{self.path} is there already and not empty; runs are never overwritten. "
                f"Choose another --out, or continue it with: fieldmark resume {self.path}"
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only process that writes this run, while the block lasts.

        Raises:
            ConfigError: if another process writes it.
            RunError: if a link is in the place of what is written without being replaced.
            ResourceError: if the folder cannot be written.
        """
        with only_writer(self.path):
            if os.path.lexists(self.path / LOG):
                self._own_log()
            yield

    def _is_unbegun(self) -> bool:
        """Whether it was killed before it could be resumed: its lock and early files, no more."""
        try:
            names = {file.name for file in self.path.iterdir()}
        except OSError:
            return False
        early = {*_EARLY, *(f".{name}.part" for name in (*_EARLY, "config.json"))}
        return LOCK in names and names <= early

    def clear_unbegun(self) -> None:
        """Remove what a run left that was killed before it could be resumed; leave all else.

        Raises:
            ConfigError: if another process is creating it.
        """
        if not self._is_unbegun():
            return
        with only_writer(self.path):
            for file in list(self.path.iterdir()) if self._is_unbegun() else []:
                if file.name != LOCK:
                    file.unlink()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    def has(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).is_file()

    def write(self, name: str, data: bytes) -> Path:
        """Write one of the run's files atomically."""
        write_atomic(self.path / name, data)
        return self.path / name

    def write_json(self, name: str, value: object, *, indent: int | None = 2) -> None:
        """Write a JSON file atomically."""
        self.write(name, encode_json(value, indent=indent))

    def write_typed(self, name: str, value: Any, *, indent: int | None = 2) -> None:
        """Write a typed value (``files/typed.py``) as JSON with the number of its format."""
        self.write_json(name, {"format": FORMAT, **plain(value)}, indent=indent)

    def read_text(self, name: str) -> str:
        """Read one of the run's files.

        Raises:
            RunError: if it is missing or not UTF-8.
        """
        path = self.path / name
        try:
            return path.read_bytes().decode("utf-8")  # names may hold line ends of any kind
        except FileNotFoundError:
            raise RunError(f"{path} is missing; is the run complete?") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"cannot read {path}: {error}") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a JSON object strictly, of this version's format.

        Raises:
            RunError: if it is missing, broken or of another version.
        """
        value = read_object(self.read_text(name), where=str(self.path / name))
        check_format(value.get("format", FORMAT), where=str(self.path / name))
        return value

    def read_typed(self, name: str, kind: type[T], *, remedy: str) -> T:
        """Read what :meth:`write_typed` wrote.

        Raises:
            RunError: naming the file and the field if it is something else.
        """
        where = str(self.path / name)
        value = read_object(self.read_text(name), where=where)
        check_format(value.pop("format", None), where=where)
        return read_typed(kind, value, where=where, remedy=remedy)

    @property
    def scored_again(self) -> str:
        """What to do about damaged scores, for messages."""
        return f"`fieldmark evaluate {self.path}` writes it again"

    def config(self) -> TrainConfig:
        """The run's settings."""
        return TrainConfig.from_json(
            self.read_text("config.json"), where=str(self.path / "config.json")
        )

    def limits(self, max_pixels: int = 0) -> PictureLimits:
        """The limits within which pictures are decoded for the run's network.

        Args:
            max_pixels: Largest number of pixels; 0 for that of the run.
        """
        return self.model_info().input.limits(self.config().max_pixels).or_more(max_pixels)

    def needs(self) -> tuple[Need, ...]:
        """The plugins that ``config.json`` says it needs."""
        where = str(self.path / "config.json")
        return needs_in(self.read_text("config.json"), where=where)

    def needs_or(self, needs: tuple[Need, ...]) -> tuple[Need, ...]:
        """What it records of plugins; or these, if it is new and records nothing yet."""
        return self.needs() if self.has("config.json") else needs

    def log(self, text: str) -> None:
        """Add lines to ``log.txt``: what the terminal was told."""
        with contextlib.suppress(OSError, RunError):
            handle = open_own(self.path / LOG, os.O_WRONLY | os.O_APPEND)
            with open(handle, "a", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
                file.write(text.rstrip("\n") + "\n")

    def _own_log(self) -> None:
        """Make sure that ``log.txt`` can be added to, and that nothing else changes with it.

        Raises:
            RunError: if it is a link.
        """
        path = self.path / LOG
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            write_atomic(path, path.read_bytes())  # a backup of hard links keeps its lines
        else:
            os.close(open_own(path, os.O_WRONLY | os.O_APPEND))

    def clean(self) -> None:
        """Remove what interrupted writes and exports left behind."""
        remove_left(self.path)

    def save_model(
        self, state: Mapping[str, torch.Tensor], info: ModelInfo, *, name: str = "model.safetensors"
    ) -> None:
        """Write weights with their description in the header."""
        self.put_model(name, encode_model(state, info))

    def put_model(self, name: str, data: bytes) -> None:
        """Write what :func:`encode_model` made.

        ``model.safetensors`` is the run's model; its description goes into ``model.json`` too.
        """
        path = self.write(name, data)
        if name == "model.safetensors":
            self.write_json("model.json", description_of(path).to_json())

    def restore_model(self, name: str, data: bytes | None) -> None:
        """Make a file of ``MODEL_FILES`` the one that a checkpoint holds; None if it holds none.

        One with the same weights stays: at the end of training it gets its temperature.
        """
        path = self.path / name
        if data is None:
            path.unlink(missing_ok=True)
        elif not same_weights(path, data):
            self.put_model(name, data)

    def weights_file(self) -> str:
        """Name of the file with the weights that :attr:`which` asks for."""
        if self.which == "auto":
            return "model.safetensors"
        kept = "last" if self.config().keep == "last" else "best"
        if self.which == kept:
            return "model.safetensors"
        return "best.safetensors" if self.which == "best" else "final.safetensors"

    def model_info(self) -> ModelInfo:
        """Read the description in the header of the weights' file.

        Raises:
            RunError: if there is no such file, or it was not written by a run.
        """
        path = self.path / self.weights_file()
        if not path.is_file() and path.name != "model.safetensors":
            raise RunError(
                f"{path} is missing: these are not the weights that the run scored, and it was "
                "imported or is not finished; leave --which out"
            )
        if not path.is_file():
            raise RunError(
                f"{path} is missing: no epoch was finished; "
                f"continue with: fieldmark resume {self.path}"
            )
        return description_of(path)

    def load_model(self, *, device: str = "cpu") -> Model:
        """Build the network and load the weights that :attr:`which` asks for into it.

        Raises:
            RunError: if the file is missing, damaged (every bit is checked) or does not fit the
                network it names.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from fieldmark import models
        from fieldmark.models.weights import check_finite, no_larger_than

        info = self.model_info()
        path = self.path / self.weights_file()
        self._check_network(info, str(path))
        try:
            check_seal(path)
        except OSError as error:
            raise RunError(f"cannot read {path}: {error}") from None
        try:
            state = load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise RunError(f"cannot read {path}: {error}") from None
        check_finite(state, source=str(path))
        try:
            with no_larger_than(state, source=str(path)):
                network = models.create(
                    info.model,
                    num_classes=len(info.class_names),
                    weights="none",
                    size=info.input.size,
                )
        except ConfigError as error:
            raise RunError(f"{path} names a network that cannot be built: {error}") from None
        try:
            network.module.load_state_dict(state, strict=True)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines()[1:4]]
            why = " ".join(lines)[:400] or error
            raise RunError(f"{path} does not fit the network {info.model}: {why}") from None
        return Model(network.module.to(device).eval(), info, network.head)

    def _check_network(self, info: ModelInfo, where: str) -> None:
        """Make sure that the network is ours, or of a plugin that the weights say they need.

        Raises:
            RunError: naming package and version, or the object that is to be handed over; also if
                the input is not that of the run's settings.
        """
        from fieldmark import models

        self.notes += check_needs(
            info.plugins, where=where, allow_version=self.allow_plugin_version
        )
        trained = self.config().size if self.has("config.json") else 0
        if trained not in (0, info.input.size):
            raise RunError(
                f"{where} says that its input is {info.input.size} px, but the run was trained "
                f"with {trained} (config.json); put back the files as they were"
            )
        name = info.model.partition("(")[0].strip()
        ours = name in models.MODELS or name.startswith(("timm/", "python:"))
        if not ours and not any(("networks", name) in need.names for need in info.plugins):
            raise RunError(
                f"{where} names the network {name!r}, which is none of fieldmark's and of no "
                "plugin that it records"
            )

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write everything that training changes, as tensors and plain values only."""
        checkpoint.save(self.path, state)


def timestamp() -> str:
    """Now, in UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
