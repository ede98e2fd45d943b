"""Whether an artifact may be put where the user wants it: what stands there, and the space on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from ..artifact.manifest import MANIFEST_NAME, listed_files
from ..errors import ArtifactError, OutputError
from ..reporting.byte_size import byte_size
from .journal import JOURNAL, NEW_JOURNAL, has_journal, is_real_folder

MOST_FOLDERS = 256
"""In the path of an output; pathlib makes parents by recursion."""


def output_folder(path: Path | str) -> Path:
    """``path`` as an absolute one without ".." and without links on the way, so that it stays what it is.

    The last name is kept where it is a link: ``check_target`` refuses it.
    """
    path = Path(path)
    if len(path.parts) > MOST_FOLDERS:
        raise OutputError(f"{path}: {len(path.parts)} folders deep, at most {MOST_FOLDERS} are made; choose another")
    try:
        if path.name in ("", ".."):
            return Path(os.path.realpath(path))
        return Path(os.path.realpath(path.parent)) / path.name
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: {reason}; choose another output folder") from None


def unfinished_folder(target: Path) -> Path:
    """Where an export to ``target`` works."""
    return target.parent / f".{target.name}.partial"


def require_unfinished(folder: Path) -> None:
    """OutputError unless ``folder`` is what an export that did not end has left, or has just begun."""
    begun = is_real_folder(folder) and set(os.listdir(folder)) <= {NEW_JOURNAL}
    if not begun and not has_journal(folder):
        kind = "a link" if folder.is_symlink() else "not the work of an export (it has no journal)"
        raise OutputError(f"{folder} is {kind}; move it away or choose another output folder")


def check_target(target: Path, *, replace: bool, source: Path | None = None) -> None:
    """OutputError unless an artifact may be put at ``target``: absent, empty, or an artifact that may be replaced.

    source: the folder that is read, which the artifact cannot replace.
    """
    try:
        _check_target(target, replace, source)
    except OSError as error:
        raise OutputError(f"{target}: {error.strerror}; choose another output folder") from None


def _check_target(target: Path, replace: bool, source: Path | None) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target} is not a folder; choose another output folder")
    if os.path.ismount(target):
        raise OutputError(f"{target} is a mount point, which cannot be replaced by a rename; choose a folder in it")
    parent = next((folder for folder in target.absolute().parents if folder.exists()), target)
    if not parent.is_dir():
        raise OutputError(f"{parent} is not a folder; choose another output folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable; choose another output folder")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        target.with_name(f".{target.name}.replaced-99").lstat()  # OSError where such a companion's name is too long
    if os.path.lexists(unfinished := unfinished_folder(target)):
        require_unfinished(unfinished)
    if not target.exists():
        return
    if not any(target.iterdir()):
        return
    if source is not None and source.exists() and os.path.samefile(source, target):
        raise OutputError(f"{target} is the folder that is read; choose another output folder")
    if not (target / MANIFEST_NAME).is_file():
        raise OutputError(f"{target} is not empty and no artifact (it has no {MANIFEST_NAME}); choose another folder")
    if not replace:
        raise OutputError(
            f"{target} already holds an artifact; add `replace=True` to replace it or choose another folder"
        )
    here = Path(os.path.realpath(os.curdir))
    if here == target or target in here.parents:
        raise OutputError(f"{target} is where you are: go to another folder to replace it, or choose another output")
    if not os.access(target, os.W_OK | os.X_OK):
        raise OutputError(f"{target} is not writable; choose another output folder")
    if (stranger := _file_of_no_export(target)) is not None:
        raise OutputError(f"{target} also holds {stranger}, which no export wrote; move it or choose another folder")


def _file_of_no_export(target: Path) -> str | None:
    """A file of an artifact folder that its manifest does not list, relative to the folder."""
    listed = {MANIFEST_NAME}
    with contextlib.suppress(ArtifactError):
        listed |= set(listed_files(target))
    if has_journal(target):  # of a run that was killed just before it had removed it
        listed.add(JOURNAL)
    listed.add(NEW_JOURNAL)
    files = (path for path in sorted(target.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(target).as_posix() for path in files)
    return next((name for name in names if name not in listed), None)


def check_space(target: Path, needed: int) -> None:
    """OutputError if the file system of ``target`` has fewer than ``needed`` bytes free."""
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"not enough space for {target}: {byte_size(needed)} are needed, {byte_size(free)} are free; "
            "free some or choose another disk"
        )
