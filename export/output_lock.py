"""One export at a time to one folder."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import OutputError

_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems say that know no locks: an export there goes on without."""


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold ``.NAME.lock`` beside ``target``; OutputError where another run holds it. No link is followed."""
    path = target.parent / f".{target.name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        if not path.exists():  # a file system that says so when a file cannot be made, such as /proc
            raise OutputError(f"{path} cannot be written; choose another output folder") from None
        raise OutputError(f"another export to {target} is running; wait for it or choose another folder") from None
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
    try:
        yield
    finally:
        # Removed while it is held: who opened it before finds that it has no name any more and does not take it.
        with contextlib.suppress(OSError):  # Windows removes no open file; an empty lock file does no harm
            path.unlink()
        lock.release()
