"""A weight that is not a number is refused by name in every precision and for every target, before anything appears."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.artifact.manifest import Manifest
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.cli.flags import with_flags
from lfm_onnx.cli.main import main
from lfm_onnx.errors import CheckpointError
from lfm_onnx.quantize.activation_range import ActivationRange, activation_range
from lfm_onnx.reference.model import Reference
from safetensors.numpy import load_file, save_file

TARGETS = {
    "fp32": ("--precision", "fp32"),
    "fp16": ("--precision", "fp16"),
    "q8": ("--precision", "q8"),
    "q4": ("--precision", "q4"),
    "q4 rtn": ("--precision", "q4", "--method", "rtn"),
    "npu q8": ("--target", "qnn", "--precision", "q8", "--method", "rtn"),
    "npu q4": ("--target", "qnn", "--precision", "q4"),
}
TENSORS = [
    "model.embed_tokens.weight",
    "model.layers.0.conv.conv.weight",
    "model.layers.2.self_attn.q_layernorm.weight",
    "model.layers.3.feed_forward.experts.7.w3.weight",
    "model.layers.2.feed_forward.expert_bias",
    "model.embedding_norm.weight",
]


@pytest.fixture
def folder(tiny_lfm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_lfm, tmp_path / "checkpoint"))


def _spoil(folder: Path, name: str, value: float) -> None:
    tensors = {key: values.copy() for key, values in load_file(folder / "model.safetensors").items()}
    tensors[name].reshape(-1)[-1] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _export(folder: Path, output: Path, options: tuple[str, ...]) -> Any:
    return CliRunner().invoke(main, ["export", str(folder), "-o", str(output), *options])


@pytest.mark.parametrize("options", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize(("name", "value"), [(TENSORS[3], np.nan), (TENSORS[0], np.inf)], ids=["expert", "table"])
def test_every_precision_and_target_refuses_it_by_name(
    name: str, value: float, options: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    _spoil(folder, name, value)
    done = _export(folder, tmp_path / "out", options)
    assert done.exit_code == 2, done.output
    error = done.stderr.splitlines()[-1]
    assert f'tensor "{name}" holds {value} at [' in error and "not a number" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TENSORS)
def test_every_kind_of_tensor_is_looked_at(name: str, folder: Path, tmp_path: Path) -> None:
    _spoil(folder, name, np.nan)
    done = _export(folder, tmp_path / "out", TARGETS["fp32"])
    assert done.exit_code == 2 and f'tensor "{name}" holds nan' in done.stderr


@pytest.mark.parametrize("target", ["fp32", "npu q8"])
def test_an_expert_may_be_pruned_by_a_bias_of_minus_infinity(target: str, folder: Path, tmp_path: Path) -> None:
    _spoil(folder, "model.layers.2.feed_forward.expert_bias", -np.inf)
    done = _export(folder, tmp_path / "out", TARGETS[target])
    assert done.exit_code == 0, done.output


def test_an_artifact_is_looked_at_before_it_is_quantized(folder: Path, tmp_path: Path) -> None:
    assert _export(folder, tmp_path / "fp32", TARGETS["fp32"]).exit_code == 0
    with open(tmp_path / "fp32" / "onnx" / "model.onnx_data", "r+b") as file:
        file.seek(-4, 2)  # within the table, which comes last
        file.write(np.float32(np.nan).tobytes())
    done = CliRunner().invoke(
        main, ["quantize", str(tmp_path / "fp32"), "-o", str(tmp_path / "q8"), "--precision", "q8", "--method", "rtn"]
    )
    assert done.exit_code == 2 and not (tmp_path / "q8").exists()


@settings(max_examples=25)
@given(data=st.data())
def test_the_place_that_is_named_is_the_values_own(
    data: st.DataObject, variant_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = Path(shutil.copytree(variant_checkpoint("dense_fp32"), tmp_path_factory.mktemp("place") / "checkpoint"))
    name, rows = "model.layers.1.feed_forward.w1.weight", 128
    at = data.draw(st.tuples(st.integers(0, rows - 1), st.integers(0, 63)))
    first, last = sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows))))
    tensors = load_file(folder / "model.safetensors")
    tensors[name][at] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=rf"at \[{at[0]}, {at[1]}\]"):
        checkpoint.float32(name)
    if first <= at[0] < last:
        with pytest.raises(CheckpointError, match=rf"at \[{at[0]}, {at[1]}\]"):
            checkpoint.float32(name, slice(first, last))
    else:
        checkpoint.float32(name, slice(first, last))


def _hot(folder: Path, factor: float) -> None:
    """The feed-forwards' last matrices made larger, every weight far from float16's limit."""
    tensors = load_file(folder / "model.safetensors")
    hot = {
        name: values * np.asarray(factor, values.dtype) if ".w2." in name else values
        for name, values in tensors.items()
    }
    save_file(hot, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_activations_beyond_float16_are_found_at_export(method: str, folder: Path, tmp_path: Path) -> None:
    options = ("--precision", "q4f16", "--method", method)
    cool = _export(folder, tmp_path / "cool", options)
    assert cool.exit_code == 0 and "float16" not in cool.stderr
    _hot(folder, 3e4)
    hot = _export(folder, tmp_path / "hot", options)
    assert hot.exit_code == 0, hot.output
    note = next(line for line in hot.stderr.splitlines() if line.startswith("note: "))
    assert "beyond float16's 65504" in note and "--precision q4" in note
    assert [with_flags(text) for text in Manifest.read(tmp_path / "hot").source.notes] == [note.removeprefix("note: ")]
    done = CliRunner().invoke(main, ["generate", str(tmp_path / "hot"), "-p", "Hi", "--max-new-tokens", "4"])
    assert done.exit_code == 2 and done.stderr.startswith("Error: the model's logits are not numbers")
    q4 = _export(folder, tmp_path / "q4", ("--precision", "q4", "--method", "rtn"))
    assert q4.exit_code == 0 and "note: " not in q4.stderr


def test_the_range_is_that_of_all_that_goes_in_and_out(variant_checkpoint: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint("moe"))
    found = activation_range(checkpoint, [np.arange(20)])
    hidden: list[np.ndarray] = []
    Reference(checkpoint).forward(np.arange(20), hidden=hidden)
    assert max(np.abs(x).max() for x in hidden[1:-1]) <= found.largest < 1e4 and found.fits_float16
    assert activation_range(checkpoint, []).largest > 0
    assert not ActivationRange(float("nan"), "").fits_float16
