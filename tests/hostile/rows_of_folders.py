"""Folders that are laid out otherwise than they should be."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.hostile.place import TRAIN, Answer, Place, Row, picture

TREE = "DATA/cat/1.jpg"


def missing(place: Place) -> list[str]:
    return ["train", str(place.root / "nowhere")]


def a_file(place: Place) -> list[str]:
    file = place.data / "pictures.zip"
    file.write_bytes(b"PK\3\4")
    return ["train", str(file)]


def empty(place: Place) -> list[str]:
    return place.train()


def loose(place: Place) -> list[str]:
    for seed in range(5):
        (place.data / f"{seed}.png").write_bytes(picture(seed))
    return place.train()


def loose_to_predict(place: Place) -> list[str]:
    pictures = place.given / "loose"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(picture(1))
    return place.predict(pictures)


def one_class(place: Place) -> list[str]:
    place.classes(cat=9)
    return place.train()


def thin_classes(place: Place) -> list[str]:
    place.classes(cat=9, dog=9, lone=1)
    (place.data / "void").mkdir()
    return place.train()


def lone_is_told(place: Place, _: Answer) -> bool:
    rows = place.new("evaluation.json")["parts"]["val"]["per_class"]
    lone = next(row for row in rows if row["name"] == "lone")
    in_train = [row for row in place.new("data.json")["parts"]["train"] if row[0] == "lone/18.png"]
    return (lone["n"], lone["recall"]) == (0, None) and len(in_train) == 1


def rubbish(place: Place) -> list[str]:
    place.classes(cat=8, dog=8)
    for folder in (".ipynb_checkpoints", "__MACOSX"):
        (place.data / folder).mkdir()
        (place.data / folder / "x.png").write_bytes(picture(1))
    for name in (".DS_Store", "._x.jpg", "Thumbs.db", "desktop.ini"):
        (place.data / "cat" / name).write_bytes(b"x")
    return place.look()


def nested(place: Place) -> list[str]:
    place.classes(place.data / "cat", **{"2021": 5, "2022": 5})
    place.classes(place.data / "dog", start=10, **{"2021": 5, "2022": 5})
    return place.look()


def parts(place: Place) -> list[str]:
    place.classes(place.data / "train", cat=6, dog=6)
    place.classes(place.data / "val", start=20, cat=2)
    place.classes(place.data / "test", start=30, cat=2, dog=2)
    return place.look()


def strange_class(place: Place) -> list[str]:
    place.classes(place.data / "train", cat=6, dog=6)
    place.classes(place.data / "val", start=20, cat=2, fish=2)
    return place.train()


def numbers(place: Place) -> list[str]:
    place.classes(**{"1": 5, "10": 5, "2": 5})
    return place.train()


def in_order(place: Place, _: Answer) -> bool:
    return bool(place.new("model.json")["class_names"] == ["1", "10", "2"])


def _leak(place: Place) -> None:
    place.classes(place.data / "train", cat=6, dog=6)
    place.classes(place.data / "val", start=20, cat=2, dog=2)
    os.link(place.data / "train/cat/0.png", place.data / "val/cat/copy.png")


def leak(place: Place) -> list[str]:
    _leak(place)
    return place.look()


def leak_refused(place: Place) -> list[str]:
    _leak(place)
    return place.train("--fail-on-leak")


def _many(place: Place, classes: int, each: int) -> list[str]:
    contents = [picture(seed) for seed in range(64)]
    stock = place.given / "stock"
    stock.mkdir()
    for seed, content in enumerate(contents):
        (stock / str(seed)).write_bytes(content)
    for label in range(classes):
        folder = place.data / f"class {label:03d}"
        folder.mkdir()
        for number in range(each):
            source = stock / str((label * each + number) % 64)
            os.link(source, folder / f"{number}.png")
    return place.look()


def many(place: Place) -> list[str]:
    return _many(place, 800, 5)


def very_many(place: Place) -> list[str]:
    return _many(place, 800, 50)


def link_to_itself(place: Place) -> list[str]:
    place.classes(cat=8, dog=8)
    (place.data / "cat" / "again").symlink_to(place.data / "cat")
    (place.data / "dog" / "up").symlink_to(place.data)
    (place.data / "loop").symlink_to("loop")
    return place.look()


def broken_links(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    (place.data / "cat" / "gone.png").symlink_to(place.root / "nowhere.png")
    (place.data / "dog" / "self.png").symlink_to("self.png")
    return place.look()


def special_files(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    os.mkfifo(place.data / "cat" / "pipe.png")
    (place.data / "dog" / "zero.png").symlink_to("/dev/zero")
    (place.data / "dog" / "tty.png").symlink_to("/dev/tty")
    here = Path.cwd()
    os.chdir(place.data / "cat")  # a socket's whole path may have 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("talk.png")
    finally:
        os.chdir(here)
    return place.look()


def a_folder_called_picture(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    place.classes(place.data / "cat" / "more.jpg", start=50, inside=2)
    return place.look()


def out_inside_the_data(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    return ["train", str(place.data), *TRAIN, "--out", str(place.data / "run")]


def in_the_data(place: Place) -> list[str]:
    """As many do: change into the folder of pictures, and train on the current one."""
    place.classes(place.work, cat=9, dog=9)
    return ["train", str(place.work), *TRAIN]


def out_is_the_data(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    return ["train", str(place.data), *TRAIN, "--out", str(place.data)]


def out_is_a_file(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    (place.given / "run").write_bytes(b"mine")
    return ["train", str(place.data), *TRAIN, "--out", str(place.given / "run")]


def csv_over_a_picture(place: Place) -> list[str]:
    file = place.given / "a.png"
    file.write_bytes(picture(1))
    return [*place.predict(file), "--csv", str(file)]


def run_as_data(place: Place) -> list[str]:
    return ["train", str(place.model()), *TRAIN]


def only_test(place: Place) -> list[str]:
    place.classes(place.data / "test", cat=5, dog=5)
    place.classes(place.data / "val", start=20, cat=5, dog=5)
    return place.train()


def deep(place: Place) -> list[str]:
    place.classes(cat=8)
    folder = place.data / "dog" / "/".join(["deep"] * 300)
    folder.mkdir(parents=True)
    for seed in range(20, 28):
        (folder / f"{seed}.png").write_bytes(picture(seed))
    return place.look()


def two_pictures(place: Place) -> list[str]:
    place.classes(cat=1, dog=1)
    return place.train()


def all_alike(place: Place) -> list[str]:
    place.classes(cat=1, dog=1)
    for label in ("cat", "dog"):
        for number in range(10):
            (place.data / label / f"same {number}.png").write_bytes(picture(77))
    return place.look()


def unused_csv(place: Place) -> list[str]:
    place.classes(cat=8, dog=8)
    (place.data / "labels.csv").write_text("file,label\ncat/0.png,dog\n", encoding="utf-8")
    return place.look()


def trees(*places: str) -> Callable[[Place], list[str]]:
    """A few pictures in each of these folders."""

    def make(place: Place) -> list[str]:
        place.folders(dict.fromkeys(places, 4))
        return place.look()

    return make


def beside_pictures(place: Place) -> list[str]:
    place.classes(cat=8, dog=8)
    for name in ("0.png.ovr", "0.png_original", "0.png~", "0.dng"):
        (place.data / "cat" / name).write_bytes(picture(100))
    return place.look()


def pointers(place: Place) -> list[str]:
    for name in ("cat", "dog"):
        (place.data / name).mkdir()
        for number in range(6):
            text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{number}\nsize 9040\n"
            (place.data / name / f"{number}.png").write_bytes(text.encode())
    return place.look()


def brackets_to_predict(place: Place) -> list[str]:
    folder = place.given / "set [1]"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(1))
    return place.predict(f"{folder}/*.png")


BOTH = ("cat", "dog")

ROWS = (
    Row(
        "+",
        "splits called seg_train/seg_train and seg_test/seg_test",
        trees(*(f"seg_{p}/seg_{p}/{c}" for p in ("train", "test") for c in BOTH)),
        0,
        ("2 classes (cat, dog)", "'seg_test/seg_test' is the test split", "test 8"),
    ),
    Row(
        "+",
        "splits called 1_train and 2_val",
        trees(*(f"{p}/{c}" for p in ("1_train", "2_val") for c in BOTH)),
        0,
        ("2 classes (cat, dog)", "train 8, val 8"),
    ),
    Row(
        "+",
        "splits inside the classes",
        trees(*(f"{c}/{p}" for p in ("train", "val", "test") for c in BOTH)),
        0,
        ("2 classes (cat, dog)", "train 8, val 8, test 8", "lie in the class folders"),
    ),
    Row(
        "+",
        "splits inside the classes, with masks beside them",
        trees(*(f"{c}/{p}" for p in ("train", "test", "ground_truth") for c in BOTH)),
        3,
        ("splits inside the classes", TREE),
    ),
    Row(
        "+",
        "three folds",
        trees(*(f"fold_{i}/{c}" for i in (1, 2, 3) for c in BOTH)),
        3,
        ("'fold_1'", "those are the classes", TREE),
    ),
    Row(
        "+",
        "train_images and test_images without classes",
        trees("train_images", "test_images"),
        3,
        ("no class folders in 'train_images'", TREE),
    ),
    Row(
        "+",
        "a split of each class beside the other's",
        trees(*(f"{c}_{p}" for c in BOTH for p in ("train", "test"))),
        3,
        ("'cat_test'", "one folder for each split", TREE),
    ),
    Row(
        "+",
        "the trash of network drives",
        trees(*BOTH, "#recycle/cat", "@Recycle", "@Recently-Snapshot", "System Volume Information"),
        0,
        ("2 classes (cat, dog)", "ignored 4 hidden or system files and folders"),
    ),
    Row(
        "+",
        "overviews, backups and raw photographs beside the pictures",
        beside_pictures,
        0,
        ("train 12, val 2, test 2", "ignored 3 files that are no pictures", "(.dng 1)"),
    ),
    Row("+", "pictures left in Git LFS", pointers, 3, ("12 of 12 pictures", "git lfs pull")),
    Row("+", "a pattern below a folder with brackets", brackets_to_predict, 0, ("set [1]/a.png",)),
    Row("1", "no such folder", missing, 3, ("nowhere", TREE)),
    Row("1", "a file instead of a folder", a_file, 3, ("pictures.zip", "unpack it", TREE)),
    Row("1", "an empty folder", empty, 3, ("data", TREE)),
    Row("2", "pictures without class folders", loose, 3, ("5 pictures", "one folder a class")),
    Row("2", "pictures without class folders, to predict", loose_to_predict, 0, ("loose/a.png",)),
    Row("3", "one class only", one_class, 3, ("'cat'", "at least two", TREE)),
    Row(
        *("4", "a class without pictures, one with a single one", thin_classes, 0),
        ("without pictures", "'void'", "no val picture of lone"),
        "its picture is in train; n = 0 and no recall for it",
        lone_is_told,
    ),
    Row(
        "5",
        "hidden and system files and folders",
        rubbish,
        0,
        ("2 classes (cat, dog)", "ignored 6 hidden or system files and folders"),
    ),
    Row("6", "folders below the class folders", nested, 0, ("2 classes (cat, dog)",)),
    Row(
        "7",
        "train, val and test; val lacks a class",
        parts,
        0,
        ("train 12, val 2, test 4", "no pictures of 1 class", "'dog'"),
    ),
    Row("7", "val has a class that train lacks", strange_class, 3, ("'fish'", "add some, or move")),
    Row("8", "classes called 1, 10, 2", numbers, 0, (), "stored in the order 1, 10, 2", in_order),
    Row(
        "9",
        "the same picture in train and val",
        leak,
        0,
        ("in two splits", "train/cat/0.png = val/cat/copy.png"),
    ),
    Row(
        "9",
        "the same, with --fail-on-leak",
        leak_refused,
        3,
        ("train/cat/0.png = val/cat/copy.png", "Remove the copies"),
    ),
    Row("10", "800 classes of 5 pictures", many, 0, ("800 classes",)),
    Row(
        "10",
        "800 classes of 50 pictures",
        very_many,
        0,
        ("800 classes",),
        slow=True,
    ),
    Row(
        "+",
        "links that lead to the class, to the top and to themselves",
        link_to_itself,
        0,
        ("2 classes (cat, dog)",),
    ),
    Row("+", "links that lead nowhere", broken_links, 0, ("cannot be read 2",)),
    Row(
        "+",
        "a pipe, a socket, /dev/zero and /dev/tty called .png",
        special_files,
        0,
        ("cannot be read 4",),
    ),
    Row(
        "+",
        "a folder called more.jpg in a class folder",
        a_folder_called_picture,
        0,
        ("train 15, val 2, test 3",),
    ),
    Row(
        "+",
        "--out inside the folder of pictures",
        out_inside_the_data,
        2,
        ("inside the pictures", "--out"),
    ),
    Row(
        "+",
        "--out is the folder of pictures",
        out_is_the_data,
        2,
        ("inside the pictures", "--out"),
    ),
    Row(
        "+",
        "no --out, and the current folder is that of the pictures",
        in_the_data,
        2,
        ("inside the pictures", "--out"),
    ),
    Row("+", "--out is a file", out_is_a_file, 6, ("run", "choose a writable place with --out")),
    Row(
        "+",
        "predict --csv names one of the pictures",
        csv_over_a_picture,
        2,
        ("a.png", "another file"),
    ),
    Row("+", "a run directory as data", run_as_data, 3, ("no class folders", TREE)),
    Row("+", "val and test without train", only_test, 3, ("no 'train' with class folders",)),
    Row("+", "pictures 300 folders deep", deep, 0, ("2 classes (cat, dog)",)),
    Row("+", "two pictures in all", two_pictures, 3, ("too few", "at least two of each class")),
    Row("+", "the same picture ten times in both classes", all_alike, 0, ("labelled two ways",)),
    Row(
        "+",
        "a table of other labels beside the classes",
        unused_csv,
        0,
        ("ignored 1 file that is no picture: .csv 1",),
    ),
)
