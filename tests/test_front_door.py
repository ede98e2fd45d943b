"""What `import lfm_onnx` gives, and what it does not load."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys
from pathlib import Path

import lfm_onnx
import pytest
from artifact_factory import ArtifactFactory

EXPORTED = [
    "ArtifactError",
    "CheckpointError",
    "ConfigError",
    "Conversation",
    "ExportOptions",
    "InputError",
    "LfmModel",
    "LfmOnnxError",
    "OutputError",
    "PromiseError",
    "TokenizerError",
    "__version__",
    "compare_artifact",
    "export_checkpoint",
    "load",
    "quantize_artifact",
]
PACKAGE = Path(lfm_onnx.__file__).parent


def in_fresh_process(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout


def test_the_front_door_gives_these_names() -> None:
    assert lfm_onnx.__all__ == EXPORTED
    assert set(EXPORTED) <= set(dir(lfm_onnx))
    with pytest.raises(AttributeError, match="no attribute 'loads'"):
        _ = lfm_onnx.loads


def test_every_error_type_is_among_them() -> None:
    tree = ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8"))
    declared = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assert declared <= set(EXPORTED)


def test_no_name_hides_a_folder_or_module() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert not modules & set(EXPORTED)


def test_the_import_alone_loads_none_of_the_libraries() -> None:
    program = "import lfm_onnx, sys; dir(lfm_onnx); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in in_fresh_process(program).split()}
    assert not loaded & {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "transformers", "click", "rich"}


def test_a_type_checker_sees_the_same_names() -> None:
    """The imports for type checkers, which nothing runs, and the homes that __getattr__ knows agree."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: "." + str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name in set(EXPORTED) - {"load", "__version__"}:
        assert getattr(lfm_onnx, name).__module__ == lfm_onnx.__name__ + imported[name]
    assert lfm_onnx.load == lfm_onnx.LfmModel.load


@pytest.mark.parametrize("name", [None, *(name for name in EXPORTED if name != "__version__")])
def test_each_has_a_docstring_with_an_example_that_runs(
    name: str | None,
    tiny_lfm: Path,
    exported_artifact: ArtifactFactory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a folder with the sample checkpoint as `tiny_lfm` and what `export` makes of it as `lfm`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_lfm").symlink_to(tiny_lfm, target_is_directory=True)
    (tmp_path / "lfm").symlink_to(exported_artifact("sample"), target_is_directory=True)
    described = lfm_onnx if name is None else getattr(lfm_onnx, name)
    examples = doctest.DocTestParser().get_doctest(described.__doc__ or "", {}, name or "lfm_onnx", None, None)
    assert examples.examples
    written: list[str] = []
    assert doctest.DocTestRunner().run(examples, out=written.append).failed == 0, "".join(written)
