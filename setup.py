"""Builds the native library with the package: optional, a machine without a C++ compiler gets a pure-Python package.

LFM_ONNX_BUILD_NATIVE=0 skips the build, LFM_ONNX_BUILD_NATIVE=1 makes a failure an error.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SETTING = os.environ.get("LFM_ONNX_BUILD_NATIVE", "")
NATIVE = Path("runtime", "native")
LIBRARY_NAMES = {"win32": "lfm_ops.dll", "darwin": "liblfm_ops.dylib"}
LIBRARY = LIBRARY_NAMES.get(sys.platform, "liblfm_ops.so")
TEST_ONLY = {"test_entry.cc"}


def version() -> str:
    """The package's version, read without importing it."""
    match = re.search(r'__version__ = "([^"]+)"', Path("__init__.py").read_text(encoding="utf-8"))
    return match[1] if match else "unknown"


def machine() -> str:
    """The target's name in isa_sources.txt; empty where one build is for several machines."""
    platform = sysconfig.get_platform().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    return next((name for name in ("x86_64", "aarch64") if platform.endswith(name)), "")


def isa_sources() -> dict[str, tuple[str, list[str]]]:
    """The files for single instruction sets: name to (machine, compile flags)."""
    lines = (NATIVE / "compute" / "isa_sources.txt").read_text(encoding="utf-8").splitlines()
    fields = (line.split() for line in lines if line and not line.startswith("#"))
    return {name: (target, flags) for name, target, *flags in fields}


def _listed(source: Path) -> str:
    """A source's name in isa_sources.txt."""
    compute = NATIVE / "compute"
    return source.relative_to(compute).as_posix() if source.is_relative_to(compute) else source.name


def sources() -> list[Path]:
    """Every file that the library is made of on this machine."""
    isa = isa_sources()
    compute = sorted((NATIVE / "compute").rglob("*.cc"))
    wanted = [
        path for path in compute if path.name not in TEST_ONLY and isa.get(_listed(path), (machine(),))[0] == machine()
    ]
    return sorted(NATIVE.glob("*.cc")) + wanted


class BuildNative(build_ext):
    """Compiles each source with its instruction set's flags and links them to one library without Python in it."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []  # the sources say what is exported

    def run(self) -> None:
        try:
            super().run()
        except (Exception, SystemExit) as error:
            if SETTING == "1":
                raise
            print(
                f"lfm-onnx: the native library could not be built ({str(error)[:80]}).\n"
                "lfm-onnx: installing the pure-Python package: models run, but on ONNX Runtime's own kernels. "
                "Install a C++17 compiler and reinstall to get it.",
                file=sys.stderr,
            )

    def build_extension(self, ext: Extension) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        isa = isa_sources()
        common = ["/std:c++17", "/O2", "/EHsc", "/fp:precise"]
        if not msvc:
            common = ["-std=c++17", "-O3", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
            common += ["-ffp-contract=off", "-g0"]
        macros = [
            (f"LFM_HAVE_{Path(name).stem.upper()}", "1") for name in isa if name in {_listed(p) for p in sources()}
        ]
        macros.append(("LFM_OPS_VERSION", f'"{version()}"'))

        def compile_one(source: Path) -> list[str]:
            flags = [] if msvc else isa.get(_listed(source), ("", []))[1]
            result: list[str] = self.compiler.compile(
                [str(source)],
                output_dir=self.build_temp,
                macros=macros,
                include_dirs=[str(NATIVE), str(NATIVE / "compute")],
                extra_postargs=common + flags,
            )
            return result

        # Each compilation is a process of its own: threads only wait for them.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [path for paths in pool.map(compile_one, sources()) for path in paths]
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(target), target_lang="c++")

    def copy_extensions_to_source(self) -> None:
        if Path(self.build_lib, self.get_ext_filename(EXTENSION)).exists():
            super().copy_extensions_to_source()


class WheelOfAnyPython(bdist_wheel):
    """The library has no Python ABI: one wheel a platform serves every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        _, _, platform = super().get_tag()
        return "py3", "none", platform


EXTENSION = "lfm_onnx.runtime.native.lfm_ops"
# Headers, and what the CMake build needs: a source distribution carries them all.
HEADERS = ("*.[ht]*", "*/*.[hct]*", "*/*/*.[hct]*")
others = [str(path) for pattern in HEADERS for path in sorted(NATIVE.glob(pattern)) if path.is_file()]
extension = Extension(EXTENSION, [str(path) for path in sources()], depends=others, language="c++")

setup(
    ext_modules=[] if SETTING == "0" else [extension],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": WheelOfAnyPython} if SETTING != "0" else {},
)
