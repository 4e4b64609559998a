"""The page in a real browser: pictures in every way, hostile names, both languages."""

from __future__ import annotations

import base64
import csv
import io
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fieldmark.serve import page
from fieldmark.serve.limits import Limits
from tests.serve.tiny import Colours, picture, server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
SCRIPT = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
CLASSES = ("red", SCRIPT, "=HYPERLINK(1)")
RED, GREEN, BLUE, GREY = (250, 9, 9), (9, 250, 9), (9, 9, 250), (99, 90, 90)
Open = Callable[..., Any]


def file(name: str, colour: tuple[int, int, int]) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": picture(colour)}


def test_the_page_asks_nobody_else_and_allows_only_its_own_script() -> None:
    text = page.CONTENT.decode()
    fetched = re.findall(r"""(?:src|href)=["']?([^"' >]+)|url\(([^)]*)\)|@import""", text)
    assert [url for url, _ in fetched if not url.startswith("data:")] == []
    # In SVG a namespace is a name and no request.
    assert set(re.findall(r"https?://[^\s'\"]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert text.count("<script>") == text.count("<style>") == 1
    assert not re.search(r"""\son\w+=|\sstyle=|innerHTML|insertAdjacentHTML|eval\(""", text)
    assert page.POLICY.count("'sha256-") == 2 and "unsafe" not in page.POLICY


def test_every_text_is_there_in_both_languages() -> None:
    text = page.CONTENT.decode()
    english, chinese = (
        set(re.findall(r"\b(\w+):", re.sub(r'"[^"]*"|`[^`]*`', "", block)))
        for block in re.split(r"\n  zh: \{", text.split("en: {", 1)[1].split("\n};", 1)[0])
    )
    assert english - {"zh"} == chinese
    named = set(re.findall(r'data-(?:text|label)="(\w+)"', text)) | set(
        re.findall(r"\bT\.(\w+)", text)
    )
    assert named <= english, named - english


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server(Colours(class_names=CLASSES), limits=Limits(queue=6)) as (port, _):
        yield f"http://localhost:{port}/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        # Without a sandbox, because it does not start in one as the superuser of a container.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Open]:
    contexts = []

    def go(**options: Any) -> Any:
        context = browser.new_context(**{"locale": "en-GB", **options})
        contexts.append(context)
        context.set_default_timeout(30_000)
        tab = context.new_page()
        tab.outside = []
        tab.broken = []
        tab.on("request", lambda r: tab.outside.append(r.url) if not _own(r.url, address) else None)
        # Before the page is there, so that no chooser can open in the browser's own way.
        tab.on("filechooser", lambda chooser: None)
        tab.on("pageerror", lambda error: tab.broken.append(str(error)))
        tab.goto(address)
        tab.wait_for_selector("#classes:not([hidden])")
        return tab

    yield go
    for context in contexts:
        for tab in context.pages:
            assert tab.outside == [] and tab.broken == []
        context.close()


def _own(url: str, address: str) -> bool:
    return url.startswith((address, "blob:", "data:"))


def answered(tab: Any, count: int) -> None:
    tab.wait_for_selector(f"#cards > li:nth-child({count})")
    tab.wait_for_selector(".waiting", state="detached")


def put(tab: Any, kind: str, files: list[tuple[str, bytes]]) -> None:
    """Drop or paste files, as a browser tells the page of it."""
    encoded = [(name, base64.b64encode(data).decode()) for name, data in files]
    tab.locator("body").evaluate(
        """(body, [kind, files]) => {
            const data = new DataTransfer();
            for (const [name, text] of files) {
                const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
                data.items.add(new File([bytes], name));
            }
            const options = {bubbles: true, cancelable: true};
            body.dispatchEvent(kind === "paste"
                ? new ClipboardEvent("paste", {...options, clipboardData: data})
                : new DragEvent(kind, {...options, dataTransfer: data}));
        }""",
        [kind, encoded],
    )


@pytest.mark.browser
def test_a_dropped_and_a_pasted_picture_are_answered(visit: Open) -> None:
    tab = visit()
    put(tab, "dragenter", [])
    assert "over" in tab.get_attribute("#drop", "class")
    put(tab, "drop", [("dropped.png", picture(RED))])
    answered(tab, 1)
    assert "over" not in tab.get_attribute("#drop", "class")
    assert tab.inner_text(".card h2 bdi") == "red"
    put(tab, "paste", [("image.png", picture(GREY))])
    answered(tab, 2)
    assert tab.locator(".card").nth(1).locator(".unsure").inner_text() == "Not sure"
    assert tab.inner_text("#status") == "2 pictures answered, 1 not sure"
    put(tab, "paste", [])
    assert "no picture" in tab.inner_text("#note")


@pytest.mark.browser
def test_thirty_pictures_through_a_queue_of_six_and_their_csv(visit: Open) -> None:
    tab = visit()
    files = [file(f"{i}.png", (RED, GREEN, BLUE)[i % 3]) for i in range(28)]
    files += [file("=1+1.png", BLUE), {**file("bad.png", RED), "buffer": b"no picture"}]
    tab.set_input_files("#choose", files)
    tab.wait_for_selector("#csv:not([disabled])")
    answered(tab, 30)
    assert tab.inner_text("#status") == "29 pictures answered, 1 could not be read"
    assert tab.locator(".card.failed").inner_text().splitlines()[-1] == "This is not a picture."
    tab.click("#asTable")
    assert tab.locator("#rows tr").count() == 30 and not tab.is_visible("#cards")
    with tab.expect_download() as download:
        tab.click("#csv")
    data = download.value.path().read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert [row["file"] for row in rows[:2]] == ["0.png", "1.png"]
    assert [row["label"] for row in rows[:3]] == ["red", SCRIPT, "'=HYPERLINK(1)"]
    assert rows[28]["file"] == "'=1+1.png"
    assert rows[29] == {
        "file": "bad.png",
        "label": "",
        "prob": "",
        "sure": "",
        "error": "not_a_picture",
    }
    assert all(0.9 < float(row["prob"]) < 1 and row["sure"] == "yes" for row in rows[:29])
    tab.click("#clear")
    assert tab.locator(".card").count() == 0 and not tab.is_visible("#results")


@pytest.mark.browser
def test_a_script_in_a_class_or_file_name_is_text(visit: Open) -> None:
    tab = visit()
    title = tab.title()
    tab.set_input_files(
        "#choose", [file("x.png", GREEN), {**file("y.png", GREEN), "name": SCRIPT.replace("/", "")}]
    )
    answered(tab, 2)
    assert tab.locator(".card h2 bdi").first.inner_text() == SCRIPT
    tab.click("#classesTitle")
    assert SCRIPT in tab.inner_text("#classesList")
    tab.click("#asTable")
    assert SCRIPT in tab.inner_text("#rows")
    assert tab.locator("script").count() == 1 and tab.locator("img[src=x]").count() == 0
    assert tab.title() == title == "colours · Fieldmark"


@pytest.mark.browser
def test_heat_maps_come_and_go(visit: Open) -> None:
    tab = visit()
    tab.set_input_files("#choose", [file("a.png", BLUE)])
    answered(tab, 1)
    button = tab.locator(".act button")
    assert button.inner_text() == "What did it look at?"
    button.click()
    tab.wait_for_selector(".act button[aria-pressed=true]")
    heat = tab.locator('.frame img[alt="Heat map: what speaks for =HYPERLINK(1)"]')
    assert heat.evaluate("image => image.naturalWidth") == 40
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert heat.get_attribute("aria-hidden") == "true"


@pytest.mark.browser
def test_the_keyboard_is_enough(visit: Open) -> None:
    tab = visit()
    tab.keyboard.press("Tab")
    assert tab.locator(":focus").get_attribute("id") == "choose"
    with tab.expect_file_chooser() as chooser:
        tab.keyboard.press("Enter")
    chooser.value.set_files([file("a.png", RED), file("b.png", BLUE)])
    answered(tab, 2)
    order = []
    for _ in range(7):
        tab.keyboard.press("Tab")
        order.append(tab.locator(":focus").evaluate("node => node.id || node.className"))
    assert order == [
        "classesTitle",
        "asCards",
        "asTable",
        "csv",
        "clear",
        "button small",
        "button small",
    ]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("scheme", "locale"),
    [("light", "en-US"), ("dark", "zh-CN"), ("light", "zh-TW"), ("dark", "de-DE")],
)
def test_language_scheme_and_narrow_screens(visit: Open, scheme: str, locale: str) -> None:
    tab = visit(
        locale=locale,
        color_scheme=scheme,
        viewport={"width": 390, "height": 844},
        has_touch=True,
        is_mobile=True,
    )
    chinese = locale.startswith("zh")
    assert tab.get_attribute("html", "lang") == ("zh-Hans" if chinese else "en")
    assert tab.inner_text("h1") == ("图片里是什么？" if chinese else "What is in the picture?")
    assert tab.is_visible("#camera >> xpath=..")
    assert tab.get_attribute("#camera", "capture") == "environment"
    tab.set_input_files("#choose", [file("a" * 150 + ".png", RED), file("b.png", GREEN)])
    answered(tab, 2)
    for view in ("#asTable", "#asCards"):
        tab.click(view)
        width = tab.locator("html").evaluate("node => node.scrollWidth")
        assert width <= 390, f"the page is {width} px wide"
    for selector in (
        "h1",
        ".lead",
        "#status",
        ".percent",
        ".file",
        ".button.main",
        ".unsure",
        "#asTable",
    ):
        if tab.locator(selector).count():
            assert tab.locator(selector).first.evaluate(CONTRAST) >= 4.5, selector


CONTRAST = """node => {
    const parse = text => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let behind = node, colour;
    do {
        colour = parse(getComputedStyle(behind).backgroundColor);
    } while (colour[3] === 0 && (behind = behind.parentElement));
    const both = [parse(getComputedStyle(node).color), colour].map(luminance);
    const [a, b] = both.sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
}"""


@pytest.mark.browser
def test_the_token_is_asked_for_and_kept_out_of_the_address(browser: Any) -> None:
    token = "correct-horse-battery"
    with server(token=token) as (port, _):
        context = browser.new_context(locale="en-GB")
        tab = context.new_page()
        urls: list[str] = []
        tab.on("request", lambda request: urls.append(request.url))
        tab.goto(f"http://localhost:{port}/")
        tab.wait_for_selector("dialog[open]")
        tab.fill("#token", "wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_selector("dialog[open] #token:invalid")  # asked again, and empty
        tab.fill("#token", token)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#classes:not([hidden])")
        tab.set_input_files("#choose", [file("a.png", RED)])
        answered(tab, 1)
        assert tab.inner_text(".card h2 bdi") == "red"
        assert not [url for url in urls if token in url]
        context.close()
