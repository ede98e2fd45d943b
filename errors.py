"""The project's own exceptions: each carries one line that a user can act on."""

from __future__ import annotations


class LfmOnnxError(Exception):
    """Base of every error that a user can cause and correct.

    The message is one line: what was expected, what was found, what to do. The command line prints it to stderr and
    exits with ``exit_code``; no traceback is shown.
    """

    exit_code = 2


class CheckpointError(LfmOnnxError):
    """A checkpoint's weights are missing, truncated, malformed or of the wrong shape."""


class ConfigError(LfmOnnxError):
    """config.json is missing a field, contradicts itself or asks for something that is not supported."""


class ArtifactError(LfmOnnxError):
    """An exported folder is incomplete, altered, or written by a newer version."""


class OutputError(LfmOnnxError):
    """The output folder cannot take the result: not empty, not writable, too little space."""


class TokenizerError(LfmOnnxError):
    """Tokenizer files are missing or cannot be used."""


class InputError(LfmOnnxError):
    """A prompt, an option or a file given by the user cannot be used."""


class PromiseError(LfmOnnxError):
    """A promise that the user asked for (size, quality) cannot be kept; nothing was written."""

    exit_code = 1
