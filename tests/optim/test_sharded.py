import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from distributed import run_ranks
from flatwing.optim.sharded import MAX, SUM, all_finite, global_norm, local, over_shards

ENTRIES = torch.arange(1.0, 22.0).reshape(7, 3)  # 7 rows: 2 and 4 ranks hold unequal parts


def on_ranks(rank: int, world: int) -> dict[str, float | bool]:
    mesh = init_device_mesh("cpu", (world,))
    shard, copy = (distribute_tensor(ENTRIES, mesh, [kind]) for kind in (Shard(0), Replicate()))
    spoilt = distribute_tensor(ENTRIES.clone().index_fill_(0, torch.tensor([6]), torch.nan), mesh, [Shard(0)])
    partial = DTensor.from_local(ENTRIES, mesh, [Partial()])
    refused = False
    try:
        global_norm([partial])
    except ValueError as error:
        refused = "Shard or Replicate" in str(error)
    tops = [local(t).max() if local(t).numel() else torch.zeros(()) for t in (shard, copy)]
    return {
        "norm": float(global_norm([shard, copy, ENTRIES])),
        "top": float(over_shards([shard, copy], tops, MAX)),
        "finite": all_finite([shard, copy]),
        "spoilt": all_finite([spoilt]),
        "refused": refused,
    }


def test_sums_over_shards_count_each_entry_once() -> None:
    wanted = float((3 * ENTRIES.double().square().sum()).sqrt())
    for found in run_ranks(on_ranks, 3):
        assert found["norm"] == pytest.approx(wanted, rel=1e-6)
        assert found["top"] == 21.0
        assert found["finite"]
        assert not found["spoilt"]
        assert found["refused"]


def test_norm_does_not_overflow_in_half_precision() -> None:
    gradients = [torch.full((4,), 6e4, dtype=torch.float16), torch.full((2, 2), 1e-3)]
    assert float(global_norm(gradients)) == pytest.approx(1.2e5, rel=1e-3)


def test_norm_of_complex_and_empty() -> None:
    assert float(global_norm([torch.tensor([3 + 4j]), torch.empty(0)])) == pytest.approx(5.0)


def test_nothing_is_refused_where_there_is_nothing() -> None:
    assert all_finite([])
    with pytest.raises(ValueError, match="at least one"):
        over_shards([], [], SUM)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_one_entry_that_is_not_finite_is_found(value: float) -> None:
    tensors = [torch.ones(5), torch.ones(2, 2)]
    assert all_finite(tensors)
    tensors[1][1, 0] = value
    assert not all_finite(tensors)


def test_a_sum_that_overflows_is_looked_at_again() -> None:
    assert all_finite([torch.full((4,), 3e38), torch.full((4,), 6e4, dtype=torch.float16)])
