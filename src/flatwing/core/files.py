"""Files appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; on success rename it to `path`, on any error remove it.

    Raises `ValueError` before any work if the folder does not exist or cannot be written, or `path` is a folder.
    """
    target = Path(path)
    require_writable(target)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise ValueError(f"cannot write {str(target)!r}: {error.strerror}. Choose another folder.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; the result is an ordinary one
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Raise `ValueError` unless a file can be written at `path`."""
    target = Path(path)
    folder = target.parent
    if target.is_dir():
        raise ValueError(f"cannot write {str(target)!r}: it is a folder. Name a file in it, such as {target / 'out'}.")
    if not folder.is_dir():
        raise ValueError(f"cannot write {str(target)!r}: the folder {str(folder)!r} does not exist. Make it first.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write {str(target)!r}: no permission in {str(folder)!r}. Choose another folder.")
