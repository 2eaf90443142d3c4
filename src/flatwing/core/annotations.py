"""Annotations of shapes, which are checked at run time only where jaxtyping is asked to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping


@contextmanager
def without_annotations() -> Iterator[None]:
    """No annotation is checked for a while, then as before: for what has no shape, and to see errors as users do.

    >>> with without_annotations():
    ...     jaxtyping.config.jaxtyping_disable
    True
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
