"""Work folder: OUT.partial, where unfinished work waits to be resumed, and from which OUT appears whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, final

from ..core import replacing
from .place import files_in, is_temporary, require_free, require_parent

JOB, FORMAT = "job.json", "flatwing.parts"


@final
class WorkFolder:
    """The folder beside `out` for one job; `parts` holds finished parts, `product` becomes `out`.

    A job is plain data: the same job resumes, another one is refused. At every moment the process may be killed: then
    `out` is as it was before or finished, or stands in `aside` and is put back by the next `prepare`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     work = WorkFolder(Path(folder) / "out")
    ...     work.prepare({"budget": 0.5})
    ...     _ = (work.product / "a.txt").write_text("done")
    ...     work.commit()
    ...     print([path.name for path in Path(folder).iterdir()], work.out.joinpath("a.txt").read_text())
    True
    ['out'] done
    """

    def __init__(self, out: str | os.PathLike[str]) -> None:
        self.out = Path(os.path.abspath(out))
        self.folder = self.out.with_name(self.out.name + ".partial")
        self.parts, self.product, self.aside = (self.folder / name for name in ("parts", "out", "old"))

    def prepare(self, job: dict[str, Any], *, overwrite: bool = False) -> bool:
        """Make the folder ready; False if the job is finished already and `out` is its product.

        Raises `ValueError` if `out` exists (unless `overwrite`, and it is a directory that flatwing wrote or an empty
        one), if its parent folder does not exist or cannot be written, or holds unfinished work of another job.
        """
        require_parent(self.out)
        found = self._found()
        if found is not None and self.aside.exists() and not os.path.lexists(self.out):
            self.aside.rename(self.out)
        done = found is not None and found["finished"] and found["job"] == job
        if done and self.out.is_dir() and not self.out.is_symlink() and not self.product.exists():
            self._clear()
            return False
        require_free(self.out, overwrite=overwrite)
        if found is not None and found["job"] != job:
            if not overwrite:
                raise self._other(found["job"], job)
            self._clear()
        self.parts.mkdir(parents=True, exist_ok=True)
        self._write(job, finished=False)
        for left in (*self.folder.iterdir(), *self.parts.iterdir()):
            if is_temporary(left):  # what was being written when the process was killed
                left.unlink()
        shutil.rmtree(self.product, ignore_errors=True)
        self.product.mkdir()
        return True

    def commit(self) -> None:
        """Put the product in the place of `out`, and remove the work folder."""
        found = self._found()
        self._write({} if found is None else found["job"], finished=True)
        if self.out.exists():
            self.out.rename(self.aside)
        self.product.rename(self.out)
        self._clear()

    def _found(self) -> dict[str, Any] | None:
        """The job of the folder as it is and whether it is finished, None if there is no folder yet."""
        if not os.path.lexists(self.folder):
            return None
        found = None
        if self.folder.is_dir() and not self.folder.is_symlink():
            if all(is_temporary(path, "job") for path in files_in(self.folder)):
                return None  # killed between mkdir and the first write
            found = self._read()
        if found is None:
            raise ValueError(
                f"{str(self.folder)!r} is in the way and is not unfinished work of flatwing. Rule: that name is free; "
                "move it away or choose another OUT."
            )
        return found

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        ours = isinstance(found, dict) and found.get("format") == FORMAT and isinstance(found.get("job"), dict)
        return {"finished": False, **found} if ours else None

    def _other(self, found: dict[str, Any], job: dict[str, Any]) -> ValueError:
        keys = sorted(k for k in {*found, *job} if found.get(k) != job.get(k))
        what = ", ".join(f"{k} was {found.get(k)!r} and is {job.get(k)!r}" for k in keys)
        return ValueError(
            f"{str(self.folder)!r} holds unfinished work of other options: {what}. Rule: the same options resume it. "
            "Use --overwrite or remove that folder to start over."
        )

    def _write(self, job: dict[str, Any], *, finished: bool) -> None:
        with replacing(self.folder / JOB) as temporary:
            state = {"format": FORMAT, "job": job, "finished": finished}
            temporary.write_text(json.dumps(state, indent=2), encoding="utf-8")

    def _clear(self) -> None:
        """Remove what is ours; the job goes last, so that an interrupted removal is still known for what it is."""
        for path in (self.parts, self.product, self.aside):
            if path.is_dir():
                shutil.rmtree(path)
        for path in self.folder.iterdir():
            if is_temporary(path, "job"):
                path.unlink()
        (self.folder / JOB).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()
