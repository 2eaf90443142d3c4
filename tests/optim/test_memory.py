import pytest
import torch

from flatwing.optim.memory import WORTH, compiled, room


def test_room_is_of_the_same_shapes_in_one_allocation_and_apart() -> None:
    tensors = [torch.ones(2, 3), torch.ones(0, 4), torch.ones(()), torch.ones(5)]
    parts = room(tensors)
    assert [part.shape for part in parts] == [tensor.shape for tensor in tensors]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    for value, part in enumerate(parts):
        part.fill_(value)
    assert all(bool((part == value).all()) for value, part in enumerate(parts))
    assert room([]) == []


def test_room_for_a_large_model_can_be_written_everywhere() -> None:
    tensors = [torch.full((1 << 21,), float(k)) for k in range(3)]  # beyond 8 MB, where large pages are asked for
    parts = room(tensors)
    for part, tensor in zip(parts, tensors, strict=True):
        part.copy_(tensor)
    assert all(torch.equal(part, tensor) for part, tensor in zip(parts, tensors, strict=True))


@pytest.mark.parametrize("other", [torch.ones(3, 4).T, torch.ones(3, dtype=torch.float64)])
def test_room_for_unlike_tensors_is_each_ones_own(other: torch.Tensor) -> None:
    parts = room([torch.ones(2), other])
    assert [(part.dtype, part.stride()) for part in parts] == [(torch.float32, (1,)), (other.dtype, other.stride())]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 2


def test_compiled_code_is_for_large_contiguous_tensors_of_its_kinds() -> None:
    large = torch.ones(2, WORTH)
    assert compiled(large, large > 0, large.view(torch.int32)).__name__ == "flatwing.optim.compiled"
    for tensor in (large[:, ::2], large.T, large.double(), large.to(torch.complex64), large[0, 1:]):
        assert compiled(tensor) is None
    assert compiled(large, large.bfloat16()) is None
