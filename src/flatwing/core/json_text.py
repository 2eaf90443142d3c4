"""JSON of others: read without trusting how deep it is nested."""

from __future__ import annotations

import json
import re
from typing import Any

_STRINGS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_NO_BRACKETS = re.compile(r"[^][{}]++")


def parse_json(text: str, deepest: int = 64, **options: Any) -> Any:
    """`json.loads(text, **options)` for text whose brackets are nested at most about `deepest` deep.

    Python's parser recurses on the stack of the process. Its limit protects only while nobody raises the limit, which
    some packages do when they are imported: then hostile text ends the process. Raises `json.JSONDecodeError` for
    deeper nesting, more unclosed brackets, and what is no JSON. Cost: linear, some nanoseconds per character.

    >>> parse_json('{"a": [1, "]]"]}')
    {'a': [1, ']]']}
    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    json.decoder.JSONDecodeError: nested more than 64 deep: line 1 column 1 (char 0)
    """
    marks = _NO_BRACKETS.sub("", _STRINGS.sub("", text))
    for _ in range(deepest):  # each time without the innermost pairs
        if not marks:
            break
        marks = marks.replace("[]", "").replace("{}", "")
    if len(marks) > deepest:
        raise json.JSONDecodeError(f"nested more than {deepest} deep", text, 0)
    return json.loads(text, **options)
