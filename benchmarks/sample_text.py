"""Chats like those the sample models are trained on, to calibrate, and others that training never draws, to measure.

    python benchmarks/sample_text.py FOLDER

Writes calibration.jsonl and held_out.jsonl there, one {"messages": …, "tools": …} a line: every answer with its
thinking. Both are drawn from seeds of their own; the held-out ones ask for what training leaves out.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent.parent / "samples"))
from tiny_chats import SYSTEM_TEXTS, reply, training_chats, user
from tiny_questions import draw
from tiny_tool_dialogues import tool_dialogue

# Tasks and training draw from seeds 0; these are others.
_CALIBRATION_SEED = 7001
_HELD_OUT_SEED = 7002
_CHATS = 1000


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--chats", default=_CHATS, show_default=True, help="Lines of each file.")
def main(folder: Path, chats: int) -> None:
    """Write calibration.jsonl and held_out.jsonl to FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    training = ({"messages": messages, "tools": tools} for messages, tools, _ in training_chats(_CALIBRATION_SEED))
    for name, drawn in (("calibration", training), ("held_out", _held_out())):
        lines = (_line(chat) for chat in itertools.islice(drawn, chats))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def _line(chat: dict[str, Any]) -> str:
    if not chat["tools"]:
        del chat["tools"]
    return json.dumps(chat, ensure_ascii=False) + "\n"


def _held_out() -> Iterator[dict[str, Any]]:
    rng = random.Random(f"held-out text {_HELD_OUT_SEED}")
    while True:
        messages = [{"role": "system", "content": rng.choice(SYSTEM_TEXTS)}] if rng.random() < 0.4 else []
        tools = []
        if rng.random() < 0.3:
            dialogue = tool_dialogue(rng, held_out=True)
            question, tools = dialogue.question, dialogue.tools
            messages += [user(question.text), reply(question.thought, question.answer)]
            if dialogue.result:
                messages += [{"role": "tool", "content": dialogue.result}, reply(dialogue.thought, dialogue.answer)]
        else:
            question = draw(rng, held_out=True)
            messages += [user(question.text), reply(question.thought, question.answer)]
        yield {"messages": messages, "tools": tools}


if __name__ == "__main__":
    main()
