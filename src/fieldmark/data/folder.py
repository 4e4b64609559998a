"""Reading a folder of class folders, with or without train, val and test folders above them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fieldmark import plugins
from fieldmark.data import naming
from fieldmark.data.dataset import Entry, Found
from fieldmark.data.readers import split
from fieldmark.errors import DataError, did_you_mean
from fieldmark.names import shown
from fieldmark.pictures.decode import PICTURES, Encoded, read_file
from fieldmark.pictures.formats import sniff
from fieldmark.settings.config import PARTS

_Names = tuple[str, ...]

_TREE = """
Fieldmark reads a folder of class folders, as it is or divided into splits:
  DATA/cat/1.jpg        DATA/train/cat/1.jpg
  DATA/dog/2.jpg        DATA/train/dog/2.jpg
                        DATA/val/cat/3.jpg ...    (DATA/test/... likewise; both may be absent)"""


@dataclass
class _Seen:
    """What a scan meets besides pictures."""

    hidden: int = 0
    """Hidden and system files and folders."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of files that are no pictures, by extension."""
    raw: Counter[str] = field(default_factory=Counter)
    """Number of raw photographs, by extension."""
    by_content: Counter[str] = field(default_factory=Counter)
    """Number of pictures that no extension says are some, by extension."""
    inner: list[str] = field(default_factory=list)
    """Keys of folders beside each other, below a class, of which some are splits by their names."""
    inside: dict[str, _Names] = field(default_factory=dict)
    """Folders in each class folder, by its key."""
    may_have_parts: bool = False
    """Whether any folder below a class means a split by its name."""
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Listing:
    """The content of one folder, without that of the folders in it."""

    folders: _Names
    links: _Names
    """Links to folders."""
    pictures: _Names
    """Names of pictures, unsorted, unlike the others."""

    @property
    def all_folders(self) -> _Names:
        """Folders and links to folders, in the order of classes."""
        return tuple(sorted(self.folders + self.links))


def read_folder(path: Path) -> Found:
    """Find the pictures, the classes and the splits of a folder; no picture is opened.

    A folder named like train, val or test (any case, also training, valid, test_set ...) that has
    class folders is a split; so are folders whose names differ in such a word only, such as
    ``seg_train`` and ``seg_test``. Without one, every folder is a class. A picture's label is the
    folder right below the split, however deep it lies. Where every class has the splits in it
    (``cat/train``), they are those. Classes are sorted by name; links are followed.

    Raises:
        DataError: if there is no such folder, it has fewer than two classes, or its splits
            contradict each other.
    """
    root = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would lose the name of a link
    where = shown(str(path))
    _check_is_folder(path, where)
    seen = _Seen()
    top = _list(str(root), "", seen)
    parts = _find_parts(top, root, where, seen)
    if parts:
        _warn_of_loose(top, where, seen)
        entries, names = _read_parts(parts, root, where, seen)
    else:
        entries, names = _read_flat(top, root, where, seen)
    if len(names) < 2:
        raise DataError(_too_few(names, root, where, seen, train=parts.get("train", "")))
    seen.warnings += twins(names)
    return Found(
        name=root.name or "data",
        class_names=names,
        entries=tuple(sorted(entries, key=lambda entry: entry.key)),
        load=_loader(root),
        notes=(*seen.notes, *_ignored(seen)),
        warnings=tuple(seen.warnings),
    )


def _loader(root: Path) -> Callable[[str], Encoded]:
    def load(key: str) -> Encoded:
        return Encoded(read_file(root / key))

    return load


def _check_is_folder(path: Path, where: str) -> None:
    try:
        with os.scandir(path):
            return
    except FileNotFoundError:
        near = _nearest(path)
        raise DataError(f"there is no folder {where}{near}{_no_reader(str(path))}{_TREE}") from None
    except NotADirectoryError:
        raise DataError(
            f"{where} is a file, but a folder of pictures is needed, or a table of labels "
            f"({', '.join(sorted(naming.TABLES))}); unpack it if it is an archive, or name the "
            f"folder that it lies in{_TREE}"
        ) from None
    except PermissionError:
        raise DataError(
            f"the folder {where} may not be read (permission denied); "
            f"give yourself the right to read it, or run as a user who may{_TREE}"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"the folder {where} cannot be read: {reason}{_TREE}") from None


def _no_reader(text: str) -> str:
    """What to say of ``NAME:ARGUMENT``, which an installed plugin would have read."""
    name, _ = split(text)
    if not name:
        return ""
    known = plugins.names("reader")
    told = ", ".join(known) or "none; `fieldmark plugins` lists what is installed"
    return f", and no reader {name!r}{did_you_mean(name, known)} (known: {told})"


def _nearest(path: Path) -> str:
    try:
        return did_you_mean(path.name, sorted(p.name for p in path.parent.iterdir() if p.is_dir()))
    except OSError:
        return ""


def _list(folder: str, key: str, seen: _Seen) -> _Listing:
    """List one folder; one that cannot be read gives a warning and counts as empty."""
    real: list[str] = []
    links: list[str] = []
    pictures: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if naming.is_system(name):
                    seen.hidden += 1
                elif _is_folder(entry):
                    (links if entry.is_symlink() else real).append(name)
                elif _is_picture(entry, seen):
                    pictures.append(name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        seen.warnings.append(
            f"the folder {_q(key or folder)} cannot be read ({reason}); what is in it is not used"
        )
    return _Listing(tuple(sorted(real)), tuple(sorted(links)), tuple(pictures))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or to where one may not look
        return False


def _is_picture(entry: os.DirEntry[str], seen: _Seen) -> bool:
    extension = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a million times
    if extension in naming.EXTENSIONS:
        return True
    if naming.is_beside(entry.name, extension):
        (seen.raw if extension in naming.RAW else seen.others)[extension] += 1
        return False
    try:
        # Opening a FIFO would wait for ever, and so may a file of the system, which has no size.
        if entry.is_file() and entry.stat().st_size:
            with open(entry.path, "rb") as file:  # noqa: PTH123
                if sniff(file.read(64)) in PICTURES:
                    seen.by_content[extension] += 1
                    return True
    except OSError:
        pass
    seen.others[extension] += 1
    return False


def _walk(folder: str, key: str, seen: _Seen, *, above: frozenset[str]) -> Iterator[str]:
    """Yield the keys of all pictures below a folder, each real folder once: links may make loops.

    Links are followed after all real folders, so that the result is the same on every machine.
    Links to the folders above are not followed: those hold the other classes. Folders are told
    apart by their real paths: numbers of files (inodes) repeat or change on some network drives.
    """
    been = set(above)
    real = [(folder, key, os.path.realpath(folder))]
    links: deque[tuple[str, str]] = deque()
    while real or links:
        if real:
            here, prefix, place = real.pop()
        else:
            here, prefix = links.popleft()
            place = os.path.realpath(here)
        if place in been:
            continue
        been.add(place)
        listing = _list(here, prefix, seen)
        if prefix == key:
            seen.inside[key] = listing.all_folders
        if naming.has_splits(listing.all_folders):
            seen.inner += [f"{prefix}/{name}" for name in listing.all_folders]
        seen.may_have_parts |= any(map(naming.part_of, listing.all_folders))
        for name in listing.pictures:
            yield f"{prefix}/{name}"
        real += [
            (f"{here}/{name}", f"{prefix}/{name}", _below(place, name)) for name in listing.folders
        ]
        links += [(f"{here}/{name}", f"{prefix}/{name}") for name in listing.links]


def _below(place: str, name: str) -> str:
    """The real path of a folder that is no link. On Windows, junctions do not look like links."""
    below = os.path.join(place, name)  # noqa: PTH118 - a million times
    return os.path.realpath(below) if os.name == "nt" else below


def _above(*folders: Path) -> frozenset[str]:
    real = [Path(os.path.realpath(folder)) for folder in folders]
    return frozenset(str(one) for path in real for one in (path, *path.parents))


def _find_parts(top: _Listing, root: Path, where: str, seen: _Seen) -> dict[str, str]:
    """Return the folder of each split, train first, or nothing if the folders are classes."""
    groups = naming.groups(top.all_folders)
    places = {
        name: _class_folders_of(root, name, part)
        for group in groups.values()
        for part, names in group.items()
        for name in names
    }
    inside = {
        name: _list(str(root / place), place, _Seen()).all_folders for name, place in places.items()
    }
    usable = [
        group
        for group in groups.values()
        if any(inside[name] for name in group.get("train", ()))
        and (naming.is_complete(group) or naming.part_of(group["train"][0]))
    ]
    whole = next((group for rest, group in groups.items() if not rest and group in usable), None)
    if whole is None and len(usable) == 1:
        whole = usable[0]
    if whole is None:
        exact = {name: inside[name] for name in inside if naming.part_of(name)}
        train = [name for name in exact if naming.part_of(name) == "train"]
        _refuse_lost_parts(top, train, exact, where, seen)
        _refuse_near_parts(top, root, groups, inside, where, seen)
        return {}
    for part, names in whole.items():
        if len(names) > 1:
            raise DataError(
                f"{where} has {len(names)} folders for the {part} split: {_names(names)}; "
                f"rename or move away all but one{_TREE}"
            )
    claimed = {part: whole[part][0] for part in PARTS if part in whole}
    others = [name for name in top.all_folders if name not in claimed.values()]
    if others:
        seen.warnings.append(
            f"not used, because they lie beside the split {_q(claimed['train'])}: {_names(others)}"
        )
    parts = {part: places[name] for part, name in claimed.items()}
    for part, place in parts.items():
        if place != part:
            seen.notes.append(f"the folder {_q(place)} is the {part} split")
    return parts


def _class_folders_of(root: Path, name: str, part: str) -> str:
    """Where a split's class folders lie: in it, or one deeper, as in ``test_set/test_set/cat``."""
    place = name
    for _ in range(3):
        listing = _list(str(root / place), place, _Seen())
        if listing.pictures or len(listing.all_folders) != 1:
            break
        (only,) = listing.all_folders
        group = naming.groups([only])
        same = only == name or any(part in each for each in group.values())
        below = _list(str(root / place / only), only, _Seen())
        if not (same or naming.is_plain(only)) or not below.all_folders:
            break
        place = f"{place}/{only}"
    return place


def _refuse_near_parts(
    top: _Listing,
    root: Path,
    groups: Mapping[tuple[str, ...], naming.Group],
    inside: Mapping[str, _Names],
    where: str,
    seen: _Seen,
) -> None:
    """Refuse folders that are no classes: splits that lack something, folds, splits of each class.

    Raises:
        DataError: naming them.
    """
    near = [group for group in groups.values() if naming.is_complete(group)]
    names = [name for group in near for members in group.values() for name in members]
    if len(near) > 1:
        raise DataError(
            f"{where} has splits of each of several things, not classes: {_names(names)}; "
            f"make one folder for each split, with the classes in it{_TREE}"
        )
    if near:
        raise DataError(
            f"{where} has the splits {_names(names)}, but there are no class folders in "
            f"{_q(near[0]['train'][0])}; put its pictures into one folder a class{_TREE}"
        )
    alone = [name for name in inside if not naming.part_of(name)]
    plain = [name for members in groups.get((), {}).values() for name in members if name in alone]
    if plain and len(top.all_folders) > 1:
        raise DataError(
            f"{where} has {_names(plain)}, by the name a split and no class, beside class folders; "
            f"move it away, or make one folder for each split, with the classes in it{_TREE}"
        )
    folds = [name for name in top.all_folders if naming.is_fold(name)]
    suspects = [*inside] or (folds if len(folds) > 1 else [])
    if not suspects or len(top.all_folders) < 2:
        return
    below = {
        name: set(_list(str(root / name), name, _Seen()).all_folders) for name in top.all_folders
    }
    for name in suspects:
        alike = [n for n in top.all_folders if n != name and len(below[n] & below[name]) > 1]
        if alike:
            shared = sorted(below[name] & below[alike[0]])
            if naming.has_splits(shared):
                raise DataError(
                    f"{where} has {_names([name, *alike])}, each with splits in it: "
                    f"{_names(shared)}; name one of them, such as {shown(f'{where}/{name}')}{_TREE}"
                )
            raise DataError(
                f"{where} has {_names([name, *alike])}, which all have the folders "
                f"{_names(shared)}: those are the classes, it seems, and {_q(name)} is a split or "
                f"a fold; rename one 'train' and one 'val', or name one of them alone{_TREE}"
            )
    seen.notes += [f"the folder {_q(name)} is a class here, not a split" for name in alone]


def _refuse_lost_parts(
    top: _Listing, train: list[str], inside: dict[str, _Names], where: str, seen: _Seen
) -> None:
    """Refuse splits that lack something; classes may happen to be called 'train' or 'test'."""
    if len(inside) > 1 and train:
        raise DataError(
            f"{where} has the splits {_names(inside)}, but there are no class folders in "
            f"{_q(train[0])}; put its pictures into one folder a class{_TREE}"
        )
    if len(inside) > 1:
        raise DataError(
            f"{where} has {_names(inside)}, but no 'train' with class folders; add it, "
            f"or name a single folder of class folders{_TREE}"
        )
    for name, folders in inside.items():
        both = set(folders) & set(top.all_folders)
        if both:
            raise DataError(
                f"{where} has classes and also the split {_q(name)}, which has {_names(both)} too; "
                f"move the other class folders into a folder 'train' beside it{_TREE}"
            )
        if len(top.all_folders) > 1:
            seen.notes.append(f"the folder {_q(name)} is a class here, not a split")


def _read_flat(
    top: _Listing, root: Path, where: str, seen: _Seen
) -> tuple[list[Entry], tuple[str, ...]]:
    """The classes of a folder without splits above them; they may have them inside."""
    if not top.all_folders and top.pictures:
        raise DataError(
            f"{where} has {len(top.pictures)} pictures but no class folders, so nothing says what "
            f"they show; put them into one folder a class{_TREE}"
        )
    _warn_of_loose(top, where, seen)
    above = _above(root)
    found = {
        name: list(_walk(f"{root}/{name}", name, seen, above=above)) for name in top.all_folders
    }
    names = tuple(name for name, keys in found.items() if keys)
    _warn_of_empty([name for name, keys in found.items() if not keys], where, seen)
    parts = _parts_inside(found, where, seen)
    if not parts:
        _warn_of_same_folders(names, seen)
    entries = [
        Entry(key, label, parts.get(_second(key)))
        for label, name in enumerate(names)
        for key in found[name]
    ]
    return entries, names


def _warn_of_same_folders(names: _Names, seen: _Seen) -> None:
    """Warn where the classes may lie one deeper: all folders have the same ones in them."""
    inside = {seen.inside[name] for name in names}
    same = next(iter(inside), ())
    if len(names) > 1 and len(inside) == 1 and len(same) > 1 and not all(map(str.isdigit, same)):
        seen.warnings.append(
            f"all classes have the same folders in them, {_names(same)}: if those are the classes, "
            f"name a single folder of them, such as {_q(names[0])}, or call the upper ones train, "
            "val and test"
        )


def _second(key: str) -> str:
    """The folder in a class folder that a picture lies in (``cat/train``); or the class folder."""
    folders = key.split("/")[:-1]
    return "/".join(folders[:2])


def _parts_inside(found: Mapping[str, list[str]], where: str, seen: _Seen) -> dict[str, str]:
    """The splits that lie in the class folders (``cat/train``), by their keys; usually none.

    Raises:
        DataError: if there are some, and not all pictures lie in them.
    """
    if not seen.inner and not seen.may_have_parts:
        return {}
    in_class = {name: {_second(key) for key in keys} for name, keys in found.items() if keys}
    places = sorted(set().union(*in_class.values()))
    named = {place: _part_in(place) for place in places if "/" in place}
    everywhere = set(PARTS).intersection(
        *({named.get(place) or "" for place in inside} for inside in in_class.values())
    )
    if not seen.inner and not (everywhere - {"train"} and len(in_class) > 1):
        return {}
    deeper = [key for key in seen.inner if key.count("/") > 1]
    strange = [place for place in places if not named.get(place)]
    if deeper or strange or "train" not in everywhere:
        splits = [key for key in (*seen.inner, *named) if _part_in(key)]
        beside = [place for place in (*deeper, *strange) if not _part_in(place)]
        told = f", and pictures beside them, in {_names(beside)}" if beside else ""
        raise DataError(
            f"{where} has splits inside the classes: {_names(set(splits))}{told}; "
            f"put them above the classes, and move away what is in none{_TREE}"
        )
    thirds = [
        {key.split("/")[2] for key in keys if named.get(_second(key)) and key.count("/") > 2}
        for keys in found.values()
    ]
    if any(len(one & other) > 1 for i, one in enumerate(thirds) for other in thirds[:i]):
        raise DataError(
            f"{where} has {_names(found)}, each with splits and classes in it; name one of them, "
            f"such as {shown(f'{where}/{next(iter(found))}')}{_TREE}"
        )
    seen.notes.append(f"the splits lie in the class folders, such as {_q(places[0])}")
    return {place: part for place, part in named.items() if part}


def _part_in(key: str) -> str | None:
    """The split that the last folder of a key is by its name."""
    found = naming.groups([key.rpartition("/")[2]])
    return next((part for group in found.values() for part in group), None)


def _read_parts(
    parts: dict[str, str], root: Path, where: str, seen: _Seen
) -> tuple[list[Entry], tuple[str, ...]]:
    found: dict[str, dict[str, list[str]]] = {}
    for part, folder in parts.items():
        listing = _list(str(root / folder), folder, seen)
        above = _above(root, root / folder)
        found[part] = {
            name: list(_walk(f"{root}/{folder}/{name}", f"{folder}/{name}", seen, above=above))
            for name in listing.all_folders
        }
        if listing.pictures and not listing.all_folders:
            seen.warnings.append(
                f"{_q(folder)} has {len(listing.pictures)} pictures but no class folders: "
                "not labelled, not used"
            )
        else:
            _warn_of_loose(listing, shown(f"{where}/{folder}"), seen)
            empty = [name for name, keys in found[part].items() if not keys]
            _warn_of_empty(empty, shown(f"{where}/{folder}"), seen)
    if seen.inner:
        raise DataError(
            f"{where} has splits, and splits again inside the classes: {_names(seen.inner)}; "
            f"move their pictures to where they belong{_TREE}"
        )
    names = tuple(name for name, keys in found["train"].items() if keys)
    labels = {name: label for label, name in enumerate(names)}
    for part, classes in found.items():
        there = {name for name, keys in classes.items() if keys}
        _compare_classes(parts, part, there, names, where, seen)
    entries = [
        Entry(key, labels[name], part)
        for part, classes in found.items()
        for name, keys in classes.items()
        for key in keys
    ]
    return entries, names


def _compare_classes(
    parts: dict[str, str], part: str, there: set[str], names: _Names, where: str, seen: _Seen
) -> None:
    strange = sorted(there - set(names))
    if strange:
        twins = {_nfc(name): name for name in names}
        hint = (
            "; train has the same name in another Unicode form"
            if _nfc(strange[0]) in twins
            else did_you_mean(strange[0], names)
        )
        raise DataError(
            f"in {where}, {_q(parts[part])} has {_number(strange, 'class')} that "
            f"{_q(parts['train'])} has no pictures of: {_names(strange)}{hint}; "
            "no class is learnt without training pictures: add some, or move the folder away"
        )
    missing = sorted(set(names) - there)
    if missing and there:
        seen.warnings.append(
            f"{_q(parts[part])} has no pictures of {_number(missing, 'class')} that "
            f"{_q(parts['train'])} has: {_names(missing)}"
        )


def _too_few(names: _Names, root: Path, where: str, seen: _Seen, *, train: str) -> str:
    inside = shown(f"{where}/{train}") if train else where
    facts = "".join(f"\n{fact}" for fact in [*_ignored(seen), *seen.warnings][:5])
    if not names:
        return f"there are no pictures in {inside}; put some into one folder a class{facts}{_TREE}"
    only = names[0]
    folders = _list(str(root / train / only), only, _Seen()).all_folders
    advice = "add another class folder"
    if len(folders) > 1 or any(naming.part_of(name) for name in folders):
        better = shown(str(Path(where) / train / only))
        advice = f"if {_names(folders)} are the classes or the splits, name {better} instead"
    what = f"{inside} has only one class, {_q(only)}, and at least two are needed"
    return f"{what}; {advice}{facts}{_TREE}"


def _warn_of_loose(listing: _Listing, where: str, seen: _Seen) -> None:
    if listing.pictures:
        seen.warnings.append(
            f"{_number(listing.pictures, 'picture')} directly in {where}, in no class folder: "
            f"not used: {_names(listing.pictures)}"
        )


def _warn_of_empty(names: Sequence[str], where: str, seen: _Seen) -> None:
    if names:
        seen.warnings.append(
            f"{_number(names, 'class folder')} without pictures in {where}, left out: "
            f"{_names(names)}"
        )


def twins(names: Sequence[str]) -> list[str]:
    """Warnings of classes whose names are the same to some systems, or to a reader."""
    found = []
    for form, trouble in (
        (_nfc, "the same name in two Unicode forms"),
        (lambda name: _nfc(name).casefold(), "the same but for case; Windows and macOS merge them"),
    ):
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(form(name), []).append(name)
        for group in groups.values():
            forms = {_nfc(name) for name in group}
            if len(group) > 1 and (form is _nfc or len(forms) > 1):
                found.append(f"two classes: {_names(group)} are {trouble}")
    return found


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _ignored(seen: _Seen) -> list[str]:
    notes = []
    if seen.others:
        total = seen.others.total()
        ranked = sorted(seen.others.items(), key=lambda item: (-item[1], item[0] or "~"))
        kinds = [f"{shown(ext) or 'no extension'} {n}" for ext, n in ranked[:5]]
        more = ", ..." if len(seen.others) > 5 else ""
        files = "1 file that is no picture" if total == 1 else f"{total} files that are no pictures"
        notes.append(f"ignored {files}: {', '.join(kinds)}{more}")
    if seen.raw:
        raws = ", ".join(f"{ext} {n}" for ext, n in seen.raw.most_common(5))
        notes.append(
            f"ignored raw photographs, which are not supported ({raws}); develop them to JPEG, "
            "PNG or TIFF"
        )
    if seen.by_content:
        named = ", ".join(
            f"{shown(ext) or 'no extension'} {n}" for ext, n in seen.by_content.most_common(5)
        )
        notes.append(f"pictures by their content, whatever they are called: {named}")
    if seen.hidden:
        what = "file or folder" if seen.hidden == 1 else "files and folders"
        notes.append(f"ignored {seen.hidden} hidden or system {what}")
    return notes


def _q(name: str) -> str:
    return f"'{shown(name)}'"


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - 5} more" if len(listed) > 5 else ""
    return ", ".join(_q(name) for name in listed[:5]) + more


def _number(things: Sequence[str], word: str) -> str:
    plural = "classes" if word == "class" else f"{word}s"
    return f"{len(things)} {word if len(things) == 1 else plural}"


def pictures_below(folder: Path) -> list[Path]:
    """List all pictures in a folder and below, sorted, by the rules of :func:`read_folder`."""
    keys = _walk(str(folder), "", _Seen(), above=frozenset())
    return [folder / key[1:] for key in sorted(keys)]
