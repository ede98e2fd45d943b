"""An output folder that appears whole or not at all: work goes to a hidden sibling, which is renamed at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..artifact.manifest import MANIFEST_NAME
from ..errors import OutputError
from .journal import (
    JOURNAL,
    append_to_journal,
    has_journal,
    is_real_file,
    is_real_folder,
    read_journal,
    remove_folder,
    start_journal,
)
from .output_folder import check_target, require_unfinished, unfinished_folder
from .output_lock import exclusive


class Staging:
    """The hidden folder ``.NAME.partial`` beside the output folder, with a journal of the files finished in it.

    A run that was interrupted leaves it behind; the next run with the same fingerprint keeps its finished files, one
    with another fingerprint empties it. ``.NAME.lock`` beside it is held by the run that is at work. An artifact that
    is replaced stands as ``.NAME.replaced`` for a moment. Only folders with a journal are emptied or removed, and no
    link is followed: what else has such a name is refused, or left as it is.

    target: as ``output_folder`` gives it.
    """

    def __init__(self, target: Path, fingerprint: str, *, replace: bool) -> None:
        self.target = target
        self.folder = unfinished_folder(target)
        self._fingerprint = fingerprint
        self._replace = replace
        self._finished: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator[Staging]:
        """Create or resume the folder. It is removed when an error leaves the block, kept when the user interrupts."""
        check_target(self.target, replace=self._replace)
        absent = [folder for folder in self.target.parents if not folder.exists()]
        try:
            with self._one_line():
                self.target.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.target):
                with self._one_line():
                    self._recover()
                    check_target(self.target, replace=self._replace)
                    self._claim()
                with self._removed_after_errors(), self._one_line():
                    self._resume()
                    yield self
        except Exception:
            for folder in absent:
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"writing {self.target} failed: {error.strerror or error}; nothing was kept") from None

    @contextlib.contextmanager
    def _removed_after_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            remove_folder(self.folder)
            raise

    def finished(self, name: str) -> dict[str, Any] | None:
        """The record of a file that an earlier run finished, if it is still as that run left it."""
        record = self._finished.get(name)
        path = self.folder / name
        if record is None or not is_real_file(path) or path.stat().st_size != record.get("bytes"):
            return None
        return record

    def finish(self, name: str, record: dict[str, Any]) -> None:
        """Note durably that the file ``name`` is complete; ``record`` has its ``bytes``."""
        self._finished[name] = record
        append_to_journal(self.folder, {"name": name, **record})

    def publish(self) -> None:
        """Make the folder the output folder; what stood there is replaced in one step."""
        check_target(self.target, replace=self._replace)
        replaced = None
        if is_real_folder(self.target) and any(self.target.iterdir()):
            replaced = self._swap()
        else:
            with contextlib.suppress(FileNotFoundError):
                self.target.rmdir()
            os.rename(self.folder, self.target)
        (self.target / JOURNAL).unlink()
        if replaced is not None:
            remove_folder(replaced)

    def _swap(self) -> Path:
        """Put the folder in the place of an artifact; where that stands now, with a journal by which it is ours."""
        aside = self._free_name()
        start_journal(self.target, [{"fingerprint": self._fingerprint}])
        try:
            os.rename(self.target, aside)
            try:
                os.rename(self.folder, self.target)
            except OSError:
                os.rename(aside, self.target)
                raise
        except OSError:
            (self.target / JOURNAL).unlink()
            raise
        return aside

    def _free_name(self) -> Path:
        name, number = f".{self.target.name}.replaced", 1
        while os.path.lexists(self.target.parent / name):
            number += 1
            name = f".{self.target.name}.replaced-{number}"
        return self.target.parent / name

    def _recover(self) -> None:
        """Finish or undo the replacing that an earlier run was killed in."""
        prefix = f".{self.target.name}.replaced"
        for name in sorted(os.listdir(self.target.parent)):
            aside = self.target.parent / name
            if name.partition("-")[0] != prefix or not is_real_folder(aside):
                continue
            if not os.path.lexists(self.target) and is_real_file(aside / MANIFEST_NAME):
                os.rename(aside, self.target)
            elif has_journal(aside):
                remove_folder(aside)
        if has_journal(self.target):
            (self.target / JOURNAL).unlink()

    def _claim(self) -> None:
        """Make the folder, or take the one of an earlier run; OutputError where another thing has its name."""
        try:
            self.folder.mkdir()
        except FileExistsError:
            require_unfinished(self.folder)

    def _resume(self) -> None:
        records = read_journal(self.folder) if has_journal(self.folder) else []
        if not records or records[0] != {"fingerprint": self._fingerprint}:
            records = [{"fingerprint": self._fingerprint}]
        self._finished = {record["name"]: record for record in records[1:] if isinstance(record.get("name"), str)}
        start_journal(self.folder, records)  # without a half line, and before any file goes: the folder stays ours
        keep = {JOURNAL, *self._finished}
        for folder, folders, files in os.walk(self.folder, topdown=False):
            for name in files + folders:
                path = Path(folder, name)
                if is_real_folder(path):
                    with contextlib.suppress(OSError):
                        path.rmdir()
                elif path.relative_to(self.folder).as_posix() not in keep or not is_real_file(path):
                    path.unlink()
