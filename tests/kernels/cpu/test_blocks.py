import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flatwing import Chain, SparseProduct
from flatwing.kernels.backend import Gradients
from flatwing.kernels.cpu import blocks, workers
from strategies import patterns

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
ROWS = [0, 1, 2, 3, 5, 17, 33, 100]
CHAINS = [
    "(1,1,1,1)",
    "(1,2,2,2)(2,2,2,1)",
    "(1,2,2,8)(2,2,2,4)(4,2,2,2)(8,2,2,1)",
    "(1,4,4,4)(4,4,4,1)",
    "(1,8,8,9)(9,8,8,1)",
    "(1,16,16,16)(16,16,16,1)",
    "(1,12,24,5)(5,24,13,1)",  # a rank of several: each block feeds several blocks of the next factor
    "(1,16,16,8)(8,16,16,1)",  # the same, evenly: outputs of the first factor are written where the next reads them
    "(1,9,9,8)(9,4,4,2)",  # the same with small blocks and gaps
    "(2,19,32,2)",  # rows of weights are whole vectors, which one or two vectors of x make use of
    "(3,7,11,5)",
    "(1,3,5,4)(2,5,2,2)(4,2,7,1)",
    "(1,17,4,3)(3,4,9,1)",
    "(1,33,20,1)",
    "(1,1,37,2)(2,37,1,1)",
    "(16,16,16,1)(1,16,16,16)",  # not chainable
    "(2,9,10,3)(5,4,3,3)(1,9,2,5)",  # neither
    "(1,31,2,1)(1,2,29,1)",
]


def problem(chain: Chain, dtype: torch.dtype, rows: int, last: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    factors = [torch.randn(p.blocks, p.b, p.c, dtype=dtype) for p in chain]
    x = torch.randn(rows, chain.shape[1], dtype=dtype)
    return (x.T.contiguous() if last else x), factors


def exact(chain: Chain, x: torch.Tensor, factors: list[torch.Tensor], last: bool) -> torch.Tensor:
    """The product by the dense matrix, in double precision, differentiable."""
    matrix = SparseProduct(chain, factors).dense()
    return matrix @ x if last else x @ matrix.T


def double(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64).clone().requires_grad_()


def close(got: torch.Tensor | None, want: torch.Tensor) -> None:
    assert got is not None
    assert got.shape == want.shape
    assert got.is_contiguous()
    tolerance = 1e-5 if got.dtype in (torch.float32, torch.complex64) else 1e-13
    scale = want.abs().max().item() if want.numel() else 0.0
    assert_close(got.to(want.dtype), want, rtol=0, atol=tolerance * scale)


def check(chain: Chain, dtype: torch.dtype, rows: int, last: bool, threads: int) -> None:
    """Result and gradients of one multiplication against the definition."""
    x, factors = problem(chain, dtype, rows, last)
    depths = [p.d for p in chain]
    big, *bigs = [double(value) for value in (x, *factors)]
    y = exact(chain, big, bigs, last)
    grad = torch.randn_like(y)
    y.backward(grad)
    close(blocks.forward(x, factors, depths, last, threads), y.detach())
    grads = blocks.backward(x, factors, depths, grad.to(dtype), last, True, True, threads)
    for got, want in zip((grads.x, *(grads.factors or ())), (big, *bigs), strict=True):
        assert want.grad is not None
        close(got, want.grad)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("text", CHAINS)
def test_result_and_gradients_are_those_of_the_definition(text: str, dtype: torch.dtype, rows: int) -> None:
    for last in (False, True):
        check(Chain.parse(text), dtype, rows, last, threads=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_that_share_the_weights(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "HEAVY", 0)
    monkeypatch.setattr(workers, "WORTH", 1e-12)
    for threads in (1, 2):
        for last in (False, True):
            check(Chain.parse("(1,64,9,2)(2,9,9,1)(1,18,70,1)"), dtype, 100, last, threads)
            check(Chain.parse("(2,64,64,4)(8,64,64,1)"), dtype, 100, last, threads)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "text",
    ["(2,20,32,2)(4,32,24,1)", "(2,19,64,2)(4,64,5,1)", "(2,9,8,2)(1,32,32,1)", "(1,8,8,4)(2,16,64,1)(1,128,8,1)"],
)
def test_what_memory_held_before_is_nowhere_in_results(text: str, dtype: torch.dtype, rows: int) -> None:
    """Of one or two vectors, some kernels leave the rest of a tile as it was, and others sum over the whole tile."""
    address, memory = workers.scratch(1 << 20)
    memory.fill(255)  # of floating point numbers, that is NaN
    check(Chain.parse(text), dtype, rows, last=False, threads=1)
    assert workers.scratch(1)[0] == address
    memory.fill(255)
    check(Chain.parse(text), dtype, rows, last=True, threads=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_chains(dtype: torch.dtype) -> None:
    check(Chain.butterfly(64), dtype, rows=21, last=False, threads=1)
    check(Chain.butterfly(64, rank=2), dtype, rows=21, last=True, threads=1)


@settings(max_examples=40)
@given(patterns(largest=9), st.sampled_from(DTYPES), st.integers(1, 20), st.booleans())
def test_any_pattern(pattern: object, dtype: torch.dtype, rows: int, last: bool) -> None:
    check(Chain([pattern]), dtype, rows, last, threads=1)  # type: ignore[list-item]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_share_the_vectors(dtype: torch.dtype, last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "WORTH", 1e-12)  # however small the work
    for rows in (1, 40, 100):
        check(Chain.parse("(1,12,24,5)(5,24,13,1)"), dtype, rows, last, threads=2)
        check(Chain.parse("(1,12,24,5)(5,24,13,1)"), dtype, rows, last, threads=3)


def marked(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, which torch holds as a conjugate or a negative still to be taken."""
    return x.conj().clone().conj() if x.is_complex() else torch._neg_view(-x)


def test_small_work_wakes_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    split = workers.split
    monkeypatch.setattr(workers, "split", lambda rows, parts, unit: used.append(parts) or split(rows, parts, unit))
    x, factors = problem(Chain.butterfly(4), torch.float32, 100, False)
    blocks.backward(x, factors, [2, 1], x, False, True, True, 4)
    assert used == [1]
    chain = Chain.monarch(256, 256, blocks=16)
    x, factors = problem(chain, torch.float32, 30_000, False)
    blocks.forward(x, factors, [p.d for p in chain], False, 4)
    assert used == [1, 4]


def variants(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same matrix in memory of other kinds."""
    wide = torch.full((x.shape[0], 3 * x.shape[1]), torch.nan, dtype=x.dtype)
    wide[:, 2 : 2 + x.shape[1]] = x
    sparse = torch.full((3 * x.shape[0], x.shape[1]), torch.nan, dtype=x.dtype)
    sparse[::3] = x
    return {
        "columns of a wider matrix": wide[:, 2 : 2 + x.shape[1]],
        "every third row": sparse[::3],
        "columns side by side": x.T.contiguous().T,
        "marked": marked(x),
        "one row for all": x[:1].expand_as(x),
    }


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_memory_of_any_layout(dtype: torch.dtype, last: bool) -> None:
    chain = Chain.parse("(1,12,24,5)(5,24,13,1)")
    x, factors = problem(chain, dtype, 20, last)
    depths = [p.d for p in chain]
    strided = [w.transpose(1, 2).contiguous().transpose(1, 2) for w in factors]
    grad = torch.randn_like(blocks.forward(x, factors, depths, last, 1))
    lazy = blocks.forward(marked(x), [marked(w) for w in factors], depths, last, 1)
    assert torch.equal(lazy, blocks.forward(x, factors, depths, last, 1))
    for kind, same in variants(x).items():
        plain = same.resolve_conj().resolve_neg().contiguous()
        assert torch.equal(
            blocks.forward(same, strided, depths, last, 1), blocks.forward(plain, factors, depths, last, 1)
        ), kind
    plain_grads = blocks.backward(x, factors, depths, grad, last, True, True, 1)
    for kind, same in variants(grad).items():
        if kind != "one row for all":
            equal(blocks.backward(x, strided, depths, same, last, True, True, 1), plain_grads)


def equal(left: Gradients, right: Gradients) -> None:
    assert torch.equal(left.x, right.x)  # type: ignore[arg-type]
    for one, other in zip(left.factors or (), right.factors or (), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [0, 1, 20])
def test_only_the_gradients_asked_for(rows: int) -> None:
    chain = Chain.parse("(1,12,24,5)(5,24,13,1)")
    x, factors = problem(chain, torch.float32, rows, False)
    grad = torch.randn(rows, chain.shape[0])
    args = (x, factors, [p.d for p in chain], grad, False)
    both = blocks.backward(*args, True, True, 1)
    assert torch.equal(blocks.backward(*args, True, False, 1).x, both.x)  # type: ignore[arg-type]
    assert blocks.backward(*args, True, False, 1).factors is None
    assert blocks.backward(*args, False, True, 1).x is None
    equal(Gradients(both.x, blocks.backward(*args, False, True, 1).factors), both)


@pytest.mark.parametrize("rows", [3, 17])
@pytest.mark.parametrize("last", [False, True])
def test_padding_hides_nothing_and_adds_nothing(rows: int, last: bool) -> None:
    """An infinity in one vector stays in the result of that vector, whatever a tile is filled up with."""
    chain = Chain.parse("(1,12,24,5)(5,24,13,1)")
    x, factors = problem(chain, torch.float32, rows, last)
    x.select(1 if last else 0, rows - 1)[4] = torch.inf
    y = blocks.forward(x, factors, [p.d for p in chain], last, 1)
    finite = torch.isfinite(y.T if last else y)
    assert finite[:-1].all()
    assert not finite[-1].any()
    grad = torch.zeros_like(y)
    grad.select(1 if last else 0, rows - 1).fill_(1.0)
    grads = blocks.backward(x, factors, [p.d for p in chain], grad, last, False, True, 1).factors
    assert grads is not None
    assert not torch.isnan(grads[1]).any()  # one times infinity; a repeated last vector would add zero times infinity


def test_weights_written_behind_torchs_back_are_seen() -> None:
    chain = Chain.butterfly(4)
    x, factors = problem(chain, torch.float32, 2, False)
    depths = [p.d for p in chain]
    before = blocks.forward(x, factors, depths, False, 1)
    factors[0].data.mul_(2)
    assert torch.equal(blocks.forward(x, factors, depths, False, 1), 2 * before)


def test_other_types_are_refused_with_a_reason() -> None:
    for dtype in DTYPES:
        assert blocks.unsupported_because(Chain.butterfly(4), dtype, 3, True) is None
    reason = blocks.unsupported_because(Chain.butterfly(4), torch.float16, 3, True)
    assert (
        reason == "float16 is not computed by the numba kernels; they take float32, float64, complex64 and complex128"
    )


def test_predicted_time_grows_with_the_work() -> None:
    def seconds(n: int = 1024, rows: int = 64, dtype: torch.dtype = torch.float32, train: bool = False) -> float:
        return blocks.seconds(Chain.monarch(n, n, blocks=16), rows, dtype, False, train, 1)

    assert 0 < seconds() < seconds(n=2048)
    assert seconds() < seconds(rows=256)
    assert seconds() < seconds(dtype=torch.float64) < seconds(dtype=torch.complex128)
    assert 2 * seconds() < seconds(train=True)
    big = (Chain.monarch(4096, 4096, blocks=64), 4096, torch.float32, False, False)
    assert blocks.seconds(*big, 1) / 4 < blocks.seconds(*big, 4) < blocks.seconds(*big, 1), "memory is shared"
