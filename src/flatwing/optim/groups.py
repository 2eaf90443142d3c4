"""Parameter groups by name: each trainable parameter in exactly one, and a table that says in which."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from torch import nn
from typing_extensions import override

from ..core import require_number
from .blocks import Rules, classify_blocks, nearest
from .check import require_model, require_rules
from .roles import Site, role_of, sites

HIDDEN = frozenset({"qk", "vo", "ffn"})  # the blocks whose matrices Muon was made for


@final
class Groups(list[dict[str, Any]]):
    """Parameter groups as any optimizer takes them: a list of dicts that prints as a table.

    Each group has "params" and, in the same order, "param_names", without what wrappers add; torch keeps the names in
    state dicts. The other entries are settings.

    >>> print(weight_decay_groups(nn.Linear(3, 2), 0.1))
    tensors    parameters  settings
          1             6  weight_decay=0.1: weight
          1             2  weight_decay=0.0: bias
    """

    @override
    def __str__(self) -> str:
        lines = [f"{'tensors':<8}{'parameters':>13}  settings"]
        for group in self:
            settings = ", ".join(f"{k}={v}" for k, v in group.items() if k not in ("params", "param_names"))
            names = group["param_names"]
            shown = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
            count = sum(p.numel() for p in group["params"])
            lines.append(f"{len(names):>7} {count:>13,}  {settings or 'as the optimizer'}: {shown or 'nothing'}")
        return "\n".join(lines)


def make_group(members: Iterable[tuple[str, nn.Parameter]], **settings: Any) -> dict[str, Any]:
    """A parameter group of named parameters.

    >>> make_group([("b", nn.Linear(1, 1).bias)], lr=0.1)["param_names"]
    ['b']
    """
    members = list(members)
    return {"params": [p for _, p in members], "param_names": [name for name, _ in members], **settings}


def group_by_name(model: nn.Module, rules: Sequence[tuple[str, Mapping[str, Any]]]) -> Groups:
    """One group per rule (regex, settings): a trainable parameter joins the group of the first regex found in its name.

    Names are those without wrappers (DDP, FSDP, `torch.compile`); a tied parameter answers to each of its names.
    Settings are what the optimizer takes: "lr" in its unit, "weight_decay", ...
    Raises `ValueError` for a parameter that no rule matches, and for a rule that matches none, frozen ones included.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> groups = group_by_name(model, [("bias", {"weight_decay": 0.0}), ("", {})])
    >>> [group["param_names"] for group in groups]
    [['0.bias', '2.bias'], ['0.weight', '2.weight']]
    """
    require_rules(rules, "[('bias', {'weight_decay': 0.0}), ('', {})]")
    for pattern, settings in rules:
        if not isinstance(settings, Mapping):
            raise ValueError(f"rule {pattern!r} has {settings!r}. Rule: a dict of settings. Write {{}} for none.")
        if taken := {"params", "param_names"} & set(settings):
            raise ValueError(f"rule {pattern!r} sets {taken.pop()!r}. Rule: settings of the optimizer. Leave it out.")
    places = _places(model)
    names = {p: [site.name for site in same] for p, same in places.items()}
    members: list[list[tuple[str, nn.Parameter]]] = [[] for _ in rules]
    used: set[int] = set()
    for p, own in names.items():
        found = next((i for i, (pattern, _) in enumerate(rules) if any(re.search(pattern, n) for n in own)), None)
        if found is not None:
            used.add(found)
            members[found] += [(own[0], p)] if p.requires_grad else []
        elif p.requires_grad:
            raise ValueError(
                f"parameter {own[0]!r} of shape {tuple(p.shape)} matches no rule. Rule: each in one group. "
                f"Add ({re.escape(own[0])!r}, {{...}}), or a last rule ('', {{...}}) for all that is left."
            )
    for index, (pattern, _) in enumerate(rules):
        if index not in used:
            raise ValueError(
                f"rule {pattern!r} matched no parameter. Rule: each one matches; the first match wins. "
                f"{nearest(pattern, [name for own in names.values() for name in own])}"
            )
    return Groups(make_group(own, **settings) for own, (_, settings) in zip(members, rules, strict=True))


def weight_decay_groups(model: nn.Module, weight_decay: float, *, embeddings: bool = True) -> Groups:
    """Two groups: matrices, which decay, and norms, biases and other vectors, which do not.

    `weight_decay` is in the unit of the optimizer (for AdamW, a fraction of the weight per unit of lr). With
    `embeddings=False` embeddings of tokens, positions and patches do not decay either. A group may be empty.
    Raises `ValueError` for a negative weight decay or a model without trainable parameters.

    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    >>> decay, rest = weight_decay_groups(model, 0.1, embeddings=False)
    >>> decay["param_names"], rest["param_names"]
    (['2.weight'], ['0.weight', '1.weight', '1.bias', '2.bias'])
    """
    _require_decay(weight_decay)
    found = [(same[0].name, p, _decays(same, embeddings)) for p, same in _places(model).items() if p.requires_grad]
    if not found:
        raise ValueError(f"{type(model).__name__} has no parameter that requires grad. Unfreeze what shall be trained.")
    return Groups(
        make_group(((name, p) for name, p, yes in found if yes is decays), weight_decay=weight_decay * decays)
        for decays in (True, False)
    )


def muon_groups(
    model: nn.Module, *, weight_decay: float | None = None, embeddings: bool = True, rules: Rules | None = None
) -> tuple[Groups, Groups]:
    """The groups for Muon, hidden matrices, and those for AdamW, everything else.

    Muon takes what `classify_blocks(model, rules)` puts into qk, vo and ffn and has two dimensions; embeddings, heads,
    norms, biases, routers, convolutions, and the factors and stacked experts with three dimensions go to AdamW (Jordan
    2024). A fused projection is one matrix to Muon. With `weight_decay`, in the unit of each optimizer, it falls on
    Muon's matrices and on those tensors of AdamW that `weight_decay_groups` would let decay; without, groups do not
    mention it and the optimizer's default falls on all.
    Raises `ValueError` where `classify_blocks` does, and if there is no matrix for Muon.

    >>> from flatwing.optim import Shell
    >>> model = nn.TransformerEncoderLayer(8, 2, 16)
    >>> matrices, rest = muon_groups(model, weight_decay=0.1)
    >>> from torch.optim import AdamW, Muon
    >>> both = Shell([Muon(matrices, lr=0.02), AdamW(rest, lr=3e-4)])
    >>> matrices[0]["param_names"]
    ['self_attn.in_proj_weight', 'self_attn.out_proj.weight', 'linear1.weight', 'linear2.weight']
    """
    if weight_decay is not None:
        _require_decay(weight_decay)
    entries = classify_blocks(model, rules).entries
    hidden = [entry for entry in entries if HIDDEN.issuperset(entry.blocks) and entry.parameter.ndim == 2]
    hidden = [entry for entry in hidden if not _is_bias(entry.name)]
    if not hidden:
        raise ValueError(
            f"{type(model).__name__} has no hidden matrix. Rule: at least one trainable tensor of two dimensions in "
            f"{', '.join(sorted(HIDDEN))}. Use AdamW alone, or name the matrices: rules=[('regex', 'ffn')]."
        )
    matrices = [(entry.name, entry.parameter) for entry in hidden]
    taken = {entry.parameter for entry in hidden}
    rest = [(entry.name, entry.parameter) for entry in entries if entry.parameter not in taken]
    if weight_decay is None:
        return Groups([make_group(matrices)]), Groups([make_group(rest)])
    places = _places(model)
    split = [
        make_group(
            ((name, p) for name, p in rest if _decays(places[p], embeddings) is decays),
            weight_decay=weight_decay * decays,
        )
        for decays in (True, False)
    ]
    return Groups([make_group(matrices, weight_decay=weight_decay)]), Groups(g for g in split if g["params"])


def _places(model: nn.Module) -> dict[nn.Parameter, list[Site]]:
    require_model(model)
    places: dict[nn.Parameter, list[Site]] = defaultdict(list)
    for site in sites(model):
        places[site.parameter].append(site)
    return dict(places)


def _decays(same: Sequence[Site], embeddings: bool) -> bool:
    p = same[0].parameter
    if p.ndim <= 1 or p.numel() == max(p.shape) or _is_bias(same[0].name):
        return False
    roles = {found[0] for site in same if (found := role_of(site))}
    return "norm" not in roles and (embeddings or "emb" not in roles)


def _is_bias(name: str) -> bool:
    return name.endswith(("bias", "bias_k", "bias_v"))  # those of stacked experts have two dimensions


def _require_decay(weight_decay: Any) -> None:
    require_number("weight_decay", weight_decay, 0.0, good=0.1)
