"""The report as a browser shows it: at laptop and phone width, light and dark."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from flatwing.report import write
from report.browser import CHROMIUM, DRIVER, Browser, opened
from report.sample import bare, hostile, result, write_run

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed")

VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
RUNS = {"ordinary": result, "large": lambda: result(75), "hostile": hostile, "bare": bare}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with opened(tmp_path_factory.mktemp("profile")) as session:
        yield session


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: write(write_run(folder / name, make(), bare=name == "bare")) for name, make in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(("width", "scheme"), VIEWS)
def test_page_is_sound(browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    browser.log("browser"), browser.log("performance")
    browser.show(pages[name], width, scheme)
    assert browser.log("browser") == [], "errors in the console"
    assert requests(browser) == []
    for state in ("false", "true"):
        browser.run(f"document.querySelectorAll('details').forEach(d => d.open = {state})")
        sizes = browser.run("const page = document.documentElement; return [page.scrollWidth, page.clientWidth]")
        assert sizes[0] == sizes[1] <= width, f"the page scrolls sideways: {browser.run(WIDE)}"
    assert browser.run(SMALL) == []
    assert browser.run(LOST_LINKS) == []
    assert browser.run(CLIPPED) == []
    assert browser.run("return new Set(Array.from(document.querySelectorAll('[id]'), e => e.id)).size") == browser.run(
        "return document.querySelectorAll('[id]').length"
    ), "an id is used twice"


WIDE = """
return Array.from(document.querySelectorAll('body *')).filter(
  e => e.getBoundingClientRect().right > screen.width + 1 && !e.parentElement.closest('.scroll, pre')
).map(e => e.outerHTML.slice(0, 120))
"""
# figures that cannot be seen although everything is unfolded
SMALL = """
return Array.from(document.querySelectorAll('svg, image')).filter(e => {
  const box = e.getBoundingClientRect();
  return !(box.width >= 4 && box.height >= 4) || getComputedStyle(e).visibility !== 'visible';
}).map(e => e.outerHTML.slice(0, 200))
"""
LOST_LINKS = """
return Array.from(document.querySelectorAll('a')).map(a => a.getAttribute('href')).filter(
  href => !href.startsWith('#') || !document.getElementById(href.slice(1)))
"""
# letters of a chart that stand outside of its picture
CLIPPED = """
return Array.from(document.querySelectorAll('svg.chart text, svg.panels text')).filter(text => {
  const inner = text.getBoundingClientRect(), outer = text.ownerSVGElement.getBoundingClientRect();
  return inner.left < outer.left - 0.5 || inner.right > outer.right + 2 || inner.top < outer.top - 3 ||
    inner.bottom > outer.bottom + 3;
}).map(text => text.textContent)
"""


def requests(browser: Browser) -> list[str]:
    """Addresses outside of the file itself that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in urls), "the log of requests is empty"
    return [url for url in urls if not url.startswith(("file:", "data:"))]


def test_network_is_forbidden(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """The check above sees requests, and the page's own rule stops them."""
    page = tmp_path / "leak.html"
    text = pages["ordinary"].read_text(encoding="utf-8")
    page.write_text(text.replace("<main>", '<main><img src="http://127.0.0.1:9/x.png">'), encoding="utf-8")
    browser.show(page, 1280, "light")
    assert any("Content Security Policy" in entry["message"] for entry in browser.log("browser"))


def test_hostile_texts_are_texts(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["hostile"], 1280, "light")
    assert browser.run("return document.title").startswith("<script>document.title=")
    assert browser.run("return document.querySelectorAll('script, iframe, object, [onload], [onerror]').length") == 0
    assert "{{ 7 * 7 }}" in browser.run("return document.querySelector('h1').textContent")


def test_themes_differ(browser: Browser, pages: dict[str, Path]) -> None:
    colours = []
    for scheme in ("light", "dark"):
        browser.show(pages["ordinary"], 1280, scheme)
        colours.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(18, 22, 28)"]


def test_wide_tables_scroll_in_their_box(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["ordinary"], 390, "light")
    boxes = browser.run("return Array.from(document.querySelectorAll('.scroll'), e => [e.scrollWidth, e.clientWidth])")
    assert len(boxes) == 4
    assert all(inner > outer for inner, outer in boxes)
    assert all(outer <= 390 - 2 * 16 for _, outer in boxes)


def test_links_move_the_page(browser: Browser, pages: dict[str, Path]) -> None:
    browser.show(pages["ordinary"], 390, "light")
    browser.run("document.documentElement.style.scrollBehavior = 'auto'")
    number = browser.run("return document.querySelectorAll('nav a').length")
    assert number == 9
    tops = []
    for i in range(number):
        browser.run(f"document.querySelectorAll('nav a')[{i}].click()")
        tops.append(browser.run("return scrollY"))
    assert tops == sorted(set(tops)), "each link leads further down"


def test_labels_of_small_numbers_are_whole(browser: Browser, tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    lines = [{"stage": "heal", "step": step, "loss": 3.0 * 0.8**step} for step in range(50)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    browser.show(write(folder), 390, "light")
    assert "0.0001" in browser.run("return document.querySelector('[aria-labelledby^=chart-healing]').textContent")
    assert browser.run(CLIPPED) == []
