"""Unknown orders of rows and columns: found where there is one, refused or declared missing where there is none."""

import subprocess
import sys
from collections.abc import Callable
from math import prod

import numpy as np
import pytest
import torch

from cases import noisy, relative_error
from flatwing import Chain, choose, factorize
from flatwing.factorize import search_permutation as module
from flatwing.factorize.permutation import tree
from flatwing.factorize.search_permutation import block_permutation, cluster_orders, grow, listed_orders
from flatwing.structure import transforms
from strategies import as_user

KINDS: dict[str, Callable[[int], torch.Tensor]] = {
    "hadamard": lambda n: transforms.hadamard(n).dense(),
    "dft": lambda n: transforms.dft(n).dense()[:, transforms.digit_reversal((2,) * (n.bit_length() - 1))],
    "orthogonal": lambda n: transforms.random_orthogonal(n).dense(),
}
RECTANGULAR = Chain.from_radices((3, 2, 2), (2, 4, 2), (1, 1))
LARGE_BLOCKS = Chain.from_radices((3, 4, 5), (2, 4, 3), (1, 1))


def shuffled(A: torch.Tensor) -> torch.Tensor:
    return A[torch.randperm(A.shape[0])][:, torch.randperm(A.shape[1])]


@pytest.mark.parametrize("level", [0.0, 0.01])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "seed"), [(8, 0), (8, 1), (16, 0), (16, 1), (32, 0)])
def test_the_order_is_found(kind: str, n: int, seed: int, level: float) -> None:
    torch.manual_seed(seed)
    ordered = noisy(KINDS[kind](n), level)
    A, chain = shuffled(ordered), Chain.butterfly(n)
    result = factorize(A, chain, perm="search")
    truth = factorize(ordered, chain)
    assert result.certificate.exact == (level == 0)
    assert result.certificate.error <= 1.01 * truth.certificate.error + 1e-14
    assert result.permutation.startswith("search: clusters from ")
    # what is promised is what the product does, its permutations included
    assert relative_error(A, result.product) == pytest.approx(result.certificate.error, rel=1e-10, abs=1e-14)
    assert not any("failed" in note for note in result.notes)


@pytest.mark.parametrize("kind", ["hadamard", "dft"])
def test_much_noise(kind: str) -> None:
    ordered = noisy(KINDS[kind](32), 0.3)
    result = factorize(shuffled(ordered), "butterfly(32)", perm="search")
    assert result.certificate.error <= 1.01 * factorize(ordered, "butterfly(32)").certificate.error
    assert result.notes == ("search: the lower bound holds for the order that was found, not for all orders",)


@pytest.mark.parametrize("chain", [RECTANGULAR, LARGE_BLOCKS, Chain.monarch(16, 16, blocks=4), Chain.butterfly(30)])
@pytest.mark.parametrize("flavour", ["chain", "transpose"])
def test_any_sizes_of_clusters(chain: Chain, flavour: str) -> None:
    A = shuffled(transforms.random_product(chain, dtype=torch.complex128).dense())
    result = factorize(A, chain, perm="search") if flavour == "chain" else factorize(A.mT, chain.T, perm="search")
    A = A if flavour == "chain" else A.mT
    assert result.certificate.exact
    assert relative_error(A, result.product) < 1e-13


@pytest.mark.parametrize("start", ["clusters from rows", "clusters from columns"])
@pytest.mark.parametrize("chain", [RECTANGULAR, LARGE_BLOCKS, Chain.butterfly(16)])
def test_both_trees_give_the_order(chain: Chain, start: str) -> None:
    A = shuffled(transforms.random_product(chain).dense())
    assert factorize(A, chain, perm=cluster_orders(A, chain)[start]).certificate.exact


def test_redundant_splits_and_one_factor() -> None:
    chain = Chain.parse("(1,4,4,4)(4,2,2,2)(8,2,2,1)")
    redundant = Chain.parse("(1,4,4,4)(4,2,4,2)(8,4,2,1)")  # its last two factors can be any of their product pattern
    A = shuffled(transforms.random_product(chain).dense())
    assert factorize(A, redundant, perm="search").certificate.exact
    assert factorize(A, Chain.dense(16, 16), perm="search").permutation == "search: none"


@pytest.mark.parametrize(
    ("name", "A"),
    [
        ("none", transforms.hadamard(16).dense()),
        ("bitrev columns", transforms.dft(16).dense()),
        ("bitrev rows", transforms.random_product(Chain.butterfly(16)).dense()[transforms.digit_reversal((2,) * 4)]),
        ("bitrev rows and columns", None),
        ("blocks 001 rows", None),
        ("blocks 101 rows", None),
    ],
)
def test_known_orders_need_no_clusters(name: str, A: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain.butterfly(16)
    if A is None:
        core, (columns, rows) = transforms.random_product(chain).dense(), listed_orders(chain)[name]
        A = torch.empty_like(core)
        every = torch.arange(16)
        A[(every if rows is None else rows)[:, None], every if columns is None else columns] = core
    monkeypatch.setattr(module, "cluster_orders", None)
    result = factorize(A, chain, perm="search")
    assert result.certificate.exact
    assert result.permutation == f"search: {name}"
    assert result.notes == ()


def test_bounds_exclude_orders_before_they_are_factorized() -> None:
    A, fitted = shuffled(transforms.dft(16).dense()), []

    def fit(perms: object) -> object:
        fitted.append(perms)
        return factorize(A, Chain.butterfly(16), perm=perms)

    result = module.search_permutation(A, Chain.butterfly(16), fit)  # type: ignore[arg-type]
    assert result.certificate.exact
    assert len(fitted) == 2  # the best of the list, and the one that clusters gave
    A = noisy(A, 0.01)
    fitted.clear()
    module.search_permutation(A, Chain.butterfly(16), fit)  # type: ignore[arg-type]
    assert len(fitted) <= 5  # the best of the list, both trees, an arbitrary one, and the one to be repaired


def test_every_listed_order_is_a_permutation_of_its_own() -> None:
    orders = listed_orders(Chain.butterfly(16))
    assert list(orders) == [
        "none",
        "bitrev columns",
        "bitrev rows",
        "bitrev rows and columns",
        "blocks 001 rows",
        "blocks 101 rows",
    ]
    A = torch.randn(16, 16, dtype=torch.float64)
    errors = set()
    for columns, rows in orders.values():
        assert columns is None or sorted(columns.tolist()) == list(range(16))
        assert rows is None or sorted(rows.tolist()) == list(range(16))
        errors.add(round(factorize(A, "butterfly(16)", perm=(columns, rows)).certificate.error, 12))
    assert len(errors) == len(orders)
    assert len(listed_orders(RECTANGULAR)) == 4


@pytest.mark.parametrize("code", ["001", "010", "011", "101", "110", "111"])
def test_orders_that_are_not_listed_are_as_good_as_one_that_is(code: str) -> None:
    A, chain = torch.randn(16, 16, dtype=torch.float64), Chain.butterfly(16)
    listed = {factorize(A, chain, perm=perms).certificate.error for perms in listed_orders(chain).values()}
    for perms in ((block_permutation(16, code), None), (None, block_permutation(16, code))):
        error = factorize(A, chain, perm=perms).certificate.error
        assert min(abs(error - other) for other in listed) < 1e-12


def test_trees_are_the_same_exactly_when_their_clusters_are() -> None:
    order = np.random.default_rng(0).permutation(12).reshape(2, 3, 2)
    turned = order[::-1, [2, 0, 1], ::-1]
    first = tree(order.reshape(-1), (2, 3, 2))
    assert first.tolist() == tree(turned.reshape(-1), (2, 3, 2)).tolist()
    mixed = order.copy()
    mixed[0, 0, 0], mixed[0, 1, 0] = order[0, 1, 0], order[0, 0, 0]
    assert first.tolist() != tree(mixed.reshape(-1), (2, 3, 2)).tolist()
    assert sorted(first.tolist()) == list(range(12))


@pytest.mark.parametrize("code", ["000", "001", "010", "011", "100", "101", "110", "111"])
@pytest.mark.parametrize("n", [1, 2, 8, 16])
def test_block_permutations(n: int, code: str) -> None:
    assert block_permutation(n, code).tolist() == by_definition(list(range(n)), code)
    if code in ("000", "100"):
        reversal = transforms.digit_reversal((1,) + (2,) * (n.bit_length() - 1)).tolist()
        assert block_permutation(n, code).tolist() == (reversal if code == "100" else list(range(n)))


def by_definition(order: list[int], code: str) -> list[int]:
    """Separate, reverse the halves, then the same in each half."""
    if len(order) == 1:
        return order
    half = len(order) // 2
    first, second = (order[::2], order[1::2]) if code[0] == "1" else (order[:half], order[half:])
    first, second = (x[::-1] if flip == "1" else x for x, flip in zip((first, second), code[1:], strict=True))
    return by_definition(first, code) + by_definition(second, code)


def test_failure_is_declared() -> None:
    A = torch.randn(16, 16, dtype=torch.float64)
    result = factorize(A, "butterfly(16)", perm="search")
    assert any(note.startswith("search failed: the best order leaves an error of 0.") for note in result.notes)
    assert result.certificate.error <= factorize(A, "butterfly(16)", perm="auto").certificate.error
    assert relative_error(A, result.product) == pytest.approx(result.certificate.error, rel=1e-10)


def test_the_best_of_the_list_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"clusters from rows": (torch.randperm(16), torch.randperm(16))}
    monkeypatch.setattr(module, "cluster_orders", lambda *arguments: wrong)
    A = noisy(transforms.dft(16).dense(), 0.1)
    result = factorize(A, "butterfly(16)", perm="search")
    assert result.permutation == "search: bitrev columns"
    assert "search: clustering found no better order than 'bitrev columns'" in result.notes
    assert not any("failed" in note for note in result.notes)


def test_twice_is_the_same_and_global_generators_are_left_alone() -> None:
    A = shuffled(noisy(KINDS["orthogonal"](16), 0.1))
    before = torch.get_rng_state()
    one, two = (factorize(A, "butterfly(16)", perm="search") for _ in range(2))
    assert torch.equal(one.product.dense(), two.product.dense())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_scale_is_no_matter(scale: float) -> None:
    A = scale * shuffled(KINDS["dft"](16))
    assert factorize(A, "butterfly(16)", perm="search").certificate.exact


def test_single_precision_and_half() -> None:
    A = shuffled(KINDS["dft"](16)).to(torch.complex64)
    result = factorize(A, "butterfly(16)", perm="search")
    assert result.product.factors[0].dtype == torch.complex64
    assert result.certificate.exact
    half = factorize(shuffled(KINDS["hadamard"](16)).half(), "butterfly(16)", perm="search")
    assert half.notes == ("float16 input was computed in float32",)


def test_zero() -> None:
    assert factorize(torch.zeros(8, 8), "butterfly(8)", perm="search").certificate.exact


def test_progress_and_interruption() -> None:
    A, said = shuffled(KINDS["dft"](16)), []
    factorize(A, "butterfly(16)", perm="search", progress=lambda *words: said.append(words))
    levels = [(done, total) for what, done, total in said if what == "clustering rows and columns"]
    assert levels == [(done, 6) for done in range(7)]

    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("clustering"):
            raise KeyboardInterrupt("stop")

    with pytest.raises(KeyboardInterrupt, match="stop"):
        factorize(A, "butterfly(16)", perm="search", progress=stop)


def test_options_reach_the_factorization() -> None:
    A = shuffled(noisy(KINDS["orthogonal"](16), 0.1))
    one = factorize(A, "butterfly(16)", perm="search", order=(2, 1, 3))
    assert one.order == (2, 1, 3)
    refined = factorize(A, "butterfly(16)", perm="search", order=(2, 1, 3), refine=3)
    assert refined.certificate.error < one.certificate.error


@pytest.mark.parametrize("chain", [RECTANGULAR, LARGE_BLOCKS])
def test_grown_orders_are_permutations_of_anything(chain: Chain) -> None:
    q, p = chain.radices
    columns, rows = grow(torch.randn(chain.shape).numpy(), q, p, lambda done: None)
    assert sorted(columns.tolist()) == list(range(prod(p)))
    assert sorted(rows.tolist()) == list(range(prod(q)))


@pytest.mark.parametrize(
    ("A", "chain", "message"),
    [
        (torch.randn(2, 8, 8), Chain.butterfly(8), r"batch of shape \(2, 8, 8\). Rule: one matrix"),
        (torch.randn(16, 16), Chain.butterfly(16, rank=2), r"ranks \(2,\), a=1 .*d=1 .*Rule: ranks 1 and a = d = 1"),
        (torch.randn(8, 8), Chain.from_radices((2, 2), (2, 2), (1,), a1=2), r"a=2 in the first"),
        (torch.randn(8, 8), Chain.from_radices((2, 2), (2, 2), (1,), dL=2), r"d=2 in the last"),
    ],
)
def test_what_cannot_be_searched_is_refused(A: torch.Tensor, chain: Chain, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        factorize(A, chain, perm="search")


def test_choose_does_not_search() -> None:
    with as_user(), pytest.raises(ValueError, match=r"perm='search' is unknown here.*factorize only, once the chain"):
        choose(torch.randn(8, 8), tolerance=0.1, perm="search")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import flatwing, sys; flatwing.factorize\n"
        "print([name for name in ('scipy.optimize', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_exchanges_repair_what_clusters_left() -> None:
    generator = torch.Generator().manual_seed(4)  # in this noise both trees put clusters under wrong parents
    ordered = transforms.random_orthogonal(32, generator=generator).dense()
    noise = torch.randn(ordered.shape, dtype=ordered.dtype, generator=generator)
    ordered = ordered + 0.1 * ordered.norm() / noise.norm() * noise
    rows, columns = (torch.randperm(32, generator=generator) for _ in range(2))
    result = factorize(ordered[rows][:, columns], "butterfly(32)", perm="search")
    assert result.permutation.endswith(" and exchanges")
    assert result.certificate.error <= 1.01 * factorize(ordered, "butterfly(32)").certificate.error
