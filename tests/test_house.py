"""Rules of the whole repository that no single room can check."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flatwing

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "flatwing").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

HEAVY = ("matplotlib", "numba", "rich", "scipy.optimize", "sklearn", "transformers", "typer")
FORBIDDEN = {
    "machine path": r"""(?<![\w.~/])/(home|Users|root|work|tmp|opt|mnt|srv)/\w|\b[A-Za-z]:\\+Users\b""",
    "open task": r"\b(TODO|FIXME|XXX)\b",
    "unfinished code": r"\bNotImplementedError\b",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_rules_below_see_files() -> None:
    assert ROOT / "src" / "flatwing" / "__init__.py" in SOURCES
    assert Path(__file__) in TESTS


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, flatwing; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_import_is_fast() -> None:
    # CPU time, so that tests running next to this one do not count; the first of three imports may read a cold disk;
    # whether Python looks through all objects of torch for garbage just then is a matter of chance
    code = "import gc, time, torch; gc.freeze(); start = time.process_time(); import flatwing\n"
    code += "print(time.process_time() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(run.stdout) for run in runs) < 0.3


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_file_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 350


def offences(text: str) -> list[str]:
    return [
        f"line {number}: {kind}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        for kind, pattern in FORBIDDEN.items()
        if re.search(pattern, line)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_source_is_finished_and_portable(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line", ["open('/home/me/a')", r"'C:\Users\me'", "x  # TODO later", "raise NotImplementedError"]
)
def test_offences_are_found(line: str) -> None:
    assert len(offences(f"a = 1\n{line}\n")) == 1


@pytest.mark.parametrize("line", ["return NotImplemented", "ratio = rows/work/2", "see docs/home/index", "todo = []"])
def test_innocent_lines_pass(line: str) -> None:
    assert offences(line) == []


def raises_without_match(text: str) -> list[int]:
    """Lines of calls `pytest.raises(...)` or `raises(...)` without a non-empty `match=`."""

    def is_raises(function: ast.expr) -> bool:
        return getattr(function, "attr", getattr(function, "id", None)) == "raises"

    def matches(call: ast.Call) -> bool:
        return any(k.arg == "match" and getattr(k.value, "value", "?") not in ("", None) for k in call.keywords)

    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) and is_raises(n.func)]
    return [call.lineno for call in calls if not matches(call)]


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_every_raises_has_match(path: Path) -> None:
    assert raises_without_match(path.read_text(encoding="utf-8")) == []


def test_raises_without_match_are_found() -> None:
    text = "pytest.raises(A, match='x')\npytest.raises(A)\nraises(A, match='')\nraises(A, match=text)\nraises(A, f)\n"
    assert raises_without_match(text) == [2, 3, 5]


def test_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert project["version"] == flatwing.__version__ == citation[1]


def test_pins_are_exact_and_public() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 20
    exact = re.compile(r"""[a-z0-9_.-]+==[0-9][0-9a-z.]*(; python_version [<>=]+ "3\.\d+")?""")
    assert [pin for pin in pins if not exact.fullmatch(pin)] == []
    assert [pin for pin in pins if re.match(r"nvidia|cuda|torchvision", pin)] == []


def test_readme_examples_are_run() -> None:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert any("flatwing " in body for language, body in blocks if language in ("bash", "console", "sh"))
    python = [body for language, body in blocks if language == "python"]
    assert python
    assert [body for body in python if not re.search(r"^>>> ", body, re.M)] == [], "only >>> lines are run"
    assert [body for body in python if not body.endswith("\n\n")] == [], "without an empty line the fence is output"


def test_shapes_are_checked_in_tests() -> None:
    assert any(type(finder).__module__.startswith("jaxtyping") for finder in sys.meta_path)
    assert type(flatwing.__loader__).__module__.startswith("jaxtyping"), "flatwing was imported before the hook"
