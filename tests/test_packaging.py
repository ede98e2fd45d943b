"""What a user installs: the wheel holds the package and works without the repository, torch or transformers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
PACKAGE_FOLDERS = [
    path.parent.relative_to(ROOT).as_posix() for top in FOLDERS for path in (ROOT / top).rglob("__init__.py")
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # built from a copy: a build leaves folders behind
    ignore = shutil.ignore_patterns("__pycache__", "node_modules", "build")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed"))):
        shutil.copy2(path, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_holds_every_module_and_nothing_of_the_tests(wheel: zipfile.ZipFile) -> None:
    expected = {f"lfm_onnx/{path.name}" for path in ROOT.glob("*.py") if path.name != "setup.py"}
    expected |= {
        f"lfm_onnx/{folder}/{path.name}" for folder in PACKAGE_FOLDERS for path in (ROOT / folder).glob("*.py")
    }
    packaged = set(wheel.namelist())
    assert expected <= packaged
    assert "lfm_onnx/py.typed" in packaged
    texts = {f"lfm_onnx/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "quantize" / "calibration").iterdir()}
    assert len(texts) >= 10 and texts <= packaged
    assert not any("tests/" in name or "samples/" in name for name in packaged)


def test_the_installed_package_exports_and_generates_without_torch(
    wheel: zipfile.ZipFile, tmp_path: Path, tiny_lfm: Path
) -> None:
    wheel.extractall(tmp_path / "site")
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
sys.modules["torch"] = sys.modules["transformers"] = None
from lfm_onnx.cli.main import main
assert main(["export", {str(tiny_lfm)!r}, "-o", "out"], standalone_mode=False) in (None, 0)
assert main(["generate", "out", "-p", "Hello", "--max-new-tokens", "4"], standalone_mode=False) in (None, 0)
import lfm_onnx
print(lfm_onnx.__file__)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
