"""The picture of a weight's way shows the files that a trace of one weight finds, and these stay few."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from native_models import needs_library

DOCS = Path(__file__).parents[2] / "docs"
MOST_FILES = 27


def drawn_files() -> list[str]:
    picture = (DOCS / "a-weights-way.svg").read_text(encoding="utf-8")
    return re.findall(r'class="file"[^>]*>([^<]+)<', picture)


def test_the_files_in_the_picture_exist() -> None:
    assert all((DOCS.parent / name).is_file() for name in drawn_files())
    assert "(a-weights-way.svg)" in (DOCS / "a-weights-way.md").read_text(encoding="utf-8")


@needs_library
def test_the_trace_of_a_weight_finds_the_files_in_the_picture_and_few() -> None:
    command = [sys.executable, str(DOCS / "trace_weight.py"), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert sorted(found) == sorted(drawn_files())
    assert len(found) <= MOST_FILES
