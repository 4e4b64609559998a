# Names are bytes here, and paths what the system calls see, so that pathlib is no help.
# ruff: noqa: PTH102, PTH118, PTH119, PTH123, PTH208
"""Names of classes and files that could break what shows them."""

from __future__ import annotations

import functools
import json
import os

from tests.hostile.artefacts import problems
from tests.hostile.place import Answer, Place, Row, picture

SCRIPTS = ("猫", "狗", "戀", "𠮷", "🐦", "ｆｕｌｌ", "שלום", "مرحبا", "हिन्दी", "e\u0301")
SEPARATORS = (
    *("a b", "a,b", 'a"b', "a'b", "a\nb", "a\tb", "-a", "_a", "a..", "a\r\nb", "a;b", "a|b", "%s"),
    *("{0}", "{{ 7*7 }}", "a\\b", "*", "~", "a#b", "x" * 255),
)
MARKUP: tuple[str, ...] = (
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "&amp;", "<!--", "]]>"),
    *(
        "$\\frac{",
        "$x^2$",
        "[bold red]x[/]",
        "[link=http:x]y[/link]",
        "\x1b[31mred",
        "\x1b]0;t\x07",
    ),
    *("\x9b2J", "\u202eevil", "a\u200bb", "\u2028", "javascript:alert(1)", "\x7f"),
)
MARKUP = tuple(name.replace("/", "\u2215") for name in MARKUP)  # a name has no slash
FORMULAS = (
    *("=HYPERLINK(1)", "@SUM(1)", "+1", "-1+1", "=cmd|' C'!A0", "'=1", "\t=1", " =1", "＝1", "%=1"),
)
RESERVED = ("CON", "aux", "NUL.txt", "COM1", "a.", "a ", "LPT1")


def _train(names: tuple[str, ...], place: Place) -> list[str]:
    """Classes and files of these names, through a whole run."""
    for number, name in enumerate(names):
        folder = place.data / name
        folder.mkdir()
        stem = name.encode()[:200].decode(errors="ignore")
        for k in range(4):
            (folder / f"{stem}{k}.png").write_bytes(picture(10 * number + k))
    return place.train()


def whole_run(names: tuple[str, ...], place: Place, answer: Answer) -> bool:
    found = problems(place.runs / "new", names)
    if found:
        print(found)
    return not found


def through_a_run(item: str, text: str, names: tuple[str, ...]) -> Row:
    return Row(
        *(item, text, functools.partial(_train, names), 0, ("report:",)),
        "every file of the run holds them, inert",
        functools.partial(whole_run, names),
        {"drawn": True},
    )


def no_text(place: Place) -> list[str]:
    """Names of bytes that are no UTF-8, as archives made elsewhere leave them."""
    for name in (b"\xff", "猫".encode("gbk"), b"cat"):
        folder = os.path.join(os.fsencode(place.data), name)
        os.mkdir(folder)
        for k in range(4):
            with open(os.path.join(folder, name + b"%d.png" % k), "wb") as file:
                file.write(picture(len(name) * 100 + name[0] + k))
    return place.train()


def no_text_is_kept(place: Place, _: Answer) -> bool:
    return not problems(
        place.runs / "new", ("cat", *map(os.fsdecode, ("猫".encode("gbk"), b"\xff")))
    )


def files(place: Place) -> list[str]:
    """Pictures of every nasty name, to be predicted."""
    folder = place.given / "nasty"
    folder.mkdir()
    for number, name in enumerate((*SEPARATORS[:-1], *MARKUP, *FORMULAS, *RESERVED)):
        (folder / f"{name}.png").write_bytes(picture(number))
    os.link(folder / "CON.png", os.fsencode(folder) + b"/\xff\xfe.png")
    return [*place.predict(folder), "--csv", str(place.out / "found.csv")]


def files_as_json(place: Place) -> list[str]:
    return [*files(place), "--json"]


def json_is_whole(place: Place, answer: Answer) -> bool:
    found = json.loads(answer.out)
    names = {os.path.basename(row["file"]) for row in found}
    return names == set(os.listdir(place.given / "nasty"))


def csv_is_inert(place: Place, _: Answer) -> bool:
    from tests.hostile.artefacts import cells

    rows = cells((place.out / "found.csv").read_bytes())
    return len(rows) == 1 + len(os.listdir(place.given / "nasty"))


def heat_maps(place: Place) -> list[str]:
    folder = place.given / "nasty"
    folder.mkdir()
    for number, name in enumerate(("a..b", "a\nb", "\x1b[31m", "=1", "CON")):
        (folder / f"{name}.png").write_bytes(picture(number))
    return [*place.predict(folder), "--explain", str(place.out / "maps")]


def maps_are_there(place: Place, _: Answer) -> bool:
    names = sorted(path.name for path in (place.out / "maps").iterdir())
    return len(names) == 5 and all(name.isprintable() and "/" not in name for name in names)


def two_forms(place: Place) -> list[str]:
    place.folders({"caf\u00e9": 8, "cafe\u0301": 8})
    return place.look()


def hangul(place: Place) -> list[str]:
    place.folders({"\uac00": 8, "\u1100\u1161": 8})
    return place.look()


def two_cases(place: Place) -> list[str]:
    place.folders({"Cat": 8, "cat": 8})
    return place.look()


def unseen_letter(place: Place) -> list[str]:
    place.folders({"cat": 8, "cat\u200b": 8})
    return place.look()


def long_path(place: Place) -> list[str]:
    place.classes(cat=8)
    folder = place.data / "dog" / "/".join(["x" * 200] * 5)
    folder.mkdir(parents=True)
    for seed in range(20, 28):
        (folder / f"{seed}.png").write_bytes(picture(seed))
    return place.look()


def chinese_user(place: Place) -> list[str]:
    home = place.root / "用户" / "张 三"
    data = place.classes(home / "图片", cat=8, dog=8)
    return ["train", str(data), *place.train()[2:], "--preview"]


def chinese_console(place: Place) -> list[str]:
    place.folders({"猫": 8, "🐦": 8})
    return place.look()


def braille_and_emoji(place: Place) -> list[str]:
    place.folders({"⠹ ✓": 8, "שלום": 8})
    return place.look()


def brackets(place: Place) -> list[str]:
    """A name that is a pattern, too."""
    file = place.given / "a[1].png"
    file.write_bytes(picture(1))
    return place.predict(file)


def dashes(place: Place) -> list[str]:
    (place.work / "--csv=x.png").write_bytes(picture(1))
    return ["predict", str(place.model()), "--", "--csv=x.png"]


ROWS = (
    through_a_run("11", "classes in eight scripts, full width and emoji", SCRIPTS),
    Row("12", "é in two Unicode forms", two_forms, 0, ("two Unicode forms",)),
    Row("12", "Hangul in two Unicode forms", hangul, 0, ("two Unicode forms",)),
    Row("13", "Cat and cat", two_cases, 0, ("the same but for case",)),
    through_a_run("14", "names with spaces, quotes, line breaks, 255 bytes ...", SEPARATORS),
    through_a_run("15", "names that are formulas", FORMULAS),
    through_a_run("16", "names that are markup, escapes, mathematics", MARKUP),
    Row(
        "17",
        "names that are no UTF-8",
        no_text,
        0,
        ("\\xff",),
        "kept, and shown as escapes",
        no_text_is_kept,
        {"drawn": True},
    ),
    through_a_run("18", "names that Windows reserves", RESERVED),
    Row("18", "paths of 1000 characters", long_path, 0, ("2 classes",)),
    Row("18", "a Chinese user with a space", chinese_user, 0, ("2 classes",)),
    Row(
        "18",
        "猫 and an emoji on a console of GBK",
        chinese_console,
        0,
        ("猫", "\\U0001f426"),
        options={"encoding": "gbk"},
    ),
    Row(
        "18",
        "braille and Hebrew on a console of GBK",
        braille_and_emoji,
        0,
        ("\\u2839 \\u2713",),
        options={"encoding": "gbk"},
    ),
    Row(
        "18",
        "emoji on a console of ASCII",
        chinese_console,
        0,
        ("\\u732b",),
        options={"encoding": "ascii"},
    ),
    Row(
        "14",
        "files of all these names, predicted into a CSV",
        files,
        0,
        ("\\x1b[31mred",),
        "one inert row for each",
        csv_is_inert,
    ),
    Row(
        "14",
        "the same as JSON",
        files_as_json,
        0,
        ("HYPERLINK",),
        "every name comes back",
        json_is_whole,
    ),
    Row(
        "14",
        "heat maps of files called a..b, =1, CON",
        heat_maps,
        0,
        ("=1.png",),
        "one file each, with a plain name",
        maps_are_there,
    ),
    Row("+", "two classes that differ by an invisible letter", unseen_letter, 0, ("cat\\u200b",)),
    Row("+", "a file called a[1].png", brackets, 0, ("a[1].png: ",)),
    Row("+", "a file called --csv=x.png, after --", dashes, 0, ("--csv=x.png: ",)),
)
