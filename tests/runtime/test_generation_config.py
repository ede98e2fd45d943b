"""A generation_config.json that transformers generates with is one that an export takes over and runs with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.artifact.manifest import Manifest
from lfm_onnx.checkpoint.sampling_fields import sampling_fields, usable_generation_config
from lfm_onnx.cli.main import main
from lfm_onnx.errors import InputError
from lfm_onnx.runtime.sampling import SamplingOptions
from transformers import AutoModelForCausalLM, GenerationConfig

IDS = {"bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0}
NUMBERS = st.sampled_from([-1, 0, 1, 2, 50, 10**6, -1.0, 0.0, 0.3, 1.0, 1.5, 50.0, 1e9, True, False])
OTHERS = st.sampled_from(["0.5", "", "true", [], [1], {}])
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        # transformers takes any text, "false" too, for a true one.
        "do_sample": st.sampled_from([True, False, None, 0, 1]),
        **dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "repetition_penalty"), NUMBERS | OTHERS | st.none()),
        "max_new_tokens": st.sampled_from([None, -1, 0, 1, 2, 3.0, "5"]),
    },
)


@pytest.fixture(scope="module")
def theirs(variant_checkpoint: Callable[..., Path]) -> Callable[[dict[str, Any]], bool]:
    """Whether transformers generates with a config."""
    model = AutoModelForCausalLM.from_pretrained(variant_checkpoint("dense"), dtype=torch.float32).eval()

    def accepts(config: dict[str, Any]) -> bool:
        try:
            with torch.no_grad():
                model.generate(torch.tensor([[1, 5, 9]]), generation_config=GenerationConfig(**IDS, **config))
        except (ValueError, TypeError, RuntimeError, AttributeError):
            return False
        return True

    return accepts


@settings(max_examples=150)
@given(config=FIELDS)
def test_what_transformers_generates_with_is_taken(
    theirs: Callable[[dict[str, Any]], bool], config: dict[str, Any]
) -> None:
    config = {"max_new_tokens": 1, **config} if config.get("max_new_tokens") is None else config
    fields, (usable, notes) = sampling_fields(config), usable_generation_config(config)
    if theirs(config):
        assert notes == [] and usable == config
        SamplingOptions.chosen(config)
        assert "max_new_tokens" not in fields.faults
    # What is left after an export is always something to run with, and the next export has nothing to say.
    SamplingOptions.chosen(usable)
    assert usable_generation_config(usable) == (usable, [])


@given(config=FIELDS)
def test_every_fault_can_be_overridden(config: dict[str, Any]) -> None:
    options = SamplingOptions.chosen(
        config, do_sample=True, temperature=0.5, top_k=4, top_p=0.5, min_p=0.1, repetition_penalty=1.5
    )
    assert options == SamplingOptions(True, 0.5, 4, 0.5, 0.1, 1.5)


BASE: dict[str, Any] = {**IDS, "do_sample": True}


FOR_NPU = ("--target", "qnn", "--precision", "q8", "--method", "rtn")
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({**BASE, "top_k": -1}, "top_k is -1"),
    ({**BASE, "temperature": 0.0, "min_p": 2}, "temperature is 0.0"),
    ({**IDS, "do_sample": "true"}, 'do_sample is "true"'),
    ({**IDS, "max_new_tokens": 0}, "max_new_tokens is 0"),
    ({**IDS, "eos_token_id": "7"}, 'eos_token_id is "7"'),
    ({**IDS, "num_beams": 4, "typical_p": 1.0, "min_length": 0}, "num_beams (4)"),
]


@pytest.mark.parametrize(
    ("config", "said", "target"),
    [
        ({**IDS, "do_sample": False, "temperature": 0.0}, None, ()),
        ({**IDS, "top_k": -1, "top_p": "high"}, None, ()),
        *((*fault, target) for fault in FAULTS for target in ((), FOR_NPU)),
    ],
    ids=str,
)
def test_an_export_says_what_cannot_be_used_and_its_artifact_runs(
    config: dict[str, Any], said: str | None, target: tuple[str, ...], tiny_lfm: Path, tmp_path: Path
) -> None:
    checkpoint = Path(shutil.copytree(tiny_lfm, tmp_path / "checkpoint"))
    (checkpoint / "generation_config.json").write_text(json.dumps(config))
    done = CliRunner().invoke(main, ["export", str(checkpoint), "-o", str(tmp_path / "out"), *target])
    assert done.exit_code == 0, done.output
    notes = Manifest.read(tmp_path / "out").source.notes
    assert all(f"note: {note}" in done.stderr for note in notes)
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    if said is None:
        assert notes == () and written == config
    else:
        assert notes[0].startswith("generation_config.json: ") and said in notes[0]
    SamplingOptions.chosen(written)
    if not target:
        for options in ([], ["--temperature", "0"], ["--temperature", "0.5", "--top-k", "5", "--top-p", "0.9"]):
            answered = CliRunner().invoke(
                main, ["generate", str(tmp_path / "out"), "-p", "Hi", "--max-new-tokens", "2", *options]
            )
            assert answered.exit_code == 0, answered.output


def test_an_artifact_that_was_written_with_an_unusable_field_names_file_and_field() -> None:
    with pytest.raises(InputError, match=r"generation_config\.json: top_k is -1, .*; give top_k"):
        SamplingOptions.chosen({"do_sample": True, "top_k": -1})
