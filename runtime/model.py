"""An exported model ready to answer: ``LfmModel.load(folder)``, then ``generate`` or the steps it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ..artifact.artifact import Artifact, Verification
from ..checkpoint.config import LfmConfig
from ..checkpoint.generation_config import GENERATION_CONFIG_NAME, end_token_ids, read_generation_config
from ..checkpoint.sampling_fields import sampling_fields
from ..checkpoint.tokenizer import ChatTokenizer, Message
from ..errors import ArtifactError, InputError
from .generation import PREFILL_CHUNK, Generation, GenerationResult, Token, TokenContext
from .load import open_session
from .sampling import SamplingOptions
from .session_protocol import SequenceState, Session
from .state import FIRST_CAPACITY

if TYPE_CHECKING:
    from .npu.run_options import NpuRunOptions

__all__ = ["Generation", "GenerationResult", "LfmModel", "Token"]

DEFAULT_MAX_NEW_TOKENS = 512


class LfmModel:
    """A loaded model. Needs ONNX Runtime and the artifact's folder, neither torch nor transformers.

    The weights stay mapped into memory for as long as it lives: whoever cuts their files short then ends the process.

    ``generate`` answers; ``forward``, ``prefill`` and ``decode`` are the steps that it is made of.

    >>> import lfm_onnx
    >>> model = lfm_onnx.LfmModel.load("lfm")
    >>> logits, state = model.forward([1, 17, 256])
    >>> logits.shape, state.length
    ((1, 1, 1280), 3)
    """

    def __init__(
        self,
        artifact: Artifact,
        session: Session,
        generation_config: Mapping[str, Any],
        context_length: int,
    ) -> None:
        self.artifact = artifact
        self.session = session
        self.generation_config = generation_config
        self.context_length = context_length
        self.end_ids = frozenset(end_token_ids(generation_config, artifact.config))
        self._tokenizer: ChatTokenizer | None = None

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        variant: str | None = None,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        context_length: int | None = None,
        native: bool | None = None,
        verify: Verification = "quick",
        target: Literal["cpu", "qnn"] | None = None,
        npu: NpuRunOptions | None = None,
    ) -> LfmModel:
        """Open an artifact and start its session; the weights stay in the file, mapped into memory.

        variant: "fp32", "fp16", …; None takes the artifact's first. context_length: tokens, at most the artifact's.
        native: False runs the ops' definitions on ONNX Runtime's own kernels, None the native library where it is
        there. verify: "quick", "full" or "none". target: "qnn" runs an export for the NPU as ``npu`` says, which is
        also what happens where the folder holds nothing else. Raises ArtifactError or InputError.

        >>> import lfm_onnx
        >>> lfm_onnx.load("lfm", context_length=512).context_length
        512
        """
        opened = open_session(
            folder,
            variant=variant,
            providers=providers,
            threads=threads,
            context_length=context_length,
            native=native,
            verify=verify,
            target=target,
            npu=npu,
        )
        return cls(
            opened.artifact,
            opened.session,
            read_generation_config(opened.artifact.folder, ArtifactError),
            opened.context_length,
        )

    @property
    def config(self) -> LfmConfig:
        """The model's configuration."""
        return self.artifact.config

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Tokenizer and chat template of the artifact; TokenizerError where the files are missing."""
        if self._tokenizer is None:
            self._tokenizer = ChatTokenizer.load(self.artifact.folder)
        return self._tokenizer

    def new_state(self, batch: int = 1, capacity: int = FIRST_CAPACITY) -> SequenceState:
        """An empty state for ``batch`` sequences, with room for ``capacity`` tokens at first (it grows)."""
        return self.session.new_state(batch, capacity, self.context_length)

    def new_context(self) -> TokenContext:
        """A state that knows its tokens, to be handed to ``generate`` turn after turn."""
        return TokenContext(self.session, self.new_state())

    def forward(
        self,
        input_ids: np.ndarray | Sequence[int],
        attention_mask: np.ndarray | None = None,
        state: SequenceState | None = None,
        *,
        num_logits_to_keep: int = 1,
    ) -> tuple[np.ndarray, SequenceState]:
        """One run of the graph: (logits float32 [B, rows, V], state). A state that is given is advanced in place.

        input_ids: int64 [B, S], or [S] for one sequence. attention_mask: [B, T] with T = tokens in the state + S, 0
        for padding left or right; its columns for tokens fed before must be as they were then. num_logits_to_keep:
        rows of logits, counted from each row's last valid token; 0 for all S.
        """
        ids = np.atleast_2d(np.asarray(input_ids, np.int64))
        self._check_ids(ids)
        state = state if state is not None else self.new_state(ids.shape[0], ids.shape[1])
        total = state.length + ids.shape[1]
        new_mask = None
        if state.batch != ids.shape[0]:
            raise InputError(f"input_ids: expected {state.batch} rows as in the state, found {ids.shape[0]}")
        if attention_mask is not None:
            mask = np.atleast_2d(np.asarray(attention_mask, np.int64))
            if mask.shape != (ids.shape[0], total):
                raise InputError(f"attention_mask: expected shape {(ids.shape[0], total)}, found {mask.shape}")
            new_mask = mask[:, state.length :]
        logits = self.session.run(state, ids, new_mask=new_mask, keep=num_logits_to_keep)
        return logits.astype(np.float32, copy=True), state

    def prefill(self, state: SequenceState, input_ids: Sequence[int], chunk: int = PREFILL_CHUNK) -> np.ndarray:
        """Feed a prompt, ``chunk`` tokens at a time; float32 logits [V] of its last token."""
        ids = np.asarray(input_ids, np.int64)[None]
        self._check_ids(ids)
        state.check(state.length + ids.shape[1])
        for start in range(0, ids.shape[1], chunk):
            logits = self.session.run(state, ids[:, start : start + chunk])
        result: np.ndarray = logits[0, -1].astype(np.float32, copy=True)
        return result

    def decode(self, state: SequenceState, token_id: int) -> np.ndarray:
        """Feed one token; float32 logits [V]."""
        return self.prefill(state, [token_id])

    def prompt_ids(
        self, prompt: str | Sequence[Message] | Sequence[int], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Token ids of a prompt: messages through the chat template, a raw text with its special tokens, or ids."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt, add_special=True)
        ids = [int(item) for item in prompt if isinstance(item, (int, np.integer))]
        if ids and len(ids) == len(prompt):
            return ids
        return self.tokenizer.encode(self.tokenizer.render(cast(Sequence[Message], prompt), tools))

    def generate(
        self,
        prompt: str | Sequence[Message] | Sequence[int],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        context: TokenContext | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stop_at_end_token: bool = True,
        prefill_chunk: int = PREFILL_CHUNK,
        on_finish: Callable[[GenerationResult], None] | None = None,
    ) -> Generation:
        """Answer ``prompt``: messages, a raw text, or token ids. Iterate the return value for ``Token`` events.

        What is not given comes from the artifact's generation_config.json, as transformers would read it; see
        ``SamplingOptions``. context: where the conversation stands, to feed only what is new. stop: texts that end
        the answer and are left out of it. Raises InputError, before any token, for a prompt that does not fit.
        """
        ids = self.prompt_ids(prompt, tools)
        if not ids:
            raise InputError("the prompt is empty: it has no tokens")
        self._check_ids(np.asarray(ids, np.int64))
        if max_new_tokens is None:
            max_new_tokens = self._max_new_tokens()
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected 1 or more, found {max_new_tokens}")
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk: expected 1 or more tokens, found {prefill_chunk}")
        if not all(stop):
            raise InputError("stop: expected texts of one character or more, found an empty one")
        keep_point = context is not None  # a context of this call alone is never gone back to
        context = context if context is not None else self.new_context()
        context.state.check(len(ids))
        options = SamplingOptions.chosen(
            self.generation_config,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        # A model exported without its tokenizer still continues token ids.
        with_text = bool(stop) or (self.artifact.folder / "tokenizer.json").exists()
        return Generation(
            context,
            self.tokenizer if with_text else None,
            ids,
            options,
            end_ids=self.end_ids if stop_at_end_token else frozenset(),
            max_new_tokens=max_new_tokens,
            stop=stop,
            prefill_chunk=prefill_chunk,
            keep_point=keep_point,
            on_finish=on_finish,
        )

    def _max_new_tokens(self) -> int:
        """Of generation_config.json, or the default; InputError for what is no count."""
        config = sampling_fields(self.generation_config)
        if "max_new_tokens" in config.faults:
            raise InputError(f"{GENERATION_CONFIG_NAME}: {config.faults['max_new_tokens']}; give max_new_tokens")
        return int(config.values.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS))

    def _check_ids(self, ids: np.ndarray) -> None:
        if not ids.size:
            raise InputError("input_ids: expected at least one token, found none")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            wrong = int(ids.min() if ids.min() < 0 else ids.max())
            raise InputError(f"token id {wrong} is outside the vocabulary of {self.config.vocab_size}")
