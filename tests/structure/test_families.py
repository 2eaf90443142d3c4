from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given

from flatwing import Chain, Pattern, factorize
from flatwing.core import divisors
from flatwing.structure import FAMILIES
from strategies import as_user, chainable_chains, dense_factor, dense_product, draw_product

# Arguments of each family, with the shape they must give. A new family needs an example here: the kit below runs it.
EXAMPLES = {
    "butterfly": [((1,), (1, 1)), ((7,), (7, 7)), ((12,), (12, 12)), ((24, (4, 6), 2), (24, 24))],
    "monarch": [
        ((6, 8, 2), (6, 8)),
        ((12, 12, 3, 2), (12, 12)),
        ((5, 7, 1), (5, 7)),
        ((6, 8, (3, 2), 2), (6, 8)),
        ((6, 8, (1, 4)), (6, 8)),
        ((6, 8, (6, 1), 2), (6, 8)),
    ],
    "block_diagonal": [((6, 9, 3), (6, 9)), ((4, 4, 4), (4, 4))],
    "low_rank": [((6, 4, 2), (6, 4)), ((3, 5, 7), (3, 5))],
    "block_butterfly": [((16, 2), (16, 16)), ((24, 2, (3, 4)), (24, 24)), ((6, 6), (6, 6))],
    "kronecker": [(([(2, 3), (4, 5)],), (8, 15)), (([(3, 2)],), (3, 2)), (([(2, 2), (1, 3), (3, 1)],), (6, 6))],
    "deformable": [(([(6, 8, 3, 4, 2), (8, 8, 4, 4, 1)],), (6, 8))],
    "dense": [((3, 5), (3, 5)), ((1, 1), (1, 1))],
    "from_radices": [(((3, 4), (4, 5), (2,)), (12, 20)), (((2, 1, 3), (1, 2, 2), (1, 2), 3, 2), (36, 24))],
}
CASES = [(name, arguments, shape) for name in FAMILIES for arguments, shape in EXAMPLES.get(name, ())]


def test_every_family_has_an_example() -> None:
    assert set(EXAMPLES) == set(FAMILIES)


@pytest.mark.parametrize(("name", "arguments", "shape"), CASES, ids=[f"{n}{a}" for n, a, _ in CASES])
def test_family_obeys_its_law(name: str, arguments: tuple, shape: tuple[int, int]) -> None:
    chain = FAMILIES[name](*arguments)
    again = FAMILIES[name](*arguments)
    assert chain.shape == shape
    assert chain == again
    assert hash(chain) == hash(again)
    assert chain.chainable
    assert chain.nnz == sum(int(p.support().sum()) for p in chain)
    assert Chain.parse(str(chain)) == chain
    assert Chain.from_json(chain.to_json()) == chain
    assert Chain.parse(f"{name}({', '.join(map(repr, arguments))})") == chain
    assert bool((dense_product(draw_product(chain))[~chain.pattern.support()] == 0).all())


@given(chainable_chains())
def test_radices_reach_every_chainable_chain(chain: Chain) -> None:
    q, p = chain.radices
    assert Chain.from_radices(q, p, chain.ranks, chain[0].a, chain[-1].d) == chain


def test_radices_reach_every_small_chainable_chain() -> None:
    """Over all pairs of fitting patterns, not only those that radices made."""
    reached = 0
    for a, b, c, d, a2, c2 in product((1, 2, 4), (1, 3), (1, 2, 3, 4), (1, 2, 4), (1, 2, 3, 4), (1, 2)):
        size = a * c * d
        for d2 in divisors(size):
            if size % (a2 * d2):
                continue
            with as_user():
                chain = Chain([(a, b, c, d), (a2, size // (a2 * d2), c2, d2)])
                if chain.chainable:
                    q, p = chain.radices
                    assert Chain.from_radices(q, p, chain.ranks, a, d2) == chain
                    reached += 1
    assert reached > 200


def test_from_radices_formula() -> None:
    assert Chain.from_radices((2, 3, 5), (7, 2, 3), (4, 6), a1=2, dL=3) == Chain(
        [(2, 2, 28, 45), (14, 12, 12, 15), (28, 30, 3, 3)]
    )


@pytest.mark.parametrize("n", [1, 2, 7, 12, 30, 64, 97])
def test_butterfly_of_any_size(n: int) -> None:
    chain = Chain.butterfly(n)
    assert prod(p.b for p in chain) == n
    assert all(p.b == p.c for p in chain)
    assert set(chain.ranks) <= {1}
    assert chain.nnz == n * sum(p.b for p in chain)
    assert chain.pattern == Pattern(1, n, n, 1)


def test_butterfly_is_the_dyadic_one_for_powers_of_two() -> None:
    assert Chain.butterfly(16).patterns == tuple(Pattern(2**i, 2, 2, 8 // 2**i) for i in range(4))
    assert Chain.butterfly(16, radices=(4, 4)) == Chain.monarch(16, 16, blocks=4)
    assert Chain.butterfly(16, rank=3).ranks == (3, 3, 3)


def test_monarch_blocks_and_cost() -> None:
    chain = Chain.monarch(20, 30, blocks=5, rank=3)
    assert [p.blocks for p in chain] == [5, 5]
    assert chain.nnz == 3 * 5 * (20 + 30)
    assert chain.ranks == (3,)


@pytest.mark.parametrize(("A", "B", "rank"), [(3, 2, 1), (2, 4, 3), (1, 4, 2), (6, 1, 2)])
def test_monarch_blocks_of_both_kinds(A: int, B: int, rank: int) -> None:
    """Rows of equal number modulo A, in one of the B column blocks, are any matrix of rank `rank`, and no more."""
    m, n = 6, 8
    chain = Chain.monarch(m, n, (A, B), rank)
    assert chain.nnz == rank * (B * m + A * n)
    assert [p.blocks for p in chain] == [A, B]
    product = draw_product(chain)
    dense = dense_product(product)
    for k in range(A):
        for block in dense[k::A].split(n // B, dim=1):
            assert int(torch.linalg.matrix_rank(block)) == min(rank, *block.shape)
    strided = torch.randn(A, m // A, rank, dtype=torch.float64)
    wide = torch.randn(A, B, rank, n // B, dtype=torch.float64)
    wanted = torch.zeros(m, n, dtype=torch.float64)
    for k in range(A):
        for b in range(B):
            wanted[k::A, b * (n // B) : (b + 1) * (n // B)] = strided[k] @ wide[k, b]
    fitted = factorize(wanted, chain)
    assert fitted.certificate.error < 1e-10


@pytest.mark.parametrize("blocks", [(3, 2), [3, 2]])
def test_monarch_blocks_may_be_a_pair(blocks: tuple | list) -> None:
    with as_user():
        assert Chain.monarch(6, 8, blocks) == Chain.monarch(6, 8, (3, 2)) != Chain.monarch(6, 8, (2, 2))
    assert Chain.monarch(6, 8, (2, 2)) == Chain.monarch(6, 8, 2)


@pytest.mark.parametrize(("n", "block", "radices"), [(32, 4, None), (24, 2, (3, 4)), (36, 3, (2, 2, 3))])
def test_block_butterfly_holds_every_butterfly_of_blocks(n: int, block: int, radices: tuple | None) -> None:
    """Factors whose entries are blocks, kron(butterfly factor, block by block), fit into the patterns."""
    chain = Chain.block_butterfly(n, block, radices)
    inner = Chain.butterfly(n // block, radices)
    assert set(chain.ranks) == {block}
    assert len(chain) == len(inner)
    for outer, coarse in zip(chain, inner, strict=True):
        blocked = torch.kron(coarse.support(), torch.ones(block, block, dtype=torch.bool))
        assert outer.nnz == int(blocked.sum())
        assert torch.equal(blocked.sum(0).unique(), outer.support().sum(0).unique())


def test_kronecker_contains_the_kronecker_products() -> None:
    """A (x) B = (A (x) I)(I (x) B), and both have the supports of the chain."""
    g = torch.Generator().manual_seed(0)
    shapes = [(2, 3), (3, 2), (2, 2)]
    a, b, c = (torch.randn(m, n, generator=g, dtype=torch.float64) for m, n in shapes)
    chain = Chain.kronecker(shapes)
    eye = torch.eye
    parts = [
        torch.kron(a, eye(3 * 2)),
        torch.kron(torch.kron(eye(3), b), eye(2)),
        torch.kron(eye(3 * 2), c),
    ]
    for part, pattern in zip(parts, chain, strict=True):
        assert torch.equal(part != 0, pattern.support())
    torch.testing.assert_close(parts[0] @ parts[1] @ parts[2], torch.kron(torch.kron(a, b), c), rtol=1e-14, atol=1e-14)


def test_deformable_factor_is_diagonal_blocks() -> None:
    """Factor (p, q, r, s, t): p x q, block-diagonal, each block r x s diagonals of size t."""
    (pattern,) = Chain.deformable([(12, 18, 2, 3, 3)])
    assert pattern.shape == (12, 18)
    values = torch.ones(pattern.blocks, pattern.b, pattern.c)
    block = torch.kron(torch.ones(2, 3), torch.eye(3))
    assert torch.equal(dense_factor(values, pattern), torch.block_diag(block, block))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Chain.butterfly(0), r"n and rank must be >= 1, got \[0, 1\]"),
        (lambda: Chain.butterfly(2, rank=0), r"n and rank must be >= 1, got \[2, 0\]"),
        (lambda: Chain.butterfly(12, (4, 4)), r"radices \(4, 4\) multiply to 16, but n=12\. .*finest .* \(2, 2, 3\)"),
        (lambda: Chain.butterfly(1, ()), r"radices \(\) multiply to 1, but n=1"),
        (lambda: Chain.butterfly(4, (-2, -2)), r"radices must be >= 1, got \[-2, -2\]"),
        (lambda: Chain.monarch(12, 18, blocks=4), r"blocks=4 does not divide 12 and 18\. .*nearest good value is 3"),
        (lambda: Chain.monarch(12, 18, blocks=0), r"m, n, blocks and rank must be >= 1, got \[12, 18, 0, 0, 1\]"),
        (lambda: Chain.monarch(12, 18, (5, 3)), r"blocks=5 does not divide 12\. .*nearest good value is 4"),
        (lambda: Chain.monarch(12, 18, (3, 5)), r"blocks=5 does not divide 18\. .*nearest good value is 6"),
        (lambda: Chain.monarch(12, 18, (0, 3)), r"must be >= 1, got \[12, 18, 0, 3, 1\]"),
        (lambda: Chain.monarch(12, 18, (2, 3, 2)), r"blocks=\(2, 3, 2\)\. Rule: one number, or two"),
        (lambda: Chain.monarch(12, 18, ()), r"blocks=\(\)\. Rule: one number, or two"),
        (lambda: Chain.block_diagonal(6, 9, 2), r"blocks=2 does not divide 6 and 9\. .*nearest good value is 1"),
        (lambda: Chain.low_rank(0, 4, 2), r"m, n and rank must be >= 1, got \[0, 4, 2\]"),
        (lambda: Chain.block_butterfly(32, 5), r"block=5 does not divide 32\. .*nearest good value is 4"),
        (lambda: Chain.block_butterfly(32, 4, (2, 2)), r"multiply to 4, but n / block = 8\. .*\(2, 2, 2\)"),
        (lambda: Chain.kronecker([]), r"kronecker needs the shapes of its matrices, got \[\]\. Write \[\(2, 3\)"),
        (lambda: Chain.kronecker([(2, 3), (4, 0)]), r"must be >= 1, got \[3, 0\]"),
        (lambda: Chain.kronecker([(2, 3, 4)]), r"kronecker needs the shapes"),
        (lambda: Chain.kronecker([2, 3]), r"kronecker needs the shapes"),
        (lambda: Chain.deformable([(6, 8, 3, 4, 3)]), r"rule p = k r t and q = k s t .* = 6/9 and .* = 8/12"),
        (lambda: Chain.deformable([(6, 8, 3)]), r"deformable factor \(6, 8, 3\): rule five whole numbers"),
        (lambda: Chain.deformable([(6, 8, 0, 4, 2)]), r"p, q, r, s and t must be >= 1"),
        (lambda: Chain.deformable([]), r"at least one pattern, got none"),
        (lambda: Chain.dense(3, 0), r"m and n must be >= 1, got \[3, 0\]"),
        (lambda: Chain.from_radices((2, 2), (2,), (1,)), r"L-1 ranks, got 2, 1 and 1\. Write for example"),
        (lambda: Chain.from_radices((2, 2), (2, 2), (1, 1)), r"L-1 ranks, got 2, 2 and 2"),
        (lambda: Chain.from_radices((), (), ()), r"L-1 ranks, got 0, 0 and 0"),
        (lambda: Chain.from_radices((2, 0), (2, 2), (1,)), r"q must be >= 1, got \[2, 0\]"),
        (lambda: Chain.from_radices((2, 2), (2, 2), (0,)), r"ranks must be >= 1, got \[0\]"),
        (lambda: Chain.from_radices((2,), (2,), (), a1=0), r"a1 must be >= 1, got \[0\]"),
    ],
)
def test_wrong_arguments(call, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Chain.butterfly(8.0), r"n and rank must be whole numbers, got \[8\.0, 1\]"),
        (lambda: Chain.butterfly(8, 2), r"radices must be whole numbers, got 2"),
        (lambda: Chain.monarch("12", 12, 3), r"blocks and rank must be whole numbers, got \['12', 12, 3, 3, 1\]"),
        (lambda: Chain.low_rank(4, 4, 1.5), r"m, n and rank must be whole numbers"),
        (lambda: Chain.deformable([(6.0, 8, 3, 4, 2)]), r"p, q, r, s and t must be whole numbers, got \(6\.0"),
    ],
)
def test_arguments_are_whole_numbers(call, message: str) -> None:
    with as_user(), pytest.raises(TypeError, match=message):
        call()
