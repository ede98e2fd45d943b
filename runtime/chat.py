"""A conversation of several turns: keeps the messages and the model's state, so that a turn feeds only what is new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .generation import Generation, GenerationResult
from .model import LfmModel


class Conversation:
    """A conversation with a model: its messages so far, and the model's state behind them, kept from turn to turn.

    Answers equal those of a fresh start on the whole conversation, but only what is new is fed. ``messages`` may be
    replaced between turns: what they have in common with what the state holds is kept. One conversation answers one
    turn at a time; several of the same model may be open.

    >>> import lfm_onnx
    >>> conversation = lfm_onnx.Conversation(lfm_onnx.load("lfm"), system="You are brief.", do_sample=False)
    >>> conversation.send("What is 3 + 4?").result.answer
    '3 + 4 = 7.'
    >>> conversation.send("What is 5 + 1?").result.answer
    '5 + 1 = 6.'
    >>> [message["role"] for message in conversation.messages]
    ['system', 'user', 'assistant', 'user', 'assistant']
    """

    def __init__(
        self,
        model: LfmModel,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> None:
        """system: the system message. tools: JSON schemas. options: as ``LfmModel.generate`` takes them.

        Options that cannot be used are told by the first ``send``.
        """
        self.model = model
        self.tools = tools
        self.options = options
        self._system = system
        self.context = model.new_context()
        self.messages: list[dict[str, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget every turn but the system message."""
        self.messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def send(self, content: str, *, role: str = "user") -> Generation:
        """Add a turn and answer it. role: "user", or "tool" for the result of a tool call.

        The answer joins the messages when the iteration ends or is cancelled. A turn that cannot be rendered or does
        not fit is taken back, and the error raised.
        """
        turn = {"role": role, "content": content}
        self.messages.append(turn)
        messages = list(self.messages)

        def remember(result: GenerationResult) -> None:
            self.messages = [*messages, {"role": "assistant", "content": result.text}]

        try:
            return self.model.generate(
                messages, tools=self.tools, context=self.context, on_finish=remember, **self.options
            )
        except Exception:
            self.messages.remove(turn)
            raise
