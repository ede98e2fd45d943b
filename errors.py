"""The project's own exceptions: each carries one line that a user can act on."""

from __future__ import annotations


class LfmOnnxError(Exception):
    """Base of every error that a user can cause and correct.

    The message is one line: what was expected, what was found, what to do. The command line prints it to stderr and
    exits with ``exit_code``; no traceback is shown.

    >>> import lfm_onnx
    >>> try:
    ...     lfm_onnx.load("nowhere")
    ... except lfm_onnx.LfmOnnxError as error:
    ...     print(error.exit_code, error)
    2 nowhere is not a folder; give the folder that `lfm-onnx export` wrote
    """

    exit_code = 2


class CheckpointError(LfmOnnxError):
    """A checkpoint's weights are missing, truncated, malformed or of the wrong shape.

    >>> import lfm_onnx
    >>> lfm_onnx.export_checkpoint("nowhere", "out")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    CheckpointError: nowhere: no such folder …
    """


class ConfigError(LfmOnnxError):
    """config.json is missing a field, contradicts itself or asks for something that is not supported.

    >>> import lfm_onnx, pathlib
    >>> pathlib.Path("broken").mkdir()
    >>> pathlib.Path("broken/config.json").write_text("{}")
    2
    >>> lfm_onnx.export_checkpoint("broken", "out")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ConfigError: broken/config.json: …
    """


class ArtifactError(LfmOnnxError):
    """An exported folder is incomplete, altered, or written by a newer version.

    >>> import lfm_onnx
    >>> lfm_onnx.load("tiny_lfm")  # a checkpoint  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ArtifactError: tiny_lfm: …
    """


class OutputError(LfmOnnxError):
    """The output folder cannot take the result: not empty, not writable, too little space.

    >>> import lfm_onnx
    >>> lfm_onnx.export_checkpoint("tiny_lfm", "lfm")  # is there already  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    OutputError: …
    """


class TokenizerError(LfmOnnxError):
    """Tokenizer files are missing or cannot be used.

    >>> import lfm_onnx, pathlib, shutil
    >>> copy = pathlib.Path(shutil.copytree("tiny_lfm", "no-tokenizer"))
    >>> (copy / "tokenizer.json").unlink()
    >>> lfm_onnx.export_checkpoint(copy, "out")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    TokenizerError: no-tokenizer has no tokenizer.json …
    """


class InputError(LfmOnnxError):
    """A prompt, an option or a file given by the user cannot be used.

    >>> import lfm_onnx
    >>> lfm_onnx.load("lfm").generate("One, two,", max_new_tokens=0)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    InputError: max_new_tokens: expected 1 or more, found 0
    """


class PromiseError(LfmOnnxError):
    """A promise that the user asked for (size, quality) cannot be kept; nothing was written.

    >>> import lfm_onnx
    >>> options = lfm_onnx.ExportOptions(budget=1000, method="rtn")
    >>> lfm_onnx.export_checkpoint("tiny_lfm", "out", options)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    PromiseError: a budget of 0.001 MB cannot be kept …
    """

    exit_code = 1


def reason_of(error: BaseException, longest: int = 400) -> str:
    """What another library's exception says, on one line of at most ``longest`` characters; or its type."""
    return " ".join(str(error).split())[:longest] or type(error).__name__
