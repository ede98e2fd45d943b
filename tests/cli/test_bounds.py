"""Counts and sizes have bounds: an absurd number is refused at once, whatever command and option it comes by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from lfm_onnx.cli.main import main
from lfm_onnx.hardware.cores import MOST_THREADS
from lfm_onnx.quantize.calibration_text import MOST_TOKENS

HUGE = str(2**63 - 1)


@pytest.fixture(scope="module")
def artifact(tiny_lfm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bounds") / "q4"
    arguments = ["export", str(tiny_lfm), "-o", str(folder), "--precision", "q4", "--calibration-tokens", "32"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return folder


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("threads", [str(MOST_THREADS + 1), "5000", HUGE, "1" + "0" * 30])
def test_threads_have_a_bound_in_every_command(threads: str, artifact: Path, tiny_lfm: Path, tmp_path: Path) -> None:
    folder, checkpoint, output = str(artifact), str(tiny_lfm), str(tmp_path / "out")
    for command in (
        ("generate", folder, "-p", "hi"),
        ("bench", folder),
        ("parity", folder, "--reference", checkpoint),
        ("export", checkpoint, "-o", output),
        ("export", checkpoint, "-o", output, "--dry-run"),
        ("export", checkpoint, "-o", output, "--target", "qnn"),
    ):
        line = refusal(*command, "--threads", threads)
        assert line.startswith(f"Error: --threads: expected 1 to {MOST_THREADS}, found {threads}"), line
    assert not Path(output).exists()


def test_calibration_tokens_have_a_bound_in_options_and_recipes(artifact: Path, tiny_lfm: Path, tmp_path: Path) -> None:
    export = ("export", str(tiny_lfm), "-o", str(tmp_path / "out"))
    for options in (("--precision", "q4"), ("--precision", "q4", "--dry-run"), ("--target", "qnn", "--dry-run")):
        assert str(MOST_TOKENS) in refusal(*export, *options, "--calibration-tokens", HUGE)
    manifest = json.loads((artifact / "lfm_manifest.json").read_text())
    recipe = manifest["variants"]["q4"]["quantization"]["recipe"]
    for tokens in (MOST_TOKENS + 1, 2**63 - 1, 10**4000):
        recipe["calibration"]["tokens"] = tokens
        (tmp_path / "r.json").write_text(json.dumps(recipe))
        line = refusal(*export, "--recipe", str(tmp_path / "r.json"), "--dry-run")
        assert "calibration" in line and str(MOST_TOKENS) in line and len(line) < 300


@pytest.mark.parametrize("size", ["9" * 400 + "GB", "9" * 30, "1e400"])
def test_sizes_have_a_bound(size: str, tiny_lfm: Path, tmp_path: Path) -> None:
    assert "--budget" in refusal("export", str(tiny_lfm), "-o", str(tmp_path / "out"), "--budget", size)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_what_is_no_finite_number_is_none(number: str, artifact: Path, tiny_lfm: Path, tmp_path: Path) -> None:
    for command in (
        ("export", str(tiny_lfm), "-o", str(tmp_path / "out"), "--max-kld", number),
        ("parity", str(artifact), "--reference", str(tiny_lfm), "--max-kld", number),
        ("parity", str(artifact), "--reference", str(tiny_lfm), "--min-top1", number),
        ("compile", str(artifact), "--memory", number),
    ):
        assert command[-2] in refusal(*command)


def test_a_benchmark_is_not_repeated_for_ever(artifact: Path) -> None:
    assert "1000" in refusal("bench", str(artifact), "--repeat", HUGE)


@pytest.mark.parametrize("option", ["--max-new-tokens", "--top-k"])
def test_an_answer_ends_with_the_context(option: str, artifact: Path) -> None:
    arguments = ["generate", str(artifact), "-p", "hi", "--context-length", "16", "--raw", option, HUGE]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (0, 2) and not isinstance(result.exception, (OverflowError, ValueError)), result.output
