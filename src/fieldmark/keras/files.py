"""Keras's files (``.h5``, ``.weights.h5``, ``.keras``), read and written without Keras.

A file is data: no code in it is run, no object is built from it, and no other file is opened
because of its content. A file is refused before it is read if it holds links (soft, external, or
two names for one object), storage outside the file, virtual data sets, filters that load a plug-in,
anything but numbers, or sizes that the stored bytes cannot explain.

Source: the layout of the files, from keras 3.15 (``saving_lib``, ``legacy_h5_format``).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from fieldmark.errors import FieldmarkError, MissingExtraError, RunError, WeightsError
from fieldmark.files import lfs
from fieldmark.files.json_text import read_object
from fieldmark.names import shown
from fieldmark.seeding import F32

MAX_FILE_BYTES = 16 * 2**30
MAX_OBJECTS = 50_000
"""Most groups and data sets in a file. The largest network of keras.applications has 4000."""
MAX_DEPTH = 32
MAX_DATASET_BYTES = 4 * 2**30
MAX_TOTAL_BYTES = 8 * 2**30
"""Largest sum of the declared sizes of all data sets."""
MAX_EXPANSION = 1000
"""Largest ratio of declared to stored bytes of a data set or an archive's member, above the floor.
"""
EXPANSION_FLOOR = 2**20
MAX_TEXT_BYTES = 64 * 2**20
"""Largest size of a config, or of the names in one attribute."""
MAX_MEMBERS = 10_000

_HDF5 = b"\x89HDF\r\n\x1a\n"
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32"}
"""Filters inside HDF5 itself; for any other, HDF5 searches the disk for a plug-in."""
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
"""Groups in which Keras 3, and Keras 2.12 to 2.15 in the same format, keep a model's layers."""
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


@dataclass(frozen=True)
class StoredLayer:
    """The tensors of a layer, as in the file."""

    path: tuple[str, ...]
    """Name of the layer, after those of the models around it."""
    tensors: tuple[tuple[str, F32], ...]
    """Names and values in Keras's order: kernel, bias; or gamma, beta, mean, variance."""

    @property
    def name(self) -> str:
        """The path, safe to show."""
        return shown("/".join(self.path))


@dataclass(frozen=True)
class KerasFile:
    """The content of a file that was read."""

    name: str
    """Name of the file, safe to show."""
    layers: tuple[StoredLayer, ...]
    """Layers with tensors. In legacy files they are in Keras's order of the layers; names of the
    new format count each class of layers by itself, so there they are in order within each class.
    """
    by_class: bool
    """Whether paths are those of the new format: class names and numbers, not the layers' own
    names."""
    config: dict[str, Any] | None = None
    """The network's description: ``class_name`` and ``config``. None for weights alone."""
    note: str = ""
    """The note that Fieldmark wrote beside the network."""


def read_keras(path: Path) -> KerasFile:
    """Read a ``.h5``, ``.weights.h5`` or ``.keras`` file; its first bytes decide which it is.

    Raises:
        WeightsError: if it is missing, damaged, unsafe or something else.
        MissingExtraError: if h5py is not installed.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise WeightsError(f"{path} {what}; a Keras file (.h5, .weights.h5 or .keras) is needed")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise WeightsError(f"{path} has {size} bytes; at most {MAX_FILE_BYTES >> 30} GiB are read")
    try:
        with path.open("rb") as stream:
            return read_stream(stream, name=path.name)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from None


def read_stream(stream: IO[bytes], *, name: str) -> KerasFile:
    """Read an open file. HDF5 gets the stream and not a path, so that it opens no other file.

    Raises:
        WeightsError: as :func:`read_keras`.
    """
    name = shown(name)
    head = stream.read(64)
    magic = head[: len(_HDF5)]
    stream.seek(0)
    if lfs.is_pointer(head):
        raise WeightsError(f"{name} is {lfs.ADVICE}")
    if magic == _HDF5:
        with _hdf5(stream, name) as tree:
            return _parse(tree)
    if magic[:4] == b"PK\x03\x04":
        with _damage(name):
            return _read_archive(stream, name)
    raise WeightsError(f"{name} is neither an HDF5 file (.h5) nor a .keras archive")


@contextlib.contextmanager
def _damage(name: str) -> Iterator[None]:
    """Turn any error that the readers raise for a broken file into a WeightsError."""
    try:
        yield
    except (FieldmarkError, MemoryError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{name} is damaged, or no Keras file: {shown(text)}") from None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise MissingExtraError(
            "Keras files need h5py, which is not installed; pip install 'fieldmark[keras]'"
        ) from None
    return h5py


# --- HDF5, guarded --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """All groups and data sets of a checked HDF5 file, by path."""

    name: str
    groups: Mapping[str, Any]
    datasets: Mapping[str, Any]
    longest_text: int
    """Upper bound for the length of a variable-length text in an attribute."""

    def text(self, path: str, attribute: str) -> str | None:
        """Read an attribute that is one text; None if it is not there."""
        found = self.texts(path, attribute, scalar=True)
        return None if found is None else found[0]

    def texts(self, path: str, attribute: str, *, scalar: bool = False) -> list[str] | None:
        """Read an attribute that holds texts; its size is checked before it is read."""
        attributes = self.groups[path].attrs
        if attribute not in attributes:
            return None
        handle = attributes.get_id(attribute)
        count = math.prod(handle.shape)
        if (handle.shape == ()) != scalar or len(handle.shape) > 1:
            raise WeightsError(f"{self.name}: the attribute {attribute} has another shape")
        if count == 0:  # Keras writes an empty list of names as numbers
            return []
        kind = handle.get_type()
        if not isinstance(kind, _h5py().h5t.TypeStringID):
            raise WeightsError(f"{self.name}: the attribute {attribute} is not text")
        # Variable length: every element may be the same long text, stored once.
        longest = self.longest_text if kind.is_variable_str() else kind.get_size()
        if count > MAX_OBJECTS or (not scalar and count * longest > MAX_DATASET_BYTES):
            raise WeightsError(f"{self.name}: the attribute {attribute} is too long to be read")
        value = attributes[attribute]
        found = [_text(v) for v in ([value] if scalar else value)]
        if sum(map(len, found)) > MAX_TEXT_BYTES:
            raise WeightsError(
                f"{self.name}: the attribute {attribute} is longer than {MAX_TEXT_BYTES >> 20} MiB"
            )
        return found

    def names(self, path: str, attribute: str) -> list[str] | None:
        """Read a list of names, which Keras cuts into ``names0``, ``names1``... when it is long."""
        whole = self.texts(path, attribute)
        if whole is not None:
            return whole
        parts: list[str] = []
        number = 0
        while (part := self.texts(path, f"{attribute}{number}")) is not None:
            parts += part
            number += 1
        return parts if number else None

    def array(self, path: str, *, layer: str) -> F32:
        """Read a data set's numbers as float32."""
        dataset = self.datasets.get(path)
        if dataset is None:
            raise WeightsError(
                f"{self.name}: layer {shown(layer)} names a tensor that is not in the file "
                f"({shown(path[-100:])})"
            )
        if dataset.dtype.kind != "f" and dataset.shape != ():
            raise WeightsError(
                f"{self.name}: layer {shown(layer)} holds {dataset.dtype} numbers; weights must be "
                "floats (a quantised model cannot be imported)"
            )
        with np.errstate(over="ignore"):
            array: F32 = np.asarray(dataset[()], dtype=np.float32)
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{self.name}: layer {shown(layer)} holds values that are not finite numbers"
            )
        return array


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def _hdf5(stream: IO[bytes], name: str) -> Iterator[_Tree]:
    """Open an HDF5 file and check all of it before anything is read.

    Raises:
        WeightsError: if it is damaged or holds something that is refused.
    """
    h5py = _h5py()
    longest = _longest_heap(stream)
    with _damage(name), h5py.File(stream, "r") as root:
        yield _walk(h5py, root, name, longest)


def _walk(h5py: Any, root: Any, name: str, longest: int) -> _Tree:
    groups: dict[str, Any] = {"": root}
    datasets: dict[str, Any] = {}
    places = {h5py.h5o.get_info(root.id).addr}
    total = 0
    todo = [("", 1)]
    while todo:
        path, depth = todo.pop()
        group = groups[path]
        if len(group) + len(places) > MAX_OBJECTS or depth > MAX_DEPTH:
            raise WeightsError(
                f"{name} has more than {MAX_OBJECTS} groups and data sets, or groups nested deeper "
                f"than {MAX_DEPTH}; no Keras model has"
            )
        for key in group:
            if "/" in key or key in ("", "."):  # it would be followed as a path
                raise WeightsError(f"{name} has an object with the name {shown(key)[:100]!r}")
            inside = f"{path}/{key}" if path else key
            link = group.get(key, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise WeightsError(
                    f"{name}: {shown(inside)[:100]} is a link ({type(link).__name__}); files with "
                    "links are not read, because a link can lead to any file on this machine"
                )
            thing = group[key]
            place = h5py.h5o.get_info(thing.id).addr
            if place in places:
                raise WeightsError(f"{name}: {shown(inside)[:100]} is stored under two names")
            places.add(place)
            if isinstance(thing, h5py.Group):
                groups[inside] = thing
                todo.append((inside, depth + 1))
            elif isinstance(thing, h5py.Dataset):
                datasets[inside] = thing
                total += _declared_bytes(h5py, thing, f"{name}: {shown(inside)[:100]}")
            else:
                raise WeightsError(f"{name}: {shown(inside)[:100]} is not a group or data set")
            if total > MAX_TOTAL_BYTES:
                raise WeightsError(f"{name} declares more than {MAX_TOTAL_BYTES >> 30} GiB")
    return _Tree(name, groups, datasets, longest)


def _declared_bytes(h5py: Any, dataset: Any, where: str) -> int:
    """Return how many bytes reading the data set takes.

    Raises:
        WeightsError: if it is not plain numbers stored in this file in a plausible size.
    """
    kind = dataset.id.get_type()
    numbers = (h5py.h5t.TypeIntegerID, h5py.h5t.TypeFloatID)
    if not isinstance(kind, numbers) or kind.get_size() > 8:
        raise WeightsError(f"{where} holds something other than integers or floats")
    plan = dataset.id.get_create_plist()
    if plan.get_external_count():
        raise WeightsError(f"{where} keeps its values in another file; that is not read")
    layout = plan.get_layout()
    if layout not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise WeightsError(f"{where} is a virtual data set, made of other files; that is not read")
    for i in range(plan.get_nfilters()):
        if plan.get_filter(i)[0] not in _FILTERS:
            raise WeightsError(
                f"{where} is compressed by filter {plan.get_filter(i)[0]}; those of HDF5 itself "
                f"are read ({', '.join(_FILTERS.values())})"
            )
    elements = math.prod(dataset.shape)
    if layout == h5py.h5d.CHUNKED:  # a whole chunk is unpacked for a single value
        elements = max(elements, math.prod(plan.get_chunk()))
    declared: int = elements * int(kind.get_size())
    stored = int(dataset.id.get_storage_size())
    bomb = declared > EXPANSION_FLOOR and declared > MAX_EXPANSION * stored
    if bomb or declared > MAX_DATASET_BYTES or (declared and not stored):
        raise WeightsError(
            f"{where} declares {declared} bytes and stores {stored}; at most "
            f"{MAX_DATASET_BYTES >> 30} GiB, and {MAX_EXPANSION} times what is stored, are read"
        )
    return declared


def _longest_heap(stream: IO[bytes]) -> int:
    """Find the length of the longest global heap, where HDF5 keeps variable-length texts."""
    step, found, start = 2**24, 0, 0
    while True:
        stream.seek(start)
        block = stream.read(step + 15)  # a header that straddles two blocks is seen in the first
        for match in re.finditer(rb"GCOL\x01\0\0\0(?=(.{8}))", block, re.DOTALL):
            found = max(found, int.from_bytes(match[1], "little"))
        start += step
        if len(block) <= step:
            stream.seek(0)
            return found


# --- Layouts --------------------------------------------------------------------------------------


def _parse(tree: _Tree) -> KerasFile:
    """Find out which layout the file has, and read it."""
    top = "model_weights" if "model_weights" in tree.groups else ""
    names = tree.names(top, "layer_names")
    if names is not None:
        config = tree.text("", "model_config")
        return KerasFile(
            name=tree.name,
            layers=tuple(_legacy_layers(tree, top, names)),
            by_class=False,
            config=None if config is None else _json(config, f"{tree.name}: model_config"),
            note=tree.text("", "fieldmark") or "",
        )
    if any(name in tree.groups for name in _CONTAINERS):
        layers = tuple(_counted_layers(tree, "", ()))
        return KerasFile(name=tree.name, layers=layers, by_class=True)
    raise WeightsError(
        f"{tree.name} is an HDF5 file without a Keras model's layers; save it with "
        "model.save or model.save_weights"
    )


def _json(text: str, where: str) -> dict[str, Any]:
    try:
        return read_object(text, where=where)
    except RunError as error:
        raise WeightsError(str(error)) from None


def _legacy_layers(tree: _Tree, top: str, names: list[str]) -> Iterator[StoredLayer]:
    """Read layers of a legacy file; a nested model is one group with all its layers' tensors."""
    for name in names:
        place = f"{top}/{name}" if top else name
        if place not in tree.groups:
            raise WeightsError(f"{tree.name} lists a layer {shown(name)} and does not hold it")
        layers: dict[str, list[tuple[str, F32]]] = {}
        for weight in tree.names(place, "weight_names") or []:
            inner, _, variable = weight.rpartition("/")
            array = tree.array(f"{place}/{weight}", layer=name)
            layers.setdefault(inner, []).append((variable.partition(":")[0], array))
        nested = len(layers) > 1
        for inner, tensors in layers.items():
            own = inner.rpartition("/")[2]
            yield StoredLayer((name, own) if nested else (name,), tuple(tensors))


def _counted_layers(tree: _Tree, place: str, path: tuple[str, ...]) -> Iterator[StoredLayer]:
    """Read layers of the new format, counted class by class; nested models come first."""
    container = next((c for c in _CONTAINERS if _join(place, c) in tree.groups), None)
    if container is None:
        return
    folder = _join(place, container)
    names = sorted(tree.groups[folder], key=_counted)
    for name in names:
        yield from _counted_layers(tree, f"{folder}/{name}", (*path, name))
    for name in names:
        variables = f"{folder}/{name}/vars"
        if variables not in tree.groups:
            continue
        keys = sorted(tree.groups[variables], key=_counted)
        tensors = [(key, tree.array(f"{variables}/{key}", layer=name)) for key in keys]
        if tensors:
            yield StoredLayer((*path, name), tuple(tensors))


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _counted(name: str) -> tuple[str, int]:
    """Key that sorts ``conv2d``, ``conv2d_1``, ``conv2d_10``; and ``0``, ``1``, ``10``."""
    if name.isascii() and name.isdecimal():
        return "", int(name[:9])
    base, _, number = name.rpartition("_")
    if base and number.isascii() and number.isdecimal():
        return base, int(number[:9])
    return name, 0


def _read_archive(stream: IO[bytes], name: str) -> KerasFile:
    with zipfile.ZipFile(stream) as archive:
        _check_members(archive.infolist(), name)
        config = _json(_member(archive, _CONFIG, MAX_TEXT_BYTES).decode("utf-8"), f"{name}: config")
        note = ""
        if _METADATA in archive.namelist():
            metadata = _member(archive, _METADATA, MAX_TEXT_BYTES).decode("utf-8")
            note = str(_json(metadata, f"{name}: metadata").get("fieldmark", ""))
        weights = _member(archive, _WEIGHTS, MAX_DATASET_BYTES)
    with _hdf5(io.BytesIO(weights), name) as tree:
        layers = tuple(_counted_layers(tree, "", ()))
    return KerasFile(name=name, layers=layers, by_class=True, config=config, note=note)


def _check_members(members: Sequence[zipfile.ZipInfo], name: str) -> None:
    """Refuse what Keras never writes. Only three members are read, and nothing is unpacked."""
    seen: set[str] = set()
    if len(members) > MAX_MEMBERS:
        raise WeightsError(f"{name} has {len(members)} members; at most {MAX_MEMBERS} are accepted")
    for member in members:
        told = shown(member.filename)[:100]
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or any(c in member.filename for c in "\\:\0"):
            raise WeightsError(f"{name} holds {told!r}, whose path leads out of the archive")
        if str(path).casefold() in seen:
            raise WeightsError(f"{name} holds {told!r} twice")
        seen.add(str(path).casefold())
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & 1:
            raise WeightsError(f"{name} holds {told!r}, which is a link or encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise WeightsError(f"{name} holds {told!r}, compressed by an unusual method")
        if member.file_size > max(EXPANSION_FLOOR, MAX_EXPANSION * member.compress_size):
            raise WeightsError(
                f"{name} holds {told!r}, which declares {member.file_size} bytes and stores "
                f"{member.compress_size}"
            )
    for needed in (_CONFIG, _WEIGHTS):
        if needed not in seen:
            raise WeightsError(
                f"{name} holds no {needed}, so it is not a .keras file that can be read; save the "
                "model with model.save('name.keras')"
            )


def _member(archive: zipfile.ZipFile, member: str, limit: int) -> bytes:
    size = archive.getinfo(member).file_size
    if size > limit:
        raise WeightsError(f"{member} has {size} bytes; at most {limit} are read")
    with archive.open(member) as file:
        return file.read(limit)


# --- Writing --------------------------------------------------------------------------------------


def write_archive(
    layers: Sequence[StoredLayer], *, config: Mapping[str, Any], version: str, note: str
) -> bytes:
    """Make the bytes of a ``.keras`` file; paths are of the new format, such as ``conv2d_1``."""
    weights = io.BytesIO()
    with _h5py().File(weights, "w") as root:
        root.create_group("vars")
        for layer in layers:
            group = root.create_group("layers/" + "/layers/".join(layer.path) + "/vars")
            for number, (_, array) in enumerate(layer.tensors):
                group.create_dataset(str(number), data=array)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        metadata = {"keras_version": version, "fieldmark": note}
        for name, data in (
            (_METADATA, json.dumps(metadata).encode()),
            (_CONFIG, json.dumps(config).encode()),
            (_WEIGHTS, weights.getvalue()),
        ):
            file.writestr(
                zipfile.ZipInfo(name), data
            )  # with a fixed date: the same bytes each time
    return archive.getvalue()


def write_legacy(
    layers: Sequence[StoredLayer], *, config: Mapping[str, Any], version: str, note: str
) -> bytes:
    """Make the bytes of a whole-model ``.h5`` file; paths are the layers' names."""
    buffer = io.BytesIO()
    with _h5py().File(buffer, "w") as root:
        root.attrs["keras_version"] = version
        root.attrs["backend"] = "tensorflow"
        root.attrs["model_config"] = json.dumps(config)
        root.attrs["fieldmark"] = note
        top = root.create_group("model_weights")
        top.attrs["keras_version"] = version
        top.attrs["backend"] = "tensorflow"
        top.attrs["layer_names"] = [layer.path[0].encode() for layer in layers]
        for layer in layers:
            (name,) = layer.path
            group = top.create_group(name)
            names = [f"{name}/{variable}:0" for variable, _ in layer.tensors]
            group.attrs["weight_names"] = [text.encode() for text in names]
            for text, (_, array) in zip(names, layer.tensors, strict=True):
                group.create_dataset(text, data=array)
    return buffer.getvalue()
