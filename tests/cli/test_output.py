"""What is printed arrives, whatever the output's encoding, whoever wrote the text; what cannot be printed is said."""

from __future__ import annotations

import ast
import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lfm_onnx
import pytest
from artifact_factory import ArtifactFactory
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from lfm_onnx.cli import doctor
from lfm_onnx.cli.main import main
from lfm_onnx.cli.output import one_line, print_json, print_line, printable

ENCODINGS = ["utf-8", "cp1252", "ascii", "cp437", "shift_jis", "utf-16"]
NAME = "モデル ≤ é"
COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "{artifact}"),
    "inspect --json": ("inspect", "{artifact}", "--json"),
    "export --dry-run": ("export", "{sample}", "-o", "{new}", "--dry-run"),
    "export --json": ("export", "{sample}", "-o", "{new}", "--dry-run", "--json"),
    "quantize": ("quantize", "{artifact}", "-o", "{new}", "--precision", "q8", "--dry-run"),
    "generate": ("generate", "{artifact}", "-p", "≤ 😀", "--max-new-tokens", "2"),
    "generate --json": ("generate", "{artifact}", "-p", "≤ 😀", "--max-new-tokens", "2", "--json"),
    "parity": ("parity", "{artifact}", "--reference", "{sample}", "--reference-backend", "numpy", "--tokens", "8",
               "--greedy-tokens", "0"),
    "doctor": ("doctor",),
    "check": ("check", "--help"),
    "compile": ("compile", "{artifact}", "--list-socs"),
    "no such artifact": ("inspect", "{new}"),
    "no such option": ("chat", "{artifact}", "--≤"),
}  # fmt: skip
FAILS = {"no such artifact": 2, "no such option": 2}


@pytest.fixture(scope="module")
def places(
    tiny_lfm: Path, exported_artifact: ArtifactFactory, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("output") / NAME
    shutil.copytree(exported_artifact("sample"), folder / "artifact")
    return {"sample": str(tiny_lfm), "artifact": str(folder / "artifact"), "new": str(folder / "new")}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_under_every_encoding(command: str, encoding: str, places: dict[str, str]) -> None:
    arguments = [part.format(**places) for part in COMMANDS[command]]
    result = CliRunner(charset=encoding).invoke(main, arguments)
    assert result.exit_code == FAILS.get(command, 0), result.stderr
    assert "Traceback" not in result.stderr
    printed = result.stdout_bytes.decode(encoding)
    if "--json" in arguments:
        assert isinstance(json.loads(printed), dict)


def test_all_help_is_ascii() -> None:
    for name in [None, *main.list_commands(None)]:
        shown = CliRunner().invoke(main, [*([name] if name else []), "--help"])
        assert shown.exit_code == 0 and shown.stdout.isascii(), name


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def written(encoding: str, write: Callable[[], None]) -> str:
    """What ``write`` leaves on a stdout of that encoding."""
    file = io.BytesIO()
    stdout = io.TextIOWrapper(file, encoding, "backslashreplace", newline="\n")
    before, sys.stdout = sys.stdout, stdout
    try:
        write()
    finally:
        sys.stdout = before
    return file.getvalue().decode(encoding)


@given(VALUES, st.sampled_from(ENCODINGS))
def test_json_is_valid_whatever_it_holds(value: Any, encoding: str) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    def finite(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: finite(entry) for key, entry in item.items()}
        return [finite(entry) for entry in item] if isinstance(item, list) else item

    text = written(encoding, lambda: print_json(value))
    assert json.loads(text, parse_constant=refuse) == finite(value)
    assert printable(text) == text


@given(st.text(st.characters()), st.sampled_from(ENCODINGS))
def test_a_line_holds_no_control_character(text: str, encoding: str) -> None:
    found = written(encoding, lambda: print_line(text))
    assert all(character.isprintable() or character in "\n\t" or not character.isascii() for character in found)
    assert "\x1b" not in found and "\x9b" not in found and "\u202e" not in found
    assert len(one_line(text).splitlines()) <= 1


# --- output that cannot be written ------------------------------------------------------------------------------------


def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "lfm_onnx", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **settings)


def assert_one_line(done: subprocess.CompletedProcess[bytes], reason: str) -> None:
    assert done.returncode == 74, done
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("Error: cannot write to standard output") and reason in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["inspect", "inspect --json", "generate", "doctor", "check", "export --dry-run"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_said_in_one_line(command: str, unbuffered: str, places: dict[str, str]) -> None:
    with open("/dev/full", "wb") as full:
        arguments = [part.format(**places) for part in COMMANDS[command]]
        done = run(*arguments, stdout=full, env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    assert_one_line(done, "No space left")


@pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX descriptors")
def test_a_closed_output_is_said_before_any_work(places: dict[str, str]) -> None:
    done = run("export", places["sample"], "-o", places["new"], preexec_fn=lambda: os.close(1))
    assert_one_line(done, "closed")
    assert not os.path.exists(places["new"])


@pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX descriptors")
@pytest.mark.parametrize("command", [("generate", "--raw", "-p", "-", "--max-new-tokens", "1"), ("chat",)])
def test_a_closed_input_is_an_empty_one(command: tuple[str, ...], places: dict[str, str]) -> None:
    name, *options = command
    done = run(name, places["artifact"], *options, stdout=subprocess.PIPE, preexec_fn=lambda: os.close(0))
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX pipes")
def test_a_reader_that_has_gone_is_said_in_one_line(places: dict[str, str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("inspect", places["artifact"], stdout=writer)
    finally:
        os.close(writer)
    assert_one_line(done, "Broken pipe")


# --- unexpected ends --------------------------------------------------------------------------------------------------


def test_an_unexpected_error_is_one_line_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("\x1b[2Jsurprise\nand more")

    monkeypatch.setattr(doctor, "diagnose", fail)
    result = CliRunner().invoke(main, ["doctor"])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 70 and line.isprintable()
    assert "KeyError" in line and "surprise" in line and "--traceback" in line and "report" in line
    for arguments in (["doctor", "--traceback"], ["--traceback", "doctor"]):
        traced = CliRunner().invoke(main, arguments)
        assert traced.exit_code == 70
        assert "Traceback" in traced.stderr and traced.stderr.splitlines()[-1] == line


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["doctor", "--bogus"], ["inspect"]])
def test_a_wrong_call_is_answered_with_how_to_call(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.startswith("Usage: ") and "\\n" not in result.stderr


def test_an_interrupt_while_commands_are_imported_is_one_line() -> None:
    program = (
        "import sys, runpy\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'lfm_onnx.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "runpy.run_module('lfm_onnx', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


# --- text from files and from stdin -----------------------------------------------------------------------------------


@pytest.fixture
def hostile(exported_artifact: ArtifactFactory, tmp_path: Path) -> Path:
    """An artifact whose variant has a name with an escape sequence."""
    folder = Path(shutil.copytree(exported_artifact("sample"), tmp_path / "hostile"))
    manifest = json.loads((folder / "lfm_manifest.json").read_text())
    manifest["variants"] = {"\x1b]0;title\x07fp32\u202e [red]": manifest["variants"]["fp32"]}
    (folder / "lfm_manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("arguments", [(), ("--json",), ("--variant", "none")])
def test_escape_sequences_of_files_are_shown_escaped(hostile: Path, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["inspect", str(hostile), *arguments])
    output = result.stdout + result.stderr
    assert "\x1b" not in output and "\x07" not in output and "\u202e" not in output
    assert "\\x1b" in output or "\\u001b" in output


def test_a_templates_own_error_is_shown_escaped(hostile: Path) -> None:
    (hostile / "chat_template.jinja").write_text(r"{{ raise_exception('\x1b[2J\n\x07') }}")
    result = CliRunner().invoke(main, ["generate", str(hostile), "-p", "hi"])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.isprintable()


def test_stdin_that_is_no_text_costs_one_line(places: dict[str, str]) -> None:
    raw = CliRunner().invoke(main, ["generate", places["artifact"], "-p", "-"], input=b"\xff\xfe\xff")
    assert raw.exit_code == 2 and "standard input is not text" in raw.stderr
    chat = ["chat", places["artifact"], "--max-new-tokens", "2", "--temperature", "0"]
    mixed = CliRunner().invoke(main, chat, input=b"Hi\n\xff\xfe\nHi\n")
    alone = CliRunner().invoke(main, chat, input=b"Hi\n")
    assert mixed.exit_code == 0
    assert mixed.stdout.startswith(alone.stdout) and len(mixed.stdout.splitlines()) == 2
    assert len(mixed.stderr.splitlines()) == 1 and mixed.stderr.startswith("error: ")


def test_stdin_without_an_end_is_one_line(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm_onnx.cli.generate._MOST_CHARACTERS", 10)
    result = CliRunner().invoke(main, ["generate", places["artifact"], "-p", "-"], input="x" * 11)
    assert result.exit_code == 2 and "more than 10 characters" in result.stderr


def test_a_byte_order_mark_before_a_chat_is_no_text(places: dict[str, str]) -> None:
    chat = ["chat", places["artifact"], "--max-new-tokens", "4", "--temperature", "0"]
    with_mark, without = (CliRunner().invoke(main, chat, input=mark + b"Hi\n") for mark in (b"\xef\xbb\xbf", b""))
    assert with_mark.stdout == without.stdout


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_taken(encoding: str, places: dict[str, str], tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "é", "parameters": {}}]', encoding=encoding)
    result = CliRunner().invoke(
        main, ["generate", places["artifact"], "-p", "Hi", "--tools", str(tools), "--max-new-tokens", "1"]
    )
    assert result.exit_code == 0, result.stderr


# --- who prints -------------------------------------------------------------------------------------------------------


def test_the_library_neither_prints_nor_knows_the_libraries_of_the_command_line() -> None:
    """But for the workers, which are programs of their own and answer by printing."""
    package = Path(lfm_onnx.__file__).parent
    folders = sorted(path.parent for path in package.glob("*/__init__.py") if path.parent.name != "cli")
    found = []
    for path in [package / "errors.py", package / "strict_json.py", *(p for f in folders for p in f.rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) and not node.level else []
            if {name.partition(".")[0] for name in names} & {"click", "rich"}:
                found.append(f"{path.name} imports {names}")
            prints = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if prints and not path.stem.endswith("worker") and path.stem != "worker_process":
                found.append(f"{path.name}:{node.lineno} prints")
    assert found == []
