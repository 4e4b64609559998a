"""Labels from a table: as people's programs write them, and as they should not."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

import fieldmark
from fieldmark.data import find
from fieldmark.errors import DataError
from tests.making import bright_halves

FIXED = {"model": "small_cnn(width=2)", "size": 8, "batch_size": 8, "epochs": 2, "threads": 1}
NAMES = ("a/1.png", "a/2.png", "b/3.png", "b/4.png")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with four pictures in two folders."""
    source = next((bright_halves(tmp_path / "source") / "train").rglob("*.png"))
    for name in NAMES:
        (tmp_path / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "t" / name)
    return tmp_path / "t"


def table(place: Path, text: str | bytes, name: str = "labels.csv") -> str:
    data = text.encode() if isinstance(text, str) else text
    (place / name).write_bytes(data)
    return str(place / name)


def said(path: str) -> dict[str, tuple[str, str | None]]:
    """Label and split of each picture."""
    found = find(path)
    return {e.key: (found.class_names[e.label], e.part) for e in found.entries}


def plain(path: str) -> dict[str, str]:
    return {key: label for key, (label, _) in said(path).items()}


WANTED = dict(zip(NAMES, ("cat", "cat", "dog", "dog"), strict=True))
ROWS = "a/1.png,cat\na/2.png,cat\nb/3.png,dog\nb/4.png,dog\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("path,label\n" + ROWS, "x.csv"),
        (ROWS, "no_header.csv"),
        ("label;filename\n" + "".join(f"{v};{k}\n" for k, v in WANTED.items()), "semicolons.csv"),
        ("sep=;\nfile;class\n" + ROWS.replace(",", ";"), "excel.csv"),
        ("\ufeffFile Name,Species\n" + ROWS, "bom.csv"),
        (("path,label\n" + ROWS).encode("utf-16"), "utf16.csv"),
        (("path,label\r\n" + ROWS).encode("utf-16-le"), "no_mark.csv"),
        ("path\tlabel\n" + ROWS.replace(",", "\t"), "x.tsv"),
        (ROWS.replace(",", " "), "list.txt"),
        ("n,path,label\n" + "".join(f"{i},{r}\n" for i, r in enumerate(ROWS.split())), "index.csv"),
        ('"path","label"\r\n' + ROWS.replace("\n", "\r\n") + "\r\n\r\n", "crlf.csv"),
        (
            "image_id,breed\n" + ROWS.replace(".png", "").replace("a/", "").replace("b/", ""),
            "k.csv",
        ),
        ("path,label\n" + ROWS.replace("a/", "a\\").replace("b/", ".\\b\\"), "windows.csv"),
        ("path,label\n" + ROWS.replace("a/", "/mnt/disk/set/a/"), "elsewhere.csv"),
        ("path,label\n" + ROWS.replace("cat", " cat "), "spaces.csv"),
        ("path,label\n" + ROWS + "a/1.png,cat\n", "double.csv"),
        ("path,label\n" + ROWS + "b/5.png,\n,dog\n", "unlabelled.csv"),
        ("id,cat,dog\na/1.png,1,0\na/2.png,1.0,0.0\nb/3.png,0,1\nb/4.png,0,1\n", "one_hot.csv"),
        (
            "".join(json.dumps({"file_name": k, "label": v}) + "\n" for k, v in WANTED.items()),
            "metadata.jsonl",
        ),
        (json.dumps([{"image": k, "class": v} for k, v in WANTED.items()]), "list.json"),
        (json.dumps(WANTED), "mapping.json"),
        (json.dumps([{"image": k, "class": [v]} for k, v in WANTED.items()]), "lists.json"),
    ],
)
def test_what_programs_write(place: Path, text: str | bytes, name: str) -> None:
    assert plain(table(place, text, name)) == WANTED


def test_a_folder_is_searched_only_where_no_path_leads_to_a_picture(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[str] = []

    def below(folder: Path) -> list[Path]:
        walked.append(str(folder))
        return []

    monkeypatch.setattr("fieldmark.data.table.pictures_below", below)
    assert plain(table(place, "path,label\n" + ROWS + "lost.png,dog\n"))["a/1.png"] == "cat"
    assert walked == []
    with pytest.raises(DataError, match="no column has names"):
        find(table(place, "path,label\nx.png,cat\ny.png,dog\n"))
    assert walked == [str(place)]


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16", "utf-8-sig"])
def test_names_in_chinese_as_excel_saves_them(place: Path, encoding: str) -> None:
    (place / "a" / "1.png").rename(place / "a" / "图片.png")
    text = "文件,label\n" + ROWS.replace("a/1.png", "a/图片.png").replace("cat", "山水")
    found = plain(table(place, text.encode(encoding)))
    assert found["a/图片.png"] == found["a/2.png"] == "山水"


@pytest.mark.parametrize("label", ["Käfer", "façade"])
def test_labels_of_europe_as_excel_saves_them(place: Path, label: str) -> None:
    data = ("path;label\n" + ROWS.replace(",", ";").replace("cat", label)).encode("cp1252")
    assert plain(table(place, data))["a/1.png"] == label


def test_quotes_and_line_breaks_in_names(place: Path) -> None:
    odd = 'a, "b"\nc.png'
    (place / "a" / "1.png").rename(place / "a" / odd)
    out = io.StringIO()
    csv.writer(out).writerows([("path", "label"), (f"a/{odd}", "cat"), ("b/3.png", "dog")])
    assert plain(table(place, out.getvalue())) == {f"a/{odd}": "cat", "b/3.png": "dog"}


def test_splits_are_those_of_the_table(place: Path) -> None:
    rows = ROWS.split()
    parts = ("train", "Validation", "", "TEST")
    text = "path,label,split\n" + "".join(f"{r},{p}\n" for r, p in zip(rows, parts, strict=True))
    found = said(table(place, text))
    assert [part for _, part in found.values()] == ["train", "val", "train", "test"]
    folds = "path,label,fold\n" + "".join(f"{r},{i}\n" for i, r in enumerate(rows))
    assert {part for _, part in said(table(place, folds)).values()} == {None}


def test_absolute_paths_and_whole_numbers(place: Path, tmp_path: Path) -> None:
    rows = "".join(f"{place / name},{i // 2}.0\n" for i, name in enumerate(NAMES))
    path = table(tmp_path, "path,target\n" + rows)
    assert plain(path) == {f"t/{name}": str(i // 2) for i, name in enumerate(NAMES)}
    (tmp_path / "apart").mkdir()
    path = table(tmp_path / "apart", "path,target\n" + rows)
    assert set(plain(path)) == {str(place / name) for name in NAMES}


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("", "x.csv", "is empty"),
        ("path,label\n", "x.csv", "no rows"),
        ("path,label\nx.png,cat\ny.png,dog\n", "x.csv", "no column has names of pictures"),
        ("path,label\nhttps://a.b/1.jpg,cat\nhttps://a.b/2.jpg,dog\n", "x.csv", "no column has"),
        ("path,label\n" + ROWS + "a/1.png,dog\n", "x.csv", "has two labels, cat and dog"),
        (
            "path,label,split\na/1.png,cat,train\na/1.png,cat,test\nb/3.png,dog,test\n",
            "x.csv",
            "has two splits, train and test",
        ),
        ("path,label\n" + ROWS.replace("dog", "cat"), "x.csv", "one class, cat"),
        (
            "path,label\n" + "".join(f"{n},c{i}\n" for i, n in enumerate(NAMES)),
            "x.csv",
            "different in each row",
        ),
        ("path,label\n" + ROWS + "a/2.png,cat,and,more\n", "x.csv", "row 6: 4 cells"),
        ("path,path\n" + ROWS, "x.csv", "two columns called path"),
        (
            "path,colour,shape\n"
            + ROWS.replace("\n", ",x\n").replace("b/3.png,dog,x", "b/3.png,dog,y"),
            "x.csv",
            "not clear which column",
        ),
        ('{"path": "a/1.png", "label": "cat"\n', "x.jsonl", "line 1: no JSON"),
        ("[1, 2]", "x.json", 'an object such as {"path"'),
        ('{"images": [], "annotations": []}', "x.json", "COCO"),
        (json.dumps([{"path": n, "label": ["cat", "dog"]} for n in NAMES]), "x.json", "several"),
        (b"path,label\n\x00\x00\x00,cat\n", "x.csv", "bytes of zero"),
    ],
)
def test_what_is_no_table_of_labels(place: Path, text: str | bytes, name: str, words: str) -> None:
    with pytest.raises(DataError, match=re.escape(words)):
        find(table(place, text, name))


def test_a_picture_that_is_not_there_is_counted_as_one_that_cannot_be_read(
    tmp_path: Path,
) -> None:
    pictures = bright_halves(tmp_path / "pictures")
    rows = [(p.relative_to(pictures).as_posix(), p.parent.name) for p in pictures.rglob("*.png")]
    rows.append(("train/up/lost.png", "up"))
    path = table(pictures, "path,label\n" + "".join(f"{k},{v}\n" for k, v in rows))
    run = fieldmark.train(path, out=tmp_path / "run", progress=False, **FIXED)
    assert "there is no such file 1" in (run.path / "log.txt").read_text()
    with pytest.raises(DataError, match=r"lost\.png"):
        fieldmark.train(path, out=tmp_path / "b", on_bad="stop", progress=False, **FIXED)


@pytest.mark.parametrize("splits", [True, False])
def test_the_weights_are_those_of_the_folder(tmp_path: Path, splits: bool) -> None:
    """The same pictures and labels, as folders and as a table: the same bits, also resumed."""
    root = bright_halves(tmp_path / "pictures")
    pictures = root if splits else root / "train"
    rows = []
    for file in sorted(pictures.rglob("*.png")):
        key = file.relative_to(pictures).as_posix()
        rows.append((key, file.parent.name, key.partition("/")[0] if splits else "1"))
    text = "path,label,split\n" + "".join(",".join(row) + "\n" for row in rows)
    there = table(pictures, text)
    one = fieldmark.train(there, out=tmp_path / "table", progress=False, **FIXED)
    resumed = fieldmark.resume(one.path, progress=False)
    (pictures / "labels.csv").unlink()
    other = fieldmark.train(pictures, out=tmp_path / "folder", progress=False, **FIXED)
    first, second = (r.path / "model.safetensors" for r in (resumed, other))
    assert first.read_bytes() == second.read_bytes()
    assert (one.path / "data.json").is_file()
