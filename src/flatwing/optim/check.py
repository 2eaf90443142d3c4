"""Checks of settings; each error states the value, the rule and the nearest good value."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..core import require_number
from ..core.limits import Limit

Range = tuple[Limit, Limit, Limit]  # least, most, and often right


def require_numbers(group: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """`require_number` for the settings of a group, each with the least, the most and a value that is often right.

    >>> require_numbers({"chi": "two"}, {"chi": (1, 10, 2.0)})
    Traceback (most recent call last):
    ValueError: chi is 'two'. Rule: a number from 1 to 10, such as 2.0. Nearest good value: 2.0.
    """
    for name, (least, most, good) in ranges.items():
        require_number(name, group[name], least, most, good=good)


def require_rate(value: Any, good: Limit = 1e-3) -> None:
    """Raise `ValueError` unless `value` is a learning rate: a finite number that is not negative, or a tensor of one.

    >>> require_rate(torch.tensor(0.1))
    >>> require_rate(None)
    Traceback (most recent call last):
    ValueError: lr is None. Rule: a number, at least 0, such as 0.001. Nearest good value: 0.001.
    """
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    require_number("lr", number, 0, good=good)


def require_flag(name: str, value: Any) -> None:
    """Raise `ValueError` unless `value` is True or False.

    >>> require_flag("decouple_wd", "no")
    Traceback (most recent call last):
    ValueError: decouple_wd is 'no'. Rule: True or False. Write decouple_wd=True.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}. Rule: True or False. Write {name}=True.")


def parameters_of(params: Any) -> list[Any]:
    """What an optimizer is given, as a list: tensors, pairs (name, tensor), or groups; `ValueError` for all else.

    >>> parameters_of([])
    Traceback (most recent call last):
    ValueError: there is no parameter. Rule: at least one that requires grad. Write model.parameters().
    """
    rule = "Rule: tensors, pairs (name, tensor), or groups {'params': ...}. Write model.parameters()."
    if isinstance(params, torch.Tensor | str | Mapping) or not isinstance(params, Iterable):
        raise ValueError(f"params is a {type(params).__name__}. {rule}")
    given = list(params)
    for entry in given:
        named = isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], torch.Tensor)
        if not (named or isinstance(entry, torch.Tensor) or (isinstance(entry, Mapping) and "params" in entry)):
            raise ValueError(f"params has the entry {entry!r}. {rule}")
    if not given:
        raise ValueError("there is no parameter. Rule: at least one that requires grad. Write model.parameters().")
    return given


def require_rules(rules: Any, example: str) -> None:
    """Raise `ValueError` unless `rules` is a sequence of pairs whose first is a regular expression.

    >>> require_rules(["weight"], "[('head', 'other')]")
    Traceback (most recent call last):
    ValueError: rules has the entry 'weight'. Rule: a list of pairs with a regex first. Write [('head', 'other')].
    """
    advice = f"Rule: a list of pairs with a regex first. Write {example}."
    if isinstance(rules, str | Mapping) or not hasattr(rules, "__len__"):
        raise ValueError(f"rules is a {type(rules).__name__}. {advice}")
    for rule in rules:
        if not (isinstance(rule, tuple | list) and len(rule) == 2 and isinstance(rule[0], str)):
            raise ValueError(f"rules has the entry {rule!r}. {advice}")
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(
                f"the regex {rule[0]!r} is wrong: {error}. Rule: what Python's `re` understands. Write "
                f"{re.escape(rule[0])!r} for these very characters."
            ) from None


def require_model(model: Any) -> None:
    """Raise `ValueError` unless it is a module.

    >>> require_model([nn.Parameter()])
    Traceback (most recent call last):
    ValueError: got a list. Rule: the model itself, a torch.nn.Module. Pass model, not its parameters.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"got a {type(model).__name__}. Rule: the model itself, a torch.nn.Module. Pass model, not its parameters."
        )
