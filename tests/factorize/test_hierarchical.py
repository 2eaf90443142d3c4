"""The hierarchical scheme: exact where FAuST is, in the sets it names, and clear about what it cannot do."""

from typing import Any

import pytest
import torch

from flatwing.factorize import SCHEMES, Scheme, hierarchical, palm, proximal
from flatwing.factorize.proximal import State
from flatwing.factorize.schemes import parse_scheme, rectangular_scheme, square_scheme
from flatwing.structure import transforms
from strategies import as_user


@pytest.mark.parametrize("n", [4, 8, 32, 64, 128])
@pytest.mark.parametrize("polishing", [True, False])
def test_hadamard_is_recovered(n: int, polishing: bool) -> None:
    H = transforms.hadamard(n).dense().double()
    result = hierarchical(H, "hadamard", polishing=polishing)
    error = float(torch.linalg.norm(H - result.product.dense()) / torch.linalg.norm(H))
    assert error < 1e-12
    assert result.certificate.exact
    steps = n.bit_length() - 1
    assert [support.nnz for support in result.product.supports] == [2 * n] * steps


def test_scale_is_carried_from_split_to_split() -> None:
    # a single refit has no time to mend a wrong scale
    H = transforms.hadamard(16).dense().double()
    assert hierarchical(H, "hadamard", refits=1, polishing=False).certificate.error < 1e-4


def test_scale_and_signs_do_not_matter() -> None:
    H = transforms.hadamard(16).dense().double()
    signs = torch.randn(16, dtype=torch.float64).sign()
    for A in (H * 1e-200, H * 3.3, H * signs, signs[:, None] * H):
        assert hierarchical(A, "hadamard").certificate.exact


def test_updates_from_the_left_do_not_recover_it() -> None:
    # the order of updates matters here; this is why "r2l" is the default
    H = transforms.hadamard(16).dense().double()
    assert hierarchical(H, "hadamard", direction="l2r").certificate.error > 0.5


@pytest.mark.parametrize("transposed", [False, True])
def test_rectangular(transposed: bool) -> None:
    A = torch.randn(12, 30, dtype=torch.float64)
    A = A.T if transposed else A
    result = hierarchical(A, "rectangular(4,3,2)", direction="l2r" if transposed else "r2l")
    supports = result.product.supports[::-1] if transposed else result.product.supports
    shapes = [support.shape[::-1] if transposed else support.shape for support in supports]
    assert shapes == [(12, 12), (12, 12), (12, 12), (12, 30)]
    # P q^2 rho^2 of the last residual, s q of the square factors, k per column of the long one
    assert [support.nnz for support in supports] == [130, 24, 24, 90]
    long = supports[-1].array if not transposed else supports[-1].array.T
    assert (long.sum(0) == 3).all()
    assert 0.1 < result.certificate.error < 0.6
    assert result.certificate.lower_bound == 0


def test_mirror_images_are_factorized_alike() -> None:
    A = torch.randn(10, 25, dtype=torch.float64)
    wide = hierarchical(A, "rectangular(3,4,3)", polishing=False)
    tall = hierarchical(A.T, "rectangular(3,4,3)", direction="l2r", polishing=False)
    assert tall.certificate.error == pytest.approx(wide.certificate.error, rel=1e-6)


def test_own_scheme_with_sizes() -> None:
    A = torch.randn(6, 9, dtype=torch.float64)
    plan = Scheme.of("splin(2) id", ["id", "spcol(3)"], sizes=(8, 7))
    result = hierarchical(A, plan)
    assert [support.shape for support in result.product.supports] == [(6, 8), (8, 7), (7, 9)]
    assert (result.product.supports[0].array.sum(1) == 2).all()
    assert (result.product.supports[2].array.sum(0) == 3).all()


def test_refits_help() -> None:
    A = torch.randn(16, 16, dtype=torch.float64)
    few, many = (hierarchical(A, "square(3,3)", refits=refits, polishing=False) for refits in (1, 60))
    assert many.certificate.error < few.certificate.error
    whole = palm(A, "splincol(3)*2 splincol(4)", sweeps=300)
    assert many.certificate.error < 1.3 * whole.certificate.error


def test_complex_and_float32() -> None:
    F = torch.fft.fft(torch.eye(4, dtype=torch.complex128))
    H = transforms.hadamard(8).dense().double()
    assert hierarchical(F, "square(2,2)").product.dtype == torch.complex128
    single = hierarchical(H.float(), "hadamard")
    assert single.certificate.exact
    assert single.product.dtype == torch.float32


@pytest.mark.parametrize("seed", range(5))
def test_phases_do_not_matter(seed: int) -> None:
    # all entries have the same size, up to rounding, which must not decide which of them are kept
    H = transforms.hadamard(16).dense()
    random = torch.rand(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows, columns = torch.polar(torch.ones(2, 16, dtype=torch.float64), 6.28 * random)
    assert hierarchical(rows[:, None] * H * columns, "hadamard").certificate.exact


def test_deterministic_and_tells_how_far_it_is() -> None:
    A, calls = torch.randn(8, 8, dtype=torch.float64), []
    first = hierarchical(A, "square(3,2)", progress=lambda what, i, n: calls.append((what, i, n)))
    assert calls == [("splits", 1, 2), ("splits", 2, 2)]
    assert torch.equal(first.product.dense(), hierarchical(A, "square(3,2)").product.dense())
    assert first.notes == ("hierarchical: splincol(2) | splincol(4), splincol(2) | splincol(2)",)


def test_presets() -> None:
    assert parse_scheme(" rectangular( 3, 2,2 )", 4, 9) == rectangular_scheme(4, 9, 3, 2, 2)
    assert str(parse_scheme("square(4,2)", 10, 10)).count("|") == 3
    assert [str(one) for one in square_scheme(10, 10, 4, 2).residuals] == ["splincol(5)", "splincol(3)", "splincol(2)"]
    tall = rectangular_scheme(9, 4, 3, 2, 2)
    assert (tall.side, str(tall.factors[0])) == ("right", "splin(2)")
    assert [str(one) for one in rectangular_scheme(10, 20, 3, 2, 2, rho=0.5, P=1.0).residuals] == ["sp(100)", "sp(50)"]
    assert list(SCHEMES) == ["hadamard", "square", "rectangular"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hadamard", "the scheme 'hadamard' for 6 x 8. Rule: square, a power of two"),
        ("square(3,2)", "the scheme 'square' with 3 factors for 6 x 8"),
        ("rectangular(1,2,2)", "factors=1, rho=0.8, P=1.4"),
        ("rectangular(4,2)", r"does not fit rectangular\(factors, k, s\)"),
        ("rectangular(4,2,0)", r"does not fit rectangular\(factors, k, s\)"),
        ("hadamard(3)", "'hadamard\\(3\\)' does not fit hadamard. Rule"),
        ("hadamar", "unknown scheme 'hadamar', did you mean 'hadamard'"),
        ("(3)", r"is no scheme\. Rule: NAME or NAME\(NUMBERS\), NAME of hadamard, square, rectangular"),
        ("square(2.5,2)", r"'square\(2\.5,2\)' does not fit square\(factors, k\)\. Rule: whole numbers >= 1"),
    ],
)
def test_texts_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hierarchical(torch.randn(6, 8), text)


def test_refusals() -> None:
    A = torch.randn(4, 4)
    with pytest.raises(ValueError, match="there are 2 factors and 1 residuals"):
        Scheme.of("sp(2)*2", "id")
    with pytest.raises(ValueError, match="side='up' is unknown"):
        Scheme.of("sp(2)", "id", side="up")
    with pytest.raises(ValueError, match=r"sizes is \(2, 2\) for 1 steps. Rule: a tuple, one per step"):
        Scheme.of("sp(2)", "id", sizes=(2, 2))
    with pytest.raises(ValueError, match="sweeps is 0"):
        hierarchical(A, "hadamard", sweeps=0)
    with pytest.raises(ValueError, match="direction='x' is unknown"):
        hierarchical(A, "hadamard", direction="x")
    with pytest.raises(ValueError, match=r"factor 1, nm\(1,3\)"):
        hierarchical(A, Scheme.of("sp(4) nm(1,3)", "id*2"))
    with pytest.raises(ValueError, match="rho=-1"):
        rectangular_scheme(4, 9, 3, 2, 2, rho=-1.0)


def test_other_kinds_are_refused_by_name() -> None:
    A = torch.randn(4, 4)
    with as_user(), pytest.raises(TypeError, match=r"the scheme is a NoneType\. Rule: a text"):
        hierarchical(A, None)  # type: ignore[arg-type]
    with as_user(), pytest.raises(ValueError, match=r"sweeps is 1\.5\. Rule: a whole number, at least 1, such as 30"):
        hierarchical(A, "hadamard", sweeps=1.5)  # type: ignore[arg-type]
    with as_user(), pytest.raises(ValueError, match=r"size 0 is 2\.5\. Rule: a whole number"):
        Scheme.of("sp(2)", "id", sizes=(2.5,))  # type: ignore[arg-type]


def test_half_precision_is_told() -> None:
    result = hierarchical(torch.randn(4, 4).half(), "hadamard", sweeps=2, refits=2)
    assert result.product.dtype == torch.float32
    assert result.notes[-1] == "float16 input: computed in float64, factors in float32"


def test_work_ends_where_only_rounding_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # errors at the level of rounding go up and down for ever, and L-BFGS can do nothing about them
    counts: list[int] = []

    def counted(self: State, A: torch.Tensor) -> None:
        counts[-1] += 1
        sweep(self, A)

    def started(self: State, *arguments: Any) -> None:
        counts.append(0)
        run(self, *arguments)

    sweep, run = State.sweep, State.run
    monkeypatch.setattr(State, "sweep", counted)
    monkeypatch.setattr(State, "run", started)
    monkeypatch.setattr(proximal, "polish", lambda *_: pytest.fail("polished an exact product"))
    H = transforms.hadamard(32).dense().double()
    assert hierarchical(H, "hadamard", sweeps=500, refits=500).certificate.exact
    assert len(counts) == 8
    assert max(counts[::2]) < 40
    assert max(counts[1::2]) < 10
