"""What the documents name exists: files and folders in code marks and links, and Python names in examples."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import lfm_onnx
import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}
MADE_BY_USE = {"dist", "build"}
"""At the root, where what they hold is made."""
SUFFIXES = (".py", ".md", ".cc", ".h", ".svg", ".txt", ".yml", ".toml", ".sh")


def pieces_of_code(text: str) -> Iterator[str]:
    """What stands in code marks and in indented or fenced blocks, word by word, and where links go."""
    code = [*re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL), *re.findall(r"^    .*$", text, re.MULTILINE)]
    for piece in code:
        yield from re.split(r"[\s`,;()\[\]]+", piece)
    yield from re.findall(r"\]\(([^)#]+)\)", text)


def named_paths(document: Path) -> set[str]:
    """Words that look like a path of this repository: below one of its folders, or with one of its suffixes."""
    words = {word.rstrip(".:") for word in pieces_of_code(document.read_text(encoding="utf-8"))}
    plain = {word for word in words if re.fullmatch(r"[\w./-]+", word) and not word.startswith(("-", "/", "."))}
    return {
        word
        for word in plain
        if not re.search(r"NAME|OUT|FOLDER|[XYZ]\.[XYZ]|PLATFORM", word)
        and word.split("/")[0] not in MADE_BY_USE
        and (word.endswith(SUFFIXES) or (word.partition("/")[1] and word.split("/")[0] in FOLDERS))
    }


def repository_files() -> Iterator[str]:
    """Paths from the root, ``/`` before each; hidden folders and what is installed left out."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "node_modules"]
        yield from ("/" + (Path(folder) / name).relative_to(ROOT).as_posix() for name in names)


FILES = list(repository_files())


def exists(name: str) -> bool:
    """From the root, or, of a file that stands beside others that the text is about, by the end of its path."""
    return (ROOT / name).exists() or any(file.endswith(f"/{name}") for file in FILES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_files_that_a_document_names_exist(document: Path) -> None:
    assert [name for name in sorted(named_paths(document)) if not exists(name)] == []


def test_the_documents_name_files() -> None:
    assert sum(len(named_paths(document)) for document in DOCUMENTS) > 50


def test_the_python_examples_go_through_the_front_door() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    examples = [ast.parse(block) for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL)]
    assert examples
    for node in (node for example in examples for node in ast.walk(example)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lfm_onnx":
            assert node.attr in lfm_onnx.__all__
        assert not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("lfm_onnx")
