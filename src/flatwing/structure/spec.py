"""Family specifications such as "monarch(1024,1024,blocks=32)", and the registry that reads them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

from ..core import Registry
from .chain import Chain

FAMILIES: Registry[Callable[..., Chain]] = Registry("chain family")
for _name in (
    "butterfly", "monarch", "block_diagonal", "low_rank", "block_butterfly", "kronecker", "deformable", "dense",
    "from_radices",
):  # fmt: skip
    FAMILIES.register(_name)(getattr(Chain, _name))


def parse_family(text: str) -> Chain:
    """Build the chain of a specification `name(arguments)`; arguments are Python literals, nothing is evaluated.

    Raises `ValueError` for an unknown family (naming the nearest), a wrong argument, or text of another form.

    >>> print(parse_family("butterfly(8)"))
    (1,2,2,4)(2,2,2,2)(4,2,2,1)
    """
    form = "Rule: 'butterfly(64)', 'monarch(64, 64, blocks=8)' or patterns such as '(1,2,2,2)(2,2,2,1)'"
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{text!r} is not a chain. {form}.")
    build = FAMILIES[call.func.id.replace("-", "_")]
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in call.keywords}
        inspect.signature(build).bind(*arguments, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{text!r}: {error}. Rule: {call.func.id}{inspect.signature(build)}, with numbers or tuples as arguments."
        ) from error
    try:
        return build(*arguments, **named)
    except TypeError as error:
        raise ValueError(f"{text!r}: {error}") from error
