"""Generation equals transformers', whatever the pieces in which tokens are fed, and never recomputes a conversation."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from artifact_factory import SAMPLE, ArtifactFactory
from click.testing import CliRunner
from lfm_onnx.cli.chat import chat as chat_command
from lfm_onnx.cli.generate import generate as generate_command
from lfm_onnx.cli.terminal import AnswerWriter
from lfm_onnx.errors import ArtifactError, InputError, LfmOnnxError
from lfm_onnx.export import OpsProfile
from lfm_onnx.runtime.chat import Conversation
from lfm_onnx.runtime.model import LfmModel, Token
from lfm_onnx.runtime.state import FIRST_CAPACITY
from transformers import AutoModelForCausalLM

PROFILES = ["custom", "standard"]
VARIANTS = ["dense", "dense_untied", "dense_conv_only", "dense_attention_only", "dense_conv_length_4", "moe"]
QUESTION = [{"role": "user", "content": "What is 3 + 4?"}]


@pytest.fixture(scope="module")
def loaded(exported_artifact: ArtifactFactory) -> Callable[[str, str], LfmModel]:
    """loaded(variant or "sample", profile) -> model on one thread, loaded once."""
    models: dict[tuple[str, str], LfmModel] = {}

    def load(name: str, profile: str) -> LfmModel:
        if (name, profile) not in models:
            models[name, profile] = LfmModel.load(exported_artifact(name, OpsProfile(profile)), threads=1)
        return models[name, profile]

    return load


@pytest.fixture(params=PROFILES)
def tiny(request: pytest.FixtureRequest, loaded: Callable[[str, str], LfmModel]) -> LfmModel:
    """The trained sample model, in both profiles."""
    return loaded(SAMPLE, request.param)


def transformers_generate(folder: Path, ids: list[int], **options: Any) -> list[int]:
    """The ids that transformers' generate() appends to ``ids``, in float32 on one thread."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), do_sample=False, **options)
    return out[0, len(ids) :].tolist()


def random_ids(length: int, seed: int = 0) -> list[int]:
    return [int(id) for id in np.random.default_rng(seed).integers(8, 96, length)]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of tokens that each run of a session is given, as the test goes on."""
    from lfm_onnx.runtime.session import DecoderSession

    counts: list[int] = []
    run = DecoderSession.run

    def counted(self: DecoderSession, state: Any, input_ids: np.ndarray, **options: Any) -> np.ndarray:
        counts.append(input_ids.shape[1])
        return run(self, state, input_ids, **options)

    monkeypatch.setattr(DecoderSession, "run", counted)
    yield counts


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_those_of_transformers(
    variant: str,
    profile: str,
    variant_checkpoint: Callable[..., Path],
    loaded: Callable[[str, str], LfmModel],
) -> None:
    model = loaded(variant, profile)
    for length in (1, 5, 270):  # 270 columns go beyond the first capacity
        ids = random_ids(length)
        # transformers' own cache cannot hold a model without attention
        options = {"use_cache": False} if variant == "dense_conv_only" else {}
        expected = transformers_generate(variant_checkpoint(variant), ids, max_new_tokens=12, **options)
        assert list(model.generate(ids, max_new_tokens=12).result.token_ids) == expected


def test_the_sample_model_answers_as_in_transformers(tiny: LfmModel, tiny_lfm: Path) -> None:
    tasks = [json.loads(line) for line in (tiny_lfm / "tasks.jsonl").read_text("utf-8").splitlines()]
    for task in tasks[:: max(1, len(tasks) // 4)][:4]:
        ids = tiny.prompt_ids(task["messages"], task.get("tools"))
        expected = transformers_generate(tiny_lfm, ids, max_new_tokens=60)
        result = tiny.generate(task["messages"], tools=task.get("tools"), max_new_tokens=60, do_sample=False).result
        assert list(result.token_ids) == expected


def test_the_repetition_penalty_counts_prompt_and_answer_as_in_transformers(
    loaded: Callable[[str, str], LfmModel], variant_checkpoint: Callable[..., Path]
) -> None:
    ids = random_ids(30)
    expected = transformers_generate(variant_checkpoint("dense"), ids, max_new_tokens=20, repetition_penalty=1.5)
    result = loaded("dense", "custom").generate(ids, max_new_tokens=20, repetition_penalty=1.5).result
    assert list(result.token_ids) == expected
    assert expected != transformers_generate(variant_checkpoint("dense"), ids, max_new_tokens=20)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("variant", ["dense", "moe", "dense_conv_length_4"])
def test_logits_do_not_depend_on_the_pieces_in_which_tokens_are_fed(
    variant: str, profile: str, loaded: Callable[[str, str], LfmModel]
) -> None:
    model = loaded(variant, profile)
    ids = random_ids(60)
    whole, _ = model.forward(ids, num_logits_to_keep=0)
    for pieces in ([1] * 60, [7] * 8 + [4], [2, 57, 1], [59, 1]):
        state = model.new_state(capacity=1)
        rows, at = [], 0
        for piece in pieces:
            logits, state = model.forward(ids[at : at + piece], state=state, num_logits_to_keep=0)
            rows.append(logits[0])
            at += piece
        np.testing.assert_allclose(np.concatenate(rows), whole[0], atol=2e-5)
    state = model.new_state()
    np.testing.assert_allclose(model.prefill(state, ids[:-1], chunk=8), whole[0, -2], atol=2e-5)
    np.testing.assert_allclose(model.decode(state, ids[-1]), whole[0, -1], atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("profile", PROFILES)
def test_a_padded_batch_gives_each_row_what_it_gives_alone(
    profile: str, side: str, loaded: Callable[[str, str], LfmModel]
) -> None:
    model = loaded("moe", profile)
    rows = [random_ids(length, seed=length) for length in (9, 4, 1)]
    ids, mask = np.zeros((3, 9), np.int64), np.zeros((3, 9), np.int64)
    for row, tokens in enumerate(rows):
        at = slice(9 - len(tokens), 9) if side == "left" else slice(0, len(tokens))
        ids[row, at], mask[row, at] = tokens, 1
    logits, state = model.forward(ids, mask)
    alone = [model.new_state() for _ in rows]
    for row, tokens in enumerate(rows):
        np.testing.assert_allclose(logits[row, -1], model.prefill(alone[row], tokens), atol=2e-5)
    for step in range(3):
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
        logits, state = model.forward(np.full((3, 1), 20 + step), mask, state)
        for row in range(3):
            np.testing.assert_allclose(logits[row, -1], model.decode(alone[row], 20 + step), atol=2e-5)


def test_buffers_stay_where_they_are_until_the_capacity_doubles(tiny: LfmModel) -> None:
    state = tiny.new_state()
    assert state.capacity == FIRST_CAPACITY
    tiny.prefill(state, [20] * 10)

    def addresses() -> set[int]:
        buffers = [*state.past_key_values(), *state.present_key_values(state.length)]
        buffers += [*state.past_convs(), *state.present_convs()]
        return {buffer.ctypes.data for buffer in buffers}

    tiny.decode(state, 21)
    before = addresses()
    for _ in range(FIRST_CAPACITY - state.length):
        tiny.decode(state, 21)
    assert addresses() == before
    copies = 1 if state.layout.shared else 2
    assert len(before) == copies * len(state.layout.key_values) + 2 * len(state.layout.convs)
    tiny.decode(state, 21)
    assert state.capacity == 2 * FIRST_CAPACITY
    assert state.length == FIRST_CAPACITY + 1


@pytest.mark.parametrize("keep_past_thinking", [False, True])
def test_a_further_turn_feeds_only_what_is_new_and_answers_as_a_fresh_start(
    tiny: LfmModel, keep_past_thinking: bool, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    render = tiny.tokenizer.render
    monkeypatch.setattr(tiny.tokenizer, "render", lambda *args: render(*args, keep_past_thinking=keep_past_thinking))
    conversation = Conversation(tiny, system="You are brief.", do_sample=False, max_new_tokens=40)
    prompt: list[int] = []
    answer: list[int] = []
    for question in ("What is 3 + 4?", "And 12 kilometres in metres?", "Who are you?"):
        fed.clear()
        result = conversation.send(question).result
        assert sum(fed) == result.prompt_tokens - result.cached_tokens + len(result.token_ids) - 1
        # The whole state is kept where the template repeats the answer, else everything up to it.
        state = prompt + answer[:-1]
        prompt_before, prompt = prompt, tiny.prompt_ids(conversation.messages[:-1])
        repeated = prompt[: len(state)] == state
        assert repeated is keep_past_thinking or not prompt_before
        assert result.cached_tokens == (len(state) if repeated else tiny.tokenizer.stable_length(prompt_before))
        answer = list(result.token_ids)
        fresh = tiny.generate(conversation.messages[:-1], do_sample=False, max_new_tokens=40).result
        assert result.token_ids == fresh.token_ids
        assert fresh.cached_tokens == 0


def test_a_changed_history_is_answered_as_a_fresh_start(tiny: LfmModel) -> None:
    conversation = Conversation(tiny, do_sample=False, max_new_tokens=30)
    for question in ("What is 3 + 4?", "What is 5 + 1?", "What is 9 - 2?"):
        _ = conversation.send(question).result
    conversation.messages = [*conversation.messages[:2], {"role": "user", "content": "What is 2 + 2?"}]
    edited = conversation.send("And 8 - 3?").result
    assert 0 < edited.cached_tokens < edited.prompt_tokens
    fresh = tiny.generate(conversation.messages[:-1], do_sample=False, max_new_tokens=30).result
    assert edited.token_ids == fresh.token_ids
    conversation.reset()
    assert conversation.messages == []
    assert conversation.send("What is 3 + 4?").result.prompt_tokens == len(tiny.prompt_ids(QUESTION))


def test_the_same_prompt_again_is_answered_the_same(tiny: LfmModel) -> None:
    context = tiny.new_context()
    first = tiny.generate(QUESTION, context=context, do_sample=False).result
    again = tiny.generate(QUESTION, context=context, do_sample=False).result
    assert again.token_ids == first.token_ids
    assert 0 < again.cached_tokens < again.prompt_tokens


def test_a_cancelled_answer_and_an_interrupted_run_leave_the_conversation_sound(
    tiny: LfmModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(tiny, do_sample=False, max_new_tokens=30)
    generation = conversation.send("What is 3 + 4?")
    shown = "".join(next(generation).text for _ in range(3))
    result = generation.cancel()
    assert result.finish_reason == "cancelled"
    assert conversation.messages[-1] == {"role": "assistant", "content": result.text}
    assert result.text == shown
    assert list(generation) == []

    advance = type(conversation.context.state).advance

    def interrupted(state: Any, total: int) -> None:
        advance(state, total)
        raise KeyboardInterrupt

    monkeypatch.setattr(type(conversation.context.state), "advance", interrupted)
    generation = conversation.send("What is 5 + 1?")
    with pytest.raises(KeyboardInterrupt):
        next(generation)
    generation.cancel()
    monkeypatch.undo()
    result = conversation.send("What is 9 - 2?").result
    fresh = tiny.generate(conversation.messages[:-1], do_sample=False, max_new_tokens=30).result
    assert result.token_ids == fresh.token_ids


def test_logits_that_are_no_numbers_leave_the_conversation_sound(tiny: LfmModel, monkeypatch: Any) -> None:
    conversation = Conversation(tiny, do_sample=False, max_new_tokens=8)
    expected = tiny.generate(QUESTION, do_sample=False, max_new_tokens=8).result
    run = type(tiny.session).run

    def overflow(self: Any, state: Any, ids: Any, **options: Any) -> np.ndarray:
        return np.full_like(run(self, state, ids, **options), np.nan)

    with monkeypatch.context() as patch:
        patch.setattr(type(tiny.session), "run", overflow)
        with pytest.raises(ArtifactError, match="not numbers"):
            _ = conversation.send(QUESTION[0]["content"]).result
    conversation.reset()
    result = conversation.send(QUESTION[0]["content"]).result
    assert result.token_ids == expected.token_ids and result.cached_tokens == 0


def test_events_carry_every_token_and_their_texts_make_up_the_text(tiny: LfmModel) -> None:
    generation = tiny.generate(QUESTION, do_sample=False)
    tokens = list(generation)
    result = generation.result
    assert tuple(token.id for token in tokens) == result.token_ids
    assert "".join(token.text for token in tokens) == result.text
    assert result.finish_reason == "stop"
    assert result.token_ids[-1] in tiny.end_ids
    assert "<|im_end|>" not in result.text
    assert result.text == f"<think>{result.reasoning}</think>{result.answer}"
    assert result.prompt_tokens == len(tiny.prompt_ids(QUESTION))
    assert result.prefill_s > 0
    assert result.tokens_per_second == pytest.approx((len(tokens) - 1) / result.decode_s)


def test_a_stop_text_ends_the_answer_and_is_left_out_even_across_tokens(tiny: LfmModel) -> None:
    full = tiny.generate(QUESTION, do_sample=False).result.text
    stop = full[len(full) // 2 - 3 : len(full) // 2 + 3]
    generation = tiny.generate(QUESTION, do_sample=False, stop=[stop, "never"])
    pieces = [token.text for token in generation]
    assert "".join(pieces) == generation.result.text == full[: full.index(stop)]
    assert generation.result.finish_reason == "stop"


def test_an_end_token_is_any_of_generation_config(
    exported_artifact: ArtifactFactory, loaded: Callable[[str, str], LfmModel], tmp_path: Path
) -> None:
    full = loaded(SAMPLE, "custom").generate(QUESTION, do_sample=False).result
    third = full.token_ids[2]
    for file in exported_artifact(SAMPLE).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, third], "max_new_tokens": 50}))
    model = LfmModel.load(tmp_path, verify="none", threads=1)
    result = model.generate(QUESTION, do_sample=False).result
    assert result.token_ids == full.token_ids[: full.token_ids.index(third) + 1]
    assert result.finish_reason == "stop"
    endless = model.generate(QUESTION, do_sample=False, stop_at_end_token=False).result
    assert len(endless.token_ids) == 50, "the default length is that of generation_config.json"
    assert endless.finish_reason == "length"


def test_sampling_repeats_with_a_seed(tiny: LfmModel) -> None:
    def ids(seed: int) -> tuple[int, ...]:
        return tiny.generate(QUESTION, temperature=3.0, top_k=0, seed=seed, max_new_tokens=20).result.token_ids

    assert ids(1) == ids(1) != ids(2)


def test_generation_stops_where_the_context_ends(exported_artifact: ArtifactFactory) -> None:
    for profile in PROFILES:
        model = LfmModel.load(exported_artifact("dense", OpsProfile(profile)), threads=1, context_length=20)
        options = {"max_new_tokens": 100, "stop_at_end_token": False}
        result = model.generate(random_ids(15), **options).result
        assert len(result.token_ids) == 6, "5 more fit, and the last one is sampled without being fed"
        assert result.finish_reason == "length"
        assert len(model.generate(random_ids(20), **options).result.token_ids) == 1
        with pytest.raises(InputError, match="21 tokens do not fit into the context of 20"):
            model.generate(random_ids(21))


def test_a_turn_that_does_not_fit_is_taken_back(exported_artifact: ArtifactFactory) -> None:
    model = LfmModel.load(exported_artifact(SAMPLE), threads=1, context_length=120)
    conversation = Conversation(model, do_sample=False, max_new_tokens=20)
    _ = conversation.send("What is 3 + 4?").result
    before = list(conversation.messages)
    with pytest.raises(InputError, match="context of 120"):
        conversation.send("long " * 200)
    assert conversation.messages == before
    assert conversation.send("Hi").result.token_ids


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"providers": ["NoSuchProvider"]}, "NoSuchProvider"),
        ({"threads": 0}, "threads"),
        ({"context_length": 10**9}, "context length"),
        ({"context_length": 0}, "context length"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    exported_artifact: ArtifactFactory, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        LfmModel.load(exported_artifact("dense"), **options)


@pytest.mark.parametrize(
    ("prompt", "options", "reason"),
    [
        ([], {}, "messages"),
        ([1, 10**6], {}, "outside the vocabulary"),
        ([1, -1], {}, "outside the vocabulary"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens"),
        ([1], {"stop": [""]}, "stop"),
        ([1], {"temperature": -1.0}, "temperature"),
        ("lone \ud800 surrogate", {}, "cannot be encoded"),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_a_prompt_or_option_that_cannot_be_used_is_refused(
    loaded: Callable[[str, str], LfmModel], prompt: Any, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(LfmOnnxError, match=reason):
        loaded(SAMPLE, "custom").generate(prompt, **options)


def test_a_model_file_that_is_no_decoder_is_refused(exported_artifact: ArtifactFactory, tmp_path: Path) -> None:
    from lfm_onnx.runtime.session import DecoderSession

    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"\x00nonsense")
    with pytest.raises(ArtifactError, match="cannot load"):
        DecoderSession(broken, shared=True)


def test_loading_and_answering_needs_neither_torch_nor_transformers(exported_artifact: ArtifactFactory) -> None:
    program = (
        "import sys; from lfm_onnx.runtime.model import LfmModel\n"
        f"model = LfmModel.load({str(exported_artifact(SAMPLE))!r}, threads=1)\n"
        f"print(model.generate({QUESTION!r}, max_new_tokens=3, do_sample=False).result.text)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<think>")


def test_the_generate_command_streams_text_or_prints_one_json_object(exported_artifact: ArtifactFactory) -> None:
    folder, run = str(exported_artifact(SAMPLE)), CliRunner().invoke
    question = ["-p", "What is 3 + 4?", "--temperature", "0", "--threads", "1"]
    data = json.loads(run(generate_command, [folder, *question, "--json"]).stdout)
    assert data["text"] == f"<think>{data['reasoning']}</think>{data['answer']}"
    assert data["finish_reason"] == "stop"
    assert run(generate_command, [folder, *question]).stdout == data["text"] + "\n"
    assert run(generate_command, [folder, *question, "--hide-thinking"]).stdout == data["answer"] + "\n"
    piped = run(generate_command, [folder, "-p", "-", *question[2:]], input="What is 3 + 4?")
    assert piped.stdout == data["text"] + "\n"
    raw = run(generate_command, [folder, *question, "--raw", "--max-new-tokens", "4", "--json"])
    assert json.loads(raw.stdout)["prompt_tokens"] < data["prompt_tokens"]
    assert isinstance(run(generate_command, [folder, *question, "--raw", "--system", "x"]).exception, InputError)


def test_the_chat_command_answers_line_by_line_from_a_pipe(exported_artifact: ArtifactFactory) -> None:
    folder = str(exported_artifact(SAMPLE))
    model = LfmModel.load(folder, threads=1)
    lines = ["What is 3 + 4?", "What is 5 + 1?"]
    conversation = Conversation(model, do_sample=False)
    answers = [conversation.send(line).result.text for line in lines]
    options = [folder, "--temperature", "0", "--threads", "1"]
    chat = CliRunner().invoke(chat_command, options, input="\n".join([*lines, "/reset", lines[0], "/exit", "no"]))
    assert chat.stdout == "\n".join([*answers, answers[0]]) + "\n"
    assert chat.exit_code == 0


def test_tools_reach_the_prompt_and_a_tools_file_is_checked(exported_artifact: ArtifactFactory, tmp_path: Path) -> None:
    folder, run = str(exported_artifact(SAMPLE)), CliRunner().invoke
    options = [folder, "-p", "x", "--json", "--max-new-tokens", "1"]
    file = tmp_path / "tools.json"
    file.write_text('[{"name": "convert"}]')
    with_tools = json.loads(run(generate_command, [*options, "--tools", str(file)]).stdout)
    assert with_tools["prompt_tokens"] > json.loads(run(generate_command, options).stdout)["prompt_tokens"]
    for content in ("{", '{"name": "convert"}', "[1]"):
        file.write_text(content)
        failure = run(generate_command, [*options, "--tools", str(file)]).exception
        assert isinstance(failure, InputError) and "tools.json" in str(failure)


class Scripted:
    """A generation of given pieces; an exception among them is raised in its turn."""

    thinks_from_start = False

    def __init__(self, *pieces: str | BaseException) -> None:
        self._pieces = iter(pieces)
        self.result = "result"

    def __iter__(self) -> Iterator[Token]:
        for piece in self._pieces:
            if isinstance(piece, BaseException):
                raise piece
            yield Token(0, piece)

    def cancel(self) -> str:
        return "cancelled"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(out: io.StringIO, *pieces: str | BaseException, hide_thinking: bool = False) -> tuple[str, Any]:
    """What a writer on ``out`` makes of the pieces, and the result it hands back."""
    result = AnswerWriter(out, hide_thinking=hide_thinking).write(Scripted(*pieces))  # type: ignore[arg-type]
    return out.getvalue(), result


def test_a_terminal_shows_the_reasoning_dimmed_and_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    pieces = ("<th", "ink>hm\x1b]0;title\x07</think>", "\n\n", "yes\x1b[2J [bold]no[/bold]\n")
    assert written(Terminal(), *pieces)[0] == "\x1b[2mhm]0;title\x1b[0m\nyes[2J [bold]no[/bold]\n\n"
    assert written(Terminal(), *pieces, hide_thinking=True)[0] == "yes[2J [bold]no[/bold]\n\n"
    assert written(io.StringIO(), *pieces, hide_thinking=True)[0] == "yes\x1b[2J [bold]no[/bold]\n\n"
    assert written(io.StringIO(), *pieces)[0] == "".join(pieces) + "\n", "a pipe gets the text as it is"


def test_an_interrupt_ends_the_answer_alone() -> None:
    assert written(io.StringIO(), "so far", KeyboardInterrupt()) == ("so far\n", "cancelled")
