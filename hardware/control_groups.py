"""Linux control groups: by their files a container is held to a share of the machine's processors and memory."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

MOUNT = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def control_groups(controller: str) -> list[Path]:
    """Folders of the groups that hold this process for ``controller`` ("cpu", "memory"), inner ones before outer.

    Of version 1 or 2, told apart by the files in them; [] where the system has none.
    """
    folders = []
    for line in read_text(OWN_GROUPS).splitlines():
        _, controllers, own = (*line.split(":", 2), "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = MOUNT / controllers if controllers else MOUNT
        path = PurePosixPath(own.lstrip("/"))
        # A container often sees its own group as the root of the mount, and a path that is not there.
        folders += [folder for folder in (root / name for name in (path, *path.parents)) if folder.is_dir()]
    return list(dict.fromkeys(folders))


def read_text(path: Path) -> str:
    """What a file of the kernel holds, stripped; "" where it is not there or may not be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeError):
        return ""


def read_number(path: Path) -> int | None:
    """The whole number in a file of the kernel; None where it holds another word, such as "max"."""
    text = read_text(path)
    return int(text) if text.lstrip("-").isdigit() else None
