"""Calibration text: a few tokens that see every file and language, the same ones each time, and clear refusals."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_onnx.checkpoint.checkpoint import Checkpoint
from lfm_onnx.checkpoint.tokenizer import ChatTokenizer
from lfm_onnx.errors import InputError, TokenizerError
from lfm_onnx.quantize import calibration_files
from lfm_onnx.quantize.calibration_files import DEFAULT_CALIBRATION, read_calibration
from lfm_onnx.quantize.calibration_text import (
    LEAST_TOKENS,
    MOST_TOKENS,
    SEQUENCE_TOKENS,
    equal_shares,
    load_calibration,
    spread_order,
)

ROOT = Path(__file__).parents[2]
CHAT = [{"role": "user", "content": "Where is the key?"}, {"role": "assistant", "content": "Under the third pot."}]
LANGUAGES = (
    "arabic",
    "chinese",
    "english",
    "french",
    "german",
    "italian",
    "japanese",
    "korean",
    "portuguese",
    "spanish",
)


@pytest.fixture(scope="module")
def checkpoint(tiny_lfm: Path) -> Checkpoint:
    return Checkpoint.open(tiny_lfm)


@pytest.fixture(scope="module")
def tokenizer(tiny_lfm: Path) -> ChatTokenizer:
    return ChatTokenizer.load(tiny_lfm)


def paragraphs(word: str, count: int) -> str:
    return "\n\n".join(f"{word} {number} " + "and so it went on for a long while, " * 16 for number in range(count))


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def test_the_default_text_reaches_every_file_within_a_few_tokens(
    checkpoint: Checkpoint, tokenizer: ChatTokenizer
) -> None:
    sequences = load_calibration(None, checkpoint)
    texts = [tokenizer.decode(ids.tolist()) for ids in sequences]
    assert 1900 <= sum(map(len, sequences)) <= 2048
    for path in DEFAULT_CALIBRATION.iterdir():
        passages = [
            str(unit) if isinstance(unit, str) else unit.decode() for _, unit in read_calibration(path)[0].units
        ]
        if path.suffix != ".jsonl":
            assert any(passage[:25] in text for passage in passages for text in texts), path.name
    assert sum("<|im_start|>" in text for text in texts) >= 2
    assert {path.stem for path in DEFAULT_CALIBRATION.iterdir()} > set(LANGUAGES)


def test_the_default_text_is_clean_and_of_the_promised_size() -> None:
    files = read_calibration(DEFAULT_CALIBRATION)
    assert 60_000 <= sum(file.path.stat().st_size for file in files) <= 120_000
    units = [file.document(index) for file in files for index in range(len(file.units))]
    texts = [unit.text for unit in units if unit.text is not None]
    chats = [unit for unit in units if unit.messages]
    assert len(set(texts)) == len(texts) and len({json.dumps([*chat.messages]) for chat in chats}) == len(chats)
    for file in files:
        assert len(file.units) % 2 == 0, f"{file.path.name}: both halves must be of the same size"
    assert any("<think>" in chat.messages[-1]["content"] for chat in chats)
    assert any(chat.tools for chat in chats)
    for chat in chats:
        assert {message["role"] for message in chat.messages} <= {"system", "user", "assistant", "tool"}
        assert chat.messages[-1]["role"] == "assistant"


def test_chunks_are_short_int64_and_begin_as_the_tokenizer_begins(
    checkpoint: Checkpoint, tokenizer: ChatTokenizer
) -> None:
    bos = tokenizer.encode("", add_special=True)
    assert bos, "the sample's tokenizer adds a bos"
    for sequence in load_calibration(None, checkpoint, 20_000):
        assert sequence.dtype == np.int64 and sequence.ndim == 1
        assert len(bos) < len(sequence) <= SEQUENCE_TOKENS
        assert sequence[: len(bos)].tolist() == bos and bos[0] not in sequence[1:]


@pytest.mark.parametrize("limit", [LEAST_TOKENS, 100, 1000, 5000, MOST_TOKENS])
def test_the_limit_holds_and_is_used(checkpoint: Checkpoint, limit: int) -> None:
    total = sum(map(len, load_calibration(None, checkpoint, limit)))
    assert min(limit, 30_000) * 0.9 <= total <= limit


def test_the_same_files_give_the_same_sequences_wherever_they_lie(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = shutil.copytree(DEFAULT_CALIBRATION, tmp_path / "copy")
    first, second = load_calibration(None, checkpoint, 3000), load_calibration(copy, checkpoint, 3000)
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in second]


def test_the_held_out_half_shares_nothing_with_the_other(
    checkpoint: Checkpoint, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(paragraphs("part", 12))
    used, held_out = (
        {
            text
            for ids in load_calibration(tmp_path, checkpoint, 10**5, half=half)
            for text in [tokenizer.decode(ids[1:])]
        }
        for half in ("calibration", "held-out")
    )
    numbers = [{int(text.split()[1]) for text in texts if text.startswith("part")} for texts in (used, held_out)]
    assert numbers[0] | numbers[1] == set(range(12)) and not numbers[0] & numbers[1]
    default = [
        {ids.tobytes() for ids in load_calibration(None, checkpoint, half=half)} for half in ("calibration", "held-out")
    ]
    assert default[0] and default[1] and not default[0] & default[1]


def test_a_long_file_leaves_short_ones_their_share(
    checkpoint: Checkpoint, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "a_long.txt").write_text(paragraphs("long", 400))
    (tmp_path / "b_short.md").write_text("short: a note of a few words.")
    lines(tmp_path / "c.jsonl", *({"text": f"line {number} " + "of text " * 30} for number in range(40)))
    sequences = load_calibration(tmp_path, checkpoint, 1200)
    texts = [tokenizer.decode(ids.tolist()) for ids in sequences]
    share = {
        word: sum(len(c) for c, t in zip(sequences, texts, strict=True) if word in t) for word in ("long ", "line ")
    }
    assert any("a note of a few words." in text for text in texts)
    assert sum(map(len, sequences)) >= 1100
    assert share["line "] >= 500 and share["long "] >= 500


def test_passages_are_taken_from_the_whole_length_of_a_file(
    checkpoint: Checkpoint, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    values = [{"text": f"{number} " + "one two three four five " * 12} for number in range(64)]
    texts = load_calibration(lines(tmp_path / "x.jsonl", *values), checkpoint, 400)
    numbers = sorted(int(tokenizer.decode(ids[1:]).split()[0]) for ids in texts)
    assert numbers[0] < 16 and numbers[-1] >= 32 and len(numbers) >= 3


def test_conversations_go_through_the_models_template(
    checkpoint: Checkpoint, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    tools = [{"name": "find", "parameters": {"type": "object", "properties": {}}}]
    path = lines(tmp_path / "chats.jsonl", {"messages": CHAT, "tools": tools}, {"messages": CHAT})
    sequences = load_calibration(path, checkpoint)
    assert [ids.tolist() for ids in sequences] == [
        tokenizer.encode(tokenizer.render(CHAT, tools, add_generation_prompt=False))
    ]
    # Shortened, a conversation keeps its end: the answer, not the system prompt that all have in common.
    short = tokenizer.decode(load_calibration(path, checkpoint, LEAST_TOKENS)[0].tolist())
    assert short.endswith("Under the third pot.<|im_end|>\n")


def test_without_a_template_the_default_text_still_works_and_own_chats_are_refused(
    variant: Path, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(variant)
    assert sum(map(len, load_calibration(None, checkpoint, 1000))) > 800
    path = lines(tmp_path / "chats.jsonl", {"messages": CHAT})
    with pytest.raises(TokenizerError, match=r"chats\.jsonl, line 1: this folder has no chat template"):
        load_calibration(path, checkpoint)


@pytest.fixture
def variant(tiny_lfm: Path, tmp_path: Path) -> Path:
    """The sample model without its chat template."""
    folder = shutil.copytree(tiny_lfm, tmp_path / "no_template")
    (folder / "chat_template.jinja").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1, 2]", "expected"),
        ('{"prompt": "x"}', 'expected {"text": …} or {"messages": […]}, found "prompt"'),
        ('{"text": "x", "messages": []}', "expected"),
        ('{"text": 5}', "text is 5, expected a text"),
        ('{"text": "  "}', "not blank"),
        ('{"text": "a", "text": "b"}', "appears twice"),
        ('{"messages": []}', "messages is [], expected a list of one object or more"),
        ('{"messages": ["hi"]}', 'messages[0] is "hi", expected an object'),
        ('{"messages": [{"content": "hi"}]}', "messages[0].role is missing, expected a text"),
        ('{"messages": [{"role": "user", "content": {"a": 1}}]}', "expected a text, a list or null"),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": {}}', "tools is {}, expected a list"),
        ("[" * 100_000, "line 2: nested too deeply"),
        (json.dumps({"text": "a" * (1 << 20)}), "expected at most 1048576"),
    ],
)
def test_a_wrong_line_is_named_with_what_was_expected(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_calibration(tmp_path)
    text = str(caught.value)
    assert "x.jsonl, line 2: " in text and message in text
    assert "\n" not in text and len(text) < 500


def test_files_that_are_not_text_are_refused(
    tmp_path: Path, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="not found"):
        load_calibration(tmp_path / "missing", checkpoint)
    with pytest.raises(InputError, match="holds no file"):
        load_calibration(tmp_path, checkpoint)
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(InputError, match=r"table\.csv: expected a \.txt, \.md or \.jsonl file"):
        load_calibration(tmp_path, checkpoint)
    (tmp_path / "table.csv").unlink()
    (tmp_path / "a.txt").write_bytes(b"first line\nsecond \xff line")
    with pytest.raises(InputError, match=r"a\.txt, line 2: expected UTF-8 text, found the byte 0xff"):
        load_calibration(tmp_path, checkpoint)
    (tmp_path / "a.txt").write_bytes(b"\n \n")
    with pytest.raises(InputError, match="found an empty file"):
        load_calibration(tmp_path, checkpoint)
    (tmp_path / "a.txt").write_text("Only one passage, and nothing to hold out.")
    with pytest.raises(InputError, match="too short to hold a half out"):
        load_calibration(tmp_path, checkpoint, half="held-out")
    with pytest.raises(InputError, match=r"expected 32 to .* tokens, found 31"):
        load_calibration(tmp_path, checkpoint, LEAST_TOKENS - 1)
    monkeypatch.setattr(calibration_files, "MAX_BYTES", 40)
    with pytest.raises(InputError, match="more than 0 MiB of calibration text"):
        load_calibration(tmp_path, checkpoint)
    monkeypatch.setattr(calibration_files, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(calibration_files, "MAX_FILES", 1)
    (tmp_path / "b.txt").write_text("b")
    with pytest.raises(InputError, match="more than 1 files"):
        load_calibration(tmp_path, checkpoint)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_what_is_no_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")  # reading it would wait for ever
    with pytest.raises(InputError, match=r"pipe\.txt: expected"):
        read_calibration(tmp_path)
    (tmp_path / "pipe.txt").unlink()
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / ".hidden.bin").write_bytes(b"\xff")
    (tmp_path / "a.txt").write_text("text")
    assert [file.path.name for file in read_calibration(tmp_path)] == ["a.txt"]


def test_a_tokenizer_of_another_model_is_refused(tiny_lfm: Path, checkpoint: Checkpoint, tmp_path: Path) -> None:
    class Smaller:
        folder = tiny_lfm

        class config:
            vocab_size = 100

    with pytest.raises(TokenizerError, match="the model knows 100 tokens"):
        load_calibration(None, Smaller())  # type: ignore[arg-type]


@given(st.text(alphabet="ab \n\tñ語", max_size=3000))
@settings(max_examples=60, deadline=None)
def test_passages_hold_all_of_a_text(text: str) -> None:
    found = [*calibration_files.passages(text)]
    assert "".join("".join(passage.split()) for _, passage in found) == "".join(text.split())
    assert all(passage.strip() for _, passage in found)
    for number, passage in found:
        first = next(line for line in passage.split("\n"))
        assert first in text.split("\n")[number - 1]


def test_a_text_without_paragraphs_is_cut() -> None:
    passages = [passage for _, passage in calibration_files.passages("x" * 50_000 + " word" * 5000)]
    assert max(map(len, passages)) <= 4000 and len(passages) >= 18


@given(st.lists(st.integers(0, 500), min_size=1, max_size=12), st.integers(0, 3000))
def test_shares_are_equal_unless_a_file_is_short(available: list[int], limit: int) -> None:
    shares = equal_shares(available, limit)
    assert sum(shares) <= limit and all(share <= have for share, have in zip(shares, available, strict=True))
    assert sum(shares) == min(limit, sum(available))
    cut = [share for share, have in zip(shares, available, strict=True) if share < have]
    if cut:
        assert max(cut) - min(cut) <= 1 and min(cut) >= max(shares) - 1


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_first_few_of_a_file_lie_far_apart(count: int, first: int) -> None:
    order = spread_order(count)
    assert sorted(order) == [*range(count)]
    chosen = sorted(order[:first])
    gaps = [b - a for a, b in zip(chosen, [*chosen[1:], count], strict=True)]
    assert max(gaps) <= 4 * count / len(chosen) + 2


def test_quantize_needs_nothing_of_runtime() -> None:
    script = (
        "import sys, lfm_onnx.quantize.calibration_text; print([m for m in sys.modules if 'lfm_onnx.runtime' in m])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_the_source_distribution_holds_the_default_text(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "node_modules", "build", "*.egg-info")
    for package in ROOT.glob("*/__init__.py"):
        shutil.copytree(package.parent, source / package.parent.name, ignore=ignore)
    for path in (*ROOT.glob("*.py"), *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed"))):
        shutil.copy2(path, source)
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=120)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {f"quantize/calibration/{path.name}" for path in DEFAULT_CALIBRATION.iterdir()} <= names
