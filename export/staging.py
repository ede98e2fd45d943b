"""An output folder that appears whole or not at all: work goes to a hidden sibling, which is renamed at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..artifact.artifact import MANIFEST_NAME
from ..errors import OutputError
from ..strict_json import parse_json

_JOURNAL = "journal.jsonl"


class Staging:
    """The hidden folder ``.NAME.partial`` beside the output folder, with a journal of the files finished in it.

    A run that was interrupted leaves it behind; the next run with the same fingerprint keeps its finished files, one
    with another fingerprint empties it. ``.NAME.lock`` beside it is held by the run that is at work.
    """

    def __init__(self, target: Path, fingerprint: str, *, replace: bool) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.partial"
        self._replaced = target.parent / f".{target.name}.replaced"
        self._fingerprint = fingerprint
        self._replace = replace
        self._finished: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[Staging]:
        """Create or resume the folder. It is removed when an error leaves the block, kept when the user interrupts."""
        check_target(self.target, replace=self._replace)
        absent = [folder for folder in self.target.parents if not folder.exists()]
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            with _exclusive(self.target), self._removed_after_errors():
                self._recover()
                check_target(self.target, replace=self._replace)
                self.folder.mkdir(exist_ok=True)
                self._resume()
                yield self
        except Exception:
            for folder in absent:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    @contextlib.contextmanager
    def _removed_after_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise OutputError(f"writing {self.target} failed: {error.strerror or error}; nothing was kept") from None
        except Exception:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def finished(self, name: str) -> dict[str, Any] | None:
        """The record of a file that an earlier run finished, if it is still as that run left it."""
        record = self._finished.get(name)
        path = self.folder / name
        if record is None or not path.is_file() or path.stat().st_size != record.get("bytes"):
            return None
        return record

    def finish(self, name: str, record: dict[str, Any]) -> None:
        """Note durably that the file ``name`` is complete; ``record`` has its ``bytes``."""
        self._finished[name] = record
        self._append({"name": name, **record})

    def publish(self) -> None:
        """Make the folder the output folder; what stood there is replaced in one step."""
        (self.folder / _JOURNAL).unlink()
        check_target(self.target, replace=self._replace)
        if not self.target.exists():
            os.rename(self.folder, self.target)
            return
        os.rename(self.target, self._replaced)
        try:
            os.rename(self.folder, self.target)
        except OSError:
            os.rename(self._replaced, self.target)
            raise
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _recover(self) -> None:
        """Finish or undo the replacing that an earlier run was killed in."""
        if not self._replaced.exists():
            return
        if self.target.exists():
            shutil.rmtree(self._replaced)
        else:
            os.rename(self._replaced, self.target)

    def _resume(self) -> None:
        journal = self.folder / _JOURNAL
        lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
        records = []
        for line in lines:
            try:
                records.append(json.loads(line))
            except ValueError:
                break  # the run ended while it wrote this line
        if records and records[0] == {"fingerprint": self._fingerprint}:
            self._finished = {record["name"]: record for record in records[1:]}
            keep = {_JOURNAL, *self._finished}
        else:
            keep = set()
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir():
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in keep:
                path.unlink()
        if _JOURNAL not in keep:
            self._append({"fingerprint": self._fingerprint})
        else:  # drop a half line
            journal.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    def _append(self, record: dict[str, Any]) -> None:
        with (self.folder / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(record) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


def check_target(target: Path, *, replace: bool) -> None:
    """OutputError unless an artifact may be put at ``target``: absent, empty, or an artifact that may be replaced."""
    try:
        _check_target(target, replace)
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror}; choose another output folder") from None


def _check_target(target: Path, replace: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target} is not a folder; choose another output folder")
    parent = next(folder for folder in target.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OutputError(f"{parent} is not a folder; choose another output folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable; choose another output folder")
    if not target.exists():
        return
    if os.path.ismount(target):
        raise OutputError(f"{target} is a mount point, which cannot be replaced by a rename; choose a folder in it")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST_NAME).is_file():
        raise OutputError(f"{target} is not empty and no artifact (it has no {MANIFEST_NAME}); choose another folder")
    if not replace:
        raise OutputError(f"{target} already holds an artifact; add --force to replace it or choose another folder")
    if (stranger := _file_of_no_export(target)) is not None:
        raise OutputError(f"{target} also holds {stranger}, which no export wrote; move it or choose another folder")


def _file_of_no_export(target: Path) -> str | None:
    """A file of an artifact folder that its manifest does not list, relative to the folder."""
    try:
        manifest = parse_json((target / MANIFEST_NAME).read_bytes())
        listed = {MANIFEST_NAME, *(entry["path"] for entry in manifest["files"])}
    except (ValueError, TypeError, KeyError):
        listed = {MANIFEST_NAME}
    files = (path for path in sorted(target.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(target).as_posix() for path in files)
    return next((name for name in names if name not in listed), None)


def check_space(target: Path, needed: int) -> None:
    """OutputError if the file system of ``target`` has fewer than ``needed`` bytes free."""
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"not enough space for {target}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; "
            "free some or choose another disk"
        )


@contextlib.contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Hold ``.NAME.lock`` beside ``target``; OutputError where another run holds it."""
    path = target.parent / f".{target.name}.lock"
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"cannot write to {target.parent}: {error.strerror}") from None
    with file:
        if not _lock(file) or not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise OutputError(f"another export to {target} is running; wait for it or choose another folder")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file; an empty lock file does no harm
                path.unlink()


def _lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True
