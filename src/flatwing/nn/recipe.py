"""A structure as a user names it (chain, share, family, function), made into a layer for one `nn.Linear`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from numbers import Real
from typing import Any, final

import torch
from torch import nn

from ..core import as_matrix, nearest_divisor
from ..factorize import choose, factorize
from ..structure import FAMILIES, Chain
from .base import StructuredLayer
from .blast import BlastLinear
from .linear import StructuredLinear
from .sum import SumLinear

Structure = Chain | int | float | str | Callable[[str, nn.Linear], Chain | StructuredLayer | None]


@final
@dataclass(frozen=True, slots=True)
class Made:
    """What became of one layer: `layer` is None if it stays dense or cannot have the structure (`fits` False)."""

    layer: StructuredLayer | None
    error: float | None = None
    lower_bound: float | None = None
    reason: str = ""
    fits: bool = True
    given: bool = False
    """Whether the user's function made the layer: then its bias is the user's, too."""


Recipe = Callable[[str, nn.Linear], Made]


def as_recipe(structure: Structure) -> Recipe:
    """The function that makes a layer of this structure out of a name and an `nn.Linear`; checks the structure first.

    * a Chain, or its text with sizes: the layers of that size;
    * a share in (0, 1] of the parameters: the chain that `choose` finds; 1.0 keeps what no chain represents exactly;
    * a family without sizes, such as "monarch(blocks=4)", "low_rank(rank=8)", "blast(blocks=8, rank=16)", or a sum of
      chains, "low_rank(rank=4) + block_diagonal(blocks=8)"; blocks that do not divide become the nearest that do;
    * a function of name and layer that gives a Chain, a layer, or None to keep it.

    Raises `ValueError` or `TypeError` for anything else.

    >>> made = as_recipe("monarch(blocks=4)")("fc", nn.Linear(16, 16))
    >>> made.layer
    StructuredLinear(Chain.parse('(1,4,4,4)(4,4,4,1)'), bias=True)
    """
    if isinstance(structure, Chain):
        return lambda name, linear: _chained(linear, structure)
    if isinstance(structure, Real) and not isinstance(structure, bool):
        share = float(structure)
        if not 0 < share <= 1:
            raise ValueError(f"structure={structure}. Rule: a share of the parameters in (0, 1], such as 0.5.")
        return lambda name, linear: _shared(linear, share)
    if isinstance(structure, str):
        return _parsed(structure)
    if callable(structure) and not isinstance(structure, type):
        return lambda name, linear: _called(name, linear, structure)
    raise TypeError(
        f"structure is a {type(structure).__name__}. Rule: a Chain, a share such as 0.5, a text such as "
        "'monarch(blocks=4)', or a function of name and layer."
    )


def _chained(linear: nn.Linear, chain: Chain, note: str = "", perm: Any = None) -> Made:
    """The nearest product of a chain, unless it has another size or is no smaller."""
    m, n = linear.weight.shape
    if chain.shape != (m, n):
        return Made(None, reason=f"it is {m} x {n}, the chain is {chain.shape[0]} x {chain.shape[1]}", fits=False)
    if chain.nnz >= m * n:
        return Made(None, reason=_joined(note, f"{chain.nnz} parameters in the chain are no fewer than {m * n}"))
    result = factorize(linear.weight, chain, perm=perm)
    layer = StructuredLinear.from_product(result.product.to(linear.weight.dtype))
    layer.take(linear)
    error = result.certificate.error if not result.notes else relative_error(linear, layer)
    return Made(layer, error, result.certificate.lower_bound, note)


def _shared(linear: nn.Linear, share: float) -> Made:
    try:
        choice = choose(linear.weight, budget=share)
    except ValueError as error:
        return Made(None, reason=str(error), fits=False)
    if choice.dense:
        return Made(None, reason=choice.why)
    return _chained(linear, choice.chain, perm=choice.perm)


def _called(name: str, linear: nn.Linear, function: Callable[[str, nn.Linear], object]) -> Made:
    given = function(name, linear)
    if given is None:
        return Made(None, reason="the function gave None")
    if isinstance(given, Chain):
        made = _chained(linear, given)
        if not made.fits:
            raise ValueError(f"for {name!r} the function gave {given}: {made.reason}. Rule: equal sizes.")
        return made
    if not isinstance(given, StructuredLayer):
        kind = type(given).__name__
        raise TypeError(f"for {name!r} the function gave a {kind}. Rule: a Chain, a StructuredLayer or None.")
    size, want = (given.out_features, given.in_features), tuple(linear.weight.shape)
    if size != want:
        raise ValueError(f"for {name!r} the function gave a layer {size}, the old one is {want}. Rule: equal sizes.")
    if (given.bias is None) != (linear.bias is None):
        has = "no bias, the old one has one" if given.bias is None else "a bias, the old one has none"
        raise ValueError(f"for {name!r} the function gave a layer with {has}. Rule: both or none.")
    if given.dtype != linear.weight.dtype:
        raise ValueError(f"for {name!r} the function gave {given.dtype}, the old layer is {linear.weight.dtype}.")
    return Made(given, relative_error(linear, given), given=True)


def _parsed(text: str) -> Recipe:
    """The recipe of a text; families are known and their arguments read before any layer is touched."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        tree = None
    calls = _terms(tree)
    if not calls:  # patterns, or something that only Chain.parse can complain about
        return as_recipe(Chain.parse(text))
    families = [_family(call, text) for call in calls]
    if len(families) > 1:
        if any(name == "blast" for name, _ in families):
            raise ValueError(f"{text!r}: a sum is made of chains, blast is none. Write 'blast(...)' alone.")
        return lambda name, linear: _summed(linear, families)
    name, arguments = families[0]
    if name == "blast":
        return lambda _, linear: _blast(linear, **arguments)
    return lambda _, linear: _of_family(linear, name, arguments)


def _terms(tree: ast.expr | None) -> list[ast.Call]:
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        left, right = _terms(tree.left), _terms(tree.right)
        return [*left, *right] if left and right else []
    return [tree] if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) else []


def _family(call: ast.Call, text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a family; the argument "chain" holds a chain that was given with its sizes."""
    name, keys = getattr(call.func, "id", ""), {k.arg for k in call.keywords}
    parameters = inspect.signature(BlastLinear if name == "blast" else FAMILIES[name]).parameters
    if name == "blast":
        parameters = {key: parameters[key] for key in ("blocks", "rank")}
    elif call.args or "n" not in parameters or keys & {"m", "n"}:
        return name, {"chain": Chain.parse(ast.unparse(call))}
    free = {key: p for key, p in parameters.items() if key not in ("m", "n")}
    rule = f"Rule: {name}({', '.join(f'{key}=...' for key in free)}), where sizes come from the layer"
    needed = {key for key, p in free.items() if p.default is p.empty}
    if call.args or not needed <= keys <= set(free):
        wrong = sorted(map(str, keys - set(free)))
        what = f"unknown argument {wrong[0]!r}" if wrong else f"{', '.join(sorted(needed - keys))} missing"
        raise ValueError(f"{text!r}: {what}. {rule}.")
    try:
        return name, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"{text!r} has an argument that is not a literal. {rule}.") from error


def _of_family(linear: nn.Linear, name: str, arguments: dict[str, Any]) -> Made:
    chain, note = _chain_of(linear, name, arguments)
    return _chained(linear, chain, note) if chain is not None else Made(None, reason=note, fits=False)


def _chain_of(linear: nn.Linear, name: str, arguments: dict[str, Any]) -> tuple[Chain | None, str]:
    """The chain of a family for the size of a layer, and a note; without a chain the note says why."""
    m, n = linear.weight.shape
    if "chain" in arguments:
        return arguments["chain"], ""
    wanted = inspect.signature(FAMILIES[name]).parameters
    if "m" not in wanted and m != n:
        return None, f"it is {m} x {n}, a {name} is square"
    given, notes = dict(arguments), []
    for key in ("blocks", "block"):
        value = given.get(key)
        if isinstance(value, int) and value >= 1 and gcd(m, n) % value:
            given[key] = nearest_divisor(gcd(m, n), value)
            notes.append(f"{key}={value} does not divide {m} x {n}, so {key}={given[key]}")
    sizes = {key: size for key, size in (("m", m), ("n", n)) if key in wanted and key not in given}
    return FAMILIES[name](**sizes, **given), "; ".join(notes)


def _summed(linear: nn.Linear, families: list[tuple[str, dict[str, Any]]]) -> Made:
    chains, notes = [], []
    for name, arguments in families:
        chain, note = _chain_of(linear, name, arguments)
        if chain is None:
            return Made(None, reason=note, fits=False)
        chains.append(chain)
        notes.append(note)
    total, dense = sum(chain.nnz for chain in chains), linear.weight.numel()
    if total >= dense:
        return Made(None, reason=_joined(*notes, f"{total} parameters in the sum are no fewer than {dense}"))
    layer = SumLinear.from_linear(linear, chains)
    return Made(layer, relative_error(linear, layer), reason=_joined(*notes))


def _blast(linear: nn.Linear, blocks: int | tuple[int, int], rank: int) -> Made:
    m, n = linear.weight.shape
    given = (blocks, blocks) if isinstance(blocks, int) else tuple(blocks)
    A, B = nearest_divisor(m, given[0]), nearest_divisor(n, given[1])
    note = "" if given == (A, B) else f"blocks={given} do not divide {m} x {n}, so blocks={(A, B)}"
    count = rank * (m + n + A * B)
    if count >= m * n:
        return Made(None, reason=_joined(note, f"{count} parameters in the blocks are no fewer than {m * n}"))
    layer, fit = BlastLinear.fit(linear, (A, B), rank)
    return Made(layer, relative_error(linear, layer), fit.lower_bound, note)


@torch.no_grad()
def relative_error(linear: nn.Linear, layer: StructuredLayer) -> float:
    """||W - W'|| / ||W|| in the Frobenius norm, in single precision at least; 0 for two matrices of zeros."""
    weight = as_matrix(linear.weight, "weight")
    error, norm = float((weight - as_matrix(layer.dense(), "dense")).norm()), float(weight.norm())
    return error / norm if norm > 0 else error


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
