"""One file, whole or not at all, that needs nothing else."""

import re
import tomllib
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from flatwing.report import write
from report.sample import bare, hostile, result, write_run

VOID = {"meta", "link", "br", "wbr"}  # elements of HTML that have no end


class Structure(HTMLParser):
    """Checks that elements are closed in order, and collects ids, links and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.addresses: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.seen |= {tag} | set(values)
        self.ids += [values["id"] or ""] if "id" in values else []
        if "href" in values:
            (self.links if tag == "a" else self.addresses).append(values["href"] or "")
        self.addresses += [values[key] or "" for key in ("src", "srcset", "data", "action") if key in values]
        self.open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


def page(folder: Path, record: dict[str, Any] | None = None, *, bare: bool = False) -> str:
    return write(write_run(folder, record, bare=bare)).read_text(encoding="utf-8")


RUNS = {"ordinary": result, "hostile": hostile, "bare": bare, "large": lambda: result(80)}


@pytest.mark.parametrize("name", RUNS)
def test_page_is_closed_and_self_contained(tmp_path: Path, name: str) -> None:
    found = Structure(page(tmp_path, RUNS[name](), bare=name == "bare"))
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    assert found.links, "a table of contents"
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert all(address.startswith("data:") for address in found.addresses)
    assert found.seen.isdisjoint({"script", "iframe", "object", "embed", "form", "onload", "onclick", "onerror"})


def test_no_address_of_the_network_is_in_the_file(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert re.findall(r"https?://\S+|@import|url\(", text) == []
    assert "default-src 'none'" in text


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    text = page(tmp_path, hostile())
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 100
    assert "49" not in re.findall(r"<h1>(.*?)</h1>", text)[0], "a name is no template"
    assert "{{ 7 * 7 }}" in text
    assert not re.search(r"\b(nan|inf|None|NaN|Infinity)\b", re.sub(r"<style>.*?</style>", "", text, flags=re.S))


@pytest.mark.parametrize("make", [result, bare])
def test_what_is_not_known_is_a_dash(tmp_path: Path, make: Any) -> None:
    text = re.sub(r"<style>.*?</style>", "", page(tmp_path, make(), bare=make is bare), flags=re.S)
    assert not re.search(r"\b(nan|inf|None|undefined)\b", text)


def test_summary_is_the_first_paragraph(tmp_path: Path) -> None:
    first = re.findall(r"<p[^>]*>(.*?)</p>", page(tmp_path), flags=re.S)[1]
    assert first.startswith("If the size of the file is what matters, int8 alone is the better choice")
    assert first.endswith("(--budget 0.5).")


def test_everything_is_shown(tmp_path: Path) -> None:
    record = result()
    record["calibration"]["warnings"] = ["Only 1 000 tokens were used."]
    text = page(tmp_path, record)
    plain = text.replace("<wbr>", "").replace("&#34;", '"')
    for shown in (
        "Only 1 000 tokens were used.",
        "Healing: 200 steps of AdamW, learning rate 0.001, 1\u202fmin 14\u202fs.",
        "294\u202f912 of 1\u202f179\u202f648",
        "best at this size",
        "tied to the embedding",
        "blocks.2.attn.qkv",
        "largest error (",
        'quantize = "int8"',
        "2.13.0+cpu",
        "Python standard library",
        "1\u202fmin 4\u202fs",
    ):
        assert shown in plain, shown
    assert text.count("data:image/png;base64,") >= 6


def test_each_layer_has_a_row(tmp_path: Path) -> None:
    text = page(tmp_path, result(80))
    assert text.count('class="bar"') == 240
    assert len(re.findall(r'<th scope="row" class="name"><bdi>', text)) == 321
    assert "228 layers with smaller errors" in text
    assert len(text) < 500_000


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    text = page(tmp_path, bare(), bare=True)
    assert set(re.findall(r'<section id="(\w+)"', text)) == {"result", "layers", "environment"}
    assert "This run left no summary." in text
    assert "metrics.jsonl is not in the run folder." in text
    assert "No layer was replaced." in text


def test_model_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    model = folder / "model.safetensors"
    model.write_bytes(model.read_bytes()[:1000])
    assert "model.safetensors cannot be read: " in write(folder).read_text(encoding="utf-8")
    model.unlink()
    assert "model.safetensors is not in the run folder, so " in write(folder).read_text(encoding="utf-8")


def test_same_run_same_bytes_and_an_older_report_is_replaced(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    path = write(folder)
    assert path == folder / "report.html"
    first = path.read_bytes()
    path.write_text("old")
    assert write(str(folder)).read_bytes() == first
    other = write(folder, tmp_path / "other.HTM")
    assert (other, other.read_bytes()) == (tmp_path / "other.HTM", first)
    assert {p.name for p in folder.iterdir()} == {
        "config.toml", "environment.json", "metrics.jsonl", "model.safetensors", "report.html", "result.json"
    }  # fmt: skip


def test_failure_leaves_the_older_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path)
    path = write(folder)
    first = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write(folder)
    assert path.read_bytes() == first
    assert not list(folder.glob(".report-*"))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("report.pdf", r"its suffix is '\.pdf'\. Rule: \.html\. Write for example '.*report\.html'"),
        ("report", r"its suffix is ''\. Rule: \.html"),
        ("no/such/folder.html", "does not exist. Make it first"),
    ],
)
def test_place_that_cannot_be_written_is_refused(tmp_path: Path, out: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(write_run(tmp_path), tmp_path / out)


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_told_apart(theme: int) -> None:
    style = files("flatwing.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", re.findall(r":root \{(.*?)\}", style, flags=re.S)[theme]))
    for text in ("ink", "soft", "accent"):
        for ground in ("paper", "sheet", "accent-tint", "bound-tint"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for mark in ("accent", "bound"):
        assert contrast(colours[mark], colours["paper"]) >= 3


def test_wheel_holds_the_templates() -> None:
    """hatchling takes every file of the package unless it is excluded."""
    root = Path(__file__).parents[2]
    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"] == {"packages": ["src/flatwing"]}
    folder = root / "src" / "flatwing" / "report" / "templates"
    names = ["page.html", "parts.html", "report.html", "style.css", "training.html"]
    assert sorted(p.name for p in folder.iterdir()) == names


def test_other_methods_stand_beside_the_curve(tmp_path: Path) -> None:
    record = result(1)
    record["curve"]["points"] = [p for p in record["curve"]["points"] if p["method"] == "flatwing"]
    (described,) = re.findall(r'<desc id="chart-curve-desc">(.*?)</desc>', page(tmp_path, record))
    assert described.startswith("held-out loss against share of the parameters kept, %. flatwing: 4 points from 2.310")
    assert "whitened SVD: 1 points from 2.274 to 2.274; plain SVD: 1 points from 3.227" in described
    record["curve"] |= {"metric": "something", "dense": None}
    assert "whitened SVD" not in re.findall(r'<desc id="chart-curve-desc">(.*?)</desc>', page(tmp_path, record))[0]


def test_warning_that_the_summary_tells_is_not_repeated(tmp_path: Path) -> None:
    record = result(1)
    record["calibration"]["warnings"] = ["Few tokens.", "Other."]
    record["summary"].append("Few tokens.")
    text = page(tmp_path, record)
    assert (text.count("Few tokens."), text.count('<p class="note">Other.</p>')) == (1, 1)
