"""Parity of what lies beside the graph: a file that says other than the checkpoint is named, with exit code 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from artifact_factory import SAMPLE, ArtifactFactory
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.artifact.files import file_digest, sample_digest
from lfm_onnx.artifact.manifest import MANIFEST_NAME
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.cli.main import main
from lfm_onnx.runtime.parity.compare import compare
from lfm_onnx.runtime.parity.file_checks import file_checks
from lfm_onnx.runtime.parity.options import ParityOptions
from lfm_onnx.runtime.parity.reference import open_judge
from lfm_onnx.runtime.parity.report.contents import Check
from lfm_onnx.runtime.parity.tokenizer_checks import tokenizer_checks

Change = Callable[[Path], None]


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
        change(data)
        (folder / name).write_text(json.dumps(data), encoding="utf-8")

    return apply


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def exchange_tokens(data: dict[str, Any]) -> None:
    vocab = data["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[700:702]
    vocab[first], vocab[second] = vocab[second], vocab[first]


def copied(artifact: Path, folder: Path, change: Change, *, manifest: bool) -> Path:
    """A changed copy; manifest: with a manifest made to agree, as a faulty export would write it."""
    shutil.copytree(artifact, folder)
    change(folder)
    if manifest:
        data = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        for entry in data["files"]:
            path = folder / entry["path"]
            entry.update(bytes=path.stat().st_size, sha256=file_digest(path), sample_sha256=sample_digest(path))
        (folder / MANIFEST_NAME).write_text(json.dumps(data), encoding="utf-8")
    return folder


def checks_of(folder: Path, checkpoint: Path) -> dict[str, Check]:
    found = file_checks(Artifact.open(folder), Checkpoint.open(checkpoint))
    found += tokenizer_checks(ChatTokenizer.load(folder), ChatTokenizer.load(checkpoint))
    return {check.name: check for check in found}


CHANGES = [
    ("tokenizer.json", edit("tokenizer.json", exchange_tokens), "token '"),
    ("tokenizer.json", edit("tokenizer.json", lambda d: d.update(normalizer={"type": "Lowercase"})), "english prose"),
    ("chat_template.jinja", write("chat_template.jinja", "{{ messages[0].content }}"), "rendered into another prompt"),
    ("chat_template.jinja", write("chat_template.jinja", "{% garbage"), "rendered into another prompt"),
    ("generation_config.json", edit("generation_config.json", lambda d: d.update(eos_token_id=5)), "eos_token_id is"),
    ("generation_config.json", edit("generation_config.json", lambda d: d.update(temperature=9.0)), "temperature is 9"),
    ("config.json", edit("config.json", lambda d: d.update(norm_eps=0.5)), "norm_eps is 0.5"),
    ("genai_config.json", write("genai_config.json", "garbage"), "cannot be read"),
    ("genai_config.json", edit("genai_config.json", lambda d: d.update(model=[])), "cannot be read"),
    ("genai_config.json", edit("genai_config.json", lambda d: d["model"].update(eos_token_id=[5])), "eos_token_id is"),
    ("genai_config.json", edit("genai_config.json", lambda d: d["search"].update(top_k=3)), "top_k is 3"),
    ("genai_config.json", edit("genai_config.json", lambda d: d["model"]["decoder"].update(filename="m")), "filename"),
]


def test_an_export_has_no_differences(exported_artifact: ArtifactFactory, tiny_lfm: Path) -> None:
    found = checks_of(exported_artifact(SAMPLE), tiny_lfm)
    assert all(check.passed and not check.detail for check in found.values()), found
    assert {name for name, _, _ in CHANGES} | {MANIFEST_NAME} == found.keys()


@pytest.mark.parametrize(("name", "change", "detail"), CHANGES)
def test_a_file_that_differs_is_named_with_what_differs(
    exported_artifact: ArtifactFactory, tiny_lfm: Path, tmp_path: Path, name: str, change: Change, detail: str
) -> None:
    found = checks_of(copied(exported_artifact(SAMPLE), tmp_path / "changed", change, manifest=True), tiny_lfm)
    assert [check.name for check in found.values() if not check.passed] == [name]
    assert detail in found[name].detail


def test_end_tokens_that_the_checkpoint_lists_twice_are_the_artifacts(
    exported_artifact: ArtifactFactory, tiny_lfm: Path, tmp_path: Path
) -> None:
    change = edit("generation_config.json", lambda d: d.update(eos_token_id=[7, 7]))
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_lfm, checkpoint)
    change(checkpoint)
    found = checks_of(copied(exported_artifact(SAMPLE), tmp_path / "changed", change, manifest=True), checkpoint)
    assert all(check.passed for check in found.values()), found


def test_a_file_changed_after_the_export_is_named(
    exported_artifact: ArtifactFactory, tiny_lfm: Path, tmp_path: Path
) -> None:
    change = edit("config.json", lambda d: None)  # the same values, written in another way
    found = checks_of(copied(exported_artifact(SAMPLE), tmp_path / "changed", change, manifest=False), tiny_lfm)
    assert [(c.name, c.detail) for c in found.values() if not c.passed] == [(MANIFEST_NAME, "config.json")]


@pytest.mark.parametrize(
    ("change", "code", "names"),
    [
        (CHANGES[0][1], 1, (MANIFEST_NAME, "tokenizer.json")),
        (edit("config.json", lambda d: d.update(hidden_size=64)), 1, (MANIFEST_NAME, "config.json")),
        (write("tokenizer.json", "garbage"), 2, ("tokenizer.json",)),
        (write("generation_config.json", "garbage"), 2, ("generation_config.json",)),
    ],
)
def test_the_command_exits_1_and_names_the_file_or_2_where_it_cannot_be_read(
    exported_artifact: ArtifactFactory,
    tiny_lfm: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Change,
    code: int,
    names: tuple[str, ...],
) -> None:
    folder = copied(exported_artifact(SAMPLE), tmp_path / "changed", change, manifest=False)
    arguments = ["--reference", str(tiny_lfm), "--tokens", "20", "--greedy-tokens", "2", "--backend", "numpy"]
    with pytest.raises(SystemExit) as exit_:
        main(["parity", str(folder), *arguments])
    captured = capsys.readouterr()
    assert exit_.value.code == code, captured
    verdict = (captured.out if code == 1 else captured.err).strip().splitlines()[-1]
    assert all(name in verdict for name in names), captured


def test_tasks_answered_worse_than_by_the_reference_miss_parity(
    exported_artifact: ArtifactFactory, tiny_lfm: Path, tmp_path: Path
) -> None:
    change = write("chat_template.jinja", "{{ bos_token }}{{ messages[-1].content }}")
    folder = copied(exported_artifact(SAMPLE), tmp_path / "changed", change, manifest=True)
    options = ParityOptions(
        backend="numpy", tasks=tiny_lfm / "tasks.jsonl", most_tasks=3, tokens=20, greedy_prompts=0, threads=1
    )
    report = compare(Artifact.open(folder), Checkpoint.open(tiny_lfm), options)
    assert report.tasks is not None and report.reference_tasks is not None
    assert report.tasks.accuracy < report.reference_tasks.accuracy
    assert {"chat_template.jinja", "tasks as the reference"} == {c.name for c in report.checks if not c.passed}


def test_a_checkpoint_without_tokenizer_leaves_the_artifacts_uncompared_and_says_so(
    exported_artifact: ArtifactFactory, tiny_lfm: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_lfm, checkpoint, ignore=shutil.ignore_patterns("tokenizer*", "chat_template*", "*.jsonl"))
    lines: list[str] = []
    options = ParityOptions(backend="numpy", tokens=20, greedy_tokens=2, threads=1)
    report = compare(Artifact.open(exported_artifact(SAMPLE)), Checkpoint.open(checkpoint), options, lines.append)
    assert report.passed and "tokenizer.json" not in {check.name for check in report.checks}
    assert any("the checkpoint has no tokenizer" in line for line in lines)


def judged(checkpoint: Path, backend: str | None = None) -> tuple[str, str]:
    """The judge, and the line that says why."""
    lines: list[str] = []
    return open_judge(Checkpoint.open(checkpoint), backend, 1, lines.append).backend, lines[-1]


def test_the_judge_is_transformers_where_it_is_installed(tiny_lfm: Path) -> None:
    pytest.importorskip("transformers")
    backend, line = judged(tiny_lfm)
    assert backend == "transformers" and "the judge is transformers" in line
    assert judged(tiny_lfm, "numpy") == ("numpy", "the judge is numpy, as asked for")


def test_the_judge_is_numpy_where_transformers_cannot_be(
    tiny_lfm: Path, variant_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert "without attention layers" in judged(variant_checkpoint("dense_conv_only"))[1]
    with monkeypatch.context() as patch:
        patch.setattr("lfm_onnx.runtime.parity.reference.available_memory_bytes", lambda: 1 << 20)
        backend, line = judged(tiny_lfm)
    assert backend == "numpy" and "of memory are free" in line
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    backend, line = judged(tiny_lfm)
    assert backend == "numpy" and "torch and transformers not installed" in line
