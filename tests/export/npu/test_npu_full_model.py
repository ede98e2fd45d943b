"""All of LFM2.5-8B-A1B's shape through export and compiler: memory and sizes as planned.

`make npu-full-model` takes 40 GB of disk and an hour or two. CHECKPOINT: a folder to use instead of random weights;
FOLDER: where the work is kept, from which an interrupted run goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lfm_onnx.artifact.artifact import Artifact
from lfm_onnx.hardware.compile_cost import WITHIN
from npu_models import FULL_SIZE, needs_emulator, write_random_checkpoint

pytestmark = [pytest.mark.full_model, needs_emulator]

EXPORT_MEMORY = 6e9
COMPILE_MEMORY = os.environ.get("COMPILE_MEMORY", "12GB")
SOC = "sm8750"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = os.environ.get("FOLDER")
    if not given:
        return tmp_path_factory.mktemp("full_model")
    Path(given).mkdir(parents=True, exist_ok=True)
    return Path(given).absolute()


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tiny_lfm: Path) -> Path:
    """The one given, or random weights with the sample's tokenizer, whose ids the vocabulary holds."""
    if given := os.environ.get("CHECKPOINT"):
        return Path(given).absolute()
    made = folder / "checkpoint"
    if not (made / "tokenizer.json").is_file():
        write_random_checkpoint(made, FULL_SIZE)
        for name in ("tokenizer_config.json", "chat_template.jinja", "tokenizer.json"):
            shutil.copyfile(tiny_lfm / name, made / name)
    return made


_COMMAND = """
import atexit, sys
from lfm_onnx.cli.main import main
from lfm_onnx.hardware.memory import peak_rss_bytes
atexit.register(lambda: print(peak_rss_bytes()))
main()
"""


def lfm_onnx(*arguments: str) -> tuple[dict[str, Any], int]:
    """What the command prints as JSON, and the most memory that its process held, in bytes."""
    command = [sys.executable, "-c", _COMMAND, *arguments, "--json"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    answer, _, memory = printed.strip().rpartition("\n")
    return json.loads(answer), int(memory)


@pytest.fixture(scope="module")
def exported(folder: Path, checkpoint: Path) -> Path:
    output = folder / "npu"
    if not (output / "lfm_manifest.json").is_file():
        arguments = ("export", str(checkpoint), "-o", str(output), "--target", "qnn", "--memory-budget", COMPILE_MEMORY)
        print(json.dumps(lfm_onnx(*arguments, "--dry-run")[0], indent=1), flush=True)
        result, memory = lfm_onnx(*arguments)
        record = {"memory_bytes": memory, "seconds": result["seconds"]}
        (folder / "export.json").write_text(json.dumps(record))
    return output


def test_the_export_takes_less_than_six_gigabytes(exported: Path, folder: Path) -> None:
    record = json.loads((folder / "export.json").read_text())
    print(f"exported in {record['seconds']:.0f} s with {record['memory_bytes'] / 1e9:.2f} GB of memory")
    assert record["memory_bytes"] < EXPORT_MEMORY


def test_every_part_compiles_to_what_the_plan_says(exported: Path) -> None:
    manifest = json.loads(Artifact.open(exported).model_path.read_text())
    planned = {part["part"]: part for part in lfm_onnx("compile", str(exported), "--soc", SOC, "--dry-run")[0]["parts"]}
    layers = []
    for part in manifest["parts"]:
        layers += range(*part["layers"])
        (record,) = lfm_onnx("compile", str(exported), "--soc", SOC, "--part", part["name"])[0]["parts"]
        plan = planned[part["name"]]
        print(
            f"{part['name']}, layers {part['layers']}: {record['seconds']:.0f} s (planned {plan['expected_seconds']}), "
            f"{record['peak_rss_bytes'] / 1e9:.1f} GB (planned {plan['expected_memory_bytes'] / 1e9:.1f}), "
            f"{record['bytes'] / 1e9:.2f} GB written",
            flush=True,
        )
        assert record["peak_rss_bytes"] < WITHIN * plan["expected_memory_bytes"]
        weights = part["compiled_weight_bytes"]
        assert max(weights.values()) < record["bytes"] < 1.15 * sum(weights.values())
    assert layers == list(range(24)) and manifest["parts"][-1]["head"]
