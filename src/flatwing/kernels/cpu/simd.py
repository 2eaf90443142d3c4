"""Explicit SIMD inside numba functions: a small writer of LLVM code, and decorators for what is compiled with it.

The auto-vectoriser leaves a factor of three to five in these kernels. So the inner loops are written as LLVM code by
ordinary Python functions ("emitters"), in which unrolling is a `for` loop and a template parameter is an argument.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from ...core import source_digest

F = TypeVar("F", bound=Callable[..., Any])

INDEX = ir.IntType(64)
POINTER = ir.PointerType()

_folders: list[str | None] = []


@cache
def vector_bytes() -> int:
    """Bytes of the widest vector register of the machine that is compiled for: 64, 32 or 16.

    The machine is the host, unless the user tells numba otherwise (`NUMBA_CPU_FEATURES`).

    >>> vector_bytes() in (16, 32, 64)
    True
    """
    told = os.environ.get("NUMBA_CPU_FEATURES")
    if told is not None:
        features = {name[1:] for name in told.split(",") if name.startswith("+")}
    else:
        try:
            features = {name for name, there in llvmlite.binding.get_host_cpu_features().items() if there}
        except RuntimeError:  # LLVM cannot tell on every system
            features = set()
    return 64 if "avx512f" in features else 32 if "avx" in features else 16


@dataclass
class Loop:
    """A loop that is being written: its index, and values that are carried from one round to the next.

    Inside, assign `carried` to say what the next round gets; after the loop, it is what the last round left.
    """

    index: ir.Value
    carried: list[ir.Value] = field(default_factory=list)


class Emitter:
    """Writes LLVM code for vectors of one element type; whole numbers are 64-bit, addresses are whole numbers.

    Wherever a number is asked for, an `int` known now or a value computed at run time will do. Vectors are added,
    multiplied and permuted by methods; `at` computes addresses in elements.
    """

    def __init__(self, builder: ir.IRBuilder, element: ir.Type) -> None:
        self.builder = builder
        self.element = element
        self.item = 8 if isinstance(element, ir.DoubleType) else 4
        """Bytes of one element."""
        self.lanes = vector_bytes() // self.item
        """Elements of one vector."""
        self.vector = ir.VectorType(element, self.lanes)

    # whole numbers and addresses

    def int(self, value: int | ir.Value) -> ir.Value:
        """A whole number as an LLVM value."""
        return ir.Constant(INDEX, value) if isinstance(value, int) else value

    def add(self, *terms: int | ir.Value) -> ir.Value:
        """Sum of whole numbers."""
        total = self.int(terms[0])
        for term in terms[1:]:
            total = cast(ir.Value, self.builder.add(total, self.int(term)))
        return total

    def mul(self, left: int | ir.Value, right: int | ir.Value) -> ir.Value:
        """Product of whole numbers."""
        return cast(ir.Value, self.builder.mul(self.int(left), self.int(right)))

    def at(self, address: int | ir.Value, *elements: int | ir.Value) -> ir.Value:
        """The address that lies so many elements further; the numbers of elements are summed."""
        return self.add(address, self.mul(self.add(*elements), self.item)) if elements else self.int(address)

    # control

    @contextmanager
    def loop(
        self,
        start: int | ir.Value,
        stop: int | ir.Value,
        step: int | ir.Value = 1,
        carry: Sequence[Any] = (),
        unroll: bool = True,
    ) -> Iterator[Loop]:
        """Write `for index in range(start, stop, step)`, step > 0, around what is written inside the `with`.

        LLVM may unroll it; for a long body that only costs time to enter the loop, and to compile.
        """
        builder, before = self.builder, self.builder.block
        head, body, done = (builder.append_basic_block(name) for name in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(INDEX)
        index.add_incoming(self.int(start), before)
        phis = [builder.phi(value.type) for value in carry]
        for phi, value in zip(phis, carry, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", index, self.int(stop)), body, done)
        builder.position_at_end(body)
        loop = Loop(index, list(phis))
        yield loop
        index.add_incoming(self.add(index, step), builder.block)
        for phi, value in zip(phis, loop.carried, strict=True):
            phi.add_incoming(value, builder.block)
        back = builder.branch(head)
        if not unroll:
            back.set_metadata("llvm.loop", self._not_unrolled())
        builder.position_at_end(done)
        loop.carried = list(phis)

    def _not_unrolled(self) -> Any:
        module = self.builder.module
        never = module.add_metadata(["llvm.loop.unroll.disable"])
        # LLVM tells loops apart by a node that refers to itself
        node = module.add_metadata([ir.Constant(INDEX, len(module.metadata)), never])
        node.operands = (node, never)
        return node

    @contextmanager
    def when(self, left: int | ir.Value, relation: str, right: int | ir.Value) -> Iterator[None]:
        """Write `if left relation right` around what is written inside the `with`; the relation is "==", "<", ..."""
        with self.builder.if_then(self.builder.icmp_signed(relation, self.int(left), self.int(right))):
            yield

    # memory

    def load(self, address: ir.Value) -> ir.Value:
        """The vector at an address, which needs no alignment beyond that of an element."""
        pointer = self.builder.inttoptr(address, POINTER)
        return self.builder.load(pointer, align=self.item, typ=self.vector)

    def number(self, address: ir.Value) -> ir.Value:
        """The single number at an address."""
        return self.builder.load(self.builder.inttoptr(address, POINTER), align=self.item, typ=self.element)

    def put(self, number: ir.Value, address: ir.Value) -> None:
        """Write a single number."""
        self.builder.store(number, self.builder.inttoptr(address, POINTER), align=self.item)

    def store(self, value: ir.Value, address: ir.Value, stream: bool = False) -> None:
        """Write a vector; with `stream` past the caches, which needs an address that is a multiple of the vector."""
        pointer = self.builder.inttoptr(address, POINTER)
        written = self.builder.store(value, pointer, align=vector_bytes() if stream else self.item)
        if stream:
            one = self.builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
            written.set_metadata("nontemporal", one)

    def broadcast(self, address: ir.Value) -> ir.Value:
        """A vector with the one element at an address in every lane."""
        return self.splat(self.number(address))

    def prefetch(self, address: ir.Value) -> None:
        """Ask for the line at an address, which will be read soon."""
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [POINTER, word, word, word])
        arguments = [ir.Constant(word, value) for value in (0, 3, 1)]  # read, keep near, data
        pointer = self.builder.inttoptr(address, POINTER)
        self.builder.call(self._function("llvm.prefetch.p0", kind), [pointer, *arguments])

    def fence(self) -> None:
        """Order streamed stores before whatever other threads do next."""
        self.builder.fence("seq_cst")

    # vectors

    def splat(self, scalar: ir.Value) -> ir.Value:
        """A vector with one scalar in every lane."""
        lane = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), scalar, ir.Constant(INDEX, 0))
        return self.shuffle(lane, lane, [0] * self.lanes)

    def constant(self, value: float) -> ir.Value:
        """A vector with one constant in every lane."""
        return ir.Constant(self.vector, [ir.Constant(self.element, value)] * self.lanes)

    def times(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """Elementwise product."""
        return cast(ir.Value, self.builder.fmul(left, right))

    def plus(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """Elementwise sum."""
        return cast(ir.Value, self.builder.fadd(left, right))

    def fma(self, left: ir.Value, right: ir.Value, base: ir.Value) -> ir.Value:
        """left * right + base, rounded once."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        name = f"llvm.fma.v{self.lanes}f{8 * self.item}"
        return self.builder.call(self._function(name, kind), [left, right, base])

    def shuffle(self, left: ir.Value, right: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """Any lanes of two vectors: lane l of the first counts as l, of the second as `self.lanes` + l."""
        word = ir.IntType(32)
        mask = ir.Constant(ir.VectorType(word, len(lanes)), [ir.Constant(word, lane) for lane in lanes])
        return self.builder.shuffle_vector(left, right, mask)

    def swap(self, vector: ir.Value, distance: int) -> ir.Value:
        """Lanes l and l xor distance exchanged."""
        return self.shuffle(vector, vector, [lane ^ distance for lane in range(self.lanes)])

    def transpose(self, vectors: Sequence[ir.Value]) -> list[ir.Value]:
        """As many vectors as lanes, read as a square matrix, transposed: lanes * log2(lanes) shuffles."""
        rows, n = list(vectors), self.lanes
        step = 1
        while step < n:
            low = [lane if not lane & step else n + lane - step for lane in range(n)]
            high = [lane + step if not lane & step else n + lane for lane in range(n)]
            for i in (i for i in range(n) if not i & step):
                a, b = rows[i], rows[i + step]
                rows[i], rows[i + step] = self.shuffle(a, b, low), self.shuffle(a, b, high)
            step *= 2
        return rows

    def _function(self, name: str, kind: ir.FunctionType) -> ir.Function:
        known = self.builder.module.globals.get(name)
        return cast(ir.Function, known if known is not None else ir.Function(self.builder.module, kind, name))


def emitted(emit: Callable[..., None]) -> Any:
    """Make an emitter `emit(e, *arguments)` callable inside `compiled` functions, there as `f(kind, *arguments)`.

    `kind` is any float32 or float64; its type is the element type of the vectors. Whole numbers that are constants of
    the calling function (literals, globals) reach the emitter as `int`, all others as 64-bit values.
    """

    def define(_: Any, kind: Any, *arguments: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            given = []
            for type_, value in zip(arguments, values[1:], strict=True):
                if isinstance(type_, types.Literal):
                    given.append(int(type_.literal_value))
                else:
                    whole = isinstance(type_, types.Integer)
                    given.append(context.cast(builder, value, type_, types.int64) if whole else value)
            emit(Emitter(builder, context.get_value_type(kind)), *given)
            return context.get_dummy_value()

        return types.none(kind, *arguments), lower

    # numba wants to know the number of arguments
    first, *others = inspect.signature(emit).parameters.values()
    names = [first.replace(name="context"), first.replace(name="kind"), *others]
    define.__signature__ = inspect.Signature([p.replace(annotation=p.empty) for p in names])  # type: ignore[attr-defined]
    define.__name__ = emit.__name__
    return intrinsic(prefer_literal=True)(define)


def compiled(function: F) -> F:
    """`numba.njit` that releases the interpreter lock and keeps the machine code on disk.

    It is kept beside the source in `__pycache__`, or else in the user's cache directory. Compilation happens at the
    first call with new types of arguments. Write `@no_type_check` below this decorator, so that nothing wraps the
    function that numba reads.
    """
    # numba notices changes of the function's own file only; the name in the cache tells about all others
    function.__qualname__ += f"_{source_digest(Path(function.__code__.co_filename), Path(__file__))}"
    try:
        found = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder can be written
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))
    _folders.append(found.stats.cache_path)
    return cast(F, found)


def folder() -> str | None:
    """Where machine code is kept; None if no folder can be written."""
    return _folders[0] if _folders else None
