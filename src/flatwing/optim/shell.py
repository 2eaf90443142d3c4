"""What every method here is made of: an optimizer around other optimizers that looks like one of torch's own."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from .sharded import all_finite

Closure = Callable[[], Any]
SEPARATOR = "/"  # of a method's name and its entry in a state dict; no optimizer of torch has it in a key


class Guarded(Optimizer):
    """An optimizer that looks at the gradients before a step.

    Sparse ones raise `ValueError`. Where one is NaN or infinite, on any rank, the step is to be skipped: nothing
    changes but `skipped`, the number of such steps, and the first warns.
    """

    skipped: int = 0

    def _usable(self) -> bool:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        for gradient in gradients:
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"a gradient has layout {gradient.layout}. Rule: dense gradients. Write nn.Embedding(sparse=False)."
                )
        if all_finite(gradients):
            return True
        if not self.skipped:
            warnings.warn("a gradient is not finite: the step is skipped, nothing changed", stacklevel=5)
        self.skipped += 1
        return False


class Shell(Guarded):
    """Several optimizers as one: `step` steps each; groups, state and state dict are all of theirs.

    The groups are the members' own dicts, so learning rate schedulers, clipping and `GradScaler` work as usual, and
    schedulers of a member go on working. Raises `ValueError` if there is no member, if two share a parameter, and for
    a member that needs a closure of its own: `torch.optim.LBFGS`, SAM, ASAM.

    >>> body, head = nn.Linear(4, 4), nn.Linear(4, 2)
    >>> both = Shell([torch.optim.SGD(body.parameters(), 0.1), torch.optim.AdamW(head.parameters(), 1e-3)])
    >>> [group["lr"] for group in both.param_groups]
    [0.1, 0.001]
    """

    needs_closure = False
    passes_closure = False  # whether `step` hands its closure to the members; else none of them may need one

    def __init__(self, members: Sequence[Optimizer]) -> None:
        members = tuple(members) if isinstance(members, Iterable) else (members,)
        if not members:
            raise ValueError("there is no optimizer. Rule: at least one. Pass [torch.optim.AdamW(...)].")
        for member in members:
            if not isinstance(member, Optimizer):
                kind = f"the class {member.__name__}" if isinstance(member, type) else f"a {type(member).__name__}"
                raise ValueError(
                    f"got {kind}. Rule: a torch.optim.Optimizer, or a list of them. "
                    "Make one of the parameters first: torch.optim.AdamW(model.parameters())."
                )
            if not self.passes_closure and (inner := needing_closure(member)):
                raise ValueError(
                    f"{inner} is inside {type(self).__name__}, and steps with a closure. Rule: such an optimizer goes "
                    f"outermost. {_order(inner, type(self).__name__)}"
                )
        super().__init__([nn.Parameter(torch.empty(0))], {})  # hooks only: groups and state are the members'
        self.members = members
        seen = [p for group in self.param_groups for p in group["params"]]
        if len(seen) != len(set(seen)):
            raise ValueError("a parameter is in two optimizers. Rule: each in one. Split them, as `muon_groups` does.")

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The groups of the members, in order; the dicts are the members' own."""
        return [group for member in self._members() for group in member.param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ignored: torch's constructor sets what belongs to the members here."""

    @property
    def state(self) -> Mapping[torch.Tensor, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state of each parameter, kept by the member that has the parameter."""
        members = self._members()
        return members[0].state if len(members) == 1 else _States(members)

    @state.setter
    def state(self, state: Mapping[torch.Tensor, Any]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Ignored, as for `param_groups`."""

    def _members(self) -> tuple[Optimizer, ...]:
        return self.__dict__.get("members", ())

    @override
    def step(self, closure: Closure | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of each member; `closure`, if given, is called once before."""
        loss = called(closure)
        for member in self.members:
            member.step()
        return loss

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the last member; where the group is refused, none is added."""
        if not (members := self._members()):
            return  # torch's constructor adds what is not a group of ours
        members[-1].add_param_group(param_group)
        try:
            self._admit(self.param_groups[-1])
        except ValueError:
            self._drop_last_group()
            raise

    def _admit(self, group: dict[str, Any]) -> None:
        """Raise `ValueError` if the group that was just added must not stay."""
        taken = {p for other in self.param_groups[:-1] for p in other["params"]}
        if not taken.isdisjoint(group["params"]):
            raise ValueError("a parameter of the group is in another optimizer already. Rule: each in one.")

    def _drop_last_group(self) -> None:
        last = self.members[-1]
        if isinstance(last, Shell):
            last._drop_last_group()
        else:
            last.param_groups.pop()

    @override
    def state_dict(self) -> dict[str, Any]:
        """As that of a single optimizer: parameters are numbered through all members."""
        states: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        for member in self.members:
            part, first = member.state_dict(), sum(len(group["params"]) for group in groups)
            states |= {first + index: entries for index, entries in part["state"].items()}
            groups += [group | {"params": [first + k for k in group["params"]]} for group in part["param_groups"]]
        return {"state": states, "param_groups": groups}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned; raises `ValueError` if the groups are not the same in number and size."""
        groups = list(state_dict["param_groups"])
        sizes = [len(group["params"]) for group in self.param_groups]
        given = [len(group["params"]) for group in groups]
        if sizes != given:
            raise ValueError(
                f"the state has groups of {given} parameters, the optimizer of {sizes}. Rule: the same groups. "
                "Build the optimizer as the one that was saved."
            )
        for member in self.members:
            count = len(member.param_groups)
            part, groups = groups[:count], groups[count:]
            numbers = [index for group in part for index in group["params"]]
            states = {k: state_dict["state"][index] for k, index in enumerate(numbers) if index in state_dict["state"]}
            bounds = iter(range(len(numbers)))
            part = [group | {"params": [next(bounds) for _ in group["params"]]} for group in part]
            member.load_state_dict({"state": states, "param_groups": part})

    @override
    def __getstate__(self) -> dict[str, Any]:
        # a scheduler puts a `step` of its own here, bound to this very optimizer, and notes that it was called
        patched = ("step", "_opt_called")
        return {k: value for k, value in self.__dict__.items() if k not in patched and not k.endswith("_hooks")}


class Wrapper(Shell):
    """Base class of the methods that go around any optimizer, or around several as if they were one.

    A subclass implements `update`, which calls `self.base.step()`. Its hyper-parameters are entries of every group,
    under their own names, given by `settings`; what it keeps per parameter is in `self.kept[p]`, a dict of tensors
    that travels in the state dict as "<name>/<key>" with its own dtype, and whole numbers that it counts with are
    entries of the groups like any other. Settings that have a range are checked in `_complete`, which is called for
    each group when it comes and before each step, as anybody may set an entry of a group.

    Before `update`, gradients are looked at: sparse ones raise `ValueError`, and where one is NaN or infinite, on any
    rank, the step is skipped: nothing changes but `skipped`, the number of such steps, and the first warns.
    """

    name: str  # of the method in a state dict
    refuses_complex = False

    def __init__(self, base: Optimizer | Sequence[Optimizer], settings: Mapping[str, Any]) -> None:
        base = base if isinstance(base, Optimizer) else Shell(base)
        super().__init__([base])
        if self.name in names_inside(base):
            raise ValueError(
                f"{type(self).__name__} is around another {type(self).__name__}. Rule: once. Leave one out."
            )
        self.kept: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        self.defaults = {**self.base.defaults, **settings}
        self._settings = dict(settings)
        self._check()

    @property
    def base(self) -> Optimizer:
        """The optimizer inside."""
        return self.members[0]

    def update(self) -> None:
        """Step the base, and do what the method does around that; gradients are finite and dense."""
        raise TypeError(f"{type(self).__name__} has no update of its own.")

    @torch.no_grad()
    @override
    def step(self, closure: Closure | None = None) -> Any:
        """One step, or none where a gradient is not finite; `closure`, if given, is called once before.

        Raises `ValueError` for a setting that was put out of range in its group since the last step.
        """
        self._check()
        loss = called(closure)
        if self._usable():
            self.update()
        return loss

    def _check(self) -> None:
        for group in self.param_groups:
            self._complete(group)

    def parameters(self) -> Iterator[torch.Tensor]:
        """All parameters of all groups, in order."""
        return (p for group in self.param_groups for p in group["params"])

    @override
    def _admit(self, group: dict[str, Any]) -> None:
        self._complete(group)  # settings that the group does not name are those of the constructor

    def _complete(self, group: dict[str, Any]) -> None:
        for name, value in self._settings.items():
            group.setdefault(name, value)
        if self.refuses_complex and any(p.is_complex() for p in group["params"]):
            raise ValueError(
                f"{type(self).__name__} has no rule for complex parameters. Rule: real ones. "
                "Leave complex parameters to an optimizer of their own."
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        """That of the base, with what the method keeps per parameter among the entries of the parameter."""
        state = super().state_dict()
        for index, p in enumerate(self.parameters()):
            if kept := self.kept.get(p):
                named = {f"{self.name}{SEPARATOR}{key}": value for key, value in kept.items()}
                state["state"][index] = {**state["state"].get(index, {}), **named}
        return state

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, or the state dict of a bare base: the method then begins anew."""
        mine = f"{self.name}{SEPARATOR}"
        rest: dict[Any, dict[str, Any]] = {}
        kept: dict[Any, dict[str, torch.Tensor]] = {}
        for index, entries in state_dict["state"].items():
            own = {key.removeprefix(mine): v for key, v in entries.items() if str(key).startswith(mine)}
            others = {key: value for key, value in entries.items() if not str(key).startswith(mine)}
            if own:
                kept[index] = own
            if others:
                rest[index] = others
        numbers = [index for group in state_dict["param_groups"] for index in group["params"]]
        super().load_state_dict({**state_dict, "state": rest})
        self.kept = {}
        for index, p in zip(numbers, self.parameters(), strict=True):
            if index in kept:
                self.kept[p] = {key: value.to(p.device).clone() for key, value in kept[index].items()}
        self._check()


def names_inside(optimizer: Optimizer) -> set[str]:
    """The names of the methods that an optimizer is wrapped in, at any depth.

    >>> names_inside(torch.optim.SGD([torch.zeros(1)], 0.1))
    set()
    """
    members = optimizer.members if isinstance(optimizer, Shell) else ()
    inner = set().union(*(names_inside(member) for member in members))
    return inner | {optimizer.name} if isinstance(optimizer, Wrapper) else inner


def needing_closure(optimizer: Optimizer) -> str | None:
    """The name of what cannot step without a closure, of an optimizer and all that is inside; None if nothing.

    >>> needing_closure(torch.optim.SGD([torch.zeros(1)], 0.1)), needing_closure(torch.optim.LBFGS([torch.zeros(1)]))
    (None, 'LBFGS')
    """
    if isinstance(optimizer, Shell):
        own = type(optimizer).__name__ if optimizer.needs_closure else None
        return own or next((name for member in optimizer.members if (name := needing_closure(member))), None)
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return type(optimizer).__name__ if closure is not None and closure.default is closure.empty else None


def _order(inner: str, outer: str) -> str:
    if inner in ("SAM", "ASAM"):
        return f"Write {inner}({outer}(optimizer)), or {inner}([...]) around several."
    return "Take an optimizer that steps along the gradients that are there, such as torch.optim.AdamW."


class _States(Mapping[torch.Tensor, Any]):
    """The states of several optimizers as one mapping."""

    def __init__(self, members: Sequence[Optimizer]) -> None:
        self.owner = {p: member for member in members for group in member.param_groups for p in group["params"]}

    @override
    def __getitem__(self, p: torch.Tensor) -> Any:
        return self.owner[p].state[p]

    @override
    def __contains__(self, p: object) -> bool:
        return p in self.owner and p in self.owner[p].state  # pyright: ignore[reportArgumentType]

    @override
    def __iter__(self) -> Iterator[torch.Tensor]:
        return (p for p, member in self.owner.items() if p in member.state)

    @override
    def __len__(self) -> int:
        return sum(1 for _ in self)


def called(closure: Closure | None) -> Any:
    """What the closure of a step returns, called with gradients on; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
