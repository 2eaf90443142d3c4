import pytest

from flatwing.core import Registry


@pytest.fixture
def tools() -> Registry[int]:
    registry: Registry[int] = Registry("tool")
    registry.register("hammer")(1)
    registry.register("saw")(2)
    return registry


def test_is_a_mapping_in_order_of_registration(tools: Registry[int]) -> None:
    assert dict(tools) == {"hammer": 1, "saw": 2}
    assert list(tools) == ["hammer", "saw"]
    assert len(tools) == 2
    assert "saw" in tools
    assert "drill" not in tools


def test_register_gives_back_what_it_files(tools: Registry[int]) -> None:
    assert tools.register("drill")(3) == 3
    assert tools["drill"] == 3


def test_get_has_a_default(tools: Registry[int]) -> None:
    assert tools.get("saw") == 2
    assert tools.get("drill") is None
    assert tools.get("drill", 7) == 7


def test_a_name_is_taken_once(tools: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"tool 'saw' is already registered\. Choose another name"):
        tools.register("saw")(3)
    assert tools["saw"] == 2


def test_unknown_name_offers_the_nearest(tools: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"unknown tool 'hamer', did you mean 'hammer'\? Known: hammer, saw\."):
        tools["hamer"]


def test_unknown_name_far_from_all_lists_them(tools: Registry[int]) -> None:
    with pytest.raises(ValueError, match=r"unknown tool 'zzz'\. Known: hammer, saw\."):
        tools["zzz"]
