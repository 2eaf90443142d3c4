import pytest

from flatwing.core import compiling


@pytest.mark.parametrize("folder", ["somewhere", None])
@pytest.mark.parametrize("worth", [-1.0, 1e9])
def test_who_waits_is_told_why(
    folder: str | None, worth: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flatwing.core.compile_time.WORTH_SAYING", worth)
    with compiling("loops", lambda: folder):
        pass
    assert bool(caplog.messages) == (worth < 0)
    if caplog.messages:
        assert caplog.messages[0].startswith("loops compiled in 0 s, ")
        assert ("kept for later processes in somewhere" in caplog.messages[0]) == (folder is not None)
        assert ("set NUMBA_CACHE_DIR" in caplog.messages[0]) == (folder is None)
