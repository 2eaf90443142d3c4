"""PALM: what it must recover, what its certificate may say, and what it refuses."""

import numpy as np
import pytest
import torch

from flatwing import Pattern
from flatwing.factorize import PROJECTIONS, Projection, factorize_fixed, palm
from flatwing.factorize.projections import projections_of
from flatwing.factorize.proximal import State, begin, scaled
from flatwing.structure import MaskedProduct, Support
from strategies import as_user


def hadamard(n: int) -> torch.Tensor:
    one = torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64)
    return one if n == 2 else torch.kron(hadamard(n // 2), one)


def masks(*shapes: tuple[int, int], share: float = 0.4, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.random(shape) < share for shape in shapes]


def error(A: torch.Tensor, product: MaskedProduct) -> float:
    return float(torch.linalg.norm(A - product.dense()) / torch.linalg.norm(A))


def test_two_factors_of_hadamard() -> None:
    result = palm(hadamard(4), "splincol(2)*2")
    assert result.certificate.exact
    assert [support.nnz for support in result.product.supports] == [8, 8]
    assert error(hadamard(4), result.product) < 1e-14


@pytest.mark.parametrize(
    "text",
    ["sp(40)*2", "splin(4) spcol(4)", "nm(2,4) sp(30)", "block(6,2,2) skperm(2)", "tril triu", "blockdiag(2) id"],
)
def test_result_is_in_the_sets_and_its_certificate_is_true(text: str) -> None:
    A = torch.randn(8, 8, dtype=torch.float64)
    result = palm(A, text, sweeps=60)
    sets = projections_of(text)
    for one, factor, support in zip(sets, result.product.factors, result.product.supports, strict=True):
        torch.testing.assert_close(one.set(factor), factor)
        assert support.nnz == int(one.support((8, 8)).nnz) or support == Support.non_zeros(factor)
    certificate = result.certificate
    assert certificate.error == pytest.approx(error(A, result.product), rel=1e-10)
    assert certificate.error < 0.95
    assert certificate.lower_bound <= certificate.error
    assert certificate.theorem.startswith("no guarantee")
    assert certificate.guarantee == certificate.factor == float("inf")


@pytest.mark.parametrize(
    "text", ["circ spcol(2)", "toeplitz sp(20)", "normcol sp(20)", "hankel normlin", "anticirc id"]
)
def test_structure_survives(text: str) -> None:
    A = torch.randn(6, 6, dtype=torch.float64)
    result = palm(A, text, sweeps=60)
    for one, factor in zip(projections_of(text), result.product.factors, strict=True):
        torch.testing.assert_close(one.set(factor), factor)
    assert result.certificate.error < 0.95


def test_constant_factor_keeps_its_direction() -> None:
    A, fixed = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    result = palm(A, [fixed, "id"], sweeps=2000, tolerance=1e-14)
    assert [factor.shape for factor in result.product.factors] == [(6, 4), (4, 5)]
    found = result.product.factors[0]
    torch.testing.assert_close(found / found.norm(), fixed / fixed.norm())
    best = torch.linalg.norm(A - fixed @ torch.linalg.lstsq(fixed, A).solution) / A.norm()
    assert result.certificate.error == pytest.approx(float(best), rel=1e-6)


def test_complex_constant_needs_a_complex_matrix() -> None:
    fixed = torch.randn(4, 4, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"factor 0, const\(4x4\): a complex constant in a product for a real matrix"):
        palm(torch.randn(4, 4), [fixed, "id"])
    assert palm(fixed @ fixed, [fixed, "id"], sweeps=2000).certificate.error < 0.05


def test_unconstrained_factors_are_a_low_rank_approximation() -> None:
    A = torch.randn(12, 9, dtype=torch.float64)
    result = palm(A, "id*2", sizes=[3])
    best = float(torch.linalg.svdvals(A)[3:].norm() / A.norm())
    assert result.certificate.error == pytest.approx(best, rel=1e-9)
    assert result.certificate.lower_bound == pytest.approx(best, rel=1e-9)
    assert result.certificate.ratio == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=str)
def test_sweeps_alone_find_the_low_rank_optimum(kind: torch.dtype) -> None:
    # only the true gradient, conjugates included, has the optimum for its end; one factor on each side of another
    A = torch.randn(6, 6, dtype=kind)
    best = float(torch.linalg.svdvals(A)[2:].norm() / A.norm())
    found = palm(A, "id*3", sizes=[2, 2], sweeps=3000, tolerance=1e-13, polishing=False).certificate.error
    assert found == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("kind", [torch.float64, torch.complex128], ids=str)
def test_tractable_supports_agree_with_the_optimum(kind: torch.dtype) -> None:
    A = torch.randn(12, 12, dtype=kind)
    pair = [Pattern(1, 4, 3, 3), Pattern(3, 3, 4, 1)]
    pair = [Pattern(1, 3, 3, 4), Pattern(3, 4, 4, 1)] if Support(pair[0]).shape[1] != 9 else pair
    supports = [np.kron(np.ones((3, 3)), np.eye(4)) > 0, np.kron(np.eye(3), np.ones((4, 4))) > 0]
    best = factorize_fixed(A, supports).certificate
    found = palm(A, supports, starts=3).certificate
    assert best.ratio == pytest.approx(1)
    assert found.error >= best.error * (1 - 1e-12)
    assert found.error == pytest.approx(best.error, rel=1e-9)
    assert found.lower_bound == pytest.approx(best.lower_bound, rel=1e-9)


def test_three_fixed_supports_recover_their_own_product() -> None:
    supports = masks((6, 5), (5, 5), (5, 6), share=0.5)
    factors = [torch.randn(mask.shape, dtype=torch.float64) * torch.from_numpy(mask) for mask in supports]
    A = factors[0] @ factors[1] @ factors[2]
    result = palm(A, supports, starts=10)
    assert result.certificate.error < 1e-5
    assert result.product.supports == tuple(map(Support, supports))


@pytest.mark.parametrize("seed", range(5))
def test_lower_bound_of_many_supports_is_never_above_what_can_be_had(seed: int) -> None:
    torch.manual_seed(seed)
    supports = masks((8, 3), (3, 6), (6, 8), share=0.6, seed=seed)
    factors = [torch.randn(mask.shape, dtype=torch.float64) * torch.from_numpy(mask) for mask in supports]
    product = factors[0] @ factors[1] @ factors[2]
    A = product + 0.1 * torch.randn(8, 8, dtype=torch.float64)
    certificate = palm(A, supports, starts=2).certificate
    planted = float(torch.linalg.norm(A - product) / A.norm())
    assert 0 < certificate.lower_bound <= min(certificate.error, planted)


def test_more_starts_are_never_worse_and_the_seed_decides() -> None:
    A = torch.randn(8, 8, dtype=torch.float64)
    supports = masks((8, 5), (5, 8), share=0.5)
    errors = [palm(A, supports, starts=starts, polishing=False).certificate.error for starts in (1, 4)]
    assert errors[1] <= errors[0]
    same = [palm(A, supports, starts=2, seed=3).product.dense() for _ in range(2)]
    assert torch.equal(*same)
    other = palm(A, supports, starts=1, seed=4, sweeps=3, polishing=False).product.dense()
    assert not torch.equal(other, palm(A, supports, starts=1, seed=3, sweeps=3, polishing=False).product.dense())


def test_polishing_lowers_the_error_on_the_same_entries() -> None:
    A = torch.randn(16, 16, dtype=torch.float64)
    rough, fine = (palm(A, "spcol(3)*3", sweeps=50, polishing=polishing) for polishing in (False, True))
    assert fine.certificate.error < rough.certificate.error
    assert fine.product.supports == rough.product.supports


def test_scale_of_the_matrix_does_not_matter() -> None:
    A = torch.randn(8, 8, dtype=torch.float64)
    plain = palm(A, "sp(30)*2").product.dense()
    for unit in (2.0**-900, 2.0**900):
        torch.testing.assert_close(palm(A * unit, "sp(30)*2").product.dense() / unit, plain)


@pytest.mark.parametrize("kind", [torch.float32, torch.complex64, torch.complex128], ids=str)
def test_dtypes(kind: torch.dtype) -> None:
    A = torch.randn(8, 8, dtype=kind)
    result = palm(A, "splin(4)*2", sweeps=50)
    assert result.product.dtype == kind
    assert result.certificate.error == pytest.approx(error(A, result.product), rel=1e-4)
    # seen as real and imaginary part alone the same matrix gets something else: the phases are used
    assert result.certificate.error < 0.6


@pytest.mark.parametrize("direction", ["r2l", "l2r"])
def test_transposed_problem_from_the_other_end(direction: str) -> None:
    A = torch.randn(6, 9, dtype=torch.float64)
    other = {"r2l": "l2r", "l2r": "r2l"}[direction]
    here = palm(A, "splin(3) sp(20)", direction=direction, sweeps=20, polishing=False)
    there = palm(A.T, "sp(20) spcol(3)", direction=other, sweeps=20, polishing=False)
    torch.testing.assert_close(there.product.dense().T, here.product.dense())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", [6, 40])
def test_a_sweep_never_raises_the_error(size: int, dtype: torch.dtype) -> None:
    # 40 is beyond the size up to which spectral norms are exact
    A, _ = scaled(torch.randn(size, size, dtype=dtype))
    sets = projections_of(f"sp({4 * size})*3")
    state = State(begin(A, sets, [(size, size)] * 3, "r2l", np.random.default_rng(0)), sets)
    state.sweep(A)
    for _ in range(30):
        before = state.error
        state.sweep(A)
        assert state.error <= before * (1 + 1e-9)
    assert all(float(factor.norm()) == pytest.approx(1) for factor in state.factors)


def test_zero_matrix_and_single_factor() -> None:
    assert palm(torch.zeros(3, 4), "sp(4)*2").certificate.error == 0
    A = torch.randn(5, 4, dtype=torch.float64)
    result = palm(A, ["sp(7)"])
    torch.testing.assert_close(result.product.dense(), Projection.of("sp(7)").set(A))


def test_it_stops_where_nothing_changes_and_says_how_far_it_is() -> None:
    calls: list[tuple[str, int, int]] = []
    result = palm(
        torch.randn(6, 6), "id*2", starts=3, sweeps=1000, progress=lambda what, i, n: calls.append((what, i, n))
    )
    assert int(result.notes[0].split(",")[1].split()[0]) < 1000
    assert calls[0] == ("starts", 1, 3)


def test_numbers_of_the_result() -> None:
    result = palm(torch.randn(6, 8), "splin(2) sp(9)")
    record = result.to_dict()
    assert record["factors"] == [[6, 6], [6, 8]]
    assert record["parameters"] == 12 + 9
    assert "6x6 @ 6x8 on fixed supports, 21 parameters" in str(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"projections": "sp(2)*2", "sizes": [3, 3]}, "there are 2 sizes for 2 factors"),
        ({"projections": "sp(2)*2", "sizes": [0]}, r"size 0 is 0\. Rule: a whole number, at least 1, such as 4"),
        ({"projections": "sp(2)*2", "sweeps": 0}, "sweeps is 0. Rule: a whole number, at least 1"),
        ({"projections": "sp(2)*2", "starts": 0}, "starts is 0"),
        ({"projections": "sp(2)*2", "seed": -1}, "seed is -1. Rule: a whole number, at least 0"),
        ({"projections": "sp(2)*2", "tolerance": float("nan")}, "tolerance is nan. Rule: a number, at least 0"),
        ({"projections": "sp(2)*2", "tolerance": -1.0}, "tolerance is -1.0"),
        ({"projections": "sp(2)*2", "tolerance": float("inf")}, "tolerance is inf"),
        ({"projections": "sp(2)*2", "direction": "up"}, "direction='up' is unknown. Rule: 'r2l' or 'l2r'"),
        ({"projections": "sp(2) nm(1,3)"}, r"factor 1, nm\(1,3\): .* 3 \| 4"),
        (
            {"projections": [np.ones((6, 2), bool), np.ones((3, 4), bool)]},
            r"factor 0, supp\(6x2\): its shape is \(6, 2\), its place",
        ),
        ({"projections": [np.ones((5, 2), bool), np.ones((2, 4), bool)]}, r"factor 0, supp\(5x2\): its shape is"),
        ({"projections": [np.eye(6, 4) > 0, np.eye(4)[::-1] == 2]}, "allows no entry"),
        ({"projections": ["sp(3)", "spp(3)"]}, "unknown projection 'spp'"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        palm(torch.randn(6, 4), **arguments)


def test_supports_whose_product_is_zero_are_refused() -> None:
    left, right = np.zeros((4, 2), bool), np.zeros((2, 4), bool)
    left[:, 0] = right[1] = True
    with pytest.raises(ValueError, match="the product of these supports is zero everywhere"):
        palm(torch.randn(4, 4), [left, right])


@pytest.mark.parametrize(("A", "message"), [(torch.full((3, 3), torch.nan), "NaN"), (torch.ones(2, 3, 3), "a matrix")])
def test_bad_matrices_are_refused(A: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        palm(A, "sp(2)*2")


def test_every_projection_works_inside() -> None:
    A = torch.randn(4, 4, dtype=torch.float64)
    arguments = {"k": "2", "n": "2", "m": "4", "rows": "2", "columns": "2", "blocks": "2"}
    for name, rule in PROJECTIONS.items():
        numbers = ",".join(arguments.get(key, "") for key in rule.parameters)
        given = {"supp": np.tri(4) > 0, "const": 2 * np.eye(4)}.get(name, f"{name}({numbers})" if numbers else name)
        assert palm(A, [given, "id"], sweeps=40).certificate.error < 0.95, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": 2}, r"sizes is 2\. Rule: a list, one between two factors, such as \[4\]"),
        ({"sizes": [2.5]}, r"size 0 is 2\.5\. Rule: a whole number, at least 1, such as 4"),
        ({"seed": None}, "seed is None. Rule: a whole number"),
        ({"starts": 1.5}, r"starts is 1\.5\. Rule: a whole number"),
        ({"sweeps": float("nan")}, "sweeps is nan. Rule: a whole number"),
        ({"tolerance": "a"}, "tolerance is 'a'. Rule: a number"),
    ],
)
def test_numbers_of_another_kind_are_refused(arguments: dict, message: str) -> None:
    with as_user(), pytest.raises(ValueError, match=message):
        palm(torch.randn(6, 4), "sp(2)*2", **arguments)


def test_masks_may_be_whatever_a_support_is_made_of() -> None:
    A = torch.randn(2, 2, dtype=torch.float64)
    lists = [[True, False], [True, True]], [[True, True], [False, True]]
    found = palm(A, list(lists)).product.supports
    assert found == tuple(map(Support, lists))
    assert palm(A, torch.tensor(lists)).product.supports == found


def test_constants_of_any_size() -> None:
    # only the direction of a constant counts; its squares may be out of range
    A, fixed = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    plain, *others = [palm(A, [fixed * unit, "id"], sweeps=20).product.dense() for unit in (1, 1e-250, 1e250)]
    for other in others:
        torch.testing.assert_close(other, plain)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_told(kind: torch.dtype) -> None:
    result = palm(torch.randn(4, 4).to(kind), "sp(8)*2")
    assert result.product.dtype == torch.float32
    assert result.notes[-1] == f"{str(kind)[6:]} input: computed in float64, factors in float32"
    assert not any("input" in note for note in palm(torch.randn(4, 4), "sp(8)*2").notes)
