"""Folders import in the order that CONTRIBUTING.md shows, and no modules import each other in a circle.

Every import counts, also within a function. Those for type checkers alone count for the order of folders but make no
circle: two modules may name each other's types.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BESIDE_THE_PACKAGE = {"benchmarks", "docs", "samples", "tests"}
FRONT_DOOR = {"__init__", "__main__", "setup"}
"""At the root, above all folders: what they hand on is everybody's."""


@dataclass(frozen=True)
class Import:
    """One import of a module of this package: names with dots from the root, and where it stands."""

    importer: str
    imported: str
    line: int
    for_types: bool

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.imported}"


def documented_steps() -> dict[str, int]:
    """Folder or module at the root to its step, by the table in CONTRIBUTING.md."""
    steps: dict[str, int] = {}
    for line in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| (\d) \| ([^|]*) \|", line):
            names = re.findall(r"`(\w+)(?:/|\.py)`", row[2])
            assert names, line
            steps.update(dict.fromkeys(names, int(row[1])))
    return steps


def module_files() -> dict[str, Path]:
    """Modules of the package by their names from the root; a package by that of its folder, the root itself by ""."""
    files = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = not any(part.startswith(".") for part in parts) and parts[0] not in BESIDE_THE_PACKAGE | {"build"}
        if own and parts != ("setup",):
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = module_files()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imports_of(name: str) -> Iterator[Import]:
    """All imports of our modules in one of them; ``from package import module`` is an import of that module."""
    tree = TREES[name]
    type_blocks = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    for_types = {id(node) for block in type_blocks for node in ast.walk(block)}
    package = name.split(".") if MODULES[name].name == "__init__.py" and name else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            source = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}".lstrip(".")
                imported = submodule if submodule in MODULES else source
                yield Import(name, imported, node.lineno, id(node) in for_types)


IMPORTS = [item for name in MODULES for item in imports_of(name)]


def top(name: str) -> str:
    return name.split(".")[0]


def test_every_folder_stands_in_the_table() -> None:
    found = {top(name) for name in MODULES} - {"", *FRONT_DOOR}
    assert found == set(documented_steps())


def test_what_is_imported_exists() -> None:
    assert [str(item) for item in IMPORTS if item.imported not in MODULES] == []


def test_a_folder_imports_only_from_earlier_steps() -> None:
    steps = documented_steps()
    assert len(IMPORTS) > 500
    wrong = [
        str(item)
        for item in IMPORTS
        if top(item.importer) != top(item.imported)
        and item.importer not in ("", *FRONT_DOOR)
        and item.imported  # the root itself holds the version
        and steps[top(item.imported)] >= steps[top(item.importer)]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for item in IMPORTS:
        if item.imported and not item.for_types:
            graph[item.importer].add(item.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


def test_no_name_at_the_root_is_that_of_a_library() -> None:
    """Tests run from the root, where such a folder would hide the library."""
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {
        node.module.split(".")[0]
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    here = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert imported & here - {"__init__", "__main__"} == set()
