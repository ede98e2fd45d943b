"""onnxruntime-genai loads an artifact as it is and answers as the reference does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_factory import ArtifactFactory
from client_cases import FP32_PROFILES, MAX_NEW_TOKENS, PROFILES, Cases, cases_of, export, profile_artifact
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.export.portable_template import portable_template
from lfm_onnx.reference.model import Reference

genai = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed on this platform")


@pytest.fixture(scope="module")
def cases(tiny_lfm: Path) -> Cases:
    return cases_of(tiny_lfm)


@pytest.fixture(scope="module")
def artifact(exported_artifact: ArtifactFactory) -> Callable[[str], Path]:
    """artifact(profile) -> folder of the sample model's artifact."""
    return partial(profile_artifact, exported_artifact)


@pytest.fixture(scope="module", params=PROFILES)
def model(request: pytest.FixtureRequest, artifact: Callable[[str], Path]) -> Any:
    return genai.Model(str(artifact(request.param)))


@pytest.fixture(scope="module")
def tokenizer(artifact: Callable[[str], Path]) -> Any:
    return genai.Tokenizer(genai.Model(str(artifact(FP32_PROFILES[0]))))


def generator(model: Any, rows: Sequence[Sequence[int]], pad: int = 0, **options: Any) -> Any:
    """A greedy generator that has been given ``rows``, padded on the right as genai does it."""
    width = max(map(len, rows))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(
        **{"batch_size": len(rows), "max_length": width + MAX_NEW_TOKENS, "do_sample": False, **options}
    )
    made = genai.Generator(model, parameters)
    made.append_tokens(np.array([[*row, *[pad] * (width - len(row))] for row in rows], np.int32))
    return made


def finish(generator: Any) -> list[int]:
    """Runs to the end; the tokens that were sampled step by step for the first row."""
    sampled = []
    while not generator.is_done():
        generator.generate_next_token()
        sampled.append(int(generator.get_next_tokens()[0]))
    return sampled


def continuation(generator: Any, row: int, prompt_length: int) -> list[int]:
    return [int(token) for token in generator.get_sequence(row)][prompt_length:]


def up_to(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def test_greedy_tokens_equal_the_references(model: Any, cases: Cases) -> None:
    for prompt, answer in zip(cases.prompts, cases.answers, strict=True):
        made = generator(model, [prompt])
        finish(made)
        assert continuation(made, 0, len(prompt)) == up_to(answer, cases.eos)


def test_a_batch_of_unequal_lengths_gives_what_each_row_gives_alone(model: Any, cases: Cases) -> None:
    made = generator(model, cases.prompts, cases.pad)
    finish(made)
    width = max(map(len, cases.prompts))
    rows = [up_to(continuation(made, row, width), cases.eos) for row in range(len(cases.prompts))]
    assert rows == [up_to(answer, cases.eos) for answer in cases.answers]


def test_generation_stops_at_the_end_token(model: Any, cases: Cases) -> None:
    talk = cases.conversations[0]
    assert finish(generator(model, [talk.ids])) == talk.answer


def test_a_prompt_fed_in_chunks_gives_the_same_tokens(model: Any, cases: Cases) -> None:
    long = int(np.argmax([len(prompt) for prompt in cases.prompts]))
    made = generator(model, [cases.prompts[long]], chunk_size=33)
    finish(made)
    assert continuation(made, 0, len(cases.prompts[long])) == up_to(cases.answers[long], cases.eos)


def test_a_second_turn_continues_from_the_states_of_the_first(model: Any, cases: Cases) -> None:
    prompt, answer = cases.prompts[0], cases.answers[0]
    made = generator(model, [prompt], max_length=400)
    finish(made)
    # genai keeps the end token that it sampled to itself, so the application feeds it with the next turn.
    made.append_tokens(np.array([cases.eos, *cases.follow_up], np.int32))
    finish(made)
    seen = len(prompt) + len(answer) + len(cases.follow_up)
    assert continuation(made, 0, seen) == up_to(cases.second_answer, cases.eos)


@pytest.mark.parametrize("profile", FP32_PROFILES)
def test_without_search_options_the_artifacts_own_settings_hold(
    profile: str, artifact: Callable[[str], Path], cases: Cases
) -> None:
    model = genai.Model(str(artifact(profile)))
    made = genai.Generator(model, genai.GeneratorParams(model))
    made.append_tokens(np.array(cases.prompts[0], np.int32))
    assert finish(made) == cases.answers[0]


def test_text_and_ids_of_a_conversation_equal_transformers(tokenizer: Any, cases: Cases) -> None:
    for talk in cases.conversations:
        tools = {"tools": json.dumps(talk.tools)} if talk.tools else {}
        text = tokenizer.apply_chat_template(json.dumps(talk.messages), add_generation_prompt=True, **tools)
        assert text == talk.text, talk.label
        assert [int(token) for token in tokenizer.encode(text)] == talk.ids, talk.label


def test_decoded_answers_equal_transformers_at_once_and_streamed(tokenizer: Any, cases: Cases) -> None:
    for answer, text in zip(cases.answers, cases.decoded, strict=True):
        assert tokenizer.decode(np.array(answer, np.int32)) == text
        stream = tokenizer.create_stream()
        assert "".join(stream.decode(token) for token in answer) == text


@pytest.mark.parametrize("profile", FP32_PROFILES)
def test_the_context_length_of_the_export_is_genais_limit(profile: str, cases: Cases, tmp_path: Path) -> None:
    length = len(cases.prompts[0]) + 4
    model = genai.Model(str(export(cases.checkpoint, tmp_path / "out", profile, context_length=length)))
    made = generator(model, [cases.prompts[0]], max_length=length)
    assert finish(made) == cases.answers[0][:4]
    with pytest.raises(RuntimeError, match="context_length"):
        generator(model, [cases.prompts[0]], max_length=length + 1)


def test_generation_settings_of_the_checkpoint_reach_genai(cases: Cases, tiny_lfm: Path, tmp_path: Path) -> None:
    stop = cases.answers[0][3]
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_lfm, checkpoint)
    settings = {"temperature": 0.3, "top_k": None, "min_p": 0.15, "repetition_penalty": 1.05, "do_sample": True}
    generation = {**settings, "eos_token_id": [cases.eos, stop]}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    model = genai.Model(str(export(Checkpoint.open(checkpoint), tmp_path / "out", FP32_PROFILES[0])))

    options = genai.GeneratorParams(model).get_search_options()
    assert options["do_sample"] is True
    assert options["temperature"] == pytest.approx(0.3)
    assert options["repetition_penalty"] == pytest.approx(1.05)
    made = generator(model, [cases.prompts[0]], repetition_penalty=1.0)
    assert finish(made) == [*up_to(cases.answers[0], stop), stop]


@pytest.mark.parametrize(
    "template",
    [
        '{% if "</think>" in content %}A{% endif %}',
        '{%- if message.role == "assistant" and "</think>" in message["content"] and not keep -%}A{%- endif -%}',
        "{% if '<think>' not in message.content %}A{% endif %}",
        '{% if not "</think>" in message.content %}A{% endif %}',
        '{{ "A" if ("</think>" in content) else "B" }}',
        '{% set found = "</think>" in message.content %}{{ found }}',
        '{% if "role" in message %}"</think>" in content{% endif %}',
        '{% if "</think>" in content | default("", true) | upper %}A{% endif %}',
    ],
)
@pytest.mark.parametrize("content", ["<think>why</think>so", "so", "", ["</think> as a part"], {"a": 1}])
def test_the_template_for_genai_means_the_same(template: str, content: Any) -> None:
    def render(source: str) -> str:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        message = {"role": "assistant", "content": content}
        return environment.from_string(source).render(content=content, message=message, keep=False)

    assert render(portable_template(template)) == render(template)


@pytest.mark.parametrize("profile", FP32_PROFILES)
@pytest.mark.parametrize(
    "variant",
    ["dense", "dense_conv_bias", "dense_conv_length_4", "dense_attention_only", "dense_conv_only", "moe_top_4"],
)
def test_other_architectures_run_too(
    variant: str, profile: str, variant_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(variant_checkpoint(variant))
    reference = Reference(checkpoint)
    model = genai.Model(str(export(checkpoint, tmp_path / "out", profile, tokenizer=False)))
    (eos,) = checkpoint.config.eos_token_ids
    random = np.random.default_rng(3)
    prompts = [random.integers(8, checkpoint.config.vocab_size, length).tolist() for length in (1, 6, 19)]
    expected = [up_to(reference.greedy(prompt, 16, (eos,)), eos) for prompt in prompts]
    assert max(map(len, expected)) > 4

    made = generator(model, prompts, max_length=19 + 16)
    finish(made)
    assert [up_to(continuation(made, row, 19), eos) for row in range(3)] == expected
