"""Family specifications such as "monarch(1024,1024,blocks=32)", and the registry that reads them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable

from ..core import Registry
from .chain import Chain
from .families import ChainFamilies

FAMILIES: Registry[Callable[..., Chain]] = Registry("chain family")
for _name, _member in vars(ChainFamilies).items():
    if isinstance(_member, (classmethod, staticmethod)) and _name != "search":  # search gives many chains
        FAMILIES.register(_name)(getattr(Chain, _name))


def parse_family(text: str) -> Chain:
    """Build the chain of a specification `name(arguments)`; arguments are Python literals, nothing is evaluated.

    Raises `ValueError` for an unknown family (naming the nearest), a wrong argument, or text of another form.

    >>> print(parse_family("butterfly(8)"))
    (1,2,2,4)(2,2,2,2)(4,2,2,1)
    """
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    form = "Rule: 'butterfly(64)', 'monarch(64, 64, blocks=8)' or patterns such as '(1,2,2,2)(2,2,2,1)'"
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{shown} is not a chain. {form}.")
    build = FAMILIES[call.func.id]
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(build).parameters.values()]
    signature = inspect.Signature(bare)
    rule = f"Rule: {call.func.id}{signature}, with numbers or tuples as arguments"
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{shown} has an argument that is not a literal. {rule}.") from error
    try:
        if len(named) < len(call.keywords):
            raise TypeError("an argument is given twice")
        signature.bind(*arguments, **named)
    except TypeError as error:
        raise ValueError(f"{shown}: {error}. {rule}.") from error
    try:
        return build(*arguments, **named)
    except TypeError as error:
        raise ValueError(f"{shown}: {error}") from error
