"""The wisdom file: damaged ones are set aside, all else in its place stays as it is, writers wait for each other."""

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from flatwing import Chain, SparseProduct
from flatwing.kernels import multiply, wisdom
from flatwing.kernels.advise import advise
from flatwing.kernels.backend import Task
from flatwing.kernels.wisdom_file import LARGEST, Found, read

CHAIN = Chain.butterfly(16)
TASK = Task(CHAIN, rows=8)


def content(times: object) -> str:
    return json.dumps({"format": 1, "machines": {wisdom.machine(): {"times": {wisdom.key(TASK): times}}}})


DAMAGED = {
    "truncated": '{\n "format": 1,\n "machines": {"x": ',
    "not utf-8": b'{"format": 1, "machines": {"\xff": {}}}',
    "nested": '{"format": 1, "machines": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "no machines": '{"format": 1}',
    "machine is a list": '{"format": 1, "machines": {"a": []}}',
    "times are a number": '{"format": 1, "machines": {"a": {"times": 3}}}',
    "task is text": content("quick"),
    "text": content({"bmm": "fast"}),
    "bool": content({"bmm": True}),
    "nan": content({"bmm": float("nan")}),
    "infinite": content({"bmm": float("inf")}),
    "negative": content({"bmm": -1e-6}),
    "zero": content({"bmm": 0.0}),
    "tiny": content({"bmm": 1e-300}),
    "huge number": content({"bmm": 10**400}),
}
FOREIGN = {
    "words": "format 1: a diary",
    "binary": b"\x80\x04\xff\x00",
    "other json": "[1, 2]",
    "other object": '{"name": "x", "format": 1}',
    "other format": '{"format": 2, "machines": {}}',
    "a format that begins with ours": '{"format": 1.5, "machines": {}}',
    "a format that is true": '{"format": true, "machines": {}}',
    "nested": "[" * 100_000 + "]" * 100_000,
    "too long": '{"format": 1, "machines": {}}' + " " * LARGEST,
}


def put(place: Path, text: str | bytes) -> bytes:
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return place.read_bytes()


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.parent.iterdir())


@pytest.mark.parametrize("text", [*DAMAGED.values(), *FOREIGN.values()], ids=[*DAMAGED, *FOREIGN])
def test_what_is_not_as_we_write_it_is_ignored_with_one_warning(wisdom_file: Path, text: str | bytes) -> None:
    before = put(wisdom_file, text)
    x, product = torch.ones(8, 16), SparseProduct(CHAIN, [torch.ones(8, 2, 2)] * 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = multiply(x, product)
        multiply(torch.ones(1, 16), product)
        assert wisdom.lookup(TASK) == {}
    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "w.json' is ignored" in str(caught[0].message)
    assert torch.equal(y, torch.full((8, 16), 16.0))
    assert (wisdom_file.read_bytes() == before, names(wisdom_file)) == (True, ["w.json"])


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_set_aside_when_something_is_stored(wisdom_file: Path, text: str | bytes) -> None:
    before = put(wisdom_file, text)
    wisdom.require_place()
    with pytest.warns(RuntimeWarning, match=r"w.json' was damaged \(.*\); it is now 'w.json.bad'"):
        wisdom.store(TASK, {"bmm": 1e-6})
    assert wisdom_file.with_name("w.json.bad").read_bytes() == before
    wisdom.forget()
    assert wisdom.lookup(TASK) == {"bmm": 1e-6}


def test_what_was_set_aside_before_stays(wisdom_file: Path) -> None:
    for number in range(3):
        put(wisdom_file, f'{{"format": 1, "machines": {number}}}')
        with pytest.warns(RuntimeWarning, match="was damaged"):
            wisdom.store(TASK, {"bmm": 1e-6})
    assert names(wisdom_file) == ["w.json", "w.json.bad", "w.json.bad.2", "w.json.bad.3", "w.json.lock"]
    kept = [wisdom_file.with_name(f"w.json.bad{end}").read_text() for end in ("", ".2", ".3")]
    assert kept == [f'{{"format": 1, "machines": {number}}}' for number in range(3)]


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_file_that_is_not_ours_stays(wisdom_file: Path, text: str | bytes) -> None:
    before = put(wisdom_file, text)
    for store in (wisdom.require_place, lambda: wisdom.store(TASK, {"bmm": 1e-6})):
        with pytest.raises(ValueError, match=r"w.json' is no wisdom file .* stays as it is. Rule: .*FLATWING_WISDOM"):
            store()
    assert (wisdom_file.read_bytes() == before, names(wisdom_file)) == (True, ["w.json"])


def make_fifo(place: Path) -> None:
    os.mkfifo(place)


def make_socket(place: Path) -> None:
    here = os.getcwd()
    os.chdir(place.parent)  # paths of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(place.name)
    finally:
        os.chdir(here)


def make_folder(place: Path) -> None:
    place.mkdir()
    (place / "precious").write_text("x")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("make", [make_fifo, make_socket, make_folder])
def test_what_is_no_file_is_neither_read_nor_moved(wisdom_file: Path, make: object, linked: bool) -> None:
    wisdom_file.parent.mkdir()
    thing = wisdom_file.with_name("thing") if linked else wisdom_file
    make(thing)  # type: ignore[operator]
    if linked:
        wisdom_file.symlink_to("thing")
    before = thing.lstat()
    kind = {make_fifo: "pipe", make_socket: "socket", make_folder: "folder"}[make]  # type: ignore[index]
    with pytest.warns(RuntimeWarning, match=f"w.json' is ignored, plans follow predictions: it is a {kind}") as caught:
        advice = advise(chain=CHAIN, batches=8, threads=1)  # only reads
    assert (len(caught), advice.notes) == (1, ())
    with pytest.raises(ValueError, match=rf"w.json' is no wisdom file \(it is a {kind}\) and stays"):
        advise(chain=CHAIN, batches=8, threads=1, measure=True)
    with pytest.raises(ValueError, match=rf"w.json' is no wisdom file \(it is a {kind}\) and stays"):
        wisdom.store(TASK, {"bmm": 1e-6})
    after = thing.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert names(wisdom_file) == (["thing", "w.json"] if linked else ["w.json"])
    assert wisdom_file.is_symlink() == linked


def test_a_pipe_in_place_of_the_lock_is_not_opened(wisdom_file: Path) -> None:
    wisdom_file.parent.mkdir()
    os.mkfifo(wisdom_file.with_name("w.json.lock"))
    with pytest.raises(ValueError, match=r"w.json' cannot be written \(w.json.lock is a pipe\)"):
        wisdom.store(TASK, {"bmm": 1e-6})


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_followed(wisdom_file: Path, exists: bool) -> None:
    target = wisdom_file.parent / "elsewhere" / "real.json"
    target.parent.mkdir(parents=True)
    wisdom_file.symlink_to("elsewhere/real.json")
    if exists:
        put(target, content({"dense": 2e-6}))
    wisdom.store(TASK, {"bmm": 1e-6})
    wisdom.forget()
    assert wisdom.lookup(TASK) == {"bmm": 1e-6} | ({"dense": 2e-6} if exists else {})
    assert names(wisdom_file) == ["elsewhere", "w.json"]
    assert (wisdom_file.is_symlink(), target.is_symlink()) == (True, False)
    assert names(target) == ["real.json", "real.json.lock"]


def test_links_in_a_circle_are_told(wisdom_file: Path) -> None:
    wisdom_file.parent.mkdir()
    wisdom_file.symlink_to("w.json")
    with pytest.raises(ValueError, match=r"w.json' is no wisdom file \(it cannot be read \(Too many levels"):
        wisdom.store(TASK, {"bmm": 1e-6})
    assert wisdom_file.is_symlink()


@pytest.mark.parametrize("text", ["", "\n", "{}"])
def test_an_empty_file_knows_nothing_yet(wisdom_file: Path, text: str) -> None:
    put(wisdom_file, text)
    assert read(wisdom_file) == Found({})
    wisdom.store(TASK, {"bmm": 1e-6})
    wisdom.forget()
    assert wisdom.lookup(TASK) == {"bmm": 1e-6}
    assert names(wisdom_file) == ["w.json", "w.json.lock"]


def test_measuring_begins_a_new_file_beside_the_damaged_one_with_one_warning(wisdom_file: Path) -> None:
    put(wisdom_file, DAMAGED["truncated"])
    with pytest.warns(RuntimeWarning) as caught:
        advise(chain=CHAIN, batches=8, threads=1)  # measures the rates of this machine
    assert ["was damaged" in str(warning.message) for warning in caught] == [True]
    assert names(wisdom_file) == ["w.json", "w.json.bad", "w.json.lock"]


STORES = """
import sys, time
from pathlib import Path
from flatwing import Chain
from flatwing.kernels import wisdom, wisdom_file
from flatwing.kernels.backend import Task

read, own, others = wisdom_file.read, Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
def slowly(place):
    found = read(place)
    time.sleep(0.01)  # time for the others to read the same, were they not waiting
    return found
wisdom_file.read = slowly
own.touch()
while not all(other.exists() for other in others):
    time.sleep(0.001)
for i in range(15):
    wisdom.store(Task(Chain.butterfly(16), rows=1 << i), {own.name: 1e-6})
"""


def test_nothing_is_lost_where_processes_store_at_once(wisdom_file: Path, tmp_path: Path) -> None:
    assert wisdom.lookup(TASK) == {}  # has read: there is nothing
    ready = [str(tmp_path / name) for name in ("one", "two", "three")]
    commands = [[sys.executable, "-W", "error", "-c", STORES, own, *ready] for own in ready]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=100) for process in processes] == [0, 0, 0]
    wisdom.store(TASK, {"four": 1e-6})  # has not read again
    wisdom.forget()
    found = [dict(wisdom.lookup(Task(CHAIN, rows=1 << i))) for i in range(15)]
    assert found == [dict.fromkeys(("one", "two", "three") + (("four",) if i == 3 else ()), 1e-6) for i in range(15)]
    assert names(wisdom_file) == ["w.json", "w.json.lock"]
