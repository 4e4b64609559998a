"""Folders as people have them: layouts, names, links, rubbish, and what the errors say."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from fieldmark.data.dataset import Found
from fieldmark.data.folder import read_folder
from fieldmark.errors import DataError
from fieldmark.names import shown
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture
from tests.making import encode, folder, scene

FLAT = ("cat/1.png", "cat/2.png", "dog/1.png")


def read(path: Path) -> Found:
    return read_folder(path)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    text = str(caught.value)
    text.encode("utf-8")  # whatever the names are, it can be printed
    assert "\x1b" not in text
    return text


def where(found: Found) -> list[tuple[str, str, str | None]]:
    return [(entry.key, found.class_names[entry.label], entry.part) for entry in found.entries]


# Layouts


def test_a_flat_folder(tmp_path: Path) -> None:
    found = read(folder(tmp_path / "pets", *FLAT))
    assert found.name == "pets"
    assert found.class_names == ("cat", "dog")
    assert where(found) == [
        ("cat/1.png", "cat", None),
        ("cat/2.png", "cat", None),
        ("dog/1.png", "dog", None),
    ]
    assert found.notes == found.warnings == ()
    assert np.array_equal(found.load("cat/1.png").decode(PictureLimits()).pixels, scene(4, 5))


def test_a_relative_path_outlives_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "pets", *FLAT)
    monkeypatch.chdir(tmp_path / "pets")
    found = read(Path())
    assert found.name == "pets"
    monkeypatch.chdir(tmp_path)
    assert found.load("dog/1.png").decode(PictureLimits()).pixels.shape == (4, 5, 3)


def test_load_says_what_is_wrong_and_keeps_the_limit(tmp_path: Path) -> None:
    found = read(folder(tmp_path, *FLAT))
    (tmp_path / "cat/1.png").write_bytes(b"text")
    (tmp_path / "cat/2.png").write_bytes(encode(scene(100, 100), "PNG"))
    for key, reason in {"cat/1.png": "not a picture", "cat/2.png": "too many pixels"}.items():
        with pytest.raises(BadPicture) as caught:
            found.load(key).decode(PictureLimits(1000))
        assert caught.value.reason == reason


def test_the_label_is_the_first_folder_however_deep(tmp_path: Path) -> None:
    found = read(folder(tmp_path, "cat/2021/may/1.png", "cat/2.png", "dog/2021/1.png"))
    assert [label for _, label, _ in where(found)] == ["cat", "cat", "dog"]


def test_classes_and_keys_are_sorted_as_python_sorts(tmp_path: Path) -> None:
    found = read(folder(tmp_path, "10/b.png", "2/a.png", "1/a.png", "a/x.png", "B/x.png"))
    assert found.class_names == ("1", "10", "2", "B", "a")
    keys = [entry.key for entry in found.entries]
    assert keys == sorted(keys)


def test_parts(tmp_path: Path) -> None:
    found = read(
        folder(
            tmp_path, "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "val/dog/3.png",
            "test/cat/x/4.png", "test/dog/4.png",
        )
    )  # fmt: skip
    assert found.class_names == ("cat", "dog")
    assert ("test/cat/x/4.png", "cat", "test") in where(found)
    assert [part for _, _, part in where(found)] == ["test"] * 2 + ["train"] * 2 + ["val"] * 2
    assert found.notes == found.warnings == ()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("Train", "valid", "Testing"),
        ("training", "Validation", "TEST"),
        ("training_set", "dev-set", "test_set"),
        ("Train Set", "val", "test"),
        ("trainset", "validationset", "testset"),
    ],
)
def test_other_spellings_of_the_parts(tmp_path: Path, train: str, val: str, test: str) -> None:
    names = [f"{part}/{name}/1.png" for part in (train, val, test) for name in ("cat", "dog")]
    found = read(folder(tmp_path, *names))
    assert found.class_names == ("cat", "dog")
    assert {key.split("/")[0]: part for key, _, part in where(found)} == {
        train: "train",
        val: "val",
        test: "test",
    }
    for name, part in ((train, "train"), (val, "val"), (test, "test")):
        assert (f"the folder '{name}' is the {part} split" in found.notes) == (name != part)


def splits_of(found: Found) -> dict[str, str | None]:
    """The split of each picture."""
    return {key: part for key, _, part in where(found)}


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("seg_train", "seg_val", "seg_test"),
        ("seg_train/seg_train", "seg_val/seg_val", "seg_test/seg_test"),
        ("train_images", "val_images", "test_images"),
        ("TrainImages", "ValImages", "TestImages"),
        ("trainimages", "validimgs", "testdata"),
        ("flowers_train", "flowers_valid", "flowers_test"),
        ("train-flowers", "val-flowers", "test-flowers"),
        ("1_train", "2_val", "3_test"),
        ("01 Training", "02 Validation", "03 Testing"),
        ("train2017", "val2017", "test2017"),
        ("training_set/training_set", "val/val", "test_set/test_set"),
        ("train/train_images", "val/val_images", "test/test_images"),
        ("train/images", "val/images", "test/images"),
        ("train", "val", "test_images"),
        ("Flowers (train)", "Flowers (dev)", "Flowers (holdout)"),
        ("бабочки_train", "бабочки_val", "бабочки_test"),
    ],
)
def test_splits_under_names_that_are_nearly_right(
    tmp_path: Path, train: str, val: str, test: str
) -> None:
    names = [f"{part}/{name}/1.png" for part in (train, val, test) for name in ("cat", "dog")]
    found = read(folder(tmp_path, *names, "seg_pred/1.png"))
    assert found.class_names == ("cat", "dog")
    wanted = {train: "train", val: "val", test: "test"}
    assert splits_of(found) == {
        f"{place}/{name}/1.png": part for place, part in wanted.items() for name in ("cat", "dog")
    }
    assert f"the folder '{test}' is the test split" in found.notes
    assert "'seg_pred'" in found.warnings[0]


def test_masks_beside_the_splits_are_not_used(tmp_path: Path) -> None:
    found = read(
        folder(
            tmp_path,
            *(f"{part}_images/{c}/1.png" for part in ("train", "test") for c in ("cat", "dog")),
            *(f"train_masks/{c}/1.png" for c in ("cat", "dog")),
        )
    )
    assert set(splits_of(found).values()) == {"train", "test"}
    assert "'train_masks'" in found.warnings[0]


@pytest.mark.parametrize(
    "parts", [("train", "test"), ("cat_train", "cat_test"), ("1. Train", "2. Val")]
)
def test_splits_inside_the_classes(tmp_path: Path, parts: tuple[str, str]) -> None:
    inside = [f"{name}/{part}" for name in ("cat", "dog") for part in parts]
    found = read(folder(tmp_path, *(f"{place}/x/1.png" for place in inside)))
    assert found.class_names == ("cat", "dog")
    wanted = ["val" if "Val" in parts[1] else "test", "train"] * 2
    assert sorted(filter(None, splits_of(found).values())) == sorted(wanted)
    assert "the splits lie in the class folders" in found.notes[0]


REFUSED = {
    "folds": (
        [f"fold_{i}/{c}/1.png" for i in (1, 2, 3) for c in ("cat", "dog")],
        "'fold_1' is a split or a fold",
    ),
    "folds with splits in them": (
        [f"Fold{i}/{p}/{c}/1.png" for i in (1, 2) for p in ("train", "val") for c in "ab"],
        "each with splits in it: 'train', 'val'; name one of them",
    ),
    "several data sets": (
        [f"{s}/{p}/{c}/1.png" for s in ("here", "there") for p in ("train", "val") for c in "ab"],
        "each with splits and classes in it; name one of them",
    ),
    "splits without class folders": (
        ["train_images/1.png", "test_images/1.png"],
        "no class folders in 'train_images'",
    ),
    "test pictures beside the classes": (
        ["cat/1.png", "dog/1.png", "test_images/1.png"],
        "'test_images', by the name a split and no class",
    ),
    "splits of each class beside each other": (
        [f"{c}_{p}/1.png" for c in ("cat", "dog") for p in ("train", "test")],
        "one folder for each split, with the classes in it",
    ),
    "pictures beside the splits in a class": (
        [f"{c}/{p}/1.png" for c in ("cat", "dog") for p in ("train", "test", "ground_truth")],
        "splits inside the classes",
    ),
    "pictures loose beside the splits in a class": (
        ["cat/train/1.png", "cat/test/1.png", "dog/1.png"],
        "splits inside the classes",
    ),
    "a test split in every class": (
        [f"{c}/{f}" for c in ("cat", "dog") for f in ("1.png", "test/1.png")],
        "splits inside the classes: 'cat/test', 'dog/test'",
    ),
    "splits deep inside": (
        [f"{c}/2021/{p}/1.png" for c in ("cat", "dog") for p in ("train", "test")],
        "splits inside the classes",
    ),
    "splits in splits": (
        [f"train/{c}/{p}/1.png" for c in ("cat", "dog") for p in ("train", "val")],
        "splits again inside the classes",
    ),
    "splits whose names have nothing else in common": (
        [f"{p}/{c}/1.png" for p in ("train_old", "test_new") for c in ("cat", "dog")],
        "those are the classes, it seems",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_layouts_that_would_mix_the_splits_are_refused(name: str, tmp_path: Path) -> None:
    files, says = REFUSED[name]
    text = refused(folder(tmp_path, *files))
    assert says in text
    assert "DATA/train/cat/1.jpg" in text


@pytest.mark.parametrize(
    "classes",
    [
        ("train_station", "test_tube"),
        ("freight_train", "bus"),
        ("fold_1", "fold_2"),
        ("set 1", "set 2"),
        ("contest", "latest", "strain"),
        ("toy/train", "toy/car", "animal/dog"),
        ("cat/2021", "cat/2022", "dog/2021", "dog/2022"),
    ],
)
def test_classes_that_only_look_like_splits_stay_classes(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    found = read(folder(tmp_path, *(f"{name}/1.png" for name in classes)))
    assert set(found.class_names) == {name.partition("/")[0] for name in classes}
    assert set(splits_of(found).values()) == {None}


def test_the_same_folders_in_all_classes_are_warned_of(tmp_path: Path) -> None:
    names = [f"{site}/{c}/1.png" for site in ("north", "south") for c in ("cat", "dog")]
    found = read(folder(tmp_path, *names))
    assert found.class_names == ("north", "south")
    assert "the same folders in them, 'cat', 'dog'" in found.warnings[0]
    years = [f"{c}/{year}/1.png" for c in ("cat", "dog") for year in ("2021", "2022")]
    assert read(folder(tmp_path / "years", *years)).warnings == ()


def test_two_folders_for_one_part(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png")
    text = refused(tmp_path)
    assert "'val', 'valid'" in text


def test_folders_beside_the_parts_are_named(tmp_path: Path) -> None:
    found = read(folder(tmp_path, "train/a/1.png", "train/b/1.png", "images to test/1.png"))
    assert found.class_names == ("a", "b")
    assert len(found.warnings) == 1
    assert "'images to test'" in found.warnings[0]


def test_an_unlabelled_test_part(tmp_path: Path) -> None:
    found = read(folder(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png", "test/2.png"))
    assert {entry.part for entry in found.entries} == {"train"}
    assert found.warnings == ("'test' has 2 pictures but no class folders: not labelled, not used",)


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    folder(tmp_path, "train/Robin/1.png", "train/Wren/1.png", "val/Robbin/1.png")
    text = refused(tmp_path)
    assert "'Robbin'" in text
    assert "did you mean 'Robin'?" in text


def test_a_class_that_train_has_in_another_unicode_form(tmp_path: Path) -> None:
    folder(tmp_path, "train/é/1.png", "train/a/1.png", "val/e\u0301/1.png")
    if len(list((tmp_path / "train").iterdir())) == 2:
        assert "another Unicode form" in refused(tmp_path)


def test_a_class_folder_that_is_empty_in_train_only(tmp_path: Path) -> None:
    folder(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/", "test/c/1.png")
    assert "'c'" in refused(tmp_path)


def test_a_class_that_val_lacks(tmp_path: Path) -> None:
    found = read(folder(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/"))
    assert found.class_names == ("a", "b")
    assert any(
        "'val' has no pictures of 1 class that 'train' has: 'b'" in w for w in found.warnings
    )


@pytest.mark.parametrize("name", ["train", "test", "dev", "Validation"])
def test_a_class_may_be_called_like_a_part(tmp_path: Path, name: str) -> None:
    found = read(folder(tmp_path, f"{name}/1.png", "car/1.png", "bus/1.png"))
    assert found.class_names == tuple(sorted((name, "car", "bus")))
    assert {entry.part for entry in found.entries} == {None}
    assert found.notes == (f"the folder '{name}' is a class here, not a split",)


def test_parts_without_class_folders(tmp_path: Path) -> None:
    text = refused(folder(tmp_path, "train/1.png", "test/1.png"))
    assert "no class folders in 'train'" in text


def test_parts_without_train(tmp_path: Path) -> None:
    text = refused(folder(tmp_path, "val/a/1.png", "val/b/1.png", "test/a/1.png", "test/b/1.png"))
    assert "no 'train'" in text


def test_a_test_part_beside_the_classes_is_not_a_class(tmp_path: Path) -> None:
    text = refused(folder(tmp_path, "a/1.png", "b/1.png", "test/a/1.png", "test/b/1.png"))
    assert "'test'" in text and "'train'" in text


def test_pictures_outside_the_class_folders_are_named(tmp_path: Path) -> None:
    found = read(folder(tmp_path, *FLAT, "stray.png"))
    assert len(found.entries) == 3
    assert "'stray.png'" in found.warnings[0]
    other = tmp_path / "other"
    found = read(folder(other, "train/a/1.png", "train/b/1.png", "train/stray.png", "x.png"))
    assert len(found.entries) == 2
    assert len(found.warnings) == 2


# What is ignored, and what is not


def test_rubbish_is_ignored_and_counted(tmp_path: Path) -> None:
    folder(
        tmp_path, *FLAT, ".DS_Store", ".git/cat/1.png", "__MACOSX/cat/1.png", "cat/._1.png",
        "cat/.ipynb_checkpoints/1.png", "cat/Thumbs.db", "dog/desktop.ini",
    )  # fmt: skip
    found = read(tmp_path)
    assert [key for key, _, _ in where(found)] == list(FLAT)
    assert found.notes == ("ignored 7 hidden or system files and folders",)
    assert found.warnings == ()


def test_files_that_are_no_pictures_are_counted_by_kind(tmp_path: Path) -> None:
    folder(tmp_path, *FLAT)
    folder(tmp_path, "cat/a.txt", "cat/b.txt", "dog/c.CSV", "labels", data=b"text")
    found = read(tmp_path)
    assert len(found.entries) == 3
    assert found.notes == ("ignored 4 files that are no pictures: .txt 2, .csv 1, no extension 1",)


@pytest.mark.parametrize("name", ["cat/noextension", "cat/a.jpg_large", "cat/b.2021"])
def test_pictures_without_a_pictures_extension_are_taken(tmp_path: Path, name: str) -> None:
    found = read(folder(tmp_path, *FLAT, name))
    assert name in [entry.key for entry in found.entries]


@pytest.mark.parametrize(
    "name",
    [
        *("#recycle", "@Recycle", "@Recently-Snapshot", "System Volume Information", "found.000"),
        *("@eaDir", "$RECYCLE.BIN", "RECYCLER", "LOST.DIR", "~snapshot", "Network Trash Folder"),
    ],
)
def test_the_trash_of_network_drives_is_no_class(tmp_path: Path, name: str) -> None:
    found = read(folder(tmp_path, *FLAT, f"{name}/cat/1.png", f"cat/{name}/2.png"))
    assert [key for key, _, _ in where(found)] == list(FLAT)
    assert found.notes == ("ignored 2 hidden or system files and folders",)


@pytest.mark.parametrize("name", ["trash", "recycle", "found", "snapshot", "found.0001"])
def test_classes_may_be_about_trash(tmp_path: Path, name: str) -> None:
    assert name in read(folder(tmp_path, *FLAT, f"{name}/1.png")).class_names


@pytest.mark.parametrize(
    "name",
    [
        *("1.png.ovr", "1.png_original", "1.png.bak", "1.png~", "1.png.orig", "1.thm"),
        *("1.png.crdownload", "1.xmp", "1.png.tmp"),
    ],
)
def test_files_beside_pictures_are_none_whatever_is_in_them(tmp_path: Path, name: str) -> None:
    found = read(folder(tmp_path, *FLAT, f"cat/{name}"))
    assert [key for key, _, _ in where(found)] == list(FLAT)
    assert "ignored 1 file that is no picture" in found.notes[0]


@pytest.mark.parametrize("name", ["1.dng", "1.NEF", "1.cr2", "1.ARW"])
def test_raw_photographs_are_told_of(tmp_path: Path, name: str) -> None:
    found = read(folder(tmp_path, *FLAT, f"cat/{name}"))
    assert [key for key, _, _ in where(found)] == list(FLAT)
    assert f"raw photographs, which are not supported ({name[1:].lower()} 1)" in found.notes[0]


def test_drives_whose_numbers_of_files_repeat_lose_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.stat
    root = folder(tmp_path / "drive", *FLAT, "cat/deep/3.png")

    def stat(path: object, **options: object) -> os.stat_result:
        facts = whole(path, **options)
        return os.stat_result((facts[0], 0, 1, *facts[3:]))

    monkeypatch.setattr(os, "stat", stat)
    assert len(where(read(root))) == 4


def test_broken_pictures_are_kept_to_be_reported(tmp_path: Path) -> None:
    folder(tmp_path, *FLAT)
    folder(tmp_path, "cat/broken.JPG", "dog/old.psd", data=b"")
    (tmp_path / "cat/nowhere.png").symlink_to("gone.png")
    found = read(tmp_path)
    assert {"cat/broken.JPG", "dog/old.psd", "cat/nowhere.png"} < {e.key for e in found.entries}


def test_a_fifo_does_not_stop_the_scan(tmp_path: Path) -> None:
    folder(tmp_path, *FLAT)
    os.mkfifo(tmp_path / "cat" / "pipe")
    assert len(read(tmp_path).entries) == 3


def test_an_empty_class_is_left_out_and_named(tmp_path: Path) -> None:
    found = read(folder(tmp_path, *FLAT, "emu/", "fox/deep/"))
    assert found.class_names == ("cat", "dog")
    assert "'emu', 'fox'" in found.warnings[0]


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path, *FLAT, "cat/locked/3.png")
    scan = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("fieldmark.data.folder.os.scandir", locked)  # chmod does not stop root
    found = read(tmp_path)
    assert len(found.entries) == 3
    assert found.warnings == (
        "the folder 'cat/locked' cannot be read (permission denied); what is in it is not used",
    )


# Links


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    folder(tmp_path / "store", "cats/1.png", "one.png")
    folder(tmp_path / "data", "dog/1.png")
    (tmp_path / "data/cat").symlink_to("../store/cats")
    (tmp_path / "data/dog/2.png").symlink_to("../../store/one.png")
    found = read(tmp_path / "data")
    assert [key for key, _, _ in where(found)] == ["cat/1.png", "dog/1.png", "dog/2.png"]
    assert found.load("cat/1.png").decode(PictureLimits()).pixels.shape == (4, 5, 3)


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "sub"])
def test_loops_of_links_end_and_mix_no_classes(tmp_path: Path, target: str) -> None:
    root = folder(tmp_path / "data", *FLAT, "cat/sub/3.png")
    (root / "cat/sub/loop").symlink_to(target)
    (root / "dog/self").symlink_to("self")
    (root / "dog/up").symlink_to("..")
    found = read(root)
    assert [key for key, _, _ in where(found)] == sorted((*FLAT, "cat/sub/3.png"))


def test_a_folder_linked_twice_in_a_class_counts_once_under_its_own_name(tmp_path: Path) -> None:
    root = folder(tmp_path, "a/z/1.png", "b/1.png")
    (root / "a/b").symlink_to("z")
    (root / "a/c").symlink_to("z")
    assert [entry.key for entry in read(root).entries] == ["a/z/1.png", "b/1.png"]


def test_parts_may_share_a_folder_by_link(tmp_path: Path) -> None:
    root = folder(tmp_path, "train/a/1.png", "train/b/1.png")
    (root / "val").symlink_to("train")
    assert [entry.part for entry in read(root).entries] == ["train", "train", "val", "val"]


# Names


NAMES = [
    "猫",
    "戀",
    "𠮷",
    "🐈‍⬛",
    "Ｗ",
    "שלום",
    "a b",
    "a,b",
    'a"b',
    "-x",
    "_x",
    "...x"[3:],
    "x" * 255,
]


def test_names_of_every_script_stay_as_they_are(tmp_path: Path) -> None:
    found = read(folder(tmp_path, *(f"{name}/1.png" for name in NAMES)))
    assert found.class_names == tuple(sorted(NAMES))
    assert found.warnings == ()
    for entry in found.entries:
        assert found.load(entry.key).decode(PictureLimits()).pixels.shape == (4, 5, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    names = [b"\xff/\xfe.png", "猫".encode("gbk") + b"/1.png", b"a\nb/\x1b[31m.png", b"ok/1.png"]
    found = read(folder(tmp_path, *names))
    assert len(found.class_names) == 4
    assert sorted(os.fsencode(entry.key) for entry in found.entries) == sorted(names)
    for entry in found.entries:
        assert found.load(entry.key).decode(PictureLimits()).pixels.shape == (4, 5, 3)
    folder(tmp_path, b"\xfd/", b"\xfc.png")
    warnings = " ".join(read(tmp_path).warnings)
    assert r"'\xfd'" in warnings and r"'\xfc.png'" in warnings


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_errors_can_be_printed_whatever_the_names(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff\x1b[31m\xe2\x80\xae")
    assert r"\xff\x1b[31m\u202e" in refused(tmp_path / odd)
    assert r"\xff\x1b[31m\u202e" in refused(folder(tmp_path / odd, f"{odd}/1.png"))


def test_one_name_in_two_unicode_forms(tmp_path: Path) -> None:
    nfc, nfd = "한글", unicodedata.normalize("NFD", "한글")
    folder(tmp_path, f"{nfc}/1.png", f"{nfd}/1.png", "x/1.png")
    if len(list(tmp_path.iterdir())) == 3:  # a file system may merge them
        found = read(tmp_path)
        assert len(found.class_names) == 3
        assert len(found.warnings) == 1
        assert "the same name in two Unicode forms" in found.warnings[0]


def test_names_that_differ_by_case(tmp_path: Path) -> None:
    folder(tmp_path, "Cat/1.png", "cat/1.png", "dog/1.png")
    if len(list(tmp_path.iterdir())) == 3:
        found = read(tmp_path)
        assert found.class_names == ("Cat", "cat", "dog")
        assert len(found.warnings) == 1
        assert "'Cat', 'cat'" in found.warnings[0] and "Windows" in found.warnings[0]


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("猫 𠮷 é", "猫 𠮷 é"),
        ("🐈‍⬛", "🐈‍⬛"),
        ("שלום", "שלום"),
        ("a\nb\tc\x1b\x7f\x9b", r"a\nb\tc\x1b\x7f\x9b"),
        ("\udcff\udc80\ud800", r"\xff\x80\ud800"),
        ("gnp.\u202eexe\u2066\u200f", r"gnp.\u202eexe\u2066\u200f"),
        ("a\u2028b", r"a\u2028b"),
    ],
)
def test_shown(name: str, want: str) -> None:
    assert shown(name) == want
    shown(name).encode("utf-8")


# Errors


def test_no_such_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, "birds/a/1.png")
    monkeypatch.chdir(tmp_path)
    text = refused(Path("brids"))
    assert text.startswith("there is no folder brids; did you mean 'birds'?")
    assert "DATA/train/cat/1.jpg" in text


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    text = refused(folder(tmp_path, "a.zip") / "a.zip")
    assert "is a file" in text and "DATA/cat/1.jpg" in text


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fieldmark.data.folder.os.scandir", denied)
    assert "permission denied" in refused(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    text = refused(tmp_path)
    assert text.startswith(f"there are no pictures in {tmp_path}")
    assert "DATA/cat/1.jpg" in text
    folder(tmp_path, "a/1.txt", "b/2.txt", data=b"text")
    assert ".txt 2" in refused(tmp_path)


def test_pictures_without_class_folders(tmp_path: Path) -> None:
    text = refused(folder(tmp_path, "1.png", "2.png"))
    assert "2 pictures but no class folders" in text


def test_a_single_class(tmp_path: Path) -> None:
    text = refused(folder(tmp_path, "cat/1.png"))
    assert "only one class, 'cat'" in text
    assert "add another class folder" in text


@pytest.mark.parametrize("inside", [("cat/1.png", "dog/1.png"), ("train/cat/1.png",)])
def test_a_folder_too_high(tmp_path: Path, inside: tuple[str, ...]) -> None:
    root = folder(tmp_path, *(f"pets/{name}" for name in inside), "__MACOSX/x")
    assert f"name {root / 'pets'} instead" in refused(root)


def test_a_single_class_in_train(tmp_path: Path) -> None:
    text = refused(folder(tmp_path, "train/cat/1.png", "test/cat/1.png"))
    assert f"{tmp_path}/train has only one class, 'cat'" in text


def test_nothing_is_written(tmp_path: Path) -> None:
    folder(tmp_path, *FLAT)
    before = sorted((p, p.lstat().st_mtime_ns) for p in tmp_path.rglob("*"))
    found = read(tmp_path)
    found.load("cat/1.png").decode(PictureLimits())
    assert sorted((p, p.lstat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
