"""The journal in a folder that an export works on: what is finished in it, and that the folder is ours to remove."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from ..artifact.manifest import MANIFEST_NAME

JOURNAL = "journal.jsonl"
NEW_JOURNAL = "journal.jsonl.new"
"""What is written first and then renamed: a journal is never half there."""


def start_journal(folder: Path, records: list[dict[str, Any]]) -> None:
    """Write a journal of ``records``, the first of which has the run's fingerprint; it replaces an older one."""
    (folder / NEW_JOURNAL).unlink(missing_ok=True)
    with (folder / NEW_JOURNAL).open("x", encoding="utf-8") as journal:
        journal.write("".join(json.dumps(record) + "\n" for record in records))
    os.replace(folder / NEW_JOURNAL, folder / JOURNAL)


def append_to_journal(folder: Path, record: dict[str, Any]) -> None:
    """Note ``record`` durably."""
    with (folder / JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(record) + "\n")
        journal.flush()
        os.fsync(journal.fileno())


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder that has a journal, up to the first line that is none."""
    records = []
    for line in (folder / JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # the run ended while it wrote this line
        if not isinstance(record, dict):
            break
        records.append(record)
    return records


def has_journal(folder: Path) -> bool:
    """Whether ``folder`` is a real folder, no link, that an export has left its journal in."""
    if not is_real_folder(folder) or not is_real_file(folder / JOURNAL):
        return False
    records = read_journal(folder)
    return bool(records) and "fingerprint" in records[0]


def is_real_folder(path: Path) -> bool:
    """A folder, and no link to one."""
    return os.path.lexists(path) and stat.S_ISDIR(path.lstat().st_mode)


def is_real_file(path: Path) -> bool:
    """A regular file, and no link to one."""
    return os.path.lexists(path) and stat.S_ISREG(path.lstat().st_mode)


def remove_folder(folder: Path) -> None:
    """Remove a folder with a journal: the manifest first, so that half an artifact is none, and the journal last.

    Stops without an error at what cannot be removed; no link is followed.
    """
    with contextlib.suppress(OSError):
        for first in (MANIFEST_NAME, *sorted(os.listdir(folder))):
            path = folder / first
            if first == JOURNAL or not os.path.lexists(path):
                continue
            if is_real_folder(path):
                shutil.rmtree(path)
            else:
                path.unlink()
        (folder / JOURNAL).unlink(missing_ok=True)
        folder.rmdir()
