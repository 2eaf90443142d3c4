import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from distributed import run_ranks
from flatwing.optim import quantile
from flatwing.optim.quantile import kth_smallest


def reference(tensors: list[torch.Tensor], k: int) -> torch.Tensor:
    return torch.cat([t.float().flatten() for t in tensors]).kthvalue(k).values


def random_tensors(seed: int, *, positive: bool = True) -> list[torch.Tensor]:
    """35 decades, ties, zeros of both signs, shapes of no and of several dimensions."""
    generator = torch.Generator().manual_seed(seed)
    wide = 10.0 ** torch.empty(301).uniform_(-35, 0.5, generator=generator)
    ties = torch.randint(3, (5, 40), generator=generator) / 3
    tensors = [wide, ties, torch.zeros(30), torch.tensor(0.25), torch.empty(0, 3)]
    if positive:
        return tensors
    return [t * (torch.randint(2, t.shape, generator=generator) * 2 - 1) for t in tensors]


@given(st.integers(0, 10_000), st.booleans(), st.floats(0, 1))
def test_is_the_kth_value_of_all(seed: int, positive: bool, share: float) -> None:
    tensors = random_tensors(seed, positive=positive)
    k = 1 + int(share * (sum(t.numel() for t in tensors) - 1))
    assert float(kth_smallest(tensors, k)) == float(reference(tensors, k))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 17])
def test_does_not_depend_on_how_memory_is_walked(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(quantile, "CHUNK", chunk)
    tensors = random_tensors(3)
    for k in (1, 50, 200, 400, 532):
        assert float(kth_smallest(tensors, k)) == float(reference(tensors, k))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_those_of_their_float32_values(dtype: torch.dtype) -> None:
    tensors = [torch.linspace(0, 1, 1001).to(dtype), torch.rand(40, 25).to(dtype).T]
    for k in (1, 700, 2001):
        assert float(kth_smallest(tensors, k)) == float(reference(tensors, k))


def test_all_equal_and_denormal() -> None:
    assert float(kth_smallest([torch.zeros(1000)], 600)) == 0.0
    tiny = torch.tensor([3e-45, 1e-45, 2e-39])
    assert [float(kth_smallest([tiny], k)) for k in (1, 2, 3)] == tiny.sort().values.tolist()


@pytest.mark.parametrize("k", [0, 5, -1])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}.*here 4.*Nearest good value: {4 if k > 0 else 1}"):
        kth_smallest([torch.ones(4)], k)


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ValueError, match="here 0"):
        kth_smallest([], 1)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_entries_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="1 entries are NaN or infinite"):
        kth_smallest([torch.tensor([1.0, value, 3.4e38, -3.4e38])], 1)


def test_dtypes_without_an_order_are_refused() -> None:
    with pytest.raises(TypeError, match="complex64"):
        kth_smallest([torch.ones(2, dtype=torch.complex64)], 1)
    with pytest.raises(TypeError, match="int64"):
        kth_smallest([torch.ones(2, dtype=torch.int64)], 1)


def on_ranks(rank: int, world: int) -> list[float]:
    mesh = init_device_mesh("cpu", (world,))
    wide, ties, *rest = random_tensors(5)
    tensors = [distribute_tensor(wide, mesh, [Shard(0)]), distribute_tensor(ties, mesh, [Replicate()]), *rest]
    return [float(kth_smallest(tensors, k)) for k in (1, 50, 200, 400, 532)]


def test_is_the_same_on_every_rank_and_on_one_process() -> None:
    wanted = [float(reference(random_tensors(5), k)) for k in (1, 50, 200, 400, 532)]
    assert run_ranks(on_ranks, 3) == [wanted] * 3
