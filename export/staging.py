"""An output folder that appears whole or not at all: work goes to a hidden sibling, which is renamed at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..artifact import MANIFEST_NAME
from ..errors import OutputError

_JOURNAL = "journal.jsonl"
_LOCK = "lock"


class Staging:
    """The hidden folder ``.NAME.partial`` beside the output folder, with a journal of the files finished in it.

    A run that was interrupted leaves it behind; the next run with the same fingerprint keeps its finished files, one
    with another fingerprint empties it.
    """

    def __init__(self, target: Path, fingerprint: str, *, replace: bool) -> None:
        self.target = target
        self.folder = target.parent / f".{target.name}.partial"
        self._fingerprint = fingerprint
        self._replace = replace
        self._finished: dict[str, dict[str, Any]] = {}
        self._lock: BinaryIO | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[Staging]:
        """Create or resume the folder. It is removed when an error leaves the block, kept when the user interrupts."""
        check_target(self.target, replace=self._replace)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / _LOCK).open("ab")
        except OSError as error:
            raise OutputError(f"cannot write to {self.target.parent}: {error.strerror}") from None
        self._lock = lock
        with lock:
            if not _lock_exclusively(lock):
                raise OutputError(f"another export to {self.target} is running; wait for it or choose another folder")
            try:
                self._resume()
                yield self
            except OSError as error:
                shutil.rmtree(self.folder, ignore_errors=True)
                reason = error.strerror or error
                raise OutputError(f"writing {self.target} failed: {reason}; nothing was kept") from None
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
        assert self._lock is not None
        self._lock.close()  # Windows renames no folder that holds an open file
        for name in (_JOURNAL, _LOCK):
            (self.folder / name).unlink()
        check_target(self.target, replace=self._replace)
        if not self.target.exists():
            os.rename(self.folder, self.target)
            return
        old = self.target.parent / f".{self.target.name}.replaced"
        shutil.rmtree(old, ignore_errors=True)
        os.rename(self.target, old)
        try:
            os.rename(self.folder, self.target)
        except OSError:
            os.rename(old, self.target)
            raise
        shutil.rmtree(old, ignore_errors=True)

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
            keep = {_JOURNAL, _LOCK, *self._finished}
        else:
            keep = {_LOCK}
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
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target} is not a folder; choose another output folder")
    if not target.exists():
        parent = next(folder for folder in target.absolute().parents if folder.exists())
        if not parent.is_dir():
            raise OutputError(f"{parent} is not a folder; choose another output folder")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise OutputError(f"{parent} is not writable; choose another output folder")
        return
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{target.parent} is not writable; choose another output folder")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST_NAME).is_file():
        raise OutputError(f"{target} is not empty and no artifact (it has no {MANIFEST_NAME}); choose another folder")
    if not replace:
        raise OutputError(f"{target} already holds an artifact; add --force to replace it or choose another folder")


def check_space(target: Path, needed: int) -> None:
    """OutputError if the file system of ``target`` has fewer than ``needed`` bytes free."""
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"not enough space for {target}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; "
            "free some or choose another disk"
        )


def _lock_exclusively(file: BinaryIO) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
