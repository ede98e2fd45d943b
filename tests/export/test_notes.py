"""What an export does not use of its checkpoint is said in one line, and stands in the manifest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.cli.main import main
from lfm_onnx.errors import TokenizerError
from lfm_onnx.export import ExportOptions, resolve_export
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

CHAT = [{"role": "user", "content": "hi"}]
TOOLS = [{"name": "f"}]
DEFAULT = "{{ bos_token }}plain {{ messages[0].content }}"
TOOL_USE = "{{ bos_token }}tools {{ tools | tojson }} {{ messages[0].content }}"


@pytest.fixture
def checkpoint(tiny_lfm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_lfm, tmp_path / "checkpoint"))


def _export(checkpoint: Path, output: Path, *options: str) -> tuple[dict[str, Any], list[str]]:
    """The manifest, and the notes that were printed."""
    done = CliRunner().invoke(main, ["export", str(checkpoint), "-o", str(output), *options])
    assert done.exit_code == 0, done.output
    manifest = json.loads((output / "lfm_manifest.json").read_text(encoding="utf-8"))
    return manifest, [line.removeprefix("note: ") for line in done.stderr.splitlines() if line.startswith("note: ")]


def _edit(file: Path, **members: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **members}), encoding="utf-8")


def test_there_is_nothing_to_say_of_a_checkpoint_that_is_used_whole(checkpoint: Path, tmp_path: Path) -> None:
    manifest, notes = _export(checkpoint, tmp_path / "out")
    assert notes == [] and "notes" not in manifest["source"]


def test_what_is_not_used_stands_in_the_manifest_and_in_that_of_an_artifact_made_from_it(
    checkpoint: Path, tmp_path: Path
) -> None:
    (checkpoint / "adapter_config.json").write_text("{}")
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"][::-1].copy()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    manifest, notes = _export(checkpoint, tmp_path / "out")
    assert manifest["source"]["notes"] == notes and len(notes) == 2
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    done = CliRunner().invoke(
        main, ["quantize", str(tmp_path / "out"), "-o", str(tmp_path / "q8"), "--precision", "q8", "--method", "rtn"]
    )
    assert done.exit_code == 0, done.output
    quantized = json.loads((tmp_path / "q8" / "lfm_manifest.json").read_text())
    assert quantized["source"]["notes"] == notes


def test_tokens_beyond_the_vocabulary_are_named(checkpoint: Path, tmp_path: Path) -> None:
    file = checkpoint / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    added = {**tokenizer["added_tokens"][0], "id": 5000, "content": "<|beyond|>"}
    _edit(file, added_tokens=[*tokenizer["added_tokens"], added])
    beyond = max(id for id in Checkpoint.open(checkpoint).config.eos_token_ids) < 1280
    _, notes = _export(checkpoint, tmp_path / "out")
    assert beyond and len(notes) == 1 and "beyond the model's vocabulary of 1280" in notes[0]
    assert '"<|beyond|>"' in notes[0]


def _named_in_settings(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": TOOL_USE}]
    _edit(folder / "tokenizer_config.json", chat_template=named)


def _named_in_files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(DEFAULT)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOL_USE)
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")


def _tool_use_alone(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    _edit(folder / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": TOOL_USE}])


@pytest.mark.parametrize(
    "target", [(), ("--target", "qnn", "--precision", "q8", "--method", "rtn")], ids=["cpu", "npu"]
)
@pytest.mark.parametrize("named", [_named_in_settings, _named_in_files, _tool_use_alone])
def test_named_chat_templates_come_along(named: Any, target: tuple[str, ...], checkpoint: Path, tmp_path: Path) -> None:
    named(checkpoint)
    _, notes = _export(checkpoint, tmp_path / "out", *target)
    assert any("tool_use" in note and "default one alone" in note for note in notes)
    theirs = AutoTokenizer.from_pretrained(checkpoint)
    artifact = AutoTokenizer.from_pretrained(tmp_path / "out")
    expected = theirs.apply_chat_template(CHAT, tools=TOOLS, tokenize=False)
    for folder in (checkpoint, tmp_path / "out"):
        assert ChatTokenizer.load(folder).render(CHAT, TOOLS) == expected
    assert artifact.apply_chat_template(CHAT, tools=TOOLS, tokenize=False) == expected
    assert artifact.chat_template.keys() == theirs.chat_template.keys()
    if named is not _tool_use_alone:
        expected = theirs.apply_chat_template(CHAT, tokenize=False)
        assert ChatTokenizer.load(tmp_path / "out").render(CHAT) == expected


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", "", "x" * 99, "a\nb", ".."])
def test_a_template_whose_name_no_file_can_have_is_refused(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": DEFAULT}, {"name": name, "template": "x"}]
    _edit(checkpoint / "tokenizer_config.json", chat_template=named)
    with pytest.raises(TokenizerError, match="expected letters, digits"):
        resolve_export(Checkpoint.open(checkpoint), ExportOptions())


@pytest.mark.parametrize("name", ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"])
def test_a_template_that_is_none_is_said_at_export_with_its_file(name: str, checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / name).parent.mkdir(exist_ok=True)
    (checkpoint / name).write_text("{% if %}")
    _, notes = _export(checkpoint, tmp_path / "out")
    assert notes[0].startswith(f"{name}: the chat template cannot be compiled: Expected an expression")
