"""Work folder: OUT.partial, where unfinished work waits to be resumed, and from which OUT appears whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, final

from ..core import replacing

JOB, MARK = "job.json", "flatwing.json"


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
        parent = self.out.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            why = "cannot be written" if parent.is_dir() else "does not exist"
            raise ValueError(f"cannot make {str(self.out)!r}: the folder {str(parent)!r} {why}. Make it first.")
        found = self._found()
        if found is not None and self.aside.exists() and not self.out.exists():
            self.aside.rename(self.out)
        if found == {**job, "finished": True} and self.out.exists() and not self.product.exists():
            self._clear()
            return False
        self._require_free(overwrite=overwrite)
        if found is not None and {**found, "finished": False} != {**job, "finished": False}:
            if not overwrite:
                raise self._other(found, job)
            self._clear()
        self.parts.mkdir(parents=True, exist_ok=True)
        self._write(job, finished=False)
        for left in self.parts.glob(".*"):  # what was being written when the process was killed
            left.unlink()
        shutil.rmtree(self.product, ignore_errors=True)
        self.product.mkdir()
        return True

    def commit(self) -> None:
        """Put the product in the place of `out`, and remove the work folder."""
        job = self._found() or {}
        self._write(job, finished=True)
        if self.out.exists():
            self.out.rename(self.aside)
        self.product.rename(self.out)
        self._clear()

    def _found(self) -> dict[str, Any] | None:
        """The job of the folder as it is, None if there is no folder yet."""
        if not self.folder.exists():
            return None
        try:
            return json.loads((self.folder / JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if self.folder.is_dir() and not any(self._files()):  # killed between mkdir and the first write
                return None
            raise ValueError(
                f"{str(self.folder)!r} is in the way and is not unfinished work of flatwing. Rule: that name is free; "
                "move it away or choose another OUT."
            ) from None

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".job-")]

    def _require_free(self, *, overwrite: bool) -> None:
        if not os.path.lexists(self.out):
            return
        if not overwrite:
            raise ValueError(f"{str(self.out)!r} exists. Rule: a new directory; use --overwrite to replace it.")
        ours = self.out.is_dir() and not self.out.is_symlink()
        if not ours or (any(self.out.iterdir()) and not (self.out / MARK).is_file()):
            raise ValueError(
                f"{str(self.out)!r} is not a directory that flatwing wrote, so it is not overwritten. "
                "Rule: --overwrite replaces directories with a flatwing.json; choose another OUT."
            )

    def _other(self, found: dict[str, Any], job: dict[str, Any]) -> ValueError:
        keys = sorted(k for k in {*found, *job} - {"finished"} if found.get(k) != job.get(k))
        what = ", ".join(f"{k} was {found.get(k)!r} and is {job.get(k)!r}" for k in keys)
        return ValueError(
            f"{str(self.folder)!r} holds unfinished work of other options: {what}. Rule: the same options resume it. "
            "Use --overwrite or remove that folder to start over."
        )

    def _write(self, job: dict[str, Any], *, finished: bool) -> None:
        with replacing(self.folder / JOB) as temporary:
            temporary.write_text(json.dumps({**job, "finished": finished}, indent=2), encoding="utf-8")

    def _clear(self) -> None:
        """Remove the folder; the job goes last, so that an interrupted removal is still known for what it is."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != JOB:
                path.unlink()
        (self.folder / JOB).unlink(missing_ok=True)
        self.folder.rmdir()
