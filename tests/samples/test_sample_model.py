"""The sample checkpoint is what it claims: hub layout, LFM2.5 tokens and chat format, trained, all experts used."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
TINY = SAMPLES / "tiny_lfm"
sys.path.insert(0, str(SAMPLES))

from tiny_chats import held_out_tasks, tokenizer_texts, training_chats  # noqa: E402
from tiny_grading import expert_usage, final_answer, grade, load_model  # noqa: E402
from tiny_questions import GENERATORS, draw  # noqa: E402
from tiny_tokenizer import SPECIAL_TOKENS, THINKING_TOKENS, render, train_tokenizer  # noqa: E402
from tiny_tool_dialogues import TOOLS, tool_dialogue  # noqa: E402
from tiny_world import is_held_out  # noqa: E402

CONFIG = json.loads((TINY / "config.json").read_text())
REPORT = json.loads((TINY / "training_report.json").read_text())
TASKS: list[dict[str, Any]] = [json.loads(line) for line in (TINY / "tasks.jsonl").read_text().splitlines()]


def safetensors_header() -> dict[str, Any]:
    with (TINY / "model.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return dict(header)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model() -> Any:
    import torch

    torch.set_num_threads(2)
    return load_model(TINY)[0]


def test_the_folder_holds_a_whole_checkpoint_of_at_most_8_megabytes() -> None:
    names = {path.name for path in TINY.iterdir()}
    assert names == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tasks.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_report.json",
    }
    assert sum(path.stat().st_size for path in TINY.iterdir()) <= 8_000_000


def test_every_block_type_of_the_large_model_occurs() -> None:
    assert CONFIG["model_type"] == "lfm2_moe"
    assert CONFIG["layer_types"].count("full_attention") >= 2
    assert CONFIG["layer_types"].count("conv") >= 2
    moe_types = CONFIG["layer_types"][CONFIG["num_dense_layers"] :]
    assert {"conv", "full_attention"} == set(moe_types)
    assert CONFIG["num_dense_layers"] == 2
    assert CONFIG["num_experts"] >= 8
    assert CONFIG["hidden_size"] % 64 == CONFIG["moe_intermediate_size"] % 64 == 0


def test_tensors_have_the_names_shapes_and_types_of_hub_checkpoints() -> None:
    hidden, width, experts = CONFIG["hidden_size"], CONFIG["moe_intermediate_size"], CONFIG["num_experts"]
    heads, kv_heads = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    head = hidden // heads
    expected = {"model.embed_tokens.weight": [CONFIG["vocab_size"], hidden], "model.embedding_norm.weight": [hidden]}
    for index, kind in enumerate(CONFIG["layer_types"]):
        layer = f"model.layers.{index}"
        expected[f"{layer}.operator_norm.weight"] = expected[f"{layer}.ffn_norm.weight"] = [hidden]
        if kind == "conv":
            expected[f"{layer}.conv.in_proj.weight"] = [3 * hidden, hidden]
            expected[f"{layer}.conv.conv.weight"] = [hidden, 1, CONFIG["conv_L_cache"]]
            expected[f"{layer}.conv.out_proj.weight"] = [hidden, hidden]
        else:
            expected[f"{layer}.self_attn.q_proj.weight"] = [heads * head, hidden]
            expected[f"{layer}.self_attn.k_proj.weight"] = [kv_heads * head, hidden]
            expected[f"{layer}.self_attn.v_proj.weight"] = [kv_heads * head, hidden]
            expected[f"{layer}.self_attn.out_proj.weight"] = [hidden, heads * head]
            expected[f"{layer}.self_attn.q_layernorm.weight"] = [head]
            expected[f"{layer}.self_attn.k_layernorm.weight"] = [head]
        ffn = f"{layer}.feed_forward"
        blocks = [(ffn, CONFIG["intermediate_size"])]
        if index >= CONFIG["num_dense_layers"]:
            blocks = [(f"{ffn}.experts.{expert}", width) for expert in range(experts)]
            expected[f"{ffn}.gate.weight"] = [experts, hidden]
            expected[f"{ffn}.expert_bias"] = [experts]
        for block, inner in blocks:
            expected[f"{block}.w1.weight"] = expected[f"{block}.w3.weight"] = [inner, hidden]
            expected[f"{block}.w2.weight"] = [hidden, inner]
    header = safetensors_header()
    assert {name: entry["shape"] for name, entry in header.items()} == expected
    assert {entry["dtype"] for name, entry in header.items() if name.endswith("expert_bias")} == {"F32"}
    assert {entry["dtype"] for name, entry in header.items() if not name.endswith("expert_bias")} == {"BF16"}


def test_special_tokens_are_single_ids_and_the_config_agrees(tokenizer: Any) -> None:
    for index, token in enumerate((*SPECIAL_TOKENS, *THINKING_TOKENS)):
        assert tokenizer.convert_tokens_to_ids(token) == index
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [index]
    assert tokenizer.bos_token_id == CONFIG["bos_token_id"]
    assert tokenizer.eos_token_id == CONFIG["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.pad_token_id == CONFIG["pad_token_id"]
    assert len(tokenizer) == CONFIG["vocab_size"]


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_are_tokens_of_their_own(tokenizer: Any) -> None:
    assert tokenizer.tokenize("1234+56") == ["1", "2", "3", "4", "+", "5", "6"]


def test_the_stored_tokenizer_is_the_one_that_training_text_gives() -> None:
    retrained = train_tokenizer(tokenizer_texts(REPORT["seed"]), CONFIG["vocab_size"])
    assert json.loads(retrained.to_str()) == json.loads((TINY / "tokenizer.json").read_text())


CONTENT = st.text(max_size=30)
THOUGHTFUL = CONTENT.map(lambda text: f"<think>{text}</think>{text}")
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), CONTENT | THOUGHTFUL), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    system=st.none() | CONTENT,
    turns=TURNS,
    tools=st.lists(st.sampled_from(sorted(TOOLS)), max_size=3),
    prompt=st.booleans(),
    keep=st.booleans(),
)
def test_plain_jinja2_and_transformers_render_the_same_prompt(
    tokenizer: Any, system: str | None, turns: list[tuple[str, str]], tools: list[str], prompt: bool, keep: bool
) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if not messages:
        messages = [{"role": "user", "content": ""}]
    offered = [TOOLS[name] for name in tools] or None
    expected = tokenizer.apply_chat_template(
        messages, tools=offered, add_generation_prompt=prompt, tokenize=False, keep_past_thinking=keep
    )
    assert render(messages, offered, add_generation_prompt=prompt, keep_past_thinking=keep) == expected


def test_the_template_writes_the_chat_format_of_lfm2_5() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>A greeting.</think>Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    assert render(messages, [{"name": "stop"}], add_generation_prompt=True) == (
        '<|startoftext|><|im_start|>system\nBe brief.\nList of tools: [{"name": "stop"}]<|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_both_copies_of_the_template_are_the_same() -> None:
    inside = json.loads((TINY / "tokenizer_config.json").read_text())["chat_template"]
    assert inside == (TINY / "chat_template.jinja").read_text().rstrip("\n")


def test_training_draws_no_held_out_prompt() -> None:
    import random

    rng = random.Random(7)
    for generator in GENERATORS:
        assert not any(is_held_out(draw(rng, held_out=False, generator=generator).key) for _ in range(200))
        assert all(is_held_out(draw(rng, held_out=True, generator=generator).key) for _ in range(20))
    assert not any(is_held_out(tool_dialogue(rng, held_out=False).question.key) for _ in range(200))


def test_no_task_prompt_occurs_in_training_chats() -> None:
    asked: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for messages, _, _ in itertools.islice(training_chats(REPORT["seed"]), 20000):
        users = [message["content"] for message in messages if message["role"] == "user"]
        asked.update(users)
        pairs.update(itertools.pairwise(users))
    for task in TASKS:
        users = [message["content"] for message in task["messages"] if message["role"] == "user"]
        if task["category"] == "follow_up":
            assert (users[0], users[1]) not in pairs
        else:
            assert users[-1] not in asked


def test_the_task_file_is_the_one_that_the_generator_makes() -> None:
    assert held_out_tasks() == TASKS
    assert len({task["id"] for task in TASKS}) == len(TASKS) >= 200


def test_a_graded_answer_is_what_follows_the_last_thought_up_to_the_end_of_turn() -> None:
    assert final_answer("<think>a</think> b \n<|im_end|>c") == "b"
    assert final_answer("no thought<|im_end|>") == "no thought"
    assert final_answer("<think>never closed") == "<think>never closed"


def test_held_out_tasks_are_answered_exactly(model: Any, tokenizer: Any) -> None:
    grades = grade(model, tokenizer, TASKS[::5])
    assert grades.overall >= 0.95, grades.failures


def test_the_report_says_at_least_95_percent_on_all_tasks() -> None:
    assert REPORT["exact_match"] >= 0.95
    assert set(REPORT["exact_match_by_category"]) == {task["category"] for task in TASKS}


def test_expert_bias_was_trained_in_every_moe_layer(model: Any) -> None:
    for layer in model.model.layers[CONFIG["num_dense_layers"] :]:
        assert (layer.feed_forward.expert_bias != 0).all()


def test_no_expert_is_idle(model: Any, tokenizer: Any) -> None:
    measured = expert_usage(model, tokenizer, TASKS[::8])
    assert set(measured) == set(REPORT["expert_usage"]) == {"2", "3", "4", "5"}
    for usage in (measured, REPORT["expert_usage"]):
        for shares in usage.values():
            assert len(shares) == CONFIG["num_experts"]
            assert sum(shares) == pytest.approx(1, abs=1e-2)
            assert min(shares) > 0.02  # an even load is 0.125
