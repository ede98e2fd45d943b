"""How much one request to the renderer may take: measured, so the same for whatever a template does."""

from __future__ import annotations

# A conversation of 10000 turns and a million characters, twice what fits 128000 tokens, takes 0.2 s and 60 MB.
PROCESSOR_SECONDS = 1.5
MEMORY_BYTES = 512 << 20
"""Beyond what the interpreter takes itself."""
MAX_CHARACTERS = 16_000_000
"""Of the rendered text."""

# For a process that waits instead of working, which no processor time measures.
WALL_SECONDS = 30.0

TOO_LONG = f"it takes more than {PROCESSOR_SECONDS:g} s of processor time"
TOO_LARGE = f"it needs more than {MEMORY_BYTES >> 20} MB of memory"
TOO_MUCH_TEXT = f"it renders to more than {MAX_CHARACTERS} characters"
