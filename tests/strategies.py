"""What tests of several rooms share: random patterns and chains, dense definitions, errors as a user sees them."""

from functools import reduce
from math import prod

import torch
from hypothesis import strategies as st

from flatwing import Chain, Pattern, SparseProduct
from flatwing.core import divisors
from flatwing.core.annotations import without_annotations

small = st.integers(1, 3)

# Without the type checks that only tests have, a wrong type meets the error that a user meets. Strategies build their
# examples so, too: the checks sample with `random`, which hypothesis keeps for itself.
as_user = without_annotations


@st.composite
@as_user()
def patterns(draw: st.DrawFn, largest: int = 4) -> Pattern:
    """Any pattern with small entries."""
    return Pattern(*(draw(st.integers(1, largest)) for _ in range(4)))


@st.composite
@as_user()
def chainable_chains(draw: st.DrawFn, min_factors: int = 1, max_factors: int = 4, max_size: int = 150) -> Chain:
    """Any chainable chain, redundant or not, whose matrix has at most `max_size` rows and columns."""
    length = draw(st.integers(min_factors, max_factors))
    q, p = ([draw(small) for _ in range(length)] for _ in range(2))
    ranks = [draw(small) for _ in range(length - 1)]
    a1, dL = draw(small), draw(small)
    while a1 * dL * max(prod(q), prod(p)) > max_size:  # shrink the largest radix, keep the shape of the example
        longest = max((q, p), key=prod)
        longest[longest.index(max(longest))] = 1
    return Chain.from_radices(q, p, ranks, a1, dL)


@st.composite
@as_user()
def chainable_pairs(draw: st.DrawFn) -> tuple[Pattern, Pattern]:
    """Two patterns that may follow each other in a chainable chain."""
    left, right = draw(chainable_chains(min_factors=2, max_factors=2))
    return left, right


@st.composite
@as_user()
def fitting_pairs(draw: st.DrawFn) -> tuple[Pattern, Pattern]:
    """Two patterns whose sizes fit; about half of the pairs are chainable."""
    left = draw(patterns())
    size = left.shape[1]
    a = draw(st.sampled_from(divisors(size)))
    d = draw(st.sampled_from(divisors(size // a)))
    return left, Pattern(a, size // (a * d), draw(small), d)


@st.composite
@as_user()
def valid_chains(draw: st.DrawFn, max_factors: int = 4) -> Chain:
    """Chains whose sizes fit, chainable or not."""
    nodes = [draw(patterns(largest=3))]
    for _ in range(draw(st.integers(0, max_factors - 1))):
        size = nodes[-1].shape[1]
        a = draw(st.sampled_from(divisors(size)))
        d = draw(st.sampled_from(divisors(size // a)))
        c = draw(small) if a * d <= 60 else 1
        nodes.append(Pattern(a, size // (a * d), c, d))
    return Chain(nodes)


def draw_product(
    chain: Chain,
    *,
    dtype: torch.dtype = torch.float64,
    batch: tuple[int, ...] = (),
    perms: bool = False,
    seed: int = 0,
) -> SparseProduct:
    """A product with standard normal values and, with `perms`, random permutations on both sides."""
    g = torch.Generator().manual_seed(seed)
    factors = [torch.randn(*batch, p.blocks, p.b, p.c, dtype=dtype, generator=g) for p in chain]
    m, n = chain.shape
    pair = (torch.randperm(n, generator=g), torch.randperm(m, generator=g)) if perms else (None, None)
    return SparseProduct(chain, factors, *pair)


def dense_factor(values: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """The factor by its definition, entry by entry: block (i, l) maps inputs (i, :, l) to outputs (i, :, l)."""
    a, b, c, d = pattern
    full = torch.zeros(pattern.shape, dtype=values.dtype)
    for i in range(a):
        for l in range(d):  # noqa: E741 (the symbol of the definition)
            rows = [(i * b + j) * d + l for j in range(b)]
            columns = [(i * c + k) * d + l for k in range(c)]
            full[torch.tensor(rows)[:, None], torch.tensor(columns)] = values[i * d + l]
    return full


def dense_product(product: SparseProduct) -> torch.Tensor:
    """The matrix of a product without batch by its definition: P[perm_out][:, perm_in] = K_1 ... K_L."""
    pairs = zip(product.factors, product.chain, strict=True)
    core = reduce(torch.matmul, [dense_factor(w, p) for w, p in pairs])
    full = torch.empty_like(core)
    m, n = core.shape
    rows = torch.arange(m) if product.perm_out is None else product.perm_out
    columns = torch.arange(n) if product.perm_in is None else product.perm_in
    full[rows[:, None], columns] = core
    return full
