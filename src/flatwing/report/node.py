"""JSON that somebody else wrote: each value is read with its type, and an error names the place where it stands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final, final

from ..core import parse_json

LONGEST: Final = 60  # characters of a wrong value that an error quotes


@final
@dataclass(frozen=True, slots=True)
class Node:
    """A JSON object and where it stands, such as `result.json: layers[3]`.

    Optional values may be absent or null; optional numbers may also be NaN or Infinity, which are read as absent.

    >>> Node({"rank": 4, "error": float("nan")}, "result.json").number("error") is None
    True
    >>> Node({"rank": "4"}, "result.json: layers[3]").number("rank")
    Traceback (most recent call last):
    ValueError: result.json: layers[3].rank is '4'. Rule: a number. Write the run folder again ...
    """

    value: dict[str, Any]
    where: str

    def path(self, key: str) -> str:
        """Where `key` of this object stands."""
        return f"{self.where}.{key}" if ": " in self.where else f"{self.where}: {key}"

    def refuse(self, key: str, rule: str) -> ValueError:
        """The error that says which value broke which rule."""
        shown = repr(self.value[key]) if key in self.value else "absent"
        shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
        return ValueError(
            f"{self.path(key)} is {shown}. Rule: {rule}. "
            "Write the run folder again with this version of flatwing; reports are made of unedited files."
        )

    def number(self, key: str, *, least: float | int | None = None) -> float | None:
        """A finite number, or `None`; raises `ValueError` for anything else, or a number below `least`."""
        value = self.value.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, "a number")
        try:
            number = float(value)
        except OverflowError:
            raise self.refuse(key, "a number that fits into 64 bits") from None
        if not isfinite(number):
            return None
        if least is not None and number < least:
            raise self.refuse(key, f"a number that is at least {least:g}")
        return number

    def count(self, key: str) -> int | None:
        """A whole number that is not negative, or `None`."""
        value = self.number(key, least=0)
        if value is None:
            return None
        if value != round(value):
            raise self.refuse(key, "a whole number")
        return int(value)

    def text(self, key: str) -> str | None:
        """A text, or `None`."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, str):
            raise self.refuse(key, "a text")
        return value

    def flag(self, key: str) -> bool | None:
        """true or false, or `None`."""
        value = self.value.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.refuse(key, "true or false")
        return value

    def child(self, key: str) -> Node | None:
        """The object under `key`, or `None`."""
        value = self.value.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, "an object")
        return Node(value, self.path(key))

    def children(self, key: str) -> tuple[Node, ...]:
        """The objects of the list under `key`; none if it is absent."""
        values = self._list(key)
        if not all(isinstance(value, dict) for value in values):
            raise self.refuse(key, "a list of objects")
        return tuple(Node(value, f"{self.path(key)}[{i}]") for i, value in enumerate(values))

    def texts(self, key: str) -> tuple[str, ...]:
        """The texts of the list under `key`; none if it is absent."""
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise self.refuse(key, "a list of texts")
        return tuple(values)

    def numbers(self, key: str) -> tuple[float, ...]:
        """The finite numbers of the list under `key`, others left out; none if it is absent."""
        values = self._list(key)
        rows = Node({str(i): value for i, value in enumerate(values)}, self.path(key))
        return tuple(number for i in range(len(values)) if (number := rows.number(str(i))) is not None)

    def counts(self, key: str, length: int | None = None) -> tuple[int, ...] | None:
        """`length` whole numbers of at least 1, or any number of them, or `None`."""
        values = self._list(key)
        if not values and self.value.get(key) is None:
            return None
        whole = all(type(value) is int and 1 <= value < 2**53 for value in values)
        if not whole or length not in (None, len(values)):
            raise self.refuse(key, f"{length or 'a list of'} whole numbers of at least 1")
        return tuple(values)

    def require(self, key: str) -> Any:
        """The value under `key`; raises `ValueError` if it is absent or null."""
        if self.value.get(key) is None:
            raise self.refuse(key, "present")
        return self.value[key]

    def _list(self, key: str) -> list[Any]:
        value = self.value.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.refuse(key, "a list")
        return value


def parse(text: str, where: str) -> Node:
    """The JSON object in `text`; raises `ValueError` that names the file and the place of the fault.

    >>> parse('{"a": 1', "result.json")
    Traceback (most recent call last):
    ValueError: result.json is not whole JSON: Expecting ',' delimiter (line 1, column 8). ...
    """
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not whole JSON: {error.msg} (line {error.lineno}, column {error.colno}). "
            "It was cut off or edited; run the command that wrote it again."
        ) from None
    except ValueError as error:  # a number of more than 4300 digits
        raise ValueError(
            f"{where} is not JSON that can be read: {error}. Run the command that wrote it again."
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds a {type(value).__name__}. Rule: one JSON object.")
    return Node(value, where)
