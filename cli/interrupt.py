"""What a plain kill does to a command that writes."""

from __future__ import annotations

import signal


def end_like_an_interrupt() -> None:
    """From now on a plain kill ends like Ctrl-C: finished files stay for the next run."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
