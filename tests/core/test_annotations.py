"""Annotations are not checked for a while, whatever happens meanwhile."""

import jaxtyping
import pytest

from flatwing.core import Registry
from flatwing.core.annotations import without_annotations


def test_checked_before_and_after_but_not_meanwhile() -> None:
    number: object = 3
    with pytest.raises(jaxtyping.TypeCheckError, match="kind"):
        Registry(number)  # type: ignore[arg-type]
    with without_annotations():
        Registry(number)  # type: ignore[arg-type]
    with pytest.raises(jaxtyping.TypeCheckError, match="kind"):
        Registry(number)  # type: ignore[arg-type]


def test_as_before_after_an_error_and_within_another() -> None:
    with pytest.raises(KeyError, match="here"), without_annotations():
        raise KeyError("here")
    assert not jaxtyping.config.jaxtyping_disable
    with without_annotations():
        with without_annotations():
            pass
        assert jaxtyping.config.jaxtyping_disable
